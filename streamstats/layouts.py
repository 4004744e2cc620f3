"""Named layouts of weights, and the geometry of a kernel: which positions of an input each of its taps sees.

Once the taps are summed or taken one by one, every layout becomes (in/groups, groups, out/groups), with output channels
group-major. Needs only numpy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .errors import MismatchError, UsageError

Float64Array = npt.NDArray[np.float64]


def tap_sums(
    weights: Float64Array, layout: str, groups: int | None = None, geometry: Geometry | None = None
) -> Float64Array:
    """Sum `weights` over their spatial taps: float64[in/groups, groups, out/groups], whatever the `layout`.

    Layouts, `geometry` and errors as in `MeanBiasCorrector.calculate`.
    """
    check_layout(weights.shape, layout)
    spatial = spatial_axes(layout, weights.ndim)
    outputs = _outputs_per_tap(layout, len(spatial), geometry or Geometry())
    summed: Float64Array = weights.sum(axis=spatial)
    return BY_GROUP[layout](summed, groups) / outputs


def input_channels(shape: tuple[int, ...], layout: str) -> int:
    """The input channels per group for weights of `shape` in `layout`; those of all groups if it has the axis C."""
    check_layout(shape, layout)
    return shape[layout.index("C" if "C" in layout else "I")]


def check_layout(shape: tuple[int, ...], layout: str) -> None:
    """Raise `UsageError` for an unknown `layout`, `MismatchError` for a `shape` that does not fit it."""
    if layout not in BY_GROUP:
        raise UsageError(f"layout {layout!r} is unknown; expected one of {', '.join(BY_GROUP)}")
    if layout == "native" and len(shape) < 3:
        raise MismatchError(
            f"weights have the shape {shape}; layout 'native' expects (*spatial, in/groups, groups, out/groups)"
        )
    if layout != "native" and len(shape) != len(layout):
        raise MismatchError(f"weights have the shape {shape}; layout {layout!r} expects {len(layout)} axes")


def spatial_axes(layout: str, ndim: int) -> tuple[int, ...]:
    """The spatial axes of weights in `layout`."""
    if layout == "native":
        return tuple(range(ndim - 3))
    return tuple(axis for axis, letter in enumerate(layout) if letter in "DHW")


def _outputs_per_tap(layout: str, spatial: int, geometry: Geometry) -> int:
    """n, where a tap reaches one in n output positions: product(strides) in a transposed convolution, else 1."""
    axes = geometry.axes(spatial)
    return math.prod(int(stride) for stride, *_ in axes) if layout in TRANSPOSED else 1


def _is_positive_integer(value: object) -> bool:
    return isinstance(value, int | np.integer) and bool(value >= 1)


def _native_by_group(channels: Float64Array, groups: int | None) -> Float64Array:
    _check_groups_found(groups, channels.shape[1])
    return channels


def _depthwise_by_group(channels: Float64Array, groups: int | None) -> Float64Array:
    """(groups, out/groups), one input channel per group → (1, groups, out/groups)."""
    _check_groups_found(groups, channels.shape[0])
    return channels[np.newaxis]


def _outputs_first_by_group(channels: Float64Array, groups: int | None) -> Float64Array:
    """(out, in/groups), outputs group-major → (in/groups, groups, out/groups)."""
    return _outputs_last_by_group(channels.T, groups)


def _outputs_last_by_group(channels: Float64Array, groups: int | None) -> Float64Array:
    """(in/groups, out), outputs group-major → (in/groups, groups, out/groups)."""
    inputs, outputs = channels.shape
    count = _group_count(groups, outputs, "output")
    return channels.reshape(inputs, count, outputs // count)


def _transposed_by_group(channels: Float64Array, groups: int | None) -> Float64Array:
    """(in, out/groups), inputs group-major → (in/groups, groups, out/groups)."""
    inputs, outputs = channels.shape
    count = _group_count(groups, inputs, "input")
    return channels.reshape(count, inputs // count, outputs).transpose(1, 0, 2)


def _check_groups_found(groups: int | None, found: int) -> None:
    if groups not in (None, found):
        raise MismatchError(f"groups is {groups}, but the weights have {found} groups; expected {found} or None")


def _group_count(groups: int | None, channels: int, side: str) -> int:
    if groups is None:
        return 1
    if not _is_positive_integer(groups) or channels % groups:
        raise MismatchError(f"{channels} {side} channels do not divide into {groups} groups; expected a divisor")
    return groups


TRANSPOSED = ("IOW", "IOHW", "IODHW")

BY_GROUP: Mapping[str, Callable[[Float64Array, int | None], Float64Array]] = {
    "native": _native_by_group,
    **dict.fromkeys(("OI", "OIW", "OIHW", "OIDHW"), _outputs_first_by_group),
    **dict.fromkeys(("IO", "WIO", "HWIO", "DHWIO"), _outputs_last_by_group),
    **dict.fromkeys(("WCM", "HWCM", "DHWCM"), _depthwise_by_group),
    **dict.fromkeys(TRANSPOSED, _transposed_by_group),
}


# Geometry


@dataclass(frozen=True)
class Geometry:
    """How the taps of a convolution move over its input, one number per spatial axis; empty for the defaults.

    Strides and dilations default to 1, `pads` and `output_padding` to 0. `pads` are the zeros before each axis, then
    those after each axis, as in ONNX. `output_padding` is what a transposed convolution adds at the end of each axis.
    """

    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    output_padding: tuple[int, ...] = ()

    def axes(self, spatial: int) -> list[tuple[int, int, int, int, int]]:
        """(stride, pad before, pad after, dilation, output padding) of each axis.

        Raises `MismatchError` unless there is one number per spatial axis and strides and dilations are positive.
        """
        strides, dilations = self.strides or (1,) * spatial, self.dilations or (1,) * spatial
        pads, ends = self.pads or (0,) * 2 * spatial, self.output_padding or (0,) * spatial
        if not len(strides) == len(dilations) == len(ends) == spatial or len(pads) != 2 * spatial:
            raise MismatchError(f"{self} does not fit {spatial} spatial axes; expected one number per axis")
        if not all(map(_is_positive_integer, (*strides, *dilations))):
            raise MismatchError(f"{self} does not fit a convolution; expected positive integer strides and dilations")
        return list(zip(strides, pads[:spatial], pads[spatial:], dilations, ends, strict=True))


def tap_means(
    position_mean: Float64Array, kernel: Sequence[int], geometry: Geometry, *, transposed: bool = False
) -> Float64Array:
    """The mean of what each tap of a `kernel` sees over all outputs, including padded zeros: float64[C, *kernel].

    `position_mean` is float64[C, *space]. Raises `MismatchError` for a kernel that does not fit into the input.

    >>> tap_means(np.array([[1.0, 2.0, 3.0]]), (3,), Geometry(pads=(1, 1))).tolist()
    [[1.0, 2.0, 1.6666666666666667]]
    """
    means = position_mean
    for axis, (taps, numbers) in enumerate(zip(kernel, geometry.axes(len(kernel)), strict=True), start=1):
        seen, outputs = _seen(position_mean.shape[axis], taps, *numbers, transposed=transposed)
        # Add position by position: the rounding of a matrix product would depend on the processor.
        sums = np.zeros((taps, *np.delete(means.shape, axis)))
        for position, mean in enumerate(np.moveaxis(means, axis, 0)):
            sums[seen[:, position]] += mean
        means = np.moveaxis(sums / outputs, 0, axis)
    return means


def _seen(
    extent: int, taps: int, stride: int, before: int, after: int, dilation: int, more: int, *, transposed: bool
) -> tuple[npt.NDArray[np.bool_], int]:
    """Along one axis: (bool[taps, extent], true where a tap sees a position for some output; the output extent)."""
    reach = dilation * (taps - 1)
    if transposed:
        outputs = (extent - 1) * stride - before - after + reach + more + 1
    else:
        outputs = (extent + before + after - reach - 1) // stride + 1
    if outputs < 1:
        raise MismatchError(
            f"a kernel of {taps} taps with dilation {dilation} does not fit into {extent} positions padded by {before} "
            f"and {after}; expected the geometry of the recorded layer"
        )
    seen = np.zeros((taps, extent), dtype=bool)
    for tap in range(taps):
        if transposed:
            places = np.arange(extent) * stride + tap * dilation - before
            seen[tap] = (places >= 0) & (places < outputs)
        else:
            places = np.arange(outputs) * stride + tap * dilation - before
            seen[tap, places[(places >= 0) & (places < extent)]] = True
    return seen, outputs
