"""The command line: parse, call, print; no arithmetic. Results go to stdout, progress and messages to stderr."""

from __future__ import annotations

import io
import logging
import math
import os
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from importlib import import_module
from types import FrameType

from ..errors import DONE, FAILURE, INTERRUPTED, StreamstatsError, first_line
from ..interrupts import SIGNALS
from .parser import make_parser
from .stamps import Stamped

PATIENCE = 5.0
"""Seconds in which a second Ctrl-C is ignored: a person who sees no reaction presses the keys again."""
TRACEBACK = "STREAMSTATS_TRACEBACK"
"""The environment variable that asks for the traceback of an unexpected error."""
INTERRUPTION = {
    "run": "what was counted is saved; run the command again to resume",
    "status": "nothing was changed",
    "verify": "nothing was changed",
    "forget": "no rows were forgotten; run the command again",
    "merge": "the merged results are incomplete; run the command again",
    "compare": "nothing was changed",
    "inspect": "nothing was changed",
    "ranges": "nothing was changed",
    "export": "no file was written",
    "record": "a new store was removed; rows that were appended to an older one are still there",
    "measure": "nothing was written; run the command again",
    "correct": "if no model was written, run the command again; with --iterative or --outputs it resumes",
    "report": "no report was written",
    "demo": "its folder is incomplete; run the command again",
    "serve": "running jobs resume at the next start",
    "submit": "the job continues if it was submitted; see: streamstats jobs",
    "jobs": "nothing was changed",
    "watch": "the job continues",
    "cancel": "the job may or may not be cancelled; see: streamstats jobs",
    "fetch": "the download is incomplete; remove its folder and fetch again",
    "send": "send the files again that were not acknowledged: each is counted once",
}
"""What an interruption of each command leaves, and how to continue."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `streamstats ARGUMENTS…` and return the exit status, one of those in `errors`."""
    _prepare_streams()
    options = make_parser().parse_args(arguments)
    if options.timestamps:
        sys.stderr = Stamped(sys.stderr)
    _catch_signals()
    if not options.quiet:
        announce_compiling()
    try:
        return _run(options)
    except StreamstatsError as error:
        return _fail(str(error), error.exit_status)
    except KeyboardInterrupt:
        return _fail(f"interrupted; {INTERRUPTION[options.command]}", INTERRUPTED)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        _discard_stdout()
        return DONE
    except OSError as error:
        _discard_stdout()
        return _fail(f"cannot continue: {error}", FAILURE)
    except Exception as error:  # whatever a library raises: a user gets one line, and can ask for the rest
        if os.environ.get(TRACEBACK):
            raise
        return _fail(
            f"unexpected {type(error).__name__}: {first_line(error)}; please report this as a bug, with what the same "
            f"command shows under {TRACEBACK}=1",
            FAILURE,
        )


def _run(options: Namespace) -> int:
    commands = import_module(f".{options.module}", __name__)
    status: int | None = getattr(commands, options.command)(options)
    sys.stdout.flush()
    return DONE if status is None else status


def _catch_signals() -> None:
    interrupt = _Interrupt()
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN or number == signal.SIGINT:  # nohup ignores some
            signal.signal(number, interrupt)


def announce_compiling() -> None:
    """Say on stderr, once, that compiling begins: the first job on a machine takes some seconds longer."""
    log, announcer = logging.getLogger("streamstats.compiled"), logging.StreamHandler()
    announcer.setFormatter(logging.Formatter("streamstats: %(message)s"))
    announcer.addFilter(_first())
    log.handlers = [announcer]
    log.setLevel(logging.INFO)


def _first() -> Callable[[logging.LogRecord], bool]:
    """A filter that lets the first record pass."""
    passed = iter([True])
    return lambda _record: next(passed, False)


def _prepare_streams() -> None:
    """Replace closed streams by ones that discard, and print characters that an encoding lacks as escapes."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - stays open
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _discard_stdout() -> None:
    """Drop what is still in the buffer and cannot be written: Python would report it on exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Interrupt:
    """Interrupts the command, and ignores further signals for PATIENCE seconds, in which it saves and ends."""

    def __init__(self) -> None:
        self._last = -math.inf

    def __call__(self, _signal: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._last >= PATIENCE:
            self._last = now
            raise KeyboardInterrupt


def _fail(message: str, status: int) -> int:
    print(f"streamstats: {' '.join(message.split())}", file=sys.stderr)
    return status
