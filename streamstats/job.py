"""A job from end to end: choose the layers, plan, reduce, and leave state, correctors and a manifest.

The command line, the service and Python call these functions; there is no other way to a result.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np

from . import __version__, artifacts
from .calibration.layer import Layer
from .calibration.selection import LayerRule, Selected, select_layers
from .config import DEFAULT_MEMORY, JobConfig, available_cores, parse_bytes
from .correction import MeanBiasCorrector
from .errors import DataError, StreamstatsError, UsageError
from .ledger import LayerStatistics, missing_rows, read_state, state_bytes
from .plan import Plan, make_plan
from .reduction import local_client, reduce_tasks

MANIFEST = "manifest.json"
MANIFEST_FORMAT = "streamstats.manifest/1"

OnProgress = Callable[[int, int], None]
"""Called with the rows and the decoded bytes that a finished task adds."""


@dataclass(frozen=True)
class Prepared:
    """A reduction that is planned and not begun: the layers, what is counted of them so far, and the tasks."""

    selected: Selected
    ledger: Mapping[str, LayerStatistics]
    plan: Plan


def prepare(
    source: str | Path,
    *,
    layers: Sequence[LayerRule] = (),
    memory: str | int = DEFAULT_MEMORY,
    threads: int | None = None,
) -> Prepared:
    """Choose the layers of `source` and plan their reduction; no data is read. Arguments and errors as `reduce`."""
    selected = select_layers(source, layers)
    ledger = {layer.name: LayerStatistics.empty(layer) for layer in selected.layers}
    missing = {layer.name: missing_rows(ledger[layer.name].covered, layer.rows) for layer in selected.layers}
    try:
        budget = parse_bytes(memory)
    except ValueError as error:
        raise UsageError(f"memory is {memory!r}; {error}") from error
    plan = make_plan(selected.layers, missing, memory=budget, threads=threads or available_cores())
    return Prepared(selected, ledger, plan)


def execute(
    prepared: Prepared, *, nonfinite: Literal["error", "skip"] = "error", on_progress: OnProgress | None = None
) -> dict[str, LayerStatistics]:
    """Do the tasks of `prepared` and count what they measure. Arguments and errors as `reduce`."""
    if nonfinite not in ("error", "skip"):
        raise UsageError(f"nonfinite is {nonfinite!r}; expected 'error' or 'skip'")
    described = {layer.name: layer for layer in prepared.selected.layers}
    ledger = dict(prepared.ledger)
    if prepared.plan.tasks:
        with local_client(prepared.plan.threads) as client:
            for task, results in reduce_tasks(prepared.plan, described, client, nonfinite=nonfinite):
                for measured in results:
                    counted = ledger[measured.layer].count(measured.rows, measured.sums, measured.extrema)
                    ledger[measured.layer] = counted
                if on_progress:
                    on_progress(task.rows, task.bytes)
    _check_complete(prepared.selected.layers, ledger)
    return ledger


def reduce(
    source: str | Path,
    *,
    layers: Sequence[LayerRule] = (),
    memory: str | int = DEFAULT_MEMORY,
    nonfinite: Literal["error", "skip"] = "error",
    threads: int | None = None,
    on_progress: OnProgress | None = None,
) -> dict[str, LayerStatistics]:
    """The exact statistics of every layer of the calibration store at `source`, by name.

    `layers` chooses and describes layers (default: every array, as its attributes say); `memory` is the most the
    process may take; `nonfinite` "skip" leaves NaN and infinities out of sums and counts and counts them apart;
    `threads` defaults to the cores; `on_progress` is told of each finished task.

    Raises `UsageError` where the request cannot be met, `DataError` where the store cannot be read,
    `NonFiniteError` for NaN or infinities under "error".
    """
    prepared = prepare(source, layers=layers, memory=memory, threads=threads)
    return execute(prepared, nonfinite=nonfinite, on_progress=on_progress)


def _check_complete(layers: Sequence[Layer], ledger: Mapping[str, LayerStatistics]) -> None:
    for layer in layers:
        missing = missing_rows(ledger[layer.name].covered, layer.rows)
        if missing:
            raise StreamstatsError(f"layer {layer.name}: rows {missing} came back from no task; please report this")


# A run that leaves files


def run(
    config: JobConfig, *, on_plan: Callable[[Prepared], None] | None = None, on_progress: OnProgress | None = None
) -> dict[str, LayerStatistics]:
    """Do the job that `config` describes and write `state/`, `correctors/` and `manifest.json` to its output.

    `on_plan` is told the plan before any data is read. Files of an earlier run stay as they are until the reduction
    is done. Raises as `reduce` does, `UsageError` for an output that cannot be written, which is tried first, and
    `OutputError` for one that fails later.
    """
    prepared = prepare(
        config.source, layers=config.rules(), memory=config.memory, threads=config.cluster.thread_count()
    )
    output = Path(config.output)
    artifacts.check_writable(output)
    if on_plan:
        on_plan(prepared)
    statistics = execute(prepared, nonfinite=config.nonfinite, on_progress=on_progress)
    write_results(output, config.source, statistics)
    return statistics


def write_results(output: Path, source: str, statistics: Mapping[str, LayerStatistics]) -> None:
    """Write the state and the corrector of every layer, then the manifest; remove the files of layers that are gone."""
    previous = _listed_files(output)
    layers = {name: _write_layer(output, statistics[name]) for name in sorted(statistics)}
    manifest = {
        "format": MANIFEST_FORMAT,
        "layers": layers,
        "source": source,
        "versions": {"streamstats": __version__, "numpy": np.__version__},
    }
    artifacts.write_json(output / MANIFEST, manifest)
    for name in previous - _files_of(layers):
        artifacts.remove(output / name)


def _write_layer(output: Path, statistics: LayerStatistics) -> dict[str, Any]:
    state = artifacts.layer_path(output / "state", statistics.layer)
    content = state_bytes(statistics)
    artifacts.write_bytes(state, content)
    return {
        "rows": statistics.rows,
        "covered": [list(rows) for rows in statistics.covered],
        "channels": statistics.channels,
        "dtype": str(statistics.sums.dtype),
        "nan": int(statistics.sums.nan.sum()),
        "infinite": int(statistics.sums.infinite.sum()),
        "state": {"file": state.relative_to(output).as_posix(), "sha256": sha256(content).hexdigest()},
        "corrector": _write_corrector(output, statistics),
    }


def _write_corrector(output: Path, statistics: LayerStatistics) -> dict[str, Any]:
    """Write the corrector of a layer, or say why there is none."""
    without = np.flatnonzero(statistics.sums.count == 0)
    if len(without) == statistics.channels:
        return {"file": None, "reason": "no channel has a finite value, so there is no mean"}
    if len(without):
        return {"file": None, "reason": f"channel {without[0]} has no finite value, so there is no mean"}
    path = artifacts.layer_path(output / "correctors", statistics.layer)
    MeanBiasCorrector(statistics.mean, _provenance(statistics)).save(path)
    return {"file": path.relative_to(output).as_posix(), "sha256": artifacts.file_digest(path)}


def _provenance(statistics: LayerStatistics) -> dict[str, str]:
    counts = np.unique(statistics.sums.count)
    quantization = statistics.quantization
    return {
        "layer": statistics.layer,
        "rows": str(statistics.rows),
        "count": json.dumps(counts.item() if counts.size == 1 else statistics.sums.count.tolist()),
        "dtype": str(statistics.sums.dtype),
        "quantization": json.dumps(quantization.to_metadata() if quantization else None, sort_keys=True),
        "sums_sha256": statistics.sums_digest(),
    }


# Reading what a run left


@dataclass(frozen=True)
class Results:
    """What a run left in `output`: its manifest, and the statistics of each layer when asked for."""

    output: Path
    manifest: dict[str, Any]

    @property
    def layers(self) -> list[str]:
        """The names of the layers, in order."""
        return sorted(self.manifest["layers"])

    def statistics(self, layer: str) -> LayerStatistics:
        """The statistics of `layer`. Raises `UsageError` if there is no such layer, `DataError` if it is damaged."""
        if layer not in self.manifest["layers"]:
            raise UsageError(f"{self.output} has no layer {layer!r}; it has {', '.join(self.layers)}")
        path = artifacts.layer_path(self.output / "state", layer)
        found, expected = artifacts.file_digest(path), self.manifest["layers"][layer]["state"]["sha256"]
        if found != expected:
            raise DataError(f"{path} has the SHA-256 {found}, the manifest says {expected}; run the job again")
        return read_state(path)


def open_results(output: str | Path) -> Results:
    """Open the folder that a run left. Raises `UsageError` if it is not one, `DataError` for a damaged manifest."""
    path = Path(output) / MANIFEST
    if not path.is_file():
        raise UsageError(f"{output} has no {MANIFEST}; expected the output folder of `streamstats run`")
    manifest = artifacts.read_json(path)
    if manifest.get("format") != MANIFEST_FORMAT or not isinstance(manifest.get("layers"), dict):
        raise DataError(f"{path} has the format {manifest.get('format')!r}, expected {MANIFEST_FORMAT!r}")
    return Results(Path(output), manifest)


def _listed_files(output: Path) -> set[str]:
    try:
        return _files_of(open_results(output).manifest["layers"])
    except UsageError:
        return set()


def _files_of(layers: Mapping[str, Mapping[str, Any]]) -> set[str]:
    kinds = [entry[kind]["file"] for entry in layers.values() for kind in ("state", "corrector")]
    return {file for file in kinds if file is not None}
