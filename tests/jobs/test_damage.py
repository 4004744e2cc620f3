"""Lost and damaged chunks are an error, rows left out, or the fill value, as the job says; never a different number."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from stores import Array, build_store, samples
from told import Told
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec, ZstdCodec

from streamstats.calibration import describing
from streamstats.calibration.recorder import Recorder
from streamstats.calibration.selection import LayerRule
from streamstats.calibration.sources import finding
from streamstats.cli import main
from streamstats.config import JobConfig, LayerConfig
from streamstats.errors import DataError, MismatchError, UsageError
from streamstats.jobs.forget import forget
from streamstats.jobs.job import Job
from streamstats.jobs.run import reduce, run
from streamstats.jobs.session import Outcome
from streamstats.jobs.status import status
from streamstats.jobs.verify import verify
from streamstats.outputs.results import open_results

ROWS = 8


def sharded(*codecs: Any) -> dict[str, Any]:
    serializer = ShardingCodec(chunk_shape=(1, 6, 4), codecs=[BytesCodec(), *codecs])
    return {"serializer": serializer, "compressors": None}


STORED: dict[str, dict[str, Any]] = {
    "raw": {"compressors": None},
    "zstd": {"compressors": [ZstdCodec()]},
    "crc32c": {"compressors": [ZstdCodec(), Crc32cCodec()]},
    "sharded": sharded(ZstdCodec()),
    "sharded with crc32c": sharded(ZstdCodec(), Crc32cCodec()),
}


def flip_a_bit(path: Path) -> None:
    """In the first chunk of a file; the second half of a shard's file is not touched."""
    content = bytearray(path.read_bytes())
    content[10] ^= 4
    path.write_bytes(content)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def make_empty(path: Path) -> None:
    path.write_bytes(b"")


def make_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def make_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "bit flip": flip_a_bit,
    "truncation": cut_off,
    "zero bytes": make_empty,
    "deleted": Path.unlink,
    "a folder in its place": make_a_folder,
    "a pipe in its place": make_a_pipe,
}
UNNOTICED = {("raw", "bit flip")}
"""What nothing in the file reveals. (A flipped bit in what zstd made may or may not decode.)"""
CELLS = [(stored, damage) for stored in STORED for damage in DAMAGE if (stored, damage) not in UNNOTICED]


