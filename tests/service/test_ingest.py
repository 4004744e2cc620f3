"""Activations that clients send: each request is counted once, whatever happens on the way."""

from __future__ import annotations

import json
import re
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest
from safetensors.numpy import save
from served import Served, npy, served, wait_until
from stores import described, read
from taps import exact_tap_means

import streamstats as ss
from streamstats.service.client import RefusedError

Array = np.ndarray[Any, Any]
OBJECTS = (
    b"\x93NUMPY\x01\x00\x76\x00" + b"{'descr': '|O', 'fortran_order': False, 'shape': (1, 1), }".ljust(117) + b"\n"
)
PATH = "/api/v1/stores/{}/layers/{}"


def samples(seed: int, rows: int = 8, channels: int = 5) -> Array:
    return np.random.default_rng(seed).normal(size=(rows, 3, channels)).astype(np.float32)


def send(service: Served, store: str, layer: str, body: bytes, key: str = "k", query: str = "") -> Any:
    with service.http() as http:
        return http.post(PATH.format(store, layer) + query, content=body, headers={"Idempotency-Key": key})


def message(answer: Any) -> str:
    return str(answer.json()["detail"])


def test_what_was_sent_is_what_is_counted(client: ss.Client) -> None:
    blocks = [samples(seed) for seed in range(3)]
    for block in blocks:
        client.ingest("counted", "a/b", block)
    job = client.wait(client.submit({"kind": "run", "source": "store:counted"}).id)
    assert job.state == "done"
    expected = ss.prepare_input_mean(blocks)
    assert client.channels(job.id, "a/b")["per_channel"]["mean"] == expected.tolist()
    assert client.store("counted").layers == {"a/b": 24}


def test_safetensors_and_npy_of_any_order_are_taken(service: Served, client: ss.Client) -> None:
    block = samples(1)
    bodies = {
        "npy": npy(block),
        "fortran": npy(np.asfortranarray(block)),
        "big endian": npy(block.astype(">f4")),
        "safetensors": save({"x": block}),
    }
    for number, (key, body) in enumerate(bodies.items()):
        answer = send(service, "formats", "layer", body, key.replace(" ", "-"))
        assert answer.status_code == 201, answer.text
        assert answer.json()["start"] == 8 * number
    job = client.wait(client.submit({"kind": "run", "source": "store:formats"}).id)
    expected = ss.prepare_input_mean([block] * 4)
    assert client.channels(job.id, "layer")["per_channel"]["mean"] == expected.tolist()


def test_codes_come_with_their_quantisation(client: ss.Client) -> None:
    codes = np.arange(24, dtype=np.int8).reshape(6, 4)
    quantization = {"scale": 0.5, "scale_is": "step", "zero_point": 3}
    client.ingest("codes", "fc", codes, quantization=quantization)
    with pytest.raises(RefusedError, match="quantisation"):
        client.ingest("codes", "fc", codes)
    job = client.wait(client.submit({"kind": "run", "source": "store:codes"}).id)
    expected = ss.prepare_input_mean([codes], ss.Quantization(0.5, 3))
    assert client.channels(job.id, "fc")["per_channel"]["mean"] == expected.tolist()


def test_layers_come_with_their_kernel_which_taps_needs(client: ss.Client) -> None:
    blocks = [np.moveaxis(samples(seed), -1, 1).reshape(8, 5, 3) for seed in range(2)]
    geometry = {"kernel": [3], "pads": [1, 0], "strides": [2]}
    kernel = ss.Kernel((3,), ss.Geometry((2,), (1, 0)))
    client.ingest("kernels", "conv", blocks[0], key="one", channel_axis=1, geometry=geometry)
    client.ingest("kernels", "conv", blocks[1], channel_axis=1)  # a later request need not repeat it
    with pytest.raises(RefusedError, match="other activations"):
        client.ingest("kernels", "conv", blocks[0], key="one", channel_axis=1, geometry={"kernel": [3]})
    with pytest.raises(RefusedError, match=r"kernel is .* the store holds"):
        client.ingest("kernels", "conv", blocks[0], channel_axis=1, geometry={"kernel": [1]})
    job = client.wait(client.submit({"kind": "run", "source": "store:kernels", "statistics": ["taps"]}).id)
    assert job.state == "done", job.message
    with tempfile.TemporaryDirectory() as folder:
        client.fetch(job.id, folder)
        corrector = ss.BiasCorrector.load(Path(folder) / "correctors" / "conv.safetensors")
    assert isinstance(corrector, ss.TapBiasCorrector)
    exact = exact_tap_means(np.vectorize(Fraction, otypes=[object])(np.concatenate(blocks).astype(np.float64)), kernel)
    assert corrector.tap_mean.tolist() == exact.astype(np.float64).tolist()


