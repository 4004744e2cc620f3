"""What all model formats share: one term per layer, and one outcome that says what became of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from streamstats import Geometry, Kernel, MeanBiasCorrector, NullBiasCorrector, TapBiasCorrector
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
MEANS, TAP_MEANS = RNG.normal(size=3), RNG.normal(size=(3, 3, 3))
KERNEL = Kernel((3, 3), Geometry(pads=(1, 1, 1, 1)))
LAYER = LinearLayer(name="block/conv", weight=WEIGHT, layout="OIHW", geometry=KERNEL.geometry)


def test_the_term_is_that_of_the_corrector_times_the_factor_of_the_layer() -> None:
    for corrector in (MeanBiasCorrector(MEANS), TapBiasCorrector(MEANS, TAP_MEANS, KERNEL)):
        expected = corrector.calculate(WEIGHT, QUANTIZED, layout="OIHW", geometry=LAYER.geometry)
        np.testing.assert_array_equal(correction_term(LAYER, corrector, WEIGHT, QUANTIZED), expected)
        doubled = correction_term(replace(LAYER, factor=2.0), corrector, WEIGHT, QUANTIZED)
        np.testing.assert_array_equal(doubled, 2 * expected)


def test_a_geometry_that_the_layer_does_not_know_is_that_of_the_corrector() -> None:
    class Automatic(LinearLayer):
        known_geometry = None  # the padding depends on the input

    corrector = TapBiasCorrector(MEANS, TAP_MEANS, KERNEL)
    expected = corrector.calculate(WEIGHT, QUANTIZED, layout="OIHW")
    automatic = Automatic(name="layer", weight=WEIGHT, layout="OIHW", geometry=Geometry())
    for layer in (replace(LAYER, geometry=None), automatic):
        np.testing.assert_array_equal(correction_term(layer, corrector, WEIGHT, QUANTIZED), expected)


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
    unpadded = replace(LAYER, geometry=Geometry())
    with pytest.raises(MismatchError, match=r"layer block/conv: weights of .* were counted for the kernel"):
        correction_term(unpadded, TapBiasCorrector(MEANS, TAP_MEANS, KERNEL), WEIGHT, QUANTIZED)
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
