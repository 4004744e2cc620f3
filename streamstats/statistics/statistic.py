"""The contract of a statistic: a small value that can be measured from a block of samples and merged, exactly.

The law: `merge` is associative and commutative to the bit, `empty` is its identity, and the statistic of some rows is
the merge of those of any partition of them. So chunking, order, workers and interruptions cannot change a result.

A new statistic is a frozen dataclass whose fields after `space` are arrays. It names them in `tensors`, merges them in
`merge`, and says what adds blocks up in `accumulator`; planning, storage, resuming, forgetting, verifying and showing
follow. One that takes single values, whichever place they have, is a `ValueStatistic`: one pass over a block finds what
all of them need, also while the block is being decoded, and it only says what it takes from that.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from math import prod
from typing import Any, ClassVar, Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt

from ..errors import DataError, MismatchError
from ..layouts import Geometry
from ..quantization import Quantization
from .running import Measures
from .values import ValuePass, Where

Array = npt.NDArray[Any]
Tensors = dict[str, tuple[tuple[int, ...], np.dtype[Any]]]
"""Name → (shape, dtype)."""
Found = TypeVar("Found", covariant=True)

SUPPORTED_DTYPES = tuple(
    np.dtype(kind) for kind in ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
)


@dataclass(frozen=True)
class Space:
    """What is known of a layer before any of it is read.

    `dtype` is that of the stored values, in native byte order; `sample` the shape of one sample; `axis` the axis of the
    channels in it; `geometry` that of the kernel behind, where it is known. Raises `MismatchError` for a dtype without
    statistics and an axis out of range.
    """

    dtype: np.dtype[Any]
    sample: tuple[int, ...]
    axis: int
    geometry: Geometry | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", checked_dtype(self.dtype))
        object.__setattr__(self, "sample", tuple(self.sample))
        if not -len(self.sample) <= self.axis < len(self.sample):
            raise MismatchError(
                f"channel axis {self.axis} is out of range for samples of shape {self.sample}; expected "
                f"{-len(self.sample)} to {len(self.sample) - 1}"
            )
        object.__setattr__(self, "axis", self.axis % len(self.sample))

    @classmethod
    def of(cls, block: Array, channel_axis: int = -1) -> Self:
        """That of `block`, with samples on axis 0 and the channels on `channel_axis` of it. Raises `MismatchError`."""
        if not -block.ndim < channel_axis < block.ndim or channel_axis == 0:
            raise MismatchError(
                f"channel axis {channel_axis} is out of range for a block of shape {block.shape} with samples on axis "
                f"0; expected 1 to {block.ndim - 1}, or {1 - block.ndim} to -1"
            )
        return cls(block.dtype, block.shape[1:], channel_axis % block.ndim - 1)

    @property
    def channels(self) -> int:
        """The number of channels."""
        return self.sample[self.axis]

    def joined(self, other: Self) -> Self:
        """The space of samples of both: extents in which they differ are 0, as is one for axes that only one has.

        Raises `MismatchError`, with both sides in it, where dtype, channels or their axis differ.
        """
        mine, theirs = ((str(each.dtype), each.channels, each.axis, each.geometry) for each in (self, other))
        if mine != theirs:
            raise MismatchError(f"{_described(self)} and {_described(other)} do not fit together")
        extents = tuple(mine if mine == theirs else 0 for mine, theirs in zip(self.sample, other.sample, strict=False))
        if len(self.sample) != len(other.sample):
            extents = (*extents[: self.axis + 1], 0)
        return type(self)(self.dtype, extents, self.axis, self.geometry)


class Accumulator(Protocol[Found]):
    """Adds blocks of one layer up, in any order, each value once."""

    def add(self, block: Array, where: Where) -> None:
        """Take `block`, native and C-contiguous, which is the part `where` of the layer's array; it is not changed.

        `where` has a slice for each axis, the rows first. Parts of the same rows come one after the other.
        """

    def found(self) -> Found:
        """The statistic of all blocks so far."""


@dataclass(frozen=True, eq=False)
class Statistic(ABC):
    """A value over some samples of a `space`; every other field is an array, as `tensors` declares it."""

    name: ClassVar[str]
    """The word for it in configurations, and the prefix of its tensors in files."""
    uncut: ClassVar[tuple[str, ...]] = ()
    """Axes of a sample that the plan must not cut for it: "channels", "space" (all others)."""
    copies: ClassVar[int] = 1
    """Times the bytes of a block that its accumulator needs to add one: the plan counts them."""

    space: Space = field(repr=False)

    @classmethod
    @abstractmethod
    def tensors(cls, space: Space) -> Tensors:
        """Its state: the fields after `space`. Memory, storage and checks follow from it."""

    @classmethod
    @abstractmethod
    def accumulator(cls, space: Space) -> Accumulator[Self]:
        """What adds blocks of samples of `space` up."""

    @abstractmethod
    def merge(self, other: Self) -> Self:
        """The statistic of the samples of both. Raises `MismatchError` where they do not fit together."""

    def without(self, part: Self, rest: Self | None = None) -> Self | None:  # noqa: ARG002 - for those that can
        """The statistic less the samples of `part`, which were merged in; `rest` is that of some of the others.

        None where it is not known from these: then more of the others have to be read, at last all of them, whose
        statistic is the answer. Raises `MismatchError` where `part` cannot have been merged in.
        """
        return None

    def check(self) -> None:  # noqa: B027 - nothing to check is an answer
        """Raise `DataError` for values that no samples can give: what is read from a file is not trusted."""

    @abstractmethod
    def document(self, quantization: Quantization | None) -> Document:
        """What it says of the layer, in real units."""

    # What every statistic has from here

    @classmethod
    def empty(cls, space: Space) -> Self:
        """The statistic of no samples, the identity of `merge`: zeros, unless it says otherwise."""
        return cls(space, **{name: np.zeros(*of) for name, of in cls.tensors(space).items()})

    @classmethod
    def measure(cls, block: Array, channel_axis: int = -1) -> Self:
        """The statistic of `block`, with samples on axis 0. Raises `MismatchError` for a dtype or an axis without."""
        space = Space.of(block, channel_axis)
        accumulator = cls.accumulator(space)
        native = np.require(block, space.dtype, ["C", "A"])
        accumulator.add(native, _everywhere(block))
        return accumulator.found()

    @classmethod
    def state_bytes(cls, space: Space) -> int:
        """Bytes of its state."""
        return sum(prod(shape) * dtype.itemsize for shape, dtype in cls.tensors(space).values())

    def arrays(self) -> dict[str, Array]:
        """Its state, name → array: what is stored."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name != "space"}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array], space: Space) -> Self:
        """The statistic with this state, as `arrays` gave it. Raises `DataError` where it cannot be one."""
        for name, (shape, dtype) in cls.tensors(space).items():
            found = arrays.get(name)
            if found is None or found.shape != shape or found.dtype != dtype:
                raise DataError(
                    f"stored {cls.name} of {space.dtype} data: {name} is "
                    f"{'missing' if found is None else f'{found.dtype}{list(found.shape)}'}; expected "
                    f"{dtype}{list(shape)}"
                )
        made = cls(space, **{name: arrays[name] for name in cls.tensors(space)})
        made.check()
        return made

    def check_fits(self, other: Statistic) -> None:
        """Raise `MismatchError`, with both sides in it, unless `other` is the same statistic of the same space."""
        mine, theirs = self._kind(), other._kind()
        if mine != theirs:
            raise MismatchError(
                f"{type(self).__name__} of {_described(self.space)} and {type(other).__name__} of "
                f"{_described(other.space)} do not fit together; "
                "expected the same statistic, dtype, channels and shape of the state"
            )

    def _kind(self) -> object:
        shapes = {name: (array.shape, array.dtype) for name, array in self.arrays().items()}
        return type(self), self.space.dtype, self.space.channels, shapes

    def __eq__(self, other: object) -> bool:
        """Equal means equal bytes."""
        if not isinstance(other, Statistic) or self._kind() != other._kind():
            return False
        pairs = zip(self.arrays().values(), other.arrays().values(), strict=True)
        return all(mine.tobytes() == theirs.tobytes() for mine, theirs in pairs)

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Document:
    """What a statistic says, in real units: `layer`, JSON-ready, of all of it; `channels`, name → [C], per channel.

    Names differ from those of other statistics. NaN stands for what is not known.
    """

    layer: Mapping[str, Any] = field(default_factory=dict)
    channels: Mapping[str, Array] = field(default_factory=dict)


