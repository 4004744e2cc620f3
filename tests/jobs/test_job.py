"""A job from a store on disk to the files it leaves: every layout of a store, the same bits however it is done."""

from __future__ import annotations

import contextlib
import json
from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from counting import count_all, planned_all
from zarr.codecs import BloscCodec, GzipCodec
from zarr.storage import ZipStore

import streamstats as ss
from streamstats.calibration.reading.file_reader import FileReader
from streamstats.calibration.reading.zarr_reader import ZarrReader
from streamstats.calibration.selection import LayerRule, select_layers
from streamstats.config import ClusterConfig, JobConfig, LayerConfig, QuantizationConfig
from streamstats.errors import DataError, NonFiniteError, OutputError, UsageError
from streamstats.jobs.job import Job
from streamstats.jobs.opening import open_workers
from streamstats.jobs.run import reduce, run
from streamstats.jobs.workers import Cluster
from streamstats.outputs import results
from streamstats.quantization import channel_maps
from streamstats.statistics.kinds import optional

SHAPE = (23, 6, 5, 12)


def activations(dtype: str = "float32", shape: tuple[int, ...] = SHAPE, seed: int = 0) -> np.ndarray[Any, Any]:
    random = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return np.maximum(random.normal(size=shape) * 10.0 ** random.integers(-6, 3, size=shape), 0).astype(dtype)
    if dtype == "bool":
        return random.integers(0, 2, size=shape).astype(bool)
    limits = np.iinfo(dtype)
    return random.integers(limits.min, limits.max, size=shape, dtype=dtype, endpoint=True)


def exact_means(values: np.ndarray[Any, Any], axis: int) -> list[float]:
    columns = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
    return [float(sum(map(Fraction, column.tolist()), Fraction(0)) / len(column)) for column in columns]


LAYOUTS: dict[str, dict[str, Any]] = {
    "v3 plain": {"chunks": (4, 6, 5, 12)},
    "v3 one sample a chunk": {"chunks": (1, 6, 5, 12)},
    "v3 sharded": {"chunks": (1, 6, 5, 12), "shards": (8, 6, 5, 12)},
    "v3 sharded, split": {"chunks": (2, 3, 5, 4), "shards": (4, 6, 5, 12)},
    "v3 split along channels": {"chunks": (5, 6, 5, 5)},
    "v3 split along space": {"chunks": (5, 4, 2, 12)},
    "v3 split everywhere, gzip": {"chunks": (3, 4, 2, 7), "compressors": [GzipCodec()]},
    "v3 raw": {"chunks": (23, 6, 5, 12), "compressors": None},
    "v3 blosc": {"chunks": (7, 6, 5, 12), "compressors": [BloscCodec(cname="lz4", shuffle="bitshuffle")]},
    "v3 chunks larger than the array": {"chunks": (64, 8, 8, 16)},
    "v2": {"chunks": (4, 6, 5, 12), "zarr_format": 2},
    "v2 split, Fortran order": {"chunks": (4, 3, 5, 5), "zarr_format": 2, "order": "F"},
}


def write_store(path: Path, layers: dict[str, np.ndarray[Any, Any]], zarr_format: int = 3, **options: Any) -> Path:
    group = zarr.open_group(path, mode="w", zarr_format=zarr_format)  # type: ignore[arg-type]
    for name, values in layers.items():
        options.setdefault("chunks", values.shape)
        group.create_array(name, shape=values.shape, dtype=values.dtype, **options)[...] = values
    return path


def config(source: Path, output: Path, **options: Any) -> Job:
    return JobConfig(source=str(source), output=str(output), **options).job()


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_a_store_gives_the_exact_mean_and_the_same_sums(tmp_path: Path, layout: str) -> None:
    values = activations()
    found = ss.reduce(write_store(tmp_path / "s.zarr", {"a/b": values}, **LAYOUTS[layout]))["a/b"]
    assert found.mean.tolist() == exact_means(values, 3)
    assert found.minimum.tolist() == values.min(axis=(0, 1, 2)).tolist()
    assert found.maximum.tolist() == values.max(axis=(0, 1, 2)).tolist()
    assert found.covered == ((0, 23),)
    assert found.sums == ss.reduce(write_store(tmp_path / "plain.zarr", {"a/b": values}))["a/b"].sums


