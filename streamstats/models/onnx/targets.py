"""What is recorded of an ONNX model: an array per tensor, however many layers read it, and its name in the store.

An array is named after the first of the chosen layers that read the tensor, in the order of the graph. A tensor that no
layer reads is named `tensors/` and its own name. Layers that read different axes of a tensor as channels have an array
each.

A row is a sample wherever samples can be told apart and have one shape. Otherwise it is a position with its channels,
or what a convolution takes as a sample, such as one frame of a film; the target says which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, NamedTuple

import numpy as np

from ...calibration.layer import Layer
from ...calibration.masking import broadcasts_to, positions_of_axis
from ...errors import MismatchError, UsageError
from ...layouts import Kernel
from ...quantization import Quantization
from ...statistics.masks import Mask
from ...storage.names import layer_names
from ..account import told
from .arrangement import FIRST, ORDERLESS, Arrangement, Unarranged, arrangements, positions
from .layers import LeftOut, OnnxLayer
from .run import ModelRun
from .samples import Array
from .wanted import Wanted

TENSORS = "tensors"
"""The folder of tensors that no layer reads."""
IMAGE_AXES = 4
"""From this number of axes on, tensors that no layer reads have their channels on axis 1; others on the last."""
SAMPLES, POSITIONS, PARTS = "samples", "positions", "parts"
"""What rows are: whole samples, single positions, or parts of samples that a convolution takes as samples."""
OPTION = "`--positions-as-rows` (`positions_as_rows` in Python)"


@dataclass(frozen=True, eq=False)
class Target:
    """An array to record: the `tensor` of the model, and the chosen `layers` that read it.

    `tail` is the shape of a row, or, if it is `constant`, of the tensor, which becomes one row. `channel_axis` counts
    the axis of the rows. `stored` is the array in the store, if it exists. `mask` is the input of the model that says
    which positions count. `rows_are` says what a row is; `arrangement` is where the samples lie in the tensor, whose
    channels are on the axis `channels` once the samples are in front; None for one channel in all. `sample` is the
    shape of the first sample, empty if samples cannot be told apart.
    """

    name: str
    tensor: str
    layers: tuple[OnnxLayer, ...]
    tail: tuple[int, ...]
    dtype: np.dtype[Any]
    channel_axis: int
    constant: bool = False
    stored: Layer | None = None
    quantization: Quantization | None = None
    mask: str | None = None
    rows_are: str = SAMPLES
    arrangement: Arrangement = FIRST
    channels: int | None = None
    sample: tuple[int, ...] = ()

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """The shape of a row; a single value has one channel."""
        return self.tail or (1,)

    @property
    def positions(self) -> int:
        """The number of values per channel of a row."""
        return prod(positions_of_axis((1, *self.sample_shape), self.channel_axis))

    @property
    def may_be_padded(self) -> bool:
        """Whether a sample has several positions in it."""
        return self.rows_are != SAMPLES or self.positions > 1

    @property
    def kernels(self) -> dict[str, Kernel | None]:
        """The kernel of each chosen layer, by name; positions do not tell that of a convolution."""
        if self.rows_are == POSITIONS:
            return {layer.name: None if layer.weight.ndim > 2 else Kernel() for layer in self.layers}
        extents = [extent for axis, extent in enumerate(self.sample_shape, start=1) if axis != self.channel_axis]
        return {layer.name: layer.kernel_over(extents) for layer in self.layers}

    @property
    def readers(self) -> dict[str, Kernel | None]:
        """The kernels of all layers that read the array: those chosen, and those that the store has already."""
        stored = {} if self.stored is None else {each.layer: each.kernel for each in self.stored.read_by.each}
        return {**stored, **self.kernels}

    def rows(self, block: Array, samples: slice, mask: Mask | None) -> tuple[Array, Mask | None]:
        """The rows that `block`, the tensor for these `samples`, adds, and the `mask` of these rows.

        Raises `MismatchError` for another shape.
        """
        number = samples.stop - samples.start
        if self.constant:
            self._check(block.shape == self.tail, block, samples)
            return block.reshape(1, *self.sample_shape)[: samples.start == 0], None
        if self.rows_are == PARTS:
            self._check(block.shape[1:] == self.tail, block, samples)
            return block, None
        first = self.arrangement.samples_first(block, number)
        if self.rows_are == POSITIONS:
            return self._positions(block if first is None else first, mask)
        self._check(first is not None and first.shape[1:] == self.tail, block, samples)
        assert first is not None
        return first.reshape(number, *self.sample_shape), mask

    def _positions(self, values: Array, mask: Mask | None) -> tuple[Array, Mask | None]:
        axis = (-1 if self.channels is None else self.channels) % values.ndim
        rows = values.reshape(-1, 1) if self.channels is None else positions(values, axis)
        if mask is None:
            return rows, None
        extents = positions_of_axis(values.shape, axis)
        if not broadcasts_to(mask.shape, extents):
            raise MismatchError(
                f"layer {self.name}: its mask has the shape {mask.shape}; expected {extents}, the positions of its "
                "input; name another input, or record without a mask"
            )
        counts = np.broadcast_to(mask, extents).reshape(-1)
        return rows, np.repeat(counts, len(rows) // max(1, len(counts)))

    def _check(self, fits: bool, block: Array, samples: slice) -> None:
        if not fits:
            raise MismatchError(
                f"layer {self.name}: its input for the samples {samples.start}:{samples.stop} has the shape "
                f"{block.shape}; expected {self.tail} for each of them, as for the first ones; if shapes change, "
                f"record every position as a row, with {OPTION}"
            )


def find_targets(
    run: ModelRun, wanted: Wanted, *, positions_as_rows: bool = False
) -> tuple[list[Target], list[LeftOut]]:
    """`sort_targets`. Raises `UsageError` if nothing can be recorded."""
    targets, left_out = sort_targets(run, wanted, positions_as_rows=positions_as_rows)
    if not targets and left_out:
        raise UsageError(f"nothing to record: {told((each.name, each.reason) for each in left_out)}")
    return targets, left_out


def sort_targets(
    run: ModelRun, wanted: Wanted, *, positions_as_rows: bool = False
) -> tuple[list[Target], list[LeftOut]]:
    """(what can be recorded, what cannot), as a few runs tell.

    They are of one sample, another, and both; then of single samples, also of the batches of the least and greatest
    extents.
    """
    found = _Finding.of(run, wanted, positions_as_rows=positions_as_rows)
    read, unfit = found.read_targets()
    unread, unfit_tensors = found.unread_targets(read)
    return [*read, *unread], [*unfit, *unfit_tensors]


class _Tensor(NamedTuple):
    """What the first runs tell of a tensor: its first `value`, and its shapes in all of them, of the whole tensor and
    of one sample, None if samples cannot be told apart in it.
    """

    arrangement: Arrangement | Unarranged
    value: Array
    whole: Sequence[tuple[int, ...]]
    samples: Sequence[tuple[int, ...] | None]

    @property
    def sample(self) -> tuple[int, ...] | None:
        """The shape of each sample, None if there is no such."""
        return self.samples[0] if len(set(self.samples)) == 1 else None

    @property
    def is_in_parts(self) -> bool:
        """Whether axis 0 holds what a convolution takes as samples, all of one shape, but not one for each sample."""
        arrangement, tails = self.arrangement, {shape[1:] for shape in self.whole}
        return (
            isinstance(arrangement, Arrangement) and arrangement != FIRST and not arrangement.axis and len(tails) == 1
        )


@dataclass(frozen=True, eq=False)
class _Finding:
    """The tensors that are `wanted`, as the first runs show them."""

    wanted: Wanted
    tensors: Mapping[str, _Tensor]
    positions_as_rows: bool

    @classmethod
    def of(cls, run: ModelRun, wanted: Wanted, *, positions_as_rows: bool) -> _Finding:
        channels: dict[str, int | None] = dict.fromkeys(wanted.all_tensors)
        channels |= {layer.input: layer.channel_axis for layer in wanted.layers}
        found, size = arrangements(run, channels), run.fixed or 1
        values = {name: [value.shape] for name, (_, value) in found.items()}
        samples = {name: [_shape_of(each, value, size)] for name, (each, value) in found.items()}
        for rows in run.given.examples(size):
            for name, value in run.outputs(list(found), rows).items():
                values[name].append(value.shape)
                samples[name].append(_shape_of(found[name][0], value, size))
        tensors = {name: _Tensor(*found[name], values[name], samples[name]) for name in found}
        return cls(wanted, tensors, positions_as_rows)

    def read_targets(self) -> tuple[list[Target], list[LeftOut]]:
        """The inputs of layers: one for each tensor and channel axis."""
        groups: dict[tuple[str, int], list[OnnxLayer]] = {}
        unfit = []
        for layer in self.wanted.layers:
            tensor = self.tensors[layer.input]
            reason = _unfit(f"its input {layer.input}", tensor, layer.weight.ndim if layer.channel_axis > 0 else 1)
            if reason:
                unfit.append(LeftOut(layer.name, layer.op, reason))
            else:
                groups.setdefault((layer.input, layer.channel_axis % tensor.value.ndim), []).append(layer)
        return [self._read(tensor, readers) for (tensor, _), readers in groups.items()], unfit

    def _read(self, name: str, readers: Sequence[OnnxLayer]) -> Target:
        tensor, channels = self.tensors[name], readers[0].channel_axis
        value, arrangement = tensor.value, tensor.arrangement
        assert isinstance(arrangement, Arrangement)
        target = Target(readers[0].name, name, tuple(readers), (value.shape[channels],), value.dtype, 1)
        if channels == 1 and arrangement != FIRST:  # a convolution takes the samples on axis 0, whatever they are
            if tensor.is_in_parts and not self.positions_as_rows:
                return replace(target, tail=value.shape[1:], rows_are=PARTS)
            return replace(target, arrangement=Arrangement(fold=ORDERLESS), channels=1, rows_are=POSITIONS)
        target = replace(target, arrangement=arrangement, channels=channels, sample=tensor.samples[0] or ())
        if self.positions_as_rows or tensor.sample is None:
            return replace(target, rows_are=POSITIONS)
        return replace(target, tail=tensor.sample, channel_axis=channels % (len(tensor.sample) + 1))

    def unread_targets(self, read: Sequence[Target]) -> tuple[list[Target], list[LeftOut]]:
        """The tensors that no layer in `read` reads."""
        recorded = {target.tensor for target in read}
        left = [name for name in self.wanted.tensors if name not in recorded]
        names = unread_names(left, list(self.wanted.inputs))
        targets, unfit = [], []
        for tensor, name in zip(left, names, strict=True):
            found = self._unread(tensor, name)
            if isinstance(found, Target):
                targets.append(found)
            else:
                unfit.append(found)
        return targets, unfit

    def _unread(self, tensor: str, name: str) -> Target | LeftOut:
        found = self.tensors[tensor]
        value, arrangement, constant = found.value, found.arrangement, tensor in self.wanted.constant
        if constant:
            axes = len(value.shape or (1,)) + 1
            return Target(name, tensor, (), value.shape, value.dtype, axes - 1, constant=True)
        if isinstance(arrangement, Unarranged):
            return LeftOut(name, "", _unfit("it", found, 0))
        target = Target(name, tensor, (), (1,), value.dtype, 1, arrangement=arrangement, sample=found.samples[0] or ())
        if self.positions_as_rows or found.sample is None:
            return replace(target, rows_are=POSITIONS)
        axes = len(found.sample or (1,)) + 1
        return replace(target, tail=found.sample, channel_axis=1 if axes >= IMAGE_AXES else axes - 1)


def _shape_of(arrangement: Arrangement | Unarranged, value: Array, number: int) -> tuple[int, ...] | None:
    """The shape of a sample in `value`, None if samples cannot be told apart."""
    first = None if isinstance(arrangement, Unarranged) else arrangement.samples_first(value, number)
    return None if first is None else first.shape[1:]


def _unfit(what: str, tensor: _Tensor, fewest: int) -> str:
    """Why a `tensor` that is called `what` cannot be recorded, with at least `fewest` axes, or nothing."""
    if isinstance(tensor.arrangement, Unarranged):
        return f"{what} {tensor.arrangement.reason}"
    if tensor.value.ndim < fewest:
        return f"{what} has the shape {tensor.value.shape}; expected {fewest} axes or more"
    return ""


def unread_names(tensors: Sequence[str], layers: Sequence[str]) -> list[str]:
    """A name for each of the `tensors` that no layer reads, below a folder that no layer is in.

    >>> unread_names(["/relu", "y"], ["conv"]), unread_names(["y"], ["tensors/conv"])
    (['tensors/relu', 'tensors/y'], ['tensors_2/y'])
    """
    taken = {layer.split("/")[0] for layer in layers}
    folder, number = TENSORS, 1
    while folder in taken:
        number += 1
        folder = f"{TENSORS}_{number}"
    return [f"{folder}/{name}" for name in layer_names(tensors)]
