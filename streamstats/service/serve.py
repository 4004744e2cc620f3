"""Serving: one process at one address until a signal. Then the service accepts nothing new and saves running jobs."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from math import ceil
from types import FrameType
from typing import cast

import uvicorn

from ..errors import OutputError
from .app import make_app
from .connections import Connection, Gate, check_descriptors
from .logs import log_as_json
from .service import Service
from .settings import ServiceConfig

DRAIN_SECONDS = 20
BACKLOG = 4096
SWEEP_TICKS = 10
"""Of uvicorn, 0.1 s each."""


class _Server(uvicorn.Server):
    """Ends the event streams when a signal arrives, and connections that keep the service waiting."""

    on_exit: Callable[[], None]
    gate: Gate

    async def on_tick(self, counter: int) -> bool:
        """As `uvicorn.Server.on_tick`."""
        if counter % SWEEP_TICKS == 0:
            self.gate.sweep()
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Shut down; a second Ctrl-C does not wait for requests in progress."""
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True
        self.on_exit()


def serve(config: ServiceConfig, say: Callable[[str], None]) -> None:
    """Serve what `config` describes until SIGTERM or SIGINT. Raises `UsageError`, `OutputError`, `DataError`."""
    os.umask(0o077)  # only the service's user may read what clients send and get
    check_descriptors(config.connections)
    listener = _listening(config)
    service = Service(config)
    log_as_json()
    server = _server(service, listener)
    url = _url(listener, tls=config.tls is not None)
    say(f"serving {url}; the token is in {service.token_file.path}")
    if service.token_file.is_new and sys.stderr.isatty():  # in a log, it would not stay secret
        say(f"the page, with the token: {url}/#token={service.token_file.text}")
    with listener:
        server.run(sockets=[listener])
    say("stopped; interrupted jobs resume at the next start")


def _server(service: Service, gate: Gate) -> _Server:
    """The HTTP server for what comes through `gate`; when a signal arrives, `service` accepts nothing more."""
    tls = service.config.tls
    server = _Server(
        uvicorn.Config(
            make_app(service),
            http=cast("type[asyncio.Protocol]", partial(Connection, gate)),
            ws="none",
            log_config=None,
            access_log=False,
            lifespan="on",
            server_header=False,
            timeout_keep_alive=ceil(gate.limits.idle_seconds),
            timeout_graceful_shutdown=DRAIN_SECONDS,
            backlog=BACKLOG,
            ssl_certfile=str(tls.certificate) if tls else None,
            ssl_keyfile=str(tls.key) if tls else None,
            h11_max_incomplete_event_size=2**16,
        )
    )
    server.on_exit, server.gate = service.stopping.set, gate
    return server


def _url(listener: socket.socket, *, tls: bool) -> str:
    """The URL for this machine."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


def _listening(config: ServiceConfig) -> Gate:
    """A socket that listens; opened first, so that an address in use changes nothing else. Raises `OutputError`."""
    try:
        family, _, _, _, address = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0]
        listener = Gate(config.connections, family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        raise OutputError(
            f"cannot listen on {config.host} port {config.port}: {error.strerror or error}; stop what listens there, "
            "or choose another `port`"
        ) from error
    return listener
