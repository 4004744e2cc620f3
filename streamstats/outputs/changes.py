"""Changes: which files of a store are not as they were when they were counted, and what that means.

A file of a store of our recorder may grow: rows are committed once they are stored, so those that were counted are
still there. Other writers make an array longer before they write, so a file that has changed may hold other values in
rows that were counted. If it had room for more rows then, its rows were counted apart, as the tail, and are counted
again. If it had none, or its rows were not counted apart, the change is an error, unless the file is a copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..calibration.identity import contents, file_key, file_range, identities, rows_of_file
from ..calibration.layer import Layer
from ..calibration.sources.identities import (
    MISSING,
    UNCOUNTED_FILE,
    Files,
    Identity,
    copied,
    differing,
    is_counted,
    is_known,
)
from ..coverage import Coverage, Rows
from ..errors import ChangedError, DataError, WayOut
from .ledger import CountedSource, Measured, in_both

MOVED = "is at another place than the store that was counted, and no copy of it"
WRITTEN_LATER = (
    "; if rows are being appended, their writer made the array longer before it wrote them, and a run in between "
    "counted what was there: fill values"
)
COPIED = (
    "; the sizes of all changed chunks and samples of their bytes are the same, as in a copy of the store; `verify` "
    "compares all values"
)


@dataclass(frozen=True)
class Change:
    """The file `number` of `array`, a layer or a mask, and `what` happened to it.

    `looks_copied`: size and content are those that were counted, as far as they were sampled.
    """

    array: Layer
    number: int
    what: str
    looks_copied: bool

    @property
    def rows(self) -> Rows:
        """The rows that the file has room for."""
        return rows_of_file(self.array, self.number)

    @property
    def is_copy(self) -> bool:
        """Whether the bytes of the file are proved to be those that were counted: it ends with their checksum."""
        encoding = self.array.encoding
        return self.looks_copied and encoding is not None and encoding.checksum and not encoding.index_bytes

    def __str__(self) -> str:
        first, stop = self.rows
        return f"chunk {file_key(self.array, self.number)} (rows {first}:{min(stop, self.array.rows)})"


def mask_of(layer: Layer) -> Layer:
    """The mask of `layer`, an array with as many rows."""
    assert layer.mask is not None
    shape = (layer.rows, *layer.mask.shape[1:])
    return replace(layer.mask, shape=shape, recorded=layer.commits, unfinished=layer.unfinished)


def compared(layer: Layer, source: CountedSource) -> tuple[Files, list[Change]]:
    """The counted files as they are now, and those that have changed. Files of our recorder that have grown have not.

    The contents are those that were counted, and of files that have changed or grown, those of now.
    """
    now = identities(layer, range(len(source.files)))
    now[:, 2] = source.files[:, 2]
    now[~is_counted(source.files)] = UNCOUNTED_FILE
    numbers = np.flatnonzero(differing(source.files, now)).tolist()
    now[numbers, 2] = contents(layer, numbers)
    may_have_grown = layer.commits and (layer.rows > source.rows or layer.unfinished)
    same = copied(source.files, now)
    return now, [
        Change(layer, number, _what_happened(source.files, now, number), bool(same[number]))
        for number in numbers
        if not (may_have_grown and rows_of_file(layer, number)[1] > source.rows)
    ]


def compared_mask(layer: Layer, source: CountedSource) -> tuple[Files, list[Change]]:
    """As `compared`, for the files of the mask of `layer`."""
    if layer.mask is None:
        return source.mask_files, []
    return compared(mask_of(layer), replace(source, files=source.mask_files))


def are_known(layer: Layer, source: CountedSource, rows: Coverage) -> bool:
    """Whether the source could identify the files that hold counted `rows`, and those of the mask."""
    arrays = [(layer, source.files)] + ([] if layer.mask is None else [(layer.mask, source.mask_files)])
    files = [
        files[number.start : number.stop]
        for array, files in arrays
        for number in (file_range(array, *each) for each in rows.ranges)
    ]
    return all(is_known(each).all() for each in files)


def is_counted_again(change: Change, source: CountedSource) -> bool:
    """Whether all counted rows of the file are in the tail, so that the next run counts them again."""
    return not source.covered & (Coverage.of([change.rows]) - source.tail)


def rows_of(changes: Sequence[Change]) -> Coverage:
    """The rows that the files of `changes` have room for."""
    return Coverage.of(each.rows for each in changes)


def change_error(layer: Layer, changes: Sequence[Change], *, moved: bool = False) -> DataError:
    """The error for `changes` to files of `layer`, or of its mask, of which it names the first.

    A store that has `moved` must be a copy, so that nothing else can be accepted.
    """
    first = changes[0]
    whose = "" if first.array.name == layer.name else f" of its mask {first.array.name}"
    said = f"layer {layer.name}: {first}{whose} {first.what} since it was counted"
    if all(each.looks_copied for each in changes):
        return DataError(f"{said}{COPIED}", WayOut.RESTART, WayOut.ACCEPT)
    if moved:
        return DataError(f"{said}; {layer.store} {MOVED}", WayOut.RESTART, WayOut.ELSEWHERE)
    return DataError(f"{said}{'' if layer.commits else WRITTEN_LATER}", WayOut.RESTART, WayOut.ACCEPT)


def check_unchanged(layer: Layer, source: CountedSource, measured: Measured) -> None:
    """Raise `DataError` if one of the files of `measured` has changed since `source` was counted.

    A file of our recorder with room for more rows may be rewritten at any time: rows are appended to it. For one that
    another writer may write again, `ChangedError` says that its rows are to be counted again.
    """
    changed = _changed_in(layer, source.files, measured.first_file, measured.files)
    if layer.mask is not None:
        mask = mask_of(layer)
        changed += _changed_in(mask, source.mask_files, measured.first_mask_file, measured.mask_files)
    for each in changed:
        if each.rows[1] <= layer.settled_rows:
            raise change_error(layer, [each])
        if not layer.commits:
            raise ChangedError(f"layer {layer.name}: {each} {each.what} while it was read; run again")


def _changed_in(array: Layer, counted: Files, first: int, files: Files) -> list[Change]:
    before, after = in_both(counted[first:], files)
    return [
        Change(array, first + number, _what_happened(before, after, number), looks_copied=False)
        for number in np.flatnonzero(differing(before, after)).tolist()
    ]


def _what_happened(before: Files, after: Files, number: int) -> str:
    was, now = (_identity(files, number) for files in (before, after))
    if now == MISSING:
        return "was removed"
    if was == MISSING:
        return "was written"
    if was[0] != now[0]:
        return f"changed from {was[0]} to {now[0]} bytes"
    return "was rewritten"


def _identity(files: Files, number: int) -> Identity:
    size, changed, _ = files[number].tolist()
    return size, changed
