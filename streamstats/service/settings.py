"""The configuration of the service: its address, the data that jobs may read, its limits."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, ValidationError

from ..address import SERVICE_HOST, SERVICE_PORT
from ..config import ClusterConfig, Settings, explain, load_yaml
from ..errors import UsageError
from ..jobs.sizes import parse_bytes
from .sources import Sources

Bytes = Annotated[int, BeforeValidator(parse_bytes, json_schema_input_type=str | int), Field(gt=0)]
Folder = Annotated[Path, Field(strict=False)]


class Limits(Settings):
    """The limits on what clients may ask for."""

    running_jobs: Annotated[
        int, Field(ge=1, le=64, description="Jobs that run at the same time; others wait in the queue.")
    ] = 1
    following_jobs: Annotated[int, Field(ge=0, le=64, description="Jobs that follow a store, in addition.")] = 4
    waiting_jobs: Annotated[int, Field(ge=1, le=100_000, description="Jobs in the queue, of all submitters.")] = 1000
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
    limits: Limits = Limits()
    connections: Connections = Connections()

    def sources(self) -> Sources:
        """The sources that jobs may read. Raises `UsageError`."""
        return Sources(self.roots, self.prefixes)

    def check(self) -> None:
        """Raise `UsageError` for an unprotected address, missing TLS files, or data that clients could read."""
        self.sources()
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


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
