"""Moments in real units are the float64 nearest to the exact rationals, also where `Doubles` cannot tell which."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from streamstats.errors import UsageError
from streamstats.statistics.doubles import ERROR, Doubles
from streamstats.statistics.moved import MovedMoments
from streamstats.statistics.wide import Wide

Array = np.ndarray[Any, Any]
Matrix = list[list[Fraction]]
MASK = 0xFFFFFFFF


def wide(values: list[int], first: int = 0) -> Wide:
    """`values`, multiples of 2^(32·first), as wide integers."""
    shifted = [value >> 32 * first for value in values]
    digits = max(value.bit_length() for value in shifted) // 32 + 1
    return Wide(np.array([[value >> 32 * d & MASK for value in shifted] for d in range(digits)], np.uint32), first)


def triangle(columns: list[list[int]]) -> list[int]:
    """The sums of products of columns of integers, the upper triangle row by row."""
    return [
        sum(x * y for x, y in zip(columns[i], columns[j], strict=True))
        for i in range(len(columns))
        for j in range(i, len(columns))
    ]


def moments(x: list[list[int]], seen: list[list[int]], steps: Any, zeros: Any, **options: Any) -> MovedMoments:
    """Of columns x, of which tap t sees the rows where seen[t] is 1; the values of others must be 0."""
    sums = wide([0, 0, 0, *triangle([*seen, *x])])
    settings = {"exponent": 0, "start": 3, "taps": len(seen), "ones": True} | options
    return MovedMoments(sums, steps=steps, zeros=zeros, **settings)


def real(x: list[list[int]], seen: list[list[int]], steps: Any, zeros: Any) -> Matrix:
    """The real values of each column; what is not seen is 0."""
    return [
        [
            (value - zero) * step if there else Fraction(0)
            for value, there in zip(column, seen[place % len(seen)], strict=True)
        ]
        for place, (column, step, zero) in enumerate(zip(x, steps, zeros, strict=True))
    ]


def expected(values: Matrix, *, centred: bool) -> list[list[float]]:
    n = len(values[0])
    products = [[sum(map(Fraction.__mul__, x, y), Fraction(0)) for y in values] for x in values]
    if not centred:
        return [[float(each) for each in row] for row in products]
    sums = [sum(each, Fraction(0)) for each in values]
    return [
        [float(products[i][j] / n - sums[i] * sums[j] / n**2) for j in range(len(values))] for i in range(len(values))
    ]


integers = st.integers(-(2**8), 2**8) | st.integers(-(2**24), 2**24) | st.integers(2**60, 2**60 + 3)
steps = st.fractions(Fraction(1, 10**6), 10**6, max_denominator=2**60) | st.sampled_from(
    [Fraction(1), Fraction(2) ** -200, Fraction(2) ** 160, Fraction(0.013)]
)
zeros = st.integers(-300, 300).map(Fraction) | st.fractions(-1000, 1000, max_denominator=1000)


@given(st.data())
def test_moments_are_the_nearest_floats(data: st.DataObject) -> None:
    taps, channels, rows = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 3)), data.draw(st.integers(1, 5))
    flags = st.lists(st.integers(0, 1), min_size=rows, max_size=rows)
    seen = [data.draw(flags) for _ in range(taps)] if taps > 1 else [[1] * rows]
    x = [[data.draw(integers) * seen[place % taps][row] for row in range(rows)] for place in range(taps * channels)]
    of_channels = [(data.draw(steps), data.draw(zeros | st.just(Fraction(0)))) for _ in range(channels)]
    step, zero = ([each[k] for each in of_channels for _ in range(taps)] for k in range(2))
    found, values = moments(x, seen, step, zero), real(x, seen, step, zero)
    assert found.matrix().tolist() == expected(values, centred=False)
    assert found.covariance(rows).tolist() == expected(values, centred=True)


def test_small_units_and_digits_that_are_left_out_change_nothing() -> None:
    x = [[3 << 64, 5 << 64], [7 << 64, -(1 << 64)]]
    sums = wide(triangle(x), first=4)
    found = MovedMoments(sums, -298, 0, 1, False, [Fraction(1)] * 2, [Fraction(0)] * 2)
    scale = Fraction(2) ** -298
    assert found.matrix().tolist() == [[float(scale * (each << 128)) for each in row] for row in ([34, 16], [16, 50])]


@pytest.mark.parametrize("zero", [0, 3, 2**50])
def test_covariances_that_are_tiny_beside_the_means_are_exact_still(zero: int) -> None:
    random = np.random.default_rng(zero % 7)
    for power in range(30, 62):  # the digits of the covariance leave those of `Doubles` one after the other
        x = (random.integers(0, 1000, (3, 4)) + (1 << power)).tolist()
        ones, step, zeros = [[1] * 4], [Fraction(1, 3)] * 3, [Fraction(zero)] * 3
        values = real(x, ones, step, zeros)
        assert moments(x, ones, step, zeros).covariance(4).tolist() == expected(values, centred=True)


@pytest.mark.parametrize("offset", [0, 100, 10**4])
def test_of_many_entries_few_are_left_to_fractions(offset: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    x = (random.integers(-(2**20), 2**20, (20, 9)) + offset * 2**20).tolist()
    exact: list[tuple[int, int]] = []
    honest = MovedMoments._nearest

    def noted(self: MovedMoments, row: int, column: int, count: int | None) -> float:
        exact.append((row, column))
        return honest(self, row, column, count)

    monkeypatch.setattr(MovedMoments, "_nearest", noted)
    ones = [[1] * 9]
    found = moments(x, ones, [Fraction(0.1)] * 20, [Fraction(3)] * 20)
    values = real(x, ones, [Fraction(0.1)] * 20, [Fraction(3)] * 20)
    assert found.covariance(9).tolist() == expected(values, centred=True)
    assert len(exact) <= 5


def test_a_column_that_never_varies_has_no_covariance_without_a_look_at_its_pairs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(MovedMoments, "_nearest", lambda *_: pytest.fail("computed in fractions"))
    found = moments([[5, 5, 5], [1, 2, 4]], [[1, 1, 1]], [Fraction(1)] * 2, [Fraction(0)] * 2)
    assert found.covariance(3).tolist() == [[0, 0], [0, float(Fraction(14, 9))]]


def test_moments_beyond_float64_are_refused() -> None:
    found = moments([[2**60] * 2], [[1, 1]], [Fraction(2) ** 1000], [Fraction(0)])
    with pytest.raises(UsageError, match=r"beyond float64: the step is 1\.07151e\+301; expected a smaller one"):
        found.matrix()


numbers = st.integers(-(2**110), 2**110) | st.integers(-(2**640), 2**640) | st.integers(-3, 3)


@given(st.lists(numbers, min_size=1, max_size=5), st.lists(numbers, min_size=1, max_size=5))
@example([-1], [1])
@example([-(2**64)], [2**64 - 1])
@example([2**106 + 1], [-(2**106)])
def test_doubles_are_within_their_error(first: list[int], second: list[int]) -> None:
    size = min(len(first), len(second))
    first, second = first[:size], second[:size]
    sums = wide(first + second)
    mine, theirs = (Doubles.of_integers(sums, np.arange(size) + start, 0) for start in (0, size))

    def check(found: Doubles, exact: list[int], magnitudes: list[int]) -> None:
        for high, low, each, magnitude in zip(found.high, found.low, exact, magnitudes, strict=True):
            assert abs(Fraction(high) + Fraction(low) - each) <= Fraction(ERROR) * magnitude
            assert high == high + low

    check(mine, first, [abs(each) for each in first])
    pairs = [*zip(first, second, strict=True)]
    check(mine + theirs, [a + b for a, b in pairs], [2 * (abs(a) + abs(b)) for a, b in pairs])
    check(mine - theirs, [a - b for a, b in pairs], [2 * (abs(a) + abs(b)) for a, b in pairs])
    if all(abs(each) < 2**480 for each in first + second):
        check(mine * theirs, [a * b for a, b in pairs], [3 * abs(a * b) for a, b in pairs])


def test_what_could_round_otherwise_is_not_certain() -> None:
    half = 2.0**-53
    found = Doubles(np.array([1.0, 1.0, 1.0, 0.0, 0.0]), np.array([half, half * 0.99, 0.0, 0.0, 0.0]))
    errors = np.array([0.0, half * 0.001, half * 0.001, 0.0, 2.0**-1000])
    assert found.nearest(errors)[1].tolist() == [False, False, True, True, False]
