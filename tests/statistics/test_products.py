"""Exact products against the integers of Python: slices, planes, batches, sparse ones."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from streamstats.compiled import accelerator
from streamstats.statistics import products
from streamstats.statistics.products import NORM_BITS, ROWS, Products
from streamstats.statistics.wide import Wide

Array = np.ndarray[Any, np.dtype[Any]]
UNITS = {"i1": 0, "f2": -24, "f4": -149}
DIGITS = {"i1": 3, "f2": 5, "f4": 20}
RNG = np.random.default_rng(0)


def spread(shape: tuple[int, ...], exponents: tuple[int, int]) -> Array:
    """float32 of all exponents between these."""
    signs, fractions = RNG.choice([-1, 1], shape), RNG.integers(2**23, 2**24, shape)
    return np.ldexp(signs * fractions.astype(np.float64), RNG.integers(*exponents, shape)).astype(np.float32)


SHAPE = (300, 1, 9)
"""Of most blocks: rows, groups, columns."""


def whole_range() -> Array:
    """All finite positive float16."""
    return RNG.integers(0, 0x7C00, SHAPE).astype(np.uint16).view(np.float16).astype(np.float32)


def with_one_huge_value() -> Array:
    values = spread(SHAPE, (-40, -20))
    values[123, 0, 4] = 3e38
    return values


CASES: dict[str, tuple[str, Array]] = {
    "codes": ("i1", RNG.integers(-128, 128, SHAPE).astype(np.float32)),
    "like layer normalisation": ("f2", RNG.standard_normal(SHAPE).astype(np.float16).astype(np.float32)),
    "all of float16": ("f2", whole_range()),
    "normal float32": ("f4", RNG.standard_normal(SHAPE).astype(np.float32)),
    "all exponents": ("f4", spread(SHAPE, (-149, 100))),
    "one huge value": ("f4", with_one_huge_value()),
    "a huge channel beside tiny ones": (
        "f4",
        (spread(SHAPE, (-25, -23)) * 10.0 ** np.arange(-30, 33, 7)).astype(np.float32),
    ),
    "denormals": ("f4", (RNG.integers(-100, 100, SHAPE) * 2.0**-149).astype(np.float32)),
    "rarely not zero": ("f4", np.where(RNG.random(SHAPE) < 0.02, spread(SHAPE, (-60, 0)), np.float32(0))),
    "groups": ("f4", RNG.standard_normal((300, 3, 3)).astype(np.float32)),
}


def exact(left: Array, right: Array, unit: int) -> Array:
    """leftᵀ·right of each group, in units of 2^(2·unit), as integers of Python."""
    as_integers = np.vectorize(lambda value: int(Fraction(float(value)) / Fraction(2) ** unit), otypes=[object])
    mine, theirs = as_integers(left), as_integers(right)
    return np.stack([mine[:, group].T.dot(theirs[:, group]) for group in range(left.shape[1])])


def found(products: Products) -> Array:
    digits = products.found()
    values = np.array([*Wide(digits.reshape(len(digits), -1)).integers(), 0], object)[:-1]
    return values.reshape(digits.shape[1:])


def new(kind: str, left: Array, right: Array | None = None) -> Products:
    others = None if right is None else right.shape[2]
    integral = not kind.startswith("f")
    return Products(*left.shape[1:], others, unit=UNITS[kind], integral=integral, digits=DIGITS[kind])


def is_upper_triangle_of(mine: Array, whole: Array) -> bool:
    upper = np.triu_indices(whole.shape[1])
    return all(group[upper].tolist() == expected[upper].tolist() for group, expected in zip(mine, whole, strict=True))


@pytest.mark.parametrize("rows", [ROWS, 40], ids=["one batch", "batches"])
@pytest.mark.parametrize(("kind", "values"), CASES.values(), ids=CASES)
def test_products_of_columns_are_exact(kind: str, values: Array, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "ROWS", rows)
    unit, (left, right) = UNITS[kind], (values, values[::-1, :, : values.shape[2] // 2 + 1])
    square, pair = new(kind, left), new(kind, left, right)
    for start in range(0, len(values), 70):
        square.add(left[start : start + 70])
        pair.add(left[start : start + 70], right[start : start + 70])
    assert is_upper_triangle_of(found(square), exact(left, left, unit))
    assert found(pair).tolist() == exact(left, right, unit).tolist()


def test_rows_may_follow_after_the_sums_were_asked_for() -> None:
    kind, values = CASES["all exponents"]
    square = new(kind, values)
    square.add(values[:100])
    found(square)
    square.add(values[100:])
    assert is_upper_triangle_of(found(square), exact(values, values, UNITS[kind]))


def test_planes_are_emptied_before_they_are_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "ROWS", 1)
    monkeypatch.setattr(products, "MOST_ADDED", 3)
    kind, values = CASES["normal float32"]
    square = new(kind, values)
    square.add(values)
    assert square._added < 3
    assert is_upper_triangle_of(found(square), exact(values, values, UNITS[kind]))


def test_the_largest_sums_of_a_batch_are_exact() -> None:
    """All values are as large as their exponent allows, and odd in its units: the norms are just below the bound."""
    largest = np.nextafter(np.float32(2), np.float32(0))
    values = np.full((ROWS, 1, 2), largest)
    square = new("f4", values)
    square.add(values)
    exponent = int(square._left.exponents[0])
    norm = float(largest) * ROWS**0.5 / 2.0**exponent
    assert 2 ** (NORM_BITS - 2) < norm < 2**NORM_BITS
    assert found(square)[0, 0, 1] == ROWS * int(float(largest) * 2**149) ** 2
    assert sum(3 * 2 * 2.0**53 for _ in range(products.MOST_ADDED)) <= 2.0**63


def test_a_gpu_multiplies_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="`make models` tests with it")
    there = accelerator._by_torch("cpu")
    assert there is not None
    monkeypatch.setattr(accelerator, "on_device", lambda: there)
    monkeypatch.setattr(accelerator, "FEWEST_COLUMNS", 1)
    for kind, values in CASES.values():
        square = new(kind, values)
        square.add(values)
        assert is_upper_triangle_of(found(square), exact(values, values, UNITS[kind]))


def test_without_a_gpu_numpy_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "DEVICES", ("/nowhere",))
    accelerator.on_device.cache_clear()
    assert accelerator.on_device() is None
    accelerator.on_device.cache_clear()
