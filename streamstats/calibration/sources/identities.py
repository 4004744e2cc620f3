"""Identities: what tells whether a file is still the one that was counted.

The identity of a file is its size, and a number that changes with every write. The identities of an array's files form
an array, which the ledger stores; three pairs of negative numbers stand for files that have no identity.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Identity = tuple[int, int]
"""Size in bytes, and what changes with every write: nanoseconds since 1970, or a hash of an object's tag."""
Identities = npt.NDArray[np.int64]
"""int64[files, 2]: one `Identity` per file."""
IDENTITY_BYTES = 16
"""Of one file."""

UNCOUNTED: Identity = (-1, -1)
"""Stands for a file that holds no counted row."""
MISSING: Identity = (-2, -2)
"""Stands for a file that does not exist."""
UNKNOWN: Identity = (-3, -3)
"""Stands for a file that its source cannot identify, so that a change to it goes unnoticed."""

Mask = npt.NDArray[np.bool_]
"""bool[files]."""


def is_counted(files: Identities) -> Mask:
    """Which of `files` hold counted rows."""
    return _differ(files, UNCOUNTED)


def is_known(files: Identities) -> Mask:
    """Which of `files` are counted, and their source could say what they were, or that they did not exist."""
    return _differ(files, UNCOUNTED) & _differ(files, UNKNOWN)


def has_identity(files: Identities) -> Mask:
    """Which of `files` are counted, and were files with an identity."""
    return is_known(files) & _differ(files, MISSING)


def _differ(files: Identities, other: Identity) -> Mask:
    found: Mask = files[:, 0] != other[0]
    return found
