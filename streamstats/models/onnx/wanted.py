"""What is asked for of an ONNX model: the inputs of the layers that globs choose, or every tensor to quantise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from ...errors import UsageError, listed, one_of, suggestion
from ..account import NOT_CHOSEN
from ..fingerprints import Fingerprints
from .accounts import nothing_found
from .constants import constant_names
from .fingerprint import fingerprints
from .graph import check_opset, load_model
from .layers import LeftOut, OnnxLayer, survey
from .quantizable import quantizable_tensors

TENSORS = (LAYER_INPUTS, QUANTIZABLE) = ("layers", "quantizable")
"""What can be recorded: the inputs of linear layers, or every tensor that onnxruntime's static quantiser calibrates."""

ROUNDING = ("QuantizeLinear", "DynamicQuantizeLinear")
"""The operators that round activations."""


class Wanted(NamedTuple):
    """What to record: the inputs of `layers`, and `tensors`, of which `constant` ones are the same for all samples.

    `inputs` are the tensors that the layers of the model read, chosen or not, by name; `path` and `fingerprints` are
    those of the model, empty if unknown. `rounding` is how many of its operators round activations.
    """

    layers: Sequence[OnnxLayer]
    inputs: Mapping[str, str]
    tensors: Sequence[str] = ()
    constant: frozenset[str] = frozenset()
    path: str = ""
    fingerprints: Fingerprints = Fingerprints()
    rounding: int = 0

    @property
    def all_tensors(self) -> list[str]:
        """Every tensor to record, once."""
        return list(dict.fromkeys([*(layer.input for layer in self.layers), *self.tensors]))


def wanted_of(path: str | Path, globs: Sequence[str] | None, tensors: str) -> tuple[Wanted, list[LeftOut]]:
    """(what to record of the model at `path`, the linear operators that cannot be). Raises `UsageError`."""
    if tensors not in TENSORS:
        raise UsageError(f"tensors is {tensors!r}; {one_of(tensors, TENSORS)}")
    model = load_model(path)
    check_opset(model, path)
    layers, skipped = survey(model)
    inputs = {layer.name: layer.input for layer in layers}
    rounding = sum(node.op_type in ROUNDING for node in model.graph.node)
    known = (str(path), fingerprints(model, layers), rounding)
    if tensors == LAYER_INPUTS:
        chosen, skipped = _chosen(path, layers, skipped, globs)
        return Wanted(chosen, inputs, (), frozenset(), *known), skipped
    if globs is not None:
        raise UsageError('globs of layers and tensors "quantizable" cannot be combined; leave one out')
    names = quantizable_tensors(path)
    if not layers and not names:
        raise UsageError(f"{path} has no tensor that onnxruntime quantises; expected a float model")
    return Wanted(layers, inputs, names, frozenset(constant_names(model, names)), *known), skipped


def _chosen(
    path: str | Path, layers: Sequence[OnnxLayer], skipped: Sequence[LeftOut], globs: Sequence[str] | None
) -> tuple[list[OnnxLayer], list[LeftOut]]:
    """(the layers that `globs` choose, all other operators with weights). Raises `UsageError` if no layer is chosen."""
    if not layers and any(each.quantized and each.multiplies for each in skipped):
        raise UsageError(f"{path} is quantised, and has no layer of floats to record; record the float model")
    if not layers:
        raise UsageError(f"{path} has no layer to record: {nothing_found(skipped)}")
    if globs is None:
        return list(layers), list(skipped)
    chosen = [layer for layer in layers if any(fnmatchcase(layer.name, glob) for glob in globs)]
    if not chosen:
        names = [layer.name for layer in layers]
        near = suggestion(globs[0], names)
        raise UsageError(f"no layers of {path} match {', '.join(globs)}; its layers are: {listed(names)}{near}")
    others = [LeftOut(layer.name, layer.op, NOT_CHOSEN, multiplies=False) for layer in layers if layer not in chosen]
    asked = [
        each if any(fnmatchcase(each.name, glob) for glob in globs) else replace(each, multiplies=False)
        for each in skipped
    ]
    return chosen, [*asked, *others]
