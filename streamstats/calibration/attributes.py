"""What the attributes of an array say of its values, by the CF conventions, as xarray reads them.

`scale_factor` and `add_offset` map stored values to real ones. `_FillValue`, `missing_value`, `valid_min`, `valid_max`
and `valid_range` say which stored values do not count; `_Unsigned` how integers are to be read. The others, such as
`units` and `flag_values`, change no value: they are passed on as notes.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import zarr

from ..errors import DataError
from ..floats import is_float
from ..quantization import Quantization
from ..statistics.meaning import Meaning

DIMENSIONS = "_ARRAY_DIMENSIONS"
"""The attribute with which xarray names the dimensions of arrays of zarr v2, whose fill value then means missing."""
PACKING = ("scale_factor", "add_offset")
LIMITS = ("valid_min", "valid_max", "valid_range")
FLAGS = ("flag_values", "flag_masks", "flag_meanings")
KNOWN = (*PACKING, "_FillValue", "missing_value", *LIMITS, "_Unsigned", "units", "calendar", *FLAGS)
"""The attributes that this module reads."""
USES = ("apply", "ignore")
"""What a job may do about attributes."""
SPECIAL = {"nan": math.nan, "infinity": math.inf, "-infinity": -math.inf}
"""How zarr's metadata spells numbers that JSON lacks, in lower case."""
TIME_UNIT = r"(days?|hours?|hrs?|h|minutes?|mins?|seconds?|secs?|s|milliseconds?|microseconds?|nanoseconds?)"
LONGEST_SHOWN = 60


@dataclass(frozen=True)
class Attributes:
    """What was read: the `meaning` of stored values, None if they are what they seem; the map to real values, None if
    there is none; `units`, empty if unknown; `notes` for the user. `ignored` names attributes that the job ignores.
    """

    meaning: Meaning | None = None
    quantization: Quantization | None = None
    units: str = ""
    notes: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()

    @property
    def says_something(self) -> bool:
        """Whether it differs from what an array without attributes has."""
        return self != Attributes()

    def missing_in_words(self, *, but_nan: bool = False) -> str:
        """Which stored values do not count, as text; "none" if all do. With `but_nan`, NaN are not mentioned."""
        if self.meaning is None:
            return "none"
        return missing_in_words(replace(self.meaning, nan=False) if but_nan else self.meaning) or "none"

    def in_words(self, quantization: Quantization | None) -> list[str]:
        """What a job should say of them whose layer is mapped by `quantization`: one line for each thing."""
        said = [f"attributes are ignored ({', '.join(self.ignored)})"] if self.ignored else []
        if self.quantization is not None and self.quantization == quantization:
            said.append(f"attributes give real values, {_map_in_words(self.quantization)}")
        elif self.quantization is not None:
            said.append(f"`quantization` replaces the attributes {' and '.join(PACKING)}")
        if self.meaning is not None and self.meaning.viewed != self.meaning.stored:
            said.append(f"attributes say that {self.meaning.stored} stands for {self.meaning.viewed}")
        if self.missing_in_words() != "none":
            said.append(f"attributes call stored values missing, so these do not count ({self.missing_in_words()})")
        return [*said, *self.notes]

    def to_metadata(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "meaning": None if self.meaning is None else _meaning_document(self.meaning),
            "units": self.units or None,
            "notes": [*self.notes],
            "ignored": [*self.ignored],
        }

    @classmethod
    def from_metadata(cls, stored: Mapping[str, Any], quantization: Quantization | None) -> Attributes:
        """The inverse of `to_metadata`. Raises `KeyError`, `TypeError`, `ValueError` for anything else."""
        meaning = None if stored["meaning"] is None else _meaning_of(stored["meaning"])
        notes, ignored = (tuple(map(str, stored[key])) for key in ("notes", "ignored"))
        return cls(meaning, quantization, str(stored["units"] or ""), notes, ignored)


def _meaning_document(meaning: Meaning) -> dict[str, Any]:
    return {
        "stored": str(meaning.stored),
        "viewed": str(meaning.viewed),
        "missing": [_json_number(value) for value in meaning.missing],
        "low": _json_number(meaning.low),
        "high": _json_number(meaning.high),
        "nan": meaning.nan,
    }


def _json_number(value: float | None) -> float | str | None:
    return str(value) if isinstance(value, float) and math.isinf(value) else value


def _meaning_of(stored: Mapping[str, Any]) -> Meaning:
    missing = tuple(_number_of(value) for value in stored["missing"])
    low, high = (None if stored[key] is None else _number_of(stored[key]) for key in ("low", "high"))
    dtypes = np.dtype(stored["stored"]), np.dtype(stored["viewed"])
    return Meaning(*dtypes, missing, low, high, stored["nan"] is True)


def _map_in_words(quantization: Quantization) -> str:
    offset = f" + {quantization.offset!r}" if quantization.offset else ""
    return f"stored · {quantization.step.item()!r}{offset}"


