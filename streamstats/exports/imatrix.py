"""imatrix: the sums of squares of the inputs of each weight, as llama.cpp's quantiser reads them, in a GGUF file.

The sums are exact, in real units, and rounded once to the float32 of the format; so are those of a merged file, which
are the exact sums of both.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ..errors import DataError, UsageError, listed, require, to_count
from ..outputs.layer_statistics import LayerStatistics
from ..statistics.squares import ChannelSquares
from .rounding import Float32Array, rounded

SQUARES, SUMS, COUNTS = ".in_sum2", ".in_sum", ".counts"
DATASETS, CHUNK_COUNT, CHUNK_SIZE = "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"
KIND = "general.type"
LONGEST_NAME = 63
"""Characters of a tensor's name that llama.cpp reads."""


@dataclass(frozen=True, eq=False)
class Entry:
    """The sums over the inputs of a weight: float32[matrices, inputs], `sums` if known; `counts` float32[matrices]."""

    squares: Float32Array
    sums: Float32Array | None
    counts: Float32Array


@dataclass(frozen=True)
class Imatrix:
    """The content of a file: an entry for each weight, and what they were counted over."""

    entries: Mapping[str, Entry]
    datasets: Sequence[str]
    chunk_count: int
    chunk_size: int

    @classmethod
    def of(cls, layers: Mapping[str, LayerStatistics], datasets: Sequence[str], earlier: Self | None = None) -> Self:
        """The sums of `layers`, by the name of the weight, added to those of an `earlier` file.

        A chunk is a row, of as many values per channel as the rows of the longest layer have, or one of the earlier
        file. Raises `UsageError` for a layer without `squares`, and for one that does not fit.
        """
        _check_counted(layers)
        _check_names(layers)
        known = {} if earlier is None else earlier.entries
        added = {name: _entry(name, found, known.get(name)) for name, found in layers.items()}
        counted = max(_count(name, found) for name, found in layers.items())
        if earlier is not None:
            size, before, names = earlier.chunk_size, earlier.chunk_count, [*earlier.datasets, *datasets]
        else:
            rows = max(found.rows for found in layers.values())
            size, before, names = -(-counted // rows), 0, [*datasets]
        return cls({**known, **added}, names, before + -(-counted // size), size)

    def to_bytes(self) -> bytes:
        """The GGUF file: equal content, equal bytes. Raises `MissingDependencyError` without the gguf package."""
        gguf = require("gguf", "gguf")
        writer = _writer(gguf)
        writer.add_string(KIND, "imatrix")
        writer.add_array(DATASETS, [*self.datasets])
        writer.add_uint32(CHUNK_COUNT, self.chunk_count)
        writer.add_uint32(CHUNK_SIZE, self.chunk_size)
        tensors = self._tensors()
        for name, tensor in tensors.items():
            writer.add_tensor_info(name, tensor.shape, tensor.dtype, tensor.nbytes)
        file = io.BytesIO()
        writer.fout, writer.state = [file], gguf.gguf_writer.WriterState.EMPTY  # as if it had opened the file
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors.values():
            writer.write_padding(file, file.tell())
            file.write(tensor.tobytes())
        writer.write_padding(file, file.tell())
        return file.getvalue()

    def _tensors(self) -> dict[str, Float32Array]:
        found: dict[str, Float32Array] = {}
        for name, entry in sorted(self.entries.items()):
            found[name + SQUARES] = entry.squares.astype("<f4")
            found[name + COUNTS] = entry.counts.reshape(-1, 1).astype("<f4")
            if entry.sums is not None:
                found[name + SUMS] = entry.sums.astype("<f4")
        return found


def _writer(gguf: Any) -> Any:
    """A writer of files without an architecture."""

    class Writer(gguf.GGUFWriter):  # type: ignore[misc]
        def add_architecture(self) -> None:
            """An imatrix has none."""

    return Writer(None, "")


def inexact(layers: Mapping[str, LayerStatistics], earlier: Imatrix | None = None) -> list[str]:
    """The weights whose counts float32 cannot hold: they are rounded, by at most 6e-8 of their value."""
    known = {} if earlier is None else earlier.entries
    totals = {name: _total(name, found, known.get(name)) for name, found in layers.items()}
    return [name for name, total in totals.items() if int(np.float32(total)) != total]


def _total(name: str, found: LayerStatistics, earlier: Entry | None) -> int:
    return _count(name, found) + (0 if earlier is None else int(earlier.counts[0]))


def _check_counted(layers: Mapping[str, LayerStatistics]) -> None:
    without = [found.layer for found in layers.values() if ChannelSquares.name not in found.statistics]
    if without:
        raise UsageError(f"`squares` was not counted for {listed(without)}; {to_count(ChannelSquares.name)}")


def _check_names(names: Iterable[str]) -> None:
    for name in names:
        if len(name + SQUARES) > LONGEST_NAME:
            raise UsageError(
                f"the name {name} is too long: llama.cpp reads names of at most {LONGEST_NAME - len(SQUARES)} "
                "characters; give the weight's name in llama.cpp with --names"
            )


def _count(name: str, found: LayerStatistics) -> int:
    """The number of values of each channel. Raises `UsageError` if channels differ."""
    counts = np.unique(found.sums.count)
    if len(counts) != 1:
        raise UsageError(
            f"layer {found.layer} has {counts[0]:,} to {counts[-1]:,} finite values in its channels, but an imatrix "
            f"has one count for all inputs of {name}; leave the layer out, or repair its NaN and infinities"
        )
    return int(counts[0])


def _entry(name: str, found: LayerStatistics, earlier: Entry | None) -> Entry:
    squares: ChannelSquares = found.statistics[ChannelSquares.name]
    shape = (1, found.channels)
    if earlier is None:
        nothing = np.zeros(shape, np.float32)
        earlier = Entry(nothing, nothing, np.zeros(1, np.float32))
    if earlier.squares.shape != shape:
        raise UsageError(
            f"{name}: layer {found.layer} has the sums of {_shape(shape)}, but the file to merge has those of "
            f"{_shape(earlier.squares.shape)}; expected the same: check the names, or leave the layer out"
        )
    totals = squares.totals(found.sums, found.quantization), found.sums.totals(found.quantization)
    return Entry(
        squares=_added(totals[0], earlier.squares, found.layer),
        sums=None if earlier.sums is None else _added(totals[1], earlier.sums, found.layer),
        counts=rounded([Fraction(_total(name, found, earlier))], found.layer),
    )


def _shape(shape: Sequence[int]) -> str:
    return f"{shape[0]} matrix of {shape[1]} inputs" if shape[0] == 1 else f"{shape[0]} matrices of {shape[1]} inputs"


def _added(totals: Sequence[Fraction], earlier: Float32Array, layer: str) -> Float32Array:
    both = [total + Fraction(old) if old else total for total, old in zip(totals, earlier[0].tolist(), strict=True)]
    return rounded(both, layer).reshape(earlier.shape)


# Reading


def read_imatrix(path: str | Path) -> Imatrix:
    """The imatrix in the GGUF file at `path`. Raises `DataError`, `MissingDependencyError`."""
    gguf = require("gguf", "gguf")
    try:
        reader = gguf.GGUFReader(str(path))
        fields = {name: field.contents() for name, field in reader.fields.items()}
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # a damaged file makes the reader raise anything
        raise DataError(
            f"{path} is not a GGUF file ({error}); expected an imatrix: convert one of the older format with "
            "`llama-imatrix --in-file OLD.dat -o NEW.gguf`"
        ) from error
    missing = [key for key in (DATASETS, CHUNK_COUNT, CHUNK_SIZE) if key not in fields]
    if fields.get(KIND) != "imatrix" or missing:
        raise DataError(f"{path} is not an imatrix: {_what_is_wrong(fields, missing)}; name a file of llama-imatrix")
    tensors = {each.name: np.array(each.data) for each in reader.tensors}
    return Imatrix(_entries(path, tensors), fields[DATASETS], int(fields[CHUNK_COUNT]), int(fields[CHUNK_SIZE]))


def _what_is_wrong(fields: Mapping[str, Any], missing: Sequence[str]) -> str:
    if fields.get(KIND) != "imatrix":
        return f"{KIND} is {fields.get(KIND)!r}; expected 'imatrix'"
    return f"it has no {listed(missing)}"


def _entries(path: str | Path, tensors: Mapping[str, npt.NDArray[Any]]) -> dict[str, Entry]:
    names = sorted({_weight(path, name) for name in tensors})
    for name in names:
        squares, counts = tensors.get(name + SQUARES), tensors.get(name + COUNTS)
        if squares is None or counts is None or counts.size != len(squares) or _differ(tensors, name):
            raise DataError(f"{path}: the sums and counts of {name} do not fit together; the file is damaged")
    return {
        name: Entry(tensors[name + SQUARES], tensors.get(name + SUMS), tensors[name + COUNTS].reshape(-1))
        for name in names
    }


def _differ(tensors: Mapping[str, npt.NDArray[Any]], name: str) -> bool:
    """Whether there are sums of another shape than the sums of squares."""
    return name + SUMS in tensors and tensors[name + SUMS].shape != tensors[name + SQUARES].shape


def _weight(path: str | Path, tensor: str) -> str:
    for suffix in (SQUARES, SUMS, COUNTS):
        if tensor.endswith(suffix):
            return tensor.removesuffix(suffix)
    raise DataError(
        f"{path}: tensor {tensor} is unknown; expected names that end in {SQUARES}, {SUMS} or {COUNTS}; merge it with "
        "llama-imatrix"
    )