@pytest.fixture(params=["straight", "zarr"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The way into the store: from the files, or through zarr's own pipeline."""
    if request.param == "zarr":
        monkeypatch.setattr(describing, "encoding_of", lambda _: None)
    return str(request.param)


def damaged_store(path: Path, stored: str, damage: str) -> tuple[Path, Array, Path]:
    """A store whose rows 2:4 are in a damaged file; its values; that file."""
    values = samples(ROWS, 6, 4)
    store = build_store(path / "s.zarr", {"block/conv": values}, **STORED[stored])
    chunk = store / "block/conv/c/1/0/0"
    DAMAGE[damage](chunk)
    return store, values, chunk


def config(store: Path, **options: Any) -> Job:
    return JobConfig(source=str(store), output=str(store.parent / "out"), **options).job()


def lost_rows(stored: str, damage: str) -> set[int]:
    """Only a chunk of a shard is damaged by a flipped bit in it."""
    return {2} if stored.startswith("sharded") and damage == "bit flip" else {2, 3}


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize(("stored", "damage"), CELLS)
def test_by_default_it_is_an_error_that_names_layer_chunk_and_rows(tmp_path: Path, stored: str, damage: str) -> None:
    store, _, _ = damaged_store(tmp_path, stored, damage)
    with pytest.raises(DataError, match=r"layer block/conv: chunk (.* of )?c/1/0/0 \(rows [23]:[34]\) ") as caught:
        run(config(store))
    assert caught.value.exit_status == 4


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize(("stored", "damage"), CELLS)
def test_reported_rows_are_left_out_and_counted_once_they_are_repaired(
    tmp_path: Path, stored: str, damage: str
) -> None:
    store, values, chunk = damaged_store(tmp_path, stored, damage)
    outcome = run(config(store, missing="report"))
    rows = [row for row in range(ROWS) if row not in lost_rows(stored, damage)]
    assert_counted(outcome, values[rows])
    listed = json.loads((tmp_path / "out/manifest.json").read_text())["layers"]["block/conv"]["missing"]
    assert {row for each in listed for row in range(*each["rows"])} == lost_rows(stored, damage)
    assert all("block/conv: chunk" in each["reason"] for each in listed)
    found = status(tmp_path / "out")
    assert not found.complete
    assert "cannot be read" in found.layers[0].missing[0][1] or "is missing" in found.layers[0].missing[0][1]
    repair(tmp_path, stored, chunk)
    config_now = config(store, missing="report")
    if stored.startswith("sharded") and damage == "bit flip":  # its other chunk was counted
        with pytest.raises(DataError, match=r"chunk c/1/0/0 \(rows 2:4\) was rewritten since it was counted"):
            run(config_now)
    outcome = run(config_now, accept_changes=stored.startswith("sharded"))
    assert_counted(outcome, values)
    assert status(tmp_path / "out").complete


def repair(path: Path, stored: str, chunk: Path) -> None:
    if chunk.is_dir():
        chunk.rmdir()
    chunk.unlink(missing_ok=True)
    good = build_store(path / "good.zarr", {"block/conv": samples(ROWS, 6, 4)}, **STORED[stored])
    chunk.write_bytes((good / "block/conv/c/1/0/0").read_bytes())


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize("stored", STORED)
def test_filled_rows_have_the_fill_value_and_are_listed(tmp_path: Path, stored: str) -> None:
    store, values, _ = damaged_store(tmp_path, stored, "deleted")
    outcome = run(config(store, missing="fill"))
    values[2:4] = 0
    assert_counted(outcome, values)
    assert json.loads((tmp_path / "out/manifest.json").read_text())["layers"]["block/conv"]["filled"] == [[2, 4]]


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize(("stored", "damage"), [cell for cell in CELLS if cell[1] != "deleted"])
def test_damaged_chunks_are_never_filled(tmp_path: Path, stored: str, damage: str) -> None:
    store, _, _ = damaged_store(tmp_path, stored, damage)
    with pytest.raises(DataError, match=r"layer block/conv: chunk (.* of )?c/1/0/0 \(rows [23]:[34]\) cannot be read"):
        run(config(store, missing="fill"))


def test_a_damaged_mask_is_never_filled(tmp_path: Path) -> None:
    store, _, _ = damaged_store(tmp_path, "zstd", "deleted")
    build_store(tmp_path / "s.zarr", {"mask": np.ones((ROWS, 6), bool)})
    cut_off(store / "mask/c/0/0")
    with pytest.raises(DataError, match=r"its mask mask: chunk c/0/0 \(rows 0:2\) cannot be read"):
        reduce(store, layers=[LayerRule("block/*", mask="mask")], missing="fill")


def test_status_and_inspect_show_how_many_rows_were_filled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, _, _ = damaged_store(tmp_path, "zstd", "deleted")
    run(config(store, missing="fill"))
    for command in ("status", "inspect"):
        assert main([command, str(tmp_path / "out")]) == 0
        said = " ".join(capsys.readouterr().err.split())
        assert "note: the fill value was counted for missing chunks in 2 rows: block/conv" in said


def test_rows_are_forgotten_beside_damaged_ones_where_absent_ones_are_filled(tmp_path: Path) -> None:
    store, values, _ = damaged_store(tmp_path, "zstd", "deleted")
    run(config(store, missing="fill"))
    chunk = store / "block/conv/c/3/0/0"
    before = chunk.stat()
    chunk.write_bytes(bytes(before.st_size))
    os.utime(chunk, ns=(before.st_atime_ns, before.st_mtime_ns))
    forget(config(store, missing="fill"), (6, 8))
    values[2:4] = 0
    left = open_results(tmp_path / "out").statistics("block/conv")
    assert left.mean.tolist() == values[:6].mean(axis=(0, 1), dtype=np.float64).tolist()


def test_verify_lists_damage_beside_filled_rows(tmp_path: Path) -> None:
    store, _, _ = damaged_store(tmp_path, "zstd", "deleted")
    run(config(store, missing="fill"))
    cut_off(store / "block/conv/c/3/0/0")
    assert "cannot be read" in verify(config(store, missing="fill"))[0].problem


def test_a_job_that_would_skip_rows_is_what_the_message_proposes(tmp_path: Path) -> None:
    """`reduce` has no such policy."""
    for damage in ("deleted", "truncation"):
        store, _, _ = damaged_store(tmp_path / damage, "zstd", damage)
        with pytest.raises(DataError, match="or run a job with `missing: report`, which skips these rows"):
            reduce(store)


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize("follow_links", [True, False])
def test_a_folder_in_place_of_a_chunk_is_not_filled(tmp_path: Path, follow_links: bool) -> None:
    store, _, _ = damaged_store(tmp_path, "raw", "a folder in its place")
    with pytest.raises(DataError, match=r"c/1/0/0 .* it is not a file"):
        run(replace(config(store, missing="fill"), follow_links=follow_links))


def assert_counted(outcome: Outcome, values: Array) -> None:
    found = outcome.statistics["block/conv"]
    assert found.rows == len(values)
    assert found.mean.tolist() == values.mean(axis=(0, 1), dtype=np.float64).tolist()
    assert found.minimum.tolist() == values.min(axis=(0, 1)).tolist()


@pytest.mark.parametrize("damage", DAMAGE)
def test_verify_finds_every_kind_of_damage_in_a_recorded_store(tmp_path: Path, damage: str) -> None:
    with Recorder(tmp_path / "s.zarr", chunk_bytes=200) as recorder:
        recorder.append("block/conv", samples(ROWS, 6, 4))
    assert verify(config(tmp_path / "s.zarr")) == []
    chunk = sorted((tmp_path / "s.zarr/block/conv/c").rglob("0"))[-1]
    chunk = next(path for path in sorted((tmp_path / "s.zarr/block/conv/c/1").rglob("*")) if path.is_file())
    DAMAGE[damage](chunk)
    problems = verify(config(tmp_path / "s.zarr"))
    assert {problem.layer for problem in problems} == {"block/conv"}
    assert problems[0].rows == (2, 4)


@pytest.mark.parametrize("stored", STORED)
def test_verify_finds_any_change_of_what_was_counted(tmp_path: Path, stored: str) -> None:
    """Even a flipped bit in a file without a checksum that keeps its size and time: the sums are not the same."""
    store, _, chunk = damaged_store(tmp_path, stored, "bit flip")
    repair(tmp_path, stored, chunk)
    run(config(store))
    before = chunk.stat()
    flip_a_bit(chunk)
    os.utime(chunk, ns=(before.st_atime_ns, before.st_mtime_ns))
    problems = verify(config(store))
    assert problems
    assert (
        "statistics differ from those that were counted" in problems[-1].problem
        or "cannot be read" in problems[-1].problem
    )


def test_verify_takes_chunks_that_were_never_written_for_fill_values_where_the_job_does(tmp_path: Path) -> None:
    values = samples(ROWS, 6, 4)
    values[2:4] = 0
    store = build_store(tmp_path / "s.zarr", {"block/conv": values})
    assert not (store / "block/conv/c/1/0/0").exists()
    assert [problem.rows for problem in verify(config(store))] == [(2, 4)]
    assert verify(config(store, missing="fill")) == []
    flip_a_bit(store / "block/conv/c/0/0/0")
    assert [problem.rows for problem in verify(config(store, missing="fill"))] == [(0, 2)]


def test_verify_puts_chunks_that_were_copied_into_one_line(tmp_path: Path) -> None:
    store = build_store(tmp_path / "s.zarr", {"conv": samples(8, 3)})
    run(config(store))
    for path in (store / "conv/c").rglob("*"):
        if path.is_file():
            os.utime(path)
    (found,) = verify(config(store))
    assert found.rows == (0, 8)
    assert found.problem.startswith("chunk c/0/0 (and 3 more) was rewritten since it was counted, but the stat")


def test_verify_names_layers_that_were_counted_and_are_gone(tmp_path: Path) -> None:
    store = build_store(tmp_path / "s.zarr", {"a": samples(4, 3), "b": samples(4, 3)})
    run(config(store))
    shutil.rmtree(store / "b")
    assert [(each.layer, each.problem) for each in verify(config(store))] == [
        ("b", "the layer was counted, but is no longer in the store")
    ]


def test_a_selected_array_that_cannot_be_a_layer_is_an_error_that_says_to_leave_it_out(tmp_path: Path) -> None:
    store = build_store(tmp_path / "s.zarr", {"a": samples(4, 3), "single": samples(4)})
    with pytest.raises(UsageError, match="at least one more axis for the channels; leave it out of `layers`"):
        run(config(store, layers=[LayerConfig(match="s*")]))


def test_verify_names_arrays_that_nobody_can_read_and_ends_with_4(tmp_path: Path) -> None:
    store = build_store(tmp_path / "s.zarr", {"a": samples(4, 3), "b": samples(4, 3)})
    (store / "b" / "zarr.json").write_text("{")
    (tmp_path / "job.yaml").write_text(f"source: {store}\noutput: {tmp_path / 'out'}\n")
    found = streamstats("verify", tmp_path / "job.yaml")
    assert found.returncode == 4
    assert "b      none  the array cannot be read: zarr.json is not JSON" in found.stdout
    assert "no problems found" not in found.stderr


def test_verify_says_in_a_table_what_is_wrong_and_ends_with_4(tmp_path: Path) -> None:
    store, _, chunk = damaged_store(tmp_path, "crc32c", "truncation")
    text = f"source: {store}\noutput: {tmp_path / 'out'}\n"
    (tmp_path / "job.yaml").write_text(text)
    found = streamstats("verify", tmp_path / "job.yaml")
    assert found.returncode == 4
    assert "block/conv  2:4" in found.stdout
    repair(tmp_path, "crc32c", chunk)
    assert streamstats("verify", tmp_path / "job.yaml").returncode == 0


def test_verify_checks_the_sums_also_after_forgetting_and_appending(tmp_path: Path) -> None:
    store, _, chunk = damaged_store(tmp_path, "raw", "bit flip")
    repair(tmp_path, "raw", chunk)
    run(config(store))
    forget(config(store), (6, 7))
    assert verify(config(store)) == []
    before = chunk.stat()
    flip_a_bit(chunk)
    os.utime(chunk, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert ["statistics differ from those that were counted" in each.problem for each in verify(config(store))] == [
        True
    ]


def test_forgetting_takes_the_fill_value_where_the_job_does(tmp_path: Path) -> None:
    store, values, _ = damaged_store(tmp_path, "zstd", "deleted")
    run(config(store, missing="fill"))
    forget(config(store, missing="fill"), (1, 3))
    values[2:4] = 0
    outcome = run(config(store, missing="fill"))
    assert_counted(outcome, np.delete(values, [1, 2], axis=0))
    assert outcome.statistics["block/conv"].source.filled.ranges == ((3, 4),)


def test_the_exit_statuses_are_4_3_and_0(tmp_path: Path) -> None:
    store, _, _ = damaged_store(tmp_path, "zstd", "deleted")
    for missing, expected in (("error", 4), ("report", 3), ("fill", 0)):
        text = f"source: {store}\noutput: {tmp_path / missing}\nmissing: {missing}\n"
        (tmp_path / "job.yaml").write_text(text)
        assert streamstats("run", tmp_path / "job.yaml").returncode == expected


def streamstats(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "streamstats", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


# Hostile stores


def test_a_shape_of_1e15_rows_is_refused_or_ends_quickly(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "s.zarr", mode="w")
    group.create_array("layer", shape=(10**15, 4096), chunks=(16, 4096), dtype="float32")
    for missing in ("error", "report", "fill"):
        with pytest.raises(DataError, match="layer layer"):
            run(config(tmp_path / "s.zarr", missing=missing))


def test_a_chunk_that_decodes_to_far_more_than_it_declares_is_refused_in_bounded_memory(tmp_path: Path) -> None:
    import tracemalloc

    import numcodecs

    store, _, chunk = damaged_store(tmp_path, "zstd", "bit flip")
    bomb = bytearray(numcodecs.Zstd(level=1).encode(bytes(2**28)))
    chunk.write_bytes(bomb)
    tracemalloc.start()
    with pytest.raises(DataError, match=r"rows 2:4"):
        run(config(store))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**26


def test_metadata_of_100_mb_is_refused(tmp_path: Path) -> None:
    store = build_store(tmp_path / "s.zarr", {"layer": samples(4, 3)})
    path = store / "layer/zarr.json"
    path.write_bytes(path.read_bytes()[:-1] + b" " * 100_000_000 + b"}")
    with pytest.raises(DataError, match=r"array layer cannot be read: zarr\.json has .* bytes; expected at most"):
        run(config(store))


def test_too_many_arrays_are_refused_before_they_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finding, "MOST_ARRAYS", 20)
    store = build_store(tmp_path / "s.zarr", {f"layer{number}": samples(4, 3) for number in range(21)})
    with pytest.raises(DataError, match="more than 20 arrays"):
        run(config(store))


def test_groups_nested_too_deeply_are_refused(tmp_path: Path) -> None:
    store = build_store(tmp_path / "s.zarr", {"/".join("a" * 70): samples(4, 3)})
    with pytest.raises(DataError, match="more than 64 groups deep"):
        run(config(store))


def test_numbers_stay_exact_beside_all_this(tmp_path: Path) -> None:
    values = samples(ROWS, 6, 4)
    found = run(config(build_store(tmp_path / "s.zarr", {"block/conv": values})))
    assert_counted(found, values)
    assert np.isfinite(found.statistics["block/conv"].mean).all()


def test_what_cannot_be_read_is_named_and_everything_else_is_counted(tmp_path: Path) -> None:
    values = samples(4, 3)
    store = build_store(tmp_path / "s.zarr", {"layer": values, "broken": values})
    (store / "loop").symlink_to(".")
    (store / "other").mkdir()
    os.mkfifo(store / "other/zarr.json")
    (store / "broken/zarr.json").write_text("{")
    outcome = run(JobConfig(source=str(store), output=str(tmp_path / "out")).job())
    np.testing.assert_allclose(outcome.statistics["layer"].mean, values.mean(axis=0))
    assert not outcome.complete
    assert list(outcome.unreadable_arrays) == ["broken", "loop", "other"]
    found = status(tmp_path / "out")
    assert found.unreadable == outcome.unreadable_arrays
    assert not found.complete
    with pytest.raises(DataError, match=r"s\.zarr: array broken cannot be read: zarr\.json is not JSON"):
        reduce(store)
    chosen = JobConfig.model_validate(
        {"source": str(store), "output": str(tmp_path / "out"), "layers": [{"match": "layer"}]}
    )
    assert run(chosen.job()).complete
    assert status(tmp_path / "out").complete
    with pytest.raises(DataError, match=r"array broken cannot be read: .*; repair it, or leave it out of `layers`"):
        run(chosen.model_copy(update={"layers": [LayerConfig(match="bro*")]}).job())
    everything = run(chosen.model_copy(update={"layers": [LayerConfig(match="*")]}).job())
    assert everything.unreadable_arrays == outcome.unreadable_arrays


def test_arrays_that_cannot_be_layers_are_named_and_left_out(tmp_path: Path) -> None:
    store = build_store(tmp_path / "s.zarr", {"layer": samples(4, 3)})
    group = zarr.open_group(store, mode="a")
    group.create_array("time", shape=(4,), dtype="int64")
    group.create_array("when", shape=(4, 3), dtype="datetime64[s]")
    said = Told()
    assert run(JobConfig(source=str(store), output=str(tmp_path / "out")).job(), progress=said).complete
    assert any(
        "note: not counted, because they cannot be layers: time, when (time: the array has" in each
        for each in said.messages
    )


# What was accepted, filled or forgotten stays known


def ascending(path: Path, rows: int = ROWS) -> Path:
    """A store whose means follow from its rows: 2 of them to a chunk."""
    values = np.arange(rows * 24, dtype="f4").reshape(rows, 6, 4)
    return build_store(path / "s.zarr", {"conv": values}, chunks=(2, 6, 4), compressors=None)


@pytest.mark.parametrize("statistics", [[], ["spread"], ["squares", "histogram"]], ids=str)
def test_rows_that_changed_and_were_accepted_are_not_subtracted(tmp_path: Path, statistics: list[str]) -> None:
    """What they were is not in the store any more, so the other rows are counted anew."""
    store = ascending(tmp_path)
    run(config(store, statistics=statistics))
    zarr.open_array(store, path="conv")[2:4] = 1e6
    accepted = run(config(store, statistics=statistics), accept_changes=True).statistics["conv"]
    assert accepted.source.accepted.ranges == ((2, 4),)
    (forgotten,) = forget(config(store, statistics=statistics), (2, 4))
    assert (forgotten.rows, forgotten.others) == (2, ROWS - 2)
    left = open_results(tmp_path / "out").statistics("conv")
    assert left.source.accepted.ranges == ()
    fresh = run(config(store, statistics=statistics), restart=True).statistics["conv"]
    assert left.statistics == fresh.statistics


def test_accepted_rows_do_not_tell_an_extremum_that_they_may_not_have_had(tmp_path: Path) -> None:
    """The forgotten row held the maximum; what the accepted rows held is not in the store any more."""
    store = ascending(tmp_path)
    run(config(store))
    zarr.open_array(store, path="conv")[0:2] = 1e6
    run(config(store), accept_changes=True)
    (forgotten,) = forget(config(store), (ROWS - 1, ROWS))
    assert forgotten.others == ROWS - 1
    left = open_results(tmp_path / "out").statistics("conv")
    assert left.statistics == run(config(store), restart=True).statistics["conv"].statistics


def test_accepting_a_store_keeps_which_rows_were_filled(tmp_path: Path) -> None:
    store = ascending(tmp_path)
    (store / "conv/c/1/0/0").unlink()
    run(config(store, missing="fill"))
    again = run(config(store, missing="fill"), accept_changes=True).statistics["conv"]
    assert again.source.filled.ranges == ((2, 4),)
    assert again.source.accepted.ranges == ()


def test_verify_compares_the_sums_of_a_layer_with_filled_rows(tmp_path: Path) -> None:
    store = ascending(tmp_path)
    (store / "conv/c/1/0/0").unlink()
    run(config(store, missing="fill"))
    assert verify(config(store, missing="fill")) == []
    chunk = store / "conv/c/0/0/0"
    before = chunk.stat()
    flip_a_bit(chunk)
    os.utime(chunk, ns=(before.st_atime_ns, before.st_mtime_ns))
    (found,) = verify(config(store, missing="fill"))
    assert found.problem.startswith("statistics differ from those that were counted: mean")


def test_forgotten_rows_stay_forgotten_if_a_damaged_state_is_removed(tmp_path: Path) -> None:
    store = ascending(tmp_path)
    run(config(store))
    forget(config(store), (5, 7))
    state = tmp_path / "out/state/conv.safetensors"
    cut_off(state)
    with pytest.raises(DataError, match="remove it"):
        run(config(store))
    state.unlink()
    found = run(config(store)).statistics["conv"]
    assert (found.covered, found.excluded) == (((0, 5), (7, 8)), ((5, 7),))


def test_status_knows_what_a_removed_state_had(tmp_path: Path) -> None:
    store = ascending(tmp_path)
    run(config(store))
    forget(config(store), (0, 3))
    (tmp_path / "out/state/conv.safetensors").unlink()
    (layer,) = status(tmp_path / "out").layers
    assert (layer.counted, layer.rows, layer.excluded.ranges) == (0, ROWS, ((0, 3),))
    assert [rows for rows, _ in layer.missing] == [(3, ROWS)]


def test_a_damaged_state_without_a_manifest_says_that_forgotten_rows_are_unknown(tmp_path: Path) -> None:
    store = ascending(tmp_path)
    run(config(store))
    cut_off(tmp_path / "out/state/conv.safetensors")
    (tmp_path / "out/manifest.json").unlink()
    with pytest.raises(DataError, match=r"remove it .*no manifest .* repeat any `streamstats forget`"):
        run(config(store))


def test_status_knows_the_rows_that_a_failed_run_did_not_reach(tmp_path: Path) -> None:
    store = ascending(tmp_path)
    run(config(store))
    array = zarr.open_array(store, path="conv")
    array.append(np.ones((6, 6, 4), "f4"))
    (store / "conv/c/4/0/0").unlink()
    with pytest.raises(DataError, match="is missing"):
        run(config(store))
    (layer,) = status(tmp_path / "out").layers
    assert (layer.counted, layer.rows) == (ROWS, ROWS + 6)
    assert not status(tmp_path / "out").complete


def test_samples_of_another_shape_are_refused_where_a_statistic_depends_on_it(tmp_path: Path) -> None:
    """With more rows of samples than taps, further ones are further classes."""
    rule = {"match": "*", "geometry": {"kernel": [5], "pads": [2, 2]}}
    options: dict[str, Any] = {"statistics": ["taps"], "layers": [rule]}
    store = ascending(tmp_path)
    run(config(store, **options))
    shutil.rmtree(store)
    build_store(store, {"conv": np.ones((ROWS, 3, 4), "f4")})
    for accept in (False, True):
        with pytest.raises(MismatchError, match=r"layer conv: it was counted with sample shape \(6, 4\), but the job"):
            run(config(store, **options), accept_changes=accept)
