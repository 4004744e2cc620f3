"""Status: how far the job of an output has come, which rows are missing, and why."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..calibration.addresses import ONLY, Address
from ..coverage import EMPTY, Coverage, OpenRows, before
from ..errors import DataError, UsageError, counted
from ..outputs.layer_statistics import LayerStatistics
from ..outputs.ledger import CountedSource
from ..outputs.manifest import NOTHING, Gaps, GapsOf, LayerEntry, Manifest, explained, missing_document, read_manifest
from ..outputs.results import states_in
from ..outputs.saving import LOCK
from ..outputs.shortfalls import Shortfall
from ..outputs.staleness import stale_outputs
from ..storage.files import read_json
from ..storage.locks import is_locked
from ..storage.names import network_order


@dataclass(frozen=True)
class LayerStatus:
    """How far a layer has come: `counted` of `rows`; the `gaps` are the missing ranges, each with the reason.

    `array` is the one that it reads; layers that read the same array share the rest. `shortfall` is what was counted if
    that is less than the `min_rows` of the job. If it has several arrays, or is merged from several, `sources` is what
    was counted of each. `notes` is what attributes say of the values.
    """

    layer: str
    array: str
    rows: int
    counted: int
    gaps: GapsOf
    excluded: Coverage
    min_rows: int = 0
    shortfall: Shortfall | None = None
    sources: tuple[CountedSource, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def missing(self) -> Gaps:
        """The missing rows, those of one array after those of the other."""
        return tuple(gap for gaps in self.gaps.values() for gap in gaps)

    def document(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "array": self.array,
            "rows": self.rows,
            "counted": self.counted,
            "missing": missing_document(self.gaps),
            "excluded": self.excluded.document(),
            "min_rows": self.min_rows,
            "shortfall": None if self.shortfall is None else self.shortfall.document(),
            **({"sources": [source.document() for source in self.sources]} if self.sources else {}),
            "notes": [*self.notes],
        }


@dataclass(frozen=True)
class Status:
    """How far the job of an output has come; `running` says whether a process is working on it now.

    `unreadable` are arrays of the store that nobody could read, `coordinates` those that say where values lie, with the
    reasons; `stale` are merged outputs that have changed since. `merged`: nothing resumes it but another merge. `rows`
    is the range to which the job is limited, if any.
    """

    layers: tuple[LayerStatus, ...]
    running: bool
    unreadable: Mapping[str, str] = field(default_factory=dict)
    coordinates: Mapping[str, str] = field(default_factory=dict)
    stale: Sequence[str] = ()
    merged: bool = False
    rows: OpenRows | None = None

    def __repr__(self) -> str:
        rows = sum(layer.counted for layer in self.layers)
        state = "running" if self.running else "complete" if self.complete else "incomplete"
        return f"<Status of {counted(len(self.layers), 'layer')}: {counted(rows, 'row')} counted, {state}>"

    @property
    def complete(self) -> bool:
        """Whether all arrays could be read, all rows are counted or excluded, all layers have `min_rows`, and no merged
        output has changed since.
        """
        return (
            not self.unreadable
            and not self.stale
            and not any(layer.missing or layer.shortfall for layer in self.layers)
        )


def status(output: str | Path) -> Status:
    """What is counted in `output`. Raises `UsageError` if it is no output folder, `DataError` for damaged files.

    >>> found = ss.status("out")
    >>> found.complete, found.layers[0].counted
    (True, 4)
    """
    folder = Path(output)
    planned, manifest = _planned(folder), read_manifest(folder)
    states = states_in(folder, manifest)
    if not (states or planned or manifest):
        raise UsageError(f"{output} has no states; expected the output folder of `streamstats run`")
    said = manifest or NOTHING
    limit, gaps, min_rows = before(sys.maxsize, said.rows), said.gaps(), said.min_rows()
    found = {
        name: _layer_status(name, states[name], planned.get(name, 0), gaps.get(name, {}), limit)
        if name in states
        else _uncounted(name, planned.get(name, 0), said.arrays.get(name))
        for name in sorted({*planned, *states, *said.arrays})
    }
    arrays = (_with_shortfall(each, states.get(name), min_rows.get(name, 0)) for name, each in found.items())
    readers = _readers(states, said, folder)
    layers = [replace(each, layer=layer) for each in arrays for layer in readers.get(each.array, [each.array])]
    layers.sort(key=lambda each: network_order(_order(each.array, states, said), each.layer))
    running, stale = is_locked(folder / LOCK), stale_outputs(said.merged_from)
    return Status(tuple(layers), running, said.unreadable, said.coordinates, stale, said.merged, said.rows)


def _order(array: str, states: Mapping[str, LayerStatistics], said: Manifest) -> int | None:
    if array in states:
        return states[array].order
    return said.arrays[array].order if array in said.arrays else None


def _readers(states: Mapping[str, LayerStatistics], said: Manifest, output: Path) -> dict[str, Sequence[str]]:
    """The layers that read each array, as its state has them, or else the manifest, or the run that began."""
    of_manifest: dict[str, list[str]] = {}
    for layer, entry in said.layers.items():
        of_manifest.setdefault(entry.array, []).append(layer)
    of_states = {name: found.read_by.names or (name,) for name, found in states.items()}
    return {**_planned_readers(output), **of_manifest, **of_states}


def _planned(output: Path) -> dict[str, int]:
    """The rows of each array that an unfinished run plans to count."""
    try:
        return {str(array): int(rows) for array, rows in _of_run(output, "layers").items()}
    except (TypeError, ValueError):
        return {}


def _planned_readers(output: Path) -> dict[str, list[str]]:
    """The layers that read each array, for an unfinished run."""
    return {str(array): [*map(str, names)] for array, names in _of_run(output, "readers").items()}


def _of_run(output: Path, key: str) -> dict[str, Any]:
    """What an unfinished run says under `key` in its lock; nothing if there is none."""
    if not (output / LOCK).exists():
        return {}
    try:
        return dict(read_json(output / LOCK)[key])
    except (DataError, KeyError, TypeError, ValueError):
        return {}  # the run was interrupted while it wrote the file


def _with_shortfall(found: LayerStatus, state: LayerStatistics | None, min_rows: int) -> LayerStatus:
    return replace(found, min_rows=min_rows, shortfall=None if state is None else Shortfall.of(state, min_rows))


def _uncounted(layer: str, planned: int, entry: LayerEntry | None) -> LayerStatus:
    """The status of a layer without a state: nothing is counted, and the manifest knows what was before."""
    before, excluded = (EMPTY, EMPTY) if entry is None else (entry.covered, entry.excluded)
    rows = max(planned, before.stop, excluded.stop)
    missing = explained(Coverage.first(rows) - excluded, ())
    return LayerStatus(layer, layer, rows, 0, {ONLY: missing} if missing else {}, excluded)


def _layer_status(layer: str, state: LayerStatistics, planned: int, told: GapsOf, limit: Coverage) -> LayerStatus:
    missing: dict[Address, Gaps] = {}
    for source in state.sources:
        wanted = max(source.rows, planned) if len(state.sources) == 1 else source.rows
        gaps = explained(source.missing(wanted) & limit, told.get(source.address, ()))
        if gaps:
            missing[source.address] = tuple(sorted([*missing.get(source.address, ()), *gaps]))
    rows = max(sum(source.rows for source in state.sources), planned)
    excluded = Coverage.of(rows for source in state.sources for rows in source.excluded.ranges)
    sources = () if len(state.sources) == 1 and state.sources[0].address == ONLY else state.sources
    notes = tuple(state.notes)
    return LayerStatus(layer, layer, rows, state.rows, missing, excluded, sources=sources, notes=notes)
