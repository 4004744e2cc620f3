"""torch: recording the inputs of a model's linear layers while the user runs their own loop, and correcting biases in a
quantised copy: fake-quantised weights, the modules of `torch.ao`, the tensors of torchao.

`torch` is imported when a function here is called.

>>> with recording(model, "calibration.zarr"):          # doctest: +SKIP
...     for batch in loader:
...         model(batch)
>>> apply_correctors(model, quantized, "out")            # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..calibration.masking import positions_of_axis
from ..calibration.recorder import Recorder
from ..errors import MismatchError, MissingDependencyError, UsageError, listed
from ..floats import BFLOAT16, FLOAT8_E4M3FN, FLOAT8_E5M2
from ..jobs.meter import Meter
from ..layouts import TRANSPOSED, Geometry, Kernel
from ..outputs.results import Results, open_results
from ..statistics.masks import Mask, chosen
from ..storage.names import layer_names
from .linear import NO_CORRECTOR, LayerCorrection, LinearLayer, is_near, load_corrector, planned_correction
from .torch_masks import USUAL, BatchMask, MaskOf

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
"""Class of `torch.nn` → layout of its weight. Subclasses count too, such as those of quantisation-aware training."""
NARROW = {each.name: each for each in (BFLOAT16, FLOAT8_E4M3FN, FLOAT8_E5M2)}
"""dtypes that numpy lacks: their bits are taken as they are."""
MARK = "_streamstats_corrected"
"""The attribute of a model whose biases are corrected."""


def _library() -> Any:
    try:
        return import_module("torch")
    except ImportError as error:
        raise MissingDependencyError(f"torch cannot be imported ({error}); install it as its own site says") from error


def linear_modules(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Layer name → module, for every Linear, Conv and ConvTranspose of `model`, in order.

    Names are those of `named_modules` with `/` for `.`; a module with several names gets the first.
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
    mask: MaskOf = USUAL,
) -> Iterator[dict[str, torch.nn.Module]]:
    """Append the input of every linear module to the zarr group `store`, each time the `with` block calls the module.

    `layers` are globs on layer names; default all. A module that is called several times per batch adds rows each time.
    Inputs are copied from any device to the processor's memory one at a time; bfloat16 and float8 stay what they are,
    and quantised tensors become the real numbers they represent. With `positions_as_rows`, every position becomes a
    row, for inputs whose shape changes from call to call; the means stay the same, but what the taps of larger kernels
    see is unknown.

    `mask` says which positions count: the name of an argument of the model, or a function of all its arguments that
    returns a mask `[N, T]` of ones and zeros, or None. By default, padding is left out if the model is called with an
    `attention_mask`. The mask is that of inputs with its positions; a warning names layers with others.

    Yields the recorded modules by layer name. Raises `UsageError` if there are none; inside the block, `MismatchError`
    for an input of a different shape than before, `UsageError` for what is not a mask, `OutputError` if the store
    cannot be written.
    """
    chosen, masks = _chosen(linear_modules(model), layers), BatchMask(model, mask, _to_numpy)
    with Recorder(store) as recorder, _hooked(model, chosen, recorder, positions_as_rows, masks):
        yield chosen


@contextmanager
def measuring(
    model: torch.nn.Module,
    *,
    statistics: Collection[str] = (),
    layers: Sequence[str] | None = None,
    positions_as_rows: bool = False,
    mask: MaskOf = USUAL,
    name: str = "torch",
    nonfinite: str = "error",
) -> Iterator[Meter]:
    """Measure the input of every linear module each time the `with` block calls it, and keep no activations.

    Yields a `Meter`: its `statistics` are, to the bit, those of a run over what `recording` would store, and `save`
    writes an output for `correct`, `ranges`, `merge` and `compare`. `statistics`, `name` and `nonfinite` are those of
    `Meter`, the other arguments and errors those of `recording`.
    """
    meter, masks = Meter(statistics, name=name, nonfinite=nonfinite), BatchMask(model, mask, _to_numpy)
    with _hooked(model, _chosen(linear_modules(model), layers), meter, positions_as_rows, masks):
        yield meter


@contextmanager
def _hooked(
    model: torch.nn.Module,
    modules: dict[str, torch.nn.Module],
    recorder: Recorder | Meter,
    positions_as_rows: bool,
    masks: BatchMask,
) -> Iterator[None]:
    """While the block runs, each call of one of `modules` of `model` appends its input to `recorder`."""
    hooks = [model.register_forward_pre_hook(masks, with_kwargs=True)]
    try:
        for name, module in modules.items():
            hook = _Hook(recorder, name, positions_as_rows, masks)
            hooks.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        yield
    finally:
        for each in hooks:
            each.remove()
    masks.warn()


def _chosen(modules: dict[str, torch.nn.Module], globs: Sequence[str] | None) -> dict[str, torch.nn.Module]:
    """The `modules` whose names match one of the `globs`. Raises `UsageError` if none does."""
    chosen = {
        name: module
        for name, module in modules.items()
        if globs is None or any(fnmatchcase(name, glob) for glob in globs)
    }
    if not chosen:
        wanted = "" if globs is None else f" that match {', '.join(globs)}"
        raise UsageError(f"the model has no linear modules to record{wanted}; its layers are: {listed(modules)}")
    return chosen


@dataclass(frozen=True)
class _Hook:
    """Appends the input of each call of a module."""

    recorder: Recorder | Meter
    name: str
    positions_as_rows: bool
    masks: BatchMask

    def __call__(self, module: torch.nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        layout = _layout(module)
        assert layout is not None
        values = _to_numpy(arguments[0] if arguments else named["input"])
        axes = 2 if layout == "OI" else len(layout)
        if values.ndim == axes - 1:  # one sample without a sample axis
            values = values[np.newaxis]
        axis = values.ndim - 1 if layout == "OI" else 1
        kernel = None if len(arguments) > 1 or named.keys() - {"input"} else _kernel(module)  # with an output size
        mask = self.masks.of(self.name, values, axis)
        if self.positions_as_rows:
            values, axis, mask = _positions(values, axis, mask), 1, None
            kernel = Kernel() if layout == "OI" else None
        self.recorder.append(self.name, values, channel_axis=axis, kernel=kernel, mask=mask)


def _positions(values: Array, axis: int, mask: Mask | None) -> Array:
    """Every position of `values`, channels on `axis`, that counts: [positions, C]."""
    if mask is not None:
        values = chosen(values, axis, np.broadcast_to(mask, positions_of_axis(values.shape, axis)))
    return np.moveaxis(values, axis, -1).reshape(-1, values.shape[axis])


def _kernel(module: Any) -> Kernel | None:
    """The kernel of `module`; None for a convolution that pads with anything but zeros."""
    geometry, layout = _geometry(module), _layout(module)
    if geometry is None or layout is None:
        return None
    taps = () if layout == "OI" else tuple(module.kernel_size)
    return Kernel(taps, geometry, layout in TRANSPOSED)


def _to_numpy(tensor: torch.Tensor) -> Array:
    torch = _library()
    plain = tensor.detach()
    if plain.is_quantized:
        plain = plain.dequantize()
    narrow = NARROW.get(str(plain.dtype).removeprefix("torch."))
    if narrow is None:
        return np.asarray(plain.cpu().numpy())
    integers = torch.int16 if narrow.itemsize == 2 else torch.int8
    return np.asarray(plain.view(integers).cpu().numpy()).view(narrow)


# Correcting


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
    layout, weight = _layout(module), _reals(module.weight)
    assert layout is not None
    groups = 1 if layout == "OI" else int(module.groups)
    return LinearLayer(name=name, weight=weight, layout=layout, groups=groups, geometry=_geometry(module))


def _geometry(module: Any) -> Geometry | None:
    """How the taps of `module` move; None for a convolution that pads with anything but zeros."""
    if _layout(module) == "OI":
        return Geometry()
    if module.padding_mode != "zeros":
        return None
    kernel, dilations = tuple(module.kernel_size), tuple(module.dilation)
    if module.padding == "same":
        totals = [dilation * (taps - 1) for dilation, taps in zip(dilations, kernel, strict=True)]
        pads = (*(total // 2 for total in totals), *(total - total // 2 for total in totals))
    else:
        each = (0,) * len(kernel) if module.padding == "valid" else tuple(module.padding)
        pads = (*each, *each)
    return Geometry(tuple(module.stride), pads, dilations, tuple(getattr(module, "output_padding", ())))


def _reals(weight: Any) -> Array:
    """The real numbers that a weight represents, float64."""
    torch = _library()
    plain = weight.detach()
    if hasattr(plain, "dequantize") and (plain.is_quantized or type(plain) not in (torch.Tensor, torch.nn.Parameter)):
        plain = plain.dequantize()
    return np.asarray(plain.to(torch.float64).cpu().numpy())


def _stored_weight(module: Any) -> Array:
    """The real numbers that the module multiplies by: its weight, fake-quantised if the module does so itself."""
    weight = module.weight() if callable(module.weight) else module.weight
    fake = getattr(module, "weight_fake_quant", None)
    return _reals(weight if fake is None else fake(weight))


def add_to_bias(module: Any, term: Array) -> str:
    """Add `term`, float64[outputs], to the bias of `module`, in place; what changed."""
    torch = _library()
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
    torch = _library()
    dtype = weight.dtype if weight.dtype.is_floating_point else torch.float32
    return torch.empty(0, dtype=dtype, device=weight.device)
