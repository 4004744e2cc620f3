"""The parser. Neither it nor the modules `…_options` import anything heavy: `--help` answers at once."""

from __future__ import annotations

import argparse

from . import descriptions, machine_options, model_options, run_options, service_options
from .shared_options import CommandParser, Help, Parser


def make_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line. `module` and `command` name the function that does the work."""
    parser = Parser(
        prog="streamstats", description=descriptions.DESCRIPTION, epilog=descriptions.EPILOG, formatter_class=Help
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=CommandParser)
    for options in (run_options, model_options, service_options, machine_options):
        options.add_commands(commands)
    return parser


def _version() -> str:
    from .. import __version__

    return f"streamstats {__version__}"
