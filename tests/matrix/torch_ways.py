"""The ways of quantising a network in torch, and what the mean outputs of its layers are then, by torch in float64.

Importing this imports torch.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.ao.quantization import get_default_qconfig_mapping, quantize_dynamic, quantize_fx
from torch.nn import functional

from streamstats.config import JobConfig
from streamstats.errors import StreamstatsError
from streamstats.jobs.run import run
from streamstats.models.torch import Account, apply_correctors, recording

from .evaluation import Shift
from .ways import Outcome

MASK = "attention_mask"
"""The input that says which positions count; `recording` knows it by this name."""
KINDS = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
FLOAT32 = 1e-6
"""The error of a float32 bias in mean outputs, as a share of the largest output."""


def converted(network: Any, x: Mapping[str, Any]) -> Any:
    """With modules of `torch.ao` that compute with codes."""
    prepared = quantize_fx.prepare_fx(copy.deepcopy(network), get_default_qconfig_mapping("x86"), tuple(x.values()))
    prepared(*x.values())
    return quantize_fx.convert_fx(prepared)


def dynamic(network: Any, _x: Mapping[str, Any]) -> Any:
    """With matrices of `torch.ao` whose inputs are quantised as they come."""
    return quantize_dynamic(copy.deepcopy(network), {nn.Linear, nn.LSTM}, dtype=torch.qint8)


def weights_only(network: Any, _x: Mapping[str, Any]) -> Any:
    """With matrices of torchao's codes of 8 bits."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantized = copy.deepcopy(network)
    quantize_(quantized, Int8WeightOnlyConfig())
    return quantized


def exported(network: Any, x: Mapping[str, Any]) -> Any:
    """As torchao's `pt2e` flow leaves it."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer

    quantizer = x86_inductor_quantizer.X86InductorQuantizer()
    quantizer.set_global(x86_inductor_quantizer.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(torch.export.export(network, tuple(x.values())).module(), quantizer)
    prepared(*x.values())
    return convert_pt2e(prepared)


WAYS: Mapping[str, Callable[[Any, Mapping[str, Any]], Any]] = {
    "torch.ao, converted": converted,
    "torch.ao, dynamic": dynamic,
    "torchao, weights only": weights_only,
    "torchao, pt2e": exported,
}


@dataclass(frozen=True)
class Recorded:
    """A network, its samples `x`, the folder of a run over them, and the account of the recording."""

    network: Any
    x: Mapping[str, Any]
    out: Path
    account: Account


def recorded(network: Any, x: Mapping[str, Any], folder: Path) -> Recorded:
    """Record and count the samples `x` through `network`."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        with recording(network, folder / "recorded.zarr") as account:
            network(**x)
    statistics = [] if MASK in x else ["taps"]  # the mask is recorded, and taps have none
    config = {"source": str(folder / "recorded.zarr"), "output": str(folder / "out"), "statistics": statistics}
    run(JobConfig.model_validate(config).job())
    return Recorded(network, x, folder / "out", account)


