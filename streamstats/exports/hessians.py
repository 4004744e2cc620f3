"""Hessians: 2·XᵀX/n of each layer's input, for implementations of GPTQ and its relatives, as a safetensors file.

Half the squared error of a layer's output, summed over the rows of X, has this Hessian in each row of the weight, but
for the factor 1/n. The entries of XᵀX are the float64 nearest to the exact sums; doubling is exact, dividing by n
rounds once more, and so does float32. The same output gives the same bytes on every machine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import fsum, isfinite
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import UsageError
from ..layouts import Kernel
from ..outputs.layer_statistics import LayerStatistics, uncounted
from ..statistics.gram import Gram
from ..storage.tensors import tensors_bytes

FORMAT = "streamstats-hessians/1"
SUFFIX = ".hessian"
DTYPES = ("float32", "float64")
Float64Array = npt.NDArray[np.float64]
Layers = Mapping[str, LayerStatistics]


def check_damp(damp: float) -> None:
    """Raise `UsageError` unless `damp` is a share that makes a Hessian more definite."""
    if not (isfinite(damp) and damp >= 0):
        raise UsageError(f"the damping is {damp:g}; expected a share of the diagonal's mean, 0 or more, such as 0.01")


def check_dtype(dtype: str) -> None:
    """Raise `UsageError` for another `dtype` than one of `DTYPES`."""
    if dtype not in DTYPES:
        raise UsageError(f"the dtype of the Hessians is {dtype!r}; expected {' or '.join(DTYPES)}")


def with_gram(layers: Layers) -> dict[str, LayerStatistics]:
    """Those of `layers` for which `gram` was counted. Raises `UsageError` if there is none."""
    found = {name: each for name, each in layers.items() if Gram.name in each.statistics}
    if not found:
        raise UsageError(uncounted(Gram, [*layers.values()]))
    return found


def with_zeros(layers: Layers) -> list[str]:
    """Those of `layers` whose products have zeros in place of values that are not finite."""
    return sorted(name for name, each in layers.items() if Gram.name in each.statistics and each.gram.left_out.any())


def content(layers: Layers, dtype: str = DTYPES[0], damp: float = 0.0) -> bytes:
    """`NAME.hessian` [n, n], or [G, n, n] for a layer of G > 1 groups; what they are as metadata.

    The columns of a group are its input channels with the taps of the kernel for each: the order of the weight
    O(I/g)HW, flattened from axis 1 on. `damp` times the mean of its diagonal is added to the diagonal of each group.
    Raises `UsageError` for a layer without `gram` or without a position, and for entries that `dtype` cannot hold.
    """
    tensors = {f"{name}{SUFFIX}": _hessian(found, dtype, damp) for name, found in layers.items()}
    described = {name: _described(found) for name, found in layers.items()}
    metadata = {"format": FORMAT, "damp": repr(float(damp)), "layers": json.dumps(described, sort_keys=True)}
    return tensors_bytes(tensors, metadata)


def _hessian(found: LayerStatistics, dtype: str, damp: float) -> npt.NDArray[Any]:
    if not found.gram.rows:
        raise UsageError(f"layer {found.layer} has no position that counts; leave it out with --layers or --names")
    try:
        hessian = 2 * found.gram.matrix(found.quantization)
    except UsageError as error:
        raise UsageError(f"layer {found.layer}: {error}; or leave it out with --layers or --names") from error
    hessian /= found.gram.rows
    for each in hessian:
        _damp(each, damp)
    narrow = _narrowed(hessian, dtype, found.layer)
    return narrow[0] if len(narrow) == 1 else narrow


def _damp(hessian: Float64Array, damp: float) -> None:
    """Add `damp` times the mean of the diagonal, which `fsum` rounds once, in any order of terms."""
    diagonal = np.einsum("ii->i", hessian)
    diagonal += damp * (fsum(diagonal.tolist()) / max(1, len(diagonal)))


def _narrowed(hessian: Float64Array, dtype: str, layer: str) -> npt.NDArray[Any]:
    with np.errstate(over="ignore", under="ignore"):
        narrow = hessian.astype(dtype)
    if not np.isfinite(narrow).all():
        raise UsageError(f"layer {layer}: an entry of its Hessian is beyond {dtype}; {_REMEDIES[dtype]}")
    wide, kept = (np.einsum("gii->gi", each) for each in (hessian, narrow))
    if ((wide > 0) & (kept < np.finfo(dtype).tiny)).any():
        raise UsageError(
            f"layer {layer}: the diagonal of its Hessian has {wide[wide > 0].min():.3g}, too small for {dtype}, which "
            f"would lose digits; {_REMEDIES[dtype]}"
        )
    return narrow


_REMEDIES = {
    "float32": "write float64 (--dtype float64), or leave the layer out with --layers or --names",
    "float64": "leave the layer out with --layers or --names",
}


def _described(found: LayerStatistics) -> dict[str, Any]:
    kernel = found.space.kernel
    taps = kernel.taps if isinstance(kernel, Kernel) else ()
    return {
        "layer": found.layer,
        "positions": found.gram.rows,
        "columns": ["input channel in the group", *(f"kernel axis {axis}" for axis in range(len(taps)))],
        "taps": [*taps],
    }
