"""Hooks: what the service tells others at the end of a job, over HTTP or by a command, both of its configuration.

A request can only name hooks, never an address or a command. Webhooks are signed as https://www.standardwebhooks.com
says. What comes back is not read, besides the status: it cannot be used to see what is in a network.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import os
import secrets
import signal
import stat
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import httpx

from .. import __version__
from ..errors import StreamstatsError, UsageError, first_line
from ..storage.files import write_secret

FOLDER = "hooks"
"""Of the secrets, in that of the service."""
PREFIX = "whsec_"
LEAST_SECRET, SECRET_BYTES = 24, 32


class DeliveryError(StreamstatsError):
    """A hook could not be told: try again later."""


class Hook(Protocol):
    """Somebody who is told."""

    def tell(self, number: str, body: bytes) -> None:
        """Deliver `body`, JSON; `number` is the same each time that it is tried. Raises `DeliveryError`."""


@dataclass(frozen=True)
class Webhook:
    """An address that is sent a signed request, and answers with a status of success within `seconds`."""

    url: str
    secret: bytes
    seconds: float

    def tell(self, number: str, body: bytes) -> None:
        """As `Hook`; redirections are not followed."""
        headers = {**signature(self.secret, number, int(time.time()), body), "content-type": "application/json"}
        headers["user-agent"] = f"streamstats/{__version__}"
        try:
            status = asyncio.run(asyncio.wait_for(self._status(headers, body), self.seconds))
        except TimeoutError as error:
            raise DeliveryError(f"no answer within {self.seconds:g} s") from error
        except (httpx.HTTPError, OSError) as error:
            raise DeliveryError(f"{type(error).__name__}: {first_line(error)}") from error
        if not 200 <= status < 300:
            raise DeliveryError(f"the answer has the status {status}")

    async def _status(self, headers: dict[str, str], body: bytes) -> int:
        async with (
            httpx.AsyncClient(timeout=self.seconds, follow_redirects=False) as client,
            client.stream("POST", self.url, content=body, headers=headers) as answer,
        ):
            return answer.status_code


@dataclass(frozen=True)
class Command:
    """A command that gets the body on its stdin, and ends with status 0 within `seconds`."""

    words: tuple[str, ...]
    seconds: float

    def tell(self, number: str, body: bytes) -> None:
        """As `Hook`. It knows nothing of the service's environment but PATH and LANG."""
        environment = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        try:
            process = subprocess.Popen(
                self.words,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**environment, "STREAMSTATS_NOTICE": number},
                start_new_session=True,
            )
        except OSError as error:
            raise DeliveryError(f"cannot start the command: {error.strerror or error}") from error
        try:
            process.communicate(body, timeout=self.seconds)
        except subprocess.TimeoutExpired as error:
            raise DeliveryError(f"the command did not end within {self.seconds:g} s") from error
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # and what it started
            process.wait()
        if process.returncode:
            raise DeliveryError(f"the command ended with status {process.returncode}")


def signature(secret: bytes, number: str, at: int, body: bytes) -> dict[str, str]:
    """The headers that prove who sent `body`, and when."""
    signed = hmac.new(secret, f"{number}.{at}.".encode() + body, hashlib.sha256).digest()
    coded = base64.b64encode(signed).decode()
    return {"webhook-id": number, "webhook-timestamp": str(at), "webhook-signature": f"v1,{coded}"}


def secret_in(path: Path) -> bytes:
    """The secret in the file at `path`, `whsec_` and base64; it is made if it is missing. Raises `UsageError`."""
    if not path.exists():
        write_secret(path, f"{PREFIX}{base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()}\n")
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UsageError(f"other users can read {path}; protect it with: chmod 600 {path}")
    try:
        found = base64.b64decode(path.read_text(encoding="ascii").strip().removeprefix(PREFIX), validate=True)
    except (ValueError, binascii.Error):
        found = b""
    if len(found) < LEAST_SECRET:
        raise UsageError(
            f"{path} has no secret of a webhook; expected {PREFIX} and at least {LEAST_SECRET} bytes as base64; remove "
            "the file, and the service makes a new one"
        )
    return found
