"""The fingerprints of a torch model and of the weights of its layers: those of its parameters.

They are unknown where a process has only a part of them, or none yet: ranks would disagree about the model.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..fingerprints import Given, fingerprint_of, weight_digest
from ..fingerprints import check_recorded as check
from .layers import layers_of
from .library import library, to_numpy
from .ranks import is_one_of_several

if TYPE_CHECKING:
    import torch

KIND = "torch"


class Fingerprints(NamedTuple):
    """That of a model, empty if unknown, and that of the weight of each layer whose weight is a parameter, by name."""

    model: str
    weights: dict[str, str]


def fingerprints(model: torch.nn.Module) -> Fingerprints:
    """The fingerprints of `model`."""
    parameters = [*model.parameters()]
    if is_one_of_several() or any(type(each) is not library().nn.Parameter or each.is_meta for each in parameters):
        return Fingerprints("", {})
    digests = {id(each): _digest(each) for each in parameters}
    weights = {
        layer.name: _digest(layer.parameter[layer.rows]) if layer.rows else digests[id(layer.parameter)]
        for layer in layers_of(model)
        if id(layer.parameter) in digests
    }
    found = {name: fingerprint_of(KIND, [digest]) for name, digest in weights.items()}
    return Fingerprints(fingerprint_of(KIND, digests.values()), found)


def fingerprint(model: torch.nn.Module) -> str:
    """The fingerprint of `model` alone, empty if unknown."""
    return fingerprints(model).model


def _digest(parameter: Any) -> bytes:
    return weight_digest(str(parameter.dtype), parameter.shape, to_numpy(parameter))


def check_recorded(out: Path, model: torch.nn.Module, layers: Iterable[str], *, other_weights: bool) -> str:
    """What `fingerprints.check_recorded` finds for `model`, and raises."""
    known: list[Fingerprints] = []

    def found() -> Fingerprints:
        known[:] = known or [fingerprints(model)]
        return known[0]

    name = f"the {type(model).__name__} that is given"
    given = Given(name, KIND, lambda: found().model, lambda: found().weights)
    return check(out, given, layers, "give `other_weights=True`", other_weights=other_weights)
