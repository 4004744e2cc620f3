"""Pictures of a spectrum: the eigenvalues of a layer's groups, and the correlations of the worst group's columns.

An image of correlations has a bounded number of cells. If there are more columns, they share cells, and a cell shows
the correlation of the greatest magnitude, so that a pair of duplicate columns stays visible. The diagonal is left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..errors import counted, require
from ..spectra.group import GroupSpectrum, correlations
from ..spectra.spectrum import COVARIANCE, LayerSpectrum
from .drawing import BLUE, FAINT, check_text_size, draw_title, figure_in, shortened, terminal_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Values = npt.NDArray[np.float64]

CELLS = 256
"""Cells of the image in a file, along each axis, at most."""
TEXT_CELLS = 16
"""Cells of the image in a terminal, along each axis, at most; each has two characters."""
SHADES = " ·░▒▓█"
"""Characters for correlations of magnitudes 0 to 1."""
FEW = 64
"""Eigenvalues that have a dot each."""
OTHERS = 200
"""Groups beside the worst whose eigenvalues are drawn at most."""
ALL_ZERO = "every eigenvalue is zero"


def plot_spectrum(found: LayerSpectrum, path: Path) -> None:
    """Write the eigenvalues of the worst group, those of others behind it, and its correlations, to a PNG or SVG.

    Raises `UsageError` for another suffix, `OutputError`, `MissingDependencyError`.
    """
    worst = found.groups[0]
    with figure_in(path, (12, 5.5)) as figure:
        left, right = figure.subplots(1, 2)
        draw_title(left, found.layer, _subtitle(found))
        _draw_eigenvalues(left, worst, found.groups[1 : OTHERS + 1])
        left.set_ylabel(f"eigenvalue of the {found.matrix}")
        cells, together = _cells(correlations(worst.matrix), CELLS)
        draw_title(right, _of_columns(found), _sharing(worst.columns, together))
        end = len(cells) * together - 0.5
        colors = {"cmap": "RdBu_r", "vmin": -1, "vmax": 1}
        shown = right.imshow(cells, extent=(-0.5, end, end, -0.5), interpolation="nearest", **colors)
        shown.set_gid("correlations")
        figure.colorbar(shown, ax=right, shrink=0.8)
        right.grid(False)
        right.set_xlabel("column")
        for axis in (left.xaxis, right.xaxis, right.yaxis):
            axis.get_major_locator().set_params(integer=True)


def _draw_eigenvalues(axes: Axes, worst: GroupSpectrum, others: Sequence[GroupSpectrum]) -> None:
    """Eigenvalues on a logarithmic axis; those that are zero have no place on it."""
    axes.set_xlabel("number of the eigenvalue")
    axes.set_xlim(-0.5, max(worst.columns, 1) - 0.5)
    for each in others:
        axes.plot(each.eigenvalues[: each.rank], color=FAINT, lw=1, zorder=1)
    if not worst.rank:
        axes.text(0.5, 0.5, ALL_ZERO, transform=axes.transAxes, ha="center", backgroundcolor="white")
        return
    shown = worst.eigenvalues[: worst.rank]
    axes.plot(shown, color=BLUE, lw=1.8, zorder=2, gid="eigenvalues")
    if worst.rank <= FEW:
        axes.plot(shown, "o", color=BLUE, ms=3, zorder=2)
    axes.set_yscale("log")


def plot_spectrum_text(found: LayerSpectrum, width: int = 80, height: int = 32, color: bool = True) -> str:
    """The spectrum of the worst group, and below it the magnitudes of the correlations, for a terminal.

    Raises `UsageError` for less than 40 × 12 characters, `MissingDependencyError`.
    """
    check_text_size(width, height)
    worst = found.groups[0]
    what = f"eigenvalues of the {found.matrix}; {_subtitle(found)}"
    title = [shortened(found.layer, width), *wrap(what, width)]
    image = _image_lines(found, worst)
    rows = max(height - len(title) - len(image), 8)
    return "\n".join([*title, *_spectrum_lines(worst, width, rows, color), *image])


def _spectrum_lines(worst: GroupSpectrum, width: int, height: int, color: bool) -> list[str]:
    if not worst.rank:
        return [ALL_ZERO]
    heights = np.log10(worst.eigenvalues[: worst.rank])
    low, high = math.floor(heights[-1]), max(math.ceil(heights[0]), math.floor(heights[-1]) + 1)
    places = np.unique(np.linspace(low, high, min(high - low, 4) + 1).round().astype(int)).tolist()
    labels = [f"1e{place}" for place in places]
    columns = width - max(map(len, labels)) - 1  # the y axis is one column wide
    starts = np.arange(columns) * worst.columns // columns
    tops = heights[starts[starts < worst.rank]]
    with terminal_figure(width, height) as figure:
        figure.theme("colorless").axes(False, side=1)
        figure.label("number of the eigenvalue", "x")
        figure.ruler("y").lim(low, high).ticks(places, labels)
        ticks = np.unique(np.linspace(0, worst.columns - 1, min(worst.columns, 5)).astype(int))
        shown = [int((2 * tick + 1) * columns // (2 * worst.columns)) for tick in ticks]
        figure.ruler("x").lim(0, columns - 1).ticks(shown, [str(tick) for tick in ticks])
        marker = require("plotext", "plot").marker("█", "blue+")
        foot = figure.signal(list(range(len(tops))), [low] * len(tops), marker=marker)
        top = figure.signal(list(range(len(tops))), tops.tolist(), marker=marker)
        figure.draw(foot.fill(top))
        lines: list[str] = figure.build().string(colorless=not color).split("\n")
    return [line.rstrip() for line in lines[:height]]


def _image_lines(found: LayerSpectrum, worst: GroupSpectrum) -> list[str]:
    cells, together = _cells(correlations(worst.matrix), TEXT_CELLS)
    shades = np.minimum(np.abs(cells) * len(SHADES), len(SHADES) - 1).astype(int)
    key = " ".join(f"{SHADES[place]!r} {place / len(SHADES):.2g}" for place in range(1, len(SHADES)))
    heading = f"magnitudes of the {_of_columns(found)}"
    lines = ["".join(SHADES[shade] * 2 for shade in row) for row in shades.tolist()]
    more = _sharing(worst.columns, together)
    edge = "─" * 2 * len(lines)
    return [
        f"{heading}; {more}" if more else heading,
        f"from {key}",
        f"┌{edge}┐",
        *(f"│{line}│" for line in lines),
        f"└{edge}┘",
    ]


def _subtitle(found: LayerSpectrum) -> str:
    worst, several = found.groups[0], len(found.groups) > 1
    group = f"group {worst.group}, the worst of {len(found.groups):,}; " if several else ""
    return f"{group}rank {worst.rank:,} of {worst.columns:,}, {counted(found.positions, 'position')}"


def _of_columns(found: LayerSpectrum) -> str:
    return "correlations" if found.matrix == COVARIANCE else "correlations about zero"


def _sharing(columns: int, together: int) -> str:
    return f"{columns:,} columns, {together} per cell: the greatest" if together > 1 else ""


def _cells(found: Values, most: int) -> tuple[Values, int]:
    """(`found` without its diagonal, in at most `most` cells along each axis; how many columns share a cell)."""
    found = found.copy()
    np.fill_diagonal(found, 0)
    together = max(1, math.ceil(len(found) / most))
    if together == 1:
        return found, 1
    starts = np.arange(0, len(found), together)
    highest = np.maximum.reduceat(np.maximum.reduceat(found, starts, axis=0), starts, axis=1)
    lowest = np.minimum.reduceat(np.minimum.reduceat(found, starts, axis=0), starts, axis=1)
    return np.where(highest >= -lowest, highest, lowest), together
