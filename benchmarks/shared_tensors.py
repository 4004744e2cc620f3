"""What storing a tensor once is worth: the bytes of a recording with an array per tensor, and with one per layer.

    python benchmarks/shared_tensors.py --samples 8

The networks have random weights: a ResNet-18 over images of 224×224, and transformer blocks of 64 tokens, whose
queries, keys and values, and whose gate and up projections, read the same tensors. Needs the extra `onnx`.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import zarr
from measuring import machine
from onnx import helper, numpy_helper
from tables import Table, show

from streamstats.calibration.recorder import Recorder
from streamstats.calibration.selection import select_layers
from streamstats.models.onnx.record import record

TOKENS, WIDTH, BLOCKS = 64, 256, 4


@dataclass
class Graph:
    """A graph in the making: each operator returns the name of its output."""

    nodes: list[Any] = field(default_factory=list)
    weights: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Append an operator."""
        name = f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def weight(self, *shape: int, fan_in: int) -> str:
        """A random weight that keeps the size of activations."""
        name = f"w{len(self.weights)}"
        values = np.random.default_rng(len(self.weights)).normal(0, (2 / fan_in) ** 0.5, shape)
        self.weights[name] = values.astype(np.float32)
        return name

    def conv(self, value: str, inputs: int, outputs: int, taps: int, stride: int) -> str:
        """A convolution with padding that keeps the extents, up to the stride."""
        weight = self.weight(outputs, inputs, taps, taps, fan_in=inputs * taps * taps)
        return self.add("Conv", value, weight, strides=[stride] * 2, pads=[taps // 2] * 4)

    def matmul(self, value: str, inputs: int, outputs: int) -> str:
        """A projection."""
        return self.add("MatMul", value, self.weight(inputs, outputs, fan_in=inputs))

    def saved(self, path: Path, shape: tuple[int, ...], output: str) -> Path:
        """Write the model that maps `x` to `output`."""
        values = [
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, extents)
            for name, extents in (("x", ["n", *shape]), (output, None))
        ]
        constants = [numpy_helper.from_array(array, name) for name, array in self.weights.items()]
        graph = helper.make_graph(self.nodes, "graph", values[:1], values[1:], constants)
        onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), path)
        return path


def resnet(path: Path) -> Path:
    """A ResNet-18 without batch normalisation."""
    graph, width = Graph(), 64
    value = graph.add("Relu", graph.conv("x", 3, width, 7, 2))
    value = graph.add("MaxPool", value, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    for stage in range(4):
        for block in range(2):
            stride = 2 if stage and not block else 1
            outputs = width * stride
            inner = graph.add("Relu", graph.conv(value, width, outputs, 3, stride))
            main = graph.conv(inner, outputs, outputs, 3, 1)
            skip = graph.conv(value, width, outputs, 1, stride) if stride > 1 else value
            value, width = graph.add("Relu", graph.add("Add", main, skip)), outputs
    flat = graph.add("Flatten", graph.add("GlobalAveragePool", value))
    return graph.saved(path, (3, 224, 224), graph.matmul(flat, width, 1000))


def transformer(path: Path) -> Path:
    """Blocks of one head of attention and a gated projection, with residual connections."""
    graph, value = Graph(), "x"
    for _ in range(BLOCKS):
        query, key, rest = (graph.matmul(value, WIDTH, WIDTH) for _ in range(3))
        turned = graph.add("Transpose", key, perm=[0, 2, 1])
        seen = graph.add("MatMul", graph.add("Softmax", graph.add("MatMul", query, turned), axis=-1), rest)
        value = graph.add("Add", value, graph.matmul(seen, WIDTH, WIDTH))
        gate, up = (graph.matmul(value, WIDTH, 3 * WIDTH) for _ in range(2))
        inner = graph.add("Mul", graph.add("Sigmoid", gate), up)
        value = graph.add("Tanh", graph.add("Add", value, graph.matmul(inner, 3 * WIDTH, WIDTH)))
    return graph.saved(path, (TOKENS, WIDTH), value)


NETWORKS = {"ResNet-18": (resnet, (3, 224, 224)), "transformer blocks": (transformer, (TOKENS, WIDTH))}


def main() -> None:
    """Record both networks, and print what their stores take."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=8, help="samples to record (default 8)")
    parser.add_argument("--markdown", action="store_true", help="the table as Markdown")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [_row(Path(folder), name, options.samples) for name in NETWORKS]
    headings = [
        "network",
        "layers",
        "arrays",
        "decoded MB: per layer",
        "per tensor",
        "on disk MB: per layer",
        "per tensor",
    ]
    show([Table("Bytes of a recording", headings, rows)], machine(), (), markdown=options.markdown)


def _row(folder: Path, name: str, samples: int) -> list[str]:
    build, shape = NETWORKS[name]
    np.save(folder / "x.npy", np.random.default_rng(0).normal(size=(samples, *shape)).astype(np.float32))
    once, apart = folder / f"{name}.zarr", folder / f"{name} per layer.zarr"
    record(build(folder / "model.onnx"), folder / "x.npy", once, batch_size=4)
    layers = select_layers(once).layers
    with Recorder(apart) as recorder:
        for layer in layers:
            values = zarr.open_array(str(once), path=layer.name, mode="r")[:]
            for reader in layer.names:
                recorder.append(reader, values, channel_axis=layer.channel_axis)
    decoded = [
        sum(prod(layer.shape) * 4 * times(layer) for layer in layers)
        for times in (lambda each: len(each.names), lambda _: 1)
    ]
    sizes = [*decoded, _bytes(apart), _bytes(once)]
    return [
        name,
        str(sum(len(layer.names) for layer in layers)),
        str(len(layers)),
        *(f"{each / 1e6:.1f}" for each in sizes),
    ]


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
