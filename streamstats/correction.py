"""Bias correction: the term that undoes the shift of a layer's mean output when its weights are quantised.

With weights `W`, fake-quantised weights `Ŵ` and the mean `E[x]` of each input channel, the mean output moves
by `(Ŵ − W)·E[x]`; adding `(W − Ŵ)·E[x]` to the bias moves it back (Nagel et al., Data-Free Quantization
Through Weight Equalization and Bias Correction, arXiv 1906.04721, section 4.2). Needs numpy and safetensors
alone.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from .artifacts import DIGEST_KEY, read_tensors, tensors_bytes, write_bytes
from .errors import DataError, MismatchError, UsageError

Array = npt.NDArray[Any]
Float64Array = npt.NDArray[np.float64]
FORMAT = "streamstats.corrector/1"
RESERVED_METADATA = ("format", "kind", DIGEST_KEY)


class BiasCorrector(ABC):
    """What a layer's bias is corrected with: `calculate` the term to add, `save` to a file, `load` it."""

    kind: ClassVar[str]

    @abstractmethod
    def calculate(
        self,
        weights: npt.ArrayLike,
        fake_quantized_weights: npt.ArrayLike,
        *,
        layout: str = "native",
        groups: int | None = None,
        strides: Sequence[int] | None = None,
    ) -> Float64Array | None:
        """The term to add to the bias, float64[output channels], or None where there is nothing to add."""

    @abstractmethod
    def to_bytes(self) -> bytes:
        """The content of the safetensors file that `save` writes: equal correctors, equal bytes."""

    def save(self, path: str | Path) -> None:
        """Write the corrector to `path` as safetensors, atomically. Raises `OutputError`."""
        write_bytes(Path(path), self.to_bytes())

    @staticmethod
    def load(path: str | Path) -> BiasCorrector:
        """Read a corrector of any kind. Raises `DataError` for a file that is not one, or is damaged."""
        tensors, metadata = read_tensors(Path(path), FORMAT)
        kind = metadata.pop("kind", None)
        del metadata["format"]
        if kind == NullBiasCorrector.kind and not tensors:
            return NullBiasCorrector()
        if kind == MeanBiasCorrector.kind and set(tensors) == {"input_mean"}:
            return _stored_mean_corrector(Path(path), tensors["input_mean"], metadata)
        raise DataError(
            f"{path} holds a corrector of kind {kind!r} with the tensors {sorted(tensors)}; expected kind "
            "'null' with none, or kind 'mean' with the tensor 'input_mean'; make it again"
        )


class NullBiasCorrector(BiasCorrector):
    """Leaves the bias as it is."""

    kind = "null"

    def calculate(
        self,
        weights: npt.ArrayLike,  # noqa: ARG002 - the contract's arguments
        fake_quantized_weights: npt.ArrayLike,  # noqa: ARG002
        *,
        layout: str = "native",  # noqa: ARG002
        groups: int | None = None,  # noqa: ARG002
        strides: Sequence[int] | None = None,  # noqa: ARG002
    ) -> None:
        """None: there is nothing to add."""
        return

    def to_bytes(self) -> bytes:
        """The file that `save` writes: nothing but its kind."""
        return tensors_bytes({}, {"format": FORMAT, "kind": self.kind})


