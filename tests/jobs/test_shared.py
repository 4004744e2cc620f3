"""An array that several layers read is stored and counted once; each layer has the results of an array of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stores import Array, build_store, samples

import streamstats as ss
from streamstats.calibration.selection import LayerRule, select_layers
from streamstats.cli import main
from streamstats.config import JobConfig
from streamstats.errors import DataError, MismatchError, UsageError
from streamstats.jobs.compare import compare
from streamstats.jobs.forget import forget
from streamstats.jobs.job import Job
from streamstats.jobs.merge import merge
from streamstats.jobs.quantiles import exact_quantiles
from streamstats.jobs.run import run
from streamstats.jobs.status import status
from streamstats.jobs.verify import verify
from streamstats.outputs.manifest import read_manifest
from streamstats.outputs.results import open_results
from streamstats.outputs.saving import held

CONV = ss.Kernel((3, 3), ss.Geometry((2, 2), (1, 1, 1, 1)))
DOWN = ss.Kernel((1, 1), ss.Geometry((2, 2)))
LAYERS = {"block/conv": CONV, "block/down": DOWN}
STATISTICS = ["magnitude", "squares", "histogram", "spread", "taps", "gram"]
VALUES = samples(24, 3, 6, 7)


def recorded(store: Path, values: Array = VALUES, *, shared: bool = True, name: str = "block/conv") -> Path:
    """A store in which both layers read one array, or each its own, and an array that no layer reads."""
    with ss.Recorder(store) as recorder:
        if shared:
            recorder.append(name, values, channel_axis=1, layers=LAYERS, tensor="relu")
        else:
            for layer, kernel in LAYERS.items():
                recorder.append(layer, values, channel_axis=1, kernel=kernel)
        recorder.append("tensors/y", values[:, :, 0, 0], layers={}, tensor="y")
    return store


def job(store: Path, output: Path, **options: Any) -> Job:
    return JobConfig(source=str(store), output=str(output), **{"statistics": STATISTICS, **options}).job()


def counted(folder: Path, **options: Any) -> Path:
    run(job(recorded(folder / "s.zarr", **options), folder / "out"))
    return folder / "out"


def correctors(output: Path) -> dict[str, bytes]:
    folder = output / "correctors"
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.safetensors")}


@pytest.mark.parametrize("name", ["block/conv", "input"])
def test_correctors_have_the_bytes_of_those_of_separate_arrays(tmp_path: Path, name: str) -> None:
    once, apart = counted(tmp_path / "once", name=name), counted(tmp_path / "apart", shared=False)
    assert correctors(once) == correctors(apart)
    assert sorted(correctors(once)) == ["block/conv.safetensors", "block/down.safetensors"]
    states = sorted(path.relative_to(once / "state").as_posix() for path in (once / "state").rglob("*.safetensors"))
    assert states == sorted([f"{name}.safetensors", "tensors/y.safetensors"])
    results, others = open_results(once), open_results(apart)
    assert results.layers == others.layers == ["block/conv", "block/down", "tensors/y"]
    for layer in results.layers:
        mine, theirs = results.statistics(layer), others.statistics(layer)
        assert mine.statistics == theirs.statistics
        assert (mine.layer, mine.kernel) == (theirs.layer, theirs.kernel)
    assert compare(once, apart).equal
    assert isinstance(ss.BiasCorrector.load(once / "correctors/block/down.safetensors"), ss.TapBiasCorrector)
    assert (results.statistics("block/down").tensor, results.statistics("block/down").array) == ("relu", name)
    assert not results.is_read("tensors/y")
    assert results.corrector_path("tensors/y") is None


def test_the_results_of_reduce_meter_and_run_are_found_by_the_names_of_layers(tmp_path: Path) -> None:
    store = recorded(tmp_path / "s.zarr")
    found = ss.reduce(store, layers=[LayerRule("*", statistics=tuple(STATISTICS))])
    meter = ss.Meter(STATISTICS)
    for part in np.array_split(VALUES, 5):
        meter.append("block/conv", part, channel_axis=1, layers=LAYERS, tensor="relu")
        meter.append("tensors/y", part[:, :, 0, 0], layers={}, tensor="y")
    assert sorted(found) == sorted(meter.statistics) == ["block/conv", "block/down", "tensors/y"]
    for layer, each in meter.statistics.items():
        assert each.statistics == found[layer].statistics
    meter.save(tmp_path / "metered")
    run(job(store, tmp_path / "out"))
    assert correctors(tmp_path / "metered") == correctors(tmp_path / "out")
    with pytest.raises(
        MismatchError, match=r"list of layers that read it is block/conv; earlier calls had block/conv, b"
    ):
        meter.append("block/conv", VALUES, channel_axis=1, kernel=CONV)


def test_it_is_read_once_and_progress_counts_it_once(tmp_path: Path) -> None:
    store = recorded(tmp_path / "s.zarr")
    layers = select_layers(store).layers
    assert [layer.name for layer in layers] == ["block/conv", "tensors/y"]
    assert [layer.names for layer in layers] == [("block/conv", "block/down"), ("tensors/y",)]
    run(job(store, tmp_path / "out"))
    found = status(tmp_path / "out").layers
    assert [(each.layer, each.array, each.counted) for each in found] == [
        ("block/conv", "block/conv", 24),
        ("block/down", "block/conv", 24),
        ("tensors/y", "tensors/y", 24),
    ]


@pytest.mark.parametrize("kept", [(), ("manifest.json",), ("state",)])
def test_status_knows_the_layers_from_the_lock_the_manifest_or_the_states(tmp_path: Path, kept: Sequence[str]) -> None:
    store = recorded(tmp_path / "s.zarr", name="input")
    out = counted(tmp_path, name="input")
    for path in [out / "manifest.json", *(out / "state").rglob("*.safetensors")]:
        if path.relative_to(out).parts[0] not in kept:
            path.unlink()
    rows, readers = {"input": 24}, {layer.name: layer.names for layer in select_layers(store).layers}
    with held(out, "s.zarr", rows, readers):
        layers = {each.layer: each.array for each in status(out).layers}
    assert layers | {"tensors/y": "tensors/y"} == {
        "block/conv": "input",
        "block/down": "input",
        "tensors/y": "tensors/y",
    }


def test_appending_forgetting_and_verifying_go_on_with_the_shared_array(tmp_path: Path) -> None:
    store = recorded(tmp_path / "s.zarr", VALUES[:10])
    asked = job(store, tmp_path / "out")
    run(asked)
    recorded(store, VALUES[10:])
    run(asked)
    assert correctors(tmp_path / "out") == correctors(counted(tmp_path / "whole"))
    assert verify(asked) == []
    with pytest.raises(UsageError, match="no layer matches 'fc'; the job has block/conv, block/down, tensors/y"):
        forget(asked, (4, 9), layers="fc")
    forgotten = forget(asked, (4, 9), layers="block/down")
    assert [(each.layer, each.array, each.rows) for each in forgotten] == [
        ("block/conv", "block/conv", 5),
        ("block/down", "block/conv", 5),
    ]
    rest = np.concatenate([VALUES[:4], VALUES[9:]])
    alone = correctors(counted(tmp_path / "rest", values=rest))
    assert correctors(tmp_path / "out").keys() == alone.keys()
    means = [
        ss.BiasCorrector.load(each / "correctors/block/down.safetensors")
        for each in (tmp_path / "out", tmp_path / "rest/out")
    ]
    assert all(isinstance(each, ss.TapBiasCorrector) for each in means)
    assert means[0].tap_mean.tobytes() == means[1].tap_mean.tobytes()  # type: ignore[attr-defined]
    run(asked)
    assert verify(asked) == []


@pytest.mark.parametrize("kinds", [STATISTICS, ["magnitude"]])
def test_outputs_that_share_arrays_merge_with_those_that_do_not(tmp_path: Path, kinds: list[str]) -> None:
    parts = {"a": (VALUES[:7], True), "b": (VALUES[7:12], False), "c": (VALUES[12:], True)}
    for name, (values, shared) in parts.items():
        run(job(recorded(tmp_path / f"{name}.zarr", values, shared=shared), tmp_path / name, statistics=kinds))
    run(job(recorded(tmp_path / "whole.zarr"), tmp_path / "whole", statistics=kinds))
    merge([tmp_path / "a", tmp_path / "c"], tmp_path / "shared")
    assert read_manifest(tmp_path / "shared").layers["block/down"].array == "block/conv"  # type: ignore[union-attr]
    for order in ("abc", "bca", "cab"):
        merged = merge([tmp_path / name for name in order], tmp_path / order)
        assert sorted(merged) == ["block/conv", "block/down", "tensors/y"]
        assert correctors(tmp_path / order) == correctors(tmp_path / "whole")
        assert compare(tmp_path / order, tmp_path / "whole").equal
        assert correctors(tmp_path / order) == correctors(tmp_path / "abc")
    with pytest.raises(MismatchError, match=r"are counted in .*shared, too"):
        merge([tmp_path / "shared", tmp_path / "a"], tmp_path / "twice")


def test_rules_describe_the_layers_that_read_an_array(tmp_path: Path) -> None:
    store = recorded(tmp_path / "s.zarr")

    def chosen(*rules: LayerRule) -> Any:
        return {layer.name: layer for layer in select_layers(store, rules).layers}

    rules = [LayerRule("block/down", statistics=("taps",), min_rows=9), LayerRule("*", statistics=("squares",))]
    layer = chosen(*rules)["block/conv"]
    assert [kind.name for kind in layer.kinds] == ["mean", "extrema", "squares", "taps"]
    assert layer.min_rows == 9
    other = ss.Kernel((2, 2))
    layer = chosen(LayerRule("*/down", kernel=other), LayerRule("*"))["block/conv"]
    assert [layer.read_by.kernel_of(name) for name in layer.names] == [CONV, other]
    selected = select_layers(store, [LayerRule("block/down")])
    assert [layer.names for layer in selected.layers] == [("block/down",)]
    assert selected.left_out == ("block/conv", "tensors/y")
    run(job(store, tmp_path / "out", layers=[{"match": "block/down"}]))
    assert open_results(tmp_path / "out").layers == ["block/down"]
    assert sorted(correctors(tmp_path / "out")) == ["block/down.safetensors"]
    with pytest.raises(UsageError, match=r"layer block/conv: .* different `channel_axis` .*block/conv: 2"):
        chosen(LayerRule("block/conv", 2), LayerRule("*", 1))
    store = recorded(tmp_path / "named.zarr", name="input")
    assert chosen(LayerRule("input", statistics=("taps",)))["input"].names == ("block/conv", "block/down")


def test_a_layer_that_reads_two_arrays_is_refused_unless_it_is_left_out(tmp_path: Path) -> None:
    store = recorded(tmp_path / "s.zarr")
    build_store(store, {"block/down": VALUES}, attributes={"block/down": {"channel_axis": 1}})
    with pytest.raises(
        UsageError, match=r"layer block/down reads two arrays of .*, block/conv and block/down; expected"
    ):
        ss.reduce(store)
    assert sorted(ss.reduce(store, layers=[LayerRule("block/conv")])) == ["block/conv"]


def test_attributes_that_name_no_layers_are_refused(tmp_path: Path) -> None:
    for layers, message in (({"a": 3}, "the layers are"), ({"../a": {}}, "layer name '../a' is not usable")):
        store = build_store(tmp_path / message[:8], {"x": samples(4, 3)}, attributes={"x": {"layers": layers}})
        with pytest.raises((DataError, UsageError), match=message):
            ss.reduce(store)


def test_quantiles_tables_and_json_name_every_layer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = counted(tmp_path)
    quantiles = exact_quantiles(job(tmp_path / "s.zarr", out), [0.5])
    middle = float(np.sort(VALUES, axis=None)[-(-VALUES.size // 2) - 1])
    assert {each.layer: each.value for each in quantiles} | {"tensors/y": 0.0} == {
        "block/conv": middle,
        "block/down": middle,
        "tensors/y": 0.0,
    }
    assert main(["inspect", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  percentile 0.1  " in lines[0]
    assert "  percentile 99.9" in lines[0]
    assert [line.split()[:2] for line in lines] == [
        ["layer", "array"],
        ["block/conv", "block/conv"],
        ["block/down", "block/conv"],
        ["tensors/y", "tensors/y"],
    ]
    assert main(["inspect", str(out), "--json"]) == 0
    layers = json.loads(capsys.readouterr().out)["layers"]
    assert {name: (each["array"], each["tensor"]) for name, each in layers.items()} == {
        "block/conv": ("block/conv", "relu"),
        "block/down": ("block/conv", "relu"),
        "tensors/y": ("tensors/y", "y"),
    }
    assert main(["status", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[:3]] == [
        ["layer", "array", "counted"],
        ["block/conv", "block/conv", "24"],
        ["block/down", "block/conv", "24"],
    ]
    assert main(["ranges", str(out), "--method", "mse", "--layers", "block/*", "--json"]) == 0
    ranges = json.loads(capsys.readouterr().out)["layers"]
    assert list(ranges) == ["block/conv", "block/down"]
    assert ranges["block/conv"] == ranges["block/down"]


def test_what_a_mask_leaves_out_is_in_no_result_of_the_layers_that_read_the_array(tmp_path: Path) -> None:
    mask = np.random.default_rng(3).random((24, 6, 7)) < 0.7
    out = {}
    for name, shared in (("once", True), ("apart", False)):
        with ss.Recorder(tmp_path / f"{name}.zarr") as recorder:
            if shared:
                recorder.append("block/conv", VALUES, channel_axis=1, layers=LAYERS, mask=mask)
            else:
                for layer, kernel in LAYERS.items():
                    recorder.append(layer, VALUES, channel_axis=1, kernel=kernel, mask=mask)
        run(job(tmp_path / f"{name}.zarr", tmp_path / name, statistics=["spread", "histogram"]))
        out[name] = tmp_path / name
    assert correctors(out["once"]) == correctors(out["apart"])
    assert compare(out["once"], out["apart"]).equal
    mean = VALUES.astype(np.float64).transpose(1, 0, 2, 3)[:, mask].mean(axis=1)
    np.testing.assert_allclose(open_results(out["once"]).statistics("block/down").mean, mean, rtol=1e-12)
    rules = [LayerRule("block/down", mask="other"), LayerRule("*")]
    with pytest.raises(UsageError, match=r"layer block/conv: .* different `mask` .*block/down: other"):
        select_layers(tmp_path / "once.zarr", rules)


def test_a_manifest_that_names_no_arrays_is_that_of_an_output_of_before(tmp_path: Path) -> None:
    out = counted(tmp_path, shared=False)
    document = json.loads((out / "manifest.json").read_text())
    for entry in document["layers"].values():
        del entry["array"], entry["tensor"]
    (out / "manifest.json").write_text(json.dumps(document))
    results = open_results(out)
    assert results.statistics("block/down").rows == 24
    assert {entry.array for entry in results.manifest.layers.values()} == set(results.layers)
    assert compare(out, counted(tmp_path / "once")).equal
    run(job(tmp_path / "s.zarr", out))


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_parts_that_share_an_array_with_a_tail_merge_with_those_that_do_not(tmp_path: Path, order: str) -> None:
    readers = {name: {"kernel": kernel.to_metadata()} for name, kernel in LAYERS.items()}
    array = {"block/conv": VALUES[:13]}
    about = {"block/conv": {"channel_axis": 1, "layers": readers}}
    store = build_store(tmp_path / "s.zarr", array, chunks=(8, 3, 6, 7), attributes=about)
    only = [{"match": "block/down"}]
    run(job(store, tmp_path / "a", rows="8:13", statistics=["taps"]))
    run(job(store, tmp_path / "b", rows="0:8", statistics=["taps"], layers=only))
    run(job(store, tmp_path / "whole", statistics=["taps"], layers=only))
    merged = merge([tmp_path / name for name in order], tmp_path / "merged")["block/down"]
    whole = open_results(tmp_path / "whole").statistics("block/down")
    assert (merged.statistics, merged.settled) == (whole.statistics, whole.settled)
