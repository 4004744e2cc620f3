"""The reference of the API for people: an HTML page made of the OpenAPI document, without a script.

It shows what the document says and nothing else, so it is as true as the description that clients are generated from.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from typing import Any

Json = Mapping[str, Any]
ERRORS = "400"
"""The first status of an error."""

FRAME = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>API reference: {title}</title>
<link rel="icon" href="/static/icon.svg" type="image/svg+xml">
<link rel="stylesheet" href="/static/style.css">
</head>
<body>
<header><a class="brand" href="/">{title}</a></header>
<main><h1>API reference</h1>
{content}
</main></body></html>
"""


def reference(document: Json) -> str:
    """The page about the API that `document` describes."""
    schemas = document["components"]["schemas"]
    content = [
        f"<p>{_prose(document['info']['summary'])}, version {escape(document['info']['version'])}. Programs read "
        f'<a href="openapi.json">openapi.json</a>. {_link("errors", "Errors")}, {_link("types", "types")}.</p>',
        *_contents(document["paths"]),
        *(part for path, operation in _operations(document["paths"]) for part in _operation(path, operation)),
        _errors(document["paths"]),
        '<h2 id="types">Types</h2>',
        *(part for name in sorted(schemas) for part in _schema(name, schemas[name])),
    ]
    return FRAME.format(title=escape(document["info"]["title"]), content="\n".join(content))


def _operations(paths: Json) -> Iterator[tuple[str, Json]]:
    """(method and path, operation) in the order of the description."""
    for path, methods in paths.items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def _contents(paths: Json) -> Iterator[str]:
    rows = [[_link(each["operationId"], path), _prose(_first(each))] for path, each in _operations(paths)]
    yield _table(["Path", ""], rows)


def _operation(path: str, operation: Json) -> Iterator[str]:
    yield f'<section class="panel"><h2 id="{escape(operation["operationId"])}"><code>{escape(path)}</code></h2>'
    yield f"<p>{_prose(operation.get('description', ''))}</p>"
    needed = ["a token" if "bearer" in each else "a signed link" for each in operation.get("security", ())]
    yield f"<p class=faint>Needs {' or '.join(needed) or 'no token'}.</p>"
    rows = [
        [f"<code>{escape(each['name'])}</code>", each["in"], _type(each["schema"]), _described(each)]
        for each in operation.get("parameters", ())
    ]
    if "requestBody" in operation:
        rows.append(["", "body", _bodies(operation["requestBody"]["content"]), ""])
    if rows:
        yield _table(["Parameter", "In", "Type", "Meaning"], rows)
    answers = operation["responses"]
    rows = [[status, _bodies(answers[status].get("content", {}))] for status in sorted(answers) if status < ERRORS]
    yield _table(["Status", "Answer"], rows)
    yield f"<p>Errors: {', '.join(_link(f'error-{each}', each) for each in sorted(answers) if each >= ERRORS)}.</p>"
    yield "</section>"


def _errors(paths: Json) -> str:
    """What each status of an error means; it means the same for every path."""
    answers = [each["responses"] for _, each in _operations(paths)]
    said = {status: each["description"] for found in answers for status, each in found.items() if status >= ERRORS}
    rows = [[f'<span id="error-{status}">{status}</span>', _prose(said[status])] for status in sorted(said)]
    head = f'<h2 id="errors">Errors</h2><p>Every error is a {_link("type-Problem", "Problem")}.</p>'
    return head + _table(["Status", ""], rows)


def _schema(name: str, schema: Json) -> Iterator[str]:
    yield f'<section class="panel"><h3 id="type-{escape(name)}">{escape(name)}</h3>'
    yield f"<p>{_prose(schema.get('description', ''))}</p>"
    required = schema.get("required", ())
    rows = [
        [f"<code>{escape(field)}</code>", _type(each), "" if field in required else "optional", _described(each)]
        for field, each in schema.get("properties", {}).items()
    ]
    yield f"{_table(['Field', 'Type', '', 'Meaning'], rows) if rows else ''}</section>"


def _bodies(content: Json) -> str:
    return "<br>".join(f"<code>{escape(kind)}</code> {_type(each.get('schema', {}))}" for kind, each in content.items())


def _type(schema: Json) -> str:
    """The type that `schema` describes, in one line."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return _link(f"type-{name}", name)
    for choice in ("anyOf", "oneOf"):
        if choice in schema:
            return " or ".join(map(_type, schema[choice]))
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        shown = (each if isinstance(each, str) else json.dumps(each) for each in values)
        return " or ".join(f"<code>{escape(each)}</code>" for each in shown)
    kind = schema.get("type", "any")
    if kind == "array":
        return f"list of {_type(schema.get('items', {}))}"
    if isinstance(schema.get("additionalProperties"), Mapping):
        return f"name → {_type(schema['additionalProperties'])}"
    return escape(schema.get("format", kind))


def _described(each: Json) -> str:
    """What is said about a parameter or a field: its meaning, and its default."""
    default = each.get("default", each.get("schema", {}).get("default"))
    said = [_prose(each.get("description", ""))]
    if default not in (None, "", [], {}):
        said.append(f"Default: <code>{escape(str(default))}</code>.")
    return " ".join(filter(None, said))


def _first(operation: Json) -> str:
    return re.split(r"(?<=\.)\s", str(operation.get("description", "")))[0]


def _prose(text: str) -> str:
    """`text` as HTML; what is between backticks is code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text)).replace("\n\n", "<br>")


def _link(target: str, text: str) -> str:
    return f'<a href="#{escape(target)}">{escape(text)}</a>'


def _table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = "".join(f"<th scope=col>{each}</th>" for each in columns)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
