"""The weight that a module of a quantised model computes with, which may not be the one that it stores.

Modules of `torch.ao` pack their weights, tensors of torchao are codes, and modules that train with quantisation, those
of Brevitas and parametrisations quantise while they run: a copy of such a module runs once, on ones, and the weight
that it hands to the product is taken. Importing this module imports torch.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from ...errors import MismatchError, first_line
from .calls import CONVOLUTIONS, MATRIX_PRODUCTS, operands
from .layers import LAYOUTS, MATRICES, layout_of
from .library import Array, reals

HALF = 0.51
"""Half a step, and a little for float32."""
TAKEN_APART = (
    "tracing took its module apart, so the weight that the quantised model multiplies by is unknown; keep it whole: "
    "name its class in `PrepareCustomConfig().set_non_traceable_module_classes`"
)
PLAIN = tuple(getattr(torch.nn, kind) for kind in LAYOUTS)


@dataclass(frozen=True, eq=False)
class ComputedWeight:
    """The real numbers `values` that a module multiplies by; `quantises` says that it is a quantised module's.

    `origin` is the float weight that the module rounds while it runs. `tolerance`, of the shape of the values, is how
    far rounding can have moved each: half a step, or any distance at the ends of the codes. None where unknown.
    """

    values: Array
    quantises: bool
    origin: Array | None = None
    tolerance: Array | None = None


def computed_weight(module: Any) -> ComputedWeight:
    """The weight that `module` computes with. Raises `MismatchError` with the reason if that cannot be found out."""
    if callable(module.weight):
        packed = module.weight()
        return ComputedWeight(reals(packed), quantises=True, tolerance=_tolerance(packed))
    if type(module) in PLAIN or type(module).__name__ in ("Conv1D", "NonDynamicallyQuantizableLinear"):
        is_plain = type(module.weight) in (torch.Tensor, torch.nn.Parameter) and not module.weight.is_quantized
        return ComputedWeight(reals(module.weight), quantises=not is_plain)
    if type(module) is torch.nn.Module:
        raise MismatchError(TAKEN_APART)
    if callable(getattr(module, "quant_weight", None)):
        return _same(module, module.quant_weight().value)
    return _same(module, _handed(module))


def _same(module: Any, weight: Any) -> ComputedWeight:
    """`weight`, which `module` computes with: it quantises unless it stores that weight."""
    values, parameter = reals(weight), module._parameters.get("weight")
    if parameter is None:
        return ComputedWeight(values, quantises=True)
    stored = reals(parameter)
    differs = values.shape != stored.shape or bool((values != stored).any())
    return ComputedWeight(values, quantises=differs, origin=stored if differs else None)


def _tolerance(packed: Any) -> Array | None:
    """How far rounding to codes can have moved each weight of a quantised tensor, float64; None for other codes."""
    if packed.dtype != torch.qint8:
        return None
    codes = packed.int_repr().cpu().numpy()
    if packed.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        steps = np.full(codes.shape, packed.q_scale())
    else:
        scales, axis = reals(packed.q_per_channel_scales()), packed.q_per_channel_axis()
        steps = np.broadcast_to(np.expand_dims(scales, tuple(i for i in range(codes.ndim) if i != axis)), codes.shape)
    return np.where((codes == codes.min()) | (codes == codes.max()), np.inf, HALF * steps)


class _Products(TorchFunctionMode):  # type: ignore[misc]
    """Keeps the weights of all products that run while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Any] = []

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        """Keep the weight of a product, and call `function`."""
        named = named or {}
        if function in MATRIX_PRODUCTS or function in CONVOLUTIONS:
            self.weights.append(operands(MATRIX_PRODUCTS.get(function, (0, 1)), arguments, named)[1].detach())
        return function(*arguments, **named)


def _handed(module: Any) -> Any:
    """The weight that `module` hands to the one product that it makes."""
    products = _Products()
    try:
        alone = copy.deepcopy(module).eval()
        with torch.no_grad(), products:
            alone(_ones(module))
    except Exception as error:
        raise MismatchError(
            f"a {type(module).__name__} may quantise its weight while it runs, and it does not run on its own "
            f"({first_line(error)}): the weight it computes with is unknown"
        ) from error
    shape = tuple(module.weight.shape)
    found = [each for each in products.weights if tuple(each.shape) == shape]
    if len(found) != 1:
        raise MismatchError(
            f"a {type(module).__name__} makes {len(found)} products with a weight of the shape {shape}, expected one: "
            "the weight it computes with is unknown"
        )
    return found[0]


def _ones(module: Any) -> Any:
    """An input that is large enough for every tap of `module`."""
    weight, layout = module.weight, layout_of(module)
    if layout in MATRICES or layout is None:
        channels = weight.shape[0] if layout == "IO" else weight.shape[-1]
        shape = (1, channels)
    else:
        shape = (1, module.in_channels, *(2 * d * k for d, k in zip(module.dilation, module.kernel_size, strict=True)))
    return torch.ones(shape, dtype=weight.dtype, device=weight.device)