def _number_of(value: Any) -> float:
    if isinstance(value, str):
        return float(value)
    if type(value) not in (int, float):
        raise TypeError(f"found {value!r}, expected a number")
    number: float = value
    return number


def missing_in_words(meaning: Meaning) -> str:
    """Which stored values do not count, as text; empty if all do."""
    said = [*(["NaN"] if meaning.nan else []), *map(_plain, meaning.missing)]
    said += [] if meaning.low is None else [f"below {_plain(meaning.low)}"]
    said += [] if meaning.high is None else [f"above {_plain(meaning.high)}"]
    return ", ".join(said) + (f" as {meaning.viewed}" if said and meaning.viewed != meaning.stored else "")


def _plain(value: float) -> str:
    """`value` in full; whole numbers without a point."""
    return str(int(value)) if float(value).is_integer() and abs(value) < 2**53 else str(value)


def ignored_attributes(array: zarr.Array[Any]) -> Attributes:
    """What a job that ignores the attributes of `array` says of it."""
    attributes = array.attrs.asdict()
    names = [name for name in KNOWN if name in attributes]
    if "_FillValue" not in names and _fill_value_is_missing(array, attributes):
        names.append("fill_value")
    return Attributes(ignored=tuple(names))


def attributes_of(array: zarr.Array[Any]) -> Attributes:
    """What the attributes of `array` say of its values.

    Raises `DataError`, naming the key, what was found and what was expected, but not the array.
    """
    reader = _Reader(array.attrs.asdict(), np.dtype(array.dtype), array)
    return Attributes(reader.meaning(), reader.quantization(), reader.units(), tuple(reader.notes()))


def _fill_value_is_missing(array: zarr.Array[Any], attributes: Mapping[str, Any]) -> bool:
    """Whether the fill value of zarr v2 stands for missing values, as xarray has it."""
    return array.metadata.zarr_format == 2 and DIMENSIONS in attributes and array.fill_value is not None


