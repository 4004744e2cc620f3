"""Decoding many chunks in one call: the C functions of the codecs, called from a compiled loop.

Between two chunks Python's lock changes hands, which among busy threads costs more than decoding a small chunk. Here a
batch is decoded without it. The functions are those inside numcodecs' own extension modules; where a module does not
show them, and from the first chunk that is refused, chunks go one by one through numcodecs, which says what is wrong.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from ..native import POINTER, SIZE, load

ARGUMENTS = (POINTER, SIZE, POINTER, SIZE, SIZE, SIZE, POINTER)
"""C functions, address of the stored bytes, places, number of chunks, address to decode to, bytes of a chunk, done."""

FUNCTIONS = {
    "zstd": ("ZSTD_createDCtx", "ZSTD_decompressDCtx", "ZSTD_freeDCtx"),
    "blosc": ("blosc_decompress_ctx",),
    "lz4": ("LZ4_decompress_safe",),
}
"""Compressor, which is also numcodecs' module → the C functions that its loop calls."""
HEADER_BYTES = {"zstd": 0, "blosc": 16, "lz4": 4}
"""What stands before a chunk and is looked at before any C function is."""


def decode_batch(
    compressor: str, stored: npt.NDArray[np.uint8], places: npt.NDArray[np.int64], out: npt.NDArray[np.uint8]
) -> int:
    """Decode chunks of `stored` one behind the other into `out`, uint8[chunks, bytes of a chunk]; how many it did.

    `places` int64[chunks, 2] are offset and length of each, inside `stored`. It stops before the first chunk that
    does not decode to exactly its size.
    """
    functions = _functions(compressor)
    if functions is None:
        return 0
    places = places[: _promising(compressor, stored, places, out.shape[1])]
    done = np.zeros(1, np.int64)
    _loop(compressor)(
        functions.ctypes.data,
        stored.ctypes.data,
        places.ctypes.data,
        len(places),
        out.ctypes.data,
        out.shape[1],
        done.ctypes.data,
    )
    return int(done[0])


def _promising(compressor: str, stored: npt.NDArray[np.uint8], places: npt.NDArray[np.int64], chunk_bytes: int) -> int:
    """How many chunks, from the first, say in their headers that they are whole and have `chunk_bytes`."""
    header = HEADER_BYTES[compressor]
    if not header:
        return len(places)
    long_enough = places[:, 1] >= header
    if not long_enough.all():
        places = places[: long_enough.argmin()]
    said = stored[places[:, :1] + np.arange(header)].view("<u4")
    right = said[:, 0] == chunk_bytes
    if compressor == "blosc":
        right = (said[:, 1] == chunk_bytes) & (said[:, 3] <= places[:, 1])
    return len(places) if right.all() else int(right.argmin())


@cache
def _loop(compressor: str) -> Callable[..., None]:
    return load(f"decode-{compressor}", ARGUMENTS, lambda: _definition(compressor), (__name__,))


@cache
def _functions(compressor: str) -> npt.NDArray[np.int64] | None:
    """The addresses of the C functions, None where the extension module does not show them."""
    if compressor not in FUNCTIONS:
        return None
    try:
        library = ctypes.CDLL(str(import_module(f"numcodecs.{compressor}").__file__))
        found = [ctypes.cast(getattr(library, name), ctypes.c_void_p).value for name in FUNCTIONS[compressor]]
    except (AttributeError, OSError):
        return None
    return np.array(found, np.int64)


# Compiled


def _definition(compressor: str) -> Callable[..., None]:
    """The loop over the chunks; each calls its C function as its header declares it."""
    import numba

    call, carray = _caller(), numba.carray

    def zstd(functions, stored, places, number, out, size, done):  # type: ignore[no-untyped-def]
        create, decompress, free = carray(functions, (3,), np.int64)
        place, finished = carray(places, (number, 2), np.int64), carray(done, (1,), np.int64)
        context = call(create, (0, 0, 0, 0, 0))
        if context == 0:  # no memory
            return
        for i in range(number):
            if call(decompress, (context, out + i * size, size, stored + place[i, 0], place[i, 1])) != size:
                break
            finished[0] += 1
        call(free, (context, 0, 0, 0, 0))

    def blosc(functions, stored, places, number, out, size, done):  # type: ignore[no-untyped-def]
        decompress = carray(functions, (1,), np.int64)[0]
        place, finished = carray(places, (number, 2), np.int64), carray(done, (1,), np.int64)
        for i in range(number):
            if np.int32(call(decompress, (stored + place[i, 0], out + i * size, size, 1, 0))) != size:
                break
            finished[0] += 1

    def lz4(functions, stored, places, number, out, size, done):  # type: ignore[no-untyped-def]
        decompress = carray(functions, (1,), np.int64)[0]
        place, finished = carray(places, (number, 2), np.int64), carray(done, (1,), np.int64)
        for i in range(number):
            source = stored + place[i, 0] + HEADER_BYTES_OF_LZ4
            if np.int32(call(decompress, (source, out + i * size, place[i, 1] - HEADER_BYTES_OF_LZ4, size, 0))) != size:
                break
            finished[0] += 1

    return {"zstd": zstd, "blosc": blosc, "lz4": lz4}[compressor]


HEADER_BYTES_OF_LZ4 = HEADER_BYTES["lz4"]


def _caller() -> Any:
    """What calls the C function at an address with five whole numbers or addresses; it may take fewer."""
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
