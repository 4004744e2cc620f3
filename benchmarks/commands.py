"""The `streamstats` command as a person types it, timed from the start of the process to its end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stores import LayerSource, Source

COMMAND = (sys.executable, "-m", "streamstats")


def streamstats(*arguments: str, environment: Mapping[str, str] | None = None) -> float:
    """The seconds that the command takes. Raises `RuntimeError` with what it said if it fails."""
    return timed_process([*COMMAND, *arguments], environment)


def timed_process(command: list[str], environment: Mapping[str, str] | None = None) -> float:
    """The seconds that `command` takes. Raises `RuntimeError` with what it said if it fails."""
    start = time.perf_counter()
    done = subprocess.run(
        command, env={**os.environ, **(environment or {})}, capture_output=True, check=False
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} exited with {done.returncode}: {done.stderr.decode()}")
    return seconds


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
