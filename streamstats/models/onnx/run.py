"""Running an ONNX model over samples with onnxruntime, batch by batch.

Samples stay on disk until their batch is fed; the outputs of a batch belong to the caller, who drops them before asking
for the next.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import UsageError, counted, first_line, require
from .samples import Samples, fixed_batch

SILENT = 4
LOADED = re.compile(r"Load model from .* failed: ?")
EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"


@dataclass(frozen=True, eq=False)
class ModelRun:
    """A model in an onnxruntime session and its samples, `given`; `batch` samples are fed at once, None for all of one
    file. `fixed` is the only number of samples that the model takes, if there is one.
    """

    session: Any
    given: Samples
    batch: int | None
    fixed: int | None

    @classmethod
    def prepare(cls, session: Any, given: Samples, batch_size: int, source: str) -> ModelRun:
        """The fixed batch of a model overrules `batch_size`. Raises `UsageError` if the samples, read from `source`,
        do not fill such batches.
        """
        if batch_size < 1:
            raise UsageError(f"the batch size is {batch_size}; expected at least 1")
        fixed = fixed_batch(session, given.axes)
        for first, end in pairwise(given.starts):
            if fixed is not None and (end - first) % fixed:
                place = source if given.cut else given.given[given.starts.index(first)].source
                raise UsageError(
                    f"{place} holds {end - first} samples, but the model takes batches of exactly {fixed}; give a "
                    f"multiple of {fixed} samples, or export the model with a dynamic batch axis"
                )
        return cls(session, given, fixed or (batch_size if given.cut else None), fixed)

    @property
    def samples(self) -> int:
        """The number of samples."""
        return self.given.number

    @property
    def inputs(self) -> list[str]:
        """The names of the model's inputs."""
        return list(self.given.axes)

    @property
    def first(self) -> slice:
        """The samples that show how samples lie in a tensor."""
        return slice(0, self.fixed) if self.fixed is not None else self.given.pair() or slice(0, 1)

    def batches(self) -> Iterator[slice]:
        """The samples of each run, in order; the last may be fewer."""
        return self.given.batches(self.batch)

    def outputs(self, names: Sequence[str], rows: slice, *, reverse: bool = False) -> dict[str, npt.NDArray[Any]]:
        """The tensors `names` for the samples `rows`, of which the last is the first if `reverse`.

        Raises `UsageError` if the model fails on them.
        """
        if not names:
            return {}
        feeds = {name: self._fed(name, rows, reverse) for name in self.inputs}
        try:
            values = self.session.run(list(names), feeds)
        except Exception as error:
            number, shapes = rows.stop - rows.start, "; ".join(f"{name} {fed.shape}" for name, fed in feeds.items())
            several = ", and that its batch axis is dynamic, or choose another batch size" if number > 1 else ""
            raise UsageError(
                f"the model fails on {counted(number, 'sample')} at once: {first_line(error)}; its inputs have the "
                f"shapes {shapes}; check that they fit the model and one another{several}"
            ) from error
        return dict(zip(names, values, strict=True))

    def _fed(self, name: str, rows: slice, reverse: bool) -> npt.NDArray[Any]:
        part, axis = self.given.part(name, rows), self.given.axes[name]
        return np.asarray(np.flip(part, axis) if reverse and axis is not None else part, order="C")


def open_session(model: str | bytes, external_data: Path, *, optimized: bool = True, name: str = "the model") -> Any:
    """An onnxruntime session on the CPU for a file or its bytes, with external data in the folder `external_data`.

    Unless `optimized`, it computes the graph as it is, node by node. `name` is what errors call the model.

    Raises `UsageError` for a model that onnxruntime cannot run, `MissingDependencyError`.
    """
    ort = require("onnxruntime", "onnx")
    options = ort.SessionOptions()
    options.log_severity_level = SILENT
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry(EXTERNAL_FOLDER, str(external_data.resolve()))
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        said = LOADED.sub("", first_line(error))  # the file may be a temporary one
        raise UsageError(f"onnxruntime cannot run {name}: {said}") from error
