"""What the commands take that concern this machine alone."""

from __future__ import annotations

import argparse
from typing import Any

from . import descriptions
from .shared_options import command


def add_commands(commands: Any) -> None:
    """Add the commands that concern this machine alone."""
    _add_warm(command(commands, "warm", descriptions.WARM))


def _add_warm(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "dtypes", metavar="DTYPE", nargs="*", help="the dtypes of the stores, such as bfloat16; default: float32 int8"
    )
