"""Exact quantiles: equal to sorting, for every dtype that they support, and reading no more than they need."""

from __future__ import annotations

import json
import math
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from stores import Array, build_store

from streamstats.cli import main
from streamstats.config import JobConfig
from streamstats.errors import DataError, UsageError
from streamstats.jobs import quantiles as module
from streamstats.jobs.forget import forget
from streamstats.jobs.job import Job
from streamstats.jobs.quantiles import exact_quantiles
from streamstats.jobs.run import run

QS = [0.0, 0.001, 0.25, 0.5, 0.77, 0.999, 1.0]


def config(store: Path, **options: Any) -> Job:
    settings = {"statistics": ["histogram"]} | options
    return JobConfig.model_validate({"source": str(store), "output": str(store.parent / "out"), **settings}).job()


def sorted_value(values: Array, q: float) -> float:
    ordered = np.sort(values, axis=None)
    return float(ordered[max(0, math.ceil(Fraction(str(q)) * ordered.size) - 1)])


def activations(dtype: str, rows: int = 40) -> Array:
    values = np.random.default_rng(0).standard_normal((rows, 6, 5, 8)) * 40
    return np.maximum(values, -20).astype(dtype) if dtype[0] != "u" else np.abs(values).astype(dtype)


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "f2", "i4", "u4", "f4"])
def test_they_are_the_values_at_their_places_among_the_sorted_ones(dtype: str, tmp_path: Path) -> None:
    values = activations(dtype)
    store = build_store(tmp_path / "s.zarr", {"conv": values}, chunks=(7, 6, 5, 8))
    run(config(store))
    found = exact_quantiles(config(store), QS)
    assert [(each.layer, each.q) for each in found] == [("conv", q) for q in QS]
    assert [each.value for each in found] == [sorted_value(values, q) for q in QS]


