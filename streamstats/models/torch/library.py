"""torch itself, which is imported when it is first needed, and what its tensors hold, as arrays."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...calibration.tensors import array_of
from ...errors import MissingDependencyError

if TYPE_CHECKING:
    import torch

Array = npt.NDArray[Any]


def library() -> Any:
    """The module `torch`. Raises `MissingDependencyError` where it cannot be imported."""
    try:
        return import_module("torch")
    except ImportError as error:
        raise MissingDependencyError(f"torch cannot be imported ({error}); install it as its own site says") from error


def to_numpy(tensor: torch.Tensor) -> Array:
    """The values of `tensor`, of its own dtype; a quantised tensor becomes the real numbers that it represents."""
    return array_of(tensor)


def reals(weight: Any) -> Array:
    """The real numbers that a weight represents, float64."""
    torch = library()
    plain = weight.detach()
    if hasattr(plain, "dequantize") and (plain.is_quantized or type(plain) not in (torch.Tensor, torch.nn.Parameter)):
        plain = plain.dequantize()
    return np.asarray(plain.to(torch.float64).cpu().numpy())
