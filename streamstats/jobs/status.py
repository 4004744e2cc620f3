"""Status: how far the job of an output has come, which rows are missing, and why."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..coverage import EMPTY, Coverage, Rows
from ..errors import DataError, UsageError
from ..outputs.layer_statistics import LayerStatistics
from ..outputs.manifest import NOTHING, Gaps, LayerEntry, Manifest, explained, read_manifest
from ..outputs.results import states_in
from ..outputs.saving import LOCK
from ..outputs.shortfalls import Shortfall
from ..storage.files import read_json
from ..storage.locks import is_locked


@dataclass(frozen=True)
class LayerStatus:
    """How far a layer has come: `counted` of `rows`; the `missing` ranges, each with the reason.

    `array` is the one that it reads; layers that read the same array share the rest. `shortfall` is what was counted if
    that is less than the `min_rows` of the job; `notes` is what attributes say of the values.
    """

    layer: str
    array: str
    rows: int
    counted: int
    missing: Gaps
    excluded: Coverage
    min_rows: int = 0
    shortfall: Shortfall | None = None
    notes: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "array": self.array,
            "rows": self.rows,
            "counted": self.counted,
            "missing": [{"rows": list(rows), "reason": reason} for rows, reason in self.missing],
            "excluded": self.excluded.document(),
            "min_rows": self.min_rows,
            "shortfall": None if self.shortfall is None else self.shortfall.document(),
            "notes": [*self.notes],
        }


@dataclass(frozen=True)
class Status:
    """How far the job of an output has come; `running` says whether a process is working on it now.

    `unreadable` are arrays of the store that nobody could read, `coordinates` those that say where values lie, with the
    reasons.
    """

    layers: tuple[LayerStatus, ...]
    running: bool
    unreadable: Mapping[str, str] = field(default_factory=dict)
    coordinates: Mapping[str, str] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether every array could be read, every row is counted or excluded, and every layer has `min_rows`."""
        return not self.unreadable and not any(layer.missing or layer.shortfall for layer in self.layers)


def status(output: Path) -> Status:
    """What is counted in `output`. Raises `UsageError` if it is no output folder, `DataError` for damaged files."""
    planned, manifest = _planned(output), read_manifest(output)
    states = states_in(output, manifest)
    if not (states or planned or manifest):
        raise UsageError(f"{output} has no states; expected the output folder of `streamstats run`")
    said = manifest or NOTHING
    limit, gaps, min_rows = Coverage.of([said.rows or (0, sys.maxsize)]), said.gaps(), said.min_rows()
    found = {
        name: _layer_status(name, states[name], planned.get(name, 0), gaps.get(name, ()), limit)
        if name in states
        else _uncounted(name, planned.get(name, 0), said.arrays.get(name))
        for name in sorted({*planned, *states, *said.arrays})
    }
    arrays = (_with_shortfall(each, states.get(name), min_rows.get(name, 0)) for name, each in found.items())
    readers = _readers(states, said, output)
    layers = [replace(each, layer=layer) for each in arrays for layer in readers.get(each.array, [each.array])]
    in_order = tuple(sorted(layers, key=lambda each: each.layer))
    return Status(in_order, is_locked(output / LOCK), said.unreadable, said.coordinates)


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
    return LayerStatus(layer, layer, rows, 0, explained(Coverage.first(rows) - excluded, ()), excluded)


def _layer_status(layer: str, state: LayerStatistics, planned: int, told: Gaps, limit: Coverage) -> LayerStatus:
    missing: list[tuple[Rows, str]] = []
    for source in state.sources:
        wanted = max(source.rows, planned) if len(state.sources) == 1 else source.rows
        missing += explained(source.missing(wanted) & limit, told)
    rows = max(sum(source.rows for source in state.sources), planned)
    excluded = Coverage.of(rows for source in state.sources for rows in source.excluded.ranges)
    return LayerStatus(layer, layer, rows, state.rows, tuple(sorted(missing)), excluded, notes=tuple(state.notes))
