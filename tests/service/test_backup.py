"""Backups: taken while a service runs, complete, and never counting a batch twice."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from served import STORE, Served, served, small_store, wait_until

import streamstats as ss
from streamstats.cli import main
from streamstats.errors import DataError, UsageError
from streamstats.service.backup import back_up
from streamstats.service.database import Database
from streamstats.service.faults import Faults
from streamstats.service.lanes import Activations
from streamstats.service.metrics import Metrics
from streamstats.service.stores import Stores

LAYERS = ("c", "a/b")


def opened(folder: Path) -> Stores:
    database = Database(folder / "service.sqlite")
    stores = Stores(database, folder / "stores", Metrics(database), Faults(), stores=9, layers=9)
    stores.start()
    return stores


def block(number: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.full((3, 4), number, np.float32)


def test_a_backup_that_is_taken_while_activations_arrive_counts_each_batch_once(tmp_path: Path) -> None:
    data, sent, enough = tmp_path / "data", 0, threading.Event()
    data.mkdir()
    stores = opened(data)

    def write() -> None:
        nonlocal sent
        while not enough.is_set():
            waiting = [stores.append("s", Activations(layer, f"k{sent}", "d", block(sent))) for layer in LAYERS]
            for each in waiting:
                each.result(60)
            sent += 1

    writer = threading.Thread(target=write)
    writer.start()
    acknowledged = []
    for number in range(4):
        wait_until(lambda: sent >= 5 * (number + 1))  # noqa: B023
        acknowledged.append(sent)
        back_up(data, tmp_path / str(number))
    enough.set()
    writer.join()
    stores.close()
    for number, before in enumerate(acknowledged):
        copy = opened(tmp_path / str(number))
        assert min(copy.view("s").layers.values()) >= 3 * before
        for layer in LAYERS:
            for index in range(sent):
                copy.append("s", Activations(layer, f"k{index}", "d", block(index))).result(60)
        copy.close()
        found = ss.reduce(tmp_path / str(number) / "stores/s")
        expected = ss.prepare_input_mean([block(index) for index in range(sent)])
        assert {name: each.rows for name, each in found.items()} == dict.fromkeys(LAYERS, 3 * sent)
        for each in found.values():
            np.testing.assert_array_equal(each.mean, expected)


@pytest.mark.soak
def test_a_service_starts_on_its_backup_with_its_jobs_and_results(tmp_path: Path) -> None:
    hooks = {"chat": {"url": "http://127.0.0.1:9/"}}
    with served(tmp_path / "one", hooks=hooks) as service, service.client() as client:
        ann = client.new_token("ann")
        done = client.wait(client.submit({"kind": "run", "source": STORE}).id)
        follower = client.submit({"kind": "run", "source": STORE, "follow": {"rows": 64}}).id
        wait_until(lambda: client.job(follower).results is not None)
        client.fetch(done.id, tmp_path / "before")
        assert main(["backup", str(service.config), str(tmp_path / "copy")]) == 0
        token = service.token
    restored = Served(tmp_path / "two", data=str(tmp_path / "copy"))
    restored.data = tmp_path / "copy"
    small_store(restored.roots / STORE)
    assert restored.token == token
    assert (restored.data / "hooks" / "chat").read_bytes() == (service.data / "hooks" / "chat").read_bytes()
    assert (restored.data / "token").stat().st_mode & 0o77 == 0
    restored.start()
    with ss.Client(restored.url, ann) as client:
        assert client.job(done.id).state == "done"
        client.fetch(done.id, tmp_path / "after")
        assert client.job(follower).state in ("queued", "running")
        assert client.layers(follower)["layers"]["fc"]["rows"] == 32
    assert restored.stop() == 0
    before, after = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*")}
        for folder in (tmp_path / "before", tmp_path / "after")
    )
    assert before == after


def test_what_cannot_be_backed_up_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    with pytest.raises(UsageError, match=r"has no service\.sqlite"):
        back_up(data, tmp_path / "copy")
    (data / "service.sqlite").write_bytes(b"something else, and long enough to look like a file" * 20)
    with pytest.raises(DataError, match="not a database"):
        back_up(data, tmp_path / "copy")
    with pytest.raises(UsageError, match="is inside"):
        back_up(data, data / "copy")
    with pytest.raises(UsageError, match="exists"):
        back_up(data, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
