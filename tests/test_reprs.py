"""What an interpreter shows of public values: what they are and how large, in one short line, without their arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from stores import samples

import streamstats as ss
from streamstats.outputs.results import open_results

LONGEST = 160
PADDED = ss.Kernel((3, 3), ss.Geometry(pads=(1, 1, 1, 1)))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reprs")
    with ss.Recorder(folder / "s.zarr") as recorder:
        recorder.append("fc", samples(40, 16))
        recorder.append("conv", samples(40, 5, 5, 16, dtype="int8"), kernel=PADDED)
    rules = (ss.LayerRule("conv", statistics=("taps",)), ss.LayerRule("*", statistics=EVERY))
    ss.run(ss.Job(str(folder / "s.zarr"), str(folder / "out"), layers=rules))
    return folder / "out"


EVERY = ("magnitude", "squares", "histogram", "spread", "gram")


def test_values_of_a_run_say_what_they_are_in_one_short_line(out: Path) -> None:
    found = ss.load(out)
    values = [
        *(each for layer in found.values() for each in layer.statistics.values()),
        *(value for layer in found.values() for value in (layer, layer.statistics, *layer.sources)),
        *(ss.BiasCorrector.load(out / f"correctors/{layer}.safetensors") for layer in found),
        *(ss.find_ranges(out, "minmax", per_channel=each, layers="conv")["conv"] for each in (True, False)),
        *((spectrum := ss.LayerSpectrum.of(found["fc"])), spectrum.groups[0]),
        *(ss.status(out), ss.compare(out, out), open_results(out)),
    ]
    for value in values:
        assert len(repr(value)) <= LONGEST, repr(value)
        assert "array" not in repr(value)
        assert "\n" not in repr(value)


def test_short_forms_name_the_kind_the_shape_and_the_counts(out: Path, tmp_path: Path) -> None:
    fc = ss.load(out)["fc"]
    assert repr(fc.extrema) == "<ChannelExtrema of 16 channels: minimum float32[16], maximum float32[16]>"
    assert repr(fc.sources) == "(<CountedSource: rows 0:40 of 40>,)"
    corrector = ss.BiasCorrector.load(out / "correctors/conv.safetensors")
    assert repr(corrector) == "<TapBiasCorrector of conv: 16 channels under taps (3, 3)>"
    assert repr(ss.MeanBiasCorrector(np.ones(1))) == "<MeanBiasCorrector: 1 channel>"
    assert (
        repr(ss.Quantization([0.5] * 8, 3)) == "Quantization(step=[0.5, 0.5, 0.5, … 5 more], zero_point=3, offset=0.0)"
    )
    assert repr(ss.LayerRule("a*", mask=False)) == "LayerRule('a*', mask=False)"
    assert repr(ss.LayerRule("a*")) == "LayerRule('a*')"
    assert repr(ss.status(out)) == "<Status of 2 layers: 80 rows counted, complete>"
    assert repr(ss.compare(out, out)) == "<Comparison of 2 layers: 0 differ>"
    meter = ss.Meter(["squares"])
    meter.append("x", np.ones((3, 4)))
    assert repr(meter) == "<Meter meter of 1 layer: mean, extrema, squares>"
    with ss.Recorder(tmp_path / "r.zarr") as recorder:
        recorder.append("x", np.ones((3, 4)))
    assert repr(recorder) == f"<Recorder into {tmp_path / 'r.zarr'}: 1 layer appended to, closed>"


def test_a_client_does_not_show_its_token() -> None:
    pytest.importorskip("httpx")
    with ss.Client("http://127.0.0.1:8765", "TOKEN") as client:
        assert repr(client) == "<Client of http://127.0.0.1:8765>"
