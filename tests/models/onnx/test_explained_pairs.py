"""Pairs whose weights differ by more than rounding: folded factors and offsets, scales of channels, other weights.

Every expected value is computed here in float64 from the definition: `(W' − Ŵ)·E[x]`, with W' what was rounded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from networks import FORMS, model_of, quantized, run_out, values
from onnx import helper, numpy_helper
from onnxruntime import InferenceSession
from told import Told

from streamstats import MeanBiasCorrector
from streamstats.errors import MismatchError
from streamstats.models.harm import HARMFUL, WORSE
from streamstats.models.onnx.correct import How, correct_quantized
from streamstats.models.onnx.iterative import Iterative
from streamstats.models.onnx.judge import HeldOut
from streamstats.models.onnx.subject import quantized_by_others

Array = npt.NDArray[Any]
CHANNELS, OUTPUTS = 4, 6
RNG = np.random.default_rng(11)
FACTORS, OFFSETS = (
    RNG.uniform(0.5, 1.5, (1, OUTPUTS, 1, 1)).astype("f4"),
    RNG.normal(size=(1, OUTPUTS, 1, 1)).astype("f4"),
)
BEHIND: dict[str, tuple[list[tuple[str, Any]], Any, Any]] = {
    "one factor": ([("Mul", np.float32(0.1))], 0.1, 0.0),
    "a factor per channel": ([("Mul", FACTORS)], FACTORS, 0.0),
    "a divisor": ([("Div", np.float32(8.0))], 0.125, 0.0),
    "an offset": ([("Add", 4 * OFFSETS)], 1.0, 4 * OFFSETS),
    "less an offset": ([("Sub", 4 * OFFSETS)], 1.0, -4 * OFFSETS),
    "a factor and an offset": ([("Mul", FACTORS), ("Add", OFFSETS)], FACTORS, OFFSETS),
    "an offset and a negative factor": ([("Add", OFFSETS), ("Mul", -FACTORS)], -FACTORS, -FACTORS * OFFSETS),
    "an offset and normalisation": ([("Add", OFFSETS), ("BatchNormalization", None)], None, None),
}
NORM = {
    "scale": FACTORS.reshape(-1) * 3,
    "shift": values(OUTPUTS, seed=3),
    "mean": values(OUTPUTS, seed=4),
    "variance": np.abs(values(OUTPUTS, seed=5)) + 0.5,
}


def network(weight: Array, bias: Array, behind: list[tuple[str, Any]], x: Array, last: Array) -> Any:
    """A convolution, what is `behind` it, Relu, and another convolution."""
    nodes, constants, value = [helper.make_node("Conv", ["x", "w", "b"], ["c"], name="first")], {}, "c"
    for number, (op, constant) in enumerate(behind):
        inputs = [*NORM] if constant is None else [f"k{number}"]
        constants |= NORM if constant is None else {f"k{number}": np.asarray(constant)}
        nodes.append(helper.make_node(op, [value, *inputs], [f"o{number}"]))
        value = f"o{number}"
    nodes.append(helper.make_node("Relu", [value], ["r"]))
    nodes.append(helper.make_node("Conv", ["r", "v"], ["y"], name="second"))
    return model_of(nodes, {"w": weight, "b": bias, "v": last, **constants}, x)


def affine(name: str) -> tuple[Array, Array]:
    """(factor, offset) per output channel of what is behind the layer, float64."""
    _behind, factor, offset = BEHIND[name]
    if factor is None:
        factor = NORM["scale"].astype("f8") / np.sqrt(NORM["variance"].astype("f8") + 1e-5)
        offset = NORM["shift"] + (OFFSETS.reshape(-1).astype("f8") - NORM["mean"]) * factor
    shaped = (np.asarray(each, np.float64).reshape(-1) for each in (factor, offset))
    return tuple(np.broadcast_to(each, OUTPUTS) for each in shaped)  # type: ignore[return-value]


def scaled(factor: Array, weight: Array) -> Array:
    return (weight.astype("f8") * factor.reshape(-1, 1, 1, 1)).astype("f4")


def prepared(folder: Path, name: str, form: str) -> tuple[Path, Array, Array, Array]:
    """(the quantised model, with all that is behind the first layer folded in; x; float weight and bias)."""
    x = values(48, CHANNELS, 6, 6) + np.float32(0.5)
    weight, bias, last = (
        values(OUTPUTS, CHANNELS, 1, 1, seed=1),
        values(OUTPUTS, seed=2),
        values(3, OUTPUTS, 1, 1, seed=6),
    )
    factor, offset = affine(name)
    folded = network(scaled(factor, weight), (bias * factor + offset).astype("f4"), [], x, last)
    path = quantized(folded, folder, x, form)
    onnx.save(network(weight, bias, BEHIND[name][0], x, last), folder / "float.onnx")
    return path, x, weight, bias


def stored_weight(path: Path) -> Array:
    """What the quantised model stores for the first layer, by the rule of DequantizeLinear."""
    model = onnx.load(path)
    constants = {each.name: numpy_helper.to_array(each).astype("f8") for each in model.graph.initializer}
    node = next(each for each in model.graph.node if each.op_type in ("Conv", "QLinearConv"))
    if node.op_type == "QLinearConv":
        codes, scale, zero = (constants[each] for each in node.input[3:6])
    else:
        behind = next(each for each in model.graph.node if each.output[0] == node.input[1])
        codes, scale, zero = (constants[each] for each in behind.input)
    shape = (-1, 1, 1, 1) if scale.size > 1 else ()
    return (codes - zero.reshape(shape)) * scale.reshape(shape)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", BEHIND)
def test_what_was_folded_in_is_followed_and_only_the_rest_is_corrected(tmp_path: Path, name: str, form: str) -> None:
    path, x, weight, bias = prepared(tmp_path, name, form)
    out = run_out(tmp_path, x)
    np.save(tmp_path / "held.npy", values(40, CHANNELS, 6, 6, seed=8) + np.float32(0.5))
    how = How(held_out=HeldOut(tmp_path / "held.npy"), do_no_harm=True)
    done = correct_quantized(tmp_path / "float.onnx", path, out, tmp_path / "fixed.onnx", how=how)
    first = next(each for each in done.layers if each.layer == "first")
    factor, offset = affine(name)
    mean = x.astype("f8").mean(axis=(0, 2, 3))
    expected = (weight[:, :, 0, 0] * factor[:, None] - stored_weight(path)[:, :, 0, 0]) @ mean
    assert first.difference == "rounding"
    assert first.corrected or first.reason in (HARMFUL, WORSE)
    if first.corrected:
        np.testing.assert_allclose(first.term, expected, atol=1e-5 * np.abs(weight).max())
    pair = next(each for each in done.subject.pairs if each.name == "first")
    assert pair.bias is not None
    np.testing.assert_allclose(pair.bias, bias * factor + offset, rtol=1e-5, atol=1e-6)
    assert pair.output == (f"o{len(BEHIND[name][0]) - 1}")
    assert done.judgement is not None
    held = np.load(tmp_path / "held.npy").astype("f8")
    quality = done.judgement.layers["first"]["quantised"]
    signal = np.einsum("oi,nihw->nohw", weight[:, :, 0, 0] * factor[:, None], held)
    signal += (bias * factor + offset)[:, None, None]
    assert quality.signal == pytest.approx(float((signal**2).mean()), rel=1e-4)


def matrices(first: Array, last: Array, x: Array, divided: Array | None = None) -> Any:
    """Two matrices with Relu between; the input of the first may be `divided` before."""
    before = [] if divided is None else [helper.make_node("Div", ["x", "d"], ["s"])]
    nodes = [
        *before,
        helper.make_node("MatMul", ["s" if before else "x", "w"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["y"], name="second"),
    ]
    return model_of(nodes, {"w": first, "v": last, **({} if divided is None else {"d": divided})}, x)


def smoothed(folder: Path, form: str) -> tuple[Path, Path, Array, Array, Array]:
    """A network whose first inputs are divided by a factor per channel, as SmoothQuant does; the float one is plain."""
    x, weight, last = values(64, 16) + np.float32(0.5), values(16, 24, seed=1), values(24, 5, seed=2)
    factors = np.random.default_rng(3).uniform(0.3, 3.0, 16).astype("f4")
    path = quantized(matrices(weight * factors[:, None], last, x, factors), folder, x, form)
    onnx.save(matrices(weight, last, x), folder / "float.onnx")
    return path, run_out(folder, x), x, weight, factors


@pytest.mark.parametrize("iterative", ["", "full", "change"])
@pytest.mark.parametrize("form", ["qdq", "qdq, per channel", "qdq, int4"])
def test_a_scale_per_input_channel_is_taken_out_of_the_means(tmp_path: Path, form: str, iterative: str) -> None:
    path, out, x, weight, factors = smoothed(tmp_path, form)
    how = How(Iterative(tmp_path / "x.npy", tmp_path / "work", iterative) if iterative else None)
    done = correct_quantized(tmp_path / "float.onnx", path, out, tmp_path / "fixed.onnx", how=how)
    first = next(each for each in done.layers if each.layer == "first")
    assert first.corrected, first.reason
    assert first.difference.startswith("rounding, a scale per input channel of 0.")
    stored = next(pair.quantized.weight for pair in done.subject.pairs if pair.name == "first").astype("f8")
    mean = x.astype("f8").mean(axis=0)
    expected = mean @ weight - (mean / factors) @ stored
    size = np.linalg.norm(expected)
    # the factors are known as far as rounding lets them; layer by layer, the rounding of the input moves its mean, too
    assert np.linalg.norm(first.term - expected) < (0.5 if iterative == "full" else 0.25) * size
    pair = next(each for each in done.subject.pairs if each.name == "first")
    assert pair.output == "a"
    np.testing.assert_allclose(pair.input_factors, factors, rtol=0.1 if "int4" in form else 0.01)


@pytest.mark.parametrize("form", ["qdq", "codes"])
def test_a_scale_without_a_node_is_used_and_judged_by_what_it_does_to_the_network_alone(
    tmp_path: Path, form: str
) -> None:
    x, last = values(64, CHANNELS, 4, 4) + np.float32(0.5), values(3, OUTPUTS, 1, 1, seed=6)
    weight, bias = values(OUTPUTS, CHANNELS, 3, 3, seed=1), values(OUTPUTS, seed=2)
    factor = FACTORS.reshape(-1).astype("f8")
    changed = network(scaled(factor, weight), (bias * factor).astype("f4"), [], x, last)
    path = quantized(changed, tmp_path, x, form)
    onnx.save(network(weight, bias, [], x, last), tmp_path / "float.onnx")
    out = run_out(tmp_path, x)
    np.save(tmp_path / "held.npy", values(40, CHANNELS, 4, 4, seed=8))
    held_out = HeldOut(tmp_path / "held.npy")
    done = correct_quantized(tmp_path / "float.onnx", path, out, tmp_path / "fixed.onnx", how=How(held_out=held_out))
    first = next(each for each in done.layers if each.layer == "first")
    assert first.corrected
    assert "a scale per output channel" in first.difference
    mean = x.astype("f8").mean(axis=(0, 2, 3))
    expected = np.einsum("oihw,i->o", scaled(factor, weight) - stored_weight(path), mean)
    assert np.linalg.norm(first.term - expected) < 0.3 * np.linalg.norm(expected)
    assert done.judgement is not None
    assert "first" not in done.judgement.layers
    assert done.judgement.document()["unjudged"]["first"].startswith("no tensor of the float model has its outputs")
    careful = How(held_out=held_out, do_no_harm=True)
    done = correct_quantized(tmp_path / "float.onnx", path, out, tmp_path / "careful.onnx", how=careful)
    assert done.judgement is not None
    assert not done.judgement.gains["corrected"].is_worse


def test_a_layer_that_was_trained_further_is_left_as_it_is_and_said(tmp_path: Path) -> None:
    x, weight, last = values(64, 16), values(16, 24, seed=1), values(24, 5, seed=2)
    path = quantized(matrices(weight + values(16, 24, seed=7) * np.float32(0.2), last, x), tmp_path, x, "qdq")
    onnx.save(matrices(weight, last, x), tmp_path / "float.onnx")
    out = run_out(tmp_path, x)
    for iterative in (None, Iterative(tmp_path / "x.npy", tmp_path / "work")):
        done = correct_quantized(tmp_path / "float.onnx", path, out, tmp_path / "fixed.onnx", how=How(iterative))
        outcomes = {each.layer: each for each in done.layers}
        assert outcomes["second"].corrected
        assert not outcomes["first"].corrected
        assert outcomes["first"].reason.startswith("its weight differs from that of the float model by up to ")
    before, after = onnx.load(path), onnx.load(tmp_path / "fixed.onnx")
    node = next(each for each in after.graph.node if each.name == "first")
    assert node == next(each for each in before.graph.node if each.name == "first")


def test_one_factor_without_a_node_is_refused_with_its_size(tmp_path: Path) -> None:
    x, weight, last = values(64, 16), values(16, 24, seed=1), values(24, 5, seed=2)
    path = quantized(matrices(weight * np.float32(3), last, x), tmp_path, x, "qdq")
    onnx.save(matrices(weight, last, x), tmp_path / "float.onnx")
    subject = quantized_by_others(tmp_path / "float.onnx", path)
    assert [pair.name for pair in subject.pairs] == ["second"]
    (first,) = subject.left_out
    assert first.name == "first"
    assert first.reason.startswith(("its weight is 3.0", "its weight is 2.99", "its weight is 3 times"))


def equalised(folder: Path, form: str, spread: float) -> tuple[Path, list[Array], list[Array], Array]:
    """(a chain whose channels are scaled between its layers, quantised; float weights; factors of inputs; samples)."""
    random, x = np.random.default_rng(1), values(32, 3, 11, 11)
    extents = [(24, 3, 3), (32, 24, 3), (32, 32, 3), (16, 32, 3), (40, 16, 1)]
    weights = [(random.normal(size=(o, i, k, k)) / np.sqrt(i * k * k)).astype("f4") for o, i, k in extents]
    biases = [random.normal(0.1, 0.3, outputs).astype("f4") for outputs, *_ in extents]
    factors = [np.exp(spread * random.normal(size=len(bias))).astype("f4") for bias in biases[:-1]]
    before, after = [np.ones(3, "f4"), *factors], [*factors, np.ones(40, "f4")]

    def network_of(weights: list[Array], biases: list[Array]) -> Any:
        nodes, constants = [], {}
        for number, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            constants |= {f"w{number}": weight, f"b{number}": bias}
            value, out = "x" if number == 0 else f"r{number}", "y" if number == 4 else f"c{number}"
            inputs = [value, f"w{number}", f"b{number}"]
            nodes.append(helper.make_node("Conv", inputs, [out], name=f"l{number}"))
            nodes += [helper.make_node("Relu", [out], [f"r{number + 1}"])] if number < 4 else []
        return model_of(nodes, constants, x)

    changed = [w * i[:, None, None] / o[:, None, None, None] for w, i, o in zip(weights, before, after, strict=True)]
    scaled_biases = [b / o for b, o in zip(biases, after, strict=True)]
    path = quantized(network_of(changed, scaled_biases), folder, x, form, reduce_range=True)
    onnx.save(network_of(weights, biases), folder / "float.onnx")
    return path, weights, before, x


@pytest.mark.parametrize("form", ["qdq", "qdq, per channel", "codes"])
def test_equalised_layers_are_found_and_have_the_mean_outputs_of_the_float_network(tmp_path: Path, form: str) -> None:
    path, weights, factors, x = equalised(tmp_path, form, 0.3)
    out = run_out(tmp_path, x)
    how = How(Iterative(tmp_path / "x.npy", tmp_path / "work"))
    done = correct_quantized(tmp_path / "float.onnx", path, out, tmp_path / "fixed.onnx", how=how)
    assert {each.layer: each.reason for each in done.layers} == dict.fromkeys(["l0", "l1", "l2", "l3", "l4"], "")
    for pair, weight, before in zip(done.subject.pairs[1:4], weights[1:4], factors[1:4], strict=True):
        assert "per output channel" in pair.explained
        np.testing.assert_allclose(pair.input_factors, before, rtol=0.01)
        assert pair.weight.shape == weight.shape
    wanted, before, after = (
        InferenceSession(str(each)).run(None, {"x": x})[0].mean(axis=(0, 2, 3), dtype=np.float64)
        for each in (tmp_path / "float.onnx", path, tmp_path / "fixed.onnx")
    )
    assert np.abs(after - wanted).max() < 0.1 * np.abs(before - wanted).max()


@pytest.mark.parametrize(
    ("factors", "kept"),
    [
        ({"w0": 0.5, "b0": 0.5, "w1": 2.0}, []),
        ({"w0": 0.5, "b0": 0.5}, ["l0"]),
        ({"w0": 0.5}, ["l0"]),
        ({"w0": 0.5, "w1": 0.5}, ["l0", "l1"]),
    ],
)
def test_a_factor_is_warned_of_unless_another_layer_undoes_it(
    factors: dict[str, float], kept: list[str], tmp_path: Path
) -> None:
    """The weights, and the biases, of both layers are multiplied by these factors; the float model has none."""
    x = values(64, 8) + np.float32(0.5)
    own = {
        **{"w0": values(8, 24, seed=1), "b0": values(24, seed=3)},
        **{"w1": values(24, 12, seed=2), "b1": values(12, seed=4)},
    }

    def network_of(factors: dict[str, float]) -> Any:
        nodes = [
            helper.make_node("Gemm", ["x", "w0", "b0"], ["c"], name="l0"),
            helper.make_node("Relu", ["c"], ["r"]),
            helper.make_node("Gemm", ["r", "w1", "b1"], ["y"], name="l1"),
        ]
        return model_of(nodes, {name: each * np.float32(factors.get(name, 1)) for name, each in own.items()}, x)

    path = quantized(network_of(factors), tmp_path, x, "qdq")
    onnx.save(network_of({}), tmp_path / "float.onnx")
    told, out = Told(), run_out(tmp_path, x)
    correct_quantized(tmp_path / "float.onnx", path, out, None, progress=told)
    said = f"warning: weights of {path} are multiples of the float model's, and no corrected layer undoes that: "
    warned = [each.removeprefix(said).partition(";")[0] for each in told.messages if each.startswith(said)]
    assert warned == ([", ".join(f"{layer} (0.5 times)" for layer in kept)] if kept else [])
    onnx.save(network_of({"b1": 2}), tmp_path / "other.onnx")
    told.messages.clear()
    with pytest.raises(MismatchError, match="other weights than"):
        correct_quantized(tmp_path / "other.onnx", path, out, None, progress=told)
    assert not told.messages, "the model is refused first"


@pytest.mark.parametrize("form", ["qdq", "codes"])
def test_biases_tell_that_one_factor_without_a_node_is_one_of_the_outputs(tmp_path: Path, form: str) -> None:
    x, last = values(64, CHANNELS, 4, 4) + np.float32(0.5), values(3, OUTPUTS, 1, 1, seed=6)
    weight, bias = values(OUTPUTS, CHANNELS, 3, 3, seed=1), values(OUTPUTS, seed=2)
    path = quantized(network(weight * np.float32(0.1), bias * np.float32(0.1), [], x, last), tmp_path, x, form)
    onnx.save(network(weight, bias, [], x, last), tmp_path / "float.onnx")
    told, models = Told(), (tmp_path / "float.onnx", path)
    done = correct_quantized(*models, run_out(tmp_path, x), tmp_path / "fixed.onnx", progress=told)
    first = next(each for each in done.layers if each.layer == "first")
    assert first.corrected, first.reason
    assert any("undoes that: first (0.1 times); unless" in each for each in told.messages)
    mean = np.stack([x[:, :, i : i + 2, j : j + 2].mean(axis=(0, 2, 3)) for i in range(3) for j in range(3)], axis=-1)
    expected = np.einsum("oit,it->o", (weight * 0.1 - stored_weight(path)).reshape(OUTPUTS, CHANNELS, 9), mean)
    assert np.linalg.norm(first.term - expected) < 0.1 * np.linalg.norm(expected)


def test_padding_that_was_folded_in_is_not_counted_twice(tmp_path: Path) -> None:
    x = values(48, CHANNELS, 7, 7) + np.float32(1.2)
    weight, bias = values(OUTPUTS, CHANNELS, 3, 3, seed=1), np.zeros(OUTPUTS, np.float32)
    conv = {"w": weight, "b": bias}
    whole = [helper.make_node("Conv", ["x", "w", "b"], ["y"], name="c", strides=[2, 2], pads=[1, 1, 1, 1])]
    path = quantized(model_of(whole, conv, x), tmp_path, x, "qdq, int4")
    apart = [
        helper.make_node("Pad", ["x", "p"], ["px"]),
        helper.make_node("Conv", ["px", "w", "b"], ["y"], name="c", strides=[2, 2]),
    ]
    onnx.save(model_of(apart, conv | {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1])}, x), tmp_path / "float.onnx")
    out = run_out(tmp_path, x)
    padded = np.pad(x.astype("f8"), ((0, 0), (0, 0), (1, 1), (1, 1)))
    mean = np.array(
        [[padded[:, :, i : i + 7 : 2, j : j + 7 : 2].mean(axis=(0, 2, 3)) for j in range(3)] for i in range(3)]
    )
    expected = np.einsum("oihw,hwi->o", weight - stored_weight(path), mean)
    for iterative in (None, Iterative(tmp_path / "x.npy", tmp_path / "work")):
        done = correct_quantized(tmp_path / "float.onnx", path, out, tmp_path / "fixed.onnx", how=How(iterative))
        np.testing.assert_allclose(done.layers[0].term, expected, atol=1e-5 if iterative is None else 0.1)
    for file in (out / "correctors").glob("*.safetensors"):
        MeanBiasCorrector(np.full(CHANNELS, 1.2)).save(file)
    (out / "manifest.json").unlink()
    done = correct_quantized(tmp_path / "float.onnx", path, out, tmp_path / "fixed.onnx", how=How(iterative))
    assert done.layers[0].reason.startswith("its padding is a node of its own in one of the models")


@pytest.mark.parametrize("form", ["qdq", "codes", "qdq, int4"])
def test_rows_that_an_optimiser_merged_are_those_of_the_samples(tmp_path: Path, form: str) -> None:
    x, held = (values(size, 7, 12, seed=size) + np.float32(0.6) for size in (32, 8))
    w, b, v, c = values(12, 8, seed=1), values(8, seed=2), values(8, 3, seed=3), values(3, seed=4)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], name="fc1"),
        helper.make_node("Add", ["m", "b"], ["a"]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["n"], name="fc2"),
        helper.make_node("Add", ["n", "c"], ["y"]),
    ]
    plain = model_of(nodes, {"w": w, "b": b, "v": v, "c": c}, x)
    rows = np.array([-1, 12]), np.array([-1, 8]), np.array([-1, 7, 8]), np.array([-1, 7, 3])
    merged = [  # what onnxruntime's optimiser writes for fixed shapes
        helper.make_node("Reshape", ["x", "s0"], ["x2"]),
        helper.make_node("Gemm", ["x2", "w", "b"], ["a2"], name="fc1"),
        helper.make_node("Reshape", ["a2", "s2"], ["a"]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Reshape", ["r", "s1"], ["r2"]),
        helper.make_node("Gemm", ["r2", "v", "c"], ["y2"], name="fc2"),
        helper.make_node("Reshape", ["y2", "s3"], ["y"]),
    ]
    shapes = {f"s{number}": shape for number, shape in enumerate(rows)}
    path = quantized(model_of(merged, {"w": w, "b": b, "v": v, "c": c, **shapes}, x), tmp_path, x, form)
    onnx.save(plain, tmp_path / "float.onnx")
    out = run_out(tmp_path, x)
    np.save(tmp_path / "held.npy", held)
    wanted = (x.astype("f8") @ w).mean(axis=(0, 1)) + b
    for iterative in (None, Iterative(tmp_path / "x.npy", tmp_path / "work")):
        how = How(iterative, HeldOut(tmp_path / "held.npy"))
        done = correct_quantized(tmp_path / "float.onnx", path, out, tmp_path / "fixed.onnx", how=how)
        assert [(each.layer, each.corrected) for each in done.layers] == [("fc1", True), ("fc2", True)]
        stored = done.subject.pairs[0].quantized.weight.astype("f8")
        expected = (x.astype("f8").mean(axis=(0, 1))) @ (w - stored)
        allowed = 1e-5 if iterative is None else 0.05 * np.abs(wanted).max()
        np.testing.assert_allclose(done.layers[0].term, expected, atol=allowed)
        assert done.judgement is not None
        signal = float(((held.astype("f8") @ w + b) ** 2).mean())
        assert done.judgement.layers["fc1"]["corrected"].signal == pytest.approx(signal, rel=1e-5)


@pytest.mark.parametrize("form", ["qdq", "codes"])
def test_a_bias_is_rounded_once(tmp_path: Path, form: str) -> None:
    x, last = values(64, CHANNELS, 4, 4) + np.float32(0.5), values(3, OUTPUTS, 1, 1, seed=6)
    weight, bias = values(OUTPUTS, CHANNELS, 1, 1, seed=1), values(OUTPUTS, seed=2)
    path = quantized(network(weight, bias, [], x, last), tmp_path, x, form)
    done = correct_quantized(tmp_path / "float.onnx", path, run_out(tmp_path, x), tmp_path / "fixed.onnx")
    first = next(each for each in done.layers if each.layer == "first")
    assert first.step is not None
    model = onnx.load(tmp_path / "fixed.onnx")
    constants = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    node = next(each for each in model.graph.node if each.op_type in ("Conv", "QLinearConv"))
    name = (
        node.input[8] if form == "codes" else next(n for n in model.graph.node if n.output[0] == node.input[2]).input[0]
    )
    mean = x.astype("f8").mean(axis=(0, 2, 3))
    term = (weight[:, :, 0, 0] - stored_weight(path)[:, :, 0, 0]) @ mean
    np.testing.assert_array_equal(constants[name], np.rint((bias + term) / first.step))


@pytest.mark.parametrize("trained", [False, True])
def test_each_block_has_its_own_step(tmp_path: Path, trained: bool) -> None:
    x, weight = values(32, 8) + np.float32(0.5), values(8, 6, seed=1) * np.float32([[1]] * 4 + [[30]] * 4)
    onnx.save(
        model_of([helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")], {"w": weight}, x), tmp_path / "float.onnx"
    )
    scale = np.abs(weight).reshape(2, 4, 6).max(axis=1) / np.float32(127)
    codes = np.rint(weight / np.repeat(scale, 4, axis=0))
    if trained:  # two steps of a fine block are far less than one of a coarse one
        codes[1, 2] -= 2 * np.sign(codes[1, 2])
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s"], ["w"], axis=0, block_size=4),
        helper.make_node("MatMul", ["x", "w"], ["y"], name="fc"),
    ]
    model = model_of(nodes, {"q": codes.astype(np.int8), "s": scale}, x, opset=21)
    model.ir_version = 10
    onnx.save(model, tmp_path / "quantized.onnx")
    out = run_out(tmp_path, x)
    done = correct_quantized(tmp_path / "float.onnx", tmp_path / "quantized.onnx", out, tmp_path / "fixed.onnx")
    assert [each.corrected for each in done.layers] == [not trained]
    if trained:
        assert done.layers[0].reason.startswith("its weight differs from that of the float model by up to 1.8 steps")
        assert done.layers[0].quantized
        return
    expected = x.astype("f8").mean(axis=0) @ (weight - codes * np.repeat(scale, 4, axis=0))
    np.testing.assert_allclose(done.layers[0].term, expected, atol=1e-5)


def test_large_layers_of_one_shape_are_told_apart_scaled_or_not(tmp_path: Path) -> None:
    x, count = values(16, 96), 6
    weights = {f"w{number}": values(96, 96, seed=number) / np.float32(9) for number in range(count)}
    changed = weights | {"w3": weights["w3"] * np.random.default_rng(1).uniform(0.3, 3, 96).astype("f4")}
    tensors = ["x", *(f"t{number}" for number in range(1, count)), "y"]

    def network_of(constants: dict[str, Array], names: list[str]) -> Any:
        places = range(count)
        nodes = [
            helper.make_node("MatMul", [tensors[each], f"w{each}"], [tensors[each + 1]], name=names[each])
            for each in places
        ]
        return model_of(nodes, constants, x)

    names = [f"layer{number}" for number in range(count)]
    path = quantized(network_of(changed, names[1:] + names[:1]), tmp_path, x, "qdq")
    onnx.save(network_of(weights, names), tmp_path / "float.onnx")
    subject = quantized_by_others(tmp_path / "float.onnx", path)
    assert [pair.name for pair in subject.pairs] == names
    assert not subject.left_out
    assert ["a scale per output channel" in pair.explained for pair in subject.pairs] == [n == 3 for n in range(count)]
