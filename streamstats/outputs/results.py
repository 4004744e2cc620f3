"""What a run leaves in its output folder: the state of each array, the corrector of each layer, and the manifest.

Layers that read the same array share its state; each finds its statistics and its corrector by its own name.

Each file is written whole, the manifest last. The reader checks every file against its SHA-256 in the manifest, so it
detects, and never uses, a mix of old and new files that an interrupted run has left.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from ..address import local_path
from ..calibration.addresses import Address
from ..correction import BiasCorrector, MeanBiasCorrector, TapBiasCorrector
from ..coverage import Coverage, OpenRows
from ..errors import DataError, UsageError, counted, listed, suggestion
from ..interrupts import Deferred
from ..layouts import Kernel
from ..storage.files import file_digest, holds, make_folders, remove, temporaries, write_bytes
from ..storage.names import layer_of, layer_path, network_order
from ..storage.tensors import content_digest
from .documents import counted_document
from .layer_statistics import LayerStatistics
from .ledger import Ledger, by_layer, read_as
from .manifest import MANIFEST, NOT_YET, FileEntry, GapsOf, LayerEntry, Manifest, explained, read_manifest
from .shortfalls import Shortfall
from .state import read_excluded, read_state, state_bytes

STATE, CORRECTORS = "state", "correctors"
UNREAD = "no layer reads it"
WRITERS = 16
"""Files written at the same time: writers wait for the disk, which serves many at once."""


@dataclass(frozen=True)
class Results:
    """The results of a run in the folder `output`, as its `manifest` lists them."""

    output: Path
    manifest: Manifest

    def __repr__(self) -> str:
        return f"<Results in {self.output}: {counted(len(self.layers), 'layer')}>"

    @property
    def layers(self) -> list[str]:
        """The names of the layers, as they were recorded, and of the arrays that no layer reads."""
        entries = self.manifest.layers
        return sorted(entries, key=lambda layer: network_order(entries[layer].order, layer))

    @property
    def source(self) -> str | None:
        """The calibration store, or all of them; None for merged results."""
        return None if self.manifest.merged else ", ".join(self.manifest.sources)

    def statistics(self, layer: str) -> LayerStatistics:
        """The statistics of `layer`. Raises `UsageError` for an unknown layer, `DataError` for a damaged file."""
        entry = self._entry(layer)
        path = self._checked(STATE, entry.array, entry.state)
        found = _of_layer(read_state(path), entry.array, path)
        return read_as(found, layer) if layer in found.read_by.names else found

    def corrector_path(self, layer: str) -> Path | None:
        """The corrector's file, or None if the layer has none. Raises as `statistics` does."""
        corrector = self._entry(layer).corrector
        return None if isinstance(corrector, str) else self._checked(CORRECTORS, layer, corrector)

    def without_corrector(self, layers: Iterable[str]) -> dict[str, str]:
        """Those of `layers` that were counted and have no corrector → why."""
        entries = {layer: self.manifest.layers[layer] for layer in layers if layer in self.manifest.layers}
        return {layer: each.corrector for layer, each in entries.items() if isinstance(each.corrector, str)}

    def masked(self, layers: Iterable[str]) -> list[str]:
        """Those of `layers` that were counted with a mask."""
        return [layer for layer in layers if layer in self.manifest.layers and self._entry(layer).has_mask]

    def is_read(self, layer: str) -> bool:
        """Whether it is a layer of the model; otherwise it is an array that no layer reads. Raises `UsageError`."""
        return self._entry(layer).corrector != UNREAD

    def _entry(self, layer: str) -> LayerEntry:
        if layer not in self.manifest.layers:
            has = f"{listed(self.layers)}{suggestion(layer, self.layers)}"
            raise UsageError(f"{self.output} has no layer {layer!r}; it has {has}")
        return self.manifest.layers[layer]

    def _checked(self, kind: str, layer: str, entry: FileEntry) -> Path:
        path = layer_path(self.output / kind, layer)
        if file_digest(path) != entry.sha256:
            raise DataError(
                f"{path} does not match its SHA-256 in {MANIFEST}: a run was interrupted while it wrote its results, "
                "or the file is damaged; run the job again"
            )
        return path


def open_results(output: str | Path) -> Results:
    """Open the output folder of a run. Raises `UsageError` if it is none, `DataError` if its manifest is damaged."""
    manifest = read_manifest(local_path(output))
    if manifest is None:
        raise UsageError(f"{output} has no {MANIFEST}; expected the output folder of a finished `streamstats run`")
    return Results(Path(output), manifest)


