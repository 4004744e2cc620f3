"""Connections: how many are open at once, of each address and in all, and how long each may keep the service waiting.

The law: a connection costs the service one descriptor, and there are fewer of them than it may have. Once there are too
many, the one without a request that has waited longest makes room, strangers first: those that have shown no token. A
connection with a request in progress is never dropped to make room. So however many connections are opened, clients
that are at work stay, and others get in.

Connections are counted where they are accepted, before TLS and HTTP: what a client has not said yet costs time, too.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import resource
import socket
import time
from collections import Counter
from contextlib import suppress
from enum import Enum
from typing import Any

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from ..errors import UsageError
from .access import KNOWN
from .settings import Connections

RESERVED = 512
"""Descriptors for everything but connections: databases, stores, bodies, processes."""
ANSWER_SECONDS = 5.0
"""How much longer than the application, which can answer, a connection waits for a body."""
REPORT_SECONDS = 60.0
"""The shortest time between two reports of connections that were dropped."""

log = logging.getLogger("streamstats.service")


class Phase(Enum):
    """What a connection waits for."""

    HEAD = "the head of a request"
    BODY = "the body of a request"
    WORK = "the service"
    ANSWER = "the client to read the answer"
    REST = "the rest of a body whose request was answered"
    IDLE = "another request"


FREE = (Phase.HEAD, Phase.REST, Phase.IDLE)
"""Without a request in progress."""


class Accepted(socket.socket):
    """The socket of a connection that came in through `gate`, and what is known of the connection."""

    gate: Gate
    peer: Any
    group: str
    phase = Phase.HEAD
    since = 0.0
    known = dropped = False

    def enter(self, phase: Phase) -> None:
        """Wait for something else, or go on to wait after some progress."""
        self.phase, self.since = phase, time.monotonic()
        self.gate.moved(self)

    def close(self) -> None:
        """Close it, and give its place back."""
        super().close()
        self.gate.left(self)


class Gate(socket.socket):
    """A socket that listens, and through which no more connections come in than `limits` allow."""

    def __init__(self, limits: Connections, family: int) -> None:
        super().__init__(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # named, or asyncio delays small answers
        self.limits = limits
        self._inside: dict[Accepted, None] = {}
        self._by_peer: dict[Any, Accepted] = {}
        self._free: dict[bool, dict[Accepted, None]] = {False: {}, True: {}}  # strangers, and those that are known
        self._of_group: Counter[str] = Counter()
        self._leaving = self._dropped = self._refused = 0
        self._reported = float("-inf")

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection that may come in. Raises `BlockingIOError` if there is none at the moment."""
        while True:
            full = len(self._inside) >= self.limits.most
            if full and (self._leaving or self._make_room()):
                raise BlockingIOError  # until the one that was dropped is closed
            descriptor, peer = self._accept()  # type: ignore[attr-defined]
            accepted = Accepted(self.family, self.type, self.proto, fileno=descriptor)
            accepted.gate, accepted.peer, accepted.group = self, peer, group_of(peer[0])
            crowded = self._of_group[accepted.group] >= self.limits.per_address
            if not full and not (crowded and not self._make_room(accepted.group)):
                self._let_in(accepted)
                return accepted, peer
            self._refused += 1
            accepted.close()

    def _let_in(self, connection: Accepted) -> None:
        self._inside[connection] = None
        self._by_peer[connection.peer] = connection
        self._of_group[connection.group] += 1
        connection.enter(Phase.HEAD)

    def _make_room(self, group: str | None = None) -> bool:
        """Drop a connection without a request, of this `group` of addresses or of all; whether there was one."""
        for waiting in self._free.values():
            for each in waiting:
                if group in (None, each.group):
                    self._drop(each)
                    return True
        return False

    def _drop(self, connection: Accepted) -> None:
        """End a connection: its transport sees the end, and closes it."""
        connection.dropped = True
        self._free[connection.known].pop(connection, None)
        self._of_group[connection.group] -= 1
        self._leaving += 1
        self._dropped += 1
        with suppress(OSError):  # the client may have been faster
            connection.shutdown(socket.SHUT_RDWR)

    def moved(self, connection: Accepted) -> None:
        """Note that a connection waits for something else."""
        for waiting in self._free.values():
            waiting.pop(connection, None)
        if connection.phase in FREE and not connection.dropped:
            self._free[connection.known][connection] = None

    def left(self, connection: Accepted) -> None:
        """Give the place of a closed connection back."""
        if connection not in self._inside:
            return
        del self._inside[connection]
        self._free[connection.known].pop(connection, None)
        if self._by_peer.get(connection.peer) is connection:  # or the client has come again from the same port
            del self._by_peer[connection.peer]
        self._leaving -= connection.dropped
        self._of_group[connection.group] -= not connection.dropped
        if not self._of_group[connection.group]:
            del self._of_group[connection.group]

    def find(self, peer: Any) -> Accepted | None:
        """The connection with the client at `peer`."""
        return self._by_peer.get(peer)

    def sweep(self) -> None:
        """Drop the connections that have kept the service waiting for too long."""
        now = time.monotonic()
        for each in [*self._inside]:
            if not each.dropped and now - each.since > self._most_seconds(each.phase):
                self._drop(each)
        if (self._dropped or self._refused) and now - self._reported > REPORT_SECONDS:
            log.warning("connections dropped", extra={"dropped": self._dropped, "refused": self._refused})
            self._dropped, self._refused, self._reported = 0, 0, now

    def _most_seconds(self, phase: Phase) -> float:
        limits = self.limits
        most = {Phase.HEAD: limits.head_seconds, Phase.IDLE: limits.idle_seconds, Phase.WORK: float("inf")}
        return most.get(phase, limits.body_seconds + ANSWER_SECONDS)


