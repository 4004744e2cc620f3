"""What is corrected: a float model, and what a quantiser or `Levels` made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import UsageError, first_line, require
from .activations import Activations, round_inputs
from .files import fits_one_file
from .graph import OLDEST_OPSET, check_opset, copied, load_model
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
    """

    name: str
    quantized_name: str
    original: onnx.ModelProto
    quantized: onnx.ModelProto
    layers: Sequence[OnnxLayer]
    pairs: Sequence[Pair]
    left_out: Sequence[LeftOut]
    moves: Mapping[str, float] = field(default_factory=dict)


def fake_quantized(model_path: str | Path, levels: Levels, activations: Activations | None = None) -> Subject:
    """The model at `model_path`, and a copy with its weights on `levels`, and its activations rounded if asked for.

    Raises `UsageError`, and what `activations.ranges` raises.
    """
    original = load_model(model_path)
    check_opset(original, model_path, OLDEST_OPSET if activations is None else OLDEST_TO_ROUND)
    _check_uncorrected(original, model_path)
    _check_float(original, model_path)
    layers, left_out = survey(original)
    on_levels = levels.pairs(layers)
    ranges = {} if activations is None else activations.ranges(layers)
    quantized = round_inputs(levels.put_into(copied(original), on_levels), layers, ranges)
    quantized.metadata_props.add(key=ROUNDED, value=str(levels.bits))
    moves = {name: each.farthest_move for name, each in ranges.items()}
    name = _named(levels, activations)
    return Subject(str(model_path), name, original, quantized, layers, on_levels, left_out, moves)


def _named(levels: Levels, activations: Activations | None) -> str:
    """What the quantised model is called in reports."""
    name = f"weights of {levels.bits} bits {'per channel' if levels.per_channel else 'per tensor'}"
    return name if activations is None else f"{name}, activations of {activations.bits} bits ({activations.method})"


def quantized_by_others(original_path: str | Path, quantized_path: str | Path) -> Subject:
    """The float model that was recorded, and the model that a quantiser made of it. Raises `UsageError`."""
    models = two_models(original_path, quantized_path)
    stored, left_out = quantized_layers(models.quantized)
    matched, without = pairs(models.original, models.layers, stored, stored_layers(models.quantized, stored))
    if not matched and all(each.reason == UNMATCHED for each in without):
        raise UsageError(
            f"no layer of {quantized_path} has a weight close to one of {original_path}; expected models of the same "
            "network; if they are, correct from mean outputs (--outputs), which needs no weights"
        )
    return replace(models, pairs=matched, left_out=[*left_out, *without])


def two_models(original_path: str | Path, quantized_path: str | Path) -> Subject:
    """The float model and the quantised one, whose layers are not matched yet. Raises `UsageError`."""
    original, quantized = load_model(original_path), load_model(quantized_path)
    check_opset(original, original_path)
    _check_valid(quantized, quantized_path)
    _check_uncorrected(quantized, quantized_path)
    _check_float(original, original_path)
    layers, _ = survey(original)
    return Subject(str(original_path), str(quantized_path), original, quantized, layers, [], [])


def marked(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model`, changed in place, marked as corrected: correcting it again would spoil it."""
    model.metadata_props.add(key=MARK, value="biases")
    return model


def _check_float(model: onnx.ModelProto, path: str | Path) -> None:
    if is_quantized(model) or any(entry.key == ROUNDED for entry in model.metadata_props):
        raise UsageError(f"{path} is quantised; expected the float model first, then the quantised one")


def _check_uncorrected(model: onnx.ModelProto, path: str | Path) -> None:
    if any(entry.key == MARK for entry in model.metadata_props):
        raise UsageError(f"{path} has already been corrected; give the model as its quantiser left it")


def _check_valid(model: onnx.ModelProto, path: str | Path) -> None:
    """Raise `UsageError` for a model that no runtime accepts, as quantisers write for too old an operator set."""
    if not fits_one_file(model):
        return
    try:
        require("onnx", "onnx").checker.check_model(model)
    except Exception as error:
        raise UsageError(
            f"{path} is not a valid ONNX model: {first_line(error)}; convert the float model to operator set 13 or "
            "later with onnx.version_converter, and quantise it again"
        ) from error
