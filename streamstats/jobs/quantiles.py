"""Exact quantiles: a histogram gives the bin in which a quantile lies, and a second pass counts the values in that bin.

The pass reads the counted rows of layers whose bins hold several values, and of no other layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..calibration.layer import Layer, arrays_of
from ..coverage import Coverage
from ..errors import DataError, UsageError, counted, listed
from ..outputs.layer_statistics import LayerStatistics
from ..progress import QUIET, Progress
from ..statistics.bin_contents import BinContents
from ..statistics.counts import is_counted_by_value
from ..statistics.histogram import Histogram
from .job import Job
from .measuring import Policy
from .session import Session, open_session, reduce_layers, source_of

WIDEST = 4
"""Bytes of the widest values whose bins a second pass can resolve."""


@dataclass(frozen=True)
class Quantile:
    """The `q`-quantile of a layer, over all channels, in real units: the value at place ⌈q·n⌉ of the n sorted ones."""

    layer: str
    q: float
    value: float


def exact_quantiles(job: Job, quantiles: Sequence[float], *, progress: Progress = QUIET) -> list[Quantile]:
    """The exact `quantiles` of the layers of `job`, layer by layer, from the histograms in its output; writes nothing.

    Layers that have none are left out, and `progress` says why: those for which `check_quantiles` gives a reason, those
    without finite values, and those with rows that have changed since they were counted and were accepted. Raises
    `UsageError` if that leaves none, and for numbers that are no quantiles; `DataError` if the store has changed
    otherwise; and as `run` does.
    """
    check_quantiles(job, quantiles)
    with open_session(job, progress=progress) as session:
        every = {name: arrays[0] for name, arrays in arrays_of(session.layers).items()}
        reasons = {name: _refusal(layer, session.ledgers[name]) for name, layer in every.items()}
        chosen = {name: layer for name, layer in every.items() if reasons[name] is None}
        _check_some([*every.values()], reasons)
        for name, layer in every.items():
            if reasons[name] is not None:
                progress.say(f"no quantiles of {listed(layer.names)}: {reasons[name]}")
        places = {name: _places(session.ledgers[name], quantiles) for name in chosen}
        refined, found = _refined(session, places), []
        for array, layer in chosen.items():
            ledger, contents = session.ledgers[array], refined.get(array)
            values = {q: _value(ledger, contents, *places[array][q]) for q in quantiles}
            found += [Quantile(name, q, value) for name in layer.names for q, value in values.items()]
        return found


def check_quantiles(job: Job, quantiles: Sequence[float]) -> None:
    """Raise `UsageError` unless a run of `job` can have exact `quantiles` of some layer.

    They must be from 0 to 1; the layer must count a histogram, and have values of at most 32 bits and one step.
    """
    for q in quantiles:
        if not 0 <= q <= 1:
            raise UsageError(f"the quantile is {q}; expected a number from 0 to 1")
    layers = job.selected().layers
    _check_some(layers, {layer.counted_as: _refusal(layer) for layer in layers})


def _check_some(layers: Sequence[Layer], reasons: Mapping[str, str | None]) -> None:
    """Raise `UsageError`, with the first of the `reasons`, unless some layer has none."""
    refused = [(layer, reason) for layer in layers if (reason := reasons[layer.counted_as]) is not None]
    if len(refused) == len(layers):
        layer, reason = refused[0]
        others = f" (and {counted(len(refused) - 1, 'more layer')})" if len(refused) > 1 else ""
        raise UsageError(f"layer {layer.counted_as}{others}: {reason}")


def _refusal(layer: Layer, ledger: LayerStatistics | None = None) -> str | None:
    """Why `layer` has no exact quantiles, as far as its description and its `ledger` tell; None if it has."""
    if Histogram not in layer.kinds:
        return (
            "exact quantiles need its histogram; add `histogram` to its `statistics`, and count everything again with "
            "--restart if the output was counted without it"
        )
    if layer.space.dtype.itemsize > WIDEST:
        return (
            f"exact quantiles of {layer.space.dtype} values are not supported; `inspect --json` gives the bins in "
            "which they lie"
        )
    if layer.quantization is not None and layer.quantization.channels is not None:
        return "each channel has its own step, so its codes do not sort like the real values"
    return None if ledger is None else _refusal_of_counted(layer, ledger)


def _refusal_of_counted(layer: Layer, ledger: LayerStatistics) -> str | None:
    histogram: Histogram = ledger.statistics[Histogram.name]
    if not histogram.counts.any():
        return "it has no finite values, so it has no quantiles"
    accepted = [rows for source in ledger.sources for rows in source.accepted.ranges]
    if accepted and not is_counted_by_value(layer.space.dtype):
        return (
            f"rows {Coverage.of(accepted)} have changed since they were counted, so the values in a bin cannot be "
            "read again; count everything again with --restart"
        )
    return None


Places = dict[float, tuple[int, int]]
"""Quantile → the index of the bin in which it lies, and its place in that bin, from 0."""


def _places(ledger: LayerStatistics, quantiles: Sequence[float]) -> Places:
    """The bin and place of each quantile."""
    histogram: Histogram = ledger.statistics[Histogram.name]
    return {q: histogram.place(q) for q in quantiles}


def _refined(session: Session, places: Mapping[str, Places]) -> dict[str, BinContents]:
    """The contents of the bins at `places`, for each layer there whose bins hold several values; by layer."""
    layers = [
        replace(
            layer,
            kinds=(BinContents,),
            within=tuple(sorted({bin_ for bin_, _ in places[layer.counted_as].values()})),
            quantization=None,
        )
        for layer in session.layers
        if layer.counted_as in places and not is_counted_by_value(layer.space.dtype)
    ]
    if not layers:
        return {}
    ledgers = {name: LayerStatistics.empty(*arrays) for name, arrays in arrays_of(layers).items()}
    wanted = {layer.name: source_of(layer, session.ledgers).covered for layer in layers}
    policy = Policy("skip", fill=any(source_of(layer, session.ledgers).filled for layer in layers))
    outcome = reduce_layers(
        layers, ledgers, wanted, session.job.memory_bytes, session.workers, policy, session.progress
    )
    found = {name: ledger.statistics[BinContents.name] for name, ledger in outcome.statistics.items()}
    for name, arrays in arrays_of(layers).items():
        _check_same(arrays[0], session.ledgers[name].statistics[Histogram.name], found[name])
    return found


def _check_same(layer: Layer, histogram: Histogram, contents: BinContents) -> None:
    """Raise `DataError` unless both have the same count in each bin."""
    if contents.counts.sum(axis=1).tolist() != histogram.counts[list(layer.within)].tolist():
        raise DataError(
            f"layer {layer.counted_as}: its values have changed since they were counted; find them with "
            "`streamstats verify`"
        )


def _value(ledger: LayerStatistics, contents: BinContents | None, bin_: int, place: int) -> float:
    if contents is not None:
        value = contents.value_at(bin_, place)
    else:
        histogram: Histogram = ledger.statistics[Histogram.name]
        value = histogram.value_of(bin_)
    return float(value if ledger.quantization is None else ledger.quantization.dequantize(value))
