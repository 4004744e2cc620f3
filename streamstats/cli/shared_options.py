"""What all commands take, and options that several take; the modules `…_options` have the others."""

from __future__ import annotations

import argparse
from collections.abc import Generator
from itertools import takewhile
from typing import Any

from ..address import SERVICE_URL, local_path
from ..errors import UsageError, one_of, suggestion
from ..service.retrying import PATIENCE_SECONDS, QUICK_SECONDS
from .descriptions import SUMMARIES

METHODS = ("minmax", "percentile", "mse", "entropy")
"""How ranges are found."""
MEANT = {"create": "new", "add": "new", "make": "new", "delete": "revoke", "remove": "revoke", "show": "list"}
"""Other words for some choices; the choice that is spelt most like one may be another."""


class Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Descriptions keep their lines; a default is shown only if it has a meaning."""

    def _iter_indented_subactions(self, action: argparse.Action) -> Generator[argparse.Action, None, None]:
        """Not the commands: the description has them, in groups."""
        if not isinstance(action, argparse._SubParsersAction):
            yield from super()._iter_indented_subactions(action)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False, [], argparse.SUPPRESS):
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """A parser that names the command, the option or the choice that may have been meant, if there is one."""

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        if isinstance(action, argparse._SubParsersAction):
            self.error(f"there is no command {value}; see: {self.prog} --help{suggestion(value, action.choices)}")
        meant = MEANT.get(value)
        near = one_of(meant if meant in action.choices else value, map(str, action.choices))
        raise argparse.ArgumentError(action, f"{value!r} is unknown; {near}")


class CommandParser(Parser):
    """The parser of one command. It reports unknown options before missing ones."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As that of argparse, but nothing is left that is unknown."""
        known = self._option_string_actions
        for word in takewhile(lambda each: each != "--", args):
            option = word.partition("=")[0]
            if option.startswith("--") and " " not in option and not any(each.startswith(option) for each in known):
                self.error(f"there is no option {option}; see: {self.prog} --help{suggestion(option, known)}")
        found, rest = super().parse_known_args(args, namespace)
        if rest:
            self.error(f"unexpected: {' '.join(rest)}; see: {self.prog} --help")
        return found, rest


class _Once(argparse.Action):
    """Stores a value, and refuses a second one, of which argparse would silently keep the last."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        given = vars(namespace).setdefault("given", set())
        if option_string is not None and self.dest in given:
            parser.error(f"{option_string} is given more than once; it takes one value, so give it once")
        given.add(self.dest)
        setattr(namespace, self.dest, values)


def command(commands: Any, name: str, description: str, module: str = "commands") -> argparse.ArgumentParser:
    """The parser of the command that the function `name` of `module` carries out."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, description=description, help=SUMMARIES[name], formatter_class=Help
    )
    for action in (None, "store"):
        parser.register("action", action, _Once)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--quiet", action="store_true", help="show no progress, only the result, notes and errors")
    parser.add_argument("--timestamps", action="store_true", help="begin each line on stderr with the time, in UTC")
    parser.set_defaults(module=module)
    return parser


def local(text: str) -> str:
    """`text`, the path of results: refused here, before hours of work, if it is a URL."""
    try:
        local_path(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def add_output(parser: argparse.ArgumentParser, name: str = "output") -> None:
    """Take the output of a run."""
    parser.add_argument(name, type=local, metavar="OUT", help="the output folder of a run")


def add_codes(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Take whether codes are signed."""
    parser.add_argument(
        "--codes",
        choices=("signed", "unsigned"),
        help="whether codes may be negative; default: signed if --symmetric, else unsigned",
    )


def add_config(parser: argparse.ArgumentParser, what: str) -> None:
    """Take a configuration, which is `what`, and values to use in place of its own."""
    parser.add_argument("config", metavar="CONFIG", help=f"{what}; ${{NAME}} in it is taken from the environment")
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="use this value in place of the configuration's, as in memory=4GiB or cluster.threads=2; repeatable",
    )


def add_layers(parser: argparse.ArgumentParser) -> None:
    """Take which layers of an output are meant."""
    parser.add_argument("--layers", metavar="GLOB", default="*", help="only layers whose names match")


def add_service(parser: argparse.ArgumentParser) -> None:
    """Take which service is asked, and the token."""
    where = parser.add_argument_group("the service")
    where.add_argument("--url", help=f"default: STREAMSTATS_URL, or {SERVICE_URL}")
    where.add_argument("--token-file", metavar="FILE", help="default: STREAMSTATS_TOKEN_FILE, or STREAMSTATS_TOKEN")
    where.add_argument(
        "--patience",
        metavar="SECONDS",
        type=float,
        default=PATIENCE_SECONDS,
        help="how long to try again if the service does not respond, for submit, send and watch; at most "
        f"{QUICK_SECONDS:.0f} s for other requests; default: %(default)s",
    )


def add_levels(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Take how to fake-quantise the float model."""
    levels = parser.add_argument_group("fake-quantise the float model, instead of giving a quantised one")
    levels.add_argument("--bits", metavar="N", type=int, help="bits of the weights, 2 to 16")
    levels.add_argument("--per-channel", action="store_true", help="one range per output channel, not per tensor")
    levels.add_argument("--symmetric", action="store_true", help="ranges that are symmetric about zero")
    levels.add_argument(
        "--weight-range",
        choices=("minmax", "mse"),
        help="the range of the weights: minmax includes all of them (default); mse clips the largest if that reduces "
        "the squared error",
    )
    return levels
