"""The configuration of the service: its address, the data that jobs may read, its limits."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Literal, get_args
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, ValidationError

from ..address import SERVICE_HOST, SERVICE_PORT
from ..config import ClusterConfig, Pattern, Settings, explain, load_yaml
from ..errors import UsageError
from ..jobs.sizes import parse_bytes
from .hooks import Command, Hook, Webhook, secret_in
from .retaining import Keep
from .sources import Sources

SIZE = (
    Annotated[int, Field(gt=0)] | Annotated[str, Field(pattern=r"^[0-9]{1,30}(\.[0-9]{1,30})? ?(([kKmMgGtT]i?)?B)?$")]
)
"""How a size is written."""
Bytes = Annotated[int, BeforeValidator(parse_bytes, json_schema_input_type=SIZE), Field(gt=0)]
LETTERS, FIRST = "ASCII letters, digits or", "the first a letter or digit"
HookName = Annotated[str, Pattern(r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$", f"1 to 64 {LETTERS} _ -, {FIRST}")]
Ended = Literal["done", "incomplete", "failed", "cancelled"]
ENDED: tuple[Ended, ...] = get_args(Ended)
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
"""Seconds."""
Folder = Annotated[Path, Field(strict=False)]


class Limits(Settings):
    """The limits on what clients may ask for."""

    running_jobs: Annotated[
        int, Field(ge=1, le=64, description="Jobs that run at the same time; others wait in the queue.")
    ] = 1
    following_jobs: Annotated[int, Field(ge=0, le=64, description="Jobs that follow a store, in addition.")] = 4
    waiting_jobs: Annotated[int, Field(ge=1, le=100_000, description="Jobs in the queue, of all submitters.")] = 1000
    job_seconds: Annotated[
        float, Field(gt=0, le=1e9, description="How long a job may run, with all its attempts; not one that follows.")
    ] = 86_400.0
    job_disk: Annotated[Bytes, Field(description="The bytes that a job may write, recorded activations included.")] = (
        100 * 2**30
    )
    body: Annotated[Bytes, Field(description="The largest body of a request, as in 64MiB.")] = 64 * 2**20
    upload: Annotated[Bytes, Field(description="The largest model or file of samples.")] = 2 * 2**30
    uploads: Annotated[Bytes, Field(description="The size of all uploads together.")] = 20 * 2**30
    ingests: Annotated[int, Field(ge=1, le=1000, description="Requests with activations in progress.")] = 64
    corrections: Annotated[int, Field(ge=1, le=64, description="Requests to correct weights in progress.")] = 2
    correction_seconds: Annotated[int, Field(ge=1, le=86_400, description="The longest that one may take.")] = 50
    streams: Annotated[int, Field(ge=1, le=10_000, description="Clients that follow events of jobs.")] = 256
    stores: Annotated[int, Field(ge=1, le=100_000, description="Stores that the service owns.")] = 1000
    layers: Annotated[int, Field(ge=1, le=100_000, description="Layers of each of these stores.")] = 10_000
    free: Annotated[Bytes, Field(description="Free space to reserve on the disk.")] = 2**30


def parse_age(age: object) -> object:
    """Seconds from text such as "90d", "12h", "30m"; a number without a unit could be meant as days.

    >>> parse_age("90d")
    7776000.0
    """
    found = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,6})?)\s?([smhd])", age) if isinstance(age, str) else None
    if found is None:
        raise ValueError("expected a time with its unit, such as 90d, 12h, 30m or 45s")
    return float(found[1]) * UNITS[found[2]]


AGE = Annotated[str, Field(pattern=r"^[0-9]{1,6}(\.[0-9]{1,6})?\s?[smhd]$")]
"""How an age is written."""
Age = Annotated[float, Field(gt=0, le=1e10), BeforeValidator(parse_age, json_schema_input_type=AGE)]


class Retained(Settings):
    """What is kept of one kind of thing: the newest; what is left out does not restrict it."""

    age: Annotated[Age | None, Field(description="Remove what was not used for so long, as in 90d or 12h.")] = None
    number: Annotated[int | None, Field(ge=0, le=2**53, description="Keep at most so many.")] = None
    bytes: Annotated[Bytes | None, Field(description="Keep at most so many bytes of them, as in 100GiB.")] = None

    def keep(self) -> Keep:
        """As a value."""
        return Keep(self.age, self.number, self.bytes)


class RetentionConfig(Settings):
    """What the service keeps of what piles up. By default it keeps everything but replaced result sets."""

    jobs: Annotated[
        Retained,
        Field(
            description="Jobs that have ended, with their results. Jobs without results (most failed or cancelled "
            "ones) never displace jobs with results: they are counted apart, and take only the bytes that the others "
            "leave."
        ),
    ] = Retained()
    sets: Annotated[Retained, Field(description="Of each job: result sets that were replaced.")] = Retained(number=0)
    stores: Annotated[Retained, Field(description="Stores of the service that no job reads.")] = Retained()
    uploads: Annotated[Retained, Field(description="Models and samples.")] = Retained()
    events: Annotated[Retained, Field(description="The messages in the logs of all jobs.")] = Retained()
    keep_tags: Annotated[
        list[str], Field(default_factory=lambda: ["keep"], description="Jobs with one of these tags are kept.")
    ]
    every: Annotated[
        Age, Field(description="The time between two removals, as in 1h.", json_schema_extra={"default": "1h"})
    ] = 3600.0


class HookConfig(Settings):
    """Whom the service tells when jobs end: an address, with a signed request, or a command, on its stdin."""

    url: Annotated[str | None, Field(description="An address, http or https.")] = None
    secret_file: Annotated[
        Folder | None, Field(description="Its secret; default: hooks/NAME in `data`. It is made if it is missing.")
    ] = None
    command: Annotated[
        list[str] | None, Field(min_length=1, description="A command: its full path, and its arguments.")
    ] = None
    states: Annotated[
        list[Ended], Field(default_factory=lambda: [*ENDED], description="Tell of jobs that end in these states.")
    ]
    every_job: Annotated[bool, Field(description="Tell of every job, not only of those that name it.")] = False
    seconds: Annotated[float, Field(gt=0, le=60, description="The time for an answer, or for the command.")] = 10.0

    def check(self, name: str) -> None:
        """Raise `UsageError` for a hook that cannot be told."""
        if (self.url is None) == (self.command is None):
            raise UsageError(f"hooks.{name}: give either `url` or `command`")
        if self.url is not None and not _is_plain_url(self.url):
            raise UsageError(f"hooks.{name}.url is {self.url}; expected http(s)://HOST/PATH, without a user")
        if self.command is not None:
            _check_program(f"hooks.{name}.command", self.command[0])

    def made(self, name: str, folder: Path) -> Hook:
        """The hook, whose secret is in `folder` unless it has a file. Raises `UsageError`, `OutputError`."""
        if self.command is not None:
            return Command(tuple(self.command), self.seconds)
        assert self.url is not None
        return Webhook(self.url, secret_in(self.secret_file or folder / name), self.seconds)


class Connections(Settings):
    """How many connections are open, and how long one may keep the service waiting."""

    most: Annotated[int, Field(ge=1, le=100_000, description="Open connections, of all addresses.")] = 1000
    per_address: Annotated[
        int, Field(ge=1, le=100_000, description="Open connections of one address. Behind a proxy: as many as `most`.")
    ] = 500
    head_seconds: Annotated[
        float, Field(gt=0, le=3600, strict=False, description="For TLS and the head of a request to arrive.")
    ] = 10.0
    body_seconds: Annotated[
        float, Field(gt=0, le=3600, strict=False, description="The longest pause in a body, or in reading an answer.")
    ] = 30.0
    idle_seconds: Annotated[
        float, Field(gt=0, le=3600, strict=False, description="Between two requests on one connection.")
    ] = 30.0


class TLS(Settings):
    """A certificate and its key, as PEM files."""

    certificate: Folder
    key: Folder


class ServiceConfig(Settings):
    """A service: its folder, address, sources, workers and limits."""

    data: Annotated[Folder, Field(description="The folder with its database, jobs, stores and token.")]
    host: Annotated[str, Field(min_length=1, description="The address to listen on.")] = SERVICE_HOST
    port: Annotated[int, Field(ge=0, le=65535, description="0: any free port, which is printed.")] = SERVICE_PORT
    allow_plain_http: Annotated[
        bool, Field(description="Listen beyond this machine without TLS: behind a proxy with TLS.")
    ] = False
    allowed_hosts: Annotated[
        list[str], Field(default_factory=list, description="Further names in Host headers, such as the proxy's.")
    ]
    tls: Annotated[TLS | None, Field(description="Certificate and key for https.")] = None
    roots: Annotated[list[Folder], Field(default_factory=list, description="Folders that jobs may read.")]
    prefixes: Annotated[
        list[str], Field(default_factory=list, description="URLs that jobs may read: s3://bucket/folder/.")
    ]
    memory: Annotated[Bytes, Field(description="The memory limit of a job.")] = 2 * 2**30
    cluster: Annotated[ClusterConfig, Field(description="Where the work is done.")] = ClusterConfig()
    hooks: Annotated[
        dict[HookName, HookConfig],
        Field(default_factory=dict, description="Whom to tell when jobs end, by name."),
    ]
    limits: Limits = Limits()
    retention: Annotated[RetentionConfig, Field(description="What is kept, and for how long.")] = RetentionConfig(
        keep_tags=["keep"]
    )
    connections: Connections = Connections()

    def sources(self) -> Sources:
        """The sources that jobs may read. Raises `UsageError`."""
        return Sources(self.roots, self.prefixes)

    def told(self, state: str, named: Collection[str]) -> list[str]:
        """The hooks that are told of a job that ended in `state` and names some."""
        return [name for name, hook in self.hooks.items() if state in hook.states and (hook.every_job or name in named)]

    def made_hooks(self, folder: Path) -> dict[str, Hook]:
        """The hooks, whose secrets are in `folder`. Raises `UsageError`, `OutputError`."""
        return {name: hook.made(name, folder) for name, hook in self.hooks.items()}

    def check(self) -> None:
        """Raise `UsageError` for an unprotected address, missing TLS files, hooks, or data that clients could read."""
        self.sources()
        for name, hook in self.hooks.items():
            hook.check(name)
        data = self.data.resolve()
        for root in self.roots:
            if data.is_relative_to(root.resolve()):
                raise UsageError(
                    f"data is {self.data}, below the root {root}, which clients may read; move one of them"
                )
        if not is_loopback(self.host) and self.tls is None and not self.allow_plain_http:
            raise UsageError(
                f"host is {self.host}, which other machines can reach, and `tls` is not set; name a certificate and a "
                "key or, behind a proxy with TLS, set `allow_plain_http: true`"
            )
        for path in (self.tls.certificate, self.tls.key) if self.tls else ():
            if not path.is_file():
                raise UsageError(f"tls: {path} is not a file; expected a PEM file")


def load_service_config(path: str | Path) -> ServiceConfig:
    """Read the YAML file at `path`. Raises `UsageError`."""
    document = load_yaml(Path(path))
    if not isinstance(document, dict):
        raise UsageError(f"{path}: found {type(document).__name__}, expected keys such as `data:` and `roots:`")
    try:
        config = ServiceConfig.model_validate(document)
        config.check()
    except ValidationError as error:
        raise UsageError(f"{path}: {explain(error.errors(), ServiceConfig)}") from error
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    return config


def _check_program(key: str, program: str) -> None:
    """Raise `UsageError` unless `program`, with which the command at `key` begins, can be started."""
    if not os.path.isabs(program):
        raise UsageError(f"{key} begins with {program}; expected the full path of a program")
    if not os.path.isfile(program):
        raise UsageError(f"{key} begins with {program}, but there is no such program; correct the path, or install it")
    if not os.access(program, os.X_OK):
        raise UsageError(f"{key} begins with {program}, which the service may not execute; allow it with: chmod +x")


def _is_plain_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    plain = url.isprintable() and " " not in url and parts.username is None and port != 0
    return parts.scheme in ("http", "https") and bool(parts.hostname) and plain


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
