"""The ledger: rows are counted zero or one time, in any order, and its file gives back every bit or is refused."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import DTYPES, INTEGERS, contents

from streamstats import Quantization
from streamstats.calibration.addresses import ONLY
from streamstats.calibration.layer import Layer
from streamstats.errors import DataError, MismatchError
from streamstats.outputs import ledger
from streamstats.outputs.layer_statistics import LayerStatistics
from streamstats.outputs.ledger import Measured
from streamstats.outputs.resuming import uncounted_tails
from streamstats.outputs.state import FORMAT, read_excluded, read_state, state_bytes
from streamstats.statistics.statistic import Space
from streamstats.statistics.statistics import Statistics
from streamstats.storage.files import write_bytes
from streamstats.storage.tensors import read_tensors, tensors_bytes


def layer_of(block, axis=-1, quantization=None, fingerprint=""):
    """The layer that has `block` as its array."""
    return Layer(
        store="store",
        name="block04/project",
        shape=block.shape,
        dtype=block.dtype,
        chunks=block.shape,
        shards=block.shape,
        channel_axis=axis % block.ndim,
        quantization=quantization,
        fingerprint=fingerprint,
    )


def count(statistics, block, start, stop, in_tail=False):
    """`statistics` with rows `start` to `stop` of `block` counted in."""
    part, axis = block[start:stop], statistics.channel_axis
    members = {kind.name: kind.measure(part, axis) for kind in statistics.statistics.kinds}
    found = Statistics(Space.of(part, axis), members)
    measured = Measured(statistics.layer, (start, stop), found, 0, np.empty((0, 3), np.int64), in_tail=in_tail)
    return ledger.count(statistics, measured)


def counted(block, axis=-1, quantization=None):
    """All rows of `block` counted."""
    return count(LayerStatistics.empty(layer_of(block, axis, quantization)), block, 0, len(block))


def same(left, right):
    """Equal in every field."""
    return all(getattr(left, f.name) == getattr(right, f.name) for f in dataclasses.fields(LayerStatistics))


def stored(statistics):
    """What comes back from the file of `statistics`."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "state")
        write_bytes(path, state_bytes(statistics))
        return read_state(path)


# Counting


@given(st.data())
def test_rows_counted_in_any_order_and_parts_give_the_same_bytes(data):
    dtype = data.draw(st.sampled_from(DTYPES))
    block = data.draw(contents(dtype, (12, 3, 2)))
    marks = [0, *sorted(data.draw(st.sets(st.integers(1, 11)))), 12]
    statistics = LayerStatistics.empty(layer_of(block, 1))
    for start, stop in data.draw(st.permutations([*pairwise(marks)])):
        statistics = count(statistics, block, start, stop)
        if data.draw(st.booleans()):  # stopped, and gone on from the file
            statistics = stored(statistics)
    assert statistics.covered == ((0, 12),)
    assert statistics.rows == 12
    assert state_bytes(statistics) == state_bytes(counted(block, 1))


@given(st.data())
def test_rows_counted_apart_are_the_same_in_any_order_and_leave_what_was_never_counted_with_them(data):
    block = data.draw(contents(np.dtype(np.float32), (12, 3)))
    layer = dataclasses.replace(layer_of(block), shards=(5, 3))
    parts = data.draw(st.permutations([(0, 3), (3, 10), (10, 11), (11, 12)]))
    statistics = LayerStatistics.empty(layer)
    for start, stop in parts:
        statistics = count(statistics, block, start, stop, in_tail=start >= layer.settled_rows)
        if data.draw(st.booleans()):
            statistics = stored(statistics)
    assert layer.settled_rows == 10
    assert statistics.source.tail.ranges == ((10, 12),)
    assert statistics.statistics == counted(block).statistics
    left = uncounted_tails([layer], statistics)
    assert state_bytes(left) == state_bytes(count(LayerStatistics.empty(layer), block, 0, 10))


def test_rows_are_never_counted_twice():
    block = np.ones((6, 3), np.float32)
    statistics = count(LayerStatistics.empty(layer_of(block)), block, 0, 4)
    before = state_bytes(statistics)
    for start, stop in ((0, 4), (3, 4), (3, 6), (0, 1)):
        with pytest.raises(MismatchError, match=r"rows \d+:\d+ are already counted"):
            count(statistics, block, start, stop)
    assert state_bytes(statistics) == before
    assert count(statistics, block, 4, 6).covered == ((0, 6),)


