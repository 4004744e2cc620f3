"""A server that gives out a folder as an S3 bucket, read only: GET, HEAD and ListObjectsV2, each after a set latency.

It keeps what it was asked for in memory, so that neither a disk nor a slow server stands between latency and client.
"""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import formatdate
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

BUCKET = "bucket"
MODIFIED = 1_700_000_000
"""When all objects say that they were written, in seconds since 1970."""


@contextmanager
def serving(folder: Path, latency: float) -> Iterator[dict[str, str]]:
    """The environment that makes `s3://bucket/…` mean what is in `folder`; a request is answered after `latency` s."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(str(folder), latency, theirs), daemon=True)
    process.start()
    try:
        yield {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ours.recv()}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_SKIP_SIGNATURE": "true",
            "AWS_REGION": "us-east-1",
        }
    finally:
        process.kill()
        process.join()


def _serve(folder: str, latency: float, connection: Any) -> None:
    asyncio.run(_serve_until_killed(Objects(Path(folder)), latency, connection))


async def _serve_until_killed(objects: Objects, latency: float, connection: Any) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                await asyncio.sleep(latency)
                method, target, _ = head.split(" ", 2)
                status, body = objects.answer(target)
                modified = formatdate(MODIFIED, usegmt=True)
                about = f"ETag: {_tag(len(body))}\r\nLast-Modified: {modified}\r\n"
                header = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{about}\r\n"
                writer.write(header.encode() + (b"" if method == "HEAD" else body))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    connection.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()


def _tag(size: int) -> str:
    """All objects of a size are alike here."""
    return f'"{size:x}"'


class Objects:
    """The objects of a bucket: the files below a folder, in memory once they were asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, bytes | None] = {}

    def answer(self, target: str) -> tuple[str, bytes]:
        """Status and body of the answer to a GET of `target`."""
        parts = urlsplit(target)
        key = unquote(parts.path).removeprefix(f"/{BUCKET}").lstrip("/")
        if not key:
            asked = {name: values[0] for name, values in parse_qs(parts.query).items()}
            return "200 OK", self._listing(asked.get("prefix", ""), asked.get("delimiter"))
        if key not in self._known:
            file = self._folder / key
            self._known[key] = file.read_bytes() if file.is_file() else None
        content = self._known[key]
        if content is None:
            return "404 Not Found", b"<Error><Code>NoSuchKey</Code></Error>"
        return "200 OK", content

    def _listing(self, prefix: str, delimiter: str | None) -> bytes:
        """All objects whose keys begin with `prefix`, those of folders put together where there is a `delimiter`."""
        top = self._folder / prefix
        found = sorted(top.iterdir() if delimiter else top.rglob("*")) if top.is_dir() else []
        items = []
        for path in found:
            key = escape(path.relative_to(self._folder).as_posix())
            if path.is_file():
                size = path.stat().st_size
                modified = datetime.fromtimestamp(MODIFIED, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
                about = f"<LastModified>{modified}</LastModified><ETag>{_tag(size)}</ETag><Size>{size}</Size>"
                items.append(f"<Contents><Key>{key}</Key>{about}</Contents>")
            elif delimiter:
                items.append(f"<CommonPrefixes><Prefix>{key}/</Prefix></CommonPrefixes>")
        body = f"<Name>{BUCKET}</Name><IsTruncated>false</IsTruncated>{''.join(items)}"
        return f"<ListBucketResult>{body}</ListBucketResult>".encode()
