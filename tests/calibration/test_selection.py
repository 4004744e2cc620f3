"""Which arrays are the layers of a job: globs in order, and what the job says goes before what the store says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
import zarr
from stores import build_store, samples

from streamstats.calibration.selection import LayerRule, select_layers
from streamstats.errors import DataError, MismatchError, UsageError
from streamstats.jobs.job import Job
from streamstats.jobs.run import reduce
from streamstats.quantization import Quantization

NAMES = ("block/a/conv", "block/b/conv", "head", "stem")
SHAPE = (6, 3, 4)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return build_store(tmp_path, {name: samples(*SHAPE, dtype="int8") for name in NAMES})


def chosen(store: Path, *rules: LayerRule) -> list[str]:
    return [layer.name for layer in select_layers(store, rules).layers]


def test_without_rules_every_array_is_a_layer(store: Path) -> None:
    selected = select_layers(store)
    assert [layer.name for layer in selected.layers] == list(NAMES)
    assert selected.left_out == ()
    assert [layer.store for layer in selected.layers] == [str(store)] * 4


def test_layers_come_in_the_order_of_their_names_whatever_that_of_the_rules(store: Path) -> None:
    assert chosen(store, LayerRule("stem"), LayerRule("block/*")) == ["block/a/conv", "block/b/conv", "stem"]


def test_what_no_rule_matches_is_left_out_by_name(store: Path) -> None:
    assert select_layers(store, [LayerRule("block/*")]).left_out == ("head", "stem")


@pytest.mark.parametrize("layers", [{"stem": None}, [{"match": "stem"}], None, 3], ids=str)
def test_what_is_no_rule_is_refused(store: Path, layers: Any) -> None:
    said = re.escape('expected names and rules, as in [ss.LayerRule("enc/*", mask="words")]')
    with pytest.raises(UsageError, match=said):
        select_layers(store, layers)
    with pytest.raises(UsageError, match=said):
        reduce(store, layers=layers, statistics=["squares"])
    with pytest.raises(UsageError, match=said):
        Job(str(store), "out", layers=layers)


def test_a_single_rule_needs_no_list(store: Path) -> None:
    assert [layer.name for layer in select_layers(store, LayerRule("stem")).layers] == ["stem"]


@pytest.mark.parametrize(
    ("mask", "found"), [(np.ones(3, bool), "of type ndarray"), (True, "of type bool"), ("", "empty")], ids=str
)
def test_a_mask_that_is_no_name_is_refused(mask: Any, found: str) -> None:
    with pytest.raises(UsageError, match=f"the mask of 'enc' is {found}; expected the name of an array in the store"):
        LayerRule("enc", mask=mask)


@pytest.mark.parametrize(
    ("glob", "expected"),
    [("*", list(NAMES)), ("*conv", list(NAMES[:2])), ("block/?/conv", list(NAMES[:2])), ("[hs]*", list(NAMES[2:]))],
)
def test_a_star_crosses_folders(store: Path, glob: str, expected: list[str]) -> None:
    assert chosen(store, LayerRule(glob)) == expected


def test_the_case_of_letters_counts(store: Path) -> None:
    with pytest.raises(UsageError, match=r"no layer of .* matches 'STEM'"):
        chosen(store, LayerRule("STEM"))


def test_the_first_rule_that_matches_wins(store: Path) -> None:
    rules = [
        LayerRule("block/a/*", 1),
        LayerRule("block/*", 2, Quantization(0.5)),
        LayerRule("*", 1, Quantization(2.0)),
    ]
    found = {layer.name: (layer.channel_axis, layer.quantization) for layer in select_layers(store, rules).layers}
    assert found == {
        "block/a/conv": (1, None),
        "block/b/conv": (2, Quantization(0.5)),
        "head": (1, Quantization(2.0)),
        "stem": (1, Quantization(2.0)),
    }


def test_a_rule_that_matches_nothing_is_an_error_that_names_what_there_is(store: Path) -> None:
    with pytest.raises(UsageError, match=r"matches 'tail'; the store has block/a/conv, block/b/conv, head, stem$"):
        chosen(store, LayerRule("*"), LayerRule("tail"))


def test_of_many_names_a_few_are_shown(tmp_path: Path) -> None:
    build_store(tmp_path, {f"layer{index:02}": samples(2, 2) for index in range(11)})
    with pytest.raises(UsageError, match=r"the store has layer00, .*, layer07 and 3 more$"):
        chosen(tmp_path, LayerRule("tail"))


def test_a_rule_goes_before_the_attributes_of_the_store(tmp_path: Path) -> None:
    attributes = {"rows": 4, "channel_axis": 1, "quantization": {"step": [1.0, 2.0, 3.0], "zero_point": 0}}
    build_store(tmp_path, {"a": samples(*SHAPE, dtype="int8")}, attributes={"a": attributes})
    stored = select_layers(tmp_path).layers[0]
    assert (stored.channel_axis, stored.quantization) == (1, Quantization([1.0, 2.0, 3.0]))
    assert select_layers(tmp_path, [LayerRule("*")]).layers[0] == stored
    layer = select_layers(tmp_path, [LayerRule("*", -1, Quantization([1.0, 2.0, 3.0, 4.0]))]).layers[0]
    assert (layer.rows, layer.channel_axis, layer.quantization) == (4, 2, Quantization([1.0, 2.0, 3.0, 4.0]))


def test_another_channel_axis_does_not_take_the_quantisation_of_the_stored_one(tmp_path: Path) -> None:
    attributes = {"channel_axis": 1, "quantization": {"step": [1.0, 2.0, 3.0], "zero_point": 0}}
    build_store(tmp_path, {"a": samples(*SHAPE, dtype="int8")}, attributes={"a": attributes})
    with pytest.raises(MismatchError, match="layer a: the quantisation has 3 channels, the layer has 4"):
        select_layers(tmp_path, [LayerRule("*", -1)])


def test_a_rule_that_does_not_fit_the_array_is_refused(store: Path) -> None:
    with pytest.raises(UsageError, match="layer head: channel_axis is 3"):
        select_layers(store, [LayerRule("head", 3)])
    with pytest.raises(MismatchError, match="layer head: the quantisation has 2 channels, the layer has 4"):
        select_layers(store, [LayerRule("head", None, Quantization([1.0, 2.0]))])


def test_arrays_that_cannot_be_layers_are_refused_only_where_they_are_chosen(store: Path) -> None:
    group = zarr.open_group(store, mode="a")
    group.create_array("label", shape=(6,), dtype="int64", chunks=(6,))
    group.create_array("phase", shape=(6, 2), dtype="complex64", chunks=(6, 2))
    assert chosen(store, LayerRule("block/*")) == list(NAMES[:2])
    found = select_layers(store)
    assert [layer.name for layer in found.layers] == list(NAMES)
    assert found.unfit["label"].startswith("the array has the shape (6,); expected samples on axis 0")
    assert found.unfit["phase"].startswith("its values are complex64; expected one of")
    with pytest.raises(UsageError, match="layer phase: its values are complex64"):
        chosen(store, LayerRule("p*"))


def test_bad_attributes_are_damage_only_where_they_are_chosen(tmp_path: Path) -> None:
    layers = {"bad": samples(*SHAPE), "good": samples(*SHAPE)}
    build_store(tmp_path, layers, attributes={"bad": {"rows": 100}})
    assert chosen(tmp_path, LayerRule("good")) == ["good"]
    with pytest.raises(DataError, match="layer bad: its attributes under 'streamstats' are not usable"):
        select_layers(tmp_path, [LayerRule("b*")])
    found = select_layers(tmp_path)
    assert [layer.name for layer in found.layers] == ["good"]
    assert found.unreadable["bad"].startswith("its attributes under 'streamstats' are not usable")


def test_layers_that_cannot_have_a_statistic_are_named_with_the_entries_that_count_the_rest(tmp_path: Path) -> None:
    layers = {"a": np.ones((4, 3), "f4"), "b": np.ones((4, 3), "f8"), "c/d": np.ones((4, 3), "i4")}
    store = str(build_store(tmp_path / "s.zarr", layers))
    with pytest.raises(
        UsageError, match="layer b: `gram` cannot be counted, because its values are float64"
    ) as refused:
        select_layers(store, [LayerRule("*", statistics=["squares", "gram"])])
    found = re.search(r"begin `layers` in the configuration with (.*); without other .* with (.*)", str(refused.value))
    assert found is not None
    entries = yaml.safe_load(f"[{found[1]}, {found[2]}]")
    assert [entry["match"] for entry in entries] == ["b", "c/d", "*"]
    rules = [LayerRule(**{"statistics": ["squares", "gram"], **entry}) for entry in entries]
    kinds = {layer.name: [kind.name for kind in layer.kinds] for layer in select_layers(store, rules).layers}
    without = ["mean", "extrema", "squares"]
    assert kinds == {"a": ["mean", "extrema", "gram", "squares"], "b": without, "c/d": without}