def test_statistics_of_another_dtype_or_width_are_not_counted():
    statistics = LayerStatistics.empty(layer_of(np.ones((6, 3), np.int8)))
    for other in (np.ones((6, 3), np.uint8), np.ones((6, 4), np.int8)):
        with pytest.raises(MismatchError, match="do not fit together"):
            count(statistics, other, 0, 6)


def test_a_layer_without_rows_has_no_mean_and_no_extrema():
    for quantization in (None, Quantization(0.5, 3)):
        nothing = LayerStatistics.empty(layer_of(np.zeros((0, 4), np.int8), quantization=quantization))
        assert (nothing.rows, nothing.channels, nothing.covered) == (0, 4, ())
        for values in (nothing.mean, nothing.minimum, nothing.maximum):
            assert values.shape == (4,)
            assert np.isnan(values).all()


@given(st.data(), st.floats(1e-30, 1e30), st.integers(-(2**31), 2**31))
def test_mean_minimum_and_maximum_are_in_real_units(data, step, zero_point):
    dtype = data.draw(st.sampled_from([kind for kind in INTEGERS if kind.itemsize <= 4]))
    block = data.draw(contents(dtype, (5, 2)))
    found = counted(block, quantization=Quantization([step, 2 * step], [zero_point, 0]))
    for channel, (s, z) in enumerate([(step, zero_point), (2 * step, 0)]):
        real = [(code - z) * Fraction(s) for code in block[:, channel].tolist()]
        assert found.mean[channel] == float(sum(real) / 5)
        assert found.minimum[channel] == float(min(real))
        assert found.maximum[channel] == float(max(real))


def test_values_that_are_not_finite_are_left_out_of_mean_and_extrema():
    block = np.array([[1, np.nan, 2], [np.nan, np.inf, -np.inf], [5, -np.inf, 4]], np.float32)
    found = counted(block)
    for values, expected in ((found.mean, [3, 3]), (found.minimum, [1, 2]), (found.maximum, [5, 4])):
        assert values[[0, 2]].tolist() == expected
        assert np.isnan(values[1])


# The file


@given(st.data())
def test_the_file_gives_back_every_field(data):
    dtype = data.draw(st.sampled_from(DTYPES))
    block = data.draw(contents(dtype, (4, 3)))
    quantization = None
    if dtype.kind in "iu":
        steps = st.floats(5e-324, 1e300)
        vectors = st.lists(steps, min_size=3, max_size=3)
        quantization = data.draw(st.none() | st.builds(Quantization, steps | vectors, st.integers(-(2**53), 2**53)))
    written = count(LayerStatistics.empty(layer_of(block, 1, quantization, "codecs")), block, 1, 3)
    read = stored(written)
    assert same(read, written)
    assert state_bytes(read) == state_bytes(written)


def test_the_fingerprint_tells_arrays_of_other_making_apart_whatever_their_rows():
    few, many = np.zeros((2, 3)), np.zeros((9, 3))
    fingerprints = [
        LayerStatistics.empty(layer_of(block, fingerprint=fingerprint)).source.fingerprint
        for block, fingerprint in ((few, "zstd"), (many, "zstd"), (few, "blosc"))
    ]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


def test_a_file_with_any_bit_flipped_is_refused_with_its_path(tmp_path):
    content = state_bytes(counted(np.float32([[1, 2], [3, 4]])))
    path = tmp_path / "state"
    for place in range(0, len(content), 7):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(DataError, match=str(path)):
            read_state(path)
    for length in (0, 1, 8, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match=str(path)):
            read_state(path)
    with pytest.raises(DataError, match="missing"):
        read_state(tmp_path / "missing")


def _without(name):
    return lambda tensors, metadata: (tensors if name in tensors else metadata).pop(name)


