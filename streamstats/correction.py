"""Bias correction: the term that undoes the shift of a layer's mean output when its weights are quantised.

With weights `W`, fake-quantised weights `Ŵ` and the mean `E[x]` of each input channel, the mean output moves by
`(Ŵ − W)·E[x]`; adding `(W − Ŵ)·E[x]` to the bias moves it back (Nagel et al., Data-Free Quantization Through
Weight Equalization and Bias Correction, arXiv 1906.04721, section 4.2). Needs numpy and safetensors alone.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from .errors import DataError, MismatchError, UsageError, counted
from .layouts import BY_GROUP, TRANSPOSED, Geometry, Kernel, check_layout, spatial_axes, tap_sums
from .storage.files import write_bytes
from .storage.tensors import DIGEST_KEY, read_tensors, tensors_bytes

Array = npt.NDArray[Any]
Float64Array = npt.NDArray[np.float64]
FORMAT = "streamstats.corrector/1"
KERNEL_KEY = "kernel"
RESERVED_METADATA = ("format", "kind", KERNEL_KEY, DIGEST_KEY)


class BiasCorrector(ABC):
    """Corrects the bias of one layer: `calculate` gives the term to add, `save` and `load` use a file.

    `run` saves one for each layer. A subclass needs `calculate`; `to_bytes` as well if it is to be saved.

    >>> ss.BiasCorrector.load("out/correctors/fc.safetensors").calculate([[0.5, 0.8]], [[0.5, 1.0]], layout="OI")
    array([-1.2])
    """

    kind: ClassVar[str]
    """What its file calls it: "mean", "taps" or "null"."""
    provenance: Mapping[str, str] = MappingProxyType({})
    """What the mean is of, string → string."""

    @abstractmethod
    def calculate(
        self,
        weights: npt.ArrayLike,
        fake_quantized_weights: npt.ArrayLike,
        *,
        layout: str = "native",
        groups: int | None = None,
        geometry: Geometry | None = None,
    ) -> Float64Array | None:
        """The term to add to the bias, float64[output channels], or None if there is nothing to add.

        Arguments and errors as in `MeanBiasCorrector.calculate`.
        """

    def to_bytes(self) -> bytes:
        """The content of the safetensors file that `save` writes: equal correctors have equal bytes.

        Raises `UsageError` for a kind of corrector that has no file.
        """
        raise UsageError(f"{type(self).__name__} has no file; define to_bytes to save it")

    def save(self, path: str | Path) -> None:
        """Write the corrector to `path` as safetensors, atomically.

        Raises `UsageError` for a kind of corrector that has no file, `OutputError` if it cannot be written.

        >>> ss.MeanBiasCorrector(np.array([4.0, 6.0])).save("fc.safetensors")
        """
        write_bytes(Path(path), self.to_bytes())

    @staticmethod
    def load(path: str | Path) -> BiasCorrector:
        """Read a corrector of any kind. Raises `DataError` for a file that is damaged or not a corrector.

        >>> type(ss.BiasCorrector.load("out/correctors/fc.safetensors")).__name__
        'MeanBiasCorrector'
        """
        tensors, metadata = read_tensors(Path(path), FORMAT)
        kind = metadata.pop("kind", None)
        del metadata["format"]
        if kind == NullBiasCorrector.kind and not tensors:
            return NullBiasCorrector()
        for made in (MeanBiasCorrector, TapBiasCorrector):
            if kind == made.kind and set(tensors) == {*made._tensors}:
                return _stored(Path(path), made, tensors, metadata)
        raise DataError(
            f"{path} holds a corrector of kind {kind!r} with the tensors {sorted(tensors)}; expected kind 'null' "
            "without tensors, kind 'mean' with the tensor 'input_mean', or kind 'taps' with 'input_mean' and "
            "'tap_mean'; run the job again"
        )


class NullBiasCorrector(BiasCorrector):
    """Leaves the bias as it is.

    >>> print(ss.NullBiasCorrector().calculate([[0.5]], [[0.75]], layout="OI"))
    None
    """

    kind = "null"

    def __repr__(self) -> str:
        return "NullBiasCorrector()"

    def calculate(
        self,
        weights: npt.ArrayLike,  # noqa: ARG002 - the contract's arguments
        fake_quantized_weights: npt.ArrayLike,  # noqa: ARG002
        *,
        layout: str = "native",  # noqa: ARG002
        groups: int | None = None,  # noqa: ARG002
        geometry: Geometry | None = None,  # noqa: ARG002
    ) -> None:
        """None: there is nothing to add."""
        return

    def to_bytes(self) -> bytes:
        """The file that `save` writes: its kind, and no tensors."""
        return tensors_bytes({}, {"format": FORMAT, "kind": self.kind})


@dataclass(frozen=True, eq=False)
class MeanBiasCorrector(BiasCorrector):
    """Corrects with the mean of each input channel: `input_mean` float64[C], in real units.

    `provenance` (string → string) goes into the file: layer, rows, count, dtype, quantisation, digest. Raises
    `MismatchError` for a mean that is not one-dimensional or not of real numbers, `UsageError` for a mean that is not
    finite and for provenance under the keys that the file needs itself: `format`, `kind`, `kernel`, `sha256`.

    >>> corrector = ss.MeanBiasCorrector(ss.load("out")["fc"].mean)
    >>> corrector.input_mean
    array([4., 6.])
    """

    kind = "mean"
    _tensors: ClassVar[tuple[str, ...]] = ("input_mean",)

    input_mean: Float64Array
    provenance: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "input_mean", _checked_mean(self.input_mean))
        object.__setattr__(self, "provenance", _checked_provenance(self.provenance))

    def __repr__(self) -> str:
        return f"<MeanBiasCorrector{_of_layer(self)}: {counted(len(self.input_mean), 'channel')}>"

    def calculate(
        self,
        weights: npt.ArrayLike,
        fake_quantized_weights: npt.ArrayLike,
        *,
        layout: str = "native",
        groups: int | None = None,
        geometry: Geometry | None = None,
    ) -> Float64Array:
        """`Σ over taps and input channels of (W − Ŵ)·E[x]`: the term to add to the bias, float64[outputs].

        Both weights have the same shape, in `layout` (each letter is an axis: O and I are output and input channels,
        D, H and W space, C channels, M their multiplier):

        - `native`: `(*spatial, in/groups, groups, out/groups)`, output channels group-major;
        - `OIHW`, `OIW`, `OIDHW`: torch and ONNX convolutions, `(out, in/groups, *spatial)`, with `groups`;
        - `HWIO`, `WIO`, `DHWIO`: TensorFlow convolutions, `(*spatial, in/groups, out)`, with `groups`;
        - `HWCM`, `WCM`, `DHWCM`: Keras depthwise convolutions, `(*spatial, channels, multiplier)`;
        - `OI`: torch Linear; `IO`: MatMul and Gemm; both take `groups` as a convolution of one tap would;
        - `IOHW`, `IOW`, `IODHW`: transposed convolutions, `(in, out/groups, *spatial)`, with `groups` and the strides
          of `geometry`: an output position gets 1/product(strides) of the taps.

        The rest of `geometry` changes nothing here: every tap has the same mean. Raises `MismatchError` for shapes that
        do not fit each other, the layout or the mean, and for a geometry of other axes; `UsageError` for an unknown
        layout and for weights that are not finite.

        >>> weight = np.array([[0.5, -0.25], [1.0, 0.75]])
        >>> rounded = np.array([[0.5, -0.5], [1.0, 1.0]])
        >>> ss.MeanBiasCorrector(np.array([4.0, 6.0])).calculate(weight, rounded, layout="OI")
        array([ 1.5, -1.5])
        """
        change = _weight_change(np.asarray(weights), np.asarray(fake_quantized_weights))
        taps = tap_sums(change, layout, groups, geometry)
        return _multiplied(taps, self.input_mean, change.shape, layout, self.input_mean.shape)

    def to_bytes(self) -> bytes:
        """The file that `save` writes: the mean and its provenance."""
        metadata = {**self.provenance, "format": FORMAT, "kind": self.kind}
        return tensors_bytes({"input_mean": self.input_mean}, metadata)


@dataclass(frozen=True, eq=False)
class TapBiasCorrector(BiasCorrector):
    """Corrects with the mean under each tap of the `kernel`: `tap_mean` float64[C, *taps], and `input_mean` float64[C].

    With zero padding, or strides that skip positions, a tap does not see all positions, and the mean of what it sees is
    not that of the channel. `tap_mean` is the mean of what each tap sees over all outputs, with zeros for padding. The
    correction therefore undoes the whole shift of the mean output. Both means are in real units. `provenance` and
    errors as in `MeanBiasCorrector`; `MismatchError` also for means that do not fit each other or the kernel.

    >>> kernel = ss.Kernel((3,), ss.Geometry(pads=(1, 1)))
    >>> corrector = ss.TapBiasCorrector(np.array([3.0]), np.array([[2.0, 3.0, 2.0]]), kernel)
    >>> corrector.calculate(np.ones((1, 1, 3)), np.full((1, 1, 3), 0.5), layout="OIW")
    array([3.5])
    """

    kind = "taps"
    _tensors: ClassVar[tuple[str, ...]] = ("input_mean", "tap_mean")

    input_mean: Float64Array
    tap_mean: Float64Array
    kernel: Kernel
    provenance: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "input_mean", _checked_mean(self.input_mean))
        object.__setattr__(self, "tap_mean", _checked_mean(self.tap_mean, "tap_mean", axes=None))
        object.__setattr__(self, "provenance", _checked_provenance(self.provenance))
        expected = (len(self.input_mean), *self.kernel.taps)
        if self.tap_mean.shape != expected:
            raise MismatchError(
                f"tap_mean has the shape {self.tap_mean.shape}; expected {expected}: the channels of input_mean, and "
                "the taps of the kernel"
            )

    def __repr__(self) -> str:
        channels = counted(len(self.input_mean), "channel")
        return f"<TapBiasCorrector{_of_layer(self)}: {channels} under taps {self.kernel.taps}>"

    def calculate(
        self,
        weights: npt.ArrayLike,
        fake_quantized_weights: npt.ArrayLike,
        *,
        layout: str = "native",
        groups: int | None = None,
        geometry: Geometry | None = None,
    ) -> Float64Array:
        """`Σ over taps and input channels of (W − Ŵ)·E[x under the tap]`, float64[outputs].

        Layouts, `groups` and errors as in `MeanBiasCorrector.calculate`. The kernel is known, so `geometry` is only
        checked: one that differs is a `MismatchError`, and so are weights of other taps. Weights without spatial axes
        are multiplied by `input_mean`.
        """
        change = _weight_change(np.asarray(weights), np.asarray(fake_quantized_weights))
        check_layout(change.shape, layout)
        axes = spatial_axes(layout, change.ndim)
        if not axes:
            taps = tap_sums(change, layout, groups, geometry)
            return _multiplied(taps, self.input_mean, change.shape, layout, self.input_mean.shape)
        kernel = Kernel(
            tuple(change.shape[axis] for axis in axes),
            self._geometry(len(axes)) if geometry is None else geometry,
            self.kernel.transposed if layout == "native" else layout in TRANSPOSED,
            self.kernel.groups,
        )
        if kernel != self.kernel:
            raise MismatchError(
                f"weights of shape {change.shape} in layout {layout!r} have the kernel {kernel.to_metadata()}; the "
                f"means were counted for the kernel {self.kernel.to_metadata()}; expected the same: give the weights "
                "and the geometry of the recorded layer, or count the layer again with its actual kernel"
            )
        return self._by_tap(change, axes, layout, groups)

    def _geometry(self, axes: int) -> Geometry:
        """The geometry of its kernel, if that has as many spatial axes."""
        return self.kernel.geometry if axes == len(self.kernel.taps) else Geometry()

    def _by_tap(self, change: Float64Array, axes: tuple[int, ...], layout: str, groups: int | None) -> Float64Array:
        """Each tap's part of `change` times the mean of what this tap sees, summed: float64[outputs]."""
        by_tap, found = np.moveaxis(change, axes, range(len(axes))), self.tap_mean.shape
        terms = [
            _multiplied(
                BY_GROUP[layout](by_tap[tap], groups), self.tap_mean[(slice(None), *tap)], change.shape, layout, found
            )
            for tap in np.ndindex(*self.kernel.taps)
        ]
        total: Float64Array = np.sum(terms, axis=0)
        return total

    def to_bytes(self) -> bytes:
        """The file that `save` writes: the means, the kernel and their provenance."""
        kernel = json.dumps(self.kernel.to_metadata(), sort_keys=True)
        metadata = {**self.provenance, "format": FORMAT, "kind": self.kind, KERNEL_KEY: kernel}
        return tensors_bytes({name: getattr(self, name) for name in self._tensors}, metadata)


