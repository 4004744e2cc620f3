"""Drawing: what all pictures share: colours and look, figures for files, pages and terminals, titles.

matplotlib and plotext are optional: a function here imports the one it draws with, and raises `MissingDependencyError`
without it. Both have settings for the whole process, so draw from one thread at a time.
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len

from ..errors import UsageError, require
from ..storage.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SMALLEST_TEXT = (40, 12)
"""The smallest width and height of a terminal plot, in characters."""
TITLE_LINE = r".{0,79}(?:[/ ]|.$)|.{80}"
"""A line of a title: at most 80 characters, broken at the end of a part if possible."""

BLUE, BAND_BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#B5D6EA", "#D55E00", "#009E73", "#CC79A7"
GREY, INK, FAINT = "#7F7F7F", "#333333", "#DDDDDD"
"""Colours that colour-blind readers can distinguish (Okabe and Ito), and greys."""

LOOK = {
    "figure.dpi": 150,
    "figure.constrained_layout.w_pad": 0.12,
    "figure.constrained_layout.h_pad": 0.12,
    "savefig.dpi": 150,
    "font.size": 11,
    "text.color": INK,
    "axes.titlesize": 13,
    "axes.titleweight": "bold",
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "svg.fonttype": "none",  # text that can be searched
    "svg.hashsalt": "streamstats",  # without it, ids are random
}
ON_A_PAGE = {INK: "--ink", GREY: "--faint", FAINT: "--line", ORANGE: "--before", BLUE: "--after"}
"""The variables of a page's style that stand for our colours, so that pictures follow its scheme, light or dark."""
METADATA: dict[str, dict[str, Any]] = {"png": {"Software": None}, "svg": {"Date": None}}
"""For each format, the metadata to leave out because it differs from day to day or from place to place."""


# For a terminal


def check_text_size(width: int, height: int) -> None:
    """Raise `UsageError` for a terminal plot that is too small."""
    if width < SMALLEST_TEXT[0] or height < SMALLEST_TEXT[1]:
        raise UsageError(
            f"a plot of {width} × {height} characters is too small; "
            f"expected at least {SMALLEST_TEXT[0]} × {SMALLEST_TEXT[1]}"
        )


def shortened(text: str, width: int) -> str:
    """`text`, or … and its end, which distinguishes layers, in at most `width` columns of a terminal."""
    if cell_len(text) <= width:
        return text
    while cell_len(text) > width - 1:
        text = text[1:]
    return "…" + text


@contextlib.contextmanager
def terminal_figure(width: int, height: int) -> Iterator[Any]:
    """plotext's only figure, empty before and after, of this size whatever the size of the terminal."""
    plotext = require("plotext", "plot")
    plotext.terminal.limit(False, False)
    try:
        yield plotext.figure.clear().plot_size(width, height)
    finally:
        plotext.terminal.limit()
        plotext.figure.clear()


# As a file, or a part of a page


@contextlib.contextmanager
def picture_on(size: tuple[float, float]) -> Iterator[tuple[Axes, io.StringIO]]:
    """Axes to draw on, `size` in inches, and a text that holds the SVG element afterwards, in the colours of a page."""
    text, content = io.StringIO(), io.BytesIO()
    with new_figure(size) as figure:
        yield figure.add_subplot(), text
        figure.savefig(content, format="svg", metadata=METADATA["svg"], transparent=True)
    svg = content.getvalue().decode()
    for color, variable in ON_A_PAGE.items():
        svg = svg.replace(color.lower(), f"var({variable}, {color})")
    text.write(svg[svg.index("<svg") :])


@contextlib.contextmanager
def drawing(path: Path, size: tuple[float, float]) -> Iterator[Axes]:
    """Axes to draw on, `size` in inches; written to `path` afterwards, unless drawing raises."""
    with figure_in(path, size) as figure:
        yield figure.add_subplot()


def picture_kind(path: Path) -> str:
    """The format of the picture `path`, by its suffix. Raises `UsageError` if it is none that can be written."""
    kind = path.suffix.lower().removeprefix(".")
    if kind not in METADATA:
        raise UsageError(f"{path} has the suffix {path.suffix!r}; expected '.png' or '.svg'")
    return kind


@contextlib.contextmanager
def figure_in(path: Path, size: tuple[float, float]) -> Iterator[Figure]:
    """A figure without axes, `size` in inches; written to `path` afterwards, unless drawing raises."""
    kind = picture_kind(path)
    content = io.BytesIO()
    with new_figure(size) as figure:
        yield figure
        figure.savefig(content, format=kind, metadata=METADATA[kind])
    write_bytes(path, content.getvalue())


@contextlib.contextmanager
def new_figure(size: tuple[float, float]) -> Iterator[Figure]:
    """A new figure, `size` in inches, in our look."""
    style = require("matplotlib.style", "plot")
    with style.context(["default", LOOK]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)  # a name in another script
        yield require("matplotlib.figure", "plot").Figure(figsize=size, layout="constrained")


def draw_title(axes: Axes, title: str, subtitle: str = "") -> None:
    """Put the title, in as many lines as it needs, and the subtitle above the left end of the axes."""
    axes.set_title("\n".join(re.findall(TITLE_LINE, title)), loc="left", pad=26 if subtitle else 12, parse_math=False)
    axes.annotate(subtitle, (0, 1), (0, 8), "axes fraction", "offset points", color=INK, parse_math=False)
