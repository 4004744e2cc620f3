"""Resuming: loads what was counted before, and checks that the store is still the one it was counted from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..calibration.identity import file_range, mask_identities, rows_of_file, sampled
from ..calibration.layer import Layer
from ..coverage import EMPTY, Coverage, Rows
from ..errors import DataError, MismatchError, UsageError, in_words, listed
from ..statistics.statistic import Space
from ..statistics.statistics import Statistics
from .changes import WAYS_OUT, Change, are_known, change_error, compared, compared_mask, rows_of
from .layer_statistics import LayerStatistics
from .ledger import Ledger, Measured, source_of
from .manifest import check_not_newer
from .results import excluded_rows, read_states

Tell = Callable[[Sequence[Change]], None]
"""Called with the files that are taken for copies of those that were counted."""
NO_COPY = (
    "--accept-changes needs the same store, or a copy of it; count everything again with --restart, or choose another "
    "output"
)


def ignore(_copies: Sequence[Change]) -> None:
    """Tell nobody."""


def load(
    output: Path, layers: Sequence[Layer], *, accept_changes: bool = False, moved: bool = False, tell: Tell = ignore
) -> dict[str, LayerStatistics]:
    """The statistics of `layers` to resume from, by name. With `accept_changes`, the store may have changed since.

    Rows of files that had room for more and have changed are not counted in them any more. `tell` is told of copies. A
    store that has `moved` must be a copy. Raises `DataError` for a damaged state, and for a store that has changed
    since it was counted, naming the chunk; `MismatchError` if the job now describes a layer differently.
    """
    states = read_states(output, [layer.name for layer in layers])
    resuming = Resuming(accept_changes, moved, tell)
    return {
        layer.name: resuming.continued(layer, states[layer.name]) if layer.name in states else _empty(output, layer)
        for layer in layers
    }


def continued(layer: Layer, state: LayerStatistics | None) -> LayerStatistics:
    """The statistics to resume from: `state`, checked against the store, or empty ones. Raises as `load`."""
    return LayerStatistics.empty(layer) if state is None else Resuming().continued(layer, state)


@dataclass(frozen=True)
class Resuming:
    """How to resume: whether changes are accepted, whether the store has moved, and who is told of copies."""

    accept_changes: bool = False
    moved: bool = False
    tell: Tell = ignore

    def continued(self, layer: Layer, state: LayerStatistics) -> LayerStatistics:
        """The statistics of `layer` to resume from: `state`, checked against the store. Raises as `load`."""
        check_same_job(layer, state)
        state = _described(layer, state)
        if state.source.fingerprint != layer.fingerprint:
            return self._stored_anew(layer, state)
        state, changed = compared_with_store(layer, state)
        source = state.source
        if source.covered.stop > layer.rows and not self.accept_changes:
            raise DataError(
                f"layer {layer.name}: it has {layer.rows} rows, but rows up to {source.covered.stop} were counted; "
                f"{WAYS_OUT}"
            )
        accepted = self._accepted(layer, changed) & source.covered
        rows = max(layer.rows, source.covered.stop, source.excluded.stop if self.accept_changes else 0)
        excluded = source.excluded & Coverage.first(rows)
        source = replace(source, rows=rows, excluded=excluded, accepted=source.accepted | accepted)
        return replace(state, sources=(source,))

    def _accepted(self, layer: Layer, changes: Sequence[Change]) -> Coverage:
        """The rows of files that have changed and are accepted. Raises `DataError` if they are not."""
        copies: list[Change] = []
        others: list[Change] = []
        for each in changes:
            is_copy = each.is_copy or (self.accept_changes and each.looks_copied)
            (copies if is_copy else others).append(each)
        if others and self.moved:
            raise UsageError(f"layer {layer.name}: {others[0]} of {layer.store} is not what was counted; {NO_COPY}")
        if others and not self.accept_changes:
            raise change_error(layer, others)
        self.tell(copies)
        return rows_of(others)

    def _stored_anew(self, layer: Layer, state: LayerStatistics) -> LayerStatistics:
        """`state` for an array that is stored in another way: what was counted of it is accepted, or `DataError`."""
        if self.moved:
            raise UsageError(f"layer {layer.name} of {layer.store} is stored in another way; {NO_COPY}")
        if not self.accept_changes:
            raise DataError(
                f"layer {layer.name}: its dtype, sample shape, chunks or codecs have changed since it was counted; "
                f"{WAYS_OUT}"
            )
        before = state.source
        found = source_of(layer, max(layer.rows, before.covered.stop, before.excluded.stop))
        found = replace(found, excluded=before.excluded, filled=before.filled, accepted=before.covered)
        for start, stop in before.covered.ranges:
            found = found.count(_unmeasured(layer, (start, stop)))
        return replace(state.with_settled(), sources=(found,))


def compared_with_store(layer: Layer, state: LayerStatistics) -> tuple[LayerStatistics, list[Change]]:
    """`state` with the identities that the counted files have now, and those that have changed.

    It is without the rows of its tail if these have to be counted again: if one of their files is not as it was, or if
    that is unknown. A file of the tail that is as it was although the array has grown beyond it is still to be written,
    so the tail stays.
    """
    before = state.source
    files, changed = compared(layer, before)
    mask_files, changed_masks = compared_mask(layer, before)
    changes = [*changed, *changed_masks]
    source = replace(before, files=files, mask_files=mask_files, recorded=layer.commits)
    rewritten = any(before.tail & Coverage.of([each.rows]) for each in changes if not each.is_copy)
    if before.tail and not rewritten and are_known(layer, before, before.tail):
        source = replace(source, settled_rows=min(before.settled_rows, layer.settled_rows))
        return replace(state, sources=(source,)), changes
    state = replace(state, sources=(replace(source, settled_rows=layer.settled_rows),))
    state = uncounted_tail(layer, state)
    return state, [each for each in changes if state.source.covered & Coverage.of([each.rows])]


def uncounted_tail(layer: Layer, state: LayerStatistics) -> LayerStatistics:
    """`state` with the rows of its tail not counted."""
    if state.settled is None:
        return state
    tail = state.source.tail
    masks = [] if layer.mask is None else files_without(layer.mask, tail, state.source.covered - tail)
    source = state.source.uncount(tail, files_without(layer, tail, state.source.covered - tail), masks)
    return replace(state, statistics=state.settled, settled=None, sources=(source,))


def files_without(array: Layer, rows: Coverage, left: Coverage) -> list[int]:
    """The files of `array` that hold some of `rows`, and none of the rows that are `left`."""
    touched = [number for start, stop in rows.ranges for number in file_range(array, start, stop)]
    return [number for number in touched if not left & Coverage.of([rows_of_file(array, number)])]


def _described(layer: Layer, state: LayerStatistics) -> LayerStatistics:
    """`state` as `layer` is described now.

    The quantisation may change: it applies only to the final sums; the kernel, where no statistic depends on it.
    """
    return replace(
        state.with_kernel(layer.kernel),
        quantization=layer.quantization,
        readers=layer.readers,
        tensor=layer.tensor,
        rows_are=layer.rows_are,
    )


def restarted(output: Path, layers: Sequence[Layer]) -> dict[str, LayerStatistics]:
    """Empty statistics of `layers`; excluded rows stay excluded.

    Raises `DataError` for a damaged state, and for a manifest of a newer version.
    """
    check_not_newer(output)
    return {layer.name: _empty(output, layer) for layer in layers}


def _empty(output: Path, layer: Layer) -> LayerStatistics:
    """The statistics of no rows; those that were forgotten stay excluded."""
    empty = LayerStatistics.empty(layer)
    excluded = excluded_rows(output, layer.name) & Coverage.first(layer.rows)
    return replace(empty, sources=(replace(empty.source, excluded=excluded),))


def check_same_job(layer: Layer, state: Ledger) -> None:
    """Raise `MismatchError` if `layer` is described differently than when `state` was counted."""
    pairs = {
        "dtype": (str(state.space.dtype), str(layer.space.dtype)),
        "channel axis": (state.channel_axis, layer.channel_axis),
        "channels": (state.channels, layer.channels),
        "statistics": (", ".join(state.statistics), ", ".join(kind.name for kind in layer.kinds)),
        "mask": (_mask(state), "none" if layer.mask is None else layer.mask.name),
    }
    if state.statistics.uses_kernel:
        pairs["kernel"] = (_kernel(state.space), _kernel(layer.space))
        pairs["sample shape"] = (str(state.space.sample), str(layer.sample_shape))
    for what, (before, asked) in pairs.items():
        unasked = [kind.name for kind in layer.kinds if kind.unasked and kind.name not in state.statistics]
        if before != asked and what == "statistics" and unasked:
            raise MismatchError(
                f"layer {layer.name}: {before} were counted, but its kernel misses positions, so that the job now "
                f"counts {listed(unasked)}, too; count everything again with --restart, or choose another output"
            )
        if before != asked and what == "statistics":
            raise MismatchError(
                f"layer {layer.name}: {before} were counted, but the job now has {asked}; set `statistics` to what "
                "was counted besides mean and extrema, count everything again with --restart, or choose another output"
            )
        if before != asked:
            raise MismatchError(
                f"layer {layer.name}: it was counted with {what} {before}, but the job now has {asked}; correct the "
                "configuration, count everything again with --restart, or choose another output"
            )
    for kind in layer.kinds:
        if kind.tensors(state.space) != kind.tensors(layer.space):
            raise MismatchError(
                f"layer {layer.name}: {kind.name} was counted over samples of shape {state.space.sample}, but they now "
                f"have the shape {layer.space.sample}; count everything again with --restart, or choose another output"
            )


def _mask(state: Ledger) -> str:
    return " and ".join(sorted({source.mask or "none" for source in state.sources}))


def _kernel(space: Space) -> str:
    return "unknown" if space.kernel is None else in_words(space.kernel.to_metadata())


def _unmeasured(layer: Layer, rows: Rows) -> Measured:
    """The files that hold `rows` now, and their mask's, with the statistics of nothing."""
    files = file_range(layer, *rows)
    masks, of_masks = mask_identities(layer, rows)
    nothing = Statistics.empty(layer.kinds, layer.space)
    return Measured(layer.name, rows, nothing, files.start, sampled(layer, files), EMPTY, masks, of_masks)
