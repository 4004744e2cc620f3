"""Warming: jobs over a few samples made for it, which compile the loops that jobs over such values use.

A loop is compiled when it is first used on a machine, and cached in a folder of the user. These jobs go the usual way,
so they find the loops that others will: for each dtype, they count every statistic, alone and with all others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ..calibration.recorder import Recorder
from ..calibration.selection import LayerRule, select_layers
from ..compiled import cache
from ..errors import OutputError, UsageError
from ..layouts import Geometry, Kernel
from ..statistics.kinds import kinds_of, optional, refusals
from .run import reduce

DTYPES = ("float32", "int8")
"""What most stores hold."""
CONVOLUTION = Kernel((3, 3), Geometry(pads=(1, 1, 1, 1)))
LAYERS = {
    "last": ((4, 6, 6, 16), -1, CONVOLUTION),
    "first": ((4, 16, 6, 6), 1, CONVOLUTION),
    "matrix": ((64, 48), -1, Kernel(())),
}
"""Name → (shape, channel axis, kernel) of what is counted."""


@dataclass(frozen=True)
class Warmed:
    """How many loops were compiled, in how many seconds, and the folder that caches them."""

    loops: int
    seconds: float
    folder: Path


def warm(dtypes: Sequence[str] = DTYPES, say: Callable[[str], None] = lambda _: None) -> Warmed:
    """Compile what counting values of these `dtypes` needs; `say` is told of each when it is done.

    Raises `UsageError` for a dtype that a layer cannot have, and `OutputError` if the cache cannot be written.
    """
    chosen = [_dtype(name) for name in dtypes]
    try:
        folder = cache.writable_folder()
    except (OSError, RuntimeError) as error:
        raise OutputError(
            f"the cache of compiled loops cannot be written: {error}; set XDG_CACHE_HOME to a folder that can"
        ) from error
    begun, before = time.monotonic(), cache.kept(folder)
    for dtype in chosen:
        since, had = time.monotonic(), cache.kept(folder)
        _count(dtype)
        say(f"{dtype.name}: {len(cache.kept(folder) - had)} loops compiled in {time.monotonic() - since:.1f} s")
    return Warmed(len(cache.kept(folder) - before), time.monotonic() - begun, folder)


def _dtype(name: str) -> np.dtype[Any]:
    try:
        return np.dtype(name)
    except TypeError as error:
        raise UsageError(f"there is no dtype {name!r}; expected one such as {' or '.join(DTYPES)}") from error


def _count(dtype: np.dtype[Any]) -> None:
    with TemporaryDirectory(prefix="streamstats-") as folder:
        store = Path(folder) / "store.zarr"
        with Recorder(store) as recorder:
            for name, (shape, axis, kernel) in LAYERS.items():
                values = (np.arange(np.prod(shape)) % 7).reshape(shape).astype(dtype)
                recorder.append(name, values, channel_axis=axis, kernel=kernel)
        spaces = {layer.name: (layer.space, layer.quantization) for layer in select_layers(store, ()).layers}
        for wanted in ([], *([name] for name in optional()), list(optional())):
            rules = []
            for layer, of in spaces.items():
                refused = refusals(kinds_of(wanted), *of)
                rules.append(LayerRule(layer, statistics=tuple(name for name in wanted if name not in refused)))
            reduce(store, layers=rules)
