"""Small networks, and what onnxruntime's quantiser makes of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from streamstats.config import JobConfig
from streamstats.jobs.run import run
from streamstats.models.onnx.record import record

Array = npt.NDArray[Any]
FLOAT = onnx.TensorProto.FLOAT
FORMS = {
    "qdq": {"quant_format": QuantFormat.QDQ},
    "qdq, per channel": {"quant_format": QuantFormat.QDQ, "per_channel": True},
    "qdq, uint8": {
        "quant_format": QuantFormat.QDQ,
        "weight_type": QuantType.QUInt8,
        "activation_type": QuantType.QUInt8,
    },
    "qdq, int4": {"quant_format": QuantFormat.QDQ, "weight_type": QuantType.QInt4},
    "codes": {"quant_format": QuantFormat.QOperator},
    "codes, per channel": {"quant_format": QuantFormat.QOperator, "per_channel": True},
    "codes, uint8": {
        "quant_format": QuantFormat.QOperator,
        "weight_type": QuantType.QUInt8,
        "activation_type": QuantType.QUInt8,
    },
}


def values(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng((seed, *shape)).normal(0.3, 1.0, shape).astype(np.float32)


def model_of(nodes: Sequence[Any], constants: dict[str, Array], x: Array, *, opset: int = 17) -> Any:
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info("x", FLOAT, ["n", *x.shape[1:]])],
        [helper.make_tensor_value_info("y", FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", opset)])
    return onnx.shape_inference.infer_shapes(model)


class Batches(CalibrationDataReader):
    def __init__(self, x: Array) -> None:
        self._batches: Iterator[dict[str, Array]] = iter([{"x": x}])

    def get_next(self) -> dict[str, Array] | None:
        return next(self._batches, None)


def quantized(model: Any, folder: Path, x: Array, form: str, **options: Any) -> Path:
    onnx.save(model, folder / "float.onnx")
    target = folder / "quantized.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantize_static(folder / "float.onnx", target, Batches(x), **FORMS[form], **options)
    return target


def on_the_grid(path: Path, x: Array) -> Array:
    """`x` as the model's first QuantizeLinear sees it: then the input of the first layer is that of the float model."""
    graph = onnx.load(path).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    first = next(node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] == "x")
    scale, zero = (constants[name] for name in first.input[1:3])
    limits = np.iinfo(zero.dtype)
    return ((np.clip(np.rint(x / scale) + zero, limits.min, limits.max) - zero) * scale).astype(np.float32)


def run_out(folder: Path, x: Array, *statistics: str) -> Path:
    """What `record` and `run` leave for the float model in `folder`, by default with what the taps see."""
    np.save(folder / "x.npy", x)
    record(folder / "float.onnx", folder / "x.npy", folder / "s.zarr")
    config = {"source": str(folder / "s.zarr"), "output": str(folder / "out"), "statistics": [*statistics] or ["taps"]}
    run(JobConfig.model_validate(config).job())
    return folder / "out"


def chain() -> tuple[list[Any], dict[str, Array]]:
    """Two convolutions that share a weight, batch normalisation behind one, and a MatMul behind a transposed weight."""
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["a"], name="first", pads=[1] * 4),
        helper.make_node("BatchNormalization", ["a", "scale", "shift", "mean", "variance"], ["n"], name="norm"),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("Conv", ["r", "w2"], ["c"], name="second", pads=[1] * 4),
        helper.make_node("Conv", ["c", "w2"], ["d"], name="third", pads=[1] * 4),
        helper.make_node("GlobalAveragePool", ["d"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Transpose", ["m"], ["mt"], perm=[1, 0]),
        helper.make_node("MatMul", ["f", "mt"], ["y"], name="last"),
    ]
    constants = {
        "w": values(4, 3, 3, 3),
        "b": values(4, seed=1),
        "scale": np.abs(values(4, seed=2)) + 0.5,
        "shift": values(4, seed=3),
        "mean": values(4, seed=4),
        "variance": np.abs(values(4, seed=5)) + 0.5,
        "w2": values(4, 4, 3, 3, seed=6) * 0.2,
        "m": values(5, 4, seed=7),
    }
    return nodes, constants


def folded(nodes: list[Any], constants: dict[str, Array]) -> tuple[list[Any], dict[str, Array]]:
    """The same network as optimisers leave it: normalisation folded, other names, the weight transposed."""
    factor = constants["scale"] / np.sqrt(constants["variance"] + 1e-5)
    renamed = {
        "w": constants["w"] * factor[:, None, None, None],
        "b": (constants["b"] - constants["mean"]) * factor + constants["shift"],
        "w2": constants["w2"],
        "mt": np.ascontiguousarray(constants["m"].T),
    }
    kept = [node for node in nodes if node.op_type not in ("BatchNormalization", "Transpose")]
    others = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
    for number, node in enumerate(others):
        node.name = f"fused_{number}"
        node.input[:] = [{"n": "a"}.get(name, name) for name in node.input]
    return others, renamed


def random_network(seed: int) -> tuple[list[Any], dict[str, Array], tuple[int, ...]]:
    """(nodes, constants, the shape of a sample): convolutions of all kinds with branches, and two matrices behind."""
    random = np.random.default_rng(seed)
    channels, extent = int(random.choice([3, 4])), int(random.integers(16, 22))
    sample = (channels, extent, extent)
    nodes: list[Any] = []
    constants: dict[str, Array] = {}
    value = "x"
    for number in range(int(random.integers(2, 5))):
        groups = int(random.choice([1, channels])) if random.random() < 0.5 else 1
        kernel, stride, dilation = (int(random.choice(each)) for each in ([1, 2, 3], [1, 1, 2], [1, 1, 2]))
        pads = [int(each) for each in random.integers(0, 2, 4)]
        outputs = channels if random.random() < 0.6 else channels * 2
        options: dict[str, Any] = {"pads": pads, "strides": [stride] * 2, "dilations": [dilation] * 2, "group": groups}
        op, shape = "Conv", (outputs, channels // groups, kernel, kernel)
        if random.random() < 0.2:
            op, shape = "ConvTranspose", (channels, outputs // groups, kernel + 1, kernel + 1)
            options["pads"] = [0] * 4
        elif random.random() < 0.3:
            options = {"auto_pad": "SAME_UPPER", "strides": [stride] * 2, "group": groups}
        inputs = [value, f"w{number}"]
        constants[f"w{number}"] = values(*shape, seed=seed + number) / np.float32(kernel * np.sqrt(channels))
        if random.random() < 0.7:
            inputs.append(f"b{number}")
            constants[f"b{number}"] = values(outputs, seed=seed + number)
        nodes.append(helper.make_node(op, inputs, [f"c{number}"], name=f"layer{number}", **options))
        before, value = value, f"c{number}"
        if random.random() < 0.7:
            nodes.append(helper.make_node("Relu", [value], [f"r{number}"]))
            value = f"r{number}"
        if stride == 1 and outputs == channels and before != "x" and "auto_pad" in options:
            nodes.append(helper.make_node("Add", [before, value], [f"s{number}"]))
            value = f"s{number}"
        channels = outputs
    constants |= {"m": values(channels, 6, seed=seed), "n": values(5, 6, seed=seed), "o": values(5, seed=seed)}
    nodes += [
        helper.make_node("GlobalAveragePool", [value], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "m"], ["product"], name="product"),
        helper.make_node("Relu", ["product"], ["hidden"]),
        helper.make_node("Gemm", ["hidden", "n", "o"], ["y"], name="last", transB=1),
    ]
    return nodes, constants, sample
