"""The command line: parse, call, print; no arithmetic. Results go to stdout, progress and complaints to stderr."""

from __future__ import annotations

import io
import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from types import FrameType

from ..errors import StreamstatsError
from ..interrupts import SIGNALS
from .parser import make_parser

INTERRUPTED = 130
PATIENCE = 5.0
"""Seconds; a person who is told nothing presses the keys again."""
INTERRUPTION = {
    "run": "what was counted is saved; run it again to go on",
    "status": "nothing was changed",
    "verify": "nothing was changed",
    "forget": "nothing was taken out; give the command again",
    "merge": "the merged results are not complete; give the command again",
    "inspect": "nothing was changed",
    "record": "a new store was removed; what was appended to an older one before is still there",
    "correct": "if no model is there, give the command again; with --iterative it goes on",
    "report": "no report was written",
    "demo": "what is in its folder is not complete; run it again",
    "serve": "what ran goes on at the next start",
    "submit": "the job goes on if it was submitted; see: streamstats jobs",
    "jobs": "nothing was changed",
    "watch": "the job goes on",
    "cancel": "see what became of it: streamstats jobs",
    "fetch": "what was fetched is not complete; remove it and fetch it again",
    "send": "what was not acknowledged may be sent again: each file is counted once",
}
"""What a person finds after stopping a command."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `streamstats ARGUMENTS…` and return the exit status.

    0 done, 1 failure, 2 usage, 3 incomplete, 4 data, 130 interrupted.
    """
    _prepare_streams()
    options = make_parser().parse_args(arguments)
    interrupt = _Interrupt()
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN or number == signal.SIGINT:  # nohup ignores some
            signal.signal(number, interrupt)
    try:
        commands = import_module(f".{options.module}", __name__)
        status: int | None = getattr(commands, options.command)(options)
        sys.stdout.flush()
    except StreamstatsError as error:
        return _complain(str(error), error.exit_status)
    except KeyboardInterrupt:
        return _complain(f"interrupted; {INTERRUPTION[options.command]}", INTERRUPTED)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        _discard_stdout()
        return 0
    except OSError as error:
        _discard_stdout()
        return _complain(f"cannot go on: {error}", StreamstatsError.exit_status)
    return status or 0


def _prepare_streams() -> None:
    """Closed streams swallow what is printed; characters that a stream's encoding lacks become escapes."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - open to the end
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _discard_stdout() -> None:
    """What is still in the buffer cannot be written; Python would complain at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Interrupt:
    """Stops what is going on. Further signals are ignored for PATIENCE seconds, in which it comes to its end."""

    def __init__(self) -> None:
        self._last = -math.inf

    def __call__(self, _signal: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._last >= PATIENCE:
            self._last = now
            raise KeyboardInterrupt


def _complain(message: str, status: int) -> int:
    print(f"streamstats: {' '.join(message.split())}", file=sys.stderr)
    return status
