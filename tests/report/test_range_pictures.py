"""The picture of a histogram with ranges shows both, and is the same every time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quantizing import output_of
from test_report import texts

from streamstats.errors import UsageError
from streamstats.ranges.codes import Codes
from streamstats.ranges.distribution import Distribution
from streamstats.ranges.finding import METHODS, LayerRange, layer_ranges, matching_layers
from streamstats.report.pictures import plot_ranges

random = np.random.default_rng(0)
LAYERS: dict[str, np.ndarray[Any, Any]] = {
    "floats": random.normal(size=(20, 30)).astype("f4"),
    "codes": np.rint(random.normal(size=(20, 30)) * 9).astype("i1"),
    "halves": random.normal(size=(20, 30)).astype("f2"),
    "constant": np.full((3, 4), 2.5, "f4"),
    "zeros": np.zeros((3, 4), "f4"),
    "nothing": np.full((3, 4), np.nan, "f4"),
    "one outlier": np.where(np.arange(600).reshape(20, 30), 0.01, 1e6).astype("f4"),
    "a $name_": random.normal(size=(20, 30)).astype("f4"),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Distribution, list[LayerRange]]]:
    output = output_of(tmp_path_factory.mktemp("pictures"), LAYERS, nonfinite="skip")
    return {
        name: (Distribution.of(statistics), layer_ranges(statistics, METHODS, Codes(4)))
        for name, statistics in matching_layers(output, "*").items()
    }


@pytest.mark.parametrize("name", LAYERS)
def test_a_picture_has_the_histogram_and_both_ends_of_each_range(
    tmp_path: Path, found: dict[str, tuple[Distribution, list[LayerRange]]], name: str
) -> None:
    plot_ranges(*found[name], tmp_path / "p.svg")
    shown = texts(tmp_path / "p.svg")
    assert name in shown
    assert set(METHODS) <= set(shown)
    assert f"{found[name][0].total:,} values; affine codes of 4 bits" in shown
    svg = (tmp_path / "p.svg").read_text()
    assert ('id="values"' in svg) == (name != "nothing")
    for method in METHODS:
        assert f'id="low-{method}"' in svg
        assert f'id="high-{method}"' in svg
    plot_ranges(*found[name], tmp_path / "again.svg")
    assert svg == (tmp_path / "again.svg").read_text()


def test_other_kinds_of_pictures_are_refused(
    tmp_path: Path, found: dict[str, tuple[Distribution, list[LayerRange]]]
) -> None:
    with pytest.raises(UsageError, match=r"expected '.png' or '.svg'"):
        plot_ranges(*found["floats"], tmp_path / "p.pdf")
