"""What a client may have read: attacks on paths and URLs."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamstats.errors import UsageError
from streamstats.service.sources import Sources


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    root = tmp_path / "root"
    (root / "team").mkdir(parents=True)
    (root / "team" / "zarr.json").write_text("{}")
    (tmp_path / "secret").mkdir()
    (root / "link").symlink_to(tmp_path / "secret")
    (root / "inside").symlink_to(root / "team")
    (root / "circle").symlink_to(root / "circle")
    return Sources([root], ["s3://bucket/calibration/"])


@pytest.mark.parametrize("source", ["team", "./team", "team/../team", "link/../team", "{root}/team", "{root}/./team/"])
def test_what_lies_below_a_root_is_read_from_where_it_says(sources: Sources, source: str) -> None:
    assert sources.resolved(source.format(root=sources.roots[0])) == str(sources.roots[0].resolve() / "team")


def test_a_source_is_known_by_all_its_names_unless_a_name_leads_elsewhere(tmp_path: Path) -> None:
    for folder in ("first/a", "second/a", "second/b"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "written").symlink_to(tmp_path / "second")
    sources = Sources([tmp_path / "first", tmp_path / "written"], ["s3://bucket/"])
    absolute = [str(tmp_path / folder / "b") for folder in ("second", "written")]
    for source in ("b", *absolute):
        assert sources.spellings(source) == [*absolute, "b"]
    assert sources.spellings("a") == [str(tmp_path / "first/a"), "a"]
    assert "a" not in sources.spellings(absolute[0].replace("/b", "/a"))  # which is the other root's
    for source in ("s3://bucket/b", "nowhere", "store:b", "../b"):
        assert sources.spellings(source) == [source]


@pytest.mark.parametrize("source", ["inside", "link", "link/x", "inside/zarr.json", "circle", "{root}/inside"])
def test_what_lies_behind_a_link_is_refused_wherever_it_leads(sources: Sources, source: str) -> None:
    with pytest.raises(UsageError, match=r"is a link, or lies behind one.*name what the link leads to"):
        sources.resolved(source.format(root=sources.roots[0]))


def test_a_root_is_where_its_links_led_at_the_start(tmp_path: Path) -> None:
    for name in ("there", "secret"):
        (tmp_path / name / "store").mkdir(parents=True)
    root = tmp_path / "root"
    root.symlink_to(tmp_path / "there")
    sources = Sources([root])
    root.unlink()
    root.symlink_to(tmp_path / "secret")
    for source in ("store", str(root / "store"), str(tmp_path / "there/store")):
        assert sources.resolved(source) == str((tmp_path / "there/store").resolve())


def test_a_root_inside_a_root_cannot_become_a_link(tmp_path: Path) -> None:
    outer, inner = tmp_path / "outer", tmp_path / "outer" / "inner"
    (inner / "store").mkdir(parents=True)
    (tmp_path / "secret" / "store").mkdir(parents=True)
    sources = Sources([outer, inner])
    inner.rename(tmp_path / "away")
    inner.symlink_to(tmp_path / "secret")
    for source in ("store", "inner/store", str(inner / "store")):
        with pytest.raises(UsageError, match="lies behind one"):
            sources.resolved(source)
    assert sources.listed() == []


@pytest.mark.parametrize(
    "source",
    [
        "../secret",
        "team/../../secret",
        "team/../..//secret",
        "./../secret",
        "..",
        "/etc/passwd",
        "/",
        "~/x",
        "circle",
        "team\x00",
        "team\n",
        "",
        "x" * 2000,
        "a/" * 600,
        "file:///etc/passwd",
        "file://team",
        "http://169.254.169.254/latest/meta-data/",
        "http://localhost:80/",
        "https://example.com/x.zarr",
        "s3://other/calibration/x",
        "s3://bucket/calibration",
        "s3://bucket/calibration/../private/x",
        "s3://bucket/calibration/%2e%2e/private",
        "s3://bucket/calibration/./x",
        "s3://bucket/calibration\\..\\x",
        "s3://user:password@bucket/calibration/x",
        "s3://bucket@evil/calibration/x",
        "s3://bucket:80/calibration/x",
        "s3://bucket/calibration/x?endpoint=http://evil",
        "s3://bucket/calibration/x#y",
        "S3://bucket/calibration/x",
        "s3://bucket/calibration/x::s3://bucket/private",
        "zip::s3://bucket/calibration/x",
        "simplecache::file:///etc",
        "s3://[::1]/calibration/x",
        "s3://[bad/calibration/x",
        "\ud800",
    ],
)
def test_an_attack_is_refused(sources: Sources, source: str) -> None:
    with pytest.raises(UsageError):
        sources.resolved(source)


def test_a_url_below_a_prefix_is_read(sources: Sources) -> None:
    assert sources.resolved("s3://bucket/calibration/a/b.zarr") == "s3://bucket/calibration/a/b.zarr"


def test_a_refusal_does_not_tell_what_is_there(sources: Sources, tmp_path: Path) -> None:
    there, nowhere = str(tmp_path / "secret"), str(tmp_path / "nowhere")
    messages = []
    for source in (there, nowhere):
        with pytest.raises(UsageError) as caught:
            sources.resolved(source)
        messages.append(str(caught.value).replace(source, ""))
    assert messages[0] == messages[1]


def test_stores_are_offered_and_links_are_not_followed(sources: Sources) -> None:
    assert sources.listed() == ["team"]


@pytest.mark.parametrize("prefix", ["s3://bucket", "http://host/", "s3://169.254.169.254:80/", "s3://b/../", "x"])
def test_a_prefix_that_is_none_is_refused(prefix: str) -> None:
    with pytest.raises(UsageError):
        Sources([], [prefix])


def test_a_root_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a folder"):
        Sources([tmp_path / "nowhere"])
