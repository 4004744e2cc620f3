"""Forgetting batches that were withdrawn: a job's results are then, to the byte, as if they had never been sent."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..coverage import EMPTY, Coverage, Rows, before
from ..jobs.forget import forget
from ..jobs.job import Job
from ..outputs.results import excluded_rows
from ..progress import Progress


def forget_withdrawn(job: Job, withdrawn: Mapping[str, Sequence[Rows]], progress: Progress) -> int:
    """Subtract `withdrawn` rows, by layer, from what `job` has counted, and never count them; how many it had counted.

    What it has forgotten before, or does not count (`rows`), costs nothing. Raises as `forget` does.
    """
    if not withdrawn:
        return 0
    arrays = {layer.name: layer.address for layer in job.selected().layers}
    forgotten = 0
    for layer in sorted(withdrawn.keys() & arrays.keys()):
        known = excluded_rows(Path(job.output), layer).get(arrays[layer], EMPTY)
        gone = Coverage.of(map(tuple, withdrawn[layer]))  # type: ignore[arg-type]  # JSON has lists
        rows = (gone & before(sys.maxsize, job.rows)) - known
        if rows:
            progress.say(f"forgetting rows {rows} of layer {layer}, which were withdrawn")
            forgotten += sum(each.rows for each in forget(job, *rows.ranges, layers=_escaped(layer), progress=progress))
    return forgotten


def _escaped(layer: str) -> str:
    """A glob that matches `layer` alone."""
    return "".join(f"[{char}]" if char in "*?[" else char for char in layer)