@dataclass(frozen=True, eq=False)
class MeanBiasCorrector(BiasCorrector):
    """Corrects with the mean of each input channel: `input_mean` float64[C], in real units.

    `provenance` (string → string) travels with it into the file: layer, rows, count, dtype, quantisation,
    digest. Raises `MismatchError` for a mean that is not one-dimensional or not of real numbers, `UsageError`
    for one that is not finite and for provenance under the keys the file needs: `format`, `kind`, `sha256`.
    """

    kind = "mean"

    input_mean: Float64Array
    provenance: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "input_mean", _checked_mean(self.input_mean))
        object.__setattr__(self, "provenance", _checked_provenance(self.provenance))

    def calculate(
        self,
        weights: npt.ArrayLike,
        fake_quantized_weights: npt.ArrayLike,
        *,
        layout: str = "native",
        groups: int | None = None,
        strides: Sequence[int] | None = None,
    ) -> Float64Array:
        """`Σ over taps and input channels of (W − Ŵ)·E[x]`: the term to add to the bias, float64[outputs].

        Both weights have the same shape, in `layout` (the letters are axes in order; O and I output and input
        channels, D H W space, C channel, M its multiplier):

        - `native`: `(*spatial, in/groups, groups, out/groups)`, output channels group-major;
        - `OIHW`, `OIW`, `OIDHW`: torch and ONNX convolutions, `(out, in/groups, *spatial)`, with `groups`;
        - `HWIO`, `WIO`, `DHWIO`: TensorFlow convolutions, `(*spatial, in/groups, out)`, with `groups`;
        - `HWCM`, `WCM`, `DHWCM`: Keras depthwise convolutions, `(*spatial, channels, multiplier)`;
        - `OI`: torch Linear; `IO`: MatMul and Gemm; both take `groups` as a convolution of one tap would;
        - `IOHW`, `IOW`, `IODHW`: transposed convolutions, `(in, out/groups, *spatial)`, with `groups` and
          `strides` (one a spatial axis, default 1): an output position gets 1/product(strides) of the taps.

        Raises `MismatchError` for shapes that do not fit each other, the layout or the mean; `UsageError` for
        an unknown layout, for strides where they do not count, and for weights that are not finite.
        """
        change = _weight_change(np.asarray(weights), np.asarray(fake_quantized_weights))
        taps = tap_sums(change, layout, groups, strides)
        mean = self._mean_by_group(taps, change.shape, layout)
        term: Float64Array = np.einsum("igo,gi->go", taps, mean)
        return term.reshape(-1)

    def _mean_by_group(self, taps: Float64Array, shape: tuple[int, ...], layout: str) -> Float64Array:
        inputs, groups, _ = taps.shape
        if inputs * groups != self.input_mean.size:
            raise MismatchError(
                f"weights of shape {shape} in layout {layout!r} with {groups} group(s) have "
                f"{inputs * groups} input channels; the input_mean has the shape {self.input_mean.shape}; expected "
                "as many (grouped and depthwise weights need `groups`)"
            )
        return self.input_mean.reshape(groups, inputs)

    def to_bytes(self) -> bytes:
        """The file that `save` writes: the mean and its provenance."""
        metadata = {**self.provenance, "format": FORMAT, "kind": self.kind}
        return tensors_bytes({"input_mean": self.input_mean}, metadata)


def _checked_mean(input_mean: npt.ArrayLike) -> Float64Array:
    found = np.asarray(input_mean)
    if found.ndim != 1 or found.dtype.kind not in "iuf":
        raise MismatchError(
            f"input_mean has the shape {found.shape} and dtype {found.dtype}; "
            "expected one dimension, (channels,), of real numbers"
        )
    mean = np.array(found, dtype=np.float64)
    if not np.isfinite(mean).all():
        channel = int(np.flatnonzero(~np.isfinite(mean))[0])
        raise UsageError(f"input_mean of channel {channel} is {mean[channel]}; expected finite numbers")
    mean.flags.writeable = False
    return mean


def _checked_provenance(provenance: Mapping[str, str]) -> dict[str, str]:
    for key, value in provenance.items():
        if key in RESERVED_METADATA:
            raise UsageError(f"provenance has the key {key!r}, which the file needs itself; use another key")
        if not isinstance(key, str) or not isinstance(value, str):
            raise UsageError(f"provenance has {key!r}: {value!r}; expected strings only")
    return dict(provenance)


def _stored_mean_corrector(path: Path, input_mean: Array, provenance: dict[str, str]) -> MeanBiasCorrector:
    if input_mean.dtype != np.float64:
        raise DataError(f"{path} holds an input_mean of dtype {input_mean.dtype}; expected float64; make it again")
    try:
        return MeanBiasCorrector(input_mean, provenance)
    except UsageError as error:
        raise DataError(f"{path} is not a corrector: {error}; make it again") from error


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


