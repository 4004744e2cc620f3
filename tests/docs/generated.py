"""The pages of the reference that are made of the code: `python tests/docs/generated.py` writes them.

Commands come from the parser, configuration from the JSON schemas, Python from the sources (which are parsed, not
imported, so that the parts for torch need no torch), the HTTP API from its OpenAPI document.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import inspect
import json
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from streamstats import errors
from streamstats.cli.parser import make_parser
from streamstats.config import JobConfig
from streamstats.layouts import Geometry, Kernel
from streamstats.service.access import OPEN, needed_role
from streamstats.service.app import make_app
from streamstats.service.errors import STATUSES
from streamstats.service.service import Service
from streamstats.service.settings import ServiceConfig
from streamstats.statistics.kinds import ALWAYS, KINDS, Kind
from streamstats.statistics.statistic import Document, Space

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "reference"
NOTE = "<!-- Made of the code by `python tests/docs/generated.py`; change the code instead. -->"
Json = Mapping[str, Any]


# Commands


def commands() -> Iterator[str]:
    parser = make_parser()
    (parsers,) = (each.choices for each in parser._actions if isinstance(each, argparse._SubParsersAction))
    everywhere = set.intersection(*({tuple(each.option_strings) for each in one._actions} for one in parsers.values()))
    some = next(iter(parsers.values()))
    yield "# Commands"
    yield "`streamstats COMMAND --help` prints what this page says of a command. These options are the same for all:"
    yield _options(some, [each for each in some._actions if tuple(each.option_strings) in everywhere])
    yield "What each exit status means is on a [page of its own](statuses.md)."
    for name, one in parsers.items():
        first, _, rest = (one.description or "").strip().partition("\n\n")
        yield f"## {name}"
        yield " ".join(first.split())
        if rest:
            yield f"```text\n{rest.rstrip()}\n```"
        positional, optional, *titled = (_others(group, everywhere) for group in one._action_groups)
        yield _options(one, [*positional, *optional])
        for group, actions in zip(one._action_groups[2:], titled, strict=True):
            if actions:
                yield f"{(group.title or '').capitalize()}:"
                yield _options(one, actions)


def _others(group: argparse._ArgumentGroup, everywhere: set[tuple[str, ...]]) -> list[argparse.Action]:
    return [each for each in group._group_actions if tuple(each.option_strings) not in everywhere]


def _options(parser: argparse.ArgumentParser, actions: Iterable[argparse.Action]) -> str:
    formatter = parser._get_formatter()
    rows = []
    for each in actions:
        value = "" if each.nargs == 0 else formatter._format_args(each, each.metavar or each.dest.upper())
        said = "show the help of the command" if each.dest == "help" else formatter._expand_help(each)
        rows.append([_code(f"{', '.join(each.option_strings)} {value}".strip()), said])
    return _table(["argument", "meaning"], rows)


# Configuration


def configuration() -> Iterator[str]:
    yield "# Configuration"
    yield (
        "A job is a YAML file, which `run` and `submit` read; a service is another, which `serve` and `backup` read. "
        "Other keys are refused. `--set KEY=VALUE` replaces one key of a job, as in `--set cluster.threads=2`, and "
        "`${NAME}` in it is taken from the environment. `configs/local.yaml` and `configs/service.yaml` are examples; "
        "`configs/schema.json` is the schema of a job, for editors."
    )
    seen: set[str] = set()
    for title, model in (("A job", JobConfig), ("A service", ServiceConfig)):
        schema = model.model_json_schema()
        yield f"## {title}"
        yield from _keys(schema, schema["$defs"], "", seen)


def _keys(schema: Json, types: Json, path: str, seen: set[str]) -> Iterator[str]:
    """The table of the keys of `schema`, found at `path`, and then those of its parts, each type once."""
    properties = schema["properties"]
    required = schema.get("required", ())
    yield schema.get("description", "")
    yield _table(
        ["key", "type", "default", "meaning"],
        [
            [
                _code(name),
                _kind(each),
                "**required**" if name in required else _default(each),
                each.get("description") or _inner(each, types).get("description", ""),
            ]
            for name, each in properties.items()
        ],
    )
    for name, each in properties.items():
        for part in _references(each):
            if part not in seen and "properties" in types[part]:
                seen.add(part)
                yield f"### {part}"
                yield f"Below `{path}{name}`."
                yield from _keys(types[part], types, f"{path}{name}.", seen)


def _inner(schema: Json, types: Json) -> Json:
    return next((types[part] for part in _references(schema)), {})


def _references(schema: Any) -> Iterator[str]:
    """The names of the types that `schema` refers to."""
    if isinstance(schema, Mapping):
        if "$ref" in schema:
            yield schema["$ref"].rpartition("/")[2]
        schema = [value for key, value in schema.items() if key != "default"]
    if isinstance(schema, list):
        for each in schema:
            yield from _references(each)


def _default(schema: Json) -> str:
    default = schema.get("default")
    if default is None or isinstance(default, Mapping):
        return ""
    if isinstance(default, bool):
        return _code(str(default).lower())
    for unit, bits in (("GiB", 30), ("MiB", 20)):
        if isinstance(default, int) and 0 < default < 2**53 and default % 2**bits == 0:  # 2^53 stands for the newest
            return _code(f"{default >> bits}{unit}")
    return _code(f"{default:g}" if isinstance(default, float) else str(default))


LIMITS = {
    "minimum": "≥ {}",
    "exclusiveMinimum": "> {}",
    "gt": "> {}",
    "maximum": "≤ {}",
    "maxLength": "at most {} characters",
    "maxItems": "at most {} entries",
}


def _kind(schema: Json) -> str:
    """The type that `schema` describes, with its limits, in one line."""
    if "$ref" in schema:
        return _link(schema["$ref"].rpartition("/")[2])
    for choice in ("anyOf", "oneOf"):
        if choice in schema:
            kinds = [_kind(each) for each in schema[choice]]
            return " or ".join(dict.fromkeys(each for each in kinds if each != "null" or "default" not in schema))
    if "enum" in schema or "const" in schema:
        return ", ".join(
            _code(each if isinstance(each, str) else json.dumps(each))
            for each in schema.get("enum", [schema.get("const")])
        )
    kind = str(schema.get("format") or schema.get("type", "any"))
    if kind == "array":
        kind = f"list of {_kind(schema.get('items', {}))}"
    named = [schema.get("additionalProperties"), *schema.get("patternProperties", {}).values()]
    kind = next((f"name → {_kind(each)}" for each in named if isinstance(each, Mapping)), kind)
    limits = [text.format(f"{schema[key]:,.20g}") for key, text in LIMITS.items() if key in schema]
    return ", ".join([kind, *limits])


# Python


def python() -> Iterator[str]:
    yield "# Python"
    yield (
        "`import streamstats as ss` has these names; each is imported when it is first used. Parts of "
        "`streamstats.models.torch` are below. Axes of arrays are written as in float64[C], where C is the number of "
        "channels."
    )
    for package in ("", "models.torch"):
        names = public(package)
        yield f"## {f'streamstats.{package}'.rstrip('.')}"
        found = {name: definition(package, name) for name in names}
        known = {name: each for name, each in found.items() if each is not None}
        yield _table(
            ["name", "meaning"],
            [[f"[`{name}`](#{name.lower()})", _summary(node)] for name, (_, node) in known.items()],
        )
        for name, (module, node) in known.items():
            yield f"### {name}"
            yield from _documented(module, node)


Defined = ast.ClassDef | ast.FunctionDef


@cache
def tree(module: str) -> ast.Module:
    path = ROOT / "streamstats" / module.replace(".", "/")
    return ast.parse(
        (path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py").read_text()
    )


def public(package: str) -> list[str]:
    """What `__all__` of a package names."""
    lists = (each.value for each in tree(package).body if isinstance(each, ast.Assign) and _is_all(each.targets[0]))
    return list(ast.literal_eval(next(lists)))


def _is_all(target: ast.expr) -> bool:
    return isinstance(target, ast.Name) and target.id == "__all__"


def definition(module: str, name: str) -> tuple[str, Defined] | None:
    """The module that defines what `module` calls `name`, and the definition; None if it comes from elsewhere."""
    body = tree(module).body
    body = [*body, *(inner for each in body if isinstance(each, ast.If) for inner in each.body)]
    for each in body:
        if isinstance(each, ast.ClassDef | ast.FunctionDef) and each.name == name:
            return module, each
    for each in body:
        for alias in each.names if isinstance(each, ast.ImportFrom) and each.level else ():
            if (alias.asname or alias.name) == name:
                return definition(_imported(module, each), alias.name)
    return None


def _imported(module: str, line: ast.ImportFrom) -> str:
    """The module that a relative import in `module` names."""
    is_package = (ROOT / "streamstats" / module.replace(".", "/")).is_dir()
    parts = module.split(".") if module else []
    above = parts[: len(parts) - line.level + is_package]
    return ".".join([*above, *(line.module or "").split(".")]).strip(".")


def _summary(node: Defined) -> str:
    return " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())


def _documented(module: str, node: Defined) -> Iterator[str]:
    yield f"```text\n{_signature(module, node)}\n```"
    yield _prose(ast.get_docstring(node) or "")
    if isinstance(node, ast.ClassDef):
        for method in _methods(module, node).values():
            kind = "" if isinstance(method, ast.ClassDef) else _decorator(method)
            yield f"#### {node.name}.{method.name}"
            yield f"```text\n{kind}{_called(method, method.name, bound=True)}\n```"
            yield _prose(ast.get_docstring(method) or "")


def _methods(module: str, node: ast.ClassDef) -> dict[str, ast.FunctionDef]:
    """The public methods and properties of a class, those that it inherits from classes of the package last."""
    found = {each.name: each for each in node.body if isinstance(each, ast.FunctionDef) and each.name[0] != "_"}
    for base, each in _bases(module, node):
        found = {**_methods(base, each), **found}
    return dict(sorted(found.items()))


def _bases(module: str, node: ast.ClassDef) -> Iterator[tuple[str, ast.ClassDef]]:
    for each in node.bases:
        found = definition(module, each.id) if isinstance(each, ast.Name) else None
        if found is not None and isinstance(found[1], ast.ClassDef):
            yield found[0], found[1]


def _signature(module: str, node: Defined) -> str:
    if isinstance(node, ast.FunctionDef):
        return _called(node, node.name)
    made = _constructor(module, node)
    if made is not None:
        return _called(made, node.name, bound=True).removesuffix(" -> None")
    return _wrapped(node.name, _fields(module, node), "")


def _constructor(module: str, node: ast.ClassDef) -> ast.FunctionDef | None:
    """The `__init__` of a class, or that of the first of its bases that has one."""
    own = (each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__")
    inherited = (_constructor(base, each) for base, each in _bases(module, node))
    return next(filter(None, chain(own, inherited)), None)


def _fields(module: str, node: ast.ClassDef) -> list[str]:
    """The arguments of a class without `__init__`: its fields, those of its bases first."""
    inherited = [field for base, each in _bases(module, node) for field in _fields(base, each)]
    own = [each for each in node.body if isinstance(each, ast.AnnAssign)]
    return inherited + [
        re.sub(r" = field\(default_factory=(\w+)\)", r" = \1()", ast.unparse(each))
        for each in own
        if "ClassVar" not in ast.unparse(each.annotation)
    ]


def _decorator(node: ast.FunctionDef) -> str:
    names = [ast.unparse(each).removeprefix("cached_") for each in node.decorator_list]
    return next((f"{name} " for name in ("property", "classmethod", "staticmethod") if name in names), "")


def _called(node: ast.FunctionDef, name: str, *, bound: bool = False) -> str:
    """The head of a function: without its first argument if it is `bound` to an object."""
    result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    if any("property" in ast.unparse(each) for each in node.decorator_list):
        return f"{name}{result}"
    arguments = node.args
    if bound and arguments.args and "staticmethod" not in _decorator(node):
        arguments.args = arguments.args[1:] if arguments.args[0].arg in ("self", "cls") else arguments.args
    return _wrapped(name, [*_arguments(arguments)], result)


def _arguments(found: ast.arguments) -> Iterator[str]:
    plain = [*found.posonlyargs, *found.args]
    unset = [None] * (len(plain) - len(found.defaults))
    for each, default in zip(plain, [*unset, *found.defaults], strict=True):
        yield _argument(each, default)
    if found.vararg or found.kwonlyargs:
        yield f"*{_argument(found.vararg) if found.vararg else ''}"
    for each, default in zip(found.kwonlyargs, found.kw_defaults, strict=True):
        yield _argument(each, default)
    if found.kwarg:
        yield f"**{_argument(found.kwarg)}"


def _argument(each: ast.arg, default: ast.expr | None = None) -> str:
    annotation = f": {ast.unparse(each.annotation)}" if each.annotation else ""
    return f"{each.arg}{annotation}{f' = {ast.unparse(default)}' if default else ''}"


def _wrapped(name: str, arguments: list[str], result: str) -> str:
    """A call in one line if it fits, else with one argument a line."""
    line = f"{name}({', '.join(arguments)}){result}"
    return line if len(line) <= 100 else f"{name}(\n" + "".join(f"    {each},\n" for each in arguments) + f"){result}"


def _prose(docstring: str) -> str:
    """A docstring as Markdown: its examples as blocks of Python."""
    paragraphs = inspect.cleandoc(docstring).split("\n\n")
    return "\n\n".join(f"```pycon\n{each}\n```" if each.startswith(">>>") else each for each in paragraphs)


# Statistics


SAMPLE, AXIS = (8, 14, 14), 0
KERNEL = Kernel((3, 3), Geometry(strides=(2, 2), pads=(1, 1, 1, 1)))
"""The layer that the page takes as its example. With these strides and pads, it needs every kind but `reads`."""


def statistics() -> Iterator[str]:
    space = Space(np.dtype(np.float32), SAMPLE, AXIS, KERNEL)
    yield "# Statistics"
    yield (
        f"`statistics` in the configuration names what a job counts for each layer; {' and '.join(map(_code, ALWAYS))} "
        "are always counted. The tensors of a state are shown for one layer: float32, samples of shape "
        f"{list(SAMPLE)} with channels on axis {AXIS}, a 3×3 kernel with strides 2 and padding 1. Each figure has the "
        "same name in `streamstats inspect --json`, in the HTTP API, and on the page of the service."
    )
    rows = [[f"[`{kind.name}`](#{kind.name})", _sentence(kind), _asked(kind)] for kind in KINDS.values()]
    yield _table(["name", "meaning", "counted"], rows)
    block = np.random.default_rng(1).normal(size=(4, *SAMPLE)).astype(np.float32)
    found = {name: kind.measure(block, AXIS + 1, KERNEL) for name, kind in KINDS.items()}
    for name, kind in KINDS.items():
        document = found[name].document(None, found)
        yield f"## {name}"
        yield _prose(kind.__doc__ or "")
        yield _table(["property", "value"], _properties(kind, space))
        tensors = kind.tensors(space)
        yield _table(
            ["tensor of its state", "dtype", "shape"],
            [[_code(f"{name}.{tensor}"), str(dtype), str(list(shape))] for tensor, (shape, dtype) in tensors.items()],
        )
        yield _prose(type(found[name]).document.__doc__ or "")
        yield _figures(document)


def _sentence(kind: Kind) -> str:
    return " ".join((kind.__doc__ or "").split("\n\n")[0].split())


def _asked(kind: Kind) -> str:
    return "always" if kind.name in ALWAYS else "where needed, unasked" if kind.unasked else "on request"


def _properties(kind: Kind, space: Space) -> list[list[str]]:
    return [
        ["dtypes", ", ".join(map(str, kind.dtypes))],
        ["layers with a mask", "counted" if kind.maskable else "refused"],
        ["layers of unknown kernels", "refused" if kind.uses_kernel else "counted"],
        ["state of the example", f"{kind.state_bytes(space):,} bytes"],
    ]


def _figures(document: Document) -> str:
    rows = [[_code(name), "layer"] for name in document.layer]
    rows += [[_code(name), "channel"] for name in document.channels]
    rows += [[_code(name), f"table of {', '.join(each.columns)}"] for name, each in document.tables.items()]
    return _table(["figure", "per"], rows)


# Exit statuses


STATUS_NAMES = ("DONE", "FAILURE", "USAGE", "INCOMPLETE", "CORRUPT", "INTERRUPTED")
MEANINGS = {
    "DONE": "done",
    "FAILURE": "a failure that a retry on a healthy machine may cure",
    "USAGE": "the request cannot be met as it stands: correct the call, the arguments or the configuration",
    "INCOMPLETE": "done, but rows are missing, a threshold was not met, or no layer could be corrected",
    "CORRUPT": "the data is missing, damaged or not what it claims to be",
    "INTERRUPTED": "interrupted by a signal, after saving; run the command again to resume",
}


def statuses() -> Iterator[str]:
    yield "# Exit statuses"
    yield "Every command ends with one of these; `streamstats.errors` has them by name."
    numbers = {name: getattr(errors, name) for name in STATUS_NAMES}
    yield _table(["status", "name", "meaning"], [[str(numbers[n]), _code(n), MEANINGS[n]] for n in STATUS_NAMES])
    yield "## Errors"
    yield (
        "In Python, each error is a `StreamstatsError`; its class decides the exit status, and the status with which "
        "the service answers."
    )
    kinds = [errors.StreamstatsError, *_below(errors.StreamstatsError)]
    rows = [
        [
            _code(kind.__name__),
            _code(kind.__bases__[0].__name__),
            str(kind.exit_status),
            str(_answered(kind)),
            _said(kind),
        ]
        for kind in kinds
        if kind.__module__ == errors.__name__
    ]
    yield _table(["error", "is a", "exit status", "HTTP", "meaning, remedy"], rows)


def _below(kind: type[errors.StreamstatsError]) -> Iterator[type[errors.StreamstatsError]]:
    for each in sorted(kind.__subclasses__(), key=lambda each: (each.exit_status, each.__name__)):
        yield each
        yield from _below(each)


def _answered(kind: type[errors.StreamstatsError]) -> int:
    return next((STATUSES[each] for each in kind.__mro__ if each in STATUSES), 500)


def _said(kind: type) -> str:
    """The docstring of an error, without its example."""
    return " ".join((kind.__doc__ or "").partition(">>>")[0].split())


# The HTTP API


def http() -> Iterator[str]:
    with ThreadPoolExecutor(1) as pool:  # in a test's process, a browser may keep an event loop running in this thread
        document = pool.submit(asyncio.run, _openapi()).result()
    yield "# HTTP API"
    yield (
        "This page is made of `/api/v1/openapi.json`, from which clients can be generated; a service shows the same "
        "at `/api/v1/docs`. Requests need `Authorization: Bearer TOKEN`, with a token of the role that is named, or of "
        "a higher one: `read`, `submit`, `admin`. `HEAD` is answered wherever `GET` is. A service that has this manual "
        "shows it below `/manual/`, to everybody."
    )
    operations = [
        (f"{method.upper()} {path}", each)
        for path, methods in document["paths"].items()
        for method, each in methods.items()
    ]
    yield _table(
        ["request", "role", "meaning"],
        [
            [f"[`{name}`](#{_anchor(name)})", _role(name), re.split(r"(?<=\.)\s", each["description"])[0]]
            for name, each in operations
        ],
    )
    for name, each in operations:
        yield from _operation(name, each)
    yield from _http_errors([each for _, each in operations])
    yield "## Types"
    for name, schema in sorted(document["components"]["schemas"].items()):
        yield from _type(name, schema)


async def _openapi() -> Json:
    """The document that a service publishes, asked of one that has not started."""
    with tempfile.TemporaryDirectory() as folder:
        service = Service(ServiceConfig(data=Path(folder)))
        transport = httpx.ASGITransport(make_app(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            document: Json = (await client.get("/api/v1/openapi.json")).json()
        service.stop()
        return document


def _role(name: str) -> str:
    method, path = name.split(" ")
    return "none" if path in OPEN else needed_role(method, path)


def _anchor(title: str) -> str:
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _operation(name: str, operation: Json) -> Iterator[str]:
    yield f"## {_code(name)}"
    yield operation["description"]
    signed = " A [signed link](#get-apiv1jobsjobfilesname) is enough." if len(operation.get("security", ())) > 1 else ""
    yield f"Role: {_role(name)}.{signed}"
    rows = [
        [_code(each["name"]), each["in"], _kind(each["schema"]), _described(each)]
        for each in operation.get("parameters", ())
    ]
    if "requestBody" in operation:
        rows.append(["", "body", _bodies(operation["requestBody"]["content"]), ""])
    yield _table(["parameter", "in", "type", "meaning"], rows) if rows else ""
    answers = operation["responses"]
    rows = [[status, _bodies(answers[status].get("content", {}))] for status in sorted(answers) if status < "400"]
    yield _table(["status", "answer"], rows)
    yield f"Errors: {', '.join(f'[{each}](#errors)' for each in sorted(answers) if each >= '400')}."


def _http_errors(operations: Iterable[Json]) -> Iterator[str]:
    answers = [each["responses"] for each in operations]
    said = {status: each["description"] for found in answers for status, each in found.items() if status >= "400"}
    yield "## Errors"
    yield f"Every error is a {_link('Problem')}. Its status means the same for every path:"
    yield _table(["status", "meaning"], [[status, said[status]] for status in sorted(said)])


def _type(name: str, schema: Json) -> Iterator[str]:
    yield f"### {name}"
    yield schema.get("description", "")
    required = schema.get("required", ())
    rows = [
        [_code(field), _kind(each), "" if field in required else "optional", _described(each)]
        for field, each in schema.get("properties", {}).items()
    ]
    yield _table(["field", "type", "", "meaning"], rows) if rows else ""


def _described(each: Json) -> str:
    default = _default({"default": each.get("default", each.get("schema", {}).get("default"))})
    return " ".join(filter(None, [each.get("description", ""), f"Default: {default}." if default else ""]))


def _bodies(content: Json) -> str:
    return "; ".join(f"{_code(kind)} {_kind(each.get('schema', {}))}" for kind, each in content.items())


# Markdown


def _link(part: str) -> str:
    return f"[{part}](#{part.lower()})"


def _code(text: str) -> str:
    return f"`{text}`" if text and "`" not in text else f"`` {text} ``" if text else ""


def _table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [[*columns]]
    lines.append(["---"] * len(lines[0]))
    lines += [[" ".join(str(cell).split()).replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


PAGES: dict[str, Callable[[], Iterable[str]]] = {
    "commands": commands,
    "configuration": configuration,
    "python": python,
    "statistics": statistics,
    "statuses": statuses,
    "http": http,
}


def page(name: str) -> str:
    """The Markdown of a page."""
    title, *rest = (part for part in PAGES[name]() if part)
    return "\n\n".join([title, NOTE, *rest]) + "\n"


if __name__ == "__main__":
    for each in PAGES:
        (FOLDER / f"{each}.md").write_text(page(each), encoding="utf-8")
