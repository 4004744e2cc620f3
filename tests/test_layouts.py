"""Kernels: equal if they do the same, stored as JSON, and refused with what was expected."""

from __future__ import annotations

import json
from fractions import Fraction
from itertools import permutations, product
from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from taps import exact_tap_means, kernels, several_kernels

from streamstats.errors import MismatchError, UsageError
from streamstats.layouts import Geometry, Kernel, Kernels, joint_kernel, labels_of, misses


def test_defaults_and_the_numbers_they_stand_for_are_equal() -> None:
    assert Kernel((3, 1)) == Kernel((3, 1), Geometry((1, 1), (0,) * 4, (1, 1), (0, 0)))
    assert Kernel((3,)) != Kernel((3,), transposed=True)
    assert Kernel() == Kernel((), Geometry())


@given(st.integers(1, 3).flatmap(kernels))
def test_metadata_and_back_is_the_same_kernel(case: tuple[Kernel, Any]) -> None:
    kernel, extents = case
    kernel.check_fits(extents)
    assert Kernel.from_metadata(json.loads(json.dumps(kernel.to_metadata()))) == kernel
    assert Kernel.from_metadata({"taps": list(kernel.taps)}) == Kernel(kernel.taps)
    assert Kernel.from_metadata(None) is None


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ("3x3", r"the kernel is '3x3'; expected an object with .*taps"),
        ({"strides": [1]}, "expected an object with"),
        ({"taps": [3], "stride": [1]}, "expected an object with"),
        ({"taps": 3}, "expected lists of integers"),
        ({"taps": [3], "transposed": 1}, "`transposed` true or false"),
        ({"taps": [0]}, r"has taps \[0\]; expected integers from 1"),
        ({"taps": [True]}, r"has taps \[True\]; expected integers"),
        ({"taps": [3.0]}, "expected integers from 1"),
        ({"taps": [3], "strides": [0]}, r"has strides \[0\]"),
        ({"taps": [3], "dilations": ["1"]}, "has dilations"),
        ({"taps": [3], "output_padding": [-1]}, "expected integers from 0"),
        ({"taps": [3], "pads": [2**31, 0]}, "has pads"),
        (
            {"taps": [3], "pads": [1]},
            r"pads \[1\] does not fit 1 spatial axis; expected 2 numbers, one before each axis",
        ),
        ({"taps": [3, 3], "strides": [1]}, "does not fit 2 spatial axes"),
    ],
)
def test_what_is_no_kernel_is_refused(stored: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Kernel.from_metadata(stored)


def test_a_kernel_that_fits_no_output_or_is_beyond_all_measure_is_refused() -> None:
    with pytest.raises(MismatchError, match=r"4 taps with dilation 2 does not fit into 5 positions padded by 1 and 0"):
        Kernel((4,), Geometry(pads=(1, 0), dilations=(2,))).check_fits((5,))
    with pytest.raises(MismatchError, match="does not fit into"):
        Kernel((2**30,), Geometry(pads=(2**30, 2**30))).check_fits((224,))
    with pytest.raises(MismatchError, match="kernel of 2 spatial axes does not fit samples of 1 spatial axis"):
        Kernel((3, 3)).check_fits((9,))
    Kernel().check_fits((3, 4, 5))


def test_positions_are_told_apart_by_the_taps_that_see_them() -> None:
    def labels(*extents: int, **numbers: Any) -> Any:
        taps = (3,) * len(extents)
        return labels_of(Kernel(taps, Geometry(**numbers)).along(extents)).tolist()

    assert labels(6, pads=(1, 1)) == [0, 1, 1, 1, 1, 2]
    assert labels(7, pads=(1, 1), strides=(2,)) == [0, 1, 0, 1, 0, 1, 0]
    assert labels(6, pads=(1, 1), strides=(2,)) == [0, 1, 0, 1, 0, 2]  # the last is under the last tap alone
    assert labels(5, strides=(4,)) == [0, 1, 2, 3, 3]
    assert labels(3, 3, pads=(1, 1, 1, 1)) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert labels_of(Kernel().along((2, 2))).tolist() == [[0, 0], [0, 0]]


@given(st.integers(1, 2).flatmap(several_kernels))
def test_the_classes_of_several_kernels_are_the_coarsest_that_tell_apart_what_each_does(
    case: tuple[list[Kernel], tuple[int, ...]],
) -> None:
    kernels, extents = case
    joint = joint_kernel(kernels)
    assert joint is not None
    assert all(joint_kernel(order) == joint for order in permutations(kernels))
    together = labels_of(joint.along(extents))
    alone = [labels_of(kernel.along(extents)) for kernel in kernels]
    keys = [tuple(int(labels[place]) for labels in alone) for place in product(*map(range, extents))]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}  # in order of their first positions
    if len(extents) == 1:
        assert together.ravel().tolist() == [numbers[key] for key in keys]
    pairs = {(int(together[place]), key) for place, key in zip(product(*map(range, extents)), keys, strict=True)}
    assert len(pairs) == len(numbers) == together.max() + 1  # a class for each combination, and no more


def test_layers_of_one_kernel_have_it_and_an_unknown_one_leaves_all_unknown() -> None:
    one, other = Kernel((3,)), Kernel((1,))
    assert joint_kernel([one, one]) == one
    assert joint_kernel([one, other]) == joint_kernel([other, one]) == Kernels((other, one))
    assert joint_kernel([one, None]) is None
    assert joint_kernel([]) == Kernel()
    fine, coarse = Kernels((other, one)).along([4]), other.along([4])
    assert fine[0].into(coarse[0]).tolist() == [0, 0, 0, 0]
    with pytest.raises(MismatchError, match="positions that were counted together"):
        coarse[0].into(fine[0])
    with pytest.raises(MismatchError, match="classes of 4 positions do not divide into classes of 5"):
        fine[0].into(other.along([5])[0])


@given(st.integers(1, 2).flatmap(kernels))
def test_a_kernel_of_one_tap_misses_positions_if_its_mean_is_not_that_of_its_channel(case: tuple[Kernel, Any]) -> None:
    kernel, extents = case
    one = Kernel((1,) * len(extents), kernel.geometry, kernel.transposed)
    geometry, share = kernel.geometry, 1
    if kernel.transposed:
        share = prod(geometry.strides)
        outputs = [
            (extent - 1) * stride - before - after + end + 1
            for extent, stride, before, after, end in zip(
                extents,
                geometry.strides,
                geometry.pads[: len(extents)],
                geometry.pads[len(extents) :],
                geometry.output_padding,
                strict=True,
            )
        ]
        assume(all(each > 0 for each in outputs))
    values = np.array([Fraction(7**place) for place in range(prod(extents))], object).reshape(1, 1, *extents)
    seen = exact_tap_means(values, one).ravel()[0]
    assert misses(one, extents) == (seen != values.sum() / values.size / share)


@given(st.integers(1, 2).flatmap(kernels))
def test_larger_kernels_miss_positions_if_lines_of_them_reach_no_output(case: tuple[Kernel, Any]) -> None:
    kernel, _ = case
    assume(prod(kernel.taps) > 1)
    numbers = zip(kernel.taps, kernel.geometry.strides, kernel.geometry.dilations, strict=True)
    reached = [
        {(output * stride + tap * dilation) % 60 for output in range(60) for tap in range(taps)}
        for taps, stride, dilation in numbers
    ]
    skips = not kernel.transposed and any(len(each) < 60 for each in reached)
    assert misses(kernel, (60,) * len(kernel.taps)) == skips
