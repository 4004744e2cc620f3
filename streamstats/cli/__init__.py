"""The command line: parse, call, print; no arithmetic. Results go to stdout, progress and complaints to stderr."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from ..errors import StreamstatsError
from .parser import make_parser

INTERRUPTED = 130
INTERRUPTION = {
    "run": "nothing of this run is kept, the results of earlier runs are as they were",
    "inspect": "nothing was changed",
    "record": "a new store was removed; what was appended to an older one before is still there",
    "correct": "no model was written",
    "demo": "what is in its folder is not complete; run it again",
}
"""What a person finds after stopping a command."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `streamstats ARGUMENTS…` and return the exit status: 0 done, 1 failure, 2 usage, 4 data, 130 interrupted."""
    options = make_parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        from . import commands

        getattr(commands, options.command)(options)
        sys.stdout.flush()
    except StreamstatsError as error:
        return _complain(str(error), error.exit_status)
    except KeyboardInterrupt:
        return _complain(f"interrupted; {INTERRUPTION[options.command]}", INTERRUPTED)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _complain(message: str, status: int) -> int:
    print(f"streamstats: {' '.join(message.split())}", file=sys.stderr)
    return status
