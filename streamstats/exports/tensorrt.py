"""TensorRT's calibration cache: a line for each tensor, with the bits of its float32 step in hexadecimal.

The range of a tensor is −127 to 127 times the step. The first line names the calibrator that wrote the cache: TensorRT
uses a cache only with a calibrator of that class.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

import numpy as np

from ..errors import UsageError
from ..ranges.codes import Codes
from ..ranges.finding import LayerRange

HEADER = "TRT-8501-EntropyCalibration2"
CODES = Codes(8, symmetric=True, signed=True)


def refuses(codes: Codes) -> str | None:
    """Why the cache cannot hold steps for `codes`; None if it can."""
    if codes == CODES:
        return None
    return (
        f"the ranges are for {codes}; expected {CODES}, of which TensorRT's cache holds the steps: choose these codes "
        "(--bits 8 --symmetric --codes signed)"
    )


def content(ranges: Mapping[str, LayerRange]) -> bytes:
    """The cache. Raises `UsageError` for a name with a colon or a line break, and for a step beyond float32."""
    lines = [f"{_checked(name)}: {_bits(name, found)}" for name, found in ranges.items()]
    return "\n".join([HEADER, *lines, ""]).encode()


def _checked(name: str) -> str:
    if ":" in name or not name.isprintable():
        raise UsageError(
            f"TensorRT cannot read the tensor name {name!r}: a colon or a line break ends a name in its cache; "
            "rename the tensor in the model and in --names, or leave it out"
        )
    return name


def _bits(name: str, found: LayerRange) -> str:
    with np.errstate(over="ignore"):
        step = np.float32(found.quantization.step)
    if not (np.isfinite(step) and step > 0):
        raise UsageError(
            f"tensor {name}: its step is {float(found.quantization.step):g}; expected a positive float32; check that "
            "the store holds activations"
        )
    return struct.pack(">f", step).hex()
