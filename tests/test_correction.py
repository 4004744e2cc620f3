"""The correctors against brute force: a fake-quantised layer plus the term has the float layer's mean output.

Over the positions of an unpadded convolution a tap does not see every input, so the mean under it is not
exactly E[x]. It is when the inputs repeat with a period coprime to the stride and the kernel visits exactly
one period of positions: every tap then sees every value of the period once, whatever its offset and dilation.
All convolutions below are given such inputs, and E[x] is the mean over one period.
"""

from __future__ import annotations

import doctest
import os
import subprocess
import sys
from dataclasses import dataclass
from math import prod
from pathlib import Path

import convolution
import numpy as np
import pytest
from convolution import convolve, convolve_transposed, mean_output
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import streamstats
from streamstats import BiasCorrector, Geometry, MeanBiasCorrector, NullBiasCorrector, fake_quantize
from streamstats.correction import FORMAT, tap_sums
from streamstats.errors import DataError, MismatchError, OutputError, UsageError
from streamstats.storage.files import write_bytes
from streamstats.storage.tensors import tensors_bytes

OUTPUTS_FIRST = {0: "OI", 1: "OIW", 2: "OIHW", 3: "OIDHW"}
OUTPUTS_LAST = {0: "IO", 1: "WIO", 2: "HWIO", 3: "DHWIO"}
DEPTHWISE = {1: "WCM", 2: "HWCM", 3: "DHWCM"}
TRANSPOSED = {1: "IOW", 2: "IOHW", 3: "IODHW"}
ALL_LAYOUTS = [
    "native",
    *(name for kin in (OUTPUTS_FIRST, OUTPUTS_LAST, DEPTHWISE, TRANSPOSED) for name in kin.values()),
]
BLOCKED = [
    "zarr",
    "dask",
    "distributed",
    "numba",
    "pydantic",
    "yaml",
    "rich",
    "onnx",
    "onnxruntime",
    "matplotlib",
]


@dataclass(frozen=True)
class Sizes:
    """A layer's sizes, with an input period coprime to the stride on every spatial axis."""

    groups: int
    inputs: int  # a group
    outputs: int  # a group
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilation: tuple[int, ...]
    period: tuple[int, ...]

    @property
    def channels(self):
        return self.groups * self.inputs

    @property
    def rank(self):
        return len(self.kernel)

    @property
    def reach(self):
        return tuple((taps - 1) * gap + 1 for taps, gap in zip(self.kernel, self.dilation, strict=True))

    @property
    def sizes(self):
        """The input sizes with as many output positions as the period has: a tap meets each value once."""
        axes = zip(self.period, self.strides, self.reach, strict=True)
        return tuple((period - 1) * stride + reach for period, stride, reach in axes)


@st.composite
def layer_sizes(draw, min_rank=1, max_inputs=3):
    rank = draw(st.integers(min_rank, 3))
    strides_periods = st.sampled_from([(1, 1), (1, 2), (1, 4), (2, 1), (2, 3), (2, 5), (3, 2), (3, 4)])
    axes = draw(
        st.lists(st.tuples(st.integers(1, 3), strides_periods, st.integers(1, 2)), min_size=rank, max_size=rank)
    )
    return Sizes(
        groups=draw(st.integers(1, 3)),
        inputs=draw(st.integers(1, max_inputs)),
        outputs=draw(st.integers(1, 3)),
        kernel=tuple(kernel for kernel, _, _ in axes),
        strides=tuple(stride for _, (stride, _), _ in axes),
        dilation=tuple(dilation for _, _, dilation in axes),
        period=tuple(period for _, (_, period), _ in axes),
    )


seeds = st.integers(0, 2**32 - 1)
bit_widths = st.integers(2, 5)


def repeated(one_period, sizes):
    """`one_period` (samples, channels, *period) repeated and cropped to `sizes` positions."""
    for axis, size in enumerate(sizes, start=2):
        one_period = np.take(one_period, np.arange(size) % one_period.shape[axis], axis=axis)
    return one_period


def activations(rng, *shape):
    """Inputs with a mean far from zero, as after a ReLU."""
    return np.maximum(rng.normal(1.0, 1.0, shape), 0.0)


def assert_same_mean(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)


# Against brute force


def test_the_brute_force_itself_agrees_with_convolutions_worked_by_hand():
    assert doctest.testmod(convolution) == (0, 2)  # failed, attempted


