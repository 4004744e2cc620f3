"""Ranges beside those of torch's observers, on the same values; `make models` has torch.

Minima and maxima, per tensor and per channel, affine and symmetric, give the same steps and zero points as ours. The
histogram's range differs: it depends on how the values are cut into batches, and its search takes 256 levels for
granted, so with fewer bits it hardly clips. Over the values themselves, ours is never worse.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quantizing import grid, mean_squared_error, output_of

from streamstats.ranges.finding import LayerRange, find_ranges

torch = pytest.importorskip("torch", reason="`make models` tests with it")
observers = pytest.importorskip("torch.ao.quantization.observer")

Array = np.ndarray[Any, Any]
KINDS = ("normal", "laplace", "one-sided", "uneven")


def drawn(kind: str) -> Array:
    random = np.random.default_rng(5)
    values = {
        "normal": random.normal(size=(64, 49, 4)),
        "laplace": random.laplace(size=(64, 49, 4)),
        "one-sided": random.gamma(2, size=(64, 49, 4)),
        "uneven": random.normal(size=(64, 49, 4)) * [1, 2, 3, 9] + 1,
    }
    return values[kind].astype(np.float32)


def observed(observer: Any, values: Array, *, batch: int = 8) -> tuple[Array, Array]:
    """(steps, zero points) that the observer finds over batches of samples."""
    for start in range(0, len(values), batch):
        observer(torch.from_numpy(values[start : start + batch]))
    step, zero_point = observer.calculate_qparams()
    return step.numpy(), zero_point.numpy()


def levels(bits: int, *, symmetric: bool) -> dict[str, Any]:
    """The arguments for the codes that we use; torch's symmetric codes also have −2^(bits−1), which nothing reaches."""
    scheme = torch.per_tensor_symmetric if symmetric else torch.per_tensor_affine
    ends = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)
    dtype = torch.qint8 if symmetric else torch.quint8
    return {"dtype": dtype, "qscheme": scheme, "quant_min": ends[0], "quant_max": ends[1], "eps": 1e-12}


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_affine_minmax_is_that_of_its_observer(tmp_path: Path, kind: str, bits: int) -> None:
    values = drawn(kind)
    step, zero_point = observed(observers.MinMaxObserver(**levels(bits, symmetric=False)), values)
    ours = find_ranges(output_of(tmp_path, {"x": values}), "minmax", bits)["x"].quantization
    assert step.item() == pytest.approx(ours.step.item(), rel=1e-6)
    assert zero_point.item() == ours.zero_point


@pytest.mark.parametrize("kind", KINDS)
def test_symmetric_minmax_is_that_of_its_observer_whose_codes_number_one_more(tmp_path: Path, kind: str) -> None:
    values = drawn(kind)
    step, zero_point = observed(observers.MinMaxObserver(**levels(8, symmetric=True)), values)
    ours = find_ranges(output_of(tmp_path, {"x": values}), "minmax", 8, symmetric=True)["x"].quantization
    # it divides the range by 255, we by 254
    assert step.item() * 127.5 == pytest.approx(ours.step.item() * 127, rel=1e-6)
    assert zero_point.item() == ours.zero_point == 0


@pytest.mark.parametrize("kind", KINDS)
def test_minmax_per_channel_is_that_of_its_observer(tmp_path: Path, kind: str) -> None:
    values = drawn(kind)
    found = levels(8, symmetric=False) | {"qscheme": torch.per_channel_affine, "ch_axis": 2}
    step, zero_point = observed(observers.PerChannelMinMaxObserver(**found), values)
    output = output_of(tmp_path, {"x": values})
    ours = find_ranges(output, "minmax", 8, per_channel=True)["x"].quantization
    assert step == pytest.approx(ours.step, rel=1e-6)
    assert zero_point.tolist() == ours.zero_point.tolist()


def error(values: Array, low: float, high: float, bits: int) -> float:
    return mean_squared_error(values.astype(np.float64).ravel(), grid(min(low, 0.0), max(high, 0.0), bits, False))


def ends(step: Array, zero_point: Array, bits: int) -> tuple[float, float]:
    """(low, high) of affine codes."""
    return float(-zero_point[0] * step[0]), float((2**bits - 1 - zero_point[0]) * step[0])


def of_histogram(values: Array, bits: int, batch: int) -> tuple[float, float]:
    """(low, high) that its histogram observer finds."""
    return ends(*observed(observers.HistogramObserver(**levels(bits, symmetric=False)), values, batch=batch), bits)


def ours(folder: Path, values: Array, bits: int) -> LayerRange:
    return find_ranges(output_of(folder, {"x": values}), "mse", bits)["x"]


@pytest.mark.parametrize("bits", [3, 4, 6, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_its_histogram_is_no_better_over_the_values(tmp_path: Path, kind: str, bits: int) -> None:
    values = drawn(kind)
    found = ours(tmp_path, values, bits).ranges[0]
    theirs = error(values, *of_histogram(values, bits, 8), bits)
    assert error(values, found.low, found.high, bits) <= theirs * 1.01


def test_its_histogram_takes_256_levels_for_granted(tmp_path: Path) -> None:
    values = drawn("laplace")
    found = ours(tmp_path, values, 3).ranges[0]
    assert of_histogram(values, 3, 8)[1] > 0.9 * of_histogram(values, 8, 8)[1]
    assert error(values, found.low, found.high, 3) < 0.5 * error(values, *of_histogram(values, 3, 8), 3)


def test_its_histogram_depends_on_how_the_values_are_cut(tmp_path: Path) -> None:
    values = drawn("normal")
    assert of_histogram(values, 8, 8) != of_histogram(values, 8, 64)
    (tmp_path / "other").mkdir()
    assert ours(tmp_path, values, 8) == ours(tmp_path / "other", values[::-1], 8)
