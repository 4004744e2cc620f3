"""The ledger: the statistics of a layer and the rows they cover, in one value and one file.

The law: each row is counted zero or one time. Statistics enter only together with the rows they were measured on, and
rows that are already counted are refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self, TypeVar

import numpy as np

from ..calibration.addresses import ONLY, Address
from ..calibration.attributes import Attributes
from ..calibration.layer import Layer
from ..calibration.readers import Readers
from ..calibration.recorded_model import Weights, weights_among
from ..calibration.sources.identities import (
    FILE_COLUMNS,
    UNCOUNTED_FILE,
    Files,
    is_counted,
)
from ..coverage import EMPTY, Coverage, Rows
from ..errors import MismatchError, counted
from ..layouts import Kernel, Kernels
from ..quantization import Quantization
from ..statistics.mean import ChannelMean
from ..statistics.statistic import Cut, Document, Space
from ..statistics.statistics import Statistics
from ..storage.names import network_order


def no_files() -> Files:
    """The identities of no files."""
    return np.empty((0, FILE_COLUMNS), np.int64)


@dataclass(frozen=True)
class Measured:
    """The statistics of the `rows` of a layer, and the identities of their `files`, numbered from `first_file`.

    If the layer has a mask, `mask_files` are those of the mask, from `first_mask_file`.
    `filled` are rows with chunks that could not be read, in whose place the fill value was counted. `in_tail` says that
    the rows lie in a file with room for more, which may be written again. `cuts` are the parts of statistics that are
    measured in several, by name; before they are joined, `statistics` lacks these.
    """

    layer: str
    rows: Rows
    statistics: Statistics
    first_file: int
    files: Files
    filled: Coverage = EMPTY
    first_mask_file: int = 0
    mask_files: Files = field(default_factory=no_files)
    in_tail: bool = False
    cuts: Mapping[str, Cut] = field(default_factory=dict)


@dataclass(frozen=True)
class CountedSource:
    """What was counted from one array; `address` says from which one, if its layer has several.

    `fingerprint` identifies how the array is stored (dtype, chunks, codecs), whatever its rows; `rows` is its number of
    rows. `covered` rows are counted, `excluded` rows are never counted again; for chunks in `filled` rows, which could
    not be read, the fill value was counted; `accepted` rows have changed since, and what was counted of them was kept.
    `files` int64[n, 3] identifies the counted files, as `calibration.identity` numbers them; `mask_files` those of the
    array called `mask`, which says which positions count, if there is one. The rows from `settled_rows` on lie in a
    file with room for more; those of them that were counted apart are the `tail`. `recorded` says that its
    writer commits rows, as our recorder does: a file that has changed has grown. A file has room for `file_rows`, 0 if
    that is unknown, as in older states. `uuid` is that of an array of our recorder. `stores` are the locations of which
    one was its store, if `stores.located` has found them; its state does not have them.
    """

    fingerprint: str
    rows: int = 0
    covered: Coverage = EMPTY
    excluded: Coverage = EMPTY
    filled: Coverage = EMPTY
    accepted: Coverage = EMPTY
    files: Files = field(default_factory=no_files)
    mask: str = ""
    mask_files: Files = field(default_factory=no_files)
    tail: Coverage = EMPTY
    settled_rows: int = 0
    recorded: bool = False
    address: Address = ONLY
    file_rows: int = 0
    uuid: str = ""
    stores: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        """Where its rows are, and which of them are counted."""
        where = f" of {self.address}" if self.address != ONLY else ""
        return f"<CountedSource{where}: rows {self.covered or 'none'} of {self.rows}>"

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
            tail=self.tail | added if measured.in_tail else self.tail,
            files=_put(self.files, measured.first_file, measured.files),
            mask_files=_put(self.mask_files, measured.first_mask_file, measured.mask_files),
        )

    def forget(self, rows: Coverage, uncounted: list[int], uncounted_masks: list[int]) -> CountedSource:
        """With `rows` excluded, counted or not.

        The files numbered `uncounted`, and those of the mask numbered `uncounted_masks`, hold no other counted rows.
        """
        left = self.uncount(rows, uncounted, uncounted_masks)
        return replace(left, excluded=self.excluded | rows)

    def uncount(self, rows: Coverage, uncounted: list[int], uncounted_masks: list[int]) -> CountedSource:
        """With `rows` not counted. The numbers are those of `forget`."""
        return replace(
            self,
            covered=self.covered - rows,
            filled=self.filled - rows,
            accepted=self.accepted - rows,
            tail=self.tail - rows,
            files=_without(self.files, uncounted),
            mask_files=_without(self.mask_files, uncounted_masks),
        )

    def missing(self, rows: int) -> Coverage:
        """Those of the first `rows` rows that are neither counted nor excluded."""
        return Coverage.first(rows) - (self.covered | self.excluded)

    def document(self) -> dict[str, Any]:
        """Where it is, and which of its rows were counted, JSON-ready."""
        rows = ("covered", "excluded", "filled", "accepted")
        return {
            **self.address.document(),
            "rows": self.rows,
            **{name: getattr(self, name).document() for name in rows},
        }

    def __eq__(self, other: object) -> bool:
        """Equal means equal bytes."""
        return isinstance(other, CountedSource) and self._key() == other._key()

    def _key(self) -> tuple[object, ...]:
        rows = self.covered, self.excluded, self.filled, self.accepted, self.tail, self.settled_rows
        files = self.files.tobytes(), self.mask_files.tobytes()
        described = self.file_rows, self.mask, self.recorded, self.address, self.uuid
        return self.fingerprint, self.rows, rows, files, described

    __hash__ = None  # type: ignore[assignment]


def source_of(layer: Layer, rows: int | None = None) -> CountedSource:
    """The array of `layer` before any row is counted, with as many `rows` as it has, or as are given."""
    return CountedSource(
        layer.fingerprint,
        layer.rows if rows is None else rows,
        mask="" if layer.mask is None else layer.mask.name,
        settled_rows=layer.settled_rows,
        recorded=layer.commits,
        address=layer.address,
        file_rows=layer.shards[0] if layer.shards else 0,
        uuid=layer.uuid,
    )


def models_of(arrays: Iterable[Layer], known: Iterable[str] = ()) -> tuple[str, ...]:
    """The fingerprints of the models that `arrays` were recorded from, and those that are `known`, sorted."""
    return tuple(sorted({*known, *(array.model for array in arrays if array.model)}))


def weights_of(arrays: Iterable[Layer], known: Iterable[tuple[str, str]] = ()) -> Weights:
    """The fingerprints of the weights of the layers that read `arrays`, and those that are `known`, sorted."""
    return tuple(sorted({*known, *(weight for array in arrays for weight in array.weights)}))


@dataclass(frozen=True)
class Ledger:
    """What is counted of a layer: its `statistics` over the rows of its `sources`.

    It has one source for each of its arrays, in the order in which their rows follow each other; or those of several
    outputs that were merged.

    The statistics describe the stored values, with channels on `channel_axis` of the array; `quantization` maps them to
    real units. `readers` are the layers of the model that read what was counted; None means the layer of its own name,
    `layer`. `tensor` is the model's name of it, empty if unknown. `array` is the name under which it was counted, empty
    if that is `layer`. `rows_are` says what rows are if they are no samples; `models` are the fingerprints of the
    models that were recorded, as far as they are known, and `weights` those of the weights of the layers that read it;
    `order` is its place among the layers, as they were recorded, None if unknown. `attributes` is what attributes of CF
    said of the values, if anything.

    Rows of the tail of the source lie in a file that may be written again. `settled` are the statistics of all other
    rows, from which counting goes on if it is; None if there is no tail.
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
    models: tuple[str, ...] = ()
    weights: Weights = ()
    order: int | None = None
    attributes: Attributes | None = None
    settled: Statistics | None = None

    @classmethod
    def empty(cls, *arrays: Layer) -> Self:
        """The ledger of a layer that has these `arrays`, one at least, before any row is counted."""
        layer = arrays[0]
        return cls(
            layer=layer.counted_as,
            channel_axis=layer.channel_axis,
            quantization=layer.quantization,
            sources=tuple(map(source_of, arrays)),
            statistics=Statistics.empty(layer.kinds, layer.space),
            readers=layer.readers,
            tensor=layer.tensor,
            rows_are=layer.rows_are,
            models=models_of(arrays),
            weights=weights_of(arrays),
            order=layer.order,
            attributes=layer.attributes,
        )

    def at(self, address: Address) -> CountedSource:
        """The source at `address`. Raises `MismatchError` unless there is one, as in a merged layer."""
        found = [source for source in self.sources if source.address == address]
        if len(found) != 1:
            raise merged_error(self)
        return found[0]

    @property
    def is_merged(self) -> bool:
        """Whether its sources are those of several outputs, so that addresses do not tell them apart."""
        return len({source.address for source in self.sources}) < len(self.sources)

    @property
    def read_by(self) -> Readers:
        """The layers of the model that read it."""
        if self.readers is not None:
            return self.readers
        kernel = self.space.kernel
        assert not isinstance(kernel, Kernels)
        return Readers.of({self.layer: kernel})

    @property
    def source(self) -> CountedSource:
        """The only source. Raises `MismatchError` for a merged layer."""
        if len(self.sources) != 1:
            raise merged_error(self)
        return self.sources[0]

    @property
    def _has_addresses(self) -> bool:
        return any(source.address != ONLY for source in self.sources)

    @property
    def covered(self) -> tuple[Rows, ...]:
        """The counted rows, ((start, stop), …), one source after the other, each with its own numbers."""
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
    def masked_out(self) -> bool:
        """Whether the mask leaves out every position of the counted rows, of which there is one at least."""
        left_out, positions = self.masked or (0, 0)
        return 0 < positions == left_out

    @property
    def missing_values(self) -> str:
        """Which stored values did not count, as text; "none" if all did.

        NaN are not mentioned: they never count, and whether attributes call them missing changes nothing of the sums.
        """
        return "none" if self.attributes is None else self.attributes.missing_in_words(but_nan=True)

    @property
    def notes(self) -> list[str]:
        """What attributes say of the values, a line for each thing, and how many rows were filled."""
        said = [] if self.attributes is None else self.attributes.in_words(self.quantization)
        filled = sum(len(source.filled) for source in self.sources)
        return [*said, f"the fill value was counted for missing chunks in {counted(filled, 'row')}"] if filled else said

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
            **({"sources": [source.document() for source in self.sources]} if self._has_addresses else {}),
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
            "models": [*self.models],
            "weights": [weight for _, weight in self.weights],
            "order": self.order,
            "attributes": None if self.attributes is None else self.attributes.to_metadata(),
        }


