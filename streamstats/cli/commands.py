"""The commands on stores and results: each calls the library and prints the result.

Heavy imports wait until a command needs them.
"""

from __future__ import annotations

import math
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CORRUPT, DONE, INCOMPLETE, UsageError, counted
from ..outputs.documents import channel_columns, channels_document, layers_document
from .progress import Shown
from .tables import number, print_json, print_table, row_ranges, say

if TYPE_CHECKING:
    from ..jobs.job import Job
    from ..jobs.session import Outcome
    from ..models.onnx.precision import KnownTo, Precision
    from ..outputs.layer_statistics import LayerStatistics
    from ..outputs.ledger import Ledger
    from ..ranges.finding import LayerRange

NAMED = 8
"""How many ranges of rows a note names at most."""


# run and inspect


def run(options: Namespace) -> int:
    """`streamstats run CONFIG`."""
    from ..config import load_config
    from ..jobs.run import Follow, run

    job = load_config(options.config).job()
    _check_run_options(options)
    until = None
    if options.until_stable is not None:
        job, until = _until_stable(job, options)
    if options.follow:
        say(f"following {job.source} {_until(options.until_rows, options.idle)}; Ctrl-C ends the run and loses nothing")
    with Shown() as progress:
        outcome = run(
            job,
            restart=options.restart,
            accept_changes=options.accept_changes,
            follow=Follow(options.until_rows, options.idle) if options.follow else None,
            until=until,
            progress=progress,
        )
    _print_layers(outcome.statistics, options.json)
    _say_filled(outcome.statistics)
    unstable = until is not None and _is_unstable(until, options.until_stable)
    say(f"wrote {job.output}; view it with: streamstats inspect {job.output}")
    if not outcome.unreadable:
        return INCOMPLETE if unstable else DONE
    _say_unreadable(outcome, job.output)
    return INCOMPLETE


def check_follow(options: Namespace) -> None:
    """Raise `UsageError` for options that say when to stop following, without `--follow`."""
    if (options.until_rows is not None or options.idle is not None) and not options.follow:
        raise UsageError("--until-rows and --idle say when --follow ends; add --follow, or leave them out")


def _check_run_options(options: Namespace) -> None:
    check_follow(options)
    described = options.model or options.quantized or options.bits or options.per_channel or options.symmetric
    if options.until_stable is None and described:
        raise UsageError(
            "--model, --quantized, --bits, --per-channel and --symmetric need --until-stable; add it, or leave them out"
        )


def _say_filled(statistics: Mapping[str, Ledger]) -> None:
    for layer, found in statistics.items():
        filled = [rows for source in found.sources for rows in source.filled.ranges]
        if filled:
            say(
                f"note: layer {layer}: the fill value was counted for unreadable chunks in rows "
                f"{row_ranges(filled[:NAMED])}"
            )


def _say_unreadable(outcome: Outcome, output: str) -> None:
    lost = sum(each.rows[1] - each.rows[0] for each in outcome.unreadable)
    first = outcome.unreadable[0].reason
    say(f"{counted(lost, 'row')} could not be read and {'is' if lost == 1 else 'are'} not counted; the first: {first}")
    say(f"list all of them with: streamstats status {output}; repair them, then run again")


def _until_stable(job: Job, options: Namespace) -> tuple[Job, KnownTo]:
    """The job, which also counts what standard errors need, and the test for enough samples."""
    from ..models.linear import PRECISION_STATISTICS
    from ..models.onnx.precision import KnownTo
    from .model_commands import subject_of

    if options.follow:
        raise UsageError("--until-stable and --follow cannot be combined; leave one out")
    if not 0 < options.until_stable < math.inf:
        raise UsageError(f"--until-stable is {options.until_stable:g}; expected a fraction of a step, above 0")
    subject = subject_of(options)
    known = KnownTo(subject.quantized, subject.pairs, options.until_stable)
    return job.counting(*PRECISION_STATISTICS), known


