"""The pieces of XᵀX: pairs of blocks of columns, whose products are added up alone; and the places of these in a state.

For each kernel that reads the layer and each of its groups, a state has the upper triangle of XᵀX. Each entry of it
belongs to exactly one piece. Everything here is known before any data is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations_with_replacement, pairwise
from math import isqrt, prod
from typing import Any

import numpy as np
import numpy.typing as npt

from ..floats import bound_exponent, is_float
from ..layouts import Kernel, Kernels
from .exact import TERMS_BITS, unit_exponent
from .product_loops import SLICE_BITS
from .products import Products
from .statistic import Space
from .triangles import place_in_triangle, unpacked
from .unfolding import Unfolding
from .wide import BITS, Digits, Wide

Array = npt.NDArray[Any]

BLOCK = 1152
"""Columns of X whose products are added up at once: more are cut into blocks, and these paired. Some more than 2^10, so
that a column of ones beside 2^k channels makes no further block.
"""


@dataclass(frozen=True)
class Piece:
    """The products of the columns of some `members` of each group with those of `others`, as the kernel `number` reads
    them.
    """

    number: int
    members: slice
    others: slice

    @property
    def is_square(self) -> bool:
        """Whether both are the same."""
        return self.members == self.others

    def columns(self, unfolding: Unfolding) -> tuple[int, int]:
        """The columns on each side, in a group."""
        left, right = ((part.stop - part.start) * unfolding.taps for part in (self.members, self.others))
        return left, right

    def entries(self, space: Space) -> int:
        """The products that it has."""
        unfolding = unfoldings(space)[self.number]
        return unfolding.groups * prod(self.columns(unfolding))

    def products(self, space: Space) -> Products:
        """What accumulates it."""
        unfolding, dtype = unfoldings(space)[self.number], space.dtype
        left, right = self.columns(unfolding)
        return Products(
            unfolding.groups,
            left,
            None if self.is_square else right,
            unit=unit_exponent(dtype),
            integral=not is_float(dtype),
            digits=digits_of(dtype),
        )

    def working_bytes(self, space: Space) -> int:
        """Peak bytes of accumulating it, and of what is found."""
        unfolding, digits = unfoldings(space)[self.number], digits_of(space.dtype)
        left, right = self.columns(unfolding)
        others = None if self.is_square else right
        accumulating = Products.working_bytes(unfolding.groups, left, others, digits, most_slices(space.dtype))
        return accumulating + 4 * digits * self.entries(space)


@dataclass(frozen=True)
class Part:
    """The `places` of the products that one kernel needs, among those of all kernels."""

    unfolding: Unfolding
    places: slice

    @property
    def size(self) -> int:
        """The products of a group."""
        return self.unfolding.entries // self.unfolding.groups

    def start(self, group: int) -> int:
        """The place of the first product of a group."""
        return int(self.places.start) + group * self.size

    def diagonals(self, values: Array) -> Array:
        """Of `values` at all places, those of the products of columns with themselves, [G, n]."""
        columns = np.arange(self.unfolding.columns)
        triangles = values[self.places].reshape(self.unfolding.groups, self.size)
        return triangles[:, place_in_triangle(columns, columns, self.unfolding.columns)]

    def of_channels(self, values: Array, group: int) -> Array:
        """The symmetric matrix of a group, of `values` at all places, without the columns of ones: [n, n]."""
        start, ones = self.start(group), self.unfolding.ones * self.unfolding.taps
        return unpacked(values[start : start + self.size], self.unfolding.columns)[ones:, ones:]


def kernels_of(space: Space) -> tuple[Kernel, ...]:
    """The kernels that read samples of `space`; that of a matrix product if they are unknown."""
    if isinstance(space.kernel, Kernels):
        return space.kernel.members
    return (space.kernel or Kernel(),)


@lru_cache(maxsize=256)
def unfoldings(space: Space) -> tuple[Unfolding, ...]:
    """How each kernel reads samples of `space`; those that read alike are one."""
    extents = tuple(extent for axis, extent in enumerate(space.sample) if axis != space.axis)
    found = [
        Unfolding(kernel, extents, space.channels, ones=not is_float(space.dtype) or prod(kernel.taps) == 1)
        for kernel in kernels_of(space)
    ]
    return tuple({each.key: each for each in found}.values())


@lru_cache(maxsize=256)
def parts(space: Space) -> tuple[Part, ...]:
    """The products of each unfolding, one after the other."""
    stops = np.cumsum([each.entries for each in unfoldings(space)]).tolist()
    return tuple(
        Part(each, slice(stop - each.entries, stop)) for each, stop in zip(unfoldings(space), stops, strict=True)
    )


def pieces(space: Space) -> tuple[Piece, ...]:
    """The pairs of blocks of columns that together have every product."""
    found = []
    for number, unfolding in enumerate(unfoldings(space)):
        most = max(1, isqrt(BLOCK**2 // unfolding.groups) // unfolding.taps)
        count = -(-unfolding.members // most)
        ends = [unfolding.members * block // max(1, count) for block in range(count + 1)]
        blocks = [slice(start, stop) for start, stop in pairwise(ends)]
        found += [Piece(number, *pair) for pair in combinations_with_replacement(blocks, 2)]
    return tuple(found)


def assembled(space: Space, pieces: Sequence[Piece], sums: Sequence[Wide]) -> Wide:
    """The sums of all products, in their order in a state, from those of all `pieces`."""
    low, high = min((each.first for each in sums), default=0), max((each.stop for each in sums), default=1)
    found = parts(space)
    digits = np.zeros((high - low, found[-1].places.stop), np.uint32)
    for piece, each in zip(pieces, sums, strict=True):
        part = found[piece.number]
        shape = part.unfolding.groups, *piece.columns(part.unfolding)
        for place, target in enumerate(digits, start=low):
            _put(each.digit(place).reshape(shape), part, piece, target)
    return Wide(digits, low).trimmed()


def _put(digit: Digits, part: Part, piece: Piece, target: Digits) -> None:
    """Copy one `digit` uint32[G, n, m] of the sums of a piece to their places in `target`."""
    taps, groups = part.unfolding.taps, part.unfolding.groups
    first, other = piece.members.start * taps, piece.others.start * taps
    triangles = target[part.places].reshape(groups, part.size)
    for row in range(digit.shape[1]):
        start = max(first + row, other)
        place = place_in_triangle(first + row, start, part.unfolding.columns)
        values = digit[:, row, start - other :]
        triangles[:, place : place + values.shape[1]] = values


def digits_of(dtype: np.dtype[Any]) -> int:
    """The digits of 32 bits, the sign included, that 2^64 of the largest products need.

    >>> [digits_of(np.dtype(kind)) for kind in ("i1", "u2", "f2", "bfloat16", "f4")]
    [3, 4, 5, 19, 20]
    """
    bits = bound_exponent(dtype) - unit_exponent(dtype) if is_float(dtype) else dtype.itemsize * 8
    return -(-(2 * bits + TERMS_BITS + 1) // BITS)


def most_slices(dtype: np.dtype[Any]) -> int:
    """The most slices that values of `dtype` need: all have 22 bits, but the first has 26 at least.

    >>> [most_slices(np.dtype(kind)) for kind in ("i2", "f2", "f4")]
    [1, 2, 13]
    """
    if not is_float(dtype):
        return 1
    return 1 + -(-(bound_exponent(dtype) - unit_exponent(dtype) - SLICE_BITS) // SLICE_BITS)
