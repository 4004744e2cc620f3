"""Statistics: everything that is counted of a layer, in one value. Workers send it, ledgers hold it, state files store
it.

It merges, subtracts, compares and stores its members, and names none of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy.typing as npt

from ..errors import DataError, MismatchError, counted
from ..layouts import Kernel, Kernels
from ..quantization import Quantization
from .masks import Mask, chosen_bytes
from .meaning import Meaning, Replacing
from .riders import RiderKind, Taker, Where
from .running import Intake, Measures
from .statistic import Accumulator, Cut, Document, Space, Statistic, ValueStatistic
from .values import ValuePass, as_counted

Array = npt.NDArray[Any]
Kind = type[Statistic]


@dataclass(frozen=True, eq=False)
class Statistics(Mapping[str, Statistic]):
    """The statistics of some samples of `space`, by name."""

    space: Space
    members: Mapping[str, Statistic]

    def __repr__(self) -> str:
        return f"<Statistics of {counted(self.space.channels, 'channel')} of {self.space.dtype}: {', '.join(self)}>"

    @classmethod
    def empty(cls, kinds: Iterable[Kind], space: Space) -> Self:
        """The statistics of no samples."""
        return cls(space, {kind.name: kind.empty(space) for kind in kinds})

    def merge(self, other: Self) -> Self:
        """The statistics of the samples of both. Raises `MismatchError` unless both have the same, fitting members."""
        self._check_same(other)
        merged = {name: mine.merge(other.members[name]) for name, mine in self.members.items()}
        return type(self)(self.space.joined(other.space), merged)

    def without(self, part: Self, rest: Self | None = None) -> Self | None:
        """The statistics less the samples of `part`, which were merged in; `rest` covers some of the other samples.

        None if these do not determine every member, as `Statistic.without` explains. Raises `MismatchError`.
        """
        for each in (part, *([] if rest is None else [rest])):
            self._check_same(each)
        left = {
            name: mine.without(part.members[name], None if rest is None else rest.members[name])
            for name, mine in self.members.items()
        }
        known = {name: statistic for name, statistic in left.items() if statistic is not None}
        return type(self)(self.space, known) if len(known) == len(left) else None

    def arrays(self) -> dict[str, Array]:
        """The states of all members, `statistic.tensor` → array."""
        return {
            f"{name}.{tensor}": array
            for name, statistic in self.members.items()
            for tensor, array in statistic.arrays().items()
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array], kinds: Iterable[Kind], space: Space) -> Self:
        """The inverse of `arrays`. Raises `DataError` for impossible or unknown states."""
        members = {}
        for kind in kinds:
            prefix = f"{kind.name}."
            mine = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
            members[kind.name] = kind.from_arrays(mine, space)
        found = cls(space, members)
        strange = arrays.keys() - found.arrays().keys()
        if strange:
            raise DataError(f"tensor {sorted(strange)[0]} belongs to none of the statistics {', '.join(members)}")
        return found

    def check(self) -> None:
        """Raise `DataError` for values that no samples can give."""
        for statistic in self.members.values():
            statistic.check()

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of its members."""
        return tuple(type(statistic) for statistic in self.members.values())

    def document(self, quantization: Quantization | None) -> Document:
        """The figures of all members, in real units."""
        layer: dict[str, Any] = {}
        channels: dict[str, Array] = {}
        tables: dict[str, Any] = {}
        for statistic in self.members.values():
            said = statistic.document(quantization, self)
            layer |= said.layer
            channels |= said.channels
            tables |= said.tables
        return Document(layer, channels, tables)

    def with_kernel(self, kernel: Kernel | Kernels | None) -> Self:
        """What the same samples have for a layer with `kernel`.

        Members that only others with the same samples need are left out. Raises `MismatchError` if a member's state
        depends on the kernel and does not determine it.
        """
        space = replace(self.space, kernel=kernel)
        members = {
            name: statistic.with_kernel(kernel)
            for name, statistic in self.members.items()
            if not statistic.unasked or statistic.needed(space)
        }
        return replace(self, space=space, members=members)

    @property
    def uses_kernel(self) -> bool:
        """Whether the state of a member depends on the layer's kernel and the extents of samples."""
        return any(kind.uses_kernel for kind in self.kinds)

    def differing(self, other: Self) -> list[str]:
        """The names of members that are not equal to the bit. Raises `MismatchError` if the names do not match."""
        self._check_same(other)
        return [name for name, mine in self.members.items() if mine != other.members[name]]

    def __getitem__(self, name: str) -> Any:
        return self.members[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.members)

    def __len__(self) -> int:
        return len(self.members)

    def __eq__(self, other: object) -> bool:
        """Equal means equal bytes."""
        return isinstance(other, Statistics) and dict(self.members) == dict(other.members)

    __hash__ = None  # type: ignore[assignment]

    def _check_same(self, other: Self) -> None:
        mine, theirs = ([*each.members] for each in (self, other))
        if mine != theirs:
            raise MismatchError(
                f"the statistics {', '.join(mine)} and {', '.join(theirs)} do not fit together; expected the same"
            )