class ValueStatistic(Statistic):
    """A statistic of single values, whichever place they have in a sample, or of the sums of samples."""

    by_sample: ClassVar[bool] = False
    """Whether it needs `Measures.squares`: then the pass adds up each sample by itself."""

    @classmethod
    @abstractmethod
    def from_measures(cls, space: Space, measures: Measures) -> Self:
        """The statistic of some blocks, from what the pass over them found."""

    @classmethod
    def accumulator(cls, space: Space) -> Accumulator[Self]:
        """A pass for this statistic alone; it takes blocks of any layout and byte order."""
        return _Alone(cls, space)

    @classmethod
    def measure(cls, block: Array, channel_axis: int = -1) -> Self:
        """As `Statistic.measure`. A block that is not contiguous in any order is copied a piece at a time."""
        accumulator = cls.accumulator(Space.of(block, channel_axis))
        accumulator.add(block, _everywhere(block))
        return accumulator.found()


class _Alone:
    """A pass over values that one statistic is taken from."""

    def __init__(self, kind: type[Any], space: Space) -> None:
        self._kind, self._space = kind, space
        self._values = ValuePass(space.dtype, space.sample, space.axis, by_sample=kind.by_sample)

    def add(self, block: Array, where: Where) -> None:
        self._values.add(block, where)

    def found(self) -> Any:
        return self._kind.from_measures(self._space, self._values.found())


def _everywhere(block: Array) -> Where:
    return tuple(slice(0, extent) for extent in block.shape)


def checked_dtype(dtype: npt.DTypeLike) -> np.dtype[Any]:
    """`dtype` in native byte order. Raises `MismatchError` unless there are statistics of it."""
    native = np.dtype(dtype).newbyteorder("=")
    if native not in SUPPORTED_DTYPES:
        raise MismatchError(
            f"values of dtype {np.dtype(dtype)} have no statistics; expected one of "
            f"{', '.join(map(str, SUPPORTED_DTYPES))}"
        )
    return native


def _described(space: Space) -> str:
    return f"{space.dtype} samples of shape {space.sample} with channels on axis {space.axis}"
