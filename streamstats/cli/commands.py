"""What each command does: call the library, print what comes back. Heavy imports wait until a command needs them."""

from __future__ import annotations

import shutil
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from rich.filesize import decimal

from ..errors import counted
from ..rows import row_count
from .progress import RowProgress
from .tables import json_number, number, print_json, print_table, row_ranges

if TYPE_CHECKING:
    from ..calibration.layer import Layer
    from ..job import Prepared, Progress
    from ..ledger import LayerStatistics
    from ..models.onnx import LayerCorrection

INCOMPLETE = 3
"""The exit status where rows are missing."""
NAMED = 8
"""Layers that a note names."""


def say(message: str) -> None:
    """Print a message for the person on stderr."""
    print(f"streamstats: {message}", file=sys.stderr)


# run and inspect


def run(options: Namespace) -> int:
    """`streamstats run CONFIG`."""
    from .. import job
    from ..config import load_config
    from ..errors import UsageError

    config = load_config(options.config)
    if (options.until_rows is not None or options.idle is not None) and not options.follow:
        raise UsageError("--until-rows and --idle say when --follow ends; give it, too")
    if options.follow:
        say(f"following {config.source} {_until(options.until_rows, options.idle)}; Ctrl-C ends it and loses nothing")
    with _Watch(config.memory) as watch:
        outcome = job.run(
            config,
            restart=options.restart,
            accept_changes=options.accept_changes,
            follow=job.Follow(options.until_rows, options.idle) if options.follow else None,
            on_plan=watch.plan,
            on_progress=watch.advance,
        )
    _print_layers(outcome.statistics, options.json)
    for layer, statistics in outcome.statistics.items():
        filled = [rows for source in statistics.sources for rows in source.filled]
        if filled:
            say(
                f"note: layer {layer}: rows {row_ranges(filled[:NAMED])} have chunks that were taken for the fill value"
            )
    say(f"wrote {config.output}; look at it with: streamstats inspect {config.output}")
    if not outcome.unreadable:
        return 0
    lost = row_count(each.rows for each in outcome.unreadable)
    first = outcome.unreadable[0].reason
    say(f"{counted(lost, 'row')} could not be read and {'is' if lost == 1 else 'are'} not counted; the first: {first}")
    say(f"see all of them with: streamstats status {config.output}; once they are repaired, run again")
    return INCOMPLETE


def _until(rows: int | None, idle: float | None) -> str:
    ends = [f"every layer has {rows:,} rows"] if rows is not None else []
    ends += [f"nothing was added for {idle:g} s"] if idle is not None else []
    return f"until {' or '.join(ends)}" if ends else "for good"


class _Watch:
    """Says what is planned and shows how far it is; a context manager."""

    def __init__(self, memory: int) -> None:
        self._stack, self._memory = ExitStack(), memory

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def plan(self, prepared: Prepared) -> None:
        self._stack.close()  # of the plan before
        plan, selected = prepared.plan, prepared.selected
        before = sum(statistics.rows for statistics in prepared.ledger.values())
        beside = f" beside {before:,} that are counted" if before else ""
        if selected.left_out:
            say(f"left out, because no entry of `layers` matches: {_some(selected.left_out)}")
        for warning in _warnings(selected.layers):
            say(f"note: {warning}")
        sizes = f"{counted(len(selected.layers), 'layer')}, {counted(plan.rows, 'row')}{beside}, {decimal(plan.bytes)}"
        tasks = f"{counted(len(plan.tasks), 'task')} on {prepared.workers}"
        peak = f"memory at most {_mib(plan.peak_bytes)} of {_mib(self._memory)}"
        say(f"plan: {sizes} decoded, in {tasks}; blocks of at most {_mib(plan.block_bytes)}, {peak}")
        self._progress = self._stack.enter_context(RowProgress(plan.rows, plan.bytes))

    def advance(self, progress: Progress) -> None:
        if progress.message:
            self._progress.say(progress.message)
        workers = f", {counted(progress.workers, 'worker')}" if progress.workers != 1 else ""
        again = f", {counted(progress.repeats, 'task')} done again" if progress.repeats else ""
        self._progress.advance(progress.rows, progress.bytes, workers + again)


