"""zarr's global settings: zarr keeps one configuration for all threads, so everything that changes it is here."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import zarr

DEFAULT_PIPELINE = "zarr.core.codec_pipeline.BatchedCodecPipeline"
FETCHES = 4
"""Chunks that zarr's default pipeline fetches and decodes at a time, per read."""
_OPENING = threading.Lock()


@contextmanager
def codec_pipeline(path: str) -> Iterator[None]:
    """Arrays opened inside are decoded and encoded by the pipeline at `path`, whatever the user's configuration says.

    One thread at a time is inside, because zarr takes the pipeline from the configuration when it opens an array.
    """
    with _OPENING, zarr.config.set({"codec_pipeline.path": path}):
        yield


@contextmanager
def decoding(threads: int) -> Iterator[None]:
    """Inside, `threads` threads decode for all reads together, FETCHES chunks at a time per read."""
    with zarr.config.set(_decoding(threads)):
        yield


def set_decoding(threads: int) -> None:
    """As `decoding`, for the rest of this process."""
    zarr.config.set(_decoding(threads))


def _decoding(threads: int) -> dict[str, int]:
    return {"threading.max_workers": threads, "async.concurrency": FETCHES}
