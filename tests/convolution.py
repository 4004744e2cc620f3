"""Direct convolutions, straight from the definition, to check the corrections against. Slow on purpose.

Every function visits one output position at a time, so it shares no step with the package, which sums taps.
Arrays are `(samples, channels, *spatial)` and weights as in ONNX and torch; there is no padding.
"""

from __future__ import annotations

import numpy as np


def convolve(inputs, weights, groups=1, strides=None, dilation=None):
    """Correlate: `weights` (out, in/groups, *kernel), outputs group-major, any number of spatial axes.

    >>> convolve(np.array([[[1.0, 10.0, 100.0]]]), np.array([[[2.0, 3.0]]])).tolist()
    [[[32.0, 320.0]]]
    """
    kernel = weights.shape[2:]
    strides, dilation = strides or (1,) * len(kernel), dilation or (1,) * len(kernel)
    reach = [(taps - 1) * gap + 1 for taps, gap in zip(kernel, dilation, strict=True)]
    shape = [(size - span) // stride + 1 for size, span, stride in zip(inputs.shape[2:], reach, strides, strict=True)]
    outputs = np.empty((len(inputs), len(weights), *shape))
    for position in np.ndindex(*shape):
        starts = [at * stride for at, stride in zip(position, strides, strict=True)]
        window = tuple(slice(s, s + r, d) for s, r, d in zip(starts, reach, dilation, strict=True))
        outputs[:, :, *position] = _products(inputs[:, :, *window], weights, groups)
    return outputs


def _products(window, weights, groups):
    """The outputs at one position: `window` (samples, in, *kernel) → (samples, out)."""
    by_input_group = zip(np.split(window, groups, axis=1), np.split(weights, groups), strict=True)
    flat = [(x.reshape(len(x), -1), w.reshape(len(w), -1)) for x, w in by_input_group]
    return np.concatenate([x @ w.T for x, w in flat], axis=1)


def convolve_transposed(inputs, weights, groups=1, strides=None, dilation=None):
    """Scatter every input position over its taps: `weights` (in, out/groups, *kernel), inputs group-major.

    >>> convolve_transposed(np.array([[[1.0, 10.0]]]), np.array([[[2.0, 3.0]]]), strides=(2,)).tolist()
    [[[2.0, 3.0, 20.0, 30.0]]]
    """
    kernel, sizes = weights.shape[2:], inputs.shape[2:]
    strides, dilation = strides or (1,) * len(kernel), dilation or (1,) * len(kernel)
    reach = [(taps - 1) * gap + 1 for taps, gap in zip(kernel, dilation, strict=True)]
    shape = [(size - 1) * stride + span for size, stride, span in zip(sizes, strides, reach, strict=True)]
    outputs = np.zeros((len(inputs), groups * weights.shape[1], *shape))
    for position in np.ndindex(*sizes):
        starts = [at * stride for at, stride in zip(position, strides, strict=True)]
        window = tuple(slice(s, s + r, d) for s, r, d in zip(starts, reach, dilation, strict=True))
        outputs[:, :, *window] += _scattered(inputs[:, :, *position], weights, groups)
    return outputs


def _scattered(values, weights, groups):
    """What one input position adds: `values` (samples, in) → (samples, out, *kernel)."""
    by_group = zip(np.split(values, groups, axis=1), np.split(weights, groups), strict=True)
    return np.concatenate([np.tensordot(x, w, axes=1) for x, w in by_group], axis=1)


def mean_output(outputs):
    """The mean of each channel over samples and positions."""
    return outputs.mean(axis=(0, *range(2, outputs.ndim)))
