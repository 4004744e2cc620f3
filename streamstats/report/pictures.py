"""Pictures of results: channels within their extrema, histograms with ranges, and accuracies side by side.

A picture shows the statistics that it is given and computes none. The same input and the same matplotlib give the same
bytes. `drawing` has what they share.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from rich.cells import cell_len

from ..errors import UsageError, counted, require
from ..outputs.layer_statistics import LayerStatistics
from ..ranges.distribution import Distribution
from ..ranges.finding import LayerRange
from .drawing import (
    BAND_BLUE,
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    check_text_size,
    draw_title,
    drawing,
    picture_on,
    shortened,
    terminal_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Values = npt.NDArray[np.float64]

BAR = 40
"""The length of the bar of accuracy 1, in characters."""
FLAT = 1e-8
"""Values closer than this, relative to their size, are drawn as equal: tick labels could not distinguish them."""
MOST = 1000
"""If there are more channels than this, they share columns in a file: thinner ones would fade between the pixels."""
FEW = 256
"""Bars of a histogram, and how many values may have a line each instead."""
MANY = 200
"""If there are more columns than this, the line is thin."""
MEAN, MEANS, BAND = "mean", "range of means", "minimum to maximum"
NO_VALUES = "no channel has a finite value"


# What terminals and files share


def _subtitle(statistics: LayerStatistics) -> str:
    """The rows and channels of the picture, and how many channels it leaves out."""
    left_out = int(np.isnan(statistics.mean).sum())
    subtitle = f"{counted(statistics.rows, 'row')}, {counted(statistics.channels, 'channel')}"
    return f"{subtitle}, {left_out} without finite values left out" if left_out else subtitle


def _limits(statistics: LayerStatistics) -> tuple[float, float]:
    """The least and the greatest value to show, never equal, even if all values are.

    Raises `UsageError` if they are so far apart that their difference overflows float64.
    """
    low, high = float(np.nanmin(statistics.minimum)), float(np.nanmax(statistics.maximum))
    size = max(abs(low), abs(high))
    if size > np.finfo(np.float64).max / 4:
        raise UsageError(
            f"layer {statistics.layer}: its values reach from {low:g} to {high:g}, too far apart to plot; "
            "check that the store holds activations"
        )
    if high - low > FLAT * size and size > np.finfo(np.float64).tiny / FLAT:
        return low, high
    margin = 0.1 * size if size > np.finfo(np.float64).tiny / FLAT else 1.0
    return low - margin, high + margin


def _ticks(low: float, high: float, most: int) -> Values:
    """At most `most` + 1 round numbers (1, 2 or 5 times a power of ten apart) from `low` to `high`."""
    least = (high - low) / most
    power = 10.0 ** math.floor(math.log10(least))
    step = next(step for step in (power, 2 * power, 5 * power, 10 * power) if step >= least * (1 - FLAT))
    multiples = np.arange(math.ceil(low / step), math.floor(high / step) + 1)
    return np.asarray(multiples * step, np.float64)


def _value_ticks(statistics: LayerStatistics) -> tuple[Values, list[str]]:
    """Round values within the limits, and their labels."""
    values = _ticks(*_limits(statistics), most=5)
    return values, [f"{value:.10g}" for value in values]


def _channel_ticks(channels: int, most: int) -> npt.NDArray[np.int64]:
    """Round channel numbers, at most `most` + 1, at least channel 0."""
    ticks = _ticks(0, max(channels - 1, 1), most)
    return np.unique(ticks[ticks < channels].astype(np.int64))


def _binned(statistics: LayerStatistics, starts: npt.NDArray[np.int64]) -> tuple[Values, Values, Values, Values]:
    """Least minimum, least mean, greatest mean, greatest maximum of the channels from each of `starts` to the next.

    The same start twice shows its channel twice. NaN where no channel of a bin has a finite value.
    """
    return (
        np.fmin.reduceat(statistics.minimum, starts),
        np.fmin.reduceat(statistics.mean, starts),
        np.fmax.reduceat(statistics.mean, starts),
        np.fmax.reduceat(statistics.maximum, starts),
    )


# For a terminal


def plot_channels_text(statistics: LayerStatistics, width: int = 80, height: int = 20, color: bool = True) -> str:
    """The mean, minimum and maximum of every channel in at most `height` lines of at most `width` characters.

    A column of the plot shows one channel, or several if there are too many: the range of their means within the least
    minimum and the greatest maximum. Channels without finite values are left out; the title says how many. If `color`
    is false, the text has no escape codes.

    Raises `UsageError` for less than 40 × 12 characters and for values too far apart, `MissingDependencyError`.
    """
    check_text_size(width, height)
    if np.isnan(statistics.mean).all():
        return "\n".join([*_title_lines(statistics, statistics.channels, width)[:-1], NO_VALUES])
    values, labels = _value_ticks(statistics)
    columns = width - max(map(len, labels)) - 1  # the y axis is one column wide
    title = _title_lines(statistics, columns, width)
    with terminal_figure(width, height - len(title)) as figure:
        _draw_columns(figure, statistics, columns)
        figure.ruler("y").ticks(values.tolist(), labels)
        lines = figure.build().string(colorless=not color).split("\n")
    return "\n".join([*title, *(line.rstrip() for line in lines[: height - len(title)])])


def _title_lines(statistics: LayerStatistics, columns: int, width: int) -> list[str]:
    binned = statistics.channels > columns
    subtitle = _subtitle(statistics)
    if binned:
        least, rest = divmod(statistics.channels, columns)
        subtitle += f", {least} to {least + 1} per column" if rest else f", {least} per column"
    key = f"█ {MEANS if binned else MEAN}  ░ {BAND}"
    return [shortened(statistics.layer, width), *wrap(subtitle, width), key]


def _draw_columns(figure: Any, statistics: LayerStatistics, columns: int) -> None:
    channels = statistics.channels
    figure.theme("colorless").axes(False, side=1)
    figure.label("channel", "x").label("value", "y")
    figure.ruler("y").lim(*_limits(statistics))
    figure.ruler("x").lim(0, columns - 1)
    ticks = _channel_ticks(channels, most=columns // 10)
    figure.ruler("x").ticks(((2 * ticks + 1) * columns // (2 * channels)).tolist(), [str(tick) for tick in ticks])
    least, lower, upper, greatest = _binned(statistics, np.arange(columns) * channels // columns)
    _draw_stems(figure, least, greatest, "░", "blue+")
    _draw_stems(figure, lower, upper, "█", "orange")


def _draw_stems(figure: Any, lower: Values, upper: Values, character: str, foreground: str) -> None:
    """In column i of the canvas, `character` from lower[i] to upper[i]; nothing for NaN."""
    there = np.flatnonzero(~np.isnan(lower))
    marker = require("plotext", "plot").marker(character, foreground)
    foot, top = (figure.signal(there.tolist(), end[there].tolist(), marker=marker) for end in (lower, upper))
    figure.draw(foot.fill(top))


def plot_accuracies_text(rows: Sequence[tuple[str, float]]) -> str:
    """A line for each (network, accuracy from 0 to 1): its name, a bar, the accuracy. Raises `UsageError`."""
    _check_accuracies(rows)
    widest = max(cell_len(name) for name, _ in rows)
    return "\n".join(
        f"{name}{' ' * (widest - cell_len(name))}  {_bar(accuracy):{BAR}}  {accuracy:6.1%}" for name, accuracy in rows
    )


def _bar(accuracy: float) -> str:
    """`accuracy` in blocks, to an eighth of a character."""
    whole, eighths = divmod(round(accuracy * BAR * 8), 8)
    return "█" * whole + " ▏▎▍▌▋▊▉"[eighths].strip()


def _check_accuracies(rows: Sequence[tuple[str, float]]) -> None:
    if not rows:
        raise UsageError("there are no accuracies to plot; expected at least one (network, accuracy)")
    for name, accuracy in rows:
        if not 0 <= accuracy <= 1:
            raise UsageError(f"the accuracy of {name} is {accuracy}; expected a number from 0 to 1")


# As a file


def plot_channels(statistics: LayerStatistics, path: Path) -> None:
    """Write the mean of every channel within its minimum and maximum to `path`, a PNG or SVG by its suffix.

    Channels without finite values are gaps; the subtitle says how many.

    Raises `UsageError` for another suffix and for values too far apart, `OutputError`, `MissingDependencyError`.
    """
    together = math.ceil(statistics.channels / MOST)
    subtitle = _subtitle(statistics) + (f", {together} per column" if together > 1 else "")
    with drawing(path, size=(10, 5)) as axes:
        draw_title(axes, statistics.layer, subtitle)
        axes.set_xlabel("channel")
        axes.set_ylabel("value")
        axes.set_xlim(-0.5, max(statistics.channels, 1) - 0.5)
        axes.set_xticks(_channel_ticks(statistics.channels, most=10))
        if np.isnan(statistics.mean).all():
            _draw_nothing(axes)
        else:
            _draw_channels(axes, statistics, together)


def _draw_nothing(axes: Axes) -> None:
    axes.set_yticks([])
    axes.text(0.5, 0.5, NO_VALUES, transform=axes.transAxes, ha="center", backgroundcolor="white")


def _draw_channels(axes: Axes, statistics: LayerStatistics, together: int) -> None:
    low, high = _limits(statistics)
    margin = 0.04 * (high - low)
    axes.set_ylim(low - margin, high + margin)
    axes.set_yticks(*_value_ticks(statistics))
    starts = np.arange(0, statistics.channels, together)
    edges = np.append(starts, statistics.channels) - 0.5
    least, lower, upper, greatest = _binned(statistics, starts)
    axes.stairs(greatest, edges, baseline=least, fill=True, color=BAND_BLUE, lw=0, label=BAND, gid="band")
    thick = 1.8 if len(starts) <= MANY else 1.0
    mean = MEAN if together == 1 else MEANS
    axes.stairs(lower, edges, baseline=None, color=BLUE, lw=thick, label=mean, gid="mean")
    if together > 1:
        axes.stairs(upper, edges, baseline=lower, fill=True, color=BLUE, lw=0, gid="means")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, borderpad=0, reverse=True)


def plot_ranges(values: Distribution, found: Sequence[LayerRange], path: Path) -> None:
    """Write the histogram of `values`, with the range that each of `found` gives the layer, to `path`, a PNG or SVG.

    The counts have a logarithmic axis. Raises `UsageError` for another suffix, `OutputError`, `MissingDependencyError`.
    """
    codes = found[0].codes
    kind = "symmetric" if codes.symmetric else "affine"
    with drawing(path, size=(10, 5)) as axes:
        draw_title(axes, found[0].layer, f"{values.total:,} values; {kind} codes of {codes.bits} bits")
        axes.set_xlabel("value")
        axes.set_ylabel("count")
        if values.total:
            _draw_histogram(axes, values)
        else:
            _draw_nothing(axes)
        for each, color in zip(found, (ORANGE, INK, GREEN, PURPLE), strict=False):
            (chosen,) = each.ranges
            axes.axvline(chosen.low, color=color, lw=1.6, label=each.method, gid=f"low-{each.method}")
            axes.axvline(chosen.high, color=color, lw=1.6, gid=f"high-{each.method}")
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(found), frameon=False, borderpad=0)


def _draw_histogram(axes: Axes, values: Distribution) -> None:
    """A line for each value if there are few, else bars of equal width."""
    low, high = float(values.low[0]), float(values.high[-1])
    if (values.is_exact and len(values.count) <= FEW) or not low < high:
        axes.vlines(values.low, 0.5, values.count, color=BLUE, lw=1.8, gid="values")
    else:
        edges = np.linspace(low, high, FEW + 1)
        axes.stairs(values.counted_between(edges), edges, baseline=0.5, fill=True, color=BLUE, lw=0, gid="values")
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.5)


def plot_accuracies(rows: Sequence[tuple[str, float]], path: Path, title: str) -> None:
    """Write a bar for each (network, accuracy from 0 to 1) to `path`, a PNG or SVG by its suffix.

    Raises `UsageError` for another suffix, no rows, or an accuracy out of range, `OutputError`,
    `MissingDependencyError`.
    """
    _check_accuracies(rows)
    with drawing(path, size=(max(6.0, 1.5 * len(rows)), 4.5)) as axes:
        draw_title(axes, title)
        _draw_bars(axes, rows)
        axes.set_ylim(0, 1.1)
        axes.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1], [f"{share}%" for share in range(0, 101, 20)])
        axes.set_ylabel("accuracy")
        axes.grid(False, axis="x")


def _draw_bars(axes: Axes, rows: Sequence[tuple[str, float]]) -> None:
    places = range(len(rows))
    colors = [(GREY, ORANGE, BLUE)[min(place, 2)] for place in places]  # the float, the rounded, the corrected ones
    bars = axes.bar(places, [accuracy for _, accuracy in rows], width=0.6, color=colors)
    for place, bar in enumerate(bars):
        bar.set_gid(f"bar{place}")
    paper = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    figures = [f"{accuracy:.1%}" for _, accuracy in rows]
    axes.bar_label(bars, figures, padding=4, fontweight="bold", bbox=paper)
    axes.set_xticks(places, [name for name, _ in rows], parse_math=False)


def _model_colors(models: Sequence[str]) -> list[str]:
    """Orange for the first, blue for the last, grey for those between."""
    return [ORANGE, *[GREY] * (len(models) - 2), BLUE] if len(models) > 1 else [ORANGE]


def plot_shifts(shifts: Mapping[str, Values]) -> str:
    """An SVG with the shift of every output channel of a layer, float64[C], by model."""
    with picture_on((7, 2.6)) as (axes, picture):
        for (model, values), color in zip(shifts.items(), _model_colors(list(shifts)), strict=True):
            edges = np.arange(len(values) + 1) - 0.5
            axes.stairs(values, edges, baseline=None, color=color, lw=1.2, label=model)
        axes.axhline(0, color=GREY, lw=0.8)
        axes.set_xlabel("output channel")
        axes.set_ylabel("mean shift")
        axes.set_xlim(-0.5, max(len(each) for each in shifts.values()) - 0.5)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(shifts), frameon=False, borderpad=0)
    return picture.getvalue()
