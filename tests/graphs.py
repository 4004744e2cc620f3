"""Small ONNX graphs, most of one linear layer, and what a run leaves for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import zarr
from onnx import helper, numpy_helper

from streamstats.calibration.describing import describe
from streamstats.calibration.layer import Layer
from streamstats.calibration.sources.choose import source_of
from streamstats.correction import MeanBiasCorrector
from streamstats.errors import StreamstatsError
from streamstats.storage.names import layer_path

Array = npt.NDArray[Any]
FLOAT = onnx.TensorProto.FLOAT


def values(*shape: int, seed: int = 0, dtype: str = "float32") -> Array:
    """Reals with a mean that is not zero, so that a shift shows."""
    return np.random.default_rng((seed, *shape)).normal(0.7, 1.0, shape).astype(dtype)


def integers(*shape: int, seed: int = 0) -> Array:
    """Small integers in float32: their sums of products are exact in any order."""
    return np.random.default_rng((seed, *shape)).integers(-3, 5, shape).astype(np.float32)


def make_model(
    nodes: Sequence[Any],
    constants: dict[str, Array],
    inputs: dict[str, tuple[Any, ...]],
    outputs: Sequence[str] = ("y",),
    *,
    dtype: int = FLOAT,
    ir: int = 8,
    opset: int = 17,
) -> Any:
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info(name, dtype, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, dtype, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    if ir < 4:
        graph.input.extend(helper.make_tensor_value_info(k, dtype, v.shape) for k, v in constants.items())
    model = helper.make_model(graph, ir_version=ir, opset_imports=[helper.make_opsetid("", opset)])
    return model if any(each.domain for each in nodes) else onnx.shape_inference.infer_shapes(model)


def node(op: str, inputs: Sequence[str], output: str = "y", name: str = "", **attributes: Any) -> Any:
    return helper.make_node(op, list(inputs), [output], name=name, **attributes)


def saved(model: Any, folder: Path, name: str = "model.onnx") -> Path:
    onnx.save(model, folder / name)
    return folder / name


def save_means(out: Path, means: dict[str, Array]) -> Path:
    """What `streamstats run` leaves, of the means that the test knows."""
    for layer, mean in means.items():
        MeanBiasCorrector(mean).save(layer_path(out / "correctors", layer))
    return out


def channel_mean(x: Array, axis: int) -> Array:
    return x.astype(np.float64).mean(axis=tuple(a for a in range(x.ndim) if a != axis % x.ndim))


def initializers(path: Path) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def periodic(n: int, channels: int, spatial: int, seed: int = 0) -> Array:
    """Samples of period 2 on even spatial axes: every tap of an unpadded kernel of 3 sees the same mean."""
    return np.tile(values(n, channels, *(2,) * spatial, seed=seed), (1, 1, *(3,) * spatial))


@dataclass(frozen=True)
class Case:
    """One linear node `layer`, x → y, with constants; `channel_axis` of x."""

    op: str
    constants: dict[str, Array]
    x: Array
    channel_axis: int = 1
    attributes: dict[str, Any] = field(default_factory=dict)

    def model(self, **options: Any) -> Any:
        linear = node(self.op, ["x", *self.constants], name="/layer", **self.attributes)
        dtype = helper.np_dtype_to_tensor_dtype(self.x.dtype)
        return make_model([linear], self.constants, {"x": ("N", *self.x.shape[1:])}, dtype=dtype, **options)


def weights(*shape: int) -> dict[str, Array]:
    return {"w": values(*shape, seed=1)}


def biased(channels: int, *shape: int) -> dict[str, Array]:
    return {"w": values(*shape, seed=1), "b": values(channels, seed=2)}


CASES = {
    "conv 1x1": Case("Conv", biased(5, 5, 3, 1, 1), values(8, 3, 4, 4)),
    "conv without bias": Case("Conv", weights(5, 3, 1, 1), values(8, 3, 4, 4)),
    "conv 1-d": Case("Conv", biased(4, 4, 3, 3), periodic(8, 3, 1)),
    "conv 2-d": Case("Conv", biased(4, 4, 3, 3, 3), periodic(8, 3, 2)),
    "conv 3-d": Case("Conv", biased(4, 4, 3, 3, 3, 3), periodic(4, 3, 3)),
    "conv depthwise": Case("Conv", biased(6, 6, 1, 3, 3), periodic(8, 6, 2), attributes={"group": 6}),
    "conv multiplier": Case("Conv", biased(6, 6, 1, 3, 3), periodic(8, 3, 2), attributes={"group": 3}),
    "conv grouped": Case("Conv", biased(6, 6, 2, 3, 3), periodic(8, 4, 2), attributes={"group": 2}),
    "transposed 1-d": Case("ConvTranspose", biased(4, 3, 4, 2), values(8, 3, 5), attributes={"strides": [2]}),
    "transposed stride": Case(
        "ConvTranspose", biased(4, 3, 4, 2, 3), values(8, 3, 5, 4), attributes={"strides": [2, 3]}
    ),
    "transposed grouped": Case(
        "ConvTranspose", weights(4, 3, 2, 2), values(8, 4, 5, 4), attributes={"strides": [2, 2], "group": 2}
    ),
    "gemm": Case("Gemm", biased(5, 3, 5), values(32, 3)),
    "gemm transB": Case("Gemm", biased(5, 5, 3), values(32, 3), attributes={"transB": 1}),
    "gemm without C": Case("Gemm", weights(5, 3), values(32, 3), attributes={"transB": 1, "beta": 0.5}),
    "gemm alpha beta": Case("Gemm", biased(5, 3, 5), values(32, 3), attributes={"alpha": 2.5, "beta": -0.5}),
    "gemm beta zero": Case("Gemm", biased(5, 3, 5), values(32, 3), attributes={"alpha": 0.25, "beta": 0.0}),
    "gemm C scalar": Case("Gemm", {**weights(3, 5), "b": np.float32(2.5).reshape(())}, values(32, 3)),
    "gemm C row": Case("Gemm", {**weights(3, 5), "b": values(1, 5)}, values(32, 3)),
    "matmul 2-d": Case("MatMul", weights(3, 5), values(32, 3), -1),
    "matmul 3-d": Case("MatMul", weights(3, 5), values(8, 7, 3), -1),
    "matmul float64": Case("MatMul", {"w": values(3, 5, dtype="float64")}, values(8, 3, dtype="float64"), -1),
    "gemm float64": Case("Gemm", {"w": values(3, 5, dtype="float64")}, values(8, 3, dtype="float64"), -1),
    "conv float16": Case(
        "Conv",
        {"w": values(5, 3, 1, 1, dtype="float16"), "b": values(5, dtype="float16")},
        values(8, 3, 4, 4, dtype="float16"),
    ),
}


def run_model(path: Path, x: Array) -> Array:
    """The first output of the model for all samples of its only input, in batches if it has a fixed batch."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (source,) = session.get_inputs()
    batch = source.shape[0] if isinstance(source.shape[0], int) else max(1, len(x))
    parts = [session.run(None, {source.name: x[start : start + batch]})[0] for start in range(0, len(x), batch)]
    return np.concatenate(parts)