def tap_sums(
    weights: Float64Array, layout: str, groups: int | None = None, strides: Sequence[int] | None = None
) -> Float64Array:
    """Sum `weights` over their spatial taps: float64[in/groups, groups, out/groups], whatever the `layout`.

    Layouts, errors and `strides` as in `MeanBiasCorrector.calculate`.
    """
    if layout not in _BY_GROUP:
        raise UsageError(f"layout {layout!r} is not known; expected one of {', '.join(_BY_GROUP)}")
    _check_axes(weights.shape, layout)
    positions = _positions_per_tap(layout, strides)
    summed: Float64Array = weights.sum(axis=_spatial_axes(layout, weights.ndim))
    return _BY_GROUP[layout](summed, groups) / positions


def _check_axes(shape: tuple[int, ...], layout: str) -> None:
    if layout == "native" and len(shape) < 3:
        raise MismatchError(
            f"weights have the shape {shape}; layout 'native' expects (*spatial, in/groups, groups, out/groups)"
        )
    if layout != "native" and len(shape) != len(layout):
        raise MismatchError(f"weights have the shape {shape}; layout {layout!r} expects {len(layout)} axes")


def _spatial_axes(layout: str, ndim: int) -> tuple[int, ...]:
    if layout == "native":
        return tuple(range(ndim - 3))
    return tuple(axis for axis, letter in enumerate(layout) if letter in "DHW")


def _positions_per_tap(layout: str, strides: Sequence[int] | None) -> int:
    """A tap reaches one in so many output positions: product(strides) in a transposed convolution, else 1."""
    if strides is None:
        return 1
    if layout not in _TRANSPOSED:
        raise UsageError(
            f"strides are {strides} and the layout is {layout!r}; they count in {', '.join(_TRANSPOSED)} only, "
            "leave them out"
        )
    spatial = len(layout) - 2
    if len(strides) != spatial or any(not _is_positive_integer(stride) for stride in strides):
        raise MismatchError(f"strides are {tuple(strides)}; expected {spatial} positive integers, one a spatial axis")
    return math.prod(int(stride) for stride in strides)


def _is_positive_integer(value: object) -> bool:
    return isinstance(value, int | np.integer) and bool(value >= 1)


def _native_by_group(channels: Float64Array, groups: int | None) -> Float64Array:
    _check_groups_found(groups, channels.shape[1])
    return channels


def _depthwise_by_group(channels: Float64Array, groups: int | None) -> Float64Array:
    """(groups, out/groups): every channel is a group of its own → (1, groups, out/groups)."""
    _check_groups_found(groups, channels.shape[0])
    return channels[np.newaxis]


def _outputs_first_by_group(channels: Float64Array, groups: int | None) -> Float64Array:
    """(out, in/groups), outputs group-major → (in/groups, groups, out/groups)."""
    return _outputs_last_by_group(channels.T, groups)


def _outputs_last_by_group(channels: Float64Array, groups: int | None) -> Float64Array:
    """(in/groups, out), outputs group-major → (in/groups, groups, out/groups)."""
    inputs, outputs = channels.shape
    count = _group_count(groups, outputs, "output")
    return channels.reshape(inputs, count, outputs // count)


def _transposed_by_group(channels: Float64Array, groups: int | None) -> Float64Array:
    """(in, out/groups), inputs group-major → (in/groups, groups, out/groups)."""
    inputs, outputs = channels.shape
    count = _group_count(groups, inputs, "input")
    return channels.reshape(count, inputs // count, outputs).transpose(1, 0, 2)


def _check_groups_found(groups: int | None, found: int) -> None:
    if groups not in (None, found):
        raise MismatchError(f"groups is {groups}, but the weights' shape says {found}; expected the same or None")


def _group_count(groups: int | None, channels: int, side: str) -> int:
    if groups is None:
        return 1
    if not _is_positive_integer(groups) or channels % groups:
        raise MismatchError(f"{channels} {side} channels do not divide into {groups} groups")
    return groups


_TRANSPOSED = ("IOW", "IOHW", "IODHW")

_BY_GROUP: Mapping[str, Callable[[Float64Array, int | None], Float64Array]] = {
    "native": _native_by_group,
    **dict.fromkeys(("OI", "OIW", "OIHW", "OIDHW"), _outputs_first_by_group),
    **dict.fromkeys(("IO", "WIO", "HWIO", "DHWIO"), _outputs_last_by_group),
    **dict.fromkeys(("WCM", "HWCM", "DHWCM"), _depthwise_by_group),
    **dict.fromkeys(_TRANSPOSED, _transposed_by_group),
}
