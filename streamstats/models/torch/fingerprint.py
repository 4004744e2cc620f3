"""The fingerprints of a torch model: of its parameters, and of the buffers that its outputs depend on.

Running statistics of normalisations are such buffers: re-estimated, they change the inputs of all later layers.
Fingerprints are unknown where a process has only a part of the model, or none yet: ranks would disagree about it. That
of a model with sparse tensors, such as the adjacency of a graph, is unknown, too; those of its layers are not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..fingerprints import Fingerprints, fingerprint_of, weight_digest
from .layers import layers_of
from .library import library
from .ranks import is_one_of_several

if TYPE_CHECKING:
    import torch

KIND = "torch"
QUANTISERS = ("torch.ao.", "torchao.")
"""Where the observers and fake quantisers are defined that a copy of the model may have in addition."""


def fingerprints(model: torch.nn.Module) -> Fingerprints:
    """The fingerprint of `model`, and those of the weights of its layers that are parameters."""
    torch = library()
    weights = [*model.parameters(), *_buffers(model)]
    whole = all(type(each) in (torch.nn.Parameter, torch.Tensor) and not each.is_meta for each in weights)
    if is_one_of_several() or not whole:
        return Fingerprints()
    dense = [each for each in weights if each.layout == torch.strided]
    digests = {id(each): _digest(each) for each in dense}
    known = {
        layer.name: _digest(layer.parameter[layer.rows]) if layer.rows else digests[id(layer.parameter)]
        for layer in layers_of(model)
        if id(layer.parameter) in digests
    }
    by_layer = {name: fingerprint_of(KIND, [digest]) for name, digest in known.items()}
    return Fingerprints(fingerprint_of(KIND, digests.values()) if len(dense) == len(weights) else "", by_layer)


def fingerprint(model: torch.nn.Module) -> str:
    """The fingerprint of `model` alone, empty if unknown."""
    return fingerprints(model).model


def _digest(weight: torch.Tensor) -> bytes:
    """The digest of its bytes, so of any dtype, also of those that numpy lacks."""
    plain = weight.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    return weight_digest(str(weight.dtype), weight.shape, plain.view(library().uint8).numpy())


def _buffers(model: torch.nn.Module) -> Iterator[torch.Tensor]:
    """The buffers of floats that are saved with `model`, without those of what observes or quantises it.

    Integers count batches, or hold indices; buffers that are not saved follow from the others.
    """
    for module in model.modules():
        if not type(module).__module__.startswith(QUANTISERS):
            for name, buffer in module.named_buffers(recurse=False):
                if buffer.is_floating_point() and name not in module._non_persistent_buffers_set:
                    yield buffer
