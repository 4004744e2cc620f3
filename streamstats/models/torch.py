"""torch: the inputs of a model's linear layers while the user runs their own loop, and corrected biases in a copy of it
that was quantised: fake-quantised weights, the modules of `torch.ao`, the tensors of torchao.

`torch` is imported when a function here is called.

>>> with recording(model, "calibration.zarr"):          # doctest: +SKIP
...     for batch in loader:
...         model(batch)
>>> apply_correctors(model, quantized, "out")            # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..calibration.recorder import Recorder
from ..correction import BiasCorrector, MeanBiasCorrector, PositionBiasCorrector
from ..errors import MismatchError, MissingDependencyError, UsageError
from ..layouts import Geometry
from ..outputs.results import Results, open_results
from ..storage.names import layer_names

if TYPE_CHECKING:
    import torch

Array = npt.NDArray[Any]
LAYOUTS = {
    "Linear": "OI",
    "Conv1d": "OIW",
    "Conv2d": "OIHW",
    "Conv3d": "OIDHW",
    "ConvTranspose1d": "IOW",
    "ConvTranspose2d": "IOHW",
    "ConvTranspose3d": "IODHW",
}
"""Class of `torch.nn` → layout of its weight. Subclasses count, as those of quantisation-aware training."""
WIDENED = ("bfloat16",)
"""dtypes that numpy does not have: their values go to float32, which holds them all."""
MARK = "_streamstats_corrected"
"""The attribute of a model whose biases are corrected."""
FARTHEST = 1.0
"""Distance of a quantised weight, as a share of the norm, from which on it is another's."""


def _library() -> Any:
    try:
        return import_module("torch")
    except ImportError as error:
        raise MissingDependencyError(f"torch cannot be imported ({error}); install it as its own site says") from error


