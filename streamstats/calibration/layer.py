"""A layer: an array of a calibration store, its channel axis, its quantisation, and how it is stored.

Several layers of a model may read one array; it is counted once, and `readers` names them. And a layer may have several
arrays, whose rows follow each other: one for each source of a job, and for each part of a recording. Each is a `Layer`
of its own, with a name of its own; `counted_as` is what they have in common. A `Layer` is a small value
that travels to workers; each worker opens the array, or its files, for itself. Axis 0 holds the samples, one axis holds
the channels, and every other axis is reduced. Chunks are read as they are stored.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import MismatchError, UsageError, contrasted
from ..layouts import Kernel, Kernels
from ..quantization import Quantization, check_channels
from ..statistics.kinds import Kind, kinds_of
from ..statistics.meaning import Meaning
from ..statistics.statistic import SUPPORTED_DTYPES, Space, is_supported
from ..storage.names import check_layer_name
from .addresses import ONLY, Address
from .attributes import Attributes
from .encoding.chunks import ChunkKeys, Encoding
from .readers import Readers
from .recorded_model import Weights, short_fingerprint
from .sources.choose import source_of
from .sources.source import Source

Selection = tuple[slice, ...]
"""A part of a layer's array: one slice per axis, with start and stop, inside the array."""


@dataclass(frozen=True)
class Layer:
    """One layer of a store.

    `store` is the location of the store, `name` what plans and messages call the array: its path in the store, unless
    `at` is that path. `of` is the name of a layer that has several arrays, and `address` says which of them it is.
    `shape` is that of the array, with `rows`
    on axis 0. A part of shape `chunks` is decoded at once (one row of a chunk that is not encoded), and a part of shape
    `shards` lies in one file. `channel_axis` counts from 0. `keys` names the files, if the naming scheme is known;
    `encoding` says how to read them without zarr, where that is possible. `recorded` says that our recorder wrote the
    array, so that every chunk of it was stored. `fingerprint` (SHA-256, hex) identifies dtype, chunk grid and codecs,
    whatever the number of rows; those of the mask and its name follow, if there is one. `kinds` are the statistics to
    count. `unfinished` says that rows were being appended when the layer was described, or that appending was
    interrupted: the file that they begin in may be written again. `kernel` is what moves over the samples, if known.
    `readers` are the layers of the model that read the array; None means the layer of its own name. `tensor` is the
    model's name of what was recorded, empty if unknown. `within` are the bins of its histogram whose values are told
    apart. `min_rows` is the number of rows below which the job is incomplete.
    `rows_are` says what a row is if it is no sample: "positions" or "parts" of samples. `model` is the fingerprint of
    the weights of the model that was recorded, empty if unknown; `weights` are those of the layers that read the array,
    as far as they are known. `uuid` is the random number, in hex, by which its recorder made the array known, and its
    copies; empty for other arrays. `order` is its place among the layers in the order of their first samples, None if
    unknown.
    From the row `unwritten_from` on, if known, a file had room for more when it was counted, and has not been written
    since, although the array has grown.
    `mask`, itself such an array but without channels, has ones where values count and zeros where they do not.
    `attributes` is what attributes of CF say of the values, None if they say nothing. Without `follow_links`, nothing
    is read behind a link of this machine.
    """

    store: str
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: tuple[int, ...]
    shards: tuple[int, ...]
    channel_axis: int
    quantization: Quantization | None = None
    encoding: Encoding | None = None
    keys: ChunkKeys | None = None
    recorded: bool = False
    fingerprint: str = ""
    kinds: tuple[Kind, ...] = kinds_of(())
    unfinished: bool = False
    kernel: Kernel | Kernels | None = None
    within: tuple[int, ...] = ()
    min_rows: int = 0
    readers: Readers | None = None
    tensor: str = ""
    mask: Layer | None = None
    rows_are: str = ""
    model: str = ""
    weights: Weights = ()
    uuid: str = ""
    order: int | None = None
    attributes: Attributes | None = None
    unwritten_from: int | None = None
    at: str = ""
    of: str = ""
    address: Address = ONLY
    follow_links: bool = True

    @property
    def path(self) -> str:
        """The path of the array in its store."""
        return self.at or self.name

    @property
    def counted_as(self) -> str:
        """The name under which its rows are counted, those of other arrays of the layer among them."""
        return self.of or self.name

    @cached_property
    def source(self) -> Source:
        """Where the store lies."""
        return source_of(self.store, follow_links=self.follow_links)

    @property
    def read_by(self) -> Readers:
        """The layers of the model that read it."""
        if self.readers is not None:
            return self.readers
        assert not isinstance(self.kernel, Kernels)
        return Readers.of({self.counted_as: self.kernel})

    @property
    def names(self) -> tuple[str, ...]:
        """The names under which its results are found: those of the layers that read it, or its own."""
        return self.read_by.names or (self.counted_as,)

    def matches(self, glob: str) -> bool:
        """Whether its own name, or that of a layer that reads it, matches `glob` (`*` also matches `/`)."""
        return any(fnmatchcase(name, glob) for name in (self.counted_as, *self.names))

    @property
    def rows(self) -> int:
        """How many samples are committed; only those are counted."""
        return self.shape[0]

    @property
    def commits(self) -> bool:
        """Whether its rows are stored for good: our recorder, which wrote it and its mask, commits them afterwards."""
        return self.recorded and (self.mask is None or self.mask.recorded)

    @property
    def settled_rows(self) -> int:
        """The rows before the first file that may be written again: that has room for more, or is `unwritten_from`.

        The file of the mask counts, too. If it commits rows, all of them are settled.
        """
        return self.full_rows if self.unwritten_from is None else min(self.full_rows, self.unwritten_from)

    @property
    def full_rows(self) -> int:
        """The rows before the first file that has room for more; all of them if it commits rows."""
        if self.commits:
            return self.rows
        heights = [height for array in (self, self.mask) if array is not None for height in array.shards[:1]]
        return min((self.rows - self.rows % max(1, height) for height in heights), default=self.rows)

    @property
    def channels(self) -> int:
        """Extent of the channel axis."""
        return self.shape[self.channel_axis]

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return self.shape[1:]

    @property
    def row_bytes(self) -> int:
        """Decoded bytes of one sample."""
        return prod(self.sample_shape) * self.dtype.itemsize

    @property
    def meaning(self) -> Meaning | None:
        """What its stored values stand for; None if they count as they are."""
        return None if self.attributes is None else self.attributes.meaning

    @property
    def space(self) -> Space:
        """What its statistics know of it."""
        axis, masked = self.channel_axis - 1, self.mask is not None
        dtype = self.dtype if self.meaning is None else self.meaning.counted
        return Space(dtype, self.sample_shape, axis, self.kernel, self.within, masked)

    def with_channel_axis(self, axis: int) -> Layer:
        """The layer with its channels on `axis`; a negative axis counts from the end. Raises `UsageError`."""
        ndim = len(self.shape)
        if not -ndim <= axis < ndim or axis % ndim == 0:
            raise UsageError(
                f"layer {self.name}: channel_axis is {axis}, but the array has the shape {self.shape} with samples "
                f"on axis 0; expected an axis from 1 to {ndim - 1}, or from {1 - ndim} to -1"
            )
        return replace(self, channel_axis=axis % ndim)

    def with_quantization(self, quantization: Quantization | None) -> Layer:
        """The layer with its codes mapped by `quantization`. Raises `UsageError`, `MismatchError`."""
        if quantization is None:
            return replace(self, quantization=None)
        is_packed = self.attributes is not None and self.attributes.quantization is not None
        if self.dtype.kind not in "iu" and not is_packed:
            raise UsageError(
                f"layer {self.name}: a quantisation is given, but its values are {self.dtype}, not integer codes; "
                "leave the quantisation out"
            )
        try:
            check_channels(quantization, self.channels)
        except MismatchError as error:
            raise MismatchError(f"layer {self.name}: {error}") from error
        return replace(self, quantization=quantization)

    def with_kernel(self, kernel: Kernel | None) -> Layer:
        """The input of the layer of its own name, with `kernel`, None for an unknown one. Raises as `with_readers`."""
        return self.with_readers(Readers.of({self.counted_as: kernel}))

    def with_readers(self, readers: Readers) -> Layer:
        """The layer as `readers` read it. Raises `MismatchError` unless their kernels fit the samples."""
        extents = [extent for axis, extent in enumerate(self.shape) if axis not in (0, self.channel_axis)]
        for reader in readers.each:
            try:
                if reader.kernel is not None:
                    reader.kernel.check_fits(extents)
            except MismatchError as error:
                raise MismatchError(
                    f"layer {reader.layer}: {error}; correct its `channel_axis` or `geometry`, or those in its store"
                ) from error
        own = readers.is_only(self.counted_as)
        return replace(self, readers=None if own else readers, kernel=readers.kernel)

    def check_continues(self, earlier: Layer, place: str, remedy: str) -> None:
        """Raise `MismatchError`, ending in `remedy`, unless samples of this layer can follow those of `earlier`.

        `place` says who holds those, as in "the store holds". What is unknown on one side, a kernel, the model or a
        weight, fits any.
        """
        mine, theirs = self.read_by.filled_from(earlier.read_by), earlier.read_by.filled_from(self.read_by)
        differences: dict[str, tuple[object, object]] = {
            "list of layers that read it": (", ".join(mine.names), ", ".join(theirs.names)),
            "sample shape": (self.sample_shape, earlier.sample_shape),
            "dtype": (self.dtype, earlier.dtype),
            "channel axis": (self.channel_axis, earlier.channel_axis),
            "quantisation": (_metadata(self.quantization), _metadata(earlier.quantization)),
            **{
                f"kernel{_of(self, name)}": (_metadata(mine.kernel_of(name)), _metadata(theirs.kernel_of(name)))
                for name in mine.names
                if name in theirs.names
            },
            "mask": (_mask_of(self), _mask_of(earlier)),
        }
        for name, (found, expected) in differences.items():
            if found != expected and name == "sample shape":
                remedy = f"{remedy}, or append every position as a row (in torch, `positions_as_rows`)"
            if found != expected:
                ways = f"{_mask_remedy(self, earlier)}{remedy}" if name == "mask" else remedy
                here, there = contrasted(found, expected)
                raise MismatchError(f"layer {self.name}: the {name} is {here}; {place} {there}; {ways}")
        self._check_same_model(earlier, place, remedy)

    def _check_same_model(self, earlier: Layer, place: str, remedy: str) -> None:
        """As `check_continues`, of the fingerprints of the model and of the weights of its layers."""
        if self.model and earlier.model and self.model != earlier.model:
            here, there = map(short_fingerprint, (self.model, earlier.model))
            raise MismatchError(
                f"layer {self.name}: the fingerprint of the recorded model is {here}; {place} {there}; {remedy}"
            )
        known = dict(earlier.weights)
        for name, weight in self.weights:
            if known.get(name, weight) != weight:
                here, there = map(short_fingerprint, (weight, known[name]))
                raise MismatchError(f"layer {name}: the fingerprint of its weight is {here}; {place} {there}; {remedy}")


