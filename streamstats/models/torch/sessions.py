"""A recording under way: inputs of layers go to a recorder or a meter, and what cannot be recorded is noted.

The user's loop runs on, whatever the inputs: a layer whose input cannot be recorded is left alone from then on, and
named in an error once the block has ended.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from ...calibration.masking import positions_of_axis
from ...calibration.recorder import Recorder
from ...errors import MismatchError, OutputError, StreamstatsError, counted, first_line, listed
from ...jobs.meter import Meter
from ...layouts import Kernel
from ...statistics.masks import Mask, chosen
from .library import Array, to_numpy
from .masks import BatchMask


@dataclass(eq=False)
class Session:
    """Where the inputs of layers whose names match one of the `globs` (None: all) go.

    `rows` counts what was recorded of each layer, `positions` those positions of them that count, `calls` the calls
    whose inputs were not empty; `failures` are the errors that ended the recording of some.
    """

    recorder: Recorder | Meter
    masks: BatchMask | None
    globs: Sequence[str] | None
    positions_as_rows: bool
    rows: Counter[str] = field(default_factory=Counter)
    positions: Counter[str] = field(default_factory=Counter)
    calls: dict[str, int] = field(default_factory=dict)
    failures: dict[str, StreamstatsError] = field(default_factory=dict)

    def wants(self, name: str) -> bool:
        """Whether the layer `name` was asked for."""
        return self.globs is None or any(fnmatchcase(name, glob) for glob in self.globs)

    def append(self, name: str, tensor: Any, axes: int, axis: int, kernel: Kernel | None) -> None:
        """Record `tensor`, an input of the layer `name` with channels on `axis`; fewer than `axes` are one sample.

        Raises `OutputError` if it cannot be written; everything else that is wrong with it becomes a failure.
        """
        if not self.wants(name) or name in self.failures:
            return
        try:
            self._append(name, tensor, axes, axis, kernel)
        except OutputError:
            raise
        except MismatchError as error:
            more = "" if self.positions_as_rows else "; if the shape of its inputs changes, use `positions_as_rows`"
            self.failures[name] = MismatchError(f"{error}{more}")
        except StreamstatsError as error:
            self.failures[name] = error
        except Exception as error:
            self.fail(name, f"its input cannot be read: {first_line(error)}")

    def fail(self, name: str, reason: str) -> None:
        """The layer `name` cannot be recorded, for this `reason`."""
        if self.wants(name):
            self.failures.setdefault(name, MismatchError(f"layer {name}: {reason}"))

    def _append(self, name: str, tensor: Any, axes: int, axis: int, kernel: Kernel | None) -> None:
        if getattr(tensor, "is_nested", False):
            values, mask = np.concatenate([to_numpy(each) for each in tensor.unbind()]), None
            as_rows = True
        else:
            values, as_rows = to_numpy(tensor), self.positions_as_rows
            values = values[np.newaxis] if values.ndim < axes else values
            mask = None if self.masks is None else self.masks.of(name, values, axis % values.ndim)
        self.calls[name] = self.calls.get(name, 0) + bool(values.size)
        if as_rows:
            values, mask = _positions(values, axis % values.ndim, mask), None
            axis, kernel = 1, kernel if kernel == Kernel() else None
        if not len(values):
            return
        rows_are = "positions" if as_rows else ""
        axis %= values.ndim
        self.recorder.append(name, values, channel_axis=axis, kernel=kernel, mask=mask, rows_are=rows_are)
        self.rows[name] += len(values)
        self.positions[name] += len(values) if mask is None else int(mask.sum())

    def raise_failures(self) -> None:
        """Raise the first failure, if there is one, with the names of all."""
        if not self.failures:
            return
        name, error = next(iter(self.failures.items()))
        others = [other for other in self.failures if other != name]
        also = f"; nor were all of {listed(others)}" if others else ""
        part = "only " + counted(self.rows[name], "row") if self.rows[name] else "none"
        raise type(error)(
            f"not all inputs of {name} were recorded, but {part}: {error}{also}. The others were recorded. Record "
            "these again into another store, or leave them out with `layers`"
        ) from error

    def nested(self) -> Session:
        """The same session for the samples of a nested tensor: their positions are rows."""
        return replace(self, positions_as_rows=True, masks=None)


def _positions(values: Array, axis: int, mask: Mask | None) -> Array:
    """Every position of `values`, channels on `axis`, that counts: [positions, C]."""
    if mask is not None:
        values = chosen(values, axis, np.broadcast_to(mask, positions_of_axis(values.shape, axis)))
    return np.moveaxis(values, axis, -1).reshape(-1, values.shape[axis])