@pytest.mark.parametrize("axis", [1, 2, -1])
@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "int16", "int32", "int64", "uint64", "float16", "float64"])
def test_every_dtype_and_channel_axis_gives_the_exact_mean(tmp_path: Path, dtype: str, axis: int) -> None:
    values = activations(dtype)
    store = write_store(tmp_path / "s.zarr", {"layer": values}, chunks=(4, 4, 5, 7))
    found = ss.reduce(store, layers=[LayerRule("*", channel_axis=axis)])["layer"]
    assert found.mean.tolist() == exact_means(values, axis)


@pytest.mark.parametrize("name", ["s.zarr", "s.zip"])
def test_every_byte_of_a_bool_that_is_not_zero_counts_as_one(tmp_path: Path, name: str) -> None:
    odd = np.random.default_rng(3).integers(0, 4, (9, 5, 4), np.uint8).view(bool)
    plain = odd.view(np.uint8) != 0
    kinds = tuple(name for name in optional() if name != "taps")
    rules = [LayerRule("*", statistics=kinds)]
    expected = ss.reduce(write_store(tmp_path / "plain.zarr", {"a": plain}), layers=rules)["a"]
    assert expected.mean.tolist() == plain.mean(axis=(0, 1)).tolist()
    with ZipStore(tmp_path / name, mode="w") if name == "s.zip" else nullcontext(tmp_path / name) as store:
        zarr.open_group(store, mode="w").create_array("a", data=odd, chunks=(2, 5, 4))
    found = ss.reduce(tmp_path / name, layers=rules)["a"]
    assert found.statistics == expected.statistics
    assert ss.prepare_input_mean([odd]).tolist() == expected.mean.tolist()
    with ss.Recorder(tmp_path / "recorded.zarr") as recorder:
        recorder.append("a", odd)
    assert ss.reduce(tmp_path / "recorded.zarr", layers=rules)["a"].statistics == expected.statistics


def test_a_mask_of_booleans_counts_every_byte_that_is_not_zero(tmp_path: Path) -> None:
    values, mask = np.arange(12, dtype="f4").reshape(6, 2), np.array([0, 1, 255, 2, 0, 1], np.uint8).view(bool)
    store = write_store(tmp_path / "s.zarr", {"a": values})
    zarr.open_group(store, mode="a").create_array("m", data=mask)
    found = ss.reduce(store, layers=[LayerRule("a", mask="m")])["a"]
    assert found.mean.tolist() == values[[1, 2, 3, 5]].mean(axis=0).tolist()


def test_big_endian_arrays_are_reduced(tmp_path: Path) -> None:
    values = activations().astype(">f4")
    store = write_store(tmp_path / "s.zarr", {"layer": values}, zarr_format=2, chunks=(4, 6, 5, 12))
    assert ss.reduce(store)["layer"].mean.tolist() == exact_means(values, 3)


def test_zip_stores_are_reduced(tmp_path: Path) -> None:
    values = activations()
    with ZipStore(tmp_path / "s.zip", mode="w") as store:
        group = zarr.open_group(store, mode="w")
        group.create_array("deep/layer", shape=values.shape, dtype=values.dtype, chunks=(4, 6, 5, 5))[...] = values
    assert ss.reduce(tmp_path / "s.zip")["deep/layer"].mean.tolist() == exact_means(values, 3)


