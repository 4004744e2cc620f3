"""bfloat16 and float8 for zarr, which does not know them: as the data types that tensorstore, among others, writes.

Their names in metadata are `bfloat16`, `float8_e4m3fn` and `float8_e5m2`, in zarr v2 as in v3. Fill values are numbers,
"NaN", "Infinity", "-Infinity" or, in hexadecimal, bit patterns.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from zarr.core.dtype.common import HasEndianness, HasItemSize
from zarr.dtype import ZDType, data_type_registry

from ...floats import BFLOAT16, FLOAT8_E4M3FN, FLOAT8_E5M2

try:  # where it is in newer versions of zarr
    from zarr.errors import DataTypeValidationError  # type: ignore[attr-defined]
except ImportError:
    from zarr.core.dtype.common import DataTypeValidationError

SPECIAL = {"NaN": np.nan, "Infinity": np.inf, "-Infinity": -np.inf}


@dataclass(frozen=True, kw_only=True)
class NarrowFloat(ZDType[Any, Any], HasItemSize):
    """A data type of zarr for values of `native`, a float narrower than numpy's own."""

    dtype_cls: ClassVar[Any]
    native: ClassVar[np.dtype[Any]]

    @property
    def item_size(self) -> int:
        """The bytes of a value."""
        return self.native.itemsize

    @classmethod
    def from_native_dtype(cls, dtype: Any) -> Self:
        """As `ZDType.from_native_dtype`."""
        if dtype.type is not cls.native.type:
            raise DataTypeValidationError(f"the dtype is {dtype}; expected {cls.native}")
        return cls()

    def to_native_dtype(self) -> Any:
        """As `ZDType.to_native_dtype`."""
        return self.native

    @classmethod
    def _from_json_v3(cls, data: Any) -> Self:
        if data != cls.native.name:
            raise DataTypeValidationError(f"the data type is {data!r}; expected {cls.native.name!r}")
        return cls()

    @classmethod
    def _from_json_v2(cls, data: Any) -> Self:
        return cls._from_json_v3(data["name"] if isinstance(data, Mapping) else data)

    def to_json(self, zarr_format: Any) -> Any:
        """As `ZDType.to_json`."""
        name = self.native.name
        return {"name": name, "object_codec_id": None} if zarr_format == 2 else name

    def _check_scalar(self, data: object) -> bool:
        return isinstance(data, int | float | np.floating | np.integer | self.native.type)

    def cast_scalar(self, data: object) -> Any:
        """As `ZDType.cast_scalar`. Raises `TypeError`."""
        if not self._check_scalar(data):
            raise TypeError(f"{data!r} is not a number; expected one for {self.native}")
        return self.native.type(data)

    def default_scalar(self) -> Any:
        """As `ZDType.default_scalar`: zero."""
        return self.native.type(0)

    def from_json_scalar(self, data: Any, *, zarr_format: Any) -> Any:  # noqa: ARG002 - the same in both
        """As `ZDType.from_json_scalar`. Raises `TypeError`, `ValueError`."""
        digits = 2 * self.item_size
        if isinstance(data, str) and re.fullmatch(f"0x[0-9a-fA-F]{{{digits}}}", data):
            return np.array(int(data, 16), f"u{self.item_size}").view(self.native)[()]
        if isinstance(data, str) and data not in SPECIAL:
            raise ValueError(
                f"{data!r} is not a value of {self.native}; expected a number, NaN, Infinity, -Infinity, or 0x and "
                f"{digits} digits"
            )
        return self.cast_scalar(SPECIAL[data] if isinstance(data, str) else data)

    def to_json_scalar(self, data: object, *, zarr_format: Any) -> Any:  # noqa: ARG002 - the same in both
        """As `ZDType.to_json_scalar`."""
        value = float(self.cast_scalar(data))
        if np.isfinite(value):
            return value
        return "NaN" if np.isnan(value) else "Infinity" if value > 0 else "-Infinity"


@dataclass(frozen=True, kw_only=True)
class BFloat16(NarrowFloat, HasEndianness):
    """bfloat16, of either byte order."""

    dtype_cls: ClassVar[Any] = type(BFLOAT16)
    native: ClassVar[np.dtype[Any]] = BFLOAT16
    _zarr_v3_name: ClassVar[str] = BFLOAT16.name

    @classmethod
    def from_native_dtype(cls, dtype: Any) -> Self:
        """As `ZDType.from_native_dtype`."""
        super().from_native_dtype(dtype)
        return cls(endianness="little" if dtype == dtype.newbyteorder("<") else "big")

    def to_native_dtype(self) -> Any:
        """As `ZDType.to_native_dtype`."""
        return self.native.newbyteorder(self.endianness)


@dataclass(frozen=True, kw_only=True)
class Float8E4M3FN(NarrowFloat):
    """float8_e4m3fn."""

    dtype_cls: ClassVar[Any] = type(FLOAT8_E4M3FN)
    native: ClassVar[np.dtype[Any]] = FLOAT8_E4M3FN
    _zarr_v3_name: ClassVar[str] = FLOAT8_E4M3FN.name


@dataclass(frozen=True, kw_only=True)
class Float8E5M2(NarrowFloat):
    """float8_e5m2."""

    dtype_cls: ClassVar[Any] = type(FLOAT8_E5M2)
    native: ClassVar[np.dtype[Any]] = FLOAT8_E5M2
    _zarr_v3_name: ClassVar[str] = FLOAT8_E5M2.name


def register() -> None:
    """Make zarr know these data types, in this process; a version of zarr that has its own keeps it."""
    for kind in (BFloat16, Float8E4M3FN, Float8E5M2):
        if kind._zarr_v3_name not in data_type_registry.contents:
            data_type_registry.register(kind._zarr_v3_name, kind)
