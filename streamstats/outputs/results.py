"""What a run leaves in its output folder: state and corrector of each layer, and a manifest of them all.

Each file is written whole, the manifest last. Reading checks every file against the manifest's SHA-256, so a set that
a stopped run left half new and half old is noticed, and never used.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..correction import BiasCorrector, MeanBiasCorrector, PositionBiasCorrector
from ..coverage import Rows
from ..errors import DataError, UsageError
from ..interrupts import Deferred
from ..storage.files import file_digest, holds, make_folders, read_json, remove, temporaries, write_bytes, write_json
from ..storage.names import check_layer_name, layer_path
from ..storage.tensors import check_format
from .ledger import LayerStatistics, read_state, state_bytes

MANIFEST = "manifest.json"
FORMAT = "streamstats.manifest/1"
STATE, CORRECTORS = "state", "correctors"
Gaps = tuple[tuple[Rows, str], ...]
"""Rows that could not be read, each range with the reason, in order and apart."""
NOT_YET = "not counted yet"
WRITERS = 16
"""Files written at the same time: a writer waits for the disk, which takes many at once."""


@dataclass(frozen=True)
class Results:
    """What a run left in `output`: SHA-256 (hex) of the state and of the corrector, if there is one, by layer."""

    output: Path
    states: Mapping[str, str]
    correctors: Mapping[str, str | None]
    source: str | None = None
    """Where the store was, None for merged results."""

    @property
    def layers(self) -> list[str]:
        """The names of the layers, in order."""
        return sorted(self.states)

    def statistics(self, layer: str) -> LayerStatistics:
        """The statistics of `layer`. Raises `UsageError` if there is no such layer, `DataError` if it is damaged."""
        self._check_layer(layer)
        return read_state(self._checked(STATE, layer, self.states[layer]))

    def corrector_path(self, layer: str) -> Path | None:
        """The corrector's file, None where there is none. Raises as `statistics` does."""
        self._check_layer(layer)
        digest = self.correctors[layer]
        return None if digest is None else self._checked(CORRECTORS, layer, digest)

    def _check_layer(self, layer: str) -> None:
        if layer not in self.states:
            raise UsageError(f"{self.output} has no layer {layer!r}; it has {', '.join(self.layers)}")

    def _checked(self, kind: str, layer: str, digest: str) -> Path:
        path = layer_path(self.output / kind, layer)
        if file_digest(path) != digest:
            raise DataError(
                f"{path} does not have the SHA-256 in {MANIFEST}: a run was stopped while it wrote its results, or the "
                "file is damaged; run the job again"
            )
        return path


def open_results(output: str | Path) -> Results:
    """Open the folder that a run left. Raises `UsageError` if it is not one, `DataError` for a damaged manifest."""
    path = Path(output) / MANIFEST
    if not path.is_file():
        raise UsageError(
            f"{output} has no {MANIFEST}; expected the output folder of a `streamstats run` that came to its end"
        )
    manifest = read_json(path)
    check_format(path, manifest.get("format"), FORMAT)
    try:
        return _parsed(Path(output), manifest["layers"], manifest.get("source"))
    except (AttributeError, KeyError, TypeError, UsageError) as error:
        raise DataError(
            f"{path} is damaged ({type(error).__name__}: {error}); remove it, and run again with --restart"
        ) from error


def _parsed(output: Path, layers: Mapping[str, Mapping[str, Any]], source: object) -> Results:
    for layer in layers:
        check_layer_name(layer)
    states = {layer: str(entry["state"]["sha256"]) for layer, entry in layers.items()}
    correctors = {layer: entry["corrector"].get("sha256") for layer, entry in layers.items()}
    return Results(output, states, correctors, source if isinstance(source, str) else None)


def read_manifest(output: Path) -> dict[str, Any]:
    """The manifest of `output` with layers and their rows, empty where there is none. Raises `DataError` for damage."""
    path = output / MANIFEST
    if not path.exists():
        return {}
    manifest = read_json(path)
    check_format(path, manifest.get("format"), FORMAT)
    try:
        for layer, entry in manifest["layers"].items():
            check_layer_name(layer)
            if type(entry["rows"]) is not int:
                raise TypeError(f"rows of layer {layer} are {entry['rows']!r}")
            for gap in entry.get("missing", ()):
                (int(gap["rows"][0]), int(gap["rows"][1]), str(gap["reason"]))
        if manifest.get("rows") is not None:
            int(manifest["rows"][0]), int(manifest["rows"][1])
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise DataError(f"{path} is damaged ({type(error).__name__}: {error}); remove it and run again") from error
    return manifest


def told_gaps(output: Path) -> dict[str, Gaps]:
    """The rows that are missing, as the manifest of `output` says. Raises `DataError` for damage."""
    told = {layer: entry.get("missing", ()) for layer, entry in read_manifest(output).get("layers", {}).items()}
    return {
        layer: tuple(((gap["rows"][0], gap["rows"][1]), str(gap["reason"])) for gap in gaps)
        for layer, gaps in told.items()
    }


def explained(missing: Iterable[Rows], gaps: Gaps) -> Gaps:
    """The `missing` rows with their reasons from `gaps`, both in order and apart, or NOT_YET.

    >>> explained([(0, 2), (4, 8)], (((5, 6), "damaged"),))
    (((0, 2), 'not counted yet'), ((4, 5), 'not counted yet'), ((5, 6), 'damaged'), ((6, 8), 'not counted yet'))
    """
    found: list[tuple[Rows, str]] = []
    first = 0
    for start, stop in missing:
        while first < len(gaps) and gaps[first][0][1] <= start:
            first += 1
        for (left, right), reason in islice(gaps, first, None):
            if left >= stop:
                break
            if start < left:
                found.append(((start, left), NOT_YET))
            found.append(((max(start, left), min(stop, right)), reason))
            start = min(stop, right)
        if start < stop:
            found.append(((start, stop), NOT_YET))
    return tuple(found)


