"""The held-out batches of a torch model: how they are given to it, and that they are the same in every pass."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...calibration.masking import USUAL
from ...errors import MismatchError, UsageError
from ..accuracy import BoolArray
from .library import Array, library, reals, to_numpy
from .masks import MaskOf

OUTPUT = "output"
"""What the only output of a model is called."""


def called(model: Any, batch: Any) -> Any:
    """What `model` returns for `batch`: a tensor, a sequence of arguments, or a mapping of named arguments."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple | list) else model(batch)


@dataclass(frozen=True, eq=False)
class HeldOut:
    """What torch models are judged by: `batches` that were not recorded, which can be gone through several times and
    are the same each time, such as a list, or a `DataLoader` that does not shuffle.

    `call` runs a model on a batch; by default, a tensor is its argument, a tuple or list are its arguments, and the
    entries of a mapping its arguments by name. `labels` gives the classes of a batch, one integer per sample, for the
    accuracy of a classifier: how often the greatest value of its first output is at the label. `mask` is that of
    `recording`: positions that it leaves out are not judged.
    """

    batches: Iterable[Any]
    call: Callable[[Any, Any], Any] = called
    labels: Callable[[Any], Any] | None = None
    mask: MaskOf = USUAL


@dataclass(eq=False)
class Batches:
    """Goes through batches, and raises `UsageError` if a pass differs from the first."""

    batches: Iterable[Any]
    what: str = "held-out"
    sizes: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)

    @classmethod
    def of(cls, batches: Iterable[Any], what: str = "held-out") -> Batches:
        """Goes through them once. Raises `UsageError` if there are none, or if they can be gone through only once."""
        found, given = cls(batches, what), batches
        if iter(given) is given:
            raise UsageError(
                f"the {what} batches are a {type(given).__name__}, which ends after one pass; give a list of them, "
                "or a loader that does not shuffle"
            )
        for batch in given:
            tensors = list(_tensors(batch))
            if not tensors or not tensors[0].ndim:
                raise UsageError(f"a {what} batch is a {type(batch).__name__} without tensors that have samples")
            found.sizes.append(len(tensors[0]))
            found.digests.append(_digest(tensors))
        if not found.sizes:
            raise UsageError(f"there are no {what} batches; give samples")
        return found

    @property
    def samples(self) -> int:
        """How many samples they hold."""
        return sum(self.sizes)

    def __iter__(self) -> Iterator[tuple[int, Any, int]]:
        """(number, batch, samples) of each. Raises `UsageError` if they are not those of the first pass."""
        number = 0
        for batch in self.batches:
            if number == len(self.sizes) or _digest(_tensors(batch)) != self.digests[number]:
                raise UsageError(f"the {self.what} batch {number} {CHANGED}")
            yield number, batch, self.sizes[number]
            number += 1
        if number < len(self.sizes):
            raise UsageError(f"the {self.what} batch {number} {CHANGED}")


CHANGED = (
    "differs from that of the first pass, and models can be compared on the same samples only; give a list of batches, "
    "or a loader that does not shuffle"
)


def _tensors(batch: Any) -> Iterator[Any]:
    """The tensors of a batch, in order."""
    if isinstance(batch, library().Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for name in batch:
            yield from _tensors(batch[name])
    elif isinstance(batch, Sequence) and not isinstance(batch, str):
        for each in batch:
            yield from _tensors(each)


def _digest(tensors: Iterable[Any]) -> bytes:
    digest = hashlib.sha256()
    for each in tensors:
        values = to_numpy(each)
        digest.update(repr((values.shape, str(values.dtype))).encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.digest()


def outputs_of(returned: Any) -> dict[str, Array]:
    """The tensors of what a model returned, by name: float64 if they are of floats or quantised, else as they are."""
    return {name or OUTPUT: _values(each) for name, each in _named("", returned)}


def _values(tensor: Any) -> Array:
    return reals(tensor) if tensor.is_floating_point() or tensor.is_quantized else to_numpy(tensor)


def _named(name: str, returned: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(returned, library().Tensor):
        yield name, returned
        return
    inner: Iterable[tuple[Any, Any]] = ()
    if isinstance(returned, Mapping):
        inner = returned.items()
    elif isinstance(returned, tuple | list):
        inner = enumerate(returned)
    for place, each in inner:
        yield from _named(f"{name}.{place}" if name else str(place), each)


def right(outputs: Mapping[str, Array], labels: Any) -> BoolArray:
    """Which samples the greatest value of the first of `outputs` is at the label of. Raises `MismatchError`."""
    classes = to_numpy(labels) if isinstance(labels, library().Tensor) else np.asarray(labels)
    logits = next(iter(outputs.values()))
    if logits.ndim != 2 or classes.shape != logits.shape[:1] or classes.dtype.kind not in "iu":
        raise MismatchError(
            f"the model's first output has the shape {logits.shape}, and the labels are {classes.dtype}"
            f"{list(classes.shape)}; expected (samples, classes), and one integer per sample"
        )
    if classes.size and not 0 <= classes.min() <= classes.max() < logits.shape[1]:
        raise MismatchError(
            f"the labels range from {classes.min()} to {classes.max()}; expected 0 to {logits.shape[1] - 1}, the "
            "classes of the model"
        )
    found: BoolArray = logits.argmax(axis=1) == classes
    return found