@pytest.mark.parametrize("shape", [(0, 6, 5, 12), (4, 0, 5, 12), (4, 6, 5, 0)])
def test_an_empty_array_has_no_mean_and_no_corrector_and_the_manifest_says_why(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    layers = {"empty": np.zeros(shape, np.float32), "full": activations()}
    store = write_store(tmp_path / "s.zarr", layers, chunks=(4, 6, 5, 12))
    found = run(config(store, tmp_path / "out")).statistics
    assert np.isnan(found["empty"].mean).all()
    assert found["empty"].rows == shape[0]
    entries = json.loads((tmp_path / "out" / "manifest.json").read_text())["layers"]
    assert entries["empty"]["corrector"]["file"] is None
    assert "finite value" in entries["empty"]["corrector"]["reason"]
    assert not (tmp_path / "out/correctors/empty.safetensors").exists()
    assert entries["full"]["corrector"]["file"] == "correctors/full.safetensors"


def test_runs_leave_the_same_bytes_whatever_the_threads_memory_and_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = {f"block{index}/conv": activations(seed=index) for index in range(5)}
    store = write_store(tmp_path / "s.zarr", layers, chunks=(3, 6, 5, 5))
    monkeypatch.setattr("streamstats.jobs.plan.SMALLEST_TASK_BYTES", 2000)
    results = []
    for threads, memory in [(1, "1GiB"), (2, "500MiB"), (3, "310MiB"), (7, "4GiB")]:
        output = tmp_path / f"out{threads}"
        run(config(store, output, memory=memory, cluster=ClusterConfig(threads=threads)))
        results.append(files(output))
    assert all(result == results[0] for result in results)
    assert len(results[0]) == 11


def contents(tensors: dict[str, np.ndarray[Any, Any]]) -> dict[str, bytes]:
    """The bytes of each tensor but those that say how rows lie in files: identities, and what is counted apart."""
    of_files = (".files", ".mask_files", ".tail")
    return {
        name: array.tobytes()
        for name, array in tensors.items()
        if not name.endswith(of_files) and not name.startswith("settled.")
    }


def test_the_same_rows_in_other_chunks_give_the_same_statistics(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    values = activations()
    for index, layout in enumerate(LAYOUTS.values()):
        store = write_store(tmp_path / f"{index}.zarr", {"layer": values}, **layout)
        run(config(store, tmp_path / f"out{index}"))
    for kind in ("state", "correctors"):
        first, *others = [load_file(tmp_path / f"out{index}/{kind}/layer.safetensors") for index in range(len(LAYOUTS))]
        for other in others:
            assert contents(other) == contents(first)


def test_a_corrector_holds_the_mean_in_real_units_and_where_it_comes_from(tmp_path: Path) -> None:
    codes = activations("int8")
    store = write_store(tmp_path / "s.zarr", {"a/conv": codes}, chunks=(4, 6, 5, 12))
    quantization = QuantizationConfig(scale=4.0, scale_is="reciprocal", zero_point=-3)
    run(config(store, tmp_path / "out", layers=[LayerConfig(match="a/*", quantization=quantization)]))
    corrector = ss.BiasCorrector.load(tmp_path / "out/correctors/a/conv.safetensors")
    assert isinstance(corrector, ss.MeanBiasCorrector)
    sums = [Fraction(int(total)) for total in codes.sum(axis=(0, 1, 2), dtype=np.int64)]
    count = codes.size // 12
    assert corrector.input_mean.tolist() == [float((total + 3 * count) / 4 / count) for total in sums]
    assert corrector.provenance["layer"] == "a/conv"
    assert corrector.provenance["rows"] == "23"
    assert corrector.provenance["count"] == str(count)
    assert json.loads(corrector.provenance["quantization"]) == {"step": 0.25, "zero_point": -3}


def test_a_quantisation_per_channel_is_applied_along_the_channel_axis(tmp_path: Path) -> None:
    codes = activations("uint8")
    store = write_store(tmp_path / "s.zarr", {"layer": codes}, chunks=(4, 2, 5, 12))
    quantization = ss.Quantization([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [1, 2, 3, 4, 5, 6])
    found = ss.reduce(store, layers=[LayerRule("*", channel_axis=1, quantization=quantization)])["layer"]
    expected = []
    for channel, (step, zero_point) in enumerate(channel_maps(quantization, 6)):
        values = codes[:, channel].ravel().tolist()
        expected.append(float(sum((value - zero_point) * step for value in values) / len(values)))
    assert found.mean.tolist() == expected


# NaN and infinities


def store_with_nonfinite(folder: Path) -> tuple[Path, np.ndarray[Any, Any]]:
    values = activations()
    values[9, 2, 3, 7] = np.nan
    values[17, 0, 0, 7] = -np.inf
    return write_store(folder / "s.zarr", {"block/conv": values}, chunks=(8, 6, 5, 5)), values


def test_nonfinite_values_are_an_error_that_names_layer_channel_and_rows(tmp_path: Path) -> None:
    store, _ = store_with_nonfinite(tmp_path)
    with pytest.raises(NonFiniteError, match=r"block/conv, channel 7, rows \d+:\d+.*nonfinite: skip"):
        run(config(store, tmp_path / "out"))
    assert not (tmp_path / "out/manifest.json").exists()
    assert not (tmp_path / "out/state").exists()


def test_skipped_nonfinite_values_leave_sum_and_count_and_are_reported(tmp_path: Path) -> None:
    store, values = store_with_nonfinite(tmp_path)
    found = run(config(store, tmp_path / "out", nonfinite="skip")).statistics["block/conv"]
    assert (found.sums.nan[7], found.sums.infinite[7], found.sums.count[7]) == (1, 1, 23 * 30 - 2)
    finite = [Fraction(value) for value in values[..., 7].ravel().tolist() if np.isfinite(value)]
    assert found.mean[7] == float(sum(finite) / len(finite))
    entry = json.loads((tmp_path / "out/manifest.json").read_text())["layers"]["block/conv"]
    assert (entry["nan"], entry["infinite"]) == (1, 1)


def test_a_channel_without_finite_values_has_no_corrector(tmp_path: Path) -> None:
    values = activations()
    values[..., 4] = np.nan
    store = write_store(tmp_path / "s.zarr", {"layer": values})
    run(config(store, tmp_path / "out", nonfinite="skip"))
    corrector = json.loads((tmp_path / "out/manifest.json").read_text())["layers"]["layer"]["corrector"]
    assert corrector["file"] is None
    assert "channel 4" in corrector["reason"]


# The plan is kept, the output is whole


def test_no_block_larger_than_the_plan_allows_is_ever_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = activations(shape=(40, 32, 32, 24))
    store = write_store(tmp_path / "s.zarr", {"layer": values}, chunks=(2, 8, 8, 24))
    sizes = []

    def watched(reader: FileReader, selection: Any) -> Any:
        block = read(reader, selection)
        sizes.append(block.nbytes)
        return block

    read = FileReader.read
    monkeypatch.setattr(FileReader, "read", watched)
    monkeypatch.setattr(FileReader, "measure", ZarrReader.measure)  # which reads whole blocks
    monkeypatch.setattr("streamstats.jobs.plan.BLOCK_BYTES", 50_000)
    with open_workers(Cluster(threads=3), []) as workers:
        layers = select_layers(store).layers
        planned = planned_all(layers, workers)
        found = count_all(layers, workers).statistics
    assert planned.block_bytes <= 50_000
    assert max(sizes) <= planned.block_bytes
    assert sum(sizes) == values.nbytes == planned.bytes
    assert found["layer"].mean.tolist() == exact_means(values, 3)


def test_many_small_layers_share_tasks_and_keep_all_threads_busy(tmp_path: Path) -> None:
    layers = {f"layer{index:03}": activations("int8", (64, 32, 16), seed=index) for index in range(150)}
    with open_workers(Cluster(threads=4), []) as workers:
        chosen = select_layers(write_store(tmp_path / "s.zarr", layers, chunks=(64, 32, 16))).layers
        assert 0 < len(planned_all(chosen, workers).tasks) < len(layers)
        found = count_all(chosen, workers).statistics
    assert {name: found[name].sums.total.units() for name in found} == {
        name: values.sum(axis=(0, 1), dtype=np.int64).tolist() for name, values in layers.items()
    }


def test_a_lost_task_is_an_error_and_not_a_different_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = write_store(tmp_path / "s.zarr", {"layer": activations()})
    monkeypatch.setattr("streamstats.jobs.session.reduce_tasks", lambda *_arguments, **_options: iter(()))
    with pytest.raises(ss.StreamstatsError, match="no task returned rows"):
        ss.reduce(store)


def test_a_failing_run_leaves_the_results_of_the_run_before(tmp_path: Path) -> None:
    store = write_store(tmp_path / "s.zarr", {"layer": activations()})
    run(config(store, tmp_path / "out"))
    before = files(tmp_path / "out")
    bad, _ = store_with_nonfinite(tmp_path / "bad")
    with pytest.raises(NonFiniteError):
        run(config(bad, tmp_path / "out"), restart=True)
    assert files(tmp_path / "out") == before


def test_files_of_layers_that_are_gone_are_removed(tmp_path: Path) -> None:
    first = write_store(tmp_path / "a.zarr", {"old/layer": activations(), "kept": activations()})
    second = write_store(tmp_path / "b.zarr", {"kept": activations()})
    run(config(first, tmp_path / "out"))
    run(config(second, tmp_path / "out"), restart=True)
    assert sorted(files(tmp_path / "out")) == ["correctors/kept.safetensors", "manifest.json", "state/kept.safetensors"]


def test_an_output_that_cannot_be_written_is_refused_before_any_data_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = write_store(tmp_path / "s.zarr", {"layer": activations()})
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr("streamstats.jobs.session.reduce_tasks", lambda *_: pytest.fail("data was read"))
    with pytest.raises(UsageError, match="cannot write"):
        run(config(store, tmp_path / "file" / "out"))


def test_a_full_disk_is_an_output_error_that_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = write_store(tmp_path / "s.zarr", {"layer": activations()})
    run(config(store, tmp_path / "out"))
    before = files(tmp_path / "out")
    found = reduce(store)
    monkeypatch.setattr("os.fsync", FailingCall(1))
    with pytest.raises(OutputError, match=r"manifest\.json: No space left on device"):
        results.write_results(tmp_path / "out", str(store), found)
    assert files(tmp_path / "out") == before


class FailingCall:
    """Stands in for os.fsync: fails at the Nth call, as a full disk does."""

    def __init__(self, which: int) -> None:
        self.left = which

    def __call__(self, _descriptor: int) -> None:
        self.left -= 1
        if self.left == 0:
            raise OSError(28, "No space left on device")


@pytest.mark.parametrize("which", range(1, 11))
def test_results_that_are_half_new_and_half_old_are_never_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    old, new = ({"a": activations(seed=seed), "b": activations(seed=seed + 1)} for seed in (1, 3))
    output = tmp_path / "out"
    run(config(write_store(tmp_path / "old.zarr", old), output))
    found = reduce(write_store(tmp_path / "new.zarr", new))
    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", FailingCall(which))
        with pytest.raises(OutputError):
            results.write_results(output, "new.zarr", found)
    versions = set()
    for layer in ("a", "b"):
        with contextlib.suppress(DataError):
            mean = results.open_results(output).statistics(layer).mean.tolist()
            versions.add("old" if mean == exact_means(old[layer], 3) else "new")
            assert mean in (exact_means(old[layer], 3), exact_means(new[layer], 3))
    assert len(versions) <= 1


# What a run left


def test_results_are_read_back_as_they_were(tmp_path: Path) -> None:
    store = write_store(tmp_path / "s.zarr", {"a/b": activations(), "c": activations("int8")})
    statistics = run(config(store, tmp_path / "out")).statistics
    opened = results.open_results(tmp_path / "out")
    assert opened.layers == ["a/b", "c"]
    for layer in opened.layers:
        found = opened.statistics(layer)
        assert found.sums == statistics[layer].sums
        assert found.extrema == statistics[layer].extrema
        assert found.covered == statistics[layer].covered


def test_a_flipped_byte_in_a_state_is_noticed(tmp_path: Path) -> None:
    store = write_store(tmp_path / "s.zarr", {"layer": activations()})
    run(config(store, tmp_path / "out"))
    path = tmp_path / "out/state/layer.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"layer\.safetensors does not match its SHA-256"):
        results.open_results(tmp_path / "out").statistics("layer")


@pytest.mark.parametrize(
    "manifest",
    [
        "{",
        "[]",
        "{}",
        '{"format": "streamstats.manifest/0", "layers": {}}',
        '{"format": "streamstats.manifest/1"}',
        '{"format": "streamstats.manifest/1", "layers": []}',
        '{"format": "streamstats.manifest/1", "layers": {"a": {}}}',
        '{"format": "streamstats.manifest/1", "layers": {"../a": {"state": {"sha256": ""}, "corrector": {}}}}',
    ],
)
def test_a_damaged_manifest_is_an_error_that_names_it_before_any_work(tmp_path: Path, manifest: str) -> None:
    store = write_store(tmp_path / "s.zarr", {"layer": activations()})
    (tmp_path / "out").mkdir()
    (tmp_path / "out/manifest.json").write_text(manifest)
    with pytest.raises(DataError, match=r"manifest\.json"):
        results.open_results(tmp_path / "out")
    with pytest.raises(DataError, match=r"manifest\.json"):
        run(config(store, tmp_path / "out"))
    assert files(tmp_path / "out") == {"manifest.json": manifest.encode()}


def test_a_mean_beyond_float64_is_an_error_that_names_the_layer_and_nothing_is_written(tmp_path: Path) -> None:
    store = write_store(tmp_path / "s.zarr", {"a": activations("int8"), "b": activations("int8") | 64})
    run(config(store, tmp_path / "out"))
    before = files(tmp_path / "out")
    step = LayerConfig(match="b", quantization=QuantizationConfig(scale=1e308, scale_is="step"))
    with pytest.raises(UsageError, match=r"layer b: .*1e\+308"):
        run(config(store, tmp_path / "out", layers=[step, LayerConfig(match="*")]))
    assert files(tmp_path / "out") == before


def test_a_name_too_long_for_a_file_is_refused_before_any_work(tmp_path: Path) -> None:
    store = write_store(tmp_path / "s.zarr", {"n" * 245: activations()})
    with pytest.raises(UsageError, match="too long"):
        run(config(store, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_manifest_cannot_make_a_run_remove_other_files(tmp_path: Path) -> None:
    store = write_store(tmp_path / "s.zarr", {"layer": activations()})
    run(config(store, tmp_path / "out"))
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    (tmp_path / "victim").write_text("mine")
    victim = {"sha256": "", "file": "../victim"}
    manifest["layers"]["gone"] = {"rows": 1, "state": victim, "corrector": victim, "missing": []}
    (tmp_path / "out/manifest.json").write_text(json.dumps(manifest))
    run(config(store, tmp_path / "out"))
    assert (tmp_path / "victim").read_text() == "mine"


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"manifest\.json"):
        results.open_results(tmp_path)


def test_python_refuses_what_the_configuration_refuses(tmp_path: Path) -> None:
    store = write_store(tmp_path / "s.zarr", {"layer": activations()})
    with pytest.raises(UsageError, match="memory"):
        ss.reduce(store, memory="lots")
    with pytest.raises(UsageError, match="nonfinite"):
        ss.reduce(store, nonfinite="ignore")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="threads is 0"):
        ss.reduce(store, threads=0)


# Recorded stores


def recorded_store(path: Path) -> Path:
    with ss.Recorder(path, chunk_bytes=4 * 6 * 5 * 12 * 5) as recorder:
        recorder.append("layer", np.maximum(activations(), 0))
        recorder.append("zeros", np.zeros(SHAPE, np.float32))
    return path


def test_a_recorded_chunk_of_zeros_is_there_and_counted(tmp_path: Path) -> None:
    assert ss.reduce(recorded_store(tmp_path / "s.zarr"))["zeros"].mean.tolist() == [0.0] * 12


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("deleted", "was recorded and is missing"),
        ("emptied", "cannot be read"),
        ("a folder in its place", "cannot be read: it is not a file"),
    ],
)
def test_a_lost_chunk_of_a_recorded_store_is_an_error_that_names_it(tmp_path: Path, damage: str, said: str) -> None:
    chunk = recorded_store(tmp_path / "s.zarr") / "layer/c/2/0/0/0"
    chunk.unlink()
    if damage == "emptied":
        chunk.touch()
    elif damage != "deleted":
        chunk.mkdir()
    with pytest.raises(DataError, match=rf"layer layer: chunk c/2/0/0/0 \(rows \d+:\d+\) {said}"):
        ss.reduce(tmp_path / "s.zarr")


def test_a_flipped_bit_in_a_recorded_store_is_an_error(tmp_path: Path) -> None:
    chunk = recorded_store(tmp_path / "s.zarr") / "layer/c/2/0/0/0"
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 8
    chunk.write_bytes(content)
    with pytest.raises(DataError, match=r"layer layer: chunk c/2/0/0/0 \(rows \d+:\d+\) cannot be read: the checksum"):
        ss.reduce(tmp_path / "s.zarr")


def test_the_policies_of_a_job_are_checked_at_once() -> None:
    with pytest.raises(UsageError, match="nonfinite is 'ignore'; expected 'error' or 'skip'"):
        Job("s.zarr", "out", nonfinite="ignore")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="missing is 'skip'; expected 'error' or 'report' or 'fill'"):
        Job("s.zarr", "out", missing="skip")  # type: ignore[arg-type]
