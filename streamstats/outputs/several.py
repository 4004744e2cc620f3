"""Layers of several arrays: which source of what was counted is which array of the job.

A source is found again by its address: the store, as the job names it, and the part. If the job names stores in another
way than before, or one more, a source is found by the place of its store, and if that has moved, by its files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..calibration.addresses import Address
from ..calibration.identity import sampled
from ..calibration.layer import Layer
from ..calibration.sources.choose import source_of as store_at
from ..calibration.sources.identities import copied, differing, has_identity
from ..coverage import EMPTY, Coverage
from ..errors import DataError, UsageError, WayOut
from .layer_statistics import LayerStatistics
from .ledger import CountedSource, merged_error, source_of
from .manifest import read_manifest


def stores_before(output: Path) -> tuple[str, ...]:
    """The stores that `output` was counted from; none if it has no manifest, or is merged. Raises `DataError`."""
    manifest = read_manifest(output)
    return () if manifest is None or manifest.merged else manifest.sources


def check_not_merged(output: Path) -> None:
    """Raise `UsageError` if `output` holds merged results: a run would make them those of one job."""
    manifest = read_manifest(output)
    if manifest is not None and manifest.merged:
        raise UsageError(
            f"{output} holds merged results; run in the outputs that were merged and merge again, or choose another "
            "output"
        )


def with_arrays(state: LayerStatistics, arrays: Sequence[Layer], before: Sequence[str] = ()) -> LayerStatistics:
    """`state` with a source for each of `arrays`, in their order; those that are new have no rows yet.

    `before` are the stores that `state` was counted from. Raises `DataError` for rows that were counted from an array
    which is not among `arrays`, `MismatchError` for a merged layer.
    """
    if state.is_merged:
        raise merged_error(state)
    found = [_same(source, arrays, before) for source in state.sources]
    for source, array in zip(state.sources, found, strict=True):
        if array is None and (source.covered or source.excluded):
            raise _gone(state.layer, source, arrays)
    by_address: dict[Address, CountedSource] = {}
    for source, array in zip(state.sources, found, strict=True):
        if array is not None and by_address.setdefault(array.address, source) is not source:
            raise _gone(state.layer, source, arrays)
    by_address = {address: replace(source, address=address) for address, source in by_address.items()}
    return replace(state, sources=tuple(by_address.get(array.address, source_of(array)) for array in arrays))


def excluded_of(
    arrays: Sequence[Layer], forgotten: Mapping[Address, Coverage], output: Path
) -> dict[Address, Coverage]:
    """The rows of each of `arrays` among those `forgotten` in `output`.

    Raises `DataError` for forgotten rows of an array that is not among `arrays`.
    """
    found = {array.address: forgotten.get(array.address, EMPTY) for array in arrays}
    for address, rows in forgotten.items():
        if rows and address not in found:
            before = stores_before(output)
            array = next((each for each in arrays if _lies_in(each, address, before)), None)
            if array is None:
                raise DataError(
                    f"layer {arrays[0].counted_as}: rows {rows} of {str(address) or 'the only store'} were forgotten, "
                    f"but the job has {_names(arrays)}",
                    _way_back(address, arrays),
                    WayOut.ELSEWHERE,
                )
            found[array.address] |= rows
    return found


def _same(source: CountedSource, arrays: Sequence[Layer], before: Sequence[str]) -> Layer | None:
    """The array that `source` was counted from, None if it is none of `arrays`."""
    for array in arrays:
        if array.address == source.address:
            return array
    for array in arrays:
        if _lies_in(array, source.address, before):
            return array
    alike = [(_equal_files(source, array), -place) for place, array in enumerate(arrays)]
    most, place = max(alike)
    return arrays[-place] if most else None


def _lies_in(array: Layer, address: Address, before: Sequence[str]) -> bool:
    """Whether `array` lies where `address` says: its store, or the only one of those `before`, and its part."""
    store = address.store or (before[0] if len(before) == 1 else "")
    return bool(store) and array.address.part == address.part and store_at(store).location == array.store


def _equal_files(source: CountedSource, array: Layer) -> int:
    """How many counted files of `source` the array has, too, or copies of them."""
    if source.fingerprint != array.fingerprint or source.address.part != array.address.part:
        return 0
    now = sampled(array, range(len(source.files)))
    known = has_identity(source.files) & has_identity(now)
    return int((known & (~differing(source.files, now) | copied(source.files, now))).sum())


def _gone(layer: str, source: CountedSource, arrays: Sequence[Layer]) -> DataError:
    where = f" of {source.address}" if str(source.address) else ""
    rows, what = (source.covered, "counted") if source.covered else (source.excluded, "forgotten")
    anew = () if source.excluded else (WayOut.RESTART,)  # which keeps to what was forgotten
    return DataError(
        f"layer {layer}: rows {rows}{where} were {what}, but the job has {_names(arrays)}",
        _way_back(source.address, arrays),
        *anew,
        WayOut.ELSEWHERE,
    )


def _way_back(address: Address, arrays: Sequence[Layer]) -> str:
    """What brings back the array at `address`: the store that held it may be one of the job."""
    has_store = any(each.address.store == address.store for each in arrays)
    return "restore that part" if address.part and has_store else "name that store in `source` again"


def _names(arrays: Sequence[Layer]) -> str:
    return "; ".join(str(array.address) or array.store for array in arrays)
