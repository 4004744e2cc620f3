"""What is said of operators with weights that are left out, and what became of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ...errors import require
from ..account import told
from ..linear import NEVER_QUANTISED, SAME_WEIGHT, WEIGHTLESS, LayerCorrection
from .graph import constants, subgraphs
from .layers import LeftOut

if TYPE_CHECKING:
    import onnx

NO_WEIGHTS = "none of its operators multiplies by a matrix of constants"


def nothing_found(left_out: Sequence[LeftOut]) -> str:
    """Why there is no layer at all, where all operators with weights are `left_out`; look-ups only if alone."""
    telling = [each for each in left_out if each.multiplies] or left_out
    return told((each.name, each.reason) for each in telling) or NO_WEIGHTS


def as_correction(left: LeftOut) -> LayerCorrection:
    """What became of an operator that is left out of a correction."""
    outcome, quantized = left.uncorrected if left.multiplies else WEIGHTLESS, left.quantized and left.multiplies
    return LayerCorrection(left.name, left.op, quantized, reason=left.reason, uncorrected=outcome)


def left_in_float(left_out: Sequence[LeftOut]) -> list[LeftOut]:
    """`left_out` of a float model whose layers alone are quantised here."""
    return [each if each.quantized else replace(each, uncorrected=NEVER_QUANTISED) for each in left_out]


def compared(left_out: Sequence[LeftOut], original: onnx.ModelProto, quantized: onnx.ModelProto) -> Iterator[LeftOut]:
    """`left_out` of the quantised model: never quantised, if all matrices that an operator reads are the float ones."""
    names = {name for each in left_out if each.multiplies and not each.quantized for name in each.weights}
    mine, theirs = (_tensors(model, names) for model in (quantized, original))
    same = {name for name in mine if name in theirs and _equal(mine[name], theirs[name])}
    for each in left_out:
        in_float = each.multiplies and bool(each.weights) and same.issuperset(each.weights)
        yield replace(each, uncorrected=NEVER_QUANTISED, reason=SAME_WEIGHT) if in_float else each


def _tensors(model: onnx.ModelProto, names: set[str]) -> dict[str, onnx.TensorProto]:
    """Name → value, for the constants among `names`, also in subgraphs."""
    graphs = [model.graph, *(graph for _, graph in subgraphs(model.graph.node))]
    found = [constants(graph.initializer, graph.node) for graph in graphs]
    return {name: each[name].tensor for each in found for name in names.intersection(each)}


def _equal(mine: onnx.TensorProto, theirs: onnx.TensorProto) -> bool:
    to_array = require("onnx", "onnx").numpy_helper.to_array
    return mine.data_type == theirs.data_type and np.array_equal(to_array(mine), to_array(theirs))
