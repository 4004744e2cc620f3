"""`streamstats gram`: calls the library and prints the result."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError, counted
from .layer_table import cell
from .stale import say_if_stale
from .tables import number, print_json, print_table, say

if TYPE_CHECKING:
    from ..outputs.layer_statistics import LayerStatistics
    from ..spectra.group import GroupSpectrum
    from ..spectra.spectrum import LayerSpectrum

SHOWN = 8
"""How many groups, and how many of their dead and duplicate columns, are shown at most."""
LONG = 2048**3
"""Groups · columns³ from which the eigenvalues take a few seconds, so that the command says what it is doing."""
SHARE = 0.99
"""Of the sum of all eigenvalues: how many hold it is shown."""


def gram(options: Namespace) -> None:
    """`streamstats gram OUT LAYER`."""
    from ..outputs.results import open_results
    from ..report.drawing import picture_kind
    from ..spectra.spectrum import LayerSpectrum

    if options.plot and options.json:
        raise UsageError("--plot and --json cannot be combined; choose one")
    if options.plot and options.plot != "-":
        picture_kind(Path(options.plot))
    statistics = open_results(options.output).statistics(options.layer)
    say_if_stale(options.output)
    if not options.quiet:
        _say_if_long(statistics)
    found = LayerSpectrum.of(statistics)
    if options.plot:
        _plot(found, options.plot)
    elif options.json:
        print_json(found.document())
    else:
        _print_groups(found)
    _say_what(found)


def _say_if_long(statistics: LayerStatistics) -> None:
    from ..spectra.spectrum import size_of_matrices

    groups, columns = size_of_matrices(statistics)
    if groups * columns**3 >= LONG:
        matrices = f"{groups:,} matrices" if groups > 1 else "a matrix"
        say(f"computing the eigenvalues of {matrices} of {columns:,} × {columns:,}; this may take minutes")


def _plot(found: LayerSpectrum, target: str) -> None:
    from ..report import spectrum_pictures

    if target == "-":
        print(spectrum_pictures.plot_spectrum_text(found, color=sys.stdout.isatty()))
        return
    spectrum_pictures.plot_spectrum(found, Path(target))
    say(f"wrote {target}")


def _print_groups(found: LayerSpectrum) -> None:
    columns = ["columns", "rank", "effective rank", f"{SHARE:.0%} in", "condition", "greatest", "least", "dead"]
    rows = [_cells(each) for each in found.groups[:SHOWN]]
    print_table(["group", *columns, "duplicates"], rows, left=0)
    _print_columns(found)
    if len(found.groups) > 1:
        _say_of_all(found)


def _say_of_all(found: LayerSpectrum) -> None:
    """Sum up all groups of a layer."""
    groups = found.groups
    lacking = sum(each.rank < each.columns for each in groups)
    dead, duplicates = (sum(map(len, each)) for each in zip(*((g.dead, g.duplicates) for g in groups), strict=True))
    more = f", of which the worst {SHOWN} are shown (all: --json)" if len(groups) > SHOWN else ""
    say(
        f"{len(groups):,} groups{more}: {lacking:,} without full rank; {counted(dead, 'dead column')} and "
        f"{counted(duplicates, 'duplicate column')} in all"
    )


def _cells(found: GroupSpectrum) -> list[str]:
    condition = found.condition_at_least
    return [
        str(found.group),
        cell(found.columns),
        cell(found.rank),
        number(found.effective_rank),
        cell(found.directions(SHARE)),
        number(condition) if not condition < found.condition else f"≥ {number(condition)}",
        number(float(found.eigenvalues[0])),
        number(found.least),
        cell(len(found.dead)),
        cell(len(found.duplicates)),
    ]


def _print_columns(found: LayerSpectrum) -> None:
    """A line with the dead columns of each group that is shown, and one with the duplicate ones; the first of many."""
    for each in found.groups[:SHOWN]:
        of_group = f" in group {each.group}" if len(found.groups) > 1 else ""
        for what, names in (("dead", found.dead(each)), ("duplicates", found.duplicates(each))):
            if names:
                more = f"; and {len(names) - SHOWN:,} more, see --json" if len(names) > SHOWN else ""
                print(f"{what}{of_group}: {'; '.join(names[:SHOWN])}{more}")


def _say_what(found: LayerSpectrum) -> None:
    """Say which matrix the figures are of."""
    of = f"{found.matrix} XᵀX/n" if found.reason else found.matrix
    reason = f": {found.reason}" if found.reason else ""
    say(f"figures of the {of} over {counted(found.positions, 'position')}{reason}")
