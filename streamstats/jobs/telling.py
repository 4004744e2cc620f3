"""Telling the user what a job is about to count, how, and what is allowed but often a mistake."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice

import numpy as np
from rich.filesize import decimal

from ..calibration.layer import Layer, arrays_of
from ..calibration.selection import Selected
from ..errors import counted, listed
from ..outputs.changes import Change
from ..outputs.copies import copies_among
from ..outputs.layer_statistics import LayerStatistics
from ..progress import OF_ALL_LAYERS, Progress, Stage
from .blas import multiplications_per_second
from .plan import Plan
from .sizes import in_mib
from .workers import Workers

Ledgers = Mapping[str, LayerStatistics]
Tell = Callable[[Plan, Sequence[Layer], Ledgers, int, Workers, Progress], None]
"""Begins the stage that measures the rows of a plan, with this limit of memory in bytes."""
NAMED = 8
"""How many arrays get a line each."""


def tell_selected(selected: Selected, progress: Progress) -> None:
    """Report which arrays are skipped, and what is allowed but often a mistake."""
    layers = selected.layers
    for message in (*_of_arrays(selected), *_of_sources(layers), *_of_codes(layers), *_of_rows(layers)):
        progress.say(message)
    for message in (*unused_masks(selected), *_of_padding(layers)):
        progress.say(f"note: {message}")


def _of_arrays(selected: Selected) -> Iterator[str]:
    """Which arrays are not counted, and what attributes say of those that are."""
    if selected.left_out:
        yield f"skipped, because no entry of `layers` matches: {listed(selected.left_out)}"
    for name, reason in [*selected.unreadable.items()][:NAMED]:
        yield f"warning: array {name} is not counted, because it cannot be read: {reason}"
    if len(selected.unreadable) > NAMED:
        yield f"warning: {len(selected.unreadable):,} arrays cannot be read: {listed(selected.unreadable)}"
    if selected.unfit:
        first, reason = next(iter(selected.unfit.items()))
        yield f"note: not counted, because they cannot be layers: {listed(selected.unfit)} ({first}: {reason})"
    if selected.note:
        yield f"note: {selected.note}"
    if selected.coordinates:
        yield f"note: not counted, because they are coordinates: {listed(selected.coordinates)}"
    for said, names in _meanings(selected.layers).items():
        yield f"note: {said}: {listed(dict.fromkeys(names))}"


def _of_sources(layers: Sequence[Layer]) -> Iterator[str]:
    """Which layers some of the stores lack."""
    stores = {name: {each.address.store for each in arrays} for name, arrays in arrays_of(layers).items()}
    for store in dict.fromkeys(layer.address.store for layer in layers):
        lacking = [name for name, found in stores.items() if store not in found]
        if lacking:
            verb = "is" if len(lacking) == 1 else "are"
            yield f"note: {listed(lacking)} {verb} not in {store}; the rows of the other sources are counted"


def _of_codes(layers: Sequence[Layer]) -> Iterator[str]:
    """Which integers have no quantisation, or a zero point that none of them is."""
    codes = [layer.counted_as for layer in layers if layer.dtype.kind in "iu" and layer.quantization is None]
    if codes:
        yield f"note: integers without `quantization` are averaged as codes: {listed(dict.fromkeys(codes))}"
    outside = [(layer.counted_as, found) for layer in layers if (found := _zero_point_outside(layer)) is not None]
    if outside:
        first, point = outside[0]
        yield (
            f"note: the zero point {point} of {first} is not one of its codes, so none of them stands for 0; check "
            f"`zero_point` of: {listed(dict.fromkeys(name for name, _ in outside))}"
        )


def _of_rows(layers: Sequence[Layer]) -> Iterator[str]:
    """Whether layers have different numbers of rows."""
    # a tensor that no layer reads and that is the same for all samples has one row; positions have numbers of their own
    every = [(arrays[0], sum(array.rows for array in arrays)) for arrays in arrays_of(layers).values()]
    rows = {number for layer, number in every if (layer.read_by.names or number != 1) and not layer.rows_are}
    if len(rows) > 1:
        yield (
            f"note: the layers have different numbers of rows, {min(rows):,} to {max(rows):,}; check that no "
            "recording was interrupted"
        )


def unused_masks(selected: Selected) -> Iterator[str]:
    """Which arrays look like masks of layers that have none, all of whose positions count."""
    for array, layers in selected.maybe_masks.items():
        yield (
            f"{array} looks like a mask of {listed(layers)}, but the job does not use it: set `mask: {array}` for "
            "these layers (in Python, a `LayerRule`), or `mask: false` to count every position"
        )


def _of_padding(layers: Sequence[Layer]) -> Iterator[str]:
    """Which masks may be true where there is padding, as their names say."""
    masked: dict[str, list[str]] = {}
    for layer in layers:
        if layer.mask is not None and "pad" in layer.mask.name.rpartition("/")[2].lower():
            masked.setdefault(layer.mask.name, []).append(layer.name)
    for mask, those in masked.items():
        yield (
            f"the mask {mask} of {listed(those)} is 1 or true for positions that count; if it is true for padding, as "
            "torch's `key_padding_mask`, store its inverse"
        )


def tell_masked(ledgers: Ledgers, progress: Progress) -> None:
    """Report layers of which nothing is counted, because their masks leave every position out."""
    empty = [name for name, each in ledgers.items() if each.masked and 0 < each.masked[1] == each.masked[0]]
    if empty:
        progress.say(f"warning: the mask of {listed(empty)} is 0 everywhere, so no position counts; check the mask")


def _meanings(layers: Sequence[Layer]) -> dict[str, list[str]]:
    """What attributes say of values → the names of the layers of which they say it."""
    found: dict[str, list[str]] = {}
    for layer in layers:
        for said in () if layer.attributes is None else layer.attributes.in_words(layer.quantization):
            found.setdefault(said, []).append(layer.name)
    return found


def _zero_point_outside(layer: Layer) -> int | None:
    """The first zero point that is not a code of `layer`: rare, but not impossible, since a range may exclude zero."""
    if layer.quantization is None or layer.dtype.kind not in "iu":
        return None
    codes, points = np.iinfo(layer.dtype), np.atleast_1d(layer.quantization.zero_point)
    outside = points[(points < codes.min) | (points > codes.max)]
    return int(outside[0]) if outside.size else None


def tell_growth(
    plan: Plan, layers: Sequence[Layer], ledgers: Ledgers, _memory: int, workers: Workers, progress: Progress
) -> None:
    """Begin a stage like the one before it, whose plan was told: rows that were appended since."""
    arrays = arrays_of(layers)
    before = sum(ledgers[name].rows for name in arrays)
    unit = f"{OF_ALL_LAYERS} in addition to {before:,}"
    progress.begin(Stage("", plan.rows, plan.bytes, before, len(arrays), workers.description(), unit=unit))


def tell_plan(
    plan: Plan, layers: Sequence[Layer], ledgers: Ledgers, memory: int, workers: Workers, progress: Progress
) -> None:
    """Begin the stage, with the plan and its memory as its description."""
    arrays = arrays_of(layers)
    before = sum(ledgers[name].rows for name in arrays)
    beside = f" in addition to {before:,} already counted" if before else ""
    sizes = f"{counted(plan.rows, 'row')} of {counted(len(arrays), 'layer')}{beside}, {decimal(plan.bytes)}"
    tasks = f"{counted(len(plan.tasks), 'task')} on {workers.description()}"
    peak = f"at most {in_mib(plan.peak_bytes)} of {in_mib(memory)} of memory"
    what = f"plan: {sizes} decoded, in {tasks}; blocks of at most {in_mib(plan.block_bytes)}, {peak}"
    if plan.operations:
        progress.say(_of_cost(plan, workers))
    progress.begin(Stage(what, plan.rows, plan.bytes, before, len(arrays), workers.description(), unit=OF_ALL_LAYERS))


def _of_cost(plan: Plan, workers: Workers) -> str:
    """What statistics cost that multiply, from a quick measurement."""
    threads = max(1, workers.threads())
    seconds = plan.operations / (multiplications_per_second() * threads)
    took = "less than a second" if seconds < 1 else f"about {seconds:,.0f} s"
    return (
        f"note: second moments take {plan.operations:.1e} multiplications: {took} on {counted(threads, 'thread')}, if "
        "each is as fast as one of this process is now"
    )


def tell_copies(copies: Sequence[Change], progress: Progress) -> None:
    """Report which chunks are taken for copies of those that were counted, and why."""
    for proved, why in ((True, "checksums"), (False, "samples of their bytes")):
        those = [each for each in copies if each.is_copy is proved]
        if those:
            layers = listed(dict.fromkeys(each.array.name for each in those))
            progress.say(
                f"note: {counted(len(those), 'chunk')} of {layers} written again since the last run: taken for copies, "
                f"because sizes and {why} are the same"
            )


def tell_changed(changed: Sequence[tuple[str, str]], progress: Progress) -> None:
    """Report (layer, what its job says of it otherwise than before): the same counts then have other results."""
    found: dict[str, list[str]] = {}
    for layer, said in changed:
        found.setdefault(said, []).append(layer)
    for said, names in islice(found.items(), NAMED):
        progress.say(f"note: {said}, so results are computed anew from the same counts: {listed(names)}")
    if len(found) > NAMED:
        progress.say(f"note: and {counted(len(found) - NAMED, 'more such change')}")


def tell_left_out(ledgers: Ledgers, progress: Progress) -> None:
    """Report layers of which NaN or infinities were left out before, although the job now refuses them."""
    names = [name for name, found in ledgers.items() if found.attributes is None and found.sums.nonfinite.any()]
    if names:
        progress.say(
            "note: `nonfinite` is error, but an earlier run with `nonfinite: skip` left out values that are NaN or "
            f"infinite; what it counted stays; to refuse these values, count again with --restart: {listed(names)}"
        )


def tell_twins(ledgers: Ledgers, progress: Progress) -> None:
    """Report sources or parts that hold what another one holds: as copies, their rows would count twice."""
    for first, second, same, chunks in islice(copies_among(ledgers), NAMED):
        progress.say(
            f"warning: {same:,} of {counted(chunks, 'chunk')} of {second} have the size and content of those of "
            f"{str(first) or 'the store, outside its parts'}; if one is a copy, its rows count twice: leave it out, "
            "and count again with --restart"
        )
