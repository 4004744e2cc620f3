"""Meter: the statistics of arrays as they arrive, without a store, for activations that are too large to store.

It has the `append` of a `Recorder`. Its statistics equal, to the bit, those of a run over the recorded store.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..calibration.layer import Layer, described
from ..calibration.masking import given_mask, positions_of
from ..calibration.readers import readers_of
from ..calibration.recorded_model import check_model_fingerprint, check_weight_fingerprints, weights_among
from ..calibration.tensors import array_of
from ..coverage import Coverage
from ..errors import NonFiniteError, UsageError, counted
from ..floats import is_float
from ..layouts import Kernel
from ..outputs.layer_statistics import LayerStatistics
from ..outputs.ledger import by_layer, source_of
from ..outputs.manifest import MANIFEST
from ..outputs.results import check_no_store, check_paths, write_results
from ..outputs.saving import held
from ..quantization import Quantization
from ..statistics.kinds import check_refusals, kinds_for, kinds_of
from ..statistics.masks import Mask, nonfinite
from ..statistics.statistics import StatisticsAccumulator


class Meter:
    """Measures sums, extrema and the given `statistics` of each appended layer; it stores no samples.

    `name` identifies the samples in outputs. Rows of the same name and number are the same rows, so that merging never
    counts a row twice: give different samples different names. With `nonfinite="skip"`, NaN and infinities are only
    counted. `model_fingerprint` and `weight_fingerprints` are those of `Recorder`. Raises `UsageError` for an unknown
    statistic, another value of `nonfinite`, and what is no fingerprint.

    >>> meter = ss.Meter(["squares"])
    >>> meter.append("fc", np.array([[1.0, 2.0], [3.0, 4.0]]))
    >>> meter.statistics["fc"].mean.tolist(), meter.statistics["fc"].standard_deviation.tolist()
    ([2.0, 3.0], [1.0, 1.0])
    """

    def __init__(
        self,
        statistics: Collection[str] = (),
        *,
        name: str = "meter",
        nonfinite: str = "error",
        model_fingerprint: str = "",
        weight_fingerprints: Mapping[str, str] | None = None,
    ) -> None:
        if nonfinite not in ("error", "skip"):
            raise UsageError(f"nonfinite is {nonfinite!r}; expected error or skip")
        self._kinds, self._name, self._skips = kinds_of(statistics), name, nonfinite == "skip"
        self._model = check_model_fingerprint(model_fingerprint)
        self._weights = check_weight_fingerprints(weight_fingerprints)
        self._layers: dict[str, _Metered] = {}

    def __repr__(self) -> str:
        kinds = ", ".join(kind.name for kind in self._kinds)
        return f"<Meter {self._name} of {counted(len(self._layers), 'layer')}: {kinds}>"

    def append(
        self,
        layer: str,
        samples: npt.ArrayLike,
        *,
        channel_axis: int = -1,
        quantization: Quantization | None = None,
        kernel: Kernel | None = None,
        layers: Mapping[str, Kernel | None] | None = None,
        tensor: str = "",
        mask: npt.ArrayLike | None = None,
        rows_are: str = "",
    ) -> None:
        """Measure `samples` of `layer`: integers or floats, samples on axis 0, channels on `channel_axis`.

        `quantization` maps integer codes to real values; `kernel` is the kernel that the layer moves over its samples,
        None if unknown. `layers`, `tensor`, `rows_are` and `mask`, which says which positions count, are those of
        `Recorder.append`. Raises `MismatchError` if shape, dtype, channel axis, quantisation, layers, a known kernel or
        the shape of the mask differ from those of earlier calls, `UsageError` for a name, values, a mask or a statistic
        that a layer cannot have, and `NonFiniteError` for NaN or infinities, unless they are skipped. A call that
        raises has measured nothing.
        """
        native = np.require(array_of(samples), requirements=["C", "A"])
        readers = readers_of(layer, kernel, layers)
        appended = described("", layer, native, channel_axis, quantization, readers, tensor, rows_are)
        appended, given = given_mask(appended, native.shape, mask)
        counts = None if given is None else np.broadcast_to(given, positions_of(appended, native.shape))
        if layer not in self._layers:
            check_refusals(layer, self._kinds, appended.space, quantization)
            kinds = kinds_for(self._kinds, appended.space, quantization)
            known = replace(appended, model=self._model, weights=weights_among(self._weights, appended.names))
            self._layers[layer] = _Metered(replace(known, kinds=kinds, fingerprint=self._name, order=len(self._layers)))
        metered = self._layers[layer]
        appended.check_continues(metered.layer, "earlier calls had", "append it under another name")
        if not self._skips:
            _check_finite(appended, native, metered.rows, counts)
        metered.add(native, counts)

    @property
    def statistics(self) -> dict[str, LayerStatistics]:
        """The statistics of each layer so far, by name."""
        return by_layer(self._found())

    def _found(self) -> dict[str, LayerStatistics]:
        """What was measured, by the names that it was appended under."""
        return {name: self._layers[name].found() for name in sorted(self._layers)}

    def save(self, output: str | Path) -> None:
        """Write states, correctors and manifest to the folder `output`, as a run does; other commands accept it.

        Raises `UsageError` if nothing was measured, or for a folder that has results or is a store; `OutputError` if a
        file cannot be written.
        """
        folder, found = Path(output), self._found()
        if not found:
            raise UsageError("nothing was measured; call `append` before `save`")
        check_output(folder)
        check_paths(folder, found)
        with held(folder, self._name, {name: each.rows for name, each in found.items()}):
            write_results(folder, [self._name], found)


def check_output(output: str | Path) -> None:
    """Raise `UsageError` if the folder `output` has results, or is a store."""
    if (Path(output) / MANIFEST).exists():
        raise UsageError(f"{output} holds other results; choose another folder")
    check_no_store(Path(output))


class _Metered:
    """A layer that is measured, and the number of its rows so far."""

    def __init__(self, layer: Layer) -> None:
        self.layer, self.rows = layer, 0
        self._accumulator = StatisticsAccumulator(layer.kinds, layer.space)

    def add(self, block: npt.NDArray[Any], mask: Mask | None) -> None:
        where = (slice(self.rows, self.rows + len(block)), *(slice(0, extent) for extent in block.shape[1:]))
        self._accumulator.add(block, where, mask)
        self.rows += len(block)

    def found(self) -> LayerStatistics:
        source = replace(source_of(self.layer, self.rows), covered=Coverage.first(self.rows))
        layer = self.layer
        return replace(LayerStatistics.empty(layer), sources=(source,), statistics=self._accumulator.found())


def _check_finite(layer: Layer, block: npt.NDArray[Any], rows: int, mask: Mask | None) -> None:
    if not is_float(block.dtype):
        return
    bad = nonfinite(block, layer.channel_axis, mask)
    if not bad.any():
        return
    row, *place = np.argwhere(bad)[0].tolist()
    raise NonFiniteError(
        f"layer {layer.name}, row {rows + row}, channel {place[layer.channel_axis - 1]}: the value is "
        f'{block[(row, *place)]}; repair the samples, or leave such values out with `nonfinite="skip"`'
    )
