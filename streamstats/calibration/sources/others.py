"""Every other URL that zarr can open, through fsspec: `https://…`, `file://…`, `simplecache::…`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar

import zarr

from ...errors import UsageError
from .groups import arrays_below
from .identities import UNKNOWN, Identity
from .local import OPENING_BYTES
from .source import Folder


@dataclass(frozen=True)
class UrlSource:
    """The store at the URL `location`. See `Source`."""

    location: str
    opening_bytes: ClassVar[int] = OPENING_BYTES

    def zarr_store(self) -> str:
        """As `Source.zarr_store`."""
        check_url(self.location)
        return self.location

    def arrays(self) -> dict[str, zarr.Array[Any]]:
        """As `Source.arrays`; a web server lists nothing, so that consolidated metadata is read where it exists."""
        return arrays_below(self.zarr_store(), self.location, consolidated=True)

    def folder(self, name: str, largest: int = 0) -> Folder | None:
        """None: zarr reads what lies behind other URLs."""
        return None

    def identity(self) -> Identity:
        """UNKNOWN: changes to files go unnoticed."""
        return UNKNOWN

    def fetched_bytes(self, largest: int) -> int:
        """None: nothing is fetched ahead."""
        return 0


def check_url(location: str) -> None:
    """Raise `UsageError`, without showing it, if the URL `location` has credentials, a query or a fragment."""
    scheme, _, rest = location.rpartition("://")
    if re.search(r"[?#]|:[^@]*@|^[^/]*@", rest) or "@" in scheme:
        raise UsageError(
            f"the URL {scheme.split('@')[0][:20]}://… has credentials or options in it, which would be written to the "
            "results; put them into the environment (AWS_ACCESS_KEY_ID, GOOGLE_APPLICATION_CREDENTIALS, …)"
        )
