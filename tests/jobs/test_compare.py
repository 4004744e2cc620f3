"""Comparing outputs: equal to the bit whatever the chunks and workers, or what differs, worst layers first."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stores import Array, build_store

import streamstats as ss
from streamstats.config import JobConfig
from streamstats.errors import DataError, UsageError
from streamstats.jobs.compare import Comparison, LayerComparison, compare
from streamstats.jobs.merge import merge
from streamstats.jobs.run import run
from streamstats.statistics.kinds import optional

ALL = [name for name in optional() if name != "taps"]  # these layers have no kernel


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


LAYERS = {"a/conv": normal(24, 5, 4, seed=1), "b": normal(24, 6, seed=2)}


def reduced(folder: Path, values: dict[str, Array], *, stored: dict[str, Any] | None = None, **options: Any) -> Path:
    """The output of a run over `values`, in `folder`."""
    store = build_store(folder / "s.zarr", values, **(stored or {}))
    job = JobConfig(source=str(store), output=str(folder / "out"), **{"statistics": ALL, **options}).job()
    run(job)
    return folder / "out"


def only(found: Comparison) -> LayerComparison:
    (layer,) = found.layers
    return layer


def test_outputs_are_equal_whatever_the_chunks_codecs_and_workers(tmp_path: Path) -> None:
    first = reduced(tmp_path / "1", LAYERS)
    second = reduced(tmp_path / "2", LAYERS, stored={"compressors": None}, cluster={"workers": 2, "threads": 1})
    third = reduced(
        tmp_path / "3", {"b": LAYERS["b"]}, stored={"chunks": (5, 4), "zarr_format": 2}, cluster={"threads": 1}
    )
    found = ss.compare(first, second)
    assert (found.equal, found.same_rows) == (True, True)
    assert [each.layer for each in found.layers] == ["a/conv", "b"]
    other = only(compare(first, third, layers="b"))
    assert (other.equal, other.same_rows, other.differing, dict(other.described)) == (True, True, (), {})
    assert other.rows == (24, 24)
    assert other.values == (24 * 6, 24 * 6)
    assert other.shift == 0
    assert found.beyond(0) == []


def test_appended_rows_are_told_by_their_numbers(tmp_path: Path) -> None:
    more = {name: np.concatenate([values, values[:8]]) for name, values in LAYERS.items()}
    found = compare(reduced(tmp_path / "1", LAYERS), reduced(tmp_path / "2", more))
    assert (found.equal, found.same_rows) == (False, False)
    for each in found.layers:
        assert each.rows == (24, 32)
        assert set(each.differing) >= {"mean", "histogram", "spread"}
        assert "extrema" not in each.differing  # what was appended had been counted before
        assert each.apart is not None
        assert each.apart.beyond == 0


def test_as_many_but_other_rows_are_not_the_same(tmp_path: Path) -> None:
    values = {"b": np.concatenate([LAYERS["b"], LAYERS["b"]])}
    found = compare(reduced(tmp_path / "1", values, rows="0:24"), reduced(tmp_path / "2", values, rows="24:48"))
    assert (found.equal, found.same_rows) == (True, False)


def test_a_shifted_channel_is_found_and_its_layer_comes_first(tmp_path: Path) -> None:
    moved = {name: values.copy() for name, values in LAYERS.items()}
    moved["b"][:, 4] += 3
    found = compare(reduced(tmp_path / "1", LAYERS), reduced(tmp_path / "2", moved))
    assert [each.layer for each in found.layers] == ["b", "a/conv"]
    worst = found.layers[0]
    assert worst.apart is not None
    assert worst.apart.worst_mean is not None
    error = math.sqrt(2 * np.var(LAYERS["b"][:, 4].astype("f8"), ddof=1) / 24)
    assert worst.apart.worst_mean.channel == 4
    assert worst.apart.worst_mean.value == pytest.approx(3 / error, rel=1e-5)
    assert worst.apart.beyond_first is not None
    assert worst.apart.beyond_first.channel == 4
    assert [each.layer for each in found.beyond(5)] == ["b"]
    assert found.beyond(1000) == []


def test_other_quantisations_are_named_and_compared_in_real_units(tmp_path: Path) -> None:
    codes = np.random.default_rng(3).integers(-50, 50, (40, 4)).astype("int8")
    layers = [{"match": "*", "quantization": {"scale": scale, "scale_is": "step"}} for scale in (0.5, 0.25)]
    first = reduced(tmp_path / "1", {"q": codes}, layers=layers[:1])
    second = reduced(tmp_path / "2", {"q": (2 * codes).astype("int8")}, layers=layers[1:])
    found = only(compare(first, second))
    assert set(found.described) == {"quantization"}
    assert found.described["quantization"][0]["step"] == 0.5
    assert not found.equal
    assert found.apart is not None
    assert (found.shift, found.apart.beyond) == (0, 0)
    assert (found.apart.total_variation, found.apart.kolmogorov_smirnov) == (0, 0)
    assert "extrema" in found.differing


def test_other_dtypes_axes_and_statistics_are_named_and_no_error(tmp_path: Path) -> None:
    values = LAYERS["a/conv"]
    first = reduced(tmp_path / "1", {"a": values})
    second = reduced(tmp_path / "2", {"a": values.astype("float64")}, statistics=["spread"])
    found = only(compare(first, second))
    assert found.described["dtype"] == ("float32", "float64")
    assert found.described["statistics"][1] == ["mean", "extrema", "spread"]
    assert found.differing == ("mean", "extrema", "spread")
    assert found.shift == 0
    swapped = {"layers": [{"match": "*", "channel_axis": 1}]}
    third = only(compare(first, reduced(tmp_path / "3", {"a": values.swapaxes(1, 2).copy()}, **swapped)))
    assert "positions" not in third.described
    assert third.described == {"channel_axis": (2, 1)}
    assert not set(third.differing) & {"mean", "extrema", "spread", "histogram"}


def test_statistics_that_both_have_are_compared_beside_others(tmp_path: Path) -> None:
    first = reduced(tmp_path / "1", LAYERS, statistics=[])
    second = reduced(tmp_path / "2", LAYERS, statistics=["histogram"])
    found = only(compare(first, second, layers="b"))
    assert (found.differing, found.equal) == ((), False)
    assert found.described == {"statistics": (["mean", "extrema"], ["mean", "extrema", "histogram"])}


def test_other_channels_cannot_be_compared_and_are_beyond_every_threshold(tmp_path: Path) -> None:
    first = reduced(tmp_path / "1", {"a": normal(8, 3), "b": normal(8, 3)})
    second = reduced(tmp_path / "2", {"a": normal(8, 3), "b": normal(8, 4)})
    found = compare(first, second)
    assert [each.layer for each in found.beyond(1e300)] == ["b"]
    assert found.layers[0].described["channels"] == (3, 4)


def test_layers_that_only_one_output_has_come_first(tmp_path: Path) -> None:
    first = reduced(tmp_path / "1", LAYERS)
    second = reduced(tmp_path / "2", {"b": LAYERS["b"], "c": normal(8, 3)})
    found = compare(first, second)
    assert [(each.layer, each.only_in, each.equal) for each in found.layers] == [
        ("a/conv", "first", False),
        ("c", "second", False),
        ("b", None, True),
    ]
    assert [each.rows for each in found.layers] == [(24, 0), (0, 8), (24, 24)]
    assert [each.layer for each in found.beyond(5)] == ["a/conv", "c"]
    assert not found.same_rows


def test_merged_parts_are_equal_to_one_run(tmp_path: Path) -> None:
    whole = reduced(tmp_path / "whole", LAYERS)
    for rows in ("0:10", "10:24"):
        store = str(tmp_path / "whole" / "s.zarr")
        run(JobConfig(source=store, output=str(tmp_path / rows), rows=rows, statistics=ALL).job())
    merge([tmp_path / "0:10", tmp_path / "10:24"], tmp_path / "merged")
    found = compare(whole, tmp_path / "merged")
    assert (found.equal, found.same_rows) == (True, True)


def test_merged_stores_are_equal_in_any_order_and_say_that_the_rows_are_of_two(tmp_path: Path) -> None:
    whole = reduced(tmp_path / "whole", {"b": LAYERS["b"]})
    parts = [reduced(tmp_path / "1", {"b": LAYERS["b"][:10]}), reduced(tmp_path / "2", {"b": LAYERS["b"][10:]})]
    merge(parts, tmp_path / "merged")
    merge(parts[::-1], tmp_path / "again")
    found = compare(whole, tmp_path / "merged")
    assert (found.equal, found.same_rows) == (True, False)
    again = compare(tmp_path / "merged", tmp_path / "again")
    assert (again.equal, again.same_rows) == (True, True)


def test_the_document_has_everything_in_order(tmp_path: Path) -> None:
    moved = {**LAYERS, "b": LAYERS["b"] + 1}
    found = compare(reduced(tmp_path / "1", LAYERS), reduced(tmp_path / "2", moved))
    document = json.loads(json.dumps(found.document(), allow_nan=False))
    assert (document["equal"], document["same_rows"]) == (False, True)
    assert [each["layer"] for each in document["layers"]] == ["b", "a/conv"]
    worst, equal = document["layers"]
    assert worst["apart"]["in_standard_errors"]
    assert worst["apart"]["worst_mean"] == worst["apart"]["mean_in_standard_errors"]
    assert 0 < worst["apart"]["kolmogorov_smirnov"] <= 1
    assert (equal["equal"], equal["differing"], equal["described"]) == (True, [], {})


def test_a_folder_that_is_no_output_is_refused_by_name(tmp_path: Path) -> None:
    first = reduced(tmp_path / "1", {"b": LAYERS["b"]})
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(UsageError, match=f"{folder} has no manifest.json; expected the output folder"):
            compare(first, folder)
    with pytest.raises(UsageError, match="no layer matches 'c'; the outputs have b"):
        compare(first, first, layers="c")


def test_a_damaged_state_is_never_compared(tmp_path: Path) -> None:
    first = reduced(tmp_path / "1", {"b": LAYERS["b"]})
    second = reduced(tmp_path / "2", {"b": LAYERS["b"]})
    state = second / "state/b.safetensors"
    state.write_bytes(state.read_bytes()[:-1] + b"?")
    with pytest.raises(DataError, match="does not match its SHA-256"):
        compare(first, second)


def test_a_mask_in_one_output_only_is_named(tmp_path: Path) -> None:
    layers = {"a": normal(8, 5, 4), "words": np.arange(40).reshape(8, 5) % 3 > 0}
    outputs = [
        reduced(tmp_path / str(mask), layers, statistics=[], layers=[{"match": "a", "mask": mask}])
        for mask in (None, "words")
    ]
    assert only(compare(*outputs)).described == {"mask": (False, True)}
