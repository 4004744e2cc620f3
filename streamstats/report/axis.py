"""An axis: the places of values and ticks in per cent of its length, by which a page draws dots as elements of HTML."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MOST_TICKS = 6
SMALLEST, LARGEST = sys.float_info.min, sys.float_info.max
"""Of the normal floats."""


@dataclass(frozen=True)
class Axis:
    """From `low` to `high`, or, `logarithmic`, from 10^low to 10^high; `ticks` are (place in per cent, label)."""

    low: float
    high: float
    logarithmic: bool
    ticks: Sequence[tuple[float, str]]

    @classmethod
    def over(cls, values: Iterable[float], *, logarithmic: bool = False) -> Axis:
        """An axis with round ends for all of `values` that have a place on it.

        A logarithmic axis without a positive value is a linear one.

        >>> Axis.over([3, 17]).ticks
        [(0.0, '0'), (25.0, '5'), (50.0, '10'), (75.0, '15'), (100.0, '20')]
        >>> Axis.over([0.002, 0.5], logarithmic=True).ticks
        [(0.0, '0.001'), (33.333, '0.01'), (66.667, '0.1'), (100.0, '1')]
        """
        finite = [value for value in values if math.isfinite(value)]
        positive = [math.log10(value) for value in finite if value > 0] if logarithmic else []
        scaled = positive or finite or [0.0]
        step = _step(min(scaled), max(scaled), whole=bool(positive))
        first, last = math.floor(min(scaled) / step), math.ceil(max(scaled) / step)
        last = max(last, first + 1)
        marks = [min(max(number * step, -LARGEST), LARGEST) for number in range(first, last + 1)]
        shown = [(_share(mark, marks[0], marks[-1]), _label(mark, power=bool(positive))) for mark in marks]
        return cls(marks[0], marks[-1], bool(positive), shown)

    def place(self, value: float) -> float | None:
        """The place of `value`; None if it has none: it is not finite, or not positive on a logarithmic axis."""
        if not math.isfinite(value) or (self.logarithmic and value <= 0):
            return None
        return _share(math.log10(value) if self.logarithmic else value, self.low, self.high)


def _step(low: float, high: float, *, whole: bool) -> float:
    """The least round number by which there are few ticks from `low` to `high`: 1, 2 or 5 times a power of ten, `whole`
    or not.
    """
    least = high / (MOST_TICKS - 2) - low / (MOST_TICKS - 2)  # each divided, because the difference may overflow
    power = 10.0 ** math.floor(math.log10(least)) if least >= SMALLEST else 1.0
    step = next((factor * power for factor in (1, 2, 5) if factor * power >= least), 10 * power)
    return max(step, 1.0) if whole else step


def _share(value: float, low: float, high: float) -> float:
    return round(100 * ((value / 2 - low / 2) / (high / 2 - low / 2)), 3)  # halves, because differences may overflow


def _label(mark: float, *, power: bool) -> str:
    """`mark`, or the `power` of ten, which may lie beyond the floats."""
    if power:
        return f"{10.0**mark:.6g}" if abs(mark) < 300 else f"1e{mark:+.0f}"
    return f"{mark:.6g}"
