"""Quantising by brute force, over the values themselves, and outputs of real runs to compare it with."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from stores import build_store

from streamstats.config import JobConfig
from streamstats.jobs.run import run

Values = npt.NDArray[np.float64]


def output_of(
    folder: Path,
    layers: Mapping[str, npt.NDArray[Any]],
    *,
    statistics: tuple[str, ...] = ("histogram",),
    attributes: Mapping[str, Any] | None = None,
    **options: Any,
) -> Path:
    """The output of a run over `layers`, name → samples, written as a store."""
    for name, values in layers.items():
        options_of = {"chunks": (7, *values.shape[1:]), "config": {"write_empty_chunks": True}}
        build_store(folder / "s.zarr", {name: values}, attributes=attributes, **options_of)
    job = {"source": str(folder / "s.zarr"), "output": str(folder / "out"), "statistics": [*statistics], **options}
    run(JobConfig.model_validate(job).job())
    return folder / "out"


def grid(low: float, high: float, bits: int, symmetric: bool) -> Values:
    """Every real value that has a code, for the range `low` to `high`, which includes zero."""
    if symmetric:
        most = 2 ** (bits - 1) - 1
        return np.arange(-most, most + 1) * (max(-low, high) / most or 1.0)
    step = (high - low) / (2**bits - 1) or 1.0
    zero_point = round(-low / step)
    return (np.arange(2**bits) - zero_point) * step


def mean_squared_error(values: Values, codes: Values) -> float:
    """The mean squared distance of each value to the nearest of `codes`, ascending."""
    place = np.clip(np.searchsorted(codes, values), 1, len(codes) - 1)
    distance = np.minimum(np.abs(values - codes[place - 1]), np.abs(values - codes[place]))
    return float((distance**2).mean())


def candidates(values: Values, symmetric: bool) -> Iterator[tuple[float, float]]:
    """The candidate ranges of the method mse, as its documentation lists them."""
    factors = [2.0 ** (-k / 16) for k in range(257)]
    low, high = min(values.min(), 0.0), max(values.max(), 0.0)
    if symmetric:
        yield from ((-max(-low, high) * factor, max(-low, high) * factor) for factor in factors)
        return
    for left in [*factors, 0.0] if low < 0 else [0.0]:
        yield from ((low * left, high * right) for right in ([*factors, 0.0] if high > 0 else [0.0]))


def percentile_of(values: Values, percentile: float) -> float:
    """The value at place ⌈p·n⌉ of the sorted values."""
    return float(np.sort(values)[math.ceil(Fraction(str(percentile)) / 100 * len(values)) - 1])


def divergence(magnitudes: Values, extent: float, kept: int, levels: int, bins: int = 2048) -> float:
    """KL(P‖Q) as the slides have it, number by number; `magnitudes` are above zero."""
    place = np.ceil(magnitudes / (extent / bins) * (1 - 1e-9)).astype(int) - 1
    counts = np.bincount(place, minlength=bins)
    p, q = [float(count) for count in counts[:kept]], [0.0] * kept
    p[-1] += float(sum(counts[kept:]))
    for level in range(levels):
        members = [j for j in range(kept) if j * levels // kept == level and p[j]]
        for j in members:
            q[j] = sum(float(counts[i]) for i in members) / len(members)
    if any(mine and not theirs for mine, theirs in zip(p, q, strict=True)):
        return math.inf
    return sum(
        mine / sum(p) * math.log(mine / sum(p) / (theirs / sum(q))) for mine, theirs in zip(p, q, strict=True) if mine
    )
