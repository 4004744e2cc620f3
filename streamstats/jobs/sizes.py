"""Sizes in bytes: parsed from text such as 2GiB, and shown."""

from __future__ import annotations

import re
from fractions import Fraction

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12} | {
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}


def parse_bytes(text: str | int) -> int:
    """The number of bytes in "2GiB", "500 MB" or a plain number. Raises `ValueError`.

    >>> parse_bytes("2GiB")
    2147483648
    """
    match = re.fullmatch(r"\s*([0-9]{1,30}(?:\.[0-9]{1,30})?)\s*([A-Za-z]*)\s*", str(text))
    if isinstance(text, bool) or match is None or match[2].upper() not in UNITS:
        raise ValueError("expected a size such as 2GiB, 500MB or a number of bytes")
    return int(Fraction(match[1]) * UNITS[match[2].upper()])


def in_mib(size: int) -> str:
    """`size` bytes in MiB, rounded up.

    >>> in_mib(2**20 + 1)
    '2 MiB'
    """
    return f"{-(-size // 2**20)} MiB"
