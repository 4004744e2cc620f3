"""Resuming: loads what was counted before, and checks that the store is still the one it was counted from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..calibration.identity import file_key, file_range, identities, mask_identities, rows_of_file
from ..calibration.layer import Layer, arrays_of
from ..calibration.sources.identities import MISSING, UNCOUNTED, Identities, Identity, is_counted, is_known
from ..coverage import EMPTY, Coverage, Rows
from ..errors import DataError, MismatchError, in_words, listed
from ..statistics.statistic import Space
from ..statistics.statistics import Statistics
from .layer_statistics import LayerStatistics
from .ledger import CountedSource, Ledger, Measured, source_of
from .manifest import check_not_newer
from .results import excluded_rows, read_states
from .several import excluded_of, stores_before, with_arrays

WAYS_OUT = "count everything again with `run --restart`, or keep what was counted with `run --accept-changes`"


def load(output: Path, layers: Sequence[Layer], *, accept_changes: bool = False) -> dict[str, LayerStatistics]:
    """The statistics of `layers` to resume from, by name. With `accept_changes`, the store may have changed since.

    Raises `DataError` for a damaged state, and for a store that has changed since it was counted, naming the chunk;
    `MismatchError` if the job now describes a layer differently.
    """
    arrays, before = arrays_of(layers), stores_before(output)
    states = read_states(output, arrays)
    found = {name: with_arrays(state, arrays[name], before) for name, state in states.items()}
    return {
        name: continued(each, found[name], accept_changes=accept_changes) if name in found else _empty(output, each)
        for name, each in arrays.items()
    }


def continued(
    arrays: Sequence[Layer], state: LayerStatistics | None, *, accept_changes: bool = False
) -> LayerStatistics:
    """The statistics of a layer to resume from: `state`, checked against its `arrays`, or empty ones.

    Raises as `load`.
    """
    if state is None:
        return LayerStatistics.empty(*arrays)
    state = with_arrays(state, arrays)
    for layer in arrays:
        state = _continued(layer, state, accept_changes=accept_changes)
    return state


def _continued(layer: Layer, state: LayerStatistics, *, accept_changes: bool) -> LayerStatistics:
    """`state`, with the source that is `layer` checked against it."""
    source = state.at(layer.address)
    check_same_job(layer, state)
    # the quantisation may change: it applies only to the final sums; the kernel, where no statistic depends on it
    state = replace(
        state,
        quantization=layer.quantization,
        statistics=state.statistics.with_kernel(layer.kernel),
        readers=layer.readers,
        tensor=layer.tensor,
        rows_are=layer.rows_are,
    )
    if accept_changes:
        return state.with_source(_accepted(layer, source))
    if source.fingerprint != layer.fingerprint:
        raise DataError(
            f"layer {layer.name}: its dtype, sample shape, chunks or codecs have changed since it was counted; "
            f"{WAYS_OUT}"
        )
    if source.covered.stop > layer.rows:
        raise DataError(
            f"layer {layer.name}: it has {layer.rows} rows, but rows up to {source.covered.stop} were counted; "
            f"{WAYS_OUT}"
        )
    known, changed = compared(layer, source)
    if changed:
        raise _change(layer, *changed[0])
    known_masks, changed = compared_mask(layer, source)
    if changed:
        raise _mask_change(layer, *changed[0])
    excluded = source.excluded & Coverage.first(layer.rows)
    return state.with_source(replace(source, rows=layer.rows, excluded=excluded, files=known, mask_files=known_masks))


def restarted(output: Path, layers: Sequence[Layer]) -> dict[str, LayerStatistics]:
    """Empty statistics of `layers`; excluded rows stay excluded.

    Raises `DataError` for a damaged state, and for a manifest of a newer version.
    """
    check_not_newer(output)
    return {name: _empty(output, arrays) for name, arrays in arrays_of(layers).items()}


def _empty(output: Path, arrays: Sequence[Layer]) -> LayerStatistics:
    """The statistics of no rows; those that were forgotten stay excluded."""
    empty, forgotten = LayerStatistics.empty(*arrays), excluded_rows(output, arrays[0].counted_as)
    found = excluded_of(arrays, forgotten, output)
    rows = [found[array.address] & Coverage.first(array.rows) for array in arrays]
    sources = (replace(source, excluded=each) for source, each in zip(empty.sources, rows, strict=True))
    return replace(empty, sources=tuple(sources))


def check_same_job(layer: Layer, state: Ledger) -> None:
    """Raise `MismatchError` if `layer` is described differently than when `state` was counted."""
    pairs = {
        "dtype": (str(state.space.dtype), str(layer.space.dtype)),
        "channel axis": (state.channel_axis, layer.channel_axis),
        "channels": (state.channels, layer.channels),
        "statistics": (", ".join(state.statistics), ", ".join(kind.name for kind in layer.kinds)),
        "mask": (state.at(layer.address).mask or "none", "none" if layer.mask is None else layer.mask.name),
    }
    if state.statistics.uses_kernel:
        pairs["kernel"] = (_kernel(state.space), _kernel(layer.space))
        pairs["sample shape"] = (str(state.space.sample), str(layer.sample_shape))
    for what, (counted, asked) in pairs.items():
        unasked = [kind.name for kind in layer.kinds if kind.unasked and kind.name not in state.statistics]
        if counted != asked and what == "statistics" and unasked:
            raise MismatchError(
                f"layer {layer.name}: {counted} were counted, but its kernel misses positions, so that the job now "
                f"counts {listed(unasked)}, too; count everything again with --restart, or choose another output"
            )
        if counted != asked and what == "statistics":
            raise MismatchError(
                f"layer {layer.name}: {counted} were counted, but the job now has {asked}; set `statistics` to what "
                "was counted besides mean and extrema, count everything again with --restart, or choose another output"
            )
        if counted != asked:
            raise MismatchError(
                f"layer {layer.name}: it was counted with {what} {counted}, but the job now has {asked}; correct the "
                "configuration, count everything again with --restart, or choose another output"
            )
    for kind in layer.kinds:
        if kind.tensors(state.space) != kind.tensors(layer.space):
            raise MismatchError(
                f"layer {layer.name}: {kind.name} was counted over samples of shape {state.space.sample}, but they now "
                f"have the shape {layer.space.sample}; count everything again with --restart, or choose another output"
            )


def _kernel(space: Space) -> str:
    return "unknown" if space.kernel is None else in_words(space.kernel.to_metadata())


def _accepted(layer: Layer, source: CountedSource) -> CountedSource:
    """`source` with the fingerprint and files that the store has now."""
    rows = max(layer.rows, source.covered.stop, source.excluded.stop)
    changed = source.covered if source.fingerprint != layer.fingerprint else _rows_of_changed(layer, source)
    accepted = source.accepted | changed & source.covered
    found = replace(source_of(layer, rows), excluded=source.excluded, filled=source.filled, accepted=accepted)
    for start, stop in source.covered.ranges:
        found = found.count(_unmeasured(layer, (start, stop)))
    return found


def _unmeasured(layer: Layer, rows: Rows) -> Measured:
    """The files that hold `rows` now, and their mask's, with the statistics of nothing."""
    files = file_range(layer, *rows)
    masks, of_masks = mask_identities(layer, rows)
    nothing = Statistics.empty(layer.kinds, layer.space)
    return Measured(layer.name, rows, nothing, files.start, identities(layer, files), EMPTY, masks, of_masks)


