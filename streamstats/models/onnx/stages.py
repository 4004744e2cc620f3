"""The stages of an iterative correction that are done: what its work folder holds, so that it can resume.

A stage is saved whole when its terms are found. The folder belongs to one plan, the models, correctors and samples that
determine all terms; another plan is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...errors import UsageError
from ...storage.files import make_folders, read_json, remove_folder, write_bytes, write_json
from ...storage.locks import locked
from ...storage.tensors import read_tensors, tensors_bytes
from ..linear import LayerCorrection

PLAN_FORMAT, STAGE_FORMAT = "streamstats.iterative/1", "streamstats.stage/1"
PLAN, LOCK, STAGES = "iterative.json", ".lock", "stage*.safetensors"


@contextmanager
def work_folder(work: Path, plan: Mapping[str, Any]) -> Iterator[None]:
    """Hold the folder `work` of `plan`, which no other process may use meanwhile; an empty one is removed at the end.

    Raises `UsageError` for a folder of another plan, or with files that no iterative correction left.
    """
    _check_folder(work)
    make_folders([work])
    with locked(work / LOCK, {"correcting": "layer by layer"}, lambda: True):
        if (work / PLAN).is_file():
            _check_plan(work, plan)
        else:
            write_json(work / PLAN, {"format": PLAN_FORMAT, **plan})
        try:
            yield
        finally:
            if not any(work.glob(STAGES)):  # nothing to resume from
                remove_folder(work)


def _check_folder(work: Path) -> None:
    if work.exists() and not work.is_dir():
        raise UsageError(f"{work} is a file; expected a folder, or nothing, for intermediate results")
    if work.exists() and not (work / PLAN).is_file() and any(not each.name.startswith(".") for each in work.iterdir()):
        raise UsageError(f"{work} has files in it that no iterative correction left; name a new or an empty folder")


def _check_plan(work: Path, plan: Mapping[str, Any]) -> None:
    if read_json(work / PLAN) != {"format": PLAN_FORMAT, **plan}:
        raise UsageError(
            f"{work} belongs to another iterative correction that did not finish: its models, samples, correctors or "
            "form differ; delete the folder, or name another with --work"
        )


def save_stage(work: Path, number: int, done: Sequence[LayerCorrection]) -> None:
    """Keep the terms, or the reasons, of the stage with this `number`. Raises `OutputError`."""
    terms = {each.layer: each.term for each in done if each.term is not None}
    reasons = {each.layer: each.reason for each in done if each.term is None}
    metadata = {"format": STAGE_FORMAT, "reasons": json.dumps(reasons, sort_keys=True)}
    write_bytes(_path(work, number), tensors_bytes(terms, metadata))


def saved_stage(work: Path, number: int, layers: Sequence[str]) -> list[LayerCorrection] | None:
    """What `save_stage` kept for `layers`, None for a stage that is not done. Raises `DataError` for a damaged file."""
    if not _path(work, number).is_file():
        return None
    terms, metadata = read_tensors(_path(work, number), STAGE_FORMAT)
    reasons = json.loads(metadata["reasons"])
    return [LayerCorrection(layer, term=terms.get(layer), reason=reasons.get(layer, "")) for layer in layers]


def _path(work: Path, number: int) -> Path:
    return work / f"stage{number:04}.safetensors"
