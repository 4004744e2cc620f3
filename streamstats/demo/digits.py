"""The handwritten digits that train, calibrate and judge the demo's network, and how they are split.

The data are the 1797 images of 8×8 pixels that scikit-learn ships. Of each class, in the order of the data set, every
third image (the first, fourth, seventh …) is held out; the rest train the network and calibrate it. No row is in both
parts, both have the classes in the same proportions, and nothing is drawn at random, so every run sees the same rows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

UPSCALE = 2
"""Each pixel becomes a square of this side: 8×8 → 16×16, room for a few unpadded convolutions."""

HELD_OUT_EVERY = 3
LARGEST_PIXEL = 16


class Digits(NamedTuple):
    """Images float32[rows, 1, 16, 16] between 0 (paper) and 1 (ink), and their labels int64[rows], 0 to 9."""

    images: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]


def held_out_rows(labels: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Mark every third row of each class, beginning with the first.

    >>> held_out_rows(np.array([7, 7, 5, 7, 7])).tolist()
    [True, False, True, False, True]
    """
    held_out = np.zeros(labels.shape, np.bool_)
    for label in np.unique(labels):
        held_out[np.flatnonzero(labels == label)[::HELD_OUT_EVERY]] = True
    return held_out


def calibration_digits() -> Digits:
    """Return the 1195 rows that train the network and calibrate the correction."""
    digits = _all_digits()
    return _rows(digits, ~held_out_rows(digits.labels))


def held_out_digits() -> Digits:
    """Return the 602 rows that neither training nor calibration sees."""
    digits = _all_digits()
    return _rows(digits, held_out_rows(digits.labels))


def _rows(digits: Digits, chosen: npt.NDArray[np.bool_]) -> Digits:
    return Digits(digits.images[chosen], digits.labels[chosen])


def _all_digits() -> Digits:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = (bunch.images / LARGEST_PIXEL).astype(np.float32)
    square = np.ones((1, UPSCALE, UPSCALE), np.float32)
    return Digits(np.kron(pixels, square)[:, np.newaxis], bunch.target.astype(np.int64))