def test_hard_floats_are_in_their_places(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    values = np.frombuffer(rng.bytes(4 * 64 * 33), "f4").reshape(64, 33)
    values = np.where(np.isfinite(values), values, np.float32(-0.0))
    store = build_store(tmp_path / "s.zarr", {"fc": values})
    run(config(store))
    qs = [i / 97 for i in range(98)]
    assert [each.value for each in exact_quantiles(config(store), qs)] == [sorted_value(values, q) for q in qs]


def test_codes_are_given_in_real_units(tmp_path: Path) -> None:
    values = activations("i4")
    store = build_store(tmp_path / "s.zarr", {"conv": values})
    rule = {"match": "*", "quantization": {"scale": 0.25, "scale_is": "step", "zero_point": 3}}
    job = config(store, layers=[rule])
    run(job)
    assert [each.value for each in exact_quantiles(job, QS)] == [(sorted_value(values, q) - 3) * 0.25 for q in QS]


def test_only_layers_with_wide_bins_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = build_store(tmp_path / "s.zarr", {"half": activations("f2"), "single": activations("f4")})
    run(config(store, rows="0:30"))
    read: list[tuple[str, str]] = []
    reduce_layers = module.reduce_layers

    def noting(layers: Any, ledgers: Any, wanted: Any, *others: Any) -> Any:
        read.extend((name, str(rows)) for name, rows in wanted.items())
        return reduce_layers(layers, ledgers, wanted, *others)

    monkeypatch.setattr(module, "reduce_layers", noting)
    exact_quantiles(config(store, rows="0:30"), [0.5])
    assert read == [("single", "0:30")]


def test_forgotten_rows_are_left_out(tmp_path: Path) -> None:
    values = activations("f4")
    store = build_store(tmp_path / "s.zarr", {"conv": values}, chunks=(7, 6, 5, 8))
    run(config(store))
    forget(config(store), (5, 21))
    left = np.concatenate([values[:5], values[21:]])
    assert [each.value for each in exact_quantiles(config(store), QS)] == [sorted_value(left, q) for q in QS]


def test_what_cannot_be_answered_is_said_with_the_remedy(tmp_path: Path) -> None:
    store = build_store(tmp_path / "s.zarr", {"wide": activations("f8")})
    run(config(store))
    with pytest.raises(UsageError, match=r"layer wide: exact quantiles of float64 values are not supported"):
        exact_quantiles(config(store), [0.5])
    with pytest.raises(UsageError, match="the quantile is 2; expected a number from 0 to 1"):
        exact_quantiles(config(store), [2])
    other = build_store(tmp_path / "other" / "s.zarr", {"conv": activations("f4")})
    run(config(other, statistics=[]))
    with pytest.raises(UsageError, match=r"layer conv: exact quantiles need its histogram; add `histogram`"):
        exact_quantiles(config(other, statistics=[]), [0.5])


def test_layers_that_have_none_are_named_and_the_others_are_answered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = activations("f4")
    layers = {"a": values, "nan": np.full((4, 3), np.nan, "f4"), "plain": values, "wide": activations("f8")}
    build_store(tmp_path / "s.zarr", layers)
    entries = '[{match: plain}, {match: "*", statistics: [histogram]}]'
    (tmp_path / "run.yaml").write_text(
        f"source: {tmp_path}/s.zarr\noutput: {tmp_path}/out\nlayers: {entries}\nnonfinite: skip\n"
    )
    assert main(["run", str(tmp_path / "run.yaml"), "--json", "--refine", "0.5"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["quantiles"] == {"a": [{"q": 0.5, "value": sorted_value(values, 0.5)}]}
    assert "no quantiles of plain: exact quantiles need its histogram; add `histogram`" in shown.err
    assert "no quantiles of wide: exact quantiles of float64 values are not supported" in shown.err
    assert "no quantiles of nan: it has no finite values" in shown.err
    others = config(tmp_path / "s.zarr", nonfinite="skip", layers=[{"match": "nan"}, {"match": "wide"}])
    run(others, restart=True)
    with pytest.raises(UsageError, match=r"layer nan \(and 1 more layer\): it has no finite values"):
        exact_quantiles(others, [0.5])


def test_values_that_changed_in_silence_are_an_error(tmp_path: Path) -> None:
    values = activations("f4")
    store = build_store(tmp_path / "s.zarr", {"conv": values}, compressors=None, chunks=(40, 6, 5, 8))
    run(config(store))
    chunk = store / "conv/c/0/0/0/0"
    before = chunk.stat()
    zarr.open_array(store, path="conv")[np.unravel_index(values.argmax(), values.shape)] = 0
    os.utime(chunk, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(DataError, match="have changed since they were counted"):
        exact_quantiles(config(store), [0.0, 1.0])


def test_run_prints_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = activations("f4")
    build_store(tmp_path / "s.zarr", {"conv": values})
    (tmp_path / "run.yaml").write_text(f"source: {tmp_path}/s.zarr\noutput: {tmp_path}/out\nstatistics: [histogram]\n")
    assert main(["run", str(tmp_path / "run.yaml"), "--json", "--refine", "0.5", "0.999"]) == 0
    found = json.loads(capsys.readouterr().out)["quantiles"]["conv"]
    assert found == [{"q": q, "value": sorted_value(values, q)} for q in (0.5, 0.999)]
    assert main(["run", str(tmp_path / "run.yaml"), "--refine", "0.5", "--follow", "--idle", "0"]) == 2
    assert "--refine and --follow cannot be combined" in capsys.readouterr().err


def test_values_that_changed_and_were_accepted_have_no_exact_quantiles(tmp_path: Path) -> None:
    """A change within a bin keeps its count, so only the acceptance tells."""
    store = build_store(tmp_path / "s.zarr", {"conv": np.full((8, 3), 1.001, "f4")}, chunks=(2, 3))
    run(config(store))
    zarr.open_array(store, path="conv")[2:4] = 1.005
    run(config(store), accept_changes=True)
    with pytest.raises(UsageError, match=r"layer conv: rows 2:4 have changed since they were counted"):
        exact_quantiles(config(store), [0.5])
    run(config(store), restart=True)
    assert exact_quantiles(config(store), [0.99])[0].value == np.float32(1.005)


@pytest.mark.parametrize(("quantile", "statistics"), [("7", "[histogram]"), ("nan", "[histogram]"), ("0.5", "[]")])
def test_a_quantile_that_cannot_be_found_is_refused_before_anything_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], quantile: str, statistics: str
) -> None:
    build_store(tmp_path / "s.zarr", {"conv": activations("f4")})
    (tmp_path / "run.yaml").write_text(f"source: {tmp_path}/s.zarr\noutput: {tmp_path}/out\nstatistics: {statistics}\n")
    assert main(["run", str(tmp_path / "run.yaml"), "--refine", quantile]) == 2
    assert "quantile" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.soak
def test_a_billion_values_have_the_quantiles_of_sorting(tmp_path: Path) -> None:
    """One block, a hundred times over: the value at a place among all is the block's at a hundredth of that place."""
    block, times = np.random.default_rng(2).standard_normal((1000, 10_000)).astype("f4"), 100
    options = {"chunks": (1000, 10_000), "dtype": "f4", "shape": (1000 * times, 10_000)}
    array = zarr.create_array(tmp_path / "s.zarr", name="layer", **options)
    for time in range(times):
        array[1000 * time : 1000 * (time + 1)] = block
    store = tmp_path / "s.zarr"
    run(config(store))
    ordered, count = np.sort(block, axis=None), block.size * times
    places = {q: max(0, math.ceil(Fraction(str(q)) * count) - 1) for q in QS}
    found = {each.q: each.value for each in exact_quantiles(config(store), QS)}
    assert found == {q: float(ordered[place // times]) for q, place in places.items()}