def correction_error(
    standard_error: npt.ArrayLike,
    weights: npt.ArrayLike,
    fake_quantized_weights: npt.ArrayLike,
    *,
    layout: str = "native",
    groups: int | None = None,
    geometry: Geometry | None = None,
) -> Float64Array:
    """The standard error of what `MeanBiasCorrector.calculate` gives, float64[outputs].

    With the standard error s of each channel's mean (`standard_error` float64[C]), it is
    √(Σ over input channels of (Σ over taps of W − Ŵ)²·s²). The means of different channels vary together, but the
    rounding errors of weights have no common sign: products of different channels are as often negative as positive,
    and are left out. Arguments and errors as in `calculate`.
    """
    change = _weight_change(np.asarray(weights), np.asarray(fake_quantized_weights))
    taps, error = tap_sums(change, layout, groups, geometry), np.asarray(standard_error, np.float64)
    return np.sqrt(_multiplied(taps**2, error**2, change.shape, layout, error.shape))


def _multiplied(
    taps: Float64Array, mean: Float64Array, shape: tuple[int, ...], layout: str, found: tuple[int, ...]
) -> Float64Array:
    """`taps` [in/groups, groups, out/groups] times the mean of each input channel: float64[outputs]."""
    inputs, groups, _ = taps.shape
    if inputs * groups != mean.size:
        raise MismatchError(
            f"weights of shape {shape} in layout {layout!r} with {groups} group(s) have {inputs * groups} input "
            f"channels; the mean has the shape {found}; expected as many channels (give `groups` for grouped and "
            "depthwise weights)"
        )
    term: Float64Array = np.einsum("igo,gi->go", taps, mean.reshape(groups, inputs))
    return term.reshape(-1)


