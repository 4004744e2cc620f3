"""Fuzzed from its own description: whatever a client sends, the service answers, and never with 500."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from served import STORE, Served, served

EXAMPLES = {"quick": 3, "long": 300}
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)
STREAM = "events$"
"""Goes on for as long as a job does."""


def fuzz(service: Served, folder: Path, examples: int, known: Mapping[str, str], *options: str) -> None:
    """Send what the description allows, and what it does not, with `known` values for some parameters."""
    folder.mkdir()
    values = "".join(f'"{name}" = "{value}"\n' for name, value in known.items())
    (folder / "schemathesis.toml").write_text(f"[parameters]\n{values}")
    command = [str(Path(sys.executable).with_name("st")), "run", f"{service.url}/api/v1/openapi.json"]
    command += ["--header", f"Authorization: Bearer {service.token}", "--checks", ",".join(CHECKS), "--no-color"]
    command += ["--phases", "examples,coverage,fuzzing", "--max-examples", str(examples)]
    command += ["--seed", "1", "--request-timeout", "30", "--exclude-path-regex", STREAM, *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=1200, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@pytest.mark.parametrize("length", ["quick", pytest.param("long", marks=pytest.mark.soak)])
def test_no_request_is_answered_with_500(tmp_path: Path, length: str) -> None:
    limits = {"waiting_jobs": 20, "stores": 20, "body": "1MiB", "upload": "1MiB"}
    with served(tmp_path / "service", limits=limits) as service, service.client() as client:
        client.ingest("s", "l", np.ones((4, 2), np.float32))
        job = client.wait(client.submit({"kind": "run", "source": STORE}).id)
        fuzz(service, tmp_path / "anything", EXAMPLES[length], {})
        known = {"job": job.id, "store": "s", "layer": "fc", "name": "manifest.json"}
        fuzz(service, tmp_path / "known", EXAMPLES[length], known, "--exclude-method", "DELETE")
        assert client.job(job.id).state == "done"
