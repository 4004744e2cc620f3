"""The manifest of an output: its layers, the SHA-256 of each of their files, and missing rows. One writer, one reader.

The manifest is written last, so it names only files that exist; its reader checks it before anyone uses it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..calibration.addresses import ONLY, Address
from ..coverage import Coverage, OpenRows, Rows
from ..errors import DataError, WayOut
from ..storage.files import read_json, write_json
from ..storage.names import check_layer_name
from ..storage.tensors import check_format, is_newer
from .shortfalls import Shortfall

MANIFEST = "manifest.json"
FORMAT = "streamstats.manifest/2"
Gaps = tuple[tuple[Rows, str], ...]
"""Rows that could not be read: sorted, disjoint ranges, each with the reason."""
GapsOf = Mapping[Address, Gaps]
"""The same for each array of a layer."""
NOT_YET = "not counted yet"


@dataclass(frozen=True)
class FileEntry:
    """A file of the output: its path relative to the output, with `/`, and the SHA-256 (hex) of its bytes."""

    file: str
    sha256: str

    def document(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"file": self.file, "sha256": self.sha256}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> FileEntry:
        """What `document` made. Raises `KeyError`, `TypeError` for anything else."""
        return cls(_text(document["file"]), _text(document["sha256"]))


@dataclass(frozen=True)
class LayerEntry:
    """The manifest's entry for a layer, or for an array that no layer reads.

    `array` is the name of the array that it reads, and of its state: layers that read the same array share these.
    `rows` is the number of counted rows; `corrector` is its file, or the reason why there is none; `gaps` are rows
    that could not be read; `min_rows` is what the job asked for, and `shortfall` what was counted if that is less;
    `counted` is the rest, JSON-ready: coverage, dtype, statistics and their figures.
    """

    rows: int
    array: str
    state: FileEntry
    corrector: FileEntry | str
    gaps: GapsOf = field(default_factory=dict)
    min_rows: int = 0
    shortfall: Shortfall | None = None
    counted: Mapping[str, Any] = field(default_factory=dict)

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """Its files."""
        return (self.state,) if isinstance(self.corrector, str) else (self.state, self.corrector)

    @property
    def covered(self) -> Coverage:
        """The rows that were counted."""
        return self._coverage("covered")

    @property
    def excluded(self) -> Coverage:
        """The rows that were forgotten."""
        return self._coverage("excluded")

    @property
    def missing(self) -> Gaps:
        """The rows that could not be read, those of one array after those of the other."""
        return tuple(gap for gaps in self.gaps.values() for gap in gaps)

    @property
    def excluded_by_source(self) -> dict[Address, Coverage]:
        """The rows that were forgotten of each of its arrays."""
        sources = self.counted.get("sources")
        if sources is None:
            return {ONLY: self.excluded}
        return {Address.from_document(each): Coverage.of(map(_rows, each["excluded"])) for each in sources}

    @property
    def tensor(self) -> str:
        """The model's name of what was counted, empty if unknown."""
        return str(self.counted.get("tensor") or "")

    @property
    def models(self) -> list[str]:
        """The fingerprints of the models that were recorded, as far as they are known."""
        return list(map(str, self.counted.get("models", ())))

    @property
    def weights(self) -> list[str]:
        """The fingerprints of the weights that the layer had in them, as far as they are known."""
        return list(map(str, self.counted.get("weights", ())))

    @property
    def order(self) -> int | None:
        """Its place among the layers as they were recorded, None if unknown."""
        order = self.counted.get("order")
        return None if order is None else int(order)

    @property
    def has_mask(self) -> bool:
        """Whether a mask left out positions."""
        return self.counted.get("mask") is True

    def _coverage(self, name: str) -> Coverage:
        return Coverage.of(_rows(rows) for rows in self.counted.get(name, ()))

    def document(self) -> dict[str, Any]:
        """JSON-ready."""
        corrector = {"file": None, "reason": self.corrector} if isinstance(self.corrector, str) else None
        return {
            **self.counted,
            "rows": self.rows,
            "array": self.array,
            "state": self.state.document(),
            "corrector": corrector or self.corrector.document(),  # type: ignore[union-attr]
            "missing": missing_document(self.gaps),
            "min_rows": self.min_rows,
            "shortfall": None if self.shortfall is None else self.shortfall.document(),
        }

    @classmethod
    def from_document(cls, name: str, document: Mapping[str, Any]) -> LayerEntry:
        """What `document` made for the layer `name`; older documents name no array.

        Raises `KeyError`, `TypeError`, `ValueError` for anything else.
        """
        known = {"rows", "array", "state", "corrector", "missing", "min_rows", "shortfall"}
        corrector, min_rows = document["corrector"], _number(document.get("min_rows", 0))
        return cls(
            rows=_number(document["rows"]),
            array=check_layer_name(_text(document.get("array", name))),
            state=FileEntry.from_document(document["state"]),
            corrector=_text(corrector["reason"]) if corrector["file"] is None else FileEntry.from_document(corrector),
            gaps=_missing(document["missing"]),
            min_rows=min_rows,
            shortfall=_shortfall(document.get("shortfall"), min_rows),
            counted={name: value for name, value in document.items() if name not in known},
        )


