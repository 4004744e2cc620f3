"""Gram: the exact second moments XᵀX of what a layer multiplies by its weights.

The columns of X are the input channels, each under all taps of the kernel; its rows are the output positions of all
samples (`unfolding`). Weights are rounded by XᵀX (GPTQ), and it gives covariance and correlation. For integer codes,
and where there is one tap, X has a column of ones per tap, too: sums and counts are products with it, so that zero
points and means follow by algebra.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import prod
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from ..errors import DataError, MismatchError, UsageError, counted
from ..floats import BFLOAT16, FLOAT8_E4M3FN, FLOAT8_E5M2, is_float
from ..layouts import Kernel, Kernels
from ..quantization import Quantization, channel_maps, moves_zero
from .exact import unit_exponent
from .gram_pieces import Part, Piece, assembled, digits_of, kernels_of, parts, pieces, unfoldings
from .masks import Mask
from .moved import MovedMoments
from .riders import Where
from .statistic import MASKED, Array, Cut, Document, Space, Statistic, Tensors, subtracted_too_much
from .triangles import place_in_triangle
from .unfolding import PIECE_VALUES
from .wide import Digits, Wide

Float64Array = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

DTYPES = (
    *(np.dtype(kind) for kind in ("?", "i1", "u1", "i2", "u2")),
    FLOAT8_E4M3FN,
    FLOAT8_E5M2,
    np.dtype(np.float16),
    BFLOAT16,
    np.dtype(np.float32),
)
UNMOVED = (
    "its floats have an offset, and under several taps, zero cannot be moved by algebra; store real values, or request "
    "gram for other layers"
)
TRANSPOSED = (
    "the layer is a transposed convolution, whose inputs are not unfolded; request the statistic for other layers"
)
UNFOLDED_BYTES = 12
"""Bytes for each value that is unfolded: in float32, with copies, on both sides of a pair."""


@dataclass(frozen=True, eq=False, repr=False)
class Gram(Statistic):
    """The second moments XᵀX of a layer's input, under all taps of its kernel: rounding by GPTQ, covariance.

    `digits` uint32[D, E] and `first` int64[1] are those of `Wide` integers, in units of the square of the dtype's unit:
    for each kernel that reads the layer and each of its groups, the upper triangle of XᵀX, row by row. For each kernel,
    `positions` int64[K] is the number of rows of X, and `left_out` how many of the values that it reads are not finite;
    they count as zeros.
    """

    name: ClassVar[str] = "gram"
    maskable: ClassVar[bool] = True
    dtypes: ClassVar[tuple[np.dtype[Any], ...]] = DTYPES

    digits: Digits
    first: Counts
    positions: Counts
    left_out: Counts

    # The state

    @classmethod
    def tensors(cls, space: Space) -> Tensors:
        """As `Statistic.tensors`, with as many digits as its values may need; it has those that they do need."""
        entries, numbers = sum(each.entries for each in unfoldings(space)), ((len(unfoldings(space)),), np.dtype("i8"))
        return {
            "digits": ((digits_of(space.dtype), entries), np.dtype(np.uint32)),
            "first": ((1,), np.dtype(np.int64)),
            "positions": numbers,
            "left_out": numbers,
        }

    @classmethod
    def of(cls, space: Space, sums: Wide, positions: Counts, left_out: Counts) -> Self:
        """The statistic with these `sums`."""
        return cls(space, sums.digits, np.array([sums.first]), positions, left_out)

    @classmethod
    def empty(cls, space: Space) -> Self:
        """As `Statistic.empty`."""
        found = unfoldings(space)
        return cls.of(space, Wide.zeros(sum(each.entries for each in found)), *np.zeros((2, len(found)), np.int64))

    @classmethod
    def has_shape(cls, name: str, found: tuple[int, ...], declared: tuple[int, ...]) -> bool:
        """As `Statistic.has_shape`; there may be fewer digits than declared."""
        least = 1 if name == "digits" else declared[0]
        return len(found) == len(declared) and found[1:] == declared[1:] and least <= found[0] <= declared[0]

    @property
    def sums(self) -> Wide:
        """The sums of products."""
        return Wide(self.digits, int(self.first[0]))

    def check(self) -> None:
        """As `Statistic.check`."""
        sums = self.sums
        if sums.first < 0 or sums.stop > digits_of(self.space.dtype) or not sums.is_trimmed:
            raise DataError("the digits of its sums are not canonical")
        if (self.positions < 0).any() or (self.left_out < 0).any():
            raise DataError("its counts are negative")
        if self._is_negative():
            raise DataError("sums of squares are negative")
        if not is_float(self.space.dtype) and self.left_out.any():
            raise DataError("integers that are not finite were left out")
        for part, positions in zip(self._parts(), self.positions.tolist(), strict=True):
            self._check_ones(part, positions << -2 * unit_exponent(self.space.dtype))

    def _check_ones(self, part: Part, most: int) -> None:
        """Raise `DataError` unless each column of ones adds up to `most`, or to less where a tap sees padding."""
        unfolding = part.unfolding
        taps = np.arange(unfolding.taps * unfolding.ones)
        ones = place_in_triangle(taps, taps, unfolding.columns)
        places = [part.start(group) + place for group in range(unfolding.groups) for place in ones.tolist()]
        for seen in self.sums.integers(places) if places else ():
            if seen > most or (unfolding.is_plain and seen != most):
                raise DataError("its counts of positions contradict each other")

    def _is_negative(self) -> bool:
        negative = self.sums.negative()
        return any(each.diagonals(negative).any() for each in self._parts())

    def merge(self, other: Self) -> Self:
        """The sums of both."""
        self.check_fits(other)
        return self._with(other, 1)

    def without(self, part: Self, rest: Self | None = None) -> Self | None:  # noqa: ARG002 - it is not needed
        """As `Statistic.without`: always known."""
        self.check_fits(part)
        left = self._with(part, -1)
        if (left.positions < 0).any() or (left.left_out < 0).any() or left._is_negative():
            raise subtracted_too_much(self.name)
        return left

    def _with(self, other: Self, sign: int) -> Self:
        counts = self.positions + sign * other.positions, self.left_out + sign * other.left_out
        return type(self).of(self.space.joined(other.space), self.sums.plus(other.sums, sign), *counts)

    def _kind(self) -> object:
        return type(self), self.space.dtype, self.space.channels, [each.key for each in unfoldings(self.space)]

    @classmethod
    def refuses(cls, space: Space, quantization: Quantization | None) -> str | None:
        """As `Statistic.refuses`."""
        for kernel in kernels_of(space):
            if kernel.transposed:
                return TRANSPOSED
            if space.channels % kernel.groups:
                return f"its {space.channels} channels do not divide into {kernel.groups} groups"
        if quantization is not None and moves_zero(quantization) and not all(each.ones for each in unfoldings(space)):
            return UNMOVED
        if space.masked and not all(each.is_plain for each in unfoldings(space)):
            return MASKED
        return super().refuses(space, quantization)

    @classmethod
    def uncut(cls, space: Space) -> tuple[str, ...]:
        """As `Statistic.uncut`."""
        return ("channels",) if all(each.is_plain for each in unfoldings(space)) else ("channels", "space")

    # Measuring

    @classmethod
    def accumulator(cls, space: Space) -> _Whole:
        """As `Statistic.accumulator`."""
        return _Whole(space, pieces(space))

    @classmethod
    def cuts(cls, space: Space) -> int:
        """As `Statistic.cuts`: the pairs of blocks of columns, unless few columns make only few of them."""
        found = len(pieces(space))
        return found if found > len(unfoldings(space)) else 1

    @classmethod
    def cut_accumulator(cls, space: Space, number: int) -> _OnePiece:
        """As `Statistic.cut_accumulator`."""
        return _OnePiece(space, number)

    @classmethod
    def joined(cls, space: Space, cuts: Sequence[Cut]) -> Self:
        """As `Statistic.joined`."""
        found, first = pieces(space), cuts[0].arrays
        sums = [Wide(each.arrays["digits"], int(each.arrays["first"][0])) for each in cuts]
        left_out = sum((each.arrays["left_out"] for each in cuts), np.zeros_like(first["left_out"]))
        return cls.of(space, assembled(space, found, sums), first["positions"], left_out)

    @classmethod
    def cut_bytes(cls, space: Space) -> int:
        """As `Statistic.cut_bytes`."""
        if cls.cuts(space) == 1:
            return cls.state_bytes(space)
        return max(4 * digits_of(space.dtype) * piece.entries(space) for piece in pieces(space))

    @classmethod
    def working_bytes(cls, space: Space, block: Sequence[int]) -> int:
        """As `Statistic.working_bytes`."""
        each = [piece.working_bytes(space) for piece in pieces(space)]
        values = PIECE_VALUES + max(each.groups * each.columns * prod(each.outputs[1:]) for each in unfoldings(space))
        unfolded = UNFOLDED_BYTES * (values + prod(block[1:]))
        if cls.cuts(space) == 1:
            return sum(each) + unfolded + 2 * cls.state_bytes(space)
        return max(each, default=0) + unfolded + cls.cut_bytes(space)

    @classmethod
    def operations(cls, space: Space) -> int:
        """As `Statistic.operations`: half of all products of columns, for each pair of slices that most values need."""
        found = sum(prod(each.outputs) * each.groups * each.columns**2 for each in unfoldings(space))
        return found * (4 if space.dtype == np.float32 else 1) // 2

    def with_kernel(self, kernel: Kernel | Kernels | None) -> Self:
        """As `Statistic.with_kernel`: kernels that were counted."""
        space = replace(self.space, kernel=kernel)
        mine = {part.unfolding.key: (number, part) for number, part in enumerate(self._parts())}
        wanted = [each.key for each in unfoldings(space)]
        if not {*wanted} <= mine.keys():
            raise MismatchError(f"{self.name} was counted with other kernels; expected the same: count the layer again")
        chosen = [mine[key] for key in wanted]
        numbers = [number for number, _ in chosen]
        digits = np.concatenate([self.digits[:, part.places] for _, part in chosen], axis=1)
        sums = Wide(digits, int(self.first[0])).trimmed()
        return type(self).of(space, sums, self.positions[numbers], self.left_out[numbers])

    # What follows from it

    def document(self, quantization: Quantization | None, beside: Mapping[str, Statistic]) -> Document:  # noqa: ARG002
        """Layer: the `gram_columns` of X, over all groups, and its rows, `gram_positions`."""
        parts = self._parts()
        columns = sum(each.unfolding.groups * each.unfolding.columns_of_channels for each in parts)
        return Document({"gram_columns": columns, "gram_positions": int(self.positions.sum())})

    @property
    def rows(self) -> int:
        """The number of rows of X: output positions that count."""
        self._only()
        return int(self.positions[0])

    def matrix(self, quantization: Quantization | None = None) -> Float64Array:
        """XᵀX of each group, float64[G, n, n]: each entry is the float64 nearest to the exact value.

        It is in real units with the layer's `quantization`, and of the stored codes without. The n columns are (input
        channel of the group, *taps), as weights (outputs, inputs, *taps) have them; padding is zero, and so are values
        that were left out. Raises `UsageError` if several kernels read the layer (see `with_kernel`), and for an offset
        that cannot be applied: of floats under several taps, or of which some were left out.
        """
        part = self._only()
        maps = self._maps(quantization)
        if all(step == 1 and not zero for step, zero in maps):
            values = self.sums.floats(2 * unit_exponent(self.space.dtype))
            return np.stack([part.of_channels(values, group) for group in range(part.unfolding.groups)])
        return np.stack([each.matrix() for each in self._moments(maps)])

    def covariance(self, quantization: Quantization | None = None) -> Float64Array:
        """The covariance of the columns of X in each group, float64[G, n, n], in real units, nearest to exact.

        NaN without rows. Raises `UsageError` as `matrix`; for values that are not finite, with which the number of
        pairs is unknown; and for floats under several taps, whose means are not known here.
        """
        part, count = self._only(), self.rows
        if self.left_out[0]:
            raise UsageError(
                f"{self._left_out()}, so the covariance is unknown; use "
                "XᵀX itself, or repair the data and count it again"
            )
        if not part.unfolding.ones:
            raise UsageError(f"the covariance of {self.space.dtype} values under several taps is unknown; use XᵀX")
        if not count:
            return np.full_like(self.matrix(quantization), np.nan)
        return np.stack([each.covariance(count) for each in self._moments(self._maps(quantization))])

    def _moments(self, maps: Sequence[tuple[Fraction, Fraction]]) -> Iterator[MovedMoments]:
        """The moments of each group, for values with these (step, zero)."""
        unfolding = self._only().unfolding
        size = unfolding.channels // unfolding.groups
        for group in range(unfolding.groups):
            mine = [each for each in maps[group * size : (group + 1) * size] for _ in range(unfolding.taps)]
            yield MovedMoments(
                sums=self.sums,
                exponent=2 * unit_exponent(self.space.dtype),
                start=self._only().start(group),
                taps=unfolding.taps,
                ones=unfolding.ones,
                steps=[step for step, _ in mine],
                zeros=[zero for _, zero in mine],
            )

    def _maps(self, quantization: Quantization | None) -> list[tuple[Fraction, Fraction]]:
        """The exact (step, stored value of zero) per channel. Raises `UsageError`."""
        maps = channel_maps(quantization, self.space.channels)
        if any(zero for _, zero in maps):
            if not self._only().unfolding.ones:
                raise UsageError(UNMOVED)
            if self.left_out[0]:
                raise UsageError(
                    f"{self._left_out()}, so XᵀX is unknown where zero is "
                    "not stored as zero; repair the data and count it again"
                )
        return maps

    def _left_out(self) -> str:
        return f"NaN, infinities and missing values ({counted(int(self.left_out[0]), 'value')}) were left out"

    def _parts(self) -> tuple[Part, ...]:
        return parts(self.space)

    def _only(self) -> Part:
        if len(self.positions) != 1:
            raise UsageError(f"{len(self.positions)} kernels move over the samples; choose one by `with_kernel`")
        return self._parts()[0]


class _Accumulator:
    """Accumulates the products of some `pieces` of a layer."""

    def __init__(self, space: Space, pieces: Sequence[Piece]) -> None:
        self._space, self._pieces = space, pieces
        self._products = [piece.products(space) for piece in pieces]
        self._positions, self._left_out = np.zeros((2, len(unfoldings(space))), np.int64)

    def add(self, block: Array, where: Where, mask: Mask | None = None) -> None:  # noqa: ARG002 - whole samples come
        """As `Accumulator.add`."""
        values = np.moveaxis(block, self._space.axis + 1, -1)
        for number, unfolding in enumerate(unfoldings(self._space)):
            outputs = values.shape[1:-1] if unfolding.is_plain else unfolding.outputs  # the plan may cut what is plain
            self._positions[number] += len(values) * prod(outputs) if mask is None else int(mask.sum())
        for piece, products in zip(self._pieces, self._products, strict=True):
            unfolding = unfoldings(self._space)[piece.number]
            if piece.is_square:
                for rows, left_out in unfolding.rows(values, piece.members, mask):
                    self._left_out[piece.number] += left_out
                    products.add(rows)
            else:
                sides = (unfolding.rows(values, part, mask) for part in (piece.members, piece.others))
                for (left, _), (right, _) in zip(*sides, strict=True):
                    products.add(left, right)

    def _sums(self) -> list[Wide]:
        """Those of each piece, in the order of its products [G, n, m]."""
        found = (products.found() for products in self._products)
        return [Wide(digits.reshape(len(digits), -1)) for digits in found]


class _Whole(_Accumulator):
    """Accumulates all products."""

    def found(self) -> Gram:
        """As `Accumulator.found`."""
        sums = assembled(self._space, self._pieces, self._sums())
        return Gram.of(self._space, sums, self._positions.copy(), self._left_out.copy())


class _OnePiece(_Accumulator):
    """Accumulates the products of the piece with this `number`."""

    def __init__(self, space: Space, number: int) -> None:
        super().__init__(space, [pieces(space)[number]])
        self._number = number

    def found(self) -> Cut:
        """As `Accumulator.found`."""
        (sums,) = self._sums()
        sums = sums.trimmed()
        arrays = {"digits": sums.digits, "first": np.array([sums.first])}
        counts = {"positions": self._positions.copy(), "left_out": self._left_out.copy()}
        return Cut(self._number, arrays | counts)
