"""Places: taken, given back, and never more than there are."""

from __future__ import annotations

import pytest

from streamstats.service.errors import FullError
from streamstats.service.places import Places


def test_a_place_is_given_back_in_whatever_way_the_block_ends() -> None:
    places = Places(1)
    with places.taken(), pytest.raises(FullError, match="no place"):
        places.check("no place")
    places.check("no place")
    with pytest.raises(ZeroDivisionError), places.taken():
        raise ZeroDivisionError
    places.check("no place")
