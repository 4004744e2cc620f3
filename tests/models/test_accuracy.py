"""An accuracy has its interval, and a difference of two is told from chance by the samples on which they differ."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest

from streamstats.models.accuracy import AccuracyGain, interval
from streamstats.models.judgement import Judgement


@pytest.mark.parametrize(
    ("right", "samples", "expected"),
    [(0, 10, (0.0, 0.2775)), (10, 10, (0.7225, 1.0)), (81, 263, (0.2553, 0.3662)), (0, 0, (0.0, 1.0))],
)
def test_intervals_are_wilsons(right: int, samples: int, expected: tuple[float, float]) -> None:
    """The third is of Newcombe, Statistics in Medicine 17 (1998), table I, method 3."""
    np.testing.assert_allclose(interval(right, samples), expected, atol=5e-5)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (5, 0), (15, 2), (2, 15), (30, 30), (700, 600)])
def test_the_probability_of_chance_is_the_binomial_one(gained: int, lost: int) -> None:
    n, fewer = gained + lost, min(gained, lost)
    expected = min(1.0, 2 * sum(comb(n, k) for k in range(fewer + 1)) / 2**n)
    assert AccuracyGain(gained, lost, 2000).p_value == pytest.approx(expected, rel=1e-9)


def test_paired_samples_tell_what_two_shares_alone_do_not() -> None:
    """10 samples in 1,000 are gained and none is lost: both intervals overlap, yet it is no chance."""
    before = np.arange(1000) < 800
    after = np.arange(1000) < 810
    judged = Judgement(1000, {}, {}, {"quantised": before, "corrected": after})
    (low, _), (_, high) = judged.accuracy_intervals["corrected"], judged.accuracy_intervals["quantised"]
    assert low < high
    gain = judged.accuracy_gains["corrected"]
    assert (gain.gained, gain.lost) == (10, 0)
    assert gain.is_clear
    assert (gain.points, gain.verdict) == ("+1.00 ± 0.31 points", "is beyond chance")
    shuffled = np.roll(before, 10)
    assert not AccuracyGain.between(before, shuffled).is_clear
    assert AccuracyGain.between(before, shuffled).verdict == "may be chance"


def test_the_standard_error_is_that_of_the_mean_of_differences() -> None:
    rng = np.random.default_rng(0)
    before, after = rng.random(500) < 0.6, rng.random(500) < 0.7
    differences = after.astype(float) - before
    gain = AccuracyGain.between(before, after)
    assert gain.difference == pytest.approx(differences.mean())
    assert gain.error == pytest.approx(differences.std() / np.sqrt(500))
