"""Decoders fill their buffer or raise, whatever a chunk declares."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib
from itertools import product
from typing import Any

import numcodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import samples

from streamstats.calibration.encoding import fused
from streamstats.calibration.encoding.chunks import Encoding
from streamstats.calibration.encoding.decoders import DECODERS, checked

CHUNK_BYTES = 800


REFUSED = (ValueError, RuntimeError, zlib.error)


CODECS: dict[str, list[Any]] = {
    "zstd": [numcodecs.Zstd(), numcodecs.Zstd(checksum=True)],
    "blosc": [
        numcodecs.Blosc(cname=name, shuffle=shuffle, blocksize=size)
        for name, shuffle, size in product(("lz4", "zstd", "blosclz"), (0, 1, 2), (0, 256))
    ],
    "lz4": [numcodecs.LZ4()],
    "zlib": [numcodecs.Zlib()],
    "gzip": [numcodecs.GZip()],
}


def stored_as(compressor: str | None, *, checksum: bool = False) -> Encoding:
    return Encoding((4, 50), (4, 50), np.dtype("i4"), compressor, checksum, 0)


def content(size: int = CHUNK_BYTES) -> bytes:
    return samples(size, dtype="uint8").tobytes()


def decoded_over(before: int, compressor: str, stored: bytes, *, run: bool) -> bytes | None:
    """What a chunk decodes to in a buffer full of `before`, None where it is refused. `run`: in C first."""
    out = np.full(CHUNK_BYTES, before, np.uint8)
    chunk = np.frombuffer(stored, np.uint8)
    try:
        if not (run and fused.decode(compressor, chunk.copy(), out)):
            stored_as(compressor).decode(chunk, out)
    except REFUSED:
        return None
    return out.tobytes()


@pytest.mark.parametrize("run", [False, True], ids=["alone", "run"])
@pytest.mark.parametrize("name", CODECS)
def test_what_was_encoded_is_decoded(name: str, run: bool) -> None:
    for codec in CODECS[name]:
        assert decoded_over(77, name, bytes(codec.encode(content())), run=run) == content()


@pytest.mark.parametrize("run", [False, True], ids=["alone", "run"])
@pytest.mark.parametrize("size", [1, 400, CHUNK_BYTES - 1, CHUNK_BYTES + 1, 2000])
@pytest.mark.parametrize("name", CODECS)
def test_a_chunk_of_another_size_is_refused(name: str, size: int, run: bool) -> None:
    for codec in CODECS[name]:
        assert decoded_over(77, name, bytes(codec.encode(content(size))), run=run) is None


DECLARED = {"zstd": slice(5, 7), "blosc": slice(4, 8), "lz4": slice(0, 4)}

"""Where a header says how much there is; in that of Zstandard, less 256 (for what is of 256 to 65,791 bytes)."""


@pytest.mark.parametrize("run", [False, True], ids=["alone", "run"])
@pytest.mark.parametrize("size", [400, CHUNK_BYTES - 1, CHUNK_BYTES + 1, 2000])
@pytest.mark.parametrize("name", DECLARED)
def test_a_header_that_claims_the_expected_size_is_not_trusted(name: str, size: int, run: bool) -> None:
    for codec in CODECS[name]:
        stored, place = bytearray(codec.encode(content(size))), DECLARED[name]
        claimed = CHUNK_BYTES - 256 if name == "zstd" else CHUNK_BYTES
        stored[place] = claimed.to_bytes(place.stop - place.start, "little")
        found = {decoded_over(before, name, bytes(stored), run=run) for before in (0x55, 0xAA)}
        assert len(found) == 1, "bytes of an earlier chunk are left in the buffer"
        if name != "blosc":  # which may keep to its claim, and decode that much
            assert found == {None}


@pytest.mark.parametrize("run", [False, True], ids=["alone", "run"])
@pytest.mark.parametrize("claimed", [0, CHUNK_BYTES - 1, CHUNK_BYTES + 1, 60_000])
@pytest.mark.parametrize("name", DECLARED)
def test_a_header_that_claims_another_size_is_refused(name: str, claimed: int, run: bool) -> None:
    for codec in CODECS[name]:
        stored, place = bytearray(codec.encode(content())), DECLARED[name]
        stored[place] = max(0, claimed - 256 * (name == "zstd")).to_bytes(place.stop - place.start, "little")
        assert decoded_over(77, name, bytes(stored), run=run) is None


@pytest.mark.parametrize("name", CODECS)
@settings(max_examples=150)
@given(st.data())
def test_bytes_of_an_earlier_chunk_never_show_through_damage(name: str, data: st.DataObject) -> None:
    stored = bytearray(data.draw(st.sampled_from(CODECS[name])).encode(content()))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, 40) | st.integers(0, len(stored) - 1)) % len(stored)
        stored[place] = data.draw(st.integers(0, 255))
    damaged = bytes(stored[: data.draw(st.just(len(stored)) | st.integers(0, len(stored)))])
    for run in (False, True):
        first, second = (decoded_over(before, name, damaged, run=run) for before in (0x55, 0xAA))
        assert first == second


@pytest.mark.parametrize("run", [False, True], ids=["alone", "run"])
@pytest.mark.parametrize(("size", "right"), [(CHUNK_BYTES, True), (CHUNK_BYTES - 1, False), (CHUNK_BYTES + 1, False)])
def test_frames_without_a_size_and_frames_in_a_row_are_read_where_they_fill_the_chunk(
    size: int, right: bool, run: bool
) -> None:
    expected = content(size)
    raw_block = (size << 3 | 1).to_bytes(3, "little") + expected
    unsized = b"\x28\xb5\x2f\xfd\x00\x58" + raw_block
    encoded = [bytes(numcodecs.Zstd().encode(part)) for part in (expected[:300], expected[300:])]
    for stored in (unsized, b"".join(encoded)):
        assert decoded_over(77, "zstd", stored, run=run) == (expected if right else None)


@pytest.mark.parametrize("name", ["gzip", "zlib"])
def test_a_chunk_that_decodes_to_very_much_is_refused_before_it_is_decoded(name: str) -> None:
    zeros = bytes(50_000_000)
    bomb = np.frombuffer(gzip.compress(zeros) if name == "gzip" else zlib.compress(zeros), np.uint8)
    out = np.zeros(CHUNK_BYTES, np.uint8)
    tracemalloc.start()
    with pytest.raises(ValueError, match="a chunk does not decode to 800 bytes"):
        stored_as(name).decode(bomb, out)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


@pytest.mark.parametrize("bit", [0, 3000, 8 * CHUNK_BYTES, 8 * CHUNK_BYTES + 31])
def test_every_bit_of_chunk_and_checksum_is_checked(bit: int) -> None:
    stored = np.frombuffer(bytes(numcodecs.CRC32C(location="end").encode(content())), np.uint8).copy()
    out = np.zeros(CHUNK_BYTES, np.uint8)
    stored_as(None, checksum=True).decode(stored, out)
    assert out.tobytes() == content()
    stored[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ValueError, match="the checksum of 800 bytes is not the stored one"):
        stored_as(None, checksum=True).decode(stored, out)


@pytest.mark.parametrize("size", range(5))
def test_what_is_too_short_for_a_checksum_is_refused_unless_it_is_the_checksum_of_nothing(size: int) -> None:
    stored = np.zeros(size, np.uint8)
    if size == 4:
        assert checked(stored).size == 0
        return
    with pytest.raises(ValueError, match="is not the stored one"):
        checked(stored)


@pytest.mark.parametrize("name", ["gzip", "zlib"])
def test_what_follows_a_compressed_stream_is_damage(name: str) -> None:
    compress = gzip.compress if name == "gzip" else zlib.compress
    for more in (b"more", compress(b"x")):
        stored = np.frombuffer(compress(bytes(8)) + more, np.uint8)
        with pytest.raises((ValueError, zlib.error)):
            DECODERS[name](stored, np.empty(8, np.uint8))


def test_gzip_may_have_several_members() -> None:
    stored = np.frombuffer(b"".join(gzip.compress(part) for part in (b"one ", b"", b"two ")), np.uint8)
    out = np.empty(8, np.uint8)
    DECODERS["gzip"](stored, out)
    assert out.tobytes() == numcodecs.GZip().decode(stored.tobytes()) == b"one two "
