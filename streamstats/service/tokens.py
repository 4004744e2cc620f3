"""Tokens: who may do what. Each has a name, which owns what is made with it, and a role.

A token is a secret of 256 random bits. The database and the memory of the service hold only its SHA-256, from which the
secret cannot be found. The secret of the first token, `admin`, is in a file beside the database, so that the service
can be used from its first start. Only the service writes the table, so what it changes takes effect at once.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import secrets
import stat
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from ..errors import UsageError
from ..storage.files import replace_secret, write_secret
from .clock import Clock
from .database import Database
from .errors import ConflictError, ForbiddenError, FullError, NotFoundError

TOKEN = "token"
TOKEN_BYTES = 32
FIRST = "admin"
"""The name of the token in the file."""
MOST_TOKENS = 1000
MOST_OVERLAP = 7 * 86400.0
"""Seconds for which an older secret may stay valid."""
Role = Literal["read", "submit", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)
"""Each may do what those before it may. read: see everything; submit: also make things, and change its own; admin: also
change what others made, and make tokens."""


Statement = tuple[str, tuple[object, ...]]


@dataclass(frozen=True)
class Caller:
    """Who sends a request."""

    name: str
    role: Role

    @property
    def is_admin(self) -> bool:
        """Whether it may change what others made."""
        return self.role == "admin"

    def may(self, role: Role) -> bool:
        """Whether it may do what `role` may."""
        return ROLES.index(self.role) >= ROLES.index(role)

    def check_owns(self, what: str, owner: str) -> None:
        """Raise `ForbiddenError` unless `what` is its own, or it is an admin."""
        if not self.is_admin and self.name != owner:
            whose = f"{owner}'s" if owner else "nobody's"
            raise ForbiddenError(f"{what} is {whose}, and this token is {self.name}'s; ask its owner, or an admin")


@dataclass(frozen=True)
class Token:
    """A token: the SHA-256 of its secret, its name and role, who made it and when, and when it ends, if it does.

    `until` is when it ends by the wall clock, `ends` by the monotonic one.
    """

    digest: bytes
    name: str
    role: Role
    made: float
    maker: str
    until: float | None = None
    ends: float = math.inf


class TokenFile:
    """The secret of the token `admin`, in the file at `path`, which is made if it is missing.

    Raises `UsageError` for a file that other users can read, and for what cannot be a secret.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_new = not path.exists()
        if self.is_new:
            write_secret(path, f"{_secret()}\n")
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise UsageError(f"other users can read {path}; protect it with: chmod 600 {path}")
        if len(self.text) < TOKEN_BYTES:
            raise UsageError(
                f"the token in {path} has {len(self.text)} characters, too few for a secret; remove the file, "
                "and the service makes a new one"
            )

    @property
    def text(self) -> str:
        """The secret. Raises `UsageError`."""
        try:
            return self.path.read_text(encoding="ascii").strip()
        except UnicodeDecodeError as error:
            raise UsageError(
                f"{self.path} has characters that no token has; remove the file, and the service makes a new token"
            ) from error

    def token(self) -> Token:
        """The token."""
        return Token(_digest(self.text), FIRST, "admin", self.path.stat().st_mtime, "")

    def replace(self) -> str:
        """Put a new secret into the file, and return it. Raises `OutputError`."""
        secret = _secret()
        replace_secret(self.path, f"{secret}\n")
        return secret