# Counting


L = TypeVar("L", bound=Ledger)


def count(ledger: L, measured: Measured, address: Address = ONLY) -> L:
    """`ledger` with the rows and statistics of `measured` counted, which were read from the array at `address`.

    Raises `MismatchError` if any of its rows is already counted, or its statistics are not those of the ledger.
    """
    settled = ledger.settled
    if measured.in_tail:
        settled = ledger.statistics if settled is None else settled
    elif settled is not None:
        settled = settled.merge(measured.statistics)
    found = with_source(ledger, ledger.at(address).count(measured))
    return replace(found, statistics=ledger.statistics.merge(measured.statistics), settled=settled)


def with_source(ledger: L, source: CountedSource) -> L:
    """`ledger` with `source` in the place of the one at the same address."""
    sources = (source if each.address == source.address else each for each in ledger.sources)
    return replace(ledger, sources=tuple(sources))


def without_tail(ledger: L) -> L:
    """`ledger` with the rows of tails counted like all others."""
    sources = (replace(each, tail=EMPTY) if each.tail else each for each in ledger.sources)
    return replace(ledger, settled=None, sources=tuple(sources))


def for_kernel(ledger: L, kernel: Kernel | Kernels | None) -> L:
    """`ledger` with the statistics that a layer with `kernel` has of the same samples. Raises `MismatchError`."""
    settled = None if ledger.settled is None else ledger.settled.with_kernel(kernel)
    return replace(ledger, statistics=ledger.statistics.with_kernel(kernel), settled=settled)


