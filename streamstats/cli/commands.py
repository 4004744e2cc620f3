"""The commands on stores and results: each calls the library and prints the result.

Heavy imports wait until a command needs them.
"""

from __future__ import annotations

import math
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..coverage import in_slice
from ..errors import CORRUPT, DONE, INCOMPLETE, UsageError, counted, listed
from ..outputs.documents import channel_columns, channels_document
from ..outputs.ledger import Ledger, by_layer
from ..outputs.shortfalls import REMEDY, Shortfall
from .layer_table import cell, print_layers, say_notes
from .progress import Shown
from .stale import say_if_stale, say_stale
from .tables import print_json, print_table, row_ranges, say

if TYPE_CHECKING:
    from ..calibration.addresses import Address
    from ..coverage import OpenRows
    from ..jobs.forget import Forgotten
    from ..jobs.job import Job
    from ..jobs.session import Outcome
    from ..jobs.status import LayerStatus, Status
    from ..models.onnx.precision import KnownTo
    from ..models.precision import Precision
    from ..outputs.layer_statistics import LayerStatistics
    from ..outputs.ledger import CountedSource
    from ..ranges.finding import LayerRange

NAMED = 8
"""How many ranges of rows, or layers, notes name at most."""
UNREAD = "repair the store, or name the layers to count under `layers`"
"""What to do about arrays that nobody can read."""
RESUME = "resume with: streamstats run CONFIG"
MERGE_AGAIN = "run in the outputs that were merged, and merge them again"


# warm


def warm(options: Namespace) -> None:
    """`streamstats warm [DTYPE…]`."""
    from ..jobs.warming import DTYPES, warm

    found = warm(options.dtypes or DTYPES, (lambda _: None) if options.quiet else say)
    if options.json:
        print_json({"loops": found.loops, "seconds": found.seconds, "folder": str(found.folder)})
    else:
        print(f"{counted(found.loops, 'loop')} compiled in {found.seconds:.1f} s; {found.folder} caches them")


# run and inspect


def run(options: Namespace) -> int:
    """`streamstats run CONFIG`."""
    from ..config import load_job
    from ..jobs.quantiles import check_quantiles
    from ..jobs.run import Follow, run

    job = load_job(options.config, options.set)
    _check_run_options(options)
    if options.refine is not None:
        check_quantiles(job, options.refine)
    until = None
    if options.until_stable is not None:
        job, until = _until_stable(job, options)
    if options.follow:
        say(
            f"following {listed(job.sources)} {_until(options.until_rows, options.idle)}; Ctrl-C ends the run and "
            "loses nothing"
        )
    with Shown(quiet=options.quiet) as progress:
        outcome = run(
            job,
            restart=options.restart,
            accept_changes=options.accept_changes,
            follow=Follow(options.until_rows, options.idle) if options.follow else None,
            until=until,
            progress=progress,
        )
    if options.refine is None:
        print_layers(by_layer(outcome.statistics), options.json, outcome.shortfalls)
    else:
        _print_quantiles(job, options)
    _say_filled(outcome.statistics)
    unstable = until is not None and _is_unstable(until, options.until_stable)
    say(f"wrote {job.output}; view it with: streamstats inspect {job.output}")
    if outcome.unreadable:
        _say_unreadable(outcome, job.output)
    _say_unreadable_arrays(outcome.unreadable_arrays)  # the reasons were told at the start
    if outcome.shortfalls:
        _say_shortfalls(outcome.shortfalls, job.output)
    return DONE if outcome.complete and not unstable else INCOMPLETE


def check_follow(options: Namespace) -> None:
    """Raise `UsageError` for options that say when to stop following, without `--follow`."""
    if (options.until_rows is not None or options.idle is not None) and not options.follow:
        raise UsageError("--until-rows and --idle say when --follow ends; add --follow, or leave them out")


def _check_run_options(options: Namespace) -> None:
    check_follow(options)
    if options.refine is not None and options.follow:
        raise UsageError("--refine and --follow cannot be combined; leave one out, and refine once the run has ended")
    described = options.model or options.quantized or options.bits or options.per_channel or options.symmetric
    described = described or options.weight_range
    if options.until_stable is None and described:
        raise UsageError(
            "--model, --quantized, --bits, --per-channel, --symmetric and --weight-range need --until-stable; add it, "
            "or leave them out"
        )


