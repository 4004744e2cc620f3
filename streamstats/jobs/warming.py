"""Warming: jobs over a few samples made for it, which compile the loops that jobs over such values use.

A loop is compiled when it is first used on a machine, and cached in a folder of the user. These jobs go the usual way,
so they find the loops that others will: for each dtype, they count every statistic, alone and with all others. The
loops that decode chunks and read files are used on nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ..calibration.encoding import fused
from ..calibration.recorder import Recorder
from ..calibration.selection import LayerRule, select_layers
from ..calibration.sources.gathering import can_gather, gather
from ..compiled import cache
from ..errors import MismatchError, OutputError, UsageError, counted, one_of
from ..layouts import Geometry, Kernel
from ..statistics.kinds import ALWAYS, kinds_of, optional, refusals
from ..statistics.statistic import SUPPORTED_DTYPES, checked_dtype
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
    """Compile what counting values of these `dtypes` needs; `say` is told what each statistic took.

    Raises `UsageError` for a dtype that a layer cannot have, and `OutputError` if the cache cannot be written.
    """
    chosen = [_dtype(name) for name in dtypes]
    try:
        folder = cache.writable_folder()
    except (OSError, RuntimeError) as error:
        raise OutputError(
            f"the cache of compiled loops cannot be written: {error}; set XDG_CACHE_HOME to a folder that can"
        ) from error
    say(f"compiling the loops for {' and '.join(dtype.name for dtype in chosen)} that are not yet in {folder}")
    begun, before = time.monotonic(), cache.kept(folder)
    for what, use in _uses(chosen):
        since, had = time.monotonic(), cache.kept(folder)
        use()
        compiled = len(cache.kept(folder) - had)
        if compiled:
            say(f"{what}: {counted(compiled, 'loop')} compiled in {time.monotonic() - since:.1f} s")
    return Warmed(len(cache.kept(folder) - before), time.monotonic() - begun, folder)


def _dtype(name: str) -> np.dtype[Any]:
    try:
        return checked_dtype(name)
    except (MismatchError, TypeError, ValueError, SyntaxError) as error:  # numpy evaluates lists such as f4,i1
        raise UsageError(f"no layer has the dtype {name!r}; {one_of(name, map(str, SUPPORTED_DTYPES))}") from error


def _uses(dtypes: Sequence[np.dtype[Any]]) -> Iterator[tuple[str, Callable[[], object]]]:
    """(what uses loops, a call that uses them) for chunks and files, and for each dtype and statistic."""
    yield "chunks and files", _use_decoders
    for dtype in dtypes:
        with TemporaryDirectory(prefix="streamstats-") as folder:
            yield from _counts(Path(folder) / "store.zarr", dtype)


def _use_decoders() -> None:
    """Use the loops that decode chunks and read many small files: on nothing."""
    nothing = np.zeros(1, np.uint8)
    for compressor in fused.DEFINITIONS:
        fused.decode(compressor, nothing, nothing)
    if can_gather():
        gather(-1, [], nothing, 0)


def _counts(store: Path, dtype: np.dtype[Any]) -> Iterator[tuple[str, Callable[[], object]]]:
    """(what is counted, a call that counts it) of a new `store` of `dtype`: each statistic alone, then all."""
    with Recorder(store) as recorder:
        for name, (shape, axis, kernel) in LAYERS.items():
            values = (np.arange(np.prod(shape)) % 7).reshape(shape).astype(dtype)
            recorder.append(name, values, channel_axis=axis, kernel=kernel)
    spaces = {layer.name: (layer.space, layer.quantization) for layer in select_layers(store, ()).layers}
    asked = {" and ".join(ALWAYS): [], **{name: [name] for name in optional()}, "all statistics": list(optional())}
    for what, wanted in asked.items():
        rules = []
        for layer, of in spaces.items():
            refused = refusals(kinds_of(wanted), *of)
            rules.append(LayerRule(layer, statistics=tuple(name for name in wanted if name not in refused)))
        yield f"{dtype.name}, {what}", partial(reduce, store, layers=rules)
