"""The networks of the matrix, with random weights, realistic batch normalisation, and samples. Importing this imports
torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from . import attention, convolutional

SAMPLES = 32
IMAGE, SMALL, SPECTRUM, LINE = (3, 32, 32), (3, 16, 16), (1, 40, 10), (1, 8, 32)


@dataclass(frozen=True)
class Network:
    """What builds a network, and the shape of a sample (of reals), or the number of tokens."""

    build: Callable[[], Any]
    sample: tuple[int, ...]
    masked: bool = False


NETWORKS: Mapping[str, Network] = {
    "MobileNetV2": Network(lambda: convolutional.Mobile(nn.ReLU6, None), IMAGE),
    "MobileNetV3": Network(lambda: convolutional.Mobile(nn.Hardswish, (nn.ReLU, nn.Hardsigmoid)), IMAGE),
    "EfficientNet": Network(lambda: convolutional.Mobile(nn.SiLU, (nn.SiLU, nn.Sigmoid)), IMAGE),
    "ResNet": Network(convolutional.ResNet, IMAGE),
    "ConvNeXt": Network(convolutional.ConvNeXt, IMAGE),
    "U-Net": Network(convolutional.UNet, SMALL),
    "EDSR": Network(convolutional.EDSR, SMALL),
    "YOLO": Network(convolutional.YOLO, IMAGE),
    "DS-CNN": Network(convolutional.DSCNN, SPECTRUM),
    "ViT": Network(attention.ViT, IMAGE),
    "BERT": Network(attention.BERT, (12,), masked=True),
    "GPT-2": Network(attention.GPT, (12,)),
    "Swin": Network(attention.Swin, IMAGE),
    "Mixture of experts": Network(attention.Experts, (12,)),
    "CRNN": Network(convolutional.CRNN, LINE),
}


def built(name: str) -> tuple[Any, dict[str, Any]]:
    """(the network, as after training; samples by the names of its inputs)."""
    torch.manual_seed(0)
    found = NETWORKS[name]
    network = found.build()
    x = samples(found)
    _normalise(network, x)
    return network.eval().requires_grad_(False), x


def samples(network: Network) -> dict[str, Any]:
    if len(network.sample) > 1:
        scale = torch.rand(SAMPLES, network.sample[0], 1, 1) + 0.5
        return {"x": torch.randn(SAMPLES, *network.sample) * scale + 0.3}
    tokens = {"tokens": torch.randint(50, (SAMPLES, *network.sample))}
    lengths = torch.randint(6, network.sample[0] + 1, (SAMPLES, 1))
    mask = (torch.arange(network.sample[0]) < lengths).long()
    return tokens | ({"attention_mask": mask} if network.masked else {})


def _normalise(network: Any, x: Mapping[str, Any]) -> None:
    """Give each batch normalisation the statistics of its inputs, a scale and a shift."""
    for each in network.modules():
        if isinstance(each, nn.BatchNorm2d):
            each.momentum = None
            with torch.no_grad():
                each.weight.uniform_(0.5, 1.5)
                each.bias.normal_(0.2, 0.3)
    with torch.no_grad():
        network.train()(*x.values())
