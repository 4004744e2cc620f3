"""Rows: samples are found on whichever axis they are, and where they have no one shape, positions are rows.

What is stored is compared with the same network in numpy, of integers, so that it is exact in any order.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import yaml
from graphs import integers, make_model, node, one_line, saved, stored, stored_layers, values
from onnx import TensorProto, helper

from streamstats.cli import main
from streamstats.config import JobConfig
from streamstats.errors import MismatchError, StreamstatsError, UsageError
from streamstats.jobs.run import run
from streamstats.models.onnx.correct import How, correct
from streamstats.models.onnx.iterative import Iterative
from streamstats.models.onnx.judge import HeldOut
from streamstats.models.onnx.record import RecordedLayer, measure, record
from streamstats.outputs.results import open_results
from streamstats.progress import Quiet

Array = np.ndarray[Any, Any]
N, T, C = 7, 5, 4
W = {"w1": integers(C, 6, seed=1), "w2": integers(6, 3, seed=2)}
TO_ROWS = {"rows": np.array([-1, C], np.int64), "rows6": np.array([-1, 6], np.int64)}


class Heard(Quiet):
    """What a recording says."""

    def __init__(self) -> None:
        self.said = ""

    def say(self, text: str) -> None:
        self.said += text + "\n"


def recorded(model: Path, samples: Any, store: Path, **options: Any) -> dict[str, RecordedLayer]:
    return {layer.layer: layer for layer in record(model, samples, store, **options)}


def projections(x: Array) -> dict[str, Array]:
    """The inputs of two projections, for tokens `x` [..., C]."""
    return {"first": x, "second": np.maximum(x @ W["w1"], 0)}


def on_rows(folder: Path, shape: tuple[Any, ...], *before: Any, source: str = "x", op: str = "Gemm") -> Path:
    """Two projections over the rows of all tokens; `before` are nodes in front of them, which give `source`."""
    nodes = [
        *before,
        node("Reshape", [source, "rows"], "flat"),
        node(op, ["flat", "w1"], "a", "first"),
        node("Relu", ["a"], "h"),
        node(op, ["h", "w2"], "y", "second"),
    ]
    return saved(make_model(nodes, {**W, "rows": TO_ROWS["rows"]}, {"x": shape}), folder)


TOKENS = integers(N, T, C)


@pytest.mark.parametrize("op", ["Gemm", "MatMul"])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 16])
def test_tokens_behind_a_reshape_belong_to_their_samples(tmp_path: Path, op: str, batch_size: int) -> None:
    model = on_rows(tmp_path, ("N", "T", C), op=op)
    np.save(tmp_path / "x.npy", TOKENS)
    layers = recorded(model, tmp_path / "x.npy", tmp_path / "s", batch_size=batch_size)
    for name, expected in projections(TOKENS).items():
        np.testing.assert_array_equal(stored(tmp_path / "s")[name], expected)
        assert (layers[name].samples, layers[name].rows_are, layers[name].channel_axis) == (N, "samples", 2)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 16])
def test_tokens_of_time_first_belong_to_their_samples(tmp_path: Path, batch_size: int) -> None:
    """In a row of the flat tensor, the sample varies faster than the time."""
    model = on_rows(tmp_path, ("T", "N", C))
    np.save(tmp_path / "x.npy", TOKENS.transpose(1, 0, 2))
    recorded(model, tmp_path / "x.npy", tmp_path / "s", batch_size=batch_size, batch_axes={"x": 1})
    for name, expected in projections(TOKENS).items():
        np.testing.assert_array_equal(stored(tmp_path / "s")[name], expected)
    model = on_rows(tmp_path, ("N", "T", C), node("Transpose", ["x"], "t", perm=[1, 0, 2]), source="t")
    np.save(tmp_path / "x.npy", TOKENS)
    recorded(model, tmp_path / "x.npy", tmp_path / "t", batch_size=batch_size)
    for name, expected in projections(TOKENS).items():
        np.testing.assert_array_equal(stored(tmp_path / "t")[name], expected)


@pytest.mark.parametrize("batch", [1, 7])
def test_a_fixed_batch_is_told_apart_by_the_order_of_its_samples(tmp_path: Path, batch: int) -> None:
    swap = node("Transpose", ["x"], "t", perm=[1, 0, 2])
    np.save(tmp_path / "x.npy", TOKENS)
    for name, source, before in (("rows", "x", []), ("time", "t", [swap])):
        model = on_rows(tmp_path, (batch, T, C), *before, source=source)
        recorded(model, tmp_path / "x.npy", tmp_path / name)
        for layer, expected in projections(TOKENS).items():
            np.testing.assert_array_equal(stored(tmp_path / name)[layer], expected)


def test_a_fixed_batch_of_as_many_samples_as_tokens_is_not_confused(tmp_path: Path) -> None:
    x = integers(2 * T, T, C)
    nodes = [node("Transpose", ["x"], "t", perm=[1, 0, 2]), node("MatMul", ["t", "w1"], name="first")]
    model = saved(make_model(nodes, {"w1": W["w1"]}, {"x": (T, T, C)}), tmp_path)
    np.save(tmp_path / "x.npy", x)
    record(model, tmp_path / "x.npy", tmp_path / "s")
    np.testing.assert_array_equal(stored(tmp_path / "s")["first"], x)


def test_windows_of_an_image_belong_to_their_samples(tmp_path: Path) -> None:
    x, shape = integers(N, 4, 4, C), np.array([-1, 2, 2, 2, 2, C], np.int64)
    nodes = [
        node("Reshape", ["x", "blocks"], "b"),
        node("Transpose", ["b"], "t", perm=[0, 1, 3, 2, 4, 5]),
        node("Reshape", ["t", "windows"], "w"),
        node("MatMul", ["w", "w1"], name="first"),
    ]
    constants = {"w1": W["w1"], "blocks": shape, "windows": np.array([-1, 4, C], np.int64)}
    model = saved(make_model(nodes, constants, {"x": ("N", 4, 4, C)}), tmp_path)
    np.save(tmp_path / "x.npy", x)
    record(model, tmp_path / "x.npy", tmp_path / "s", batch_size=3)
    windows = x.reshape(N, 2, 2, 2, 2, C).transpose(0, 1, 3, 2, 4, 5).reshape(N, 4, 4, C)
    np.testing.assert_array_equal(stored(tmp_path / "s")["first"], windows)


def test_samples_that_the_first_ones_do_not_tell_apart_become_positions(tmp_path: Path) -> None:
    model, x = on_rows(tmp_path, ("N", "T", C)), TOKENS.copy()
    x[:2] = 3
    np.save(tmp_path / "x.npy", x)
    layers = recorded(model, tmp_path / "x.npy", tmp_path / "s", batch_size=3)
    for name, expected in projections(x).items():
        np.testing.assert_array_equal(stored(tmp_path / "s")[name], expected.reshape(N * T, -1))
        assert (layers[name].samples, layers[name].rows_are) == (N * T, "positions")


# Several inputs


def with_state(folder: Path) -> Path:
    """y = [x; first and last state] · w, scaled by a scalar: a state [L, N, C], as recurrent models take it."""
    nodes = [
        node("MatMul", ["state", "w1"], "s", "states"),
        node("ReduceSum", ["s", "zero"], "sum", keepdims=0),
        node("Mul", ["x", "rate"], "scaled"),
        node("MatMul", ["scaled", "w1"], "a", "inputs"),
        node("Add", ["a", "sum"], "h"),
        node("MatMul", ["h", "w2"], "y", "head"),
    ]
    constants = {**W, "zero": np.array([0], np.int64)}
    model = make_model(nodes, constants, {"x": ("batch", C), "state": (2, "batch", C), "rate": ()})
    return saved(model, folder)


STATES = {"x": integers(N, C), "state": integers(2, N, C), "rate": np.float32(2)}


def heads(x: Array, state: Array, rate: Array) -> dict[str, Array]:
    return {
        "states": np.moveaxis(state, 1, 0),
        "inputs": x * rate,
        "head": (x * rate) @ W["w1"] + (state @ W["w1"]).sum(axis=0),
    }


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_states_with_samples_on_another_axis_and_scalars(tmp_path: Path, batch_size: int) -> None:
    model, samples = with_state(tmp_path), tmp_path / "x.npz"
    np.savez(samples, **STATES)
    record(model, samples, tmp_path / "s", batch_axes={"state": 1}, batch_size=batch_size)
    for name, expected in heads(**STATES).items():
        np.testing.assert_array_equal(stored(tmp_path / "s")[name], expected)


def test_an_axis_is_asked_for_where_it_is_not_clear(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **STATES)
    one_line(
        lambda: record(with_state(tmp_path), tmp_path / "x.npz", tmp_path / "s"),
        UsageError,
        "input state has the shape (2, batch, 4)",
        "--batch-axis state=1",
    )
    np.save(tmp_path / "x.npy", TOKENS.transpose(1, 0, 2))
    for shape in (("time", "batch", C), (T, "N", C)):
        model = on_rows(tmp_path, shape)
        one_line(
            lambda model=model: record(model, tmp_path / "x.npy", tmp_path / "s"),
            UsageError,
            "--batch-axis x=1",
        )
    record(on_rows(tmp_path, (T, "N", C)), tmp_path / "x.npy", tmp_path / "s", batch_axes={"x": 1})


def test_an_input_may_be_the_same_for_all_samples(tmp_path: Path) -> None:
    nodes = [node("Add", ["x", "table"], "t"), node("MatMul", ["t", "w1"], name="first")]
    model = saved(make_model(nodes, {"w1": W["w1"]}, {"x": ("N", T, C), "table": (T, C)}), tmp_path)
    table = integers(T, C, seed=9)
    np.savez(tmp_path / "x.npz", x=TOKENS, table=table)
    one_line(
        lambda: record(model, tmp_path / "x.npz", tmp_path / "s"),
        MismatchError,
        "{'x': 7, 'table': 5}",
        "--batch-axis NAME=1",
        "`none` for an input that is the same for all samples",
    )
    record(model, tmp_path / "x.npz", tmp_path / "s", batch_axes={"table": None})
    np.testing.assert_array_equal(stored(tmp_path / "s")["first"], TOKENS + table)


BAD_AXES: dict[str, tuple[dict[str, int | None], str]] = {
    "no such input": ({"z": 1}, "the model's inputs are x"),
    "no such axis": ({"x": 3}, "expected 0 to 2"),
    "negative": ({"x": -1}, "expected 0 to 2"),
}


@pytest.mark.parametrize(("axes", "fragment"), BAD_AXES.values(), ids=BAD_AXES)
def test_axes_that_no_input_has_are_refused(axes: dict[str, int | None], fragment: str, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", TOKENS)
    model = on_rows(tmp_path, ("N", "T", C))
    one_line(lambda: record(model, tmp_path / "x.npy", tmp_path / "s", batch_axes=axes), UsageError, fragment)


# Shapes that change


LENGTHS = (3, 5, 1, 5, 2)


def batches_of_tokens(folder: Path, sizes: tuple[int, ...] = (2, 3, 1, 4, 2)) -> list[Array]:
    """Files of sentences, each of a length of its own."""
    (folder / "samples").mkdir()
    found = [integers(n, length, C, seed=length + n) for n, length in zip(sizes, LENGTHS, strict=True)]
    for number, each in enumerate(found):
        np.save(folder / "samples" / f"{number}.npy", each)
    return found


@pytest.mark.parametrize("sizes", [(2, 3, 1, 4, 2), (1, 1, 1, 1, 1)])
@pytest.mark.parametrize("flat", [True, False])
def test_sentences_of_any_length_become_rows_of_tokens(tmp_path: Path, flat: bool, sizes: tuple[int, ...]) -> None:
    nodes = [node("MatMul", ["x", "w1"], "a", "first"), node("Relu", ["a"], "h"), node("MatMul", ["h", "w2"], "s")]
    nodes += [node("ReduceMax", ["h"], "p", axes=[1], keepdims=0), node("Gemm", ["p", "w2"], "y", "pooled")]
    nodes[2].name = "second"
    straight = make_model(nodes, W, {"x": ("N", "T", C)}, ["y", "s"])
    model = on_rows(tmp_path, ("N", "T", C)) if flat else saved(straight, tmp_path)
    given, heard = batches_of_tokens(tmp_path, sizes), Heard()
    layers = recorded(model, tmp_path / "samples", tmp_path / "s", progress=heard)
    for name in ("first", "second"):
        expected = np.concatenate(
            [projections(each)[name].reshape(-1, W["w1"].shape[name == "second"]) for each in given]
        )
        np.testing.assert_array_equal(stored(tmp_path / "s")[name], expected)
        assert (layers[name].rows_are, layers[name].samples) == ("positions", len(expected))
    assert "first, second are single positions and not samples" in heard.said
    if not flat:  # one vector for each sentence, whatever its length
        pooled = np.concatenate([projections(each)["second"].max(axis=1) for each in given])
        np.testing.assert_array_equal(stored(tmp_path / "s")["pooled"], pooled)
        assert layers["pooled"].rows_are == "samples"


def test_batches_in_memory_are_recorded_as_files_are(tmp_path: Path) -> None:
    model, given = on_rows(tmp_path, ("N", "T", C)), batches_of_tokens(tmp_path)
    record(model, tmp_path / "samples", tmp_path / "a")
    record(model, [{"x": each} for each in given], tmp_path / "b")
    for name, array in stored(tmp_path / "a").items():
        np.testing.assert_array_equal(array, stored(tmp_path / "b")[name])


def test_batches_of_one_shape_keep_their_samples(tmp_path: Path) -> None:
    model = on_rows(tmp_path, ("N", "T", C))
    layers = recorded(model, [{"x": TOKENS[:4]}, {"x": TOKENS[4:5]}, {"x": TOKENS[5:]}], tmp_path / "s")
    assert {layer.rows_are for layer in layers.values()} == {"samples"}
    np.testing.assert_array_equal(stored(tmp_path / "s")["first"], TOKENS)


def images(folder: Path) -> Path:
    nodes = [
        node("Conv", ["x", "k"], "a", "conv", pads=[1] * 4),
        node("Relu", ["a"], "h"),
        node("Conv", ["h", "one"], "b", "pointwise"),
        node("ReduceMax", ["b"], "p", axes=[2, 3], keepdims=0),
        node("Gemm", ["p", "w"], "y", "head"),
    ]
    constants = {"k": integers(4, 3, 3, 3), "one": integers(5, 4, 1, 1), "w": integers(5, 2)}
    return saved(make_model(nodes, constants, {"x": ("N", 3, "H", "W")}), folder)


def test_images_of_several_sizes_become_rows_of_pixels(tmp_path: Path) -> None:
    x = [integers(2, 3, 6, 4), integers(1, 3, 4, 8), integers(3, 3, 5, 5)]
    model = images(tmp_path)
    layers = recorded(model, [{"x": each} for each in x], tmp_path / "s")
    pixels = np.concatenate([np.moveaxis(each, 1, -1).reshape(-1, 3) for each in x])
    np.testing.assert_array_equal(stored(tmp_path / "s")["conv"], pixels)
    assert [layers[name].rows_are for name in ("conv", "pointwise", "head")] == ["positions", "positions", "samples"]
    assert layers["head"].samples == 6
    assert stored_layers(tmp_path / "s")["conv"].kernel is None
    with pytest.raises(StreamstatsError, match="taps"):
        run_of(tmp_path, statistics=["taps"])


def test_appending_another_size_names_the_option_that_helps(tmp_path: Path) -> None:
    model, store = images(tmp_path), tmp_path / "s"
    for name, shape in (("a", (2, 3, 6, 4)), ("b", (2, 3, 4, 8))):
        np.save(tmp_path / f"{name}.npy", integers(*shape))
    record(model, tmp_path / "a.npy", store)
    one_line(
        lambda: record(model, tmp_path / "b.npy", store, append=True),
        MismatchError,
        "layer conv",
        "record into another store",
    )
    options: dict[str, Any] = {"positions_as_rows": True}
    record(model, tmp_path / "a.npy", tmp_path / "p", **options)
    one_line(
        lambda: record(model, tmp_path / "b.npy", tmp_path / "p", append=True),
        MismatchError,
        "append every position as a row, with `--positions-as-rows`",
    )
    record(model, tmp_path / "b.npy", tmp_path / "p", append=True, **options)
    assert len(stored(tmp_path / "p")["conv"]) == 2 * 24 + 2 * 32


def test_a_change_of_shape_that_the_first_runs_do_not_show_names_the_option(tmp_path: Path) -> None:
    """Rows that are kept by their values: of the first two samples all, later not."""
    nodes = [
        node("ReduceMin", ["x"], "least", axes=[1], keepdims=0),
        node("Greater", ["least", "zero"], "kept"),
        node("Compress", ["x", "kept"], "c", axis=0),
        node("MatMul", ["c", "w1"], "y", "expert"),
    ]
    model = saved(make_model(nodes, {"w1": W["w1"], "zero": np.float32(0)}, {"x": ("N", C)}), tmp_path)
    x = np.abs(integers(12, C)) + 1
    x[5] = -1
    np.save(tmp_path / "x.npy", x)

    def attempt(**options: Any) -> object:
        return record(model, tmp_path / "x.npy", tmp_path / "s", **options)

    one_line(attempt, MismatchError, "layer expert", "--positions-as-rows")
    attempt(positions_as_rows=True)
    np.testing.assert_array_equal(stored(tmp_path / "s")["expert"], np.delete(x, 5, axis=0))
    x[:2] = -1  # the first two samples reach it not at all
    np.save(tmp_path / "x.npy", x)
    for size in (1, 4):
        found = recorded(model, tmp_path / "x.npy", tmp_path / f"s{size}", batch_size=size)["expert"]
        assert (found.samples, found.rows_are) == (9, "positions")
        np.testing.assert_array_equal(stored(tmp_path / f"s{size}")["expert"], np.delete(x, [0, 1, 5], axis=0))
    np.save(tmp_path / "x.npy", -x * 0 - 1)
    found = recorded(model, tmp_path / "x.npy", tmp_path / "none")["expert"]
    assert (found.samples, found.reason) == (0, "no position of the samples reaches it")


def test_what_mixes_samples_is_left_out_with_the_reason(tmp_path: Path) -> None:
    nodes = [
        node("Unsqueeze", ["x", "zero"], "rows"),
        node("Unsqueeze", ["x", "one"], "columns"),
        node("Sub", ["columns", "rows"], "apart"),
        node("MatMul", ["apart", "w1"], "y", "pairs"),
        node("CumSum", ["x", "axis"], "sums"),
        node("Reshape", ["sums", "rows2"], "halves"),
        node("MatMul", ["halves", "w"], "u", "sums"),
        node("MatMul", ["x", "w1"], "z", "good"),
    ]
    constants = {"w1": W["w1"], "zero": np.array([0], np.int64), "one": np.array([1], np.int64), "w": integers(2, 3)}
    constants |= {"axis": np.array(0, np.int64), "rows2": np.array([-1, 2], np.int64)}
    model = saved(make_model(nodes, constants, {"x": ("N", C)}, ["y", "u", "z"]), tmp_path)
    np.save(tmp_path / "x.npy", integers(N, C))
    layers = recorded(model, tmp_path / "x.npy", tmp_path / "s")
    for name, tensor in (("pairs", "apart"), ("sums", "halves")):
        assert layers[name].reason.startswith(f"its input {tensor} has the shape ")
        assert layers[name].reason.endswith("it mixes samples")
    assert layers["good"].samples == N


# Frames


def test_a_convolution_over_frames_has_frames_as_rows_and_its_taps_are_exact(tmp_path: Path) -> None:
    frames = integers(4, 3, 2, 6, 6)
    nodes = [node("Reshape", ["x", "s"], "f"), node("Conv", ["f", "k", "b"], "y", "conv", pads=[1] * 4)]
    constants = {"s": np.array([-1, 2, 6, 6], np.int64), "k": values(3, 2, 3, 3), "b": values(3)}
    model = saved(make_model(nodes, constants, {"x": ("N", 3, 2, 6, 6)}), tmp_path)
    np.save(tmp_path / "x.npy", frames)
    layer = recorded(model, tmp_path / "x.npy", tmp_path / "s", batch_size=3)["conv"]
    assert (layer.samples, layer.rows_are) == (12, "parts")
    np.testing.assert_array_equal(stored(tmp_path / "s")["conv"], frames.reshape(-1, 2, 6, 6))
    settings = {"source": str(tmp_path / "s"), "output": str(tmp_path / "out"), "statistics": ["taps"]}
    run(JobConfig.model_validate(settings).job())
    correct(model, tmp_path / "out", tmp_path / "c.onnx", bits=3)
    mine, theirs = (outputs(path, {"x": frames})[0].astype("f8") for path in (tmp_path / "c.onnx", model))
    np.testing.assert_allclose((mine - theirs).mean(axis=(0, 2, 3)), 0, atol=1e-6)


# What is made of them


def outputs(path: Path, feeds: dict[str, Array], *names: str) -> list[Array]:
    found: list[Array] = onnxruntime.InferenceSession(str(path)).run(names or None, feeds)
    return found


def run_of(folder: Path, **settings: Any) -> Path:
    run(JobConfig.model_validate({"source": str(folder / "s"), "output": str(folder / "out"), **settings}).job())
    return folder / "out"


def encoder(folder: Path, *, flat: bool, time_first: bool) -> Path:
    """Two projections with biases and a residue between them; tokens as rows if `flat`."""
    nodes = [node("Reshape", ["x", "rows"], "r")] if flat else [node("Identity", ["x"], "r")]
    nodes += [
        node("Gemm" if flat else "MatMul", ["r", "w1", "b1"] if flat else ["r", "w1"], "a1", "first"),
        node("Identity", ["a1"], "a") if flat else node("Add", ["a1", "b1"], "a"),
        node("Relu", ["a"], "h"),
        node("Gemm" if flat else "MatMul", ["h", "w2", "b2"] if flat else ["h", "w2"], "c1", "second"),
        node("Identity", ["c1"], "y") if flat else node("Add", ["c1", "b2"], "y"),
        node("Cast", ["attention_mask"], "mask", to=TensorProto.FLOAT),
    ]
    constants = {"w1": values(C, 8, seed=1), "w2": values(8, 3, seed=2), "b1": values(8, seed=3), "b2": values(3)}
    shape = ("T", "N", C) if time_first else ("N", "T", C)
    model = make_model(nodes, {**constants, "rows": TO_ROWS["rows"]}, {"x": shape})
    model.graph.input.append(helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["N", "T"]))
    for name in ("a", "mask"):
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return saved(model, folder)


def sentences(seed: int, count: int = 12, length: int = 6) -> dict[str, Array]:
    mask = (np.arange(length) < np.random.default_rng(seed).integers(1, length + 1, (count, 1))).astype("int64")
    x = np.where(mask[..., None] == 1, values(count, length, C, seed=seed), np.float32(30))
    return {"x": x, "attention_mask": mask}


FORMS = pytest.mark.parametrize(("flat", "time_first"), [(True, False), (False, True), (True, True)])


def turned(given: dict[str, Array], time_first: bool) -> dict[str, Array]:
    return {**given, "x": np.swapaxes(given["x"], 0, 1)} if time_first else given


def of_tokens(values_: Array, count: int, time_first: bool) -> Array:
    """Outputs [N, T, C] of tokens in whichever order."""
    if time_first:
        return np.swapaxes(values_.reshape(-1, count, values_.shape[-1]), 0, 1)
    return values_.reshape(count, -1, values_.shape[-1])


@FORMS
@pytest.mark.parametrize("iterative", [True, False])
def test_projections_over_tokens_are_corrected_and_judged_without_their_padding(
    tmp_path: Path, flat: bool, time_first: bool, iterative: bool
) -> None:
    model = encoder(tmp_path, flat=flat, time_first=time_first)
    given, held = sentences(1), sentences(2)
    for name, each in (("x", given), ("held", held)):
        np.savez(tmp_path / f"{name}.npz", **turned(each, time_first))
    axes: dict[str, Any] = {"mask": "attention_mask", "batch_axes": {"x": 1} if time_first else {}}
    record(model, tmp_path / "x.npz", tmp_path / "s", batch_size=5, **axes)
    out = run_of(tmp_path, statistics=["histogram"])
    mask = given["attention_mask"] == 1
    first = open_results(out).statistics("first")
    np.testing.assert_allclose(first.mean, given["x"][mask].mean(axis=0, dtype="f8"), rtol=1e-12)
    assert first.masked == ((~mask).sum(), mask.size)
    how = How(
        Iterative(tmp_path / "x.npz", tmp_path / "work", batch_size=5, **axes) if iterative else None,
        HeldOut(tmp_path / "held.npz", batch_size=6, **axes),  # as many samples as tokens: no shape tells them apart
    )
    found = correct(model, out, tmp_path / "fixed.onnx", bits=3, how=how)
    assert all(each.corrected for each in found.layers)

    def error(samples: dict[str, Array], name: str) -> Array:
        both = [outputs(path, turned(samples, time_first), name)[0] for path in (tmp_path / "fixed.onnx", model)]
        apart = of_tokens(both[0].astype("f8") - both[1], len(samples["x"]), time_first)
        return apart[samples["attention_mask"] == 1]

    np.testing.assert_allclose(error(given, "a").mean(axis=0), 0, atol=1e-5)
    if iterative:
        np.testing.assert_allclose(error(given, "y").mean(axis=0), 0, atol=1e-4)
    assert found.judgement is not None
    judged = found.judgement.layers["second"]["corrected"]
    np.testing.assert_allclose(judged.shift, error(held, "y").mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(judged.noise, (error(held, "y") ** 2).mean(), rtol=1e-4)
    np.testing.assert_allclose(found.judgement.outputs["corrected"].noise, judged_outputs(error, held), rtol=1e-4)


def judged_outputs(error: Callable[[dict[str, Array], str], Array], held: dict[str, Array]) -> float:
    """The mean square over the outputs y, a and mask, of which the last has no error; a token counts once in each."""
    parts = [error(held, "y"), error(held, "a"), np.zeros((1, held["x"].shape[1]))]
    sizes = [each.shape[1] for each in parts]
    return float(sum((each**2).mean() * size for each, size in zip(parts, sizes, strict=True)) / sum(sizes))


@pytest.mark.parametrize("flat", [True, False])
def test_sentences_of_any_length_are_corrected_and_judged_without_their_padding(tmp_path: Path, flat: bool) -> None:
    model = encoder(tmp_path, flat=flat, time_first=False)
    batches = [sentences(seed, count, length) for seed, (count, length) in enumerate([(4, 6), (3, 2), (1, 9), (5, 4)])]
    for folder in ("x", "held"):
        (tmp_path / folder).mkdir()
    for number, batch in enumerate(batches):
        np.savez(tmp_path / "x" / f"{number}.npz", **batch)
        np.savez(tmp_path / "held" / f"{number}.npz", **{**batch, "x": batch["x"] * np.float32(0.9)})
    record(model, tmp_path / "x", tmp_path / "s", mask="attention_mask")
    out = run_of(tmp_path)
    tokens = np.concatenate([batch["x"][batch["attention_mask"] == 1] for batch in batches])
    statistics = open_results(out).statistics("first")
    np.testing.assert_allclose(statistics.mean, tokens.mean(axis=0, dtype="f8"), rtol=1e-12)
    positions = sum(batch["attention_mask"].size for batch in batches)
    assert statistics.masked == (positions - len(tokens), positions)
    how = How(
        Iterative(tmp_path / "x", tmp_path / "work", mask="attention_mask"),
        HeldOut(tmp_path / "held", mask="attention_mask"),
    )
    found = correct(model, out, tmp_path / "fixed.onnx", bits=3, how=how)

    def error(factor: float) -> Array:
        parts = []
        for batch in batches:
            feeds = {**batch, "x": batch["x"] * np.float32(factor)}
            mine, theirs = (outputs(path, feeds, "y")[0].astype("f8") for path in (tmp_path / "fixed.onnx", model))
            parts.append(of_tokens(mine - theirs, len(batch["x"]), False)[batch["attention_mask"] == 1])
        return np.concatenate(parts)

    np.testing.assert_allclose(error(1).mean(axis=0), 0, atol=1e-4)
    assert found.judgement is not None
    np.testing.assert_allclose(found.judgement.layers["second"]["corrected"].shift, error(0.9).mean(axis=0), atol=1e-5)


def test_measuring_positions_gives_what_recording_them_gives(tmp_path: Path) -> None:
    model, given = images(tmp_path), [{"x": integers(2, 3, 6, 4)}, {"x": integers(1, 3, 4, 8)}]
    record(model, given, tmp_path / "s")
    found = open_results(run_of(tmp_path, statistics=["squares", "spread"]))
    _, measured = measure(model, given, tmp_path / "m", statistics=["squares", "spread"])
    assert {layer: found.statistics(layer).statistics for layer in found.layers} == {
        layer: each.statistics for layer, each in measured.items()
    }


def test_codes_of_positions_are_within_half_a_step(tmp_path: Path) -> None:
    model, given = images(tmp_path), [integers(2, 3, 6, 4), integers(1, 3, 4, 8)]
    record(model, [{"x": each} for each in given], tmp_path / "s", storage="int8")
    layer, codes = stored_layers(tmp_path / "s")["conv"], stored(tmp_path / "s")["conv"]
    assert layer.quantization is not None
    pixels = np.concatenate([np.moveaxis(each, 1, -1).reshape(-1, 3) for each in given])
    assert np.abs(layer.quantization.dequantize(codes) - pixels).max() <= layer.quantization.step * 0.5000001


def test_no_standard_error_is_claimed_of_rows_that_are_positions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The pixels of an image depend on each other: an error that takes them for samples would be far too small."""
    model, given = images(tmp_path), [{"x": integers(2, 3, 6, 4)}, {"x": integers(3, 3, 4, 8)}]
    record(model, given, tmp_path / "s")
    found = open_results(run_of(tmp_path, statistics=["spread"]))
    conv, head = found.statistics("conv"), found.statistics("head")
    assert (conv.rows_are, conv.standard_error) == ("positions", None)
    assert (head.rows_are, head.rows) == ("", 5)
    assert head.standard_error is not None
    assert main(["inspect", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert [line.split()[:3] for line in shown.splitlines() if line.split()[0] in ("conv", "head")] == [
        ["conv", "144", "positions"],
        ["head", "5", "samples"],
    ]
    settings = {"source": str(tmp_path / "s"), "output": str(tmp_path / "other"), "statistics": ["spread"]}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    command = ["run", str(tmp_path / "run.yaml"), "--until-stable", "0.5", "--model", str(model), "--bits", "4"]
    assert main(command) in (0, 3)
    said = capsys.readouterr().err
    assert "after 5 samples, the corrections are known to" in said
    assert "worst layer head" in said
    assert "different numbers of rows" not in said  # as they must have
    record(model, given, tmp_path / "convolutions", layers=["conv", "pointwise"])
    settings |= {"source": str(tmp_path / "convolutions"), "output": str(tmp_path / "third")}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    assert main(command) == 2
    assert "cannot be estimated" in (said := capsys.readouterr().err)
    assert "rows that are positions do not tell it" in said


def test_samples_and_positions_are_not_mixed_in_an_array(tmp_path: Path) -> None:
    model, x = on_rows(tmp_path, ("N", "T", C)), integers(N, 1, C)
    np.save(tmp_path / "x.npy", x)
    record(model, tmp_path / "x.npy", tmp_path / "s", positions_as_rows=True)
    one_line(
        lambda: record(model, tmp_path / "x.npy", tmp_path / "s", append=True),
        MismatchError,
        "('positions', (4,), 'float32', 1), but the samples to append are ('samples', (4,), 'float32', 1)",
        "--positions-as-rows",
    )


def test_the_commands_take_axes_and_say_what_rows_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, samples = str(with_state(tmp_path)), str(tmp_path / "x.npz")
    np.savez(samples, **STATES)
    read, axis = [model, "--samples", samples], ["--batch-axis", "state=1"]
    assert main(["record", *read, "-o", str(tmp_path / "s")]) == 2
    assert "say which with `--batch-axis state=1`" in capsys.readouterr().err
    for wrong in ("state", "=1", "state=last", "state=-1"):
        assert main(["record", *read, "-o", str(tmp_path / "s"), "--batch-axis", wrong]) == 2
        assert f"--batch-axis is '{wrong}'; expected INPUT=AXIS" in capsys.readouterr().err
    assert main(["record", *read, "-o", str(tmp_path / "p"), *axis, "--positions-as-rows"]) == 0
    shown = capsys.readouterr()
    assert "rows are" in shown.out
    assert "positions  14" in " ".join(shown.out.split("states")[1].split("\n")[0].split()).replace(" ", "  ")
    assert "states" in shown.err
    assert "are single positions and not samples" in shown.err
    assert main(["measure", *read, "-o", str(tmp_path / "out"), *axis]) == 0
    command = ["correct", model, "--bits", "4", "--correctors", str(tmp_path / "out"), "-o", str(tmp_path / "f.onnx")]
    assert main([*command, *axis]) == 2
    assert "--batch-axis goes with --iterative, --outputs or --held-out" in capsys.readouterr().err
    assert main([*command, "--positions-as-rows"]) == 2
    assert "--positions-as-rows goes with --iterative" in capsys.readouterr().err
    assert main([*command, "--iterative", "--samples", samples, *axis]) == 0


@pytest.mark.parametrize("batch", ["N", N])
def test_samples_between_positions_are_found(tmp_path: Path, batch: str | int) -> None:
    """Windows with their pixels in front, as attention that is not batch-first has them: [pixel, n·window, C]."""
    x = integers(N, 3, 2, C)
    nodes = [
        node("Transpose", ["x"], "t", perm=[2, 0, 1, 3]),
        node("Reshape", ["t", "rows"], "flat"),
        node("Gemm", ["flat", "w1"], name="first"),
    ]
    model = saved(make_model(nodes, {"w1": W["w1"], "rows": TO_ROWS["rows"]}, {"x": (batch, 3, 2, C)}), tmp_path)
    np.save(tmp_path / "x.npy", x)
    for size in (1, 3, 16):
        layer = recorded(model, tmp_path / "x.npy", tmp_path / f"{size}", batch_size=size)["first"]
        np.testing.assert_array_equal(stored(tmp_path / f"{size}")["first"], x.transpose(0, 2, 1, 3))
        assert layer.rows_are == "samples"


def test_outputs_in_time_first_are_judged_per_sample_whatever_the_last_batch(tmp_path: Path) -> None:
    """Eleven samples in batches of eight: the axis of the samples is no axis of channels."""
    nodes = [node("MatMul", ["x", "w1"], "a", "first"), node("Relu", ["a"], "h"), node("MatMul", ["h", "w2"], name="s")]
    constants = {"w1": values(C, 8, seed=1), "w2": values(8, 3, seed=2)}
    model = saved(make_model(nodes, constants, {"x": (T, "batch", C)}), tmp_path)
    x, held = values(T, 11, C), values(T, 11, C, seed=1)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "held.npy", held)
    axes: dict[str, int | None] = {"x": 1}
    record(model, tmp_path / "x.npy", tmp_path / "s", batch_axes=axes)
    how = How(held_out=HeldOut(tmp_path / "held.npy", batch_axes=axes))
    found = correct(model, run_of(tmp_path), tmp_path / "fixed.onnx", bits=3, how=how).judgement
    assert found is not None
    mine, theirs = (outputs(path, {"x": held})[0].astype("f8") for path in (tmp_path / "fixed.onnx", model))
    judged = found.outputs["corrected"]
    np.testing.assert_allclose(judged.shift, (mine - theirs).mean(axis=(1, 2)), atol=1e-6)  # of axis 1 behind samples
    np.testing.assert_allclose(judged.noise, ((mine - theirs) ** 2).mean(), rtol=1e-5)


def experts(folder: Path) -> Path:
    """Two experts of tokens, chosen by the sign of a projection: how many tokens each gets depends on the weights."""
    nodes = [
        node("Reshape", ["x", "rows"], "flat"),
        node("MatMul", ["flat", "g"], "score", "gate"),
        node("Squeeze", ["score", "one"], "s"),
        node("Greater", ["s", "zero"], "chosen"),
        node("Compress", ["flat", "chosen"], "mine", axis=0),
        node("MatMul", ["mine", "w1"], "e", "expert"),
        node("ReduceSum", ["e", "none"], "sum", keepdims=0),
        node("MatMul", ["x", "w1"], "plain", "plain"),
        node("Add", ["plain", "sum"]),
    ]
    constants = {"g": values(C, 1, seed=8) - 0.7, "w1": values(C, 6, seed=9), "zero": np.float32(0)}
    constants |= {"rows": TO_ROWS["rows"], "one": np.array([1], np.int64), "none": np.array([0], np.int64)}
    return saved(make_model(nodes, constants, {"x": ("N", "T", C)}), folder)


def test_experts_are_corrected_but_not_judged_where_other_tokens_reach_them(tmp_path: Path) -> None:
    model, x = experts(tmp_path), values(40, T, C)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "held.npy", values(40, T, C, seed=1))
    layers = recorded(model, tmp_path / "x.npy", tmp_path / "s")
    assert {name: layer.rows_are for name, layer in layers.items()} == {
        "gate": "samples",
        "expert": "positions",
        "plain": "samples",
    }
    flat = x.reshape(-1, C)
    reached = flat[(flat @ (values(C, 1, seed=8) - 0.7))[:, 0] > 0]
    np.testing.assert_array_equal(stored(tmp_path / "s")["expert"], reached)
    out = run_of(tmp_path)
    how = How(held_out=HeldOut(tmp_path / "held.npy"))
    found = correct(model, out, tmp_path / "fixed.onnx", bits=2, how=how)
    assert found.judgement is not None
    assert list(found.judgement.unjudged) == ["expert"]
    assert "depends on values" in found.judgement.unjudged["expert"]
    assert all(each.corrected for each in found.layers)


