"""Sums of classes of positions: every class per channel is what fractions say, wherever the channels lie."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import DTYPES, contents

from streamstats.statistics.classes import ClassSums
from streamstats.statistics.exact import ExactSum, unit_exponent
from streamstats.statistics.running import RunningSums

Array = np.ndarray[Any, np.dtype[Any]]


def expected(block: Array, axis: int, labels: Array, classes: int) -> list[list[tuple[Fraction, int, int, int]]]:
    """(sum, finite values, NaN, infinities) of each class per channel, in fractions."""
    values = np.moveaxis(block, axis, -1)
    return [[_summed(values[:, labels == label][..., c]) for c in range(block.shape[axis])] for label in range(classes)]


def _summed(values: Array) -> tuple[Fraction, int, int, int]:
    numbers = values.ravel().tolist()
    total = sum((Fraction(number) for number in numbers if math.isfinite(number)), Fraction(0))
    finite, nan, infinite = (sum(map(test, numbers)) for test in (math.isfinite, math.isnan, math.isinf))
    return total, finite, nan, infinite


def said(rider: ClassSums, labels: Array, block: Array, axis: int) -> list[list[tuple[Fraction, int, int, int]]]:
    dtype, whole = block.dtype, RunningSums(block.dtype, block.shape[axis])
    whole.add(block, axis)
    arrays, unit = rider.with_rest(rider.found().arrays, labels, whole.found()), Fraction(2) ** unit_exponent(dtype)
    counts = [arrays[name].tolist() for name in ("count", "nan", "infinite")]
    return [
        [
            (total * unit, *(each[label][c] for each in counts))
            for c, total in enumerate(ExactSum(dtype, digits).units())
        ]
        for label, digits in enumerate(np.moveaxis(arrays["digits"], 1, 0))
    ]


@given(st.data())
def test_classes_are_summed_exactly_in_whatever_parts_the_samples_come(data: st.DataObject) -> None:
    dtype, axis = data.draw(st.sampled_from(DTYPES)), data.draw(st.integers(1, 3))
    shape = data.draw(st.tuples(*[st.integers(1, 5)] * 4))
    block = data.draw(contents(dtype, shape))
    classes = data.draw(st.integers(1, 4))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    labels = rng.integers(0, classes, [extent for place, extent in enumerate(shape[1:], 1) if place != axis])
    rider = ClassSums(dtype, shape[1:], axis - 1, labels, classes)
    cut = data.draw(st.integers(1, 3).filter(lambda cut: cut != axis))
    ends = [0, *sorted(data.draw(st.lists(st.integers(0, shape[cut]), max_size=2))), shape[cut]]
    for start, stop in pairwise(ends):
        where = tuple(slice(start, stop) if each == cut else slice(0, shape[each]) for each in range(4))
        rider.add(block[where], where)
    assert said(rider, labels, block, axis) == expected(block, axis, labels, classes)


@pytest.mark.parametrize("dtype", ["i1", "f2", "f4"])
@pytest.mark.parametrize(
    ("shape", "axis"), [((2, 30, 30, 3), 3), ((2, 3, 30, 30), 1), ((1, 40, 2000), 2), ((3, 7, 5), 2)]
)
def test_rows_are_joined_and_runs_are_cut(dtype: str, shape: tuple[int, ...], axis: int) -> None:
    rng = np.random.default_rng(0)
    block = (rng.standard_normal(shape) * 40).astype(dtype)
    labels = rng.integers(0, 5, np.delete(shape[1:], axis - 1))
    rider = ClassSums(block.dtype, shape[1:], axis - 1, labels, 5)
    rider.add(block, tuple(slice(0, extent) for extent in shape))
    assert said(rider, labels, block, axis) == expected(block, axis, labels, 5)


def test_a_decoder_that_stops_within_a_sample_goes_on_in_it() -> None:
    block = np.random.default_rng(1).standard_normal((4, 6, 5)).astype("f4")
    labels = np.arange(6) % 4
    rider = ClassSums(block.dtype, (6, 5), 1, labels, 4)
    intake = rider.intake(block.shape)
    assert intake is not None
    memory = block.reshape(-1).view(np.uint8)
    for start, stop in pairwise([0, 7 * intake.unit, 20 * intake.unit, memory.size]):
        assert rider.take(memory[start:stop], intake) * intake.unit == stop - start
    assert said(rider, labels, block, 2) == expected(block, 2, labels, 4)