class Tokens:
    """The tokens in `database`, and the first one, in `file`."""

    def __init__(self, database: Database, file: TokenFile, clock: Clock | None = None) -> None:
        self._database, self._file, self._first = database, file, file.token()
        self._clock = clock or Clock()
        self._tokens = self._read(())
        self._lock = threading.Lock()

    def _read(self, known: Sequence[Token]) -> list[Token]:
        """The tokens; those that are `known` end as they did."""
        ends = {(each.digest, each.until): each.ends for each in known}
        rows = self._database.query("SELECT digest, name, role, made, maker, until FROM tokens ORDER BY name, made")
        found = [self._first, *(Token(*row) for row in rows)]
        return [replace(each, ends=ends.get((each.digest, each.until), self._end(each.until))) for each in found]

    def _end(self, until: float | None) -> float:
        """`until` by the monotonic clock; the wall clock, which may be set, counts only between processes."""
        left = math.inf if until is None else min(until - self._clock.now(), MOST_OVERLAP)
        return self._clock.monotonic() + left

    def caller(self, authorization: str | None) -> Caller | None:
        """Whose token the header `Authorization` carries, compared in constant time; None if it is nobody's."""
        scheme, _, given = (authorization or "").partition(" ")
        digest, found = _digest(given.strip()), None
        for each in self.listed():
            if hmac.compare_digest(digest, each.digest):
                found = each
        return None if found is None or scheme.lower() != "bearer" else Caller(found.name, found.role)

    def listed(self) -> list[Token]:
        """The tokens that have not ended; one that was rotated is listed twice while its old secret is valid, too."""
        now = self._clock.monotonic()
        return [each for each in self._tokens if now < each.ends]

    def new(self, name: str, role: Role, maker: str) -> str:
        """Make a token, and return its secret, which nobody can find out later. Raises `ConflictError`, `FullError`."""
        with self._lock:
            if any(each.name == name for each in self.listed()):
                raise ConflictError(f"there is a token {name} already; rotate it, or revoke it first")
            if len(self.listed()) >= MOST_TOKENS:
                raise FullError(f"there are {MOST_TOKENS:,} tokens, the limit of this service; revoke one")
            secret = _secret()
            self._write(self._insertion(secret, name, role, maker))
            return secret

    def rotate(self, name: str, maker: str, overlap: float = 0.0) -> str:
        """Give the token `name` a new secret, and return it; older ones are valid for at most `overlap` seconds more.

        Raises `NotFoundError`.
        """
        with self._lock:
            old, ends = self.get(name), self._clock.now() + overlap
            end = ("UPDATE tokens SET until = min(coalesce(until, ?), ?) WHERE name = ?", (ends, ends, name))
            if name == FIRST:
                return self._rotate_first(end, ends)
            secret = _secret()
            self._write(end, self._insertion(secret, name, old.role, maker))
            return secret

    def _rotate_first(self, end: Statement, ends: float) -> str:
        """The same for the token in the file, whose old secret moves to the table."""
        old = self._first
        keep = "INSERT OR REPLACE INTO tokens (digest, name, role, made, maker, until) VALUES (?, ?, ?, ?, ?, ?)"
        secret = self._file.replace()  # first: the file always has the secret that is valid
        self._first = self._file.token()
        self._write(end, (keep, (old.digest, FIRST, old.role, old.made, old.maker, ends)))
        return secret

    def revoke(self, name: str) -> None:
        """End a token at once; what it owns stays, for whoever gets a token of that name. Raises `NotFoundError`."""
        with self._lock:
            self.get(name)
            if name == FIRST:
                raise ConflictError(f"the token {FIRST} is the one in the file of the service; rotate it instead")
            self._write(("DELETE FROM tokens WHERE name = ?", (name,)))

    def get(self, name: str) -> Token:
        """The token `name`. Raises `NotFoundError`."""
        found = next((each for each in self._tokens if each.name == name and each.until is None), None)
        if found is None:
            raise NotFoundError(f"there is no token {name}; the list of tokens has their names")
        return found

    def _insertion(self, secret: str, name: str, role: Role, maker: str) -> Statement:
        statement = "INSERT INTO tokens (digest, name, role, made, maker) VALUES (?, ?, ?, ?, ?)"
        return statement, (_digest(secret), name, role, self._clock.now(), maker)

    def _write(self, *statements: Statement) -> None:
        """Change the table, without tokens that have ended, and what is known of it."""
        with self._database.writing() as connection:
            ended = {each.digest for each in self._tokens}.difference(each.digest for each in self.listed())
            connection.executemany("DELETE FROM tokens WHERE digest = ?", [(each,) for each in ended])
            for statement, values in statements:
                connection.execute(statement, values)
        self._tokens = self._read(self._tokens)


def _secret() -> str:
    return secrets.token_urlsafe(TOKEN_BYTES)


def _digest(secret: str) -> bytes:
    """A fast hash is right for 256 random bits: there is nothing to guess."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
