"""Correcting: an ONNX model with fake-quantised weights, and each layer's correction added to its bias.

Everything is computed before anything is written. What else uses a weight or a bias keeps the value it had: a
tensor keeps its name only if the corrected layers were its only users. The same model and correctors give the
same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt

from ..artifacts import layer_path, write_bytes
from ..correction import BiasCorrector, PositionBiasCorrector
from ..errors import DataError, MismatchError, UsageError, require
from ..layouts import Geometry
from ..quantization import check_bits
from ..results import CORRECTORS, MANIFEST, open_results
from .onnx_edit import GraphEdit
from .onnx_graph import LeftOut, LinearLayer, attributes, load_model, survey

if TYPE_CHECKING:
    import onnx

SUFFIX = ".safetensors"
OLDEST_OPSET = 7
SINGLE_FILE_BYTES = 2**31 - 2**24
EXTERNAL_TENSOR_BYTES = 1024


@dataclass(frozen=True)
class LayerCorrection:
    """What was done for one linear layer.

    `largest` is the largest magnitude of what was added to its output, over its `outputs` channels. `reason`
    says why a layer was not quantised or not corrected, or how a stored bias was changed. `step` is the largest step of
    a bias of codes, 0 for floats.
    """

    layer: str
    op: str
    quantized: bool = False
    corrected: bool = False
    reason: str = ""
    largest: float = 0.0
    outputs: int = 0
    step: float = 0.0

    def document(self) -> dict[str, Any]:
        """Its fields, JSON-ready."""
        return {
            "layer": self.layer,
            "operator": self.op,
            "quantized": self.quantized,
            "corrected": self.corrected,
            "reason": self.reason,
            "largest_term": self.largest,
            "outputs": self.outputs,
            "bias_step": self.step or None,
        }


WeightKey = tuple[str, int, int]


@dataclass(frozen=True)
class _Levels:
    """How weights are fake-quantised."""

    bits: int
    per_channel: bool
    symmetric: bool

    def key(self, layer: LinearLayer) -> WeightKey:
        """Layers with the same key share one fake-quantised weight: the same tensor with the same ranges."""
        return (layer.weight_name, *((layer.output_axis, layer.groups) if self.per_channel else (-1, 1)))

    def apply(self, layer: LinearLayer) -> npt.NDArray[Any]:
        """The layer's fake-quantised weight. Raises `UsageError` that names the layer."""
        try:
            return layer.fake_quantized(self.bits, per_channel=self.per_channel, symmetric=self.symmetric)
        except UsageError as error:
            raise type(error)(f"layer {layer.name}: {error}") from error


@dataclass(frozen=True, eq=False)
class _Change:
    """A layer's fake-quantised weight, and the term (float64[outputs], or None) to add to its output."""

    layer: LinearLayer
    key: WeightKey
    weight: npt.NDArray[Any]
    term: npt.NDArray[np.float64] | None
    reason: str


def correct(
    model_path: str | Path,
    correctors: str | Path,
    output: str | Path,
    *,
    bits: int,
    per_channel: bool = False,
    symmetric: bool = False,
    uncorrected: str | Path | None = None,
) -> list[LayerCorrection]:
    """Write to `output` the model with fake-quantised weights and corrected biases; the outcome for each
    layer.

    `correctors` is the folder that `streamstats run` leaves. `uncorrected` is where to write the model with
    fake-quantised weights alone, for comparison. A layer without a corrector is quantised and not corrected.
    A model of more than 2 GB gets its tensors in a file beside it, of the same name with `.data` behind it.

    Raises `UsageError` for bits outside 2…16, a model or a folder that is not usable; `MismatchError` for a
    corrector whose channels are not the layer's; `DataError` for one that is damaged, or not that of the
    manifest; `OutputError`.
    """
    check_bits(bits)
    check_paths(model_path, output, uncorrected)
    for target in (output, uncorrected):
        check_replaceable(target)
    model = load_model(model_path)
    _check_opset(model, model_path)
    layers, skipped = survey(model)
    found = find_correctors(Path(correctors), layers)
    changes = _changes(layers, found, _Levels(bits, per_channel, symmetric))
    files: list[tuple[Path, bytes]] = []
    if uncorrected is not None:
        files += to_files(_edited(load_model(model_path), changes, corrected=False), Path(uncorrected))
    files += to_files(_edited(model, changes), Path(output))  # last: it changes the nodes of `layers`
    for path, content in files:
        write_bytes(path, content)
    return [*map(_outcome, changes), *passed_over(skipped), *strays(Path(correctors), layers)]