def _with(**entries):
    def change(tensors, metadata):
        for name, value in entries.items():
            (metadata if isinstance(value, str) else tensors)[name.replace("__", ".")] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        *map(
            _without,
            [
                "mean.digits",
                "extrema.maximum",
                "source.0.covered",
                "source.0.files",
                "source.0.tail",
                "sources",
                "dtype",
                "layer",
                "channel_axis",
                "quantization",
                "statistics",
                "sample",
            ],
        ),
        _with(mean__count=np.ones(3, np.int32)),
        _with(mean__count=np.ones(4, np.int64)),
        _with(mean__digits=np.zeros((9, 3), np.int64)),
        _with(mean__digits=np.full((10, 3), -1, np.int64)),
        _with(mean__digits=np.full((10, 3), 2**32, np.int64)),
        _with(extrema__minimum=np.zeros(2, np.float32), extrema__maximum=np.zeros(2, np.float32)),
        _with(source__0__covered=np.array([[0, 4], [2, 6]])),
        _with(source__0__covered=np.array([[0, 4], [4, 2]])),
        _with(source__0__covered=np.array([[-2, 4]])),
        _with(source__0__covered=np.array([0, 4])),
        _with(source__0__covered=np.array([[0, 2, 4]])),
        _with(source__0__covered=np.array([[0, 5]])),
        _with(source__0__excluded=np.array([[3, 4]])),
        _with(source__0__files=np.zeros((1, 2), np.int64)),
        _with(source__0__files=np.zeros((1, 3), np.int32)),
        _with(source__0__tail=np.array([[0, 2]])),
        _with(settled__mean__count=np.ones(3, np.int64)),
        _with(sources='[["", 4, "", 5, false]]'),
        _with(sources='[["", 4, "", 4, 0]]'),
        _with(file_rows="[4, 4]"),
        _with(file_rows="[-1]"),
        _with(file_rows="[true]"),
        _with(file_rows="4"),
        _with(mean__count=np.array([4, -1, 4])),
        _with(sources="[]"),
        _with(sources='[["", -1]]'),
        _with(sources='[["", true]]'),
        _with(sources='[["", 4], ["", 4]]'),
        _with(dtype="float64"),
        _with(dtype="object"),
        _with(dtype="number"),
        _with(channel_axis="last"),
        _with(channel_axis="3"),
        _with(sample="[4]"),
        _with(statistics='["mean"]'),
        _with(quantization="{"),
        _with(quantization='{"step": 0, "zero_point": 0}'),
        _with(quantization='{"step": 1}'),
    ],
)
def test_a_file_that_says_impossible_things_is_refused_with_its_path_and_the_remedy(tmp_path, change):
    path = tmp_path / "state"
    path.write_bytes(state_bytes(counted(np.ones((4, 3), np.float32))))
    tensors, metadata = read_tensors(path, FORMAT)
    change(tensors, metadata)
    path.write_bytes(tensors_bytes(tensors, metadata))
    with pytest.raises(DataError, match=f"{path} is not a usable state: .*; remove it and run again"):
        read_state(path)


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (99, "this version reads 'streamstats.state/6'; install a newer streamstats"),
        (2, "was written by an older version: .* count everything again with `run --restart`"),
    ],
)
def test_a_file_of_another_format_is_refused_with_the_remedy(tmp_path, version, message):
    path = tmp_path / "state"
    path.write_bytes(tensors_bytes({"a": np.ones(1)}, {"format": f"streamstats.state/{version}"}))
    with pytest.raises(DataError, match=message):
        read_state(path)


def test_what_was_forgotten_is_read_from_older_files_too_and_not_from_newer_ones(tmp_path):
    path = tmp_path / "state"
    excluded = {"source.0.excluded": np.array([[2, 5], [7, 8]])}
    for version in (2, 3, 4, 5, 6):
        path.write_bytes(tensors_bytes(excluded, {"format": f"streamstats.state/{version}"}))
        assert read_excluded(path)[ONLY].ranges == ((2, 5), (7, 8))
    path.write_bytes(tensors_bytes(excluded, {"format": "streamstats.state/7"}))
    with pytest.raises(DataError, match="install a newer streamstats"):
        read_excluded(path)


def test_a_state_with_a_statistic_that_this_version_does_not_know_is_refused(tmp_path):
    path = tmp_path / "state"
    path.write_bytes(state_bytes(counted(np.ones((4, 3), np.float32))))
    tensors, metadata = read_tensors(path, FORMAT)
    metadata["statistics"] = '["mean", "extrema", "kurtosis"]'
    path.write_bytes(tensors_bytes(tensors, metadata))
    with pytest.raises(DataError, match="holds the statistics kurtosis, which are unknown to this version"):
        read_state(path)
