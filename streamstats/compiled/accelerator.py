"""Matrix products on a GPU, where there is one, by cupy or torch; else by numpy.

The products are those of integers that float64 holds exactly, so they have the same bits wherever they are computed.
Copies to the GPU and back take some of its advantage: it pays from a few hundred columns on.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]
Multiply = Callable[[Float64Array, Float64Array, Float64Array], None]
"""Sets the third array to the product of the first, transposed, and the second."""

DEVICES = ("/dev/nvidia0", "/dev/kfd", "/dev/dxg")
"""What Linux calls a GPU of NVIDIA, of AMD, and any of them under Windows."""
FEWEST_COLUMNS = 256


def multiply(left: Float64Array, right: Float64Array, found: Float64Array) -> None:
    """Set `found` float64[n, m] to leftᵀ·right, of float64[rows, n] and float64[rows, m]."""
    device = on_device() if min(found.shape) >= FEWEST_COLUMNS else None
    if device is None:
        np.matmul(left.T, right, out=found)
    else:
        device(left, right, found)


@cache
def on_device() -> Multiply | None:
    """What multiplies on a GPU; None without one, or without a library for it."""
    if not any(Path(each).exists() for each in DEVICES):
        return None
    return _by_cupy() or _by_torch("cuda")


def _by_cupy() -> Multiply | None:
    if find_spec("cupy") is None:
        return None
    import cupy

    if not cupy.cuda.is_available():
        return None

    def multiply_there(left: Float64Array, right: Float64Array, found: Float64Array) -> None:
        there = cupy.asarray(left)
        others = there if right is left else cupy.asarray(right)
        found[:] = cupy.asnumpy(there.T @ others)

    return multiply_there


def _by_torch(device: str) -> Multiply | None:
    if find_spec("torch") is None:
        return None
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        return None

    def multiply_there(left: Float64Array, right: Float64Array, found: Float64Array) -> None:
        there: Any = torch.from_numpy(left).to(device)
        others = there if right is left else torch.from_numpy(right).to(device)
        torch.from_numpy(found).copy_(there.T @ others)

    return multiply_there
