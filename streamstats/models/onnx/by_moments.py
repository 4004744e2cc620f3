"""Rounding and scaling the weights of ONNX layers by the second moments of their inputs, from a run's output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ...errors import UsageError, one_of, to_count
from ...layouts import TRANSPOSED, matrix_places
from ...outputs.results import Results, open_results
from ...statistics.gram import Gram
from ..moments import InputMoments
from ..rounding import Codes, rounded_codes, squared_errors
from .layers import OnnxLayer

Array = npt.NDArray[Any]
Float64Array = npt.NDArray[np.float64]

NEAREST, GRAM = "nearest", "gram"
ROUNDINGS = (NEAREST, GRAM)
"""How weights are rounded: each to the nearest level, or together, by the second moments of their inputs."""
NOT_SCALED = (
    ", not scaled: the variance of its outputs is unknown without the mean under each tap; count it with "
    "`statistics: [gram, taps]`"
)


class Rounded(NamedTuple):
    """A weight on its levels, the distance between these as float64[outputs], and how it was rounded, in words."""

    weight: Array
    step: Float64Array
    how: str = ""


@dataclass(frozen=True)
class ByMoments:
    """How to use the second moments in `output`, what a run over the float model's activations left.

    `rounding` is one of `ROUNDINGS`. `scale` multiplies the step of each output channel so that the variance of the
    outputs is that of the float layer. Raises `UsageError` for another `rounding`.
    """

    output: str | Path
    rounding: str = GRAM
    scale: bool = False

    def __post_init__(self) -> None:
        if self.rounding not in ROUNDINGS:
            raise UsageError(f"rounding is {self.rounding!r}; {one_of(self.rounding, ROUNDINGS)}")

    def opened(self, layers: Sequence[OnnxLayer]) -> Results:
        """The results. Raises `UsageError` if none of `layers` was counted with `gram`."""
        results = open_results(self.output)
        known = [layer.name for layer in layers if layer.name in results.layers]
        if not any(Gram.name in results.statistics(name).statistics for name in known):
            raise UsageError(
                f"{self.output} has second moments of no layer of the model; {to_count(Gram.name)}, or "
                "leave out --rounding gram and --scale"
            )
        return results

    def applied(
        self, results: Results, alike: Sequence[OnnxLayer], nearest: Rounded, codes: Sequence[Array]
    ) -> Rounded:
        """The one weight of the layers `alike`, by their moments together; without these, `nearest` and the reason.

        `codes` are the step, the lowest and the highest code of each element of the weight.
        """
        try:
            moments = [_moments(results, layer) for layer in alike]
            return _Weight(alike[0], codes).rounded(moments, self)
        except np.linalg.LinAlgError:
            reason = "its second moments are not positive definite"
        except UsageError as error:
            reason = str(error)
        return nearest._replace(how=f"rounded to nearest{', not scaled' if self.scale else ''}: {reason}")


def _moments(results: Results, layer: OnnxLayer) -> InputMoments:
    """Those of the inputs of `layer`. Raises `UsageError` with the reason why there are none."""
    if layer.layout in TRANSPOSED:
        raise UsageError("second moments of a transposed convolution are not counted")
    if layer.name not in results.layers:
        raise UsageError("the run did not count its input")
    found = InputMoments.of(results.statistics(layer.name))
    if found is None:
        raise UsageError(f"its second moments were not counted; {to_count(Gram.name)}")
    places = matrix_places(layer.weight.shape, layer.layout, layer.groups)
    expected = (len(places), *places.shape[2:] * 2)
    if found.matrices.shape != expected:
        raise UsageError(
            f"its second moments have the shape {list(found.matrices.shape)}, its weight needs {list(expected)}: its "
            f"kernel was unknown, as where rows are positions; record samples as rows, and count it again"
        )
    return found


class _Weight:
    """The weight of a layer as one matrix for each group, and the codes of its outputs."""

    def __init__(self, layer: OnnxLayer, codes: Sequence[Array]) -> None:
        self.layer, self.places = layer, matrix_places(layer.weight.shape, layer.layout, layer.groups)
        self.weights = self._matrices(layer.weight.astype(np.float64))
        self.codes = [self._matrices(each)[..., :1] for each in codes]

    def _matrices(self, values: Array) -> Array:
        found: Array = values.reshape(-1)[self.places]
        return found

    def rounded(self, moments: Sequence[InputMoments], how: ByMoments) -> Rounded:
        """The weight on its levels. Raises `UsageError` for one that overflows, `LinAlgError`."""
        found, words = self._rounded(_summed([each.shrunk() for each in moments], moments), how.rounding)
        step = self.codes[0]
        if how.scale and not all(each.central for each in moments):
            words += NOT_SCALED
        elif how.scale:
            step = step * self._factors(found * step, _summed([each.matrices for each in moments], moments))
            words += ", scaled to the variance of the outputs"
        return Rounded(self._in_layout(found * step), step.reshape(-1), words)

    def _rounded(self, among: Float64Array, rounding: str) -> tuple[Float64Array, str]:
        """(the codes of each group, how they were found)."""
        groups = [Codes(*each) for each in zip(*self.codes, strict=True)]
        nearest = np.stack([codes.nearest(each) for codes, each in zip(groups, self.weights, strict=True)])
        if rounding == NEAREST:
            return nearest, "rounded to nearest"
        found = np.stack([rounded_codes(*each) for each in zip(self.weights, groups, among, strict=True)])
        return found, self._told(nearest, found, among)

    def _told(self, nearest: Float64Array, found: Float64Array, among: Float64Array) -> str:
        """By how much the error of the outputs is smaller than with weights rounded to nearest."""
        before, after = (self._error(codes * self.codes[0], among) for codes in (nearest, found))
        gain = f", error {10 * np.log10(after / before):+.1f} dB" if before and after else ""
        return f"rounded by second moments{gain}"

    def _error(self, real: Float64Array, among: Float64Array) -> float:
        each = zip(self.weights - real, among, strict=True)
        return float(sum(squared_errors(change, moments).sum() for change, moments in each))

    def _factors(self, real: Float64Array, covariances: Float64Array) -> Float64Array:
        """√(variance with the float weight / variance with `real`) of each output, 1 if one is zero."""
        wanted, given = (
            np.stack([squared_errors(*group) for group in zip(each, covariances, strict=True)])
            for each in (self.weights, real)
        )
        known = (wanted > 0) & (given > 0)
        return np.sqrt(np.where(known, wanted, 1.0) / np.where(known, given, 1.0))[..., None]

    def _in_layout(self, real: Float64Array) -> Array:
        """`real`, matrices of groups, in the layout and dtype of the layer. Raises `UsageError` for an overflow."""
        found = np.empty(self.layer.weight.size, np.float64)
        found[self.places] = real
        with np.errstate(over="ignore"):
            weight = found.reshape(self.layer.weight.shape).astype(self.layer.weight.dtype)
        if not np.isfinite(weight).all():
            raise UsageError(f"its rounded weights overflow {weight.dtype}")
        return weight


def _summed(matrices: Sequence[Float64Array], moments: Sequence[InputMoments]) -> Float64Array:
    """The sum of `matrices`, which are means, over the rows of `moments`; their mean, for one layer."""
    rows = sum(each.rows for each in moments)
    weighted = [found * (each.rows / rows) for found, each in zip(matrices, moments, strict=True)]
    return reduce(np.add, weighted)
