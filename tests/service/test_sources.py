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


@pytest.mark.parametrize("source", ["team", "./team", "inside", "team/../team", "link/../team"])
def test_what_leads_below_a_root_is_read_from_where_it_leads(sources: Sources, source: str) -> None:
    if source == "link/../team":  # `..` of where the link leads, as the system has it
        with pytest.raises(UsageError, match="not below"):
            sources.resolved(source)
    else:
        assert sources.resolved(source) == str(sources.roots[0].resolve() / "team")


@pytest.mark.parametrize(
    "source",
    [
        "../secret",
        "team/../../secret",
        "link",
        "link/x",
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
