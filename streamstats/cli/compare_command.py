"""`compare`: two outputs, or the results of jobs of a service, whose statistics it downloads for as long."""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ..errors import DONE, INCOMPLETE, UsageError, counted, in_words
from .service_commands import client_of
from .tables import number, print_json, print_table, say

if TYPE_CHECKING:
    from ..jobs.compare import Comparison, LayerComparison
    from ..outputs.distances import Distance, Distances

NAMED = 8
"""How many layers notes name at most."""
LONGEST_CELL = 60
"""Characters of a description in a table."""


def compare(options: Namespace) -> int:
    """`streamstats compare OUT1 OUT2`, each of them an output or a job."""
    from ..jobs.compare import compare

    threshold: float | None = options.threshold
    if threshold is not None and not 0 <= threshold < math.inf:
        raise UsageError(f"--threshold is {threshold:g}; expected a number of standard errors, 0 or more")
    with _folders(options) as folders:
        found = compare(*folders, layers=options.layers)
    drifted = [] if threshold is None else found.beyond(threshold)
    if options.json:
        verdict = {"threshold": threshold, "beyond_threshold": [each.layer for each in drifted]}
        print_json({**found.document(), **verdict, "first": options.first, "second": options.second})
    else:
        columns = ["layer", "rows", "means", "channel", "range", "TV", "KS", "different"]
        print_table(columns, [_comparison_cells(each) for each in found.layers])
    say(_verdict(found))
    for each in drifted[:NAMED]:
        say(f"layer {each.layer} has drifted: {_how_far(each)}; --threshold is {threshold:g}")
    if len(drifted) > NAMED:
        say(f"and {counted(len(drifted) - NAMED, 'more layer')}; see --json")
    if threshold is not None and not drifted:
        say(f"no layer has drifted: the means differ by at most {_most_of(found)}; --threshold is {threshold:g}")
    return INCOMPLETE if drifted else DONE


@contextmanager
def _folders(options: Namespace) -> Iterator[list[Path]]:
    """The two outputs; in place of a job's id, a folder with its statistics for as long as they are compared.

    Raises `UsageError` for what is neither.
    """
    from ..outputs.manifest import MANIFEST
    from ..outputs.results import STATE
    from ..service.messages import JOB_ID

    named = [options.first, options.second]
    jobs = [each for each in named if not Path(each).exists()]
    for each in jobs:
        if not JOB_ID.fits(each):
            raise UsageError(f"there is no {each}; expected the output folder of a run, or {JOB_ID.words}")
    with TemporaryDirectory(prefix="streamstats-compare-") as folder:
        fetched = {job: Path(folder) / job for job in dict.fromkeys(jobs)}
        if fetched:
            with client_of(options) as client:
                for job, target in fetched.items():
                    client.fetch(job, target, files=(MANIFEST, f"{STATE}/*"))
        yield [fetched.get(each, Path(each)) for each in named]


def _most_of(found: Comparison) -> str:
    """The largest difference of means, with its unit."""
    worst = found.layers[0].apart
    return "0" if worst is None else _mean_cells(worst)[0]


def _verdict(found: Comparison) -> str:
    differing = sum(not each.equal for each in found.layers)
    rows = "both outputs cover the same rows" if found.same_rows else "the outputs cover different rows"
    if not found.same_stores:
        rows = f"{rows.replace('the same rows', 'rows of the same numbers')}, of different stores"
    if not differing:
        return f"{counted(len(found.layers), 'layer')}: equal to the bit; {rows}"
    return f"{differing:,} of {counted(len(found.layers), 'layer')} differ{'s' * (differing == 1)}; {rows}"


def _comparison_cells(found: LayerComparison) -> list[str]:
    mine, theirs = found.rows
    others = "" if found.same_rows or found.only_in else " (others)"
    rows = f"{mine:,}{others}" if mine == theirs else f"{mine:,} and {theirs:,}"
    if found.apart is None:
        return [found.layer, rows, "-", "-", "-", "-", "-", f"only in OUT{1 if found.only_in == 'first' else 2}"]
    apart = found.apart
    means, channel = _mean_cells(apart)
    histograms = ["-" if each is None else number(each) for each in (apart.total_variation, apart.kolmogorov_smirnov)]
    return [found.layer, rows, means, channel, _range_cell(apart), *histograms, _different(found)]


def _mean_cells(apart: Distances) -> tuple[str, str]:
    """How far the means of the worst channel differ, and which channel that is."""
    if apart.worst_mean is None:
        return "-", "-"
    if not apart.worst_mean.value:
        return "0", "-"
    unit = " std. errors" if apart.in_standard_errors else "% of range"
    return f"{apart.worst_mean.value:.3g}{unit}", str(apart.worst_mean.channel)


def _range_cell(apart: Distances) -> str:
    first, second = apart.beyond_second, apart.beyond_first
    if first is None or second is None:
        return "-"
    if not apart.beyond:
        return "0"
    return f"+{_share(second)}" if second.value >= first.value else f"-{_share(first)}"


def _share(found: Distance) -> str:
    return f"{100 * found.value:.3g}%"


def _different(found: LayerComparison) -> str:
    """What differs, in words."""
    one_sided = found.apart.one_sided if found.apart else ()
    parts = [", ".join(found.differing)] if found.differing else []
    parts += [f"{counted(len(one_sided), 'channel')} with values in one output only"] if one_sided else []
    for what, (mine, theirs) in found.described.items():
        named = "quantisation" if what == "quantization" else what.replace("_", " ")
        parts.append(f"{named} {_described_cell(mine)} and {_described_cell(theirs)}")
    return "; ".join(parts) or "nothing"


def _described_cell(value: Any) -> str:
    """What describes a layer, such as its dtype, or the quantisation of thousands of channels."""
    text = in_words(value, most=2)
    return text if len(text) <= LONGEST_CELL else f"{text[:LONGEST_CELL]}…"


def _how_far(found: LayerComparison) -> str:
    if found.apart is None:
        return f"it is only in OUT{1 if found.only_in == 'first' else 2}"
    if "channels" in found.described:
        return "its channels are {} and {}".format(*found.described["channels"])
    if found.apart.one_sided:
        return f"channel {found.apart.one_sided[0]} has values in one output only"
    means, channel = _mean_cells(found.apart)
    if found.spread_only_in:
        which = 1 if found.spread_only_in == "first" else 2
        return f"only OUT{which} counted `spread`, and without standard errors the means differ by {means}"
    return f"the means of channel {channel} differ by {means}"