def linear_modules(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Layer name → module, for every Linear, Conv and ConvTranspose of `model`, in order.

    Names are those of `named_modules` with `/` for `.`; a module that is there under several names has the first.
    """
    found = [(name, module) for name, module in model.named_modules() if _layout(module)]
    names = layer_names([name.replace(".", "/") or type(module).__name__ for name, module in found])
    return dict(zip(names, (module for _, module in found), strict=True))


def _layout(module: torch.nn.Module) -> str | None:
    torch = _library()
    return next((layout for kind, layout in LAYOUTS.items() if isinstance(module, getattr(torch.nn, kind))), None)


# Recording


@contextmanager
def recording(
    model: torch.nn.Module,
    store: str | Path,
    *,
    layers: Sequence[str] | None = None,
    positions_as_rows: bool = False,
) -> Iterator[dict[str, torch.nn.Module]]:
    """Append the input of every linear module to the zarr group `store` each time it is called inside the `with`.

    `layers` are globs on layer names; default all. A module that is called several times a batch adds rows each time.
    Inputs go to the processor's memory one at a time, from any device; bfloat16 becomes float32, quantised tensors the
    reals they stand for. With `positions_as_rows`, every position is a row of its own, for inputs whose shape changes
    from call to call; the means are the same, sums at each position cannot be kept then.

    Yields the modules that are recorded, by layer name. Raises `UsageError` where none is; inside, `MismatchError` for
    an input of another shape than before, `OutputError` where the store cannot be written.
    """
    chosen = {
        name: module
        for name, module in linear_modules(model).items()
        if layers is None or any(fnmatchcase(name, glob) for glob in layers)
    }
    if not chosen:
        names = ", ".join(linear_modules(model)) or "none"
        raise UsageError(f"the model has no linear modules to record; its layers are: {names}")
    hooks = []
    with Recorder(store) as recorder:
        try:
            for name, module in chosen.items():
                hook = _Hook(recorder, name, positions_as_rows)
                hooks.append(module.register_forward_pre_hook(hook, with_kwargs=True))
            yield chosen
        finally:
            for each in hooks:
                each.remove()


@dataclass(frozen=True)
class _Hook:
    """Appends what a module is called with."""

    recorder: Recorder
    name: str
    positions_as_rows: bool

    def __call__(self, module: torch.nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        layout = _layout(module)
        assert layout is not None
        values = _to_numpy(arguments[0] if arguments else named["input"])
        axes = 2 if layout == "OI" else len(layout)
        if values.ndim == axes - 1:  # one sample without its axis
            values = values[np.newaxis]
        axis = values.ndim - 1 if layout == "OI" else 1
        if self.positions_as_rows:
            values, axis = np.moveaxis(values, axis, -1).reshape(-1, values.shape[axis]), 1
        self.recorder.append(self.name, values, channel_axis=axis)


def _to_numpy(tensor: torch.Tensor) -> Array:
    torch = _library()
    plain = tensor.detach()
    if plain.is_quantized:
        plain = plain.dequantize()
    if str(plain.dtype).removeprefix("torch.") in WIDENED:
        plain = plain.to(torch.float32)
    return np.asarray(plain.cpu().numpy())


# Correcting


@dataclass(frozen=True)
class ModuleCorrection:
    """The outcome for a module: the `largest` magnitude of what was added to its bias, or the `reason` for nothing."""

    layer: str
    corrected: bool = False
    reason: str = ""
    largest: float = 0.0


def apply_correctors(
    model: torch.nn.Module, quantized: torch.nn.Module, correctors: str | Path
) -> list[ModuleCorrection]:
    """Add to the biases of `quantized`, in place, what undoes the shift of each layer's mean output; the outcomes.

    `model` is the float model that was recorded, `quantized` a copy of it with quantised weights, whose modules have
    the same names: fake-quantised, of `torch.ao` (converted, or trained with quantisation), or of torchao.
    `correctors` is what `streamstats run` left. A module without a bias gets one. A model is corrected once only.

    Raises `UsageError` where no layer has a corrector, `MismatchError` for a corrector of other channels, `DataError`.
    """
    if getattr(quantized, MARK, False):
        raise UsageError("the quantised model has been corrected already; give it as its quantiser left it")
    results = open_results(Path(correctors))
    others = {name: module for name, module in quantized.named_modules() if hasattr(module, "weight")}
    modules = linear_modules(model)
    if not set(modules) & set(results.layers):
        raise UsageError(f"{correctors} holds no layer of the model; its layers are: {', '.join(modules) or 'none'}")
    places = {id(module): name for name, module in model.named_modules()}
    done = [_corrected(name, module, others.get(places[id(module)]), results) for name, module in modules.items()]
    if not any(each.corrected for each in done):
        raise MismatchError(f"no module was corrected; the first, {done[0].layer}: {done[0].reason}")
    setattr(quantized, MARK, True)
    return done


def _corrected(
    layer: str, module: torch.nn.Module, quantized: torch.nn.Module | None, results: Results
) -> ModuleCorrection:
    path = results.corrector_path(layer) if layer in results.layers else None
    if quantized is None:
        return ModuleCorrection(layer, reason="the quantised model has no module of its name with a weight")
    if path is None:
        return ModuleCorrection(layer, reason="no corrector: the run left none for it")
    weight, stored = _reals(module.weight), _stored_weight(quantized)
    if weight.shape != stored.shape:
        return ModuleCorrection(layer, reason=f"its weight has the shape {weight.shape}, the quantised {stored.shape}")
    if np.linalg.norm(stored - weight) >= FARTHEST * np.linalg.norm(weight) > 0:
        return ModuleCorrection(
            layer, reason="the quantised weight is not near to its own; fold batch normalisation before recording"
        )
    try:
        term = _term(module, BiasCorrector.load(path), weight, stored)
    except MismatchError as error:
        raise MismatchError(f"layer {layer}, corrector {path}: {error}") from error
    if term is None:
        return ModuleCorrection(layer, reason="its corrector is null")
    _add_to_bias(quantized, term)
    return ModuleCorrection(layer, corrected=True, largest=float(np.abs(term).max(initial=0.0)))


def _term(module: torch.nn.Module, corrector: BiasCorrector, weight: Array, stored: Array) -> Array | None:
    layout = _layout(module)
    assert layout is not None
    if layout == "OI":
        return corrector.calculate(weight, stored, layout=layout)
    transposed = layout.startswith("IO")
    padded_with_others = getattr(module, "padding_mode", "zeros") != "zeros"
    if isinstance(corrector, PositionBiasCorrector) and padded_with_others:
        corrector = MeanBiasCorrector(corrector.input_mean)
    return corrector.calculate(
        weight,
        stored,
        layout=layout,
        groups=int(module.groups),
        strides=tuple(module.stride) if transposed else None,
        geometry=_geometry(module, weight.shape[2:]),
    )


def _geometry(module: Any, kernel: Sequence[int]) -> Geometry:
    dilations = tuple(module.dilation)
    if module.padding == "same":
        totals = [dilation * (taps - 1) for dilation, taps in zip(dilations, kernel, strict=True)]
        pads = (*(total // 2 for total in totals), *(total - total // 2 for total in totals))
    else:
        each = (0,) * len(kernel) if module.padding == "valid" else tuple(module.padding)
        pads = (*each, *each)
    return Geometry(tuple(module.stride), pads, dilations, tuple(getattr(module, "output_padding", ())))


def _reals(weight: Any) -> Array:
    """The real numbers that a weight stands for, float64."""
    torch = _library()
    plain = weight.detach()
    if hasattr(plain, "dequantize") and (plain.is_quantized or type(plain) not in (torch.Tensor, torch.nn.Parameter)):
        plain = plain.dequantize()
    return np.asarray(plain.to(torch.float64).cpu().numpy())


def _stored_weight(module: Any) -> Array:
    """What the module multiplies with: its weight, fake-quantised where it does that itself."""
    weight = module.weight() if callable(module.weight) else module.weight
    fake = getattr(module, "weight_fake_quant", None)
    return _reals(weight if fake is None else fake(weight))


def _add_to_bias(module: Any, term: Array) -> None:
    torch = _library()
    if callable(module.weight):  # packed: weight and bias are set together
        weight, bias = module.weight(), module.bias()
        base = torch.zeros(len(term), dtype=torch.float32) if bias is None else bias.detach()
        module.set_weight_bias(weight, base + torch.from_numpy(term).to(base))
        return
    with torch.no_grad():
        if module.bias is None:
            weight = _reals_like(module.weight)
            module.bias = torch.nn.Parameter(torch.from_numpy(term).to(weight), requires_grad=False)
        else:
            module.bias += torch.from_numpy(term).to(module.bias)


def _reals_like(weight: Any) -> Any:
    """A tensor of the device and dtype that a bias beside `weight` has."""
    torch = _library()
    dtype = weight.dtype if weight.dtype.is_floating_point else torch.float32
    return torch.empty(0, dtype=dtype, device=weight.device)
