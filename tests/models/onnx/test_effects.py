"""Effects on the outputs of a network: the size of an error, and whether a difference is more than chance."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from streamstats.errors import MismatchError
from streamstats.models.effects import Effect, EffectSums, Gain


def effect_of(pairs: list[tuple[dict[str, Any], dict[str, Any]]], mask: Any = None) -> Effect:
    sums = EffectSums()
    for mine, theirs in pairs:
        sums.add(mine, theirs, len(next(iter(theirs.values()))), mask)
    found = sums.effect()
    assert found is not None
    return found


def outputs(seed: int, samples: int = 400) -> tuple[Any, Any, Any]:
    random = np.random.default_rng(seed)
    wanted = random.normal(2.0, 1.0, (samples, 5))
    hard = random.exponential(1.0, (samples, 1))  # samples differ, and both models find the same ones hard
    first, second = (wanted + hard * random.normal(0, size, wanted.shape) for size in (0.10, 0.09))
    return wanted, first, second


def test_the_gain_and_its_error_are_those_of_resampled_samples() -> None:
    wanted, first, second = outputs(0)
    before, after = (effect_of([({"y": each}, {"y": wanted})]) for each in (first, second))
    gain = after.gain_over(before)
    noise = [((each - wanted) ** 2).sum(axis=1) for each in (first, second)]
    assert gain.decibels == pytest.approx(10 * math.log10(noise[0].sum() / noise[1].sum()), rel=1e-9)
    random = np.random.default_rng(1)
    drawn = [random.integers(0, 400, 400) for _ in range(2000)]
    spread = np.std([10 * math.log10(noise[0][rows].sum() / noise[1][rows].sum()) for rows in drawn])
    assert gain.error == pytest.approx(spread, rel=0.1)
    assert gain.is_better
    assert before.gain_over(after).decibels == pytest.approx(-gain.decibels)


def test_noise_alone_is_not_taken_for_a_difference() -> None:
    clear = 0
    for seed in range(300):
        wanted, first, _ = outputs(seed, samples=60)
        again = wanted + (outputs(seed + 1000, samples=60)[1] - outputs(seed + 1000, samples=60)[0])
        before, after = (effect_of([({"y": each}, {"y": wanted})]) for each in (first, again))
        clear += after.gain_over(before).is_clear
    assert 3 <= clear <= 30  # 5 % of 300, give or take


def test_each_output_counts_relative_to_its_own_signal() -> None:
    wanted, first, second = outputs(2)
    small, worse = wanted / 1e4, (wanted + 3 * (first - wanted)) / 1e4
    before = effect_of([({"y": first, "z": small + (first - wanted) / 1e4}, {"y": wanted, "z": small})])
    after = effect_of([({"y": second, "z": worse}, {"y": wanted, "z": small})])
    gain = after.gain_over(before)
    assert gain.is_worse
    assert gain.is_clear
    assert after.of("y").gain_over(before.of("y")).is_better
    noise = ((first - wanted) ** 2).mean()
    assert before.sqnr == pytest.approx(10 * math.log10((wanted**2).mean() / noise))


def test_batches_give_what_the_whole_gives_and_masked_positions_do_not_count() -> None:
    wanted, first, _ = outputs(3, samples=30)
    whole = effect_of([({"y": first}, {"y": wanted})])
    parts = [({"y": first[rows]}, {"y": wanted[rows]}) for rows in (slice(0, 7), slice(7, 30))]
    np.testing.assert_allclose(effect_of(parts).relative, whole.relative)
    mask = np.arange(5)[None] < np.arange(30)[:, None] % 5 + 1
    tokens, noisy = (np.repeat(each[:, :, None], 3, axis=2) for each in (wanted, first))
    noisy = np.where(mask[:, :, None], noisy, np.nan)
    found = effect_of([({"y": noisy}, {"y": tokens})], mask)
    np.testing.assert_allclose(found.noise[0], 3 * (np.where(mask, first - wanted, 0) ** 2).sum(axis=1))


def test_outputs_without_samples_on_axis_0_count_by_batch() -> None:
    wanted, first, _ = outputs(4, samples=12)
    sums = EffectSums()
    for rows in (slice(0, 5), slice(5, 12)):
        mine, theirs = ({"y": each[rows].T.copy(), "n": np.arange(3)} for each in (first, wanted))
        sums.add(mine, theirs, rows.stop - rows.start + 100, None)
    found = sums.effect()
    assert found is not None
    assert found.names == ("y",)
    np.testing.assert_allclose(
        found.noise[0], [((first - wanted)[rows] ** 2).sum() for rows in (slice(5), slice(5, 12))]
    )


@pytest.mark.parametrize(
    ("before", "after", "decibels"),
    [(1.0, 0.0, math.inf), (0.0, 1.0, -math.inf), (0.0, 0.0, 0.0), (1.0, math.nan, -math.inf)],
)
def test_outputs_without_errors_or_not_finite(before: float, after: float, decibels: float) -> None:
    wanted = np.ones((20, 2))
    first, second = (effect_of([({"y": wanted + each}, {"y": wanted})]) for each in (before, after))
    gain = second.gain_over(first)
    assert gain.decibels == decibels
    assert gain.is_worse == (decibels < 0)
    assert (gain.document()["gain_db"] is None) == math.isinf(decibels)


def test_few_samples_tell_nothing_and_the_number_that_would_is_estimated() -> None:
    assert not Gain(3.0, 0.1, 7).is_clear
    assert Gain(3.0, 0.1, 8).is_better
    assert Gain(0.5, 0.5, 100).samples_needed == 400
    for samples, error in ((4, 0.38), (1, math.nan)):  # standard errors are trusted from 8 samples on
        assert Gain(2.74, error, samples).samples_needed == 8
    assert Gain(0.0, 0.5, 100).samples_needed is None
    assert str(Gain(-0.5, 0.25, 100)) == "-0.50 ± 0.25 dB"
    wanted, first, second = outputs(5, samples=1)
    gain = effect_of([({"y": second}, {"y": wanted})]).gain_over(effect_of([({"y": first}, {"y": wanted})]))
    assert math.isnan(gain.error)
    assert not gain.is_clear


def test_outputs_of_another_shape_are_refused_and_whole_numbers_have_no_distance() -> None:
    sums = EffectSums()
    with pytest.raises(MismatchError, match="the output y has the shape"):
        sums.add({"y": np.ones((2, 3))}, {"y": np.ones((2, 4))}, 2, None)
    sums = EffectSums()
    sums.add({"label": np.arange(2)}, {"label": np.arange(2)}, 2, None)
    assert sums.effect() is None
