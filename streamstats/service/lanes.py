"""Lanes: one thread for each store that clients append to, which writes what arrived and then answers.

The law: an idempotency key counts if, and only if, the store has its rows. A journal in the store first notes which
rows each key stands for; then all waiting rows of a layer are written and committed together; then the database, where
keys are looked up, gets them; only then are the requests acknowledged. After a kill or a failure, and in a copy of the
store, `journal.settle` makes the three agree.

A request that is refused, or fails, leaves no layer without rows, and no store without layers, which it would own.
"""

from __future__ import annotations

import logging
import queue
import threading
import uuid
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
from ..errors import MismatchError, OutputError, StreamstatsError, UsageError, counted
from ..layouts import Kernel
from ..quantization import Quantization
from ..storage.files import move_away, remove_folder
from ..storage.names import V3_METADATA, check_recorded_name
from .errors import ConflictError, FullError, NotFoundError
from .faults import Faults
from .journal import Journal, Keys, Noted, identify, settle
from .messages import IngestView
from .metrics import Metrics

TOGETHER = 64 * 2**20
"""Bytes of a layer that are appended at once; a larger request is appended alone."""
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

    @property
    def noted(self) -> Noted:
        return Noted(self.sent.key, self.sent.digest, self.start, self.stop, self.sent.sender)

    def answer(self, store: str) -> None:
        """Acknowledge the request."""
        view = IngestView(store=store, layer=self.sent.layer, start=self.start, stop=self.stop, repeated=False)
        self.waiting.answer.set_result(view)

    def repeat(self, waiting: Waiting) -> None:
        """Give `waiting`, which has the same key, the same answer. Raises `ConflictError` if the content differs."""
        _check_content(waiting.activations, self.sent.digest)
        self.waiting.answer.add_done_callback(lambda done: _pass_on(done, waiting.answer))


class Lane:
    """The one thread that writes the store at `path`, of at most `layers` layers.

    After a while without requests it asks `end_if_idle` whether it may end.
    """

    def __init__(
        self,
        path: Path,
        keys: Keys,
        metrics: Metrics,
        faults: Faults,
        layers: int,
        end_if_idle: Callable[[Lane], bool],
    ) -> None:
        self.store = path.name
        self._path, self._keys, self._metrics, self._faults = path, keys, metrics, faults
        self._most_layers, self._end_if_idle = layers, end_if_idle
        self._waiting: queue.SimpleQueue[Waiting | Removal | None] = queue.SimpleQueue()
        self._ends = False
        self._recorder: Recorder | None = None
        self._is_new = False  # the store, of which no request has stored rows yet
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
        """Append what arrives until the lane ends, whatever is raised on the way."""
        while not self._ends:
            with self._faults.noted(f"appending to store {self.store}"):
                self._take_turn()
        self._drop_recorder()

    def _take_turn(self) -> None:
        """Append together what has arrived."""
        try:
            together = [self._waiting.get(timeout=IDLE_SECONDS)]
        except queue.Empty:
            self._drop_recorder()  # before another lane can be made for the store
            self._ends = self._end_if_idle(self)
            return
        while not self._waiting.empty():
            together.append(self._waiting.get())
        self._ends = None in together  # first: whatever is raised below
        requests = [each for each in together if isinstance(each, Waiting)]
        removals = [each for each in together if isinstance(each, Removal)]
        try:
            for batch in _batches(requests):
                self._take_all(batch)
            for removal in removals:
                self._remove(removal)
        except Exception as error:
            failed = OutputError(f"cannot change store {self.store}: {type(error).__name__}")
            self._fail_all([*requests, *removals], failed)
            raise

    def _take_all(self, batch: Sequence[Waiting]) -> None:
        """Append `batch` together, once there is a store: it belongs to whoever's activations are the first in it."""
        while batch and not self._exists:
            self._take(batch[:1])
            batch = batch[1:]
        if batch:
            self._take(batch)

    @property
    def _exists(self) -> bool:
        return (self._path / V3_METADATA).exists()

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
        self._let_go(layer)
        try:
            stored = layer in stored_layers(self._path)
            if not stored and layer not in self._keys.layers():  # a deletion that failed halfway can be repeated
                raise NotFoundError(f"store {self.store} has no layer {layer}")
            self._delete_layer(layer, stored=stored)
        except StreamstatsError as error:
            removal.answer.set_exception(error)
        else:
            removal.answer.set_result(None)

    def _delete_layer(self, layer: str, *, stored: bool = True) -> None:
        gone = move_layer_away(self._path, layer, self._path.parent) if stored else None
        self._keys.remove(layer)
        Journal(self._path, layer).remove()
        if gone is not None:
            remove_folder(gone)

    def _fail(self, layer: str, batch: Sequence[Waiting], error: StreamstatsError) -> None:
        """Answer with `error`."""
        self._leave_nothing(layer)
        self._fail_all(batch, error)

    def _leave_nothing(self, layer: str) -> None:
        """Remove what requests that stored nothing have made: a new store, or else the layer, if it has no rows."""
        self._let_go(layer)
        try:
            if self._is_new:
                self._delete_store()
            elif (stored := stored_layer(self._path, layer)) is not None and not stored.rows:
                self._delete_layer(layer)
        except (StreamstatsError, OSError) as error:  # the requests fail for a reason that matters more
            log.warning("%s", error, extra={"store": self.store, "layer": layer})

    def _delete_store(self) -> None:
        gone = move_away(self._path) if self._path.exists() else None
        self._keys.remove()
        if gone is not None:
            remove_folder(gone)

    def _let_go(self, layer: str) -> None:
        """Of the store, in which others may now change the layer: it is read again before the next append."""
        self._drop_recorder()
        self._sure.discard(layer)
        self._layers.discard(layer)

    @staticmethod
    def _fail_all(requests: Sequence[Waiting | Removal], error: StreamstatsError) -> None:
        for each in requests:
            if not each.answer.done():
                each.answer.set_exception(error)

    def _drop_recorder(self) -> None:
        """Let go of the store; nothing waits in a recorder that does not buffer."""
        if self._recorder is not None:
            with suppress(StreamstatsError, OSError):
                self._recorder.close()
        self._recorder = None

    def _append(self, layer: str, batch: Sequence[Waiting]) -> None:
        recorder = self._opened(layer, batch[0].activations.sender)
        fresh: dict[str, _Fresh] = {}
        refused: list[tuple[Waiting, StreamstatsError]] = []
        for waiting in batch:
            try:
                self._place(recorder, waiting, fresh)
            except (MismatchError, UsageError, ConflictError) as error:
                refused.append((waiting, error))
        if refused and not fresh:
            self._leave_nothing(layer)
        for waiting, reason in refused:
            waiting.answer.set_exception(reason)
        if fresh:
            self._write(recorder, list(fresh.values()))

    def _place(self, recorder: Recorder, waiting: Waiting, fresh: dict[str, _Fresh]) -> None:
        """Answer a key that is known; give a new key the rows after those of `fresh`, and add it there."""
        sent = waiting.activations
        if sent.key in fresh:
            fresh[sent.key].repeat(waiting)
        elif (known := self._keys.known(sent.layer, sent.key)) is not None:
            _check_content(sent, known.digest)
            view = IngestView(store=self.store, layer=sent.layer, start=known.start, stop=known.stop, repeated=True)
            waiting.answer.set_result(view)
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
        first = fresh[0].sent
        noted = [each.noted for each in fresh]
        Journal(self._path, first.layer).note(noted)
        blocks = [each.sent.samples for each in fresh]
        samples = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
        recorder.append(
            first.layer,
            samples,
            channel_axis=first.channel_axis,
            quantization=first.quantization,
            kernel=first.kernel,
        )
        self._is_new = False
        self._keys.add(first.layer, noted)
        self._metrics.ingested_rows.inc(len(samples))
        self._metrics.ingested_bytes.inc(samples.nbytes)
        for each in fresh:
            each.answer(self.store)

    def _opened(self, layer: str, sender: str) -> Recorder:
        """The recorder, once the keys of `layer` agree with its rows: at first, and after each failure.

        A store that does not exist becomes that of `sender`.
        """
        if self._recorder is None:
            if not self._exists:
                self._is_new = True
                self._keys.claim(sender, uuid.uuid4().hex)
            self._recorder = Recorder(self._path, buffered=False)
            identify(self._keys, self._path)
            self._layers |= stored_layers(self._path)
        if layer not in self._sure:
            if layer not in self._layers and len(self._layers) >= self._most_layers:
                raise FullError(
                    f"store {self.store} has {self._most_layers:,} layers, the limit of this service; "
                    "append to another store"
                )
            settle_layer(self._path, self._keys, layer, self._recorder)
            self._layers.add(layer)
            self._sure.add(layer)
        return self._recorder


