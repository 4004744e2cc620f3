"""Quantisation ranges of the layers of an output, by any method, with the expected error of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import UsageError, counted, listed, one_of, suggestion
from ..outputs.documents import json_value
from ..outputs.layer_statistics import LayerStatistics
from ..outputs.results import open_results
from ..quantization import Quantization
from ..statistics.squares import ChannelSquares
from .codes import Codes
from .distortion import Bound, Distortion, distortion, unclipped_bound
from .distribution import Distribution, extrema, why_unknown
from .entropy import entropy_range
from .least_squares import least_squares_range
from .percentile import PERCENTILE, percentile_range

Float64Array = npt.NDArray[np.float64]
MINMAX = "minmax"
METHODS = (MINMAX, "percentile", "mse", "entropy")


@dataclass(frozen=True)
class Range:
    """The range from `low` to `high`, in real units, which `method` chose; it includes zero.

    `distortion` is the expected error, None without a histogram of these values. `bound` is what is certain of the
    error. Both are None without values.
    """

    low: float
    high: float
    method: str
    distortion: Distortion | None
    bound: Bound | None = None


@dataclass(frozen=True)
class LayerRange:
    """The ranges of a layer in `codes`, by one method: one for all channels or, if `per_channel`, one for each.

    `unknown` says why only the bounds of the errors are known, if so.

    >>> found = ss.find_ranges("out", "minmax")["fc"]
    >>> found.low, found.high, found.quantization.zero_point
    (array(0.), array(12.), array(0))
    """

    layer: str
    codes: Codes
    per_channel: bool
    ranges: tuple[Range, ...]
    unknown: str | None = None

    def __repr__(self) -> str:
        """The ends, or the least and the greatest of all channels."""
        each = f"{counted(len(self.ranges), 'channel')} within " if self.per_channel else ""
        ends = f"{min(found.low for found in self.ranges):.6g} to {max(found.high for found in self.ranges):.6g}"
        return f"<LayerRange of {self.layer}: {each}{ends}, by {self.method}; {self.codes.bits} bits>"

    @property
    def method(self) -> str:
        """The method that chose them."""
        return self.ranges[0].method

    @property
    def low(self) -> Float64Array:
        """float64, a scalar or, if `per_channel`, [C]: the lower ends, in real units, none above zero."""
        return self._shaped([each.low for each in self.ranges])

    @property
    def high(self) -> Float64Array:
        """float64, a scalar or, if `per_channel`, [C]: the upper ends, in real units, none below zero."""
        return self._shaped([each.high for each in self.ranges])

    def _shaped(self, values: Sequence[float]) -> Float64Array:
        return np.asarray(values if self.per_channel else values[0], np.float64)

    @cached_property
    def quantization(self) -> Quantization:
        """The steps and zero points, as `Codes.quantization` finds them: scalars or, if `per_channel`, [C]."""
        return self.codes.quantization(self.low, self.high)

    def document(self) -> dict[str, Any]:
        """JSON-ready: lists if `per_channel`; None for unknown figures, and for an infinite SQNR."""
        known, certain = [each.distortion for each in self.ranges], [each.bound for each in self.ranges]
        figures: dict[str, list[Any]] = {
            "low": [each.low for each in self.ranges],
            "high": [each.high for each in self.ranges],
            "mean_squared_error": [each and each.mean_squared_error for each in known],
            "rms_error_within": [each and each.within for each in known],
            "mean_square": [each and each.mean_square for each in known],
            "sqnr_db": [each and json_value(each.sqnr) for each in known],
            "mean_squared_error_at_most": [each and each.mean_squared_error for each in certain],
            "sqnr_db_at_least": [each and json_value(each.sqnr) for each in certain],
        }
        return {
            "method": self.method,
            "bits": self.codes.bits,
            "symmetric": self.codes.symmetric,
            "signed": self.codes.signed,
            "codes": [self.codes.lowest, self.codes.highest],
            "per_channel": self.per_channel,
            **self.quantization.to_metadata(),
            **{name: column if self.per_channel else column[0] for name, column in figures.items()},
            "unknown": self.unknown,
        }

    def rows(self) -> list[list[Any]]:
        """[low, high, step, zero point, mean squared error, SQNR in dB] of each range.

        Of errors that are not known, the bounds: "≤ …" and "≥ …"; NaN if nothing is known.
        """
        maps = zip(np.atleast_1d(self.quantization.step), np.atleast_1d(self.quantization.zero_point), strict=True)
        return [
            [found.low, found.high, float(step), int(zero_point), *_errors(found)]
            for found, (step, zero_point) in zip(self.ranges, maps, strict=True)
        ]


def _errors(found: Range) -> tuple[Any, Any]:
    if found.distortion:
        return found.distortion.mean_squared_error, found.distortion.sqnr
    if found.bound is None:
        return math.nan, math.nan
    least = found.bound.sqnr
    return f"≤ {found.bound.mean_squared_error:.6g}", math.nan if math.isnan(least) else f"≥ {least:.6g}"


def find_ranges(
    output: str | Path,
    method: str = "mse",
    bits: int = 8,
    *,
    symmetric: bool = False,
    signed: bool | None = None,
    per_channel: bool = False,
    percentile: float = PERCENTILE,
    layers: str = "*",
) -> dict[str, LayerRange]:
    """The ranges of the layers of `output` whose names match the glob `layers`, by name, without reading the data.

    `method` is "minmax" (the extrema), "percentile", "mse" (the least mean squared error) or "entropy" (the least
    divergence, as TensorRT defines it). Every method except "minmax" needs `statistics: [histogram]` in the
    configuration of the run. `bits` (2 to 16), `symmetric` and `signed` choose the codes, as `Codes` explains.
    `per_channel` gives each channel its own range: with "minmax" for all layers, with other methods for layers of 8-bit
    values and of a single channel. `percentile`, in %, is for the method of that name.

    Raises `UsageError`, with the reason, if the request cannot be met; `DataError` for damaged files.

    >>> found = ss.find_ranges("out", "minmax", bits=4, per_channel=True)["fc"]
    >>> found.high, found.quantization.step
    (array([ 7., 12.]), array([0.46666667, 0.8       ]))
    """
    codes = Codes(bits, symmetric, signed)
    chosen = matching_layers(output, layers)
    return {
        name: layer_ranges(found, [method], codes, per_channel=per_channel, percentile=percentile)[0]
        for name, found in chosen.items()
    }


def matching_layers(output: str | Path, glob: str) -> dict[str, LayerStatistics]:
    """The statistics of the layers of `output` whose names match `glob`. Raises `UsageError` if there is none."""
    results = open_results(output)
    names = [name for name in results.layers if fnmatchcase(name, glob)]
    if not names:
        has = f"{listed(results.layers)}{suggestion(glob, results.layers)}"
        raise UsageError(f"{output} has no layer that matches {glob!r}; it has {has}")
    return {name: results.statistics(name) for name in names}


def check_method(method: str) -> None:
    """Raise `UsageError` if `method` is unknown."""
    if method not in METHODS:
        raise UsageError(f"the method is {method!r}; {one_of(method, METHODS)}")


def layer_ranges(
    statistics: LayerStatistics,
    methods: Sequence[str],
    codes: Codes,
    *,
    per_channel: bool = False,
    percentile: float = PERCENTILE,
) -> list[LayerRange]:
    """The ranges of one layer, or of each of its channels, by each method. Raises `UsageError` as `find_ranges`."""
    for method in methods:
        check_method(method)
    needed = [method for method in methods if method != MINMAX]
    unknown = why_unknown(statistics, by_channel=per_channel and statistics.channels > 1)
    if needed and unknown:
        raise UsageError(f"layer {statistics.layer}: {', '.join(needed)}: {unknown.reason}; {unknown.remedy}")
    if per_channel and not statistics.channels:
        raise UsageError(f"layer {statistics.layer} has no channels; expected at least one for ranges per channel")
    channels: Sequence[int | None] = range(statistics.channels) if per_channel and statistics.channels > 1 else [None]
    ranges = [_ranges(statistics, channel, methods, codes, percentile) for channel in channels]
    reason = unknown and unknown.reason
    return [LayerRange(statistics.layer, codes, per_channel, each, reason) for each in zip(*ranges, strict=True)]


def _ranges(
    statistics: LayerStatistics, channel: int | None, methods: Sequence[str], codes: Codes, percentile: float
) -> list[Range]:
    """The range of a layer, or of one of its channels, by each method."""
    if why_unknown(statistics, by_channel=channel is not None):
        low, high = codes.widened(*extrema(statistics, channel))
        bound = _bound(statistics, channel, codes.quantization(low, high))
        return [Range(float(low), float(high), method, None, bound) for method in methods]
    values = Distribution.of(statistics, channel)
    return [_range(values, method, codes, percentile) for method in methods]


def _bound(statistics: LayerStatistics, channel: int | None, quantization: Quantization) -> Bound | None:
    """What is certain of the error of a range from the least to the greatest value; None without values."""
    chosen = slice(None) if channel is None else slice(channel, channel + 1)
    counts = statistics.sums.count[chosen]
    if not counts.sum():
        return None
    if ChannelSquares.name not in statistics.statistics:
        return unclipped_bound(quantization, None)
    squares = np.where(counts, statistics.rms[chosen], 0.0) ** 2
    return unclipped_bound(quantization, float(squares @ counts / counts.sum()))


def _range(values: Distribution, method: str, codes: Codes, percentile: float) -> Range:
    ends = _ends(values, method, codes, percentile) if values.total else (0.0, 0.0)
    low, high = codes.widened(*ends)
    found = distortion(values, codes, codes.quantization(low, high))
    return Range(float(low), float(high), method, found, found.bound if found else None)


def _ends(values: Distribution, method: str, codes: Codes, percentile: float) -> tuple[float, float]:
    if method == "percentile":
        return percentile_range(values, codes, percentile)
    if method == "mse":
        return least_squares_range(values, codes)
    if method == "entropy":
        return entropy_range(values, codes)
    return float(values.low[0]), float(values.high[-1])
