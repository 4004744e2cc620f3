"""Where the samples and the channels are in outputs that are compared: masks have samples first, outputs need not."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from ...statistics.masks import Mask
from ..positions import fits
from .arrangement import Arrangement, arrangements
from .masking import mask_rows
from .run import ModelRun
from .samples import Array


@dataclass(frozen=True)
class Places:
    """How samples lie in tensors of the float model, as far as it is known.

    Outputs in `uneven` have another number of channels from run to run: their values are compared as one channel.
    """

    arrangements: Mapping[str, Arrangement] = field(default_factory=dict)
    uneven: Collection[str] = ()

    @classmethod
    def of(cls, run: ModelRun, ends: Sequence[str], matrices: Sequence[str], mask: str | None) -> Places:
        """Those of the outputs `ends` and, for a mask, of tensors with channels on the last axis, `matrices`."""
        channels = {**dict.fromkeys(ends), **(dict.fromkeys(matrices, -1) if mask is not None else {})}
        each = {name: arranged for name, (arranged, _) in arrangements(run, channels).items()}
        found = {name: arranged for name, arranged in each.items() if isinstance(arranged, Arrangement)}
        return cls(found, frozenset(_uneven(cls(found), run, ends, mask)))

    def placed(self, name: str, values: Array, samples: int) -> Array:
        """`values`, the tensor that the float model calls `name`, with the axis of its `samples` in front, if known."""
        first = self.arrangements[name].samples_first(values, samples) if name in self.arrangements else None
        return values if first is None else first

    def all_placed(self, names: Sequence[str], outputs: Mapping[str, Array], samples: int) -> dict[str, Array]:
        """The `outputs` called `names`, each as `placed`."""
        return {name: self.placed(name, outputs[name], samples) for name in names}

    def of_output(self, name: str, values: Array, samples: int, mask: Mask | None) -> tuple[Array, int]:
        """(the output `name` as it is compared, the axis of its channels)."""
        placed = self.placed(name, values, samples)
        if name in self.uneven:
            return placed.reshape(-1, 1), 1
        return placed, -1 if mask is not None and fits(mask.shape, placed.shape, -1) else min(1, placed.ndim - 1)


def _uneven(places: Places, run: ModelRun, ends: Sequence[str], mask: str | None) -> list[str]:
    """The outputs whose number of channels differs from one sample to the next, or with their number."""
    found: dict[str, set[int]] = {end: set() for end in ends}
    size = run.fixed or 1
    for rows in [*run.given.examples(size), run.first]:
        counts = mask_rows(run, mask, rows)
        for end, values in run.outputs(ends, rows).items():
            placed, axis = places.of_output(end, values, rows.stop - rows.start, counts)
            found[end].add(placed.shape[axis] if placed.ndim else 1)
    return [end for end, extents in found.items() if len(extents) > 1]
