"""A tensor that several layers read is stored once, and their corrections are those of an array for each of them."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from graphs import make_model, node, saved, stored, stored_layers, values
from networks import Batches
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationMethod, QuantFormat, quantize_static
from onnxruntime.quantization.calibrate import CalibraterBase, TensorsData, create_calibrator, save_tensors_data

import streamstats as ss
from streamstats.cli import main
from streamstats.config import JobConfig
from streamstats.errors import MismatchError, UsageError
from streamstats.jobs.run import run
from streamstats.models.onnx.correct import How, correct, correct_quantized
from streamstats.models.onnx.iterative import Iterative
from streamstats.models.onnx.judge import HeldOut
from streamstats.models.onnx.quantizable import quantizable_tensors
from streamstats.models.onnx.record import measure, record
from streamstats.outputs.results import open_results

SHARED = {"block/down": "block/conv", "block/conv": "block/conv", "key": "query", "query": "query"}
X = values(40, 3, 8, 8)


def block() -> Any:
    """A block of a residual network, in which two convolutions of other kernels read one tensor, and two matrices."""
    nodes = [
        node("Conv", ["x", "w0"], "stem", "stem", pads=[1] * 4),
        node("Relu", ["stem"], "r"),
        node("Conv", ["r", "w1", "b1"], "main", "block/conv", pads=[1] * 4, strides=[2, 2]),
        node("Conv", ["r", "w2"], "skip", "block/down", strides=[2, 2]),
        node("Add", ["main", "skip"], "sum"),
        node("Relu", ["sum"], "s"),
        node("Flatten", ["s"], "f"),
        node("Transpose", ["wt"], "wk", perm=[1, 0]),
        node("MatMul", ["f", "wq"], "q", "query"),
        node("MatMul", ["f", "wk"], "k", "key"),
        node("Add", ["q", "k"], "y"),
    ]
    constants = {
        "w0": values(4, 3, 3, 3, seed=1),
        "w1": values(6, 4, 3, 3, seed=2),
        "b1": values(6, seed=3),
        "w2": values(6, 4, 1, 1, seed=4),
        "wq": values(96, 5, seed=5),
        "wt": values(5, 96, seed=6),
    }
    return make_model(nodes, constants, {"x": ("N", 3, 8, 8)})


@pytest.fixture
def model(tmp_path: Path) -> Path:
    np.save(tmp_path / "x.npy", X)
    return saved(block(), tmp_path)


def tensors(model: Path, names: list[str]) -> dict[str, Any]:
    """The tensors `names` for all samples, from the runtime."""
    whole = onnx.load(model)
    whole.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name != "y")
    options = onnxruntime.SessionOptions()
    session = onnxruntime.InferenceSession(whole.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(names, {"x": X}), strict=True))


def stored_apart(model: Path, store: Path) -> Path:
    """A store as versions of before recorded it: an array per layer."""
    once = stored_layers(recorded(model, store.with_name("once.zarr")))
    with ss.Recorder(store) as recorder:
        for layer in once.values():
            for name in layer.names:
                kernel = layer.read_by.kernel_of(name)
                samples = stored(store.with_name("once.zarr"))[layer.name]
                recorder.append(name, samples, channel_axis=layer.channel_axis, kernel=kernel)
    return store


def recorded(model: Path, store: Path, **options: Any) -> Path:
    record(model, model.parent / "x.npy", store, **options)
    return store


def run_out(store: Path, output: Path, *statistics: str) -> Path:
    run(JobConfig(source=str(store), output=str(output), statistics=list(statistics)).job())
    return output


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_tensor_is_stored_once_and_names_the_layers_that_read_it(model: Path, tmp_path: Path) -> None:
    found = record(model, tmp_path / "x.npy", tmp_path / "s.zarr")
    assert {each.layer: each.array for each in found} == {"stem": "stem", **SHARED}
    assert {each.layer: each.tensor for each in found if each.layer != "stem"} == {
        "block/conv": "r",
        "block/down": "r",
        "query": "f",
        "key": "f",
    }
    layers, expected = stored_layers(tmp_path / "s.zarr"), tensors(model, ["r", "f"])
    assert {name: (each.tensor, each.names) for name, each in layers.items()} == {
        "stem": ("x", ("stem",)),
        "block/conv": ("r", ("block/conv", "block/down")),
        "query": ("f", ("key", "query")),
    }
    np.testing.assert_allclose(stored(tmp_path / "s.zarr")["block/conv"], expected["r"], rtol=1e-4)
    np.testing.assert_allclose(stored(tmp_path / "s.zarr")["query"], expected["f"], rtol=1e-4)
    assert size(tmp_path / "s.zarr") < 0.7 * size(stored_apart(model, tmp_path / "apart.zarr"))


@pytest.mark.parametrize("statistics", [(), ("taps", "spread")])
def test_corrections_have_the_bytes_of_those_from_an_array_per_layer(
    model: Path, tmp_path: Path, statistics: tuple[str, ...]
) -> None:
    once = run_out(recorded(model, tmp_path / "s.zarr"), tmp_path / "out", *statistics)
    apart = run_out(stored_apart(model, tmp_path / "apart.zarr"), tmp_path / "before", *statistics)
    measure(model, tmp_path / "x.npy", tmp_path / "measured", statistics=statistics)
    fixed = []
    for output in (once, apart, tmp_path / "measured"):
        done = correct(model, output, output.with_suffix(".onnx"), bits=4)
        assert all(each.corrected for each in done.layers)
        assert sorted(each.layer for each in done.layers) == ["block/conv", "block/down", "key", "query", "stem"]
        fixed.append(output.with_suffix(".onnx").read_bytes())
    assert fixed[0] == fixed[1] == fixed[2]


def test_layer_by_layer_and_judging_find_every_layer(model: Path, tmp_path: Path) -> None:
    once = run_out(recorded(model, tmp_path / "s.zarr"), tmp_path / "out", "taps")
    apart = run_out(stored_apart(model, tmp_path / "apart.zarr"), tmp_path / "before", "taps")
    np.save(tmp_path / "held.npy", values(12, 3, 8, 8, seed=9))
    fixed = []
    for output in (once, apart):
        how = How(Iterative(tmp_path / "x.npy", tmp_path / "work"), HeldOut(tmp_path / "held.npy"))
        done = correct(model, output, output.with_suffix(".onnx"), bits=4, how=how)
        assert done.judgement is not None
        assert sorted(done.judgement.layers) == ["block/conv", "block/down", "key", "query", "stem"]
        fixed.append(output.with_suffix(".onnx").read_bytes())
    assert fixed[0] == fixed[1]


def test_appending_goes_on_with_the_arrays_that_the_store_has(model: Path, tmp_path: Path) -> None:
    apart = stored_apart(model, tmp_path / "apart.zarr")
    recorded(model, apart, append=True)
    assert {name: layer.rows for name, layer in stored_layers(apart).items()} == dict.fromkeys([*SHARED, "stem"], 80)
    once = tmp_path / "once.zarr"
    with pytest.raises(UsageError, match="already holds 40 samples of layer query"):
        recorded(model, once, layers=["key"])
    found = record(model, tmp_path / "x.npy", once, layers=["key"], append=True)
    assert [(each.layer, each.array) for each in found if each.recorded] == [("key", "query")]
    assert {name: layer.rows for name, layer in stored_layers(once).items()} == {
        "block/conv": 40,
        "query": 80,
        "stem": 40,
    }
    assert stored_layers(once)["query"].names == ("key", "query")


def test_a_model_in_which_the_layers_read_other_tensors_is_not_appended(model: Path, tmp_path: Path) -> None:
    store = recorded(model, tmp_path / "s.zarr")
    other = onnx.load(model)
    down = next(each for each in other.graph.node if each.name == "block/down")
    down.input[0] = "stem"
    with pytest.raises(MismatchError, match="shares its input with layer block/down, but in the model it does not"):
        recorded(saved(other, tmp_path, "other.onnx"), store, append=True, layers=["block/conv"])


def test_layers_that_read_other_axes_of_a_tensor_have_an_array_each(tmp_path: Path) -> None:
    nodes = [node("Conv", ["x", "w"], "c", "conv"), node("MatMul", ["x", "m"], "y", "matrix")]
    constants = {"w": values(2, 3, 2), "m": values(5, 2)}
    source = saved(make_model(nodes, constants, {"x": ("N", 3, 5)}, ["c", "y"]), tmp_path)
    np.save(tmp_path / "x.npy", values(6, 3, 5))
    record(source, tmp_path / "x.npy", tmp_path / "s.zarr")
    assert {name: layer.channel_axis for name, layer in stored_layers(tmp_path / "s.zarr").items()} == {
        "conv": 1,
        "matrix": 2,
    }


# What onnxruntime quantises


@pytest.mark.parametrize("storage", ["float", "int8"])
def test_quantizable_tensors_are_those_that_onnxruntime_calibrates_each_once(
    model: Path, tmp_path: Path, storage: str
) -> None:
    found = record(model, tmp_path / "x.npy", tmp_path / "s.zarr", tensors="quantizable", storage=storage, batch_size=7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted, _ = CalibraterBase(model).select_tensors_to_calibrate(onnx.load(model))
    layers = stored_layers(tmp_path / "s.zarr")
    assert sorted(layer.tensor for layer in layers.values()) == sorted(wanted)
    assert {"x", "stem", "r", "main", "skip", "sum", "s", "f", "q", "k", "y", "wk"} == wanted
    assert {each.layer: each.array for each in found if not each.op} == {
        f"tensors/{name}": f"tensors/{name}" for name in wanted - {"x", "r", "f"}
    }
    for layer in layers.values():
        real, codes = tensors(model, [layer.tensor])[layer.tensor], stored(tmp_path / "s.zarr")[layer.name]
        expected = real[np.newaxis] if layer.tensor == "wk" else real  # the same for all samples: one row
        if storage == "float":
            np.testing.assert_allclose(codes, expected, rtol=1e-4)  # its outputs decide what the runtime fuses
        assert layer.shape == expected.shape
        assert layer.channel_axis == (1 if expected.ndim == 4 else expected.ndim - 1)


def test_their_ranges_make_the_model_that_onnxruntime_makes_of_its_own_calibration(model: Path, tmp_path: Path) -> None:
    recorded(model, tmp_path / "s.zarr", tensors="quantizable")
    results = open_results(run_out(tmp_path / "s.zarr", tmp_path / "out", "taps"))
    assert results.statistics("tensors/wk").rows == 1
    assert sorted(path.stem for path in (tmp_path / "out/correctors").rglob("*")) == sorted(
        ["block", "conv", "down", "key", "query", "stem"]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        calibrator = create_calibrator(model, augmented_model_path=str(tmp_path / "augmented.onnx"))
        calibrator.collect_data(Batches(X))
        theirs = calibrator.compute_data()
        ranges = {}
        for layer in results.layers:
            each = results.statistics(layer)
            low, high = np.float32(np.min(each.minimum)), np.float32(np.max(each.maximum))
            ranges[each.tensor] = (np.array(low), np.array(high))
        assert sorted(ranges) == sorted(theirs.keys())
        for name, each in theirs.items():
            np.testing.assert_allclose(ranges[name], np.ravel(each.range_value), rtol=1e-5)
        save_tensors_data(TensorsData(CalibrationMethod.MinMax, ranges), tmp_path / "cache.json")
        save_tensors_data(theirs, tmp_path / "theirs.json")
        for form in (QuantFormat.QDQ, QuantFormat.QOperator):
            scales = []
            for cache in ("cache.json", "theirs.json"):
                quantize_static(
                    model, tmp_path / "q.onnx", None, calibration_cache_path=tmp_path / cache, quant_format=form
                )
                constants = onnx.load(tmp_path / "q.onnx").graph.initializer
                scales.append({each.name: numpy_helper.to_array(each) for each in constants})
            assert scales[0].keys() == scales[1].keys()
            for name, scale in scales[0].items():
                np.testing.assert_allclose(scale, scales[1][name], rtol=1e-5, atol=1)


def test_an_exported_cache_is_complete_and_names_every_tensor(model: Path, tmp_path: Path) -> None:
    recorded(model, tmp_path / "s.zarr", tensors="quantizable")
    out = run_out(tmp_path / "s.zarr", tmp_path / "out", "taps", "histogram")
    command = ["export", str(out), "--format", "onnxruntime", "--method", "mse"]
    for more in ([], ["--model", str(model)]):
        cache = tmp_path / f"cache{len(more)}.json"
        assert main([*command, "-o", str(cache), *more]) == 0
        assert sorted(json.loads(cache.read_text())["data"]) == sorted(quantizable_tensors(model))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quantize_static(model, tmp_path / "q.onnx", None, calibration_cache_path=cache)
        constants = {each.name: each for each in onnx.load(tmp_path / "q.onnx").graph.initializer}
        expected = ss.find_ranges(out, "mse")["block/down"].quantization.step
        assert numpy_helper.to_array(constants["r_scale"]) == pytest.approx(float(expected), rel=1e-6)


def test_the_names_of_tensors_never_take_those_of_layers(tmp_path: Path) -> None:
    nodes = [
        node("MatMul", ["x", "w"], "tensors/a", "tensors"),
        node("Relu", ["tensors/a"], "r"),
        node("MatMul", ["r", "w"], "r/1", "tensors/b"),
        node("Relu", ["r/1"], "y"),
    ]
    source = saved(make_model(nodes, {"w": values(3, 3)}, {"x": ("N", 3)}), tmp_path)
    np.save(tmp_path / "x.npy", values(4, 3))
    found = record(source, tmp_path / "x.npy", tmp_path / "s.zarr", tensors="quantizable")
    names = {layer.tensor: name for name, layer in stored_layers(tmp_path / "s.zarr").items()}
    layers = {each.layer for each in found if each.op}
    assert sorted(names) == ["r", "r/1", "tensors/a", "x", "y"]
    assert {name for tensor, name in names.items() if tensor in ("x", "r")} == layers
    assert names["tensors/a"] == "tensors_3/tensors/a"  # the first layer became tensors_2, as a folder has its name


def test_single_values_per_sample_are_one_channel(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "w"], "m", "fc"), node("Squeeze", ["m", "axes"])]
    constants = {"w": values(3, 1), "axes": np.array([1])}
    source = saved(make_model(nodes, constants, {"x": ("N", 3)}), tmp_path)
    x = values(7, 3)
    np.save(tmp_path / "x.npy", x)
    record(source, tmp_path / "x.npy", tmp_path / "s.zarr", tensors="quantizable", batch_size=3)
    np.testing.assert_allclose(stored(tmp_path / "s.zarr")["tensors/y"], x @ constants["w"], rtol=1e-6)


def test_requests_for_tensors_that_make_no_sense_are_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="tensors is 'all'; expected one of layers, quantizable"):
        recorded(model, tmp_path / "s.zarr", tensors="all")
    with pytest.raises(UsageError, match="cannot be combined; leave one out"):
        recorded(model, tmp_path / "s.zarr", tensors="quantizable", layers=["stem"])
    assert not (tmp_path / "s.zarr").exists()


def test_the_command_says_which_array_each_layer_reads(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--samples", str(tmp_path / "x.npy"), "--tensors", "quantizable"]
    assert main(["record", str(model), *arguments, "-o", str(tmp_path / "s.zarr")]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["block/down", "Conv", "block/conv", "40", "4×8×8", "float32"] in rows
    assert ["tensors/y", "tensors/y", "40", "5", "float32"] in rows
    assert main(["measure", str(model), *arguments, "-o", str(tmp_path / "out"), "--json"]) == 0
    layers = json.loads(capsys.readouterr().out)["layers"]
    assert (layers["key"]["array"], layers["key"]["tensor"]) == ("query", "f")


def test_a_quantised_model_of_others_is_corrected_from_shared_arrays(model: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantize_static(model, tmp_path / "q.onnx", Batches(X))
    once = run_out(recorded(model, tmp_path / "s.zarr"), tmp_path / "out", "taps")
    done = correct_quantized(model, tmp_path / "q.onnx", once, tmp_path / "fixed.onnx")
    assert sorted(each.layer for each in done.layers if each.corrected) == sorted([*SHARED, "stem"])
