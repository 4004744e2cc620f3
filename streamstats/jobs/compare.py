"""Comparing: whether two outputs hold the same statistics to the bit and, if not, what differs, layer by layer.

Equality follows from the contract of statistics, whatever their kinds; `outputs.distances` measures how far apart they
are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from ..coverage import Rows
from ..errors import UsageError, counted, listed, suggestion
from ..outputs.distances import Distances, distances
from ..outputs.layer_statistics import LayerStatistics
from ..outputs.results import Results, open_results
from ..outputs.stores import located, same_stores
from ..statistics.spread import SampleSpread
from ..statistics.statistics import Statistics

DESCRIPTION = ("dtype", "channels", "channel_axis", "quantization", "mask", "statistics")
"""The parts of a layer's description that are compared: keys of `LayerStatistics.document`."""
NAMED = 8
"""How many layers an error names at most."""


@dataclass(frozen=True)
class LayerComparison:
    """What differs in a layer, the first output before the second.

    `rows` and `values` are the numbers of rows and of finite values that were counted; `same_rows` says whether both
    cover the same rows of each store, `same_stores` whether they were counted from the same stores. `differing` names
    the statistics that both outputs have and that are not equal to the bit. `described` has the parts of the layer's
    description that differ, such as its dtype. `apart` is None for a layer that only one output has.
    """

    layer: str
    rows: tuple[int, int]
    values: tuple[int, int]
    only_in: Literal["first", "second"] | None = None
    same_rows: bool = False
    same_stores: bool = False
    differing: tuple[str, ...] = ()
    described: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    apart: Distances | None = None

    @property
    def equal(self) -> bool:
        """Whether both outputs have the layer, described alike, with statistics that are equal to the bit."""
        return self.only_in is None and not self.differing and not self.described

    @property
    def shift(self) -> float:
        """The difference of the means, as `Distances.shift`; infinite for a layer that only one output has."""
        return math.inf if self.apart is None else self.apart.shift

    @property
    def spread_only_in(self) -> Literal["first", "second"] | None:
        """The output that alone counted `spread`, without which there are no standard errors; None without one."""
        mine, theirs = (SampleSpread.name in each for each in self.described.get("statistics", ((), ())))
        if mine == theirs:
            return None
        return "first" if mine else "second"

    def document(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "layer": self.layer,
            "equal": self.equal,
            "only_in": self.only_in,
            "same_rows": self.same_rows,
            "same_stores": self.same_stores,
            "rows": list(self.rows),
            "values": list(self.values),
            "differing": list(self.differing),
            "described": {key: list(pair) for key, pair in self.described.items()},
            "apart": None if self.apart is None else self.apart.document(),
        }


@dataclass(frozen=True)
class Comparison:
    """What differs between two outputs: all layers, those with the largest difference of means first."""

    layers: tuple[LayerComparison, ...]

    def __repr__(self) -> str:
        differ = sum(not each.equal for each in self.layers)
        return f"<Comparison of {counted(len(self.layers), 'layer')}: {differ} differ>"

    @property
    def equal(self) -> bool:
        """Whether every layer is equal, to the bit."""
        return all(each.equal for each in self.layers)

    @property
    def same_rows(self) -> bool:
        """Whether the same rows of every layer are covered."""
        return all(each.same_rows for each in self.layers)

    @property
    def same_stores(self) -> bool:
        """Whether every layer was counted from the same stores, as far as their files and locations tell."""
        return all(each.same_stores for each in self.layers)

    def beyond(self, threshold: float) -> list[LayerComparison]:
        """The layers whose `shift` is above `threshold`: in standard errors, or hundredths of the layer's range.

        They include the layers that cannot be compared: only one output has the layer, or counted `spread`, the numbers
        of channels differ, or a channel has values in only one output.
        """
        return [each for each in self.layers if each.shift > threshold or each.spread_only_in]

    def document(self) -> dict[str, Any]:
        """JSON-ready; the layers are a list, in order."""
        layers = [each.document() for each in self.layers]
        same = {"same_rows": self.same_rows, "same_stores": self.same_stores}
        return {"equal": self.equal, **same, "layers": layers}


def compare(first: str | Path, second: str | Path, *, layers: str = "*") -> Comparison:
    """Compare the layers whose names match the glob `layers` in two outputs of runs or merges.

    Raises `UsageError` for a folder that is not an output, and a glob that matches nothing; `DataError` for a damaged
    file.

    >>> found = ss.compare("out", "out")
    >>> found.equal, found.layers[0].shift
    (True, 0.0)
    """
    outputs = open_results(first), open_results(second)
    names = sorted({*outputs[0].layers, *outputs[1].layers})
    chosen = [name for name in names if fnmatchcase(name, layers)]
    if not chosen:
        raise UsageError(f"no layer matches {layers!r}; the outputs have {listed(names)}{suggestion(layers, names)}")
    found = [_layer_comparison(name, *outputs) for name in chosen]
    return Comparison(tuple(sorted(found, key=_order)))


def _order(found: LayerComparison) -> tuple[object, ...]:
    """The key that sorts the worst first: by means, then by ranges and histograms; equal layers come last."""
    beyond = 0.0 if found.apart is None else found.apart.beyond
    variation = (found.apart and found.apart.total_variation) or 0.0
    return -found.shift, -beyond, -variation, found.equal, found.layer


def _layer_comparison(name: str, first: Results, second: Results) -> LayerComparison:
    mine, theirs = (
        located(each.statistics(name), each.manifest) if name in each.manifest.layers else None
        for each in (first, second)
    )
    if mine is not None and theirs is not None:
        return _compared(mine, theirs)
    return LayerComparison(name, *_numbers(mine, theirs), only_in="second" if mine is None else "first")


def _compared(first: LayerStatistics, second: LayerStatistics) -> LayerComparison:
    return LayerComparison(
        first.layer,
        *_numbers(first, second),
        same_rows=_coverage(first) == _coverage(second),
        same_stores=same_stores(first, second),
        differing=tuple(_differing(first.statistics, second.statistics)),
        described=_described_differently(first, second),
        apart=distances(first, second),
    )


def _numbers(first: LayerStatistics | None, second: LayerStatistics | None) -> tuple[tuple[int, int], tuple[int, int]]:
    """The numbers of rows and of finite values that are counted; 0 where there is no layer."""
    mine, theirs = ((each.rows, int(each.sums.count.sum())) if each else (0, 0) for each in (first, second))
    return (mine[0], theirs[0]), (mine[1], theirs[1])


def _coverage(found: LayerStatistics) -> list[tuple[Rows, ...]]:
    """The covered rows of each store, whatever its chunks."""
    return sorted(source.covered.ranges for source in found.sources)


def _differing(first: Statistics, second: Statistics) -> list[str]:
    """The statistics that both have and that are not equal to the bit."""
    common = [name for name in first if name in second]
    mine, theirs = (Statistics(each.space, {name: each[name] for name in common}) for each in (first, second))
    return mine.differing(theirs)


def _described_differently(first: LayerStatistics, second: LayerStatistics) -> dict[str, tuple[Any, Any]]:
    mine, theirs = first.document(), second.document()
    return {key: (mine[key], theirs[key]) for key in DESCRIPTION if mine[key] != theirs[key]}
