"""What a store that is appended to holds already of the arrays to record, and whether the samples fit.

Layers that have an array in the store stay with it: a store of an older version has an array per layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ...calibration.layer import Layer
from ...calibration.recorded_model import short_fingerprint
from ...calibration.recorder import stored_layer, stored_readers
from ...errors import MismatchError, UsageError, contrasted, listed
from ...progress import Progress
from ..fingerprints import check_names
from .layers import OnnxLayer
from .targets import OPTION, POSITIONS, SAMPLES, Target
from .wanted import Wanted


def in_store(
    targets: Sequence[Target],
    store: str | Path,
    wanted: Wanted,
    *,
    append: bool,
    storage: str,
    part: str = "",
) -> list[Target]:
    """`targets` with the arrays that `store`, or its `part`, has already; layers that have one there stay with it.

    Raises `UsageError` for a layer in the store, unless `append`; `MismatchError` for one that does not fit, and if the
    store has layers of the model under other names.
    """
    known = stored_readers(store, part)
    _check_names(store, part, known, wanted)
    return [
        _with_stored(each, stored_layer(store, each.name, part), wanted, append=append, storage=storage)
        for target in targets
        for each in _by_array(target, known)
    ]


def tell_unmatched(targets: Sequence[Target], store: str | Path, part: str, progress: Progress) -> None:
    """Warn if samples are to be appended to `store`, or its `part`, and it has other layers only."""
    known = stored_readers(store, part)
    if known and not any(target.stored for target in targets):
        progress.say(
            f"warning: {store} holds none of these layers, only {listed(known)}; the layers of this model are added "
            "to them"
        )


def _check_names(store: str | Path, part: str, known: Mapping[str, str], wanted: Wanted) -> None:
    """Raise `MismatchError` if layers of the model are `known` to the store under other names."""
    weights: dict[str, list[str]] = {}
    for array in dict.fromkeys(known.values()):
        stored = stored_layer(store, array, part)
        for layer, weight in () if stored is None else stored.weights:
            weights.setdefault(layer, []).append(weight)
    check_names(store, weights, wanted.fingerprints, wanted.path)


def _by_array(target: Target, known: Mapping[str, str]) -> list[Target]:
    """`target`, in parts if the store has several arrays of its layers; `known` names the array of each layer."""
    groups: dict[str | None, list[OnnxLayer]] = {}
    for layer in target.layers:
        groups.setdefault(known.get(layer.name), []).append(layer)
    return [
        replace(target, name=layers[0].name if array is None else array, layers=tuple(layers))
        for array, layers in groups.items()
    ] or [target]


def _with_stored(target: Target, stored: Layer | None, wanted: Wanted, *, append: bool, storage: str) -> Target:
    if stored is None:
        return target
    if not append:
        raise UsageError(
            f"{stored.store} already holds {stored.rows} samples of layer {target.name}; record into another store, or "
            "append to this one with --append"
        )
    _check_form(target, stored, storage)
    _check_mask(target, stored)
    _check_readers(target, stored, wanted.inputs)
    _check_model(stored, wanted)
    return replace(target, stored=stored)


def _check_form(target: Target, stored: Layer, storage: str) -> None:
    dtype = "int8" if storage == "int8" else target.dtype.name
    expected = (target.rows_are, target.sample_shape, dtype, target.channel_axis)
    found = (stored.rows_are or SAMPLES, stored.shape[1:], stored.dtype.name, stored.channel_axis)
    if found != expected or (stored.quantization is None) != (storage == "float"):
        raise MismatchError(
            f"layer {target.name}: {stored.store} holds (rows, their shape, dtype, channel axis) {found}, but the "
            f"samples to append are {expected}; record into another store{_if_positions(target, stored)}"
        )


def _if_positions(target: Target, stored: Layer) -> str:
    """What to do if the store holds positions, or could."""
    if target.rows_are == POSITIONS:
        return f", or all of them with {OPTION}"
    return f", or append every position as a row, with {OPTION}" if stored.rows_are == POSITIONS else ""


def _check_mask(target: Target, stored: Layer) -> None:
    """Raise `MismatchError` unless both have a mask, or neither has."""
    if stored.mask is not None and target.mask is None:
        raise MismatchError(
            f"layer {target.name}: {stored.store} holds it with a mask, {stored.mask.name}, but the samples to append "
            "have none; name the model's input that is their mask, as in `--mask attention_mask`, or record into "
            "another store"
        )
    if stored.mask is None and target.mask is not None:
        raise MismatchError(
            f"layer {target.name}: {stored.store} holds it without a mask, but the samples to append have one, "
            f"{target.mask}; leave out --mask, or record into another store"
        )


def _check_readers(target: Target, stored: Layer, inputs: Mapping[str, str]) -> None:
    """Raise `MismatchError` unless all layers that read `stored` read the target's tensor, with the same kernels."""
    kernels = target.kernels
    for reader in stored.read_by.each if target.layers else ():
        if inputs.get(reader.layer) != target.tensor:
            raise MismatchError(
                f"layer {target.name}: in {stored.store} it shares its input with layer {reader.layer}, but in the "
                "model it does not; record into another store"
            )
        kernel = kernels.get(reader.layer)
        if reader.kernel is not None and kernel is not None and reader.kernel != kernel:
            before, now = contrasted(reader.kernel.to_metadata(), kernel.to_metadata())
            raise MismatchError(
                f"layer {reader.layer}: {stored.store} was recorded with the kernel {before}, but the model's is "
                f"{now}; record into another store"
            )


def _check_model(stored: Layer, wanted: Wanted) -> None:
    """Raise `MismatchError` if `stored` was recorded from a model with other weights, as far as that is known."""
    known, given = stored.model, wanted.fingerprints.model
    if known and given and known != given:
        raise MismatchError(
            f"{wanted.path} has other weights than the model recorded in {stored.store} ({short_fingerprint(given)}, "
            f"{short_fingerprint(known)}); give that model, or record into another store"
        )