def _is_unstable(until: KnownTo, wanted: float) -> bool:
    if until.worst is None:
        return False
    say(_how_stable(until.worst, wanted))
    return until.worst.in_steps > wanted


def _how_stable(worst: Precision, wanted: float) -> str:
    known = (
        f"after {counted(worst.rows, 'sample')}, the corrections are known to {worst.in_steps:.3g} steps of the bias"
    )
    if worst.in_steps <= wanted:
        return f"{known} (standard error, worst layer {worst.layer}); requested: {wanted:g}"
    needed = f"{wanted:g} would take about {worst.rows_for(wanted):,.0f}"
    return f"{known} (standard error, worst layer {worst.layer}), and there are no more samples; {needed}"


def _until(rows: int | None, idle: float | None) -> str:
    ends = [f"every layer has {rows:,} rows"] if rows is not None else []
    ends += [f"no rows are appended for {idle:g} s"] if idle is not None else []
    return f"until {' or '.join(ends)}" if ends else "until it is interrupted"


def status(options: Namespace) -> int:
    """`streamstats status OUT`."""
    from ..jobs.status import status

    found = status(Path(options.output))
    if options.json:
        layers = {layer.layer: layer.document() for layer in found.layers}
        print_json({"complete": found.complete, "running": found.running, "layers": layers})
    else:
        rows = [
            [layer.layer, f"{layer.counted:,}", f"{layer.rows:,}", row_ranges(layer.excluded.ranges), span, why]
            for layer in found.layers
            for span, why in _gaps(layer.missing)
        ]
        print_table(["layer", "counted", "of rows", "excluded", "missing", "because"], rows)
    if found.running:
        say("a run is in progress")
    elif not found.complete:
        say("incomplete; repair any unreadable chunks, then resume with: streamstats run CONFIG")
    return DONE if found.complete else INCOMPLETE


def _gaps(missing: Sequence[tuple[tuple[int, int], str]]) -> list[tuple[str, str]]:
    """Cells (missing rows, reason) for the first ranges, and one for the number of further ranges."""
    lines = [(row_ranges([rows]), why) for rows, why in missing[:NAMED]]
    if len(missing) > NAMED:
        lines.append((f"{len(missing) - NAMED} more", "see --json"))
    return lines or [("none", "")]


def verify(options: Namespace) -> int:
    """`streamstats verify CONFIG`."""
    from ..config import load_config
    from ..jobs.verify import verify

    job = load_config(options.config).job()
    with Shown() as progress:
        problems = verify(job, progress=progress)
    if options.json:
        print_json({"problems": [{"layer": p.layer, "rows": list(p.rows), "problem": p.problem} for p in problems]})
    elif problems:
        print_table(
            ["layer", "rows", "problem"], [[p.layer, row_ranges([p.rows]), p.problem] for p in problems], left=3
        )
    say(counted(len(problems), "problem") if problems else "no problems found")
    return CORRUPT if problems else DONE


def forget(options: Namespace) -> None:
    """`streamstats forget CONFIG --rows A:B`."""
    from ..config import load_config, parse_rows
    from ..jobs.forget import forget

    job = load_config(options.config).job()
    with Shown() as progress:
        forgotten = forget(job, parse_rows(options.rows), match=options.layers, progress=progress)
    if options.json:
        print_json({"layers": {each.layer: {"rows": each.rows, "others": each.others} for each in forgotten}})
        return
    rows = [[each.layer, f"{each.rows:,}", f"{each.others:,}"] for each in forgotten]
    print_table(["layer", "rows forgotten", "other rows read again"], rows)


def merge(options: Namespace) -> None:
    """`streamstats merge OUT… -o OUT`."""
    from ..jobs.merge import merge_outputs

    merged = merge_outputs([Path(each) for each in options.outputs], Path(options.output))
    _print_layers(merged, options.json)
    say(f"wrote {options.output}; view it with: streamstats inspect {options.output}")


