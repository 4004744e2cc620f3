"""Every linear operator of a graph is a layer with a usable name, or left out with a reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from graphs import CASES, FLOAT, make_model, node, saved, stored_layers, values
from onnx import helper

from streamstats.models.onnx.layers import survey
from streamstats.models.onnx.record import record
from streamstats.quantization import fake_quantize
from streamstats.storage.names import check_layer_name


def test_each_output_channel_has_its_own_levels() -> None:
    for name, axis in {
        "conv 2-d": 0,
        "gemm": 1,
        "gemm transB": 0,
        "matmul 2-d": 1,
        "transposed stride": 1,
    }.items():
        ((layer,), _) = survey(CASES[name].model())
        expected = fake_quantize(layer.weight, 3, axis=axis)
        found = layer.fake_quantized(3, per_channel=True, symmetric=False, weight_range="minmax")
        np.testing.assert_array_equal(found, expected)
        assert layer.output_axis == axis


def test_a_grouped_transposed_convolution_has_levels_for_each_group_and_channel() -> None:
    ((layer,), _) = survey(CASES["transposed grouped"].model())
    found = layer.fake_quantized(3, per_channel=True, symmetric=False, weight_range="minmax")
    for group in range(2):
        for channel in range(3):
            part = np.s_[2 * group : 2 * group + 2, channel]
            np.testing.assert_array_equal(found[part], fake_quantize(layer.weight[part], 3))
    assert layer.outputs == 6


def test_names_come_from_the_node_or_its_output_and_are_usable_and_unique() -> None:
    labels = [
        "/features/0/Conv",
        "",
        "a",
        "a",
        "a_2",
        "block",
        "block/fc",
        "../up//x/",
        "line\nbreak\\",
        "zarr.json",
        ".zmetadata",
    ]
    nodes = [node("MatMul", ["x", "w"], f"out{index}", label) for index, label in enumerate(labels)]
    layers, _ = survey(make_model(nodes, {"w": values(3, 3)}, {"x": ("N", 3)}, ["out0"]))
    names = [layer.name for layer in layers]
    expected = ["features/0/Conv", "out1", "a", "a_3", "a_2", "block_2", "block/fc", "__/up/_/x/_"]
    assert names == [*expected, "line_break_", "zarr_json", "_zmetadata"]
    assert [check_layer_name(name) for name in names] == names
    assert not any(other.startswith(f"{name}/") for name in names for other in names)


def test_names_are_those_under_which_a_store_finds_its_layers_again(tmp_path: Path) -> None:
    labels = ["/a", "a", "a/b", "a/b/c", "./d", "e\\f", "é ü", "zarr.json", "g/.zmetadata"]
    inputs = ["x", *(f"out{index}" for index in range(len(labels)))]
    nodes = [node("MatMul", [inputs[index], "w"], f"out{index}", label) for index, label in enumerate(labels)]
    source = saved(make_model(nodes, {"w": values(3, 3)}, {"x": ("N", 3)}, [inputs[-1]]), tmp_path)
    np.save(tmp_path / "x.npy", values(4, 3))
    recorded = record(source, tmp_path / "x.npy", tmp_path / "store")
    assert sorted(stored_layers(tmp_path / "store")) == sorted(layer.layer for layer in recorded)
    assert len(recorded) == len(labels)


def test_every_linear_operator_is_a_layer_or_left_out_with_a_reason() -> None:
    inner = helper.make_graph(
        [node("MatMul", ["x", "w"], "inner_out", "inner")],
        "inner",
        [],
        [helper.make_tensor_value_info("inner_out", FLOAT, None)],
    )
    nodes = [
        node("Gemm", ["x", "w"], "o0", "transposed", transA=1),
        node("MatMul", ["x", "x"], "o1", "computed"),
        node("MatMul", ["w", "x"], "o2", "constant first"),
        node("MatMul", ["x", "stack"], "o3", "stacked"),
        node("MatMul", ["x", "whole"], "o4", "integer"),
        node("Conv", ["x", "w"], "o5", "flat"),
        node("Conv", ["x", "kernel"], "o6", "uneven", group=2),
        node("ConvInteger", ["x", "kernel"], "o7", "integer conv"),
        node("If", ["yes"], "o8", "branch", then_branch=inner, else_branch=inner),
        node("MatMul", ["x", "w"], "y", "good"),
        node("Relu", ["x"], "o9", "relu"),
    ]
    constants = {
        "w": values(3, 3),
        "stack": values(2, 3, 3),
        "kernel": values(3, 3, 1),
        "yes": np.array(True),
    }
    constants["whole"] = np.ones((3, 3), np.int64)
    model = make_model(nodes, constants, {"x": ("N", 3)})
    layers, skipped = survey(model)
    reasons = {left.name: left.reason for left in skipped}
    assert [layer.name for layer in layers] == ["good"]
    fragments = {
        "transposed": "transA",
        "computed": "it has no constant weight",
        "constant first": "its first input, w, is the constant",
        "stacked": "(2, 3, 3)",
        "integer": "int64",
        "flat": "(3, 3)",
        "uneven": "2 groups",
        "integer conv": "not supported",
        "inner": "subgraph of the If branch",
        "inner_2": "subgraph of the If branch",
    }
    assert set(reasons) == set(fragments)
    assert all(fragment in reasons[name] for name, fragment in fragments.items()), reasons


def test_operators_in_functions_of_the_model_are_left_out_with_a_reason() -> None:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    body = helper.make_function("own", "Twice", ["a", "b"], ["c"], [node("MatMul", ["a", "b"], "c", "mm")], opsets)
    model = make_model([node("Twice", ["x", "w"], domain="own")], {"w": values(3, 3)}, {"x": ("N", 3)})
    model.functions.append(body)
    layers, (left,) = survey(model)
    assert layers == []
    assert (left.name, left.op) == ("mm", "MatMul")
    assert "function Twice" in left.reason


def test_a_layer_says_what_its_weight_is() -> None:
    ((layer,), _) = survey(CASES["transposed grouped"].model())
    assert (layer.layout, layer.groups, layer.geometry.strides, layer.channel_axis) == ("IOHW", 2, (2, 2), 1)
    assert (layer.input, layer.weight_name, layer.op) == ("x", "w", "ConvTranspose")
    ((layer,), _) = survey(CASES["gemm transB"].model())
    assert (layer.layout, layer.groups, layer.geometry.strides, layer.channel_axis) == ("OI", 1, (), -1)
