"""What a client is told with a status of its own, beside the errors of the library."""

from __future__ import annotations

from ..errors import DataError, OutputError, StreamstatsError, UsageError


class NotFoundError(StreamstatsError):
    """There is no such thing."""


class ConflictError(StreamstatsError):
    """It is not in a state for this."""


class FullError(StreamstatsError):
    """There is no place now; later there may be."""


class TooLargeError(StreamstatsError):
    """More than is taken."""


class GoneError(StreamstatsError):
    """It was replaced."""


STATUSES: dict[type[StreamstatsError], int] = {
    NotFoundError: 404,
    ConflictError: 409,
    GoneError: 410,
    TooLargeError: 413,
    UsageError: 422,
    FullError: 503,
    OutputError: 507,
    DataError: 500,
}
"""The HTTP status of an error: that of its class, or of the nearest one above it."""


def status_of(error: StreamstatsError) -> int:
    """The HTTP status that says what kind of error it is."""
    return next((STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES), 500)
