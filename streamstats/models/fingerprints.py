"""Which model was recorded: a fingerprint of its weights, whatever their names, their order and the layout of files.

What was counted of one model says nothing about the inputs of another, such as the same network trained on. Nor does
what was counted of one layer about another, which has its name in a model that was exported again. So results are used
for the model that was recorded, and for layers with the weights that they had in it, as far as these are known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..calibration.recorded_model import short_fingerprint
from ..errors import MismatchError, listed
from ..outputs.manifest import MANIFEST, LayerEntry
from ..outputs.results import open_results

OTHERWISE = "add --other-weights"
"""What the command line says to do about a difference that is meant."""


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
class Given:
    """A model that is given with results: its `name` in messages, and the `kind` of its fingerprints.

    `fingerprint` gives that of the model, `weights` those of the weights of its layers, by name. Both are called only
    if there is something to compare.
    """

    name: str
    kind: str
    fingerprint: Callable[[], str]
    weights: Callable[[], Mapping[str, str]]


def check_recorded(
    out: Path, given: Given, layers: Iterable[str], otherwise: str = OTHERWISE, *, other_weights: bool = False
) -> str:
    """How the model that is `given` differs from the one recorded in `out`, empty if it does not.

    Raises `MismatchError` if one of the `layers` was recorded from a model with other weights, unless `other_weights`
    are meant, and in any case if layers of the model were recorded under other names than they have: their names lead
    to what was counted of others. `otherwise` says what to do if other weights are meant.
    """
    if not (out / MANIFEST).exists():
        return ""
    entries = open_results(out).manifest.layers
    check_names(str(out), {name: entry.weights for name, entry in entries.items()}, given)
    differs = _other_weights({layer: entries[layer] for layer in layers if layer in entries}, given)
    if differs and not other_weights:
        raise MismatchError(
            f"{out}: {differs}; give the model that was recorded, or record {given.name} and run again; if the inputs "
            f"of its layers are nevertheless the same, as after folding a normalisation, {otherwise}"
        )
    return differs


def check_names(place: str, recorded: Mapping[str, Iterable[str]], given: Given) -> None:
    """Raise `MismatchError` if layers of the model that is `given` were `recorded`, in `place`, under other names.

    `recorded` has the fingerprints of the weight of each layer. A layer has another name if it has not the weight that
    was recorded under its own, but one that was recorded under the name of a layer that has not got it either.
    """
    known = {name: _of_kind(given.kind, weights) for name, weights in recorded.items()}
    if not any(known.values()):
        return
    here = given.weights()
    moved: dict[str, list[str]] = {}
    for name, weights in known.items():
        for weight in weights - {here.get(name)}:
            moved.setdefault(weight, []).append(name)
    wrong = {name: weight for name, weight in here.items() if weight in moved and weight not in known.get(name, ())}
    if wrong:
        pairs = listed(f"{' or '.join(moved[weight])} → {name}" for name, weight in wrong.items())
        raise MismatchError(
            f"{place}: layers of {given.name} have weights that were recorded under other names (recorded → here): "
            f"{pairs}; give the model with the names that were recorded, or record {given.name} into another store and "
            "run again"
        )


def _other_weights(entries: Mapping[str, LayerEntry], given: Given) -> str:
    """Which of the `entries` was recorded from a model with other weights; first those whose own weight differs."""
    recorded = {name: _of_kind(given.kind, entry.models) for name, entry in entries.items()}
    fingerprint = given.fingerprint() if any(recorded.values()) else ""
    others = {name: models - {fingerprint} for name, models in recorded.items() if fingerprint}
    differing = [name for name, models in others.items() if models]
    if not differing:
        return ""
    here = given.weights()
    own = [name for name in differing if entries[name].weights not in ([], [here.get(name)])]
    name = (own or differing)[0]
    return (
        f"layer {name} was recorded from a model with other weights than {given.name}: their fingerprints are "
        f"{short_fingerprint(min(others[name]))} and {short_fingerprint(fingerprint)}"
    )


def _of_kind(kind: str, fingerprints: Iterable[str]) -> set[str]:
    return {each for each in fingerprints if each.startswith(f"{kind}:")}
