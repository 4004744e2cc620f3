"""The command line in this process: a process of its own takes half a second of the processor to start.

What belongs to the process (signals, streams that end early, how it leaves) is tested with real ones, in
`tests/cli/test_cli.py` and `tests/cli/test_ending.py`.
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from unittest.mock import patch

from streamstats.cli import main


def streamstats(
    *arguments: str | Path, folder: Path | None = None, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """What `streamstats ARGUMENTS…` prints and returns, in this `folder` and with this `environment` as well."""
    command = [str(each) for each in arguments]
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    with (
        patch.dict(os.environ, {"COLUMNS": "120", **(environment or {})}),
        contextlib.chdir(folder or Path.cwd()),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            status = main(command)
        except SystemExit as end:  # the parser's
            status = end.code if isinstance(end.code, int) else 2
    printed, said = (each.buffer.getvalue().decode() for each in (out, err))  # type: ignore[attr-defined]
    return subprocess.CompletedProcess(command, status, printed, said)
