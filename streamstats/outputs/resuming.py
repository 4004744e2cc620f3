"""Resuming: loads what was counted before, and checks that the store is still the one it was counted from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..calibration.identity import file_range, mask_identities, rows_of_file, sampled
from ..calibration.layer import Layer, arrays_of
from ..calibration.recorded_model import fingerprint_kind, short_fingerprint, short_fingerprints
from ..coverage import EMPTY, Coverage, Rows
from ..errors import DataError, MismatchError, UsageError, WayOut, contrasted, in_words, listed
from ..quantization import Quantization
from ..statistics.statistic import Space
from ..statistics.statistics import Statistics
from .changes import MOVED, Change, are_known, change_error, compared, compared_mask, rows_of
from .layer_statistics import LayerStatistics
from .ledger import (
    CountedSource,
    Ledger,
    Measured,
    for_kernel,
    models_of,
    source_of,
    weights_of,
    with_source,
    without_tail,
)
from .manifest import check_not_newer
from .results import excluded_rows, read_states
from .several import check_not_merged, excluded_of, stores_before, with_arrays
from .stores import were_made_apart

NO_COPY = "what was counted can only be kept for the same store, or a copy of it"


@dataclass(frozen=True)
class Noticed:
    """What is noticed while results are resumed: `copies` are files that are taken for copies of those that were
    counted, `redescribed` the names of layers, each with what of its description now gives its counts other results.
    """

    copies: list[Change] = field(default_factory=list)
    redescribed: list[tuple[str, str]] = field(default_factory=list)


def load(
    output: Path,
    layers: Sequence[Layer],
    *,
    accept_changes: bool = False,
    moved: bool = False,
    noticed: Noticed | None = None,
) -> dict[str, LayerStatistics]:
    """The statistics of `layers` to resume from, by name. With `accept_changes`, the store may have changed since.

    Rows of files that had room for more and have changed are not counted in them any more. A store that has `moved`
    must be a copy. `noticed` receives what the user should know. Raises `DataError` for a damaged state, and for a
    store that has changed since it was counted, naming the chunk; `MismatchError` if the job now describes a layer so
    that it would be counted differently; `UsageError` for merged results.
    """
    arrays, before = arrays_of(layers), stores_before(output)
    check_not_merged(output)
    states = read_states(output, arrays)
    resuming = Resuming(accept_changes, moved, noticed or Noticed())
    return {
        name: resuming.continued(each, with_arrays(states[name], each, before))
        if name in states
        else _empty(output, each)
        for name, each in arrays.items()
    }


def continued(arrays: Sequence[Layer], state: LayerStatistics | None) -> LayerStatistics:
    """The statistics of a layer to resume from: `state`, checked against its `arrays`, or empty ones.

    Raises as `load`.
    """
    if state is None:
        return LayerStatistics.empty(*arrays)
    return Resuming().continued(arrays, with_arrays(state, arrays))


@dataclass(frozen=True)
class Resuming:
    """How to resume: whether changes are accepted, and whether the store has moved; and what has been noticed."""

    accept_changes: bool = False
    moved: bool = False
    noticed: Noticed = field(default_factory=Noticed)

    def continued(self, arrays: Sequence[Layer], state: LayerStatistics) -> LayerStatistics:
        """The statistics of a layer to resume from: `state`, checked against its `arrays`. Raises as `load`."""
        for layer in arrays:
            check_same_job(layer, state)
        self.noticed.redescribed.extend((state.layer, said) for said in redescribed(arrays[0], state))
        state = _described(arrays, state)
        for layer in arrays:
            if (what := made_anew(layer, state.at(layer.address))) is not None:
                state = self._accept_anew(layer, state, what)
        state, changed = compared_with_store(arrays, state)
        for layer in arrays:
            state = with_source(state, self._checked(layer, state.at(layer.address), changed[layer.name]))
        return state

    def _checked(self, layer: Layer, source: CountedSource, changed: Sequence[Change]) -> CountedSource:
        """What was counted of the array `layer`, in which files have `changed`. Raises as `load`."""
        if source.covered.stop > layer.rows and not self.accept_changes:
            raise DataError(
                f"layer {layer.name}: it has {layer.rows} rows, but rows up to {source.covered.stop} were counted",
                WayOut.RESTART,
                WayOut.ACCEPT,
            )
        accepted = self._accepted(layer, changed) & source.covered
        rows = max(layer.rows, source.covered.stop, source.excluded.stop if self.accept_changes else 0)
        excluded = source.excluded & Coverage.first(rows)
        known = layer.uuid or source.uuid  # an older version did not note it
        return replace(source, rows=rows, excluded=excluded, accepted=source.accepted | accepted, uuid=known)

    def _accepted(self, layer: Layer, changes: Sequence[Change]) -> Coverage:
        """The rows of files that have changed and are accepted. Raises `DataError` if they are not."""
        copies: list[Change] = []
        others: list[Change] = []
        for each in changes:
            is_copy = each.is_copy or (self.accept_changes and each.looks_copied)
            (copies if is_copy else others).append(each)
        if others and self.moved and self.accept_changes:
            said = f"layer {layer.name}: {others[0]} of {layer.store} is not what was counted; {NO_COPY}"
            raise UsageError(said, WayOut.RESTART, WayOut.ELSEWHERE)
        if others and not self.accept_changes:
            raise change_error(layer, others, moved=self.moved)
        self.noticed.copies.extend(copies)
        return rows_of(others)

    def _accept_anew(self, layer: Layer, state: LayerStatistics, what: str) -> LayerStatistics:
        """`state` for an array in the place of the one that was counted: accept its rows, or raise as `load`.

        `what` happened to the array.
        """
        if self.moved and self.accept_changes:
            said = f"layer {layer.name} of {layer.store}: {what} since it was counted; {NO_COPY}"
            raise UsageError(said, WayOut.RESTART, WayOut.ELSEWHERE)
        if not self.accept_changes:
            raise DataError(
                f"layer {layer.name}: {what} since it was counted{f'; {layer.store} {MOVED}' if self.moved else ''}",
                WayOut.RESTART,
                WayOut.ELSEWHERE if self.moved else WayOut.ACCEPT,
            )
        before = state.at(layer.address)
        found = source_of(layer, max(layer.rows, before.covered.stop, before.excluded.stop))
        found = replace(found, excluded=before.excluded, filled=before.filled, accepted=before.covered)
        for start, stop in before.covered.ranges:
            found = found.count(_unmeasured(layer, (start, stop)))
        return with_source(without_tail(state), found)


def made_anew(layer: Layer, source: CountedSource) -> str | None:
    """What says that `layer` is another array than the one that was counted; None if nothing does."""
    if source.fingerprint != layer.fingerprint:
        return "its dtype, sample shape, chunks or codecs have changed"
    if source.covered and were_made_apart(source.uuid, layer.uuid):
        return "it was recorded anew"
    return None


def compared_with_store(
    arrays: Sequence[Layer], state: LayerStatistics
) -> tuple[LayerStatistics, dict[str, list[Change]]]:
    """`state` with the identities that the counted files have now, and those that have changed, by array.

    It is without the rows of its tails if these have to be counted again: if one of their files is not as it was, or if
    that is unknown. A file of a tail that is as it was although the array has grown beyond it is still to be written,
    so it stays a tail.
    """
    changes, again = {}, False
    for layer in arrays:
        before = state.at(layer.address)
        files, changed = compared(layer, before)
        mask_files, changed_masks = compared_mask(layer, before)
        changes[layer.name] = [*changed, *changed_masks]
        rewritten = any(before.tail & Coverage.of([each.rows]) for each in changes[layer.name] if not each.is_copy)
        stays = bool(before.tail) and not rewritten and are_known(layer, before, before.tail)
        again |= bool(before.tail) and not stays
        rows = min(before.settled_rows, layer.settled_rows) if stays else layer.settled_rows
        said = source_of(layer)
        source = replace(before, recorded=said.recorded, file_rows=said.file_rows, settled_rows=rows)
        state = with_source(state, replace(source, files=files, mask_files=mask_files))
    if again:
        state = uncounted_tails(arrays, state)
    for layer in arrays:
        covered = state.at(layer.address).covered
        changes[layer.name] = [each for each in changes[layer.name] if covered & Coverage.of([each.rows])]
    return state, changes


def uncounted_tails(arrays: Sequence[Layer], state: LayerStatistics) -> LayerStatistics:
    """`state` with the rows of its tails not counted."""
    settled = state.settled
    if settled is None:
        return state
    for layer in arrays:
        source = state.at(layer.address)
        left = source.covered - source.tail
        masks = [] if layer.mask is None else files_without(layer.mask, source.tail, left)
        state = with_source(state, source.uncount(source.tail, files_without(layer, source.tail, left), masks))
    return replace(state, statistics=settled, settled=None)


def files_without(array: Layer, rows: Coverage, left: Coverage) -> list[int]:
    """The files of `array` that hold some of `rows`, and none of the rows that are `left`."""
    touched = [number for start, stop in rows.ranges for number in file_range(array, start, stop)]
    return [number for number in touched if not left & Coverage.of([rows_of_file(array, number)])]


def _described(arrays: Sequence[Layer], state: LayerStatistics) -> LayerStatistics:
    """`state` as `arrays`, those of its layer, are described now.

    The quantisation may change: it applies only to the final sums; the kernel, where no statistic depends on it.
    """
    layer = arrays[0]
    return replace(
        for_kernel(state, layer.kernel),
        quantization=layer.quantization,
        readers=layer.readers,
        tensor=layer.tensor,
        rows_are=layer.rows_are,
        models=models_of(arrays, state.models),
        weights=weights_of(arrays, state.weights),
        order=layer.order,
        attributes=layer.attributes,
    )


def redescribed(layer: Layer, state: Ledger) -> list[str]:
    """What `_described` changes of `state` so that its results change, in words: from what, and to what."""
    pairs: dict[str, tuple[object, object]] = {
        "quantisation": (_metadata(state.quantization), _metadata(layer.quantization)),
        "meaning of a row": (state.rows_are or "samples", layer.rows_are or "samples"),
        "list of layers that read it": (", ".join(state.read_by.names), ", ".join(layer.read_by.names)),
    }
    both = {what: contrasted(*pair) for what, pair in pairs.items() if pair[0] != pair[1]}
    return [f"the {what} has changed from {before} to {now}" for what, (before, now) in both.items()]


def _metadata(found: Quantization | None) -> dict[str, Any] | None:
    return None if found is None else found.to_metadata()


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
    """Raise `MismatchError` if `layer` is described differently than when `state` was counted, or was recorded from a
    model with other weights.
    """
    pairs = {
        "missing values": (state.missing_values, _missing_values(layer)),  # first: they may change the dtype, too
        "dtype": (str(state.space.dtype), str(layer.space.dtype)),
        "channel axis": (state.channel_axis, layer.channel_axis),
        "channels": (state.channels, layer.channels),
        "statistics": (", ".join(state.statistics), ", ".join(kind.name for kind in layer.kinds)),
        "mask": (state.at(layer.address).mask or "none", "none" if layer.mask is None else layer.mask.name),
    }
    if state.statistics.uses_kernel:
        pairs["kernel"] = (_kernel(state.space), _kernel(layer.space))
        pairs["sample shape"] = (str(state.space.sample), str(layer.sample_shape))
    for what, (before, asked) in pairs.items():
        unasked = [kind.name for kind in layer.kinds if kind.unasked and kind.name not in state.statistics]
        if before != asked and what == "statistics" and unasked:
            raise MismatchError(
                f"layer {layer.name}: {before} were counted, but its kernel misses positions, so that the job now "
                f"counts {listed(unasked)}, too",
                WayOut.RESTART,
                WayOut.ELSEWHERE,
            )
        if before != asked and what == "statistics":
            raise MismatchError(
                f"layer {layer.name}: {before} were counted, but the job now has {asked}",
                "set `statistics` to what was counted besides mean and extrema",
                WayOut.RESTART,
                WayOut.ELSEWHERE,
            )
        if before != asked:
            raise MismatchError(
                f"layer {layer.name}: it was counted with {what} {before}, but the job now has {asked}",
                "correct the configuration",
                WayOut.RESTART,
                WayOut.ELSEWHERE,
            )
    _check_same_model(layer, state)
    for kind in layer.kinds:
        if kind.tensors(state.space) != kind.tensors(layer.space):
            raise MismatchError(
                f"layer {layer.name}: {kind.name} was counted over samples of shape {state.space.sample}, but they now "
                f"have the shape {layer.space.sample}",
                WayOut.RESTART,
                WayOut.ELSEWHERE,
            )


def _check_same_model(layer: Layer, state: Ledger) -> None:
    """Raise `MismatchError` if the store was recorded from a model with other weights than what was counted.

    Fingerprints of different kinds cannot be compared.
    """
    if not state.at(layer.address).covered:
        return
    weights = [(name, [each for other, each in state.weights if other == name], now) for name, now in layer.weights]
    for name, known, now in [(layer.name, [*state.models], layer.model), *weights]:
        counted = [each for each in known if fingerprint_kind(each) == fingerprint_kind(now)]
        if counted and now not in counted:
            raise MismatchError(
                f"layer {name}: {layer.store} was recorded from a model with other weights than what was counted: the "
                f"fingerprints are {short_fingerprint(now)} and {short_fingerprints(counted)}",
                WayOut.RESTART,
                WayOut.ELSEWHERE,
            )


def _missing_values(layer: Layer) -> str:
    """As `Ledger.missing_values`, for what `layer` says now."""
    return "none" if layer.attributes is None else layer.attributes.missing_in_words(but_nan=True)


def _kernel(space: Space) -> str:
    return "unknown" if space.kernel is None else in_words(space.kernel.to_metadata())


def _unmeasured(layer: Layer, rows: Rows) -> Measured:
    """The files that hold `rows` now, and their mask's, with the statistics of nothing."""
    files = file_range(layer, *rows)
    masks, of_masks = mask_identities(layer, rows)
    nothing = Statistics.empty(layer.kinds, layer.space)
    return Measured(layer.name, rows, nothing, files.start, sampled(layer, files), EMPTY, masks, of_masks)
