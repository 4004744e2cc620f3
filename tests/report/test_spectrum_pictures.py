"""Pictures of a spectrum show its figures, keep duplicates visible in few cells, and are the same every time."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from rich.cells import cell_len
from test_report import outline, texts

from streamstats.errors import UsageError
from streamstats.report.spectrum_pictures import ALL_ZERO, plot_spectrum, plot_spectrum_text
from streamstats.spectra.group import GroupSpectrum
from streamstats.spectra.spectrum import COVARIANCE, SECOND_MOMENTS, Columns, LayerSpectrum


def spectrum(columns: int, groups: int = 1, *, matrix: str = COVARIANCE, zeros: bool = False) -> LayerSpectrum:
    """Independent columns, except that the last is the negative of the first."""
    random = np.random.default_rng(columns)
    found = []
    for group in range(groups):
        rows = random.normal(size=(4 * columns, columns)) * (not zeros)
        rows[:, -1] = -rows[:, 0]
        found.append(GroupSpectrum.of(rows.T @ rows / len(rows), group))
    reason = None if matrix == COVARIANCE else "of a reason"
    return LayerSpectrum("block/project", matrix, reason, 4 * columns, Columns(columns, ()), tuple(found))


HARD = {
    "a few columns": spectrum(6),
    "two columns": spectrum(2),
    "one column": spectrum(1),
    "groups": spectrum(9, 7),
    "zeros": spectrum(4, zeros=True),
    "products": spectrum(12, matrix=SECOND_MOMENTS),
    "shared cells": spectrum(300),
}


@pytest.mark.parametrize("name", HARD)
def test_a_file_shows_the_spectrum_and_the_correlations_and_is_the_same_again(tmp_path: Path, name: str) -> None:
    found = HARD[name]
    worst = found.groups[0]
    plot_spectrum(found, tmp_path / "p.svg")
    shown = texts(tmp_path / "p.svg")
    group = f"group 0, the worst of {len(found.groups)}; " if len(found.groups) > 1 else ""
    assert f"{group}rank {worst.rank} of {worst.columns}, {found.positions:,} positions" in shown
    assert f"eigenvalue of the {found.matrix}" in shown
    assert ("correlations" if found.matrix == COVARIANCE else "correlations about zero") in shown
    assert (ALL_ZERO in shown) == (name == "zeros")
    assert ("300 columns, 2 per cell: the greatest" in shown) == (name == "shared cells")
    svg = (tmp_path / "p.svg").read_text()
    assert 'id="correlations"' in svg
    if worst.rank:
        corners = outline(tmp_path / "p.svg", "eigenvalues")
        assert len(corners) == worst.rank or name == "shared cells"  # matplotlib leaves out what no eye can see
        assert (np.diff(corners[:, 1]) <= 0).all()
    plot_spectrum(found, tmp_path / "again.svg")
    assert svg == (tmp_path / "again.svg").read_text()


@pytest.mark.parametrize("name", HARD)
def test_a_terminal_shows_both_within_its_width(name: str) -> None:
    lines = plot_spectrum_text(HARD[name], color=False).split("\n")
    assert lines[0] == "block/project"
    assert max(map(cell_len, lines)) <= 80
    assert not any("\x1b" in line for line in lines)
    assert (ALL_ZERO in lines) == (name == "zeros")
    cells = [line[1:-1] for line in lines if line.startswith("│")]
    assert len(cells) == min(HARD[name].groups[0].columns, 16)
    if name not in ("one column", "zeros"):  # the first and the last column are duplicates, whatever shares a cell
        assert cells[0].endswith("██")
        assert cells[-1].startswith("██")


def test_a_terminal_that_is_too_small_and_another_suffix_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a plot of 20 × 20 characters is too small"):
        plot_spectrum_text(HARD["groups"], 20, 20)
    with pytest.raises(UsageError, match=re.escape("the suffix '.pdf'; expected '.png' or '.svg'")):
        plot_spectrum(HARD["groups"], tmp_path / "p.pdf")
    assert list(tmp_path.iterdir()) == []
