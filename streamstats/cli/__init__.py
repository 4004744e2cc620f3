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
from types import FrameType, ModuleType

from ..errors import DONE, INTERRUPTED, UsageError
from ..interrupts import SIGNALS
from .ending import ended_by, leave, nothing_printed_by_others
from .parser import make_parser
from .stamps import Stamped

PATIENCE = 5.0
"""Seconds in which a second Ctrl-C is ignored: a person who sees no reaction presses the keys again."""
INTERRUPTION = {
    "run": "what was counted is saved; run the command again to resume",
    "status": "nothing was changed",
    "verify": "nothing was changed",
    "forget": "no rows were forgotten; run the command again",
    "merge": "the merged results are incomplete; run the command again",
    "compare": "nothing was changed",
    "inspect": "nothing was changed",
    "ranges": "nothing was changed",
    "gram": "nothing was changed",
    "export": "no file was written",
    "record": "a new store was removed; rows that were appended to an older one are still there",
    "measure": "nothing was written; run the command again",
    "correct": "if no model was written, run the command again; with --iterative or --outputs it resumes",
    "report": "no report was written",
    "doctor": "nothing was changed",
    "completion": "no script was printed",
    "warm": "what was compiled is cached; run the command again for the rest",
    "demo": "its folder is incomplete; run the command again",
    "serve": "running jobs resume at the next start",
    "backup": "no backup was written",
    "submit": "the job continues if it was submitted; see: streamstats jobs",
    "jobs": "nothing was changed",
    "watch": "the job continues",
    "cancel": "the job may or may not be cancelled; see: streamstats jobs",
    "stores": "nothing was changed",
    "delete": "some may have been deleted; see: streamstats jobs, streamstats stores",
    "fetch": "the download is incomplete; remove its folder and fetch again",
    "send": "send the files again that were not acknowledged: each is counted once",
    "withdraw": "run the command again; withdrawing twice changes nothing more",
    "token": "the token may or may not have been changed; see: streamstats token list",
    "audit": "nothing was changed",
    "prune": "some things may have been removed; see: streamstats audit",
}
"""What an interruption of each command leaves, and how to continue."""


def program() -> None:
    """The program `streamstats`: ends the process with the status of `main`."""
    try:
        leave(main())
    except KeyboardInterrupt:  # while it began or ended
        leave(INTERRUPTED)
    except SystemExit as end:  # the parser's, which has printed why
        leave(end.code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `streamstats ARGUMENTS…` and return the exit status, one of those in `errors`."""
    _prepare_streams()
    options = make_parser().parse_args(arguments)
    if options.timestamps:
        sys.stderr = Stamped(sys.stderr)
    _catch_signals()
    if not options.quiet and options.command != "warm":
        announce_compiling()
    with nothing_printed_by_others(wanted=options.command == "serve"):
        try:
            return _run(options)
        except BaseException as error:
            return ended_by(error, INTERRUPTION[options.command])


def _run(options: Namespace) -> int:
    commands = _commands(options.module)
    status: int | None = getattr(commands, options.command)(options)
    sys.stdout.flush()
    return DONE if status is None else status


def _commands(module: str) -> ModuleType:
    try:
        return import_module(f".{module}", __name__)
    except (ImportError, ValueError) as error:  # such as a malformed file of zarr's configuration
        said = " ".join(str(error).split())
        raise UsageError(
            f"a library cannot be loaded: {said}; correct its configuration, or install streamstats again"
        ) from error


def _catch_signals() -> None:
    interrupt = _Interrupt()
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN or number == signal.SIGINT:  # nohup ignores some
            signal.signal(number, interrupt)


def announce_compiling() -> None:
    """Say on stderr, once, that compiling begins: the first job on a machine takes a few seconds longer."""
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
    """Replace closed streams by ones without content, and print characters that an encoding lacks as escapes.

    A closed stream's number would go to the next file that is opened.
    """
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115 - stays open
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class _Interrupt:
    """Interrupts the command, and ignores further signals for PATIENCE seconds, in which it saves and ends."""

    def __init__(self) -> None:
        self._last = -math.inf

    def __call__(self, _signal: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._last >= PATIENCE:
            self._last = now
            raise KeyboardInterrupt
