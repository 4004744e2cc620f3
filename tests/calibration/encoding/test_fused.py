"""Decoding many chunks in one call: the bytes of each, measured in units, up to the first that is damaged."""

from __future__ import annotations

from typing import Any

import numcodecs
import numpy as np
import pytest
from stores import Array, samples

from streamstats.calibration.encoding import fused
from streamstats.statistics.exact import ExactSum
from streamstats.statistics.running import Intake, Measures, RunningSums

BATCHED = ("zstd", "blosc", "lz4")


CODECS: dict[str, Any] = {"zstd": numcodecs.Zstd(), "blosc": numcodecs.Blosc(), "lz4": numcodecs.LZ4()}


def feed_all(name: str, encoded: list[bytes], chunks: Array, left: int = 0) -> fused.Fed:
    """What is done of a batch that ought to decode to `chunks` [chunks, bytes]; what was decoded is checked."""
    stored, places = joined(encoded)
    buffer = np.zeros(left + chunks.size, np.uint8)
    found = fused.feed(name, stored, places, chunks.shape[1], buffer, Intake.nothing(), left)
    assert found.left == left + found.chunks * chunks.shape[1]
    np.testing.assert_array_equal(buffer[left : found.left], chunks[: found.chunks].reshape(-1))
    return found


def bits(found: Measures) -> list[bytes]:
    """All that a pass found, as bytes that equal findings share."""
    sums = ExactSum.from_raw(found.dtype, found.digits).digits
    return [array.tobytes() for array in (sums, found.count, found.nan, found.infinite, found.low, found.high)]


def joined(encoded: list[bytes]) -> tuple[Array, Array]:
    sizes = [len(each) for each in encoded]
    offsets = np.cumsum([0, *sizes[:-1]])
    return np.frombuffer(b"".join(encoded), np.uint8).copy(), np.stack([offsets, sizes], axis=1).astype(np.int64)


@pytest.mark.parametrize("name", BATCHED)
def test_a_batch_is_what_its_chunks_are_one_by_one(name: str) -> None:
    chunks = samples(9, 500, dtype="int32").view(np.uint8)
    encoded = [bytes(CODECS[name].encode(chunk)) for chunk in chunks]
    for left in (0, 13):
        assert feed_all(name, encoded, chunks, left).chunks == 9


@pytest.mark.parametrize("name", BATCHED)
@pytest.mark.parametrize("bad", [0, 4, 8])
@pytest.mark.parametrize("kept", [slice(0, -20), slice(0, 0), slice(0, 15)], ids=["cut", "empty", "15 bytes"])
def test_a_batch_ends_before_the_first_chunk_that_is_damaged(name: str, bad: int, kept: slice) -> None:
    chunks = samples(9, 500, dtype="int32").view(np.uint8)
    encoded = [bytes(CODECS[name].encode(chunk)) for chunk in chunks]
    encoded[bad] = encoded[bad][kept]
    assert feed_all(name, encoded, chunks) == fused.Fed(bad, bad * chunks.shape[1], 0, torn=False)


@pytest.mark.parametrize("name", BATCHED)
@pytest.mark.parametrize("unit", [1, 3, 100, 1999, 2001, 5000])
def test_units_are_measured_and_what_is_less_is_left(name: str, unit: int) -> None:
    chunks = samples(9, 500, dtype="int32").view(np.uint8)
    stored, places = joined([bytes(CODECS[name].encode(chunk)) for chunk in chunks])
    sums = RunningSums(np.dtype("u1"), unit)
    intake = sums.intake((1, unit), 1)
    assert intake is not None
    assert intake.unit == unit
    buffer = np.zeros(2000 + unit, np.uint8)
    found = fused.feed(name, stored, places, 2000, buffer, intake, 0)
    everything = chunks.reshape(-1)
    whole = everything.size - everything.size % unit
    assert (found.chunks, found.units, found.left) == (9, whole // unit, everything.size - whole)
    np.testing.assert_array_equal(buffer[: found.left], everything[whole:])
    sums.took(whole)
    expected = RunningSums(np.dtype("u1"), unit)
    expected.add(everything[:whole].reshape(-1, unit), 1)
    assert bits(sums.found()) == bits(expected.found())


@pytest.mark.parametrize("size", [2**19, 2**20 + 4, 3 * 2**19 + 2**14 - 4, 2_000_000])
@pytest.mark.parametrize("block", [2**14, 2**19, 3 * 2**18, 0])
@pytest.mark.parametrize("cname", ["lz4", "zstd", "blosclz"])
def test_a_large_blosc_chunk_in_pieces_is_what_it_is_at_once(size: int, block: int, cname: str) -> None:
    chunks = (samples(2, size // 4, dtype="int32") % 50).view(np.uint8)
    for shuffle in (numcodecs.Blosc.NOSHUFFLE, numcodecs.Blosc.SHUFFLE, numcodecs.Blosc.BITSHUFFLE):
        codec = numcodecs.Blosc(cname, shuffle=shuffle, blocksize=block)
        encoded = [bytes(codec.encode(chunk.view("i4"))) for chunk in chunks]
        assert feed_all("blosc", encoded, chunks).chunks == 2
        assert bytes(codec.decode(encoded[0])) == chunks[0].tobytes()


def test_a_large_blosc_chunk_that_is_not_compressed_is_read_at_once() -> None:
    chunks = np.random.default_rng(0).integers(0, 256, (1, 2**21), dtype=np.uint8)
    encoded = bytes(numcodecs.Blosc("lz4", shuffle=0).encode(chunks[0]))
    assert encoded[2] & fused.COPIED_BY_BLOSC
    assert feed_all("blosc", [encoded], chunks).chunks == 1


def test_a_codec_that_hides_its_c_functions_has_no_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fused.FUNCTIONS, "lz4", ("no_such_function",))
    fused._functions.cache_clear()
    out = np.zeros((1, 8), np.uint8)
    assert not fused.decode("lz4", out[0], out[0])
    assert not fused.decode("gzip", out[0], out[0])
    fused._functions.cache_clear()
