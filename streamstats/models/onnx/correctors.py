"""The correctors that a run left, for the layers of an ONNX model, and those that belong to no layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from ...errors import UsageError, listed
from ...outputs.manifest import MANIFEST
from ...outputs.results import CORRECTORS, open_results
from ...storage.names import layer_of, layer_path
from ..account import told
from ..linear import EXACT, SAME_WEIGHT, LayerCorrection, load_corrector, planned_correction
from .layers import LeftOut, OnnxLayer
from .pairs import Pair

SUFFIX = ".safetensors"


def find_correctors(out: Path, layers: Sequence[OnnxLayer]) -> dict[str, Path]:
    """The corrector of each layer that has one. Raises `UsageError` if no layer has one."""
    names, of_a_run = [layer.name for layer in layers], (out / MANIFEST).exists()
    if not of_a_run and not (out / CORRECTORS).is_dir():
        found_instead = f"has neither {MANIFEST} nor a folder {CORRECTORS}" if out.exists() else "does not exist"
        raise UsageError(f"{out} {found_instead}; expected the output folder of `streamstats run` or `measure`")
    found = _of_manifest(out, names) if of_a_run else _of_folder(out, names)
    if found:
        return found
    if of_a_run and (reasons := open_results(out).without_corrector(names)):
        raise UsageError(
            f"{out} has no corrector for a layer of the model: {told(reasons.items())}; count samples that give one"
        )
    raise UsageError(
        f"{out} holds no corrector for a layer of the model; its layers are: {listed(names)}; expected the output of a "
        "run over what was recorded of this model"
    )


def _of_manifest(out: Path, names: Sequence[str]) -> dict[str, Path]:
    """The files that the manifest in `out` lists. Raises `DataError` for a file that differs from the manifest."""
    results = open_results(out)
    known = set(results.layers)
    paths = {name: results.corrector_path(name) for name in names if name in known}
    return {name: path for name, path in paths.items() if path is not None}


def _of_folder(out: Path, names: Sequence[str]) -> dict[str, Path]:
    """The files in `out`, without a manifest to check them against."""
    paths = {name: layer_path(out / CORRECTORS, name) for name in names}
    return {name: path for name, path in paths.items() if path.is_file()}


def check_masks(out: Path, layers: Sequence[OnnxLayer], mask: str | None) -> None:
    """Raise `UsageError` if layers in `out` were counted with a mask and `mask` is None, or without one and it is not.

    A folder of correctors alone does not say how they were counted.
    """
    if not (out / MANIFEST).exists():
        return
    masked = open_results(out).masked([layer.name for layer in layers])
    if masked and mask is None:
        raise UsageError(
            f"{out}: layer {masked[0]} was counted with a mask; name the input of the model that is the mask, too "
            "(--mask), so that the same positions count"
        )
    if mask is not None and not masked:
        raise UsageError(f"{out}: no layer was counted with a mask; record with the mask {mask}, or leave out --mask")


def one_pass(pairs: Sequence[Pair], correctors: Mapping[str, Path]) -> list[LayerCorrection]:
    """`(W − Ŵ)·E[x]` for each of `pairs`, not added yet. Raises as `load_corrector` and `planned_correction`."""
    return [_of_one_pass(pair, correctors) for pair in pairs]


def _of_one_pass(pair: Pair, correctors: Mapping[str, Path]) -> LayerCorrection:
    corrector = load_corrector(correctors.get(pair.name), pair.name)
    if pair.same_weight:
        return LayerCorrection(pair.name, reason=SAME_WEIGHT)
    if np.array_equal(pair.weight, pair.quantized.weight):
        return LayerCorrection(pair.name, reason=EXACT)
    weight, quantized = (pair.for_recorded(each) for each in (pair.weight, pair.quantized.weight))
    return planned_correction(pair.recorded_layer, corrector, weight, quantized)


def strays(out: Path, layers: Sequence[OnnxLayer]) -> Iterator[LeftOut]:
    """Correctors in `out` that belong to none of `layers`."""
    folder = out / CORRECTORS
    expected = {layer_path(folder, layer.name) for layer in layers}
    for path in sorted(set(folder.rglob(f"*{SUFFIX}")) - expected):
        yield LeftOut(layer_of(folder, path), "", f"the model has no such layer; the corrector is {path}")
