"""Which model was recorded: a fingerprint of its weights, whatever their names, their order and the layout of files.

What was counted of one model says nothing about the inputs of another, such as the same network trained on. So results
are used for the model that was recorded, unless they do not say which it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..calibration.recorded_model import short_fingerprint
from ..errors import MismatchError
from ..outputs.manifest import MANIFEST
from ..outputs.results import open_results

OTHERWISE = "add --other-weights"
"""What the command line says to do about a difference that is meant."""


def weight_digest(dtype: str, shape: Sequence[int], values: npt.NDArray[Any] | bytes) -> bytes:
    """The SHA-256 of a weight: its dtype, its shape and its values, which may be bytes."""
    digest = sha256(repr((dtype, tuple(shape))).encode())
    digest.update(values if isinstance(values, bytes) else np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
    return digest.digest()


def fingerprint_of(kind: str, digests: Iterable[bytes]) -> str:
    """The fingerprint of the model with weights of these `digests`, as `kind:…`: other kinds cannot be compared."""
    return f"{kind}:{sha256(b''.join(sorted(digests))).hexdigest()}"


def check_recorded(
    out: Path, layers: Iterable[str], kind: str, found: Callable[[], str], name: str, otherwise: str = OTHERWISE
) -> None:
    """Raise `MismatchError` if `out` says that one of the `layers` was recorded from another model than is given.

    `found` gives the fingerprint of that model, of this `kind`; it is called only if there is one to compare. `name` is
    what the model is called, `otherwise` what to do if the difference is meant.
    """
    if not (out / MANIFEST).exists():
        return
    entries = open_results(out).manifest.layers
    known = {layer: entries[layer].models for layer in layers if layer in entries}
    recorded = [(layer, each) for layer, models in known.items() for each in models if each.startswith(f"{kind}:")]
    given = found() if recorded else ""
    for layer, model in recorded:
        if given and model != given:
            raise MismatchError(
                f"{out}: layer {layer} was recorded from a model with other weights than {name}: their fingerprints "
                f"are {short_fingerprint(model)} and {short_fingerprint(given)}; give the model that was recorded, or "
                f"record {name} and run again; if the inputs of its layers are the same, as after folding, {otherwise}"
            )