def load(output: str | Path) -> dict[str, LayerStatistics]:
    """The statistics of every layer in the output folder of a run, by name, as `reduce` returns them.

    Raises `UsageError` if it is no output of a finished run, and `DataError` for a damaged file.

    >>> ss.load("out")["fc"].mean
    array([4., 6.])
    """
    results = open_results(output)
    return {layer: results.statistics(layer) for layer in results.layers}


def still_missing(ledger: Ledger, gaps: GapsOf) -> GapsOf:
    """Those of the `gaps` of a layer whose rows are still neither counted nor excluded."""
    if ledger.is_merged:  # gaps do not say which of its sources they belong to
        return {}
    found = {
        source.address: tuple(
            gap for gap in explained(source.missing(source.rows), gaps.get(source.address, ())) if gap[1] != NOT_YET
        )
        for source in ledger.sources
    }
    return {address: left for address, left in found.items() if left}


def write_results(
    output: Path,
    sources: Sequence[str],
    statistics: Mapping[str, LayerStatistics],
    gaps: Mapping[str, GapsOf] | None = None,
    *,
    carried: Mapping[str, LayerEntry] | None = None,
    merged: bool = False,
    rows: OpenRows | None = None,
    min_rows: Mapping[str, int] | None = None,
    unreadable: Mapping[str, str] | None = None,
    merged_from: Mapping[str, str] | None = None,
    coordinates: Mapping[str, str] | None = None,
    keep_states: bool = False,
) -> None:
    """Write the state of every array in `statistics` and the corrector of every layer, then the manifest; remove the
    files of all others.

    `carried` are entries of other layers, whose files stay as they are. `rows` is the range to which the job was
    limited; `min_rows` is what it asked for, by array; `unreadable` are arrays that were not counted, with the reasons,
    and so are `coordinates`; `merged_from` are merged outputs, as `staleness` identifies them. With `keep_states`, the
    states of other arrays stay, for later jobs that include these again. All content is computed before any is written,
    and files that already have their content are not rewritten. Raises `UsageError` for a mean beyond float64,
    `OutputError` if a file cannot be written.
    """
    files: dict[Path, bytes] = {}
    known, asked = gaps or {}, min_rows or {}
    layers: dict[str, LayerEntry] = {**(carried or {})}
    for name, found in sorted(statistics.items()):
        layers |= _entries(output, found, known.get(name, {}), asked.get(name, 0), files)
    _write_all(files)
    listed_files = {output / each.file for entry in layers.values() for each in entry.files}
    for kind in (CORRECTORS,) if keep_states else (STATE, CORRECTORS):
        for path in set((output / kind).rglob("*.safetensors")) - listed_files:
            remove(path)
    Manifest(layers, tuple(sources), merged, rows, unreadable or {}, coordinates or {}, merged_from or {}).write(output)


def saved_since(output: Path, entries: Iterable[LayerEntry]) -> list[str]:
    """The arrays of those `entries` of a manifest whose states have been saved since it was written."""
    states = {entry.array: entry.state for entry in entries}
    paths = {array: output / state.file for array, state in states.items()}
    return [array for array, path in paths.items() if path.exists() and file_digest(path) != states[array].sha256]


def remove_leftovers(output: Path) -> None:
    """Remove the temporary files of killed processes; the caller must hold the output's lock."""
    for path in temporaries(output):
        remove(path)


def write_states(output: Path, ledgers: Iterable[Ledger]) -> None:
    """Write the states of `ledgers`, and leave all other files alone. Raises `OutputError`."""
    _write_all({layer_path(output / STATE, each.layer): state_bytes(each) for each in ledgers})


def read_states(output: Path, layers: Iterable[str]) -> dict[str, LayerStatistics]:
    """The states of those `layers` that have one. Raises `DataError` for a damaged state."""
    paths = {layer: layer_path(output / STATE, layer) for layer in layers}
    try:
        found = {layer: read_state(path) for layer, path in paths.items() if path.exists()}
    except DataError as error:
        if (output / MANIFEST).exists() or "remove it" not in str(error):
            raise
        raise DataError(
            f"{error}; there is no manifest to say which of its rows were forgotten, so repeat any `streamstats forget`"
        ) from error
    return {layer: _of_layer(statistics, layer, paths[layer]) for layer, statistics in found.items()}


def states_in(output: Path, manifest: Manifest | None) -> dict[str, LayerStatistics]:
    """The states in `output`, by array: those in its manifest, or all states if there is no manifest yet."""
    files = sorted((output / STATE).rglob("*.safetensors"))
    layers = manifest.arrays if manifest else [layer_of(output / STATE, path) for path in files]
    return read_states(output, layers)


