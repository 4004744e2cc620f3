"""Ranges beside those of NNCF's quantiser, on the same samples; `make models` has NNCF.

With `RangeEstimatorParametersSet.MINMAX` its steps are ours. Its other estimators average over batches of the data
set, by default the extrema of each, so its ranges depend on how the samples are cut into batches, and clip.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import make_model, node
from onnx import numpy_helper
from quantizing import output_of

from streamstats.ranges.finding import find_ranges

nncf = pytest.importorskip("nncf", reason="`make models` tests with it")
estimators = pytest.importorskip("nncf.quantization.range_estimator")
parameters = pytest.importorskip("nncf.quantization.advanced_parameters")

Array = np.ndarray[Any, Any]


def drawn() -> Array:
    random = np.random.default_rng(5)
    return (random.normal(size=(24, 3, 8, 8)) * np.array([1, 2, 5]).reshape(1, 3, 1, 1)).astype(np.float32)


def steps(values: Array, estimator: str, batch: int = 1) -> tuple[float, float]:
    """The steps of the input of a convolution, int8 about zero, and of what a ReLU leaves of it, uint8 from zero."""
    random = np.random.default_rng(0)
    constants = {"w": identity(3), "v": random.normal(size=(4, 3, 1, 1)).astype(np.float32)}
    nodes = [node("Conv", ["x", "w"], "c"), node("Relu", ["c"], "r"), node("Conv", ["r", "v"], "y")]
    model = make_model(nodes, constants, {"x": (batch, 3, 8, 8)})
    advanced = parameters.AdvancedQuantizationParameters(
        activations_range_estimator_params=getattr(estimators.RangeEstimatorParametersSet, estimator),
        disable_bias_correction=True,
    )
    batches = nncf.Dataset([{"x": values[start : start + batch]} for start in range(0, len(values), batch)])
    quantized = nncf.quantize(model, batches, subset_size=len(values), advanced_parameters=advanced)
    known = {each.name: numpy_helper.to_array(each) for each in quantized.graph.initializer}
    found = {each.input[0]: each.input[1] for each in quantized.graph.node if each.op_type == "QuantizeLinear"}
    return float(known[found["x"]].item()), float(known[found["r"]].item())


def identity(channels: int) -> Array:
    """The weight of a convolution that leaves its input as it is."""
    return np.eye(channels, dtype=np.float32)[:, :, np.newaxis, np.newaxis]


def ours(folder: Path, values: Array) -> tuple[float, float]:
    output = output_of(folder, {"x": values, "r": np.maximum(values, 0)})
    symmetric = find_ranges(output, "minmax", 8, symmetric=True, layers="x")["x"].quantization
    return float(symmetric.step), float(find_ranges(output, "minmax", 8, layers="r")["r"].quantization.step)


@pytest.mark.parametrize("batch", [1, 8])
def test_minmax_is_that_of_its_estimator(tmp_path: Path, batch: int) -> None:
    values = drawn()
    assert steps(values, "MINMAX", batch) == pytest.approx(ours(tmp_path, values), rel=1e-6)


@pytest.mark.parametrize("estimator", ["MEAN_MINMAX", "MEDIAN_MINMAX", "MEAN_QUANTILE"])
def test_its_other_estimators_depend_on_the_batches_and_clip(tmp_path: Path, estimator: str) -> None:
    values = drawn()
    alone, together = steps(values, estimator, 1), steps(values, estimator, 8)
    assert alone[1] < 0.97 * together[1] < ours(tmp_path, values)[1]
