"""The layers of a torch model: the weights that multiply the channels of an input.

Most are modules: Linear, convolutions, the `Conv1D` of transformers. A `MultiheadAttention` has several in one module:
its projections of queries, keys and values are rows of one parameter, or parameters of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ...layouts import TRANSPOSED, Geometry, Kernel
from ...storage.names import layer_names
from .library import library

if TYPE_CHECKING:
    import torch

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
MATRICES = ("OI", "IO")
"""Layouts of layers whose channels are on the last axis of their input."""
PROJECTIONS = ("q_proj", "k_proj", "v_proj")
IN_PROJECTION = "in_proj"


@dataclass(frozen=True, eq=False)
class ModelLayer:
    """A weight of a model: the attribute `weight` of `module`, or `rows` of it, with the `bias` beside it.

    `name` is the layer's name in stores and results, `path` the module's name in the model. `whole` is the name of the
    layer of which this one is `rows`: a `MultiheadAttention` multiplies either one input by the whole, or several by
    its parts.
    """

    name: str
    path: str
    module: torch.nn.Module
    layout: str
    weight: str = "weight"
    bias: str = "bias"
    rows: slice | None = None
    whole: str = ""

    @property
    def op(self) -> str:
        """The class of its module."""
        return type(self.module).__name__

    @property
    def parameter(self) -> Any:
        """The parameter that is its weight; None if the module computes its weight, as parametrisations do."""
        return self.module._parameters.get(self.weight)

    @property
    def is_projection(self) -> bool:
        """Whether its weight is that of queries, keys or values, which no call of a module of its own multiplies by."""
        return self.weight != "weight"


def linear_modules(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Layer name → module, for every Linear, Conv, ConvTranspose and Conv1D of `model`, in order.

    Names are those of `named_modules` with `/` for `.`; a module with several names gets the first.
    """
    return {layer.name: layer.module for layer in layers_of(model) if not layer.is_projection}


def layers_of(model: torch.nn.Module) -> list[ModelLayer]:
    """The layers of `model`, in order: its linear modules, and the projections of its `MultiheadAttention`s."""
    found = [layer for path, module in model.named_modules() for layer in _layers(path, module)]
    names = layer_names([layer.name for layer in found])
    known = dict(zip((layer.name for layer in found), names, strict=True))
    return [
        replace(layer, name=name, whole=known.get(layer.whole, "")) for name, layer in zip(names, found, strict=True)
    ]


def plain_path(path: str) -> str:
    """`path` of a module without the places that `torch.compile` adds."""
    return ".".join(part for part in path.split(".") if part != "_orig_mod")


def _layers(path: str, module: Any) -> Iterator[ModelLayer]:
    """The layers of `module` itself; their names are not yet unique."""
    place = plain_path(path).replace(".", "/")
    if layout := layout_of(module):
        yield ModelLayer(place or type(module).__name__, path, module, layout)
    elif isinstance(module, library().nn.MultiheadAttention):
        yield from _projections(f"{place}/" if place else "", path, module)


def _projections(prefix: str, path: str, module: Any) -> Iterator[ModelLayer]:
    extent = module.embed_dim
    bias = "in_proj_bias"
    slices = {name: slice(at * extent, (at + 1) * extent) for at, name in enumerate(PROJECTIONS)}
    if module.in_proj_weight is None:
        for name in PROJECTIONS:
            yield ModelLayer(f"{prefix}{name}", path, module, "OI", f"{name}_weight", bias)
        return
    whole = prefix + IN_PROJECTION
    yield ModelLayer(whole, path, module, "OI", "in_proj_weight", bias)
    for name, rows in slices.items():
        yield ModelLayer(f"{prefix}{name}", path, module, "OI", "in_proj_weight", bias, rows, whole)


def layout_of(module: Any) -> str | None:
    """The layout of the weight of a linear module, None for other modules."""
    nn = library().nn
    layout = next((layout for kind, layout in LAYOUTS.items() if isinstance(module, getattr(nn, kind))), None)
    return "IO" if layout is None and _is_conv1d(module) else layout


def _is_conv1d(module: Any) -> bool:
    """Whether `module` is the `Conv1D` of transformers, a matrix product with the weight [inputs, outputs]."""
    return type(module).__name__ == "Conv1D" and getattr(getattr(module, "weight", None), "ndim", 0) == 2


def kernel_of(module: Any, output_padding: Sequence[int] | None = None) -> Kernel | None:
    """The kernel of a linear module, for the `output_padding` of a call if it has one of its own.

    None for a convolution that pads with anything but zeros.
    """
    geometry, layout = geometry_of(module, output_padding), layout_of(module)
    if geometry is None or layout is None:
        return None
    taps = () if layout in MATRICES else tuple(module.kernel_size)
    return Kernel(taps, geometry, layout in TRANSPOSED, module.groups)


def geometry_of(module: Any, output_padding: Sequence[int] | None = None) -> Geometry | None:
    """How the taps of `module` move; None for a convolution that pads with anything but zeros."""
    if layout_of(module) in MATRICES:
        return Geometry()
    if module.padding_mode != "zeros":
        return None
    ends = getattr(module, "output_padding", ()) if output_padding is None else output_padding
    return geometry(tuple(module.kernel_size), module.stride, module.padding, module.dilation, ends)


def geometry(
    taps: tuple[int, ...],
    stride: int | Sequence[int],
    padding: str | int | Sequence[int],
    dilation: int | Sequence[int],
    output_padding: int | Sequence[int] = (),
) -> Geometry:
    """The geometry of a convolution with so many `taps`, its arguments as torch takes them."""
    dilations = _per_axis(dilation, taps)
    if padding == "same":
        totals = [each * (extent - 1) for each, extent in zip(dilations, taps, strict=True)]
        pads = (*(total // 2 for total in totals), *(total - total // 2 for total in totals))
    else:
        each = (0,) * len(taps) if isinstance(padding, str) else _per_axis(padding, taps)
        pads = (*each, *each)
    ends = _per_axis(output_padding, taps) if output_padding != () else ()
    return Geometry(_per_axis(stride, taps), pads, dilations, ends)


def _per_axis(numbers: int | Sequence[int], taps: tuple[int, ...]) -> tuple[int, ...]:
    """One number per axis, where torch takes one for all."""
    given = (numbers,) if isinstance(numbers, int) else tuple(numbers)
    return given * len(taps) if len(given) == 1 else given
