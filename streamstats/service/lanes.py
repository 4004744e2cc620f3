"""Lanes: one thread for each store that clients append to, which writes what arrived and then answers.

The law: an idempotency key counts if, and only if, the store has its rows. A transaction first notes which rows each
key stands for; then all waiting rows of a layer are written and committed together; only then are the requests
acknowledged. After a kill or a failure, the keys whose rows the store lacks are removed.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..calibration.recorder import Recorder, stored_layer
from ..calibration.removing import move_layer_away
from ..calibration.sources.choose import source_of
from ..errors import MismatchError, OutputError, StreamstatsError, UsageError
from ..layouts import Kernel
from ..quantization import Quantization
from ..storage.files import remove_folder
from .database import Database
from .errors import ConflictError, FullError, NotFoundError
from .messages import IngestView
from .metrics import Metrics

TOGETHER = 64 * 2**20
"""Bytes of a layer that are appended at once; a larger request is appended alone."""
GROUP = "zarr.json"
IDLE_SECONDS = 60.0
"""After so long without requests, the thread of a store ends."""

log = logging.getLogger("streamstats.service")


@dataclass(frozen=True, eq=False)
class Activations:
    """What `sender` appends to a layer: `samples` on axis 0, with the `key` and the `digest` of the request."""

    layer: str
    key: str
    digest: str
    samples: npt.NDArray[Any]
    channel_axis: int = -1
    quantization: Quantization | None = None
    kernel: Kernel | None = None
    sender: str = ""


@dataclass(frozen=True, eq=False)
class Removal:
    """The layer that waits for its removal, and the answer to the request."""

    layer: str
    answer: Future[None] = field(default_factory=Future)


@dataclass(frozen=True, eq=False)
class Waiting:
    """Activations that wait for their rows, and the answer to the request."""

    activations: Activations
    answer: Future[IngestView] = field(default_factory=Future)


@dataclass(frozen=True, eq=False)
class _Fresh:
    """Activations with a new key, which become the rows `start` to `stop`."""

    waiting: Waiting
    start: int
    stop: int

    @property
    def sent(self) -> Activations:
        return self.waiting.activations

    def answer(self, store: str) -> None:
        """Acknowledge the request."""
        view = IngestView(store=store, layer=self.sent.layer, start=self.start, stop=self.stop, repeated=False)
        self.waiting.answer.set_result(view)

    def repeat(self, waiting: Waiting) -> None:
        """Give `waiting`, which has the same key, the same answer. Raises `ConflictError` if the content differs."""
        _check_content(waiting.activations, self.sent.digest)
        self.waiting.answer.add_done_callback(lambda done: _pass_on(done, waiting.answer))


class Keys:
    """The idempotency keys of `store` in the database."""

    def __init__(self, database: Database, store: str) -> None:
        self._database, self._store = database, store

    def known(self, sent: Activations) -> IngestView | None:
        """The answer that this key got before. Raises `ConflictError` if it came with other content."""
        row = self._database.one(
            "SELECT * FROM ingests WHERE store = ? AND layer = ? AND idempotency_key = ?",
            (self._store, sent.layer, sent.key),
        )
        if row is None:
            return None
        _check_content(sent, row["digest"])
        if row["withdrawn"] is not None:
            raise ConflictError(f"the batch with the key {sent.key} was withdrawn; to send it again, use a new key")
        return IngestView(store=self._store, layer=sent.layer, start=row["start"], stop=row["stop"], repeated=True)

    def note(self, fresh: Sequence[_Fresh]) -> None:
        """Note which rows each key stands for."""
        rows = [
            (self._store, each.sent.layer, each.sent.key, each.sent.digest, each.start, each.stop, each.sent.sender)
            for each in fresh
        ]
        columns = "store, layer, idempotency_key, digest, start, stop, sender"
        with self._database.writing() as connection:
            connection.executemany(f"INSERT INTO ingests ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
            connection.execute("UPDATE stores SET appended = ? WHERE name = ?", (time.time(), self._store))

    def claim(self, owner: str) -> None:
        """Note whose store it is, before it is made."""
        with self._database.writing() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO stores (name, owner, appended) VALUES (?, ?, ?)",
                (self._store, owner, time.time()),
            )

    def take_back(self, layer: str, rows: int) -> None:
        """Remove the keys of rows beyond the `rows` that the layer has."""
        with self._database.writing() as connection:
            connection.execute(
                "DELETE FROM ingests WHERE store = ? AND layer = ? AND stop > ?", (self._store, layer, rows)
            )

    def forget(self, layer: str | None = None) -> None:
        """Remove all keys of `layer`, or of the store, and whose it is."""
        with self._database.writing() as connection:
            if layer is not None:
                connection.execute("DELETE FROM ingests WHERE store = ? AND layer = ?", (self._store, layer))
                return
            connection.execute("DELETE FROM ingests WHERE store = ?", (self._store,))
            connection.execute("DELETE FROM stores WHERE name = ?", (self._store,))


class Lane:
    """The one thread that writes the store at `path`, of at most `layers` layers.

    After a while without requests it asks `end_if_idle` whether it may end.
    """

    def __init__(
        self, path: Path, keys: Keys, metrics: Metrics, layers: int, end_if_idle: Callable[[Lane], bool]
    ) -> None:
        self.store = path.name
        self._path, self._keys, self._metrics = path, keys, metrics
        self._most_layers, self._end_if_idle = layers, end_if_idle
        self._waiting: queue.SimpleQueue[Waiting | Removal | None] = queue.SimpleQueue()
        self._recorder: Recorder | None = None
        self._layers: set[str] = set()
        self._sure: set[str] = set()
        self._thread = threading.Thread(target=self._work, name=f"store {self.store}", daemon=True)
        self._thread.start()

    def put(self, waiting: Waiting | Removal) -> None:
        """Have `waiting` appended, or removed."""
        self._waiting.put(waiting)

    def is_idle(self) -> bool:
        """Whether no request waits."""
        return self._waiting.empty()

    def close(self) -> None:
        """Append what waits, and end."""
        self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        """Append what arrives until None does; everything that arrived meanwhile is appended together."""
        ending = False
        while not ending:
            try:
                together = [self._waiting.get(timeout=IDLE_SECONDS)]
            except queue.Empty:
                self._drop_recorder()  # before another lane can be made for the store
                if self._end_if_idle(self):
                    return
                continue
            while not self._waiting.empty():
                together.append(self._waiting.get())
            ending = None in together
            for batch in _batches([each for each in together if isinstance(each, Waiting)]):
                self._take(batch)
            for each in together:
                if isinstance(each, Removal):
                    self._remove(each)
        self._drop_recorder()

    def _take(self, batch: Sequence[Waiting]) -> None:
        layer = batch[0].activations.layer
        try:
            self._append(layer, batch)
        except StreamstatsError as error:
            self._fail(layer, batch, error)
        except Exception as error:
            log.exception("cannot append", extra={"store": self.store, "layer": layer})
            self._fail(layer, batch, OutputError(f"cannot append to layer {layer}: {type(error).__name__}"))

    def _remove(self, removal: Removal) -> None:
        """Remove a layer: first its rows, because keys without rows are taken back, then its keys."""
        layer = removal.layer
        self._drop_recorder()
        self._sure.discard(layer)
        self._layers.discard(layer)
        try:
            if layer not in stored_layers(self._path):
                raise NotFoundError(f"store {self.store} has no layer {layer}")
            gone = move_layer_away(self._path, layer, self._path.parent)
            self._keys.forget(layer)
            remove_folder(gone)
        except StreamstatsError as error:
            removal.answer.set_exception(error)
        else:
            removal.answer.set_result(None)

    def _fail(self, layer: str, batch: Sequence[Waiting], error: StreamstatsError) -> None:
        """Answer with `error`. What the layer holds is no longer certain: it is read again before the next append."""
        self._sure.discard(layer)
        self._drop_recorder()
        for each in batch:
            if not each.answer.done():
                each.answer.set_exception(error)

    def _drop_recorder(self) -> None:
        """Let go of the store; nothing waits in a recorder that does not buffer."""
        if self._recorder is not None:
            with suppress(StreamstatsError):
                self._recorder.close()
        self._recorder = None

    def _append(self, layer: str, batch: Sequence[Waiting]) -> None:
        recorder = self._opened(layer, batch[0].activations.sender)
        fresh: dict[str, _Fresh] = {}
        for waiting in batch:
            try:
                self._place(recorder, waiting, fresh)
            except (MismatchError, UsageError, ConflictError) as error:
                waiting.answer.set_exception(error)
        if fresh:
            self._write(recorder, list(fresh.values()))

    def _place(self, recorder: Recorder, waiting: Waiting, fresh: dict[str, _Fresh]) -> None:
        """Answer a key that is known; give a new key the rows after those of `fresh`, and add it there."""
        sent = waiting.activations
        if sent.key in fresh:
            fresh[sent.key].repeat(waiting)
        elif (known := self._keys.known(sent)) is not None:
            waiting.answer.set_result(known)
        else:
            start = recorder.next_row(
                sent.layer,
                sent.samples,
                channel_axis=sent.channel_axis,
                quantization=sent.quantization,
                kernel=sent.kernel,
            )
            start = next(reversed(fresh.values())).stop if fresh else start
            fresh[sent.key] = _Fresh(waiting, start, start + len(sent.samples))

    def _write(self, recorder: Recorder, fresh: Sequence[_Fresh]) -> None:
        self._keys.note(fresh)
        first = fresh[0].sent
        blocks = [each.sent.samples for each in fresh]
        samples = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
        recorder.append(
            first.layer,
            samples,
            channel_axis=first.channel_axis,
            quantization=first.quantization,
            kernel=first.kernel,
        )
        self._metrics.ingested_rows.inc(len(samples))
        self._metrics.ingested_bytes.inc(samples.nbytes)
        for each in fresh:
            each.answer(self.store)

    def _opened(self, layer: str, sender: str) -> Recorder:
        """The recorder, once the keys of `layer` agree with its rows: at first, and after each failure.

        A store that does not exist becomes that of `sender`.
        """
        if self._recorder is None:
            if not (self._path / GROUP).exists():
                self._keys.claim(sender)
            self._recorder = Recorder(self._path, buffered=False)
            self._layers |= stored_layers(self._path)
        if layer not in self._sure:
            stored = stored_layer(self._path, layer)
            if layer not in self._layers and len(self._layers) >= self._most_layers:
                raise FullError(
                    f"store {self.store} has {self._most_layers:,} layers, the limit of this service; "
                    "append to another store"
                )
            self._keys.take_back(layer, 0 if stored is None else stored.rows)
            self._layers.add(layer)
            self._sure.add(layer)
        return self._recorder


def stored_layers(store: Path) -> set[str]:
    """The layers of a store; none while its first activations are being written."""
    try:
        return set(source_of(store).find().arrays)
    except UsageError:
        return set()


def _batches(waiting: Sequence[Waiting]) -> Iterator[list[Waiting]]:
    """`waiting` layer by layer, in order, in batches of at most TOGETHER bytes or of one request."""
    layers: dict[str, list[Waiting]] = {}
    for each in waiting:
        layers.setdefault(each.activations.layer, []).append(each)
    for of_layer in layers.values():
        batch: list[Waiting] = []
        size = 0
        for each in of_layer:
            size += each.activations.samples.nbytes
            if batch and size > TOGETHER:
                yield batch
                batch, size = [], each.activations.samples.nbytes
            batch.append(each)
        yield batch


def _check_content(sent: Activations, digest: str) -> None:
    if sent.digest != digest:
        raise ConflictError(f"the idempotency key {sent.key} was used with other activations; use a new key for these")


def _pass_on(done: Future[IngestView], answer: Future[IngestView]) -> None:
    error = done.exception()
    if error is not None:
        answer.set_exception(error)
    else:
        answer.set_result(done.result().model_copy(update={"repeated": True}))