def _warnings(layers: Sequence[Layer]) -> Iterator[str]:
    """What is allowed and often a mistake."""
    codes = [layer.name for layer in layers if layer.dtype.kind in "iu" and layer.quantization is None]
    if codes:
        yield f"integers without `quantization`, so their means are of the codes: {_some(codes)}"
    rows = {layer.rows for layer in layers}
    if len(rows) > 1:
        yield f"the layers have different numbers of rows, {min(rows):,} to {max(rows):,}; was a recording stopped?"


def _some(names: Sequence[str]) -> str:
    """The first of `names` and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _mib(size: int) -> str:
    return f"{-(-size // 2**20)} MiB"


def status(options: Namespace) -> int:
    """`streamstats status OUT`."""
    from .. import upkeep

    found = upkeep.status(Path(options.output))
    if options.json:
        layers = {layer.layer: layer.document() for layer in found.layers}
        print_json({"complete": found.complete, "running": found.running, "layers": layers})
    else:
        rows = [
            [layer.layer, f"{layer.counted:,}", f"{layer.rows:,}", row_ranges(layer.excluded), span, why]
            for layer in found.layers
            for span, why in _gaps(layer.missing)
        ]
        print_table(["layer", "counted", "of rows", "excluded", "missing", "because"], rows)
    if found.running:
        say("a run is at it now")
    elif not found.complete:
        say("not complete; repair what cannot be read, if anything, and go on with: streamstats run CONFIG")
    return 0 if found.complete else INCOMPLETE


def _gaps(missing: Sequence[tuple[tuple[int, int], str]]) -> list[tuple[str, str]]:
    """Lines for the first of the rows that are missing, and for how many ranges there are beside."""
    lines = [(row_ranges([rows]), why) for rows, why in missing[:NAMED]]
    if len(missing) > NAMED:
        lines.append((f"{len(missing) - NAMED} more", "see --json"))
    return lines or [("none", "")]


def verify(options: Namespace) -> int:
    """`streamstats verify CONFIG`."""
    from .. import upkeep
    from ..config import load_config
    from ..errors import DataError

    config = load_config(options.config)
    with _Watch(config.memory) as watch:
        problems = upkeep.verify(config, on_plan=watch.plan, on_progress=watch.advance)
    if options.json:
        print_json({"problems": [{"layer": p.layer, "rows": list(p.rows), "problem": p.problem} for p in problems]})
    elif problems:
        print_table(
            ["layer", "rows", "problem"], [[p.layer, row_ranges([p.rows]), p.problem] for p in problems], left=3
        )
    say(counted(len(problems), "problem") if problems else "nothing is wrong")
    return DataError.exit_status if problems else 0


def forget(options: Namespace) -> None:
    """`streamstats forget CONFIG --rows A:B`."""
    from .. import upkeep
    from ..config import load_config, parse_rows

    config = load_config(options.config)
    with _Watch(config.memory) as watch:
        forgotten = upkeep.forget(
            config, parse_rows(options.rows), match=options.layers, on_plan=watch.plan, on_progress=watch.advance
        )
    if options.json:
        print_json({"layers": {each.layer: {"rows": each.rows, "others": each.others} for each in forgotten}})
        return
    rows = [[each.layer, f"{each.rows:,}", f"{each.others:,}"] for each in forgotten]
    print_table(["layer", "rows taken out", "other rows read again"], rows)


def merge(options: Namespace) -> None:
    """`streamstats merge OUT… -o OUT`."""
    from .. import upkeep

    merged = upkeep.merge_outputs([Path(each) for each in options.outputs], Path(options.output))
    _print_layers(merged, options.json)
    say(f"wrote {options.output}; look at it with: streamstats inspect {options.output}")


def inspect(options: Namespace) -> None:
    """`streamstats inspect OUT [LAYER]`."""
    from ..errors import UsageError
    from ..results import open_results

    if options.plot and options.json:
        raise UsageError("--plot and --json exclude each other; choose one")
    results = open_results(options.output)
    if options.layer is None:
        if options.plot:
            raise UsageError(f"--plot shows the channels of one layer; name one of {', '.join(results.layers)}")
        _print_layers({layer: results.statistics(layer) for layer in results.layers}, options.json)
        return
    statistics = results.statistics(options.layer)
    if options.plot:
        _plot(statistics, options.plot)
    else:
        _print_channels(statistics, options.json)


def _plot(statistics: LayerStatistics, target: str) -> None:
    from .. import report

    if target == "-":
        print(report.plot_channels_text(statistics, color=sys.stdout.isatty()))
        return
    report.plot_channels(statistics, Path(target))
    say(f"wrote {target}")


def _print_layers(statistics: Mapping[str, LayerStatistics], as_json: bool) -> None:
    if as_json:
        print_json({"layers": {layer: _layer_document(found) for layer, found in statistics.items()}})
        return
    print_table(
        ["layer", "rows", "covered", "channels", "axis", "dtype", "mean", "minimum", "maximum", "NaN", "infinite"],
        [_layer_row(found) for found in statistics.values()],
    )


def _layer_row(found: LayerStatistics) -> list[str]:
    ranges = [_range(found.mean), number(_least(found.minimum)), number(_greatest(found.maximum))]
    nonfinite = [f"{found.sums.nan.sum():,}", f"{found.sums.infinite.sum():,}"]
    covered = " + ".join(row_ranges(source.covered) for source in found.sources)
    return [found.layer, f"{found.rows:,}", covered, f"{found.channels:,}", *_kind(found), *ranges, *nonfinite]


def _kind(found: LayerStatistics) -> list[str]:
    return [str(found.channel_axis), f"{found.sums.dtype}{' codes' if found.quantization else ''}"]


def _layer_document(found: LayerStatistics) -> dict[str, Any]:
    return {
        **found.document(),
        "least_mean": json_number(_least(found.mean)),
        "greatest_mean": json_number(_greatest(found.mean)),
        "minimum": json_number(_least(found.minimum)),
        "maximum": json_number(_greatest(found.maximum)),
    }


def _range(values: np.ndarray[Any, np.dtype[np.float64]]) -> str:
    return f"{number(_least(values))} … {number(_greatest(values))}"


def _least(values: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    return float(np.fmin.reduce(values, initial=np.nan))


def _greatest(values: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    return float(np.fmax.reduce(values, initial=np.nan))


def _print_channels(found: LayerStatistics, as_json: bool) -> None:
    names = ["mean", "minimum", "maximum", "count", "nan", "infinite"]
    sums = found.sums
    columns = [found.mean, found.minimum, found.maximum, sums.count, sums.nan, sums.infinite]
    if as_json:
        lists = [[json_number(value) for value in column.tolist()] for column in columns]
        per_channel = dict(zip(names, lists, strict=True))
        print_json({"layer": found.layer, **_layer_document(found), "per_channel": per_channel})
        return
    cells = [map(_cell, column.tolist()) for column in columns]
    rows = [[str(channel), *row] for channel, row in enumerate(zip(*cells, strict=True))]
    print_table(["channel", *names], rows, left=0)


def _cell(value: float | int) -> str:
    return number(value) if isinstance(value, float) else f"{value:,}"


# record and correct


def record(options: Namespace) -> None:
    """`streamstats record MODEL.onnx --samples FILE -o STORE`."""
    from ..models import onnx

    with ExitStack() as stack:
        watch = _SampleWatch(stack)
        recorded = onnx.record(
            options.model,
            options.samples,
            options.output,
            batch_size=options.batch_size,
            storage=options.storage,
            layers=options.layers,
            append=options.append,
            on_start=watch.start,
            on_progress=watch.advance,
        )
    if options.json:
        print_json({"layers": {layer.layer: layer.document() for layer in recorded}})
    else:
        rows = [[one.layer, one.op, str(one.samples), _shape(one.shape), one.dtype, one.reason] for one in recorded]
        print_table(["layer", "operator", "samples", "shape", "dtype", "left out because"], rows, left=2)
    say(f"wrote {options.output}; `streamstats run` reduces it, with `source: {options.output}` in its configuration")


class _SampleWatch:
    """Shows how many samples have been run; the bar is closed with `stack`."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    def start(self, samples: int) -> None:
        self._progress = self._stack.enter_context(RowProgress(samples))

    def advance(self, samples: int, added_bytes: int) -> None:
        self._progress.advance(samples, added_bytes)


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def correct(options: Namespace) -> None:
    """`streamstats correct MODEL.onnx [QUANTIZED.onnx | --bits N] --correctors OUT -o FIXED.onnx`, or `--weights …`."""
    if options.weights or options.fake_quantized or options.layout:
        _correct_tensors(options)
        return
    corrections = _corrected(options)
    if options.json:
        print_json({"layers": {correction.layer: correction.document() for correction in corrections}})
    else:
        print_table(
            ["layer", "operator", "quantised", "corrected", "largest term", "note"],
            [
                [
                    one.layer,
                    one.op,
                    _yes(one.quantized),
                    _yes(one.corrected),
                    number(one.largest),
                    one.change or one.reason,
                ]
                for one in corrections
            ],
            left=4,
        )
    for path in filter(None, (options.output, options.uncorrected)):
        say(f"wrote {path}")


