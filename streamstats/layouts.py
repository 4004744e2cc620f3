"""Named layouts of weights, and the geometry of a kernel: which positions of an input each of its taps sees.

Once the taps are summed or taken one by one, every layout becomes (in/groups, groups, out/groups), with output channels
group-major. Needs only numpy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import MismatchError, UsageError, counted, one_of

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
        raise UsageError(f"layout {layout!r} is unknown; {one_of(layout, BY_GROUP)}")
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


def _is_integer(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


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


def matrix_places(shape: tuple[int, ...], layout: str, groups: int = 1) -> npt.NDArray[np.int64]:
    """Where each group's matrix is in weights of `shape`: the places in their C order, int64[groups, out/groups, n].

    The n columns are (input channel of the group, *taps), in C order. `layout` has the outputs first, or is `IO`.

    >>> matrix_places((2, 3), "IO").tolist()
    [[[0, 3], [1, 4], [2, 5]]]
    """
    check_layout(shape, layout)
    places = np.arange(math.prod(shape), dtype=np.int64).reshape(shape)
    outputs_first = places.T if layout == "IO" else places
    return outputs_first.reshape(groups, len(outputs_first) // groups, -1)


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

    >>> ss.Geometry(strides=(2, 2), pads=(1, 1, 0, 0)).axes(2)
    [(2, 1, 0, 1, 0), (2, 1, 0, 1, 0)]
    """

    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    output_padding: tuple[int, ...] = ()

    def axes(self, spatial: int) -> list[tuple[int, int, int, int, int]]:
        """(stride, pad before, pad after, dilation, output padding) of each axis.

        Raises `MismatchError` unless there is one number per spatial axis, and two of `pads`, and strides and dilations
        are positive.
        """
        self._check_numbers(spatial)
        strides, dilations = self.strides or (1,) * spatial, self.dilations or (1,) * spatial
        pads, ends = self.pads or (0,) * 2 * spatial, self.output_padding or (0,) * spatial
        if not all(map(_is_positive_integer, (*strides, *dilations))):
            raise MismatchError(
                f"a geometry with strides {[*strides]} and dilations {[*dilations]} does not fit a convolution; "
                "expected positive integers"
            )
        return list(zip(strides, pads[:spatial], pads[spatial:], dilations, ends, strict=True))

    def _check_numbers(self, spatial: int) -> None:
        axes = counted(spatial, "spatial axis", "spatial axes")
        for name in GEOMETRY:
            values, per_axis = getattr(self, name), 2 if name == "pads" else 1
            if len(values) not in (0, per_axis * spatial):
                which = "one before each axis, then one after each" if name == "pads" else "one per axis"
                raise MismatchError(
                    f"a geometry with {name} {[*values]} does not fit {axes}; expected "
                    f"{counted(per_axis * spatial, 'number')}, {which}"
                )


