"""onnxruntime's calibration cache: `quantize_static(…, calibration_cache_path=)` takes its ranges from it.

onnxruntime computes the steps from the ranges, with the same formula as `Codes`, in float32. The cache says that the
ranges are minima and maxima, because `quantize_static` compares that with its `calibrate_method`, whose default it is.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..errors import UsageError
from ..ranges.codes import Codes
from ..ranges.finding import LayerRange
from ..storage.files import json_bytes

LARGEST = float(np.finfo(np.float32).max)


def refuses(codes: Codes) -> str | None:
    """Why onnxruntime cannot use ranges for `codes`; None if it can."""
    if codes.symmetric and not codes.signed:
        return (
            "onnxruntime spreads symmetric ranges of unsigned codes over another number of steps; use signed codes, or "
            "leave out --symmetric"
        )
    return None


def content(ranges: Mapping[str, LayerRange]) -> bytes:
    """The cache, with the range of each tensor. Raises `UsageError` for a range beyond float32."""
    method = {"CLS": "CalibrationMethod", "value": "CalibrationMethod.MinMax"}
    data = {name: _entry(name, found) for name, found in ranges.items()}
    return json_bytes({"CLS": "TensorsData", "calibration_method": method, "smooth_quant": False, "data": data})


def _entry(name: str, found: LayerRange) -> dict[str, float | str]:
    (one,) = found.ranges
    if max(-one.low, one.high) > LARGEST:
        raise UsageError(
            f"tensor {name}: its range is {one.low:g} to {one.high:g}; expected a range within float32; check "
            "that the store holds activations"
        )
    return {"CLS": "TensorData", "lowest": one.low, "highest": one.high}
