"""Readers: the layers that read the samples of one array, each with the kernel that it moves over them.

An array is stored and counted once, however many layers read it. In the attributes of an array, and in the state of
what was counted, `layers` names them. Without it, the array is the input of one layer, which has its name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from ..errors import UsageError
from ..layouts import Kernel, Kernels, joint_kernel
from ..storage.names import check_layer_name


@dataclass(frozen=True, order=True)
class Reader:
    """A layer that reads an array; `kernel` is what it moves over the samples, None if unknown.

    Raises `UsageError` for anything else in place of a kernel.
    """

    layer: str
    kernel: Kernel | None = None

    def __post_init__(self) -> None:
        if not (self.kernel is None or isinstance(self.kernel, Kernel)):
            raise UsageError(
                f"layer {self.layer}: its kernel is {self.kernel!r}; expected a `Kernel`, as in Kernel((3, 3)), or "
                "None for an unknown one"
            )


@dataclass(frozen=True)
class Readers:
    """The layers that read one array, sorted by name: none, one, or several. Raises `UsageError` for a bad name."""

    each: tuple[Reader, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "each", tuple(sorted(self.each, key=lambda reader: reader.layer)))
        for name in self.names:
            check_layer_name(name)

    @classmethod
    def of(cls, kernels: Mapping[str, Kernel | None]) -> Self:
        """The readers with these `kernels`, by name."""
        return cls(tuple(Reader(name, kernel) for name, kernel in kernels.items()))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the layers, sorted."""
        return tuple(reader.layer for reader in self.each)

    @property
    def kernel(self) -> Kernel | Kernels | None:
        """What moves over the samples; None if a kernel is unknown."""
        return joint_kernel(reader.kernel for reader in self.each)

    def kernel_of(self, layer: str) -> Kernel | None:
        """The kernel of `layer`, one of them."""
        return self._by_name[layer]

    def among(self, names: Iterable[str]) -> Self:
        """Those called one of `names`."""
        chosen = set(names)
        return replace(self, each=tuple(reader for reader in self.each if reader.layer in chosen))

    def is_only(self, layer: str) -> bool:
        """Whether `layer` is the only one: an array of its name needs no `layers`."""
        return self.names == (layer,)

    def filled_from(self, other: Readers) -> Self:
        """With kernels that are unknown here as they are in `other`."""
        theirs = other._by_name
        known = (replace(each, kernel=each.kernel or theirs.get(each.layer)) for each in self.each)
        return replace(self, each=tuple(known))

    def union(self, other: Readers) -> Self:
        """The layers of both; a kernel that differs becomes unknown."""
        mine, theirs = self._by_name, other._by_name
        both = {name: kernel if mine.get(name, kernel) == kernel else None for name, kernel in theirs.items()}
        return self.of({**mine, **both})

    @property
    def _by_name(self) -> dict[str, Kernel | None]:
        return {reader.layer: reader.kernel for reader in self.each}

    def to_metadata(self) -> dict[str, Any]:
        """JSON-ready: the kernel of each layer, by name."""
        return {reader.layer: {"kernel": reader.kernel and reader.kernel.to_metadata()} for reader in self.each}

    @classmethod
    def from_metadata(cls, stored: object) -> Self:
        """The inverse of `to_metadata`. Raises `UsageError` for anything else."""
        if not isinstance(stored, Mapping) or not all(isinstance(each, Mapping) for each in stored.values()):
            raise UsageError(f"the layers are {stored!r}; expected an object with an object for each layer")
        return cls.of({str(name): Kernel.from_metadata(each.get("kernel")) for name, each in stored.items()})


def readers_of(name: str, kernel: Kernel | None, layers: Mapping[str, Kernel | None] | None) -> Readers:
    """The readers that a caller names: the `layers`, or the one with the array's own `name`, and with `kernel`.

    Raises `UsageError` if both are given, and for a name or layers of other types.
    """
    if not isinstance(name, str):
        raise UsageError(
            f"the layer's name is of type {type(name).__name__}; expected text: give the name first, then the samples"
        )
    if layers is None:
        return Readers.of({name: kernel})
    if not isinstance(layers, Mapping):
        raise UsageError(
            f"array {name}: `layers` is of type {type(layers).__name__}; expected a mapping with the kernel of each "
            'layer, None if it is unknown, as in {"block1/conv": None}'
        )
    if kernel is not None:
        raise UsageError(f"array {name}: both `kernel` and `layers` are given; give each layer its kernel in `layers`")
    return Readers.of(layers)
