"""The content of a file: the hash that its definition gives, of small files whole, of others in four pieces."""

from __future__ import annotations

import numpy as np
import pytest

from streamstats.calibration.encoding.content import PIECE_BYTES, PIECES, SAMPLE_BYTES, content_of, contents_in
from streamstats.calibration.encoding.decoders import Bytes

SIZES = (1, 7, 8, 33, 1000, SAMPLE_BYTES - 1, SAMPLE_BYTES, SAMPLE_BYTES + 1, 5000, 100_003)


def written(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8).tobytes()


def defined(content: bytes) -> int:
    """The hash in Python's integers."""
    size, whole = len(content), len(content) <= SAMPLE_BYTES
    cuts = [size * number // PIECES for number in range(PIECES + 1)]
    starts = cuts[:-1] if whole else [number * (size - PIECE_BYTES) // (PIECES - 1) for number in range(PIECES)]
    words = [size]
    for number, start in enumerate(starts):
        piece = content[start : cuts[number + 1] if whole else start + PIECE_BYTES]
        even = len(piece) // 8 * 8
        words += [int.from_bytes(piece[at : at + 8], "little") for at in range(0, even, 8)] + [*piece[even:]]
    h = 0
    for word in words:
        h = (h ^ word) * 0x9E3779B97F4A7C15 % 2**64
        h ^= h >> 29
    return h >> 1


def of_file(content: bytes) -> int:
    def read(start: int, out: Bytes) -> None:
        out[:] = np.frombuffer(content, np.uint8)[start : start + out.size]

    return content_of(len(content), read)


@pytest.mark.parametrize("size", SIZES)
def test_it_is_the_same_from_a_file_and_from_memory_and_is_as_defined(size: int) -> None:
    content = written(size)
    stored = np.frombuffer(b"before" + content + b"after", np.uint8)
    assert of_file(content) == defined(content)
    places = np.array([[6, size]])
    assert contents_in(stored, places).tolist() == [defined(content)]
    assert places.tolist() == [[6, size]], "where the files are stays known"


def test_the_number_that_state_files_hold_stays_what_it_is() -> None:
    assert of_file(bytes(range(100))) == 1042519668124181592


def test_many_files_in_one_buffer_are_told_apart() -> None:
    contents = [written(size, seed) for seed in (1, 2) for size in SIZES]
    offsets = np.cumsum([0, *map(len, contents)])[:-1]
    places = np.stack([offsets, [len(each) for each in contents]], axis=1)
    found = contents_in(np.frombuffer(b"".join(contents), np.uint8), places).tolist()
    assert found == [defined(each) for each in contents]
    assert len(set(found)) == len(found)


def test_any_byte_of_a_small_file_and_every_byte_of_a_sampled_piece_matters() -> None:
    small, large = written(300), written(9000)
    for content, places in ((small, range(300)), (large, [0, 255, 2914, 3169, 5829, 6084, 8744, 8999])):
        for place in places:
            other = bytearray(content)
            other[place] ^= 1
            assert of_file(bytes(other)) != of_file(content)
