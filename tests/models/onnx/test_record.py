"""The store holds the input of every linear layer, as it is, whatever the batches."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import zarr
from graphs import (
    AXES,
    Array,
    Network,
    integers,
    make_model,
    node,
    one_line,
    run_model,
    save_means,
    saved,
    stored,
    stored_layers,
    values,
)
from networks import model_of
from onnx import TensorProto, helper
from stores import files_of
from told import Told

from streamstats.calibration.recorder import Recorder
from streamstats.calibration.sources.choose import source_of
from streamstats.errors import (
    MismatchError,
    MissingDependencyError,
    NonFiniteError,
    OutputError,
    StreamstatsError,
    UsageError,
)
from streamstats.models.onnx.correct import correct
from streamstats.models.onnx.record import record
from streamstats.progress import Quiet, Stage


class Seen(Quiet):
    """What a recording reports: the rows of each stage, and those of each batch."""

    def __init__(self) -> None:
        self.stages: dict[str, tuple[int, list[int]]] = {}

    def begin(self, stage: Stage) -> None:
        self.stages[stage.what] = (stage.rows, [])

    def advance(self, rows: int, size: int = 0) -> None:
        assert size == 0
        list(self.stages.values())[-1][1].append(rows)


@pytest.mark.parametrize("batch_size", [1, 4, 11, 100])
def test_the_store_holds_the_input_of_every_layer(network: Network, tmp_path: Path, batch_size: int) -> None:
    seen = Seen()
    recorded = record(network.path, tmp_path / "x.npy", tmp_path / "store", batch_size=batch_size, progress=seen)
    expected, found = network.activations(), stored(tmp_path / "store")
    assert [layer.layer for layer in recorded] == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == np.float32
        assert stored_layers(tmp_path / "store")[name].channel_axis == AXES[name]
    assert all((layer.samples, layer.reason, layer.dtype) == (11, "", "float32") for layer in recorded)
    assert {layer.layer: layer.channel_axis for layer in recorded} == AXES
    assert seen.stages == {"recording 3 layers": (11, [min(batch_size, 11 - n) for n in range(0, 11, batch_size)])}


def test_two_recordings_leave_the_same_files(network: Network, tmp_path: Path) -> None:
    for name, batch_size in (("a", 4), ("b", 4)):
        record(network.path, tmp_path / "x.npy", tmp_path / name, batch_size=batch_size, storage="int8")
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    assert len(files_of(tmp_path / "a")) >= 6


def test_a_model_that_rounds_its_activations_is_pointed_out(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "step"], ["codes"]),
        helper.make_node("DequantizeLinear", ["codes", "step"], ["rounded"]),
        helper.make_node("MatMul", ["rounded", "w"], ["y"], name="fc"),
    ]
    x = values(8, 3)
    onnx.save(model_of(nodes, {"w": np.eye(3, dtype=np.float32), "step": np.float32(0.5)}, x), tmp_path / "q.onnx")
    np.save(tmp_path / "x.npy", x)
    told = Told()
    record(tmp_path / "q.onnx", tmp_path / "x.npy", tmp_path / "store", progress=told)
    assert [each for each in told.messages if "rounds" in each] == [
        f"note: {tmp_path}/q.onnx rounds its activations, by 1 operator; if it is to be corrected, record the float "
        "model that it was made from"
    ]


def test_int8_storage_is_within_half_a_step(network: Network, tmp_path: Path) -> None:
    recorded = record(network.path, tmp_path / "x.npy", tmp_path / "store", batch_size=4, storage="int8")
    found, layers = stored(tmp_path / "store"), stored_layers(tmp_path / "store")
    for name, real in network.activations().items():
        quantization = layers[name].quantization
        assert quantization is not None
        assert found[name].dtype == np.int8
        assert quantization.channels is None
        error = np.abs(quantization.dequantize(found[name]) - real).max()
        assert error <= quantization.step * 0.5000001
        assert -128 <= quantization.zero_point <= 127
        assert quantization.step <= (max(real.max(), 0) - min(real.min(), 0)) / 255 * 1.0000001
    assert [layer.quantization for layer in recorded] == [layers[layer.layer].quantization for layer in recorded]


def test_the_passes_of_int8_storage_are_two_stages(network: Network, tmp_path: Path) -> None:
    seen = Seen()
    record(network.path, tmp_path / "x.npy", tmp_path / "store", batch_size=8, storage="int8", progress=seen)
    assert seen.stages == {"measuring the ranges of 3 layers": (11, [8, 3]), "recording 3 layers": (11, [8, 3])}


def test_one_batch_of_activations_is_alive_at_a_time(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[list[weakref.ref[Array]]] = []
    original = Recorder.append
    gc.freeze()  # so that each collection looks at what this test makes alone

    def append(self: Recorder, layer: str, samples: Array, **options: Any) -> None:
        if layer == "conv":
            gc.collect()
            assert not any(ref() is not None for batch in batches for ref in batch)
            batches.append([])
        batches[-1].append(weakref.ref(samples))
        original(self, layer, samples, **options)

    monkeypatch.setattr(Recorder, "append", append)
    record(network.path, tmp_path / "x.npy", tmp_path / "store", batch_size=2)
    gc.unfreeze()
    assert [len(batch) for batch in batches] == [3] * 6


def test_layers_are_chosen_by_globs(network: Network, tmp_path: Path) -> None:
    recorded = record(network.path, tmp_path / "x.npy", tmp_path / "store", layers=["head/*", "co?v"])
    assert [layer.layer for layer in recorded if layer.recorded] == ["conv", "head/fc"]
    (other,) = [layer for layer in recorded if not layer.recorded]
    assert (other.layer, other.reason, other.skipped) == ("rows", "not among the `layers` to record", False)
    assert sorted(stored_layers(tmp_path / "store")) == ["conv", "head/fc"]


@pytest.mark.parametrize("storage", ["float", "int8"])
def test_samples_are_appended_on_request_only(network: Network, tmp_path: Path, storage: str) -> None:
    x, store = tmp_path / "x.npy", tmp_path / "store"
    record(network.path, x, store, storage=storage)
    once = stored(store)
    with pytest.raises(UsageError, match="already holds 11 samples of layer conv"):
        record(network.path, x, store, storage=storage)
    record(network.path, x, store, storage=storage, append=True)
    for name, array in stored(store).items():
        np.testing.assert_array_equal(array, np.concatenate([once[name], once[name]]))
    with pytest.raises(MismatchError, match="to append are"):
        record(network.path, x, store, storage="int8" if storage == "float" else "float", append=True)


def test_codes_are_never_saturated_by_appending(network: Network, tmp_path: Path) -> None:
    record(network.path, tmp_path / "x.npy", tmp_path / "store", storage="int8")
    before = stored(tmp_path / "store")
    np.save(tmp_path / "wide.npy", network.x * 2)
    with pytest.raises(MismatchError, match=r"layer conv: the samples to append range over \[-6, 8\]"):
        record(network.path, tmp_path / "wide.npy", tmp_path / "store", storage="int8", append=True)
    for name, array in stored(tmp_path / "store").items():
        np.testing.assert_array_equal(array, before[name])


def test_a_store_may_hold_other_layers(network: Network, tmp_path: Path) -> None:
    record(network.path, tmp_path / "x.npy", tmp_path / "store", layers=["conv"])
    record(network.path, tmp_path / "x.npy", tmp_path / "store", layers=["rows"])
    assert sorted(stored_layers(tmp_path / "store")) == ["conv", "rows"]


def test_consolidated_metadata_does_not_hide_a_layer_that_is_in_the_store(network: Network, tmp_path: Path) -> None:
    x, store = tmp_path / "x.npy", tmp_path / "store"
    record(network.path, x, store, layers=["conv"])
    with pytest.warns(UserWarning, match="Consolidated metadata"):
        zarr.consolidate_metadata(str(store))
    record(network.path, x, store, layers=["rows"])
    with pytest.raises(UsageError, match="already holds 11 samples of layer rows"):
        record(network.path, x, store, layers=["rows"])
    np.testing.assert_array_equal(stored(store)["rows"], network.activations()["rows"])


def test_the_samples_of_several_inputs_come_from_an_npz(tmp_path: Path) -> None:
    nodes = [node("Add", ["a", "b"], "s"), node("MatMul", ["s", "w"], name="layer")]
    source = saved(make_model(nodes, {"w": integers(3, 2)}, {"a": ("N", 3), "b": ("N", 3)}), tmp_path)
    a, b = integers(5, 3), integers(5, 3, seed=1)
    np.savez(tmp_path / "x.npz", a=a, b=b, labels=np.arange(5))
    record(source, tmp_path / "x.npz", tmp_path / "store", batch_size=2)
    np.testing.assert_array_equal(stored(tmp_path / "store")["layer"], a + b)
    np.savez(tmp_path / "y.npz", a=a, labels=np.arange(5))
    with pytest.raises(UsageError, match="holds the arrays a, labels; the model's inputs are a, b"):
        record(source, tmp_path / "y.npz", tmp_path / "other")
    np.savez(tmp_path / "z.npz", a=a, b=b[:4])
    one_line(lambda: record(source, tmp_path / "z.npz", tmp_path / "other"), MismatchError, "{'a': 5, 'b': 4}")


def test_a_model_of_one_input_takes_the_only_array_of_an_npz(network: Network, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", anything=network.x)
    record(network.path, tmp_path / "x.npz", tmp_path / "store")
    np.testing.assert_array_equal(stored(tmp_path / "store")["conv"], network.x)


def test_a_model_with_a_fixed_batch_is_fed_batches_of_it(tmp_path: Path) -> None:
    model = make_model([node("MatMul", ["x", "w"], name="layer")], {"w": integers(3, 2)}, {"x": (4, 3)})
    source, x = saved(model, tmp_path), integers(12, 3)
    np.save(tmp_path / "x.npy", x)
    record(source, tmp_path / "x.npy", tmp_path / "store", batch_size=5)
    np.testing.assert_array_equal(stored(tmp_path / "store")["layer"], x)
    np.testing.assert_array_equal(run_model(source, x), x @ integers(3, 2))
    np.save(tmp_path / "x.npy", x[:10])
    with pytest.raises(UsageError, match="10 samples, but the model takes batches of exactly 4; give a multiple"):
        record(source, tmp_path / "x.npy", tmp_path / "other")


def test_a_layer_whose_input_mixes_samples_is_left_out_with_a_reason(tmp_path: Path) -> None:
    nodes = [
        node("MatMul", ["x", "w"], "h", "good"),
        node("Reshape", ["h", "shape"], "folded"),
        node("MatMul", ["folded", "w"], "z", "folded"),
        node("ReduceMean", ["h"], "flat", axes=[0], keepdims=0),
        node("MatMul", ["flat", "w"], "y", "reduced"),
        node("Transpose", ["h"], "t", perm=[1, 0, 2]),
        node("MatMul", ["t", "w"], "u", "swapped"),
    ]
    constants = {"w": integers(3, 3), "shape": np.array([-1, 3], np.int64)}
    source = saved(make_model(nodes, constants, {"x": ("N", 2, 3)}, ["y", "z", "u"]), tmp_path)
    np.save(tmp_path / "x.npy", integers(6, 2, 3))
    recorded = {layer.layer: layer for layer in record(source, tmp_path / "x.npy", tmp_path / "store", batch_size=2)}
    assert recorded["good"].samples == recorded["folded"].samples == recorded["swapped"].samples == 6
    assert recorded["reduced"].samples == 0
    assert "does not depend on the samples, or mixes them" in recorded["reduced"].reason
    assert sorted(stored_layers(tmp_path / "store")) == ["folded", "good", "swapped"]
    with pytest.raises(UsageError, match=r"nothing to record: reduced \(its input flat has the shape"):
        record(source, tmp_path / "x.npy", tmp_path / "other", layers=["reduced"])


def test_a_batch_in_which_a_layer_loses_samples_is_refused_whole(tmp_path: Path) -> None:
    nodes = [
        node("MatMul", ["x", "w"], "h", "first"),
        node("ReduceMin", ["x"], "least", axes=[1], keepdims=0),
        node("Greater", ["least", "zero"], "kept"),
        node("Compress", ["x", "kept"], "c", axis=0),
        node("MatMul", ["c", "w"], "y", "second"),
    ]
    model = make_model(nodes, {"w": integers(3, 2), "zero": np.float32(0)}, {"x": ("N", 3)}, ["h", "y"])
    x = np.ones((40, 3), np.float32)
    x[7] = -1  # none of the samples that are tried
    np.save(tmp_path / "x.npy", x)
    one_line(
        lambda: record(saved(model, tmp_path), tmp_path / "x.npy", tmp_path / "store", batch_size=2),
        MismatchError,
        "layer second: its input for the samples 6:8 has the shape (1, 3)",
    )
    assert not (tmp_path / "store").exists()


def test_activations_that_cannot_be_coded_are_refused_and_those_of_float_storage_kept(tmp_path: Path) -> None:
    nodes = [node("Log", ["x"], "l"), node("MatMul", ["l", "w"], name="layer")]
    source = saved(make_model(nodes, {"w": integers(3, 2)}, {"x": ("N", 3)}), tmp_path)
    x = np.ones((6, 3), np.float32)
    x[4, 1] = -1
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(NonFiniteError, match=r"layer layer: its input for the samples 4:6 holds NaN"):
        record(source, tmp_path / "x.npy", tmp_path / "store", batch_size=2, storage="int8")
    assert not (tmp_path / "store").exists()
    record(source, tmp_path / "x.npy", tmp_path / "store", batch_size=2)
    assert np.isnan(stored(tmp_path / "store")["layer"][4, 1])


@pytest.mark.parametrize("module", ["onnx", "onnxruntime"])
def test_a_missing_library_is_named_with_its_remedy(
    module: str, network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    one_line(
        lambda: record(network.path, tmp_path / "x.npy", tmp_path / "store"),
        MissingDependencyError,
        module,
        "pip install '.[onnx]'",
    )


BAD_SAMPLES: dict[str, tuple[Any, type[StreamstatsError], str]] = {
    "missing": (None, UsageError, "No such file"),
    "empty file": (b"", UsageError, "not a .npy or .npz file"),
    "noise": (b"hello, world", UsageError, "not a .npy or .npz file"),
    "broken zip": (b"PK\x03\x04nothing", UsageError, "not a .npy or .npz file"),
    "objects": (np.array([{}], dtype=object), UsageError, "not a .npy or .npz file"),
    "float64": (integers(4, 3, 5, 6).astype(np.float64), MismatchError, "expects float32"),
    "big-endian": (integers(4, 3, 5, 6).astype(">f4"), MismatchError, ">f4"),
    "strings": (np.array(["a"]), MismatchError, "expects float32"),
    "rank": (integers(4, 3, 5), MismatchError, "(4, 3, 5); the model expects (N, 3, 5, 6)"),
    "extent": (integers(4, 5, 6, 3), MismatchError, "(4, 5, 6, 3); the model expects (N, 3, 5, 6)"),
    "scalar": (np.float32(1), MismatchError, "the shape ()"),
    "no samples": (integers(0, 3, 5, 6), UsageError, "holds no samples"),
}


@pytest.mark.parametrize(("content", "kind", "fragment"), BAD_SAMPLES.values(), ids=BAD_SAMPLES)
def test_samples_that_do_not_fit_are_refused_in_one_line(
    content: Any, kind: type[StreamstatsError], fragment: str, network: Network, tmp_path: Path
) -> None:
    path = tmp_path / "bad.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content, allow_pickle=True)
    one_line(lambda: record(network.path, path, tmp_path / "store"), kind, "bad.npy", fragment)
    assert not (tmp_path / "store").exists()


def test_a_store_without_room_for_a_layer_is_refused_before_anything_is_written(
    network: Network, tmp_path: Path
) -> None:
    def attempt(store: Path) -> Callable[[], object]:
        return lambda: record(network.path, tmp_path / "x.npy", store, append=True)

    zarr.open_group(tmp_path / "above", mode="a").create_array("head", shape=(2, 2), dtype="f4")
    one_line(attempt(tmp_path / "above"), UsageError, "head is a layer, so head/fc cannot be")
    zarr.open_group(tmp_path / "below", mode="a").create_array("conv/deep", shape=(2, 2), dtype="f4")
    one_line(attempt(tmp_path / "below"), UsageError, "conv is a group of layers")
    one_line(attempt(tmp_path / "below" / "conv" / "deep"), UsageError, "not a zarr group")
    assert list(source_of(tmp_path / "above").find().arrays) == ["head"]
    assert list(source_of(tmp_path / "below").find().arrays) == ["conv/deep"]
    (tmp_path / "file").write_text("hello")
    one_line(attempt(tmp_path / "file"), OutputError, "file")


def test_requests_to_record_that_make_no_sense_are_refused_in_one_line(network: Network, tmp_path: Path) -> None:
    def attempt(**options: Any) -> Callable[[], object]:
        return lambda: record(network.path, tmp_path / "x.npy", tmp_path / "store", **options)

    one_line(attempt(storage="int4"), UsageError, "storage is 'int4'; expected one of float, int8")
    one_line(attempt(batch_size=0), UsageError, "the batch size is 0")
    one_line(attempt(layers=["nothing*"]), UsageError, "match nothing*", "conv, rows, head/fc")
    assert not (tmp_path / "store").exists()


def test_a_model_that_cannot_be_run_is_refused_in_one_line(tmp_path: Path) -> None:
    model = make_model([node("MatMul", ["x", "w"], domain="")], {"w": values(3, 2)}, {"x": ("N", 4)})
    np.save(tmp_path / "x.npy", values(4, 4))
    one_line(lambda: record(saved(model, tmp_path), tmp_path / "x.npy", tmp_path / "s"), UsageError, "onnxruntime")
    reshape = [node("Reshape", ["x", "shape"], "h"), node("MatMul", ["h", "w"])]
    constants = {"w": values(3, 2), "shape": np.array([1, 3], np.int64)}
    path = saved(make_model(reshape, constants, {"x": ("N", 3)}), tmp_path)
    np.save(tmp_path / "x.npy", values(4, 3))
    told = "2 samples at once", "x (2, 3)", "dynamic"
    one_line(lambda: record(path, tmp_path / "x.npy", tmp_path / "s"), UsageError, *told)
    nodes = [node("Mul", ["x", "z"], "h"), node("MatMul", ["h", "w"])]
    pair = make_model(nodes, {"w": values(3, 2)}, {"x": ("N", 3)})
    pair.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", "T"]))
    np.savez(tmp_path / "x.npz", x=values(4, 3), z=values(4, 2))
    with pytest.raises(UsageError, match=r"fails on 1 sample at once: .* 2 by 3") as refused:
        record(saved(pair, tmp_path), tmp_path / "x.npz", tmp_path / "s")
    assert str(refused.value).endswith("x (1, 3); z (1, 2); check that they fit the model and one another")
    assert not (tmp_path / "s").exists()


def test_a_model_without_linear_layers_has_nothing_to_record_or_correct(tmp_path: Path) -> None:
    source = saved(make_model([node("Relu", ["x"])], {}, {"x": ("N", 3)}), tmp_path)
    np.save(tmp_path / "x.npy", values(4, 3))
    out = save_means(tmp_path / "out", {"layer": np.ones(3)})
    one_line(lambda: record(source, tmp_path / "x.npy", tmp_path / "s"), UsageError, "no layer to record", "none of")
    one_line(lambda: correct(source, out, tmp_path / "c.onnx", bits=3), UsageError, "no layer to quantise", "none of")


def test_importing_the_modules_imports_neither_library() -> None:
    code = "import sys, streamstats.models.onnx; assert not {'onnx', 'onnxruntime'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_new_store_that_could_not_be_finished_is_removed(tmp_path):
    model = saved(
        make_model([node("Gemm", ["x", "w"], name="g")], {"w": np.eye(3, dtype=np.float32)}, {"x": ("N", 3)}), tmp_path
    )
    np.save(tmp_path / "x.npy", np.ones((8, 3), np.float32))

    class Stopping(Quiet):
        def advance(self, rows: int, size: int = 0) -> None:  # noqa: ARG002
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record(model, tmp_path / "x.npy", tmp_path / "s", batch_size=2, progress=Stopping())
    assert not (tmp_path / "s").exists()
    record(model, tmp_path / "x.npy", tmp_path / "s", batch_size=2)
    with pytest.raises(KeyboardInterrupt):
        record(model, tmp_path / "x.npy", tmp_path / "s", batch_size=2, append=True, progress=Stopping())
    assert (tmp_path / "s").exists()
