"""torch with your own loop: record a network's activations, count them, correct a quantised copy, judge it.

Needs torch. `python torch_own_loop.py` makes a small network with weights of 4 bits per tensor, and prints what each
layer gained. Everything it writes is in a new folder below the system's temporary one.
"""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import torch
from torch import nn

import streamstats as ss
from streamstats.models.torch import HeldOut, correct, recording
from streamstats.report import page


def network() -> nn.Module:
    """A small convolutional classifier, whose channels differ in range as those of trained networks do."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight *= torch.logspace(-1, 0.5, len(layer.weight)).reshape(-1, 1, 1, 1)
    return model.eval()


def quantised(model: nn.Module, bits: int) -> nn.Module:
    """A copy whose weights are rounded to `bits`, with one range per tensor."""
    found = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if name.endswith("weight"):
                parameter.copy_(torch.from_numpy(ss.fake_quantize(parameter.numpy(), bits)))
    return found


def main() -> None:
    """Record, count, correct, judge, report."""
    folder = Path(tempfile.mkdtemp(prefix="streamstats-"))
    model = network()
    rounded = quantised(model, bits=4)
    loader = [torch.rand(32, 3, 16, 16) for _ in range(12)]  # your own data
    held_out = [torch.rand(32, 3, 16, 16) for _ in range(4)]  # samples that are not recorded

    with torch.no_grad(), recording(model, folder / "calibration.zarr") as account:
        for batch in loader:  # your own loop, on any device
            model(batch)
    print(account)

    config = folder / "run.yaml"  # the same as: streamstats run run.yaml
    config.write_text(f"source: {folder}/calibration.zarr\noutput: {folder}/out\nstatistics: [taps, spread]\n")
    ss.run(ss.load_job(config))

    found = correct(model, rounded, folder / "out", HeldOut(held_out), account=account)  # changes `rounded`
    for layer in found.layers:
        print(layer.layer, layer.outcome, layer.reason)
    print(f"the outputs are nearer to the float model's by {found.judgement.gains['corrected']}")
    page.write(folder / "report.html", page.document(folder / "out", found))
    print(f"{folder}/report.html shows every layer")


if __name__ == "__main__":
    main()