def still_missing(statistics: LayerStatistics, gaps: Gaps) -> Gaps:
    """Those of the `gaps` of a layer that are still neither counted nor excluded."""
    if len(statistics.sources) != 1:  # of which one, nobody knows
        return ()
    missing = statistics.source.missing(statistics.source.rows)
    return tuple(gap for gap in explained(missing, gaps) if gap[1] != NOT_YET)


def write_results(
    output: Path,
    source: str | list[str],
    statistics: Mapping[str, LayerStatistics],
    gaps: Mapping[str, Gaps] | None = None,
    *,
    rows: Rows | None = None,
    keep_states: bool = False,
) -> None:
    """Write state and corrector of every layer, then the manifest; remove the files of layers that are gone.

    `rows` are those that the job was limited to. With `keep_states`, what was counted of other layers stays, for a job
    that wants them again. Nothing is written before all of it is computed, and no file that has its content already.
    Raises `UsageError` for a mean beyond float64, `OutputError` where a file cannot be written.
    """
    files: dict[Path, bytes] = {}
    known = gaps or {}
    manifest = {
        "format": FORMAT,
        "layers": {
            layer: _entry(output, statistics[layer], known.get(layer, ()), files) for layer in sorted(statistics)
        },
        "rows": rows,
        "source": source,
        "versions": {"streamstats": __version__, "numpy": np.__version__},
    }
    _write_all(files)
    for kind in (CORRECTORS,) if keep_states else (STATE, CORRECTORS):
        for path in _files_below(output / kind) - set(files):
            remove(path)
    write_json(output / MANIFEST, manifest)


def remove_leftovers(output: Path) -> None:
    """Take away the temporary files of a process that was killed while it wrote; nobody else may be writing."""
    for path in temporaries(output):
        remove(path)


def write_states(output: Path, statistics: Iterable[LayerStatistics]) -> None:
    """Write the states of some layers, whatever else is there. Raises `OutputError`."""
    _write_all({layer_path(output / STATE, each.layer): state_bytes(each) for each in statistics})


def read_states(output: Path, layers: Iterable[str]) -> dict[str, LayerStatistics]:
    """The states of those of `layers` that have one. Raises `DataError` for one that is damaged."""
    paths = {layer: layer_path(output / STATE, layer) for layer in layers}
    found = {layer: read_state(path) for layer, path in paths.items() if path.exists()}
    for layer, statistics in found.items():
        if statistics.layer != layer:
            raise DataError(f"{paths[layer]} is the state of layer {statistics.layer}; remove it and run again")
    return found


def _write_all(files: Mapping[Path, bytes]) -> None:
    changed = {path: content for path, content in files.items() if not holds(path, content)}
    with Deferred(), ThreadPoolExecutor(WRITERS) as writers:
        make_folders(sorted({path.parent for path in changed}))
        for _ in writers.map(write_bytes, changed, changed.values()):
            pass  # raises what a writer raised


def _files_below(folder: Path) -> set[Path]:
    return set(folder.rglob("*.safetensors"))


def check_no_store(output: Path) -> None:
    """Raise `UsageError` if `output` is a zarr array or group."""
    for name in ("zarr.json", ".zgroup", ".zarray"):
        if (output / name).exists():
            raise UsageError(f"output {output} is a zarr store ({name} is in it); choose another folder")


def check_paths(output: Path, layers: Iterable[str]) -> None:
    """Raise `UsageError` for a layer whose name is too long for a file."""
    for layer in layers:
        layer_path(output / STATE, layer)


def _entry(output: Path, statistics: LayerStatistics, gaps: Gaps, files: dict[Path, bytes]) -> dict[str, Any]:
    """The manifest's entry of a layer; the content of its files is added to `files`."""

    def add(kind: str, content: bytes) -> dict[str, Any]:
        path = layer_path(output / kind, statistics.layer)
        files[path] = content
        return {"file": path.relative_to(output).as_posix(), "sha256": sha256(content).hexdigest()}

    corrector = _corrector(statistics)
    if isinstance(corrector, BiasCorrector):
        entry = add(CORRECTORS, corrector.to_bytes())
    else:
        entry = {"file": None, "reason": corrector}
    missing = [{"rows": list(rows), "reason": reason} for rows, reason in gaps]
    state = add(STATE, state_bytes(statistics))
    return {**statistics.document(), "state": state, "corrector": entry, "missing": missing}


def _corrector(statistics: LayerStatistics) -> BiasCorrector | str:
    """The corrector of a layer, or the reason why there is none."""
    without = np.flatnonzero(statistics.sums.count == 0)
    if len(without) == statistics.channels:
        return "no channel has a finite value, so there is no mean"
    if len(without):
        return f"channel {without[0]} has no finite value, so there is no mean"
    provenance = _provenance(statistics)
    means = statistics.position_mean
    if means is not None and means.ndim > 1 and np.isfinite(means).all():
        return PositionBiasCorrector(means, provenance)
    return MeanBiasCorrector(statistics.mean, provenance)


def _provenance(statistics: LayerStatistics) -> dict[str, str]:
    counts = np.unique(statistics.sums.count)
    document = statistics.document()
    return {
        "layer": statistics.layer,
        "rows": str(statistics.rows),
        "count": json.dumps(counts.item() if counts.size == 1 else statistics.sums.count.tolist()),
        "dtype": document["dtype"],
        "quantization": json.dumps(document["quantization"], sort_keys=True),
        "sums_sha256": statistics.sums_digest(),
    }
