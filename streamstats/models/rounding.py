"""Rounding weights by the second moments of their inputs: the errors of later columns undo those of earlier ones.

With weights W [outputs, n], rounded weights Ŵ, and the moments H = E[xxᵀ] of the inputs [n, n], the mean squared error
of the outputs is the sum over outputs of e·H·eᵀ, where e is a row of W − Ŵ. Columns are rounded one after the other,
the one with the largest moment first, and each is first moved to where it best undoes what the columns before it left:
GPTQ (Frantar et al., arXiv 2210.17323). There, the inverse of H is factored. Here, H itself is, with the same result:
if H = R·Rᵀ and R is upper triangular, the error is the sum of the squares of e·R, and entry k of e·R depends on the
first k columns alone; it is least where column k is rounded from w_k + Σ_{j<k} e_j·R_jk / R_kk. Afterwards, each column
is rounded again, given all others, which can only reduce the error. Needs numpy alone.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]

DAMPING = 0.01
"""What is added to the diagonal of H, as a share of its mean, unless told otherwise."""
BLOCK = 128
"""So many columns are rounded before what they left goes into all others, by one product of matrices."""
SWEEPS = 3
"""How often each column is rounded again, at most: more gains less than 0.01 dB."""


class Codes(NamedTuple):
    """The values that a weight can have: integers from `lowest` to `highest` times `step`; each float64[outputs, 1]."""

    step: Float64Array
    lowest: Float64Array
    highest: Float64Array

    def nearest(self, weights: Float64Array) -> Float64Array:
        """The code nearest to each of `weights` [outputs, columns], as float64."""
        return np.clip(np.rint(weights / self.step), self.lowest, self.highest)

    def change(self, weights: Float64Array, codes: Float64Array) -> Float64Array:
        """What `codes` leave of `weights`."""
        return weights - codes * self.step


def rounded_codes(weights: Float64Array, codes: Codes, moments: Float64Array, damping: float = DAMPING) -> Float64Array:
    """The codes, as float64[outputs, n], of `weights` [outputs, n] for inputs with these `moments` [n, n].

    `damping` times the mean of its diagonal is added to the diagonal of `moments`, which must be positive definite
    then. No output has a larger error, by these moments, than if it were rounded to nearest, as inputs that are always
    zero are. Raises `numpy.linalg.LinAlgError` for moments that are not those of real numbers.
    """
    nearest = codes.nearest(weights)
    moments = damped(moments, damping)
    if not np.trace(moments) > 0:
        return nearest
    order = np.argsort(-np.diag(moments), kind="stable")
    among, found = moments[np.ix_(order, order)], np.empty_like(weights)
    found[:, order] = _settled(weights[:, order], codes, among, _compensated(weights[:, order], codes, among))
    errors = (squared_errors(codes.change(weights, each), moments) for each in (nearest, found))
    better: Float64Array = np.where(np.less(*errors)[:, None], nearest, found)
    return better


def damped(moments: Float64Array, damping: float) -> Float64Array:
    """`moments` with `damping` times the mean of their diagonal added to it."""
    more: Float64Array = damping * np.trace(moments) / len(moments) * np.eye(len(moments))
    return moments + more


def squared_errors(change: Float64Array, moments: Float64Array) -> Float64Array:
    """e·H·eᵀ for each row e of `change` [outputs, n]: float64[outputs]."""
    each: Float64Array = np.einsum("on,on->o", change @ moments, change)
    return each


def _compensated(weights: Float64Array, codes: Codes, moments: Float64Array) -> Float64Array:
    """The codes of columns that are rounded in order, each once."""
    factor = np.linalg.cholesky(moments[::-1, ::-1])[::-1, ::-1]
    passed_on = np.triu(factor / np.diag(factor), 1)
    found, change = np.empty_like(weights), np.zeros_like(weights)
    for start in range(0, weights.shape[1], BLOCK):
        here = slice(start, start + BLOCK)
        wanted = weights[:, here] + change[:, :start] @ passed_on[:start, here]
        for column in range(start, start + wanted.shape[1]):
            nearby = slice(start, column)
            target = wanted[:, column - start, None] + change[:, nearby] @ passed_on[nearby, column, None]
            found[:, column, None] = codes.nearest(target)
            change[:, column, None] = codes.change(weights[:, column, None], found[:, column, None])
    return found


def _settled(weights: Float64Array, codes: Codes, moments: Float64Array, found: Float64Array) -> Float64Array:
    """`found`, each code replaced by the best one given all others, until none is replaced or `SWEEPS` are done."""
    found, pull = found.copy(), codes.change(weights, found) @ moments
    for _ in range(SWEEPS):
        before = found.copy()
        for start in range(0, weights.shape[1], BLOCK):
            here = slice(start, start + BLOCK)
            better = _improved(codes, moments[here, here], found[:, here], pull[:, here])
            pull += (found[:, here] - better) * codes.step @ moments[here]
            found[:, here] = better
        if (before == found).all():
            break
    return found


def _improved(codes: Codes, moments: Float64Array, found: Float64Array, pull: Float64Array) -> Float64Array:
    """The codes of a block, each the best one given those before it here and all others; `pull` is e·H there."""
    better, pull = found.copy(), pull.copy()
    for column in range(found.shape[1]):
        old = found[:, column, None]
        new = codes.nearest(old * codes.step + pull[:, column, None] / moments[column, column])
        pull += (old - new) * codes.step * moments[column]
        better[:, column, None] = new
    return better
