"""What can go wrong, grouped by what the caller can do about it.

Every error says what was found, what was expected and what to do. The class decides the exit status of the
command line, so a batch system can tell a job to be corrected (2) from data to be repaired (4).
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

DONE, FAILURE, USAGE, INCOMPLETE, CORRUPT, INTERRUPTED = 0, 1, 2, 3, 4, 130
"""The exit statuses of the command line. INCOMPLETE: rows are missing, or a threshold was not met."""

DISTRIBUTION = "streamstats-calibration"
"""The name to install by; the package is imported as `streamstats`."""


class StreamstatsError(Exception):
    """The root: a failure that trying again, on a healthy machine, may cure."""

    exit_status = FAILURE


class UsageError(StreamstatsError, ValueError):
    """The request cannot be met as it stands: correct the call, the arguments or the configuration."""

    exit_status = USAGE


class MismatchError(UsageError):
    """Two things that should fit together do not: shapes, dtypes, channels, layouts."""


class MissingDependencyError(UsageError):
    """An optional library is needed: install the extra that the message names."""


class DataError(StreamstatsError):
    """The data is missing, damaged or not what it says: repair it, or choose a policy that leaves it out."""

    exit_status = CORRUPT


class LostError(DataError):
    """A chunk is not there: lost, or never written because it would hold nothing but the fill value."""


class NonFiniteError(DataError):
    """The data holds NaN or infinities and the policy is to refuse them."""


class ClusterError(StreamstatsError):
    """Workers or their scheduler cannot be reached, do not fit, or are gone; what was counted is saved."""


class ChangedError(DataError):
    """Data was replaced while it was read."""


class StoreError(StreamstatsError):
    """The store of the data does not answer, or refuses; what was counted is saved."""


class ServiceError(StreamstatsError):
    """A service fails or does not respond: retry, and read the service's log if it fails again."""


class OutputError(StreamstatsError):
    """A result could not be written; the file that was there before is untouched."""


def require(module: str, extra: str) -> ModuleType:
    """Import the optional `module`, which the extra `extra` installs. Raises `MissingDependencyError`."""
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"{module} cannot be imported ({error}); install the extra that has it: "
            f"pip install '{DISTRIBUTION}[{extra}]', or from a clone pip install '.[{extra}]'"
        ) from error


def first_line(error: BaseException) -> str:
    """The first line of what `error` says, or its class where it says nothing."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def counted(number: int, what: str, plural: str = "") -> str:
    """`number` of `what`, for a message; `plural` where that is not `what` and an s.

    >>> counted(1, "row"), counted(2000, "row"), counted(2, "entry", "entries")
    ('1 row', '2,000 rows', '2 entries')
    """
    return f"{number:,} {what if number == 1 else plural or what + 's'}"
