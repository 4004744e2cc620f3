"""Several recorders: one writes to a store at a time, and several write to parts of it; no row is lost in silence."""

from __future__ import annotations

import gc
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr
from stores import Array, samples

from streamstats.calibration.recorder import Recorder, stored_layer, stored_readers
from streamstats.calibration.selection import select_layers
from streamstats.errors import MismatchError, OutputError, UsageError
from streamstats.jobs.run import reduce

LOCK = ".recorder.lock"
HOLDER = {"host": socket.gethostname(), "process": 1, "since": "2026-11-28T00:00:00+00:00"}


def rows(count: int, seed: int = 0) -> Array:
    return samples(count, 3, 4, seed=seed)


def record(store: Path | str, values: Array, part: str = "", layer: str = "fc") -> None:
    with Recorder(store, part=part, chunk_bytes=200) as recorder:
        recorder.append(layer, values)


# One at a time


def test_a_second_recorder_is_refused_with_the_process_that_records(tmp_path: Path) -> None:
    with Recorder(tmp_path / "s") as first:
        first.append("fc", rows(4))
        with pytest.raises(OutputError, match=f"in use by process {os.getpid()} on .*part of your own"):
            Recorder(tmp_path / "s")
        with Recorder(tmp_path / "s", part="rank0"), pytest.raises(OutputError, match=r"s/\.parts/rank0 is in use"):
            Recorder(tmp_path / "s", part="rank0")
    record(tmp_path / "s", rows(4))
    assert reduce(tmp_path / "s")["fc"].rows == 8


def test_a_recorder_that_was_dropped_lets_others_record(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "s")
    recorder.append("fc", rows(4))
    del recorder
    gc.collect()  # exceptions that zarr has caught may still refer to it
    record(tmp_path / "s", rows(4))


def test_a_recorder_that_could_not_write_still_holds_the_store(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "s")
    recorder.append("fc", rows(1))
    blocked = tmp_path / "s" / "fc" / "c" / "0" / "0" / "0"
    blocked.mkdir(parents=True)
    with pytest.raises(OutputError, match="append them again"):
        recorder.close()
    with pytest.raises(OutputError, match="in use"):
        Recorder(tmp_path / "s")
    blocked.rmdir()
    recorder.close()
    assert reduce(tmp_path / "s")["fc"].rows == 1


def test_a_killed_process_leaves_a_lock_that_keeps_nobody_out_of_its_host(tmp_path: Path) -> None:
    code = "import sys, os; from streamstats import Recorder; r = Recorder(sys.argv[1]); os.kill(os.getpid(), 9)"
    process = subprocess.run([sys.executable, "-c", code, str(tmp_path / "s")], check=False)
    assert process.returncode == -9
    assert (tmp_path / "s" / LOCK).exists()
    record(tmp_path / "s", rows(4))
    assert not (tmp_path / "s" / LOCK).exists()


def test_a_lock_that_was_left_on_another_host_is_refused_with_the_way_out(tmp_path: Path) -> None:
    record(tmp_path / "s", rows(4))
    (tmp_path / "s" / LOCK).write_text(json.dumps(HOLDER | {"host": "elsewhere"}))
    with pytest.raises(OutputError, match=f"process 1 on elsewhere.*if it has ended, remove {tmp_path}/s/{LOCK}"):
        Recorder(tmp_path / "s")
    (tmp_path / "s" / LOCK).unlink()
    record(tmp_path / "s", rows(4))


def test_a_recorder_whose_lock_was_removed_writes_nothing_more(tmp_path: Path) -> None:
    slow = Recorder(tmp_path / "s")
    slow.append("fc", rows(4))
    (tmp_path / "s" / LOCK).unlink()
    record(tmp_path / "s", rows(5, seed=1))
    with pytest.raises(OutputError, match="another process records there now"):
        slow.close()
    assert reduce(tmp_path / "s")["fc"].rows == 5


def test_a_process_that_was_forked_cannot_use_the_recorder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(tmp_path / "s")
    process = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: process + 1)
    with pytest.raises(UsageError, match="open a recorder in each process, with a `part` of its own"):
        recorder.append("fc", rows(4))
    monkeypatch.undo()
    recorder.close()


# Parts


