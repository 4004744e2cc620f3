"""A store to measure how fast this machine decodes and counts: the same values, compressed and not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import ZstdCodec

from .zarr_settings import DEFAULT_PIPELINE, codec_pipeline

COMPRESSORS = {"zstd": [ZstdCodec()], "uncompressed": None}
"""Layer → how its chunks are compressed."""
CHUNK_ROWS, ROW_VALUES, CHUNKS = 256, 1024, 64


def trial_values() -> npt.NDArray[np.float32]:
    """One chunk of activations behind a ReLU: half of them are zero."""
    normal = np.random.default_rng(0).standard_normal((CHUNK_ROWS, ROW_VALUES), dtype=np.float32)
    return np.maximum(normal, np.float32(0))


def write_trial(path: Path) -> int:
    """Write a store with a layer for each of COMPRESSORS, all chunks alike; returns the bytes of a layer, decoded."""
    values = trial_values()
    shape = (CHUNKS * CHUNK_ROWS, ROW_VALUES)
    with codec_pipeline(DEFAULT_PIPELINE):
        group = zarr.open_group(path, mode="w", zarr_format=3)
        for name, compressors in COMPRESSORS.items():
            array = group.create_array(
                name, shape=shape, chunks=values.shape, dtype=values.dtype, compressors=compressors
            )
            for start in range(0, shape[0], CHUNK_ROWS):
                array[start : start + CHUNK_ROWS] = values
    return CHUNKS * values.nbytes
