"""Bodies are judged by their headers, before the rest of them arrives."""

from __future__ import annotations

import io
import json
import socket
import struct
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from served import Served, npy, served

from streamstats.errors import StreamstatsError, UsageError
from streamstats.service.errors import TooLargeError
from streamstats.service.headers import Judge, JudgedSamples, JudgedTensors, anything

MOST = 10_000_000


def tensors(**arrays: np.ndarray[Any, Any]) -> bytes:
    return safetensors.numpy.save(arrays)


def header(described: object) -> bytes:
    text = json.dumps(described).encode()
    return struct.pack("<Q", len(text)) + text


def judged(judge: Judge, content: bytes, whole: int | None, step: int) -> int:
    """The bytes of the beginning of `content` that `judge` saw before it had no more objections."""
    wanted, seen = 1, 0
    while wanted:
        assert wanted > seen, "it asks for what it has seen"
        seen = min(len(content), -(-wanted // step) * step)
        if seen < wanted:
            return seen
        wanted = judge(content[:seen], whole)
    return seen


ARRAY = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
GOOD = {
    "npy": (JudgedSamples(MOST), npy(ARRAY)),
    "npy, Fortran order": (JudgedSamples(MOST), npy(np.asfortranarray(ARRAY))),
    "one tensor": (JudgedSamples(MOST), tensors(x=ARRAY)),
    "an empty array": (JudgedSamples(MOST), npy(ARRAY[:0])),
    "some tensors": (JudgedTensors(MOST), tensors(x=ARRAY, y=ARRAY)),
    "no tensors": (JudgedTensors(MOST), tensors()),
    "anything": (anything, b"anything"),
}


@pytest.mark.parametrize("step", [1, 7, 1000])
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("name", GOOD)
def test_what_is_well_described_passes_however_it_arrives(name: str, known: bool, step: int) -> None:
    judge, content = GOOD[name]
    seen = judged(judge, content, len(content) if known else None, step)
    assert seen <= len(content)


BAD = {
    "many tensors": (header({f"t{i}": {"data_offsets": [0, 0]} for i in range(2)}), r"has 2 tensors; expected one"),
    "a long header": (
        struct.pack("<Q", 53_677_780),
        r"its header would have 53,677,780 bytes; expected at most 65,536",
    ),
    "no header": (
        b"\xff" * 8,
        r"neither \.npy nor safetensors: its header would have 18,446,744,073,709,551,615 bytes",
    ),
    "no JSON": (struct.pack("<Q", 3) + b"{{{", "its header is not JSON"),
    "nested JSON": (struct.pack("<Q", 60_000) + b"[" * 60_000, "its header is not JSON"),
    "a list": (header([1]), "its header is no JSON object"),
    "no offsets": (header({"x": {"dtype": "F32"}}), "has a tensor without offsets"),
    "no tensor": (header({"x": 1}), "has a tensor without offsets"),
    "odd offsets": (header({"x": {"data_offsets": [0, "1"]}}), "has a tensor without offsets"),
    "many bytes": (header({"x": {"data_offsets": [0, 10**15]}}), r"describes 1,000,000,000,000,0\d\d bytes"),
    "a large array": (npy(ARRAY)[:60] + b" (99999999999, 3), }".ljust(68), "."),
    "an odd npy": (b"\x93NUMPY\x07\x00" + b"\0" * 100, "no header of an array of numbers"),
    "a long npy": (b"\x93NUMPY\x02\x00" + b"\xff" * 10_000, "no header of an array of numbers"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_ill_described_is_refused_before_the_rest_arrives(name: str) -> None:
    content, message = BAD[name]
    with pytest.raises((UsageError, TooLargeError), match=message):
        judged(JudgedSamples(MOST), content, None, 1)
    with pytest.raises((UsageError, TooLargeError)):
        judged(JudgedSamples(MOST), content, 2 * MOST, 10_000)


def test_a_large_array_is_refused_by_its_header() -> None:
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, {"descr": "<f4", "fortran_order": False, "shape": (10**9, 3)})
    with pytest.raises(
        TooLargeError, match=r"describes 12,000,000,\d\d\d bytes; this service takes at most 10,000,000"
    ):
        judged(JudgedSamples(MOST), content.getvalue(), None, 1)


@pytest.mark.parametrize("content", [npy(ARRAY), tensors(x=ARRAY)])
def test_what_does_not_fit_the_announced_size_is_refused(content: bytes) -> None:
    for wrong in (len(content) - 1, len(content) + 1):
        with pytest.raises(UsageError, match=r"bytes; expected 96|describes .* bytes, and it has"):
            judged(JudgedSamples(MOST), content, wrong, 1000)


def test_the_header_of_the_weights_of_many_layers_passes_up_to_a_number() -> None:
    def many(number: int) -> bytes:
        return header(
            {f"layer{i}.weight": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(number)}
        )

    judge = JudgedTensors(MOST)
    assert judged(judge, many(10_000), None, 2**16)
    with pytest.raises(UsageError, match="has 10,001 tensors; expected at most 10,000"):
        judged(judge, many(10_001), None, 2**16)


@given(st.binary(max_size=300), st.sampled_from([b"", b"\x93NUMPY", struct.pack("<Q", 20)]))
def test_nothing_else_is_raised_whatever_arrives(content: bytes, start: bytes) -> None:
    for judge in (JudgedSamples(MOST), JudgedTensors(MOST)):
        for whole in (None, len(start + content)):
            with suppress(StreamstatsError):
                judged(judge, start + content, whole, 16)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    limits = {"uploads": "1MiB", "upload": "1000TiB"}
    with served(tmp_path_factory.mktemp("headers"), limits=limits) as service:
        yield service


def answered(service: Served, path: str, content: bytes, size: int | None) -> bytes:
    """The answer to a request of which no more than the beginning of its body is ever sent."""
    host, port = service.url.rpartition("/")[2].split(":")
    length = f"Content-Length: {size}" if size is not None else "Transfer-Encoding: chunked"
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nIdempotency-Key: k\r\nAuthorization: Bearer {service.token}\r\n"
        f"Content-Type: application/octet-stream\r\n{length}\r\n\r\n"
    )
    chunk = content if size is not None else b"%x\r\n%s\r\n" % (len(content), content)
    with closing(socket.create_connection((host, int(port)), 20)) as client:
        client.sendall(head.encode() + chunk)
        answer = b""
        while not answer.endswith(b"}"):
            received = client.recv(2**16)
            assert received, answer
            answer += received
        return answer


@pytest.mark.parametrize("size", [53_677_788, None])
def test_the_answer_comes_when_the_length_of_the_header_is_known(small: Served, size: int | None) -> None:
    answer = answered(small, "/api/v1/stores/s/layers/x", struct.pack("<Q", 53_677_780), size)
    assert answer.startswith(b"HTTP/1.1 422 ")
    assert b"its header would have 53,677,780 bytes; expected at most 65,536" in answer


def test_what_is_announced_must_fit_on_the_disk(small: Served) -> None:
    answer = answered(small, "/api/v1/uploads", b"begins", 10**15)
    assert answer.startswith(b"HTTP/1.1 507 ")
    assert b"the disk has no room for 1,000,000,000,000,000 bytes more" in answer


def test_uploads_are_refused_by_the_quota_before_they_arrive(small: Served) -> None:
    kept = small.client()
    with kept, small.http() as http:
        first = http.post("/api/v1/uploads", content=b"x" * 600_000)
        assert first.status_code == 201
        answer = answered(small, "/api/v1/uploads", b"begins", 600_000)
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"600,000 more would exceed the limit of 1,048,576; delete some uploads" in answer
        assert http.post("/api/v1/uploads", content=iter([b"y" * 300_000, b"y" * 300_000])).status_code == 413
        assert http.post("/api/v1/uploads", content=iter([b"y" * 300_000])).status_code == 201
        assert http.delete(f"/api/v1/uploads/{first.json()['id']}").status_code == 204  # the remedy
        assert http.post("/api/v1/uploads", content=b"x" * 600_000).status_code == 201


def test_what_arrives_counts_against_the_quota(small: Served) -> None:
    with small.http() as http:
        for each in http.get("/api/v1/uploads").json():
            http.delete(f"/api/v1/uploads/{each['id']}")
        host, port = small.url.rpartition("/")[2].split(":")
        with closing(socket.create_connection((host, int(port)), 20)) as slow:
            head = f"POST /api/v1/uploads HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {small.token}\r\n"
            slow.sendall(f"{head}Content-Length: 600000\r\nExpect: 100-continue\r\n\r\n".encode())
            assert slow.recv(2**16).startswith(b"HTTP/1.1 100 ")  # it has its place
            refused = http.post("/api/v1/uploads", content=b"z" * 600_000)
            assert refused.status_code == 503
            assert "other uploads take the room" in refused.text
            slow.sendall(b"s" * 600_000)
            assert slow.recv(2**16).startswith(b"HTTP/1.1 201 ")
        for each in http.get("/api/v1/uploads").json():
            http.delete(f"/api/v1/uploads/{each['id']}")
        assert http.post("/api/v1/uploads", content=b"z" * 600_000).status_code == 201
