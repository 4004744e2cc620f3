"""Files below a folder of the package, as the service gives them away."""

from __future__ import annotations

import os

from fastapi.staticfiles import StaticFiles


class Files(StaticFiles):
    """Files below a folder. A path with a NUL is that of none: older versions of starlette fail there."""

    def lookup_path(self, path: str) -> tuple[str, os.stat_result | None]:
        """As `StaticFiles.lookup_path`."""
        return ("", None) if "\0" in path else super().lookup_path(path)
