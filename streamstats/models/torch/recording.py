"""Recording the inputs of a model's layers while the user runs their own loop.

What the model computes, and whether it runs, stays as it is; what was not recorded is in the account at the end.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...calibration.masking import USUAL
from ...calibration.recorder import Recorder
from ...errors import UsageError, listed
from ...jobs.meter import Meter
from ...layouts import Kernel
from ..account import NOT_CHOSEN
from .account import NEVER_CALLED, ONLY_EMPTY, ONLY_PADDING, Account, LayerRecord
from .fingerprint import fingerprints
from .layers import MATRICES, ModelLayer, kernel_of, layers_of
from .library import library, to_numpy
from .masks import BatchMask, MaskOf
from .parameters import LooseParameter, ParameterIndex
from .ranks import part_of_rank
from .sessions import Session

if TYPE_CHECKING:
    import torch

    from .calls import ParameterCalls

RECURRENT = ("RNNBase", "RNNCellBase")
LOOKUPS = ("Embedding", "EmbeddingBag")


class ModelMeter(Meter):
    """A `Meter` of the layers of a model; `account` says what was measured of each, once the block has ended."""

    @cached_property
    def account(self) -> Account:
        """What was measured of each layer."""
        return Account()


@contextmanager
def recording(
    model: torch.nn.Module,
    store: str | Path,
    *,
    layers: Sequence[str] | None = None,
    positions_as_rows: bool = False,
    mask: MaskOf = USUAL,
    part: str | None = None,
) -> Iterator[Account]:
    """Append the input of every layer to the zarr group `store`, each time the `with` block runs it.

    Layers are the linear modules, the projections of `MultiheadAttention`, on its fast path, too, and parameters by
    which the model multiplies without such a module (`linear`, `conv`, `matmul`, …). `layers` are globs on their names;
    default all. A layer that runs several times per batch adds rows each time. Inputs are copied from any device to the
    processor's memory one at a time; bfloat16 and float8 stay what they are, and quantised tensors become the real
    numbers they represent. With `positions_as_rows`, every position becomes a row, for inputs whose shape changes from
    call to call; the means stay the same, but what the taps of larger kernels see is unknown. The tokens of nested
    tensors always are such rows. Compiled modules run uncompiled inside the block.

    `mask` says which positions count: the name of an argument of the model, or a function of all its arguments that
    returns a mask `[N, T]` of ones and zeros, or None. By default, padding is left out if the model is called with an
    `attention_mask` or a `src_key_padding_mask`, of booleans, of ones and zeros, or of what is added to scores, also as
    `[N, 1, 1, T]`; the account says how much was left out. The mask is that of inputs with its positions; a warning
    names layers with others, and tells of masks that the model builds itself, which are not used.

    Where several processes record into one store at once, each has a `part` of its own. By default, the processes of
    `torch.distributed`, if it is initialised, have their ranks, and say so; "" is no part.

    Yields the account: what became of each weight. When the block ends, a warning names the weights that were passed
    over, and an error, `MismatchError` or what caused it, the layers whose inputs could not all be recorded, such as
    inputs of a different shape than before; the loop runs on until then. Raises `UsageError` if there are no layers;
    inside the block, `UsageError` for what is not a mask, `OutputError` if the store cannot be written.
    """
    watch = _Watch.of(model, layers, mask, positions_as_rows)
    account = Account()
    part, known = part_of_rank(store) if part is None else part, fingerprints(model)
    with (
        Recorder(store, part=part, model_fingerprint=known.model, weight_fingerprints=known.weights) as recorder,
        watch.watching(recorder, account),
    ):
        yield account


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
) -> Iterator[ModelMeter]:
    """Measure the input of every layer each time the `with` block runs it, and keep no activations.

    Yields a `Meter`: its `statistics` are, to the bit, those of a run over what `recording` would store, and `save`
    writes an output for `correct`, `ranges`, `merge` and `compare`; `account` is what became of each weight.
    `statistics`, `name` and `nonfinite` are those of `Meter`, the other arguments and errors those of `recording`.
    """
    known = fingerprints(model)
    meter = ModelMeter(
        statistics,
        name=name,
        nonfinite=nonfinite,
        model_fingerprint=known.model,
        weight_fingerprints=known.weights,
    )
    with _Watch.of(model, layers, mask, positions_as_rows).watching(meter, meter.account):
        yield meter


@dataclass(frozen=True, eq=False)
class _Watch:
    """What to record of a model."""

    model: torch.nn.Module
    layers: list[ModelLayer]
    index: ParameterIndex
    globs: Sequence[str] | None
    masks: BatchMask
    positions_as_rows: bool

    @classmethod
    def of(cls, model: torch.nn.Module, globs: Sequence[str] | None, mask: MaskOf, positions_as_rows: bool) -> _Watch:
        """Raises `UsageError` if no weight of `model` has a name that matches one of the `globs`."""
        layers = layers_of(model)
        index = ParameterIndex(model, layers)
        watch = cls(model, layers, index, globs, BatchMask(model, mask, to_numpy), positions_as_rows)
        names = [*(each.name for each in layers), *(each.name for each in index.loose)]
        session = watch.session(Meter())
        if not any(session.wants(name) or session.wants(f"{name}/0") for name in names):
            wanted = "" if globs is None else f" that match {', '.join(globs)}"
            raise UsageError(f"the model has no linear modules to record{wanted}; its layers are: {listed(names)}")
        return watch

    def session(self, recorder: Recorder | Meter) -> Session:
        return Session(recorder, self.masks, self.globs, self.positions_as_rows)

    @contextmanager
    def watching(self, recorder: Recorder | Meter, account: Account) -> Iterator[None]:
        """While the block runs, each call of a layer appends its input to `recorder`; then `account` is filled."""
        from .calls import FastPaths, ParameterCalls

        session = self.session(recorder)
        calls = ParameterCalls(session, self.index)
        paths = FastPaths(self.model, self.layers, session, calls)
        try:
            with _uncompiled(), calls, paths.watched(), self._hooked(session, calls, paths.without_hooks):
                yield
        finally:
            for record in _records(self, session):
                account.enter(record)
            account.padding = self.masks.note
        self.masks.warn()
        account.warn()
        session.raise_failures()

    @contextmanager
    def _hooked(self, session: Session, calls: ParameterCalls, without: set[int]) -> Iterator[None]:
        hooks = [self.model.register_forward_pre_hook(self.masks, with_kwargs=True)] if self.masks.may_apply else []
        try:
            for layer in self.layers:
                if not layer.is_projection and id(layer.module) not in without:
                    hook = _Hook(session, calls, layer)
                    hooks.append(layer.module.register_forward_pre_hook(hook, with_kwargs=True))
                    hooks.append(layer.module.register_forward_hook(hook.left, always_call=True))
            yield
        finally:
            for each in hooks:
                each.remove()


def _uncompiled() -> Any:
    """A block in which what torch has compiled runs as it was written, so that its modules are called."""
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    compiler = library().compiler
    return compiler.set_stance("force_eager") if hasattr(compiler, "set_stance") else nullcontext()


@dataclass(frozen=True)
class _Hook:
    """Appends the input of each call of the module of a layer."""

    session: Session
    calls: ParameterCalls
    layer: ModelLayer

    def __call__(self, module: torch.nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        layer = self.layer
        self.calls.entered.append(layer.name)
        matrix = layer.layout in MATRICES
        kernel = Kernel() if matrix else _kernel_of_call(module, arguments, named)
        x = arguments[0] if arguments else next(iter(named.values()), None)
        axes = 2 if matrix else len(layer.layout)
        with self.calls.paused():
            self.session.append(layer.name, x, axes, -1 if matrix else 1, kernel)

    def left(self, *_: Any) -> None:
        """The call has ended."""
        if self.layer.name in self.calls.entered:
            self.calls.entered.remove(self.layer.name)


def _kernel_of_call(module: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Kernel | None:
    """The kernel of a convolution; that of a transposed one may have an output size of its own in each call."""
    size = arguments[1] if len(arguments) > 1 else named.get("output_size")
    if size is None:
        return kernel_of(module)
    x = arguments[0] if arguments else named["input"]
    try:
        ends = module._output_padding(
            x, [*size], module.stride, module.padding, module.kernel_size, len(module.kernel_size), module.dilation
        )
        return kernel_of(module, ends)
    except (AttributeError, TypeError, ValueError):
        return None


# The account


def _records(watch: _Watch, session: Session) -> Iterator[LayerRecord]:
    ran = {layer.whole for layer in watch.layers if layer.whole and session.rows[layer.name]}
    for layer in watch.layers:
        alternative = not session.rows[layer.name] and (layer.whole or layer.name in ran)
        if not alternative:
            yield _record(layer.name, layer.op, session, watch.index.why_not_called(layer.name) or NEVER_CALLED)
    for loose in watch.index.loose:
        yield from _loose_records(loose, watch.index, session)


def _record(name: str, op: str, session: Session, otherwise: str) -> LayerRecord:
    """The record of a layer: its rows, or why there are none."""
    if not session.wants(name):
        return LayerRecord(name, op, reason=NOT_CHOSEN)
    if failure := session.failures.get(name):
        return LayerRecord(name, op, session.rows[name], str(failure))
    rows, calls = session.rows[name], session.calls.get(name)
    if session.positions[name]:
        return LayerRecord(name, op, rows)
    reason = otherwise if calls is None else ONLY_PADDING if calls else ONLY_EMPTY
    return LayerRecord(name, op, rows, reason, skipped=True)


def _loose_records(loose: LooseParameter, index: ParameterIndex, session: Session) -> Iterator[LayerRecord]:
    name, op = loose.name, type(loose.module).__name__
    names = [name, *(each for each in {**session.rows, **session.failures} if each.startswith(f"{name}/"))]
    slices = loose.parameter.shape[0] if loose.parameter.ndim == 3 and len(names) > 1 else 0
    if slices:
        for number in range(slices):
            yield _record(f"{name}/{number}", op, session, NEVER_CALLED)
        return
    nn = library().nn
    if isinstance(loose.module, tuple(getattr(nn, each) for each in LOOKUPS)) and not session.rows[name]:
        yield LayerRecord(name, op, reason="a table of rows to look up; it multiplies nothing")
    elif index.only_harmless(name) and not session.rows[name]:
        yield LayerRecord(name, op, reason="no channels are multiplied by it")
    else:
        yield replace(_record(name, op, session, _why_not(loose, index)), use=index.use(name))


def _why_not(loose: LooseParameter, index: ParameterIndex) -> str:
    """Why nothing was recorded for a parameter of no known module."""
    nn = library().nn
    if isinstance(loose.module, tuple(getattr(nn, each) for each in RECURRENT)):
        return "recurrent: torch multiplies by it step by step, out of reach; replace it by Linear modules"
    seen = index.seen[loose.name]
    where = f"seen only in {', '.join(sorted(seen))}" if seen else "no function that was seen takes it"
    return f"the {loose.place}, which is no linear module; {where}"