def _rows_of_changed(layer: Layer, source: CountedSource) -> Coverage:
    """The rows of the counted files that have changed, those of the mask among them."""
    changed = Coverage.of(rows_of_file(layer, number) for number, _ in compared(layer, source)[1])
    masks = compared_mask(layer, source)[1]
    return changed | Coverage.of(rows_of_file(mask_of(layer), number) for number, _ in masks)


def compared(layer: Layer, source: CountedSource) -> tuple[Identities, list[tuple[int, str]]]:
    """The identities of the counted files now, and (number, what happened) for each that has changed.

    A file that was not full may be rewritten when rows are appended, even if appending was interrupted.
    """
    now = identities(layer, range(len(source.files)))
    now[~is_counted(source.files)] = UNCOUNTED
    changed = _changed(source, 0, now)
    may_have_grown = layer.rows > source.rows or layer.unfinished
    return now, [each for each in changed if not (may_have_grown and rows_of_file(layer, each[0])[1] > source.rows)]


def compared_mask(layer: Layer, source: CountedSource) -> tuple[Identities, list[tuple[int, str]]]:
    """As `compared`, for the files of the mask of `layer`."""
    if layer.mask is None:
        return source.mask_files, []
    return compared(mask_of(layer), replace(source, files=source.mask_files))


def mask_of(layer: Layer) -> Layer:
    """The mask of `layer`, an array with as many rows."""
    assert layer.mask is not None
    return replace(layer.mask, shape=(layer.rows, *layer.mask.shape[1:]), unfinished=layer.unfinished)


def check_unchanged(layer: Layer, source: CountedSource, measured: Measured) -> None:
    """Raise `DataError` if one of the files of `measured` has changed since `source` was counted.

    A file with room for more rows may be rewritten at any time: a recorder may be appending to it.
    """
    for number, said in _changed(source, measured.first_file, measured.files):
        if rows_of_file(layer, number)[1] <= layer.rows:
            raise _change(layer, number, said)
    masks = replace(source, files=source.mask_files)
    for number, said in _changed(masks, measured.first_mask_file, measured.mask_files):
        if rows_of_file(mask_of(layer), number)[1] <= layer.rows:
            raise _mask_change(layer, number, said)


def _change(layer: Layer, number: int, said: str) -> DataError:
    return DataError(f"layer {layer.name}: {_chunk(layer, number)} {said} since it was counted; {WAYS_OUT}")


def _mask_change(layer: Layer, number: int, said: str) -> DataError:
    mask = mask_of(layer)
    return DataError(
        f"layer {layer.name}: {_chunk(mask, number)} of its mask {mask.name} {said} since it was counted; {WAYS_OUT}"
    )


def _chunk(layer: Layer, number: int) -> str:
    first, stop = rows_of_file(layer, number)
    return f"chunk {file_key(layer, number)} (rows {first}:{min(stop, layer.rows)})"


def _changed(source: CountedSource, first: int, files: Identities) -> list[tuple[int, str]]:
    """(number, what happened) for each of `files` that is counted in `source` and has changed since."""
    before = source.files[first : first + len(files)]
    after = files[: len(before)]
    known = is_known(before) & is_known(after)
    numbers = np.flatnonzero(known & (before != after).any(axis=1)).tolist()
    return [
        (first + number, _what_happened(tuple(before[number].tolist()), tuple(after[number].tolist())))
        for number in numbers
    ]


def _what_happened(before: Identity, after: Identity) -> str:
    if after == MISSING:
        return "was removed"
    if before == MISSING:
        return "was written"
    if before[0] != after[0]:
        return f"changed from {before[0]} to {after[0]} bytes"
    return "was rewritten"
