"""The network of `language_model.py`: a small transformer, trained by torch and written as an ONNX model node by node.

Pre-norm blocks of causal attention and of GELU, learned positions, a head of its own: the layers of GPT-2. Queries,
keys and values are three products that read one tensor. torch trains it, and nothing else here needs torch.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

Weights = Mapping[str, npt.NDArray[np.float32]]
Tokens = npt.NDArray[np.int64]
RATE, WARM_UP, DECAY, CLIP, SMALLEST_RATE = 2e-3, 100, 0.1, 1.0, 0.02


@dataclass(frozen=True)
class Network:
    """The sizes of a transformer, and the weights that it has: `x @ weight + bias` everywhere."""

    vocabulary: int
    window: int = 256
    width: int = 256
    blocks: int = 4
    heads: int = 4

    def linear(self) -> Iterator[tuple[str, int, int]]:
        """The linear layers: name, inputs, outputs."""
        for block in range(self.blocks):
            for part in ("query", "key", "value", "mix"):
                yield f"{block}/{part}", self.width, self.width
            yield f"{block}/up", self.width, 4 * self.width
            yield f"{block}/down", 4 * self.width, self.width
        yield "head", self.width, self.vocabulary

    def norms(self) -> Iterator[str]:
        """The layer normalisations."""
        for block in range(self.blocks):
            yield from (f"{block}/attended", f"{block}/fed")
        yield "last"

    @property
    def weights(self) -> int:
        """The number of weights, biases among them."""
        return sum(each.size for each in self.initial(0).values())

    def initial(self, seed: int) -> dict[str, npt.NDArray[np.float32]]:
        """Random weights: small ones in front of a residual sum."""
        random = np.random.default_rng(seed)
        made = {
            name: random.normal(0, 0.02, (count, self.width))
            for name, count in (("tokens", self.vocabulary), ("positions", self.window))
        }
        for name, inputs, outputs in self.linear():
            residual = math.sqrt(2 * self.blocks) if name.endswith(("mix", "down")) else 1
            made[f"{name}.weight"] = random.normal(0, 0.02 * math.sqrt(256 / inputs) / residual, (inputs, outputs))
            made[f"{name}.bias"] = np.zeros(outputs)
        for name in self.norms():
            made[f"{name}.scale"], made[f"{name}.bias"] = np.ones(self.width), np.zeros(self.width)
        return {name: each.astype(np.float32) for name, each in made.items()}


# Training


def train(network: Network, text: Tokens, *, steps: int, batch: int, seed: int, threads: int) -> dict[str, Any]:
    """Weights after `steps` on random windows of `text`: AdamW, with a rate that falls to nearly 0."""
    import torch

    torch.set_num_threads(threads)
    weights = {name: torch.nn.Parameter(torch.from_numpy(each)) for name, each in network.initial(seed).items()}
    matrices = [each for each in weights.values() if each.ndim > 1]
    rest = [each for each in weights.values() if each.ndim == 1]
    groups: list[dict[str, Any]] = [{"params": matrices, "weight_decay": DECAY}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.99))
    random, average = np.random.default_rng(seed), math.log(network.vocabulary)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = _rate(step, steps)
        places = random.integers(0, len(text) - network.window - 1, batch)
        drawn = torch.from_numpy(np.stack([text[place : place + network.window + 1] for place in places]))
        with torch.autocast("cpu", torch.bfloat16):
            logits = _logits(network, weights, drawn[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), drawn[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights.values(), CLIP)
        optimizer.step()
        average += 0.02 * (loss.item() - average)
        if step % 100 == 99:
            print(
                f"training: step {step + 1} of {steps}, perplexity {math.exp(average):.2f}", file=sys.stderr, flush=True
            )
    return {name: each.detach().numpy() for name, each in weights.items()}


def _rate(step: int, steps: int) -> float:
    return RATE * min(1, (step + 1) / WARM_UP) * max(SMALLEST_RATE, (1 + math.cos(math.pi * step / steps)) / 2)


def _logits(network: Network, weights: Mapping[str, Any], tokens: Any) -> Any:
    """[B, T, vocabulary] of `tokens`, [B, T]."""
    from torch.nn import functional

    def linear(name: str, values: Any) -> Any:
        return functional.linear(values, weights[f"{name}.weight"].T, weights[f"{name}.bias"])

    def norm(name: str, values: Any) -> Any:
        return functional.layer_norm(values, (network.width,), weights[f"{name}.scale"], weights[f"{name}.bias"])

    count, length = tokens.shape
    sizes = count, length, network.heads, network.width // network.heads
    state = weights["tokens"][tokens] + weights["positions"][:length]
    for block in range(network.blocks):
        seen = norm(f"{block}/attended", state)
        parts = [linear(f"{block}/{part}", seen).view(sizes).transpose(1, 2) for part in ("query", "key", "value")]
        mixed = functional.scaled_dot_product_attention(*parts, is_causal=True)
        state = state + linear(f"{block}/mix", mixed.transpose(1, 2).reshape(count, length, -1))
        inner = functional.gelu(linear(f"{block}/up", norm(f"{block}/fed", state)))
        state = state + linear(f"{block}/down", inner)
    return linear("head", norm("last", state))


# The ONNX model


class _Graph:
    """A graph in the making: each operator returns the name of its output."""

    def __init__(self, weights: Weights) -> None:
        self.nodes: list[Any] = []
        self.constants = dict(weights)

    def add(self, op: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        name = name or f"{op}-{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [f"{name}.y"], name=name, **attributes))
        return f"{name}.y"

    def constant(self, name: str, value: Any, dtype: Any = np.float32) -> str:
        self.constants[name] = np.array(value, dtype)
        return name

    def linear(self, name: str, values: str) -> str:
        product = self.add("MatMul", values, f"{name}.weight", name=name)
        return self.add("Add", product, f"{name}.bias", name=f"{name}+bias")

    def norm(self, name: str, values: str) -> str:
        return self.add("LayerNormalization", values, f"{name}.scale", f"{name}.bias", name=name, epsilon=1e-5)

    def gelu(self, values: str) -> str:
        half, one, root = (self.constant(f"{each:.4g}", each) for each in (0.5, 1.0, math.sqrt(0.5)))
        error = self.add("Erf", self.add("Mul", values, root))
        return self.add("Mul", self.add("Mul", values, half), self.add("Add", error, one))


def write_onnx(network: Network, weights: Weights, path: Path) -> None:
    """The model that maps `tokens`, int64[N, window], to `logits`, float32[N, window, vocabulary]."""
    graph = _Graph(weights)
    state = graph.add("Add", graph.add("Gather", "tokens", "x"), "positions")
    for block in range(network.blocks):
        mixed = _attention(graph, network, block, graph.norm(f"{block}/attended", state))
        state = graph.add("Add", state, graph.linear(f"{block}/mix", mixed))
        inner = graph.gelu(graph.linear(f"{block}/up", graph.norm(f"{block}/fed", state)))
        state = graph.add("Add", state, graph.linear(f"{block}/down", inner))
    logits = graph.linear("head", graph.norm("last", state))
    constants = [numpy_helper.from_array(np.ascontiguousarray(each), name) for name, each in graph.constants.items()]
    inputs = [helper.make_tensor_value_info("x", onnx.TensorProto.INT64, ["N", network.window])]
    shape = ["N", network.window, network.vocabulary]
    outputs = [helper.make_tensor_value_info(logits, onnx.TensorProto.FLOAT, shape)]
    made = helper.make_graph(graph.nodes, "language model", inputs, outputs, constants)
    model = helper.make_model(made, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _attention(graph: _Graph, network: Network, block: int, seen: str) -> str:
    """Each position mixes the values of itself and of those before it."""
    size = network.width // network.heads
    apart = graph.constant("apart", [0, network.window, network.heads, size], np.int64)
    together = graph.constant("together", [0, network.window, network.width], np.int64)
    scale = graph.constant("scale", 1 / math.sqrt(size))
    later = graph.constant("later", np.triu(np.full((network.window,) * 2, -1e9), 1))

    def heads(part: str, perm: list[int]) -> str:
        return graph.add("Transpose", graph.add("Reshape", graph.linear(f"{block}/{part}", seen), apart), perm=perm)

    query, value = (heads(part, [0, 2, 1, 3]) for part in ("query", "value"))
    scores = graph.add("Mul", graph.add("MatMul", query, heads("key", [0, 2, 3, 1])), scale)
    mixed = graph.add("MatMul", graph.add("Softmax", graph.add("Add", scores, later), axis=-1), value)
    return graph.add("Reshape", graph.add("Transpose", mixed, perm=[0, 2, 1, 3]), together)
