"""Uploads: models and samples that jobs refer to, named by the SHA-256 of their content."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

from ..errors import UsageError
from ..storage.files import link, make_folders, remove, temporaries
from .bodies import Body, file_name
from .errors import NotFoundError, TooLargeError
from .messages import UploadView

FIELDS = ("model", "samples", "quantized", "held_out", "labels")
"""The keys of a request that name uploads."""


class Uploads:
    """The files in `folder`, at most `most` bytes together."""

    def __init__(self, folder: Path, most: int) -> None:
        self.folder, self._most = folder, most
        self._lock = threading.Lock()
        make_folders([folder])
        for path in temporaries(folder):
            remove(path)

    def keep(self, body: Body) -> UploadView:
        """Store a body; the same content is stored once. Raises `UsageError` if it is empty, and `TooLargeError`."""
        if not body.size:
            raise UsageError("the body is empty; send a file")
        name = body.digest
        with self._lock:
            if not (self.folder / name).exists():
                stored = sum(each.bytes for each in self.listed())
                if stored + body.size > self._most:
                    raise TooLargeError(
                        f"the uploads have {stored:,} bytes, and {body.size:,} more would exceed the limit of "
                        f"{self._most:,}; delete some uploads"
                    )
                body.keep(self.folder / name)
        return UploadView(id=name, bytes=body.size)

    def listed(self) -> list[UploadView]:
        """The uploads, ordered by id."""
        found = sorted(each for each in self.folder.iterdir() if not each.name.startswith("."))
        return [UploadView(id=each.name, bytes=each.stat().st_size) for each in found]

    def view(self, name: str) -> UploadView:
        """One of them. Raises `NotFoundError`."""
        return UploadView(id=name, bytes=self._path(name).stat().st_size)

    def delete(self, name: str) -> None:
        """Delete an upload; jobs that were submitted with it keep their copy. Raises `NotFoundError`."""
        with self._lock:
            remove(self._path(name))

    def put(self, request: Mapping[str, object], folder: Path) -> None:
        """Link the uploads that `request` names into `folder`, by its keys. Raises `NotFoundError`, `OutputError`."""
        files = {}
        for field in FIELDS:
            if request.get(field):
                path = self._path(str(request[field]))
                with path.open("rb") as file:
                    files[folder / file_name(file.read(8), field)] = path
        link(files)

    def _path(self, name: str) -> Path:
        path = self.folder / name
        if not path.is_file():
            raise NotFoundError(f"there is no upload {name}; upload the file again")
        return path
