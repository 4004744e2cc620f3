"""What is recorded of an ONNX model: an array per tensor, however many layers read it, and its name in the store.

An array is named after the first of the chosen layers that read the tensor, in the order of the graph. A tensor that no
layer reads is named `tensors/` and its own name. Layers that read different axes of a tensor as channels have an array
each. A store that is appended to keeps its arrays: one of an older version has an array per layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ...calibration.layer import Layer
from ...calibration.masking import positions_of_axis
from ...calibration.recorder import stored_layer, stored_readers
from ...errors import MismatchError, UsageError, counted
from ...layouts import Kernel
from ...quantization import Quantization
from ...storage.names import layer_names
from ..account import told
from .layers import LeftOut, OnnxLayer
from .run import ModelRun

TENSORS = "tensors"
"""The folder of tensors that no layer reads."""
IMAGE_AXES = 4
"""From this number of axes on, tensors that no layer reads have their channels on axis 1; others on the last."""


class Wanted(NamedTuple):
    """What to record: the inputs of `layers`, and `tensors`, of which `constant` ones are the same for all samples.

    `inputs` are the tensors that the layers of the model read, chosen or not, by name.
    """

    layers: Sequence[OnnxLayer]
    inputs: Mapping[str, str]
    tensors: Sequence[str] = ()
    constant: frozenset[str] = frozenset()

    @property
    def all_tensors(self) -> list[str]:
        """Every tensor to record, once."""
        return list(dict.fromkeys([*(layer.input for layer in self.layers), *self.tensors]))


@dataclass(frozen=True, eq=False)
class Target:
    """An array to record: the `tensor` of the model, and the chosen `layers` that read it.

    `tail` is the shape of the tensor, without the axis of the samples unless it is `constant`, which makes it one row.
    `channel_axis` counts the axis of the rows. `stored` is the array in the store, if it exists. `mask` is the
    input of the model that says which positions count.
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

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """The shape of a row; a single value has one channel."""
        return self.tail or (1,)

    @property
    def positions(self) -> int:
        """The number of values per channel of a row."""
        return prod(positions_of_axis((1, *self.sample_shape), self.channel_axis))

    @property
    def kernels(self) -> dict[str, Kernel]:
        """The kernel of each chosen layer, by name."""
        extents = [extent for axis, extent in enumerate(self.sample_shape, start=1) if axis != self.channel_axis]
        return {layer.name: layer.kernel_over(extents) for layer in self.layers}

    @property
    def readers(self) -> dict[str, Kernel | None]:
        """The kernels of all layers that read the array: those chosen, and those that the store has already."""
        stored = {} if self.stored is None else {each.layer: each.kernel for each in self.stored.read_by.each}
        return {**stored, **self.kernels}

    def rows(self, block: npt.NDArray[Any], samples: slice) -> npt.NDArray[Any]:
        """The rows that `block`, the tensor for these `samples`, adds. Raises `MismatchError` for another shape."""
        number = samples.stop - samples.start
        expected = self.tail if self.constant else (number, *self.tail)
        if block.shape != expected:
            raise MismatchError(
                f"layer {self.name}: its input for the samples {samples.start}:{samples.stop} has the shape "
                f"{block.shape}; expected {expected} as for the first samples"
            )
        if self.constant:
            return block.reshape(1, *self.sample_shape)[: samples.start == 0]
        return block.reshape(number, *self.sample_shape)


def find_targets(run: ModelRun, wanted: Wanted) -> tuple[list[Target], list[LeftOut]]:
    """Run one sample, then two: an extent that happens to equal one batch size does not equal both.

    Returns what can be recorded, and what cannot. Raises `UsageError` if nothing can.
    """
    sizes = (run.batch,) if run.is_fixed else sorted({1, min(2, run.batch, run.samples)})
    found = {size: run.outputs(wanted.all_tensors, slice(0, size)) for size in sizes}
    probes = {name: {size: found[size][name] for size in sizes} for name in wanted.all_tensors}
    read, unfit = _read_targets(wanted.layers, probes)
    unread, unfit_tensors = _unread_targets(wanted, read, probes)
    targets, left_out = [*read, *unread], [*unfit, *unfit_tensors]
    if not targets and left_out:
        raise UsageError(f"nothing to record: {told((each.name, each.reason) for each in left_out)}")
    return targets, left_out


Probes = Mapping[str, Mapping[int, npt.NDArray[Any]]]
"""Tensor → number of samples → its value."""


def _read_targets(layers: Sequence[OnnxLayer], probes: Probes) -> tuple[list[Target], list[LeftOut]]:
    """The inputs of `layers`: one for each tensor and channel axis."""
    groups: dict[tuple[str, int], list[OnnxLayer]] = {}
    unfit = []
    for layer in layers:
        shapes = _shapes(probes[layer.input])
        reason = _unfit(f"its input {layer.input}", shapes)
        if reason:
            unfit.append(LeftOut(layer.name, layer.op, reason))
        else:
            axis = layer.channel_axis % len(next(iter(shapes.values())))
            groups.setdefault((layer.input, axis), []).append(layer)
    targets = []
    for (tensor, axis), readers in groups.items():
        value = list(probes[tensor].values())[-1]
        targets.append(Target(readers[0].name, tensor, tuple(readers), value.shape[1:], value.dtype, axis))
    return targets, unfit


