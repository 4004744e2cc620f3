"""AIMET's encodings: a step and an offset for each tensor, as `load_encodings_to_sim` reads them.

Versions 0.6.1 and 1.0.0 number codes from 0: real = (code + offset)·step, so the offset is the lowest code less the
zero point, and symmetric means signed there. Version 2.0.0 has the zero points of ONNX.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import UsageError, one_of
from ..ranges.finding import LayerRange
from ..storage.files import json_bytes

VERSIONS = ("0.6.1", "1.0.0", "2.0.0")
DEFAULT_VERSION = "1.0.0"


def content(ranges: Mapping[str, LayerRange], version: str = DEFAULT_VERSION) -> bytes:
    """The encodings of activations. Raises `UsageError` for another `version` than one of `VERSIONS`."""
    if version == "0.6.1":
        by_name = {name: [_entry_0_6_1(found)] for name, found in ranges.items()}
        return json_bytes({"version": version, "activation_encodings": by_name, "param_encodings": {}})
    if version == "1.0.0":
        entries = [{"name": name, **_entry_1_0_0(found)} for name, found in ranges.items()]
        return json_bytes({"version": version, "activation_encodings": entries, "param_encodings": []})
    if version == "2.0.0":
        entries = [{"name": name, **_entry_2_0_0(found)} for name, found in ranges.items()]
        return json_bytes({"version": version, "encodings": entries})
    raise UsageError(f"the version of the encodings is {version!r}; {one_of(version, VERSIONS)}")


def _entry_0_6_1(found: LayerRange) -> dict[str, Any]:
    step, offset = _step(found), _offset(found)
    return {
        "min": offset * step,
        "max": (offset + (1 << found.codes.bits) - 1) * step,
        "scale": step,
        "offset": offset,
        "bitwidth": found.codes.bits,
        "is_symmetric": str(_is_symmetric(found)),
        "dtype": "int",
    }


def _entry_1_0_0(found: LayerRange) -> dict[str, Any]:
    return {
        "enc_type": "PER_TENSOR",
        "dtype": "INT",
        "bw": found.codes.bits,
        "is_sym": _is_symmetric(found),
        "scale": [_step(found)],
        "offset": [_offset(found)],
    }


def _entry_2_0_0(found: LayerRange) -> dict[str, Any]:
    return {
        "output_dtype": f"{'' if found.codes.signed else 'u'}int{found.codes.bits}",
        "y_scale": _step(found),
        "y_zero_point": int(found.quantization.zero_point),
    }


def _is_symmetric(found: LayerRange) -> bool:
    return bool(found.codes.symmetric and found.codes.signed)


def _step(found: LayerRange) -> float:
    return float(found.quantization.step)


def _offset(found: LayerRange) -> int:
    lowest = -(1 << found.codes.bits - 1) if found.codes.signed else 0
    return lowest - int(found.quantization.zero_point)