@dataclass(frozen=True)
class Kernel:
    """The kernel of a layer: its `taps` per spatial axis (none for a matrix product), and how they move over the input.

    `geometry` is stored with one number per axis, without defaults, so that kernels with the same effect are equal.
    `transposed` marks a transposed convolution; `groups` is the number of groups of a grouped one. Raises
    `MismatchError` for a geometry with other numbers of axes, `UsageError` for numbers that are not integers or out of
    range.

    >>> Kernel((3,), Geometry(pads=(1, 1))) == Kernel((3,), Geometry((1,), (1, 1), (1,), (0,)))
    True
    """

    taps: tuple[int, ...] = ()
    geometry: Geometry = field(default_factory=Geometry)
    transposed: bool = False
    groups: int = 1

    def __post_init__(self) -> None:
        numbers = {"taps": self.taps, "groups": (self.groups,)} | {
            name: getattr(self.geometry, name) for name in GEOMETRY
        }
        for name, values in numbers.items():
            least = LEAST.get(name, 1)
            if not all(_is_integer(value) and least <= value <= LARGEST for value in values):
                raise UsageError(f"a kernel has {name} {list(values)}; expected integers from {least} to {LARGEST}")
        axes = self.geometry.axes(len(self.taps))
        strides, before, after, dilations, ends = (tuple(int(axis[place]) for axis in axes) for place in range(5))
        object.__setattr__(self, "taps", tuple(map(int, self.taps)))
        object.__setattr__(self, "groups", int(self.groups))
        object.__setattr__(self, "geometry", Geometry(strides, (*before, *after), dilations, ends))

    def to_metadata(self) -> dict[str, Any]:
        """JSON-ready: `taps`, the numbers of the geometry, `transposed`, and `groups` if there are several."""
        numbers = {name: list(getattr(self.geometry, name)) for name in GEOMETRY}
        groups = {"groups": self.groups} if self.groups > 1 else {}
        return {"taps": list(self.taps), **numbers, "transposed": self.transposed, **groups}

    @classmethod
    def from_metadata(cls, stored: object) -> Kernel | None:
        """The inverse of `to_metadata`; None for None. Raises `UsageError` for anything else, and as the class does."""
        if stored is None:
            return None
        known = {"taps", *GEOMETRY, "transposed", "groups"}
        if not isinstance(stored, Mapping) or "taps" not in stored or not stored.keys() <= known:
            raise UsageError(f"the kernel is {stored!r}; expected an object with {', '.join(sorted(known))}")
        lists = {name: stored.get(name, []) for name in ("taps", *GEOMETRY)}
        transposed, groups = stored.get("transposed", False), stored.get("groups", 1)
        if not all(isinstance(each, list) for each in lists.values()) or not isinstance(transposed, bool):
            raise UsageError(f"the kernel is {stored!r}; expected lists of integers, and `transposed` true or false")
        taps, *numbers = map(tuple, lists.values())
        return cls(taps, Geometry(*numbers), transposed, groups)

    def check_fits(self, extents: Sequence[int]) -> None:
        """Raise `MismatchError` unless the kernel can move over samples with these spatial `extents`."""
        for numbers in self._along(extents):
            _outputs(*numbers)

    def along(self, extents: Sequence[int]) -> list[AxisClasses]:
        """The classes of positions along each axis of samples with these spatial `extents`.

        Without taps, all positions are one class. Raises `MismatchError` as `check_fits`.
        """
        if not self.taps:
            return [_one_class(extent) for extent in extents]
        return [_classes(*numbers) for numbers in self._along(extents)]

    def _along(self, extents: Sequence[int]) -> list[AxisNumbers]:
        """Extent, taps, the numbers of `Geometry.axes` and `transposed` of each axis with taps."""
        if self.taps and len(extents) != len(self.taps):
            raise MismatchError(
                f"a kernel of {_axes(len(self.taps))} does not fit samples of {_axes(len(extents))}"
                f"{f', with the extents {tuple(extents)}' if extents else ''}; expected as many axes, or a kernel "
                "without taps for a matrix product"
            )
        axes = zip(extents, self.taps, self.geometry.axes(len(self.taps)), strict=False)
        return [(extent, taps, *numbers, self.transposed) for extent, taps, numbers in axes]


def _axes(number: int) -> str:
    return f"{number or 'no'} spatial {'axis' if number == 1 else 'axes'}"


def misses(kernel: Kernel, extents: Sequence[int]) -> bool:
    """Whether the mean over samples with these spatial `extents` is not that of what the kernel reads, although a few
    classes of positions would tell it.

    So it is if strides skip positions that no tap sees, and if the kernel has one tap, which does not see every
    position for one output. Larger kernels that pad are not meant: their taps see nearly the same.

    >>> misses(Kernel((1, 1), Geometry((2, 2))), (8, 8)), misses(Kernel((3, 3), Geometry((2, 2))), (8, 8))
    (True, False)
    """
    axes = kernel._along(extents)
    if math.prod(kernel.taps) == 1:
        return not all(_is_even(*numbers) for numbers in axes)
    steps = [(extent, taps, stride, dilation) for extent, taps, stride, _, _, dilation, *_ in axes]
    return not kernel.transposed and any(_skips(*numbers) for numbers in steps)


