"""Names of tensors: which tensor of an ONNX model a layer of an output is, where the recording does not say so."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import UsageError, listed
from ...storage.names import safe_name
from .layers import survey

if TYPE_CHECKING:
    import onnx


def tensor_names(model: onnx.ModelProto, path: str | Path, layers: Iterable[str]) -> dict[str, str]:
    """Layer → tensor, for the `layers` that were recorded of the `model` at `path`.

    If all of them are layers of the model, it is the tensor that each reads; otherwise, they are tensors, whose names
    may have lost a leading `/`. Raises `UsageError` for a layer that is neither.
    """
    wanted = list(layers)
    inputs = {layer.name: layer.input for layer in survey(model)[0]}
    if wanted and all(layer in inputs for layer in wanted):
        return {layer: inputs[layer] for layer in wanted}
    tensors = _by_safe_name(model)
    unknown = [layer for layer in wanted if layer not in tensors]
    if unknown:
        unknown = [layer for layer in unknown if layer not in inputs] or unknown
        raise UsageError(
            f"{path} has no tensor for {listed(unknown)}; expected the model that was recorded; name the tensors with "
            "--names"
        )
    return {layer: tensors[layer] for layer in wanted}


def renamed_tensors(model: onnx.ModelProto, known: Mapping[str, str]) -> dict[str, str]:
    """Layer → tensor, for layers that read one of another name in `model` than the `known` one, as they were recorded.

    An empty name is unknown.
    """
    inputs = {layer.name: layer.input for layer in survey(model)[0]}
    return {layer: inputs[layer] for layer, tensor in known.items() if tensor and inputs.get(layer, tensor) != tensor}


def _by_safe_name(model: onnx.ModelProto) -> dict[str, str]:
    """Name as a layer → tensor, for names that one tensor has; a tensor's own name goes first."""
    found: dict[str, list[str]] = {}
    tensors = [*_tensors(model)]
    for tensor in tensors:
        found.setdefault(safe_name(tensor), []).append(tensor)
    unique = {name: each[0] for name, each in found.items() if len(each) == 1}
    return unique | {tensor: tensor for tensor in tensors}


def _tensors(model: onnx.ModelProto) -> Iterator[str]:
    yield from dict.fromkeys(
        [
            *(each.name for each in model.graph.input),
            *(name for node in model.graph.node for name in node.output if name),
        ]
    )
