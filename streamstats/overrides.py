"""What a configuration takes from outside: `${NAME}` from the environment, and `key=value` from the command line."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from .errors import UsageError

VARIABLE = re.compile(r"\$(\$)?\{([^}]*)\}")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
Parse = Callable[[str], Any]
"""Text → what YAML reads it as. Raises `UsageError`."""


def substituted(
    document: Any, environment: Mapping[str, str], parse: Parse, replaced: Collection[str] = (), place: str = ""
) -> Any:
    """`document` with `${NAME}` in its texts replaced by what `environment` has; `$${` stands for `${`.

    A text that is one variable and nothing else is read as YAML, so that it may be a number. Keys are left as they are,
    and so is what is at the paths `replaced`. Raises `UsageError`, naming the key, for a name that is not set, and
    for an empty value if the text is that variable alone.
    """
    if place in replaced:
        return document
    if isinstance(document, dict):
        return {
            key: substituted(value, environment, parse, replaced, f"{place}.{key}".lstrip("."))
            for key, value in document.items()
        }
    if isinstance(document, list):
        return [
            substituted(value, environment, parse, replaced, f"{place}[{number}]")
            for number, value in enumerate(document)
        ]
    if not isinstance(document, str):
        return document
    whole = VARIABLE.fullmatch(document)
    text = VARIABLE.sub(lambda found: _value(found, environment, place), document)
    if not whole or whole[1]:
        return text
    if not text.strip():
        raise UsageError(
            f"`{place}` needs the environment variable {whole[2]}, which is empty; set it or correct the key"
        )
    return parse(text)


def _value(found: re.Match[str], environment: Mapping[str, str], place: str) -> str:
    escaped, name = found.groups()
    if escaped:
        return f"${{{name}}}"
    if not NAME.fullmatch(name):
        raise UsageError(f"`{place}` has ${{{name}}}; expected the name of an environment variable, or $${{ for text")
    if name not in environment:
        raise UsageError(
            f"`{place}` needs the environment variable {name}, which is not set; set it or correct the key"
        )
    return environment[name]


def paths_and_values(settings: Sequence[str]) -> dict[str, str]:
    """Path → text of the `settings`, each `key=value`, where a key may be a path, `cluster.threads`.

    Raises `UsageError` for anything else, and for a path that is given twice, or no value.
    """
    found: dict[str, str] = {}
    for setting in settings:
        path, equals, value = setting.partition("=")
        path = path.strip()
        if not equals or not all(path.split(".")):
            raise UsageError(f"--set is {setting!r}; expected KEY=VALUE, such as memory=4GiB or cluster.threads=2")
        if not value.strip():
            raise UsageError(f"--set gives `{path}` no value; expected KEY=VALUE, such as memory=4GiB, or {path}=null")
        if path in found:
            raise UsageError(f"--set gives `{path}` more than once; it takes one value, so give it once")
        found[path] = value
    return found


def with_settings(document: Mapping[str, Any], settings: Mapping[str, str], parse: Parse) -> dict[str, Any]:
    """`document` with the `settings`, path → text read as YAML, in place of what it has.

    Raises `UsageError` for a text that is not YAML, and for a path through what holds no keys.
    """
    changed = dict(document)
    for path, value in settings.items():
        _set(changed, path.split("."), parse(value), f"{path}={value}")
    return changed


def _set(document: dict[str, Any], keys: Sequence[str], value: Any, setting: str) -> None:
    first, *rest = keys
    if not rest:
        document[first] = value
        return
    below = document.get(first)
    if below is not None and not isinstance(below, dict):
        raise UsageError(f"--set {setting}: `{first}` is {below!r} and holds no keys; set it as a whole: {first}=VALUE")
    document[first] = dict(below or {})
    _set(document[first], rest, value, setting)
