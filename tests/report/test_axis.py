"""An axis has a place for every value, however large or small."""

from __future__ import annotations

import pytest

from streamstats.report.axis import Axis

EXTREMES = [[1e300, 1.5e308], [1e300, 1.7e308], [-1.7e308, 1.7e308], [5e-324, 1.0], [0.0, 2e-323]]


@pytest.mark.parametrize("logarithmic", [False, True])
@pytest.mark.parametrize("values", EXTREMES, ids=str)
def test_the_largest_and_smallest_floats_have_places_between_ticks(values: list[float], logarithmic: bool) -> None:
    axis = Axis.over(values, logarithmic=logarithmic)
    places = [axis.place(value) for value in values if value > 0 or not logarithmic]
    assert all(place is not None and 0 <= place <= 100 for place in places)
    assert axis.ticks[0][0] == 0
    assert axis.ticks[-1][0] == 100
    assert len({label for _, label in axis.ticks}) == len(axis.ticks)
    assert not {"inf", "nan"} & {label for _, label in axis.ticks}
