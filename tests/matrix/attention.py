"""Small transformers with the structure of those that people quantise. Importing this imports torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

WIDTH, HEADS = 16, 2


class Attention(nn.Module):
    """Self-attention with a projection each for queries, keys and values; `mask` is added to the scores."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.output = nn.Linear(width, width)

    def forward(self, x: Any, mask: Any = None) -> Any:
        q, k, v = (split(project(x)) for project in (self.query, self.key, self.value))
        return self.output(attended(q, k, v, mask))


def split(x: Any) -> Any:
    """[N, T, C] as [N, heads, T, C / heads]."""
    return x.reshape(x.shape[0], x.shape[1], HEADS, -1).transpose(1, 2)


def attended(q: Any, k: Any, v: Any, mask: Any) -> Any:
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    weights = torch.softmax(scores if mask is None else scores + mask, -1)
    return (weights @ v).transpose(1, 2).flatten(2)


class Block(nn.Module):
    """Attention and two matrices, each behind a norm (GPT, ViT) or in front of one (BERT)."""

    def __init__(self, attention: Any, before: bool, width: int = WIDTH) -> None:
        super().__init__()
        self.attention, self.before = attention, before
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Any, mask: Any = None) -> Any:
        if self.before:
            x = x + self.attention(self.norm1(x), mask)
            return x + self.narrow(functional.gelu(self.wide(self.norm2(x))))
        x = self.norm1(x + self.attention(x, mask))
        return self.norm2(x + self.narrow(functional.gelu(self.wide(x))))


class Torchs(nn.Module):
    """`torch.nn.MultiheadAttention` as self-attention."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, x: Any, _mask: Any = None) -> Any:
        return self.inner(x, x, x, need_weights=False)[0]


class ViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH) * 0.5)
        self.places = nn.Parameter(torch.randn(1, 17, WIDTH) * 0.5)
        self.blocks = nn.ModuleList([Block(Torchs(), True), Block(Attention(), True)])
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10)

    def forward(self, x: Any) -> Any:
        y = self.patches(x).flatten(2).transpose(1, 2)
        y = torch.cat([self.token.expand(y.shape[0], -1, -1), y], 1) + self.places
        for block in self.blocks:
            y = block(y)
        return self.head(self.norm(y)[:, 0])


class BERT(nn.Module):
    """Tokens and a mask of padding."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(50, WIDTH), nn.Parameter(torch.randn(1, 12, WIDTH) * 0.5)
        self.norm = nn.LayerNorm(WIDTH)
        self.blocks = nn.ModuleList(Block(Attention(), False) for _ in range(2))
        self.pooler, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, tokens: Any, attention_mask: Any) -> Any:
        mask = (1.0 - attention_mask[:, None, None, :].float()) * -10000.0
        y = self.norm(self.words(tokens) + self.places)
        for block in self.blocks:
            y = block(y, mask)
        return self.head(torch.tanh(self.pooler(y[:, 0])))


class Conv1D(nn.Module):
    """The matrix of GPT-2, inputs × outputs, as in transformers."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.nf, self.nx = outputs, inputs
        self.weight = nn.Parameter(torch.randn(inputs, outputs) / inputs**0.5)
        self.bias = nn.Parameter(torch.randn(outputs) * 0.1)

    def forward(self, x: Any) -> Any:
        rows = torch.addmm(self.bias, x.reshape(-1, self.nx), self.weight)
        return rows.reshape(x.shape[0], x.shape[1], self.nf)


class Joint(nn.Module):
    """GPT-2's attention: one matrix for queries, keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.c_attn, self.c_proj = Conv1D(3 * WIDTH, WIDTH), Conv1D(WIDTH, WIDTH)

    def forward(self, x: Any, mask: Any = None) -> Any:
        q, k, v = self.c_attn(x).chunk(3, -1)
        return self.c_proj(attended(split(q), split(k), split(v), mask))


class GPT(nn.Module):
    """Causal; the output matrix is the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(50, WIDTH), nn.Parameter(torch.randn(1, 12, WIDTH) * 0.5)
        self.blocks = nn.ModuleList(Block(Joint(), True) for _ in range(2))
        for block in self.blocks:
            block.wide, block.narrow = Conv1D(4 * WIDTH, WIDTH), Conv1D(WIDTH, 4 * WIDTH)
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 50, bias=False)
        self.register_buffer("mask", torch.full((12, 12), -1e4).triu(1))

    def forward(self, tokens: Any) -> Any:
        y = self.words(tokens) + self.places
        for block in self.blocks:
            y = block(y, self.mask)
        return self.head(self.norm(y))


class Windows(nn.Module):
    """Swin's attention in windows of 2 × 2, shifted or not, with a bias for each pair of places."""

    def __init__(self, shift: int, width: int = WIDTH) -> None:
        super().__init__()
        self.shift, self.qkv, self.proj = shift, nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.places = nn.Parameter(torch.randn(HEADS, 4, 4) * 0.5)

    def forward(self, x: Any, _mask: Any = None) -> Any:
        size, width = 8, x.shape[-1]
        y = x.reshape(-1, size, size, width)
        y = torch.roll(y, (-self.shift, -self.shift), (1, 2)) if self.shift else y
        y = y.reshape(-1, size // 2, 2, size // 2, 2, width).transpose(2, 3).reshape(-1, 4, width)
        q, k, v = self.qkv(y).chunk(3, -1)
        y = self.proj(attended(split(q), split(k), split(v), self.places))
        y = y.reshape(-1, size // 2, size // 2, 2, 2, width).transpose(2, 3).reshape(-1, size, size, width)
        y = torch.roll(y, (self.shift, self.shift), (1, 2)) if self.shift else y
        return y.reshape(-1, size * size, width)


class Swin(nn.Module):
    """Two blocks in windows, patches merged by a matrix without bias, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 4, 4)
        self.blocks = nn.ModuleList([Block(Windows(0), True), Block(Windows(1), True)])
        self.norm, self.merge = nn.LayerNorm(4 * WIDTH), nn.Linear(4 * WIDTH, 2 * WIDTH, bias=False)
        self.head = nn.Linear(2 * WIDTH, 10)

    def forward(self, x: Any) -> Any:
        y = self.patches(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            y = block(y)
        y = y.reshape(-1, 4, 2, 4, 2, WIDTH).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, 4 * WIDTH)
        return self.head(self.merge(self.norm(y)).mean(1))


class Experts(nn.Module):
    """A mixture: each token takes part in two of four experts; a second layer has its experts in one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.router = nn.Embedding(50, WIDTH), nn.Linear(WIDTH, 4, bias=False)
        self.wide = nn.ModuleList(nn.Linear(WIDTH, 2 * WIDTH) for _ in range(4))
        self.narrow = nn.ModuleList(nn.Linear(2 * WIDTH, WIDTH) for _ in range(4))
        self.stack = nn.Parameter(torch.randn(4, WIDTH, WIDTH) / 4)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, tokens: Any) -> Any:
        y = self.words(tokens)
        gates = self.router(y)
        gates = torch.softmax(gates.masked_fill(gates < gates.topk(2, -1).values[..., -1:], -1e4), -1)
        for number, (wide, narrow) in enumerate(zip(self.wide, self.narrow, strict=True)):
            y = y + gates[..., number, None] * narrow(functional.silu(wide(y)))
        rows = y.flatten(0, 1)
        each = torch.bmm(rows.expand(4, -1, -1), self.stack)
        rows = (each * gates.flatten(0, 1).T[..., None]).sum(0)
        return self.head(rows.reshape(y.shape))
