"""Following arrays that are being written by others than our recorder: which rows are settled, so that they count.

Such writers make an array longer before they write, so a chunk that does not exist may still come, and one that exists
may be written again. Rows are settled once, from one poll to the next, their chunks exist and have not changed, and,
for rows of a chunk with room for more, the array has not grown. If the array has grown, but the last chunk that was
counted has not been written since, nothing from there on is settled. All of this is waited for until nothing has
changed for `QUIET_POLLS` polls; then chunks that do not exist are what the job says that missing chunks are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..calibration.identity import file_range, identities, rows_of_file
from ..calibration.layer import Layer, arrays_of
from ..calibration.sources.identities import has_identity
from ..coverage import Coverage

QUIET_POLLS = 10
"""Polls without a change after which chunks that do not exist are no longer waited for."""

Files = Mapping[tuple[str, int], tuple[int, ...]]
"""(array, number of the file) → its identity, or nothing if it has none."""


@dataclass(frozen=True)
class Look:
    """What one poll sees of a layer: its rows, and the files of those that are not counted."""

    rows: int
    files: Files

    @classmethod
    def at(cls, layer: Layer, waiting: Coverage) -> Look:
        """The files of the `waiting` rows of `layer`, and of its mask."""
        files: dict[tuple[str, int], tuple[int, ...]] = {}
        for array in _arrays(layer):
            for start, stop in waiting.ranges:
                numbers = file_range(array, start, stop)
                found = identities(array, numbers)
                each = zip(numbers, found[:, :2].tolist(), has_identity(found).tolist(), strict=True)
                files |= {(array.name, number): tuple(pair) if exists else () for number, pair, exists in each}
        return cls(layer.rows, files)

    def repeats(self, before: Look | None) -> bool:
        """Whether nothing has changed since the look `before`."""
        return before is not None and self.rows == before.rows and self.files.items() <= before.files.items()

    def unsettled(self, layer: Layer, before: Look | None) -> Coverage:
        """The rows whose files do not exist, or have changed since the look `before`, or are still to be written."""
        earlier = {} if before is None else before.files
        arrays = {array.name: array for array in _arrays(layer)}
        moving = [place for place, identity in self.files.items() if not identity or earlier.get(place) != identity]
        unsettled = Coverage.of(rows_of_file(arrays[name], number) for name, number in moving)
        if before is None or before.rows != self.rows or layer.settled_rows < layer.full_rows:
            unsettled |= Coverage.of([(layer.settled_rows, layer.rows)])
        return unsettled


@dataclass(frozen=True)
class Watch:
    """What the polls so far saw of the layers whose writers do not commit rows.

    `ready` are the rows of every layer that may be counted now; nothing has changed for `quiet` polls.
    """

    looks: Mapping[str, Look] = field(default_factory=dict)
    ready: Mapping[str, Coverage] = field(default_factory=dict)
    quiet: int = 0

    def polled(self, layers: Sequence[Layer], waiting: Mapping[str, Coverage]) -> Watch:
        """With another poll of `layers`, of which the `waiting` rows are not counted."""
        written = [layer for layer in layers if not layer.commits]
        looks = {layer.name: Look.at(layer, waiting[layer.name]) for layer in written}
        repeated = all(look.repeats(self.looks.get(name)) for name, look in looks.items())
        quiet = self.quiet + 1 if repeated else 0
        ready = dict(waiting)
        if quiet < QUIET_POLLS:
            for layer in written:
                unsettled = looks[layer.name].unsettled(layer, self.looks.get(layer.name))
                ready[layer.name] = waiting[layer.name] - unsettled
        return Watch(looks, ready, quiet)

    def fewest_rows(self, layers: Sequence[Layer], waiting: Mapping[str, Coverage]) -> int:
        """The rows, in all its arrays, of the layer with the fewest that may be counted or are no longer `waiting`."""
        settled = {layer.name: layer.rows - len(waiting[layer.name] - self.ready[layer.name]) for layer in layers}
        return min(sum(settled[array.name] for array in arrays) for arrays in arrays_of(layers).values())


def _arrays(layer: Layer) -> list[Layer]:
    return [layer] if layer.mask is None else [layer, layer.mask]
