"""What a run goes on from: the states in its output, whether the store is still the one they were counted from, and
saving them while the work goes on.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from ..calibration.identity import (
    ABSENT,
    UNCOUNTED,
    UNKNOWN,
    Identities,
    file_key,
    file_range,
    identities,
    rows_of_file,
)
from ..calibration.layer import Layer
from ..coverage import common_rows
from ..errors import DataError, MismatchError
from ..storage.locks import locked
from .ledger import LayerStatistics, Source
from .results import MANIFEST, STATE, read_states, write_states

LOCK = "run.lock"
SAVE_SECONDS = 3.0
"""Between two saves."""
SAVING_SHARE = 50
"""Saving takes at most one part in so many of the time."""
WAYS_OUT = "count everything again with `run --restart`, or keep what was counted with `run --accept-changes`"


@contextmanager
def held(output: Path, source: str, rows: Mapping[str, int]) -> Iterator[None]:
    """Keep other runs out of `output`. The file stays after a first run that was stopped: it tells what was to be done.

    Raises `OutputError` that says who is in it.
    """
    since = datetime.now(UTC).isoformat(timespec="seconds")
    who = {"host": socket.gethostname(), "process": os.getpid(), "since": since}

    def first_was_stopped() -> bool:
        return (output / STATE).exists() and not (output / MANIFEST).exists()

    document = {**who, "source": source, "layers": dict(rows)}
    with locked(output / LOCK, document, keep=first_was_stopped):
        yield


class Saver:
    """Saves the states that have changed, every few seconds and at the end."""

    def __init__(
        self,
        output: Path,
        beginning: Iterable[LayerStatistics] = (),
        on_saved: Callable[[float], None] | None = None,
    ) -> None:
        """The `beginning` of a restart is saved with the first that was counted: old and new are never mixed.

        `on_saved` is told the seconds that each save took.
        """
        self._output, self._on_saved = output, on_saved
        self._beginning = {each.layer: each for each in beginning}
        self._changed: dict[str, LayerStatistics] = {}
        self._next = time.monotonic() + SAVE_SECONDS

    def changed(self, statistics: LayerStatistics) -> None:
        """`statistics` is to be saved when it is time."""
        self._changed[statistics.layer] = statistics
        if time.monotonic() >= self._next:
            self.save()

    def save(self) -> None:
        """Save what has changed. Raises `OutputError`."""
        if not self._changed:
            return
        started = time.monotonic()
        write_states(self._output, (self._beginning | self._changed).values())
        self._beginning.clear()
        self._changed.clear()
        now = time.monotonic()
        self._next = now + max(SAVE_SECONDS, SAVING_SHARE * (now - started))
        if self._on_saved:
            self._on_saved(now - started)


def load(output: Path, layers: Sequence[Layer], *, accept_changes: bool = False) -> dict[str, LayerStatistics]:
    """What was counted of `layers` so far, by name. With `accept_changes`, the store may have changed since.

    Raises `DataError` for a state that is damaged, and for a store that is not the one it was counted from, which names
    the chunk; `MismatchError` where the job now says something else of a layer.
    """
    states = read_states(output, [layer.name for layer in layers])
    return {layer.name: continued(layer, states.get(layer.name), accept_changes=accept_changes) for layer in layers}


def continued(layer: Layer, state: LayerStatistics | None, *, accept_changes: bool = False) -> LayerStatistics:
    """What to go on from: `state`, if the store is the one it was counted from. Raises as `load`."""
    if state is None:
        return LayerStatistics.empty(layer)
    source = state.source
    check_same_job(layer, state)
    state = replace(state, quantization=layer.quantization)  # which is applied to the sums of the codes at the end
    if accept_changes:
        return replace(state, sources=(_accepted(layer, source),))
    if source.fingerprint != layer.fingerprint:
        raise DataError(
            f"layer {layer.name}: its dtype, shape of samples, chunks or codecs are not those it was counted with; "
            f"{WAYS_OUT}"
        )
    counted = max((stop for _, stop in source.covered), default=0)
    if counted > layer.rows:
        raise DataError(
            f"layer {layer.name}: it has {layer.rows} rows, but rows up to {counted} were counted; {WAYS_OUT}"
        )
    known, changed = compared(layer, source)
    if changed:
        raise _change(layer, *changed[0])
    excluded = common_rows(source.excluded, [(0, layer.rows)])
    return replace(state, sources=(replace(source, rows=layer.rows, excluded=excluded, files=known),))


def restarted(output: Path, layers: Sequence[Layer]) -> dict[str, LayerStatistics]:
    """Nothing counted of `layers`, but what was excluded stays so. Raises `DataError` for a damaged state."""
    return {layer.name: _restarted(output, layer) for layer in layers}


def _restarted(output: Path, layer: Layer) -> LayerStatistics:
    empty = LayerStatistics.empty(layer)
    try:
        source = read_states(output, [layer.name])[layer.name].source
    except (MismatchError, KeyError):  # merged, or not there
        return empty
    excluded = common_rows(source.excluded, [(0, layer.rows)])
    return replace(empty, sources=(replace(empty.source, excluded=excluded),))


def check_same_job(layer: Layer, state: LayerStatistics) -> None:
    """Raise `MismatchError` where `layer` cannot be added to what was counted."""
    pairs = {
        "dtype": (str(state.sums.dtype), str(layer.dtype.newbyteorder("="))),
        "channel axis": (state.channel_axis, layer.channel_axis),
        "channels": (state.channels, layer.channels),
        "statistics": (list(state.extras), list(layer.extras)),
    }
    for what, (counted, asked) in pairs.items():
        if counted != asked:
            raise MismatchError(
                f"layer {layer.name}: it was counted with the {what} {counted}, now it is {asked}; correct the "
                "configuration (--until-stable keeps spread), count everything again with --restart, or choose another "
                "output"
            )


def _accepted(layer: Layer, source: Source) -> Source:
    """`source` as the store is now."""
    rows = max([layer.rows, *(stop for _, stop in (*source.covered, *source.excluded))])
    found = Source(layer.fingerprint, rows, excluded=source.excluded)
    for start, stop in source.covered:
        files = file_range(layer, start, stop)
        found = found.count((start, stop), files.start, identities(layer, files))
    return found


def compared(layer: Layer, source: Source) -> tuple[Identities, list[tuple[int, str]]]:
    """The counted files as they are now, and the numbers of those that are not what they were, with what happened.

    A file that was not full may have been written again when rows were appended, also where that was stopped.
    """
    now = identities(layer, range(len(source.files)))
    now[source.files[:, 0] == UNCOUNTED] = UNCOUNTED
    changed = _changed(source, 0, now)
    may_have_grown = layer.rows > source.rows or layer.unfinished
    return now, [each for each in changed if not (may_have_grown and rows_of_file(layer, each[0])[1] > source.rows)]


def check_unchanged(layer: Layer, source: Source, first: int, files: Identities) -> None:
    """Raise `DataError` where one of `files`, from the number `first` on, is not what it was when `source` was counted.

    A file that has room for more rows may be written again at any time: somebody may be recording.
    """
    for number, said in _changed(source, first, files):
        if rows_of_file(layer, number)[1] <= layer.rows:
            raise _change(layer, number, said)


def _change(layer: Layer, number: int, said: str) -> DataError:
    first, stop = rows_of_file(layer, number)
    rows = f"{first}:{min(stop, layer.rows)}"
    return DataError(
        f"layer {layer.name}: chunk {file_key(layer, number)} (rows {rows}) {said} since it was counted; {WAYS_OUT}"
    )


def _changed(source: Source, first: int, files: Identities) -> list[tuple[int, str]]:
    """The numbers of those of `files` that are counted in `source` and were others then, with what happened to them."""
    before = source.files[first : first + len(files)]
    after = files[: len(before)]
    known = (before[:, 0] != UNCOUNTED) & (before[:, 0] != UNKNOWN) & (after[:, 0] != UNKNOWN)
    numbers = np.flatnonzero(known & (before != after).any(axis=1)).tolist()
    return [(first + number, _what_happened(before[number].tolist(), after[number].tolist())) for number in numbers]


def _what_happened(before: list[int], after: list[int]) -> str:
    if after[0] == ABSENT:
        return "was removed"
    if before[0] == ABSENT:
        return "was written"
    if before[0] != after[0]:
        return f"has {after[0]} bytes, not {before[0]}: it was changed"
    return "was written again"
