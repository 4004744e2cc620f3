"""What a configuration takes from outside: `${NAME}` from the environment, and `key=value` from the command line."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .errors import UsageError

VARIABLE = re.compile(r"\$(\$)?\{([^}]*)\}")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
Parse = Callable[[str], Any]
"""Text → what YAML reads it as. Raises `UsageError`."""


def substituted(document: Any, environment: Mapping[str, str], parse: Parse, place: str = "") -> Any:
    """`document` with `${NAME}` in its texts replaced by what `environment` has; `$${` stands for `${`.

    A text that is one variable and nothing else is read as YAML, so that it may be a number. Keys are left as they are.
    Raises `UsageError`, naming the key, for a name that is not set.
    """
    if isinstance(document, dict):
        return {
            key: substituted(value, environment, parse, f"{place}.{key}".lstrip(".")) for key, value in document.items()
        }
    if isinstance(document, list):
        return [substituted(each, environment, parse, f"{place}[{number}]") for number, each in enumerate(document)]
    if not isinstance(document, str):
        return document
    whole = VARIABLE.fullmatch(document)
    text = VARIABLE.sub(lambda found: _value(found, environment, place), document)
    return parse(text) if whole and not whole[1] else text


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


def with_settings(document: Mapping[str, Any], settings: Sequence[str], parse: Parse) -> dict[str, Any]:
    """`document` with the `settings`, each `key=value`, in place of what it has.

    A key may be a path, `cluster.threads`. Values are read as YAML. Raises `UsageError` for anything else, and for a
    path through what holds no keys.
    """
    changed = dict(document)
    for setting in settings:
        path, equals, value = setting.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            raise UsageError(f"--set is {setting!r}; expected KEY=VALUE, such as memory=4GiB or cluster.threads=2")
        _set(changed, keys, parse(value), setting)
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