GEOMETRIES = {
    "no JSON": ("{", "geometry"),
    "another key": ('{"kernel": [3], "stride": [2]}', "unknown key `stride`"),
    "no kernel": ("{}", "geometry: .*kernel"),
    "no list": ('{"kernel": 3}', "geometry: .*kernel"),
    "stride 0": ('{"kernel": [3], "strides": [0]}', "a kernel has strides"),
    "too many axes": ('{"kernel": [3, 3]}', "layer conv: .*geometry"),
    "too large a kernel": ('{"kernel": [9]}', "layer conv: "),
    "too long": ('{"kernel": [' + "1," * 600 + "1]}", "geometry"),
    "control characters": ('{"kernel":\n[3]}', "geometry"),
}


@pytest.mark.parametrize("case", GEOMETRIES)
def test_a_kernel_that_cannot_be_one_is_refused(service: Served, case: str) -> None:
    text, said = GEOMETRIES[case]
    query = "?" + urlencode({"channel_axis": 1, "geometry": text})
    answer = send(service, "refused", "conv", npy(np.ones((2, 4, 5), np.float32)), query=query)
    assert answer.status_code == 422
    assert re.search(said, message(answer)), message(answer)


def test_a_request_repeated_with_its_key_is_counted_once(client: ss.Client) -> None:
    first = client.ingest("repeated", "l", samples(1), key="one")
    again = client.ingest("repeated", "l", samples(1), key="one")
    assert (first.repeated, again.repeated) == (False, True)
    assert (first.start, first.stop) == (again.start, again.stop) == (0, 8)
    assert client.ingest("repeated", "other layer", samples(1), key="one").start == 0
    with pytest.raises(RefusedError, match="other activations"):
        client.ingest("repeated", "l", samples(2), key="one")
    assert client.store("repeated").layers == {"l": 8, "other layer": 8}


def test_a_key_is_for_one_layer_as_it_was_described(service: Served, client: ss.Client) -> None:
    client.ingest("described", "l", samples(1), key="one", channel_axis=1)
    with pytest.raises(RefusedError, match="other activations"):
        client.ingest("described", "l", samples(1), key="one", channel_axis=2)
    assert client.store("described").rows == 8
    assert send(service, "described", "%5Cl", npy(samples(1)), "two").status_code == 422  # which zarr takes for l


def test_jobs_go_on_while_the_chunk_that_they_read_is_written_again(client: ss.Client) -> None:
    block = samples(3, rows=300, channels=16)
    client.ingest("busy", "l", block)
    names = [client.submit({"kind": "run", "source": "store:busy", "follow": {"rows": 18_000}}).id for _ in range(3)]
    for number in range(59):
        client.ingest("busy", "l", block)
        if number % 20 == 0:
            names.append(client.submit({"kind": "run", "source": "store:busy"}).id)
    expected = ss.prepare_input_mean([block]).tolist()
    for name in names:
        found = client.wait(name)
        assert found.state == "done", found.message
        assert client.channels(name, "l")["per_channel"]["mean"] == expected


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_narrow_floats_are_taken_as_they_are(service: Served, client: ss.Client, dtype: str) -> None:
    block = samples(7).astype(dtype)
    client.ingest(f"narrow-{dtype}", "l", block)
    client.ingest(f"narrow-{dtype}", "l", block.byteswap().view(block.dtype.newbyteorder()))
    assert send(service, f"narrow-{dtype}", "l", save({"x": block}), "three").status_code == 201
    layer = described(service.data / "stores" / f"narrow-{dtype}", "l")
    assert read(layer).tobytes() == 3 * block.tobytes()


def test_threads_of_stores_do_not_pile_up(tmp_path: Path) -> None:
    with served(tmp_path, limits={"stores": 8}) as service:
        for number in range(40):
            send(service, f"s{number}", "l", npy(np.zeros((4, 2), np.complex64)))
        with service.http() as http:
            assert http.get("/api/v1/stores").json() == []
        assert send(service, "s", "l", npy(samples(1))).status_code == 201


def test_many_writers_lose_nothing_and_count_nothing_twice(service: Served, client: ss.Client) -> None:
    def write(number: int) -> None:
        with service.client() as mine:
            for index in range(10):
                for _ in range(2):  # each of them twice
                    mine.ingest("many", f"layer{index % 2}", samples(100 * number + index), key=f"{number}-{index}")

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert client.store("many").layers == {"layer0": 8 * 40, "layer1": 8 * 40}
    job = client.wait(client.submit({"kind": "run", "source": "store:many"}).id)
    for layer in (0, 1):
        blocks = [samples(100 * number + index) for number in range(8) for index in range(layer, 10, 2)]
        found = client.channels(job.id, f"layer{layer}")["per_channel"]
        assert found["mean"] == ss.prepare_input_mean(blocks).tolist()