def _print_quantiles(job: Job, options: Namespace) -> None:
    from ..jobs.quantiles import exact_quantiles

    with Shown(quiet=options.quiet) as progress:
        found = exact_quantiles(job, options.refine, progress=progress)
    if options.json:
        layers: dict[str, list[dict[str, float]]] = {}
        for each in found:
            layers.setdefault(each.layer, []).append({"q": each.q, "value": each.value})
        print_json({"quantiles": layers})
    else:
        print_table(["layer", "q", "value"], [[each.layer, f"{each.q:g}", repr(each.value)] for each in found])


def _say_filled(statistics: Mapping[str, Ledger]) -> None:
    for layer, found in statistics.items():
        for source in found.sources:
            if source.filled:
                say(
                    f"note: layer {source.address.naming(layer)}: the fill value was counted for missing chunks in "
                    f"rows {row_ranges(source.filled.ranges[:NAMED])}"
                )


def _say_unreadable(outcome: Outcome, output: str) -> None:
    lost = sum(each.rows[1] - each.rows[0] for each in outcome.unreadable)
    first = outcome.unreadable[0].reason
    say(f"{counted(lost, 'row')} could not be read and {'is' if lost == 1 else 'are'} not counted; the first: {first}")
    say(f"list all of them with: streamstats status {output}; repair them, then run again")


def _say_unreadable_arrays(found: Mapping[str, str]) -> None:
    if found:
        say(f"not counted, because they cannot be read: {listed(found)}; {UNREAD}")


def _say_shortfalls(found: Mapping[str, Shortfall], output: str) -> None:
    for layer, short in [*found.items()][:NAMED]:
        say(f"layer {layer}: {short.reason}")
    more = f"; list all of them with: streamstats status {output}" if len(found) > NAMED else ""
    say(f"{counted(len(found), 'layer')} below `min_rows`: {REMEDY}{more}")


def _until_stable(job: Job, options: Namespace) -> tuple[Job, KnownTo]:
    """The job, which also counts what standard errors need, and the test for enough samples."""
    from ..models.fingerprints import check_recorded, recorded_of
    from ..models.linear import PRECISION_STATISTICS
    from ..models.onnx.fingerprint import fingerprints
    from ..models.onnx.precision import KnownTo
    from .correct_commands import subject_of

    if options.follow:
        raise UsageError("--until-stable and --follow cannot be combined; leave one out")
    if not 0 < options.until_stable < math.inf:
        raise UsageError(f"--until-stable is {options.until_stable:g}; expected a fraction of a step, above 0")
    subject = subject_of(options)
    given = fingerprints(subject.original)

    def check(counted: Mapping[str, LayerStatistics]) -> None:
        check_recorded(str(job.source), recorded_of(counted), given, subject.name, "run without --until-stable")

    known = KnownTo(subject.quantized, subject.pairs, options.until_stable, check)
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
        said = {"unreadable": dict(found.unreadable), "coordinates": dict(found.coordinates), "stale": [*found.stale]}
        print_json({"complete": found.complete, "running": found.running, "rows": found.rows, "layers": layers, **said})
    else:
        _print_status(found)
        _say_rows(found)
    _say_state(found)
    return DONE if found.complete else INCOMPLETE


def _print_status(found: Status) -> None:
    """Print the rows of each layer, and those that are missing, with the reasons."""
    arrays = any(layer.array != layer.layer for layer in found.layers)
    rows = [
        [*_layer_cells(layer.layer, layer.array, arrays), *_status_cells(layer, found.rows), span, why]
        for layer in found.layers
        for span, why in _gaps(layer)
    ]
    columns = [*_layer_cells("layer", "array", arrays), "counted", "of rows", "excluded", "missing", "reason"]
    print_table(columns, rows, left=1 + arrays)


def _layer_cells(layer: str, array: str, arrays: bool) -> list[str]:
    """The first cells of a row: the layer and, if the table shows `arrays`, the one that it reads."""
    return [layer, array] if arrays else [layer]


def _say_state(found: Status) -> None:
    """Say what is not counted, and what to do about it."""
    say_notes({layer.layer: layer.notes for layer in found.layers})
    if found.coordinates:
        say(f"note: not counted, because they are coordinates: {listed(found.coordinates)}")
    if found.running:
        say("a run is in progress")
    elif any(layer.missing for layer in found.layers):
        say(f"incomplete; repair any unreadable chunks, then {MERGE_AGAIN if found.merged else RESUME}")
    for unread, why in [*found.unreadable.items()][:NAMED]:
        say(f"array {unread} is not counted, because it cannot be read: {why}")
    _say_unreadable_arrays(found.unreadable)
    say_stale(found.stale)
    short = sum(layer.shortfall is not None for layer in found.layers)
    if short:
        say(f"{counted(short, 'layer')} below `min_rows`: {REMEDY}")


