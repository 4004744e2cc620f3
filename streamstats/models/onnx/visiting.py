"""Running a model, and handing the rows of each batch to what counts or stores them: one batch is alive at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...progress import Progress
from ...statistics.masks import Mask
from .masking import mask_rows
from .run import ModelRun
from .samples import Array
from .targets import Target

Visit = Callable[[Target, Array, Mask | None, slice], None]


def visit_rows(run: ModelRun, targets: Sequence[Target], visit: Visit, progress: Progress) -> None:
    """Call `visit(target, block, mask, samples)` for every layer and batch that has rows of it."""
    for samples in run.batches():
        _visit_batch(run, targets, visit, samples)
        progress.advance(samples.stop - samples.start)


def _visit_batch(run: ModelRun, targets: Sequence[Target], visit: Visit, samples: slice) -> None:
    """The activations of a batch live as long as this call."""
    blocks = run.outputs(list(dict.fromkeys(target.tensor for target in targets)), samples)
    masks = {name: mask_rows(run, name, samples) for name in {target.mask for target in targets}}
    found = [target.rows(blocks[target.tensor], samples, masks[target.mask]) for target in targets]
    for target, (block, mask) in zip(targets, found, strict=True):
        if len(block):
            visit(target, block, mask, samples)
