"""Models of more than 2 GB, whose tensors are in other files, are recorded, read and corrected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import FLOAT, make_model, node, run_model, saved, values
from networks import Batches
from onnx import TensorProto
from onnxruntime.quantization import quantize_static

from streamstats.models.onnx.correct import Correction, correct_quantized
from streamstats.models.onnx.record import measure

WORDS, ROWS, WIDTH = 64, 2**19 + 2**15, 1024
"""How many words occur; the rows of a table of more than 2 GB."""


def network(table: Any) -> Any:
    nodes = [
        node("Gather", ["table", "x"], "e", "embedding"),
        node("MatMul", ["e", "w"], "h", "one"),
        node("Relu", ["h"], "r"),
        node("MatMul", ["r", "v"], "y", "two"),
    ]
    constants = {"w": values(WIDTH, 16), "v": values(16, 8, seed=1), "table": table}
    model = make_model(nodes, constants, {"x": ("N", 7)}, dtype=TensorProto.INT64)
    model.graph.output[0].type.tensor_type.elem_type = FLOAT
    return model


def with_large_table(model: Any, table: Any, folder: Path, name: str) -> Path:
    """`model` with its table in a sparse file beside it: zeros behind the words that occur."""
    with open(folder / "table.bin", "wb") as file:
        file.write(table.tobytes())
        file.truncate(ROWS * WIDTH * 4)
    (tensor,) = [each for each in model.graph.initializer if each.name == "table"]
    tensor.Clear()
    tensor.name, tensor.data_type, tensor.data_location = "table", FLOAT, TensorProto.EXTERNAL
    tensor.dims.extend([ROWS, WIDTH])
    for key, value in (("location", "table.bin"), ("offset", "0"), ("length", str(ROWS * WIDTH * 4))):
        tensor.external_data.add(key=key, value=value)
    return saved(model, folder, name)


@pytest.mark.soak
def test_a_model_of_more_than_2_gb_is_corrected_as_the_same_model_with_a_small_table(tmp_path: Path) -> None:
    table, x = values(WORDS, WIDTH), np.random.default_rng(0).integers(0, WORDS, (32, 7))
    np.save(tmp_path / "x.npy", x)
    small = saved(network(table), tmp_path, "small.onnx")
    quantize_static(str(small), str(tmp_path / "small-quantized.onnx"), Batches(x), op_types_to_quantize=["MatMul"])
    quantized = onnx.load(tmp_path / "small-quantized.onnx")
    assert any(each.name == "table" for each in quantized.graph.initializer)
    large = with_large_table(network(table), table, tmp_path, "large.onnx")
    with_large_table(quantized, table, tmp_path, "large-quantized.onnx")
    done: dict[str, Correction] = {}
    for name, source in (("small", small), ("large", large)):
        measure(source, tmp_path / "x.npy", tmp_path / f"{name}-out")
        models = source, tmp_path / f"{name}-quantized.onnx"
        done[name] = correct_quantized(*models, tmp_path / f"{name}-out", tmp_path / f"{name}-fixed.onnx")
    assert [each.document() for each in done["large"].layers] == [each.document() for each in done["small"].layers]
    assert [each.layer for each in done["large"].layers if each.corrected] == ["one", "two"]
    assert (tmp_path / "large-fixed.onnx.data").stat().st_size > 2**31
    fixed = [run_model(tmp_path / f"{name}-fixed.onnx", x) for name in done]
    np.testing.assert_array_equal(*fixed)
