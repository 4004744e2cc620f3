"""Which corrections are known too badly, for too few samples were counted, to do good."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...outputs.layer_statistics import LayerStatistics
from ...outputs.manifest import MANIFEST
from ...outputs.results import open_results
from ..harm import doubt
from ..linear import LayerCorrection
from .pairs import Pair
from .precision import precision

Float64Array = npt.NDArray[np.float64]


def unsure(out: Path, pairs: Sequence[Pair], planned: Sequence[LayerCorrection]) -> dict[str, str]:
    """The layers whose correction is likelier to do harm than good, for too few samples were counted → why.

    Layers counted without `spread` have no standard error, and are not named.
    """
    if not (out / MANIFEST).exists():
        return {}
    results, found = open_results(out), {}
    known = set(results.layers)
    for pair, each in zip(pairs, planned, strict=True):
        if each.term is None or pair.name not in known:
            continue
        statistics = results.statistics(pair.name)
        reason = doubt(statistics.rows, _standard_error(pair, statistics, each.term.size), each.term)
        if reason:
            found[pair.name] = reason
    return found


def _standard_error(pair: Pair, statistics: LayerStatistics, outputs: int) -> Float64Array | None:
    """The standard error of the term of `pair`, float64[outputs]; None for layers counted without `spread`."""
    if statistics.standard_error is None:
        return None
    measured = precision(pair, statistics, np.ones(outputs))
    return None if measured is None else measured.error
