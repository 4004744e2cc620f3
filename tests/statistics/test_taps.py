"""The means under the taps are, to the last bit, those of the fractions that each tap sees, padded zeros included."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import DTYPES, contents
from taps import exact_tap_means, kernels, several_kernels

from streamstats.errors import DataError, MismatchError, UsageError
from streamstats.layouts import Geometry, Kernel, joint_kernel
from streamstats.quantization import Quantization, channel_maps
from streamstats.statistics.mean import ChannelMean
from streamstats.statistics.statistic import Space
from streamstats.statistics.taps import TapSums

SAME = Kernel((3, 3), Geometry(pads=(1, 1, 1, 1)))


@settings(max_examples=150)
@given(st.data())
def test_the_means_are_the_nearest_to_what_the_taps_see(data: st.DataObject) -> None:
    spatial = data.draw(st.integers(1, 3))
    kernel, extents = data.draw(kernels(spatial))
    dtype = data.draw(st.sampled_from([each for each in DTYPES if each.kind != "b"]))
    values = data.draw(contents(dtype, (data.draw(st.integers(1, 3)), 2, *extents), finite=True))
    quantization = None
    if dtype.kind in "iu":
        steps, zero_points = st.floats(1e-3, 1e3), st.integers(-200, 200)
        quantization = Quantization(data.draw(st.lists(steps, min_size=2, max_size=2)), data.draw(zero_points))
    maps = channel_maps(quantization, 2)
    real = np.empty(values.shape, object)
    for place in np.ndindex(*values.shape):
        step, zero_point = maps[place[1]]
        real[place] = (Fraction(values[place].item()) - zero_point) * step
    axis = data.draw(st.integers(1, spatial + 1))
    found = TapSums.measure(np.moveaxis(values, 1, axis), axis, kernel).mean(quantization)
    expected = [float(each) for each in exact_tap_means(real, kernel).ravel()]
    assert found.shape == (2, *kernel.taps)
    assert found.ravel().tolist() == expected


def test_a_kernel_of_three_by_three_taps_has_nine_classes_whatever_the_extents() -> None:
    for extent in (3, 14, 112):
        space = Space(np.dtype("f4"), (extent, extent, 32), 2, SAME)
        assert TapSums.tensors(space)["count"][0] == (9, 32)
        assert TapSums.state_bytes(space) == (10 + 3) * 9 * 32 * 8
    strided = Kernel((3, 3), Geometry((2, 2), (0, 0, 1, 1)))
    assert TapSums.tensors(Space(np.dtype("i1"), (32, 112, 112), 0, strided))["count"][0] == (9, 32)


def test_without_taps_there_is_one_class_and_its_mean_is_that_of_the_channel() -> None:
    block = np.random.default_rng(0).normal(size=(4, 5, 3, 2)).astype("f4")
    for kernel, shape in ((Kernel(), (2,)), (Kernel((1, 1)), (2, 1, 1))):
        found = TapSums.measure(block, 3, kernel)
        assert found.count.shape == (1, 2)
        assert found.mean().shape == shape
        assert found.mean().ravel().tolist() == ChannelMean.measure(block, 3).mean().tolist()


def test_a_tap_that_sees_no_finite_value_has_no_mean_and_others_have_that_of_what_is_left() -> None:
    block = np.array([[[np.nan, 1.0, 2.0, 4.0]], [[np.nan, 3.0, np.nan, 6.0]]])
    found = TapSums.measure(block, 1, Kernel((2,)))  # three classes: the first position, those between, the last
    assert found.nan.tolist() == [[2], [1], [0]]
    first, second = found.mean()[0].tolist()
    assert math.isnan(first)
    assert second == (2 * 2.0 + 5.0) / 3  # the mean of two positions between, twice, and that of the last
    skipping = TapSums.measure(np.array([[[1.0, np.nan, 5.0, np.nan]]]), 1, Kernel((1,), Geometry((2,))))
    assert skipping.mean().tolist() == [[3.0]]  # positions that no tap sees are no matter


def test_what_has_no_kernel_or_another_is_refused() -> None:
    block = np.ones((2, 4, 4, 3), np.float32)
    with pytest.raises(UsageError, match=r"kernel of the layer is unknown; record .* set `geometry` for the layer"):
        TapSums.measure(block)
    with pytest.raises(
        MismatchError, match=r"kernel of 1 spatial axis does not fit samples of 2 spatial axes, with the extents \(4"
    ):
        TapSums.measure(block, 3, Kernel((3,)))
    with pytest.raises(MismatchError, match=r"kernel of 5 taps with dilation 1 does not fit into 4 positions"):
        TapSums.measure(block, 3, Kernel((5, 1)))
    mine = TapSums.measure(block, 3, SAME)
    for other in (TapSums.measure(block[:, 1:], 3, SAME), TapSums.measure(block, 3, Kernel((1, 1)))):
        with pytest.raises(MismatchError, match=r"and the kernel .* do not fit together"):
            mine.merge(other)
    with pytest.raises(DataError, match="counts are negative"):
        TapSums.from_arrays(mine.arrays() | {"count": -mine.count}, mine.space)


@settings(max_examples=60)
@given(st.data())
def test_sums_for_several_kernels_give_each_the_bits_of_its_own_sums_and_the_exact_means(data: st.DataObject) -> None:
    spatial = data.draw(st.integers(1, 2))
    several, extents = data.draw(several_kernels(spatial))
    dtype = data.draw(st.sampled_from([each for each in DTYPES if each.kind != "b"]))
    values = data.draw(contents(dtype, (data.draw(st.integers(1, 3)), 2, *extents), finite=True))
    joint = joint_kernel(several)
    found = TapSums.measure(values, 1, joint)
    real = np.array([Fraction(value.item()) for value in values.ravel()], object).reshape(values.shape)
    for kernel in several:
        alone = found.with_kernel(kernel)
        assert alone == TapSums.measure(values, 1, kernel)
        assert alone.space.kernel == kernel
        if kernel.taps:
            assert alone.mean().ravel().tolist() == [float(each) for each in exact_tap_means(real, kernel).ravel()]
    half = len(values) // 2
    parts = [TapSums.measure(part, 1, joint) for part in (values[:half], values[half:])]
    assert parts[0].merge(parts[1]) == found


def test_sums_of_other_kernels_than_those_counted_are_refused() -> None:
    block = np.ones((2, 3, 6, 6), np.float32)
    strided = Kernel((1, 1), Geometry((2, 2)))
    found = TapSums.measure(block, 1, joint_kernel([SAME, strided]))
    with pytest.raises(UsageError, match="2 kernels move over the samples"):
        found.mean()
    with pytest.raises(MismatchError, match=r"taps was counted with other kernels: .* tells apart positions"):
        found.with_kernel(Kernel((5, 5), Geometry(pads=(2,) * 4)))
    with pytest.raises(MismatchError, match="taps was counted with other kernels: the kernel of the layer is unknown"):
        found.with_kernel(None)