def _say_rows(found: Status) -> None:
    """Say which rows of each source were counted, and to which the job is limited."""
    for layer in found.layers:
        if layer.sources:
            each = (_of_source(source, merged=found.merged) for source in layer.sources)
            say(f"{layer.layer}: counted rows: {listed(each)}")
    if found.rows is not None:
        say(f"note: `rows` limits the job to rows {in_slice(found.rows)}; others are neither counted nor missing")


def _of_source(source: CountedSource, *, merged: bool) -> str:
    """Which rows of a source were counted; merged results do not know the names of their stores."""
    name = str(source.address) or ("one store" if merged else "outside the parts")
    excluded = f" ({row_ranges(source.excluded.ranges)} excluded)" if source.excluded else ""
    return f"{name} {row_ranges(source.covered.ranges)} of {source.rows:,}{excluded}"


def _status_cells(layer: LayerStatus, limit: OpenRows | None) -> list[str]:
    """The cells about the rows of a layer; the job is limited to the rows `limit`."""
    of_rows = f"{layer.rows:,}" if limit is None else in_slice(limit)
    return [f"{layer.counted:,}", of_rows, row_ranges(layer.excluded.ranges)]


def _gaps(layer: LayerStatus) -> list[tuple[str, str]]:
    """Cells (missing rows, reason) for the first ranges, one for the number of further ranges, one for a shortfall."""
    missing = [(rows, why, address) for address, gaps in layer.gaps.items() for rows, why in gaps]
    lines = [(_where(row_ranges([rows]), address), why) for rows, why, address in missing[:NAMED]]
    if len(missing) > NAMED:
        lines.append((f"{len(missing) - NAMED} more", "see --json"))
    if layer.shortfall is not None:
        lines.append(("" if lines else "none", layer.shortfall.reason))
    return lines or [("none", "")]


def _where(rows: str, address: Address) -> str:
    return f"{rows} of {address}" if str(address) else rows


def verify(options: Namespace) -> int:
    """`streamstats verify CONFIG`."""
    from ..config import load_job
    from ..jobs.verify import verify

    job = load_job(options.config, options.set)
    with Shown(quiet=options.quiet) as progress:
        problems = verify(job, progress=progress)
    if options.json:
        print_json({"problems": [{"layer": p.layer, "rows": list(p.rows), "problem": p.problem} for p in problems]})
    elif problems:
        rows = [row_ranges([each.rows] if any(each.rows) else []) for each in problems]
        cells = [[each.layer, found, each.problem] for each, found in zip(problems, rows, strict=True)]
        print_table(["layer", "rows", "problem"], cells, left=3)
    say(counted(len(problems), "problem") if problems else "no problems found")
    return CORRUPT if problems else DONE


def forget(options: Namespace) -> None:
    """`streamstats forget CONFIG --rows A:B`."""
    from ..config import load_job, parse_rows
    from ..jobs.forget import forget

    job = load_job(options.config, options.set)
    with Shown(quiet=options.quiet) as progress:
        forgotten = forget(
            job,
            *map(parse_rows, options.rows),
            layers=options.layers,
            source=options.source,
            part=options.part,
            progress=progress,
        )
    if options.json:
        print_json({"layers": {each.layer: each.document() for each in forgotten}})
    else:
        _print_forgotten(forgotten)


def _print_forgotten(forgotten: Sequence[Forgotten]) -> None:
    """Print which rows were forgotten of each layer, and how many rows that took."""
    arrays = any(each.array != each.layer for each in forgotten)
    rows = [
        [*_layer_cells(each.layer, each.array, arrays), row_ranges(each.excluded), f"{each.rows:,}", f"{each.others:,}"]
        for each in forgotten
    ]
    columns = [*_layer_cells("layer", "array", arrays), "rows forgotten", "had been counted", "other rows read again"]
    print_table(columns, rows, left=1 + arrays)


def merge(options: Namespace) -> None:
    """`streamstats merge OUT… -o OUT`."""
    from ..jobs.merge import merge

    different, other = options.different_stores, options.other_weights
    merged = merge(options.outputs, options.output, different_stores=different, other_weights=other)
    print_layers(merged, options.json)
    say_notes({layer: found.notes for layer, found in merged.items()})
    say(f"wrote {options.output}; view it with: streamstats inspect {options.output}")


