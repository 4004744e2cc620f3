"""What all model formats share: one term per layer, and one outcome that says what became of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from streamstats import Geometry, MeanBiasCorrector, NullBiasCorrector, PositionBiasCorrector
from streamstats.errors import DataError, MismatchError, UsageError
from streamstats.models.linear import (
    NO_CORRECTOR,
    NULL_CORRECTOR,
    LinearLayer,
    correction_term,
    is_near,
    load_corrector,
    planned_correction,
)

RNG = np.random.default_rng(5)
WEIGHT, QUANTIZED = RNG.normal(size=(2, 4, 3, 3, 3))
MEANS = RNG.normal(size=(3, 6, 6))
LAYER = LinearLayer(name="block/conv", weight=WEIGHT, layout="OIHW", geometry=Geometry(pads=(1, 1, 1, 1)))


def test_the_term_is_that_of_the_corrector_times_the_factor_of_the_layer() -> None:
    for corrector in (MeanBiasCorrector(MEANS.mean(axis=(1, 2))), PositionBiasCorrector(MEANS)):
        expected = corrector.calculate(WEIGHT, QUANTIZED, layout="OIHW", geometry=LAYER.geometry)
        np.testing.assert_array_equal(correction_term(LAYER, corrector, WEIGHT, QUANTIZED), expected)
        doubled = correction_term(replace(LAYER, factor=2.0), corrector, WEIGHT, QUANTIZED)
        np.testing.assert_array_equal(doubled, 2 * expected)


def test_without_a_geometry_the_mean_of_each_channel_stands_for_what_every_tap_sees() -> None:
    corrector = PositionBiasCorrector(MEANS)
    expected = MeanBiasCorrector(corrector.input_mean).calculate(WEIGHT, QUANTIZED, layout="OIHW")
    found = correction_term(replace(LAYER, geometry=None), corrector, WEIGHT, QUANTIZED)
    np.testing.assert_array_equal(found, expected)


def test_a_geometry_that_depends_on_the_input_is_asked_for_the_extents_of_the_means() -> None:
    class Automatic(LinearLayer):
        def geometry_over(self, extents):
            assert tuple(extents) == (6, 6)
            return Geometry(pads=(1, 1, 1, 1))

    automatic = Automatic(name="layer", weight=WEIGHT, layout="OIHW", geometry=Geometry())
    corrector = PositionBiasCorrector(MEANS)
    np.testing.assert_array_equal(
        correction_term(automatic, corrector, WEIGHT, QUANTIZED), correction_term(LAYER, corrector, WEIGHT, QUANTIZED)
    )


def test_what_is_planned_has_a_term_or_a_reason() -> None:
    planned = planned_correction(LAYER, MeanBiasCorrector(np.ones(3)), WEIGHT, QUANTIZED)
    assert (planned.layer, planned.corrected, planned.reason, planned.outputs) == ("block/conv", False, "", 4)
    assert planned.term is not None
    assert planned.largest == np.abs(planned.term).max()
    for corrector, reason in ((None, NO_CORRECTOR), (NullBiasCorrector(), NULL_CORRECTOR)):
        planned = planned_correction(LAYER, corrector, WEIGHT, QUANTIZED)
        assert (planned.term, planned.reason, planned.largest) == (None, reason, 0.0)
        assert json.loads(json.dumps(planned.document()))["reason"] == reason


def test_what_does_not_fit_names_the_layer() -> None:
    with pytest.raises(MismatchError, match=r"layer block/conv: .* 3 input channels; the mean has the shape \(7,\)"):
        correction_term(LAYER, MeanBiasCorrector(np.ones(7)), WEIGHT, QUANTIZED)
    with pytest.raises(UsageError, match=r"layer block/conv: fake-quantised weights hold NaN"):
        correction_term(LAYER, MeanBiasCorrector(np.ones(3)), WEIGHT, np.full_like(WEIGHT, np.nan))


def test_a_corrector_is_that_of_its_layer(tmp_path: Path) -> None:
    MeanBiasCorrector(np.ones(3), {"layer": "other"}).save(tmp_path / "c.safetensors")
    assert load_corrector(None, "layer") is None
    assert isinstance(load_corrector(tmp_path / "c.safetensors", "other"), MeanBiasCorrector)
    with pytest.raises(DataError, match=r"was made for layer other, not for layer"):
        load_corrector(tmp_path / "c.safetensors", "layer")


def test_weights_of_other_layers_are_not_near() -> None:
    assert is_near(WEIGHT, WEIGHT + 0.01)
    assert not is_near(WEIGHT, QUANTIZED)
    assert is_near(np.zeros(3), np.ones(3))  # nothing is nearer to a weight of zeros
