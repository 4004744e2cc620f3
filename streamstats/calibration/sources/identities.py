"""Identities: what tells whether a file is still the one that was counted.

The identity of a file is its size, and a number that changes with every write; three pairs of negative numbers stand
for files that have none. A copy of a file may have another identity, but has the same content, for which a third number
stands. The identities and contents of an array's files form an array, which the ledger stores.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..encoding.content import UNSAMPLED

Identity = tuple[int, int]
"""Size in bytes, and what changes with every write: nanoseconds since 1970, or a hash of an object's tag."""
Identities = npt.NDArray[np.int64]
"""int64[files, 2]: one `Identity` per file."""
Files = npt.NDArray[np.int64]
"""int64[files, 3]: identity and content of each file."""
FILE_COLUMNS = 3
IDENTITY_BYTES = 24
"""Of one file."""

UNCOUNTED: Identity = (-1, -1)
"""Stands for a file that holds no counted row."""
MISSING: Identity = (-2, -2)
"""Stands for a file that does not exist."""
UNKNOWN: Identity = (-3, -3)
"""Stands for a file that its source cannot identify, so that a change to it goes unnoticed."""
UNCOUNTED_FILE = (*UNCOUNTED, UNSAMPLED)

Mask = npt.NDArray[np.bool_]
"""bool[files]."""


def is_counted(files: Files) -> Mask:
    """Which of `files` hold counted rows."""
    return _differ(files, UNCOUNTED)


def is_known(files: Files) -> Mask:
    """Which of `files` are counted, and their source could say what they were, or that they did not exist."""
    return _differ(files, UNCOUNTED) & _differ(files, UNKNOWN)


def has_identity(files: Files) -> Mask:
    """Which of `files` are counted, and were files with an identity."""
    return is_known(files) & _differ(files, MISSING)


def differing(before: Files, after: Files) -> Mask:
    """Which files have another identity in `after` than in `before`, among those that were and are known."""
    known = is_known(before) & is_known(after)
    changed: Mask = known & (before[:, :2] != after[:, :2]).any(axis=1)
    return changed


def copied(before: Files, after: Files) -> Mask:
    """Which files have the same size and content in both, as far as both were sampled."""
    sampled = (before[:, 2] != UNSAMPLED) & (after[:, 2] != UNSAMPLED)
    same: Mask = sampled & (before[:, [0, 2]] == after[:, [0, 2]]).all(axis=1)
    return same


def _differ(files: Files, other: Identity) -> Mask:
    found: Mask = files[:, 0] != other[0]
    return found
