"""Small convolutional networks with the structure of those that people quantise. Importing this imports torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional


def normed(conv: Any, activation: Any = None) -> Any:
    """A convolution, its batch normalisation and what follows."""
    parts = [conv, nn.BatchNorm2d(conv.out_channels)]
    return nn.Sequential(*parts, *([activation] if activation else []))


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1, bias: bool = False) -> Any:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=bias)


class Excitation(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, channels: int, inner: Any, gate: Any) -> None:
        super().__init__()
        self.pool, self.down, self.up = nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)
        self.inner, self.gate = inner, gate

    def forward(self, x: Any) -> Any:
        return x * self.gate(self.up(self.inner(self.down(self.pool(x)))))


class Inverted(nn.Module):
    """An inverted residual block: wide, depthwise, narrow."""

    def __init__(self, channels: int, outputs: int, stride: int, activation: Any, gate: tuple[Any, Any] | None) -> None:
        super().__init__()
        wide = 2 * channels
        squeeze = [Excitation(wide, *(each() for each in gate))] if gate else []
        self.body = nn.Sequential(
            normed(conv(channels, wide, 1), activation()),
            normed(conv(wide, wide, 3 if gate is None else 5, stride, wide), activation()),
            *squeeze,
            normed(conv(wide, outputs, 1)),
        )
        self.residual = stride == 1 and channels == outputs

    def forward(self, x: Any) -> Any:
        return x + self.body(x) if self.residual else self.body(x)


class Mobile(nn.Module):
    """MobileNetV2, MobileNetV3 or EfficientNet, by `activation` and `gate` (inner, outer) of its excitations."""

    def __init__(self, activation: Any, gate: tuple[Any, Any] | None) -> None:
        super().__init__()
        self.features = nn.Sequential(
            normed(conv(3, 8, 3, 2), activation()),
            Inverted(8, 8, 1, activation, gate),
            Inverted(8, 12, 2, activation, gate),
            Inverted(12, 12, 1, activation, gate),
            normed(conv(12, 24, 1), activation()),
        )
        self.classifier = nn.Sequential(nn.Linear(24, 32), activation(), nn.Dropout(0.2), nn.Linear(32, 10))

    def forward(self, x: Any) -> Any:
        return self.classifier(self.features(x).mean((2, 3)))


class Basic(nn.Module):
    """ResNet's basic block."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = normed(conv(inputs, outputs, 3, stride), nn.ReLU())
        self.second = normed(conv(outputs, outputs))
        self.downsample = normed(conv(inputs, outputs, 1, stride)) if stride > 1 else nn.Identity()

    def forward(self, x: Any) -> Any:
        return functional.relu(self.second(self.first(x)) + self.downsample(x))


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = normed(conv(3, 8, 7, 2), nn.ReLU())
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.blocks = nn.Sequential(Basic(8, 8, 1), Basic(8, 16, 2))
        self.average, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(16, 10)

    def forward(self, x: Any) -> Any:
        return self.fc(torch.flatten(self.average(self.blocks(self.pool(self.stem(x)))), 1))


class Next(nn.Module):
    """ConvNeXt's block: depthwise 7 × 7, then matrices with the channels last, and a scale per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise, self.norm = conv(channels, channels, 7, groups=channels, bias=True), nn.LayerNorm(channels)
        self.wide, self.narrow = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)
        self.scale = nn.Parameter(torch.rand(channels) * 0.5 + 0.1)

    def forward(self, x: Any) -> Any:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + (self.scale * self.narrow(functional.gelu(self.wide(y)))).permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 8, 4, 4), Next(8)
        self.norm, self.down, self.second = nn.GroupNorm(1, 8), nn.Conv2d(8, 12, 2, 2), Next(12)
        self.last, self.head = nn.LayerNorm(12), nn.Linear(12, 10)

    def forward(self, x: Any) -> Any:
        y = self.second(self.down(self.norm(self.first(self.stem(x)))))
        return self.head(self.last(y.mean((2, 3))))


class UNet(nn.Module):
    """Down and up, with transposed convolutions whose kernels fit and overlap their strides."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = normed(conv(3, 8), nn.ReLU()), normed(conv(8, 12), nn.ReLU())
        self.bottom = normed(conv(12, 16), nn.ReLU())
        self.up2 = nn.ConvTranspose2d(16, 12, 2, 2)
        self.mix2 = normed(conv(24, 12), nn.ReLU())
        self.up1 = normed(nn.ConvTranspose2d(12, 8, 3, 2, 1, output_padding=1, bias=False), nn.ReLU())
        self.mix1, self.out = normed(conv(16, 8), nn.ReLU()), nn.Conv2d(8, 2, 1)

    def forward(self, x: Any) -> Any:
        one = self.down1(x)
        two = self.down2(functional.max_pool2d(one, 2))
        low = self.bottom(functional.max_pool2d(two, 2))
        mid = self.mix2(torch.cat([self.up2(low), two], 1))
        return self.out(self.mix1(torch.cat([self.up1(mid), one], 1)))


