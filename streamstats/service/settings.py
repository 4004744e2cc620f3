"""The configuration of the service: where it listens, what it may read, how much it takes."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, ValidationError

from ..config import ClusterConfig, Settings, explain, load_yaml, parse_bytes
from ..errors import UsageError
from .sources import Sources

Bytes = Annotated[int, BeforeValidator(parse_bytes, json_schema_input_type=str | int), Field(gt=0)]


class Limits(Settings):
    """What clients may ask for."""

    running_jobs: Annotated[int, Field(ge=1, le=64, description="Jobs at a time; others wait.")] = 1
    waiting_jobs: Annotated[int, Field(ge=1, le=100_000, description="Jobs that may wait, of all submitters.")] = 1000
    body: Annotated[Bytes, Field(description="The largest body of a request, as in 64MiB.")] = 64 * 2**20
    upload: Annotated[Bytes, Field(description="The largest model or file of weights.")] = 2 * 2**30
    layers: Annotated[int, Field(ge=1, description="Layers of an ingested store.")] = 10_000


class TLS(Settings):
    """A certificate and its key, PEM files."""

    certificate: Path
    key: Path


class ServiceConfig(Settings):
    """A service: its folder, its address, its sources, its workers."""

    data: Annotated[Path, Field(description="The folder for its database, jobs, stores and token.")]
    host: Annotated[str, Field(description="The address it listens on.")] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, description="0: any that is free, which is printed.")] = 8765
    allow_plain_http: Annotated[
        bool, Field(description="Listen beyond this machine without TLS, as behind a proxy that has it.")
    ] = False
    allowed_hosts: Annotated[
        list[str], Field(description="Names in Host headers beside the address, as the proxy's.")
    ] = []
    tls: TLS | None = None
    roots: Annotated[list[Path], Field(description="Folders whose stores jobs may read.")] = []
    prefixes: Annotated[list[str], Field(description="URLs that jobs may read, as in s3://bucket/calibration/.")] = []
    memory: Annotated[Bytes, Field(description="The most memory of a job.")] = 2 * 2**30
    cluster: Annotated[ClusterConfig, Field(description="Where the work is done.")] = ClusterConfig()
    limits: Limits = Limits()

    def sources(self) -> Sources:
        """What clients may have read. Raises `UsageError`."""
        return Sources(self.roots, self.prefixes)

    def check(self) -> None:
        """Raise `UsageError` for an address that is open to others without what protects it."""
        self.sources()
        if not _is_loopback(self.host) and self.tls is None and not self.allow_plain_http:
            raise UsageError(
                f"host is {self.host}, which others reach, and there is no `tls`; give a certificate and a key, or, "
                "behind a proxy that has TLS, `allow_plain_http: true`"
            )


def load_service_config(path: str | Path) -> ServiceConfig:
    """Read the YAML file at `path`. Raises `UsageError`."""
    document = load_yaml(Path(path))
    if not isinstance(document, dict):
        raise UsageError(f"{path}: found {type(document).__name__}, expected keys such as `data:` and `roots:`")
    try:
        config = ServiceConfig.model_validate(document)
        config.check()
    except ValidationError as error:
        raise UsageError(f"{path}: {explain(error, ServiceConfig)}") from error
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    return config


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
