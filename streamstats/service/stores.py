"""Stores that the service owns: activations that clients send, appended layer by layer, each request once.

What waits is appended together: a transaction first notes which rows each key will be, then the rows are written and
committed, all of a layer's at once, and only then acknowledged. So after a kill a key is one of a request whose rows
the store has, or it is taken back: a key counts if, and only if, the store has its rows.
"""

from __future__ import annotations

import logging
import queue
import re
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..calibration.layer import check_values
from ..calibration.recorder import Recorder, stored_layer
from ..calibration.sources.choose import source_of
from ..errors import MismatchError, OutputError, StreamstatsError, UsageError
from ..quantization import Quantization
from ..storage.files import make_folders, move_away, moved_away, remove_folder
from ..storage.names import layer_path
from .database import Database
from .errors import ConflictError, FullError, NotFoundError
from .messages import OWN, STORE_NAME, IngestView, StoreView
from .metrics import Metrics

TOGETHER = 64 * 2**20
"""Bytes of a layer that are appended at once, or one request that is larger."""
LONGEST_LAYER = 200
DEEPEST = 16
IDLE_SECONDS = 60.0
"""After which the thread of a store ends, until there is something for it again."""
GROUP = "zarr.json"

log = logging.getLogger("streamstats.service")


@dataclass(frozen=True, eq=False)
class Activations:
    """What a client sends for a layer: `samples` on axis 0, the `key` and the `digest` of the request."""

    layer: str
    key: str
    digest: str
    samples: npt.NDArray[Any]
    channel_axis: int = -1
    quantization: Quantization | None = None


@dataclass(eq=False)
class _Waiting:
    activations: Activations
    answer: Future[IngestView] = field(default_factory=Future)


class Stores:
    """The stores in `folder`: at most `stores` of them, of at most `layers` each."""

    def __init__(self, database: Database, folder: Path, metrics: Metrics, *, stores: int, layers: int) -> None:
        self._database, self.folder, self._metrics = database, folder, metrics
        self._most_stores, self._most_layers = stores, layers
        self._lock = threading.Lock()
        self._lanes: dict[str, _Lane] = {}
        self._deleting: set[str] = set()
        self._closed = False
        make_folders([folder])
        for each in moved_away(folder):  # while they were deleted, the service was killed
            remove_folder(each)

    def append(self, store: str, activations: Activations) -> Future[IngestView]:
        """Append to a layer of `store`, which is made at the first call; done when the rows are on the disk.

        What the future raises: `MismatchError` and `UsageError` for what the layer cannot take, `ConflictError` for a
        key that came with something else before, `OutputError`, `FullError`.
        """
        layer, samples = activations.layer, activations.samples
        layer_path(Path(), layer)  # which is what its results will be called
        if len(layer) > LONGEST_LAYER or layer.count("/") > DEEPEST:
            raise UsageError(f"the layer's name is too long; expected at most {LONGEST_LAYER} characters")
        check_values(layer, samples.dtype, samples.shape, "convert or reshape the samples")
        if 0 in samples.shape:
            raise UsageError(f"there are no samples in an array of shape {samples.shape}; expected at least one value")
        waiting = _Waiting(activations)
        with self._lock:
            if self._closed:
                raise FullError("the service is being stopped; send it again later")
            if store in self._deleting:
                raise FullError(f"store {store} is being deleted; send it again later")
            self._lane(store).put(waiting)
        return waiting.answer

    def _lane(self, name: str) -> _Lane:
        if not re.fullmatch(STORE_NAME, name):
            raise UsageError(f"the store's name is {name[:80]!r}; expected up to 64 letters, digits, '.', '_' and '-'")
        if name not in self._lanes:
            known = {*self.names(), *self._lanes}
            if name not in known and len(known) >= self._most_stores:
                raise FullError(f"there are {self._most_stores} stores, which is the most; delete one")
            self._lanes[name] = _Lane(self, name, self._database, self._metrics, self._most_layers)
        return self._lanes[name]

    def end_if_idle(self, lane: _Lane) -> bool:
        """Whether nothing waits for `lane`, which then is no more."""
        with self._lock:
            if not lane.is_idle():
                return False
            if self._lanes.get(lane.store) is lane:
                del self._lanes[lane.store]
            return True

    def names(self) -> list[str]:
        """The stores that there are."""
        return sorted(each.name for each in self.folder.iterdir() if (each / GROUP).exists())

    def path(self, name: str) -> Path:
        """Where a store is. Raises `NotFoundError`."""
        if not re.fullmatch(STORE_NAME, name) or not (self.folder / name / GROUP).exists():
            raise NotFoundError(f"there is no store {name[:80]}; send activations for it first")
        return self.folder / name

    def view(self, name: str) -> StoreView:
        """The rows of each layer. Raises `NotFoundError`."""
        path = self.path(name)
        found = {each: layer.rows for each in sorted(_layers(path)) if (layer := stored_layer(path, each)) is not None}
        return StoreView(name=name, source=OWN + name, layers=found, rows=sum(found.values()))

    def delete(self, name: str) -> None:
        """Take a store away, with its keys. Raises `NotFoundError`."""
        path = self.path(name)
        with self._lock:
            lane = self._lanes.pop(name, None)
            self._deleting.add(name)
        try:
            if lane is not None:
                lane.close()
            gone = move_away(path)  # first: keys without rows are taken back, rows without keys would count again
            with self._database.writing() as connection:
                connection.execute("DELETE FROM ingests WHERE store = ?", (name,))
            remove_folder(gone)
        finally:
            with self._lock:
                self._deleting.discard(name)
        log.info("store deleted", extra={"store": name})

    def close(self) -> None:
        """Take nothing more, and wait for what is under way."""
        with self._lock:
            self._closed = True
            lanes = list(self._lanes.values())
        for lane in lanes:
            lane.close()


