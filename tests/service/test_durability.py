"""Power failures, and copies of a service's folder: what was acknowledged is there, once."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from powerless import Disk
from stores import build_store

import streamstats as ss
from streamstats.errors import UsageError
from streamstats.outputs.manifest import MANIFEST
from streamstats.service import published
from streamstats.service.database import Database
from streamstats.service.errors import BusyError, ConflictError, FullError
from streamstats.service.faults import Faults
from streamstats.service.journal import Journal, Keys, Noted, settle
from streamstats.service.lanes import Activations
from streamstats.service.messages import IngestView
from streamstats.service.metrics import Metrics
from streamstats.service.published import Published
from streamstats.service.stores import Stores

LAYER = "a/b"
ROWS = {"one": 2, "two": 1, "three": 6}
"""Rows of each request; four fill a chunk."""


def block(key: str) -> np.ndarray[Any, Any]:
    return np.full((ROWS[key], 2**16), len(key) * 0.5, np.float32)


@contextmanager
def opened(folder: Path) -> Iterator[Stores]:
    """The stores in `folder`, as a service opens them."""
    database = Database(folder / "service.sqlite")
    stores = Stores(database, folder / "stores", Metrics(database), Faults(), stores=9, layers=9)
    stores.start()
    try:
        yield stores
    finally:
        stores.close()


def send(stores: Stores, key: str) -> Future[IngestView]:
    return stores.append("s", Activations(LAYER, key, key, block(key)))


def check_resent(folder: Path, acknowledged: set[str]) -> None:
    """A service that starts on `folder`, to which everything is sent again, has each request once."""
    with opened(folder) as stores:
        answers = {key: send(stores, key).result(60) for key in ROWS}
        assert acknowledged <= {key for key, answer in answers.items() if answer.repeated}
        assert stores.view("s").layers == {LAYER: sum(ROWS.values())}
    found = ss.reduce(folder / "stores/s")[LAYER]
    np.testing.assert_array_equal(found.mean, ss.prepare_input_mean([block(key) for key in ROWS]))


@pytest.mark.parametrize("every", [18, pytest.param(1, marks=pytest.mark.soak)])
def test_whenever_the_power_fails_what_was_acknowledged_is_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    data, images, moments = tmp_path / "data", list[tuple[Path, set[str]]](), 0
    answers: dict[str, Future[IngestView]] = {}
    data.mkdir()

    def moment(disk: Disk) -> None:
        nonlocal moments
        moments += 1
        if moments % every == 0:
            acknowledged = {key for key, answer in answers.items() if answer.done()}
            path = tmp_path / str(moments)
            images.append((disk.without_power(path, all_names=bool(moments // every % 2)), acknowledged))

    with opened(data) as stores, monkeypatch.context() as patch:
        disk = Disk(data, patch, moment)
        for key in ROWS:
            answers[key] = send(stores, key)
            answers[key].result(60)
            for all_names in (False, True):
                image = disk.without_power(tmp_path / f"{key}{all_names}", all_names=all_names)
                images.append((image, {*answers}))
    disk.close()
    assert moments > 60
    for image, acknowledged in images:
        check_resent(image, acknowledged)


def test_a_set_is_published_once_all_of_it_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, files = tmp_path / "job", {MANIFEST: b"{}", "correctors/a.safetensors": b"a"}
    for name, content in files.items():
        (job / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (job / "out" / name).write_bytes(content)
    seen = []

    def moment(disk: Disk) -> None:
        image = disk.without_power(tmp_path / str(len(seen)), all_names=False)
        seen.append(published.current(image))
        if seen[-1] is not None:
            folder = published.folder_of(image, seen[-1])
            assert folder is not None
            assert {name: (folder / name).read_bytes() for name in files} == files

    with monkeypatch.context() as patch:
        disk = Disk(job, patch, moment)
        assert Published(job).publish({name: job / "out" / name for name in files}) == 1
    disk.close()
    assert seen[0] is None
    assert seen[-1] == 1


# Copies


@pytest.fixture
def sent(tmp_path: Path) -> Path:
    """A folder to which two requests were sent, after which its database was copied, and then the third."""
    data = tmp_path / "data"
    data.mkdir()
    with opened(data) as stores:
        for key in ("one", "two"):
            send(stores, key).result(60)
        with sqlite3.connect(data / "service.sqlite") as source, sqlite3.connect(tmp_path / "older.sqlite") as copy:
            source.backup(copy)
        source.close()
        copy.close()
        send(stores, "three").result(60)
    return data


def with_database(data: Path, database: Path | None) -> Path:
    for each in data.glob("service.sqlite*"):
        each.unlink()
    if database is not None:
        shutil.copy(database, data / "service.sqlite")
    return data


def test_rows_without_a_key_in_the_database_get_it_from_the_store(sent: Path) -> None:
    check_resent(with_database(sent, sent.parent / "older.sqlite"), set(ROWS))


def test_a_database_that_is_lost_loses_no_key(sent: Path) -> None:
    check_resent(with_database(sent, None), set(ROWS))


def test_keys_of_an_older_version_come_to_the_store(sent: Path) -> None:
    shutil.rmtree(sent / "stores/s/.keys")
    check_resent(sent, set(ROWS))
    check_resent(with_database(sent, None), set(ROWS))


def test_where_they_contradict_each_other_the_store_is_right(sent: Path) -> None:
    """As with a database of an earlier store of this name, which had as many rows."""
    with sqlite3.connect(sent / "service.sqlite") as database:
        database.execute("UPDATE ingests SET idempotency_key = 'earlier ' || idempotency_key")
    check_resent(sent, {*ROWS})
    with database:
        assert {key for (key,) in database.execute("SELECT idempotency_key FROM ingests")} == {*ROWS}
    database.close()


@pytest.mark.parametrize("database", ["none", "older"])
def test_a_batch_that_was_withdrawn_stays_withdrawn(sent: Path, database: str) -> None:
    with opened(sent) as stores:
        for key in ("two", "one"):
            stores.withdraw("s", stores.batches.get("s", LAYER, key))
    with opened(with_database(sent, None if database == "none" else sent.parent / "older.sqlite")) as stores:
        assert stores.batches.withdrawn("s")[LAYER].ranges == ((0, 3),)
        with pytest.raises(ConflictError, match="was withdrawn"):
            send(stores, "one").result(60)
        stores.delete_layer("s", LAYER, lambda: None)
        assert not send(stores, "one").result(60).repeated
    with opened(sent) as stores:
        assert stores.batches.withdrawn("s") == {}


def test_keys_of_an_earlier_store_are_not_those_of_the_store_with_its_name(tmp_path: Path) -> None:
    with opened(tmp_path) as stores:
        for key in ("one", "two"):
            send(stores, key).result(60)
        stores.withdraw("s", stores.batches.get("s", LAYER, "two"))
    shutil.copy(tmp_path / "service.sqlite", tmp_path / "earlier.sqlite")
    with opened(tmp_path) as stores:
        stores.delete("s", lambda: None)
        stores.append("s", Activations(LAYER, "other", "other", block("one"))).result(60)
        send(stores, "two").result(60)
    with opened(with_database(tmp_path, tmp_path / "earlier.sqlite")) as stores:
        assert stores.batches.withdrawn("s") == {}
        assert stores.append("s", Activations(LAYER, "other", "other", block("one"))).result(60).repeated
        assert send(stores, "two").result(60).repeated
        assert not send(stores, "one").result(60).repeated


def test_keys_that_are_right_need_no_transaction_to_take_any_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, journal = Keys(Database(tmp_path / "db"), "s"), Journal(tmp_path / "s", LAYER)
    journal.note([Noted("one", "digest", 0, 2), Noted("two", "digest", 2, 3)])
    writing, transactions = Database.writing, []
    monkeypatch.setattr(Database, "writing", lambda found: transactions.append(found) or writing(found))
    assert settle(keys, journal, LAYER, 3) == 3
    assert [each.key for each in keys.since(LAYER, 0)] == ["one", "two"]
    assert len(transactions) == 1  # which adds them


@pytest.mark.parametrize("then", ["repeated", "restarted", "remade"])
def test_a_layer_whose_deletion_failed_halfway_leaves_nothing_to_the_next(
    sent: Path, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    def locked(*_: Any) -> None:
        raise BusyError("locked")

    with opened(sent) as stores:
        stores.withdraw("s", stores.batches.get("s", LAYER, "one"))
        with monkeypatch.context() as patch:
            patch.setattr(Keys, "remove", locked)
            with pytest.raises(BusyError):
                stores.delete_layer("s", LAYER, lambda: None)
        if then == "repeated":
            stores.delete_layer("s", LAYER, lambda: None)
        if then == "remade":
            assert not send(stores, "one").result(60).repeated
    with opened(sent) as stores:
        assert stores.batches.withdrawn("s") == {}
        assert bool(stores.batches.listed("s", LAYER, start=0, limit=9)) == (then == "remade")
        assert send(stores, "one").result(60).repeated == (then == "remade")


def test_rows_that_no_key_stands_for_are_taken_back_and_sent_again(sent: Path) -> None:
    """As in a copy, file by file, whose journal and database are older than the rows."""
    with_database(sent, sent.parent / "older.sqlite")
    journal = next((sent / "stores/s/.keys").glob("*.jsonl"))
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:2]))
    with opened(sent) as stores:
        assert stores.view("s").rows == ROWS["one"] + ROWS["two"]
    check_resent(sent, {"one", "two"})


@pytest.mark.parametrize("lost", range(4))
def test_a_journal_that_lacks_lines_gets_them_from_the_database(sent: Path, lost: int) -> None:
    with opened(sent) as stores:
        stores.withdraw("s", stores.batches.get("s", LAYER, "two"))
    folder = sent / "stores/s/.keys"
    (journal,) = folder.glob("*.jsonl")
    (withdrawn,) = folder.glob("*.withdrawn.json")
    before = journal.read_text(), withdrawn.read_text()
    journal.write_text("".join(line for at, line in enumerate(before[0].splitlines(keepends=True)) if at != lost))
    withdrawn.unlink()
    with opened(sent) as stores:
        assert (journal.read_text(), withdrawn.read_text()) == before
        assert len(stores.batches.listed("s", LAYER, start=0, limit=9)) == len(ROWS)


def test_a_name_of_the_files_of_a_store_is_no_layer(sent: Path) -> None:
    with opened(sent) as stores:
        for name in (".keys", ".recorder.lock", f".keys/{hashlib.sha256(b'b').hexdigest()}.jsonl"):
            with pytest.raises(UsageError, match=r"names that begin with '\.' are reserved"):
                stores.append("s", Activations(name, "one", "one", block("one")))
            with pytest.raises(UsageError, match="is not usable"):
                stores.delete_layer("s", name, lambda: None)
        build_store(sent / "stores/s", {".old": block("one")})  # which an older version took
        assert stores.view("s").layers == {LAYER: sum(ROWS.values())}
    check_resent(sent, set(ROWS))


def test_a_line_that_was_cut_off_is_no_key(sent: Path) -> None:
    with_database(sent, sent.parent / "older.sqlite")
    journal = next((sent / "stores/s/.keys").glob("*.jsonl"))
    with journal.open("ab") as file:
        file.write(b'{"key": "four", "dig')
    check_resent(sent, set(ROWS))
    assert [json.loads(line)["key"] for line in journal.read_text().splitlines()] == [*ROWS]


def test_a_journal_knows_its_rows_however_long_its_lines_are(tmp_path: Path) -> None:
    journal = Journal(tmp_path, LAYER)
    assert journal.last() is None
    longest = '"' * (2**14 + 2**10 + 64)
    for number in range(3):
        journal.note([Noted("k" * 128, longest, number, number + 1)])
        assert journal.last() == Noted("k" * 128, longest, number, number + 1)
    assert len(journal.read()[0]) == 3


def test_rows_of_which_none_has_a_key_are_neither_lost_nor_added_to(sent: Path) -> None:
    with_database(sent, None)
    shutil.rmtree(sent / "stores/s/.keys")
    with opened(sent) as stores:
        with pytest.raises(ConflictError, match="9 rows of layer a/b in store s have no idempotency keys"):
            send(stores, "one").result(60)
        assert stores.view("s").rows == sum(ROWS.values())


def test_nothing_is_appended_before_rows_and_keys_agree(tmp_path: Path) -> None:
    database = Database(tmp_path / "db")
    stores = Stores(database, tmp_path / "stores", Metrics(database), Faults(), stores=9, layers=9)
    with pytest.raises(FullError, match="the service is starting"):
        send(stores, "one")


def test_a_store_that_cannot_be_read_keeps_no_other_from_being_appended_to(sent: Path) -> None:
    (sent / "stores/damaged").mkdir()
    (sent / "stores/damaged/zarr.json").write_text("{")
    check_resent(sent, set(ROWS))


def test_a_store_that_is_copied_while_it_is_deleted_is_no_store(sent: Path) -> None:
    os.rename(sent / "stores/s", sent / "stores/.0123.streamstats-tmp")
    with opened(sent) as stores:
        assert stores.names() == []
    assert not any((sent / "stores").iterdir())
