"""What can go wrong, grouped by what the caller can do about it.

Every error says what was found, what was expected and what to do. Its class decides the exit status of the
command line, so a batch system can tell a job that needs correcting (2) from data that needs repairing (4).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from enum import StrEnum
from importlib import import_module
from types import ModuleType

DONE, FAILURE, USAGE, INCOMPLETE, CORRUPT, INTERRUPTED = 0, 1, 2, 3, 4, 130
"""The exit statuses of the command line. INCOMPLETE: rows are missing, a threshold was not met, or no
layer was corrected."""

DISTRIBUTION = "streamstats-calibration"
"""The name on the package index; the import name is `streamstats`."""


class WayOut(StrEnum):
    """What to do about counts that no longer fit their job, in the words of the command line."""

    RESTART = "count everything again with `run --restart`"
    ACCEPT = "keep what was counted with `run --accept-changes`"
    ELSEWHERE = "choose another output"


class StreamstatsError(Exception):
    """The root of all errors: a failure that a retry on a healthy machine may cure.

    >>> try:
    ...     ss.load("calibration.zarr")
    ... except ss.StreamstatsError as error:
    ...     print(error)
    calibration.zarr has no manifest.json; expected the output folder of a finished `streamstats run`
    """

    exit_status = FAILURE
    """The exit status of the command line after such an error."""

    def __init__(self, found: object = "", *ways_out: str) -> None:
        """The message is what was `found`, followed by the ways out, where they are given apart."""
        super().__init__(found, *ways_out)
        self.found, self.ways_out = str(found), ways_out

    def __str__(self) -> str:
        return f"{self.found}; {either(self.ways_out)}" if self.ways_out else self.found


class UsageError(StreamstatsError, ValueError):
    """The request cannot be met as it stands: correct the call, the arguments or the configuration."""

    exit_status = USAGE


class MismatchError(UsageError):
    """Shapes, dtypes, channels or layouts that should match do not."""


class EmptyStoreError(UsageError):
    """A calibration store has no layers yet: record into it, or wait."""


class MissingDependencyError(UsageError):
    """An optional library is needed: install the extra that the message names."""


class DataError(StreamstatsError):
    """The data is missing, damaged or not what it claims to be: repair it, or choose a policy that skips it."""

    exit_status = CORRUPT


class DamageError(DataError):
    """The bytes of a chunk are there, and are not what they should be: a policy may skip it."""


class LostError(DamageError):
    """A chunk is missing: lost, or never written because it would hold only the fill value, which a policy counts."""


class UnstreamedError(DataError):
    """A chunk that cannot be measured while it is decoded can be read as a whole."""


class NonFiniteError(DataError):
    """The data holds NaN or infinities, and the policy refuses them."""


class ClusterError(StreamstatsError):
    """Workers or their scheduler are unreachable, unfit or lost; what was counted is saved."""


class ChangedError(DataError):
    """Data was replaced while it was being read."""


class StoreError(StreamstatsError):
    """The store does not respond, or refuses the request; what was counted is saved."""


class HarmError(StreamstatsError):
    """A correction makes the network worse, and the caller refuses that: correct otherwise, or with more samples."""


class ServiceError(StreamstatsError):
    """A service fails or does not respond: retry, and read the service's log if it fails again.

    >>> with ss.Client("http://127.0.0.1:1", "TOKEN", patience=0) as client:  # doctest: +ELLIPSIS
    ...     try:
    ...         client.jobs()
    ...     except ss.ServiceError as error:
    ...         print(error)
    http://127.0.0.1:1 does not respond: [Errno ...] Connection refused; check that the service is running
    """


class OutputError(StreamstatsError):
    """A result could not be written; the previous file is untouched."""


def require(module: str, extra: str) -> ModuleType:
    """Import the optional `module`, which `extra` installs. Raises `MissingDependencyError`."""
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"{module} cannot be imported ({error}); install the extra that provides it: "
            f"pip install '{DISTRIBUTION}[{extra}]', or from a clone pip install '.[{extra}]'"
        ) from error


def first_line(error: BaseException) -> str:
    """The first line of the message of `error`, or its class if the message is empty; of a group, the first error's.

    >>> first_line(KeyError()), first_line(ExceptionGroup("two", [ValueError("no\\nmore")]))
    ('KeyError', 'no')
    """
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    try:
        lines = str(error).strip().splitlines()
    except Exception:  # nobody has tried the message before
        lines = []
    return lines[0] if lines else type(error).__name__


def listed(names: Iterable[str], most: int = 8) -> str:
    """The first of `names`, and how many more there are, for a message; "none" if there are none.

    >>> listed("abc"), listed("abc", most=1), listed([])
    ('a, b, c', 'a and 2 more', 'none')
    """
    every = [*names]
    more = f" and {len(every) - most:,} more" if len(every) > most else ""
    return (", ".join(every[:most]) or "none") + more


def either(ways: Sequence[str]) -> str:
    """The alternatives `ways`, of which there is one or more, for a message.

    >>> either(["wait"]), either(["wait", "stop it"]), either(["wait", "stop it", "leave"])
    ('wait', 'wait, or stop it', 'wait, stop it, or leave')
    """
    *others, last = ways
    return f"{', '.join(others)}, or {last}" if others else last


def suggestion(word: str, known: Iterable[str]) -> str:
    """What to append to a message about the unknown `word`: which of the `known` it may stand for; "" if none is near.

    >>> suggestion("pecentile", ("minmax", "percentile")), suggestion("7", ("minmax", "percentile"))
    ('; did you mean percentile?', '')
    """
    found = get_close_matches(word, [*known], n=1)
    return f"; did you mean {found[0]}?" if found else ""


def one_of(word: object, known: Iterable[str]) -> str:
    """What is expected in place of the unknown `word`, for a message.

    >>> one_of("rowz", ("rows", "layers"))
    'expected one of rows, layers; did you mean rows?'
    """
    names = [*known]
    return f"expected one of {', '.join(names)}{suggestion(str(word), names)}"


def in_words(value: object, most: int = 8) -> str:
    """What describes a layer, such as its quantisation, as a message shows it; of long lists, the first numbers.

    >>> in_words({"step": 0.5, "zero_point": -128}), in_words(["mean", "spread"]), in_words(None)
    ('step 0.5, zero point -128', 'mean + spread', 'none')
    >>> in_words({"mask": True}), in_words(False)
    ('mask yes', 'no')
    >>> in_words(list(range(100)), most=2)
    '[0, 1, … 98 more]'
    """
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{key.replace('_', ' ')} {in_words(each, most)}" for key, each in value.items())
    if not isinstance(value, list):
        return str(value)
    if value and all(isinstance(each, str | Mapping) for each in value):
        return " + ".join(in_words(each, most) for each in value)
    more = f", … {len(value) - most:,} more" if len(value) > most else ""
    return f"[{', '.join(map(str, value[:most]))}{more}]"


def contrasted(first: object, second: object) -> tuple[str, str]:
    """Two values that describe a layer, as `in_words`; of lists that begin alike, what follows.

    >>> contrasted({"step": [1] * 20 + [2]}, {"step": [1] * 20 + [3]})
    ('step [… 20 alike, 2]', 'step [… 20 alike, 3]')
    >>> contrasted({"step": 1}, None)
    ('step 1', 'none')
    """
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        both = {key: contrasted(first.get(key), second.get(key)) for key in {**first, **second}}
        mine = in_words({key: words for key, (words, _) in both.items()})
        return mine, in_words({key: words for key, (_, words) in both.items()})
    if isinstance(first, list) and isinstance(second, list) and in_words(first) == in_words(second):
        alike = next((at for at, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), 0)
        if alike:
            rest, others = (in_words(each[alike:]).removeprefix("[") for each in (first, second))
            return f"[… {alike:,} alike, {rest}", f"[… {alike:,} alike, {others}"
    return in_words(first), in_words(second)


def to_count(kind: str) -> str:
    """What to do where a run did not count this kind of statistic, for a message."""
    return (
        f"add `statistics: [{kind}]` to the configuration, and run again with --restart; or, in Python, "
        f'`reduce(…, statistics=["{kind}"])`'
    )


def counted(number: int, what: str, plural: str = "") -> str:
    """`number` and `what`, for a message; `plural` is needed only where it is not `what` plus an s.

    >>> counted(1, "row"), counted(2000, "row"), counted(2, "entry", "entries")
    ('1 row', '2,000 rows', '2 entries')
    """
    return f"{number:,} {what if number == 1 else plural or what + 's'}"