@given(layer_sizes(), bit_widths, st.booleans(), seeds)
def test_the_term_restores_the_mean_output_of_any_convolution(layer, bits, per_channel, seed):
    rng = np.random.default_rng(seed)
    one_period = activations(rng, 2, layer.channels, *layer.period)
    weights = rng.normal(size=(layer.groups * layer.outputs, layer.inputs, *layer.kernel))
    quantized = fake_quantize(weights, bits, axis=0 if per_channel else None)
    bias = rng.normal(size=len(weights))

    def layer_mean(weights, bias):
        outputs = convolve(repeated(one_period, layer.sizes), weights, layer.groups, layer.strides, layer.dilation)
        assert outputs.shape[2:] == layer.period
        return mean_output(outputs) + bias

    term = MeanBiasCorrector(mean_output(one_period)).calculate(
        weights, quantized, layout=OUTPUTS_FIRST[layer.rank], groups=layer.groups
    )
    assert_same_mean(layer_mean(quantized, bias + term), layer_mean(weights, bias))


@given(layer_sizes(max_inputs=1), bit_widths, seeds)
def test_the_term_restores_the_mean_output_of_a_depthwise_convolution(layer, bits, seed):
    rng = np.random.default_rng(seed)
    one_period = activations(rng, 2, layer.groups, *layer.period)
    weights = rng.normal(size=(*layer.kernel, layer.groups, layer.outputs))  # Keras: (*spatial, channel, multiplier)
    quantized = fake_quantize(weights, bits)

    def layer_mean(weights):
        as_torch = np.moveaxis(weights, (-2, -1), (0, 1)).reshape(-1, 1, *layer.kernel)
        inputs = repeated(one_period, layer.sizes)
        return mean_output(convolve(inputs, as_torch, layer.groups, layer.strides, layer.dilation))

    term = MeanBiasCorrector(mean_output(one_period)).calculate(weights, quantized, layout=DEPTHWISE[layer.rank])
    assert_same_mean(layer_mean(quantized) + term, layer_mean(weights))


@given(layer_sizes(), bit_widths, seeds)
def test_the_term_restores_the_mean_output_of_a_transposed_convolution_that_tiles_its_output(layer, bits, seed):
    # kernel == stride, no dilation: every output position has exactly one tap of one input, for any inputs
    rng = np.random.default_rng(seed)
    inputs = activations(rng, 2, layer.channels, *layer.period)
    weights = rng.normal(size=(layer.channels, layer.outputs, *layer.kernel))
    quantized = fake_quantize(weights, bits)

    def layer_mean(weights):
        return mean_output(convolve_transposed(inputs, weights, layer.groups, strides=layer.kernel))

    term = MeanBiasCorrector(mean_output(inputs)).calculate(
        weights, quantized, layout=TRANSPOSED[layer.rank], groups=layer.groups, geometry=Geometry(layer.kernel)
    )
    assert_same_mean(layer_mean(quantized) + term, layer_mean(weights))


@given(layer_sizes(), bit_widths, seeds)
def test_the_term_restores_the_mean_output_of_any_transposed_convolution_away_from_its_edges(layer, bits, seed):
    # Periodic inputs give outputs of period stride·period; one such period, where no tap falls off the input.
    rng = np.random.default_rng(seed)
    one_period = activations(rng, 2, layer.channels, *layer.period)
    axes = list(zip(layer.period, layer.strides, layer.reach, strict=True))
    sizes = [period + -(-reach // stride) for period, stride, reach in axes]
    inner = tuple(slice(reach - 1, reach - 1 + period * stride) for period, stride, reach in axes)
    weights = rng.normal(size=(layer.channels, layer.outputs, *layer.kernel))
    quantized = fake_quantize(weights, bits)

    def layer_mean(weights):
        inputs = repeated(one_period, sizes)
        outputs = convolve_transposed(inputs, weights, layer.groups, layer.strides, layer.dilation)[:, :, *inner]
        assert outputs.shape[2:] == tuple(period * stride for period, stride, _ in axes)
        return mean_output(outputs)

    term = MeanBiasCorrector(mean_output(one_period)).calculate(
        weights, quantized, layout=TRANSPOSED[layer.rank], groups=layer.groups, geometry=Geometry(layer.strides)
    )
    assert_same_mean(layer_mean(quantized) + term, layer_mean(weights))


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 4), bit_widths, seeds)
def test_the_term_restores_the_mean_output_of_linear_and_matmul(inputs, outputs, tokens, bits, seed):
    rng = np.random.default_rng(seed)
    x = activations(rng, 3, tokens, inputs)
    weights = rng.normal(size=(inputs, outputs))
    quantized = fake_quantize(weights, bits)
    corrector = MeanBiasCorrector(x.mean(axis=(0, 1)))

    wanted, uncorrected = (x @ weights).mean(axis=(0, 1)), (x @ quantized).mean(axis=(0, 1))
    assert_same_mean(uncorrected + corrector.calculate(weights, quantized, layout="IO"), wanted)
    assert_same_mean(uncorrected + corrector.calculate(weights.T, quantized.T, layout="OI"), wanted)


