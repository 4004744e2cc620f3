"""What `--help` says is true of the parser: its examples are accepted, its groups have every command once."""

from __future__ import annotations

import argparse
import re
import shlex

import pytest

from streamstats.cli.descriptions import COMMANDS, EPILOG, SUMMARIES
from streamstats.cli.parser import make_parser


def parsers() -> dict[str, argparse.ArgumentParser]:
    (commands,) = (each for each in make_parser()._actions if isinstance(each, argparse._SubParsersAction))
    return dict(commands.choices)


def examples(text: str) -> list[list[str]]:
    """The arguments of each line that begins with two spaces and `streamstats`, up to a comment or a redirection."""
    lines = re.findall(r"^  streamstats (.*)$", re.sub(r" \\\n +", " ", text), re.MULTILINE)
    return [shlex.split(re.split(r" {2,}| > ", line)[0]) for line in lines]


def test_help_has_every_command_once_in_a_group_with_what_it_does() -> None:
    shown = make_parser().format_help()
    assert list(SUMMARIES) == re.findall(r"^  (\w+) {2,}\w", shown.partition("positional")[0], re.MULTILINE)
    assert set(SUMMARIES) == set(parsers())
    assert sum(map(len, COMMANDS.values())) == len(SUMMARIES)
    assert all(f"\n{group}:\n" in shown for group in COMMANDS)


@pytest.mark.parametrize("command", sorted(SUMMARIES))
def test_help_has_examples_that_the_parser_accepts(command: str) -> None:
    found = examples(parsers()[command].description or "")
    assert any(words[0] == command for words in found)
    for words in found:
        assert make_parser().parse_args(words).command == words[0]


def test_help_ends_with_a_command_to_start_with() -> None:
    (command,) = re.findall(r"Start with: streamstats (.+)", EPILOG)
    assert make_parser().parse_args([command]).command == command


def test_an_option_has_one_meaning_and_one_name_in_all_commands() -> None:
    options: dict[str, set[str]] = {}
    for parser in parsers().values():
        for action in parser._actions:
            for name in action.option_strings[-1:]:
                options.setdefault(name, set()).add(str(action.metavar or action.nargs == 0))
    several = {name: metavars for name, metavars in options.items() if len(metavars) > 1}
    assert set(several) == {"--output"}  # a folder, a store or a file
    twins = {name for name in options if f"{name}s" in options}
    assert twins == {"--name", "--output", "--layer"}  # --names, --outputs: others; --layers: a glob
