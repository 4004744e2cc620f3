"""Fuzzed from its own description: whatever a client sends, the service answers as described, and never with 500."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from served import STORE, Served, served

LEFT_OUT = "events$|/tokens/"
"""Events go on for as long as a job does; a token that is rotated or revoked ends the test."""
CONFIG = """
[checks]
# A set of results that was replaced is gone, which no schema can say.
positive_data_acceptance.expected-statuses = ["2xx", 401, 403, 404, 409, 410, "5xx"]

[[operations]]
# Which sources exist, and what is in a file, no schema can say, either.
include-method = "POST"
include-path-regex = "/jobs$|/corrections$|/stores/.*/layers/|/uploads$"
checks.positive_data_acceptance.expected-statuses = ["2xx", 401, 403, 404, 409, 422, "5xx"]
"""
LIMITS = {"waiting_jobs": 100_000, "stores": 20, "body": "1MiB", "upload": "1MiB"}
BRIEFLY = ["--phases", "fuzzing", "--max-examples", "4"]
PHASES = ["--phases", "examples,coverage,fuzzing,stateful"]
LONG, SHORTER = [*PHASES, "--max-time", "600"], [*PHASES, "--max-examples", "100"]


def fuzz(service: Served, folder: Path, known: Mapping[str, str], *options: str, left_out: str = LEFT_OUT) -> None:
    """Send what the description allows, and what it does not, with `known` values for some parameters."""
    folder.mkdir()
    values = "".join(f'"{name}" = "{value}"\n' for name, value in known.items())
    (folder / "schemathesis.toml").write_text(f"[parameters]\n{values}{CONFIG}")
    command = [str(Path(sys.executable).with_name("st")), "run", f"{service.url}/api/v1/openapi.json"]
    command += ["--header", f"Authorization: Bearer {service.token}", "--checks", "all", "--no-color", "--seed", "1"]
    command += ["--request-timeout", "30", "--exclude-path-regex", left_out, *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=1800, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "401/403 responses" not in done.stdout  # all of it would have been refused at the door


@pytest.mark.parametrize("options", [BRIEFLY, pytest.param(LONG, marks=pytest.mark.soak)], ids=["briefly", "long"])
def test_requests_about_what_exists_are_answered_as_described(tmp_path: Path, options: list[str]) -> None:
    with served(tmp_path / "service", limits=LIMITS) as service, service.client() as client:
        client.ingest("s", "l", np.ones((4, 2), np.float32))
        job = client.wait(client.submit({"kind": "run", "source": STORE}).id)
        known = {"job": job.id, "store": "s", "layer": "fc", "name": "manifest.json"}
        kept = ["--exclude-method", "DELETE"]
        fuzz(service, tmp_path / "known", known, *kept, *options, left_out=f"{LEFT_OUT}|/prune$")
        assert client.layers(job.id)["layers"]["fc"]["rows"] == 32  # whether or not it was run again, and cancelled


@pytest.mark.soak
def test_requests_about_anything_are_answered_as_described(tmp_path: Path) -> None:
    with served(tmp_path / "service", limits=LIMITS) as service:
        fuzz(service, tmp_path / "anything", {}, *SHORTER)