def test_every_tensor_of_samples_of_several_shapes_has_the_range_of_its_values(tmp_path: Path) -> None:
    """Attention [N, T, T] has no channels that every sample has: its values are one channel."""
    nodes = [
        node("MatMul", ["x", "w1"], "q", "first"),
        node("Transpose", ["q"], "k", perm=[0, 2, 1]),
        node("MatMul", ["q", "k"], "scores", "attention"),
        node("Softmax", ["scores"], "p", axis=-1),
        node("MatMul", ["p", "q"], "mixed", "values"),
        node("MatMul", ["mixed", "w2"], "y", "second"),
    ]
    model = saved(make_model(nodes, W, {"x": ("N", "T", C)}), tmp_path)
    given = batches_of_tokens(tmp_path)
    layers = recorded(model, tmp_path / "samples", tmp_path / "s", tensors="quantizable")
    scores = [(each @ W["w1"]) @ (each @ W["w1"]).swapaxes(1, 2) for each in given]
    found = stored(tmp_path / "s")["tensors/scores"]
    np.testing.assert_array_equal(found, np.concatenate([each.reshape(-1, 1) for each in scores]))
    assert layers["tensors/scores"].rows_are == "positions"


def test_a_model_of_one_sample_at_a_time_takes_a_file_for_each(tmp_path: Path) -> None:
    """Its input has no axis of samples; a scalar has a value of its own in each file."""
    nodes = [node("Mul", ["x", "rate"], "scaled"), node("MatMul", ["scaled", "w1"], name="first")]
    model = saved(make_model(nodes, {"w1": W["w1"]}, {"x": ("T", C), "rate": ()}), tmp_path)
    given = [{"x": TOKENS[n], "rate": np.float32(n)} for n in range(N)]
    layers = recorded(model, given, tmp_path / "s", batch_axes={"x": None})
    np.testing.assert_array_equal(stored(tmp_path / "s")["first"], TOKENS * np.arange(N)[:, None, None])
    assert (layers["first"].samples, layers["first"].rows_are) == (N, "samples")
    given[2]["x"] = integers(3, C)
    layers = recorded(model, given, tmp_path / "p", batch_axes={"x": None})
    expected = np.concatenate([each["x"] * each["rate"] for each in given])
    np.testing.assert_array_equal(stored(tmp_path / "p")["first"], expected)
    assert layers["first"].rows_are == "positions"
    np.save(tmp_path / "x.npy", TOKENS)
    np.savez(tmp_path / "all.npz", x=TOKENS, rate=np.float32(1))
    one_line(
        lambda: record(model, tmp_path / "all.npz", tmp_path / "q"),
        MismatchError,
        "has the shape (7, 5, 4); the model expects (T, 4)",
        "a folder with a file for each sample, and `--batch-axis x=none`",
    )


