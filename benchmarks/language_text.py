"""The text of `language_model.py`: the sources of Python's standard library, as tokens, and what an n-gram makes of it.

They are on every machine with Python. A tenth of the files is held out, by their names. The most frequent words and
runs of spaces are tokens; everything else is spelled in bytes, so any text has tokens.
"""

from __future__ import annotations

import re
import sysconfig
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int64]
PIECES = re.compile(rb" ?[A-Za-z]+|\n *|\d|[^\sA-Za-z\d]| +|\s")
LEFT_OUT = {"site-packages", "test", "tests", "idlelib", "lib2to3", "pydoc_data", "encodings", "__phello__"}
"""Folders of tables, of tests and of other people's packages."""
BYTES = 256


@dataclass(frozen=True)
class Text:
    """The texts to train with and to calibrate with, and those held out; no file is in both."""

    training: Sequence[bytes]
    held_out: Sequence[bytes]


def standard_library() -> Text:
    """The sources of the standard library, in the order of their names; each is held out by a hash of its name."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(path.relative_to(folder) for path in folder.rglob("*.py"))
    chosen = [path for path in files if not LEFT_OUT.intersection(path.parts)]
    held_out = {path for path in chosen if zlib.crc32(path.as_posix().encode()) % 10 == 0}
    training = [(folder / path).read_bytes() for path in chosen if path not in held_out]
    return Text(training, [(folder / path).read_bytes() for path in sorted(held_out)])


@dataclass(frozen=True)
class Vocabulary:
    """`pieces` have the tokens from 256 on; the tokens below are bytes."""

    pieces: tuple[bytes, ...]

    @classmethod
    def of(cls, texts: Iterable[bytes], size: int) -> Vocabulary:
        """The pieces that save most bytes, `size` tokens in all."""
        times = Counter(piece for text in texts for piece in PIECES.findall(text) if len(piece) > 1)
        saved = sorted(times, key=lambda piece: (-times[piece] * (len(piece) - 1), piece))
        return cls(tuple(saved[: size - BYTES]))

    def __len__(self) -> int:
        return BYTES + len(self.pieces)

    def tokens(self, texts: Iterable[bytes]) -> Tokens:
        """int64[N]: all texts, one after the other."""
        numbers = {piece: BYTES + place for place, piece in enumerate(self.pieces)}
        return np.fromiter((token for text in texts for token in _spelled(text, numbers)), np.int64)


def _spelled(text: bytes, numbers: Mapping[bytes, int]) -> Iterator[int]:
    for piece in PIECES.findall(text):
        if (number := numbers.get(piece)) is None:
            yield from piece
        else:
            yield number


def windows(tokens: Tokens, length: int, count: int, seed: int) -> Tokens:
    """int64[≤ count, length]: windows that do not overlap, drawn without replacement, in the order of the text."""
    whole = tokens[: len(tokens) // length * length].reshape(-1, length)
    drawn = np.random.default_rng(seed).permutation(len(whole))[:count]
    return whole[np.sort(drawn)]


def ngram_perplexity(training: Tokens, held_out: Tokens, vocabulary: int, order: int) -> float:
    """Of tokens after the first of each window in `held_out`, by counts of up to `order` tokens in `training`.

    Orders are interpolated by Witten and Bell's weights: of a context that came n times, before t tokens that differ,
    the counts have the weight n/(n+t), and the next shorter context the rest.
    """
    known = np.full((len(held_out), held_out.shape[1] - 1), 1 / vocabulary)
    for length in range(order):
        known = _longer(training, held_out, vocabulary, length, known)
    return float(np.exp(-np.log(known).mean()))


Known = npt.NDArray[np.float64]


def _longer(training: Tokens, held_out: Tokens, vocabulary: int, length: int, shorter: Known) -> Known:
    """The probabilities by contexts of `length` tokens, where the windows have them, else those by `shorter` ones."""
    contexts, whole = (_keys(training, vocabulary, each) for each in (length, length + 1))
    contexts = contexts[: len(whole)]
    whole, times = np.unique(whole, return_counts=True)
    before, n = np.unique(contexts, return_counts=True)
    _, t = np.unique(whole // vocabulary, return_counts=True)
    found = shorter.copy()
    for place in range(max(length, 1), held_out.shape[1]):
        context = _keys(held_out[:, place - length : place], vocabulary, length)[:, 0]
        count = _looked_up(whole, times, context * vocabulary + held_out[:, place])
        total, kinds = (_looked_up(before, each, context) for each in (n, t))
        rest = kinds * shorter[:, place - 1] + (total == 0) * shorter[:, place - 1]
        found[:, place - 1] = (count + rest) / np.where(total == 0, 1, total + kinds)
    return found


def _keys(tokens: Tokens, vocabulary: int, length: int) -> Tokens:
    """A number for each run of `length` tokens, along the last axis."""
    runs = tokens.shape[-1] - length + 1
    keys = np.zeros((*tokens.shape[:-1], runs), np.int64)
    for place in range(length):
        keys = keys * vocabulary + tokens[..., place : place + runs]
    return keys


def _looked_up(keys: Tokens, values: Tokens, wanted: Tokens) -> Tokens:
    """The values of the `wanted` ones of the ascending `keys`; 0 where there is none."""
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, values[places], 0)
