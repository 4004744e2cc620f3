"""Products with a model's parameters that are no calls of a module: functions of torch, and attention.

Importing this module imports torch. While a `ParameterCalls` is active, torch hands it every function that the model
calls in this thread; the function then runs as it would have.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode, _get_current_function_mode, _get_current_function_mode_stack

from ...errors import OutputError, first_line
from ...layouts import Kernel
from .layers import IN_PROJECTION, LAYOUTS, PROJECTIONS, ModelLayer, geometry
from .parameters import ParameterIndex
from .sessions import Session

MATRIX_PRODUCTS: dict[Any, tuple[int, int]] = {
    functional.linear: (0, 1),
    torch.matmul: (0, 1),
    torch.Tensor.matmul: (0, 1),
    torch.Tensor.__matmul__: (0, 1),
    torch.mm: (0, 1),
    torch.Tensor.mm: (0, 1),
    torch.addmm: (1, 2),
    torch.Tensor.addmm: (1, 2),
}
"""Function → places of the input and of the weight among its arguments. Channels are on the input's last axis."""
STACKED_PRODUCTS = frozenset(("bmm", "matmul", "__matmul__"))
GROUPED_PRODUCTS = frozenset(("grouped_mm", "_grouped_mm", "grouped_mm_fallback"))
"""Functions that multiply by a stack of matrices: an input by each, or a group of the rows of one input by each."""
CONVOLUTIONS: dict[Any, tuple[int, bool]] = {
    functional.conv1d: (1, False),
    functional.conv2d: (2, False),
    functional.conv3d: (3, False),
    functional.conv_transpose1d: (1, True),
    functional.conv_transpose2d: (2, True),
    functional.conv_transpose3d: (3, True),
}
"""Function → spatial axes, and whether it is transposed."""
AFTER_WEIGHT = ("bias", "stride", "padding", "dilation", "groups")
AFTER_WEIGHT_TRANSPOSED = ("bias", "stride", "padding", "output_padding", "groups", "dilation")
WEIGHTS, INPUTS = ("weight", "other", "mat2", "mat_b"), ("mat1", "mat_a")
"""How functions name their weight and their input; some say `input`, which is the bias in `addmm`."""
ATTENTION = inspect.signature(functional.multi_head_attention_forward)


