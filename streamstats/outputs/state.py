"""State files: each holds the ledger of one layer, from which the next run resumes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..calibration.addresses import ONLY, Address
from ..calibration.attributes import Attributes
from ..calibration.encoding.content import UNSAMPLED
from ..calibration.readers import Readers
from ..calibration.sources.identities import FILE_COLUMNS
from ..coverage import Coverage
from ..errors import DataError, WayOut
from ..layouts import Kernel
from ..quantization import Quantization
from ..statistics.kinds import ALWAYS, KINDS, Kind
from ..statistics.statistic import Space
from ..statistics.statistics import Statistics
from ..storage.tensors import read_any_tensors, read_tensors, tensors_bytes
from .layer_statistics import LayerStatistics
from .ledger import CountedSource, Ledger

FORMAT = "streamstats.state/6"
OLDER = "streamstats.state/5"
"""Read, too: it has no tails, and no contents of files."""
REMOVE = "remove it and run again"
ROWS = ("covered", "excluded", "filled", "accepted")
TAIL, SETTLED = "tail", "settled."

Arrays = Mapping[str, npt.NDArray[Any]]


def state_bytes(ledger: Ledger) -> bytes:
    """The bytes of the state file of `ledger`: equal ledgers, equal bytes."""
    tensors = dict(ledger.statistics.arrays())
    if ledger.settled is not None:
        tensors |= {SETTLED + name: array for name, array in ledger.settled.arrays().items()}
    for number, source in enumerate(ledger.sources):
        for name in (*ROWS, TAIL):
            tensors[_tensor(number, name)] = np.array(getattr(source, name).ranges, np.int64).reshape(-1, 2)
        tensors[_tensor(number, "files")] = source.files
        tensors[_tensor(number, "mask_files")] = source.mask_files
    space, quantization = ledger.space, ledger.quantization
    metadata = {
        "format": FORMAT,
        "layer": ledger.layer,
        "dtype": str(space.dtype),
        "sample": json.dumps(space.sample),
        "channel_axis": str(ledger.channel_axis),
        "statistics": json.dumps([*ledger.statistics]),
        "quantization": json.dumps(quantization.to_metadata() if quantization else None, sort_keys=True),
        **_readers_metadata(ledger),
        **({"rows_are": ledger.rows_are} if ledger.rows_are else {}),
        **({"models": json.dumps(ledger.models)} if ledger.models else {}),
        **({"weights": json.dumps(ledger.weights)} if ledger.weights else {}),
        **({"order": str(ledger.order)} if ledger.order is not None else {}),
        **_attributes_metadata(ledger),
        "masked": json.dumps(space.masked),
        "sources": json.dumps([_described(source) for source in ledger.sources]),
        **_file_rows_metadata(ledger),
        **_addresses_metadata(ledger),
    }
    return tensors_bytes(tensors, metadata)


def _described(source: CountedSource) -> list[object]:
    return [source.fingerprint, source.rows, source.mask, source.settled_rows, source.recorded]


def _readers_metadata(ledger: Ledger) -> dict[str, str]:
    """The layers that read what was counted: without `layers`, the one of its own name, with this `kernel`."""
    tensor = {"tensor": ledger.tensor} if ledger.tensor else {}
    if ledger.readers is None:
        return {"kernel": json.dumps(ledger.kernel, sort_keys=True), **tensor}
    return {"layers": json.dumps(ledger.readers.to_metadata(), sort_keys=True), **tensor}


def _attributes_metadata(ledger: Ledger) -> dict[str, str]:
    """What attributes of CF said of the values, if anything, with the map that they gave."""
    if ledger.attributes is None:
        return {}
    packed = ledger.attributes.quantization
    document = {**ledger.attributes.to_metadata(), "quantization": packed.to_metadata() if packed else None}
    return {"attributes": json.dumps(document, sort_keys=True)}


def _attributes(metadata: Mapping[str, str]) -> Attributes | None:
    if "attributes" not in metadata:
        return None
    document = json.loads(metadata["attributes"])
    return Attributes.from_metadata(document, Quantization.from_metadata(document["quantization"]))


def _file_rows_metadata(ledger: Ledger) -> dict[str, str]:
    """How many rows a file of each source has room for; nothing if no source has files."""
    heights = [source.file_rows for source in ledger.sources]
    return {"file_rows": json.dumps(heights)} if any(heights) else {}


def _file_rows(metadata: Mapping[str, str], number: int) -> list[int]:
    """Of the sources, as many as that `number`; 0 where older states do not say. Raises `ValueError`."""
    found = json.loads(metadata.get("file_rows", "[]")) or [0] * number
    if not isinstance(found, list) or len(found) != number or any(type(each) is not int or each < 0 for each in found):
        raise ValueError(f"its {number} sources have files of {found!r} rows")
    return found


def _addresses_metadata(ledger: Ledger) -> dict[str, str]:
    """Which of the arrays of a layer its sources are; nothing if they need no addresses."""
    addresses = [source.address for source in ledger.sources]
    return {"addresses": json.dumps([each.document() for each in addresses])} if {*addresses} != {ONLY} else {}


def _addresses(metadata: Mapping[str, str], number: int) -> list[Address]:
    """The addresses of the sources, as many as that `number`. Raises `ValueError` for another number of them."""
    found = [Address.from_document(each) for each in json.loads(metadata.get("addresses", "[]"))] or [ONLY] * number
    if len(found) != number:
        raise ValueError(f"it has {number} sources and {len(found)} addresses")
    return found


def _readers(metadata: Mapping[str, str]) -> Readers | None:
    return Readers.from_metadata(json.loads(metadata["layers"])) if "layers" in metadata else None


def read_state(path: Path) -> LayerStatistics:
    """Read a file that `state_bytes` made.

    Raises `DataError` for a file that is damaged, has impossible content or another format.
    """
    tensors, metadata = read_tensors(path, FORMAT, WayOut.RESTART, also=OLDER)
    try:
        return _from_file(tensors if metadata["format"] == FORMAT else _renewed(tensors, metadata), metadata)
    except (DataError, KeyError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise DataError(f"{path} is not a usable state: {error}; {REMOVE}") from error


def read_excluded(path: Path) -> dict[Address, Coverage]:
    """The excluded rows of the sources of a state; nothing of those that were merged and have no addresses.

    It also reads older formats: a restart must not count forgotten rows again. Raises `DataError`.
    """
    tensors, metadata = read_any_tensors(path, FORMAT)
    number = sum(name.startswith("source.") and name.endswith(".excluded") for name in tensors)
    try:
        addresses = _addresses(metadata, max(1, number))
        several = len({*addresses}) < len(addresses)
        return {} if several else {each: _coverage(tensors, n, "excluded") for n, each in enumerate(addresses)}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is not a usable state: {error}; {REMOVE}") from error


def _renewed(tensors: Arrays, metadata: dict[str, str]) -> Arrays:
    """The tensors of a state in the older format as this one has them; so does `metadata` afterwards."""
    found, sources = dict(tensors), json.loads(metadata["sources"])
    for number in range(len(sources)):
        found[_tensor(number, TAIL)] = np.empty((0, 2), np.int64)
        for name in ("files", "mask_files"):
            files = found[_tensor(number, name)]
            found[_tensor(number, name)] = np.insert(files, files.shape[1], UNSAMPLED, axis=1)
    metadata["sources"] = json.dumps([[*source, source[1], False] for source in sources])
    return found


def _tensor(number: int, name: str) -> str:
    return f"source.{number}.{name}"


def _from_file(tensors: Arrays, metadata: Mapping[str, str]) -> LayerStatistics:
    axis = int(metadata["channel_axis"])
    if axis < 1:
        raise ValueError(f"its channel axis is {axis}; expected 1 or more")
    sample = tuple(int(extent) for extent in json.loads(metadata["sample"]))
    readers = _readers(metadata)
    own = Kernel.from_metadata(json.loads(metadata.get("kernel", "null")))  # older states have none
    kernel = own if readers is None else readers.kernel
    masked = json.loads(metadata["masked"]) is True
    space = Space(np.dtype(metadata["dtype"]), sample, axis - 1, kernel, masked=masked)
    kinds = _kinds(json.loads(metadata["statistics"]))
    states = {name: array for name, array in tensors.items() if not name.startswith("source.")}
    settled = {name.removeprefix(SETTLED): states.pop(name) for name in [*states] if name.startswith(SETTLED)}
    sources = [_source(tensors, number, *each) for number, each in enumerate(json.loads(metadata["sources"]))]
    if not sources:
        raise ValueError("it names no source")
    if any(source.tail for source in sources) != bool(settled):
        raise ValueError("it has a tail without the statistics of all other rows, or these without a tail")
    told = zip(_addresses(metadata, len(sources)), _file_rows(metadata, len(sources)), strict=True)
    sources = [replace(each, address=said, file_rows=rows) for each, (said, rows) in zip(sources, told, strict=True)]
    return LayerStatistics(
        layer=metadata["layer"],
        channel_axis=axis,
        quantization=Quantization.from_metadata(json.loads(metadata["quantization"])),
        sources=tuple(sources),
        statistics=Statistics.from_arrays(states, kinds, space),
        readers=readers,
        tensor=metadata.get("tensor", ""),
        rows_are=metadata.get("rows_are", ""),
        models=tuple(map(str, json.loads(metadata.get("models", "[]")))),
        weights=tuple((str(layer), str(weight)) for layer, weight in json.loads(metadata.get("weights", "[]"))),
        order=int(metadata["order"]) if "order" in metadata else None,
        attributes=_attributes(metadata),
        settled=Statistics.from_arrays(settled, kinds, space) if settled else None,
    )


def _kinds(names: object) -> list[Kind]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or not {*ALWAYS} <= {*names}:
        raise DataError(f"its statistics are {names!r}; expected a list with {' and '.join(ALWAYS)}")
    unknown = sorted(set(names) - KINDS.keys())
    if unknown:
        raise DataError(f"it holds the statistics {', '.join(unknown)}, which are unknown to this version")
    return [KINDS[name] for name in names]


def _source(
    tensors: Arrays, number: int, fingerprint: object, rows: object, mask: object, settled: object, recorded: object
) -> CountedSource:
    if type(fingerprint) is not str or type(rows) is not int or rows < 0 or type(mask) is not str:
        raise ValueError(f"a source has fingerprint {fingerprint!r}, {rows!r} rows and the mask {mask!r}")
    if type(settled) is not int or not 0 <= settled <= rows or type(recorded) is not bool:
        raise ValueError(f"a source has {settled!r} settled rows and `recorded` {recorded!r}")
    covered, excluded, filled, accepted, tail = (_coverage(tensors, number, name) for name in (*ROWS, TAIL))
    for each in (covered, excluded, filled, accepted):
        if each.stop > rows:
            raise ValueError(f"rows {each} are beyond its {rows} rows")
    if covered & excluded:
        raise ValueError("rows are both counted and excluded")
    if tail - covered or tail & Coverage.first(settled):
        raise ValueError(f"its tail {tail} is not counted, or before row {settled}")
    files, mask_files = (_integers(tensors, number, name, FILE_COLUMNS) for name in ("files", "mask_files"))
    return CountedSource(
        fingerprint=fingerprint,
        rows=rows,
        covered=covered,
        excluded=excluded,
        filled=filled,
        accepted=accepted,
        files=files,
        mask=mask,
        mask_files=mask_files,
        tail=tail,
        settled_rows=settled,
        recorded=recorded,
    )


def _coverage(tensors: Arrays, number: int, name: str) -> Coverage:
    ranges = tuple((start, stop) for start, stop in _integers(tensors, number, name, 2).tolist())
    found = Coverage.of(ranges)
    if found.ranges != ranges:
        raise ValueError(f"the {name} rows {ranges} are not sorted, disjoint ranges")
    return found


def _integers(tensors: Arrays, number: int, name: str, columns: int) -> npt.NDArray[np.int64]:
    array = tensors[_tensor(number, name)]
    if array.dtype != np.int64 or array.ndim != 2 or array.shape[1] != columns:
        raise ValueError(f"{name} is {array.dtype}{list(array.shape)}; expected int64[n, {columns}]")
    return array
