"""The samples that a model runs on: one array for each input, or batches, each with arrays of its own.

Arrays are cut into batches along the axis of their samples, axis 0 unless another one is named; an input may also be
the same for all samples. A batch of a folder is one run of the model, so shapes may differ from batch to batch. Values
are checked against what the model expects before anything runs, never cast, and read when a run needs them.
"""

from __future__ import annotations

import hashlib
import zipfile
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ...errors import MismatchError, UsageError, first_line, listed
from ...storage.files import file_digest

Array = npt.NDArray[Any]
Axes = Mapping[str, int | None]
"""Input of the model → the axis of its samples, None if it is the same for all."""
SampleSource = str | Path | Sequence[Mapping[str, Array]]
"""A `.npy` or `.npz` file, a folder of them, or batches in memory."""

ZIP_MAGIC = b"PK"
EXAMPLES = 8
"""How many samples show whether a shape depends on values."""
SUFFIXES = (".npy", ".npz")
DTYPES = {
    "tensor(bool)": "bool",
    "tensor(float16)": "float16",
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    **{f"tensor({kind}{bits})": f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
}
OPTION = "`--batch-axis {name}={axis}` (`batch_axes` in Python)"
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class Form(NamedTuple):
    """The shape and the dtype of an array."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


@dataclass(frozen=True, eq=False)
class Batch:
    """Arrays by input name: their forms, and `read`, which gives one of them. `source` names them in errors."""

    source: str
    forms: Mapping[str, Form]
    read: Callable[[str], Array]

    @classmethod
    def of_arrays(cls, source: str, arrays: Mapping[str, Array]) -> Batch:
        """Arrays that are in memory or mapped to it."""
        return cls(source, {name: Form(each.shape, each.dtype) for name, each in arrays.items()}, arrays.__getitem__)

    def renamed(self, names: Mapping[str, str]) -> Batch:
        """The arrays of the inputs that are the keys of `names`, under the name of the input."""
        forms = {name: self.forms[stored] for name, stored in names.items()}
        return replace(self, forms=forms, read=lambda name: self.read(names[name]))


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples by number: those of the first of `given`, then those of the next. If `cut`, runs take parts of it."""

    source: str
    given: Sequence[Batch]
    axes: Axes
    cut: bool

    @cached_property
    def starts(self) -> list[int]:
        """The number of the first sample of each batch, and the number of samples."""
        return list(accumulate((_count(batch, self.axes) for batch in self.given), initial=0))

    @property
    def number(self) -> int:
        """The number of samples."""
        return self.starts[-1]

    def batches(self, size: int | None) -> Iterator[slice]:
        """Runs of at most `size` samples, of one batch each; None does not cut."""
        for start, end in pairwise(self.starts):
            step = size or end - start
            yield from (slice(first, min(first + step, end)) for first in range(start, end, step))

    def part(self, name: str, rows: slice) -> Array:
        """The values of the input `name` for the samples `rows`, which are of one batch."""
        starts, axis = self.starts, self.axes[name]
        number = bisect_right(starts, rows.start) - 1
        array = self.given[number].read(name)
        if axis is None:
            return array
        own = slice(rows.start - starts[number], rows.stop - starts[number])
        return array[(slice(None),) * axis + (own,)]

    def shape(self, name: str, rows: slice) -> tuple[int, ...]:
        """The shape of one sample of the input `name` in the batch that `rows` are of."""
        shape = self.given[bisect_right(self.starts, rows.start) - 1].forms[name].shape
        axis = self.axes[name]
        return shape if axis is None else (*shape[:axis], *shape[axis + 1 :])

    def pair(self) -> slice | None:
        """Two samples of one batch, if there are."""
        return next((slice(start, start + 2) for start, end in pairwise(self.starts) if end - start > 1), None)

    def examples(self, size: int) -> list[slice]:
        """Runs of `size` samples to try a model with: some of all, and those of least and greatest extents."""
        starts = np.linspace(0, self.number // size - 1, min(EXAMPLES, self.number // size)).astype(int) * size
        whole = [start for start in starts.tolist() if start + size <= self._end(start)]
        return [slice(start, start + size) for start in dict.fromkeys([*whole, *self._varied()])]

    def _end(self, row: int) -> int:
        """The number of the first sample behind the batch of the sample `row`."""
        return self.starts[bisect_right(self.starts, row)]

    def _varied(self) -> list[int]:
        """The first sample of each batch in which an extent that varies is least or greatest, if any varies."""
        starts = self.starts[:-1]
        chosen: list[int] = []
        for name in self.axes:
            shapes = [self.shape(name, slice(start, start + 1)) for start in starts]
            for axis in range(len(shapes[0])):
                extents = [shape[axis] for shape in shapes]
                if min(extents) != max(extents):
                    chosen += [extents.index(min(extents)), extents.index(max(extents))]
        return [starts[each] for each in dict.fromkeys(chosen)]


def load_samples(source: SampleSource, session: Any, axes: Axes | None = None) -> Samples:
    """The samples of the inputs of the model in `session`; `axes` are those that are not 0.

    A `.npy` (memory-mapped) or a `.npz` (its arrays are read whole) has an array for each input, cut into batches; each
    file of a folder, or mapping of a sequence, is one run. A model with one input takes a single array of any name;
    otherwise each input takes the array of its name, and other arrays are ignored. A scalar is the same for all.

    Raises `UsageError` and `MismatchError` for anything that does not fit the model; pickled objects are never loaded.
    """
    nodes = session.get_inputs()
    known = _axes(nodes, axes or {})
    named = str(source) if isinstance(source, str | Path) else "the samples"
    given, cut = _given(source)
    batches = [_by_input(batch, [node.name for node in nodes]) for batch in given]
    known |= {node.name: None for node in nodes if node.name not in (axes or {}) and _is_scalar(node, batches)}
    for batch in batches:
        for node in nodes:
            _check_array(node, batch.forms[node.name], known[node.name], batch.source)
        _check_counts(batch, known)
    found = Samples(named, batches, known, cut)
    if not found.number:
        raise UsageError(f"{named} holds no samples; expected at least one")
    return found


def samples_digest(source: SampleSource) -> str:
    """The SHA-256 of the samples, hex: of the file, or of the names and contents of the batches."""
    if isinstance(source, str | Path) and not Path(source).is_dir():
        return file_digest(Path(source))
    digest = hashlib.sha256()
    if isinstance(source, str | Path):
        for path in _files(Path(source)):
            digest.update(f"{path.name} {file_digest(path)}\n".encode())
        return digest.hexdigest()
    for arrays in source:
        for name, array in sorted(arrays.items()):
            digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def fixed_batch(session: Any, axes: Axes) -> int | None:
    """The fixed batch of the model, or None. Raises `UsageError` if its inputs have different fixed batches."""
    extents = {node.name: _extent(node, axes[node.name]) for node in session.get_inputs()}
    sizes = {name: extent for name, extent in extents.items() if isinstance(extent, int)}
    if len(set(sizes.values())) > 1:
        raise UsageError(
            f"the model's inputs are fixed to different extents on the axes of their samples: {sizes}; expected one "
            f"batch: name the axis of an input whose samples lie elsewhere, {OPTION.format(name='NAME', axis=1)}, or "
            "`none` for an input that is the same for all samples"
        )
    return next(iter(sizes.values()), None)


def _extent(node: Any, axis: int | None) -> Any:
    return node.shape[axis] if axis is not None and node.shape else None


# Axes


def _axes(nodes: Sequence[Any], axes: Axes) -> dict[str, int | None]:
    names = [node.name for node in nodes]
    for name, axis in axes.items():
        if name not in names:
            raise UsageError(
                f"an axis is given for the input {name}, but the model's inputs are {listed(names)}; name one of these"
            )
        rank = len(next(node.shape for node in nodes if node.name == name))
        if axis is not None and (axis < 0 or (rank and axis >= rank)):
            raise UsageError(f"the axis of the samples of the input {name} is {axis}; expected 0 to {max(rank - 1, 0)}")
    return {node.name: axes[node.name] if node.name in axes else _usual_axis(node) for node in nodes}


def _is_scalar(node: Any, batches: Sequence[Batch]) -> bool:
    return not node.shape and all(batch.forms[node.name].shape == () for batch in batches)


def _usual_axis(node: Any) -> int:
    """Axis 0. Raises `UsageError` if the declared shape suggests another axis: the user must say which."""
    shape = list(node.shape)
    rest = list(enumerate(shape))[1:]
    named = [axis for axis, extent in rest if isinstance(extent, str) and "batch" in extent.lower()]
    free = [axis for axis, extent in rest if not isinstance(extent, int)]
    others = named if shape and not (isinstance(shape[0], str) and "batch" in shape[0].lower()) else []
    if shape and isinstance(shape[0], int) and shape[0] > 1:
        others = others or free
    if others:
        raise UsageError(
            f"the model's input {node.name} has the shape {_shape_text(shape)}: its samples may be on axis 0 or on "
            f"axis {others[0]}; say which with {OPTION.format(name=node.name, axis=others[0])}"
        )
    return 0


def _count(batch: Batch, axes: Axes) -> int:
    counts = [batch.forms[name].shape[axis] for name, axis in axes.items() if axis is not None and name in batch.forms]
    return next(iter(counts), 1)


def _check_counts(batch: Batch, axes: Axes) -> None:
    counts = {name: batch.forms[name].shape[axis] for name, axis in axes.items() if axis is not None}
    if len(set(counts.values())) > 1:
        raise MismatchError(
            f"{batch.source}: the arrays differ in their number of samples: {counts}; expected the same. If the "
            f"samples of an input are on another axis, name it: {OPTION.format(name='NAME', axis=1)}, or `none` for an "
            "input that is the same for all samples"
        )


# Files


def _given(source: SampleSource) -> tuple[list[Batch], bool]:
    """(the batches, whether runs may take parts of them)."""
    if not isinstance(source, str | Path):
        batches = [
            Batch.of_arrays(f"batch {number} of the samples", {name: np.asarray(each) for name, each in arrays.items()})
            for number, arrays in enumerate(source)
        ]
        if not batches:
            raise UsageError("the samples hold no batches; expected at least one")
        return batches, False
    if Path(source).is_dir():
        files = _files(Path(source))
        if not files:
            raise UsageError(
                f"the folder of samples {source} has no {' or '.join(SUFFIXES)} files; expected one per run"
            )
        return [_read(path, _opened_batch) for path in files], False
    return [_read(source, _loaded)], True


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file())


def _read(path: str | Path, read: Callable[[str | Path], Batch]) -> Batch:
    try:
        return read(path)
    except OSError as error:
        raise UsageError(f"cannot read the samples {path}: {error.strerror or first_line(error)}") from error
    except Exception as error:
        reason = first_line(error).split(". ")[0]
        raise UsageError(f"the samples {path} are not a .npy or .npz file of numbers: {reason}") from error


def _is_archive(path: str | Path) -> bool:
    with open(path, "rb") as file:
        return file.read(len(ZIP_MAGIC)) == ZIP_MAGIC


def _loaded(path: str | Path) -> Batch:
    """All arrays of a file: those of an archive are read now, a single one is mapped."""
    if not _is_archive(path):
        return Batch.of_arrays(str(path), {"": np.load(path, mmap_mode="r", allow_pickle=False)})
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
        return Batch.of_arrays(str(path), {name: archive[name] for name in archive.files})


def _opened_batch(path: str | Path) -> Batch:
    """The arrays of a file, none of them read yet."""
    if not _is_archive(path):
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        form = Form(mapped.shape, mapped.dtype)
        return Batch(str(path), {"": form}, lambda _: np.load(path, mmap_mode="r", allow_pickle=False))
    with zipfile.ZipFile(path) as archive:
        members = [name for name in archive.namelist() if name.endswith(".npy")]
        forms = {name.removesuffix(".npy"): _form(archive, name) for name in members}
    return Batch(str(path), forms, partial(_member, path))


def _form(archive: zipfile.ZipFile, member: str) -> Form:
    with zipfile.Path(archive, member).open("rb") as file:
        shape, _, dtype = HEADERS[np.lib.format.read_magic(file)](file)
    return Form(shape, dtype)


def _member(path: str | Path, name: str) -> Array:
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
        array: Array = archive[name]
    return array


def _by_input(batch: Batch, names: Sequence[str]) -> Batch:
    files = list(batch.forms)
    if len(names) == len(files) == 1:
        return batch.renamed({names[0]: files[0]})
    missing = [name for name in names if name not in files]
    if missing or not names:
        found = "one array without a name" if files == [""] else f"the arrays {', '.join(files) or '(none)'}"
        raise UsageError(
            f"{batch.source} holds {found}; the model's inputs are {', '.join(names) or '(none)'}: save a .npz "
            "with an array of the same name for each input"
        )
    return batch.renamed({name: name for name in names})


def _check_array(node: Any, form: Form, axis: int | None, source: str) -> None:
    """Raise `MismatchError` unless an array of this `form` has the dtype and the shape of the model's input `node`."""
    expected = DTYPES.get(node.type)
    if expected is None:
        raise UsageError(f"the model's input {node.name} is a {node.type}; expected a tensor of numbers")
    if form.dtype != np.dtype(expected):
        raise MismatchError(
            f"{source}: the values for the input {node.name} are {form.dtype.str} ({form.dtype}); the "
            f"model expects {expected}: convert the file"
        )
    fewest = 0 if axis is None else axis + 1
    if len(form.shape) < fewest or (node.shape and not _fits(form.shape, node.shape, axis)):
        where = "the same for all samples" if axis is None else f"samples on axis {axis}"
        raise MismatchError(
            f"{source}: the array for the input {node.name} has the shape {form.shape}; the model expects "
            f"{_shape_text(node.shape)} with {where}; {_way_out(node, form)}"
        )


def _way_out(node: Any, form: Form) -> str:
    """What to do about an array of another shape."""
    if len(form.shape) == len(node.shape) + 1:
        return (
            "a model without an axis of samples takes a folder with a file for each sample, and "
            f"`--batch-axis {node.name}=none`"
        )
    return f"if they are on another axis, say so with {OPTION.format(name=node.name, axis='AXIS')}"


def _fits(shape: Sequence[int], expected: Sequence[Any], axis: int | None) -> bool:
    """On the axis of the samples, any extent fits; on others, one that the model fixes must match."""
    pairs = enumerate(zip(shape, expected, strict=False))
    return len(shape) == len(expected) and all(
        size == dim for place, (size, dim) in pairs if isinstance(dim, int) and place != axis
    )


def _shape_text(shape: Sequence[Any]) -> str:
    return f"({', '.join(str(dim) if dim is not None else '?' for dim in shape)})"