def test_the_same_key_at_the_same_moment_is_counted_once(service: Served, client: ss.Client) -> None:
    answers: list[bool] = []

    def write() -> None:
        with service.client() as mine:
            answers.append(mine.ingest("moment", "l", samples(1), key="same").repeated)

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [False] + [True] * 7
    assert client.store("moment").rows == 8


def test_a_follow_job_counts_what_arrives_and_readers_see_one_moment(service: Served, client: ss.Client) -> None:
    client.ingest("followed", "a", samples(0))
    client.ingest("followed", "b", samples(0))
    job = client.submit({"kind": "run", "source": "store:followed", "follow": {"rows": 8 * 20}})
    stop = threading.Event()
    seen: list[int] = []
    wrong: list[str] = []

    def read() -> None:
        with service.http() as http:
            while not stop.is_set():
                found = http.get(f"/api/v1/jobs/{job.id}/files")
                if found.status_code != 200:
                    continue
                number = found.json()["results"]
                layers = http.get(f"/api/v1/jobs/{job.id}/layers?results={number}").json()["layers"]
                seen.append(layers["a"]["rows"])
                for layer in ("a", "b"):
                    channels = http.get(f"/api/v1/jobs/{job.id}/layers/{layer}?results={number}").json()
                    blocks = [samples(seed) for seed in range(channels["rows"] // 8)]
                    expected = ss.prepare_input_mean(blocks).tolist()
                    if channels["per_channel"]["mean"] != expected or channels["rows"] != layers[layer]["rows"]:
                        wrong.append(f"{layer} {channels['rows']}")

    reader = threading.Thread(target=read)
    reader.start()
    wait_until(lambda: bool(seen))
    for seed in range(1, 20):
        client.ingest("followed", "a", samples(seed))
        client.ingest("followed", "b", samples(seed))
        time.sleep(0.1)
    assert client.wait(job.id).state == "done"
    stop.set()
    reader.join()
    assert not wrong
    assert seen == sorted(seen)
    assert len(set(seen)) > 1
    assert client.layers(job.id)["layers"]["a"]["rows"] == 160


def test_a_follow_job_waits_for_the_first_activations(tmp_path: Path) -> None:
    with served(tmp_path) as service, service.client() as client:
        client.ingest("late", "a", samples(0))
        job = client.submit({"kind": "run", "source": "store:late", "follow": {"idle": 1.0}})
        with pytest.raises(RefusedError, match="reads the store"):
            _delete_store(service, "late")
        assert client.wait(job.id).state == "done"
        _delete_store(service, "late")
        with pytest.raises(RefusedError, match="no store late"):
            client.store("late")
        assert client.ingest("late", "a", samples(0)).start == 0  # its keys are gone, too


def _delete_store(service: Served, name: str) -> None:
    with service.http() as http:
        answer = http.delete(f"/api/v1/stores/{name}")
    if answer.status_code != 204:
        raise RefusedError(message(answer), answer.status_code)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "the body"),
        (b"nonsense", "the body"),
        (b"\x93NUMPY", ".npy"),
        (b"\x93NUMPY\x09\x00" + b"x" * 100, ".npy"),
        (npy(np.zeros((2, 3), np.float32))[:-1], "expected 24"),
        (npy(np.zeros((2, 3), np.float32)) + b"x", "expected 24"),
        (npy(np.zeros((2, 3), np.float32)).replace(b"(2, 3), }  ", b"(2, 99**9)}"), ""),
        (npy(np.zeros((2, 3), np.float32)).replace(b"'shape': (2, 3)", b"'shape': (9**9,)"), ""),
        (npy(np.zeros((2, 3), np.float32)).replace(b"(2, 3), ", b"(-2, -3),"), ""),
        (OBJECTS, "numbers"),
        (npy(np.zeros((), np.float32)), "expected samples"),
        (npy(np.zeros((0, 3), np.float32)), "no samples"),
        (npy(np.zeros((0, 10**14), np.float32)), "no samples"),
        (npy(np.zeros((4, 0), np.float32)), "no samples"),
        (npy(np.zeros((2, 3), np.float32)).replace(b"(2, 3), }" + b" " * 15, b"(1" + b"0" * 15 + b", 0), }  "), ""),
        (save({"a": np.zeros((4, 0), np.float32)}), "no samples"),
        (npy(np.zeros((4,), np.float32)), "at least one more"),
        (npy(np.zeros((4, 2), np.complex64)), "complex64"),
        (npy(np.zeros((4, 2), "U3")), "numbers"),
        (npy(np.zeros((4,), [("a", "f4"), ("b", "f4")])), ""),
        (save({"a": samples(1), "b": samples(2)}), "2 tensors"),
        (save({}), "0 tensors"),
        ((2**63).to_bytes(8, "little") + b"{}", "the body"),
        (save({"a": samples(1)})[:-3], "the body"),
    ],
)
def test_a_body_that_is_none_is_refused_and_leaves_nothing(service: Served, body: bytes, said: str) -> None:
    answer = send(service, "refused", "l", body)
    assert answer.status_code == 422, answer.text
    assert said in message(answer)
    assert str(service.data) not in answer.text
    with service.http() as http:
        found = http.get("/api/v1/stores/refused")
    assert found.status_code == 404 or found.json()["rows"] == 0