def read_as(ledger: L, layer: str) -> L:
    """The ledger of `layer`, one of those that read it: what is counted if its input is stored for it alone."""
    if ledger.readers is None:
        return ledger
    found = for_kernel(ledger, ledger.readers.kernel_of(layer))
    return replace(found, layer=layer, readers=None, array=ledger.layer, weights=weights_among(ledger.weights, [layer]))


def merged_error(ledger: Ledger) -> MismatchError:
    """The error for an output that cannot be counted further, because it is merged from those of several stores."""
    return MismatchError(
        f"layer {ledger.layer} is merged from {len(ledger.sources)} stores; expected an output of one run: run in "
        "the outputs that were merged, then merge them again"
    )


def _put(files: Files, first: int, added: Files) -> Files:
    """`files` with those numbered from `first` replaced by `added`; any gap before them is uncounted."""
    if not len(added):
        return files
    grown = np.full((max(len(files), first + len(added)), FILE_COLUMNS), UNCOUNTED_FILE, np.int64)
    grown[: len(files)] = files
    grown[first : first + len(added)] = added
    return grown


def _without(files: Files, uncounted: list[int]) -> Files:
    """`files` with those numbered `uncounted` not counted, and none such at the end: equal coverage, equal bytes."""
    files = files.copy()
    files[[number for number in uncounted if number < len(files)]] = UNCOUNTED_FILE
    counted = np.flatnonzero(is_counted(files))
    return files[: counted[-1] + 1 if len(counted) else 0]


def by_layer(ledgers: Mapping[str, L]) -> dict[str, L]:
    """The ledger of each layer, by name, from those that were counted; what no layer reads has its own name.

    Layers are in the order in which they were recorded.
    """
    found: dict[str, L] = {}
    for ledger in ledgers.values():
        found |= {name: read_as(ledger, name) for name in ledger.read_by.names} or {ledger.layer: ledger}
    return {name: found[name] for name in sorted(found, key=lambda name: network_order(found[name].order, name))}


def in_both(left: Files, right: Files) -> tuple[Files, Files]:
    """The first of the files on each side, as many as both have."""
    number = min(len(left), len(right))
    return left[:number], right[:number]
