"""The contract of a statistic: a small value that is measured from blocks of samples and merged, exactly.

The law: `merge` is associative and commutative to the bit, `empty` is its identity, and the statistic of some rows is
the merge of the statistics of any partition of them. So chunking, order, workers and interruptions cannot change a
result.

A new statistic is a frozen dataclass whose fields after `space` are arrays. It declares them in `tensors`, merges them
in `merge`, and returns what accumulates blocks in `accumulator`; planning, storage, resuming, forgetting, verifying and
display follow. A statistic of single values, wherever they lie in a sample, is a `ValueStatistic`: one pass over a
block, even while it is being decoded, finds what all of them need, and each only selects its share.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, ClassVar, Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt

from ..errors import DataError, MismatchError, UsageError, counted
from ..floats import NARROW
from ..layouts import Kernel, Kernels
from ..quantization import Quantization
from .masks import Mask
from .riders import RiderKind, Where
from .running import Measures
from .values import ValuePass

Array = npt.NDArray[Any]
Tensors = dict[str, tuple[tuple[int, ...], np.dtype[Any]]]
"""Name → (shape, dtype)."""
Found = TypeVar("Found", covariant=True)

SUPPORTED_DTYPES = (
    *(np.dtype(kind) for kind in ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")),
    *NARROW,
    *(np.dtype(kind) for kind in ("f2", "f4", "f8")),
)


@dataclass(frozen=True)
class Space:
    """What is known about a layer before any of its data is read.

    `dtype` is the dtype of the stored values, in native byte order; `sample` the shape of one sample; `axis` the axis
    of the channels in it; `kernel` what moves over the samples, if known: the kernel of the layer, or those of all
    layers that read them; `within` numbers the bins of a histogram whose values are told apart; `masked` says that a
    mask leaves out positions. Raises `MismatchError` for a dtype that statistics do not support, and for an axis out of
    range.
    """

    dtype: np.dtype[Any]
    sample: tuple[int, ...]
    axis: int
    kernel: Kernel | Kernels | None = None
    within: tuple[int, ...] = ()
    masked: bool = False

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
    def of(cls, block: Array, channel_axis: int = -1, kernel: Kernel | Kernels | None = None) -> Self:
        """The space of `block`, with samples on axis 0 and channels on `channel_axis`. Raises `MismatchError`."""
        if not -block.ndim < channel_axis < block.ndim or channel_axis == 0:
            raise MismatchError(
                f"channel axis {channel_axis} is out of range for a block of shape {block.shape} with samples on axis "
                f"0; expected 1 to {block.ndim - 1}, or {1 - block.ndim} to -1"
            )
        return cls(block.dtype, block.shape[1:], channel_axis % block.ndim - 1, kernel)

    @property
    def channels(self) -> int:
        """The number of channels."""
        return self.sample[self.axis]

    @property
    def positions(self) -> int:
        """The number of values per channel in a sample."""
        return prod(extent for axis, extent in enumerate(self.sample) if axis != self.axis)

    def joined(self, other: Self) -> Self:
        """The space of the samples of both: extents that differ become 0, and so does one for axes that only one has.

        A kernel that differs becomes unknown; statistics that use it refuse to merge. Raises `MismatchError`, naming
        both sides, if dtypes, channels or channel axes differ.
        """
        mine, theirs = ((str(each.dtype), each.channels, each.axis) for each in (self, other))
        if mine != theirs:
            raise MismatchError(
                f"{_described(self)} and {_described(other)} do not fit together; expected the same dtype and channels"
            )
        extents = tuple(mine if mine == theirs else 0 for mine, theirs in zip(self.sample, other.sample, strict=False))
        if len(self.sample) != len(other.sample):
            extents = (*extents[: self.axis + 1], 0)
        kernel = self.kernel if self.kernel == other.kernel else None
        return replace(self, sample=extents, kernel=kernel, masked=self.masked or other.masked)


class Accumulator(Protocol[Found]):
    """Accumulates blocks of one layer, in any order, each value once."""

    def add(self, block: Array, where: Where, mask: Mask | None = None) -> None:
        """Take `block`, native and C-contiguous, the part `where` of the layer's array; `block` stays unchanged.

        `where` has a slice per axis, rows first. Parts of the same rows arrive one after the other. Only positions
        where `mask` is true count; kinds that are not `maskable` never get one.
        """

    def found(self) -> Found:
        """The statistic of all blocks so far."""


@dataclass(frozen=True, eq=False)
class Cut:
    """Part `number` of a statistic that is measured in several: arrays, which its kind joins with the others."""

    number: int
    arrays: Mapping[str, Array]


@dataclass(frozen=True, eq=False)
class Statistic(ABC):
    """A value over some samples of a `space`; its other fields are arrays, those that `tensors` declares for it."""

    name: ClassVar[str]
    """Its name in configurations, and the prefix of its tensors in files."""
    dtypes: ClassVar[tuple[np.dtype[Any], ...]] = SUPPORTED_DTYPES
    """The dtypes it can be counted for."""
    uses_kernel: ClassVar[bool] = False
    """Whether its state depends on the kernel and the extents of samples: it refuses layers of unknown kernels."""
    maskable: ClassVar[bool] = False
    """Whether its accumulator takes masks; otherwise it refuses layers that have one."""
    unasked: ClassVar[bool] = False
    """Whether it is counted for the layers that need it, whether or not they ask for it, and for no others."""
    copies: ClassVar[int] = 1
    """The memory, in multiples of a block, that its accumulator needs to add one; the plan includes it."""

    space: Space = field(repr=False)

    def __repr__(self) -> str:
        """Its name, and the dtype and shape of each of its arrays."""
        arrays = (f"{name} {array.dtype}{list(array.shape)}" for name, array in self.arrays().items())
        return f"<{type(self).__name__} of {counted(self.space.channels, 'channel')}: {', '.join(arrays)}>"

    @classmethod
    @abstractmethod
    def tensors(cls, space: Space) -> Tensors:
        """Its state, the fields after `space`: memory, storage and checks follow from it."""

    @classmethod
    def refuses(cls, space: Space, quantization: Quantization | None) -> str | None:  # noqa: ARG003 - for those that use it
        """Why it cannot be counted for a layer whose values `quantization` maps to real ones; None if it can."""
        if space.dtype not in cls.dtypes:
            known = ", ".join(map(str, cls.dtypes))
            return f"its values are {space.dtype}; expected one of {known}: request the statistic for other layers"
        if space.masked and not cls.maskable:
            return MASKED
        return UNKNOWN_KERNEL if cls.uses_kernel and space.kernel is None else None

    @classmethod
    def needed(cls, space: Space, asked: Collection[str] = ()) -> bool:  # noqa: ARG003 - for those that are `unasked`
        """Whether a layer needs it, for which the kinds `asked` are counted; for kinds that are `unasked`."""
        return False

    @classmethod
    def uncut(cls, space: Space) -> tuple[str, ...]:  # noqa: ARG003 - for those that need it
        """The axes of a sample that the plan must not cut: "channels", "space" (all others), or both."""
        return ()

    @classmethod
    @abstractmethod
    def accumulator(cls, space: Space) -> Accumulator[Self]:
        """A new accumulator for blocks of samples of `space`."""

    @classmethod
    def cuts(cls, space: Space) -> int:  # noqa: ARG003 - for those that need several
        """In how many parts it is measured, each by a task of its own: more than one if its state is large."""
        return 1

    @classmethod
    def cut_accumulator(cls, space: Space, number: int) -> Accumulator[Cut]:
        """A new accumulator for part `number`; for kinds with several `cuts`."""
        raise NotImplementedError(f"{cls.name} is measured in one part")

    @classmethod
    def joined(cls, space: Space, cuts: Sequence[Cut]) -> Self:
        """The statistic of some samples, from all its parts over the same samples."""
        raise NotImplementedError(f"{cls.name} is measured in one part")

    @classmethod
    def cut_bytes(cls, space: Space) -> int:
        """The most bytes that measuring gives at once: those of its state, or of its largest part."""
        return cls.state_bytes(space)

    @classmethod
    def working_bytes(cls, space: Space, block: Sequence[int]) -> int:
        """Peak bytes that its accumulator needs for blocks of at most the shape `block`, in addition to the blocks.

        The state is held while it accumulates, is found and is sent.
        """
        size = prod(block) * space.dtype.itemsize
        return (cls.copies + (space.dtype == np.bool_)) * size + HELD * cls.state_bytes(space)

    @classmethod
    def operations(cls, space: Space) -> int:  # noqa: ARG003 - for those that cost more than reading
        """The multiplications of floats that a sample costs, if they cost more than reading it; 0 if not."""
        return 0

    @abstractmethod
    def merge(self, other: Self) -> Self:
        """The statistic of the samples of both. Raises `MismatchError` if they do not fit together."""

    def without(self, part: Self, rest: Self | None = None) -> Self | None:  # noqa: ARG002 - for those that can
        """The statistic less the samples of `part`, which were merged into it; `rest` is that of some other samples.

        None if these do not determine it: then more of the other samples must be read, at last all of them, whose
        statistic is the answer. Raises `MismatchError` if `part` cannot have been merged into it.
        """
        return None

    def check(self) -> None:  # noqa: B027 - nothing to check is an answer
        """Raise `DataError` for values that no samples can give: files are not trusted."""

    @abstractmethod
    def document(self, quantization: Quantization | None, beside: Mapping[str, Statistic]) -> Document:
        """Its figures for the layer, in real units; `beside` has all statistics of the same samples, by name."""

    def with_kernel(self, kernel: Kernel | Kernels | None) -> Self:
        """The statistic that the same samples have for a layer with `kernel`.

        Raises `MismatchError` if the state depends on the kernel and does not determine it.
        """
        if self.uses_kernel and kernel != self.space.kernel:
            raise MismatchError(f"{self.name} was counted with another kernel; expected the same")
        return replace(self, space=replace(self.space, kernel=kernel))

    # What every statistic inherits

    @classmethod
    def empty(cls, space: Space) -> Self:
        """The statistic of no samples, the identity of `merge`: zeros, unless overridden."""
        return cls(space, **{name: np.zeros(*of) for name, of in cls.tensors(space).items()})

    @classmethod
    def measure(cls, block: Array, channel_axis: int = -1, kernel: Kernel | Kernels | None = None) -> Self:
        """The statistic of `block`, with samples on axis 0. Raises `MismatchError` as `Space` does.

        Statistics that use a `kernel` raise `UsageError` without one, `MismatchError` for one that does not fit.
        """
        space = Space.of(block, channel_axis, kernel)
        accumulator = cls.accumulator(space)
        native = np.require(block, space.dtype, ["C", "A"])
        accumulator.add(native, _everywhere(block))
        return accumulator.found()

    @classmethod
    def state_bytes(cls, space: Space) -> int:
        """The bytes of its state."""
        return sum(prod(shape) * dtype.itemsize for shape, dtype in cls.tensors(space).values())

    def arrays(self) -> dict[str, Array]:
        """Its state to store, name → array."""
        return {name: getattr(self, name) for name in self.tensors(self.space)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array], space: Space) -> Self:
        """The inverse of `arrays`. Raises `DataError` for an impossible state."""
        for name, (shape, dtype) in cls.tensors(space).items():
            found = arrays.get(name)
            if found is None or found.dtype != dtype or not cls.has_shape(name, found.shape, shape):
                raise DataError(
                    f"stored {cls.name} of {space.dtype} data: {name} is "
                    f"{'missing' if found is None else f'{found.dtype}{list(found.shape)}'}; expected "
                    f"{dtype}{list(shape)}"
                )
        made = cls(space, **{name: arrays[name] for name in cls.tensors(space)})
        made.check()
        return made

    @classmethod
    def has_shape(cls, name: str, found: tuple[int, ...], declared: tuple[int, ...]) -> bool:  # noqa: ARG003
        """Whether a stored tensor may have the shape `found`: the one that is `declared`, unless overridden."""
        return found == declared

    def check_fits(self, other: Statistic) -> None:
        """Raise `MismatchError`, naming both sides, unless `other` is the same statistic of the same space."""
        mine, theirs = self._kind(), other._kind()
        if mine != theirs:
            raise MismatchError(
                f"{type(self).__name__} of {_described(self.space)} and {type(other).__name__} of "
                f"{_described(other.space)} do not fit together; "
                "expected the same statistic, dtype, channels and shape of the state"
            )

    def _kind(self) -> object:
        shapes = {name: (array.shape, array.dtype) for name, array in self.arrays().items()}
        seen = (self.space.sample, self.space.axis, self.space.kernel) if self.uses_kernel else ()
        return type(self), self.space.dtype, self.space.channels, shapes, seen

    def __eq__(self, other: object) -> bool:
        """Equal means equal bytes."""
        if not isinstance(other, Statistic) or self._kind() != other._kind():
            return False
        pairs = zip(self.arrays().values(), other.arrays().values(), strict=True)
        return all(mine.tobytes() == theirs.tobytes() for mine, theirs in pairs)

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Table:
    """Rows of finite numbers with named columns; a page draws a table with the columns low, high and count as bars."""

    columns: tuple[str, ...]
    rows: Sequence[Sequence[float]]


@dataclass(frozen=True)
class Document:
    """The figures of a statistic, in real units: numbers for the whole `layer`; `channels`, name → [C].

    `tables`, by name, hold more than a line shows: documents of one layer have them. Names must differ from those of
    other statistics. NaN means unknown.
    """

    layer: Mapping[str, Any] = field(default_factory=dict)
    channels: Mapping[str, Array] = field(default_factory=dict)
    tables: Mapping[str, Table] = field(default_factory=dict)


def subtracted_too_much(name: str) -> MismatchError:
    """The error for a part that was not merged into the statistic `name` as it is now."""
    return MismatchError(
        f"{name}: more would be subtracted than was counted: the data has changed since it was counted; count it again"
    )


HELD = 4
"""Copies of a state in memory while a worker measures it."""


class ValueStatistic(Statistic):
    """A statistic of single values, wherever they lie in a sample, or of the sums of samples."""

    maskable: ClassVar[bool] = True

    @classmethod
    def by_sample(cls, space: Space) -> bool:  # noqa: ARG003 - for those that need it
        """Whether it needs `Measures.moments`: then the pass sums each sample separately."""
        return False

    @classmethod
    def riders(cls, space: Space) -> Mapping[str, RiderKind]:  # noqa: ARG003 - for those that need some
        """The riders whose tallies it needs in `Measures.beside`, by name; kinds that use one name share the rider."""
        return {}

    @classmethod
    @abstractmethod
    def from_measures(cls, space: Space, measures: Measures) -> Self:
        """The statistic of some blocks, from the measures of the pass over them."""

    @classmethod
    def accumulator(cls, space: Space) -> Accumulator[Self]:
        """A pass for this statistic alone, which takes blocks of any layout and byte order."""
        return _Alone(cls, space)

    @classmethod
    def measure(cls, block: Array, channel_axis: int = -1, kernel: Kernel | Kernels | None = None) -> Self:
        """As `Statistic.measure`. A block that is contiguous in no order is copied piece by piece."""
        accumulator = cls.accumulator(Space.of(block, channel_axis, kernel))
        accumulator.add(block, _everywhere(block))
        return accumulator.found()


class _Alone:
    """A pass over values for one statistic."""

    def __init__(self, kind: type[Any], space: Space) -> None:
        self._kind, self._space = kind, space
        self._values = ValuePass(
            space.dtype, space.sample, space.axis, by_sample=kind.by_sample(space), riders=kind.riders(space)
        )

    def add(self, block: Array, where: Where, mask: Mask | None = None) -> None:
        self._values.add(block, where, mask)

    def found(self) -> Any:
        return self._kind.from_measures(self._space, self._values.found())


def _everywhere(block: Array) -> Where:
    return tuple(slice(0, extent) for extent in block.shape)


def checked_dtype(dtype: npt.DTypeLike) -> np.dtype[Any]:
    """`dtype` in native byte order. Raises `MismatchError` unless statistics support it."""
    if not is_supported(np.dtype(dtype)):
        raise MismatchError(
            f"values of dtype {np.dtype(dtype)} have no statistics; expected one of "
            f"{', '.join(map(str, SUPPORTED_DTYPES))}"
        )
    return np.dtype(dtype).newbyteorder("=")


def is_supported(dtype: np.dtype[Any]) -> bool:
    """Whether values of `dtype`, in any byte order, have statistics."""
    return dtype.kind in "biufV" and dtype.newbyteorder("=") in SUPPORTED_DTYPES


def known_kernel(space: Space) -> Kernel | Kernels:
    """The kernel of `space`. Raises `UsageError` if it is unknown."""
    if space.kernel is None:
        raise UsageError(UNKNOWN_KERNEL)
    return space.kernel


UNKNOWN_KERNEL = (
    "the kernel of the layer is unknown; record the layer with streamstats, which knows it for layers that pad with "
    "zeros or not at all, set `geometry` for the layer in the configuration, or request the statistic for other layers"
)

MASKED = (
    "the layer has a mask, but the statistic tells positions apart and cannot leave any out; request it only for "
    "layers without a mask"
)


def _described(space: Space) -> str:
    kernel = "" if space.kernel is None else f" and the kernel {space.kernel.to_metadata()}"
    return f"{space.dtype} samples of shape {space.sample} with channels on axis {space.axis}{kernel}"