def test_the_sign_is_that_of_a_term_to_add():
    # 3·10 became 2·10: the output lost 10, the bias gets 10
    assert MeanBiasCorrector([10.0]).calculate([[3.0]], [[2.0]], layout="IO").tolist() == [10.0]


# Layouts


def in_every_layout(weights, groups):
    """The same layer, given as (out, in/groups, *kernel), as {layout: (weights, groups to pass)}."""
    out, inputs, *kernel = weights.shape
    rank, outputs = len(kernel), out // groups
    split = weights.reshape(groups, outputs, inputs, *kernel)  # (g, o, i, *kernel)
    native = np.moveaxis(split, (2, 0, 1), (-3, -2, -1))
    layouts = {
        "native": (native, None),
        OUTPUTS_FIRST[rank]: (weights, groups),
        OUTPUTS_LAST[rank]: (np.moveaxis(weights, (1, 0), (-2, -1)), groups),
    }
    if rank:
        layouts[TRANSPOSED[rank]] = (split.swapaxes(1, 2).reshape(groups * inputs, outputs, *kernel), groups)
    if rank and inputs == 1:
        layouts[DEPTHWISE[rank]] = (native.reshape(*kernel, groups, outputs), None)
    return layouts


@given(layer_sizes(min_rank=0), seeds)
def test_every_layout_gives_the_term_of_the_native_one(layer, seed):
    # small integers and eighths: every sum is exact, so the order of the additions cannot show
    rng = np.random.default_rng(seed)
    corrector = MeanBiasCorrector(rng.integers(-50, 50, layer.channels) / 8)
    shape = (layer.groups * layer.outputs, layer.inputs, *layer.kernel)
    layouts = in_every_layout(rng.integers(-99, 99, shape), layer.groups)
    quantized = in_every_layout(rng.integers(-99, 99, shape), layer.groups)

    terms = {
        layout: corrector.calculate(weights, quantized[layout][0], layout=layout, groups=groups)
        for layout, (weights, groups) in layouts.items()
    }
    for layout, term in terms.items():
        np.testing.assert_array_equal(term, terms["native"], err_msg=layout)


@pytest.mark.parametrize("layout", ALL_LAYOUTS)
def test_every_layout_of_the_design_is_known(layout):
    shape = (1,) * (5 if layout == "native" else len(layout))
    assert MeanBiasCorrector([2.0]).calculate(np.full(shape, 3.0), np.ones(shape), layout=layout).tolist() == [4.0]


@pytest.mark.parametrize("rank", [0, 1, 4])
def test_the_native_layout_takes_any_number_of_spatial_axes(rank):
    weights = np.ones((2,) * rank + (3, 1, 1))
    term = MeanBiasCorrector([1.0, 10.0, 100.0]).calculate(weights, 0 * weights)
    assert term.tolist() == [111.0 * 2**rank]


def test_native_output_channels_are_group_major():
    weights = np.array([[[1.0, 2.0], [3.0, 4.0]]])  # (in/groups = 1, groups = 2, out/groups = 2)
    assert MeanBiasCorrector([1.0, 10.0]).calculate(weights, 0 * weights).tolist() == [1.0, 2.0, 30.0, 40.0]


