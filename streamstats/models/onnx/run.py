"""Running an ONNX model over samples with onnxruntime, batch by batch.

Samples stay on disk until their batch is fed; the outputs of a batch belong to the caller, who drops them before asking
for the next. Inputs are checked against what the model expects before anything runs, and never cast.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import MismatchError, UsageError, first_line, require

Arrays = Mapping[str, npt.NDArray[Any]]

SILENT = 4
ZIP_MAGIC = b"PK"
EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"
DTYPES = {
    "tensor(bool)": "bool",
    "tensor(float16)": "float16",
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    **{f"tensor({kind}{bits})": f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
}


@dataclass(frozen=True, eq=False)
class ModelRun:
    """A model in an onnxruntime session and its samples: `arrays` by input name, samples on axis 0.

    `batch` samples are fed at once. Raises `UsageError` and `MismatchError` if the arrays do not fit the model's
    inputs, or their number does not fit the model's fixed batch.
    """

    session: Any
    arrays: Arrays
    batch: int

    @classmethod
    def prepare(cls, session: Any, arrays: Arrays, batch_size: int, source: str) -> ModelRun:
        """Check `arrays`, read from `source`; the fixed batch of a model overrules `batch_size`."""
        if batch_size < 1:
            raise UsageError(f"batch_size is {batch_size}; expected at least 1")
        for node in session.get_inputs():
            _check_array(node, arrays[node.name], source)
        samples = _sample_count(arrays, source)
        fixed = _fixed_batch(session)
        if fixed is not None and samples % fixed:
            raise UsageError(
                f"{source} holds {samples} samples, but the model takes batches of exactly {fixed}; give a "
                f"multiple of {fixed} samples, or export the model with a dynamic batch axis"
            )
        return cls(session, arrays, fixed or batch_size)

    @property
    def samples(self) -> int:
        """The number of samples."""
        return len(next(iter(self.arrays.values())))

    @property
    def is_fixed(self) -> bool:
        """Whether the model takes batches of one size only."""
        return _fixed_batch(self.session) is not None

    def batches(self) -> Iterator[slice]:
        """The rows of each batch, in order; the last may be smaller."""
        for start in range(0, self.samples, self.batch):
            yield slice(start, min(start + self.batch, self.samples))

    def outputs(self, names: Sequence[str], rows: slice) -> dict[str, npt.NDArray[Any]]:
        """The tensors `names` for the samples `rows`. Raises `UsageError` if the model fails on them."""
        feeds = {name: np.ascontiguousarray(array[rows]) for name, array in self.arrays.items()}
        try:
            values = self.session.run(list(names), feeds)
        except Exception as error:
            raise UsageError(
                f"the model fails on {rows.stop - rows.start} samples at once: {first_line(error)}; check that its "
                "batch axis is dynamic, or choose another batch size"
            ) from error
        return dict(zip(names, values, strict=True))


def open_session(model: str | bytes, external_data: Path, *, optimized: bool = True) -> Any:
    """An onnxruntime session on the CPU for a file or its bytes, with external data in the folder `external_data`.

    Unless `optimized`, it computes the graph as it is, node by node.

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
        raise UsageError(f"onnxruntime cannot run the model: {first_line(error)}") from error


def load_samples(path: str | Path, session: Any) -> dict[str, npt.NDArray[Any]]:
    """Input name → samples, from a `.npy` (memory-mapped) or a `.npz` (its arrays are read whole).

    A model with one input takes a single array of any name; otherwise each input takes the array of its name, and other
    arrays are ignored. Raises `UsageError` for anything else; pickled objects are never loaded.
    """
    names = [node.name for node in session.get_inputs()]
    try:
        return _loaded(path, names)
    except UsageError:
        raise
    except OSError as error:
        raise UsageError(f"cannot read the samples {path}: {error.strerror or first_line(error)}") from error
    except Exception as error:
        reason = first_line(error).split(". ")[0]
        raise UsageError(f"the samples {path} are not a .npy or .npz file of numbers: {reason}") from error


def _loaded(path: str | Path, names: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    with open(path, "rb") as file:
        if file.read(len(ZIP_MAGIC)) == ZIP_MAGIC:
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                return _by_input(archive, archive.files, names, str(path))
    return _by_input({"": np.load(path, mmap_mode="r", allow_pickle=False)}, [""], names, str(path))


def _by_input(archive: Arrays, files: Sequence[str], names: Sequence[str], source: str) -> dict[str, npt.NDArray[Any]]:
    if len(names) == len(files) == 1:
        return {names[0]: archive[files[0]]}
    missing = [name for name in names if name not in files]
    if missing or not names:
        found = "one array without a name" if files == [""] else f"the arrays {', '.join(files) or '(none)'}"
        raise UsageError(
            f"{source} holds {found}; the model's inputs are {', '.join(names) or '(none)'}: save a .npz "
            "with an array of the same name for each input"
        )
    return {name: archive[name] for name in names}


def _check_array(node: Any, array: npt.NDArray[Any], source: str) -> None:
    """Raise `MismatchError` unless `array` has the dtype and the shape of the model's input `node`."""
    expected = DTYPES.get(node.type)
    if expected is None:
        raise UsageError(f"the model's input {node.name} is a {node.type}; expected a tensor of numbers")
    if array.dtype != np.dtype(expected):
        raise MismatchError(
            f"{source}: the values for the input {node.name} are {array.dtype.str} ({array.dtype}); the "
            f"model expects {expected}: convert the file"
        )
    if array.ndim < 1 or (node.shape and not _fits(array.shape, node.shape)):
        raise MismatchError(
            f"{source}: the array for the input {node.name} has the shape {array.shape}; the model expects "
            f"{_shape_text(node.shape)} with samples on axis 0"
        )


def _fits(shape: Sequence[int], expected: Sequence[Any]) -> bool:
    """Axis 0 is the batch; on other axes, an extent that the model fixes must match."""
    pairs = list(zip(shape, expected, strict=False))[1:]
    return len(shape) == len(expected) and all(size == dim for size, dim in pairs if isinstance(dim, int))


def _shape_text(shape: Sequence[Any]) -> str:
    return f"({', '.join(str(dim) if dim is not None else '?' for dim in shape)})"


def _sample_count(arrays: Arrays, source: str) -> int:
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) > 1:
        raise MismatchError(f"{source}: the arrays differ in their number of samples: {counts}; expected the same")
    samples = next(iter(counts.values()), 0)
    if samples == 0:
        raise UsageError(f"{source} holds no samples; expected at least one")
    return samples


def _fixed_batch(session: Any) -> int | None:
    """The fixed batch of the model, or None. Raises `UsageError` if its inputs have different fixed batches."""
    sizes = sorted({node.shape[0] for node in session.get_inputs() if node.shape and isinstance(node.shape[0], int)})
    if len(sizes) > 1:
        raise UsageError(f"the model's inputs are fixed to different extents on axis 0: {sizes}; expected one batch")
    return sizes[0] if sizes else None
