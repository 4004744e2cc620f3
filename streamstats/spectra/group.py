"""GroupSpectrum: the eigenvalues of one matrix of second moments, and its dead and duplicate columns.

The entries of the matrix are the float64 nearest to exact values; what is computed from them is float64 arithmetic.
Eigenvalues of an n × n matrix are known to about n·2⁻⁵² of the greatest: those below that count as zero. Correlations
are known to `ROUNDING`: those that are ±1 within it cannot be told from ±1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import UsageError, counted

Float64Array = npt.NDArray[np.float64]

EPSILON = float(np.finfo(np.float64).eps)
ROUNDING = 4 * EPSILON
"""How far a correlation may be from its exact value: three entries, two roots and two quotients are each rounded, to
half of EPSILON at most; the roots halve what two of the entries add. That is 3.0 EPSILON, and terms of higher order."""


@dataclass(frozen=True)
class Duplicate:
    """A `column` whose correlation with the earlier column `of` is `sign`, 1 or -1, as far as float64 tells."""

    column: int
    of: int
    sign: int


@dataclass(frozen=True, eq=False)
class GroupSpectrum:
    """What `matrix`, float64[n, n], symmetric, says of the columns of a `group`.

    `eigenvalues` float64[n] descend; those that cannot be told from zero are zero. `dead` columns have a diagonal of
    zero, which is exact. Each of the `duplicates` has the numbers of its `column` and of the earlier one, `of`, and the
    `sign` of their correlation.

    >>> found = ss.GroupSpectrum.of(np.array([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]))
    >>> found
    <GroupSpectrum of group 0: 3 columns, rank 1, condition inf, 1 dead, 1 duplicate>
    >>> found.eigenvalues, found.duplicates
    (array([2., 0., 0.]), (Duplicate(column=1, of=0, sign=-1),))
    """

    group: int
    matrix: Float64Array
    eigenvalues: Float64Array
    dead: tuple[int, ...]
    duplicates: tuple[Duplicate, ...]

    @classmethod
    def of(cls, matrix: Float64Array, group: int = 0) -> GroupSpectrum:
        """The spectrum of a matrix of second moments. Raises `UsageError` for entries beyond float64."""
        if not np.isfinite(matrix).all():
            raise UsageError("a sum of products is beyond float64; check the scale of the layer's quantisation")
        dead = np.flatnonzero(np.diagonal(matrix) == 0)
        return cls(group, matrix, _eigenvalues(matrix), tuple(dead.tolist()), _duplicates(correlations(matrix)))

    def __repr__(self) -> str:
        figures = f"{counted(self.columns, 'column')}, rank {self.rank}, condition {self.condition:.6g}"
        also = f"{len(self.dead)} dead, {counted(len(self.duplicates), 'duplicate')}"
        return f"<GroupSpectrum of group {self.group}: {figures}, {also}>"

    @property
    def columns(self) -> int:
        """The number of columns, n."""
        return len(self.matrix)

    @property
    def rank(self) -> int:
        """The number of eigenvalues that can be told from zero."""
        return int(np.count_nonzero(self.eigenvalues))

    @property
    def live(self) -> int:
        """The number of columns that are not dead."""
        return self.columns - len(self.dead)

    @property
    def least(self) -> float:
        """The least eigenvalue but for those of dead columns; 0 if all are dead."""
        return float(self.eigenvalues[self.live - 1]) if self.live else 0.0

    @property
    def condition(self) -> float:
        """The condition of the columns that are not dead: the greatest eigenvalue divided by
        the least; infinite if the least cannot be told from zero; NaN if all columns are dead.
        """
        if not self.live:
            return np.nan
        return float(self.eigenvalues[0]) / self.least if self.least else np.inf

    @property
    def condition_at_least(self) -> float:
        """What is certain of the condition: 1 / (n·2⁻⁵²) if the least eigenvalue cannot be told from zero."""
        return min(self.condition, 1 / (self.columns * EPSILON))

    @cached_property
    def effective_rank(self) -> float:
        """The exponential of the entropy of the eigenvalues as shares of their sum (Roy and Vetterli 2007).

        n if all are equal, 1 if one has all; 0 for a matrix of zeros.

        >>> round(ss.GroupSpectrum.of(np.eye(3)).effective_rank, 12)
        3.0
        """
        values = self.eigenvalues[: self.rank]
        if not len(values):
            return 0.0
        shares = values / values.sum()
        return float(np.exp(-(shares * np.log(shares)).sum()))

    def directions(self, share: float) -> int:
        """How many of the greatest eigenvalues hold this `share` of the sum of all.

        >>> ss.GroupSpectrum.of(np.diag([1.0, 8.0, 1.0])).directions(0.85)
        2
        """
        if not self.rank:
            return 0
        sums = np.cumsum(self.eigenvalues)
        return int(np.searchsorted(sums, share * sums[-1]) + 1)

    def figures(self) -> dict[str, Any]:
        """JSON-ready: numbers for the group; `condition` is None if it is infinite or unknown."""
        return {
            "group": self.group,
            "columns": self.columns,
            "rank": self.rank,
            "effective_rank": self.effective_rank,
            "condition": self.condition if np.isfinite(self.condition) else None,
            "condition_at_least": self.condition_at_least if self.live else None,
            "eigenvalues": self.eigenvalues.tolist(),
        }


def correlations(matrix: Float64Array) -> Float64Array:
    """float64[n, n]: each entry divided by the roots of its two diagonal entries; 0 for dead columns."""
    diagonal = np.diagonal(matrix)
    roots = np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    found: Float64Array = matrix / roots
    found /= roots[:, np.newaxis]
    return found


def _eigenvalues(matrix: Float64Array) -> Float64Array:
    found = np.linalg.eigvalsh(matrix)[::-1]
    known = found > len(matrix) * EPSILON * found[:1]
    return np.where(known, found, 0.0)


def _duplicates(found: Float64Array) -> tuple[Duplicate, ...]:
    """Each column that duplicates an earlier one, with the first that it duplicates."""
    alike = np.tril(np.abs(found) >= 1 - ROUNDING, -1)
    columns = np.flatnonzero(alike.any(axis=1))
    firsts = alike[columns].argmax(axis=1)
    signs = np.sign(found[columns, firsts]).astype(int)
    return tuple(map(Duplicate, columns.tolist(), firsts.tolist(), signs.tolist()))