class StatisticsAccumulator:
    """Accumulates blocks for all `kinds` of a layer: value statistics share one pass, the others get every block.

    If `meaning` is given, blocks are of the stored values, and what they mean is counted; blocks of floats change. If
    `cut` is given, kinds with several cuts measure that one; all others are measured with the first.
    """

    def __init__(
        self, kinds: Sequence[Kind], space: Space, meaning: Meaning | None = None, cut: int | None = None
    ) -> None:
        cut_kinds = [kind for kind in kinds if cut is not None and kind.cuts(space) > 1]
        kinds = [kind for kind in kinds if not cut and kind not in cut_kinds]
        self._kinds, self._space, self._meaning = tuple(kinds), space, meaning
        self._replacing = None if meaning is None else Replacing(meaning)
        self.values = ValuePass(
            space.dtype, space.sample, space.axis, by_sample=_by_sample(kinds, space), riders=_riders(kinds, space)
        )
        self.others: dict[str, Accumulator[Any]] = {
            kind.name: kind.accumulator(space) for kind in kinds if not issubclass(kind, ValueStatistic)
        }
        self._has_values = len(self.others) < len(kinds)
        self._cuts: dict[str, Accumulator[Cut]] = {
            kind.name: kind.cut_accumulator(space, cut or 0) for kind in cut_kinds if (cut or 0) < kind.cuts(space)
        }

    @property
    def takes_blocks(self) -> bool:
        """Whether a kind needs every block whole, in memory."""
        return bool(self.others or self._cuts)

    def add(self, block: Array, where: Where, mask: Mask | None = None) -> None:
        """As `Accumulator.add`. Raises as `Replacing.counted`."""
        if self._replacing is not None:
            block = self._replacing.counted(block, self._space.axis + 1, mask)
        if self._has_values:
            self.values.add(block, where, mask)
        self.add_measured(block, where, mask)

    def intake(self, where: Where) -> tuple[Taker, Intake] | None:
        """As `ValuePass.intake`, of stored values."""
        if not self._has_values:
            return None
        taken = self.values.intake(where)
        return taken if taken is None or self._replacing is None else self._replacing.before(taken)

    def add_measured(self, block: Array, where: Where, mask: Mask | None = None) -> None:
        """Take a block that `values` has taken: the other kinds get it."""
        masked = () if mask is None else (mask,)
        block = as_counted(block) if self.takes_blocks else block
        for accumulator in (*self.others.values(), *self._cuts.values()):
            accumulator.add(block, where, *masked)

    @property
    def all_finite(self) -> bool:
        """Whether all values so far are finite, but for missing ones."""
        if self.values.all_finite or self._meaning is None or self._replacing is None:
            return self.values.all_finite
        nan, infinite = self.values.nonfinite
        return not infinite and (self._meaning.nan or nan == self._replacing.replaced)

    def cuts(self) -> dict[str, Cut]:
        """What kinds with several cuts have measured, by their names."""
        return {name: accumulator.found() for name, accumulator in self._cuts.items()}

    def found(self) -> Statistics:
        """The statistics of all blocks so far, without kinds that are cut."""
        measures = self.values.found()
        return Statistics(self._space, {kind.name: self._found(kind, measures) for kind in self._kinds})

    def _found(self, kind: Kind, measures: Measures) -> Statistic:
        if issubclass(kind, ValueStatistic):
            return kind.from_measures(self._space, measures)
        found: Statistic = self.others[kind.name].found()
        return found


def state_bytes(kinds: Iterable[Kind], space: Space) -> int:
    """The bytes of the statistics of a layer."""
    return sum(kind.state_bytes(space) for kind in kinds)


def working_bytes(kinds: Sequence[Kind], space: Space, block: Sequence[int]) -> int:
    """Peak bytes that accumulating blocks of at most the shape `block` needs, in addition to the blocks."""
    riders = _riders(kinds, space).values()
    values = ValuePass.working_bytes(
        space.dtype,
        space.sample,
        space.axis,
        block,
        by_sample=_by_sample(kinds, space),
        masked=space.masked,
        riders=riders,
    )
    others = sum(kind.working_bytes(space, block) for kind in kinds if not issubclass(kind, ValueStatistic))
    masked = chosen_bytes(block, space.axis + 1, space.dtype) if space.masked else 0
    return values + masked + others


def cuts_of(kinds: Iterable[Kind], space: Space) -> int:
    """In how many parts a layer is measured, each by a task of its own."""
    return max((kind.cuts(space) for kind in kinds), default=1)


def operations(kinds: Iterable[Kind], space: Space) -> int:
    """The multiplications that a sample costs, in addition to reading it."""
    return sum(kind.operations(space) for kind in kinds)


def cut_bytes(kinds: Iterable[Kind], space: Space) -> int:
    """The most bytes that measuring one part of a layer gives."""
    return sum(kind.cut_bytes(space) for kind in kinds)


def joined(kinds: Iterable[Kind], whole: Statistics, cuts: Sequence[Mapping[str, Cut]]) -> Statistics:
    """The statistics of `kinds`: those that are `whole`, and others from all their `cuts`, over the same samples."""
    members = dict(whole.members)
    for kind in kinds:
        if kind.name not in members:
            members[kind.name] = kind.joined(whole.space, [each[kind.name] for each in cuts if kind.name in each])
    return Statistics(whole.space, {kind.name: members[kind.name] for kind in kinds})


def _riders(kinds: Iterable[Kind], space: Space) -> dict[str, RiderKind]:
    """The riders of all `kinds`, each once."""
    riders: dict[str, RiderKind] = {}
    for kind in kinds:
        if issubclass(kind, ValueStatistic):
            riders |= kind.riders(space)
    return riders


def _by_sample(kinds: Iterable[Kind], space: Space) -> bool:
    return any(issubclass(kind, ValueStatistic) and kind.by_sample(space) for kind in kinds)
