"""The `streamstats` command as a person types it, timed from the start of the process to its end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measuring import RSS_UNIT
from stores import LayerSource, Source

COMMAND = (sys.executable, "-m", "streamstats")


@dataclass(frozen=True)
class Finished:
    """A process that has ended: seconds from start to end, peak resident bytes, exit status, and its stderr."""

    seconds: float
    peak_bytes: int
    status: int
    messages: str


def streamstats(*arguments: str) -> Finished:
    """Run the command. Raises `RuntimeError` with what it said if it fails."""
    return run_to_the_end([*COMMAND, *arguments])


def run_to_the_end(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Finished:
    """Run `command`, its output discarded. Raises `RuntimeError` with what it said if it fails."""
    finished = run_process(command, environment)
    if finished.status:
        raise RuntimeError(f"{' '.join(command)} exited with {finished.status}: {finished.messages}")
    return finished


def run_process(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Finished:
    """Run `command` whatever its exit status. The peak is at least that of this process, which stays small."""
    with tempfile.TemporaryFile() as messages:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, env={**os.environ, **(environment or {})}, stdout=subprocess.DEVNULL, stderr=messages
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        messages.seek(0)
        peak = usage.ru_maxrss * RSS_UNIT
        return Finished(seconds, peak, process.returncode, messages.read().decode())


def write_config(folder: Path, source: Source, **settings: Any) -> Path:
    """A configuration file in `folder` (JSON, which is YAML) for all layers of `source`, output beside it."""
    config = {
        "source": source.path,
        "output": str(folder / "out"),
        "layers": [_layer_config(layer) for layer in source.layers],
        **settings,
    }
    path = folder / "config.yaml"
    path.write_text(json.dumps(config))
    return path


def _layer_config(layer: LayerSource) -> dict[str, Any]:
    config: dict[str, Any] = {"match": layer.name, "channel_axis": layer.channel_axis}
    if layer.step is not None:
        config["quantization"] = {"scale": layer.step, "scale_is": "step", "zero_point": layer.zero_point}
    return config
