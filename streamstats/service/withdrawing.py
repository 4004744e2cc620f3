"""Forgetting batches that were withdrawn: a job's results are then, to the byte, as if they had never been sent."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from ..calibration.addresses import ONLY
from ..calibration.selection import ALL, LayerRule, rules_of
from ..coverage import EMPTY, Coverage, Rows, before
from ..errors import DataError
from ..jobs.forget import forget
from ..jobs.job import Job
from ..outputs.manifest import NOTHING, read_manifest
from ..outputs.results import excluded_rows
from ..progress import Progress
from .published import current, folder_of


def forget_withdrawn(job: Job, withdrawn: Mapping[str, Sequence[Rows]], progress: Progress, *, again: bool) -> int:
    """Subtract `withdrawn` rows, by layer, from what `job` has counted, and never count them; how many it had counted.

    What it has forgotten before, or does not count (`rows`), costs nothing. Unless the job counts `again`, layers that
    were deleted, or made, since it ended are neither read nor changed. Raises as `forget` does.
    """
    if not withdrawn:
        return 0
    output = Path(job.output)
    layers = {each.name for each in job.selected().layers} if again else (read_manifest(output) or NOTHING).layers
    forgotten = 0
    for layer in sorted(withdrawn.keys() & layers):
        known = excluded_rows(output, layer).get(ONLY, EMPTY)
        gone = Coverage.of(map(tuple, withdrawn[layer]))  # type: ignore[arg-type]  # JSON has lists
        rows = (gone & before(sys.maxsize, job.rows)) - known
        if rows:
            progress.say(f"forgetting rows {rows} of layer {layer}, which were withdrawn")
            forgotten += sum(each.rows for each in forget(_alone(job, layer), *rows.ranges, progress=progress))
    return forgotten


def counts(job: Path, withdrawn: Mapping[str, Coverage]) -> bool:
    """Whether the current result set of the job in the folder `job` counts rows that are `withdrawn`, by layer.

    Not if it is damaged: it cannot forget them either.
    """
    try:
        number = current(job)
        found = None if number is None else folder_of(job, number)
        layers = (NOTHING if found is None else read_manifest(found) or NOTHING).layers
    except DataError:
        return False
    return any(layers[name].covered & rows for name, rows in withdrawn.items() if name in layers)


def _alone(job: Job, layer: str) -> Job:
    """`job` as it counts `layer`, and no other."""
    rule = next(each for each in rules_of(job.layers) or (LayerRule(ALL),) if fnmatchcase(layer, each.match))
    return replace(job, layers=replace(rule, match=_escaped(layer)))


def _escaped(layer: str) -> str:
    """A glob that matches `layer` alone."""
    return "".join(f"[{char}]" if char in "*?[" else char for char in layer)
