"""The ledger: what has been counted of a layer, and which rows that was, in one value and one file.

The law: rows are counted zero or one time. Statistics only enter together with the rows they were measured on, and
rows that are already in are refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .artifacts import content_digest, read_tensors, tensors_bytes
from .calibration.layer import Layer
from .errors import DataError, MismatchError, UsageError
from .quantization import Quantization
from .statistics.exact import is_canonical
from .statistics.extrema import ChannelExtrema
from .statistics.mean import ChannelMean

Rows = tuple[int, int]
FORMAT = "streamstats.state/1"


@dataclass(frozen=True)
class LayerStatistics:
    """The statistics of a layer over the `covered` rows, [(start, stop), …] in order and apart.

    `sums` and `extrema` are over the stored values; `mean`, `minimum` and `maximum` are in real units.
    `fingerprint` identifies what the array is made of (dtype, chunks, codecs), whatever its rows.
    """

    layer: str
    channel_axis: int
    quantization: Quantization | None
    fingerprint: str
    sums: ChannelMean
    extrema: ChannelExtrema
    covered: tuple[Rows, ...] = field(default=())

    @classmethod
    def empty(cls, layer: Layer) -> LayerStatistics:
        """Nothing counted yet of `layer`."""
        return cls(
            layer=layer.name,
            channel_axis=layer.channel_axis,
            quantization=layer.quantization,
            fingerprint=layer.fingerprint,
            sums=ChannelMean.empty(layer.channels, layer.dtype),
            extrema=ChannelExtrema.empty(layer.channels, layer.dtype),
        )

    def count(self, rows: Rows, sums: ChannelMean, extrema: ChannelExtrema) -> LayerStatistics:
        """With the statistics of `rows` counted in. Raises `MismatchError` if any of them is counted already."""
        return replace(
            self,
            sums=self.sums.merge(sums),
            extrema=self.extrema.merge(extrema),
            covered=add_rows(self.covered, rows),
        )

    @property
    def rows(self) -> int:
        """How many rows are counted."""
        return sum(stop - start for start, stop in self.covered)

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
            "channels": self.channels,
            "channel_axis": self.channel_axis,
            "dtype": str(self.sums.dtype),
            "quantization": self.quantization.to_metadata() if self.quantization else None,
            "nan": int(self.sums.nan.sum()),
            "infinite": int(self.sums.infinite.sum()),
        }

    def sums_digest(self) -> str:
        """SHA-256 (hex) of the exact sums and counts."""
        return content_digest(self.sums.arrays(), {"dtype": str(self.sums.dtype)})


def add_rows(covered: Sequence[Rows], rows: Rows) -> tuple[Rows, ...]:
    """`covered` with `rows` added, neighbours joined. Raises `MismatchError` where they overlap or are no range.

    >>> add_rows(((0, 4), (8, 9)), (4, 8))
    ((0, 9),)
    """
    if not 0 <= rows[0] <= rows[1]:
        raise MismatchError(f"rows {rows[0]}:{rows[1]} are not a range; expected 0 ≤ start ≤ stop")
    if rows[0] == rows[1]:
        return tuple(covered)
    merged: list[Rows] = []
    for start, stop in sorted([*covered, rows]):
        if merged and start < merged[-1][1]:
            raise MismatchError(f"rows {start}:{min(stop, merged[-1][1])} are counted already; expected each row once")
        if merged and start == merged[-1][1]:
            merged[-1] = (merged[-1][0], stop)
        else:
            merged.append((start, stop))
    return tuple(merged)


def missing_rows(covered: Iterable[Rows], rows: int) -> tuple[Rows, ...]:
    """The ranges of 0…`rows` that `covered` (in order, apart) leaves out.

    >>> missing_rows(((2, 4),), 6)
    ((0, 2), (4, 6))
    """
    gaps: list[Rows] = []
    reached = 0
    for start, stop in (*covered, (rows, rows)):
        if reached < start:
            gaps.append((reached, start))
        reached = max(reached, stop)
    return tuple(gaps)


# One file a layer


def state_bytes(statistics: LayerStatistics) -> bytes:
    """The file that holds `statistics`: equal statistics, equal bytes."""
    tensors = {
        **{f"mean.{name}": array for name, array in statistics.sums.arrays().items()},
        **{f"extrema.{name}": array for name, array in statistics.extrema.arrays().items()},
        "covered": np.array(statistics.covered, np.int64).reshape(-1, 2),
    }
    quantization = statistics.quantization
    metadata = {
        "format": FORMAT,
        "layer": statistics.layer,
        "dtype": str(statistics.sums.dtype),
        "channel_axis": str(statistics.channel_axis),
        "quantization": json.dumps(quantization.to_metadata() if quantization else None, sort_keys=True),
        "fingerprint": statistics.fingerprint,
    }
    return tensors_bytes(tensors, metadata)


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
        for prefix in ("mean.", "extrema.")
    }
    sums = ChannelMean.from_arrays(parts["mean."], dtype)
    if not is_canonical(sums.digits):
        raise ValueError("the digits of the sums are not canonical")
    extrema = ChannelExtrema.from_arrays(parts["extrema."], dtype)
    if extrema.channels != sums.channels:
        raise ValueError(f"there are sums of {sums.channels} channels and extrema of {extrema.channels}")
    covered: tuple[Rows, ...] = ()
    for start, stop in tensors["covered"].tolist():
        covered = add_rows(covered, (start, stop))
    return LayerStatistics(
        layer=metadata["layer"],
        channel_axis=int(metadata["channel_axis"]),
        quantization=Quantization.from_metadata(json.loads(metadata["quantization"])),
        fingerprint=metadata["fingerprint"],
        sums=sums,
        extrema=extrema,
        covered=covered,
    )
