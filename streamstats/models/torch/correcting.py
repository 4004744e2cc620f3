"""Correcting the biases of a quantised copy of a torch model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import MismatchError, UsageError, listed
from ...outputs.results import Results, open_results
from ..linear import NO_CORRECTOR, LayerCorrection, LinearLayer, is_near, load_corrector, planned_correction
from .layers import MATRICES, geometry_of, layout_of, linear_modules
from .library import Array, library, reals

if TYPE_CHECKING:
    import torch

MARK = "_streamstats_corrected"
"""The attribute of a model whose biases are corrected."""


def apply_correctors(
    model: torch.nn.Module, quantized: torch.nn.Module, correctors: str | Path
) -> list[LayerCorrection]:
    """Add to the biases of `quantized`, in place, the terms that undo the shift of each layer's mean output.

    `model` is the float model that was recorded. `quantized` is a copy of it with quantised weights and modules of the
    same names: fake-quantised, of `torch.ao` (converted, or trained with quantisation), or of torchao. `correctors` is
    the folder that `streamstats run` left. A module without a bias gets one. A model can be corrected only once.

    Returns what was done for each layer. Raises `UsageError` if no layer has a corrector, `MismatchError` for a
    corrector of other channels, `DataError` for a damaged one.
    """
    if getattr(quantized, MARK, False):
        raise UsageError("the quantised model has already been corrected; give it as its quantiser left it")
    results = open_results(Path(correctors))
    others = {name: module for name, module in quantized.named_modules() if hasattr(module, "weight")}
    modules = linear_modules(model)
    if not set(modules) & set(results.layers):
        raise UsageError(f"{correctors} holds no layer of the model; its layers are: {listed(modules)}")
    places = {id(module): name for name, module in model.named_modules()}
    done = [_corrected(name, module, others.get(places[id(module)]), results) for name, module in modules.items()]
    if not any(each.corrected for each in done):
        raise MismatchError(f"no module was corrected; the first, {done[0].layer}: {done[0].reason}")
    setattr(quantized, MARK, True)
    return done


def _corrected(
    name: str, module: torch.nn.Module, quantized: torch.nn.Module | None, results: Results
) -> LayerCorrection:
    planned = _planned(name, module, quantized, results)
    if planned.term is None or quantized is None:
        return planned
    change = add_to_bias(quantized, planned.term)
    return replace(planned, quantized=True, corrected=True, change=change)


def _planned(
    name: str, module: torch.nn.Module, quantized: torch.nn.Module | None, results: Results
) -> LayerCorrection:
    """The term for `module`, or why there is none."""
    op = type(module).__name__
    if quantized is None:
        return LayerCorrection(name, op, reason="the quantised model has no module of its name with a weight")
    corrector = load_corrector(results.corrector_path(name) if name in results.layers else None, name)
    if corrector is None:
        return LayerCorrection(name, op, reason=NO_CORRECTOR)
    layer, stored = _layer(name, module), _stored_weight(quantized)
    if reason := _unlike(layer.weight, stored):
        return LayerCorrection(name, op, reason=reason)
    return replace(planned_correction(layer, corrector, layer.weight, stored), op=op)


def _unlike(weight: Array, stored: Array) -> str:
    """Why `stored` cannot stand for `weight`, or nothing."""
    if weight.shape != stored.shape:
        return f"its weight has the shape {weight.shape}, the quantised {stored.shape}"
    if not is_near(weight, stored):
        return "the quantised weight is not close to its own; fold batch normalisation before recording"
    return ""


def _layer(name: str, module: Any) -> LinearLayer:
    layout, weight = layout_of(module), reals(module.weight)
    assert layout is not None
    groups = 1 if layout in MATRICES else int(module.groups)
    return LinearLayer(name=name, weight=weight, layout=layout, groups=groups, geometry=geometry_of(module))


def _stored_weight(module: Any) -> Array:
    """The real numbers that the module multiplies by: its weight, fake-quantised if the module does so itself."""
    weight = module.weight() if callable(module.weight) else module.weight
    fake = getattr(module, "weight_fake_quant", None)
    return reals(weight if fake is None else fake(weight))


def add_to_bias(module: Any, term: Array) -> str:
    """Add `term`, float64[outputs], to the bias of `module`, in place; what changed."""
    torch = library()
    if callable(module.weight):  # packed: weight and bias are set together
        weight, bias = module.weight(), module.bias()
        base = torch.zeros(len(term), dtype=torch.float32) if bias is None else bias.detach()
        module.set_weight_bias(weight, base + torch.from_numpy(term).to(base))
        return "bias added" if bias is None else "bias changed"
    with torch.no_grad():
        if module.bias is None:
            like = _like_bias(module.weight)
            module.bias = torch.nn.Parameter(torch.from_numpy(term).to(like), requires_grad=False)
            return "bias added"
        module.bias += torch.from_numpy(term).to(module.bias)
    return "bias changed"


def _like_bias(weight: Any) -> Any:
    """An empty tensor on the device and of the dtype of a bias beside `weight`."""
    torch = library()
    dtype = weight.dtype if weight.dtype.is_floating_point else torch.float32
    return torch.empty(0, dtype=dtype, device=weight.device)
