"""How well a model does its task: the accuracy of a classifier by labels, and the score that a command prints."""

from __future__ import annotations

import math
import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...errors import MismatchError, UsageError, first_line
from ..accuracy import BoolArray
from .samples import Array

SCORE = re.compile(r"[-+]?(?:(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?|nan|inf(?:inity)?|none|null|n/a)", re.IGNORECASE)
"""A word that is a score, or that stands for one that is unknown."""
AROUND = "()[]:,;"
"""What may stand at the ends of a word."""
LAST_LINES = 3
"""How many lines of a program's output are quoted."""
PLACE = "{model}"
"""What stands for the model's file in a command."""


@dataclass(frozen=True, eq=False)
class Labels:
    """The right classes of samples: `values`, integers, one per sample. `path` names them in errors."""

    path: str | Path
    values: Array

    @classmethod
    def load(cls, path: str | Path, samples: int) -> Labels:
        """Those in a `.npy` of integers for so many `samples`. Raises `UsageError`, `MismatchError`."""
        try:
            labels = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UsageError(f"the labels {path} are not a .npy file of integers: {first_line(error)}") from error
        if not isinstance(labels, np.ndarray) or labels.shape != (samples,) or labels.dtype.kind not in "iu":
            found = f"{labels.dtype}{labels.shape}" if isinstance(labels, np.ndarray) else "several arrays"
            raise MismatchError(f"the labels {path} are {found}; expected {samples} integers, one per sample")
        return cls(path, labels)

    def right(self, logits: Array, rows: slice) -> BoolArray:
        """Which of the samples `rows` the greatest of the `logits` classifies correctly. Raises `MismatchError`."""
        if logits.ndim != 2 or len(logits) != rows.stop - rows.start:
            raise MismatchError(
                f"the model's first output has the shape {logits.shape}; expected (samples, classes) for labels"
            )
        labels = self.values[rows]
        if labels.min() < 0 or labels.max() >= logits.shape[1]:
            raise MismatchError(
                f"the labels {self.path} range from {self.values.min()} to {self.values.max()}; expected 0 to "
                f"{logits.shape[1] - 1}, the classes of the model"
            )
        found: BoolArray = logits.argmax(axis=1) == labels
        return found


def check_command(command: str) -> None:
    """Raise `UsageError` unless `command` can be read, and says where the model's file belongs."""
    if PLACE not in command:
        raise UsageError(f"the command {command!r} has no {PLACE}; write it where the model's file belongs")
    try:
        shlex.split(command)
    except ValueError as error:
        raise UsageError(f"the command {command!r} cannot be read: {first_line(error)}") from error


def scored(command: str, model: Path) -> float:
    """The score that `command` prints for `model`: the last number on its last line. Raises `UsageError`.

    Digits within other words, such as those in the names of files, are no numbers.
    """
    words = [word.replace(PLACE, str(model)) for word in shlex.split(command)]
    try:
        done = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise UsageError(f"cannot run {words[0]}: {error.strerror or first_line(error)}") from error
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
        raise UsageError(f"{words[0]} exited with status {done.returncode} and said: {said}")
    printed = [line.rstrip() for line in done.stdout.splitlines() if line.strip()]
    score = _score(printed[-1]) if printed else math.nan
    if not math.isfinite(score):
        ends = "; it printed nothing" if not printed else "; its output ends with:\n" + "\n".join(printed[-LAST_LINES:])
        raise UsageError(
            f"{words[0]} printed no score; expected a finite number as a word of its own on the last line, such as "
            f"`accuracy: 0.93`{ends}"
        )
    return score


def _score(line: str) -> float:
    """The last word of `line` that is a number; NaN if none is, or if it stands for an unknown one."""
    found = [word for each in line.split() if SCORE.fullmatch(word := each.rstrip(".").strip(AROUND))]
    try:
        return float(found[-1])
    except (IndexError, ValueError):
        return math.nan
