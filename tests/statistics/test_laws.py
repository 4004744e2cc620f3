"""Every kind of statistic keeps the laws, whatever it is."""

from __future__ import annotations

from laws import laws_of, space_of

from streamstats.outputs.manifest import FileEntry, LayerEntry
from streamstats.statistics.kinds import ALWAYS, KINDS, asked, kinds_of
from streamstats.statistics.statistics import Statistics

for _name, _kind in KINDS.items():
    globals()[f"TestLawsOf{_name.title()}"] = laws_of(_kind)


def test_every_kind_is_called_by_its_name() -> None:
    assert {name: kind.name for name, kind in KINDS.items()} == {name: name for name in KINDS}
    assert [kind.name for kind in kinds_of(())] == [*ALWAYS]
    assert {kind.name for kind in kinds_of(asked())} == {name for name, kind in KINDS.items() if not kind.unasked}


LEDGER = (
    "covered",
    "excluded",
    "filled",
    "accepted",
    "stores",
    "channels",
    "channel_axis",
    "dtype",
    "quantization",
    "statistics",
)
"""What a document says of a layer beside figures."""


def test_no_two_kinds_give_their_figures_the_same_name() -> None:
    members = {name: kind.empty(space_of("f4", 2)) for name, kind in KINDS.items()}
    documents = [each.document(None, members) for each in members.values()]
    taken = [*LayerEntry(0, "", FileEntry("", ""), "").document(), *LEDGER, "per_channel"]
    figures = [*taken, *(name for each in documents for name in (*each.layer, *each.tables))]
    assert len(figures) == len(set(figures))
    columns = [name for each in documents for name in each.channels]
    assert len(columns) == len(set(columns))


def test_their_tensors_are_told_apart_by_the_name_of_the_kind() -> None:
    arrays = Statistics.empty(KINDS.values(), space_of("f4", 2)).arrays()
    assert {name.split(".")[0] for name in arrays} == set(KINDS)
