"""What each command on stores and results does: call the library, print what comes back.

Heavy imports wait until a command needs them.
"""

from __future__ import annotations

import math
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.filesize import decimal

from ..coverage import row_count
from ..errors import counted
from ..outputs.documents import channel_columns, channels_document, greatest, layers_document, least
from .progress import RowProgress
from .tables import number, print_json, print_table, row_ranges, say

if TYPE_CHECKING:
    from ..calibration.layer import Layer
    from ..config import JobConfig
    from ..jobs.job import Prepared, Progress
    from ..models.onnx.precision import KnownTo, Precision
    from ..outputs.ledger import LayerStatistics

INCOMPLETE = 3
"""The exit status where rows are missing."""
NAMED = 8
"""Layers that a note names."""


# run and inspect


def run(options: Namespace) -> int:
    """`streamstats run CONFIG`."""
    from ..config import load_config
    from ..errors import UsageError
    from ..jobs import job

    config = load_config(options.config)
    if (options.until_rows is not None or options.idle is not None) and not options.follow:
        raise UsageError("--until-rows and --idle say when --follow ends; give it, too")
    until = None
    if options.until_stable is None and (options.model or options.quantized or options.bits):
        raise UsageError("--model, --quantized and --bits go with --until-stable; leave them out")
    if options.until_stable is not None:
        config, until = _until_stable(config, options)
    if options.follow:
        say(f"following {config.source} {_until(options.until_rows, options.idle)}; Ctrl-C ends it and loses nothing")
    with _Watch(config.memory) as watch:
        outcome = job.run(
            config,
            restart=options.restart,
            accept_changes=options.accept_changes,
            follow=job.Follow(options.until_rows, options.idle) if options.follow else None,
            until=until,
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
    unstable = False
    if until is not None and until.worst is not None:
        say(_how_stable(until.worst, options.until_stable))
        unstable = until.worst.in_steps > options.until_stable
    say(f"wrote {config.output}; look at it with: streamstats inspect {config.output}")
    if not outcome.unreadable:
        return INCOMPLETE if unstable else 0
    lost = row_count(each.rows for each in outcome.unreadable)
    first = outcome.unreadable[0].reason
    say(f"{counted(lost, 'row')} could not be read and {'is' if lost == 1 else 'are'} not counted; the first: {first}")
    say(f"see all of them with: streamstats status {config.output}; once they are repaired, run again")
    return INCOMPLETE


def _until_stable(config: JobConfig, options: Namespace) -> tuple[JobConfig, KnownTo]:
    """The job with the spread of samples kept, and when it has enough of them."""
    from ..errors import UsageError
    from ..models.onnx.precision import KnownTo
    from .model_commands import subject_of

    if options.follow:
        raise UsageError("--until-stable and --follow exclude each other; leave one out")
    if not 0 < options.until_stable < math.inf:
        raise UsageError(f"--until-stable is {options.until_stable:g}; expected a fraction of a step, above 0")
    subject = subject_of(options)
    return config.keeping("spread"), KnownTo(subject.quantized, subject.pairs, options.until_stable)


def _how_stable(worst: Precision, wanted: float) -> str:
    known = f"after {counted(worst.rows, 'sample')} corrections are known to {worst.in_steps:.3g} steps of the bias"
    if worst.in_steps <= wanted:
        return f"{known} (standard error, worst layer {worst.layer}); asked for was {wanted:g}"
    needed = f"{wanted:g} would take about {worst.rows_for(wanted):,.0f}"
    return f"{known} (standard error, worst layer {worst.layer}), and there are no more samples; {needed}"


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
    from ..jobs import upkeep

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
    from ..config import load_config
    from ..errors import DataError
    from ..jobs import upkeep

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
    from ..config import load_config, parse_rows
    from ..jobs import upkeep

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
    from ..jobs import upkeep

    merged = upkeep.merge_outputs([Path(each) for each in options.outputs], Path(options.output))
    _print_layers(merged, options.json)
    say(f"wrote {options.output}; look at it with: streamstats inspect {options.output}")


def inspect(options: Namespace) -> None:
    """`streamstats inspect OUT [LAYER]`."""
    from ..errors import UsageError
    from ..outputs.results import open_results

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
    from ..report import pictures

    if target == "-":
        print(pictures.plot_channels_text(statistics, color=sys.stdout.isatty()))
        return
    pictures.plot_channels(statistics, Path(target))
    say(f"wrote {target}")


def _print_layers(statistics: Mapping[str, LayerStatistics], as_json: bool) -> None:
    if as_json:
        print_json({"layers": layers_document(statistics)})
        return
    print_table(
        ["layer", "rows", "covered", "channels", "axis", "dtype", "mean", "minimum", "maximum", "NaN", "infinite"],
        [_layer_row(found) for found in statistics.values()],
    )


def _layer_row(found: LayerStatistics) -> list[str]:
    means = f"{number(least(found.mean))} … {number(greatest(found.mean))}"
    ranges = [means, number(least(found.minimum)), number(greatest(found.maximum))]
    nonfinite = [f"{found.sums.nan.sum():,}", f"{found.sums.infinite.sum():,}"]
    covered = " + ".join(row_ranges(source.covered) for source in found.sources)
    return [found.layer, f"{found.rows:,}", covered, f"{found.channels:,}", *_kind(found), *ranges, *nonfinite]


def _kind(found: LayerStatistics) -> list[str]:
    return [str(found.channel_axis), f"{found.sums.dtype}{' codes' if found.quantization else ''}"]


def _print_channels(found: LayerStatistics, as_json: bool) -> None:
    if as_json:
        print_json(channels_document(found))
        return
    columns = channel_columns(found)
    cells = [map(_cell, column) for column in columns.values()]
    rows = [[str(channel), *row] for channel, row in enumerate(zip(*cells, strict=True))]
    print_table(["channel", *columns], rows, left=0)


def _cell(value: float | int) -> str:
    return number(value) if isinstance(value, float) else f"{value:,}"