@dataclass(frozen=True)
class _Reader:
    """Reads the `attributes` of an array of `dtype`."""

    attributes: Mapping[str, Any]
    dtype: np.dtype[Any]
    array: zarr.Array[Any]

    # The map to real values

    def quantization(self) -> Quantization | None:
        """The map of `scale_factor` and `add_offset`, if one of them is there."""
        if not any(key in self.attributes for key in PACKING):
            return None
        scale, offset = self._factor("scale_factor", 1.0), self._factor("add_offset", 0.0)
        if scale <= 0:
            raise _wrong("scale_factor", scale, "expected a number above 0")
        return Quantization(scale, offset=offset)

    def _factor(self, key: str, default: float) -> float:
        value = self.attributes.get(key, default)
        single = _single(value)
        if isinstance(single, bool) or not isinstance(single, int | float) or not math.isfinite(_float(key, single)):
            raise _wrong(key, value, "expected a finite number")
        return float(single)

    # Which values count

    def meaning(self) -> Meaning | None:
        """What stored values are; None if they are what they seem."""
        missing = [*self._fill_value(), *self._numbers("missing_value")]
        low, high = self._limits()
        values = tuple(dict.fromkeys(value for value in missing if not math.isnan(value)))
        nan = is_float(self.dtype) and any(math.isnan(value) for value in missing)
        found = Meaning(self.dtype, self._viewed(), tuple(filter(self._can_occur, values)), low, high, nan)
        return None if found == Meaning(self.dtype, self.dtype) else found

    def _viewed(self) -> np.dtype[Any]:
        """The dtype as which the stored values are to be read."""
        said = self.attributes.get("_Unsigned")
        if said is None or self.dtype.kind not in "iu":
            return self.dtype
        if str(said).lower() not in ("true", "false"):
            raise _wrong("_Unsigned", said, 'expected "true" or "false"')
        kind = "u" if str(said).lower() == "true" else "i"
        return np.dtype(f"{kind}{self.dtype.itemsize}").newbyteorder(self.dtype.byteorder)

    def _fill_value(self) -> list[float]:
        if _fill_value_is_missing(self.array, self.attributes):
            fill = self.array.fill_value
            return [self._whole("fill_value", fill.item() if isinstance(fill, np.generic) else fill)]
        return self._numbers("_FillValue")

    def _numbers(self, key: str) -> list[float]:
        """The numbers under `key`: one, or a list."""
        value = self.attributes.get(key)
        if value is None:
            return []
        return [self._whole(key, each) for each in (value if isinstance(value, list) else [value])]

    def _whole(self, key: str, value: Any) -> float:
        """`value` as a number in the units of viewed values: of integers and booleans, an integer if it is whole."""
        number = self._number(key, value)
        near = _float(key, number)
        is_whole = isinstance(number, int) or number.is_integer()
        return self._as_viewed(int(number)) if is_whole and not is_float(self.dtype) else near

    def _number(self, key: str, value: Any) -> int | float:
        if isinstance(value, str) and value.lower() in SPECIAL:
            return SPECIAL[value.lower()]
        if isinstance(value, str) and is_float(self.dtype) and key == "_FillValue":
            return _decoded(key, value)
        if isinstance(value, bool) and self.dtype.itemsize == 1 and not is_float(self.dtype):
            return int(value)  # xarray stores booleans as int8, and their fill value as a boolean
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _wrong(key, value, f"expected a number of {self.dtype}")
        return value

    def _as_viewed(self, value: int) -> int:
        """`value`, which may be that of the stored dtype, in that as which values are viewed."""
        viewed = self._viewed()
        if viewed == self.dtype or np.iinfo(viewed).min <= value <= np.iinfo(viewed).max:
            return value
        limits = np.iinfo(self.dtype)
        beyond = 1 << 8 * viewed.itemsize
        return value % beyond if limits.min <= value < 0 else value - beyond if 0 < value <= limits.max else value

    def _can_occur(self, value: float) -> bool:
        """Whether an array of the dtype may hold `value`, rounded to it."""
        if is_float(self.dtype):
            with np.errstate(over="ignore"):
                return math.isinf(value) or bool(np.isfinite(np.float64(value).astype(self.dtype)))
        if isinstance(value, float):
            return False
        viewed = self._viewed()
        limits = (0, 1) if viewed == np.bool_ else (np.iinfo(viewed).min, np.iinfo(viewed).max)
        return limits[0] <= value <= limits[1]

    def _limits(self) -> tuple[float | None, float | None]:
        """The least and greatest value that counts, where they are given."""
        both = self.attributes.get("valid_range")
        if both is not None and not (isinstance(both, list) and len(both) == 2):
            raise _wrong("valid_range", both, "expected a list of two numbers")
        lows = [
            self._limit("valid_min", self.attributes.get("valid_min")),
            self._limit("valid_range", (both or [None])[0]),
        ]
        highs = [
            self._limit("valid_max", self.attributes.get("valid_max")),
            self._limit("valid_range", (both or [None])[-1]),
        ]
        low = max((each for each in lows if each is not None), default=None)
        high = min((each for each in highs if each is not None), default=None)
        return None if low == -math.inf else low, None if high == math.inf else high

    def _limit(self, key: str, value: Any) -> float | None:
        if value is None:
            return None
        single = _single(value)
        number = self._whole(key, single)
        is_code = is_float(self.dtype) or not any(packing in self.attributes for packing in PACKING)
        if math.isnan(number) or not (is_code or isinstance(single, int)):
            raise _wrong(key, value, f"expected a stored value, of {self.dtype}: CF gives limits in packed units")
        return number

    # What is passed on

    def units(self) -> str:
        """The units, empty if there are none."""
        units = self.attributes.get("units")
        return units if isinstance(units, str) else ""

    def notes(self) -> list[str]:
        """What a user should know of the values."""
        return [*self._time_notes(), *self._flag_notes(), *self._odd_notes()]

    def _time_notes(self) -> list[str]:
        units = self.units()
        if re.match(rf"{TIME_UNIT}\s+since\s", units, re.IGNORECASE):
            calendar = self.attributes.get("calendar", "standard")
            return [f"times ({units}, calendar {_shown(calendar)}), counted as numbers"]
        if re.fullmatch(TIME_UNIT, units, re.IGNORECASE):
            return [f"durations in {units}, counted as numbers"]
        return []

    def _flag_notes(self) -> list[str]:
        found = [key for key in FLAGS if key in self.attributes]
        return [f"categories (`{found[0]}`): their mean says nothing"] if found else []

    def _odd_notes(self) -> list[str]:
        units, unsigned = self.attributes.get("units"), self.attributes.get("_Unsigned")
        notes = [] if units is None or isinstance(units, str) else [f"`units` is {_shown(units)}, not text"]
        if unsigned is not None and self.dtype.kind not in "iu":
            notes.append(f"`_Unsigned` is {_shown(unsigned)}, which says nothing of {self.dtype}")
        return [*notes, *self._never_notes()]

    def _never_notes(self) -> list[str]:
        """Missing values that no value of the dtype can be."""
        missing = [*self._fill_value(), *self._numbers("missing_value")]
        never = [value for value in missing if not (math.isnan(value) or self._can_occur(value))]
        return [
            f"the missing value {_plain(float(value))} cannot occur in {self.dtype}" for value in dict.fromkeys(never)
        ]


def _decoded(key: str, text: str) -> float:
    """The float64 that xarray writes as base64 into arrays of zarr v3."""
    try:
        number: float = struct.unpack("<d", base64.standard_b64decode(text))[0]
    except (binascii.Error, struct.error, ValueError) as error:
        raise _wrong(key, text, "expected a number, or a float64 in base64 as xarray writes it") from error
    return number


def _single(value: Any) -> Any:
    """`value`, or the only one in a list."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _float(key: str, value: float) -> float:
    try:
        return float(value)
    except OverflowError as error:
        raise _wrong(key, value, "expected a number within float64") from error


def _wrong(key: str, value: Any, expected: str) -> DataError:
    return DataError(
        f"its attribute `{key}` is {_shown(value)}; {expected}; repair the attribute, or set `attributes: ignore`"
    )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"
