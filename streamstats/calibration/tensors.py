"""Tensors: what callers append, arrays or tensors of torch, as arrays of numpy in the byte order of this machine."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from ..floats import NARROW

Array = npt.NDArray[Any]


def array_of(values: Any) -> Array:
    """`values` as an array of their own dtype, whatever device they are on; bfloat16 and float8 stay what they are."""
    torch = sys.modules.get("torch")  # whoever has a tensor has imported it
    is_tensor = torch is not None and isinstance(values, torch.Tensor)
    array = _of_tensor(values, torch) if is_tensor else np.asarray(values)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _of_tensor(tensor: Any, torch: Any) -> Array:
    """The values of a tensor of torch; a quantised one becomes the real numbers that it represents."""
    plain = tensor.detach()
    if plain.is_quantized:
        plain = plain.dequantize()
    narrow = {each.name: each for each in NARROW}.get(str(plain.dtype).removeprefix("torch."))
    if narrow is None:
        return np.asarray(plain.cpu().numpy())
    integers = torch.int16 if narrow.itemsize == 2 else torch.int8  # numpy lacks the dtype: its bits are taken
    return np.asarray(plain.cpu().view(integers).numpy()).view(narrow)