def outcomes(given: Recorded, way: Callable[[Any, Mapping[str, Any]], Any]) -> list[Outcome]:
    """What became of every layer of the network that was quantised in this `way`."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        quantized = way(given.network, given.x)
        seen, mask = observed(given.network, given.x), given.x.get(MASK)
        before = shifts(given.network, quantized, seen, mask)
        try:
            done = {each.layer: each for each in apply_correctors(given.network, quantized, given.out)}
        except StreamstatsError as error:
            return [Outcome(name, reason=str(error)) for name in layers_of(given.network)]
        after = shifts(given.network, quantized, seen, mask)
    return [_outcome(name, done, given.account, before, after) for name in layers_of(given.network)]


def _outcome(
    name: str, done: Mapping[str, Any], account: Account, before: Mapping[str, Shift], after: Mapping[str, Shift]
) -> Outcome:
    one = done.get(name)
    if one is None:  # the parts of a stack have names of their own
        parts = [*account.values(), *done.values()]
        reasons = [each.reason for each in parts if each.layer == name or each.layer.startswith(f"{name}/")]
        return Outcome(name, reason=next(filter(None, reasons), ""))
    return Outcome(name, one.op, one.corrected, one.reason, before.get(name), after.get(name))


def layers_of(network: Any) -> list[str]:
    """The names of all that multiplies by a matrix of `network`: modules, and parameters of unknown modules."""
    found = []
    for path, module in network.named_modules():
        name = path.replace(".", "/")
        if isinstance(module, KINDS) or type(module).__name__ == "Conv1D":
            found.append(name)
        elif isinstance(module, nn.MultiheadAttention):
            found.append(f"{name}/in_proj")
        elif isinstance(module, nn.LSTM):
            found += [f"{name}/{each}" for each, _ in module.named_parameters() if each.startswith("weight")]
        elif hasattr(module, "stack"):
            found.append(f"{name}/stack".strip("/"))
    return found


@dataclass(frozen=True)
class Seen:
    """What a layer reads and gives in the float network, in float64: one entry for each call."""

    inputs: list[Any] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)


def observed(network: Any, x: Mapping[str, Any]) -> dict[str, Seen]:
    """Path of a module → what it reads and gives. The projections of attention are told by their weights."""
    wide = copy.deepcopy(network).double()
    seen: dict[str, Seen] = {}
    weights = {id(m.in_proj_weight): f"{p}.in_proj" for p, m in wide.named_modules() if hasattr(m, "in_proj_weight")}
    weights |= {id(m.weight): p for p, m in wide.named_modules() if type(m).__name__.startswith("NonDynamically")}
    for path, module in wide.named_modules():
        if not list(module.children()) and not isinstance(module, nn.LSTM):
            module.register_forward_hook(_noting(seen.setdefault(path, Seen())))
    with _linear_calls(seen, weights):
        wide(*(each.double() if each.dtype.is_floating_point else each for each in x.values()))
    return seen


def _noting(seen: Seen) -> Callable[..., None]:
    def note(_module: Any, arguments: tuple[Any, ...], output: Any) -> None:
        seen.inputs.append(arguments[0])
        seen.outputs.append(output)

    return note


@contextmanager
def _linear_calls(seen: dict[str, Seen], weights: Mapping[int, str]) -> Iterator[None]:
    """Note the products with these `weights` that no call of a module of their own makes."""
    linear, fast = functional.linear, torch.backends.mha.get_fastpath_enabled()

    def noted(x: Any, weight: Any, bias: Any = None) -> Any:
        y = linear(x, weight, bias)
        if path := weights.get(id(weight)):
            _noting(seen.setdefault(path, Seen()))(None, (x,), y)
        return y

    torch.backends.mha.set_fastpath_enabled(False)
    functional.linear = noted
    try:
        yield
    finally:
        functional.linear = linear
        torch.backends.mha.set_fastpath_enabled(fast)


def shifts(network: Any, quantized: Any, seen: Mapping[str, Seen], mask: Any) -> dict[str, Shift]:
    """Layer → the shift of its mean outputs, with the weights and biases of `quantized` and the float inputs.

    Positions that the `mask` leaves out do not count.
    """
    products = dict(_products_of_graph(quantized) if _is_exported(quantized) else _products_of_modules(quantized))
    found = {}
    for path, module in network.named_modules():
        multiplied = f"{path}.in_proj" if isinstance(module, nn.MultiheadAttention) else path
        product, read = products.get(multiplied), seen.get(multiplied)
        if product is None or read is None or not read.inputs:
            continue
        behind = _norm_behind(network, path)
        wanted = seen[behind] if behind and not _has_norm(quantized, behind) else read
        channel = 1 if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) else -1
        mine = _means([product(module, each) for each in read.inputs], channel, mask)
        theirs = _means(wanted.outputs, channel, mask)
        largest = max(float(each.abs().max()) for each in wanted.outputs)
        name = multiplied.replace(".", "/")
        found[name] = Shift(name, float((mine - theirs).abs().max()), 0.0, FLOAT32 * largest)
    return found


def _means(outputs: list[Any], channel: int, mask: Any) -> Any:
    return torch.cat([_rows(each.movedim(channel, -1), mask) for each in outputs]).mean(0)


def _rows(values: Any, mask: Any) -> Any:
    if mask is not None and values.shape[:-1] == mask.shape:
        return values[mask.bool()]
    return values.flatten(0, -2)


def _norm_behind(network: Any, path: str) -> str | None:
    """The batch normalisation that follows the convolution at `path`."""
    parent, _, number = path.rpartition(".")
    around = network.get_submodule(parent)
    follows = isinstance(around, nn.Sequential) and number.isdigit() and len(around) > int(number) + 1
    if follows and isinstance(around[int(number) + 1], nn.BatchNorm2d):
        return f"{parent}.{int(number) + 1}"
    return None


def _has_norm(quantized: Any, path: str) -> bool:
    if _is_exported(quantized):
        return False
    return type(dict(quantized.named_modules()).get(path)).__name__.startswith(("BatchNorm", "BNReLU"))


Product = Callable[[Any, Any], Any]
"""(module of the float network, input) → output."""


def _products_of_modules(quantized: Any) -> Iterator[tuple[str, Product]]:
    """Path → the product that the module there makes, in float64, with the weight and bias that it stores."""
    for path, module in quantized.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.MultiheadAttention):
            yield f"{path}.in_proj", _linear(module.in_proj_weight, module.in_proj_bias)
        elif callable(weight):
            yield path, _like(weight(), module.bias())
        elif isinstance(weight, torch.Tensor) and weight.ndim > 1 and not isinstance(module, nn.Embedding):
            yield path, _like(weight, module.bias)


def _like(weight: Any, bias: Any) -> Product:
    return lambda module, x: _product(module, x, _reals(weight), None if bias is None else _reals(bias))


def _linear(weight: Any, bias: Any) -> Product:
    return lambda _module, x: functional.linear(x, _reals(weight), None if bias is None else _reals(bias))


def _product(module: Any, x: Any, weight: Any, bias: Any) -> Any:
    if isinstance(module, nn.ConvTranspose2d):
        ends = module.output_padding
        return functional.conv_transpose2d(x, weight, bias, module.stride, module.padding, ends, module.groups)
    if isinstance(module, nn.Conv2d):
        return functional.conv2d(x, weight, bias, module.stride, module.padding, module.dilation, module.groups)
    return functional.linear(x, weight.T if type(module).__name__ == "Conv1D" else weight, bias)


def _reals(tensor: Any) -> Any:
    plain = tensor.dequantize() if hasattr(tensor, "dequantize") and type(tensor) is not nn.Parameter else tensor
    return plain.detach().double()


def _is_exported(quantized: Any) -> bool:
    nodes = quantized.graph.nodes if isinstance(quantized, torch.fx.GraphModule) else ()
    return any(isinstance(node.target, torch._ops.OpOverload) for node in nodes)


def _products_of_graph(quantized: Any) -> Iterator[tuple[str, Product]]:
    """Path of a module that was exported → the product that the graph makes for it, by the nodes' own operators."""
    values = _Values(quantized)
    for node in quantized.graph.nodes:
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        name = getattr(node.target, "__name__", "")
        if stack and name.split(".")[0] in ("linear", "conv2d", "conv_transpose2d"):
            weight, bias, *_ = (*node.args[1:3], None)
            yield stack[-1][0], _like(values.of(weight), None if bias is None else values.of(bias))


class _Values(torch.fx.Interpreter):  # type: ignore[misc]
    """The values of the nodes of a graph that depend on no input."""

    def of(self, node: Any) -> Any:
        if node.op == "get_attr":
            return self.fetch_attr(node.target)
        arguments = torch.fx.node.map_arg(node.args, self.of)
        return node.target(*arguments, **node.kwargs)