def mean_output(path: Path, x: Array, axis: int) -> Array:
    return channel_mean(run_model(path, x), axis)


def all_outputs(path: Path, x: Array) -> list[Array]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in session.run(None, {"x": x})]


@dataclass(frozen=True)
class Network:
    """conv 1x1 → relu → (3-D matmul, flatten → gemm), of integers: its activations are exact in numpy."""

    path: Path
    x: Array
    constants: dict[str, Array]

    def activations(self) -> dict[str, Array]:
        hidden = np.einsum("oi,nihw->nohw", self.constants["w1"][:, :, 0, 0], self.x)
        relu = np.maximum(hidden + self.constants["b1"][:, None, None], 0)
        return {"conv": self.x, "rows": relu, "head/fc": relu.reshape(len(relu), -1)}


AXES = {"conv": 1, "rows": 3, "head/fc": 1}


def stored_layers(store: Path) -> dict[str, Layer]:
    source = source_of(store)
    return {name: describe(source, name, array) for name, array in source.find().arrays.items()}


def stored(store: Path) -> dict[str, Array]:
    return {name: zarr.open_array(str(store), path=name, mode="r")[:] for name in stored_layers(store)}


def one_line(call: Callable[[], object], kind: type[StreamstatsError], *fragments: str) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert "\n" not in str(caught.value)
    for fragment in fragments:
        assert fragment in str(caught.value)


def network_in(folder: Path) -> Network:
    """The network that recordings are checked with, and its samples, saved in `folder`."""
    nodes = [
        node("Conv", ["x", "w1", "b1"], "h", "/conv"),
        node("Relu", ["h"], "r"),
        node("MatMul", ["r", "w2"], "rows"),
        node("Flatten", ["r"], "f"),
        node("Gemm", ["f", "w3"], "y", "/head/fc"),
    ]
    constants = {
        "w1": integers(4, 3, 1, 1),
        "b1": integers(4),
        "w2": integers(6, 2),
        "w3": integers(4 * 5 * 6, 2),
    }
    x = integers(11, 3, 5, 6)
    model = make_model(nodes, constants, {"x": ("N", 3, 5, 6)}, ["y", "rows"])
    np.save(folder / "x.npy", x)
    return Network(saved(model, folder), x, constants)
