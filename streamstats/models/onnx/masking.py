"""Masks of ONNX models: an input of the model says which positions of its samples count.

It is the mask of every tensor that has its positions: a mask `[N, T]` is that of tensors `[N, T, C]`. Other tensors,
such as one vector for each sample, count whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ...calibration.masking import USUAL, mask_values
from ...errors import UsageError, listed
from ...progress import Progress
from ...statistics.masks import Mask
from ..positions import fits
from .run import ModelRun
from .targets import PARTS, SAMPLES, Target


def check_mask(run: ModelRun, name: str | None) -> None:
    """Raise `UsageError` unless `name`, if it is given, is an input of the model with an axis besides the samples'."""
    if name is None:
        return
    if name not in run.inputs:
        raise UsageError(f"the mask is {name}, but the model's inputs are {', '.join(run.inputs)}; name one of these")
    if run.given.axes[name] is None or not _mask_shape(run, name):
        raise UsageError(
            f"the mask {name} has the shape {_mask_shape(run, name)}; expected samples, and their positions"
        )


def _mask_shape(run: ModelRun, name: str) -> tuple[int, ...]:
    """The shape of the mask of the first sample."""
    return run.given.shape(name, run.first)


def masked_targets(
    run: ModelRun, targets: Sequence[Target], name: str | None, *, any_fits: bool = True
) -> list[Target]:
    """`targets`, those that have the positions of the mask with it.

    Raises `UsageError` if none has although `any_fits` promises one, and as `check_mask`.
    """
    check_mask(run, name)
    if name is None:
        return [*targets]
    shape = _mask_shape(run, name)
    fitting = [_has_positions(target, shape) for target in targets]
    if any_fits and not any(fitting):
        raise UsageError(
            f"the mask {name} has the shape {shape} for each sample, and no recorded tensor has these positions; name "
            "another input, or record without a mask"
        )
    return [replace(target, mask=name if fit else None) for target, fit in zip(targets, fitting, strict=True)]


def _has_positions(target: Target, mask: Sequence[int]) -> bool:
    """Whether the mask of a sample, of the shape `mask`, is that of a sample in the target."""
    if target.constant or target.rows_are == PARTS:
        return False
    if target.rows_are == SAMPLES:
        return fits(mask, target.sample_shape, target.channel_axis - 1)
    channels = -1 if target.channels is None else target.channels
    return bool(target.sample) and fits(mask, target.sample, channels % (len(target.sample) + 1) - 1)


def tell_masks(run: ModelRun, targets: Sequence[Target], name: str | None, progress: Progress) -> None:
    """Say which targets see several positions of each sample and have no mask; or that none was named."""
    if name is None:
        if USUAL in run.inputs:
            progress.say(f"note: padding counts like data; leave it out with `--mask {USUAL}`, an input of the model")
        return
    whole = [each.name for each in targets if each.mask is None and not each.constant and each.may_be_padded]
    if whole:
        progress.say(
            f"note: the mask {name} was not applied to {listed(whole)}, which have other positions; padding in them "
            "counts like data"
        )


def mask_rows(run: ModelRun, name: str | None, rows: slice) -> Mask | None:
    """The mask of the samples `rows`; None without a mask. Raises `UsageError` for values other than 0 and 1."""
    if name is None:
        return None
    axis = run.given.axes[name]
    assert axis is not None
    return mask_values(f"the mask {name}", np.moveaxis(run.given.part(name, rows), axis, 0))
