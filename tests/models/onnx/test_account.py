"""Recording and correcting end with an account: every operator that has weights, or why it was left as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import FLOAT, make_model, node, saved, values
from networks import Batches, run_out
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import quantize_dynamic, quantize_static

from streamstats.cli import main
from streamstats.errors import UsageError
from streamstats.models.onnx.correct import Correction, correct, correct_quantized
from streamstats.models.onnx.layers import survey
from streamstats.models.onnx.operators import operators
from streamstats.models.onnx.quantized import quantized_layers
from streamstats.models.onnx.record import measure, record

LOOKUP = "a look-up"
PRODUCT = "it has no constant weight"
INSIDE = "its weight is used inside the operator"
IN_FLOAT = "the quantiser left its weight in float"


def text_model() -> Any:
    """Words to classes: a table, an LSTM, attention, an Einsum, and three layers."""
    nodes = [
        node("Gather", ["table", "x"], "e", "embedding"),
        node("MatMul", ["e", "w1"], "a", "first"),
        node("Add", ["a", "positions"], "h", "add positions"),
        node("Transpose", ["h"], "time_first", perm=[1, 0, 2]),
        node("LSTM", ["time_first", "lstm_w", "lstm_r"], "all_states", "lstm", hidden_size=6),
        node("Squeeze", ["all_states", "one"], "states"),
        node("Transpose", ["states"], "s", perm=[1, 0, 2]),
        node("MatMul", ["s", "w2"], "q", "query"),
        node("Transpose", ["q"], "k", perm=[0, 2, 1]),
        node("MatMul", ["q", "k"], "scores", "scores"),
        node("MatMul", ["scores", "s"], "mixed", "mix"),
        node("Einsum", ["mixed", "w3"], "p", "einsum", equation="bij,jk->bik"),
        node("MatMul", ["p", "w4"], "y", "last"),
    ]
    constants = {
        "table": values(30, 5),
        "w1": values(5, 4, seed=1),
        "positions": values(1, 7, 4),
        "lstm_w": values(1, 24, 4) / 4,
        "lstm_r": values(1, 24, 6) / 4,
        "one": np.array([1]),
        "w2": values(6, 6, seed=2),
        "w3": values(6, 6, seed=3),
        "w4": values(6, 3, seed=4),
    }
    return make_model(nodes, constants, {"x": ("N", 7)}, dtype=TensorProto.INT64)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the float model, its samples, and what was measured of it."""
    folder = tmp_path_factory.mktemp("text")
    model = text_model()
    model.graph.output[0].type.tensor_type.elem_type = FLOAT
    onnx.save(model, folder / "float.onnx")
    np.save(folder / "x.npy", np.random.default_rng(0).integers(0, 30, (32, 7)))
    measure(folder / "float.onnx", folder / "x.npy", folder / "out")
    return folder


def outcomes(done: Correction) -> dict[str, tuple[str, str]]:
    return {each.layer: (each.outcome, each.reason) for each in done.layers}


def test_a_recording_accounts_for_every_operator_with_weights(text: Path, tmp_path: Path) -> None:
    found = {each.layer: each for each in record(text / "float.onnx", text / "x.npy", tmp_path / "s.zarr")}
    assert [name for name, each in found.items() if each.recorded] == ["first", "query", "last"]
    assert {name for name, each in found.items() if each.skipped} == {"lstm", "einsum"}
    told = {"embedding": LOOKUP, "scores": PRODUCT, "mix": PRODUCT, "lstm": INSIDE, "einsum": INSIDE}
    assert {name for name, each in found.items() if not each.recorded} == set(told)
    assert all(fragment in found[name].reason for name, fragment in told.items())
    measured, _ = measure(text / "float.onnx", text / "x.npy", tmp_path / "out")
    assert {each.layer: each.reason for each in measured} == {name: each.reason for name, each in found.items()}


def test_a_correction_accounts_for_every_operator_with_weights(text: Path, tmp_path: Path) -> None:
    quantize_static(str(text / "float.onnx"), str(tmp_path / "q.onnx"), Batches(np.load(text / "x.npy")))
    done = correct_quantized(text / "float.onnx", tmp_path / "q.onnx", text / "out", tmp_path / "fixed.onnx")
    found = outcomes(done)
    assert {name: outcome for name, (outcome, _) in found.items()} == {
        "first": "corrected",
        "query": "corrected",
        "last": "corrected",
        "scores": "nothing to correct",
        "mix": "nothing to correct",
        "embedding": "nothing to correct",
        "lstm": "never quantised",
        "einsum": "never quantised",
    }
    assert all(found[name][1].startswith(IN_FLOAT) for name in ("lstm", "einsum"))
    assert [each.layer for each in done.layers if each.quantized] == ["first", "query", "last"]
    assert all(each.document()["outcome"] == each.outcome for each in done.layers)


