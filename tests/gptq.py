"""GPTQ, written plainly from the paper (Frantar et al. 2022, arXiv 2210.17323, algorithm 1, one block), in float32.

And what its implementations feed it with: a Hessian that grows batch by batch, in float32.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def nearest(weights: Array, step: Array, most: int) -> Array:
    """Codes of `weights` [out, n] by rounding to nearest; `step` [out, 1]."""
    return np.clip(np.rint(weights / step), -most - 1, most)


def gptq(weights: Array, hessian: Array, step: Array, most: int, damp: float = 0.01) -> Array:
    """Codes of `weights` [out, n]: column by column, each error is made up for by the columns that are left."""
    weights, hessian = weights.astype("f4"), hessian.astype("f4")
    dead = np.diagonal(hessian) == 0
    hessian[dead, dead] = 1
    weights[:, dead] = 0
    hessian += damp * np.diagonal(hessian).mean() * np.eye(len(hessian), dtype="f4")
    upper = np.linalg.cholesky(np.linalg.inv(hessian)).T
    codes = np.empty_like(weights)
    for column in range(len(hessian)):
        codes[:, column] = nearest(weights[:, column : column + 1], step, most)[:, 0]
        error = (weights[:, column] - codes[:, column] * step[:, 0]) / upper[column, column]
        weights[:, column:] -= np.outer(error, upper[column, column:])
    return codes


def running_hessian(batches: Iterable[Array]) -> Array:
    """2·XᵀX/n of batches of rows [b, n], in float32, as the authors of GPTQ accumulate it."""
    hessian, count = np.zeros((), "f4"), 0
    for batch in batches:
        hessian = hessian * np.float32(count / (count + len(batch)))
        count += len(batch)
        scaled = np.float32(np.sqrt(2 / count)) * batch.astype("f4")
        hessian = hessian + scaled.T @ scaled
    return hessian


def error(weights: Array, codes: Array, step: Array, rows: Array) -> float:
    """The squared error of the layer's outputs over `rows` [n, columns], in float64."""
    return float(((rows.astype("f8") @ (weights - codes * step).T) ** 2).sum())


def unfolded(samples: Array, kernel: tuple[int, int], stride: int, pad: int, groups: int) -> Array:
    """[N, C, H, W] → [groups, positions, (C / groups)·kh·kw]: what the kernel reads, tap by tap, for each output."""
    padded = np.pad(samples, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel, axis=(2, 3))[:, :, ::stride, ::stride]
    n, channels, height, width = windows.shape[:4]  # then the taps
    rows = windows.reshape(n, groups, channels // groups, height, width, *kernel).transpose(1, 0, 3, 4, 2, 5, 6)
    return rows.reshape(groups, n * height * width, -1)