def _of_layer(statistics: LayerStatistics, layer: str, path: Path) -> LayerStatistics:
    if statistics.layer != layer:
        raise DataError(
            f"{path} is the state of layer {statistics.layer}; expected that of layer {layer}; remove it and run again"
        )
    return statistics


def excluded_rows(output: Path, layer: str) -> dict[Address, Coverage]:
    """The excluded rows of the arrays of `layer`; as the manifest has them if the state was removed.

    Raises `DataError`.
    """
    path = layer_path(output / STATE, layer)
    if path.exists():
        return read_excluded(path)
    manifest = read_manifest(output)
    entry = None if manifest is None or manifest.merged else manifest.arrays.get(layer)
    return {} if entry is None else entry.excluded_by_source


def _write_all(files: Mapping[Path, bytes]) -> None:
    changed = {path: content for path, content in files.items() if not holds(path, content)}
    with Deferred(), ThreadPoolExecutor(WRITERS) as writers:
        make_folders(sorted({path.parent for path in changed}))
        for _ in writers.map(write_bytes, changed, changed.values()):
            pass  # `map` raises here what a writer raised


def check_no_store(output: Path) -> None:
    """Raise `UsageError` if `output` is a zarr array or group."""
    for name in ("zarr.json", ".zgroup", ".zarray"):
        if (output / name).exists():
            raise UsageError(f"output {output} is a zarr store (it holds {name}); choose another folder")


def check_paths(output: Path, layers: Iterable[str]) -> None:
    """Raise `UsageError` for a layer whose name is unusable or too long for a file name."""
    for layer in layers:
        layer_path(output / STATE, layer)


def _entries(
    output: Path, statistics: LayerStatistics, gaps: GapsOf, min_rows: int, files: dict[Path, bytes]
) -> dict[str, LayerEntry]:
    """The manifest's entries for the layers that read an array; adds the content of its files to `files`."""

    def add(kind: str, name: str, content: bytes) -> FileEntry:
        path = layer_path(output / kind, name)
        files[path] = content
        return FileEntry(path.relative_to(output).as_posix(), sha256(content).hexdigest())

    state, entries = add(STATE, statistics.layer, state_bytes(statistics)), {}
    for name, found in by_layer({statistics.layer: statistics}).items():
        corrector = _corrector(found) if found.read_by.names else UNREAD
        entries[name] = LayerEntry(
            rows=statistics.rows,
            array=statistics.layer,
            state=state,
            corrector=corrector if isinstance(corrector, str) else add(CORRECTORS, name, corrector.to_bytes()),
            gaps=gaps,
            min_rows=min_rows,
            shortfall=Shortfall.of(statistics, min_rows),
            counted=counted_document(found),
        )
    return entries


def _corrector(statistics: LayerStatistics) -> BiasCorrector | str:
    """The corrector of a layer, or the reason why it has none."""
    if statistics.masked_out:
        return "its mask is 0 everywhere, so there is no mean"
    without = np.flatnonzero(statistics.sums.count == 0)
    if len(without) == statistics.channels:
        return "no channel has a finite value, so there is no mean"
    if len(without):
        return f"channel {without[0]} has no finite value, so there is no mean"
    provenance, kernel = _provenance(statistics), statistics.space.kernel
    means = statistics.tap_mean if isinstance(kernel, Kernel) and kernel.taps else None
    if not isinstance(kernel, Kernel) or means is None:  # without taps, the one mean is the channel's
        return MeanBiasCorrector(statistics.mean, provenance)
    unknown = np.argwhere(np.isnan(means))
    if len(unknown):
        channel, *tap = unknown[0].tolist()
        return (
            f"channel {channel} has no finite value at some positions that tap {tuple(tap)} sees, so there is no mean"
        )
    return TapBiasCorrector(statistics.mean, means, kernel, provenance)


def _provenance(statistics: LayerStatistics) -> dict[str, str]:
    counts = np.unique(statistics.sums.count)
    document = statistics.document()
    return {
        "layer": statistics.layer,
        "rows": str(statistics.rows),
        "count": json.dumps(counts.item() if counts.size == 1 else statistics.sums.count.tolist()),
        "dtype": document["dtype"],
        "quantization": json.dumps(document["quantization"], sort_keys=True),
        "sums_sha256": content_digest(statistics.sums.arrays(), {"dtype": document["dtype"]}),
    }
