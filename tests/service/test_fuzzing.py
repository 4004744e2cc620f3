"""Fuzzed from its own description: whatever a client sends, the service answers, and never with 500."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from served import STORE, Served, served

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)
LEFT_OUT = "(events|prune)$"
"""A stream goes on for as long as a job does; pruning removes what is known."""


def fuzz(service: Served, folder: Path, phases: str, examples: int, known: Mapping[str, str], *options: str) -> None:
    """Send what the description allows, and what it does not, with `known` values for some parameters."""
    folder.mkdir()
    values = "".join(f'"{name}" = "{value}"\n' for name, value in known.items())
    (folder / "schemathesis.toml").write_text(f"[parameters]\n{values}")
    command = [str(Path(sys.executable).with_name("st")), "run", f"{service.url}/api/v1/openapi.json"]
    command += ["--header", f"Authorization: Bearer {service.token}", "--checks", ",".join(CHECKS), "--no-color"]
    command += ["--phases", phases, "--max-examples", str(examples)]
    command += ["--seed", "1", "--request-timeout", "30", "--exclude-path-regex", LEFT_OUT, *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=1200, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


LIMITS = {"waiting_jobs": 100_000, "stores": 20, "body": "1MiB", "upload": "1MiB"}


ALL = "examples,coverage,fuzzing"


@pytest.mark.parametrize(("phases", "examples"), [("fuzzing", 8), pytest.param(ALL, 200, marks=pytest.mark.soak)])
def test_no_request_about_what_is_there_is_answered_with_500(tmp_path: Path, phases: str, examples: int) -> None:
    with served(tmp_path / "service", limits=LIMITS) as service, service.client() as client:
        client.ingest("s", "l", np.ones((4, 2), np.float32))
        job = client.wait(client.submit({"kind": "run", "source": STORE}).id)
        known = {"job": job.id, "store": "s", "layer": "fc", "name": "manifest.json"}
        fuzz(service, tmp_path / "known", phases, examples, known, "--exclude-method", "DELETE")
        assert client.job(job.id).state == "done"


@pytest.mark.soak
def test_no_request_is_answered_with_500(tmp_path: Path) -> None:
    with served(tmp_path / "service", limits=LIMITS) as service:
        fuzz(service, tmp_path / "anything", ALL, 200, {})
