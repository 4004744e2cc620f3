"""The README, and the pages that it leads to, name only what exists: files, sections, commands, keys, names of Python.

What they show is checked here without being run; `test_running.py` runs it.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml
from generated import definition, public, tree
from pages import DOCS, PAGES, README, ROOT, Block, blocks, name_of, prose
from pydantic import ValidationError

from streamstats.cli.parser import make_parser
from streamstats.config import JobConfig
from streamstats.service.messages import UPLOADS, OnnxRequest
from streamstats.service.settings import ServiceConfig

every_page = pytest.mark.parametrize("page", PAGES, ids=name_of)
PARSER = make_parser()
SHELL = r"([^#]*[\s(])?"
BEFORE = {"bash": SHELL, "sh": SHELL, "console": rf"\$ {SHELL}", "": r"(\$ |\w+=\S+ )*"}
"""Language of a block → what may stand in a line before a command of ours, such as other programs that start it."""
OTHERS = {"apiVersion", "groups", "scrape_configs", "services"}
"""Keys of what other programs read: Kubernetes, Prometheus, Compose."""


@every_page
def test_every_link_leads_to_a_file_and_to_a_section_of_it(page: Path) -> None:
    for link, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)", prose(page)):
        target = (page.parent / link) if link else page
        assert target.exists(), link
        assert not page.is_relative_to(DOCS) or target.resolve().is_relative_to(DOCS), f"{link} is not in the site"
        assert not anchor or anchor in sections(target), f"{link}#{anchor}"


@cache
def sections(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", prose(page), re.M)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\- ]", "", title.lower())) for title in titles}


@every_page
def test_every_file_that_is_named_exists(page: Path) -> None:
    text = re.sub(r"https?://\S+", "", page.read_text(encoding="utf-8"))
    named = set(re.findall(r"\b(?:tests|benchmarks|configs|streamstats|docs)/[\w/]*\w\.\w+", text))
    assert {name for name in named if not (ROOT / name).exists()} == set()


@every_page
def test_no_row_of_a_table_stands_outside_one(page: Path) -> None:
    for paragraph in prose(page).split("\n\n"):
        lines = paragraph.strip().splitlines()
        if lines and lines[0].startswith("|"):
            assert len(lines) > 1, lines[0]
            assert re.fullmatch(r"[|:\- ]+", lines[1]), lines[0]
            columns = {len(re.findall(r"(?<!\\)\|", line)) for line in lines}
            assert len(columns) == 1, lines[0]


def test_the_readme_is_one_screen() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


@every_page
def test_every_command_is_one(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for block in blocks(page):
        for command in commands(block):
            assert refusal(command, capsys) is None, f"{page.name}:{block.line}: {shlex.join(command)}"


def refusal(command: list[str], capsys: pytest.CaptureFixture[str]) -> str | None:
    """What the parser says against the arguments of a command; None if it takes them."""
    try:
        PARSER.parse_args(command)
    except SystemExit as end:
        return capsys.readouterr().err if end.code else None
    return None


def commands(block: Block) -> Iterator[list[str]]:
    """The arguments of each `streamstats` of a block."""
    if block.language not in BEFORE:
        return
    text = re.sub(r"<<-? ?'?(\w+)'?(.*?)\n.*?^\1$", r"\2", block.text, flags=re.M | re.S)
    for line in text.replace("\\\n", " ").splitlines():
        found = re.match(rf"{BEFORE[block.language]}streamstats (?=[a-z])", line)
        if found is None:
            continue
        parts = shlex.shlex(line[found.end() :], posix=True, punctuation_chars=True)
        parts.whitespace_split, parts.commenters = True, "#"
        words = [*parts]
        end = next((at for at, word in enumerate(words) if set(word) <= set("|&;<>()")), len(words))
        yield [word for word in words[:end] if word != "…"]


@every_page
def test_every_configuration_is_valid(page: Path) -> None:
    for block in blocks(page):
        for text in configurations(block):
            for document in yaml.safe_load_all(text):
                assert_valid(document, f"{page.name}:{block.line}")


def configurations(block: Block) -> Iterator[str]:
    """The YAML in a block: all of it, or the files that a shell writes."""
    if block.language == "yaml":
        yield block.text
    elif block.language in ("bash", "console"):
        yield from re.findall(r"> ?\S+\.ya?ml <<-? ?'?\w+'?\n(.*?)^\w+$", block.text, flags=re.M | re.S)


def assert_valid(document: Any, where: str) -> None:
    """That a job or a service has these keys with such values; what must also be there may be left out."""
    if isinstance(document, dict) and OTHERS & document.keys():
        return
    keys = {"layers": document} if isinstance(document, list) else document
    ids = {name: "0" * 64 for name in UPLOADS if name in keys}  # `submit` uploads the files and puts their ids here
    wrong = []
    for model, request in (
        (JobConfig, {"source": "in", "output": "out"} | keys),
        (ServiceConfig, {"data": "data"} | keys),
        (OnnxRequest, keys | ids),
    ):
        try:
            model.model_validate(request)
        except ValidationError as error:
            wrong.append(str(error))
        else:
            return
    raise AssertionError(f"{where}: no job and no service has these keys:\n" + "\n".join(wrong))


@every_page
def test_every_python_block_can_be_compiled_and_uses_names_that_exist(page: Path) -> None:
    for block in blocks(page):
        if block.language == "python":
            missing = {name for name in used(ast.parse(block.text)) if not exists(*name)}
            assert missing == set(), f"{page.name}:{block.line}"


def used(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(module, name) of what a program takes from the package; the name is "" for a module, and the module is "ss" for
    an attribute of that name.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "streamstats":
            yield from ((node.module or "", alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name.split(".")[0] == "streamstats")
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "ss":
            yield "ss", node.attr


def exists(module: str, name: str) -> bool:
    """Whether the package has it; sources are read, so that what needs torch needs no torch."""
    if module == "ss":
        return name in public("")
    inside = module.partition(".")[2]
    path = ROOT / module.replace(".", "/")
    if any(each.exists() for each in (path / name, path / f"{name}.py")):
        return True
    return name in (public("") if not inside else assigned(inside)) or definition(inside, name) is not None


def assigned(module: str) -> set[str]:
    """The variables of a module."""
    targets = (node.targets for node in tree(module).body if isinstance(node, ast.Assign))
    annotated = (node.target for node in tree(module).body if isinstance(node, ast.AnnAssign))
    return {each.id for each in [*chain(*targets), *annotated] if isinstance(each, ast.Name)}
