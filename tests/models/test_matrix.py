"""The promise for the networks that people have: after the correction, each layer has the float model's mean outputs,
to half a step of its bias, or the reason is given why it was left alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from matrix import ways
from matrix.ways import Outcome
from networks import model_of, random_network, values

UNDONE = 5
"""What remains of the largest shift of a network is less than that, divided by this number."""


def checked(outcomes: Sequence[Outcome]) -> None:
    """Fail unless every layer is corrected and right, or left out with a reason."""
    assert outcomes
    assert [each for each in outcomes if not each.corrected and not each.reason] == []
    corrected = [each for each in outcomes if each.corrected]
    assert [each for each in corrected if each.after is None or not each.after.is_undone] == []
    shifts = [(each.before, each.after) for each in corrected if each.before and each.after]
    if shifts:  # rounding did move something
        assert max(before.distance for before, _ in shifts) > UNDONE * max(after.distance for _, after in shifts)


@pytest.mark.parametrize("way", ways.WAYS)
def test_layers_of_a_network_without_torch(tmp_path: Path, way: str) -> None:
    nodes, constants, sample = random_network(2)
    x = values(24, *sample)
    onnx.save(model_of(nodes, constants, x), tmp_path / "float.onnx")
    outcomes = ways.outcomes(ways.recorded(tmp_path / "float.onnx", {"x": x}), ways.WAYS[way])
    checked(outcomes)
    assert sum(each.corrected for each in outcomes) >= 3


NAMES = (
    "MobileNetV2",
    "MobileNetV3",
    "EfficientNet",
    "ResNet",
    "ConvNeXt",
    "U-Net",
    "EDSR",
    "YOLO",
    "DS-CNN",
    "ViT",
    "BERT",
    "GPT-2",
    "Swin",
    "Mixture of experts",
    "CRNN",
)


def network(name: str) -> tuple[Any, dict[str, Any]]:
    pytest.importorskip("torch", reason="`make models` tests with it")
    from matrix import torch_networks

    return torch_networks.built(name)


@pytest.mark.filterwarnings("ignore")  # torch's and its exporters' own
@pytest.mark.parametrize("exporter", ["TorchScript", "dynamo"])
@pytest.mark.parametrize("name", NAMES)
def test_layers_of_exported_networks(tmp_path: Path, name: str, exporter: str) -> None:
    module, x = network(name)
    if exporter == "dynamo":
        pytest.importorskip("onnxscript", reason="`make models` tests with it")
    from matrix.exporting import export

    export(module, x, tmp_path / "float.onnx", exporter)
    recorded = ways.recorded(tmp_path / "float.onnx", {key: np.asarray(each) for key, each in x.items()})
    for way in ways.WAYS.values():
        checked(ways.outcomes(recorded, way))


@pytest.mark.filterwarnings("ignore")  # torch's and torchao's own
@pytest.mark.parametrize("name", NAMES)
def test_layers_of_networks_quantised_in_torch(tmp_path: Path, name: str) -> None:
    module, x = network(name)
    pytest.importorskip("torchao", reason="`make models` tests with it")
    from matrix import torch_ways

    recorded = torch_ways.recorded(module, x, tmp_path)
    for way in torch_ways.WAYS.values():
        checked(torch_ways.outcomes(recorded, way))
