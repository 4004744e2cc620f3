"""Iterative correction of torch models: the input of a layer is that in the quantised model, corrected before it.

Layers are corrected in the order in which they are called, each by a pass over the recorded batches through a copy of
the model. The means are exact.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...calibration.masking import USUAL
from ...correction import BiasCorrector, TapBiasCorrector
from ...errors import UsageError, one_of
from ...jobs.meter import Meter
from ...layouts import Kernel
from ...outputs.results import open_results
from ...progress import Progress, Stage
from ...statistics.taps import TapSums
from ..linear import NULL_CORRECTOR, LayerCorrection, correction_term, of_one_kind, planned_correction
from .batches import Batches, called
from .layers import MATRICES, kernel_of
from .library import library, to_numpy
from .masks import BatchMask, MaskOf
from .places import Place
from .planned import Planned, Rounding, Twin
from .sessions import Session

FORMS = ("full", "change")
NOT_CALLED = "no call reached it in the quantised model"


@dataclass(frozen=True, eq=False)
class Iterative:
    """How to correct layer by layer.

    `batches` are those that the float model was recorded from, the same in every pass; `call` runs a model on one, as
    that of `HeldOut`. With x̂ the input of a layer in the quantised model corrected so far, the `form` "change" adds
    (W − Ŵ)·E[x̂], and "full" adds W·E[x] − Ŵ·E[x̂], which also undoes the shift that earlier layers left. `mask` and
    `positions_as_rows` are those that the float model was recorded with. Raises `UsageError` for another form.
    """

    batches: Iterable[Any]
    call: Callable[[Any, Any], Any] = called
    form: str = "full"
    mask: MaskOf = USUAL
    positions_as_rows: bool = False

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise UsageError(f"the form is {self.form!r}; {one_of(self.form, FORMS)}")


def iterative_corrections(own: Twin, how: Iterative, progress: Progress) -> list[LayerCorrection]:
    """What is planned for each layer of `own`, which stays as it is.

    Layers whose inputs cannot be heard, such as projections of attention, keep the term of one pass. Raises
    `UsageError` for batches that were not recorded, or that differ from pass to pass.
    """
    return _Walk(own.copied(), how, Batches.of(how.batches, "recorded"), progress).corrections()


@dataclass(frozen=True, eq=False)
class _Step:
    """A layer that is corrected from its inputs in the quantised model."""

    planned: Planned
    place: Place
    rounding: Rounding

    @property
    def name(self) -> str:
        return self.planned.name


@dataclass(frozen=True, eq=False)
class _Walk:
    """An iterative correction: `twin` is the quantised model, corrected up to the layer at hand."""

    twin: Twin
    how: Iterative
    batches: Batches
    progress: Progress

    def corrections(self) -> list[LayerCorrection]:
        steps = {each.name: each for each in map(_step, self.twin.plan) if each is not None}
        found = {each.name: each.correction for each in self.twin.plan}
        for each in (each for each in self.twin.plan if each.name not in steps):
            each.added(each.correction.term)
        found |= {name: replace(found[name], term=None, reason=NOT_CALLED) for name in steps}
        order = self._order([*steps.values()])
        for number, step in enumerate(order):
            what = f"layer {number + 1} of {len(order)}: {step.name}"
            self.progress.begin(Stage(what, self.batches.samples, layers=1))
            found[step.name] = self._correction(step, first=number == 0)
            step.planned.added(found[step.name].term)
        return [found[each.name] for each in self.twin.plan]

    def _order(self, steps: Sequence[_Step]) -> list[_Step]:
        """The `steps` whose layers are called, in the order of their first calls."""
        seen: dict[str, _Step] = {}
        ends = [step.place.listen(_noting(seen, step), inputs=True) for step in steps]
        self.progress.begin(Stage("finding the order of the layers", self.batches.samples, layers=len(steps)))
        try:
            self._run()
        finally:
            for end in ends:
                end()
        return [*seen.values()]

    def _run(self) -> None:
        for _, batch, samples in self.batches:
            with library().no_grad():
                self.how.call(self.twin.model, batch)
            self.progress.advance(samples)

    def _correction(self, step: _Step, *, first: bool) -> LayerCorrection:
        rounding, planned = step.rounding, step.planned.correction
        seen = self._seen(step)
        if first:
            _check_same_samples(step.name, rounding.original, seen)
        linear, stored = rounding.linear, rounding.stored
        if self.how.form == "change":
            return replace(planned_correction(linear, seen, linear.weight, stored), op=planned.op)
        nothing = np.zeros_like(stored)
        wanted = correction_term(linear, rounding.original, linear.weight, nothing)
        given = correction_term(linear, of_one_kind(rounding.original, seen), stored, nothing)
        if wanted is None or given is None:
            return replace(planned, term=None, reason=NULL_CORRECTOR)
        return replace(planned, term=wanted - given)

    def _seen(self, step: _Step) -> BiasCorrector:
        """The corrector of the inputs of a layer in the model corrected so far, of the kind of the float layer's."""
        meter = Meter([TapSums.name] if isinstance(step.rounding.original, TapBiasCorrector) else [])
        with self._listening(step, meter) as session:
            self._run()
        if failure := session.failures.get(step.name):
            raise failure
        with tempfile.TemporaryDirectory(prefix="streamstats-") as folder:
            meter.save(Path(folder) / "out")
            path = open_results(Path(folder) / "out").corrector_path(step.name)
            if path is None:
                raise UsageError(f"layer {step.name}: its input in the quantised model has no mean")
            return BiasCorrector.load(path)

    @contextmanager
    def _listening(self, step: _Step, meter: Meter) -> Iterator[Session]:
        masks = BatchMask(self.twin.model, self.how.mask, to_numpy)
        session = Session(meter, masks, None, self.how.positions_as_rows)
        layer, matrix = step.rounding.layer, step.rounding.layer.layout in MATRICES
        kernel = Kernel() if matrix else kernel_of(layer.module)
        axes, axis = (2, -1) if matrix else (len(layer.layout), 1)
        end = step.place.listen(lambda x: session.append(step.name, x, axes, axis, kernel), inputs=True)
        hook = self.twin.model.register_forward_pre_hook(masks, with_kwargs=True)
        try:
            yield session
        finally:
            hook.remove()
            end()


def _step(planned: Planned) -> _Step | None:
    """The step of a layer that is to be corrected and whose inputs can be heard in the quantised model."""
    place, rounding = planned.place, planned.rounding
    if place is None or rounding is None or planned.correction.term is None:
        return None
    return _Step(planned, place, rounding) if place.hears and not rounding.layer.is_projection else None


def _noting(seen: dict[str, _Step], step: _Step) -> Callable[[Any], None]:
    def note(_: Any) -> None:
        seen.setdefault(step.name, step)

    return note


def _check_same_samples(layer: str, original: BiasCorrector, seen: BiasCorrector) -> None:
    """Raise `UsageError` unless as many values of the first layer were counted in both models."""
    counts = original.provenance.get("count"), seen.provenance.get("count")
    if all(each and each.isdigit() for each in counts) and counts[0] != counts[1]:
        raise UsageError(
            f"the batches are not those that were recorded: they give {counts[1]} values per channel of layer {layer}, "
            f"but {counts[0]} were counted; give the batches that the correctors were made from"
        )