@pytest.mark.parametrize(
    ("store", "layer", "key", "query"),
    [
        ("..", "l", "k", ""),
        ("a%2fb", "l", "k", ""),
        (".hidden", "l", "k", ""),
        ("x" * 65, "l", "k", ""),
        ("s", "../../x", "k", ""),
        ("s", "a//b", "k", ""),
        ("s", "a/%2e/b", "k", ""),
        ("s", "%00", "k", ""),
        ("s", "%0a", "k", ""),
        ("s", "zarr.json", "k", ""),
        ("s", "%5Cx", "k", ""),
        ("s", "a%5Cb", "k", ""),
        ("s", "é" * 150, "k", ""),
        ("s", "x" * 300, "k", ""),
        ("s", "/".join("a" * 40), "k", ""),
        ("s", "l", "", ""),
        ("s", "l", "x" * 200, ""),
        ("s", "l", "k", "?channel_axis=0"),
        ("s", "l", "k", "?channel_axis=9"),
        ("s", "l", "k", "?channel_axis=x"),
        ("s", "l", "k", "?quantization=nonsense"),
        ("s", "l", "k", "?quantization={}"),
        ("s", "l", "k", '?quantization={"scale":0,"scale_is":"step"}'),
        ("s", "l", "k", '?quantization={"scale":1,"scale_is":"step"}'),
    ],
)
def test_a_name_or_option_that_is_none_is_refused(
    service: Served, store: str, layer: str, key: str, query: str
) -> None:
    answer = send(service, store, layer, npy(samples(1)), key, query)
    assert 400 <= answer.status_code < 500, answer.text


def test_a_body_beyond_the_limit_is_refused(service: Served) -> None:
    def chunks() -> Iterator[bytes]:
        yield npy(np.zeros((1, 1), np.float32))
        for _ in range(8):
            yield b"\0" * 2**20

    with service.http() as http:
        answer = http.post(PATH.format("large", "l"), content=chunks(), headers={"Idempotency-Key": "k"})
    assert answer.status_code == 413
    assert "4,194,304" in message(answer)


def test_a_body_that_is_announced_too_large_is_refused_before_it_comes(service: Served) -> None:
    with connection(service, PATH.format("large", "l"), 10**12) as opened:
        assert opened.recv(100).startswith(b"HTTP/1.1 413")


@contextmanager
def connection(service: Served, path: str, length: int) -> Iterator[socket.socket]:
    """One that has sent the head of a request with so long a body."""
    host, port = service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as opened:
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {service.token}\r\n"
            f"Idempotency-Key: k\r\nContent-Length: {length}\r\n\r\n"
        )
        opened.sendall(head.encode())
        yield opened


def test_a_client_that_goes_away_in_the_middle_adds_nothing(service: Served) -> None:
    body = npy(samples(1))
    with connection(service, PATH.format("half", "l"), len(body)) as opened:
        opened.sendall(body[:-10])
    answer = send(service, "half", "l", body)
    assert answer.status_code == 201
    assert answer.json()["start"] == 0


def test_layers_and_stores_have_limits(tmp_path: Path) -> None:
    with served(tmp_path, limits={"layers": 2, "stores": 1}) as service:
        assert send(service, "s", "a", npy(samples(1))).status_code == 201
        assert send(service, "s", "b", npy(samples(1))).status_code == 201
        assert send(service, "s", "c", npy(samples(1))).status_code == 503
        assert send(service, "t", "a", npy(samples(1))).status_code == 503
        assert send(service, "s", "a", npy(samples(1)), "k2").status_code == 201


def test_a_disk_without_room_is_said_and_nothing_is_taken(tmp_path: Path) -> None:
    with served(tmp_path, limits={"free": "1000TiB"}) as service:
        answer = send(service, "s", "a", npy(samples(1)))
        assert answer.status_code == 507
        with service.http() as http:
            ready = http.get("/readyz")
        assert ready.status_code == 503
        assert "bytes left" in json.dumps(ready.json())
