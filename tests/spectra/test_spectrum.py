"""The spectrum of a layer of a run, against numpy's over the samples themselves, and channels known by construction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gptq
import numpy as np
import pytest
from quantizing import output_of

import streamstats as ss
from streamstats.errors import UsageError
from streamstats.spectra.spectrum import LayerSpectrum

Array = np.ndarray[Any, Any]
random = np.random.default_rng(0)
MIXED = random.normal(size=(300, 8)) @ random.normal(size=(8, 8)) + 5
PLAIN = MIXED.astype("f4")
PLAIN[:, 3], PLAIN[:, 5], PLAIN[:, 6] = 2.5, -0.5 * PLAIN[:, 1], PLAIN[:, 1]
CODES = random.integers(-100, 100, (40, 6, 5, 4)).astype("i1")  # samples of 4 channels, last
CODES[..., 1] = 0
HALVES = random.normal(size=(40, 6, 5, 4)).astype("f2")
GAPS = PLAIN.copy()
GAPS[7, 0] = np.nan
CONV = {"taps": [3, 3], "strides": [2, 2], "pads": [1] * 4, "dilations": [1, 1], "output_padding": [0, 0]}
LAYERS = {"plain": PLAIN, "conv/codes": CODES, "conv/halves": HALVES, "gaps": GAPS, "zeros": np.zeros((9, 2), "f4")}
ATTRIBUTES = {
    "conv/codes": {
        "kernel": {**CONV, "transposed": False, "groups": 2},
        "quantization": {"step": 0.5, "zero_point": 3},
    },
    "conv/halves": {"kernel": {**CONV, "transposed": False, "groups": 4}},
}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spectra")
    return output_of(folder, LAYERS, attributes=ATTRIBUTES, statistics=("gram",), nonfinite="skip")


def unfolded(samples: Array, groups: int) -> Array:
    return gptq.unfolded(samples.astype("f8").transpose(0, 3, 1, 2), (3, 3), 2, 1, groups)


def check(found: LayerSpectrum, expected: list[Array]) -> None:
    """Compare with the moments of each group, in order, by numpy."""
    assert sorted(each.group for each in found.groups) == [*range(len(expected))]
    for each in found.groups:
        np.testing.assert_allclose(each.matrix, expected[each.group], rtol=1e-9, atol=1e-9)
        eigenvalues = np.linalg.eigvalsh(expected[each.group])[::-1]
        np.testing.assert_allclose(each.eigenvalues, eigenvalues, rtol=1e-9, atol=1e-10 * eigenvalues[0])


def test_a_matrix_product_has_the_spectrum_of_its_covariance(out: Path) -> None:
    found = LayerSpectrum.of(ss.load(out)["plain"])
    check(found, [np.cov(PLAIN.astype("f8").T, bias=True)])
    assert (found.matrix, found.reason, found.positions) == ("covariance", None, 300)
    (group,) = found.groups
    assert group.rank == 5
    assert found.dead(group) == ["channel 3"]
    assert found.duplicates(group) == ["channel 5 of channel 1, negated", "channel 6 of channel 1"]


def test_codes_under_several_taps_have_a_covariance_in_real_units(out: Path) -> None:
    found = LayerSpectrum.of(ss.load(out)["conv/codes"])
    check(found, [np.cov(rows.T, bias=True) for rows in unfolded((CODES.astype("f8") - 3) * 0.5, 2)])
    assert (found.matrix, found.positions) == ("covariance", 40 * 3 * 3)
    assert [each.group for each in found.groups] == [0, 1]  # channel 1 has no rank
    assert found.groups[0].rank < found.groups[1].rank == 18


def test_floats_under_several_taps_have_the_spectrum_of_their_products(out: Path) -> None:
    found = LayerSpectrum.of(ss.load(out)["conv/halves"])
    check(found, [rows.T @ rows / len(rows) for rows in unfolded(HALVES, 4)])
    assert found.matrix == "second moments"
    assert found.reason is not None
    assert "several taps" in found.reason
    conditions = [each.condition for each in found.groups]
    assert conditions == sorted(conditions, reverse=True)


def test_values_that_are_not_finite_leave_the_products_of_zeros(out: Path) -> None:
    found = LayerSpectrum.of(ss.load(out)["gaps"])
    rows = np.nan_to_num(GAPS.astype("f8"))
    check(found, [rows.T @ rows / len(rows)])
    assert found.reason == "NaN, infinities and missing values (1 value) were left out, so the covariance is unknown"


def test_a_layer_of_zeros_is_dead(out: Path) -> None:
    found = LayerSpectrum.of(ss.load(out)["zeros"])
    assert found.dead(found.groups[0]) == ["channel 0", "channel 1"]
    assert found.document()["groups"][0]["condition"] is None


def test_taps_are_named_and_a_channel_whose_taps_are_all_dead_is_named_once(tmp_path: Path) -> None:
    values = random.integers(1, 100, (30, 1, 1, 2)).astype("i1")  # one position: eight taps see padding alone
    values[..., 1] = 4
    kernel = {**CONV, "strides": [1, 1], "transposed": False, "groups": 1}
    out = output_of(tmp_path, {"c": values}, attributes={"c": {"kernel": kernel}}, statistics=("gram",))
    found = LayerSpectrum.of(ss.load(out)["c"])
    names = found.dead(found.groups[0])
    assert names[-1] == "channel 1"
    assert names[:-1] == [f"channel 0 tap ({y}, {x})" for y in range(3) for x in range(3) if (y, x) != (1, 1)]


def test_a_layer_without_products_says_how_to_count_them(tmp_path: Path) -> None:
    out = output_of(tmp_path, {"a": PLAIN}, statistics=())
    with pytest.raises(UsageError, match=r"`gram` was not counted for a; add `statistics: \[gram\]`"):
        LayerSpectrum.of(ss.load(out)["a"])
    wide = output_of(tmp_path / "w", {"a": PLAIN.astype("i4")}, statistics=())
    with pytest.raises(UsageError, match="layer a: `gram` cannot be counted, because its values are int32"):
        LayerSpectrum.of(ss.load(wide)["a"])
    empty = output_of(tmp_path / "e", {"a": PLAIN[:0]}, statistics=("gram",))
    with pytest.raises(UsageError, match="layer a has no position that counts"):
        LayerSpectrum.of(ss.load(empty)["a"])
