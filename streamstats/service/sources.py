"""The sources that jobs may read: stores below configured folders, and URLs with configured prefixes.

Links are followed to the roots, when the service starts, and nowhere below them: neither here nor by jobs. So a path
lies where it says, and whoever can write below a root gives away nothing but what lies there. A URL names one of the
supported object stores, with no chaining, user, query or `..`; its endpoint and credentials are the service's, never
the client's.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ..calibration.sources.links import LinkError, names_in, status_of
from ..errors import UsageError
from ..storage.names import V3_METADATA

SCHEMES = ("s3", "gs", "az")
LONGEST = 1024
"""Maximum characters of a source."""
STORE_FILES = (V3_METADATA, ".zgroup")
MOST_LISTED, DEEPEST = 200, 3
"""How many stores are listed at most, and how deep the search for them goes."""


@dataclass(frozen=True)
class Sources:
    """Where sources may be: `roots` are folders, `prefixes` URLs that end with `/`. Raises `UsageError` for others.

    `places` are the roots as they were when this was made: (as they are written, where they lie), absolute.
    """

    roots: Sequence[Path]
    prefixes: Sequence[str] = ()
    places: Sequence[tuple[Path, Path]] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "places", [(root.absolute(), root.resolve()) for root in self.roots])
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
        allowed = [path for place in self.places if (path := _below(*place, source)) is not None]
        if not allowed:
            raise UsageError(
                f"the source {source} is not below a folder that the service may read; "
                "name a store below one of its `roots`"
            )
        found = next((path for path in allowed if _exists(path, source)), None)
        if found is None:
            raise UsageError(f"the source {source} does not exist below the folders that the service may read")
        return str(found)

    def spellings(self, source: str) -> list[str]:
        """All names of the store that `source` names: below a root, absolute as the root is written and as it lies.

        A source that is a URL, or that does not exist below a root, has one name.
        """
        try:
            found = Path(self.resolved(source))
            below = [(place, found.relative_to(place[1])) for place in self.places if found.is_relative_to(place[1])]
            relative = {str(path) for _, path in below if self.resolved(str(path)) == str(found)}
        except UsageError:
            return [source]
        return sorted({source} | relative | {str(base / path) for place, path in below for base in place})

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
        for _, root in self.places:
            waiting = [(root, 0)]
            while waiting and len(found) < MOST_LISTED:
                folder, depth = waiting.pop(0)
                is_store, below = _looked_into(folder)
                if depth and is_store:
                    found.append(folder.relative_to(root).as_posix())
                elif depth < DEEPEST:
                    waiting += [(each, depth + 1) for each in below]
        return sorted(set(found))


def _exists(path: Path, source: str) -> bool:
    """Whether there is anything at `path`. Raises `UsageError`, which names `source`, if that lies behind a link."""
    try:
        status_of(str(path), follow_links=False)
    except LinkError as error:
        raise UsageError(
            f"the source {source} is a link, or lies behind one, and links below the service's `roots` are not "
            "followed; name what the link leads to, if that lies below a root, or replace the link with it"
        ) from error
    except OSError:  # also if the name is too long for a file
        return False
    return True


def _looked_into(folder: Path) -> tuple[bool, list[Path]]:
    """(whether `folder` is a store, the folders in it); links are not followed."""
    try:
        names = names_in(str(folder))
    except OSError:  # folders that the service may not read are not listed
        return False, []
    is_store = not names.others.isdisjoint(STORE_FILES)
    return is_store, [folder / name for name in sorted(names.folders)[:MOST_LISTED]]


def _below(written: Path, lies: Path, source: str) -> Path | None:
    """The path of `source` from the root that is `written` so and `lies` there, None if it is outside."""
    for base in (lies, written):
        path = Path(os.path.normpath(base / source))
        if path.is_relative_to(base):
            return lies / path.relative_to(base)
    return None


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
