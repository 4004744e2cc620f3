"""Ranges beside those of onnxruntime's calibrators, on the same values.

Its minima and maxima are ours. Its percentiles are the edges of one of its own bins, so they differ by as much as these
are wide. Its entropy differs for reasons that `streamstats.ranges.entropy` lists; under the definition of the slides,
its threshold is no better than ours.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnxruntime.quantization.calibrate import CalibrationDataReader, HistogramCollector, MinMaxCalibrater
from quantizing import divergence, output_of

from streamstats.ranges.finding import find_ranges

Array = np.ndarray[Any, Any]
BINS = 2048


def drawn(kind: str) -> Array:
    """7,840 values: percentiles of them fall between no two of them, whose order rounding could change."""
    random = np.random.default_rng(3)
    values = {
        "normal": random.normal(size=(40, 49, 4)),
        "laplace": random.laplace(size=(40, 49, 4)),
        "one-sided": random.gamma(2, size=(40, 49, 4)),
        "uneven": random.normal(size=(40, 49, 4)) * [1, 2, 3, 9] + 1,
    }
    return values[kind].astype(np.float32)


def collected(values: Array, method: str, *, symmetric: bool, bins: int = BINS, **options: Any) -> tuple[float, float]:
    """(low, high) as onnxruntime finds them."""
    settings = {"num_quantized_bins": 128, "percentile": 99.99, "scenario": "same"} | options
    collector = HistogramCollector(method, symmetric, bins, *settings.values())
    collector.collect({"layer": values})
    low, high, *_ = collector.compute_collection_result()["layer"]
    return float(low), float(high)


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Gives a batch of ten samples at a time."""

    def __init__(self, values: Array) -> None:
        self._batches = iter(np.split(values, len(values) // 10))

    def get_next(self) -> dict[str, Array] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"x": batch}


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("kind", ["normal", "one-sided", "uneven"])
def test_minmax_is_that_of_its_calibrator(tmp_path: Path, kind: str, symmetric: bool) -> None:
    values = drawn(kind)
    node = helper.make_node("Relu", ["x"], ["y"])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 49, 4]) for name in "xy"]
    model = helper.make_model(helper.make_graph([node], "graph", ends[:1], ends[1:]))
    model.opset_import[0].version, model.ir_version = 17, 8
    onnx.save(model, tmp_path / "model.onnx")
    augmented = str(tmp_path / "augmented.onnx")
    calibrator = MinMaxCalibrater(str(tmp_path / "model.onnx"), None, augmented, symmetric=symmetric)
    calibrator.augment_graph()
    calibrator.create_inference_session()
    calibrator.collect_data(Reader(values))
    theirs = calibrator.compute_data()["x"].range_value
    found = find_ranges(output_of(tmp_path, {"x": values}), "minmax", symmetric=symmetric)["x"].ranges[0]
    assert (found.low, found.high) == (min(0, theirs[0]), theirs[1])  # ours includes zero


@pytest.mark.parametrize("percentile", [99.9, 99.0])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("kind", ["normal", "laplace", "one-sided", "uneven"])
def test_percentiles_are_those_of_its_collector_to_within_bins(
    tmp_path: Path, kind: str, symmetric: bool, percentile: float
) -> None:
    values = drawn(kind)
    theirs_cut_from_both_ends = percentile if symmetric else 100 - 2 * (100 - percentile)
    low, high = collected(values, "percentile", symmetric=symmetric, percentile=theirs_cut_from_both_ends)
    output = output_of(tmp_path, {"layer": values})
    found = find_ranges(output, "percentile", symmetric=symmetric, percentile=percentile)["layer"].ranges[0]
    width = float(np.abs(values).max()) / BINS * (1 if symmetric else 2)
    assert found.high == pytest.approx(high, abs=2 * width + high / 128)
    expected_low = -found.high if symmetric else min(low, 0)  # its symmetric low is cut at the least value
    assert found.low == pytest.approx(expected_low, abs=2 * width - low / 128)


def test_its_default_bins_leave_entropy_one_threshold_the_maximum(tmp_path: Path) -> None:
    values = drawn("laplace")
    low, high = collected(values, "entropy", symmetric=False, bins=128)
    assert (low, high) == (pytest.approx(values.min(), rel=0.1), values.max())
    found = find_ranges(output_of(tmp_path, {"layer": values}), "entropy", 4)["layer"].ranges[0]
    assert found.high < 0.9 * values.max()


@pytest.mark.parametrize("bits", [3, 4, 5])
@pytest.mark.parametrize("kind", ["normal", "laplace", "one-sided"])
def test_its_entropy_threshold_is_no_better_under_the_definition(tmp_path: Path, kind: str, bits: int) -> None:
    codes = np.rint(np.abs(drawn(kind)) * 200).astype(np.int16)
    codes[codes == 0] = 1  # it counts zeros, we do not
    both = np.stack([codes, -codes])  # its bins have signs, ours have not
    extent, levels = int(codes.max()), 2 ** (bits - 1)
    collector = HistogramCollector("entropy", False, 1, 1, 99.99, "same")
    counts = np.histogram(both, np.arange(-extent - 0.5, extent + 1))[0] * 10**6  # so that rounding down is no matter
    edges = np.arange(-extent - 0.5, extent + 1)
    ends = np.float64(-extent), np.float64(extent)
    threshold = collector.get_entropy_threshold((counts, edges, *ends, extent), 2 * levels)[1]
    found = find_ranges(output_of(tmp_path, {"layer": both}), "entropy", bits, symmetric=True)["layer"].ranges[0]
    magnitudes = np.abs(both).ravel().astype(np.float64)
    last_value = magnitudes[magnitudes <= threshold].max()  # the bins after it are empty
    ours, theirs = (
        divergence(magnitudes, extent, math.ceil(each / extent * 2048 - 1e-6), levels)
        for each in (found.high, last_value)
    )
    assert ours <= theirs * (1 + 1e-9)