@pytest.mark.parametrize("layout", ["IOW", "IOHW", "IODHW"])
def test_strides_of_a_transposed_convolution_default_to_one_and_divide_by_their_product(layout):
    weights, strides = np.ones((1, 1) + (3,) * (len(layout) - 2)), tuple(range(2, len(layout)))
    corrector = MeanBiasCorrector([1.0])
    whole = corrector.calculate(weights, 0 * weights, layout=layout)
    assert whole.tolist() == [weights.size]
    np.testing.assert_allclose(
        corrector.calculate(weights, 0 * weights, layout=layout, geometry=Geometry(strides)), whole / prod(strides)
    )


def test_tap_sums_are_by_input_group_and_output_in_every_layout():
    weights = np.arange(12.0).reshape(4, 1, 3)  # (out, in/groups, taps)
    assert tap_sums(weights, "OIW", groups=2).tolist() == [[[3.0, 12.0], [21.0, 30.0]]]


# The weights


@pytest.mark.parametrize("dtype", ["int8", "uint8", "uint64", "bool", "float16", "float32", ">f4", "float64"])
def test_weights_of_any_real_dtype_are_subtracted_in_float64(dtype):
    weights, quantized = np.array([[0], [1]], dtype=dtype), np.array([[1], [0]], dtype=dtype)
    term = MeanBiasCorrector([1.0, 10.0]).calculate(weights, quantized, layout="IO")
    assert term.dtype == np.float64
    assert term.tolist() == [9.0]


def test_a_difference_that_float32_cannot_hold_is_kept():
    weights, quantized = np.array([[1.0]], np.float32), np.array([[2.0**-30]], np.float32)
    assert MeanBiasCorrector([1.0]).calculate(weights, quantized, layout="IO").tolist() == [1.0 - 2.0**-30]


def test_memory_order_and_nested_lists_do_not_matter_and_read_only_weights_are_not_written():
    weights = np.arange(24.0).reshape(4, 3, 2)
    quantized = np.floor(weights / 4) * 4
    weights.flags.writeable = quantized.flags.writeable = False
    corrector = MeanBiasCorrector([1.0, 2.0, 4.0])
    wanted = corrector.calculate(weights, quantized, layout="OIW").tolist()
    fortran = corrector.calculate(np.asfortranarray(weights), quantized[::-1][::-1], layout="OIW")
    assert fortran.tolist() == wanted
    assert corrector.calculate(weights.tolist(), quantized.tolist(), layout="OIW").tolist() == wanted


def test_equal_weights_need_no_correction():
    weights = np.random.default_rng(0).normal(size=(3, 3, 2, 4, 5))
    assert not MeanBiasCorrector(np.ones(8)).calculate(weights, weights).any()


# Refusals


@pytest.mark.parametrize(
    ("weights", "quantized", "layout", "groups", "named"),
    [
        ((4, 3, 3, 3), (4, 3, 3, 2), "OIHW", 1, ["(4, 3, 3, 3)", "(4, 3, 3, 2)"]),
        ((4, 3), (3, 4), "OI", None, ["(4, 3)", "(3, 4)"]),
        ((1, 3), (3,), "IO", None, ["(1, 3)", "(3,)"]),  # would broadcast
        ((4, 5, 3, 3), (4, 5, 3, 3), "OIHW", 1, ["(4, 5, 3, 3)", "5 input channels", "(3,)"]),
        ((3, 3, 4, 1), (3, 3, 4, 1), "HWCM", None, ["(3, 3, 4, 1)", "4 input channels", "(3,)"]),
        ((4, 3, 3), (4, 3, 3), "OIHW", 1, ["(4, 3, 3)", "'OIHW'", "4 axes"]),
        ((4, 3, 3, 3, 1), (4, 3, 3, 3, 1), "OIHW", 1, ["(4, 3, 3, 3, 1)", "'OIHW'", "4 axes"]),
        ((3, 4), (3, 4), "native", None, ["(3, 4)", "(*spatial, in/groups, groups, out/groups)"]),
    ],
)
def test_shapes_that_do_not_fit_are_an_error_that_prints_both(weights, quantized, layout, groups, named):
    with pytest.raises(MismatchError) as caught:
        MeanBiasCorrector(np.ones(3)).calculate(np.ones(weights), np.ones(quantized), layout=layout, groups=groups)
    assert [part for part in named if part not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("shape", "layout", "groups"),
    [
        ((4, 1, 3), "OIW", 3),
        ((4, 1, 3), "OIW", 0),
        ((4, 1, 3), "OIW", -2),
        ((4, 1, 3), "OIW", 2.0),
        ((3, 1, 4), "WIO", 3),
        ((4, 1, 3), "IOW", 3),
        ((4, 1, 3), "IOW", 0),
        ((3, 1, 4, 1), "native", 2),
        ((3, 4, 1), "WCM", 2),
    ],
)
def test_groups_that_do_not_fit_the_weights_are_refused(shape, layout, groups):
    with pytest.raises(MismatchError, match="groups"):
        MeanBiasCorrector(np.ones(4)).calculate(np.ones(shape), np.ones(shape), layout=layout, groups=groups)


