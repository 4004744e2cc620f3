"""What is corrected: a float model, and what a quantiser or `Levels` made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import UsageError, first_line, require
from ..account import told
from .accounts import compared, left_in_float, nothing_found
from .activations import Activations, round_inputs
from .files import fits_one_file
from .graph import CONVERT, GOOD_OPSET, OLDEST_OPSET, check_opset, copied, load_model, opset
from .layers import LeftOut, OnnxLayer, survey
from .levels import Levels
from .pairs import UNMATCHED, Pair, pairs
from .quantized import is_quantized, quantized_layers, stored_layers

if TYPE_CHECKING:
    import onnx

OLDEST_TO_ROUND = 11
"""The first operator set with Round, and with Clip as activations need it."""
MARK, ROUNDED = "streamstats.corrected", "streamstats.rounded"
"""The metadata keys of corrected models, and of those whose weights were fake-quantised here."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A float model and its quantised version: layers of both in `pairs`, all others in `left_out`.

    `moves` says, for layers whose input is rounded here, how far that may move the means of the input, as a norm.
    `rounded` says whether the weights are rounded here, and not by another quantiser.
    """

    name: str
    quantized_name: str
    original: onnx.ModelProto
    quantized: onnx.ModelProto
    layers: Sequence[OnnxLayer]
    pairs: Sequence[Pair]
    left_out: Sequence[LeftOut]
    moves: Mapping[str, float] = field(default_factory=dict)
    rounded: bool = False


def fake_quantized(model_path: str | Path, levels: Levels, activations: Activations | None = None) -> Subject:
    """The model at `model_path`, and a copy with its weights on `levels`, and its activations rounded if asked for.

    Raises `UsageError`, and what `activations.ranges` raises.
    """
    original = load_model(model_path)
    check_opset(original, model_path, OLDEST_OPSET if activations is None else OLDEST_TO_ROUND)
    _check_uncorrected(original, model_path)
    _check_float(original, model_path)
    layers, left_out = survey(original)
    if not layers:
        raise UsageError(f"{model_path} has no layer to quantise: {nothing_found(left_out)}")
    on_levels = levels.pairs(layers)
    ranges = {} if activations is None else activations.ranges(layers)
    quantized = round_inputs(levels.put_into(copied(original), on_levels), layers, ranges)
    quantized.metadata_props.add(key=ROUNDED, value=str(levels.bits))
    moves = {name: each.farthest_move for name, each in ranges.items()}
    name, rest = _named(levels, activations), left_in_float(left_out)
    return Subject(str(model_path), name, original, quantized, layers, on_levels, rest, moves, rounded=True)


def _named(levels: Levels, activations: Activations | None) -> str:
    """What the quantised model is called in reports."""
    name = levels.named
    return name if activations is None else f"{name}, activations of {activations.bits} bits ({activations.method})"


def quantized_by_others(original_path: str | Path, quantized_path: str | Path) -> Subject:
    """The float model that was recorded, and the model that a quantiser made of it. Raises `UsageError`."""
    models = two_models(original_path, quantized_path)
    stored, left_out = quantized_layers(models.quantized)
    left_out = [*compared(left_out, models.original, models.quantized)]
    if not stored:
        raise UsageError(f"{quantized_path} has no layer to correct: {nothing_found(left_out)}")
    matched, without = pairs(models.original, models.layers, stored, stored_layers(models.quantized, stored))
    _check_same_network(matched, without, left_out, str(original_path), str(quantized_path))
    return replace(models, pairs=matched, left_out=[*left_out, *without])


def two_models(original_path: str | Path, quantized_path: str | Path) -> Subject:
    """The float model and the quantised one, whose layers are not matched yet. Raises `UsageError`."""
    original, quantized = load_model(original_path), load_model(quantized_path)
    check_opset(original, original_path)
    _check_valid(quantized, quantized_path)
    _check_uncorrected(quantized, quantized_path)
    _check_float(original, original_path, quantized_path)
    layers, _ = survey(original)
    return Subject(str(original_path), str(quantized_path), original, quantized, layers, [], [])


def _check_same_network(
    matched: Sequence[Pair], without: Sequence[LeftOut], left_out: Sequence[LeftOut], original: str, quantized: str
) -> None:
    """Raise `UsageError` if none of the layers has a counterpart, not even one that differs by more than rounding."""
    if matched or any(each.reason != UNMATCHED for each in without):
        return
    others = told((each.name, each.reason) for each in left_out if each.multiplies and not each.uncorrected)
    raise UsageError(
        f"no layer of {quantized} has a weight close to one of {original}; expected models of the same network; if "
        "they are, correct from mean outputs (--outputs), which needs no weights"
        + (f"; operators that were not compared: {others}" if others else "")
    )


def check_rounded(subject: Subject) -> None:
    """Raise `UsageError` if the quantised model of `subject` rounds neither weights nor activations."""
    model, matched = subject.quantized, subject.pairs
    rounds = is_quantized(model) or any(node.op_type == "QuantizeLinear" for node in model.graph.node)
    if matched and not rounds and all(pair.same_weight for pair in matched):
        raise UsageError(
            f"{subject.quantized_name} is not quantised: its weights are those of {subject.name}; expected the model "
            "that a quantiser made of it, or bits to quantise the weights here"
        )


def marked(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model`, changed in place, marked as corrected: correcting it again would spoil it."""
    model.metadata_props.add(key=MARK, value="biases")
    return model


def _check_float(model: onnx.ModelProto, path: str | Path, quantized_path: str | Path = "") -> None:
    """Raise `UsageError` for a quantised model; if another one is given, it says which of the two is the float one."""
    if not is_quantized(model) and not any(entry.key == ROUNDED for entry in model.metadata_props):
        return
    if not quantized_path:
        raise UsageError(f"{path} is quantised already; expected the float model, whose weights are quantised here")
    if is_quantized(load_model(quantized_path)):
        raise UsageError(f"{path} is quantised, as {quantized_path} is; expected the float model that both came from")
    raise UsageError(
        f"{path} is quantised; expected the float model first, then the quantised one: {path} second, if "
        f"{quantized_path} is the float model"
    )


def _check_uncorrected(model: onnx.ModelProto, path: str | Path) -> None:
    if any(entry.key == MARK for entry in model.metadata_props):
        raise UsageError(f"{path} has already been corrected; give the model as its quantiser left it")


def _check_valid(model: onnx.ModelProto, path: str | Path) -> None:
    """Raise `UsageError` for a model that no runtime accepts, as quantisers write for too old an operator set."""
    version = opset(model)
    remedy = f"; {CONVERT.format('the float model')}, and quantise it again" if version < GOOD_OPSET else ""
    kinds = {node.op_type for node in model.graph.node}
    if version < OLDEST_TO_ROUND and kinds >= {"DequantizeLinear", "MatMul"}:
        raise UsageError(
            f"{path} has the operator set {version}, in which onnxruntime cannot run MatMul with a bias between "
            f"DequantizeLinear and QuantizeLinear; expected {OLDEST_TO_ROUND} or later{remedy}"
        )
    if not fits_one_file(model):
        return
    try:
        require("onnx", "onnx").checker.check_model(model)
    except Exception as error:
        raise UsageError(f"{path} is not a valid ONNX model: {first_line(error)}{remedy}") from error