def test_weights_that_only_the_quantised_model_has_in_float_are_not_said_to_be_the_float_ones(
    text: Path, tmp_path: Path
) -> None:
    quantize_static(str(text / "float.onnx"), str(tmp_path / "q.onnx"), Batches(np.load(text / "x.npy")))
    model = onnx.load(tmp_path / "q.onnx")
    (moved,) = [each for each in model.graph.initializer if each.name == "lstm_r"]
    moved.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(moved) + np.float32(0.01), "lstm_r"))
    onnx.save(model, tmp_path / "q.onnx")
    done = correct_quantized(text / "float.onnx", tmp_path / "q.onnx", text / "out", None)
    assert outcomes(done)["lstm"] == ("refused", f"LSTM is not supported: {INSIDE}")


def test_weights_quantised_here_are_accounted_for_too(text: Path, tmp_path: Path) -> None:
    found = outcomes(correct(text / "float.onnx", text / "out", tmp_path / "fixed.onnx", bits=4))
    assert found["lstm"] == ("never quantised", f"LSTM is not supported: {INSIDE}")
    assert [found[name][0] for name in ("first", "query", "last")] == ["corrected"] * 3


def test_where_nothing_is_left_the_reasons_are_still_given(text: Path, tmp_path: Path) -> None:
    quantize_dynamic(str(text / "float.onnx"), str(tmp_path / "dynamic.onnx"))
    with pytest.raises(UsageError) as refused:
        correct_quantized(text / "float.onnx", tmp_path / "dynamic.onnx", text / "out", None)
    assert "first_quant, query_quant, last_quant (MatMulInteger is not supported" in str(refused.value)
    assert "lstm_quant (DynamicQuantizeLSTM is not supported" in str(refused.value)
    assert "look-up" not in str(refused.value)
    with pytest.raises(UsageError, match=r"dynamic\.onnx is quantised, .*; record the float model"):
        record(tmp_path / "dynamic.onnx", text / "x.npy", tmp_path / "s.zarr")


@pytest.mark.parametrize(
    ("made", "weight", "fragment"),
    [
        (node("Gemm", ["x", "w"], transA=1), (3, 4), "transA=1"),
        (node("MatMul", ["x", "w"]), (2, 4, 5), "shape (2, 4, 5)"),
        (node("MatMul", ["x", "w"]), (4,), "shape (4,)"),
        (node("MatMul", ["w", "x"]), (3, 3), "its first input, w, is the constant"),
        (node("Einsum", ["x", "w"], equation="ij,jk->ik"), (4, 5), "Einsum is not supported"),
        (node("Gather", ["w", "x"]), (4, 5), LOOKUP),
        (node("MatMul", ["x", "x"]), (4, 5), PRODUCT),
    ],
)
def test_the_only_operator_with_weights_is_named_with_its_reason(
    tmp_path: Path, made: Any, weight: tuple[int, ...], fragment: str
) -> None:
    source = saved(make_model([made], {"w": values(*weight)}, {"x": ("N", 3)}), tmp_path)
    np.save(tmp_path / "x.npy", values(3, 3))
    with pytest.raises(UsageError) as refused:
        record(source, tmp_path / "x.npy", tmp_path / "s.zarr")
    assert f"{source} has no layer to record: y (" in str(refused.value)
    assert fragment in str(refused.value)


def own(op: str, *inputs: str, domain: str = "com.microsoft", **attributes: Any) -> Any:
    return node(op, ["x", *inputs], domain=domain, **attributes)


