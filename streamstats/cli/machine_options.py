"""What the commands take that concern this machine alone."""

from __future__ import annotations

import argparse
from typing import Any

from . import descriptions
from .shared_options import command

EXAMINING = "doctor_command"
COMPLETING = "completion_command"
SHELLS = ("bash", "zsh", "fish")


def add_commands(commands: Any) -> None:
    """Add the commands that concern this machine alone."""
    command(commands, "doctor", descriptions.DOCTOR, EXAMINING)
    _add_warm(command(commands, "warm", descriptions.WARM))
    _add_completion(command(commands, "completion", descriptions.COMPLETION, COMPLETING))


def _add_warm(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "dtypes", metavar="DTYPE", nargs="*", help="the dtypes of the stores, such as bfloat16; default: float32 int8"
    )


def _add_completion(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS, help="the shell that reads the script")
