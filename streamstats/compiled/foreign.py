"""C functions in compiled loops: their addresses, and intrinsics by which a loop calls them and accesses raw memory.

The intrinsics are made by functions, so that a process that finds its loops on disk never loads the compiler.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


def addresses(library: str | None, names: Sequence[str]) -> npt.NDArray[np.int64]:
    """Addresses of the functions `names` of `library` (None: of the program). Raises `AttributeError`, `OSError`."""
    functions = [getattr(ctypes.CDLL(library), name) for name in names]
    return np.array([ctypes.cast(each, ctypes.c_void_p).value for each in functions], np.int64)


# For compiled loops


def caller() -> Any:
    """The intrinsic `call(address, arguments)`: calls the C function there with integers or addresses → int64."""
    from llvmlite import ir
    from numba import types
    from numba.core import cgutils
    from numba.extending import intrinsic

    word = ir.IntType(64)

    @intrinsic
    def call(typing_context, address, arguments):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, values):  # type: ignore[no-untyped-def]
            passed = [
                context.cast(builder, value, kind, types.int64)
                for value, kind in zip(cgutils.unpack_tuple(builder, values[1]), signature.args[1], strict=True)
            ]
            function = builder.inttoptr(values[0], ir.FunctionType(word, [word] * len(passed)).as_pointer())
            return builder.call(function, passed)

        return types.int64(types.int64, arguments), generate

    return call


def word_reader() -> Any:
    """The intrinsic `word(address)`: the unsigned 32-bit word there, which need not be aligned, as an int64."""
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    @intrinsic
    def word(typing_context, address):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, values):  # type: ignore[no-untyped-def]
            pointer = builder.inttoptr(values[0], ir.IntType(32).as_pointer())
            return builder.zext(builder.load(pointer, align=1), ir.IntType(64))

        return types.int64(types.int64), generate

    return word


def word_writer() -> Any:
    """The intrinsic `put_word(address, value)`: writes the lower 32 bits of `value` there, aligned or not."""
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    @intrinsic
    def put_word(typing_context, address, value):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, values):  # type: ignore[no-untyped-def]
            pointer = builder.inttoptr(values[0], ir.IntType(32).as_pointer())
            builder.store(builder.trunc(values[1], ir.IntType(32)), pointer, align=1)
            return context.get_dummy_value()

        return types.none(types.int64, types.int64), generate

    return put_word


def at() -> Any:
    """The intrinsic `pointer(address)`, for `numba.carray`."""
    from numba import types
    from numba.extending import intrinsic

    @intrinsic
    def pointer(typing_context, address):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, values):  # type: ignore[no-untyped-def]
            return builder.inttoptr(values[0], context.get_value_type(types.voidptr))

        return types.voidptr(types.int64), generate

    return pointer


def address_of() -> Any:
    """The intrinsic `number(pointer)`: its address."""
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    @intrinsic
    def number(typing_context, pointer):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, values):  # type: ignore[no-untyped-def]
            return builder.ptrtoint(values[0], ir.IntType(64))

        return types.int64(types.voidptr), generate

    return number
