"""How a command ends: whatever is raised, one line on stderr, a status other than 0, and no traceback.

Exceptions of our own say what to do. Everything else is explained here: what the system refuses, and what libraries
raise, whatever its class; a panic of Rust code, for one, is no `Exception`.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from ..errors import DONE, FAILURE, INTERRUPTED, StreamstatsError, first_line
from ..interrupts import SIGNALS

TRACEBACK = "STREAMSTATS_TRACEBACK"
"""The environment variable that asks for the traceback of an unexpected error."""
TOO_MANY_FILES = "Too many open files"


def ended_by(error: BaseException, left: str) -> int:
    """The exit status of a command that `error` ended, once a line says so; `left` is what an interruption leaves."""
    error = _cause(error)
    if isinstance(error, BrokenPipeError) and _reader_has_left():  # such as `head`, which has seen enough
        discard_stdout()
        return DONE
    if isinstance(error, KeyboardInterrupt):
        return fail(f"interrupted; {left}", INTERRUPTED)
    if _too_many_files(error):
        return fail(_file_limit(), FAILURE)
    if isinstance(error, StreamstatsError):
        return fail(str(error), error.exit_status)
    if isinstance(error, OSError):
        discard_stdout()
        return fail(f"cannot continue: {_described(error)}", FAILURE)
    if isinstance(error, MemoryError):
        return fail("the process got no more memory; free some, or set `memory` lower if the job has it", FAILURE)
    if os.environ.get(TRACEBACK):
        raise error
    return fail(
        f"unexpected {_described(error)}; please report this as a bug, with what the same command shows under "
        f"{TRACEBACK}=1",
        FAILURE,
    )


def fail(message: str, status: int) -> int:
    """Print `message` as one line on stderr, if anyone can read it; returns `status`."""
    with suppress(OSError, ValueError):
        print(f"streamstats: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return status


def discard_stdout() -> None:
    """Drop what is still in the buffer and cannot be written: Python would report it on exit."""
    with suppress(OSError, ValueError):
        number = os.open(os.devnull, os.O_WRONLY)
        os.dup2(number, sys.stdout.fileno())
        os.close(number)


@contextmanager
def nothing_printed_by_others(wanted: bool) -> Iterator[None]:
    """Inside, Python prints no traceback for what threads and finalisers raise, unless TRACEBACK or `wanted` asks.

    What matters of it reaches the command as an exception as well.
    """
    if wanted or os.environ.get(TRACEBACK):
        yield
        return
    hooks = threading.excepthook, sys.unraisablehook
    threading.excepthook = sys.unraisablehook = _ignore
    try:
        yield
    finally:
        threading.excepthook, sys.unraisablehook = hooks


def leave(status: int | str | None) -> NoReturn:
    """End the process with `status`: from here on a signal ends it at once, and nothing is printed."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    if not os.environ.get(TRACEBACK):
        threading.excepthook = sys.unraisablehook = _ignore
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        discard_stdout()
    sys.exit(status)


def _ignore(_: object) -> None:
    """Print nothing."""


def _cause(error: BaseException) -> BaseException:
    """The exception to explain: of a group, the first in it, or an interruption."""
    while isinstance(error, BaseExceptionGroup):
        error = (error.subgroup(KeyboardInterrupt) or error).exceptions[0]
    return error


def _described(error: BaseException) -> str:
    said, kind = first_line(error), type(error).__name__
    return said if said == kind or isinstance(error, OSError) else f"{kind}: {said}"


def _too_many_files(error: BaseException | None) -> bool:
    """Whether `error`, or what caused it, is the limit of open files, which libraries wrap in errors of their own."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE) or TOO_MANY_FILES in first_line(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _file_limit() -> str:
    try:
        import resource

        limit = f", {resource.getrlimit(resource.RLIMIT_NOFILE)[0]:,},"
    except ImportError:  # Windows has no such limit per process
        limit = ""
    return (
        f"too many open files: this process needs more than its limit{limit} allows; raise it, as with: ulimit -n 1024"
    )


def _reader_has_left() -> bool:
    """Whether it is stdout that cannot be written to: other pipes and connections break, too."""
    try:
        watched = select.poll()
        watched.register(sys.stdout.fileno(), 0)
        return any(state & (select.POLLERR | select.POLLHUP) for _, state in watched.poll(0))
    except (AttributeError, OSError, ValueError):  # Windows has no poll; stdout is no file
        return False
