"""AIMET's encodings: the grid of values that a file describes is ours; AIMET itself quantises with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import make_model, node, values
from quantizing import output_of

import streamstats as ss
from streamstats.errors import UsageError
from streamstats.exports.aimet import VERSIONS

Array = np.ndarray[Any, Any]
CODES = {
    "affine": {},
    "signed": {"signed": True},
    "symmetric": {"symmetric": True},
    "symmetric unsigned": {"symmetric": True, "signed": False},
    "4 bits": {"bits": 4},
}
TENSORS = {"x": values(40, 3, seed=1), "h": values(40, 4, seed=2) * 3, "y": values(40, 2, seed=3) - 5}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return output_of(tmp_path_factory.mktemp("run"), TENSORS)


def written(out: Path, folder: Path, version: str, **codes: Any) -> dict[str, Any]:
    path = folder / "model.encodings"
    ss.export(out, "aimet", path, ranges=ss.RangeChoice("mse", **codes), encoding_version=version)
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def grids(document: dict[str, Any]) -> dict[str, Array]:
    """Tensor → every value that has a code, as AIMET's documentation defines the versions."""
    if document["version"] == "2.0.0":
        entries = {each["name"]: each for each in document["encodings"]}
        return {name: _onnx_grid(**each) for name, each in entries.items()}
    found = document["activation_encodings"]
    if document["version"] == "1.0.0":
        found = {each["name"]: [{**each, "bitwidth": each["bw"]}] for each in found}
    assert all(len(each) == 1 for each in found.values())
    return {name: _offset_grid(each[0]) for name, each in found.items()}


def _onnx_grid(name: str, output_dtype: str, y_scale: float, y_zero_point: int) -> Array:
    assert name
    if output_dtype.startswith("uint"):
        codes = np.arange(2 ** int(output_dtype[4:]))
    else:
        codes = np.arange(2 ** int(output_dtype[3:])) - 2 ** (int(output_dtype[3:]) - 1)
    return (codes - y_zero_point) * y_scale


def _offset_grid(entry: dict[str, Any]) -> Array:
    step, offset = (np.ravel(entry[name])[0] for name in ("scale", "offset"))
    grid = (np.arange(2 ** entry["bitwidth"]) + offset) * step
    if "min" in entry:
        assert [entry["min"], entry["max"]] == pytest.approx([grid[0], grid[-1]])
    return np.asarray(grid)


@pytest.mark.parametrize("codes", CODES)
@pytest.mark.parametrize("version", VERSIONS)
def test_the_grid_of_values_is_ours(tmp_path: Path, out: Path, version: str, codes: str) -> None:
    document = written(out, tmp_path, version, **CODES[codes])
    assert document["version"] == version
    found = ss.find_ranges(out, "mse", **({"bits": 8} | CODES[codes]))
    described = grids(document)
    assert described.keys() == TENSORS.keys()
    for name, each in found.items():
        lowest = -(2 ** (each.codes.bits - 1)) if each.codes.signed else 0
        ours = each.quantization.dequantize(np.arange(lowest, lowest + 2**each.codes.bits))
        assert described[name] == pytest.approx(ours, rel=1e-12, abs=1e-12)


def test_an_unknown_version_is_refused(tmp_path: Path, out: Path) -> None:
    with pytest.raises(UsageError, match=r"version of the encodings is '3'; expected one of 0\.6\.1, 1\.0\.0, 2\.0\.0"):
        written(out, tmp_path, "3")


@pytest.mark.parametrize("codes", ["affine", "symmetric"])
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.filterwarnings("ignore")  # of the libraries that AIMET imports
def test_aimet_quantises_with_our_steps(tmp_path: Path, out: Path, version: str, codes: str) -> None:
    quantsim = pytest.importorskip("aimet_onnx.quantsim", reason="`make models` tests with it")
    nodes = [node("Gemm", ["x", "w1"], "h", "one"), node("Gemm", ["h", "w2"], "y", "two")]
    model = make_model(nodes, {"w1": values(3, 4), "w2": values(4, 2)}, {"x": (1, 3)})
    symmetric = codes == "symmetric"
    simulation = quantsim.QuantizationSimModel(model, dummy_input={"x": TENSORS["x"][:1]})
    written(out, tmp_path, version, **CODES[codes])
    quantsim.load_encodings_to_sim(simulation, str(tmp_path / "model.encodings"), strict=False)
    found = ss.find_ranges(out, "mse", symmetric=symmetric)
    for name in TENSORS:
        (encoding,) = simulation.qc_quantize_op_dict[name].get_encodings()
        step, zero_point = found[name].quantization.step, found[name].quantization.zero_point
        assert encoding.delta == pytest.approx(float(step), rel=1e-6)
        assert encoding.offset == (-128 if symmetric else -zero_point)
        assert encoding.bw == 8