def test_parts_are_counted_as_one_layer_in_the_order_of_their_names(tmp_path: Path) -> None:
    every = {"": rows(5), "a": rows(3, seed=1), "rank1": rows(9, seed=2), "rank10": rows(2, seed=3)}
    for part in reversed([*every]):
        record(tmp_path / "s", every[part], part)
    record(tmp_path / "whole", np.concatenate([*every.values()]))
    arrays = select_layers(tmp_path / "s").layers
    assert [(each.name, each.counted_as, each.rows) for each in arrays] == [
        ("fc", "fc", 5),
        ("fc (part a)", "fc", 3),
        ("fc (part rank1)", "fc", 9),
        ("fc (part rank10)", "fc", 2),
    ]
    assert reduce(tmp_path / "s")["fc"].statistics == reduce(tmp_path / "whole")["fc"].statistics


def test_other_readers_see_a_group_of_arrays_for_each_part(tmp_path: Path) -> None:
    record(tmp_path / "s", rows(6), "rank3", layer="block/fc")
    group = zarr.open_group(tmp_path / "s", mode="r")
    np.testing.assert_array_equal(group[".parts/rank3/block/fc"][:], rows(6))  # type: ignore[index]
    assert group[".parts/rank3"].attrs["streamstats"] == {"part": "rank3"}
    assert reduce(tmp_path / "s" / ".parts" / "rank3")["block/fc"].rows == 6


def test_masks_are_those_of_their_part(tmp_path: Path) -> None:
    masks = np.random.default_rng(0).integers(0, 2, (2, 6, 3)).astype(bool)
    for part, mask in zip(("a", "b"), masks, strict=True):
        with Recorder(tmp_path / "s", part=part) as recorder:
            recorder.append("fc", rows(6), mask=mask)
    assert reduce(tmp_path / "s")["fc"].sums.count.tolist() == [masks.sum()] * 4


def test_what_is_in_a_part_is_no_layer_of_its_own_and_what_only_looks_like_one_is(tmp_path: Path) -> None:
    record(tmp_path / "s", rows(6), "rank3")
    record(tmp_path / "s", rows(2))
    assert (stored_readers(tmp_path / "s"), stored_readers(tmp_path / "s", "rank3")) == ({"fc": "fc"}, {"fc": "fc"})
    assert [stored_layer(tmp_path / "s", "fc", part).rows for part in ("", "rank3")] == [2, 6]  # type: ignore[union-attr]
    group = zarr.open_group(tmp_path / "s", mode="a")
    group.create_array(".parts/other/fc", data=rows(3))
    assert {name: found.rows for name, found in reduce(tmp_path / "s").items()} == {"fc": 8, ".parts/other/fc": 3}


@pytest.mark.parametrize("part", ["a/b", "..", ".a", "__a", "a b", "é", "a" * 101])
def test_a_part_has_a_name_that_every_store_can_have(tmp_path: Path, part: str) -> None:
    with pytest.raises(UsageError, match="as in rank3"):
        Recorder(tmp_path / "s", part=part)


def test_a_layer_cannot_lie_where_parts_do(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="reserved for what a store holds besides its layers"):
        record(tmp_path / "s", rows(2), layer=".parts/rank3/fc")


@pytest.mark.parametrize(
    ("values", "options", "said"),
    [
        (rows(2).astype("f8"), {}, "the dtype is float64; part a has float32"),
        (rows(2)[:, :2], {}, "the sample shape is"),
        (rows(2), {"channel_axis": 1}, "the channel axis is 1; part a has 2"),
        (rows(2), {"mask": np.ones((2, 3))}, "the mask is one of shape"),
        (rows(2), {"rows_are": "positions"}, "the meaning of its rows differs"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(
    tmp_path: Path, values: Array, options: dict[str, object], said: str
) -> None:
    record(tmp_path / "s", rows(4), "a")
    with Recorder(tmp_path / "s", part="b") as recorder:
        recorder.append("fc", values, **options)  # type: ignore[arg-type]
    with pytest.raises(MismatchError, match=f"layer fc .part b.: {said}"):
        select_layers(tmp_path / "s")


def test_places_that_cannot_be_recorded_into_are_refused() -> None:
    with pytest.raises(UsageError, match="expected a folder, or a URL such as s3"):
        Recorder("https://example.org/s.zarr")
    with pytest.raises(UsageError, match="give the URL as text"):
        Recorder(Path("s3://bucket/s.zarr"))
