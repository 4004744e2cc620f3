"""The one place that asks what kind of location a calibration store has."""

from __future__ import annotations

import os
from pathlib import Path
from stat import S_ISDIR
from urllib.parse import urlsplit

from ...errors import UsageError
from .archive import ArchiveSource
from .links import status_of
from .local import LocalSource
from .objects import SCHEMES, ObjectSource
from .others import UrlSource
from .source import Source


def source_of(location: str | Path, *, follow_links: bool = True) -> Source:
    """The source at `location`, by its scheme; for a path, by whether it is a file. Contacts nobody.

    A path that does not exist is that of a local folder, whose `find` says so. Without `follow_links`, nothing is read
    behind a link of this machine; raises `UsageError` for a URL of which that cannot be said.
    """
    text = str(location)
    if is_url(text):
        return _source_at(text, follow_links)
    path = os.path.abspath(text)
    return ArchiveSource(path, follow_links) if _is_file(path, follow_links) else LocalSource(path, follow_links)


def _source_at(url: str, follow_links: bool) -> Source:
    if urlsplit(url).scheme in SCHEMES:
        return ObjectSource(url)
    if not follow_links:
        raise UsageError(f"{url} may lead to links, which are not followed here; give a folder, or an s3, gs or az URL")
    return UrlSource(url)


def _is_file(path: str, follow_links: bool) -> bool:
    try:
        return not S_ISDIR(status_of(path, follow_links=follow_links).st_mode)
    except (OSError, ValueError):
        return False


def is_url(location: str) -> bool:
    """Whether `location` is a URL, or a chain of them (`simplecache::s3://…`), and not a path."""
    return "://" in location or "::" in location
