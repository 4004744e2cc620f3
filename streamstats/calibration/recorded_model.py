"""The fingerprints by which a store knows the model that was recorded, and the weight of each of its layers.

Each is a kind, a colon and a SHA-256, in hex. Whoever records computes them; here, they are only compared and shown.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from ..errors import UsageError

FORM = re.compile(r"[a-z]+:[0-9a-f]{64}")
SHOWN = 12
"""How many digits of a fingerprint a message shows."""
Weights = tuple[tuple[str, str], ...]
"""(layer, fingerprint of its weight), sorted; what was recorded of several models may have several for a layer."""


def check_model_fingerprint(fingerprint: str) -> str:
    """`fingerprint`, which is empty if the model is unknown. Raises `UsageError` for text of another form."""
    if fingerprint:
        _check_form("model_fingerprint", fingerprint, "the model")
    return fingerprint


def check_weight_fingerprints(fingerprints: Mapping[str, str] | None) -> Weights:
    """The `fingerprints` of weights, by layer. Raises `UsageError` for text of another form."""
    found = tuple(sorted((fingerprints or {}).items()))
    for layer, each in found:
        _check_form(f"the weight fingerprint of layer {layer}", each, "the weight")
    return found


def _check_form(what: str, fingerprint: str, of: str) -> None:
    if not (isinstance(fingerprint, str) and FORM.fullmatch(fingerprint)):
        raise UsageError(
            f"{what} is {fingerprint!r}; expected a kind, a colon and a SHA-256 of 64 hex digits, as in "
            f"torch:9f86d081…; leave it out if {of} is unknown"
        )


def weights_among(weights: Iterable[tuple[str, str]], names: Collection[str]) -> Weights:
    """Those of the layers called one of `names`.

    >>> weights_among((("a", "onnx:01"), ("b", "onnx:02")), ["b"])
    (('b', 'onnx:02'),)
    """
    return tuple(each for each in weights if each[0] in names)


def weights_from(stored: object) -> Weights:
    """What a store holds as an object: the fingerprint of each layer. Raises `TypeError` for anything else."""
    if not isinstance(stored, Mapping):
        raise TypeError(f"weights is {stored!r}, expected an object")
    return tuple(sorted((str(layer), str(each)) for layer, each in stored.items()))


def fingerprint_kind(fingerprint: str) -> str:
    """Its kind. Fingerprints of different kinds cannot be compared, even if they are of the same model.

    >>> fingerprint_kind("onnx:" + "0123456789abcdef" * 4)
    'onnx'
    """
    return fingerprint.partition(":")[0]


def short_fingerprint(fingerprint: str) -> str:
    """Its first digits, for a message.

    >>> short_fingerprint("onnx:" + "0123456789abcdef" * 4)
    'onnx:0123456789ab…'
    """
    kind, _, digits = fingerprint.partition(":")
    return f"{kind}:{digits[:SHOWN]}…" if digits else fingerprint


def short_fingerprints(fingerprints: Iterable[str]) -> str:
    """The first digits of each, for a message."""
    return " + ".join(map(short_fingerprint, fingerprints))