def arrays_of(layers: Iterable[Layer]) -> dict[str, list[Layer]]:
    """The arrays of each layer in `layers`, in order, by the name under which they are counted."""
    found: dict[str, list[Layer]] = {}
    for layer in layers:
        found.setdefault(layer.counted_as, []).append(layer)
    return found


def _metadata(described: Quantization | Kernel | None) -> dict[str, Any] | None:
    return None if described is None else described.to_metadata()


def _of(layer: Layer, reader: str) -> str:
    """Which reader is meant, where it has another name than the layer."""
    return "" if reader == layer.counted_as else f" of {reader}"


def _mask_remedy(layer: Layer, earlier: Layer) -> str:
    """What to do about samples with a mask after those of `earlier` without one, or the reverse; else nothing."""
    if layer.mask is None:
        return "give each append its `mask`, or "
    return "leave the mask out, or " if earlier.mask is None else ""


def _mask_of(layer: Layer) -> str:
    return "none" if layer.mask is None else f"one of shape {layer.mask.sample_shape} for each sample"


def described(
    store: str,
    name: str,
    samples: npt.NDArray[Any],
    channel_axis: int,
    quantization: Quantization | None,
    readers: Readers,
    tensor: str = "",
    rows_are: str = "",
) -> Layer:
    """The layer `name` of `store` that `samples`, whose axis 0 is that of the samples, could begin; it has no rows.

    Raises `UsageError` for a name, values or a channel axis that a layer cannot have, and `MismatchError` for a
    quantisation or a kernel that does not fit the samples.
    """
    check_layer_name(name)
    check_values(name, samples.dtype, samples.shape, "convert or reshape the samples")
    whole = Layer(store, name, samples.shape, samples.dtype, (), (), 0, tensor=tensor, rows_are=rows_are)
    found = whole.with_channel_axis(channel_axis).with_quantization(quantization).with_readers(readers)
    return replace(found, shape=(0, *found.sample_shape))


def check_values(name: str, dtype: np.dtype[Any], shape: tuple[int, ...], remedy: str) -> None:
    """Raise `UsageError`, ending in `remedy`, unless an array of `dtype` and `shape` can be a layer."""
    unfit = unfit_values(dtype, shape)
    if unfit:
        raise UsageError(f"layer {name}: {unfit}; {remedy}")


def unfit_values(dtype: np.dtype[Any], shape: tuple[int, ...]) -> str | None:
    """Why an array of `dtype` and `shape` cannot be a layer; None if it can."""
    if not is_supported(dtype):
        return f"its values are {dtype}; expected one of {', '.join(map(str, SUPPORTED_DTYPES))}"
    if len(shape) < 2:
        return (
            f"the array has the shape {shape}; expected samples on axis 0 and at least one more axis for the channels"
        )
    return None
