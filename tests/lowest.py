"""Prints constraints that pin each declared dependency, those of the extras among them, to its lowest version.

`make lowest` installs with them and runs the tests. Tools that only tests need, the extra `test`, are not pinned: no
user of the package installs them.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

OURSELVES = "streamstats-calibration"
BOUND = re.compile(r"(?P<name>[A-Za-z0-9._-]+)(\[[^]]*\])?>=(?P<version>[0-9.]+)(,<[0-9.]+)?")


def lowest(project: dict[str, Any]) -> Iterator[str]:
    """`name==version` for each dependency. Raises `ValueError` for one without a lower bound."""
    extras = {name: needs for name, needs in project["optional-dependencies"].items() if name != "test"}
    for need in sorted({need for needs in [project["dependencies"], *extras.values()] for need in needs}):
        if need.startswith(OURSELVES):
            continue
        found = BOUND.fullmatch(need)
        if found is None:
            raise ValueError(f"pyproject.toml: {need!r}; expected `name>=version`, or `name>=version,<version`")
        yield f"{found['name']}=={found['version']}"


if __name__ == "__main__":
    content = tomllib.loads(Path(sys.argv[1]).read_text())
    print("\n".join(lowest(content["project"])))
