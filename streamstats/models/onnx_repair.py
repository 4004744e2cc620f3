"""Repairing the stored biases of a quantised model: each in the form it has, rounded once to the steps it has.

A bias of int32 codes has the step of the accumulator, input step · weight step; where there is none it is made so, that
runtimes still find the integer kernel. What cannot hold a bias (MatMul) gets an addition behind it; on codes it is done
on the accumulator, before the only rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..artifacts import write_bytes
from ..correction import BiasCorrector
from ..errors import DataError, MismatchError
from .onnx_constants import computed_constants
from .onnx_correct import (
    LayerCorrection,
    check_paths,
    check_replaceable,
    correction_term,
    find_correctors,
    passed_over,
    strays,
    to_files,
)
from .onnx_edit import GraphEdit
from .onnx_graph import LeftOut, LinearLayer, attributes, load_model, survey
from .onnx_quantized import ON_CODES, WEIGHT_SCALE, Pair, pairs, quantized_layers

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[Any]
Float64Array = npt.NDArray[np.float64]
CODES = np.iinfo(np.int32)
INPUT_SCALE = 1
BIAS = {"QLinearConv": 8, "QGemm": 6, "Conv": 2, "ConvTranspose": 2, "Gemm": 2}
"""Operator → which of its inputs is the bias."""


@dataclass(frozen=True, eq=False)
class Repair:
    """What to add to the outputs of a quantised layer: `term`, float64[outputs], or None and the `reason`."""

    pair: Pair
    term: Float64Array | None
    reason: str = ""


def correct_quantized(
    original: str | Path, quantized: str | Path, correctors: str | Path, output: str | Path
) -> list[LayerCorrection]:
    """Write to `output` the model at `quantized` with corrected biases; the outcome for each of its layers.

    `original` is the float model that was recorded and `correctors` the folder that `streamstats run` left. A layer
    that has no counterpart, or no corrector, is left as it is and says so. Raises `UsageError` for files that are
    not usable, `MismatchError` for a corrector of other channels, `DataError` for damage, `OutputError`.
    """
    check_paths(original, quantized, output)
    check_replaceable(output)
    float_model, model = load_model(original), load_model(quantized)
    float_layers, _ = survey(float_model)
    layers, left_out = quantized_layers(model)
    matched, without = pairs(float_model, float_layers, layers)
    found = find_correctors(Path(correctors), float_layers)
    repairs = [_repair(pair, found.get(pair.original.name)) for pair in matched]
    outcomes = apply_repairs(model, repairs)
    for path, content in to_files(model, Path(output)):
        write_bytes(path, content)
    unmatched = [
        LeftOut(layer.name, layer.op, "no layer of the float model has a weight that is near to its own")
        for layer in without
    ]
    return [*outcomes, *passed_over([*left_out, *unmatched]), *strays(Path(correctors), float_layers)]


def _repair(pair: Pair, path: Path | None) -> Repair:
    if path is None:
        return Repair(pair, None, "no corrector: the run left none for it")
    corrector = BiasCorrector.load(path)
    made_for = corrector.provenance.get("layer", pair.original.name)
    if made_for != pair.original.name:
        raise DataError(f"{path} was made for layer {made_for}, not for {pair.original.name}; run the job again")
    try:
        term = correction_term(pair.quantized, corrector, pair.weight, pair.quantized.weight)
    except MismatchError as error:
        raise MismatchError(f"layer {pair.original.name}, corrector {path}: {error}") from error
    return Repair(pair, None, "its corrector is null") if term is None else Repair(pair, term)


def apply_repairs(model: onnx.ModelProto, repairs: Sequence[Repair]) -> list[LayerCorrection]:
    """Change the biases of `model`, in place, as `repairs` say; what was done for each."""
    known = _Known(model, [repair.pair.quantized for repair in repairs])
    edit = GraphEdit(model)
    outcomes = [_Mending(edit, known, repair).done() for repair in repairs]
    edit.finish()
    return outcomes


class _CannotError(Exception):
    """Carries the reason why a bias is left as it is."""


class _Known:
    """The constants that say how biases are stored, before anything is changed."""

    def __init__(self, model: onnx.ModelProto, layers: Sequence[LinearLayer]) -> None:
        producers = {output: node for node in model.graph.node for output in node.output}
        names: set[str] = set()
        for layer in layers:
            names.update(layer.node.input)
            for name in layer.node.input:
                if name in producers and producers[name].op_type == "DequantizeLinear":
                    names.update(producers[name].input)
        self.values = computed_constants(model, names)
        self.producers = producers

    def dequantized(self, name: str) -> tuple[onnx.NodeProto, Array | None] | None:
        """The DequantizeLinear that makes the tensor `name`, and its scale if that is constant; None for others."""
        node = self.producers.get(name)
        if node is None or node.op_type != "DequantizeLinear":
            return None
        return node, self.values.get(node.input[1])


class _Mending:
    """One layer while its bias is changed."""

    def __init__(self, edit: GraphEdit, known: _Known, repair: Repair) -> None:
        self.edit, self.known, self.repair = edit, known, repair
        self.layer = repair.pair.quantized
        self.node = edit.node(self.layer.node.output[0])
        self.label = f"{self.layer.name}.bias"
        self.outcome = LayerCorrection(
            repair.pair.original.name,
            self.node.op_type,
            quantized=True,
            outputs=self.layer.outputs,
            reason=repair.reason,
        )

    def done(self) -> LayerCorrection:
        """Change the bias; what was done."""
        term = self.repair.term
        if term is None:
            return self.outcome
        largest = float(np.abs(term).max(initial=0.0))
        try:
            how, step = self._changed(term)
        except _CannotError as reason:
            return replace(self.outcome, reason=str(reason), largest=largest)
        return replace(self.outcome, corrected=True, reason=how, largest=largest, step=step)

    def _changed(self, term: Float64Array) -> tuple[str, float]:
        """(what was done, the largest step of the bias, 0 for floats). Raises `_CannotError`."""
        kind = self.node.op_type
        if kind in ON_CODES:
            return self._on_codes(term)
        if kind == "MatMul":
            self.edit.add_behind(self.node, self._real(term), self.label)
            return "an addition behind it", 0.0
        return self._between(term)

    @property
    def _bias(self) -> str:
        place = BIAS[self.node.op_type]
        return str(self.node.input[place]) if len(self.node.input) > place else ""

    def _on_codes(self, term: Float64Array) -> tuple[str, float]:
        scales = [self.known.values.get(self.node.input[place]) for place in (INPUT_SCALE, WEIGHT_SCALE)]
        known = [np.asarray(scale, np.float64).reshape(-1) for scale in scales if scale is not None]
        if len(known) < 2:
            raise _CannotError("its scales are computed, not constant")
        step = known[0] * known[1]
        if self.node.op_type == "QLinearMatMul":
            self._on_the_accumulator(step, term)
            return "an addition before its outputs are rounded", 0.0
        if attributes(self.node).get("alpha", 1.0) != 1.0:
            raise _CannotError("a QGemm with alpha")
        place, name = BIAS[self.node.op_type], self._bias
        before = self.known.values.get(name)
        if name and before is None:
            raise _CannotError("its bias is computed, not constant")
        real = term if before is None else before.astype(np.float64) * step + term
        codes = _codes(real, step)
        if codes is None:
            raise _CannotError("the corrected bias is beyond int32")
        self.edit.replace_input([self.node], place, codes, name or self.label)
        return ("a bias of int32 was made" if before is None else "its int32 bias"), float(step.max())

    def _on_the_accumulator(self, step: Float64Array, term: Float64Array) -> None:
        """The product on codes in int32, its real value with the term, and the rounding that was there."""
        a, _, a_zero, b, _, b_zero, y_scale, y_zero = self.node.input
        label = f"{self.layer.name}.accumulator"
        product = self.edit.insert_before(self.node, "MatMulInteger", [a, b, a_zero, b_zero], label)
        real = self.edit.insert_before(self.node, "Cast", [product], f"{label}.float", to=1)
        scaled = self.edit.insert_before(self.node, "Mul", [real, step.astype(np.float32)], f"{label}.real")
        total = self.edit.insert_before(self.node, "Add", [scaled, term.astype(np.float32)], f"{label}.corrected")
        self.edit.replace(self.node, "QuantizeLinear", [total, y_scale, y_zero])

    def _between(self, term: Float64Array) -> tuple[str, float]:
        """A Conv, ConvTranspose or Gemm between DequantizeLinear nodes, or of floats."""
        found = attributes(self.node)
        beta = float(found.get("beta", 1.0)) if self.node.op_type == "Gemm" else 1.0
        name = self._bias
        if beta == 0.0:
            raise _CannotError("its bias counts for nothing: beta is 0")
        if not name:
            return self._new_bias(term / beta)
        stored = self.known.dequantized(name)
        if stored is None:
            before = self.known.values.get(name)
            if before is None:
                self.edit.add_before(self.node, 2, self._real(term / beta), self.label)
                return "an addition to its bias, which is computed", 0.0
            self.edit.replace_input([self.node], 2, self._real(before.astype(np.float64) + term / beta), name)
            return "its bias of floats", 0.0
        return self._stored_codes(*stored, term / beta)

    def _stored_codes(self, node: onnx.NodeProto, scale: Array | None, term: Float64Array) -> tuple[str, float]:
        real, codes = self.known.values.get(self._bias), self.known.values.get(node.input[0])
        if real is None or codes is None or scale is None:
            raise _CannotError("its bias is computed, not constant")
        zero_point = self.known.values.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        step = np.asarray(scale, np.float64).reshape(-1)
        limits = np.iinfo(codes.dtype)
        new = np.rint((real.astype(np.float64) + term) / step) + (0 if zero_point is None else zero_point.reshape(-1))
        if new.min() < limits.min or new.max() > limits.max:
            raise _CannotError(f"the corrected bias is beyond {codes.dtype}")
        inputs: list[str | Array] = [new.astype(codes.dtype), *node.input[1:]]
        kept = attributes(node)
        output = self.edit.insert_before(self.node, "DequantizeLinear", inputs, self.label, domain=node.domain, **kept)
        self.edit.rewire(self.node, 2, output)
        return f"its {codes.dtype} bias", float(step.max())

    def _new_bias(self, term: Float64Array) -> tuple[str, float]:
        """Codes of int32 where input and weight are codes, so that runtimes find the integer kernel; else floats."""
        sides = [self.known.dequantized(name) for name in self.node.input[:2]]
        scales = [side[1] for side in sides if side is not None and side[1] is not None]
        if len(scales) < 2 or scales[1].size not in (1, term.size) or scales[0].size != 1:
            self.edit.replace_input([self.node], 2, self._real(term), self.label)
            return "a bias of floats was made", 0.0
        step = scales[0].astype(np.float32).reshape(-1) * scales[1].astype(np.float32).reshape(-1)
        codes = _codes(term, step.astype(np.float64))
        if codes is None:
            raise _CannotError("the corrected bias is beyond int32")
        scale, zero = (step, np.zeros(step.shape, np.int32)) if step.size > 1 else (step[0], np.int32(0))
        assert sides[0] is not None
        options = {"axis": 0} if step.size > 1 else {}
        output = self.edit.insert_before(
            self.node,
            "DequantizeLinear",
            [codes, np.asarray(scale), np.asarray(zero)],
            self.label,
            domain=sides[0][0].domain,
            **options,
        )
        self.edit.rewire(self.node, 2, output)
        return "a bias of int32 was made", float(step.max())

    def _real(self, values: Float64Array) -> Array:
        dtype = self.repair.pair.original.weight.dtype
        return values.astype(dtype)


def _codes(real: Float64Array, step: Float64Array) -> npt.NDArray[np.int32] | None:
    """The int32 codes of `real` values, None where they are beyond."""
    codes = np.rint(real / step)
    return None if codes.min() < CODES.min or codes.max() > CODES.max else codes.astype(np.int32)
