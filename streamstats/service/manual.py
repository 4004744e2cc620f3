"""The manual: the pages that `make docs` builds into the package, at `/manual/`. They hold nothing but documentation.

Its generator writes small scripts into the pages. The policy of these pages allows those that were built, by their
digests, and no others; the policy of all other pages stays as it is.
"""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha256
from pathlib import Path

from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from .access import MANUAL
from .answers import problem
from .static import Files

FOLDER = Path(__file__).parent / "manual"
START = "index.html"
INLINE = re.compile(r"<script>(.*?)</script>", re.DOTALL)
POLICY = (
    "default-src 'none'; script-src 'self' {}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "font-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
ABSENT = (
    "this installation has no manual: install a wheel that `make package` built or, in a clone, run `make docs` and "
    "start the service again"
)


def is_built() -> bool:
    """Whether the package has the manual."""
    return (FOLDER / START).is_file()


def manual() -> ASGIApp:
    """What answers below `/manual/`: the pages or, if they were not built, how to get them."""
    return _Pages(FOLDER) if is_built() else _absent


def _policy(folder: Path) -> str:
    texts = (page.read_text(encoding="utf-8") for page in sorted(folder.rglob("*.html")))
    scripts = dict.fromkeys(script for text in texts for script in INLINE.findall(text))
    digests = (b64encode(sha256(script.encode()).digest()).decode() for script in scripts)
    return POLICY.format(" ".join(f"'sha256-{each}'" for each in digests))


class _Pages(Files):
    def __init__(self, folder: Path) -> None:
        super().__init__(directory=str(folder))
        self._policy = _policy(folder)

    async def get_response(self, path: str, scope: Scope) -> Response:
        if path == ".":
            return RedirectResponse(f"{MANUAL}{START}")
        answer = await super().get_response(path, scope)
        answer.headers["content-security-policy"] = self._policy
        return answer


async def _absent(scope: Scope, receive: Receive, send: Send) -> None:
    await problem(404, ABSENT)(scope, receive, send)
