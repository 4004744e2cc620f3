"""Merging: the results over the rows of several outputs, as if one run had counted them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..coverage import Rows
from ..errors import MismatchError, UsageError
from ..outputs.layer_statistics import LayerStatistics
from ..outputs.ledger import merge
from ..outputs.manifest import Manifest, read_manifest
from ..outputs.results import check_no_store, check_paths, states_in, still_missing, write_results
from ..outputs.saving import held


def merge_outputs(outputs: Sequence[Path], output: Path) -> dict[str, LayerStatistics]:
    """Write the statistics over the rows of all `outputs` to `output`, another folder.

    Layers that only one output has are copied; of several `min_rows` for a layer, the greatest applies. Raises
    `UsageError` for an output without states, `MismatchError` if outputs do not fit together or have counted the same
    row, `DataError`, `OutputError`.
    """
    if output.resolve() in {each.resolve() for each in outputs}:
        raise UsageError(f"{output} is one of the outputs to merge; choose another folder")
    merged = _merged(outputs)
    check_paths(output, merged)
    check_no_store(output)
    _check_not_of_a_run(output)
    manifests = [manifest for each in outputs if (manifest := read_manifest(each)) is not None]
    asked: dict[str, int] = {}
    told: dict[str, list[tuple[Rows, str]]] = {}
    for manifest in manifests:
        for layer, gaps in manifest.gaps().items():
            told.setdefault(layer, []).extend(gaps)
        for layer, rows in manifest.min_rows().items():
            asked[layer] = max(rows, asked.get(layer, 0))
    left = {layer: still_missing(merged[layer], tuple(sorted(told.get(layer, ())))) for layer in merged}
    with held(output, "merge", {layer: statistics.rows for layer, statistics in merged.items()}):
        write_results(output, _sources(manifests), merged, left, merged=True, min_rows=asked)
    return merged


def _merged(outputs: Sequence[Path]) -> dict[str, LayerStatistics]:
    merged: dict[str, LayerStatistics] = {}
    for each in outputs:
        states = states_in(each, read_manifest(each))
        if not states:
            raise UsageError(f"{each} has no states; expected the output folder of `streamstats run`")
        for layer, statistics in states.items():
            try:
                merged[layer] = merge(merged[layer], statistics) if layer in merged else statistics
            except MismatchError as error:
                raise MismatchError(f"{each}: {error}") from error
    return merged


def _check_not_of_a_run(output: Path) -> None:
    manifest = read_manifest(output)
    if manifest is not None and not manifest.merged:
        raise UsageError(f"{output} holds the results of a run; choose another folder for the merged results")


def _sources(manifests: Sequence[Manifest]) -> list[str]:
    return sorted({source for manifest in manifests for source in manifest.sources})
