"""Calibration stores to measure on: generated ones in every layout that is measured, and real ones as they
are.

Stores are written with plain zarr, block by block, in bounded memory. The values are like the inputs of a
layer after ReLU: about half of them zero, neighbours alike, few codes used in most channels. The same few
blocks are repeated down the rows, so all layouts of one dtype hold the same values; no codec sees further
than its chunk.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - numpy learns bfloat16
import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import BloscCodec, ZstdCodec

Array = npt.NDArray[Any]

HEIGHT, WIDTH, CHANNELS = 28, 28, 192
COARSE = 4
"""Pixels a side that share the slow part of an activation."""
STEP, ZERO_POINT = 0.0136, -128
BLOCK_ROWS = 64
DISTINCT_BLOCKS = 4
ROWS_A_CHUNK = {"int8": 64, "bfloat16": 32, "float32": 16}
"""Plain chunks: 9.6 MB decoded for all dtypes."""
ROWS_A_SHARD = 64
"""Shards of chunks of one sample: 9.6 MB (int8), 19.3 MB (bfloat16) and 38.5 MB (float32) decoded."""

COMPRESSORS = {
    ("int8", "raw"): None,
    ("int8", "zstd"): ZstdCodec(),
    ("int8", "lz4"): BloscCodec(cname="lz4", shuffle="noshuffle", typesize=1),
    ("bfloat16", "zstd"): ZstdCodec(),
    ("bfloat16", "lz4"): BloscCodec(cname="lz4", shuffle="bitshuffle", typesize=2),
    ("float32", "raw"): None,
    ("float32", "zstd"): ZstdCodec(),
    ("float32", "lz4"): BloscCodec(cname="lz4", shuffle="bitshuffle", typesize=4),
}


@dataclass(frozen=True)
class LayerSource:
    """An array of a store: where its channels are, its quantisation (step None: not quantised), and the taps of the
    layer, which pads so that its outputs have the extents of its inputs.
    """

    name: str
    channel_axis: int
    step: float | None = None
    zero_point: int = 0
    taps: tuple[int, ...] = ()


@dataclass(frozen=True)
class Source:
    """A store on the local disk, and the layers of it that are reduced."""

    path: str
    layers: tuple[LayerSource, ...]


@dataclass(frozen=True)
class Layout:
    """How generated activations are stored."""

    dtype: str
    codec: str
    sharded: bool = False
    channels_first: bool = False

    @property
    def name(self) -> str:
        """What the case is called: dtype-codec-chunks-channels."""
        return "-".join(
            (
                self.dtype,
                self.codec,
                "shards" if self.sharded else "plain",
                "first" if self.channels_first else "last",
            )
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a sample."""
        return (CHANNELS, HEIGHT, WIDTH) if self.channels_first else (HEIGHT, WIDTH, CHANNELS)

    @property
    def sample_bytes(self) -> int:
        """Decoded bytes of a sample."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


LAYOUTS = (
    Layout("int8", "raw"),
    Layout("float32", "raw"),
    *(
        Layout(dtype, codec, sharded)
        for dtype, codec, sharded in product(("int8", "float32"), ("zstd", "lz4"), (False, True))
    ),
    *(
        Layout(dtype, codec, channels_first=True)
        for dtype, codec in (("int8", "raw"), ("float32", "raw"), ("int8", "zstd"), ("float32", "lz4"))
    ),
)
"""What is measured: every codec plain and sharded; channels first for raw and for one codec each."""
NARROW_LAYOUTS = tuple(Layout("bfloat16", codec, sharded) for codec, sharded in product(("zstd", "lz4"), (False, True)))
"""What only streamstats is measured on: others do not read it."""

REAL_LAYERS = (
    LayerSource("block02/depthwise", 3, 0.049613301894244025, -128, (3, 3)),
    LayerSource("block04/depthwise", 1, taps=(3, 3)),
    LayerSource("block04/project", 3, 0.013603678871603573, -128),
    LayerSource("block08/expand", 3, 0.03057065290563247, 116),
    LayerSource("block12/depthwise", 3, 0.02832076502781288, -128, (3, 3)),
    LayerSource("head", 3),
    LayerSource("classifier", 1),
)
"""The layers of the real store (inputs of a MobileNetV2), as its README describes them."""


def real_source(path: Path) -> Source:
    """The real store at `path`; layers not in `REAL_LAYERS` have channels last and no quantisation."""
    known = {layer.name: layer for layer in REAL_LAYERS}
    arrays = dict(zarr.open_group(path, mode="r").members(max_depth=None))
    found = [(name, array.ndim) for name, array in sorted(arrays.items()) if isinstance(array, zarr.Array)]
    return Source(str(path), tuple(known.get(name, LayerSource(name, ndim - 1)) for name, ndim in found))


def generate(path: Path, layout: Layout, decoded_bytes: int) -> Source:
    """Write a store of one layer of at least `decoded_bytes`, in whole blocks of samples."""
    blocks = -(-decoded_bytes // (BLOCK_ROWS * layout.sample_bytes))
    array = _create(path, layout, blocks * BLOCK_ROWS)
    distinct = [_stored_form(index, layout) for index in range(min(blocks, DISTINCT_BLOCKS))]
    for block in range(blocks):
        array[block * BLOCK_ROWS : (block + 1) * BLOCK_ROWS] = distinct[block % DISTINCT_BLOCKS]
    quantization = (STEP, ZERO_POINT) if layout.dtype == "int8" else (None, 0)
    return Source(str(path), (LayerSource("layer", 1 if layout.channels_first else 3, *quantization, taps=(3, 3)),))


def _create(path: Path, layout: Layout, rows: int) -> zarr.Array[Any]:
    import streamstats.calibration  # noqa: F401 - zarr learns bfloat16; not for all, whose start is measured

    axes = ("channel", "y", "x") if layout.channels_first else ("y", "x", "channel")
    return zarr.create_group(path).create_array(
        "layer",
        shape=(rows, *layout.shape),
        dtype=layout.dtype,
        chunks=(1 if layout.sharded else ROWS_A_CHUNK[layout.dtype], *layout.shape),
        shards=(ROWS_A_SHARD, *layout.shape) if layout.sharded else None,
        compressors=COMPRESSORS[layout.dtype, layout.codec],
        dimension_names=("sample", *axes),
        config={"write_empty_chunks": True},
    )


def _stored_form(index: int, layout: Layout) -> Array:
    real = _activations(index)
    stored = _quantized(real) if layout.dtype == "int8" else real.astype(layout.dtype)
    return np.ascontiguousarray(np.moveaxis(stored, -1, 1)) if layout.channels_first else stored


def _quantized(real: Array) -> Array:
    return np.clip(np.rint(real / STEP) + ZERO_POINT, -128, 127).astype(np.int8)


def _activations(index: int) -> Array:
    """Block `index`: float32[BLOCK_ROWS, HEIGHT, WIDTH, CHANNELS], ReLU of slow and fast noise."""
    rng = np.random.default_rng([20, index])
    spread, offset = _channel_character()
    slow = rng.standard_normal((BLOCK_ROWS, HEIGHT // COARSE, WIDTH // COARSE, CHANNELS), np.float32)
    values = rng.standard_normal((BLOCK_ROWS, HEIGHT, WIDTH, CHANNELS), np.float32)
    values *= np.float32(0.5)
    values += slow.repeat(COARSE, axis=1).repeat(COARSE, axis=2)
    values += offset
    values *= spread
    return np.maximum(values, 0, out=values)


@cache
def _channel_character() -> tuple[Array, Array]:
    """Spread (real units) and offset (spreads) of each channel: most narrow and below zero, a few wide."""
    rng = np.random.default_rng(192)
    spread = np.exp(rng.normal(np.log(0.12), 0.5, CHANNELS)).astype(np.float32)
    return spread, rng.normal(-0.2, 0.7, CHANNELS).astype(np.float32)


def layer_shapes(source: Source) -> dict[str, tuple[tuple[int, ...], int]]:
    """Layer → (shape, decoded bytes)."""
    group = zarr.open_group(source.path, mode="r")
    arrays: dict[str, Any] = {layer.name: group[layer.name] for layer in source.layers}
    return {name: (array.shape, array.nbytes) for name, array in arrays.items()}


def files(source: Source) -> list[Path]:
    """Every file of the store, in order."""
    return sorted(path for path in Path(source.path).rglob("*") if path.is_file())


def read_once(source: Source) -> int:
    """Read every file, so that the page cache holds what fits of them; their bytes on disk."""
    buffer = bytearray(2**20)
    size = 0
    for path in files(source):
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                size += count
    return size


@contextmanager
def working_folder(folder: str | None) -> Iterator[Path]:
    """A new folder inside `folder` (default: where temporary files go) that is removed in the end."""
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
    path = Path(tempfile.mkdtemp(prefix="streamstats-benchmark-", dir=folder))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
