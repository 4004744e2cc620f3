"""Stores that the service owns: clients append activations to their layers, and each request counts once."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

from ..calibration.layer import check_values
from ..calibration.recorder import stored_layer
from ..errors import DataError, UsageError
from ..storage.files import make_folders, move_away, moved_away, remove_folder
from ..storage.names import V3_METADATA, layer_path
from .batches import Batches
from .database import Database
from .errors import BusyError, ConflictError, DamagedError, FullError, NotFoundError
from .faults import RETRY_SECONDS, Faults
from .journal import Journal, Keys, identify
from .lanes import Activations, Lane, Removal, Waiting, settle_layer, stored_layers
from .messages import OWN, STORE_NAME, BatchView, IngestView, StoreView
from .metrics import Metrics

LONGEST_LAYER = 200
DEEPEST = 16

log = logging.getLogger("streamstats.service")


class Stores:
    """The stores in `folder`: at most `stores` of them, of at most `layers` each."""

    def __init__(
        self, database: Database, folder: Path, metrics: Metrics, faults: Faults, *, stores: int, layers: int
    ) -> None:
        self._database, self.folder, self._metrics, self._faults = database, folder, metrics, faults
        self.batches = Batches(database)
        self._most_stores, self._most_layers = stores, layers
        self._lock, self._withdrawing = threading.Lock(), threading.Lock()
        self._lanes: dict[str, Lane] = {}
        self._deleting: set[str] = set()
        self._held: Counter[str] = Counter()
        self._settled = self._closed = False
        make_folders([folder])

    def start(self) -> None:
        """Make the rows of every layer agree with their keys, after a kill or in a copy; then activations are accepted.

        What fails is tried again in the background.
        """
        with self._faults.noted("stores"):
            self._settle_all()
            return
        threading.Thread(target=self._retry, name="stores", daemon=True).start()

    def _retry(self) -> None:
        while not self._settled and not self._closed:
            time.sleep(RETRY_SECONDS)
            with self._faults.noted("stores"):
                self._settle_all()

    def _settle_all(self) -> None:
        """Raises `OutputError`, and `DamagedError` for a damaged database."""
        for each in moved_away(self.folder):  # the service was killed while it deleted them
            remove_folder(each)
        for name in self.names():
            with _logged(name):
                path, keys = self.folder / name, Keys(self._database, name)
                identify(keys, path)
                for layer in sorted(stored_layers(path) | keys.layers()):
                    with _logged(name, layer):
                        settle_layer(path, keys, layer)
        self._settled = True

    def append(self, store: str, activations: Activations) -> Future[IngestView]:
        """Append to a layer of `store`, which the first call creates; done when the rows are on the disk.

        Raises `UsageError` for activations that cannot be a layer. What the future raises: `MismatchError` and
        `UsageError` for activations that do not fit the layer, `ConflictError` for a key that came with other content
        before, `OutputError`, `FullError`.
        """
        check_activations(activations)
        waiting = Waiting(activations)
        with self._lock:
            self._check_open(store)
            self._lane(store).put(waiting)
        return waiting.answer

    def _lane(self, name: str) -> Lane:
        if not STORE_NAME.fits(name):
            raise UsageError(f"the store's name is {name[:80]!r}; expected {STORE_NAME.words}")
        if name not in self._lanes:
            known = {*self.names(), *self._lanes}
            if name not in known and len(known) >= self._most_stores:
                raise FullError(f"there are {self._most_stores:,} stores, the limit of this service; delete one")
            keys = Keys(self._database, name)
            lane = Lane(self.folder / name, keys, self._metrics, self._faults, self._most_layers, self._end_if_idle)
            self._lanes[name] = lane
        return self._lanes[name]

    def _end_if_idle(self, lane: Lane) -> bool:
        """Whether no request waits for `lane`; then it is no longer used."""
        with self._lock:
            if not lane.is_idle():
                return False
            if self._lanes.get(lane.store) is lane:
                del self._lanes[lane.store]
            return True

    def names(self) -> list[str]:
        """The names of the stores, in order."""
        visible = (each for each in self.folder.iterdir() if not each.name.startswith("."))
        return sorted(each.name for each in visible if (each / V3_METADATA).exists())

    def path(self, name: str) -> Path:
        """The folder of a store. Raises `NotFoundError`."""
        if not STORE_NAME.fits(name) or not (self.folder / name / V3_METADATA).exists():
            raise NotFoundError(f"there is no store {name[:80]}; send activations to create it")
        return self.folder / name

    def view(self, name: str) -> StoreView:
        """Whose it is, and the rows of each layer. Raises `NotFoundError`."""
        path = self.path(name)
        stored = {each: stored_layer(path, each) for each in sorted(stored_layers(path))}
        rows = {each: layer.rows for each, layer in stored.items() if layer is not None}
        owner, appended = self.owner(name)
        withdrawn = self.batches.withdrawn(name)
        return StoreView(
            name=name,
            source=OWN + name,
            layers=rows,
            rows=sum(rows.values()),
            owner=owner,
            appended=appended,
            withdrawn={layer: found.document() for layer, found in withdrawn.items()},
        )

    def owner(self, name: str) -> tuple[str, float]:
        """(whose a store is, when activations were last appended); that of an older service is nobody's."""
        row = self._database.one("SELECT owner, appended FROM stores WHERE name = ?", (name,))
        if row is None:
            return "", max(each.stat().st_mtime for each in self.path(name).rglob(V3_METADATA))
        return row["owner"], row["appended"]

    def identity(self, name: str) -> str:
        """What tells a store from others that had or will have its name, "" if it is not known."""
        return Keys(self._database, name).identity()

    def withdraw(self, name: str, batch: BatchView) -> None:
        """Note that `batch` does not count, in the store and then in the database.

        Raises `FullError`, `OutputError`.
        """
        at = time.time()
        with self.held(name), self._withdrawing:
            Journal(self.path(name), batch.layer).withdraw(batch.key, at)
            Keys(self._database, name).withdraw(batch.layer, {batch.key: at})

    @contextmanager
    def held(self, name: str) -> Iterator[None]:
        """Nothing of the store is deleted meanwhile. Raises `FullError` if that is being done."""
        with self._lock:
            self._check_open(name)
            self._held[name] += 1
        try:
            yield
        finally:
            with self._lock:
                self._held[name] -= 1

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """Nobody appends to the store, deletes from it, or submits a job on it, meanwhile. Raises `ConflictError`."""
        with self._lock:
            if name in self._deleting:
                raise ConflictError(f"store {name} is being deleted already, or a layer of it; look again later")
            if self._held[name]:
                raise ConflictError(f"another request uses the store {name}; look again later")
            self._deleting.add(name)
        try:
            yield
        finally:
            with self._lock:
                self._deleting.discard(name)

    def delete_layer(self, name: str, layer: str, check: Callable[[], None]) -> None:
        """Delete a layer and its idempotency keys. `check` may refuse it, when nothing arrives any more.

        Raises `NotFoundError`, `ConflictError`, and what `check` raises.
        """
        self.path(name)
        removal = Removal(layer)
        with self._alone(name):
            check()
            with self._lock:
                self._lane(name).put(removal)
            removal.answer.result()

    def _check_open(self, name: str) -> None:
        if self._closed:
            raise FullError("the service is shutting down; send the request again later")
        if not self._settled:
            raise FullError("the service is starting; send the request again later")
        if name in self._deleting:
            raise FullError(f"store {name} is being deleted; send the request again later")

    def delete(self, name: str, check: Callable[[], None]) -> None:
        """Delete a store and its idempotency keys. `check` may refuse it, when all that had arrived is appended.

        Raises `NotFoundError`, `ConflictError`, and what `check` raises.
        """
        with self._alone(name):
            path = self.path(name)
            with self._lock:
                lane = self._lanes.pop(name, None)
            if lane is not None:
                lane.close()
            check()
            gone = move_away(path)  # first: keys without rows are taken back, rows without keys would count again
            Keys(self._database, name).remove()
            remove_folder(gone)
        log.info("store deleted", extra={"store": name})

    def close(self) -> None:
        """Accept nothing more, and wait until what was accepted is written."""
        with self._lock:
            self._closed = True
            lanes = list(self._lanes.values())
        for lane in lanes:
            lane.close()


@contextmanager
def _logged(store: str, layer: str | None = None) -> Iterator[None]:
    """Log why a layer, or a store, cannot be settled; whoever appends to it is told. Raises what the database does."""
    try:
        yield
    except (DamagedError, BusyError):
        raise
    except (UsageError, DataError, ConflictError) as error:
        log.error("%s", error, extra={"store": store, "layer": layer})


def check_activations(activations: Activations) -> None:
    """Raise `UsageError` for a name that cannot be a layer's, and for values that cannot be samples."""
    layer, samples = activations.layer, activations.samples
    layer_path(Path(), layer)  # under which its results are stored
    if len(layer) > LONGEST_LAYER:
        raise UsageError(f"the layer's name has {len(layer):,} characters; expected at most {LONGEST_LAYER}")
    if layer.count("/") > DEEPEST:
        raise UsageError(f"the layer's name has {layer.count('/') + 1} parts; expected at most {DEEPEST + 1}")
    check_values(layer, samples.dtype, samples.shape, "convert or reshape the samples")
    if 0 in samples.shape:
        raise UsageError(f"an array of shape {samples.shape} has no samples; expected at least one value")