def inspect(options: Namespace) -> None:
    """`streamstats inspect OUT [LAYER]`."""
    from ..outputs.results import open_results

    if options.plot and options.json:
        raise UsageError("--plot and --json cannot be combined; choose one")
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


def ranges(options: Namespace) -> None:
    """`streamstats ranges OUT`."""
    from ..ranges.codes import Codes
    from ..ranges.finding import METHODS, layer_ranges, matching_layers

    codes = Codes(options.bits, options.symmetric, options.codes and options.codes == "signed")
    methods = METHODS if options.compare else (options.method,)
    chosen = matching_layers(options.output, options.layer)
    if options.plot and (options.per_channel or len(chosen) > 1):
        raise UsageError("--plot shows one layer without --per-channel; name the layer with --layer")
    found = {
        layer: layer_ranges(statistics, methods, codes, per_channel=options.per_channel, percentile=options.percentile)
        for layer, statistics in chosen.items()
    }
    if options.plot:
        (layer,) = chosen
        _plot_ranges(chosen[layer], found[layer], options.plot)
    if options.json:
        layers = {layer: {each.method: each.document() for each in by} for layer, by in found.items()}
        print_json({"layers": layers})
        return
    _print_ranges([each for by in found.values() for each in by], options.per_channel)
    say(f"codes {codes.lowest} to {codes.highest}; real values are (code - zero point) * step")


def _plot_ranges(statistics: LayerStatistics, found: Sequence[LayerRange], target: str) -> None:
    from ..ranges.distribution import Distribution
    from ..report.pictures import plot_ranges

    plot_ranges(Distribution.of(statistics), found, Path(target))
    say(f"wrote {target}")


def _print_ranges(found: Sequence[LayerRange], per_channel: bool) -> None:
    names = ["layer", *(["channel"] if per_channel else []), "method"]
    rows = [
        [each.layer, *([str(channel)] if per_channel else []), each.method, *map(_cell, figures)]
        for each in found
        for channel, figures in enumerate(each.rows())
    ]
    print_table([*names, "low", "high", "step", "zero point", "MSE", "SQNR dB"], rows, left=len(names))


def _plot(statistics: LayerStatistics, target: str) -> None:
    from ..report import pictures

    if target == "-":
        print(pictures.plot_channels_text(statistics, color=sys.stdout.isatty()))
        return
    pictures.plot_channels(statistics, Path(target))
    say(f"wrote {target}")


def _print_layers(statistics: Mapping[str, Ledger], as_json: bool) -> None:
    if as_json:
        print_json({"layers": layers_document(statistics)})
        return
    figures = {name: found.figures().layer for name, found in statistics.items()}
    columns = list(dict.fromkeys(column for found in figures.values() for column in found))
    headings = ["layer", "rows", "covered", "channels", "axis", "dtype", *(each.replace("_", " ") for each in columns)]
    rows = [
        [*_layer_cells(found), *(_cell(figures[name][column]) if column in figures[name] else "" for column in columns)]
        for name, found in statistics.items()
    ]
    print_table(headings, rows)


def _layer_cells(found: Ledger) -> list[str]:
    covered = " + ".join(row_ranges(source.covered.ranges) for source in found.sources)
    kind = f"{found.space.dtype}{' codes' if found.quantization else ''}"
    return [found.layer, f"{found.rows:,}", covered, f"{found.channels:,}", str(found.channel_axis), kind]


def _print_channels(found: LayerStatistics, as_json: bool) -> None:
    if as_json:
        print_json(channels_document(found))
        return
    columns = channel_columns(found)
    cells = [map(_cell, column) for column in columns.values()]
    rows = [[str(channel), *row] for channel, row in enumerate(zip(*cells, strict=True))]
    print_table(["channel", *columns], rows, left=0)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return number(value)
    return f"{value:,}" if isinstance(value, int) else str(value)
