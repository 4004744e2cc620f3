"""RangeChoice: which ranges an export holds, as `find_ranges` finds them."""

from __future__ import annotations

from dataclasses import dataclass

from ..outputs.layer_statistics import LayerStatistics
from ..ranges.codes import Codes
from ..ranges.finding import LayerRange, check_method, layer_ranges
from ..ranges.percentile import PERCENTILE


@dataclass(frozen=True)
class RangeChoice:
    """How the range of each layer is chosen, and for which codes.

    `method`, `bits`, `symmetric`, `signed` and `percentile` are those of `find_ranges`. Raises `UsageError` for an
    unknown method, and bit widths that have no codes.

    >>> ss.RangeChoice("mse", bits=4).of(ss.load("out")["fc"]).codes.highest
    15
    """

    method: str
    bits: int = 8
    symmetric: bool = False
    signed: bool | None = None
    percentile: float = PERCENTILE

    def __post_init__(self) -> None:
        check_method(self.method)
        _ = self.codes

    @property
    def codes(self) -> Codes:
        """The codes."""
        return Codes(self.bits, self.symmetric, self.signed)

    def of(self, statistics: LayerStatistics) -> LayerRange:
        """The range of a layer. Raises `UsageError` as `find_ranges` does."""
        return layer_ranges(statistics, [self.method], self.codes, percentile=self.percentile)[0]