def check_paths(*paths: str | Path | None) -> None:
    """Raise `UsageError` unless all are different files."""
    given = [Path(path).resolve() for path in paths if path is not None]
    if len(set(given)) < len(given):
        raise UsageError("the model, the output and the uncorrected output are not all different files; name others")


def check_replaceable(path: str | Path | None) -> None:
    """Refuse to write over a file that is no ONNX model: the model's own data, a corrector."""
    if path is not None and Path(path).exists() and Path(path).suffix != ".onnx":
        raise UsageError(f"{path} exists and is not called .onnx; name another file for the model")


def _check_opset(model: onnx.ModelProto, path: str | Path) -> None:
    version = next((opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx")), OLDEST_OPSET)
    if version < OLDEST_OPSET:
        raise UsageError(
            f"{path} has the operator set {version}; expected {OLDEST_OPSET} or later: convert it with "
            "onnx.version_converter"
        )


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


def _changes(layers: Sequence[LinearLayer], correctors: Mapping[str, Path], levels: _Levels) -> list[_Change]:
    weights: dict[WeightKey, npt.NDArray[Any]] = {}
    changes = []
    for layer in layers:
        key = levels.key(layer)
        if key not in weights:
            weights[key] = levels.apply(layer)
        changes.append(_Change(layer, key, weights[key], *_term(layer, weights[key], correctors.get(layer.name))))
    return changes


def _term(
    layer: LinearLayer, quantized: npt.NDArray[Any], path: Path | None
) -> tuple[npt.NDArray[np.float64] | None, str]:
    """(what to add to the layer's output, "") or (None, why there is nothing)."""
    if path is None:
        return None, "no corrector: the run left none for it"
    corrector = BiasCorrector.load(path)
    made_for = corrector.provenance.get("layer", layer.name)
    if made_for != layer.name:
        raise DataError(f"{path} was made for layer {made_for}, not for {layer.name}; run the job again")
    try:
        term = correction_term(layer, corrector, layer.weight, quantized)
    except MismatchError as error:
        raise MismatchError(f"layer {layer.name}, corrector {path}: {error}") from error
    return (None, "its corrector is null") if term is None else (term, "")


def correction_term(
    layer: LinearLayer, corrector: BiasCorrector, weight: npt.NDArray[Any], quantized: npt.NDArray[Any]
) -> npt.NDArray[np.float64] | None:
    """What to add to the outputs of `layer`, float64[outputs], where `quantized` stands for `weight`."""
    term = corrector.calculate(
        weight,
        quantized,
        layout=layer.layout,
        groups=layer.groups,
        strides=layer.strides,
        geometry=_geometry(layer, corrector),
    )
    return term if term is None or layer.op != "Gemm" else term * attributes(layer.node).get("alpha", 1.0)


def _geometry(layer: LinearLayer, corrector: BiasCorrector) -> Geometry | None:
    return layer.geometry(corrector.position_mean.shape[1:]) if isinstance(corrector, PositionBiasCorrector) else None


def _edited(model: onnx.ModelProto, changes: Sequence[_Change], *, corrected: bool = True) -> onnx.ModelProto:
    """`model` with the weights of `changes` in it, and their terms if `corrected`; it is changed in place."""
    edit = GraphEdit(model)
    by_weight: dict[WeightKey, list[_Change]] = {}
    for change in changes:
        by_weight.setdefault(change.key, []).append(change)
    for sharing in by_weight.values():
        nodes = [edit.node(change.layer.node.output[0]) for change in sharing]
        edit.replace_input(nodes, 1, sharing[0].weight, sharing[0].layer.weight_name)
    for change in changes if corrected else ():
        if change.term is not None:
            _add_term(edit, change.layer, change.term)
    return edit.finish()


def _add_term(edit: GraphEdit, layer: LinearLayer, term: npt.NDArray[np.float64]) -> None:
    node, dtype, label = edit.node(layer.node.output[0]), layer.weight.dtype, f"{layer.name}.bias"
    if layer.op == "MatMul":
        edit.add_behind(node, _cast(layer, term, dtype), label)
        return
    beta = attributes(node).get("beta", 1.0) if layer.op == "Gemm" else 1.0
    bias = node.input[2] if len(node.input) > 2 else ""
    if beta == 0.0 or not bias:
        _set_beta(layer, node)
        edit.replace_input([node], 2, _cast(layer, term, dtype), label)
    elif (constant := edit.constant(bias)) is not None:
        edit.replace_input([node], 2, _cast(layer, constant.astype(np.float64) + term / beta, dtype), bias)
    else:
        edit.add_before(node, 2, _cast(layer, term / beta, dtype), label)


def _set_beta(layer: LinearLayer, node: onnx.NodeProto) -> None:
    """A Gemm that had no bias, or ignored it, counts the one it gets once."""
    if layer.op == "Gemm":
        kept = [attribute for attribute in node.attribute if attribute.name != "beta"]
        del node.attribute[:]
        node.attribute.extend(kept)


def _cast(layer: LinearLayer, values: npt.NDArray[np.float64], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    with np.errstate(over="ignore"):
        cast = values.astype(dtype)
    if not np.isfinite(cast).all():
        raise UsageError(
            f"layer {layer.name}: the corrected bias reaches {np.abs(values).max():g}, more than {dtype} can "
            "hold; convert the model to float32 first"
        )
    return cast


def to_files(model: onnx.ModelProto, path: Path) -> Iterator[tuple[Path, bytes]]:
    """The content of each file to write: the model, and first its tensors where one file cannot hold both."""
    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) > SINGLE_FILE_BYTES:
        beside = path.with_name(f"{path.name}.data")
        yield beside, _externalize(model, beside.name)
    yield path, model.SerializeToString(deterministic=True)


def _externalize(model: onnx.ModelProto, location: str) -> bytes:
    """Move the large initializers out of `model`; returns the content of the file `location` for them."""
    onnx = require("onnx", "onnx")
    content = bytearray()
    for tensor in model.graph.initializer:
        raw = tensor.raw_data
        if len(raw) > EXTERNAL_TENSOR_BYTES:
            onnx.external_data_helper.set_external_data(tensor, location, offset=len(content), length=len(raw))
            tensor.ClearField("raw_data")
            content += raw
    return bytes(content)


def _outcome(change: _Change) -> LayerCorrection:
    largest = 0.0 if change.term is None else float(np.abs(change.term).max(initial=0.0))
    return LayerCorrection(
        layer=change.layer.name,
        op=change.layer.op,
        quantized=True,
        corrected=change.term is not None,
        reason=change.reason,
        largest=largest,
        outputs=change.layer.outputs,
    )


def passed_over(skipped: Sequence[LeftOut]) -> Iterator[LayerCorrection]:
    """The outcome for linear operators that are not handled."""
    for left in skipped:
        yield LayerCorrection(left.name, left.op, reason=left.reason)


def strays(out: Path, layers: Sequence[LinearLayer]) -> Iterator[LayerCorrection]:
    """Correctors in `out` that belong to none of `layers`."""
    folder = out / CORRECTORS
    expected = {layer_path(folder, layer.name) for layer in layers}
    for path in sorted(set(folder.rglob(f"*{SUFFIX}")) - expected):
        name = unquote(path.relative_to(folder).as_posix().removesuffix(SUFFIX))
        yield LayerCorrection(name, "", reason=f"the model has no such layer; the corrector is {path}")
