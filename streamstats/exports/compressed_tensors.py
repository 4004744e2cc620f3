"""compressed-tensors: the steps and zero points of the inputs of torch modules, as a safetensors file.

`load_pretrained_quantization_parameters` loads them into a model whose activations are quantised statically, per
tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ..ranges.codes import Codes
from ..ranges.finding import LayerRange
from ..storage.tensors import tensors_bytes

METADATA = {"format": "pt"}
"""What transformers expects of any safetensors file."""
MOST_BITS = 8


def refuses(codes: Codes) -> str | None:
    """Why compressed-tensors cannot use ranges for `codes`; None if it can."""
    if codes.signed and codes.bits <= MOST_BITS:
        return None
    return (
        f"the ranges are for {codes}; expected signed codes of at most {MOST_BITS} bits, which compressed-tensors "
        f"holds: choose such codes (--codes signed, and --bits {MOST_BITS} or fewer)"
    )


def content(ranges: Mapping[str, LayerRange]) -> bytes:
    """`MODULE.input_scale` float32[1] and, unless symmetric, `MODULE.input_zero_point` int8[1]."""
    tensors: dict[str, npt.NDArray[Any]] = {}
    for name, found in ranges.items():
        tensors[f"{name}.input_scale"] = np.atleast_1d(found.quantization.step).astype(np.float32)
        if not found.codes.symmetric:
            tensors[f"{name}.input_zero_point"] = np.atleast_1d(found.quantization.zero_point).astype(np.int8)
    return tensors_bytes(tensors, METADATA)
