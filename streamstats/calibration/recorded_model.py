"""The fingerprint by which a store knows the model that was recorded: a kind, a colon and a SHA-256, in hex.

Whoever records computes it; here, it is only compared and shown.
"""

from __future__ import annotations

import re

from ..errors import UsageError

FORM = re.compile(r"[a-z]+:[0-9a-f]{64}")
SHOWN = 12
"""How many digits of a fingerprint a message shows."""


def check_model_fingerprint(fingerprint: str) -> str:
    """`fingerprint`, which is empty if the model is unknown. Raises `UsageError` for anything else than its form."""
    if fingerprint and not FORM.fullmatch(fingerprint):
        raise UsageError(
            f"model_fingerprint is {fingerprint!r}; expected a kind, a colon and a SHA-256 of 64 hex digits, as in "
            "torch:9f86d081…; leave it out if the model is unknown"
        )
    return fingerprint


def short_fingerprint(fingerprint: str) -> str:
    """Its first digits, for a message.

    >>> short_fingerprint("onnx:" + "0123456789abcdef" * 4)
    'onnx:0123456789ab…'
    """
    kind, _, digits = fingerprint.partition(":")
    return f"{kind}:{digits[:SHOWN]}…" if digits else fingerprint
