"""torch: recording the inputs of a model's layers while the user runs their own loop, and correcting biases in a
quantised copy: fake-quantised weights, modules that quantise while they run, those of `torch.ao`, tensors of torchao.

`torch` is imported when a function here is called.

>>> with recording(model, "calibration.zarr") as account:    # doctest: +SKIP
...     for batch in loader:
...         model(batch)
>>> apply_correctors(model, quantized, "out")                # doctest: +SKIP
"""

from __future__ import annotations

from .account import Account, LayerRecord
from .batches import HeldOut
from .correcting import apply_correctors
from .corrections import Correction, correct
from .iterating import Iterative
from .layers import linear_modules
from .places import add_to_bias
from .recording import ModelMeter, measuring, recording

__all__ = [
    "Account",
    "Correction",
    "HeldOut",
    "Iterative",
    "LayerRecord",
    "ModelMeter",
    "add_to_bias",
    "apply_correctors",
    "correct",
    "linear_modules",
    "measuring",
    "recording",
]