def inspect(options: Namespace) -> None:
    """`streamstats inspect OUT [LAYER]`."""
    from ..outputs.results import open_results

    if options.plot and options.json:
        raise UsageError("--plot and --json cannot be combined; choose one")
    results = open_results(options.output)
    say_if_stale(options.output)
    if options.layer is None:
        if options.plot:
            raise UsageError(f"--plot shows the channels of one layer; name one of {listed(results.layers)}")
        found = {layer: results.statistics(layer) for layer in results.layers}
        if options.json:
            print_json({"layers": {layer: channels_document(each) for layer, each in found.items()}})
        else:
            print_layers(found, as_json=False)
        say_notes({layer: each.notes for layer, each in found.items()})
        return
    statistics = results.statistics(options.layer)
    if options.plot:
        _plot(statistics, options.plot)
    else:
        _print_channels(statistics, options.json)
    say_notes({options.layer: statistics.notes})


def ranges(options: Namespace) -> None:
    """`streamstats ranges OUT`."""
    from ..ranges.codes import Codes
    from ..ranges.finding import METHODS, layer_ranges, matching_layers
    from ..ranges.percentile import PERCENTILE

    codes = Codes(options.bits, options.symmetric, options.codes and options.codes == "signed")
    methods = METHODS if options.compare else (options.method,)
    check_percentile(options, methods)
    percentile = PERCENTILE if options.percentile is None else options.percentile
    matching = matching_layers(options.output, options.layers)
    say_if_stale(options.output)
    chosen = {layer: statistics for layer, statistics in matching.items() if statistics.sums.count.any()}
    if len(chosen) < len(matching):
        say(f"left out, because they have no finite value: {listed(matching.keys() - chosen.keys())}")
    if not chosen:
        raise UsageError("no layer has a finite value, so none has a range; check what was counted with `inspect`")
    if options.plot and (options.per_channel or len(chosen) > 1):
        raise UsageError("--plot shows one layer without --per-channel; name the layer with --layers")
    found = {
        layer: layer_ranges(statistics, methods, codes, per_channel=options.per_channel, percentile=percentile)
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
    _say_bounds([each for by in found.values() for each in by])


def check_percentile(options: Namespace, methods: Sequence[str]) -> None:
    """Raise `UsageError` for a percentile that none of the `methods` takes."""
    if options.percentile is not None and "percentile" not in methods:
        raise UsageError(
            f"--percentile is {options.percentile:g}, but --method is {', '.join(methods)}; choose --method "
            "percentile, or leave --percentile out"
        )


def _plot_ranges(statistics: LayerStatistics, found: Sequence[LayerRange], target: str) -> None:
    from ..ranges.distribution import Distribution
    from ..report.pictures import plot_ranges

    plot_ranges(Distribution.of(statistics), found, Path(target))
    say(f"wrote {target}")


def _print_ranges(found: Sequence[LayerRange], per_channel: bool) -> None:
    names = ["layer", *(["channel"] if per_channel else []), "method"]
    rows = [
        [each.layer, *([str(channel)] if per_channel else []), each.method, *map(cell, figures)]
        for each in found
        for channel, figures in enumerate(each.rows())
    ]
    print_table([*names, "low", "high", "step", "zero point", "MSE", "SQNR dB"], rows, left=len(names))


def _say_bounds(found: Sequence[LayerRange]) -> None:
    """Say for which layers only bounds of the errors are known, and why."""
    names: dict[str, list[str]] = {}
    for each in found:
        if each.unknown:
            names.setdefault(each.unknown, []).append(each.layer)
    for reason, layers in names.items():
        say(f"≤ and ≥ are bounds, from the extrema and, if counted, `squares`; for {listed(layers)}, {reason}")


def _plot(statistics: LayerStatistics, target: str) -> None:
    from ..report import pictures

    if target == "-":
        print(pictures.plot_channels_text(statistics, color=sys.stdout.isatty()))
        return
    pictures.plot_channels(statistics, Path(target))
    say(f"wrote {target}")


def _print_channels(found: LayerStatistics, as_json: bool) -> None:
    if as_json:
        print_json(channels_document(found))
        return
    columns = channel_columns(found)
    cells = [map(cell, column) for column in columns.values()]
    rows = [[str(channel), *row] for channel, row in enumerate(zip(*cells, strict=True))]
    print_table(["channel", *columns], rows, left=0)