class EDSR(nn.Module):
    """Super-resolution without normalisation; each residual is scaled by 0.1."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.tail = conv(3, 8, bias=True), conv(8, 12, bias=True)
        self.bodies = nn.ModuleList(
            nn.Sequential(conv(8, 8, bias=True), nn.ReLU(), conv(8, 8, bias=True)) for _ in range(2)
        )
        self.shuffle = nn.PixelShuffle(2)

    def forward(self, x: Any) -> Any:
        y = self.head(x)
        for body in self.bodies:
            y = y + body(y) * 0.1
        return self.shuffle(self.tail(y))


class Partial(nn.Module):
    """YOLO's block: half of the channels pass through bottlenecks, and all are joined."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.enter, self.leave = normed(conv(inputs, outputs, 1), nn.SiLU()), normed(conv(outputs * 3 // 2, outputs, 1))
        half = outputs // 2
        self.inner = nn.Sequential(normed(conv(half, half), nn.SiLU()), normed(conv(half, half), nn.SiLU()))

    def forward(self, x: Any) -> Any:
        left, right = self.enter(x).chunk(2, 1)
        return functional.silu(self.leave(torch.cat([left, right, right + self.inner(right)], 1)))


class YOLO(nn.Module):
    """A backbone, pooling in pyramids, an upsampled neck, and heads for boxes and classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = normed(conv(3, 8, 3, 2), nn.SiLU()), Partial(8, 8)
        self.down, self.second = normed(conv(8, 16, 3, 2), nn.SiLU()), Partial(16, 16)
        self.squeeze, self.spread = normed(conv(16, 8, 1), nn.SiLU()), normed(conv(24, 16, 1), nn.SiLU())
        self.neck = Partial(24, 8)
        self.boxes, self.classes = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Any) -> Any:
        high = self.first(self.stem(x))
        low = self.squeeze(self.second(self.down(high)))
        once = functional.max_pool2d(low, 5, 1, 2)
        low = self.spread(torch.cat([low, once, functional.max_pool2d(once, 5, 1, 2)], 1))
        joined = self.neck(torch.cat([functional.interpolate(low, scale_factor=2.0, mode="nearest"), high], 1))
        return torch.cat([self.boxes(joined), self.classes(joined).sigmoid()], 1)


class DSCNN(nn.Module):
    """Keyword spotting: depthwise separable convolutions over spectra."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = normed(nn.Conv2d(1, 12, (10, 4), (2, 2), (5, 1), bias=False), nn.ReLU())
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(normed(conv(12, 12, 3, 1, 12), nn.ReLU()), normed(conv(12, 12, 1), nn.ReLU()))
                for _ in range(2)
            )
        )
        self.fc = nn.Linear(12, 12)

    def forward(self, x: Any) -> Any:
        return self.fc(torch.flatten(functional.adaptive_avg_pool2d(self.blocks(self.stem(x)), 1), 1))


class CRNN(nn.Module):
    """Text in images: convolutions, then a recurrent network and a matrix over time-first columns."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            normed(conv(1, 8), nn.ReLU()), nn.MaxPool2d(2), normed(conv(8, 12), nn.ReLU()), nn.MaxPool2d((4, 1))
        )
        self.lstm, self.fc = nn.LSTM(12, 8, bidirectional=True), nn.Linear(16, 11)

    def forward(self, x: Any) -> Any:
        columns = self.convs(x).flatten(1, 2).permute(2, 0, 1)
        return self.fc(self.lstm(columns)[0])