@dataclass(frozen=True)
class Kernels:
    """Two or more different kernels, sorted, that move over the same input because several layers read it."""

    members: tuple[Kernel, ...]

    def to_metadata(self) -> list[dict[str, Any]]:
        """JSON-ready."""
        return [kernel.to_metadata() for kernel in self.members]

    def check_fits(self, extents: Sequence[int]) -> None:
        """Raise `MismatchError` unless every kernel can move over samples with these spatial `extents`."""
        for kernel in self.members:
            kernel.check_fits(extents)

    def along(self, extents: Sequence[int]) -> list[Partition]:
        """The coarsest classes along each axis that tell apart all that a kernel tells apart. Raises `MismatchError`.

        The classes of a sample are products of those along its axes, and so are the coarsest that refine several.
        """
        of_kernels = [kernel.along(extents) for kernel in self.members]
        return [_refined(classes) for classes in zip(*of_kernels, strict=True)]


def joint_kernel(kernels: Iterable[Kernel | None]) -> Kernel | Kernels | None:
    """What moves over an input that layers with these `kernels` read; None if one of them is unknown.

    Without kernels, nothing tells positions apart, as in a matrix product.

    >>> joint_kernel([Kernel((3,)), Kernel((3,))]) == Kernel((3,)), joint_kernel([]) == Kernel()
    (True, True)
    """
    found = set(kernels)
    known = sorted((each for each in found if each is not None), key=astuple)
    if len(known) < len(found):
        return None
    return Kernels(tuple(known)) if len(known) > 1 else (known or [Kernel()])[0]


AxisNumbers = tuple[int, int, int, int, int, int, int, bool]
"""Extent, taps, stride, pad before, pad after, dilation, output padding, transposed."""
GEOMETRY = ("strides", "pads", "dilations", "output_padding")
"""The numbers of a geometry, in order."""
LARGEST = 2**31 - 1
LEAST = {"pads": -LARGEST, "output_padding": 0}
"""The least value of these numbers (negative padding crops); that of all others is 1."""
MOST_SEEN = 2**27
"""The most pairs of a tap and a position along one axis: they bound the memory of `_seen`."""


@dataclass(frozen=True, eq=False)
class Partition:
    """The positions along one axis, in classes.

    `labels` int64[extent] is the class of each position; classes are numbered in order of their first positions.
    `sizes` int64[K] is the number of positions in each class. An axis without positions has one class.
    """

    labels: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]

    def into(self, coarser: Partition) -> npt.NDArray[np.int64]:
        """The class of `coarser` that each class lies in, int64[K]. Raises `MismatchError` if one lies in several."""
        if len(self.labels) != len(coarser.labels):
            raise MismatchError(
                f"classes of {len(self.labels)} positions do not divide into classes of {len(coarser.labels)}; "
                "expected the same positions"
            )
        found = np.zeros(len(self.sizes), np.int64)
        found[self.labels] = coarser.labels
        if (found[self.labels] != coarser.labels).any():
            raise MismatchError("the kernel tells apart positions that were counted together; count the layer again")
        return found


@dataclass(frozen=True, eq=False)
class AxisClasses(Partition):
    """The classes along one axis that a kernel tells apart: the same taps see all positions of a class.

    `seen` bool[taps, K] says which taps see each class, over all `outputs`, the extent of the output.
    """

    seen: npt.NDArray[np.bool_]
    outputs: int


def labels_of(axes: Sequence[Partition]) -> npt.NDArray[np.int64]:
    """The class of each position of a sample, int64[*extents]: the product of the classes along its `axes`.

    >>> labels_of(Kernel((3, 1), Geometry(pads=(1, 0, 1, 0))).along((4, 2))).tolist()
    [[0, 0], [1, 1], [1, 1], [2, 2]]
    """
    labels = np.zeros((), np.int64)
    for axis in axes:
        labels = labels[..., np.newaxis] * len(axis.sizes) + axis.labels
    return labels


