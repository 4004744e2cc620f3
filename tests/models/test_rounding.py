"""Rounding by second moments is GPTQ, then coordinate descent, and no output is worse than rounded to nearest."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

from streamstats.models import rounding
from streamstats.models.rounding import SWEEPS, Codes, damped, rounded_codes

Array = np.ndarray[Any, Any]


def problem(seed: int, outputs: int, columns: int, rows: int = 200) -> tuple[Array, Array, Codes]:
    """Weights, the moments of correlated inputs, and the codes of 3 bits, with a step for each output."""
    draw = np.random.default_rng((seed, outputs, columns))
    x = draw.normal(size=(rows, columns)) @ draw.normal(size=(columns, columns)) * draw.uniform(0.1, 3, columns)
    weights = draw.normal(size=(outputs, columns)) * 0.6
    step = draw.uniform(0.3, 0.6, (outputs, 1))
    return weights, x.T @ x / rows, Codes(step, np.full((outputs, 1), -4.0), np.full((outputs, 1), 3.0))


def errors(weights: Array, real: Array, moments: Array) -> Array:
    """The mean squared error of each output, by the definition."""
    return np.array([e @ moments @ e for e in weights - real])


def nearest(weights: Array, codes: Codes) -> Array:
    return np.clip(np.rint(weights / codes.step), codes.lowest, codes.highest)


def by_definition(weights: Array, codes: Codes, moments: Array, damping: float) -> Array:
    """Column by column, largest moment first: round it, and move all columns that are left to where they are best."""
    h = moments + damping * np.diag(moments).mean() * np.eye(len(moments))
    order = np.argsort(-np.diag(h), kind="stable")
    found = np.empty_like(weights)
    for row, w in enumerate(weights):
        step, low, high = (each[row, 0] for each in codes)
        best = w.copy()
        for place, column in enumerate(order):
            found[row, column] = np.clip(np.rint(best[column] / step), low, high)
            done, left = order[: place + 1], order[place + 1 :]
            gone = w[done] - found[row, done] * step
            best[left] = w[left] + np.linalg.solve(h[np.ix_(left, left)], h[np.ix_(left, done)] @ gone)
        for column in [*order] * SWEEPS:
            others = np.arange(len(w)) != column
            pull = h[column, others] @ (w - found[row] * step)[others] / h[column, column]
            found[row, column] = np.clip(np.rint((w[column] + pull) / step), low, high)
    plain = nearest(weights, codes)
    worse = errors(weights, found * codes.step, h) > errors(weights, plain * codes.step, h)
    return np.where(worse[:, None], plain, found)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("block", [1, 3, 128])
def test_the_codes_are_those_of_the_definition(seed: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "BLOCK", block)
    weights, moments, codes = problem(seed, 6, 11)
    assert np.array_equal(rounded_codes(weights, codes, moments), by_definition(weights, codes, moments, 0.01))


def test_the_codes_are_often_the_best_of_all_and_never_worse_than_the_nearest() -> None:
    best, found, plain, hits = 0.0, 0.0, 0.0, 0
    for seed in range(40):
        weights, moments, codes = problem(seed, 3, 4)
        levels = np.array(list(product(range(-4, 4), repeat=4)), float)
        least = [errors(w, levels * step, moments).min() for w, step in zip(weights, codes.step, strict=True)]
        mine = errors(weights, rounded_codes(weights, codes, moments, 0.0) * codes.step, moments)
        near = errors(weights, nearest(weights, codes) * codes.step, moments)
        assert (mine <= near).all()
        best, found, plain = best + sum(least), found + mine.sum(), plain + near.sum()
        hits += int(np.isclose(mine, least).sum())
    assert hits > 60, hits
    assert hits > 80, hits
    assert found < 1.2 * best
    assert found < 0.5 * plain


def test_inputs_that_do_not_vary_together_are_rounded_to_nearest() -> None:
    weights, moments, codes = problem(0, 7, 30)
    apart = np.diag(np.diag(moments))
    assert np.array_equal(rounded_codes(weights, codes, apart), nearest(weights, codes))
    assert np.array_equal(rounded_codes(weights, codes, np.zeros_like(moments)), nearest(weights, codes))


def test_the_order_of_columns_and_of_outputs_changes_nothing() -> None:
    weights, moments, codes = problem(1, 8, 40)
    columns, outputs = np.random.default_rng(0).permutation(40), np.random.default_rng(1).permutation(8)
    found = rounded_codes(weights, codes, moments)
    other = rounded_codes(weights[:, columns], codes, moments[np.ix_(columns, columns)])
    assert np.array_equal(other, found[:, columns])
    assert np.array_equal(rounded_codes(weights[outputs], Codes(*(e[outputs] for e in codes)), moments), found[outputs])


def test_inputs_that_are_always_zero_or_copies_of_others_are_no_obstacle() -> None:
    weights, moments, codes = problem(2, 5, 12)
    moments[3], moments[:, 3] = 0.0, 0.0
    moments[7], moments[:, 7] = moments[6], moments[:, 6]
    found = rounded_codes(weights, codes, moments)
    assert np.array_equal(found[:, 3], nearest(weights, codes)[:, 3])
    mine, plain = (errors(weights, each * codes.step, moments) for each in (found, nearest(weights, codes)))
    assert mine.sum() < 0.6 * plain.sum()
    with pytest.raises(np.linalg.LinAlgError):
        rounded_codes(weights, codes, moments, damping=0.0)


def test_damping_is_a_share_of_the_mean_of_the_diagonal() -> None:
    assert damped(np.array([[2.0, 1.0], [1.0, 6.0]]), 0.5).tolist() == [[4.0, 1.0], [1.0, 8.0]]