FLOATS, CODES, PACKED = values(4, 5), np.ones((4, 5), np.uint8), np.ones(40, np.uint8)
MADE, BEFORE = "onnxruntime's optimiser made it", "take the model as it was before the optimiser"
CONTRIB = [
    (own("Attention", "w", num_heads=1), FLOATS, BEFORE),
    (own("QAttention", "w", num_heads=1), CODES, BEFORE),
    (own("FusedMatMul", "w"), FLOATS, BEFORE),
    (own("FusedGemm", "w"), FLOATS, BEFORE),
    (own("FusedConv", "w"), values(4, 3, 3, 3), BEFORE),
    (own("NhwcConv", "w"), values(4, 3, 3, 3), BEFORE),
    (own("Conv", "w", domain="com.microsoft.nchwc"), values(4, 3, 3, 3), BEFORE),
    (own("DynamicQuantizeMatMul", "w"), CODES, "quantize_static"),
    (own("MatMulIntegerToFloat", "w"), CODES, "quantize_static"),
    (node("MatMulInteger", ["x", "w"]), CODES, "quantize_static"),
    (node("ConvInteger", ["x", "w"]), np.ones((4, 3, 3, 3), np.uint8), "quantize_static"),
    (own("DynamicQuantizeLSTM", "w"), np.ones((1, 4, 8), np.int8), INSIDE),
    (own("MatMulNBits", "w", K=8, N=4), CODES, "QuantFormat.QDQ"),
    (own("MatMulBnb4", "w", K=8, N=4), PACKED, "QuantFormat.QDQ"),
    (node("DeformConv", ["x", "w"]), values(4, 3, 3, 3), INSIDE),
    (node("GRU", ["x", "w"]), values(1, 4, 8), INSIDE),
    (node("RNN", ["x", "w"]), values(1, 4, 8), INSIDE),
    (own("Anything", "w", domain="of.my.own"), FLOATS, INSIDE),
]


def test_an_embedding_of_a_fused_kind_is_a_look_up() -> None:
    made = own("EmbedLayerNormalization", "", "w")
    _, (left,) = survey(make_model([made], {"w": FLOATS}, {"x": ("N", 3)}))
    assert (left.multiplies, left.reason[:9]) == (False, LOOKUP)


@pytest.mark.parametrize(("made", "weight", "fragment"), CONTRIB, ids=[made.op_type for made, _, _ in CONTRIB])
def test_an_operator_of_any_kind_that_reads_a_matrix_is_named(made: Any, weight: Any, fragment: str) -> None:
    layers, (left,) = survey(make_model([made], {"w": weight}, {"x": ("N", 3)}))
    assert layers == []
    assert left.op == made.op_type
    assert f"{made.op_type} is not supported: " in left.reason
    assert fragment in left.reason
    assert left.quantized == (weight.dtype != np.float32)
    assert left.weights == ("w",)


def on_codes(op: str, weight: Any, **attributes: Any) -> Any:
    names = ["x", "s", "z", "w", "s", "z", "s", "z"]
    constants = {"s": np.float32(0.1), "z": np.uint8(0), "w": weight}
    return make_model(
        [node(op, names, name="layer", **attributes)], constants, {"x": ("N", 3)}, dtype=TensorProto.UINT8
    )


def test_operators_on_codes_that_are_left_out_say_why() -> None:
    layers, (left,) = quantized_layers(on_codes("QLinearMatMul", np.ones((2, 3, 4), np.uint8)))
    assert (layers, left.quantized, left.reason) == ([], True, "its weight has the shape (2, 3, 4); expected 2 axes")
    model = on_codes("QLinearConv", np.ones((4, 3, 1, 1), np.uint8))
    assert [layer.name for layer in quantized_layers(model)[0]] == ["layer"]
    model.graph.node[0].domain = "com.microsoft"
    model.graph.node[0].attribute.append(helper.make_attribute("channels_last", 1))
    layers, (left,) = quantized_layers(model)
    assert (layers, left.quantized, left.reason) == ([], True, f"QLinearConv is not supported: {MADE}; {BEFORE}")
    model = on_codes("QLinearMatMul", np.ones((3, 4), np.uint8))
    model.graph.node[0].input[3] = "x"
    layers, (left,) = quantized_layers(model)
    assert (layers, left.quantized, left.multiplies) == ([], False, False)
    assert PRODUCT in left.reason


def test_a_weight_is_found_behind_what_an_exporter_puts_there() -> None:
    nodes = [
        node("DequantizeLinear", ["codes", "scale"], "real"),
        node("Transpose", ["real"], "turned"),
        node("Reshape", ["turned", "shape"], "shaped"),
        node("Cast", ["shaped"], "w", to=TensorProto.DOUBLE),
        node("Einsum", ["x", "w"], "y", "einsum", equation="ij,jk->ik"),
    ]
    constants = {"codes": np.ones((5, 4), np.int8), "scale": np.float32(0.5), "shape": np.array([4, 5])}
    _, (left,) = survey(make_model(nodes, constants, {"x": ("N", 4)}))
    assert (left.name, left.quantized, left.weights) == ("einsum", True, ("w",))


