"""How the samples of a run lie in a tensor of the model: found by running samples alone and together, never guessed.

The axis of the samples is the one whose extent grows in proportion to their number. Where it holds several values of
each sample, such as the tokens behind a Reshape(-1, C), the values of the samples alone tell which belong to which. A
model of a fixed batch runs one batch twice, the second time in reverse order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import UsageError
from .run import ModelRun
from .samples import Array

OUTER, INNER, MIDDLE, ORDERLESS = "outer", "inner", "middle", "orderless"
NEAR, FARTHER = 0.02, 10.0
"""Values agree if they differ by this share of their norm, and other arrangements by so many times more."""


@dataclass(frozen=True)
class Arrangement:
    """Where the samples are in a tensor: on `axis`; without one, the whole tensor is one sample.

    If the axis also holds positions, `fold` says whether the samples are the OUTER or the INNER of the two, or in the
    MIDDLE, behind `before` positions. In an ORDERLESS tensor, every position is of one sample, but it is not known of
    which.
    """

    axis: int | None = None
    fold: str = ""
    before: int = 1

    def samples_first(self, value: Array, number: int) -> Array | None:
        """`value`, of `number` samples, with their axis in front; None if they do not lie so."""
        if self.fold == ORDERLESS:
            return None
        if self.axis is None:
            return value[np.newaxis] if number == 1 else None
        extent = value.shape[self.axis] if value.ndim > self.axis else 0
        positions = extent // number
        if extent != positions * number or (not self.fold and positions != 1):
            return None
        if not self.fold:
            return np.moveaxis(value, self.axis, 0)
        if positions % self.before:
            return None
        inside = positions // self.before
        split = {OUTER: (number, positions), INNER: (positions, number), MIDDLE: (self.before, number, inside)}
        parts = value.reshape(*value.shape[: self.axis], *split[self.fold], *value.shape[self.axis + 1 :])
        return np.moveaxis(parts, self.axis + (self.fold != OUTER), 0)


FIRST = Arrangement(0)
"""Samples on axis 0, one beside the other."""


@dataclass(frozen=True)
class Unarranged:
    """Why the samples cannot be told apart in a tensor, for the end of a sentence about it."""

    reason: str


Arranged = Arrangement | Unarranged
Channels = Mapping[str, int | None]
"""Tensor → its axis of channels, on which no samples are; None if it has none."""


def arrangements(run: ModelRun, tensors: Channels) -> dict[str, tuple[Arranged, Array]]:
    """Tensor → (how samples lie in it, its value for the first of them). Raises `UsageError` if the model fails."""
    rows = run.first
    if run.fixed is not None and run.fixed > 1:
        return _by_order(run, tensors, run.fixed)
    if rows.stop - rows.start > 1:
        try:
            return _by_number(run, tensors, rows)
        except UsageError:
            if run.batch != 1:
                raise
    first = run.outputs(list(tensors), slice(rows.start, rows.start + 1))
    return {name: (Arrangement(0 if value.shape[:1] == (1,) else None), value) for name, value in first.items()}


def positions(value: Array, axis: int) -> Array:
    """Every position of `value`, channels on `axis`: [positions, C]."""
    return np.moveaxis(value, axis, -1).reshape(-1, value.shape[axis])


# By the number of samples


def _by_number(run: ModelRun, tensors: Channels, pair: slice) -> dict[str, tuple[Arranged, Array]]:
    middle = pair.start + 1
    one, other, both = (
        run.outputs(list(tensors), rows) for rows in (slice(pair.start, middle), slice(middle, pair.stop), pair)
    )
    return {name: (_arranged(one[name], other[name], both[name], axis), one[name]) for name, axis in tensors.items()}


def _arranged(one: Array, other: Array, both: Array, channels: int | None) -> Arranged:
    """How samples lie in a tensor that is `one` and `other` for one sample each, and `both` for the two together."""
    shape = f"has the shape {one.shape} for one sample and {both.shape} for two"
    if not one.ndim == other.ndim == both.ndim:
        return Unarranged(f"{shape}; expected as many axes")
    taken = None if channels is None or not one.ndim else channels % one.ndim
    grown = [axis for axis in range(one.ndim) if one.shape[axis] != both.shape[axis]]
    if one.shape == other.shape and len(grown) == 1 and both.shape[grown[0]] == 2 * one.shape[grown[0]]:
        axis = grown[0]
        found = Arrangement(axis) if one.shape[axis] == 1 else _folded(one, other, both, axis)
        if found is not None and axis != taken:
            return found
    if not grown and one.size:
        return Unarranged(f"{shape}: it does not depend on the samples, or mixes them")
    if taken in grown or not _adds_up(one, other, both, taken):
        return Unarranged(f"{shape}, and not the values of each alone: it mixes samples")
    return Arrangement(fold=ORDERLESS)


def _folded(one: Array, other: Array, both: Array, axis: int) -> Arrangement | None:
    """The arrangement in which `both` is `one` and `other`, if that is one alone."""
    ends = [Arrangement(axis, fold) for fold in (OUTER, INNER)]
    return _alone(ends, one, other, both) or _alone(_middles(axis, one.shape[axis]), one, other, both)


def _alone(candidates: Sequence[Arrangement], one: Array, other: Array, both: Array) -> Arrangement | None:
    """The one of the `candidates` in which `both` is `one` and `other`, and is not in any other."""
    found = []
    for each in candidates:
        parts = [each.samples_first(values, number) for values, number in ((one, 1), (other, 1), (both, 2))]
        if parts[0] is not None and parts[1] is not None and parts[2] is not None:
            found.append((_apart(np.concatenate([parts[0], parts[1]]), parts[2]), each))
    found.sort(key=lambda pair: pair[0])
    if not found or found[0][0] > NEAR or (len(found) > 1 and found[1][0] <= FARTHER * found[0][0]):
        return None
    return found[0][1]


def _middles(axis: int, positions: int) -> list[Arrangement]:
    return [Arrangement(axis, MIDDLE, before) for before in range(2, positions) if positions % before == 0]


def _adds_up(one: Array, other: Array, both: Array, channels: int | None) -> bool:
    """Whether the positions of `both` are as many as those of the others, with the same sums per channel."""
    parts = [positions(each, channels) if channels is not None else each.reshape(-1, 1) for each in (one, other, both)]
    if len(parts[0]) + len(parts[1]) != len(parts[2]):
        return False
    sums = [np.nan_to_num(each.astype("f8"), posinf=0.0, neginf=0.0).sum(axis=0) for each in parts]
    size = np.abs(np.nan_to_num(parts[2].astype("f8"), posinf=0.0, neginf=0.0)).sum(axis=0)
    return bool((np.abs(sums[0] + sums[1] - sums[2]) <= NEAR * size).all())


def _apart(mine: Array, theirs: Array) -> float:
    """How far apart they are, as a share of the norm of `theirs`; NaN and infinities count as zeros."""
    a, b = (np.nan_to_num(each.astype("f8"), posinf=0.0, neginf=0.0) for each in (mine, theirs))
    return float(np.linalg.norm(a - b) / (np.linalg.norm(b) or 1.0))


# By their order


def _by_order(run: ModelRun, tensors: Channels, number: int) -> dict[str, tuple[Arranged, Array]]:
    rows = slice(0, number)
    forward, backward = (run.outputs(list(tensors), rows, reverse=turned) for turned in (False, True))
    return {
        name: (_that_follows(forward[name], backward[name], axis, number), forward[name])
        for name, axis in tensors.items()
    }


def _that_follows(forward: Array, backward: Array, channels: int | None, number: int) -> Arranged:
    """The arrangement in which `backward` is `forward` with its samples reversed."""
    if forward.shape == backward.shape:
        taken = None if channels is None or not forward.ndim else channels % forward.ndim
        candidates = _candidates(forward.shape, taken, number)
        if FIRST in candidates and _follows(FIRST, forward, backward, number):
            return FIRST
        fitting = [each for each in candidates if each != FIRST and _follows(each, forward, backward, number)]
        if fitting:
            return fitting[0] if len(fitting) == 1 else Arrangement(fold=ORDERLESS)
    return Unarranged(
        f"has the shape {forward.shape} for {number} samples, and another order of the samples does not reorder it: "
        "it does not depend on them, or mixes them"
    )


def _candidates(shape: tuple[int, ...], taken: int | None, number: int) -> list[Arrangement]:
    axes = [axis for axis, extent in enumerate(shape) if axis != taken and extent and extent % number == 0]
    plain = [Arrangement(axis) for axis in axes if shape[axis] == number]
    folded = [axis for axis in axes if shape[axis] != number]
    ends = [Arrangement(axis, fold) for axis in folded for fold in (OUTER, INNER)]
    return [*plain, *ends, *(each for axis in folded for each in _middles(axis, shape[axis] // number))]


def _follows(each: Arrangement, forward: Array, backward: Array, number: int) -> bool:
    mine, theirs = each.samples_first(forward, number), each.samples_first(backward, number)
    return mine is not None and theirs is not None and _apart(theirs[::-1], mine) <= NEAR
