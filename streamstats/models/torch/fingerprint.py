"""The fingerprint of a torch model: that of its parameters.

It is unknown where a process has only a part of them, or none yet: ranks would disagree about the model.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..fingerprints import check_recorded as check
from ..fingerprints import fingerprint_of, weight_digest
from .library import library, to_numpy
from .ranks import is_one_of_several

if TYPE_CHECKING:
    import torch

KIND = "torch"


def fingerprint(model: torch.nn.Module) -> str:
    """The fingerprint of `model`, empty if unknown."""
    parameters = [*model.parameters()]
    if is_one_of_several() or any(type(each) is not library().nn.Parameter or each.is_meta for each in parameters):
        return ""
    return fingerprint_of(KIND, (weight_digest(str(each.dtype), each.shape, to_numpy(each)) for each in parameters))


def check_recorded(out: Path, model: torch.nn.Module, layers: Iterable[str]) -> None:
    """Raise `MismatchError` if `out` says that one of the `layers` was recorded from another model than `model`."""
    name, otherwise = f"the {type(model).__name__} that is given", "give `other_weights=True`"
    check(out, layers, KIND, lambda: fingerprint(model), name, otherwise)
