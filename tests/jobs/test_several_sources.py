"""Several sources and parts: as if all rows were in one array, with a coverage for each, however any of them grows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stores import Array, build_store, samples

from streamstats.calibration.recorder import Recorder
from streamstats.calibration.selection import LayerRule
from streamstats.cli import main
from streamstats.config import load_config
from streamstats.errors import DataError, MismatchError, UsageError
from streamstats.jobs import run as running
from streamstats.jobs.compare import compare
from streamstats.jobs.forget import forget
from streamstats.jobs.job import Job
from streamstats.jobs.merge import merge
from streamstats.jobs.run import Follow, reduce, run
from streamstats.jobs.status import status
from streamstats.jobs.verify import verify
from streamstats.outputs.results import open_results

KINDS = ("squares", "histogram", "spread")
X = samples(40, 3, 4)


def record(store: Path | str, values: Array, part: str = "") -> str:
    with Recorder(store, part=part, chunk_bytes=200) as recorder:
        recorder.append("fc", values)
    return str(store)


def job(tmp_path: Path, *sources: str, **options: Any) -> Job:
    source = sources if len(sources) > 1 else sources[0]
    return Job(source, str(tmp_path / "out"), layers=(LayerRule("*", statistics=KINDS),), **options)


@pytest.fixture
def stores(tmp_path: Path) -> tuple[str, str]:
    return record(tmp_path / "a.zarr", X[:10]), record(tmp_path / "b.zarr", X[10:17])


def corrector(output: Path) -> bytes:
    return (output / "correctors" / "fc.safetensors").read_bytes()


def state(output: Path) -> bytes:
    return (output / "state" / "fc.safetensors").read_bytes()


def covered(output: Path) -> list[tuple[str, str]]:
    """Address → counted rows, by source."""
    found = open_results(output).statistics("fc")
    return [(str(each.address).rpartition("/")[2], str(each.covered)) for each in found.sources]


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, 40), min_size=1, max_size=5), whole_stores=st.lists(st.booleans(), min_size=6))
def test_any_division_among_stores_and_parts_gives_the_result_of_one_array(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], whole_stores: list[bool]
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    places: list[tuple[str, str]] = []
    for number, block in enumerate(np.split(X, sorted(cuts))):
        last = places[-1][0] if places and not whole_stores[number] else str(folder / f"s{number}.zarr")
        part = "" if not places or last != places[-1][0] else f"part{number}"
        places.append((record(last, block, part), part))
    record(folder / "whole.zarr", X)
    found = reduce([*dict.fromkeys(store for store, _ in places)], layers=[LayerRule("*", statistics=KINDS)])
    expected = reduce(folder / "whole.zarr", layers=[LayerRule("*", statistics=KINDS)])
    assert found["fc"].statistics == expected["fc"].statistics


def test_sources_are_added_and_reordered_and_grow_and_each_row_counts_once(
    tmp_path: Path, stores: tuple[str, str]
) -> None:
    a, b = stores
    run(job(tmp_path, a))  # which has no need to say which array it is
    run(job(tmp_path, b, a))
    record(a, X[17:30])
    record(b, X[30:], part="late")
    outcome = run(job(tmp_path, b, a))
    assert covered(tmp_path / "out") == [("b.zarr", "0:7"), ("b.zarr, part late", "0:10"), ("a.zarr", "0:23")]
    kept = state(tmp_path / "out"), corrector(tmp_path / "out")
    run(job(tmp_path, b, a), restart=True)
    assert kept == (state(tmp_path / "out"), corrector(tmp_path / "out"))
    whole = Job(record(tmp_path / "w.zarr", X), str(tmp_path / "w"), layers=job(tmp_path, a).layers)
    assert outcome.statistics["fc"].statistics == run(whole).statistics["fc"].statistics
    assert kept[1] == corrector(tmp_path / "w")
    assert verify(job(tmp_path, b, a)) == []


def test_a_source_that_is_no_longer_named_is_missed(tmp_path: Path, stores: tuple[str, str]) -> None:
    run(job(tmp_path, *stores))
    with pytest.raises(DataError, match=r"rows 0:7 of .*b.zarr were counted, but the job has .*name that store"):
        run(job(tmp_path, stores[0]))
    run(job(tmp_path, *stores))


def test_a_part_that_is_no_longer_there_is_missed(tmp_path: Path) -> None:
    store = record(tmp_path / "a.zarr", X[:10])
    record(store, X[10:], "rank1")
    run(job(tmp_path, store))
    shutil.rmtree(tmp_path / "a.zarr" / ".parts")
    with pytest.raises(DataError, match=r"rows 0:30 of part rank1 were counted.*; restore that part, count"):
        run(job(tmp_path, store))


def test_status_names_the_rows_outside_the_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = record(tmp_path / "a.zarr", X[:10])
    record(store, X[10:], "rank1")
    run(job(tmp_path, store))
    assert main(["status", str(tmp_path / "out")]) == 0
    assert "fc: counted rows: outside the parts 0:10 of 10, part rank1 0:30 of 30" in capsys.readouterr().err


def test_filled_rows_are_named_with_their_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = record(tmp_path / "a.zarr", X[:10])
    record(store, X[10:], "rank1")
    shutil.rmtree(tmp_path / "a.zarr/.parts/rank1/fc/c")
    (tmp_path / "run.yaml").write_text(f"source: {store}\noutput: {tmp_path / 'out'}\nmissing: fill\n")
    assert main(["run", str(tmp_path / "run.yaml")]) == 0
    assert "note: layer fc (part rank1): the fill value was counted" in capsys.readouterr().err


def test_a_restart_is_no_remedy_for_a_part_that_is_gone_with_forgotten_rows(tmp_path: Path) -> None:
    store = record(tmp_path / "a.zarr", X[:10])
    record(store, X[10:], "rank1")
    run(job(tmp_path, store))
    forget(job(tmp_path, store), (0, 2), part="rank1")
    shutil.rmtree(tmp_path / "a.zarr" / ".parts")
    for restart in (False, True):
        with pytest.raises(DataError, match=r"of part rank1 were .*; restore that part, or choose another output"):
            run(job(tmp_path, store), restart=restart)


def test_rows_of_one_source_are_forgotten_for_good(tmp_path: Path, stores: tuple[str, str]) -> None:
    a, b = stores
    run(job(tmp_path, a, b))
    with pytest.raises(UsageError, match=r"several arrays.*name one with --source or --part"):
        forget(job(tmp_path, a, b), (0, 2))
    with pytest.raises(UsageError, match=r"no array matches --source c.zarr; the job has .*a.zarr, .*b.zarr"):
        forget(job(tmp_path, a, b), (0, 2), source="c.zarr")
    (forgotten,) = forget(job(tmp_path, a, b), (2, 5), source=b)
    assert forgotten.rows == 3
    rest = record(tmp_path / "rest.zarr", np.concatenate([X[:12], X[15:17]]))
    for restart in (False, True):
        found = run(job(tmp_path, a, b), restart=restart).statistics["fc"]
        assert found.statistics == reduce(rest, layers=job(tmp_path, a).layers)["fc"].statistics
        assert covered(tmp_path / "out") == [("a.zarr", "0:10"), ("b.zarr", "0:2, 5:7")]
    run(job(tmp_path, b, a), restart=True)
    assert covered(tmp_path / "out") == [("b.zarr", "0:2, 5:7"), ("a.zarr", "0:10")]


def test_rows_that_were_forgotten_when_the_store_was_the_only_one_stay_so_in_a_restart(
    tmp_path: Path, stores: tuple[str, str]
) -> None:
    a, b = stores
    run(job(tmp_path, b))
    forget(job(tmp_path, b), (0, 3))
    run(job(tmp_path, a, b), restart=True)
    assert covered(tmp_path / "out") == [("a.zarr", "0:10"), ("b.zarr", "3:7")]


def test_what_cannot_be_read_is_told_with_its_source(tmp_path: Path, stores: tuple[str, str]) -> None:
    a, b = stores
    (Path(b) / "fc" / "c" / "0" / "0" / "0").unlink()
    outcome = run(job(tmp_path, a, b, missing="report"))
    assert not outcome.complete
    (layer,) = status(tmp_path / "out").layers
    ((address, ((rows, reason),)),) = layer.gaps.items()
    assert (address.store, rows) == (b, (0, 4))
    assert "b.zarr): chunk c/0/0/0" in reason
    assert [problem.layer for problem in verify(job(tmp_path, a, b, missing="report"))] == [f"fc ({b})"]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["source"] == [a, b]
    assert manifest["layers"]["fc"]["missing"] == [{"rows": [0, 4], "reason": reason, "source": b}]
    assert [each["covered"] for each in manifest["layers"]["fc"]["sources"]] == [[[0, 10]], [[4, 7]]]


def test_a_chunk_that_has_changed_is_told_with_its_source(tmp_path: Path, stores: tuple[str, str]) -> None:
    run(job(tmp_path, *stores))
    (Path(stores[1]) / "fc" / "c" / "0" / "0" / "0").write_bytes(b"other")
    with pytest.raises(DataError, match=r"layer fc \(.*b.zarr\): chunk c/0/0/0 .*changed"):
        run(job(tmp_path, *stores))


def test_arrays_that_do_not_fit_together_are_refused(tmp_path: Path, stores: tuple[str, str]) -> None:
    other = build_store(tmp_path / "c.zarr", {"fc": X.astype("int8")})
    with pytest.raises(MismatchError, match=r"the dtype is int8; .*a.zarr has float32; make .*c.zarr"):
        run(job(tmp_path, stores[0], str(other)))
    with pytest.raises(UsageError, match="twice"):
        run(job(tmp_path, stores[0], f"{stores[0]}/../a.zarr"))


@pytest.mark.parametrize("beside", ["link.zarr", "link.zarr/", "store.zarr/.parts/x", "link.zarr/.parts/x", "part"])
def test_a_link_or_a_part_beside_its_store_is_the_store_named_twice(tmp_path: Path, beside: str) -> None:
    for part in ("x", "y"):
        with Recorder(tmp_path / "store.zarr", part=part) as recorder:
            recorder.append("a", np.ones((3, 2), np.float32))
    (tmp_path / "link.zarr").symlink_to("store.zarr")
    (tmp_path / "part").symlink_to("store.zarr/.parts/y")
    parts = [str(tmp_path / "store.zarr/.parts" / part) for part in "xy"]
    with pytest.raises(UsageError, match=r"names .* twice: it is .*store.zarr, part [xy]; name each store once"):
        reduce([tmp_path / "store.zarr", f"{tmp_path}/{beside}"])
    assert reduce(parts)["a"].rows == 6


def test_a_layer_that_one_source_lacks_counts_the_others_and_says_so(
    tmp_path: Path, stores: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    other = build_store(tmp_path / "c.zarr", {"head": X[:, 0]})
    (tmp_path / "run.yaml").write_text(f"source: [{stores[0]}, {other}]\noutput: {tmp_path}/out\n")
    assert main(["run", str(tmp_path / "run.yaml")]) == 0
    assert f"fc is not in {other}" in capsys.readouterr().err
    assert {name: open_results(tmp_path / "out").statistics(name).rows for name in ("fc", "head")} == {
        "fc": 10,
        "head": 40,
    }


def test_the_command_line_shows_the_coverage_of_each(
    tmp_path: Path, stores: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(f"source: [{stores[0]}, {stores[1]}]\noutput: {tmp_path}/out\n")
    assert load_config(config).job().sources == stores
    assert main(["run", str(config)]) == main(["verify", str(config)]) == 0
    assert main(["forget", str(config), "--rows", "0:2"]) == 2
    assert main(["forget", str(config), "--rows", "0:2", "--source", stores[1]]) == 0
    capsys.readouterr()
    assert main(["status", f"{tmp_path}/out"]) == 0
    assert f"{stores[0]} 0:10 of 10, {stores[1]} 2:7 of 7" in capsys.readouterr().err
    assert main(["inspect", f"{tmp_path}/out"]) == 0
    assert "0:10 + 2:7" in capsys.readouterr().out


def test_outputs_of_several_sources_are_merged_and_compared(tmp_path: Path, stores: tuple[str, str]) -> None:
    more = record(tmp_path / "c.zarr", X[17:30]), record(tmp_path / "d.zarr", X[30:])
    for name, sources in (("left", stores), ("right", more), ("all", (*stores, *more))):
        run(Job(sources, str(tmp_path / name)))
    merge([tmp_path / "left", tmp_path / "right"], tmp_path / "merged")
    assert compare(tmp_path / "merged", tmp_path / "all").equal
    with pytest.raises(MismatchError, match=r"counted in .*left, too"):
        merge([tmp_path / "left", tmp_path / "all"], tmp_path / "twice")


def test_a_merged_output_of_stores_with_one_name_says_that_it_is_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sites = {"here": ("a.zarr", "b.zarr"), "there": ("a.zarr", "c.zarr")}
    for site, names in sites.items():
        (tmp_path / site).mkdir()
        monkeypatch.chdir(tmp_path / site)
        for seed, name in enumerate(names):
            record(name, samples(5, 3, seed=10 * len(site) + seed))
        run(Job(names, "out"))
    merge([tmp_path / site / "out" for site in sites], tmp_path / "merged", different_stores=True)
    with pytest.raises(UsageError, match="merged holds merged results; run in the outputs that were merged"):
        run(Job(("c.zarr", "a.zarr"), str(tmp_path / "merged")))


def test_a_run_that_follows_counts_parts_that_appear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "POLL_SECONDS", 0.01)
    store, written = record(tmp_path / "a.zarr", X[:10]), []

    def grow(_: object) -> None:
        written.append(covered(tmp_path / "out")) if (tmp_path / "out" / "manifest.json").exists() else None
        if len(written) == 1:
            record(store, X[10:25], "rank1")
        elif len(written) == 2:
            record(store, X[25:30], "rank1")
            record(store, X[30:], "rank0")

    outcome = run(job(tmp_path, store), follow=Follow(rows=40), on_written=grow)
    assert covered(tmp_path / "out") == [("", "0:10"), ("part rank0", "0:10"), ("part rank1", "0:20")]
    expected = reduce(record(tmp_path / "w.zarr", X), layers=job(tmp_path, store).layers)
    assert outcome.statistics["fc"].statistics == expected["fc"].statistics


def test_a_restart_without_a_store_does_not_lose_what_was_forgotten_of_it(
    tmp_path: Path, stores: tuple[str, str]
) -> None:
    run(job(tmp_path, *stores))
    forget(job(tmp_path, *stores), (0, 3), source=stores[1])
    with pytest.raises(DataError, match=r"rows 0:3 of .*b\.zarr were forgotten, but the job has .*a\.zarr; name"):
        run(job(tmp_path, stores[0]), restart=True)
    run(job(tmp_path, *stores), restart=True)
    assert covered(tmp_path / "out") == [("a.zarr", "0:10"), ("b.zarr", "3:7")]


def test_a_state_that_was_removed_leaves_what_was_forgotten_to_the_manifest(
    tmp_path: Path, stores: tuple[str, str]
) -> None:
    run(job(tmp_path, *stores))
    forget(job(tmp_path, *stores), (0, 3), source=stores[1])
    (tmp_path / "out" / "state" / "fc.safetensors").unlink()
    run(job(tmp_path, *stores))
    assert covered(tmp_path / "out") == [("a.zarr", "0:10"), ("b.zarr", "3:7")]


def test_a_store_that_was_moved_is_known_by_its_files(tmp_path: Path, stores: tuple[str, str]) -> None:
    a, b = stores
    run(job(tmp_path, a, b))
    moved = str(tmp_path / "moved.zarr")
    shutil.move(b, moved)
    outcome = run(job(tmp_path, a, moved))
    assert covered(tmp_path / "out") == [("a.zarr", "0:10"), ("moved.zarr", "0:7")]
    assert outcome.statistics["fc"].rows == 17


def test_padding_that_others_write_first_is_counted_again_in_whichever_source(tmp_path: Path) -> None:
    """zarr makes an array longer before it writes; the rows of a chunk with room for more are counted apart."""
    stores = [str(build_store(tmp_path / name, {"fc": X[:7]}, chunks=(4, 3, 4))) for name in ("a.zarr", "b.zarr")]
    whole = X[:7]
    run(job(tmp_path, *stores))
    for number, store in enumerate(reversed(stores)):
        array = zarr.open_array(store, path="fc", mode="r+")
        array.resize((11 + number, 3, 4))
        array[6:] = X[20 : 25 + number]  # the last counted row, too, is another one now
    expected = np.concatenate([whole[:6], X[20:26], whole[:6], X[20:25]])
    for restart in (False, True):
        found = run(job(tmp_path, *stores), restart=restart).statistics["fc"]
        reference = reduce(record(tmp_path / f"w{restart}.zarr", expected), layers=job(tmp_path, "").layers)["fc"]
        assert found.statistics == reference.statistics
    forget(job(tmp_path, *stores), (9, 10), source=stores[0])
    left = record(tmp_path / "left.zarr", np.delete(expected, 9, axis=0))
    found = run(job(tmp_path, *stores)).statistics["fc"]
    assert found.statistics == reduce(left, layers=job(tmp_path, "").layers)["fc"].statistics
    assert verify(job(tmp_path, *stores)) == []


def test_a_copy_under_another_name_is_known_by_its_content(tmp_path: Path, stores: tuple[str, str]) -> None:
    a, b = stores
    record(b, X[17:20], part="rank1")
    run(job(tmp_path, a, b))
    copy = str(tmp_path / "copy.zarr")
    shutil.copytree(b, copy, copy_function=shutil.copy)
    shutil.rmtree(b)
    assert run(job(tmp_path, a, copy)).statistics["fc"].rows == 20
    assert covered(tmp_path / "out") == [("a.zarr", "0:10"), ("copy.zarr", "0:7"), ("copy.zarr, part rank1", "0:3")]


def test_a_copy_beside_the_store_is_told(
    tmp_path: Path, stores: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    config, copy = tmp_path / "run.yaml", str(tmp_path / "copy.zarr")
    shutil.copytree(stores[0], copy, copy_function=shutil.copy)
    for sources, told in ((stores, False), ((stores[0], copy), True)):
        config.write_text(f"source: [{sources[0]}, {sources[1]}]\noutput: {tmp_path}/out{told}\n")
        assert main(["run", str(config)]) == 0
        said = f"3 of 3 chunks of {sources[1]} have the size and content of those of {sources[0]}; if one is a copy"
        assert (said in capsys.readouterr().err) is told
