"""Uploads: models and samples that jobs refer to, named by the SHA-256 of their content.

What several people upload is stored once, and is there until each of them, or an admin, has deleted it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path

from ..errors import UsageError
from ..storage.files import link, make_folders, remove, temporaries
from .bodies import Body, file_name
from .database import Database
from .errors import ConflictError, FullError, NotFoundError, TooLargeError
from .messages import UPLOADS, UploadView
from .tokens import Caller


class Uploads:
    """The files in `folder`, at most `most` bytes together; `database` knows whose they are."""

    def __init__(self, database: Database, folder: Path, most: int) -> None:
        self._database, self.folder, self._most = database, folder, most
        self._arriving = 0
        self._lock = threading.RLock()
        make_folders([folder])
        for path in temporaries(folder):
            remove(path)

    def _note(self, name: str, owner: str) -> None:
        with self._database.writing() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO uploads (id, owner, uploaded) VALUES (?, ?, ?)", (name, owner, time.time())
            )

    def reserve(self, size: int | None, largest: int) -> int:
        """Reserve room for a body that arrives: its `size`, or what is left, up to `largest`; how many bytes that is.

        Raises `TooLargeError` if there is too little room, `FullError` if others that arrive have reserved it.
        """
        with self._lock:
            stored = sum(each.bytes for each in self.listed())
            left = self._most - stored - self._arriving
            wanted = min(largest, max(left, 1)) if size is None else size
            if wanted > self._most - stored:
                raise self._too_much(stored, wanted)
            if wanted > left:
                raise FullError("other uploads take the room that is left; send the file again when they have ended")
            self._arriving += wanted
        return wanted

    def release(self, reserved: int) -> None:
        """Give back what was reserved, once the upload is kept or has failed."""
        with self._lock:
            self._arriving -= reserved

    def _too_much(self, stored: int, more: int) -> TooLargeError:
        return TooLargeError(
            f"the uploads have {stored:,} bytes, and {more:,} more would exceed the limit of {self._most:,}; "
            "delete some uploads"
        )

    def keep(self, body: Body, owner: str) -> UploadView:
        """Store a body; the same content is stored once. Raises `UsageError` if it is empty, and `TooLargeError`."""
        if not body.size:
            raise UsageError("the body is empty; send a file")
        name = body.digest
        with self._lock:
            if not (self.folder / name).exists():
                self._check_room(body.size)
                body.keep(self.folder / name)
            self._note(name, owner)
            return self.view(name)

    def listed(self) -> list[UploadView]:
        """The uploads, ordered by id."""
        with self._lock:
            return [self.view(each.name) for each in sorted(self.folder.iterdir()) if not each.name.startswith(".")]

    def view(self, name: str) -> UploadView:
        """An upload, and who uploaded it. Raises `NotFoundError`."""
        found = self._path(name).stat()  # its time counts for the uploads of an older service, which are nobody's
        rows = self._database.query("SELECT owner, uploaded FROM uploads WHERE id = ? ORDER BY owner", (name,))
        size, owners = found.st_size, [row["owner"] for row in rows]
        return UploadView(
            id=name, bytes=size, owners=owners, uploaded=max((row["uploaded"] for row in rows), default=found.st_mtime)
        )

    def delete(self, name: str, caller: Caller) -> None:
        """Delete an upload for one of its owners, or, for an admin, for all; jobs that were submitted with it keep it.

        Raises `NotFoundError`, `ForbiddenError`.
        """
        with self._lock:
            self._path(name)
            owners = self.view(name).owners
            if caller.name not in owners:
                caller.check_owns(f"upload {name}", " and ".join(filter(None, owners)))
            if not caller.is_admin and owners != [caller.name]:  # others have uploaded it, too
                with self._database.writing() as connection:
                    connection.execute("DELETE FROM uploads WHERE id = ? AND owner = ?", (name, caller.name))
                return
            self.remove(name)

    def remove(self, name: str, *, listed: float | None = None) -> None:
        """Delete an upload, whoever owns it. Raises `NotFoundError`.

        Raises `ConflictError` if it was uploaded again since it was `listed` with that time.
        """
        with self._lock:
            path = self._path(name)
            if listed not in (None, self.view(name).uploaded):
                raise ConflictError(f"upload {name} was sent again meanwhile")
            with self._database.writing() as connection:
                connection.execute("DELETE FROM uploads WHERE id = ?", (name,))
            remove(path)

    def put(self, request: Mapping[str, object], folder: Path) -> None:
        """Link the uploads that `request` names into `folder`, by its keys. Raises `NotFoundError`, `OutputError`."""
        files = {}
        with self._lock:  # none of them is deleted meanwhile
            for field in UPLOADS:
                if request.get(field):
                    path = self._path(str(request[field]))
                    with path.open("rb") as file:
                        files[folder / file_name(file.read(8), field)] = path
            link(files)

    def restore(self, request: Mapping[str, object], folder: Path, owner: str) -> list[UploadView]:
        """Make what `put` linked into `folder` uploads again; of `owner`, too.

        Raises `NotFoundError`, `TooLargeError`, `OutputError`.
        """
        kept = {path.stem: path for path in folder.iterdir()} if folder.is_dir() else {}
        wanted = {str(request[field]): kept.get(field) for field in UPLOADS if request.get(field)}
        with self._lock:
            missing = {name: path for name, path in wanted.items() if not (self.folder / name).is_file()}
            if None in missing.values():
                raise NotFoundError("the job no longer has the files that it was submitted with; upload them again")
            found = {self.folder / name: path for name, path in missing.items() if path is not None}
            self._check_room(sum(path.stat().st_size for path in found.values()))
            link(found)
            for name in wanted:
                self._note(name, owner)
        return [each for each in self.listed() if each.id in wanted]

    def _check_room(self, size: int) -> None:
        stored = sum(each.bytes for each in self.listed())
        if stored + size > self._most:
            raise self._too_much(stored, size)

    def _path(self, name: str) -> Path:
        path = self.folder / name
        if not path.is_file():
            raise NotFoundError(f"there is no upload {name}; upload the file again")
        return path
