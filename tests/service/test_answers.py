"""Answers: what is sent whole, or refused whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import anyio
import pytest

from streamstats.service.answers import RangedFile


@pytest.mark.parametrize("when", ["before", "meanwhile"])
@pytest.mark.parametrize("headers", [[], [(b"range", b"bytes=1-2")]], ids=["whole", "range"])
def test_a_file_that_is_deleted_at_that_moment_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str, headers: list[tuple[bytes, bytes]]
) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"content")
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def ask() -> None:
        answer = RangedFile(path)
        if when == "before":
            path.unlink()
        scope = {"type": "http", "method": "GET", "headers": headers}
        await answer(scope, anyio.sleep_forever, send)

    async def opened(path: Path, *_: Any, **__: Any) -> Any:
        os.unlink(path)
        return await original(path, "rb")

    original = anyio.open_file
    monkeypatch.setattr(anyio, "open_file", opened)
    anyio.run(ask)
    assert [message.get("status") for message in sent] == [410, None]
    assert b"was deleted a moment ago" in sent[1]["body"]
