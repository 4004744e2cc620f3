"""How fast this machine decodes and counts: a small store, reduced by one thread and by all, as runs do it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from ..calibration.selection import LayerRule
from ..calibration.trial import CHUNKS, COMPRESSORS, trial_values, write_trial
from ..jobs.meter import Meter
from ..jobs.run import reduce

IN_MEMORY = "in memory"
"""The values of a layer that nobody needs to read or decode."""


@dataclass(frozen=True)
class Rate:
    """Bytes of decoded float32 that are counted per second, by one thread and by all."""

    one_thread: float
    all_threads: float | None


def trial(threads: int) -> dict[str, Rate]:
    """How fast each of COMPRESSORS is counted, and values in memory. Compiles what that needs.

    Raises whatever keeps a run from counting here.
    """
    with TemporaryDirectory(prefix="streamstats-") as folder:
        store = Path(folder) / "store.zarr"
        size = write_trial(store)
        reduce(store, threads=threads)  # compiles, and reads the files into memory

        def rate(layer: str, threads: int) -> float:
            return size / _seconds(lambda: reduce(store, layers=[LayerRule(layer)], threads=threads))

        found = {name: Rate(rate(name, 1), rate(name, threads) if threads > 1 else None) for name in COMPRESSORS}
    return found | {IN_MEMORY: Rate(size / _seconds(_count_in_memory), None)}


def _count_in_memory() -> None:
    values, meter = trial_values(), Meter()
    for _ in range(CHUNKS):
        meter.append("layer", values)


def _seconds(act: Callable[[], object]) -> float:
    """The better of two times."""
    found = []
    for _ in range(2):
        started = time.perf_counter()
        act()
        found.append(time.perf_counter() - started)
    return min(found)
