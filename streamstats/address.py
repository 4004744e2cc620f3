"""Where things are: the address of a service, unless its configuration or its client names another, and local paths.

It stands apart from `config`, which takes long to import, because the parser of the command line needs it.
"""

from __future__ import annotations

import re
from pathlib import Path

from .errors import UsageError

SERVICE_HOST = "127.0.0.1"
SERVICE_PORT = 8765
SERVICE_URL = f"http://{SERVICE_HOST}:{SERVICE_PORT}"


def local_path(path: str | Path) -> Path:
    """The path of a file or folder of results.

    Raises `UsageError` for a URL, which would be a folder named `s3:`, and for no path, which would be this folder.
    """
    if path == "":
        raise UsageError("a path is empty; name a file or folder, or . for this one")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):
        raise UsageError(
            f"{path} is a URL; results are files, so give a path on this machine, and copy them afterwards"
        )
    return Path(path)
