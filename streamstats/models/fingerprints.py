"""Which model was recorded: a fingerprint of its weights, whatever their names, their order and the layout of files.

What was counted of one model says nothing about the inputs of another, such as the same network trained on. Nor does
what was counted of one layer about another, which has its name in a model that was exported again. So results are used
for the model that was recorded, and for layers with the weights that they had in it, as far as these are known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..calibration.recorded_model import fingerprint_kind, short_fingerprint
from ..errors import MismatchError, listed
from ..outputs.manifest import MANIFEST
from ..outputs.results import open_results

if TYPE_CHECKING:
    from ..outputs.layer_statistics import LayerStatistics


def weight_digest(dtype: str, shape: Sequence[int], values: npt.NDArray[Any] | bytes) -> bytes:
    """The SHA-256 of a weight: its dtype, its shape and its values, which may be bytes."""
    digest = sha256(repr((dtype, tuple(shape))).encode())
    digest.update(values if isinstance(values, bytes) else np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
    return digest.digest()


def fingerprint_of(kind: str, digests: Iterable[bytes]) -> str:
    """The fingerprint of the weights of these `digests`, as `kind:…`: other kinds cannot be compared.

    A weight counts once, however often a model holds it: exporters share equal ones.
    """
    return f"{kind}:{sha256(b''.join(sorted({*digests}))).hexdigest()}"


@dataclass(frozen=True)
class Fingerprints:
    """That of a `model`, empty if unknown, and those of the `weights` of its layers, by name, as far as known."""

    model: str = ""
    weights: Mapping[str, str] = field(default_factory=dict)


class Recorded(NamedTuple):
    """The fingerprints of the models from which a layer was recorded, and of its weights in them."""

    models: Sequence[str]
    weights: Sequence[str]


def recorded_in(out: Path) -> dict[str, Recorded]:
    """What the manifest of `out` says of each layer; nothing without a manifest, as in a folder of correctors."""
    if not (out / MANIFEST).exists():
        return {}
    return {layer: Recorded(each.models, each.weights) for layer, each in open_results(out).manifest.layers.items()}


def recorded_of(counted: Mapping[str, LayerStatistics]) -> dict[str, Recorded]:
    """What statistics say of each layer, by its name."""
    return {layer: Recorded(each.models, [weight for _, weight in each.weights]) for layer, each in counted.items()}


def check_recorded(
    place: str | Path,
    recorded: Mapping[str, Recorded],
    given: Fingerprints,
    name: str,
    otherwise: str,
    *,
    layers: Iterable[str] | None = None,
    other_weights: bool = False,
) -> str:
    """How the model that is `given` differs from that of which `place` has the `layers`; empty if it does not.

    `recorded` is what `place` says of all its layers, `layers` are those to compare (None: all), `name` is what the
    model is called. Raises `MismatchError` if it has other weights, unless `other_weights` are meant; `otherwise` says
    what to do then. Raises it in any case if layers of the model were recorded under other names than they have: their
    names lead to what was counted of others.
    """
    check_names(place, {layer: each.weights for layer, each in recorded.items()}, given, name)
    compared = recorded if layers is None else {layer: recorded[layer] for layer in layers if layer in recorded}
    differs = _difference(compared, given, name)
    if differs and not other_weights:
        raise MismatchError(
            f"{place}: {differs}; give the model that was recorded, or record {name} into another store and run again; "
            f"if the inputs of its layers are nevertheless the same, as after folding a normalisation, {otherwise}"
        )
    return differs


def check_names(place: str | Path, recorded: Mapping[str, Iterable[str]], given: Fingerprints, name: str) -> None:
    """Raise `MismatchError` if layers of the model that is `given` were `recorded`, in `place`, under other names.

    `recorded` has the fingerprints of the weight of each layer, `name` is what the model is called. A layer has another
    name if it has not the weight that was recorded under its own, but one that was recorded under the name of a layer
    that has not got it either.
    """
    known = {layer: {*weights} for layer, weights in recorded.items()}
    moved: dict[str, list[str]] = {}
    for layer, weights in known.items():
        for weight in weights - {given.weights.get(layer)}:
            moved.setdefault(weight, []).append(layer)
    wrong = {
        layer: moved[weight]
        for layer, weight in given.weights.items()
        if weight in moved and weight not in known.get(layer, ())
    }
    if wrong:
        pairs = listed(f"{' or '.join(before)} → {layer}" for layer, before in wrong.items())
        raise MismatchError(
            f"{place}: layers of {name} have weights that were recorded under other names (recorded → here): {pairs}; "
            f"give the model with the names that were recorded, or record {name} into another store and run again"
        )


def _difference(recorded: Mapping[str, Recorded], given: Fingerprints, name: str) -> str:
    """How one of the layers that were `recorded` tells that it was another model; empty if none does."""
    for layer, each in recorded.items():
        here = given.weights.get(layer, "")
        if other := _other_than(here, each.weights):
            return f"the weight of layer {layer} in {name} is not the one that was recorded ({_both(other, here)})"
    for layer, each in recorded.items():
        if other := _other_than(given.model, each.models):
            return (
                f"layer {layer} was recorded from a model with other weights than {name} ({_both(other, given.model)})"
            )
    return ""


def _other_than(here: str, recorded: Iterable[str]) -> str:
    """Another fingerprint of the same kind that was `recorded`; empty if there is none."""
    return next((each for each in recorded if each != here and fingerprint_kind(each) == fingerprint_kind(here)), "")


def _both(recorded: str, here: str) -> str:
    return f"the fingerprint is {short_fingerprint(here)}, not {short_fingerprint(recorded)}"
