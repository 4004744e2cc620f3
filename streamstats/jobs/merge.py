"""Merging: the results over the rows of several outputs, as if one run had counted them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import groupby
from pathlib import Path

from ..address import local_path
from ..calibration.addresses import Address
from ..calibration.recorded_model import fingerprint_kind, short_fingerprints, weights_among
from ..errors import MismatchError, UsageError
from ..outputs.copies import counted_twice, in_doubt
from ..outputs.layer_statistics import LayerStatistics
from ..outputs.ledger import by_layer, for_kernel
from ..outputs.manifest import Gaps, LayerEntry, Manifest, read_manifest
from ..outputs.merging import CountedTwiceError
from ..outputs.merging import merge as merge_ledgers
from ..outputs.results import check_no_store, check_paths, states_in, still_missing, write_results
from ..outputs.saving import held
from ..outputs.staleness import fingerprints
from ..outputs.stores import located, sources_named


def merge(
    outputs: Sequence[str | Path], output: str | Path, *, different_stores: bool = False, other_weights: bool = False
) -> dict[str, LayerStatistics]:
    """Write the statistics over the rows of all `outputs` to `output`, another folder, and return those of each layer.

    Layers that only one output has are copied; of several `min_rows` for a layer, the greatest applies. With
    `different_stores`, outputs count as those of different stores unless the opposite is proved: two sites may have
    stores of one name. Outputs of models with other weights are merged only with `other_weights`. Raises `UsageError`
    for an output without states; `MismatchError` if outputs do not fit together, have counted the same row, or may
    have; `DataError` for a damaged file; `OutputError` if a file cannot be written.

    >>> for day, value in [("monday", 1.0), ("tuesday", 3.0)]:
    ...     meter = ss.Meter(name=day)
    ...     meter.append("fc", np.full((2, 1), value))
    ...     meter.save(day)
    >>> ss.merge(["monday", "tuesday"], "both")["fc"].mean
    array([2.])
    """
    if isinstance(outputs, str | Path):
        raise UsageError(f"the outputs to merge are {outputs!s}; expected a list of folders")
    folders, target = [local_path(each) for each in outputs], local_path(output)
    if target.resolve() in {each.resolve() for each in folders}:
        raise UsageError(f"{output} is one of the outputs to merge; choose another folder")
    merged = _merged(folders, different_stores=different_stores, other_weights=other_weights)
    check_paths(target, merged)
    check_no_store(target)
    _check_not_of_a_run(target)
    found = [read_manifest(each) for each in folders]
    manifests = [manifest for manifest in found if manifest is not None]
    asked: dict[str, int] = {}
    told: dict[str, dict[Address, Gaps]] = {}
    for name, entry in _entries(manifests, merged):
        known = told.setdefault(name, {})
        for address, gaps in entry.gaps.items():
            known[address] = tuple(sorted([*known.get(address, ()), *gaps]))
        asked[name] = max(entry.min_rows, asked.get(name, 0))
    left = {layer: still_missing(merged[layer], told.get(layer, {})) for layer in merged}
    with held(target, "merge", {layer: statistics.rows for layer, statistics in merged.items()}):
        write_results(
            target,
            _sources(found),
            merged,
            left,
            merged=True,
            min_rows=asked,
            merged_from=fingerprints(folders),
        )
    return by_layer(merged)


def _entries(manifests: Sequence[Manifest], merged: Mapping[str, LayerStatistics]) -> Iterator[tuple[str, LayerEntry]]:
    """(array in `merged`, an entry of one of the `manifests` for it), each of a manifest's arrays once."""
    array_of = {layer: name for name, found in merged.items() for layer in _names(found)}
    for manifest in manifests:
        found = {(array_of[layer], entry.array): entry for layer, entry in manifest.layers.items()}
        yield from ((name, entry) for (name, _), entry in found.items())


Fingerprints = dict[tuple[str, str, str], tuple[frozenset[str], Path]]
"""(layer, "model" or "weight", kind) → the fingerprints of that kind, and the output that named them first."""


@dataclass(frozen=True)
class _Part:
    """An `output` that is merged: what was counted of each array, and of each of the `layers` that read them."""

    output: Path
    states: Mapping[str, LayerStatistics]
    layers: Mapping[str, LayerStatistics]

    @classmethod
    def read(cls, output: Path) -> _Part:
        """Raises `UsageError` for an output without states, `DataError` for a damaged file."""
        manifest = read_manifest(output)
        states = {name: located(found, manifest) for name, found in states_in(output, manifest).items()}
        if not states:
            raise UsageError(f"{output} has no states; expected the output folder of `streamstats run`")
        return cls(output, states, {layer: found for found in states.values() for layer in _names(found)})


