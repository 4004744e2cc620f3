"""A layer: its channel axis and its quantisation fit its array, and it travels to other processes."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from stores import build_store, described, samples

from streamstats.calibration.sources.choose import source_of
from streamstats.errors import MismatchError, UsageError
from streamstats.quantization import Quantization

SHAPE = (7, 3, 4)


@pytest.mark.parametrize(("axis", "expected"), [(1, 1), (2, 2), (-1, 2), (-2, 1)])
def test_the_channel_axis_counts_from_either_end(tmp_path: Path, axis: int, expected: int) -> None:
    layer = described(build_store(tmp_path, {"layer": samples(*SHAPE)})).with_channel_axis(axis)
    assert (layer.channel_axis, layer.channels) == (expected, SHAPE[expected])


@pytest.mark.parametrize("axis", [0, 3, -3, -4, 100])
def test_a_channel_axis_that_is_not_there_is_refused(tmp_path: Path, axis: int) -> None:
    layer = described(build_store(tmp_path, {"layer": samples(*SHAPE)}))
    with pytest.raises(
        UsageError, match=rf"layer layer: channel_axis is {axis}, .*\(7, 3, 4\).* from 1 to 2, or from -2 to -1"
    ):
        layer.with_channel_axis(axis)


def test_a_quantisation_needs_integer_codes(tmp_path: Path) -> None:
    store = build_store(tmp_path, {"codes": samples(*SHAPE, dtype="int8"), "reals": samples(*SHAPE)})
    quantization = Quantization(0.5, 3)
    assert described(store, "codes").with_quantization(quantization).quantization == quantization
    assert described(store, "codes").with_quantization(quantization).with_quantization(None).quantization is None
    with pytest.raises(UsageError, match="layer reals: a quantisation is given, but its values are float32"):
        described(store, "reals").with_quantization(quantization)


def test_a_quantisation_for_other_channels_is_refused(tmp_path: Path) -> None:
    layer = described(build_store(tmp_path, {"layer": samples(*SHAPE, dtype="int8")}))
    assert layer.with_quantization(Quantization([1.0, 2.0, 3.0, 4.0])).quantization is not None
    with pytest.raises(MismatchError, match="layer layer: the quantisation has 3 channels, the layer has 4"):
        layer.with_quantization(Quantization([1.0, 2.0, 3.0]))


def test_a_layer_travels_to_other_processes(tmp_path: Path) -> None:
    store = build_store(tmp_path, {"layer": samples(*SHAPE, dtype="int8")})
    layer = described(store).with_quantization(Quantization(0.5))
    assert layer.encoding is not None
    travelled = pickle.loads(pickle.dumps(layer))
    assert travelled == layer
    assert travelled.source == layer.source == source_of(store)
