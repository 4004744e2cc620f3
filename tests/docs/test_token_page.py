"""The page for who gets a token runs, as it is, on a service: as ann, with the role that the page assumes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from pages import HOW_TO, ROOT, blocks
from served import served

PAGE = HOW_TO / "service-token.md"
ADDRESS = "https://stats.example.com"


def test_the_page_for_who_gets_a_token_runs(tmp_path: Path) -> None:
    with served(tmp_path / "service") as service, service.client() as admin:
        (tmp_path / "ann.token").write_text(f"{admin.new_token('ann', 'submit')}\n")
        printed = ran(tmp_path, script().replace(ADDRESS, service.url))
        assert "fc" in printed.splitlines()[-1], printed
        assert admin.jobs().jobs == []
        assert admin.stores() == []
        assert {entry.who for entry in admin.audit().entries} == {"ann", "admin"}
    assert (tmp_path / ".config" / "streamstats" / "token").stat().st_mode & 0o777 == 0o600


def script() -> str:
    """The blocks of the page in one shell, without the installation."""
    return "\n".join(each.text for each in blocks(PAGE) if each.language == "bash" and "pip install" not in each.text)


def ran(folder: Path, commands: str) -> str:
    """What the commands print, in `folder` and with it as the home."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "HOME": str(folder)}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