@pytest.mark.parametrize("layout", ["NCHW", "oihw", "OHWI", "", "CM", "HWC", "Native"])
def test_an_unknown_layout_is_refused_with_the_known_ones(layout):
    with pytest.raises(UsageError, match=r"native.*OIHW.*HWIO.*HWCM.*IOHW"):
        MeanBiasCorrector([1.0]).calculate(np.ones((1,) * 4), np.ones((1,) * 4), layout=layout)


@pytest.mark.parametrize(
    ("geometry", "named"),
    [
        (Geometry(strides=(2,)), "does not fit 2 spatial axes"),
        (Geometry(strides=(2, 2, 2)), "does not fit 2 spatial axes"),
        (Geometry(pads=(1, 1)), "does not fit 2 spatial axes"),
        (Geometry(strides=(2, 0)), "expected positive integers"),
        (Geometry(strides=(2, -1)), "expected positive integers"),
        (Geometry(strides=(2, 1.5)), "expected positive integers"),
        (Geometry(dilations=(0, 1)), "expected positive integers"),
    ],
)
@pytest.mark.parametrize("layout", ["OIHW", "HWIO", "HWCM", "IOHW"])
def test_a_geometry_without_one_positive_integer_per_spatial_axis_is_refused(geometry, named, layout):
    with pytest.raises(MismatchError, match=named):
        MeanBiasCorrector([1.0]).calculate(np.ones((1,) * 4), np.ones((1,) * 4), layout=layout, geometry=geometry)


@pytest.mark.parametrize("layout", [name for name in ALL_LAYOUTS if name not in TRANSPOSED.values()])
def test_strides_change_the_term_of_transposed_convolutions_only(layout):
    shape = (3, 3, 1, 1, 1) if layout == "native" else tuple(3 if letter in "DHW" else 1 for letter in layout)
    spatial = sum(extent == 3 for extent in shape)
    corrector, weights = MeanBiasCorrector([2.0]), np.ones(shape)
    strided = corrector.calculate(weights, 0 * weights, layout=layout, geometry=Geometry((2,) * spatial))
    assert strided.tolist() == corrector.calculate(weights, 0 * weights, layout=layout).tolist()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("which", ["weights", "fake-quantised weights"])
def test_weights_that_are_not_finite_are_refused_by_name(bad, which):
    good, spoilt = np.ones((1, 1)), np.full((1, 1), bad)
    pair = (spoilt, good) if which == "weights" else (good, spoilt)
    with pytest.raises(UsageError, match=f"^{which} hold NaN or infinities"):
        MeanBiasCorrector([1.0]).calculate(*pair, layout="IO")


@pytest.mark.parametrize("weights", [np.array([["1"]]), np.array([[1j]]), np.array([[None]])])
def test_weights_that_are_not_real_numbers_are_refused(weights):
    with pytest.raises(MismatchError, match="expected real numbers"):
        MeanBiasCorrector([1.0]).calculate(weights, np.ones((1, 1)), layout="IO")


@pytest.mark.parametrize("mean", [1.0, [[1.0]], np.ones((2, 1)), ["1.0"], [1j], [None], [True]])
def test_a_mean_that_is_not_one_dimension_of_real_numbers_is_refused(mean):
    with pytest.raises(MismatchError, match="input_mean has the shape"):
        MeanBiasCorrector(mean)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_mean_that_is_not_finite_is_refused_with_its_channel(bad):
    with pytest.raises(UsageError, match="channel 2"):
        MeanBiasCorrector([0.0, 1.0, bad, bad])


@pytest.mark.parametrize("provenance", [{"format": "1"}, {"kind": "1"}, {"sha256": "1"}, {"rows": 5}, {5: "rows"}])
def test_provenance_that_the_file_cannot_keep_is_refused(provenance):
    with pytest.raises(UsageError, match="provenance"):
        MeanBiasCorrector([1.0], provenance)