class Connection(H11Protocol):
    """HTTP on a connection that came in through `gate`, which is told what it waits for."""

    def __init__(
        self,
        gate: Gate,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._gate = gate
        self._accepted: Accepted | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """As `asyncio.Protocol.connection_made`."""
        super().connection_made(transport)
        self._accepted = self._gate.find(transport.get_extra_info("peername"))
        if self._accepted is None:  # the client has gone
            transport.abort()

    def data_received(self, data: bytes) -> None:
        """As `asyncio.Protocol.data_received`."""
        super().data_received(data)
        self._waits_for(self._phase(Phase.HEAD))

    def on_response_complete(self) -> None:
        """As `H11Protocol.on_response_complete`."""
        if self._accepted is not None and self.scope.get(KNOWN):
            self._accepted.known = True
        super().on_response_complete()
        self._waits_for(self._phase(Phase.IDLE))

    def pause_writing(self) -> None:
        """As `asyncio.Protocol.pause_writing`."""
        super().pause_writing()
        self._waits_for(Phase.ANSWER)

    def resume_writing(self) -> None:
        """As `asyncio.Protocol.resume_writing`."""
        super().resume_writing()
        self._waits_for(self._phase(Phase.IDLE))

    def _phase(self, between: Phase) -> Phase:
        """What it waits for now; `between` two requests, that."""
        if self.cycle is not None and not self.cycle.response_complete:
            if self.flow.write_paused:
                return Phase.ANSWER
            return Phase.BODY if self.cycle.more_body and not self.flow.read_paused else Phase.WORK
        return Phase.REST if self.conn.their_state is h11.SEND_BODY else between

    def _waits_for(self, phase: Phase) -> None:
        """Tell the gate; only the arrival of a body that somebody reads is progress."""
        accepted = self._accepted
        if accepted is not None and (phase is not accepted.phase or phase is Phase.BODY):
            accepted.enter(phase)


def group_of(address: str) -> str:
    """The address, or the network of 2^64 addresses that one host can have.

    >>> group_of("127.0.0.1"), group_of("::ffff:127.0.0.1"), group_of("2001:db8::1")
    ('127.0.0.1', '127.0.0.1', '2001:db8::/64')
    """
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    return str(parsed.ipv4_mapped or ipaddress.ip_network((parsed, 64), strict=False))


def check_descriptors(limits: Connections) -> None:
    """Raise the limit of this process on descriptors as far as `limits` need it. Raises `UsageError` if it is lower."""
    needed = limits.most + RESERVED
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise UsageError(
                f"the service may have {hard:,} files open, too few for `connections.most: {limits.most}` and "
                f"{RESERVED} others; raise the limit (LimitNOFILE= in a systemd unit, --ulimit nofile={needed} for a "
                f"container, or ulimit -Hn {needed}), or set `connections.most` to {max(1, hard - RESERVED)} or less"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
