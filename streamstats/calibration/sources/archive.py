"""A zip archive that holds a zarr group: one file for all arrays, which zarr reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from zipfile import is_zipfile

import zarr
from zarr.abc.store import Store
from zarr.storage import ZipStore

from ...errors import UsageError
from .groups import arrays_below
from .identities import Identity
from .local import OPENING_BYTES, identity_of
from .source import Folder


@dataclass(frozen=True)
class ArchiveSource:
    """The store in the zip archive at the absolute path `location`. See `Source`."""

    location: str
    opening_bytes: ClassVar[int] = OPENING_BYTES

    def zarr_store(self) -> Store:
        """As `Source.zarr_store`."""
        if not is_zipfile(self.location):  # ZipStore would find out only when it reads
            raise UsageError(
                f"calibration store {self.location} is a file, but not a zip archive; give a zarr group, as a folder, "
                "a zip archive or a URL"
            )
        return ZipStore(Path(self.location), mode="r", read_only=True)

    def arrays(self) -> dict[str, zarr.Array[Any]]:
        """As `Source.arrays`."""
        return arrays_below(self.zarr_store(), self.location, consolidated=False)

    def folder(self, name: str, largest: int = 0) -> Folder | None:
        """None: zarr reads archives."""
        return None

    def identity(self) -> Identity:
        """That of the archive: any change to it changes every file."""
        return identity_of(self.location)

    def fetched_bytes(self, largest: int) -> int:
        """None: nothing is fetched ahead."""
        return 0
