"""Reading masks: which positions of a block count."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ...coverage import Rows
from ...errors import DataError
from ...statistics.masks import Mask
from ..layer import Layer, Selection
from ..masking import EXPECTED, mask_selection, mistaken_for, positions_of
from .reader import opened_reader


class MaskReader:
    """Reads the mask of `layer`, if it has one; for one thread. `fill` is that of `open_reader`."""

    def __init__(self, layer: Layer, *, fill: bool) -> None:
        self._layer = layer
        self._reader = None if layer.mask is None else opened_reader(layer.mask, fill=fill)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._reader is not None:
            self._reader.close()

    @property
    def filled(self) -> list[Rows]:
        """The rows whose mask is not stored and got the fill value."""
        return [] if self._reader is None else self._reader.filled

    def expect(self, selections: Iterable[Selection]) -> None:
        """As `Reader.expect`, for parts of the layer."""
        if self._reader is not None:
            self._reader.expect(mask_selection(self._layer, each) for each in selections)

    def read(self, selection: Selection) -> Mask | None:
        """Which positions count in the part `selection` of the layer; None if all of them do.

        Raises `DataError` as `Reader.read`, and for numbers other than 0 and 1.
        """
        if self._reader is None:
            return None
        part = mask_selection(self._layer, selection)
        values = self._values(part)
        is_true = values.dtype == np.bool_
        values = values.view(np.uint8) if is_true else values
        counts: Mask = values != 0  # a copy: the reader reuses the memory of `values`
        if not is_true and not (counts == values).all():
            self._refuse(values, part)
        if counts.all():
            return None
        extents = [part.stop - part.start for part in selection]
        return np.broadcast_to(counts, positions_of(self._layer, extents))

    def _values(self, part: Selection) -> npt.NDArray[Any]:
        assert self._reader is not None
        try:
            return self._reader.read(part)
        except DataError as error:
            said = str(error).removeprefix("layer ")
            raise type(error)(f"layer {self._layer.name}: its mask {said}") from error

    def _refuse(self, values: npt.NDArray[Any], part: Selection) -> None:
        place = tuple(np.argwhere((values != 0) & (values != 1))[0].tolist())
        at = tuple(start.start + n for start, n in zip(part, place, strict=True))
        assert self._layer.mask is not None
        raise DataError(
            f"layer {self._layer.name}: its mask {self._layer.mask.name} holds {values[place]} at {at}; "
            f"{EXPECTED}{mistaken_for(values[place])}; repair the mask, or name another one under `mask`"
        )