def _unread_targets(wanted: Wanted, read: Sequence[Target], probes: Probes) -> tuple[list[Target], list[LeftOut]]:
    """The `tensors` that no layer in `read` reads."""
    recorded = {target.tensor for target in read}
    left = [name for name in wanted.tensors if name not in recorded]
    names = unread_names(left, list(wanted.inputs))
    targets, unfit = [], []
    for tensor, name in zip(left, names, strict=True):
        constant, value = tensor in wanted.constant, list(probes[tensor].values())[-1]
        reason = "" if constant else _unfit("it", _shapes(probes[tensor]), fewest=1)
        if reason:
            unfit.append(LeftOut(name, "", reason))
            continue
        tail = value.shape if constant else value.shape[1:]
        axes = len(tail or (1,)) + 1
        axis = 1 if axes >= IMAGE_AXES and not constant else axes - 1
        targets.append(Target(name, tensor, (), tail, value.dtype, axis, constant))
    return targets, unfit


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


def _shapes(probes: Mapping[int, npt.NDArray[Any]]) -> dict[int, tuple[int, ...]]:
    return {size: value.shape for size, value in probes.items()}


def _unfit(what: str, shapes: Mapping[int, tuple[int, ...]], fewest: int = 2) -> str:
    """Why a tensor with these `shapes` (by number of samples) cannot be recorded, or nothing."""
    for size, shape in shapes.items():
        if len(shape) < fewest or shape[0] != size:
            found = f"{what} has the shape {shape} for {counted(size, 'sample')}"
            return f"{found}; expected samples on axis 0{' and channels on another' if fewest > 1 else ''}"
    if len({shape[1:] for shape in shapes.values()}) > 1:
        return f"{what} changes its shape with the number of samples: {list(shapes.values())}"
    return ""


# In a store


def in_store(
    targets: Sequence[Target], store: Path, inputs: Mapping[str, str], *, append: bool, storage: str
) -> list[Target]:
    """`targets` with the arrays that `store` has already; layers that have one there stay with it.

    Raises `UsageError` for a layer in the store, unless `append`; `MismatchError` for one that does not fit.
    """
    known = stored_readers(store)
    return [
        _with_stored(each, store, inputs, append=append, storage=storage)
        for target in targets
        for each in _by_array(target, known)
    ]


def _by_array(target: Target, known: Mapping[str, str]) -> list[Target]:
    """`target`, in parts if the store has several arrays of its layers; `known` names the array of each layer."""
    groups: dict[str | None, list[OnnxLayer]] = {}
    for layer in target.layers:
        groups.setdefault(known.get(layer.name), []).append(layer)
    return [
        replace(target, name=layers[0].name if array is None else array, layers=tuple(layers))
        for array, layers in groups.items()
    ] or [target]


def _with_stored(target: Target, store: Path, inputs: Mapping[str, str], *, append: bool, storage: str) -> Target:
    stored = stored_layer(store, target.name)
    if stored is None:
        return target
    if not append:
        raise UsageError(
            f"{stored.store} already holds {stored.rows} samples of layer {target.name}; record into another store, or "
            "append to this one with --append"
        )
    _check_form(target, stored, storage)
    _check_mask(target, stored)
    _check_readers(target, stored, inputs)
    return replace(target, stored=stored)


def _check_form(target: Target, stored: Layer, storage: str) -> None:
    expected = (target.sample_shape, "int8" if storage == "int8" else target.dtype.name, target.channel_axis)
    found = (stored.shape[1:], stored.dtype.name, stored.channel_axis)
    if found != expected or (stored.quantization is None) != (storage == "float"):
        raise MismatchError(
            f"layer {target.name}: {stored.store} holds (sample shape, dtype, channel axis) {found}, but the samples "
            f"to append are {expected}; record into another store"
        )


def _check_mask(target: Target, stored: Layer) -> None:
    """Raise `MismatchError` unless both have a mask, or neither has."""
    if stored.mask is not None and target.mask is None:
        raise MismatchError(
            f"layer {target.name}: {stored.store} holds it with a mask, {stored.mask.name}, but the samples to append "
            "have none; name the model's input that is their mask, as in `--mask attention_mask`, or record into "
            "another store"
        )
    if stored.mask is None and target.mask is not None:
        raise MismatchError(
            f"layer {target.name}: {stored.store} holds it without a mask, but the samples to append have one, "
            f"{target.mask}; leave out --mask, or record into another store"
        )


def _check_readers(target: Target, stored: Layer, inputs: Mapping[str, str]) -> None:
    """Raise `MismatchError` unless all layers that read `stored` read the target's tensor, with the same kernels."""
    kernels = target.kernels
    for reader in stored.read_by.each if target.layers else ():
        if inputs.get(reader.layer) != target.tensor:
            raise MismatchError(
                f"layer {target.name}: in {stored.store} it shares its input with layer {reader.layer}, but in the "
                "model it does not; record into another store"
            )
        kernel = kernels.get(reader.layer)
        if reader.kernel is not None and kernel is not None and reader.kernel != kernel:
            raise MismatchError(
                f"layer {reader.layer}: {stored.store} was recorded with the kernel {reader.kernel.to_metadata()}, but "
                f"the model's is {kernel.to_metadata()}; record into another store"
            )