def _of_layer(corrector: BiasCorrector) -> str:
    layer = corrector.provenance.get("layer")
    return f" of {layer}" if layer else ""


def _checked_mean(values: npt.ArrayLike, name: str = "input_mean", axes: int | None = 1) -> Float64Array:
    """`values` as float64; `axes` is the number of axes, None for channels and at least one more."""
    found = np.asarray(values)
    if found.dtype.kind not in "iuf" or (found.ndim != axes if axes else found.ndim < 2):
        expected = "one dimension, (channels,)," if axes else "(channels, *taps)"
        raise MismatchError(
            f"{name} has the shape {found.shape} and dtype {found.dtype}; expected {expected} of real numbers"
        )
    mean = np.array(found, dtype=np.float64)
    if not np.isfinite(mean).all():
        channel = int(np.argwhere(~np.isfinite(mean))[0, 0])
        raise UsageError(
            f"{name} of channel {channel} is {mean[channel]}; expected finite numbers"
            if axes
            else f"{name} of channel {channel} has values that are not finite; expected finite numbers"
        )
    mean.flags.writeable = False
    return mean


def _checked_provenance(provenance: Mapping[str, str]) -> dict[str, str]:
    for key, value in provenance.items():
        if key in RESERVED_METADATA:
            raise UsageError(f"provenance has the key {key!r}, which the file needs itself; use another key")
        if not isinstance(key, str) or not isinstance(value, str):
            raise UsageError(f"provenance has {key!r}: {value!r}; expected strings as keys and values")
    return dict(provenance)