@dataclass(frozen=True)
class Manifest:
    """The layers of an output, by name, and the stores they were counted from.

    `merged` outputs combine several others; `rows` is the range to which the job was limited, if any. `unreadable` are
    the arrays of the store that nobody could read, with the reasons; `coordinates` those that say where values lie;
    `merged_from` are the merged outputs, as `staleness` identifies them.
    """

    layers: Mapping[str, LayerEntry]
    sources: tuple[str, ...]
    merged: bool = False
    rows: OpenRows | None = None
    unreadable: Mapping[str, str] = field(default_factory=dict)
    coordinates: Mapping[str, str] = field(default_factory=dict)
    merged_from: Mapping[str, str] = field(default_factory=dict)

    def write(self, output: Path) -> None:
        """Write the manifest into the folder `output`. Raises `OutputError`."""
        write_json(
            output / MANIFEST,
            {
                "format": FORMAT,
                "layers": {name: self.layers[name].document() for name in sorted(self.layers)},
                "rows": self.rows,
                "unreadable": dict(self.unreadable),
                **({"merged_from": dict(self.merged_from)} if self.merged else {}),
                "coordinates": dict(self.coordinates),
                "source": list(self.sources) if self.merged or len(self.sources) > 1 else self.sources[0],
                **({} if self.merged or len(self.sources) == 1 else {"merged": False}),
                "versions": {"streamstats": __version__, "numpy": np.__version__},
            },
        )

    @property
    def arrays(self) -> dict[str, LayerEntry]:
        """What was counted, by array: the entry of one of the layers that read it."""
        return {entry.array: entry for entry in self.layers.values()}

    def gaps(self) -> dict[str, GapsOf]:
        """The rows that could not be read, by the name under which arrays were counted."""
        return {name: entry.gaps for name, entry in self.arrays.items()}

    def min_rows(self) -> dict[str, int]:
        """The rows that the job asked for, by array."""
        return {name: entry.min_rows for name, entry in self.arrays.items()}


NOTHING = Manifest({}, ())


def read_manifest(output: Path) -> Manifest | None:
    """The manifest of `output`, or None if it has none.

    Raises `DataError` if it is damaged or has another format.
    """
    path = output / MANIFEST
    if not path.exists():
        return None
    document = read_json(path)
    check_format(path, document.get("format"), FORMAT, WayOut.RESTART)
    try:
        return _parsed(document)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is damaged ({type(error).__name__}: {error}); remove it and run again") from error


