"""The one place that asks what kind of location a calibration store has."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

from .archive import ArchiveSource
from .local import LocalSource
from .objects import SCHEMES, ObjectSource
from .others import UrlSource
from .source import Source


def source_of(location: str | Path) -> Source:
    """The source at `location`, by its scheme; for a path, by whether it is a file. Contacts nobody.

    A path that does not exist is that of a local folder, whose `find` says so.
    """
    text = str(location)
    if is_url(text):
        return ObjectSource(text) if urlsplit(text).scheme in SCHEMES else UrlSource(text)
    path = os.path.abspath(text)
    is_file = os.path.exists(path) and not os.path.isdir(path)
    return ArchiveSource(path) if is_file else LocalSource(path)


def is_url(location: str) -> bool:
    """Whether `location` is a URL, or a chain of them (`simplecache::s3://…`), and not a path."""
    return "://" in location or "::" in location
