"""Rounding weights by the second moments of their inputs: rounding errors of later columns undo those of earlier ones.

With weights W [outputs, n], rounded weights Ŵ, and the moments H = E[xxᵀ] of the inputs [n, n], the mean squared error
of the outputs is the sum over outputs of e·H·eᵀ, where e is a row of W − Ŵ. Columns are rounded one after the other,
the one with the largest moment first, and each is first moved to where it best undoes what the columns before it left:
GPTQ (Frantar et al., arXiv 2210.17323). There, the inverse of H is factored; here, H itself is, which is the same
without an inverse: with H = R·Rᵀ, R upper triangular, the error is the sum of the squares of e·R, and its entry k
depends on the first k columns alone, so it is least where column k is rounded from w_k + Σ_{j<k} e_j·R_jk / R_kk. Then
each column is rounded again, given all others, as long as that makes the error smaller. Needs numpy alone.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]

DAMPING = 0.01
"""What is added to the diagonal of H, as a share of its mean: inputs that were not seen vary a little more."""
BLOCK = 128
"""So many columns are rounded before what they left goes into all others, by one product of matrices."""
SWEEPS = 8
"""How often each column is rounded again, at most."""


class Codes(NamedTuple):
    """The values that a weight can have: integers from `lowest` to `highest` times `step`; each float64[outputs, 1]."""

    step: Float64Array
    lowest: Float64Array
    highest: Float64Array

    def nearest(self, weights: Float64Array) -> Float64Array:
        """The code nearest to each of `weights` [outputs, columns], as float64."""
        return np.clip(np.rint(weights / self.step), self.lowest, self.highest)


def squared_errors(change: Float64Array, moments: Float64Array) -> Float64Array:
    """e·H·eᵀ for each row e of `change` [outputs, n]: float64[outputs]."""
    return np.einsum("on,on->o", change @ moments, change)


def damped(moments: Float64Array, damping: float) -> Float64Array:
    """`moments` with `damping` times the mean of their diagonal added to it."""
    return moments + damping * np.trace(moments) / len(moments) * np.eye(len(moments))


def rounded_codes(weights: Float64Array, codes: Codes, moments: Float64Array) -> Float64Array:
    """The codes, as float64[outputs, n], of `weights` [outputs, n], for inputs of the positive definite `moments`."""
    order = np.argsort(-np.diag(moments), kind="stable")
    ordered, among = weights[:, order], moments[np.ix_(order, order)]
    found = np.empty_like(weights)
    found[:, order] = _settled(ordered, codes, among, _compensated(ordered, codes, among))
    return found


def _compensated(weights: Float64Array, codes: Codes, moments: Float64Array) -> Float64Array:
    """Codes of columns that are rounded in order, each once."""
    factor = np.linalg.cholesky(moments[::-1, ::-1])[::-1, ::-1]
    passed_on = np.triu(factor / np.diag(factor), 1)
    found, change = np.empty_like(weights), np.zeros_like(weights)
    for start in range(0, weights.shape[1], BLOCK):
        here = slice(start, start + BLOCK)
        wanted = weights[:, here] + change[:, :start] @ passed_on[:start, here]
        _one_by_one(wanted, weights[:, here], codes, passed_on[here, here], found[:, here], change[:, here])
    return found


def _one_by_one(
    wanted: Float64Array,
    weights: Float64Array,
    codes: Codes,
    passed_on: Float64Array,
    found: Float64Array,
    change: Float64Array,
) -> None:
    """Fill in the codes `found` and the `change` of each column of a block, from what is `wanted` of it."""
    for column in range(wanted.shape[1]):
        target = wanted[:, column, None] + change[:, :column] @ passed_on[:column, column, None]
        found[:, column, None] = codes.nearest(target)
        change[:, column] = weights[:, column] - found[:, column] * codes.step[:, 0]


def _settled(weights: Float64Array, codes: Codes, moments: Float64Array, found: Float64Array) -> Float64Array:
    """Codes `found`, each replaced by the best one given all others, until none is replaced or `SWEEPS` are done."""
    found = found.copy()
    pull = (weights - found * codes.step) @ moments
    for _ in range(SWEEPS):
        before = found.copy()
        for start in range(0, weights.shape[1], BLOCK):
            here = slice(start, start + BLOCK)
            moved = _improved(weights[:, here], codes, moments[here, here], found[:, here], pull[:, here].copy())
            pull += moved @ moments[here]
        if (before == found).all():
            break
    return found


def _improved(
    weights: Float64Array, codes: Codes, moments: Float64Array, found: Float64Array, pull: Float64Array
) -> Float64Array:
    """Replace the codes `found` of a block in place; how much each change of a weight has grown, in real units."""
    before = found.copy()
    for column in range(weights.shape[1]):
        target = found[:, column, None] * codes.step + pull[:, column, None] / moments[column, column]
        better = codes.nearest(target)
        moved = (found[:, column, None] - better) * codes.step
        found[:, column, None] = better
        pull += moved * moments[column]
    return (before - found) * codes.step
