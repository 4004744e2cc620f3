"""An account as a person reads it: why weights were left as they are, each reason once, with the names it holds for.

ONNX and torch use the same words. An operator is recorded or skipped; a layer is corrected, unchanged, never
quantised, or refused.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import listed

NOT_CHOSEN = "not among the `layers` to record"

MOST_NAMED = 8
"""How many names a message gives for a reason."""


def by_reason(reasons: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Reason → the names that it holds for, from (name, reason), in order; names without a reason are left out.

    >>> by_reason([("a", "no samples"), ("b", ""), ("c", "no samples")])
    {'no samples': ['a', 'c']}
    """
    found: dict[str, list[str]] = {}
    for name, reason in reasons:
        if reason:
            found.setdefault(reason, []).append(name)
    return found


def told(reasons: Iterable[tuple[str, str]]) -> str:
    """All reasons in one sentence, from (name, reason).

    >>> told([("a", "no samples"), ("b", "no weight"), ("c", "no samples")])
    'a, c (no samples); b (no weight)'
    """
    return "; ".join(f"{listed(names, MOST_NAMED)} ({reason})" for reason, names in by_reason(reasons).items())