def test_a_corrector_does_not_change_when_what_it_was_made_from_does():
    mean, provenance = np.array([1.0, 2.0]), {"layer": "a"}
    corrector = MeanBiasCorrector(mean, provenance)
    mean[:], provenance["layer"] = 0.0, "b"
    assert corrector.input_mean.tolist() == [1.0, 2.0]
    assert corrector.provenance == {"layer": "a"}
    with pytest.raises(ValueError, match="read-only"):
        corrector.input_mean[0] = 5.0


# The null corrector


def test_the_null_corrector_has_nothing_to_add_whatever_it_is_given():
    assert NullBiasCorrector().calculate(np.ones(3), np.zeros(3)) is None
    assert NullBiasCorrector().calculate([], None, layout="IOHW", groups=7, geometry=Geometry((2, 2))) is None


def test_the_null_corrector_survives_its_file(tmp_path):
    NullBiasCorrector().save(tmp_path / "null.safetensors")
    assert isinstance(BiasCorrector.load(tmp_path / "null.safetensors"), NullBiasCorrector)


# Files

means = arrays(np.float64, st.integers(0, 6), elements=st.floats(allow_nan=False, allow_infinity=False))
provenances = st.dictionaries(
    st.text().filter(lambda key: key not in ("format", "kind", "sha256")), st.text(), max_size=5
)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("correctors")


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "layer.safetensors"
    MeanBiasCorrector([0.5, -0.25], {"layer": "block/conv", "rows": "7"}).save(path)
    return path


@given(mean=means, provenance=provenances)
def test_a_saved_corrector_loads_with_every_bit_and_its_provenance(scratch, mean, provenance):
    path = scratch / "corrector.safetensors"
    MeanBiasCorrector(mean, provenance).save(path)
    loaded = BiasCorrector.load(path)
    assert isinstance(loaded, MeanBiasCorrector)
    assert loaded.input_mean.dtype == np.float64
    assert loaded.input_mean.tobytes() == mean.tobytes()
    assert loaded.provenance == provenance


def test_a_loaded_corrector_gives_the_same_term(saved):
    weights, quantized = np.array([[3.0], [5.0]]), np.array([[1.0], [1.0]])
    assert BiasCorrector.load(saved).calculate(weights, quantized, layout="IO").tolist() == [0.0]
    assert BiasCorrector.load(str(saved)).calculate(weights, 0 * weights, layout="IO").tolist() == [0.25]


def python(program, *arguments, **environment):
    """What `program` prints in a fresh interpreter in which warnings are errors."""
    root = Path(streamstats.__file__).parents[1]
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(root), **environment},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_equal_correctors_have_equal_bytes_in_every_process_and_order_of_keys(tmp_path):
    program = """
import sys
from streamstats import MeanBiasCorrector
keys = sys.argv[2].split(",")
MeanBiasCorrector([0.1, 0.2, 0.3], {key: key * 2 for key in keys}).save(sys.argv[1])
"""
    keys = [f"key{number}" for number in range(12)]
    python(program, tmp_path / "1", ",".join(keys), PYTHONHASHSEED="1")
    python(program, tmp_path / "2", ",".join(reversed(keys)), PYTHONHASHSEED="2")
    for name in "34":
        MeanBiasCorrector([0.1, 0.2, 0.3], {key: key * 2 for key in keys}).save(tmp_path / name)
    assert len({(tmp_path / name).read_bytes() for name in "1234"}) == 1


def test_a_corrector_loads_and_applies_with_numpy_and_safetensors_alone(saved):
    program = f"""
import sys
BLOCKED = {BLOCKED!r}

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(name + " is blocked")

sys.meta_path.insert(0, Blocker())
for name in BLOCKED:
    try:
        __import__(name)
    except ImportError as error:
        assert str(error) == name + " is blocked", error
    else:
        raise AssertionError(name + " is not blocked")

from streamstats import BiasCorrector, MeanBiasCorrector
corrector = BiasCorrector.load(sys.argv[1])
assert isinstance(corrector, MeanBiasCorrector)
corrector.save(sys.argv[1] + ".copy")
print(corrector.calculate([[2.0, 4.0]], [[1.0, 0.0]], layout="OI").tolist())
"""
    assert python(program, saved) == "[-0.5]\n"
    assert saved.with_name(saved.name + ".copy").read_bytes() == saved.read_bytes()


