"""Serving: one process at one address until a signal. Then the service accepts nothing new and saves running jobs."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable
from types import FrameType

import uvicorn

from ..errors import OutputError
from .app import make_app
from .logs import log_as_json
from .service import Service
from .settings import ServiceConfig

CONNECTIONS = 2000
KEEP_ALIVE_SECONDS = 30
DRAIN_SECONDS = 20
BACKLOG = 512


class _Server(uvicorn.Server):
    """Ends the event streams when a signal arrives."""

    on_exit: Callable[[], None]

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Shut down; a second Ctrl-C does not wait for requests in progress."""
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True
        self.on_exit()


def serve(config: ServiceConfig, say: Callable[[str], None]) -> None:
    """Serve what `config` describes until SIGTERM or SIGINT. Raises `UsageError`, `OutputError`, `DataError`."""
    os.umask(0o077)  # only the service's user may read what clients send and get
    listener = _listening(config)
    service = Service(config)
    log_as_json()
    server = _server(service)
    url = _url(listener, tls=config.tls is not None)
    say(f"serving {url}; the token is in {service.token_file.path}")
    if service.token_file.is_new and sys.stderr.isatty():  # in a log, it would not stay secret
        say(f"the page, with the token: {url}/#token={service.token_file.text}")
    with listener:
        server.run(sockets=[listener])
    say("stopped; interrupted jobs resume at the next start")


def _server(service: Service) -> _Server:
    """The HTTP server; when a signal arrives, `service` accepts nothing more."""
    tls = service.config.tls
    server = _Server(
        uvicorn.Config(
            make_app(service),
            log_config=None,
            access_log=False,
            lifespan="on",
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=DRAIN_SECONDS,
            limit_concurrency=CONNECTIONS,
            ssl_certfile=str(tls.certificate) if tls else None,
            ssl_keyfile=str(tls.key) if tls else None,
            h11_max_incomplete_event_size=2**16,
        )
    )
    server.on_exit = service.stopping.set
    return server


def _url(listener: socket.socket, *, tls: bool) -> str:
    """The URL for this machine."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


def _listening(config: ServiceConfig) -> socket.socket:
    """A socket that listens; opened first, so that an address in use changes nothing else. Raises `OutputError`."""
    try:
        family, _, _, _, address = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(
            family, socket.SOCK_STREAM, socket.IPPROTO_TCP
        )  # named, or asyncio delays small answers
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        raise OutputError(
            f"cannot listen on {config.host} port {config.port}: {error.strerror or error}; stop what listens there, "
            "or choose another `port`"
        ) from error
    return listener
