"""The header of a `.npy` file is read as numpy reads it, or refused."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamstats.errors import UsageError
from streamstats.service.headers import npy_header

DTYPES = ("<f4", ">f4", "<f2", ">f8", "|i1", "|u1", "<i2", ">u4", "<i8", "|b1", "<c8", "<f8")


def saved(array: np.ndarray[Any, Any], version: tuple[int, int]) -> bytes:
    content = io.BytesIO()
    np.lib.format.write_array(content, array, version=version)
    return content.getvalue()


@given(
    st.sampled_from(DTYPES),
    st.lists(st.integers(0, 4), max_size=6),
    st.sampled_from("CF"),
    st.sampled_from([(1, 0), (2, 0), (3, 0)]),
)
def test_a_header_is_read_as_numpy_reads_it(dtype: str, shape: list[int], order: Any, version: tuple[int, int]) -> None:
    array = np.zeros(shape, dtype, order=order)
    content = saved(array, version)
    found = npy_header(content)
    assert (found.dtype, found.shape, len(content) - found.offset) == (array.dtype, array.shape, array.nbytes)
    assert found.fortran == (array.flags.f_contiguous and not array.flags.c_contiguous)


@given(st.binary(max_size=200))
def test_anything_else_is_refused_and_nothing_is_run(content: bytes) -> None:
    with pytest.raises(UsageError, match=r"\.npy"):
        npy_header(b"\x93NUMPY" + content)


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
        "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }",
        "{'descr': '<M8[s]', 'fortran_order': False, 'shape': (1,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (9**9,), }",
        "{'descr': '<f4', 'fortran_order': False, }",
        "{'descr': '<f4', 'shape': (1,), }",
        "{'fortran_order': False, 'shape': (1,), }",
        "(" * 1000,
    ],
)
def test_a_header_that_is_of_no_numbers_is_refused(header: str) -> None:
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + b"\0" * 100
    with pytest.raises(UsageError, match="numbers"):
        npy_header(content)
