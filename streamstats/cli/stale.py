"""What commands that read merged results say if these are stale."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import listed
from ..outputs.manifest import read_manifest
from ..outputs.staleness import stale_outputs
from .tables import say


def say_if_stale(output: str | Path) -> None:
    """Name the outputs that were merged into `output` and have changed since. Raises as `read_manifest`."""
    manifest = read_manifest(Path(output))
    say_stale([] if manifest is None else stale_outputs(manifest.merged_from))


def say_stale(outputs: Sequence[str]) -> None:
    """Name merged outputs that have changed since."""
    if outputs:
        say(f"stale: rows were counted or forgotten in {listed(outputs)} since the merge; merge again")
