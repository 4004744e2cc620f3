"""How the kernel of an ONNX convolution moves over its input: what its attributes state, and what follows from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ...layouts import Geometry
from .graph import attributes

if TYPE_CHECKING:
    import onnx


def stated_geometry(node: onnx.NodeProto, spatial: int) -> Geometry:
    """The strides, padding and dilations that `node`, a convolution over `spatial` axes, states.

    Padding that depends on the input (SAME, output_shape) is none here; see `geometry_over`.
    """
    found = attributes(node)
    valid = found.get("auto_pad", b"NOTSET") == b"VALID"
    return Geometry(
        strides=tuple(found.get("strides", (1,) * spatial)),
        pads=(0,) * 2 * spatial if valid else tuple(found.get("pads", (0,) * 2 * spatial)),
        dilations=tuple(found.get("dilations", (1,) * spatial)),
        output_padding=tuple(found.get("output_padding", (0,) * spatial)),
    )


def depends_on_extents(node: onnx.NodeProto) -> bool:
    """Whether the padding of `node` depends on the extents of its input."""
    found = attributes(node)
    automatic: bytes = found.get("auto_pad", b"NOTSET")
    return automatic.startswith(b"SAME") or (_is_transposed(node) and "output_shape" in found)


def _is_transposed(node: onnx.NodeProto) -> bool:
    return str(node.op_type) == "ConvTranspose"


def geometry_over(node: onnx.NodeProto, kernel: Sequence[int], extents: Sequence[int]) -> Geometry:
    """The geometry of `node` over an input of these spatial `extents`, with the padding that follows from them."""
    stated, found = stated_geometry(node, len(kernel)), attributes(node)
    if not depends_on_extents(node):
        return stated
    automatic, ends = found.get("auto_pad", b"NOTSET").decode(), stated.output_padding
    if _is_transposed(node):
        excess = _excess(stated, kernel, extents, found.get("output_shape"))
        totals = [max(0, each) for each in excess]  # cut off; what output_shape lacks is added at the end
        if "output_shape" in found:  # with SAME alone, onnxruntime and ONNX's shape inference add nothing
            ends = tuple(end + max(0, -each) for end, each in zip(ends, excess, strict=True))
    else:
        totals = _padded(stated, kernel, extents)
    less, more = tuple(total // 2 for total in totals), tuple(total - total // 2 for total in totals)
    # SAME_LOWER, and a transposed convolution without auto_pad, have the larger half at the beginning
    pads = (*less, *more) if automatic == "SAME_UPPER" else (*more, *less)
    return replace(stated, pads=pads, output_padding=ends)


def _padded(stated: Geometry, kernel: Sequence[int], extents: Sequence[int]) -> list[int]:
    """The padding per axis with which a convolution has one output position per stride."""
    axes = zip(extents, kernel, stated.axes(len(kernel)), strict=True)
    return [
        max(0, (-(-extent // stride) - 1) * stride + dilation * (taps - 1) + 1 - extent)
        for extent, taps, (stride, _, _, dilation, _) in axes
    ]


def _excess(
    stated: Geometry, kernel: Sequence[int], extents: Sequence[int], output_shape: Sequence[int] | None
) -> list[int]:
    """By how much a transposed convolution exceeds `output_shape` per axis, by default extent · stride."""
    axes = list(zip(extents, kernel, stated.axes(len(kernel)), strict=True))
    wanted = output_shape or [extent * stride for extent, _, (stride, *_) in axes]
    reached = [
        stride * (extent - 1) + end + dilation * (taps - 1) + 1 for extent, taps, (stride, _, _, dilation, end) in axes
    ]
    return [reach - want for reach, want in zip(reached, wanted[-len(kernel) :], strict=True)]
