"""Meter: the statistics of arrays as they come are, to the bit, those of a run over the same samples in a store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stores import Array, samples

import streamstats as ss
from streamstats.correction import BiasCorrector
from streamstats.errors import MismatchError, NonFiniteError, UsageError
from streamstats.jobs.compare import compare
from streamstats.jobs.merge import merge
from streamstats.jobs.meter import Meter
from streamstats.outputs.results import open_results

STATISTICS = ["magnitude", "squares", "histogram", "spread"]


def metered(values: Array, parts: int, **options: Any) -> Meter:
    meter = Meter(STATISTICS)
    for part in np.array_split(values, parts):
        meter.append("block/conv", part, **options)
    return meter


@pytest.mark.parametrize("dtype", ["i1", "u2", "f2", "f4", "f8"])
@pytest.mark.parametrize("axis", [1, -1])
def test_a_meter_gives_the_bits_of_a_run_over_the_recorded_store(dtype: str, axis: int, tmp_path: Path) -> None:
    values = samples(23, 5, 4, 6, dtype=dtype)
    with ss.Recorder(tmp_path / "s.zarr") as recorder:
        recorder.append("block/conv", values, channel_axis=axis)
    expected = ss.reduce(tmp_path / "s.zarr", layers=[ss.LayerRule("*", statistics=tuple(STATISTICS))])["block/conv"]
    for parts in (1, 4, 23):
        found = metered(values, parts, channel_axis=axis).statistics["block/conv"]
        assert found.statistics == expected.statistics
        assert (found.rows, found.channel_axis) == (23, expected.channel_axis)


@pytest.mark.parametrize("shape", [(4, 3, 0), (4, 0, 3), (0, 3, 2)])
def test_samples_without_values_are_rows_in_both_and_tell_nothing_of_the_spread(
    shape: tuple[int, ...], tmp_path: Path
) -> None:
    values = np.zeros(shape, "f4")
    with ss.Recorder(tmp_path / "s.zarr") as recorder:
        recorder.append("block/conv", values)
    expected = ss.reduce(tmp_path / "s.zarr", layers=[ss.LayerRule("*", statistics=tuple(STATISTICS))])["block/conv"]
    assert metered(values, 2).statistics["block/conv"].statistics == expected.statistics
    assert expected.rows == len(values)
    assert not expected.statistics["spread"].samples.any()


def test_what_it_saves_is_an_output_that_other_commands_take(tmp_path: Path) -> None:
    values = samples(30, 5, 6)
    for number, part in enumerate(np.array_split(values, 3)):
        meter = Meter(STATISTICS, name=f"site {number}")
        meter.append("conv", part)
        meter.save(tmp_path / str(number))
    whole = Meter(STATISTICS)
    whole.append("conv", values)
    whole.save(tmp_path / "whole")
    merge([tmp_path / str(number) for number in range(3)], tmp_path / "merged")
    merged = open_results(tmp_path / "merged").statistics("conv")
    assert merged.statistics == whole.statistics["conv"].statistics
    assert all(layer.equal for layer in compare(tmp_path / "whole", tmp_path / "whole").layers)
    corrector = BiasCorrector.load(tmp_path / "whole/correctors/conv.safetensors")
    assert corrector.calculate(np.ones((1, 6)), np.zeros((1, 6)), layout="OI") is not None


def test_results_name_the_model_that_was_measured(tmp_path: Path) -> None:
    model, *weights = (f"torch:{digits * 32}" for digits in ("01", "23", "45"))
    meter = Meter(model_fingerprint=model, weight_fingerprints=dict(zip("qk", weights, strict=True)))
    meter.append("q", samples(4, 3), layers=dict.fromkeys("qkv"))
    meter.save(tmp_path / "out")
    layers = open_results(tmp_path / "out").manifest.layers
    assert [each.models for each in layers.values()] == [[model]] * 3
    assert {name: each.weights for name, each in layers.items()} == {"q": weights[:1], "k": weights[1:], "v": []}


def test_the_same_samples_are_not_merged_twice(tmp_path: Path) -> None:
    meter = Meter()
    meter.append("conv", samples(4, 3))
    meter.save(tmp_path / "one")
    meter.save(tmp_path / "two")
    with pytest.raises(MismatchError, match=r"rows 0:4 are counted in .*one, too, .*of meters of different names"):
        merge([tmp_path / "one", tmp_path / "two"], tmp_path / "merged")


def test_a_call_that_raises_has_measured_nothing(tmp_path: Path) -> None:
    meter = Meter(["squares"])
    meter.append("conv", samples(4, 3))
    before = meter.statistics["conv"]
    bad = samples(5, 3)
    bad[2, 1] = np.nan
    with pytest.raises(NonFiniteError, match=r"layer conv, row 6, channel 1: the value is nan"):
        meter.append("conv", bad)
    for other, said in ((samples(2, 4), "sample shape"), (samples(2, 3, dtype="f8"), "dtype")):
        with pytest.raises(MismatchError, match=f"layer conv: the {said} is"):
            meter.append("conv", other)
    with pytest.raises(UsageError, match="layer"):
        meter.append("../conv", samples(2, 3))
    assert meter.statistics["conv"] == before
    skipping = Meter(nonfinite="skip")
    skipping.append("conv", bad)
    assert skipping.statistics["conv"].sums.nan.tolist() == [0, 1, 0]
    meter.save(tmp_path / "out")
    with pytest.raises(UsageError, match="holds other results"):
        meter.save(tmp_path / "out")
    with pytest.raises(UsageError, match="nothing was measured"):
        Meter().save(tmp_path / "other")


def test_a_statistic_that_a_layer_cannot_have_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match=r"layer conv: `magnitude` cannot be counted, because .*zero point"):
        Meter(["magnitude"]).append("conv", samples(2, 3, dtype="i2"), quantization=ss.Quantization(0.5, 3))
    with pytest.raises(UsageError, match="statistics nothing are unknown"):
        Meter(["nothing"])
    for asked in (Meter, lambda text: ss.LayerRule("*", statistics=text)):
        with pytest.raises(UsageError, match=r"statistics is the text 'spread'; expected a list .* \['spread'\]"):
            asked("spread")


def test_samples_before_the_name_and_other_axes_are_refused_as_they_were_given() -> None:
    values: Any = samples(40, 3, 5)
    with pytest.raises(UsageError, match="the layer's name is of type ndarray; expected text: give the name first"):
        Meter().append(values, "conv")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"channel_axis is 4, but the array has the shape \(40, 3, 5\)"):
        Meter().append("conv", values, channel_axis=4)
    masks = Meter()
    masks.append("conv", values, mask=np.ones((40, 3), bool))
    with pytest.raises(
        MismatchError, match=r"the mask is none; .* one of shape \(3,\) .*; give each append its `mask`"
    ):
        masks.append("conv", values)
