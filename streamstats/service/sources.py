"""The sources that jobs may read: stores below configured folders, and URLs with configured prefixes.

A path is resolved, with its links and `..`, before it is compared. A URL names one of the supported object stores, with
no chaining, user, query or `..`; its endpoint and credentials are the service's, never the client's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ..errors import UsageError

SCHEMES = ("s3", "gs", "az")
LONGEST = 1024
"""Maximum characters of a source."""
STORE_FILES = ("zarr.json", ".zgroup")
MOST_LISTED, DEEPEST = 200, 3
"""How many stores are listed at most, and how deep the search for them goes."""


@dataclass(frozen=True)
class Sources:
    """Where sources may be: `roots` are folders, `prefixes` URLs that end with `/`. Raises `UsageError` for others."""

    roots: Sequence[Path]
    prefixes: Sequence[str] = ()

    def __post_init__(self) -> None:
        for root in self.roots:
            if not root.is_dir():
                raise UsageError(f"the root {root} is not a folder; expected a folder of calibration stores")
        for prefix in self.prefixes:
            if not prefix.endswith("/"):
                raise UsageError(f"the prefix {prefix} does not end with /; expected s3://bucket/folder/")
            _check_url(prefix)

    def resolved(self, source: str) -> str:
        """The path or URL of `source`. Raises `UsageError` for one that is not allowed; the message reveals no more."""
        if not source or len(source) > LONGEST or not source.isprintable():
            raise UsageError(f"the source has {len(source)} characters; expected 1 to {LONGEST} printable characters")
        if "://" in source or "::" in source:
            return self._resolved_url(source)
        allowed = [path for root in self.roots if (path := _below(root, source)) is not None]
        if not allowed:
            raise UsageError(
                f"the source {source} is not below a folder that the service may read; "
                "name a store below one of its `roots`"
            )
        found = next(filter(_exists, allowed), None)
        if found is None:
            raise UsageError(f"the source {source} does not exist below the folders that the service may read")
        return str(found)

    def _resolved_url(self, source: str) -> str:
        _check_url(source)
        if not any(source.startswith(prefix) for prefix in self.prefixes):
            raise UsageError(
                f"the source {source} does not begin with a URL that the service may read; "
                "name a store below one of its `prefixes`"
            )
        return source

    def listed(self) -> list[str]:
        """Stores below the roots, at most MOST_LISTED of each, in the form that `resolved` takes."""
        found: list[str] = []
        for root in self.roots:
            waiting = [(root, 0)]
            while waiting and len(found) < MOST_LISTED:
                folder, depth = waiting.pop(0)
                if depth and any((folder / name).exists() for name in STORE_FILES):
                    found.append(folder.relative_to(root).as_posix())
                elif depth < DEEPEST:
                    waiting += [(each, depth + 1) for each in _folders(folder)]
        return sorted(set(found))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # the name is too long for a file
        return False


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(each for each in folder.iterdir() if each.is_dir() and not each.is_symlink())[:MOST_LISTED]
    except OSError:  # folders that the service may not read are not listed
        return []


def _below(root: Path, source: str) -> Path | None:
    """The path of `source` from `root`, None if it is outside."""
    base = root.resolve()
    try:
        path = (base / source).resolve()
    except (OSError, RuntimeError):  # the name is too long, or links form a circle
        return None
    return path if path == base or base in path.parents else None


def _check_url(url: str) -> None:
    """Raise `UsageError` unless `url` is scheme://bucket/path and nothing else."""
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    path = unquote(parts.path)
    plain = re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", parts.netloc) is not None
    if (
        parts.scheme not in SCHEMES
        or not plain
        or parts.query
        or parts.fragment
        or "::" in url
        or "%" in url
        or "\\" in path
        or any(part in (".", "..") for part in path.split("/"))
    ):
        raise UsageError(f"the URL {url} is not allowed; expected {', '.join(SCHEMES)}://BUCKET/PATH and nothing else")
