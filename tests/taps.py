"""What each tap of a kernel sees, straight from the definition, in fractions: slow, and short enough to be checked."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
from hypothesis import strategies as st

from streamstats.layouts import Geometry, Kernel

Array = np.ndarray[Any, np.dtype[Any]]
ZERO = Fraction(0)


def exact_tap_means(values: Array, kernel: Kernel) -> Array:
    """Over all samples and outputs, the mean of what each tap sees: `values` (samples, channels, *space) of fractions.

    The input is padded with zeros and each output is visited; a transposed convolution sees the input with zeros put
    between its positions. The result is of fractions, (channels, *taps).
    """
    geometry, spatial = kernel.geometry, len(kernel.taps)
    strides, dilations = geometry.strides, geometry.dilations
    reach = [d * (t - 1) for t, d in zip(kernel.taps, dilations, strict=True)]
    if kernel.transposed:
        values = _spaced(values, strides)
        ends = [r + more for r, more in zip(reach, geometry.output_padding, strict=True)]
        padded = _padded(values, reach, ends)
        outputs = [
            extent - r - before - after
            for extent, r, before, after in zip(
                padded.shape[2:], reach, geometry.pads[:spatial], geometry.pads[spatial:], strict=True
            )
        ]

        def seen(output: tuple[int, ...], tap: tuple[int, ...]) -> tuple[int, ...]:
            cropped = zip(output, tap, dilations, reach, geometry.pads[:spatial], strict=True)
            return tuple(o + before + r - t * d for o, t, d, r, before in cropped)
    else:
        padded = _padded(values, geometry.pads[:spatial], geometry.pads[spatial:])
        outputs = [(n - r - 1) // s + 1 for n, r, s in zip(padded.shape[2:], reach, strides, strict=True)]

        def seen(output: tuple[int, ...], tap: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(o * s + t * d for o, s, t, d in zip(output, strides, tap, dilations, strict=True))

    found = np.full((values.shape[1], *kernel.taps), ZERO, object)
    for tap in np.ndindex(*kernel.taps):
        for output in product(*map(range, outputs)):
            found[(slice(None), *tap)] += padded[(slice(None), slice(None), *seen(output, tap))].sum(axis=0)
    return found / (len(values) * int(np.prod(outputs)))


def _padded(values: Array, before: Any, after: Any) -> Array:
    return np.pad(values, [(0, 0), (0, 0), *zip(before, after, strict=True)], constant_values=ZERO)


def _spaced(values: Array, strides: Any) -> Array:
    extents = [(n - 1) * s + 1 for n, s in zip(values.shape[2:], strides, strict=True)]
    spaced = np.full((*values.shape[:2], *extents), ZERO, object)
    spaced[(slice(None), slice(None), *(slice(None, None, s) for s in strides))] = values
    return spaced


@st.composite
def kernels(draw: st.DrawFn, spatial: int) -> tuple[Kernel, tuple[int, ...]]:
    """A kernel over `spatial` axes, of any kind, and extents that it fits into."""
    several = st.tuples(*[st.integers(1, 3)] * spatial)
    taps, strides, dilations = draw(several), draw(several), draw(several)
    reach = [d * (t - 1) for t, d in zip(taps, dilations, strict=True)]
    if not draw(st.booleans()):
        pads = draw(st.tuples(*[st.integers(0, 3)] * 2 * spatial))
        least = [max(1, r + 1 - b - a) for r, b, a in zip(reach, pads[:spatial], pads[spatial:], strict=True)]
        extents = tuple(n + draw(st.integers(0, 3)) for n in least)
        return Kernel(taps, Geometry(strides, pads, dilations)), extents
    extents = draw(st.tuples(*[st.integers(1, 4)] * spatial))
    ends = tuple(draw(st.integers(0, s - 1)) for s in strides)
    whole = [(n - 1) * s + r + 1 for n, s, r in zip(extents, strides, reach, strict=True)]
    before, after = (tuple(draw(st.integers(0, (n - 1) // 2)) for n in whole) for _ in range(2))
    return Kernel(taps, Geometry(strides, (*before, *after), dilations, ends), transposed=True), extents


@st.composite
def several_kernels(draw: st.DrawFn, spatial: int) -> tuple[list[Kernel], tuple[int, ...]]:
    """Two or three kernels over `spatial` axes, or over none, and extents that all of them fit into."""
    cases = draw(st.lists(kernels(spatial), min_size=2, max_size=3))
    extents = tuple(max(each) for each in zip(*(extents for _, extents in cases), strict=True))
    return [*(kernel for kernel, _ in cases), *([Kernel()] if draw(st.booleans()) else [])], extents
