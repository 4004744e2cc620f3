"""Train the demo's network and write it as ONNX: `python -m streamstats.demo.train [OUT.onnx]`.

The network is a small MobileNet: a stem and three depthwise-separable blocks, each convolution without padding and
followed by batch normalisation and ReLU. Training is ordinary, with one known addition: an L1 penalty on the scales of
the batch normalisations (Liu et al., *Learning Efficient Convolutional Networks through Network Slimming*, arXiv
1708.06519). It makes the channels differ widely in scale, as they do in large MobileNets but not in one this small.
Folding the normalisation moves that spread into the weights. One quantisation step for a whole tensor then fits few of
its channels, and that is what bias correction repairs.

Only this script needs torch, which the package does not depend on: `pip install torch==2.13.0`. The seed and the number
of threads are fixed, so the same machine writes the same bytes. Another kind of CPU may round differently and arrive at
slightly different weights.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import nn

from streamstats.demo.digits import Digits, calibration_digits, held_out_digits
from streamstats.storage.files import write_bytes

SEED = 0
THREADS = 2
EPOCHS = 40
BATCH_ROWS = 64
PEAK_LEARNING_RATE = 0.01
SCALE_PENALTY = 5e-3
CLASSES = 10
ONNX_OPSET = 17
ONNX_IR_VERSION = 8

Weights = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ConvolutionSpec:
    """An unpadded convolution with a bias, followed by ReLU; `name` is the name of its ONNX node."""

    name: str
    inputs: int
    outputs: int
    kernel: int = 3
    stride: int = 1
    groups: int = 1


@dataclass(frozen=True)
class Affine:
    """A layer after folding: weight OIHW (convolution) or OI (classifier), and bias O."""

    weight: Weights
    bias: Weights


def _block(name: str, inputs: int, outputs: int, stride: int = 1) -> tuple[ConvolutionSpec, ConvolutionSpec]:
    return (
        ConvolutionSpec(f"{name}/depthwise", inputs, inputs, stride=stride, groups=inputs),
        ConvolutionSpec(f"{name}/project", inputs, outputs, kernel=1),
    )


CONVOLUTIONS = (
    ConvolutionSpec("stem", 1, 32),
    *_block("block1", 32, 64),
    *_block("block2", 64, 64, stride=2),
    *_block("block3", 64, 64),
)


def build_network() -> nn.Sequential:
    """Return the untrained network: images float32[rows, 1, 16, 16] → logits float32[rows, 10]."""
    stages = [
        nn.Sequential(
            nn.Conv2d(spec.inputs, spec.outputs, spec.kernel, spec.stride, groups=spec.groups, bias=False),
            nn.BatchNorm2d(spec.outputs),
            nn.ReLU(),
        )
        for spec in CONVOLUTIONS
    ]
    classifier = nn.Linear(CONVOLUTIONS[-1].outputs, CLASSES)
    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), classifier)


def train(network: nn.Sequential, digits: Digits) -> None:
    """Fit `network` in place with AdamW and a one-cycle learning rate, and leave it in evaluation mode."""
    images, labels = torch.from_numpy(digits.images), torch.from_numpy(digits.labels)
    steps = EPOCHS * -(-len(images) // BATCH_ROWS)
    optimizer = torch.optim.AdamW(network.parameters(), PEAK_LEARNING_RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, total_steps=steps)
    network.train()
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(images)).split(BATCH_ROWS):
            optimizer.zero_grad()
            _loss(network, images[rows], labels[rows]).backward()
            optimizer.step()
            schedule.step()
    network.eval()


def _loss(network: nn.Sequential, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    scales = [module.weight for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    penalty = torch.cat(scales).abs().sum()
    return nn.functional.cross_entropy(network(images), labels) + SCALE_PENALTY * penalty


def fold(network: nn.Sequential) -> list[Affine]:
    """Fold each batch normalisation into the convolution before it; the classifier comes last, unchanged."""
    stages, classifier = network[: len(CONVOLUTIONS)], network[-1]
    folded = [_fold_stage(convolution, norm) for convolution, norm, _ in stages]
    return [*folded, Affine(_array(classifier.weight), _array(classifier.bias))]


def _fold_stage(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> Affine:
    scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    weight = convolution.weight.double() * scale.reshape(-1, 1, 1, 1)
    return Affine(_array(weight), _array(norm.bias - norm.running_mean * scale))


def _array(tensor: torch.Tensor) -> Weights:
    return np.asarray(tensor.detach().numpy(), np.float32)


def to_onnx(layers: list[Affine], image_shape: tuple[int, ...]) -> onnx.ModelProto:
    """Return the folded layers as a checked ONNX model for any number of rows; `image_shape` is (1, H, W)."""
    nodes, value = [], "images"
    for spec in CONVOLUTIONS:
        nodes += _convolution_nodes(spec, value)
        value = f"{spec.name}/relu"
    nodes += _classifier_nodes(value)
    names = [*(spec.name for spec in CONVOLUTIONS), "classifier"]
    named = zip(names, layers, strict=True)
    initializers = [tensor for name, layer in named for tensor in _tensors(name, layer)]
    images = onnx.helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, ["rows", *image_shape])
    logits = onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["rows", CLASSES])
    graph = onnx.helper.make_graph(nodes, "digits", [images], [logits], initializers)
    opset = onnx.helper.make_opsetid("", ONNX_OPSET)
    model = onnx.helper.make_model(
        graph, opset_imports=[opset], ir_version=ONNX_IR_VERSION, producer_name="streamstats.demo.train"
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def _convolution_nodes(spec: ConvolutionSpec, value: str) -> list[onnx.NodeProto]:
    convolution = onnx.helper.make_node(
        "Conv",
        [value, f"{spec.name}/weight", f"{spec.name}/bias"],
        [spec.name],
        name=spec.name,
        kernel_shape=[spec.kernel, spec.kernel],
        strides=[spec.stride, spec.stride],
        group=spec.groups,
    )
    relu = f"{spec.name}/relu"
    return [convolution, onnx.helper.make_node("Relu", [spec.name], [relu], name=relu)]


def _classifier_nodes(value: str) -> list[onnx.NodeProto]:
    weights = ["classifier/weight", "classifier/bias"]
    return [
        onnx.helper.make_node("GlobalAveragePool", [value], ["pool"], name="pool"),
        onnx.helper.make_node("Flatten", ["pool"], ["flatten"], name="flatten"),
        onnx.helper.make_node("Gemm", ["flatten", *weights], ["logits"], name="classifier", transB=1),
    ]


def _tensors(name: str, layer: Affine) -> list[onnx.TensorProto]:
    return [
        onnx.numpy_helper.from_array(layer.weight, f"{name}/weight"),
        onnx.numpy_helper.from_array(layer.bias, f"{name}/bias"),
    ]


def accuracy(network: nn.Sequential, digits: Digits) -> float:
    """Return the fraction of rows `network` labels right."""
    with torch.no_grad():
        predicted = network(torch.from_numpy(digits.images)).argmax(1).numpy()
    return float(np.mean(predicted == digits.labels))


def train_network(seed: int) -> nn.Sequential:
    """Return a network trained on the calibration rows; `seed` decides the initial weights and the order of rows."""
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)
    network = build_network()
    train(network, calibration_digits())
    return network


def main(arguments: list[str]) -> None:
    """Train, write the model to the given path or next to this file, and print its accuracy."""
    if len(arguments) > 1:
        raise SystemExit("usage: python -m streamstats.demo.train [OUT.onnx]")
    out = Path(arguments[0]) if arguments else Path(__file__).with_name("digits.onnx")
    network, held_out = train_network(SEED), held_out_digits()
    model = to_onnx(fold(network), held_out.images.shape[1:])
    content = model.SerializeToString(deterministic=True)
    write_bytes(out, content)
    print(f"{out}: {len(content)} bytes, accuracy on the held-out digits {accuracy(network, held_out):.4f}")


if __name__ == "__main__":
    main(sys.argv[1:])
