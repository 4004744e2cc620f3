"""The files of a layer: numbered in C order of their grid, named as zarr names them, each with its rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from stores import build_store, described, samples

from streamstats.calibration.identity import file_count, file_key, file_range, identities, rows_of_file
from streamstats.calibration.layer import Layer
from streamstats.calibration.sources.identities import MISSING, UNCOUNTED, UNKNOWN, has_identity, is_counted, is_known


def layer_of_20_files(folder: Path) -> Layer:
    """Five files along the rows, of two rows each except the last, times four along the other axes."""
    return described(build_store(folder, {"layer": samples(9, 4, 6)}, chunks=(2, 2, 3)))


def test_files_are_numbered_and_named_in_the_order_of_their_grid(tmp_path: Path) -> None:
    layer = layer_of_20_files(tmp_path)
    assert file_count(layer) == 20
    keys = [file_key(layer, number) for number in range(20)]
    assert keys == [f"c/{first}/{second}/{third}" for first in range(5) for second in (0, 1) for third in (0, 1)]
    assert all((tmp_path / "layer" / key).is_file() for key in keys)


def test_a_range_of_rows_lies_in_a_range_of_files(tmp_path: Path) -> None:
    layer = layer_of_20_files(tmp_path)
    assert file_range(layer, 0, 9) == range(20)
    assert file_range(layer, 3, 4) == range(4, 8)
    assert file_range(layer, 3, 5) == range(4, 12)
    assert file_range(layer, 4, 4) == range(8, 8)
    assert {rows_of_file(layer, number) for number in range(4, 8)} == {(2, 4)}


def test_each_file_has_its_own_identity_and_one_that_is_gone_is_missing(tmp_path: Path) -> None:
    layer = layer_of_20_files(tmp_path)
    (tmp_path / "layer/c/1/0/1").unlink()
    found = identities(layer, range(3, 7))
    stats = [(tmp_path / "layer" / file_key(layer, number)).stat() for number in (3, 4, 6)]
    assert found[[0, 1, 3], :2].tolist() == [[each.st_size, each.st_mtime_ns] for each in stats]
    assert tuple(found[2, :2]) == MISSING
    assert identities(layer, range(3, 3)).shape == (0, 3)


def test_what_stands_for_files_without_an_identity_is_told_apart_by_name() -> None:
    files = np.array([(0, 0), (7, -5), MISSING, UNKNOWN, UNCOUNTED])  # an empty file, and one from before 1970
    assert is_counted(files).tolist() == [True, True, True, True, False]
    assert is_known(files).tolist() == [True, True, True, False, False]
    assert has_identity(files).tolist() == [True, True, False, False, False]


def test_state_files_hold_the_numbers_that_they_always_held() -> None:
    assert (UNCOUNTED, MISSING, UNKNOWN) == ((-1, -1), (-2, -2), (-3, -3))