def _merged(outputs: Sequence[Path], *, different_stores: bool, other_weights: bool) -> dict[str, LayerStatistics]:
    merged: dict[str, LayerStatistics] = {}
    before: list[_Part] = []
    known: Fingerprints = {}
    for part in map(_Part.read, outputs):
        if not other_weights:
            _check_same_model(part, known)
        try:
            merged = _joined(merged, part.states)
        except CountedTwiceError as error:
            _check_no_copy(part, before)  # which names the other output, and says what tells
            raise MismatchError(f"{part.output}: {error}") from error
        except MismatchError as error:
            raise MismatchError(f"{part.output}: {error}") from error
        _check_no_copy(part, before)
        if not different_stores:
            _check_no_doubt(part, before)
        before.append(part)
    return merged


def _check_same_model(part: _Part, known: Fingerprints) -> None:
    """Raise `MismatchError` if a layer, or its model, had other weights than those that are `known`; note what it had.

    Fingerprints of different kinds cannot be compared.
    """
    for layer, found in sorted(part.layers.items()):
        weights = [weight for name, weight in found.weights if found.readers is None or name == layer]
        for what, those in (("model", found.models), ("weight", weights)):
            for kind, group in groupby(sorted(those), fingerprint_kind):
                here = frozenset(group)
                there, other = known.setdefault((layer, what, kind), (here, part.output))
                if here != there:
                    both = " and ".join(short_fingerprints(sorted(each)) for each in (here, there))
                    raise MismatchError(
                        f"{part.output}: layer {layer} was recorded from a model with other weights than in {other}: "
                        f"the fingerprints of the {what} are {both}; merge outputs of one model; if the inputs of its "
                        "layers are nevertheless the same, add --other-weights (in Python, `other_weights=True`)"
                    )


def _check_no_copy(part: _Part, before: Sequence[_Part]) -> None:
    """Raise `MismatchError` if `part` was counted from the store of one of those `before`, or from a copy of it."""
    for other in before:
        twice = counted_twice(other.states, part.states)
        if twice is not None:
            raise MismatchError(
                f"{part.output}: layer {twice.layer}: rows {twice.rows} are counted in {other.output}, too, from the "
                f"same store or a copy of it: {twice.how}; expected each row once; merge outputs of different stores, "
                f'of meters of different names, or of different rows, as with `rows: "{twice.rows.stop}:"` in one'
            )


def _check_no_doubt(part: _Part, before: Sequence[_Part]) -> None:
    """Raise `MismatchError` if `part` may have counted rows of one of those `before`, but nothing proves it."""
    for other in before:
        twice = in_doubt(other.layers, part.layers)
        if twice is not None:
            raise MismatchError(
                f"{part.output}: layer {twice.layer}: rows {twice.rows} are counted in {other.output}, too, and "
                f"{twice.how}; expected each row once; if it is one store, count only the rows added since, with "
                f'`rows: "{twice.rows.stop}:"` in an output of their own, and merge that; if they are two, add '
                "--different-stores (in Python, `different_stores=True`)"
            )


def _joined(left: Mapping[str, LayerStatistics], right: Mapping[str, LayerStatistics]) -> dict[str, LayerStatistics]:
    """What was counted in either, by array.

    Layers that read one array in an output, but not in the other, such as one of an older recording, read several here.
    """
    mine, theirs = ({layer: name for name, found in side.items() for layer in _names(found)} for side in (left, right))
    groups: dict[tuple[str | None, str | None], list[str]] = {}
    for layer in sorted({*mine, *theirs}):
        groups.setdefault((mine.get(layer), theirs.get(layer)), []).append(layer)
    found: dict[str, LayerStatistics] = {}
    for arrays, layers in groups.items():
        parts = [side[array] for side, array in zip((left, right), arrays, strict=True) if array is not None]
        whole = all(_names(part) == tuple(layers) for part in parts) and len({part.layer for part in parts}) == 1
        name = parts[0].layer if whole else layers[0]
        if name in found:
            raise MismatchError(f"layer {name}: the outputs name their arrays differently; record them alike")
        found[name] = reduce(merge_ledgers, [part if whole else _part(part, name, layers) for part in parts])
    return found


def _names(found: LayerStatistics) -> tuple[str, ...]:
    return found.read_by.names or (found.layer,)


def _part(found: LayerStatistics, name: str, layers: Sequence[str]) -> LayerStatistics:
    """What `layers` read of `found`, under the `name` of another array."""
    readers = found.read_by.among(layers)
    part = for_kernel(found, readers.kernel)
    weights = weights_among(found.weights, layers)
    return replace(part, layer=name, readers=None if readers.is_only(name) else readers, weights=weights)


def _check_not_of_a_run(output: Path) -> None:
    manifest = read_manifest(output)
    if manifest is not None and not manifest.merged:
        raise UsageError(f"{output} holds the results of a run; choose another folder for the merged results")


def _sources(manifests: Sequence[Manifest | None]) -> list[str]:
    return sorted({source for manifest in manifests for source in sources_named(manifest)})