def check_not_newer(output: Path) -> None:
    """Raise `DataError` if a newer version wrote the manifest of `output`, which a restart would replace."""
    path = output / MANIFEST
    try:
        found = read_json(path).get("format") if path.exists() else FORMAT
    except DataError:
        return  # a restart replaces a damaged manifest
    if is_newer(found, FORMAT):
        check_format(path, found, FORMAT, WayOut.RESTART)


def _parsed(document: Mapping[str, Any]) -> Manifest:
    layers = {check_layer_name(name): LayerEntry.from_document(name, each) for name, each in document["layers"].items()}
    source = document["source"]
    merged = isinstance(source, list) and document.get("merged") is not False
    sources = tuple(map(_text, source if isinstance(source, list) else [source]))
    if not sources:
        raise ValueError("it names no source")
    rows = document["rows"]
    said = [_texts(document.get(key, {})) for key in ("unreadable", "coordinates", "merged_from")]
    return Manifest(layers, sources, merged, None if rows is None else _open_rows(rows), *said)


def _texts(stored: Mapping[str, Any]) -> dict[str, str]:
    return {_text(name): _text(value) for name, value in stored.items()}


def missing_document(missing: GapsOf) -> list[dict[str, Any]]:
    """The rows that could not be read, JSON-ready, each with where its array is if the layer has several."""
    return [
        {"rows": list(rows), "reason": reason, **address.document()}
        for address, gaps in missing.items()
        for rows, reason in gaps
    ]


def _missing(document: Any) -> dict[Address, Gaps]:
    """What `missing_document` made. Raises `KeyError`, `TypeError`, `ValueError` for anything else."""
    found: dict[Address, Gaps] = {}
    for gap in document:
        address = Address.from_document(gap)
        found[address] = (*found.get(address, ()), (_rows(gap["rows"]), _text(gap["reason"])))
    return found


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"found {value!r}, expected text")
    return value


def _number(value: object) -> int:
    if type(value) is not int or value < 0:
        raise TypeError(f"found {value!r}, expected an integer of 0 or more")
    return value


def _shortfall(value: Any, min_rows: int) -> Shortfall | None:
    if value is None:
        return None
    channel = None if value["channel"] is None else _number(value["channel"])
    return Shortfall(min_rows, _number(value["rows"]), _number(value["values"]), channel)


def _rows(value: Any) -> Rows:
    start, stop = map(_number, value)
    if start > stop:
        raise ValueError(f"found rows {start}:{stop}, expected a range")
    return start, stop


def _open_rows(value: Any) -> OpenRows:
    start, stop = value
    return (_number(start), None) if stop is None else _rows(value)


def explained(missing: Coverage, gaps: Gaps) -> Gaps:
    """The `missing` rows with their reasons from `gaps`, or NOT_YET.

    >>> explained(Coverage.of([(0, 2), (4, 8)]), (((5, 6), "damaged"),))
    (((0, 2), 'not counted yet'), ((4, 5), 'not counted yet'), ((5, 6), 'damaged'), ((6, 8), 'not counted yet'))
    """
    found: list[tuple[Rows, str]] = []
    first = 0
    for start, stop in missing.ranges:
        while first < len(gaps) and gaps[first][0][1] <= start:
            first += 1
        for (left, right), reason in islice(gaps, first, None):
            if left >= stop:
                break
            if start < left:
                found.append(((start, left), NOT_YET))
            found.append(((max(start, left), min(stop, right)), reason))
            start = min(stop, right)
        if start < stop:
            found.append(((start, stop), NOT_YET))
    return tuple(found)


def joined(gaps: Iterable[tuple[Rows, str]]) -> Gaps:
    """`gaps` sorted, adjacent ones joined under the reason of the first."""
    found: list[tuple[Rows, str]] = []
    for rows, reason in sorted(gaps):
        if found and found[-1][0][1] == rows[0]:
            found[-1] = (found[-1][0][0], rows[1]), found[-1][1]
        else:
            found.append((rows, reason))
    return tuple(found)