def test_what_moves_values_or_combines_them_one_by_one_has_no_weights() -> None:
    nodes = [
        node("Add", ["x", "m"], "a"),
        node("Mul", ["a", "m"], "b"),
        node("Where", ["yes", "b", "m"], "c"),
        node("Concat", ["c", "m"], "d", axis=0),
        node("Gather", ["d", "place"], "e"),
        node("LayerNormalization", ["e", "m"], "f"),
        node("Attention", ["f", "f", "f", "m"], "masked"),
        node("Relu", ["masked"], "y"),
        node("Loop", ["trips", "", "m"], "z", body=loop_body([node("Identity", ["state"], "after")])),
    ]
    constants = {"m": values(3, 3), "yes": np.array(True), "place": np.array([0, 1]), "trips": np.array(2)}
    layers, left = survey(make_model(nodes, constants, {"x": ("N", 3)}))
    assert (layers, left) == ([], [])


def loop_body(nodes: list[Any]) -> Any:
    make = helper.make_tensor_value_info
    inputs = [make("i", TensorProto.INT64, []), make("go", TensorProto.BOOL, []), make("state", FLOAT, None)]
    outputs = [make("go_on", TensorProto.BOOL, []), make("after", FLOAT, None)]
    return helper.make_graph([node("Identity", ["go"], "go_on"), *nodes], "body", inputs, outputs)


def test_operators_in_subgraphs_are_named_at_any_depth() -> None:
    make = helper.make_tensor_value_info
    inner = helper.make_graph([node("MatMul", ["state", "w"], "o", "deep")], "inner", [], [make("o", FLOAT, None)])
    other = helper.make_graph([node("MatMul", ["state", "state"], "o", "product")], "o", [], [make("o", FLOAT, None)])
    inner_if = node("If", ["yes"], "h", "choice", then_branch=inner, else_branch=other)
    body = loop_body([inner_if, node("LSTM", ["h", "lstm"], "after", "lstm", hidden_size=3)])
    nodes = [node("Loop", ["trips", "", "x"], "y", "loop", body=body)]
    constants = {"w": values(3, 3), "lstm": values(1, 12, 3), "trips": np.array(2), "yes": np.array(True)}
    layers, left = survey(make_model(nodes, constants, {"x": (3, 3)}))
    assert layers == []
    found = {each.name: (each.reason, each.multiplies) for each in left}
    assert found["deep"] == ("it is in a subgraph of the If choice, whose inputs are not recorded", True)
    assert found["lstm"] == ("it is in a subgraph of the Loop loop, whose inputs are not recorded", True)
    assert found["product"][1] is False
    assert len(found) == 3


def test_a_name_that_a_subgraph_hides_is_not_the_constant_outside() -> None:
    body = loop_body([node("Einsum", ["state", "state"], "after", "einsum", equation="ij,jk->ik")])
    nodes = [node("Loop", ["trips", "", "x"], "y", body=body)]
    assert survey(make_model(nodes, {"state": values(3, 3), "trips": np.array(2)}, {"x": (3, 3)})) == ([], [])


