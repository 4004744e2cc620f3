"""All kinds of statistics. A new one is a file beside this one, and a line here."""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import UsageError, suggestion
from ..quantization import Quantization
from .extrema import ChannelExtrema
from .gram import Gram
from .histogram import Histogram
from .magnitude import ChannelMagnitude
from .mean import ChannelMean
from .spread import SampleSpread
from .squares import ChannelSquares
from .statistic import Space, Statistic
from .taps import ReadSums, TapSums

Kind = type[Statistic]

KIND_CLASSES: tuple[Kind, ...] = (
    ChannelMean,
    ChannelExtrema,
    ChannelMagnitude,
    ChannelSquares,
    Histogram,
    SampleSpread,
    TapSums,
    ReadSums,
    Gram,
)

KINDS: dict[str, Kind] = {kind.name: kind for kind in KIND_CLASSES}
"""Name → kind."""
ALWAYS = (ChannelMean.name, ChannelExtrema.name)
"""The statistics that are always counted; others are counted on request."""


def kinds_of(names: Iterable[str]) -> tuple[Kind, ...]:
    """The kinds named `names` and those in ALWAYS, each once, in a fixed order. Raises `UsageError`."""
    wanted = {*ALWAYS, *checked_names(names)}
    unknown = sorted(wanted.difference(asked()))
    if unknown:
        known = f"{', '.join(asked())}{suggestion(unknown[0], asked())}"
        raise UsageError(f"statistics {', '.join(unknown)} are unknown; expected some of {known}")
    return _ordered(wanted)


def kinds_for(wanted: Iterable[Kind], space: Space, quantization: Quantization | None) -> tuple[Kind, ...]:
    """The kinds `wanted`, and those that a layer of this `space` needs unasked, unless it cannot have them."""
    names = {kind.name for kind in wanted}
    needed = [kind for kind in KINDS.values() if kind.unasked and kind.needed(space, names)]
    return _ordered(names.union(kind.name for kind in needed if kind.refuses(space, quantization) is None))


def _ordered(names: set[str]) -> tuple[Kind, ...]:
    return tuple(KINDS[name] for name in [*ALWAYS, *sorted(names.difference(ALWAYS))])


def checked_names(names: Iterable[str]) -> Iterable[str]:
    """`names`. Raises `UsageError` for a text, whose characters would be taken for names."""
    if isinstance(names, str):
        raise UsageError(f"statistics is the text {names!r}; expected a list of names, as in [{names!r}]")
    return names


def check_refusals(layer: str, kinds: Iterable[Kind], space: Space, quantization: Quantization | None) -> None:
    """Raise `UsageError`, naming `layer`, if one of `kinds` cannot be counted for it."""
    for name, why in refusals(kinds, space, quantization).items():
        raise UsageError(refusal(layer, name, why))


def refusal(layer: str, name: str, why: str) -> str:
    """The message that the statistic `name` cannot be counted for `layer`."""
    return f"layer {layer}: `{name}` cannot be counted, because {why}"


def refusals(kinds: Iterable[Kind], space: Space, quantization: Quantization | None) -> dict[str, str]:
    """Those of `kinds` that cannot be counted for a layer of this `space`: name → why."""
    found = {kind.name: kind.refuses(space, quantization) for kind in kinds}
    return {name: why for name, why in found.items() if why is not None}


def asked() -> list[str]:
    """The names of the kinds that may be asked for."""
    return [name for name, kind in KINDS.items() if not kind.unasked]


def optional() -> dict[str, str]:
    """The statistics that are counted on request: name → one sentence that describes it."""
    return {name: _sentence(KINDS[name]) for name in asked() if name not in ALWAYS}


def _sentence(kind: Kind) -> str:
    return " ".join((kind.__doc__ or "").split("\n\n")[0].split())
