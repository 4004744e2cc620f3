"""Unfolding: the matrix X whose rows are what a layer multiplies by its weights, one for each output position.

A matrix product reads each position as it is. A convolution reads a patch of the padded sample: its columns are the
input channels of a group, each with all taps of the kernel, which is the order of weights (outputs, inputs, *taps).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from ..floats import is_finite
from ..layouts import Kernel
from .masks import Mask

Array = npt.NDArray[Any]
Rows = npt.NDArray[np.float32]
Unfolded = tuple[Rows, int]
"""Rows, and how many of the values they are made of are not finite."""

PIECE_VALUES = 2**20
"""About how many values are unfolded at once."""


@dataclass(frozen=True)
class Unfolding:
    """How `kernel` reads samples with these spatial `extents` and `channels`.

    With `ones`, each group begins with a channel of ones, which is zero where a tap sees padding: sums and counts are
    its products.
    """

    kernel: Kernel
    extents: tuple[int, ...]
    channels: int
    ones: bool

    @property
    def groups(self) -> int:
        """The number of groups."""
        return self.kernel.groups

    @property
    def taps(self) -> int:
        """The taps of the kernel."""
        return prod(self.kernel.taps)

    @property
    def members(self) -> int:
        """The channels of a group, the ones among them."""
        return self.channels // self.groups + self.ones

    @property
    def columns(self) -> int:
        """The columns of a group."""
        return self.members * self.taps

    @property
    def columns_of_channels(self) -> int:
        """The columns of a group without those of ones."""
        return self.channels // self.groups * self.taps

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for unfoldings that read alike."""
        moves = None if self.is_plain else (self.kernel.taps, self.kernel.geometry, self.extents)
        return self.groups, self.channels, self.ones, moves

    @property
    def entries(self) -> int:
        """The products of two columns, over all groups, each pair once."""
        return self.groups * self.columns * (self.columns + 1) // 2

    @cached_property
    def outputs(self) -> tuple[int, ...]:
        """The extents of the output."""
        if not self.kernel.taps:
            return self.extents
        return tuple(axis.outputs for axis in self.kernel.along(self.extents))

    @cached_property
    def is_plain(self) -> bool:
        """Whether each position is a row, as it is."""
        moves = self.kernel.geometry
        return self.taps == 1 and not self.kernel.transposed and {*moves.strides} <= {1} and not any(moves.pads)

    def rows(self, block: Array, members: slice, mask: Mask | None = None) -> Iterator[Unfolded]:
        """The rows of the samples in `block` [N, *extents, C], float32[rows, G, columns of these `members`], and how
        many values were not finite: they become zeros. A `mask` leaves rows out; only plain kernels have one.
        """
        if self.is_plain:
            yield from self._positions(block, members, mask)
        else:
            for sample in block:
                yield from self._patches(sample, members)

    def _positions(self, block: Array, members: slice, mask: Mask | None) -> Iterator[Unfolded]:
        rows = block.reshape(prod(block.shape[:-1]), self.channels)
        kept = None if mask is None else mask.reshape(-1)
        step = max(1, PIECE_VALUES // max(1, self.channels))
        for start in range(0, len(rows), step):
            piece = rows[start : start + step]
            yield self._members(piece if kept is None else piece[kept[start : start + step]], members)

    def _patches(self, sample: Array, members: slice) -> Iterator[Unfolded]:
        """The patches of one sample, some rows of outputs at a time."""
        flat, left_out = self._members(sample.reshape(prod(self.extents), self.channels), members)
        values = flat.reshape(*self.extents, *flat.shape[1:])
        geometry, taps = self.kernel.geometry, self.kernel.taps
        axes = geometry.axes(len(taps))
        padded = _padded(values, [(before, after) for _, before, after, _, _ in axes])
        shape, strides = [], []
        for place, (stride, _, _, dilation, _) in enumerate(axes):
            shape.append((self.outputs[place], taps[place]))
            strides.append((padded.strides[place] * stride, padded.strides[place] * dilation))
        windows = np.lib.stride_tricks.as_strided(
            padded,
            [outputs for outputs, _ in shape] + [*padded.shape[-2:]] + [taps for _, taps in shape],
            [step for step, _ in strides] + [*padded.strides[-2:]] + [step for _, step in strides],
            writeable=False,
        )
        columns = padded.shape[-1] * self.taps
        lines = max(1, PIECE_VALUES // max(1, self.groups * self.columns * prod(self.outputs[1:])))  # for all members
        for start in range(0, self.outputs[0], lines):
            part = windows[start : start + lines]
            yield part.reshape(prod(part.shape[: len(taps)]), self.groups, columns), left_out if start == 0 else 0

    def _members(self, rows: Array, members: slice) -> Unfolded:
        """float32[rows, G, members] of rows [rows, C], and how many values are not finite."""
        first = members.start - self.ones
        by_group = rows.reshape(len(rows), self.groups, self.channels // self.groups)[
            :, :, max(0, first) : members.stop - self.ones
        ]
        with np.errstate(invalid="ignore", over="ignore"):
            values = by_group.astype(np.float32)
        infinite = ~is_finite(values)
        left_out = int(infinite.sum())
        if left_out:
            values[infinite] = 0
        if first < 0:
            values = np.concatenate([np.ones((*values.shape[:2], 1), np.float32), values], axis=2)
        return values, left_out


def _padded(values: Rows, pads: list[tuple[int, int]]) -> Rows:
    """`values` with zeros around its first axes; negative padding crops."""
    kept = [
        slice(max(0, -before), extent - max(0, -after))
        for (before, after), extent in zip(pads, values.shape, strict=False)
    ]
    cropped = values[tuple(kept)]
    around = [(max(0, before), max(0, after)) for before, after in pads]
    inside = [slice(before, before + extent) for (before, _), extent in zip(around, cropped.shape, strict=False)]
    extents = [part.stop + after for part, (_, after) in zip(inside, around, strict=True)]
    found = np.zeros((*extents, *cropped.shape[len(pads) :]), np.float32)
    found[tuple(inside)] = cropped
    return found
