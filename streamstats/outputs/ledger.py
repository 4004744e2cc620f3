"""The ledger: what has been counted of a layer, and which rows that was, in one value and one file.

The law: rows are counted zero or one time. Statistics only enter together with the rows they were measured on, and
rows that are already in are refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ..calibration.identity import UNCOUNTED, Identities
from ..calibration.layer import EXTRAS, Layer
from ..coverage import Rows, add_rows, common_rows, join_rows, missing_rows, row_count, shown, without_rows
from ..errors import DataError, MismatchError, UsageError
from ..quantization import Quantization
from ..statistics.exact import is_canonical
from ..statistics.extrema import ChannelExtrema
from ..statistics.mean import ChannelMean
from ..statistics.spread import SampleSpread
from ..statistics.statistic import Statistic
from ..storage.tensors import content_digest, read_tensors, tensors_bytes

FORMAT = "streamstats.state/2"


@dataclass(frozen=True)
class Source:
    """What was counted of one array.

    `fingerprint` identifies what the array is made of (dtype, chunks, codecs), whatever its rows; `rows` is how many
    it had; `covered`, `excluded` and `filled` are [(start, stop), …] in order and apart: what is counted, what was
    taken out for good, and what was counted with the fill value for a chunk that could not be read. `files` int64[n, 2]
    identifies the files that were counted, as `calibration.identity` numbers them.
    """

    fingerprint: str
    rows: int = 0
    covered: tuple[Rows, ...] = ()
    excluded: tuple[Rows, ...] = ()
    filled: tuple[Rows, ...] = ()
    files: Identities = field(default_factory=lambda: np.empty((0, 2), np.int64))

    def count(self, rows: Rows, first_file: int, files: Identities, filled: Iterable[Rows] = ()) -> Source:
        """With `rows` counted, which are in `files` from the number `first_file` on. Raises `MismatchError`."""
        return replace(
            self,
            covered=add_rows(self.covered, rows),
            filled=join_rows([*self.filled, *filled]),
            files=_put(self.files, first_file, files),
        )

    def forget(self, rows: Rows, uncounted: Sequence[int]) -> Source:
        """With `rows` excluded, whether they were counted or not; the files numbered `uncounted` hold no others."""
        files = self.files.copy()
        files[[number for number in uncounted if number < len(files)]] = UNCOUNTED
        return replace(
            self,
            covered=without_rows(self.covered, [rows]),
            excluded=join_rows([*self.excluded, rows]),
            filled=without_rows(self.filled, [rows]),
            files=_trimmed(files),
        )

    def missing(self, rows: int) -> tuple[Rows, ...]:
        """The ranges of 0…`rows` that are neither counted nor excluded."""
        return missing_rows(join_rows([*self.covered, *self.excluded]), rows)

    def __eq__(self, other: object) -> bool:
        """Equal means equal bytes."""
        return isinstance(other, Source) and self._key() == other._key()

    def _key(self) -> tuple[object, ...]:
        return self.fingerprint, self.rows, self.covered, self.excluded, self.filled, self.files.tobytes()

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class LayerStatistics:
    """The statistics of a layer over the rows of its `sources`: one array, or several that were merged.

    `sums` and `extrema` are over the stored values; `mean`, `minimum` and `maximum` are in real units. `spread` and
    `positions` (whose channels are the elements of a sample of `sample_shape`, in C order) are kept where asked for.
    """

    layer: str
    channel_axis: int
    quantization: Quantization | None
    sources: tuple[Source, ...]
    sums: ChannelMean
    extrema: ChannelExtrema
    spread: SampleSpread | None = None
    positions: ChannelMean | None = None
    sample_shape: tuple[int, ...] = ()

    @classmethod
    def empty(cls, layer: Layer) -> LayerStatistics:
        """Nothing counted yet of `layer`."""
        with_positions = "positions" in layer.extras
        return cls(
            layer=layer.name,
            channel_axis=layer.channel_axis,
            quantization=layer.quantization,
            sources=(Source(layer.fingerprint, layer.rows),),
            sums=ChannelMean.empty(layer.channels, layer.dtype),
            extrema=ChannelExtrema.empty(layer.channels, layer.dtype),
            spread=SampleSpread.empty(layer.channels, layer.dtype) if "spread" in layer.extras else None,
            positions=ChannelMean.empty(prod(layer.sample_shape), layer.dtype) if with_positions else None,
            sample_shape=layer.sample_shape if with_positions else (),
        )

    def count(
        self,
        rows: Rows,
        sums: ChannelMean,
        extrema: ChannelExtrema,
        first_file: int = 0,
        files: Identities | None = None,
        filled: Iterable[Rows] = (),
        spread: SampleSpread | None = None,
        positions: ChannelMean | None = None,
    ) -> LayerStatistics:
        """With the statistics of `rows` counted in, which are in `files` from the number `first_file` on.

        Raises `MismatchError` if any of the rows is counted already, or others were measured than are kept.
        """
        identities = np.empty((0, 2), np.int64) if files is None else files
        return replace(
            self,
            sums=self.sums.merge(sums),
            extrema=self.extrema.merge(extrema),
            spread=_merged(self.spread, spread),
            positions=_merged(self.positions, positions),
            sources=(self.source.count(rows, first_file, identities, filled),),
        )

    def without(self, part: LayerStatistics, extrema: ChannelExtrema) -> LayerStatistics:
        """Less the sums of `part`, which was counted in; `extrema` are those of the rest. Raises `MismatchError`."""
        return replace(
            self,
            sums=self.sums.without(part.sums),
            extrema=extrema,
            spread=self.spread.without(part.spread) if self.spread and part.spread else None,
            positions=self.positions.without(part.positions) if self.positions and part.positions else None,
        )

    @property
    def extras(self) -> tuple[str, ...]:
        """The statistics of EXTRAS that are kept."""
        return tuple(name for name in EXTRAS if getattr(self, name) is not None)

    @property
    def source(self) -> Source:
        """The only source. Raises `MismatchError` for a merged layer."""
        if len(self.sources) != 1:
            raise MismatchError(
                f"layer {self.layer} is merged from {len(self.sources)} stores; go on in the outputs it was merged "
                "from, and merge them again"
            )
        return self.sources[0]

    @property
    def covered(self) -> tuple[Rows, ...]:
        """The counted rows, [(start, stop), …]; of a merged layer, those of each source behind each other."""
        return tuple(rows for source in self.sources for rows in source.covered)

    @property
    def excluded(self) -> tuple[Rows, ...]:
        """The rows that were taken out for good, likewise."""
        return tuple(rows for source in self.sources for rows in source.excluded)

    @property
    def rows(self) -> int:
        """How many rows are counted."""
        return row_count(self.covered)

    @property
    def channels(self) -> int:
        """The number of channels."""
        return self.sums.channels

    @cached_property
    def mean(self) -> npt.NDArray[np.float64]:
        """float64[C], real units: the nearest float64 to the exact mean; NaN for a channel without finite values."""
        try:
            return self.sums.mean(self.quantization)
        except UsageError as error:
            raise UsageError(f"layer {self.layer}: {error}") from error

    @cached_property
    def standard_error(self) -> npt.NDArray[np.float64] | None:
        """float64[C], real units: that of the mean, from how samples differ; None where `spread` is not kept.

        NaN for a channel of which it is not known, as `SampleSpread.standard_error` says.
        """
        return None if self.spread is None else self.spread.standard_error(self.sums, self.quantization)

    @cached_property
    def position_mean(self) -> npt.NDArray[np.float64] | None:
        """float64[C, *others], real units: the mean at each position of a sample; None where it is not kept."""
        if self.positions is None:
            return None
        quantization = self.quantization
        if quantization is not None and quantization.channels is not None:
            quantization = quantization.spread_over(self.sample_shape, self.channel_axis - 1)
        mean = self.positions.mean(quantization).reshape(self.sample_shape)
        return np.moveaxis(mean, self.channel_axis - 1, 0)

    @cached_property
    def minimum(self) -> npt.NDArray[np.float64]:
        """float64[C], real units: the least finite value; NaN for a channel without."""
        return self._real(self.extrema.minimum)

    @cached_property
    def maximum(self) -> npt.NDArray[np.float64]:
        """float64[C], real units: the greatest finite value; NaN for a channel without."""
        return self._real(self.extrema.maximum)

    def _real(self, values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        with np.errstate(over="ignore"):  # a step near the end of float64 takes the ends of a range to infinity
            real = values.astype(np.float64) if self.quantization is None else self.quantization.dequantize(values)
        return np.where(self.sums.count > 0, real, np.nan)

    def document(self) -> dict[str, Any]:
        """What was counted, JSON-ready: rows, coverage, what the values are, NaN and infinities in all."""
        return {
            "rows": self.rows,
            "covered": [list(rows) for rows in self.covered],
            "excluded": [list(rows) for rows in self.excluded],
            "filled": [list(rows) for source in self.sources for rows in source.filled],
            "stores": len(self.sources),
            "channels": self.channels,
            "channel_axis": self.channel_axis,
            "dtype": str(self.sums.dtype),
            "quantization": self.quantization.to_metadata() if self.quantization else None,
            "nan": int(self.sums.nan.sum()),
            "infinite": int(self.sums.infinite.sum()),
            "statistics": list(self.extras),
        }

    def sums_digest(self) -> str:
        """SHA-256 (hex) of the exact sums and counts."""
        return content_digest(self.sums.arrays(), {"dtype": str(self.sums.dtype)})


def _put(files: Identities, first: int, added: Identities) -> Identities:
    """`files` with those from the number `first` on replaced by `added`; what lies between is not counted."""
    if not len(added):
        return files
    grown = np.full((max(len(files), first + len(added)), 2), UNCOUNTED, np.int64)
    grown[: len(files)] = files
    grown[first : first + len(added)] = added
    return grown


def _trimmed(files: Identities) -> Identities:
    """Without the uncounted files at the end: equal coverage, equal bytes."""
    counted = np.flatnonzero(files[:, 0] != UNCOUNTED)
    return files[: counted[-1] + 1 if len(counted) else 0]


# Merging


Kept = TypeVar("Kept", SampleSpread, ChannelMean)


def _merged(mine: Kept | None, theirs: Kept | None) -> Kept | None:
    if mine is None and theirs is None:
        return None
    if mine is None or theirs is None:
        raise MismatchError("a statistic is kept in one of two parts only; expected the same in both")
    return mine.merge(theirs)


def merge(left: LayerStatistics, right: LayerStatistics) -> LayerStatistics:
    """The statistics over the rows of both. Raises `MismatchError`, with both sides, where they do not fit together.

    Arrays with the same fingerprint are the same store unless all files of theirs that are counted in both differ. The
    same row of one store counted in both is refused.
    """
    _check_alike(left, right)
    sources = list(left.sources)
    for added in right.sources:
        same = next((place for place, known in enumerate(sources) if _is_same_store(known, added)), None)
        if same is None:
            sources.append(added)
        else:
            sources[same] = _union(left.layer, sources[same], added)
    return replace(
        left,
        sources=tuple(
            sorted(
                sources, key=lambda source: (source.fingerprint, source.rows, source.covered, source.files.tobytes())
            )
        ),
        sums=left.sums.merge(right.sums),
        extrema=left.extrema.merge(right.extrema),
        spread=_merged(left.spread, right.spread),
        positions=_merged(left.positions, right.positions),
    )


def _check_alike(left: LayerStatistics, right: LayerStatistics) -> None:
    mine, theirs = (
        {
            "layer": each.layer,
            "dtype": str(each.sums.dtype),
            "channels": each.channels,
            "channel_axis": each.channel_axis,
            "quantization": each.quantization.to_metadata() if each.quantization else None,
            "statistics": list(each.extras),
            "sample_shape": list(each.sample_shape),
        }
        for each in (left, right)
    )
    differing = [key for key in mine if mine[key] != theirs[key]]
    if differing:
        said = "; ".join(f"{key} {mine[key]} and {theirs[key]}" for key in differing)
        raise MismatchError(f"layer {left.layer} cannot be merged: {said}; expected the same in both")


def _is_same_store(left: Source, right: Source) -> bool:
    if left.fingerprint != right.fingerprint:
        return False
    number = min(len(left.files), len(right.files))
    mine, theirs = left.files[:number], right.files[:number]
    both = (mine[:, 0] >= 0) & (theirs[:, 0] >= 0)
    equal = (mine == theirs).all(axis=1)
    return bool(equal[both].any() or not both.any())  # a file that was not full may have been written again


def _union(layer: str, left: Source, right: Source) -> Source:
    twice = common_rows(left.covered, right.covered)
    if twice:
        known = (left.files >= 0).any() and (right.files >= 0).any()
        why = "" if known else " (nothing tells their stores apart, so equal layouts are taken for one store)"
        raise MismatchError(
            f"layer {layer}: rows {shown(twice)} are counted in both{why}; expected each row once; merge outputs of "
            "different stores or of different rows"
        )
    number = max(len(left.files), len(right.files))
    files = np.full((number, 2), UNCOUNTED, np.int64)
    files[: len(left.files)] = left.files
    counted = np.flatnonzero(right.files[:, 0] != UNCOUNTED)
    files[counted] = right.files[counted]
    covered = join_rows([*left.covered, *right.covered])
    excluded = without_rows(join_rows([*left.excluded, *right.excluded]), covered)
    filled = join_rows([*left.filled, *right.filled])
    return Source(left.fingerprint, max(left.rows, right.rows), covered, excluded, filled, files)


# One file a layer


def state_bytes(statistics: LayerStatistics) -> bytes:
    """The file that holds `statistics`: equal statistics, equal bytes."""
    tensors = {
        **_prefixed("mean", statistics.sums),
        **_prefixed("extrema", statistics.extrema),
        **_prefixed("spread", statistics.spread),
        **_prefixed("positions", statistics.positions),
    }
    for number, source in enumerate(statistics.sources):
        tensors[f"source.{number}.covered"] = np.array(source.covered, np.int64).reshape(-1, 2)
        tensors[f"source.{number}.excluded"] = np.array(source.excluded, np.int64).reshape(-1, 2)
        tensors[f"source.{number}.filled"] = np.array(source.filled, np.int64).reshape(-1, 2)
        tensors[f"source.{number}.files"] = source.files
    quantization = statistics.quantization
    metadata = {
        "format": FORMAT,
        "layer": statistics.layer,
        "dtype": str(statistics.sums.dtype),
        "channel_axis": str(statistics.channel_axis),
        "quantization": json.dumps(quantization.to_metadata() if quantization else None, sort_keys=True),
        "sources": json.dumps([[source.fingerprint, source.rows] for source in statistics.sources]),
        "sample_shape": json.dumps(statistics.sample_shape),
    }
    return tensors_bytes(tensors, metadata)


def _prefixed(prefix: str, statistic: Statistic | None) -> dict[str, npt.NDArray[Any]]:
    return {} if statistic is None else {f"{prefix}.{name}": array for name, array in statistic.arrays().items()}


def read_state(path: Path) -> LayerStatistics:
    """Read what `state_bytes` made. Raises `DataError` for a file that is damaged or says impossible things."""
    tensors, metadata = read_tensors(path, FORMAT)
    try:
        return _from_file(tensors, metadata)
    except (DataError, KeyError, ValueError, TypeError) as error:
        raise DataError(f"{path} is not a usable state: {error}; remove it and run again") from error


def _from_file(tensors: dict[str, npt.NDArray[Any]], metadata: dict[str, str]) -> LayerStatistics:
    dtype = np.dtype(metadata["dtype"])
    parts = {
        prefix: {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)}
        for prefix in ("mean.", "extrema.", "spread.", "positions.")
    }
    sums = ChannelMean.from_arrays(parts["mean."], dtype)
    if not is_canonical(sums.digits):
        raise ValueError("the digits of the sums are not canonical")
    extrema = ChannelExtrema.from_arrays(parts["extrema."], dtype)
    if extrema.channels != sums.channels:
        raise ValueError(f"there are sums of {sums.channels} channels and extrema of {extrema.channels}")
    counts = (sums.count, sums.nan, sums.infinite)
    if any((count < 0).any() for count in counts):
        raise ValueError("a count is negative")
    spread = SampleSpread.from_arrays(parts["spread."], dtype) if parts["spread."] else None
    if spread is not None and (spread.channels != sums.channels or not is_canonical(spread.digits)):
        raise ValueError("the spread is not one of these channels")
    sample_shape = tuple(int(extent) for extent in json.loads(metadata["sample_shape"]))
    positions = ChannelMean.from_arrays(parts["positions."], dtype) if parts["positions."] else None
    if positions is not None and (positions.channels != prod(sample_shape) or not is_canonical(positions.digits)):
        raise ValueError(f"there are sums of {positions.channels} positions of samples of shape {sample_shape}")
    sources = [
        _source_from_file(tensors, number, fingerprint, rows)
        for number, (fingerprint, rows) in enumerate(json.loads(metadata["sources"]))
    ]
    if not sources:
        raise ValueError("it names no source")
    return LayerStatistics(
        layer=metadata["layer"],
        channel_axis=int(metadata["channel_axis"]),
        quantization=Quantization.from_metadata(json.loads(metadata["quantization"])),
        sources=tuple(sources),
        sums=sums,
        extrema=extrema,
        spread=spread,
        positions=positions,
        sample_shape=sample_shape,
    )


def _source_from_file(tensors: dict[str, npt.NDArray[Any]], number: int, fingerprint: object, rows: object) -> Source:
    found = {name: tensors[f"source.{number}.{name}"] for name in ("covered", "excluded", "filled", "files")}
    for name, array in found.items():
        if array.dtype != np.int64 or array.ndim != 2 or array.shape[1] != 2:
            raise ValueError(f"{name} is {array.dtype}{list(array.shape)}; expected int64[n, 2]")
    if type(fingerprint) is not str or type(rows) is not int or rows < 0:
        raise ValueError(f"a source is {fingerprint!r} with {rows!r} rows")
    counted, taken, filled = (
        tuple((start, stop) for start, stop in found[name].tolist()) for name in ("covered", "excluded", "filled")
    )
    for each in (counted, taken, filled):
        if join_rows(each) != each or any(not 0 <= start < stop <= rows for start, stop in each):
            raise ValueError(f"the rows {each} are not ranges of {rows} rows, in order and apart")
    if common_rows(counted, taken):
        raise ValueError("rows are both counted and excluded")
    return Source(fingerprint, rows, counted, taken, filled, found["files"])
