"""Statistics that are counted only where they are asked for: spread and taps, through a whole job."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stores import build_store, samples
from taps import exact_tap_means

import streamstats as ss
from streamstats.calibration.selection import select_layers
from streamstats.config import ClusterConfig, JobConfig
from streamstats.errors import MismatchError
from streamstats.jobs.forget import forget
from streamstats.jobs.job import Job
from streamstats.jobs.merge import merge
from streamstats.jobs.plan import make_plan
from streamstats.jobs.run import run
from streamstats.layouts import Geometry, Kernel
from streamstats.outputs.layer_statistics import LayerStatistics
from streamstats.outputs.results import open_results
from streamstats.statistics.kinds import ALWAYS, KINDS, kinds_of

BOTH = ["spread", "taps"]
LAYERS = {
    "first": (samples(41, 6, 5, 7), 1),
    "last": (samples(41, 5, 7, 6, dtype="int8"), 3),
    "flat": (samples(41, 9), 1),
}
"""Values and channel axis."""
GEOMETRY = {
    "first": {"kernel": [3, 2], "strides": [1, 2], "pads": [1, 0, 2, 1]},
    "last": {"kernel": [3, 3], "pads": [1, 1, 1, 1]},
    "flat": {"kernel": []},
}
KERNELS = {
    "first": Kernel((3, 2), Geometry((1, 2), (1, 0, 2, 1))),
    "last": Kernel((3, 3), Geometry(pads=(1, 1, 1, 1))),
    "flat": Kernel(),
}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    for name, chunks in {"first": (3, 4, 5, 4), "last": (8, 5, 7, 6), "flat": (2, 9)}.items():
        build_store(tmp_path / "s.zarr", {name: LAYERS[name][0]}, chunks=chunks)
    return tmp_path / "s.zarr"


def config(store: Path, output: Path, **options: Any) -> Job:
    layers = [{"match": name, "channel_axis": axis, "geometry": GEOMETRY[name]} for name, (_, axis) in LAYERS.items()]
    settings = {"layers": layers, "statistics": BOTH} | options
    return JobConfig.model_validate({"source": str(store), "output": str(output), **settings}).job()


def statistics(output: Path) -> dict[str, LayerStatistics]:
    found = open_results(output)
    return {layer: found.statistics(layer) for layer in found.layers}


def files(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (output / "state").rglob("*.safetensors")}


@pytest.mark.parametrize("memory", ["1GiB", 330 * 2**20])
@pytest.mark.parametrize("threads", [1, 3])
def test_they_are_what_numpy_says_and_have_the_same_bytes(
    store: Path, tmp_path: Path, memory: Any, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(config(store, tmp_path / "whole"))
    monkeypatch.setattr("streamstats.jobs.plan.SMALLEST_TASK_BYTES", 2000)
    monkeypatch.setattr("streamstats.jobs.plan.TASK_BYTES", 2000)
    monkeypatch.setattr("streamstats.jobs.plan.BLOCK_BYTES", 512)  # blocks that are parts of samples
    run(config(store, tmp_path / "parts", memory=memory, cluster=ClusterConfig(threads=threads)))
    assert files(tmp_path / "whole") == files(tmp_path / "parts")
    for name, found in statistics(tmp_path / "parts").items():
        block, axis = LAYERS[name]
        per_sample = np.moveaxis(block.astype(np.float64), axis, 1).reshape(41, block.shape[axis], -1).mean(axis=2)
        assert found.standard_error is not None
        assert found.tap_mean is not None
        np.testing.assert_allclose(found.standard_error, per_sample.std(axis=0, ddof=1) / np.sqrt(41), rtol=1e-9)
        mean = np.moveaxis(block.astype(np.float64).mean(axis=0), axis - 1, 0)
        expected = exact_tap_means(mean.astype(object)[np.newaxis], KERNELS[name]) if name != "flat" else mean
        np.testing.assert_allclose(found.tap_mean, expected.astype(np.float64), rtol=1e-12)


def test_a_stopped_run_goes_on_and_forgetting_and_merging_are_exact(store: Path, tmp_path: Path) -> None:
    for number, rows in enumerate(("0:20", "20:41")):
        run(config(store, tmp_path / f"part{number}", rows=rows))
    run(config(store, tmp_path / "whole"))
    merge([tmp_path / "part0", tmp_path / "part1"], tmp_path / "merged")
    assert files(tmp_path / "merged") == files(tmp_path / "whole")
    forget(config(store, tmp_path / "whole"), (20, 41))
    for name, part in statistics(tmp_path / "part0").items():
        rest = statistics(tmp_path / "whole")[name]
        assert rest.statistics == part.statistics


def test_a_quantised_layer_with_a_step_for_each_channel_has_real_tap_means(tmp_path: Path) -> None:
    codes = samples(10, 4, 4, 3, dtype="int8")
    store = build_store(tmp_path / "s.zarr", {"layer": codes})
    quantization = ss.Quantization([0.5, 0.25, 2.0], [1, -2, 3])
    rule = ss.LayerRule("layer", 3, quantization, tuple(BOTH), Kernel((1, 1), Geometry((1, 3))))
    found = ss.reduce(store, layers=[rule])["layer"]
    real = quantization.dequantize(codes)
    assert found.tap_mean is not None
    np.testing.assert_allclose(found.tap_mean[:, 0, 0], real[:, :, ::3].mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(
        found.standard_error, real.mean(axis=(1, 2)).std(axis=0, ddof=1) / np.sqrt(10), rtol=1e-9
    )


def test_nothing_is_kept_unasked_and_an_entry_may_ask_for_itself(store: Path, tmp_path: Path) -> None:
    run(config(store, tmp_path / "none", statistics=[]))
    for found in statistics(tmp_path / "none").values():
        assert (found.standard_error, found.tap_mean) == (None, None)
        assert [*found.statistics] == [*ALWAYS]
    first = {"match": "first", "channel_axis": 1, "geometry": GEOMETRY["first"], "statistics": ["taps"]}
    layers = [first, {"match": "*"}]
    run(config(store, tmp_path / "some", layers=layers, statistics=["spread"]))
    counted = {name: set(found.statistics) - {*ALWAYS} for name, found in statistics(tmp_path / "some").items()}
    assert counted == {"first": {"taps"}, "last": {"spread"}, "flat": {"spread"}}


def test_python_runs_a_file_loads_its_results_and_asks_by_the_same_names(tmp_path: Path) -> None:
    build_store(tmp_path / "s.zarr", {"layer": samples(9, 4)})
    (tmp_path / "run.yaml").write_text(f"source: {tmp_path}/s.zarr\noutput: out\nstatistics: [squares]\n")
    ss.run(ss.load_job(tmp_path / "run.yaml", [f"output={tmp_path}/out"]), progress=ss.LogProgress())
    (loaded,) = ss.load(tmp_path / "out").values()
    (reduced,) = ss.reduce(tmp_path / "s.zarr", statistics=["squares"]).values()
    assert loaded.statistics == reduced.statistics
    np.testing.assert_array_equal(loaded.variance, reduced.variance)


def test_another_choice_than_was_counted_with_is_refused(store: Path, tmp_path: Path) -> None:
    run(config(store, tmp_path / "out", statistics=[]))
    with pytest.raises(
        MismatchError, match=r"mean, extrema were counted, but the job now has .*taps; set `statistics`"
    ):
        run(config(store, tmp_path / "out"))
    run(config(store, tmp_path / "other"))
    with pytest.raises(MismatchError, match="statistics"):
        merge([tmp_path / "out", tmp_path / "other"], tmp_path / "merged")


def test_outputs_that_counted_what_other_kernels_see_are_not_merged(store: Path, tmp_path: Path) -> None:
    for number, pads in enumerate(([1, 1, 1, 1], [2, 2, 2, 2])):
        layers = [{"match": "last", "geometry": {"kernel": [3, 3], "pads": pads}}]
        for kinds in ([], ["taps"]):
            output = tmp_path / f"{'-'.join(kinds)}{number}"
            run(config(store, output, rows=f"{20 * number}:{20 * number + 20}", layers=layers, statistics=kinds))
    with pytest.raises(MismatchError, match=r"layer last .* merged: kernel .*\[1, 1, 1, 1\].* and .*\[2, 2, 2, 2\]"):
        merge([tmp_path / "taps0", tmp_path / "taps1"], tmp_path / "merged")
    merge([tmp_path / "0", tmp_path / "1"], tmp_path / "merged")
    assert statistics(tmp_path / "merged")["last"].space.kernel is None


def test_the_plan_has_room_for_them(store: Path, tmp_path: Path) -> None:
    layers = select_layers(store, config(store, tmp_path).layers).layers
    without = [replace(layer, kinds=kinds_of(())) for layer in layers]
    peaks = [make_plan(each, {}, memory=2**31, threads=2).peak_bytes for each in (without, layers)]
    assert peaks[1] - peaks[0] > sum(KINDS[name].state_bytes(layer.space) for layer in layers for name in BOTH)


def test_a_layer_of_a_mobilenet_takes_kilobytes_for_what_its_taps_see(tmp_path: Path) -> None:
    store = build_store(tmp_path / "s.zarr", {"depthwise": samples(2, 112, 112, 32)})
    kernel = Kernel((3, 3), Geometry(pads=(1, 1, 1, 1)))
    peaks = []
    for names in ((), ("taps",)):
        (layer,) = select_layers(store, [ss.LayerRule("*", statistics=names, kernel=kernel)]).layers
        peaks.append(make_plan([layer], {}, memory=2**31, threads=1).peak_bytes)
    assert KINDS["taps"].state_bytes(layer.space) == 29_952
    assert peaks[1] - peaks[0] < 2 * 2**20
