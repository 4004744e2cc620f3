"""Access: the checks that every request must pass. Its token must be one that the service knows, of a role that may.

Another site can make a browser send requests, so `Host` and `Origin` are checked as well. A browser fetches downloads
and reports without headers: a link to one of them can be signed, and is valid for a minute.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import secrets
import time
from collections.abc import Sequence
from urllib.parse import parse_qs, quote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .answers import problem
from .messages import V1
from .tokens import Caller, Role, Tokens

CALLER = "streamstats.caller"
"""The key, in the scope of a request that may pass, of its `Caller`."""
LINK_SECONDS = 60
LINK_PARAMETERS = ("until", "signature")
"""The parameters of a signed link."""
DOCS = "/api/v1/docs"
KNOWN = "streamstats.known"
"""The key, in the scope of a request, of whether it came with a token."""
OPEN = ("/healthz", "/readyz", "/api/v1/openapi.json", DOCS)
"""Paths that need no token: they reveal nothing about the data."""
MANUAL = "/manual/"
PAGE_PATHS = ("/", "/static/", MANUAL)
LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
LINKED = Caller("(link)", "read")
"""Who follows a link that is signed."""
READING = re.compile(rf"{V1}/jobs/[^/]*/(links|corrections)$")
"""Paths that change nothing, whatever the method."""
SENDING = re.compile(rf"{V1}/stores/[^/]*/layers/")
FOR_ADMINS = re.compile(rf"{V1}/(tokens|audit|prune)(/|$)")
UNSAFE = ("POST", "PUT", "PATCH", "DELETE")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
REPORT_POLICY = (
    "sandbox allow-same-origin; default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'self'"
)
"""The policy of the report: no script at all; its styles and pictures are inside it."""
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}


class Links:
    """Signs paths, with a key that ends with the service."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes()

    def signed(self, path: str, now: float | None = None) -> str:
        """The address of `path` (decoded) with a signature that is valid for LINK_SECONDS."""
        until = int((time.time() if now is None else now) + LINK_SECONDS)
        return f"{quote(path)}?until={until}&signature={self._signature(path, until)}"

    def has_signed(self, path: str, query: str) -> bool:
        """Whether `query` carries a signature for `path` that is still valid."""
        fields = parse_qs(query, max_num_fields=10) if query.count("&") < 10 else {}
        until, signature = fields.get("until", [""])[0], fields.get("signature", [""])[0]
        if not (until.isascii() and until.isdigit() and len(until) < 15 and int(until) >= time.time()):
            return False
        return hmac.compare_digest(signature.encode(), self._signature(path, int(until)).encode())

    def _signature(self, path: str, until: int) -> str:
        return hmac.new(self._key, f"link\n{path}\n{until}".encode(), hashlib.sha256).hexdigest()


class Guard:
    """Refuses requests that may not pass, and adds to every answer the headers that protect a browser."""

    def __init__(self, app: ASGIApp, tokens: Tokens, links: Links, hosts: Sequence[str], *, tls: bool) -> None:
        self._app, self._tokens, self._links, self._tls = app, tokens, links, tls
        self._hosts = {each.lower() for each in (*LOCAL_NAMES, *hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=message["headers"])
                message["headers"] = headers.raw
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                if self._tls:
                    headers.setdefault("strict-transport-security", "max-age=31536000")
            await send(message)

        refusal = self._refusal(scope)
        scope[KNOWN] = refusal is None and not _is_open(scope["path"])
        answer = self._app if refusal is None else problem(*refusal)
        await answer(scope, receive, send_guarded)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """(status, message), or None for a request that may pass."""
        headers = Headers(scope=scope)
        if len(headers.getlist("host")) != 1 or host_name(headers["host"]) not in self._hosts:
            return 421, "the Host header names another server; use a name in the service's `allowed_hosts`"
        origin = headers.get("origin")
        if origin is not None and not self._is_own(origin, headers["host"]):
            return 403, "the request comes from a page of another origin; use the page of this service"
        if scope["method"] in UNSAFE and headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return 403, "the request comes from a page of another site; use the page of this service"
        path = scope["path"]
        if _is_open(path):
            return None
        caller = self._caller(scope, headers.get("authorization"))
        if caller is None:
            return (
                401,
                "the token is missing or wrong; send `Authorization: Bearer TOKEN` with a token that an admin made, or "
                "with the one in the service's file",
            )
        scope[CALLER] = caller
        needed = needed_role(scope["method"], path)
        if not caller.may(needed):
            return 403, f"the token {caller.name} has the role {caller.role}; this request needs the role {needed}"
        return None

    def _caller(self, scope: Scope, authorization: str | None) -> Caller | None:
        found = self._tokens.caller(authorization)
        if found is None and scope["method"] in ("GET", "HEAD"):
            is_signed = self._links.has_signed(scope["path"], scope["query_string"].decode("latin-1"))
            return LINKED if is_signed else None
        return found

    def _is_own(self, origin: str, host: str) -> bool:
        """Whether `origin` is this service; the scheme may be that of a proxy with TLS."""
        try:
            parts = urlsplit(origin)
            return parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower()
        except ValueError:
            return False


def needed_role(method: str, path: str) -> Role:
    """The role that a request needs.

    >>> needed_role("GET", "/api/v1/jobs"), needed_role("POST", "/api/v1/jobs"), needed_role("GET", "/api/v1/audit")
    ('read', 'submit', 'admin')
    """
    if FOR_ADMINS.match(path):
        return "admin"
    return "read" if method in ("GET", "HEAD") or READING.match(path) else "submit"


def changes(method: str, path: str) -> bool:
    """Whether a request changes something, other than to append activations, which are too many to be noted."""
    sends = method == "POST" and SENDING.match(path) is not None
    return method not in ("GET", "HEAD") and not READING.match(path) and not sends


def _is_open(path: str) -> bool:
    """Whether `path` needs no token."""
    return path in (PAGE_PATHS[0], MANUAL.rstrip("/"), *OPEN) or path.startswith(PAGE_PATHS[1:])


def host_name(header: str) -> str:
    """The name in a Host header without the port.

    >>> host_name("Localhost:8765"), host_name("[::1]:80")
    ('localhost', '[::1]')
    """
    name, separator, port = header.strip().lower().rpartition(":")
    return name if separator and port.isdigit() and (name.endswith("]") or ":" not in name) else header.strip().lower()


def named_hosts(host: str, allowed: Sequence[str]) -> list[str]:
    """The names that a Host header may give for a service that listens on `host`."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return [host, *allowed]
    own = [] if address.is_unspecified else [f"[{host}]" if address.version == 6 else host]
    return [*own, *allowed]
