"""How sure an accuracy is: its interval, and whether the difference of two models on the same samples is chance.

Samples that both models classify correctly, or neither, say nothing about the difference. So it is judged by the
samples that only one of them classifies correctly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ..errors import counted

BoolArray = npt.NDArray[np.bool_]
QUANTILE = 1.959963984540054
"""The quantile of the normal distribution for 95 % confidence intervals."""
SIGNIFICANCE = 0.05
"""The p-value below which a difference is not chance."""


def interval(right: int, samples: int) -> tuple[float, float]:
    """The 95 % confidence interval of an accuracy of `right` in `samples`, by Wilson's score.

    With the accuracy p, n samples and z = 1.96: (p + z²/2n ± z·√(p·(1 − p)/n + z²/4n²)) / (1 + z²/n) (E. B. Wilson,
    Probable Inference, the Law of Succession, and Statistical Inference, JASA 22, 1927).

    >>> [round(end, 3) for end in interval(8, 10)]
    [0.49, 0.943]
    """
    if not samples:
        return 0.0, 1.0
    share, square = right / samples, QUANTILE**2
    middle, half = share + square / (2 * samples), math.sqrt(share * (1 - share) / samples + square / samples**2 / 4)
    low, high = ((middle + sign * QUANTILE * half) / (1 + square / samples) for sign in (-1, 1))
    return max(0.0, low), min(1.0, high)


@dataclass(frozen=True)
class AccuracyGain:
    """By how much one model is more accurate than another: it alone is right on `gained` samples, the other on `lost`.

    >>> gain = AccuracyGain(gained=15, lost=2, samples=500)
    >>> print(f"{gain.points}, which {gain.verdict}: {gain.counts}")
    +2.60 ± 0.82 points, which is beyond chance: 15 samples gained, 2 lost
    """

    gained: int
    lost: int
    samples: int

    @classmethod
    def between(cls, before: BoolArray, after: BoolArray) -> Self:
        """That of a model over another one; both say which samples they classify correctly."""
        return cls(int((after & ~before).sum()), int((before & ~after).sum()), len(before))

    @property
    def difference(self) -> float:
        """The accuracy less that of the other model."""
        return (self.gained - self.lost) / max(1, self.samples)

    @property
    def error(self) -> float:
        """The standard error of the difference of paired shares, √(b + c − (b − c)²/n) / n (J. L. Fleiss, Statistical
        Methods for Rates and Proportions, chapter on matched samples)."""
        n = max(1, self.samples)
        return math.sqrt(self.gained + self.lost - (self.gained - self.lost) ** 2 / n) / n

    @property
    def p_value(self) -> float:
        """The probability of a difference at least this large if neither model is better: McNemar's test, exact.

        Of the b + c samples that only one is right on, it is as likely to be either: 2·P(X ≤ min(b, c)) for X binomial
        (b + c, ½) (Q. McNemar, Psychometrika 12, 1947).
        """
        n, fewer = self.gained + self.lost, min(self.gained, self.lost)
        ways = (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(fewer + 1))
        return min(1.0, 2 * math.fsum(math.exp(each - n * math.log(2)) for each in ways))

    @property
    def is_clear(self) -> bool:
        """Whether the difference is more than chance."""
        return self.p_value < SIGNIFICANCE

    @property
    def points(self) -> str:
        """The difference and its standard error."""
        return f"{100 * self.difference:+.2f} ± {100 * self.error:.2f} points"

    @property
    def verdict(self) -> str:
        """Whether the difference is chance, as a predicate."""
        return "is beyond chance" if self.is_clear else "may be chance"

    @property
    def counts(self) -> str:
        """How many samples were gained and lost."""
        return f"{counted(self.gained, 'sample')} gained, {self.lost:,} lost"

    def document(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "gained": self.gained,
            "lost": self.lost,
            "difference": self.difference,
            "standard_error": self.error,
            "p_value": self.p_value,
            "clear": self.is_clear,
        }