def settle_layer(store: Path, keys: Keys, layer: str, recorder: Recorder | None = None) -> None:
    """Make the keys of `layer` agree with its rows. Rows at its end that no key stands for are taken back.

    They are in no key if the folder was copied file by file while the service appended to it. Their requests may be
    sent again, and would count twice. Raises `ConflictError` if no row has a key: none of them is known to be unwanted.
    """
    stored = stored_layer(store, layer)
    rows = 0 if stored is None else stored.rows
    journal = Journal(store, layer)
    if not rows:  # it was deleted, or never written
        keys.remove(layer)
        journal.remove()
        return
    settled = settle(keys, journal, layer, rows)
    if withdrawn := journal.withdrawn():
        keys.withdraw(layer, journal.keep_withdrawn({each.key for each in keys.since(layer, 0)}))
    if (known := keys.withdrawn(layer)).keys() != withdrawn.keys():
        journal.withdraw(known)
    if settled == rows:
        return
    said = {"store": store.name, "layer": layer}
    if not settled:
        raise ConflictError(
            f"the {counted(rows, 'row')} of layer {layer} in store {store.name} have no idempotency keys, neither in "
            "the database nor in the store, so activations that are sent again would count twice; restore the "
            "database, or append to another store"
        )
    log.warning("rows %s:%s have no idempotency key and are taken back; send them again", settled, rows, extra=said)
    if recorder is not None:
        recorder.take_back(layer, settled)
        return
    with Recorder(store, buffered=False) as own:
        own.take_back(layer, settled)


def stored_layers(store: Path) -> set[str]:
    """The layers of a store; none while its first activations are being written.

    An older version took names that begin with `.`, beside its own files. What has them is not counted as a layer.
    """
    try:
        return {name for name in source_of(store).find().arrays if _is_recorded(name)}
    except UsageError:
        return set()


def _is_recorded(name: str) -> bool:
    with suppress(UsageError):
        return bool(check_recorded_name(name))
    return False


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
        raise ConflictError(
            f"the idempotency key {sent.key} was used with other activations, or with another channel axis, "
            "quantisation or geometry for them; repeat that request unchanged, or use a new key"
        )


def _pass_on(done: Future[IngestView], answer: Future[IngestView]) -> None:
    error = done.exception()
    if error is not None:
        answer.set_exception(error)
    else:
        answer.set_result(done.result().model_copy(update={"repeated": True}))
