"""Every kind of statistic keeps the laws, whatever it is."""

from __future__ import annotations

from laws import EXACT, laws_of, space_of

from streamstats.statistics.kinds import ALWAYS, KINDS, kinds_of
from streamstats.statistics.statistics import Statistics

for _name, _kind in KINDS.items():
    globals()[f"TestLawsOf{_name.title()}"] = laws_of(_kind, EXACT[_name])


def test_every_kind_is_called_by_its_name() -> None:
    assert {name: kind.name for name, kind in KINDS.items()} == {name: name for name in KINDS}
    assert [kind.name for kind in kinds_of(())] == [*ALWAYS]
    assert {kind.name for kind in kinds_of(KINDS)} == set(KINDS)


def test_no_two_kinds_give_their_figures_the_same_name() -> None:
    documents = [kind.empty(space_of("f4", 2)).document(None) for kind in KINDS.values()]
    for names in ([*each.layer] for each in documents), ([*each.channels] for each in documents):
        flat = [name for each in names for name in each]
        assert len(flat) == len(set(flat))


def test_their_tensors_are_told_apart_by_the_name_of_the_kind() -> None:
    arrays = Statistics.empty(kinds_of(KINDS), space_of("f4", 2)).arrays()
    assert {name.split(".")[0] for name in arrays} == set(KINDS)