def _one_class(extent: int) -> AxisClasses:
    """The classes along an axis of a matrix product: one, in which each position belongs to one output."""
    return AxisClasses(np.zeros(extent, np.int64), np.array([extent]), np.ones((1, 1), bool), extent)


@lru_cache(maxsize=64)
def _classes(*numbers: *AxisNumbers) -> AxisClasses:
    extent, taps, *_ = numbers
    seen, outputs = _seen(*numbers), _outputs(*numbers)
    if not extent:
        return AxisClasses(np.zeros(0, np.int64), np.zeros(1, np.int64), np.zeros((taps, 1), bool), outputs)
    packed = np.ascontiguousarray(np.packbits(seen, axis=0).T)
    first, labels, sizes = _numbered(packed.view(f"V{packed.shape[1]}")[:, 0])
    return AxisClasses(labels, sizes, seen[:, first], outputs)


def _refined(classes: Sequence[AxisClasses]) -> Partition:
    """The coarsest classes along one axis that refine all these `classes`."""
    labels = np.ascontiguousarray(np.stack([each.labels for each in classes], axis=1))
    if not len(labels):
        return Partition(classes[0].labels, classes[0].sizes)
    _, refined, sizes = _numbered(labels.view(f"V{labels.shape[1] * labels.itemsize}")[:, 0])
    return Partition(refined, sizes)


def _numbered(keys: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """For equal `keys`, in order of their first places: (these places, the number of each key, how many are equal)."""
    _, first, labels, sizes = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
    order = np.argsort(first)
    return first[order], np.argsort(order)[labels], sizes[order]


def _outputs(
    extent: int, taps: int, stride: int, before: int, after: int, dilation: int, more: int, transposed: bool
) -> int:
    """The extent of the output along one axis. Raises `MismatchError` if it is empty, or above `MOST_SEEN` pairs."""
    reach = dilation * (taps - 1)
    if transposed:
        outputs = (extent - 1) * stride - before - after + reach + more + 1
    else:
        outputs = (extent + before + after - reach - 1) // stride + 1
    if outputs < 1 or taps * extent > MOST_SEEN:
        raise MismatchError(
            f"a kernel of {taps} taps with dilation {dilation} does not fit into {extent} positions padded by {before} "
            f"and {after}; expected the kernel of the recorded layer"
        )
    return outputs


def _skips(extent: int, taps: int, stride: int, dilation: int) -> bool:
    """Whether the strides of a convolution leave positions along one axis that no tap sees."""
    return extent > 1 and len({tap * dilation % stride for tap in range(min(taps, stride))}) < stride


def _is_even(
    extent: int, taps: int, stride: int, before: int, after: int, dilation: int, more: int, transposed: bool
) -> bool:
    """Whether every tap sees each position along one axis for one output, or one in each stride if transposed."""
    numbers = (extent, taps, stride, before, after, dilation, more, transposed)
    return _outputs(*numbers) == extent * (stride if transposed else 1) and bool(_seen(*numbers).all())


def _seen(
    extent: int, taps: int, stride: int, before: int, after: int, dilation: int, more: int, transposed: bool
) -> npt.NDArray[np.bool_]:
    """Along one axis, bool[taps, extent]: true where a tap sees a position for some output. Raises as `_outputs`."""
    outputs = _outputs(extent, taps, stride, before, after, dilation, more, transposed)
    seen = np.empty((taps, extent), dtype=bool)
    positions = np.arange(extent)
    for tap in range(taps):
        if transposed:
            places, between = positions * stride + tap * dilation - before, np.zeros(extent, np.int64)
        else:
            places, between = np.divmod(positions + before - tap * dilation, stride)
        seen[tap] = (between == 0) & (places >= 0) & (places < outputs)
    return seen
