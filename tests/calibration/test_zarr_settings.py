"""zarr's configuration: ours where we read and write, the user's everywhere else."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zarr
from stores import build_store, described, read, samples

from streamstats.calibration.zarr_settings import DEFAULT_PIPELINE, FETCHES, codec_pipeline, decoding

SHAPE = (7, 3, 4)


def test_reading_in_many_threads_leaves_the_configuration_of_zarr_as_it_was(tmp_path: Path) -> None:
    values = samples(*SHAPE)
    layers = [described(build_store(tmp_path / name, {"layer": values})) for name in ("store", "store.zip")]
    before = zarr.config.get("codec_pipeline.path")
    with ThreadPoolExecutor(8) as threads:
        for block in threads.map(read, layers * 40):
            np.testing.assert_array_equal(block, values)
    assert zarr.config.get("codec_pipeline.path") == before


def test_the_pipeline_of_the_user_is_left_and_put_back_after_an_error() -> None:
    with zarr.config.set({"codec_pipeline.path": "of.the.user"}):
        with pytest.raises(KeyError), codec_pipeline(DEFAULT_PIPELINE):
            raise KeyError
        assert zarr.config.get("codec_pipeline.path") == "of.the.user"


def test_decoding_has_as_many_threads_as_asked_for_and_then_those_of_the_user_again() -> None:
    keys = ("threading.max_workers", "async.concurrency")
    before = [zarr.config.get(key) for key in keys]
    with decoding(3):
        assert [zarr.config.get(key) for key in keys] == [3, FETCHES]
    assert [zarr.config.get(key) for key in keys] == before