def _stored(
    path: Path,
    made: type[MeanBiasCorrector] | type[TapBiasCorrector],
    tensors: Mapping[str, Array],
    metadata: dict[str, str],
) -> BiasCorrector:
    for name, tensor in tensors.items():
        if tensor.dtype != np.float64:
            raise DataError(
                f"{path} holds the tensor {name} of dtype {tensor.dtype}; expected float64; run the job again"
            )
    try:
        if made is MeanBiasCorrector:
            return MeanBiasCorrector(tensors["input_mean"], metadata)
        kernel = Kernel.from_metadata(json.loads(metadata.pop(KERNEL_KEY, "null")))
        if kernel is None:
            raise UsageError("its metadata has no kernel")
        return TapBiasCorrector(tensors["input_mean"], tensors["tap_mean"], kernel, metadata)
    except ValueError as error:
        raise DataError(f"{path} is not a corrector: {error}; run the job again") from error


def _weight_change(original: Array, fake_quantized: Array) -> Float64Array:
    """`W − Ŵ`, subtracted in float64 whatever the dtypes."""
    if original.shape != fake_quantized.shape:
        raise MismatchError(
            f"weights have the shape {original.shape}, fake-quantised weights {fake_quantized.shape}; expected the same"
        )
    return _finite("weights", original) - _finite("fake-quantised weights", fake_quantized)


def _finite(name: str, weights: Array) -> Float64Array:
    try:
        real = weights.astype(np.float64, casting="same_kind")
    except TypeError as error:
        raise MismatchError(f"{name} have the dtype {weights.dtype}; expected real numbers") from error
    if not np.isfinite(real).all():
        raise UsageError(f"{name} hold NaN or infinities; expected finite numbers")
    return real