BAD_BATCHES: dict[str, tuple[Any, type[Exception], str]] = {
    "nothing": ([], UsageError, "hold no batches"),
    "another dtype": (
        [{"x": TOKENS.astype("f8")}],
        MismatchError,
        "batch 0 of the samples: the values for the input x",
    ),
    "another rank": ([{"x": TOKENS}, {"x": TOKENS[0]}], MismatchError, "batch 1 of the samples: the array for"),
    "another extent": ([{"x": TOKENS[..., :3]}], MismatchError, "has the shape (7, 5, 3); the model expects (N, T, 4)"),
    "no samples": ([{"x": TOKENS[:0]}], UsageError, "holds no samples"),
}


@pytest.mark.parametrize(("given", "kind", "fragment"), BAD_BATCHES.values(), ids=BAD_BATCHES)
def test_batches_that_do_not_fit_are_refused_in_one_line(
    given: Any, kind: type[Any], fragment: str, tmp_path: Path
) -> None:
    model = on_rows(tmp_path, ("N", "T", C))
    one_line(lambda: record(model, given, tmp_path / "s"), kind, fragment)
    assert not (tmp_path / "s").exists()


def test_files_of_a_folder_that_do_not_fit_are_named(tmp_path: Path) -> None:
    model, folder = on_rows(tmp_path, ("N", "T", C)), tmp_path / "samples"
    folder.mkdir()
    one_line(lambda: record(model, folder, tmp_path / "s"), UsageError, "has no .npy or .npz files")
    np.save(folder / "0.npy", TOKENS)
    np.savez(folder / "1.npz", z=TOKENS, other=TOKENS)
    one_line(lambda: record(model, folder, tmp_path / "s"), UsageError, "1.npz holds the arrays z, other")
    for content in (b"", b"noise", b"PK\x03\x04noise"):
        (folder / "1.npz").write_bytes(content)
        one_line(lambda: record(model, folder, tmp_path / "s"), UsageError, "1.npz are not a .npy or .npz file")
    np.save(folder / "1.npz", np.array([{}], dtype=object), allow_pickle=True)
    (folder / "1.npz.npy").rename(folder / "1.npz")
    one_line(lambda: record(model, folder, tmp_path / "s"), UsageError, "1.npz are not a .npy or .npz file")
    assert not (tmp_path / "s").exists()
