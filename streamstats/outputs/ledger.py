"""The ledger: the statistics of a layer and the rows they cover, in one value and one file.

The law: each row is counted zero or one time. Statistics enter only together with the rows they were measured on, and
rows that are already counted are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self, TypeVar

import numpy as np

from ..calibration.attributes import Attributes
from ..calibration.layer import Layer
from ..calibration.readers import Readers
from ..calibration.sources.identities import UNCOUNTED, Identities, has_identity, is_counted
from ..coverage import EMPTY, Coverage, Rows
from ..errors import MismatchError, in_words
from ..layouts import Kernels
from ..quantization import Quantization
from ..statistics.mean import ChannelMean
from ..statistics.statistic import Document, Space
from ..statistics.statistics import Statistics


def no_files() -> Identities:
    """The identities of no files."""
    return np.empty((0, 2), np.int64)


@dataclass(frozen=True)
class Measured:
    """The statistics of the `rows` of a layer, and the identities of their `files`, numbered from `first_file`.

    If the layer has a mask, `mask_files` are those of the mask, from `first_mask_file`.
    `filled` are rows with chunks that could not be read, in whose place the fill value was counted.
    """

    layer: str
    rows: Rows
    statistics: Statistics
    first_file: int
    files: Identities
    filled: Coverage = EMPTY
    first_mask_file: int = 0
    mask_files: Identities = field(default_factory=no_files)


@dataclass(frozen=True)
class CountedSource:
    """What was counted from one array.

    `fingerprint` identifies how the array is stored (dtype, chunks, codecs), whatever its rows; `rows` is its number of
    rows. `covered` rows are counted, `excluded` rows are never counted again; for chunks in `filled` rows, which could
    not be read, the fill value was counted; `accepted` rows have changed since, and what was counted of them was kept.
    `files` int64[n, 2] identifies the counted files, as `calibration.identity` numbers them; `mask_files` those of the
    array called `mask`, which says which positions count, if there is one.
    """

    fingerprint: str
    rows: int = 0
    covered: Coverage = EMPTY
    excluded: Coverage = EMPTY
    filled: Coverage = EMPTY
    accepted: Coverage = EMPTY
    files: Identities = field(default_factory=no_files)
    mask: str = ""
    mask_files: Identities = field(default_factory=no_files)

    def count(self, measured: Measured) -> CountedSource:
        """With the rows and files of `measured` counted.

        Raises `MismatchError` if any of the rows is already counted.
        """
        added = Coverage.of([measured.rows])
        twice = self.covered & added
        if twice:
            raise MismatchError(f"rows {twice} are already counted; expected each row once")
        return replace(
            self,
            covered=self.covered | added,
            filled=self.filled | measured.filled,
            files=_put(self.files, measured.first_file, measured.files),
            mask_files=_put(self.mask_files, measured.first_mask_file, measured.mask_files),
        )

    def forget(self, rows: Coverage, uncounted: list[int], uncounted_masks: list[int]) -> CountedSource:
        """With `rows` excluded, counted or not.

        The files numbered `uncounted`, and those of the mask numbered `uncounted_masks`, hold no other counted rows.
        """
        return replace(
            self,
            covered=self.covered - rows,
            excluded=self.excluded | rows,
            filled=self.filled - rows,
            accepted=self.accepted - rows,
            files=_without(self.files, uncounted),
            mask_files=_without(self.mask_files, uncounted_masks),
        )

    def missing(self, rows: int) -> Coverage:
        """Those of the first `rows` rows that are neither counted nor excluded."""
        return Coverage.first(rows) - (self.covered | self.excluded)

    def __eq__(self, other: object) -> bool:
        """Equal means equal bytes."""
        return isinstance(other, CountedSource) and self._key() == other._key()

    def _key(self) -> tuple[object, ...]:
        rows = self.covered, self.excluded, self.filled, self.accepted
        return self.fingerprint, self.rows, rows, self.files.tobytes(), self.mask, self.mask_files.tobytes()

    __hash__ = None  # type: ignore[assignment]


def source_of(layer: Layer, rows: int | None = None) -> CountedSource:
    """The array of `layer` before any row is counted, with as many `rows` as it has, or as are given."""
    mask = "" if layer.mask is None else layer.mask.name
    return CountedSource(layer.fingerprint, layer.rows if rows is None else rows, mask=mask)


@dataclass(frozen=True)
class Ledger:
    """What is counted of a layer: its `statistics` over the rows of its `sources`, one array or several merged ones.

    The statistics describe the stored values; `quantization` maps them to real units. `readers` are the layers of the
    model that read what was counted; None means the layer of its own name, `layer`. `tensor` is the model's name of it,
    empty if unknown. `array` is the name under which it was counted, empty if that is `layer`. `rows_are` says what
    rows are if they are no samples. `attributes` is what attributes of CF said of the values, if anything.
    """

    layer: str
    channel_axis: int
    quantization: Quantization | None
    sources: tuple[CountedSource, ...]
    statistics: Statistics
    readers: Readers | None = None
    tensor: str = ""
    array: str = ""
    rows_are: str = ""
    attributes: Attributes | None = None

    @classmethod
    def empty(cls, layer: Layer) -> Self:
        """The ledger of `layer` before any row is counted."""
        return cls(
            layer=layer.name,
            channel_axis=layer.channel_axis,
            quantization=layer.quantization,
            sources=(source_of(layer),),
            statistics=Statistics.empty(layer.kinds, layer.space),
            readers=layer.readers,
            tensor=layer.tensor,
            rows_are=layer.rows_are,
            attributes=layer.attributes,
        )

    def count(self, measured: Measured) -> Self:
        """With the rows and statistics of `measured` counted.

        Raises `MismatchError` if any of its rows is already counted, or its statistics are not those of the ledger.
        """
        source = self.source.count(measured)
        return replace(self, statistics=self.statistics.merge(measured.statistics), sources=(source,))

    @property
    def read_by(self) -> Readers:
        """The layers of the model that read it."""
        if self.readers is not None:
            return self.readers
        kernel = self.space.kernel
        assert not isinstance(kernel, Kernels)
        return Readers.of({self.layer: kernel})

    def read_as(self, layer: str) -> Self:
        """The ledger of `layer`, one of those that read it: what is counted if its input is stored for it alone."""
        if self.readers is None:
            return self
        statistics = self.statistics.with_kernel(self.readers.kernel_of(layer))
        return replace(self, layer=layer, statistics=statistics, readers=None, array=self.layer)

    @property
    def source(self) -> CountedSource:
        """The only source. Raises `MismatchError` for a merged layer."""
        if len(self.sources) != 1:
            raise MismatchError(
                f"layer {self.layer} is merged from {len(self.sources)} stores; expected an output of one run: run in "
                "the outputs that were merged, then merge them again"
            )
        return self.sources[0]

    @property
    def covered(self) -> tuple[Rows, ...]:
        """The counted rows, ((start, stop), …); for a merged layer, one source after the other."""
        return tuple(rows for source in self.sources for rows in source.covered.ranges)

    @property
    def excluded(self) -> tuple[Rows, ...]:
        """The excluded rows, in the same form."""
        return tuple(rows for source in self.sources for rows in source.excluded.ranges)

    @property
    def rows(self) -> int:
        """The number of counted rows."""
        return sum(len(source.covered) for source in self.sources)

    @property
    def space(self) -> Space:
        """The space of its statistics."""
        return self.statistics.space

    @property
    def channels(self) -> int:
        """The number of channels."""
        return self.space.channels

    @property
    def kernel(self) -> dict[str, Any] | list[dict[str, Any]] | None:
        """What moves over the samples, JSON-ready: a kernel, several, or None if unknown."""
        return None if self.space.kernel is None else self.space.kernel.to_metadata()

    @property
    def masked(self) -> tuple[int, int] | None:
        """(positions that the mask left out, all positions) of the counted rows; None without a mask.

        None, too, if rows of several extents were merged.
        """
        space, sums = self.space, self.statistics[ChannelMean.name]
        if not space.masked or 0 in space.sample:
            return None
        positions = self.rows * space.positions
        return positions - int((sums.count + sums.nonfinite)[0]), positions

    @property
    def missing_values(self) -> str:
        """Which stored values did not count, as text; "none" if all did.

        NaN are not mentioned: they never count, and whether attributes call them missing changes nothing of the sums.
        """
        return "none" if self.attributes is None else self.attributes.missing_in_words(but_nan=True)

    @property
    def notes(self) -> list[str]:
        """What attributes say of the values, a line for each thing."""
        return [] if self.attributes is None else self.attributes.in_words(self.quantization)

    @property
    def units(self) -> str:
        """The units of real values, empty if unknown."""
        return "" if self.attributes is None else self.attributes.units

    def figures(self) -> Document:
        """The figures of its statistics, in real units."""
        return self.statistics.document(self.quantization)

    def document(self) -> dict[str, Any]:
        """What was counted, JSON-ready: rows, coverage, the meaning of the values, and which statistics."""
        return {
            "rows": self.rows,
            "covered": [rows for source in self.sources for rows in source.covered.document()],
            "excluded": [rows for source in self.sources for rows in source.excluded.document()],
            "filled": [rows for source in self.sources for rows in source.filled.document()],
            "accepted": [rows for source in self.sources for rows in source.accepted.document()],
            "stores": len(self.sources),
            "channels": self.channels,
            "channel_axis": self.channel_axis,
            "dtype": str(self.space.dtype),
            "quantization": self.quantization.to_metadata() if self.quantization else None,
            "kernel": self.kernel,
            "mask": self.space.masked,
            "masked": None if self.masked is None else dict(zip(("positions", "of"), self.masked, strict=True)),
            "statistics": [*self.statistics],
            "array": self.array or self.layer,
            "tensor": self.tensor or None,
            "rows_are": self.rows_are or "samples",
            "attributes": None if self.attributes is None else self.attributes.to_metadata(),
        }


def _put(files: Identities, first: int, added: Identities) -> Identities:
    """`files` with those numbered from `first` replaced by `added`; any gap before them is uncounted."""
    if not len(added):
        return files
    grown = np.full((max(len(files), first + len(added)), 2), UNCOUNTED, np.int64)
    grown[: len(files)] = files
    grown[first : first + len(added)] = added
    return grown


def _without(files: Identities, uncounted: list[int]) -> Identities:
    """`files` with those numbered `uncounted` not counted, and none such at the end: equal coverage, equal bytes."""
    files = files.copy()
    files[[number for number in uncounted if number < len(files)]] = UNCOUNTED
    counted = np.flatnonzero(is_counted(files))
    return files[: counted[-1] + 1 if len(counted) else 0]


# Merging


L = TypeVar("L", bound=Ledger)


def merge(left: L, right: L) -> L:
    """The ledger over the rows of both. Raises `MismatchError`, naming both sides, if they do not fit together.

    Sources with equal fingerprints are the same store, unless every file that both have counted differs. A row of the
    same store that both have counted is refused.
    """
    _check_alike(left, right)
    sources = list(left.sources)
    for added in right.sources:
        same = next((place for place, known in enumerate(sources) if is_same_store(known, added)), None)
        if same is None:
            sources.append(added)
        else:
            sources[same] = _union(left.layer, sources[same], added)
    readers = left.read_by.union(right.read_by)
    return replace(
        left,
        sources=tuple(sorted(sources, key=_order)),
        statistics=left.statistics.merge(right.statistics).with_kernel(readers.kernel),
        readers=None if readers.is_only(left.layer) else readers,
        tensor=left.tensor if left.tensor == right.tensor else "",
        rows_are=left.rows_are or right.rows_are,
    )


def by_layer(ledgers: Mapping[str, L]) -> dict[str, L]:
    """The ledger of each layer, by name, from those that were counted; what no layer reads has its own name."""
    found: dict[str, L] = {}
    for ledger in ledgers.values():
        found |= {name: ledger.read_as(name) for name in ledger.read_by.names} or {ledger.layer: ledger}
    return dict(sorted(found.items()))


def _order(source: CountedSource) -> tuple[object, ...]:
    return source.fingerprint, source.rows, source.covered.ranges, source.files.tobytes()


def _check_alike(left: Ledger, right: Ledger) -> None:
    mine, theirs = (
        {
            "layer": each.layer,
            "dtype": str(each.space.dtype),
            "channels": each.channels,
            "channel axis": each.channel_axis,
            "quantisation": each.quantization.to_metadata() if each.quantization else None,
            "statistics": [*each.statistics],
            "kernel": each.kernel if each.statistics.uses_kernel else None,
            "sample shape": each.space.sample if each.statistics.uses_kernel else None,
            "mask": "one" if each.space.masked else "none",
            "missing values": each.missing_values,
        }
        for each in (left, right)
    )
    differing = [key for key in mine if mine[key] != theirs[key]]
    if differing:
        said = "; ".join(f"{key} {in_words(mine[key])} and {in_words(theirs[key])}" for key in differing)
        raise MismatchError(
            f"layer {left.layer} cannot be merged: {said}; expected the same in both; merge outputs of jobs that "
            "describe the layer alike"
        )


def is_same_store(left: CountedSource, right: CountedSource) -> bool:
    """Whether both were counted from one store: equal fingerprints, and not every file that both counted differs."""
    if left.fingerprint != right.fingerprint:
        return False
    number = min(len(left.files), len(right.files))
    mine, theirs = left.files[:number], right.files[:number]
    both = has_identity(mine) & has_identity(theirs)
    equal = (mine == theirs).all(axis=1)
    return bool(equal[both].any() or not both.any())  # one equal file suffices: an unfilled one may be rewritten


def same_stores(left: Ledger, right: Ledger) -> bool:
    """Whether both were counted from the same stores, as far as their chunks and files tell."""

    def all_in(some: Ledger, others: Ledger) -> bool:
        return all(any(is_same_store(each, other) for other in others.sources) for each in some.sources)

    return all_in(left, right) and all_in(right, left)


def _union(layer: str, left: CountedSource, right: CountedSource) -> CountedSource:
    twice = left.covered & right.covered
    if twice:
        known = has_identity(left.files).any() and has_identity(right.files).any()
        why = "" if known else " (the stores cannot be told apart, so equal layouts count as the same store)"
        raise MismatchError(
            f"layer {layer}: rows {twice} are counted in both{why}; expected each row once; merge outputs of "
            "different stores or of different rows"
        )
    if left.mask != right.mask:
        raise MismatchError(
            f"layer {layer}: rows of one store were counted with the masks {left.mask} and {right.mask}; expected the "
            "same mask; count one of them again"
        )
    covered = left.covered | right.covered
    excluded = (left.excluded | right.excluded) - covered
    filled, accepted = left.filled | right.filled, left.accepted | right.accepted
    files, mask_files = _both(left.files, right.files), _both(left.mask_files, right.mask_files)
    rows = max(left.rows, right.rows)
    return CountedSource(left.fingerprint, rows, covered, excluded, filled, accepted, files, left.mask, mask_files)


def _both(left: Identities, right: Identities) -> Identities:
    """The identities of the files that either side has counted; where both have, those of `right`."""
    files = np.full((max(len(left), len(right)), 2), UNCOUNTED, np.int64)
    files[: len(left)] = left
    counted = np.flatnonzero(is_counted(right))
    files[counted] = right[counted]
    return files