class _Lane:
    """The one thread that writes a store."""

    def __init__(self, stores: Stores, store: str, database: Database, metrics: Metrics, layers: int) -> None:
        self._stores, self._path, self.store = stores, stores.folder / store, store
        self._database, self._metrics = database, metrics
        self._most_layers = layers
        self._waiting: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._recorder: Recorder | None = None
        self._layers: set[str] = set()
        self._sure: set[str] = set()
        self._thread = threading.Thread(target=self._work, name=f"store {store}", daemon=True)
        self._thread.start()

    def put(self, waiting: _Waiting) -> None:
        self._waiting.put(waiting)

    def is_idle(self) -> bool:
        return self._waiting.empty()

    def close(self) -> None:
        self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        """Append what waits until None comes, each time all that has come for a layer in the meantime."""
        ending = False
        while not ending:
            try:
                first = self._waiting.get(timeout=IDLE_SECONDS)
            except queue.Empty:
                if self._stores.end_if_idle(self):
                    return
                continue
            together = [first] if first is not None else []
            while not self._waiting.empty():
                together += [each] if (each := self._waiting.get()) is not None else []
                ending = ending or each is None
            ending = ending or first is None
            layers: dict[str, list[_Waiting]] = {}
            for each in together:
                layers.setdefault(each.activations.layer, []).append(each)
            for layer, waiting in layers.items():
                for batch in _batches(waiting):
                    self._take(layer, batch)

    def _take(self, layer: str, batch: Sequence[_Waiting]) -> None:
        try:
            self._append(layer, batch)
        except StreamstatsError as error:
            self._fail(layer, batch, error)
        except Exception as error:
            log.exception("cannot append", extra={"store": self.store, "layer": layer})
            self._fail(layer, batch, OutputError(f"cannot append to layer {layer}: {type(error).__name__}"))

    def _fail(self, layer: str, batch: Sequence[_Waiting], error: StreamstatsError) -> None:
        """Nothing is known of `layer` any more: it is looked at again before something is appended to it."""
        self._sure.discard(layer)
        self._recorder = None
        for each in batch:
            if not each.answer.done():
                each.answer.set_exception(error)

    def _append(self, layer: str, batch: Sequence[_Waiting]) -> None:
        recorder = self._opened(layer)
        fresh: list[tuple[_Waiting, int, int]] = []
        given: dict[str, IngestView] = {}
        for each in batch:
            sent = each.activations
            try:
                found = given.get(sent.key) or self._given(sent)
                if found is not None:
                    self._answer_again(each, found, fresh)
                    continue
                start = recorder.next_row(
                    layer, sent.samples, channel_axis=sent.channel_axis, quantization=sent.quantization
                )
            except (MismatchError, UsageError, ConflictError) as error:
                each.answer.set_exception(error)
                continue
            start = fresh[-1][2] if fresh else start
            stop = start + len(sent.samples)
            fresh.append((each, start, stop))
            given[sent.key] = IngestView(store=self.store, layer=layer, start=start, stop=stop, repeated=True)
        if fresh:
            self._write(recorder, layer, fresh)

    def _answer_again(self, waiting: _Waiting, found: IngestView, fresh: Sequence[tuple[_Waiting, int, int]]) -> None:
        """A key that came before; where that was just now, the answer is that of the first."""
        for each, _, _ in fresh:
            if each.activations.key == waiting.activations.key:
                if each.activations.digest != waiting.activations.digest:
                    raise _other_content(waiting.activations)
                each.answer.add_done_callback(lambda done: _pass_on(done, waiting.answer))
                return
        waiting.answer.set_result(found)

    def _write(self, recorder: Recorder, layer: str, fresh: Sequence[tuple[_Waiting, int, int]]) -> None:
        rows = [(self.store, layer, each.activations.key, each.activations.digest, a, b) for each, a, b in fresh]
        with self._database.writing() as connection:
            connection.executemany("INSERT INTO ingests VALUES (?, ?, ?, ?, ?, ?)", rows)
        first = fresh[0][0].activations
        blocks = [each.activations.samples for each, _, _ in fresh]
        samples = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
        recorder.append(layer, samples, channel_axis=first.channel_axis, quantization=first.quantization)
        self._metrics.ingested_rows.inc(len(samples))
        self._metrics.ingested_bytes.inc(samples.nbytes)
        for each, start, stop in fresh:
            each.answer.set_result(IngestView(store=self.store, layer=layer, start=start, stop=stop, repeated=False))

    def _given(self, sent: Activations) -> IngestView | None:
        """What was answered to this key before. Raises `ConflictError` where it came with something else."""
        row = self._database.one(
            "SELECT * FROM ingests WHERE store = ? AND layer = ? AND idempotency_key = ?",
            (self.store, sent.layer, sent.key),
        )
        if row is None:
            return None
        if row["digest"] != sent.digest:
            raise _other_content(sent)
        return IngestView(store=self.store, layer=sent.layer, start=row["start"], stop=row["stop"], repeated=True)

    def _opened(self, layer: str) -> Recorder:
        """The recorder, after the keys of `layer` were compared with its rows, once, and after each failure."""
        if self._recorder is None:
            self._recorder = Recorder(self._path, buffered=False)
            self._layers |= _layers(self._path)
        if layer not in self._sure:
            stored = stored_layer(self._path, layer)
            if layer not in self._layers and len(self._layers) >= self._most_layers:
                raise FullError(f"store {self.store} has {self._most_layers} layers, which is the most")
            rows = 0 if stored is None else stored.rows
            with self._database.writing() as connection:
                connection.execute(
                    "DELETE FROM ingests WHERE store = ? AND layer = ? AND stop > ?", (self.store, layer, rows)
                )
            self._layers.add(layer)
            self._sure.add(layer)
        return self._recorder


def _layers(store: Path) -> set[str]:
    """The layers that a store has, none where the first activations are on their way."""
    try:
        return set(source_of(store).arrays())
    except UsageError:
        return set()


def _batches(waiting: Sequence[_Waiting]) -> list[list[_Waiting]]:
    """`waiting` in order, in parts of at most TOGETHER bytes or of one."""
    found: list[list[_Waiting]] = []
    size = 0
    for each in waiting:
        size += each.activations.samples.nbytes
        if not found or size > TOGETHER:
            found.append([])
            size = each.activations.samples.nbytes
        found[-1].append(each)
    return found


def _other_content(sent: Activations) -> ConflictError:
    return ConflictError(f"the idempotency key {sent.key} was given with other activations; take a new one for these")


def _pass_on(done: Future[IngestView], answer: Future[IngestView]) -> None:
    error = done.exception()
    if error is not None:
        answer.set_exception(error)
    else:
        answer.set_result(done.result().model_copy(update={"repeated": True}))
