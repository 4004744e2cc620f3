"""Adding terms to the biases of a quantised model: each bias keeps its form, and is rounded once to its steps.

A bias of int32 codes has the step of the accumulator, input step · weight step; a new bias gets the same form, so that
runtimes still find the integer kernel. Where the float model has the bias that was rounded to these codes, the term is
added to that one, not on top of the quantiser's rounding. An operator without a bias (MatMul) gets an addition after
it; on codes, the addition happens on the accumulator, before the only rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..linear import EXACT, NEVER_QUANTISED, SAME_WEIGHT, UNCHANGED, LayerCorrection
from .constants import computed_constants
from .edit import GraphEdit
from .graph import attributes, producers
from .layers import OnnxLayer
from .pairs import Pair
from .quantized import BIAS, INPUT_SCALE, ON_CODES, WEIGHT_SCALE, bias_name

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[Any]
Float64Array = npt.NDArray[np.float64]
OUTCOMES = {SAME_WEIGHT: NEVER_QUANTISED, EXACT: UNCHANGED}
"""Reason without a correction → outcome."""
NAMED = 8
"""How many outputs a remark names."""
MARGIN, NOISE = 0.01, 1e-6
"""By how much of a step, and of its value, a bias that was folded in float32 may miss its nearest code."""


def add_to_biases(
    model: onnx.ModelProto, pairs: Sequence[Pair], planned: Sequence[LayerCorrection]
) -> list[LayerCorrection]:
    """Add the `planned` terms to the biases of `model`, in place; what was done for each of `pairs`, in order."""
    known = _Known(model, [pair.quantized for pair in pairs])
    edit = GraphEdit(model)
    outcomes = [_Addition(edit, known, pair, each).done() for pair, each in zip(pairs, planned, strict=True)]
    edit.finish()
    return outcomes


_Change = tuple[str, Float64Array | None]
"""What changed, and the step of the bias: one for all outputs or one for each, None for floats."""


class _CannotError(Exception):
    """Carries the reason why a bias stays as it is."""


class _Known:
    """The constants that say how biases are stored, as they are before any change."""

    def __init__(self, model: onnx.ModelProto, layers: Sequence[OnnxLayer]) -> None:
        self.made_by = producers(model.graph.node)
        names = {name for layer in layers for name in layer.node.input}
        behind = [self.made_by[name] for name in names if name in self.made_by]
        names.update(name for node in behind if node.op_type == "DequantizeLinear" for name in node.input)
        self.values = computed_constants(model, names)

    def dequantized(self, name: str) -> tuple[onnx.NodeProto, Array | None] | None:
        """The DequantizeLinear that outputs the tensor `name`, and its scale if constant; None for other tensors."""
        node = self.made_by.get(name)
        if node is None or node.op_type != "DequantizeLinear":
            return None
        return node, self.values.get(node.input[1])


class _Addition:
    """One layer while a term is added to its bias."""

    def __init__(self, edit: GraphEdit, known: _Known, pair: Pair, planned: LayerCorrection) -> None:
        self.edit, self.known, self.layer, self.bias = edit, known, pair.quantized, pair.bias
        self.dtype = pair.original.weight.dtype
        self.node = edit.node(self.layer.node.output[0])
        self.label = f"{self.layer.name}.bias"
        self.outcome = replace(
            planned,
            op=self.node.op_type,
            quantized=not pair.same_weight,
            outputs=self.layer.outputs,
            difference=pair.explained,
            uncorrected=OUTCOMES.get(planned.reason, planned.uncorrected),
        )

    def done(self) -> LayerCorrection:
        """Change the bias; what was done."""
        term = self.outcome.term
        if term is None:
            return self.outcome
        try:
            change, step = self._changed(term)
        except _CannotError as reason:
            return replace(self.outcome, reason=str(reason))
        wide = None if step is None else np.broadcast_to(step, term.shape)
        return replace(self.outcome, corrected=True, change=change, step=wide)

    def _changed(self, term: Float64Array) -> _Change:
        """What changed. Raises `_CannotError`."""
        kind = self.node.op_type
        if kind in ON_CODES:
            return self._on_codes(term)
        if kind == "MatMul":
            self.edit.add_behind(self.node, self._real(term), self.label)
            return "Add inserted after it", None
        return self._between(term)

    @property
    def _bias(self) -> str:
        return bias_name(self.node)

    def _on_codes(self, term: Float64Array) -> _Change:
        scales = [self.known.values.get(self.node.input[place]) for place in (INPUT_SCALE, WEIGHT_SCALE)]
        known = [np.asarray(scale, np.float64).reshape(-1) for scale in scales if scale is not None]
        if len(known) < 2:
            raise _CannotError("its scales are computed, not constant")
        step = known[0] * known[1]
        if self.node.op_type == "QLinearMatMul":
            self._on_the_accumulator(step, term)
            return "Add inserted before its outputs are rounded", None
        if attributes(self.node).get("alpha", 1.0) != 1.0:
            raise _CannotError("a QGemm with alpha is not supported")
        return self._int32_bias(step, term)

    def _int32_bias(self, step: Float64Array, term: Float64Array) -> _Change:
        """The bias of a QLinearConv or QGemm."""
        place, name = BIAS[self.node.op_type], self._bias
        before = self.known.values.get(name)
        if name and before is None:
            raise _CannotError("its bias is computed, not constant")
        real = term if before is None else _unrounded(before.astype(np.float64) * step, step, self.bias) + term
        codes, clipped = _codes(real, step)
        self.edit.replace_input([self.node], place, codes, name or self.label)
        return f"int32 bias {'added' if before is None else 'changed'}{clipped}", step

    def _on_the_accumulator(self, step: Float64Array, term: Float64Array) -> None:
        """Compute the product of codes in int32, add the term to its real value, and round as before."""
        a, _, a_zero, b, _, b_zero, y_scale, y_zero = self.node.input
        label = f"{self.layer.name}.accumulator"
        product = self.edit.insert_before(self.node, "MatMulInteger", [a, b, a_zero, b_zero], label)
        real = self.edit.insert_before(self.node, "Cast", [product], f"{label}.float", to=1)
        scaled = self.edit.insert_before(self.node, "Mul", [real, step.astype(np.float32)], f"{label}.real")
        total = self.edit.insert_before(self.node, "Add", [scaled, term.astype(np.float32)], f"{label}.corrected")
        self.edit.replace(self.node, "QuantizeLinear", [total, self._of_float32(y_scale, label), y_zero])

    def _of_float32(self, scale: str, label: str) -> str:
        """The `scale` as the type of the sums that it divides."""
        found = self.known.values.get(scale)
        if found is not None and found.dtype == np.float32:
            return scale
        return self.edit.insert_before(self.node, "Cast", [scale], f"{label}.scale", to=1)

    def _between(self, term: Float64Array) -> _Change:
        """A Conv, ConvTranspose or Gemm that reads reals: floats, or the outputs of DequantizeLinear."""
        found = attributes(self.node)
        beta = float(found.get("beta", 1.0)) if self.node.op_type == "Gemm" else 1.0
        name = self._bias
        if beta == 0.0 or not name:
            self._count_bias_once()
            return self._new_bias(term)
        stored = self.known.dequantized(name)
        return self._float_bias(name, term / beta) if stored is None else self._stored_codes(*stored, term, beta)

    def _float_bias(self, name: str, term: Float64Array) -> _Change:
        before = self.known.values.get(name)
        if before is None:
            self.edit.add_before(self.node, 2, self._real(term), self.label)
            return "Add inserted before its computed bias", None
        self.edit.replace_input([self.node], 2, self._real(before.astype(np.float64) + term), name)
        return "float bias changed", None

    def _count_bias_once(self) -> None:
        """Drop the beta of a Gemm that had no bias, or ignored it."""
        kept = [attribute for attribute in self.node.attribute if attribute.name != "beta"]
        del self.node.attribute[:]
        self.node.attribute.extend(kept)

    def _stored_codes(self, node: onnx.NodeProto, scale: Array | None, term: Float64Array, beta: float) -> _Change:
        real, codes = self.known.values.get(self._bias), self.known.values.get(node.input[0])
        if real is None or codes is None or scale is None:
            raise _CannotError("its bias is computed, not constant")
        zero_point = self.known.values.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        step = np.asarray(scale, np.float64).reshape(-1)
        zeros = 0 if zero_point is None else zero_point.reshape(-1)
        before = _unrounded(real.astype(np.float64), step, None if self.bias is None else self.bias / beta)
        new, clipped = _codes(before + term / beta, step, zeros, codes.dtype)
        inputs: list[str | Array] = [new, *node.input[1:]]
        kept = attributes(node)
        output = self.edit.insert_before(self.node, "DequantizeLinear", inputs, self.label, domain=node.domain, **kept)
        self.edit.rewire(self.node, 2, output)
        return f"{codes.dtype} bias changed{clipped}", step

    def _new_bias(self, term: Float64Array) -> _Change:
        """Codes of int32 if input and weight are codes, so that runtimes find the integer kernel; otherwise floats."""
        sides = [self.known.dequantized(name) for name in self.node.input[:2]]
        scales = [side[1] for side in sides if side is not None and side[1] is not None]
        if len(scales) < 2 or scales[1].size not in (1, term.size) or scales[0].size != 1:
            self.edit.replace_input([self.node], 2, self._real(term), self.label)
            return "float bias added", None
        step = scales[0].astype(np.float32).reshape(-1) * scales[1].astype(np.float32).reshape(-1)
        codes, clipped = _codes(term, step.astype(np.float64))
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
        return f"int32 bias added{clipped}", step.astype(np.float64)

    def _real(self, values: Float64Array) -> Array:
        """`values` in the dtype of the float model. Raises `_CannotError`."""
        with np.errstate(over="ignore"):
            cast = values.astype(self.dtype)
        if not np.isfinite(cast).all():
            raise _CannotError(f"the corrected bias reaches {np.abs(values).max():g}, more than {self.dtype} can hold")
        return cast


def _unrounded(stored: Float64Array, step: Float64Array, real: Float64Array | None) -> Float64Array:
    """The `real` bias where its codes are the `stored` ones, the stored bias elsewhere."""
    if real is None:
        return stored
    room = step * (0.5 + MARGIN) + NOISE * np.abs(stored)
    return np.where(np.abs(stored - real) <= room, real, stored)


def _codes(
    real: Float64Array, step: Float64Array, zero_point: Array | int = 0, dtype: npt.DTypeLike = np.int32
) -> tuple[Array, str]:
    """(the codes of `real` values, a remark on outputs that reach a limit of the range of codes)."""
    limits = np.iinfo(dtype)
    codes = np.rint(real / step) + zero_point
    outputs = np.flatnonzero((codes <= limits.min) | (codes >= limits.max))
    shown = ", ".join(map(str, outputs[:NAMED])) + (", …" if outputs.size > NAMED else "")
    remark = f", at the limit of its codes for output {shown}" if outputs.size else ""
    return np.clip(codes, limits.min, limits.max).astype(dtype), remark
