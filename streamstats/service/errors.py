"""The errors that clients of the service get with a status of their own, besides those of the library."""

from __future__ import annotations

from ..errors import DataError, OutputError, StreamstatsError, UsageError


class NotFoundError(StreamstatsError):
    """What the request names does not exist: correct the name, or create it."""


class ForbiddenError(StreamstatsError):
    """The token does not allow the request: use another token, or ask its owner."""


class ConflictError(StreamstatsError):
    """The current state of a thing does not allow the request: change the state first."""


class FullError(StreamstatsError):
    """The service has no capacity at the moment: retry later."""


class TooLargeError(StreamstatsError):
    """The request is larger than the service accepts: send less."""


class UnsupportedTypeError(StreamstatsError):
    """The body has another type than the path takes: convert it, or name its type."""


class GoneError(StreamstatsError):
    """The result set was replaced: ask for the current one."""


class DamagedError(DataError):
    """The database is damaged: restore it; until then, the service cannot work."""


class BusyError(FullError):
    """The database is locked by another process: end that one; a retry may succeed."""


STATUSES: dict[type[StreamstatsError], int] = {
    ForbiddenError: 403,
    NotFoundError: 404,
    ConflictError: 409,
    GoneError: 410,
    TooLargeError: 413,
    UnsupportedTypeError: 415,
    UsageError: 422,
    FullError: 503,
    DamagedError: 503,
    OutputError: 507,
    DataError: 500,
}
"""The HTTP status of an error: that of its class, or of the nearest class above it."""


def status_of(error: StreamstatsError) -> int:
    """The HTTP status of `error`."""
    return next((STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES), 500)