def functional() -> Any:
    """A function that multiplies by its second input, called twice by another one."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    inner = helper.make_function("own", "Inner", ["a", "b"], ["c"], [node("MatMul", ["a", "b"], "c", "mm")], opsets)
    calls = [node("Inner", ["a", "b"], "h", domain="own"), node("Inner", ["h", "b"], "c", domain="own")]
    outer = helper.make_function("own", "Outer", ["a", "b"], ["c"], calls, opsets)
    model = make_model([node("Outer", ["x", "w"], domain="own")], {"w": values(3, 3)}, {"x": ("N", 3)})
    model.functions.extend([inner, outer])
    model.opset_import.append(helper.make_opsetid("own", 1))
    return model


def test_functions_are_looked_into_and_told_once() -> None:
    layers, left = survey(functional())
    assert layers == []
    assert [(each.name, each.op, each.weights) for each in left] == [("mm", "MatMul", ("b",))]
    assert all("it is in the function Inner; inline functions first" in each.reason for each in left)


def test_functions_that_call_each_other_do_not_end_in_a_loop() -> None:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    again = helper.make_function(
        "own", "Again", ["a", "b"], ["c"], [node("Again", ["a", "b"], "c", domain="own")], opsets
    )
    model = make_model([node("Again", ["x", "w"], domain="own")], {"w": values(3, 3)}, {"x": ("N", 3)})
    model.functions.append(again)
    assert [*operators(model)] == []


def test_names_in_an_account_are_unique_and_layers_keep_theirs() -> None:
    nodes = [
        node("Einsum", ["x", "w"], "a", "fc", equation="ij,jk->ik"),
        node("Einsum", ["a", "w"], "b", "fc", equation="ij,jk->ik"),
        node("MatMul", ["b", "w"], "y", "fc"),
    ]
    (layer,), left = survey(make_model(nodes, {"w": values(3, 3)}, {"x": ("N", 3)}))
    assert (layer.name, [each.name for each in left]) == ("fc", ["fc_2", "fc_3"])


def test_the_commands_group_by_reason_and_json_has_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"e{number}" for number in range(11)]
    nodes = [node("MatMul", ["x", "w"], "h0", "fc")]
    nodes += [
        node("Einsum", [f"h{number}", "v"], f"h{number + 1}", name, equation="ij,jk->ik")
        for number, name in enumerate(names)
    ]
    x = values(16, 3)
    source = saved(make_model(nodes, {"w": values(3, 3), "v": values(3, 3)}, {"x": ("N", 3)}, ["h11"]), tmp_path)
    np.save(tmp_path / "x.npy", x)
    files = [str(source), "--samples", str(tmp_path / "x.npy")]
    reason = f"e0, e1, e2, e3, e4, e5, e6, e7 and 3 more: Einsum is not supported: {INSIDE}\n"
    assert main(["record", *files, "-o", str(tmp_path / "a.zarr"), "--json"]) == 0
    said = capsys.readouterr()
    assert {*json.loads(said.out)["layers"]} == {"fc", *names}
    assert "recorded 1, skipped 11\n" in said.err
    assert f"skipped: {reason}" in said.err
    assert main(["measure", *files, "-o", str(tmp_path / "out")]) == 0
    assert f"skipped: {reason}" in capsys.readouterr().err
    given = [str(source), "--bits", "3", "--correctors", str(tmp_path / "out"), "-o", str(tmp_path / "fixed.onnx")]
    assert main(["correct", *given]) == 0
    assert f"never quantised: {reason}" in capsys.readouterr().err
    assert main(["correct", *given, "--json"]) == 0
    layers = json.loads(capsys.readouterr().out)["layers"]
    assert {name: layer["outcome"] for name, layer in layers.items()} == {
        "fc": "corrected",
        **dict.fromkeys(names, "never quantised"),
    }


def test_a_weight_that_rounding_keeps_is_unchanged(tmp_path: Path) -> None:
    x = values(64, 4)
    exact = np.arange(-8, 8, dtype=np.float32).reshape(4, 4) * np.float32(0.25)
    source = saved(
        make_model([node("MatMul", ["x", "w"], name="layer")], {"w": exact}, {"x": ("N", 4)}), tmp_path, "float.onnx"
    )
    done = correct(source, run_out(tmp_path, x), None, bits=4)
    assert [(each.layer, each.outcome) for each in done.layers] == [("layer", "unchanged")]


def test_the_page_groups_what_was_not_corrected(text: Path, tmp_path: Path) -> None:
    quantize_static(str(text / "float.onnx"), str(tmp_path / "q.onnx"), Batches(np.load(text / "x.npy")))
    models = [str(text / "float.onnx"), str(tmp_path / "q.onnx")]
    files = [
        "--correctors",
        str(text / "out"),
        "-o",
        str(tmp_path / "fixed.onnx"),
        "--report",
        str(tmp_path / "r.html"),
    ]
    assert main(["correct", *models, *files]) == 0
    page = (tmp_path / "r.html").read_text()
    assert f"<li>never quantised: lstm (LSTM), einsum (Einsum): {IN_FLOAT}" in page
    assert f"<li>nothing to correct: embedding (Gather): {LOOKUP}" in page
    assert "<td>einsum</td>" in page
    assert "<td>embedding</td>" not in page
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["correction"]["embedding"]["outcome"] == "nothing to correct"