def _corrected(options: Namespace) -> Sequence[LayerCorrection]:
    from ..errors import UsageError
    from ..models import onnx

    if options.model is None:
        raise UsageError("give the float model that was recorded, or --weights, --fake-quantized and --layout")
    if (options.quantized is None) == (options.bits is None):
        raise UsageError("give a quantised model behind the float one, or --bits to quantise its weights; not both")
    if options.quantized is None:
        return onnx.correct(
            options.model,
            options.correctors,
            options.output,
            bits=options.bits,
            per_channel=options.per_channel,
            symmetric=options.symmetric,
            uncorrected=options.uncorrected,
        ).layers
    if options.uncorrected or options.per_channel or options.symmetric:
        raise UsageError("--uncorrected, --per-channel and --symmetric go with --bits; leave them out")
    return onnx.correct_quantized(options.model, options.quantized, options.correctors, options.output).layers


def _correct_tensors(options: Namespace) -> None:
    from ..errors import UsageError
    from ..models.tensors import correct_tensors

    if not (options.weights and options.fake_quantized and options.layout) or options.model or options.bits:
        raise UsageError("--weights, --fake-quantized and --layout go together, and with no model and no --bits")
    corrections = correct_tensors(
        options.weights, options.fake_quantized, options.correctors, options.output, layouts=options.layout
    )
    if options.json:
        print_json({"layers": {each.layer: each.document() for each in corrections}})
    else:
        rows = [
            [each.layer, _yes(each.corrected), number(each.largest), f"{each.outputs:,}", each.reason]
            for each in corrections
        ]
        print_table(["layer", "corrected", "largest term", "outputs", "note"], rows, left=2)
    say(f"wrote {options.output}")


def _yes(value: bool) -> str:
    return "yes" if value else "no"


# demo


def demo(options: Namespace) -> None:
    """`streamstats demo [DIR]`."""
    from ..demo import show

    outcome = show.run(Path(options.folder), say)
    if options.json:
        print_json(outcome.document())
    else:
        print(outcome.text(_own_name()), end="")


def _own_name() -> str:
    """How a person calls this program again from another folder: its name if that is found, else its path."""
    return "streamstats" if shutil.which("streamstats") else str(Path(sys.argv[0]).resolve())