def test_a_truncated_corrector_is_a_data_error_at_any_length(saved):
    content = saved.read_bytes()
    for length in range(len(content)):
        saved.write_bytes(content[:length])
        with pytest.raises(DataError, match=r"layer\.safetensors"):
            BiasCorrector.load(saved)


def test_any_flipped_bit_of_a_corrector_is_a_data_error(saved):
    content = saved.read_bytes()
    for position in range(len(content)):
        for bit in range(8):
            flipped = bytearray(content)
            flipped[position] ^= 1 << bit
            saved.write_bytes(flipped)
            with pytest.raises(DataError, match=r"layer\.safetensors"):
                BiasCorrector.load(saved)


def test_bytes_after_the_end_of_a_corrector_are_a_data_error(saved):
    saved.write_bytes(saved.read_bytes() + b"\0")
    with pytest.raises(DataError, match=r"layer\.safetensors"):
        BiasCorrector.load(saved)


@pytest.mark.parametrize("content", [b"", b"not safetensors", b"{}", b"\x89PNG\r\n\x1a\n" + bytes(100)])
def test_a_file_that_is_not_safetensors_is_a_data_error(tmp_path, content):
    path = tmp_path / "layer.safetensors"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"layer\.safetensors"):
        BiasCorrector.load(path)


def test_a_missing_corrector_is_a_data_error_that_names_it(tmp_path):
    with pytest.raises(DataError, match=r"absent\.safetensors"):
        BiasCorrector.load(tmp_path / "absent.safetensors")
    with pytest.raises(DataError, match="cannot read"):
        BiasCorrector.load(tmp_path)


MEAN = {"input_mean": np.ones(2)}


@pytest.mark.parametrize(
    ("tensors", "metadata", "reason"),
    [
        (MEAN, {"format": FORMAT, "kind": "median"}, "kind 'median'"),
        (MEAN, {"format": FORMAT}, "kind None"),
        (MEAN, {"format": FORMAT, "kind": "null"}, "kind 'null'"),
        ({}, {"format": FORMAT, "kind": "mean"}, "tensor 'input_mean'"),
        ({**MEAN, "more": np.ones(2)}, {"format": FORMAT, "kind": "mean"}, "'more'"),
        (MEAN, {"format": "streamstats.corrector/2", "kind": "mean"}, "streamstats.corrector/2.*corrector/1"),
        (MEAN, {"format": "streamstats.state/1", "kind": "mean"}, "streamstats.state/1"),
        (MEAN, {"kind": "mean"}, "format None"),
        ({"input_mean": np.ones((2, 1))}, {"format": FORMAT, "kind": "mean"}, r"\(2, 1\)"),
        ({"input_mean": np.ones(2, np.float32)}, {"format": FORMAT, "kind": "mean"}, "float32"),
        ({"input_mean": np.array([1.0, np.nan])}, {"format": FORMAT, "kind": "mean"}, "channel 1 is nan"),
    ],
)
def test_a_whole_file_of_another_kind_or_version_is_a_data_error(tmp_path, tensors, metadata, reason):
    write_bytes(tmp_path / "layer.safetensors", tensors_bytes(tensors, metadata))
    with pytest.raises(DataError, match=reason):
        BiasCorrector.load(tmp_path / "layer.safetensors")


def test_a_corrector_that_cannot_be_written_is_an_output_error_and_the_old_one_stays(saved):
    before = saved.read_bytes()
    with pytest.raises(OutputError, match=r"layer\.safetensors"):
        MeanBiasCorrector([1.0]).save(saved / "below-a-file.safetensors")
    assert saved.read_bytes() == before


def test_a_corrector_of_ones_own_needs_calculate_alone_and_is_saved_if_it_says_how(tmp_path: Path) -> None:
    class Difference(BiasCorrector):
        kind = "difference"

        def calculate(self, weights: object, fake_quantized_weights: object, **_: object) -> np.ndarray:  # type: ignore[override]
            return np.subtract(weights, fake_quantized_weights)

    assert Difference().calculate([3.0], [1.0]).tolist() == [2.0]
    with pytest.raises(UsageError, match="Difference has no file; define to_bytes to save it"):
        Difference().save(tmp_path / "c.safetensors")
    assert not (tmp_path / "c.safetensors").exists()
