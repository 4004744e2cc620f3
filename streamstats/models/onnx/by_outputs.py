"""Correcting from mean outputs: `E[y] − E[ŷ]` is added to the bias of each layer, whatever its weights have become.

Both models see the same samples. The means are exact sums, rounded once; ŷ is measured before it is rounded to codes,
in the network in which all earlier layers are corrected. So each layer ends with the float model's mean outputs, up to
the rounding of its bias. Terms are found stage by stage and saved, as those of an iterative correction are.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...errors import NonFiniteError, UsageError
from ...progress import QUIET, Progress, Stage
from ...statistics.masks import Mask
from ...statistics.mean import ChannelMean
from ..linear import LayerCorrection
from ..positions import counted_values
from .biases import add_to_biases
from .comparing import Places
from .edit import GraphEdit
from .files import write_models
from .graph import copied
from .iterative import by_depth, update_digest
from .layers import LeftOut
from .masking import check_mask, mask_rows
from .pairs import Pair
from .plain import only, plainly
from .quantized import stored_layers
from .run import ModelRun, open_session
from .samples import Axes, load_samples, samples_digest
from .sites import Site, distance, factors, find_sites, nearest
from .stages import save_stage, saved_stage, work_folder

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[Any]
Float64Array = npt.NDArray[np.float64]
FORM = "outputs"
FARTHEST = 1.0
"""How large the variance of the difference may be, as a share of the variance of the float outputs: that of unrelated
outputs is twice as large."""
UNLIKE = (
    "its outputs are too far from those of {} in the float model: in the first batch, the variance of the difference "
    "is {:.3g} times that of the outputs (expected less than 1; unrelated outputs have 2); round it less coarsely "
    "(more bits, or a step per channel), or, if this is another layer, correct by weights (--correctors)"
)
SCALED = (
    "its outputs are nearly those of {} in the float model times {}; if the quantised model undoes this scale behind "
    "it, as after equalisation, mean outputs would take it for a shift: give the float model with this scale in it, or "
    "correct by weights (--correctors), which finds scales"
)
NO_SIZE = "no tensor of the float model has its channels and the size of its outputs"
NO_SITE = (
    "no layer of the quantised model can be matched with one of the float model, by name or by order; expected models "
    "of the same network"
)


@dataclass(frozen=True)
class Outputs:
    """How to correct from mean outputs.

    Both models run on `samples` (see `load_samples`, also for `batch_axes`), `batch_size` at a time. `work` is a folder
    for intermediate results; the caller of `OutputCorrection.terms` removes it. `mask` is an input of the model;
    positions where it is 0 do not count.
    """

    samples: str | Path
    work: str | Path
    batch_size: int = 16
    mask: str | None = None
    batch_axes: Axes | None = None


@dataclass(frozen=True, eq=False)
class Matched:
    """A site, and the tensor of the float model that its outputs stand for, `wanted`.

    `tail` is the shape of a sample of that tensor in the first batch, None if it has no samples on axis 0: then
    `places` tells where they are, if it is known. Optimisers merge axes of rows.
    """

    site: Site
    wanted: str
    places: Places
    tail: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        """The layer's name in the float model."""
        return self.site.name

    def values(self, found: Array, samples: int, mask: Mask | None) -> Array:
        """The values of `found`, the outputs for so many `samples`, that count: one row per position, channels last."""
        if self.tail is None:
            found = self.places.placed(self.wanted, found, samples)
        elif found.shape[:1] != (samples,) or found.ndim != 1 + len(self.tail):
            found = found.reshape(samples, *self._extents(found.size // max(samples, 1)))
        counted = counted_values(found, self.site.axis, mask)
        return np.ascontiguousarray(np.moveaxis(counted, self.site.axis, -1)).reshape(-1, found.shape[self.site.axis])

    def _extents(self, size: int) -> tuple[int, ...]:
        """The shape of a sample of `size` values: `tail`, or rows and channels where samples differ in shape."""
        assert self.tail is not None
        return self.tail if math.prod(self.tail) == size or self.site.axis != -1 else (-1, self.tail[-1])


class OutputCorrection:
    """The correction of the `quantized` model from mean outputs, with the layers that can be matched in `matched`.

    `pairs` are those of known operators, `left_out` the layers that cannot be matched. Raises `UsageError` if none can
    be, and `UsageError`, `MismatchError` for samples that do not fit.
    """

    def __init__(
        self, original: onnx.ModelProto, quantized: onnx.ModelProto, how: Outputs, progress: Progress = QUIET
    ) -> None:
        self._original, self._quantized, self._how, self._progress = original, quantized, how, progress
        sites, left_out = find_sites(original, quantized)
        if not sites:
            raise UsageError(NO_SITE)
        self.matched, unlike = self._matched(sites)
        self.left_out = [*left_out, *unlike]
        self.pairs = self._pairs()

    def _pairs(self) -> list[Pair]:
        """The layers of known operators, for judging them and for adding to their biases."""
        layers = [each.site.quantized for each in self.matched if each.site.quantized is not None]
        stored = stored_layers(self._quantized, layers)
        return [
            Pair(layer, each.site.original, layer.weight, each.wanted, stored[layer.node.output[0]].step)
            for each in self.matched
            if (layer := each.site.quantized) is not None
        ]

    def terms(self) -> list[LayerCorrection]:
        """The term of each of `matched`, not added yet. Raises `UsageError`, `NonFiniteError`, `OutputError`."""
        by_stage = by_depth(self._quantized, {each.site.product: each for each in self.matched})
        model, found, work = copied(self._quantized), dict[str, LayerCorrection](), Path(self._how.work)
        with work_folder(work, self._plan(by_stage)):
            wanted: Mapping[str, Float64Array] | None = None
            for number, stage in enumerate(by_stage):
                done = saved_stage(work, number, [each.name for each in stage])
                if done is None:
                    wanted = self._float_means() if wanted is None else wanted
                    what = f"stage {number + 1} of {len(by_stage)}: {', '.join(each.name for each in stage[:3])}"
                    done = self._stage(model, stage, wanted, what)
                    save_stage(work, number, done)
                self.add(model, done)
                found |= {each.layer: each for each in done}
        return [found[each.name] for each in self.matched]

    def add(self, model: onnx.ModelProto, planned: Sequence[LayerCorrection]) -> list[LayerCorrection]:
        """Add the `planned` terms, of some of `matched`, to `model`, a copy of the quantised one; what was done."""
        by_name = {each.layer: each for each in planned}
        pairs = [pair for pair in self.pairs if pair.name in by_name]
        done = {each.layer: each for each in add_to_biases(model, pairs, [by_name[pair.name] for pair in pairs])}
        unknown = [each for each in self.matched if each.name in by_name and each.site.quantized is None]
        done |= _added_behind(model, unknown, by_name)
        return [done[each.layer] for each in planned]

    def _matched(self, sites: Sequence[Site]) -> tuple[list[Matched], list[LeftOut]]:
        """Which tensors of the float model the outputs stand for, told from the first batch of samples."""
        plain = plainly(self._quantized)
        products = {site.name: plain.outputs.get(site.product, site.product) for site in sites}
        mine = self._run(only(plain.model, products.values()))
        theirs = self._run(only(copied(self._original), [name for site in sites for name in site.candidates]))
        check_mask(theirs, self._how.mask)
        found, wanted = (_first(each) for each in (mine, theirs))
        rows = next(theirs.batches())
        samples = rows.stop - rows.start
        matrices = [name for site in sites if site.axis == -1 for name in site.candidates]
        places = Places.of(theirs, [], matrices, self._how.mask)
        matched, left_out = [], []
        for site in sites:
            name = nearest(site, found[products[site.name]], {each: wanted[each] for each in site.candidates})
            if name is None:
                left_out.append(LeftOut(site.name, site.original.op, NO_SIZE))
            else:
                shape = wanted[name].shape
                matched.append(Matched(site, name, places, shape[1:] if shape[:1] == (samples,) else None))
        return matched, left_out

    def _float_means(self) -> dict[str, Float64Array]:
        """Layer → the mean of its outputs in the float model, float64[outputs]."""
        run = self._run(only(copied(self._original), [each.wanted for each in self.matched]))
        self._progress.begin(Stage("measuring the outputs of the float model", run.samples, layers=len(self.matched)))
        return self._means(run, self.matched, {each.name: each.wanted for each in self.matched})

    def _stage(
        self, model: onnx.ModelProto, stage: Sequence[Matched], wanted: Mapping[str, Float64Array], what: str
    ) -> list[LayerCorrection]:
        """The terms of a `stage`, from its outputs in the `model` corrected so far."""
        plain = plainly(model)
        tensors = {each.name: plain.outputs.get(each.site.product, each.site.product) for each in stage}
        run = self._run(only(plain.model, tensors.values()))
        self._progress.begin(Stage(what, run.samples, layers=len(stage)))
        found = self._means(run, stage, tensors)  # first: it tells values that are not finite
        unlike = self._unlike(run, stage, tensors)
        return [
            LayerCorrection(each.name, reason=unlike[each.name])
            if each.name in unlike
            else LayerCorrection(each.name, term=wanted[each.name] - found[each.name])
            for each in stage
        ]

    def _unlike(self, run: ModelRun, stage: Sequence[Matched], tensors: Mapping[str, str]) -> dict[str, str]:
        """The layers whose outputs are not those of the float model, as far as the first batch tells → why."""
        theirs = self._run(only(copied(self._original), [each.wanted for each in stage]))
        mask = mask_rows(run, self._how.mask, next(run.batches()))
        rows, mine, wanted, unlike = next(run.batches()), _first(run), _first(theirs), {}
        samples = rows.stop - rows.start
        for each in stage:
            found = each.values(mine[tensors[each.name]], samples, mask)
            floats = each.values(wanted[each.wanted], samples, mask)
            apart = distance(found, floats, -1)
            if not apart < FARTHEST:
                unlike[each.name] = UNLIKE.format(each.wanted, apart)
            elif (times := factors(found, floats, -1)) is not None and each.site.original.weight.size > times.size:
                unlike[each.name] = SCALED.format(each.wanted, f"{times.min():.2g} to {times.max():.2g}")
        return unlike

    def _means(self, run: ModelRun, layers: Sequence[Matched], tensors: Mapping[str, str]) -> dict[str, Float64Array]:
        """Layer → the exact mean of its tensor over all samples, per channel, rounded once. Raises `NonFiniteError`."""
        found: dict[str, ChannelMean] = {}
        for rows in run.batches():
            mask, samples = mask_rows(run, self._how.mask, rows), rows.stop - rows.start
            outputs = run.outputs(list(dict.fromkeys(tensors.values())), rows)
            for each in layers:
                part = _measured(each.name, each.values(outputs[tensors[each.name]], samples, mask))
                found[each.name] = found[each.name].merge(part) if each.name in found else part
            self._progress.advance(samples)
        return {layer: each.mean() for layer, each in found.items()}

    def _run(self, model: onnx.ModelProto) -> ModelRun:
        """`model` in a session, computed node by node, with the samples."""
        samples = self._how.samples
        with tempfile.TemporaryDirectory(prefix="streamstats-") as folder:
            path = Path(folder) / "model.onnx"
            write_models([(model, path)])
            session = open_session(str(path), path.parent, optimized=False)
        given = load_samples(samples, session, self._how.batch_axes)
        return ModelRun.prepare(session, given, self._how.batch_size, str(samples))

    def _plan(self, by_stage: Sequence[Sequence[Matched]]) -> dict[str, Any]:
        """All that determines the terms: the results for one plan are not used for another."""
        digest = hashlib.sha256()
        for model in (self._original, self._quantized):
            update_digest(digest, model)
        return {
            "models": digest.hexdigest(),
            "samples": samples_digest(self._how.samples),
            "batch_size": self._how.batch_size,
            "axes": dict(self._how.batch_axes or {}),
            "form": FORM,
            "mask": self._how.mask,
            "stages": [[each.name for each in stage] for stage in by_stage],
        }


def _first(run: ModelRun) -> dict[str, Array]:
    """The outputs of the model for the first batch."""
    names = [output.name for output in run.session.get_outputs()]
    return run.outputs(names, next(run.batches()))


def _measured(layer: str, rows: Array) -> ChannelMean:
    """The sums of a batch. Raises `NonFiniteError`."""
    found = ChannelMean.measure(rows, 1)
    if found.nonfinite.any():
        raise NonFiniteError(
            f"layer {layer}: its outputs hold NaN or infinities, which have no mean; repair the samples"
        )
    return found


def _added_behind(
    model: onnx.ModelProto, matched: Sequence[Matched], planned: Mapping[str, LayerCorrection]
) -> dict[str, LayerCorrection]:
    """Add the terms behind the operators that are not known."""
    edit, done = GraphEdit(model), {}
    for each in matched:
        outcome = replace(
            planned[each.name], op=each.site.original.op, quantized=True, outputs=each.site.original.outputs
        )
        if outcome.term is not None:
            node, original = edit.node(each.site.product), each.site.original
            shape = (-1, *([1] * (original.weight.ndim - 2)))
            edit.add_behind(node, outcome.term.reshape(shape).astype(original.weight.dtype), f"{each.name}.bias")
            outcome = replace(outcome, corrected=True, change=f"Add inserted after its {node.op_type}")
        done[each.name] = outcome
    edit.finish()
    return done
