"""Limits on what zarr is asked to open: a folder that would take it hours, or all memory, is refused beforehand."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from ...errors import DataError
from ...storage.names import METADATA_NAMES

MOST_ARRAYS = 100_000
DEEPEST = 64
"""Groups inside each other."""
LONGEST_METADATA = 2**24


def check_bounds(folder: Path) -> None:
    """Raise `DataError` if zarr would take too long, or too much memory, to open `folder`."""
    waiting, arrays = [(folder, 0)], 0
    while waiting:
        here, depth = waiting.pop()
        if depth > DEEPEST:
            raise DataError(
                f"{here} lies more than {DEEPEST} groups deep; give a group further down the tree as the source"
            )
        if _has_array_metadata(here):  # its chunks are not listed: there can be millions
            arrays += 1
            if arrays > MOST_ARRAYS:
                raise DataError(f"{folder} has more than {MOST_ARRAYS:,} arrays; give a smaller group as the source")
        else:
            waiting += [(below, depth + 1) for below in _folders_below(here)]


def _folders_below(here: Path) -> list[Path]:
    """The folders in `here`, also behind links, as zarr finds them. Raises `DataError` for a link that loops."""
    try:
        with os.scandir(here) as entries:
            below = [entry for entry in entries if entry.is_dir()]
        for entry in below:
            if entry.is_symlink() and here.resolve().is_relative_to(Path(entry).resolve()):
                raise DataError(f"{entry.path} links to a folder that contains it; remove the link")
    except OSError:  # zarr reports a folder that cannot be read
        return []
    return [Path(entry) for entry in below]


def _has_array_metadata(folder: Path) -> bool:
    """Whether `folder` holds an array. Raises `DataError` if its metadata is too long to read."""
    sizes = {name: size for name in sorted(METADATA_NAMES) if (size := _size(folder / name)) is not None}
    for name, size in sizes.items():
        if size > LONGEST_METADATA:
            raise DataError(f"{folder / name} has {size:,} bytes; expected at most {LONGEST_METADATA:,}; repair it")
    return ".zarray" in sizes or ("zarr.json" in sizes and b'"array"' in (folder / "zarr.json").read_bytes())


def _size(path: Path) -> int | None:
    """The bytes of a file of metadata; None if it does not exist. Raises `DataError` if it is not a file."""
    with suppress(OSError):  # most of them do not exist
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise DataError(f"{path} is not a file; expected the metadata of an array or group; repair it")
        return found.st_size
    return None
