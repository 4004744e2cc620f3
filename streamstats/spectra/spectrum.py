"""LayerSpectrum: the spectra of a layer's groups, from the exact sums of products that a run has counted.

They are those of the covariance E[xxᵀ] − E[x]E[x]ᵀ or, where that is not known, of the second moments E[xxᵀ].
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import UsageError, counted
from ..layouts import Kernel
from ..outputs.layer_statistics import LayerStatistics
from .group import Duplicate, GroupSpectrum

COVARIANCE, SECOND_MOMENTS = "covariance", "second moments"


@dataclass(frozen=True)
class Columns:
    """What the columns of a group are: `channels` of the group, with the `taps` of the kernel for each."""

    channels: int
    taps: tuple[int, ...]

    def place(self, group: int, column: int) -> tuple[int, tuple[int, ...]]:
        """(input channel of the layer, tap) of a column of a group."""
        channel, tap = divmod(column, prod(self.taps))
        return group * self.channels + channel, tuple(int(each) for each in np.unravel_index(tap, self.taps))

    def name(self, group: int, column: int) -> str:
        """The column in words.

        >>> Columns(8, (3, 3)).name(2, 10), Columns(8, ()).name(0, 5)
        ('channel 17 tap (0, 1)', 'channel 5')
        """
        channel, tap = self.place(group, column)
        return f"channel {channel}" + (f" tap {tap}" if prod(self.taps) > 1 else "")

    def names(self, group: int, columns: Iterable[int]) -> list[str]:
        """The `columns`, ascending, in words: a channel whose taps are all among them has one entry.

        >>> Columns(2, (2,)).names(0, [1, 2, 3])
        ['channel 0 tap (1,)', 'channel 1']
        """
        names: list[str] = []
        for _, members in groupby(columns, key=lambda column: column // prod(self.taps)):
            each = [*members]
            whole = len(each) == prod(self.taps)
            channel = self.place(group, each[0])[0]
            names += [f"channel {channel}"] if whole else [self.name(group, column) for column in each]
        return names

    def document(self, group: int, column: int) -> dict[str, Any]:
        """JSON-ready."""
        channel, tap = self.place(group, column)
        return {"channel": channel, "tap": [*tap]}


@dataclass(frozen=True, eq=False)
class LayerSpectrum:
    """The spectra of the `groups` of a `layer`, worst first: those that lack most of their rank, then by condition.

    `LayerSpectrum.of` computes it from statistics that have `gram`; `streamstats gram` shows it. The spectra are those
    of the `matrix` that is named; `reason` says why it is not the covariance, if so. `positions` are the rows of the
    layer's input, as its kernel reads it, over which it is a mean. `columns` say what the columns of the matrix are.

    >>> found = ss.LayerSpectrum.of(ss.reduce("calibration.zarr", statistics=["gram"])["fc"])
    >>> found
    <LayerSpectrum of fc: covariance over 4 positions; 1 group>
    >>> worst = found.groups[0]
    >>> worst.eigenvalues.round(2), round(worst.condition), found.dead(worst), found.duplicates(worst)
    (array([18.68,  0.32]), 58, [], [])
    """

    layer: str
    matrix: str
    reason: str | None
    positions: int
    columns: Columns
    groups: tuple[GroupSpectrum, ...]

    def __repr__(self) -> str:
        amount = f"{self.matrix} over {counted(self.positions, 'position')}; {counted(len(self.groups), 'group')}"
        return f"<LayerSpectrum of {self.layer}: {amount}>"

    @classmethod
    def of(cls, statistics: LayerStatistics) -> LayerSpectrum:
        """The spectrum of a layer. Raises `UsageError` if `gram` was not counted, or no position was."""
        matrices, matrix, reason = _moments(statistics)
        groups = [GroupSpectrum.of(each, group) for group, each in enumerate(matrices)]
        return cls(
            statistics.layer,
            matrix,
            reason,
            statistics.gram.rows,
            _columns(statistics, matrices),
            tuple(sorted(groups, key=_badness)),
        )

    def dead(self, group: GroupSpectrum) -> list[str]:
        """The dead columns of a group, in words."""
        return self.columns.names(group.group, group.dead)

    def duplicates(self, group: GroupSpectrum) -> list[str]:
        """The duplicate columns of a group, in words: "channel 5 of channel 1, negated"."""
        return [self._in_words(group.group, each) for each in group.duplicates]

    def _in_words(self, group: int, duplicate: Duplicate) -> str:
        negated = "" if duplicate.sign > 0 else ", negated"
        return f"{self.columns.name(group, duplicate.column)} of {self.columns.name(group, duplicate.of)}{negated}"

    def document(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "layer": self.layer,
            "matrix": self.matrix,
            "reason": self.reason,
            "positions": self.positions,
            "taps": [*self.columns.taps],
            "groups": [self._group_document(each) for each in self.groups],
        }

    def _group_document(self, group: GroupSpectrum) -> dict[str, Any]:
        def column(number: int) -> dict[str, Any]:
            return self.columns.document(group.group, number)

        duplicates = [{**column(each.column), "of": column(each.of), "sign": each.sign} for each in group.duplicates]
        return {**group.figures(), "dead": [*map(column, group.dead)], "duplicates": duplicates}


def size_of_matrices(statistics: LayerStatistics) -> tuple[int, int]:
    """(groups, columns of each): what the eigenvalues of a layer cost grows with groups · columns³."""
    kernel = statistics.space.kernel
    groups, taps = (kernel.groups, prod(kernel.taps)) if isinstance(kernel, Kernel) else (1, 1)
    return groups, statistics.channels // groups * taps


def _moments(statistics: LayerStatistics) -> tuple[npt.NDArray[np.float64], str, str | None]:
    """(float64[G, n, n], what it is, why it is not the covariance)."""
    gram = statistics.gram
    if not gram.rows:
        raise UsageError(f"layer {statistics.layer} has no position that counts; check its rows and its mask")
    try:
        return gram.covariance(statistics.quantization), COVARIANCE, None
    except UsageError as error:
        reason = str(error).partition(";")[0]
    try:
        return gram.matrix(statistics.quantization) / gram.rows, SECOND_MOMENTS, reason
    except UsageError as error:
        raise UsageError(f"layer {statistics.layer}: {error}") from error


def _columns(statistics: LayerStatistics, matrices: npt.NDArray[np.float64]) -> Columns:
    kernel = statistics.space.kernel
    return Columns(statistics.channels // len(matrices), kernel.taps if isinstance(kernel, Kernel) else ())


def _badness(found: GroupSpectrum) -> tuple[float, float, int]:
    """Ascending, the worst first; groups that are equally bad in order."""
    return found.rank / max(1, found.columns), -found.condition if found.live else 0.0, found.group