class ParameterCalls(TorchFunctionMode):  # type: ignore[misc]
    """Records the inputs of products with parameters of a model, unless a module that is recorded makes them itself.

    `entered` are the names of the layers whose modules are running.
    """

    def __init__(self, session: Session, index: ParameterIndex) -> None:
        super().__init__()
        self._session, self._index = session, index
        self.entered: list[str] = []

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, arguments: tuple[Any, ...] = (), named: Any = None
    ) -> Any:
        """Record what `function` multiplies by a parameter, then call it."""
        named = named or {}
        with torch.no_grad():
            self._hear(function, arguments, named)
        with self._attended(function, arguments, named):
            return function(*arguments, **named)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """While the block runs, torch calls its functions as if there were no recording: its fast paths, too."""
        if _get_current_function_mode() is not self:
            yield
            return
        self.__exit__(None, None, None)
        try:
            yield
        finally:
            self.__enter__()

    def active(self) -> Any:
        """A block in which this is active, once."""
        return nullcontext() if self in _get_current_function_mode_stack() else self

    @contextmanager
    def samples_of_nested(self) -> Iterator[None]:
        """A block in which every position of an input becomes a row."""
        session, self._session = self._session, self._session.nested()
        try:
            yield
        finally:
            self._session = session

    def _hear(self, function: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        name = getattr(function, "__name__", str(function))
        try:
            self._hear_mask(function, arguments, named)
            if function is functional.multi_head_attention_forward:
                self._attention(arguments, named)
            elif function in MATRIX_PRODUCTS:
                x, weight = operands(MATRIX_PRODUCTS[function], arguments, named)
                self._product(x, weight, function is functional.linear, _added(name, arguments, named))
            elif function in CONVOLUTIONS:
                self._convolution(*CONVOLUTIONS[function], arguments, named)
            self._experts(name, arguments, named)
        except OutputError:
            raise
        except Exception as error:
            for found in filter(None, map(self._layer, (*arguments, *named.values()))):
                self._session.fail(found[0], f"a call of {name} was not understood ({first_line(error)})")
        self._index.note(name, (*arguments, *named.values()))

    def _hear_mask(self, function: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Let the masks know of one that attention is called with."""
        masks = self._session.masks
        if masks is None:
            return
        if function is functional.scaled_dot_product_attention:
            masks.hear(named.get("attn_mask", arguments[3] if len(arguments) > 3 else None))
        elif function is functional.multi_head_attention_forward:
            padding = ATTENTION.bind(*arguments, **named).arguments.get("key_padding_mask")
            if padding is not None and padding.ndim == 2:
                masks.hear((~padding if padding.dtype == torch.bool else padding)[:, None])

    def _layer(self, weight: Any) -> tuple[str, bool] | None:
        found = self._index.layer(weight)
        return None if found is None or found[0] in self.entered else found

    def _product(self, x: Any, weight: Any, outputs_first: bool, bias: Any) -> None:
        found = self._layer(weight) if weight.ndim == 2 else None
        if found is not None:
            name, transposed = found
            self._index.note_use(name, "IO" if outputs_first is transposed else "OI", bias)
            self._session.append(name, x, 2, -1, Kernel())

    def _experts(self, function: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Record what each matrix of a stack multiplies."""
        if function not in STACKED_PRODUCTS | GROUPED_PRODUCTS:
            return
        x, weights = operands((0, 1), arguments, named)
        name = self._index.stack(weights)
        if name is None:
            return
        parts = x
        if function in GROUPED_PRODUCTS:
            ends = (named["offs"] if "offs" in named else arguments[2]).tolist()
            parts = [x[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        for number, part in enumerate(parts):
            self._session.append(f"{name}/{number}", part, 2, -1, Kernel())

    def _convolution(self, spatial: int, transposed: bool, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        x, weight = operands((0, 1), arguments, named)
        found = self._layer(weight)
        if found is None:
            return
        order = AFTER_WEIGHT_TRANSPOSED if transposed else AFTER_WEIGHT
        given = dict(zip(order, arguments[2:], strict=False)) | named
        taps = tuple(weight.shape[2:])
        kind = "ConvTranspose" if transposed else "Conv"
        self._index.note_use(found[0], LAYOUTS[f"{kind}{spatial}d"], given.get("bias"), given.get("groups", 1))
        ends = given.get("output_padding", 0) if transposed else ()
        moves = geometry(taps, given.get("stride", 1), given.get("padding", 0), given.get("dilation", 1), ends)
        self._session.append(found[0], x, spatial + 2, 1, Kernel(taps, moves, transposed, given.get("groups", 1)))

    def _attention(self, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        given = ATTENTION.bind(*arguments, **named).arguments
        inputs = [given[name] for name in ("query", "key", "value")]
        for name, x in self._projected(given, inputs):
            self._session.append(name, _samples_first(x), 3, -1, Kernel())

    @contextmanager
    def _attended(self, function: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Iterator[None]:
        """Record what attention hands to its output projection, which it makes inside a function of its own."""
        output = None
        if function is functional.multi_head_attention_forward:
            query, weight = (_attention_argument(name, arguments, named) for name in ("query", "out_proj_weight"))
            output = self._layer(weight)
        if output is None:
            yield
            return
        project: Any = functional.linear

        def linear(x: Any, other: Any, *rest: Any) -> Any:
            if other is weight:
                self._rows(output[0], x.detach(), len(query))
            return project(x, other, *rest)

        listening: Any = linear
        functional.linear = listening
        try:
            yield
        finally:
            functional.linear = project

    def _rows(self, name: str, rows: Any, positions: int) -> None:
        """Record `rows` [T * N, E] of attention over so many positions T as samples [N, T, E]."""
        if rows.ndim != 2 or rows.shape[0] % positions:
            self._session.fail(name, f"attention hands it an input of the shape {list(rows.shape)}, which is not known")
            return
        self._session.append(name, rows.reshape(positions, -1, rows.shape[1]).transpose(0, 1), 3, -1, Kernel())

    def _projected(self, given: dict[str, Any], inputs: list[Any]) -> Iterator[tuple[str, Any]]:
        """The names of the projections of queries, keys and values, each with its input."""
        if given.get("use_separate_proj_weight"):
            for part, x in zip(PROJECTIONS, inputs, strict=True):
                if found := self._layer(given[f"{part}_weight"]):
                    yield found[0], x
        elif found := self._layer(given["in_proj_weight"]):
            if inputs[0] is inputs[1] is inputs[2]:
                yield found[0], inputs[0]
                return
            prefix = found[0].removesuffix(IN_PROJECTION)
            for part, x in zip(PROJECTIONS, inputs, strict=True):
                yield prefix + part, x


def operands(places: tuple[int, int], arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
    """The input and the weight among the arguments of a function."""
    x, weight = places
    inputs = (*INPUTS, "input") if x == 0 else INPUTS
    given = dict(enumerate(arguments))
    for place, names in ((x, inputs), (weight, WEIGHTS)):
        given.update((place, named[name]) for name in names if name in named)
    return given[x], given[weight]


def _added(function: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """The bias among the arguments of a matrix product, None if there is none."""
    place, name = {"linear": (2, "bias"), "addmm": (0, "input")}.get(function, (len(arguments), ""))
    scaled = any(named.get(each, 1) != 1 for each in ("alpha", "beta"))
    return None if scaled else arguments[place] if len(arguments) > place else named.get(name)


def _samples_first(x: Any) -> Any:
    """[T, N, C] as [N, T, C]; one sample stays [T, C]."""
    return x.transpose(0, 1) if x.ndim == 3 else x[None]


def _attention_argument(name: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    place = [*ATTENTION.parameters].index(name)
    return arguments[place] if place < len(arguments) else named.get(name)


KINDS = (torch.nn.TransformerEncoder, torch.nn.TransformerEncoderLayer, torch.nn.MultiheadAttention)
FAST = tuple(kind.forward for kind in KINDS)
"""What modules run that have fast paths, in which torch calls no functions that can be heard."""


class FastPaths:
    """Lets the modules of a model take their fast paths, and records what the slow path, which they run beside, sees.

    Both paths compute the same, up to rounding; the loop gets the result of the one that torch chooses by itself.
    """

    def __init__(
        self, model: torch.nn.Module, layers: list[ModelLayer], session: Session, calls: ParameterCalls
    ) -> None:
        self._modules = {id(module): module for module in model.modules() if type(module).forward in FAST}
        self._layers, self._session, self._calls = layers, session, calls
        self._slow = self._done = False

    @property
    def without_hooks(self) -> set[int]:
        """The ids of the modules at which a hook would keep torch from the fast path of a module around them."""
        layers = [each for each in self._modules.values() if not isinstance(each, torch.nn.TransformerEncoder)]
        return {id(inner) for layer in layers for inner in layer.modules()}

    @contextmanager
    def watched(self) -> Iterator[None]:
        """While the block runs, calls of the modules go through here."""
        replaced = {kind: kind.forward for kind in KINDS if self._modules}
        try:
            for kind, forward in replaced.items():
                kind.forward = self._watching(forward)
            yield
        finally:
            for kind, forward in replaced.items():
                kind.forward = forward

    def _watching(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def call(module: Any, *arguments: Any, **named: Any) -> Any:
            if not self._done and (self._slow or self._is_slow(module)):
                with self._calls.active():
                    return forward(module, *arguments, **named)
            with self._beside(forward, module, arguments, named), self._calls.paused():
                return forward(module, *arguments, **named)

        call.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
        return call

    def _is_slow(self, module: Any) -> bool:
        """Whether `module` is of the model, and certain not to take a fast path."""
        if id(module) not in self._modules:
            return False
        if isinstance(module, torch.nn.TransformerEncoder) and any(
            id(each) not in self._modules for each in module.layers
        ):
            return True
        needs_gradients = torch.is_grad_enabled() and any(each.requires_grad for each in module.parameters())
        return bool(module.training or needs_gradients or torch.is_autocast_enabled())

    @contextmanager
    def _beside(self, forward: Any, module: Any, arguments: Any, named: dict[str, Any]) -> Iterator[None]:
        """Record what `module` sees on its slow path; while the block runs, modules inside it are recorded already."""
        records = id(module) in self._modules and not isinstance(module, torch.nn.TransformerEncoder)
        if not records or self._done:
            yield
            return
        self._run_slowly(forward, module, arguments, named)
        self._done = True
        try:
            yield
        finally:
            self._done = False

    def _run_slowly(self, forward: Any, module: Any, arguments: Any, named: dict[str, Any]) -> None:
        self._slow = True
        try:
            with torch.no_grad(), self._calls.active():
                if any(getattr(each, "is_nested", False) for each in (*arguments, *named.values())):
                    self._each_sample(forward, module, arguments, named)
                else:
                    forward(module, *arguments, **named)
        except OutputError:
            raise
        except Exception as error:  # what the slow path cannot do is no failure of the loop
            self._fail(module, first_line(error))
        finally:
            self._slow = False

    def _each_sample(self, forward: Callable[..., Any], module: Any, arguments: Any, named: dict[str, Any]) -> None:
        parts = {id(each): each.unbind() for each in (*arguments, *named.values()) if getattr(each, "is_nested", False)}
        count = len(next(iter(parts.values())))
        with self._calls.samples_of_nested():
            for number in range(count):
                plain = {key: each[number][None] for key, each in parts.items()}
                forward(
                    module,
                    *(plain.get(id(each), each) for each in arguments),
                    **{name: plain.get(id(each), each) for name, each in named.items()},
                )

    def _fail(self, module: Any, reason: str) -> None:
        inner = {id(each) for each in module.modules()}
        for name in [layer.name for layer in self._layers if id(layer.module) in inner and not layer.whole]:
            self._session.fail(name, f"the slow path of {type(module).__name__} fails: {reason}")
