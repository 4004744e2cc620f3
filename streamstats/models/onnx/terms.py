"""What to add to the outputs of each layer of a quantised ONNX model, from the correctors that a run left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...correction import BiasCorrector, PositionBiasCorrector
from ...errors import DataError, MismatchError, UsageError
from ...outputs.results import CORRECTORS, MANIFEST, open_results
from ...storage.names import layer_of, layer_path
from .graph import LeftOut, LinearLayer, attributes
from .quantized import Pair

Float64Array = npt.NDArray[np.float64]
SUFFIX = ".safetensors"


@dataclass(frozen=True, eq=False)
class Repair:
    """What to add to the outputs of a quantised layer: `term`, float64[outputs], or None and the `reason`."""

    pair: Pair
    term: Float64Array | None
    reason: str = ""


def find_correctors(out: Path, layers: Sequence[LinearLayer]) -> dict[str, Path]:
    """The corrector of each layer that has one. Raises `UsageError` where that is none of them."""
    if not (out / CORRECTORS).is_dir():
        raise UsageError(f"{out} has no folder {CORRECTORS}; expected what `streamstats run` leaves")
    names = [layer.name for layer in layers]
    found = _of_manifest(out, names) if (out / MANIFEST).exists() else _of_folder(out, names)
    if not found:
        raise UsageError(
            f"{out / CORRECTORS} holds no corrector for a layer of the model; its layers are: "
            f"{', '.join(names) or 'none'}"
        )
    return found


def _of_manifest(out: Path, names: Sequence[str]) -> dict[str, Path]:
    """The files that the manifest in `out` lists. Raises `DataError` for one that is not what it lists."""
    results = open_results(out)
    known = set(results.layers)
    paths = {name: results.corrector_path(name) for name in names if name in known}
    return {name: path for name, path in paths.items() if path is not None}


def _of_folder(out: Path, names: Sequence[str]) -> dict[str, Path]:
    """The files in `out`, which nobody vouches for."""
    paths = {name: layer_path(out / CORRECTORS, name) for name in names}
    return {name: path for name, path in paths.items() if path.is_file()}


def repairs_of(pairs: Sequence[Pair], correctors: Mapping[str, Path]) -> list[Repair]:
    """`(W − Ŵ)·E[x]` for each of `pairs`. Raises `MismatchError`, `DataError` for correctors that do not fit."""
    return [_repair(pair, correctors.get(pair.original.name)) for pair in pairs]


def _repair(pair: Pair, path: Path | None) -> Repair:
    if path is None:
        return Repair(pair, None, "no corrector: the run left none for it")
    corrector = load_corrector(path, pair.original.name)
    with naming(pair.original.name, path):
        term = correction_term(pair.quantized, corrector, pair.weight, pair.quantized.weight)
    return Repair(pair, None, "its corrector is null") if term is None else Repair(pair, term)


def load_corrector(path: Path, layer: str) -> BiasCorrector:
    """The corrector at `path`. Raises `DataError` for one that was made for another layer."""
    corrector = BiasCorrector.load(path)
    made_for = corrector.provenance.get("layer", layer)
    if made_for != layer:
        raise DataError(f"{path} was made for layer {made_for}, not for {layer}; run the job again")
    return corrector


@contextmanager
def naming(layer: str, path: Path) -> Iterator[None]:
    """Put the layer and its corrector in front of what a `MismatchError` says."""
    try:
        yield
    except MismatchError as error:
        raise MismatchError(f"layer {layer}, corrector {path}: {error}") from error


def correction_term(
    layer: LinearLayer, corrector: BiasCorrector, weight: npt.NDArray[Any], quantized: npt.NDArray[Any]
) -> Float64Array | None:
    """What to add to the outputs of `layer`, float64[outputs], where `quantized` stands for `weight`."""
    extents = corrector.position_mean.shape[1:] if isinstance(corrector, PositionBiasCorrector) else None
    term = corrector.calculate(
        weight,
        quantized,
        layout=layer.layout,
        groups=layer.groups,
        strides=layer.strides,
        geometry=None if extents is None else layer.geometry(extents),
    )
    return term if term is None or layer.op != "Gemm" else term * attributes(layer.node).get("alpha", 1.0)


def strays(out: Path, layers: Sequence[LinearLayer]) -> Iterator[LeftOut]:
    """Correctors in `out` that belong to none of `layers`."""
    folder = out / CORRECTORS
    expected = {layer_path(folder, layer.name) for layer in layers}
    for path in sorted(set(folder.rglob(f"*{SUFFIX}")) - expected):
        yield LeftOut(layer_of(folder, path), "", f"the model has no such layer; the corrector is {path}")
