"""The recorder writes the kernel that each layer moves over its input, and the correction with it is exact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from graphs import make_model, mean_output, node, stored_layers, values
from onnxruntime.capi import onnxruntime_pybind11_state as onnxruntime_errors

import streamstats as ss
from streamstats.config import JobConfig
from streamstats.errors import MismatchError
from streamstats.jobs.run import run
from streamstats.models.onnx.correct import correct
from streamstats.models.onnx.layers import survey
from streamstats.models.onnx.record import record
from streamstats.statistics.taps import TapSums

CONVOLUTIONS: list[tuple[dict[str, Any], ss.Geometry]] = [
    ({}, ss.Geometry()),
    ({"pads": [1, 0, 2, 1], "strides": [2, 1]}, ss.Geometry((2, 1), (1, 0, 2, 1))),
    ({"dilations": [2, 1], "pads": [2, 1, 2, 1]}, ss.Geometry((), (2, 1, 2, 1), (2, 1))),
    ({"auto_pad": "SAME_UPPER", "strides": [2, 2]}, ss.Geometry((2, 2), (0, 1, 1, 1))),
    ({"auto_pad": "SAME_LOWER", "strides": [2, 2]}, ss.Geometry((2, 2), (1, 1, 0, 1))),
    ({"auto_pad": "VALID", "strides": [2, 2]}, ss.Geometry((2, 2))),
]
TRANSPOSED: list[tuple[dict[str, Any], ss.Geometry]] = [
    ({"strides": [2, 2]}, ss.Geometry((2, 2))),
    (
        {"strides": [2, 3], "pads": [1, 0, 0, 1], "output_padding": [1, 0]},
        ss.Geometry((2, 3), (1, 0, 0, 1), (), (1, 0)),
    ),
    ({"strides": [2, 2], "output_shape": [12, 13]}, ss.Geometry((2, 2), (1, 1, 0, 1), (), (0, 0))),
    ({"strides": [2, 2], "output_shape": [14, 16]}, ss.Geometry((2, 2), (), (), (1, 1))),  # one more than is reached
    ({"strides": [2, 2], "auto_pad": "SAME_UPPER"}, ss.Geometry((2, 2), (0, 0, 1, 1))),
]
CASES = [
    *(("Conv", options, geometry) for options, geometry in CONVOLUTIONS),
    *(("ConvTranspose", options, geometry) for options, geometry in TRANSPOSED),
]


@pytest.mark.parametrize("storage", ["float", "int8"])
@pytest.mark.parametrize(("op", "options", "geometry"), CASES, ids=str)
def test_the_kernel_is_recorded_and_the_mean_output_restored(
    tmp_path: Path, op: str, options: dict[str, Any], geometry: ss.Geometry, storage: str
) -> None:
    x, w = values(9, 4, 6, 7), values(4, 2, 3, 3, seed=1)
    model = make_model([node(op, ["x", "w"], group=2, **options)], {"w": w}, {"x": ("n", *x.shape[1:])})
    onnx.save(model, tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", x)
    (recorded,) = record(tmp_path / "m.onnx", tmp_path / "x.npy", tmp_path / "s.zarr", storage=storage)
    kernel = ss.Kernel((3, 3), geometry, transposed=op == "ConvTranspose", groups=2)
    assert stored_layers(tmp_path / "s.zarr")[recorded.layer].kernel == kernel
    config = {"source": str(tmp_path / "s.zarr"), "output": str(tmp_path / "out"), "statistics": ["taps"]}
    run(JobConfig.model_validate(config).job())
    if recorded.quantization is not None:
        codes = recorded.quantization.quantize(x, np.int8, 1)
        x = recorded.quantization.dequantize(codes, 1).astype(np.float32)
    correct(tmp_path / "m.onnx", tmp_path / "out", tmp_path / "c.onnx", bits=3, uncorrected=tmp_path / "q.onnx")
    wanted, before, after = (mean_output(tmp_path / name, x, 1) for name in ("m.onnx", "q.onnx", "c.onnx"))
    assert np.abs(before - wanted).max() > 1e-2
    np.testing.assert_allclose(after, wanted, atol=2e-5)


def test_matrices_have_no_taps_and_appending_compares_kernels(tmp_path: Path) -> None:
    x, w = values(5, 3, 4, 4), values(6, 3, 3, 3)
    np.save(tmp_path / "x.npy", x)
    for name, pads in (("a", [1] * 4), ("b", [2] * 4)):
        nodes = [node("Conv", ["x", "w"], "c", pads=pads), node("GlobalAveragePool", ["c"], "p")]
        nodes += [node("Flatten", ["p"], "f"), node("MatMul", ["f", "m"])]
        made = make_model(nodes, {"w": w, "m": values(6, 2)}, {"x": ("n", *x.shape[1:])})
        onnx.save(made, tmp_path / f"{name}.onnx")
    record(tmp_path / "a.onnx", tmp_path / "x.npy", tmp_path / "s.zarr")
    kernels = [layer.kernel for layer in stored_layers(tmp_path / "s.zarr").values()]
    assert ss.Kernel() in kernels
    assert ss.Kernel((3, 3), ss.Geometry(pads=(1,) * 4)) in kernels
    record(tmp_path / "a.onnx", tmp_path / "x.npy", tmp_path / "s.zarr", append=True)
    said = (
        r"was recorded with the kernel taps \[3, 3\], .*pads \[1, 1, 1, 1\], .*transposed no, "
        r"but the model's is .*pads \[2, 2, 2, 2\], "
    )
    with pytest.raises(MismatchError, match=said):
        record(tmp_path / "b.onnx", tmp_path / "x.npy", tmp_path / "s.zarr", append=True)


def random_transposed(random: np.random.Generator) -> tuple[dict[str, Any], tuple[int, ...], tuple[int, ...]]:
    """(the attributes of a transposed convolution, its taps, the spatial extents of its input)."""
    taps, strides, extents = (tuple(random.integers(1, most, 2).tolist()) for most in (4, 4, 6))
    options: dict[str, Any] = {"strides": strides, "dilations": random.integers(1, 3, 2).tolist()}
    reached = [
        stride * (extent - 1) + dilation * (tap - 1) + 1
        for tap, stride, extent, dilation in zip(taps, strides, extents, options["dilations"], strict=True)
    ]
    if random.random() < 0.7:
        options["output_shape"] = [max(1, extent + int(random.integers(-2, 5))) for extent in reached]
    if random.random() < 0.6:
        options["auto_pad"] = str(random.choice(["SAME_UPPER", "SAME_LOWER"]))
    return options, taps, extents


def output_of(model: onnx.ModelProto, x: Any) -> Any:
    """The mean of each channel of the output; None if onnxruntime refuses the model."""
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        return session.run(None, {"x": x})[0].mean(axis=(0, 2, 3), dtype=np.float64)
    except (onnxruntime_errors.Fail, onnxruntime_errors.InvalidArgument, onnxruntime_errors.RuntimeException):
        return None


def test_the_shift_of_transposed_convolutions_is_that_of_onnxruntime_whatever_their_output_shape() -> None:
    random, ran = np.random.default_rng(0), 0
    for number in range(200):
        options, taps, extents = random_transposed(random)
        x, w = values(3, 2, *extents, seed=number), values(2, 3, *taps, seed=number)
        nodes, shapes = [node("ConvTranspose", ["x", "w"], **options)], {"x": ("n", *x.shape[1:])}
        rounded = ss.fake_quantize(w, 3)
        wanted, before = (output_of(make_model(nodes, {"w": each}, shapes), x) for each in (w, rounded))
        if wanted is None:
            continue
        (layer,), _ = survey(make_model(nodes, {"w": w}, shapes))
        kernel = layer.kernel_over(extents)
        means = TapSums.measure(x, 1, kernel).mean()
        term = ss.TapBiasCorrector(x.mean(axis=(0, 2, 3)), means, kernel).calculate(w, rounded, layout="IOHW")
        np.testing.assert_allclose(term, wanted - before, rtol=1e-4, atol=1e-5, err_msg=str(options))
        ran += 1
    assert ran > 80
