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


def test_no_token_takes_all_places() -> None:
    places = Places(3)
    with places.taken("ann"), places.taken("ann"):
        with pytest.raises(FullError, match="her share"):
            places.check_share("ann", "her share")
        places.check_share("ben", "his share")
        with places.taken("ben"), pytest.raises(FullError, match="all"):
            places.check("all")
        places.check("all")
    places.check_share("ann", "her share")
    assert places.in_use == 0
