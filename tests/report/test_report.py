"""Pictures show what was measured, are the same every time, and refuse what they cannot show."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import pytest
from rich.cells import cell_len

from streamstats.coverage import Coverage
from streamstats.errors import MissingDependencyError, OutputError, UsageError
from streamstats.outputs.layer_statistics import LayerStatistics
from streamstats.outputs.ledger import CountedSource
from streamstats.report.pictures import plot_accuracies, plot_accuracies_text, plot_channels, plot_channels_text
from streamstats.statistics.kinds import kinds_of
from streamstats.statistics.statistic import Space
from streamstats.statistics.statistics import Statistics

SVG = "{http://www.w3.org/2000/svg}"
LONG = "/features/features.12/conv/conv.0/conv.0.2/Clip_output_0/with/many/parts/QuantizeLinear_Output_of_it"
ACCURACIES = [("float", 0.9722), ("quantised", 0.4139), ("corrected", 1.0)]


def measured(values: npt.ArrayLike, layer: str = "block/project") -> LayerStatistics:
    """The statistics of `values`, rows × channels."""
    block = np.asarray(values, np.float64)
    members = {kind.name: kind.measure(block) for kind in kinds_of(())}
    source = CountedSource("", len(block), Coverage.first(len(block)))
    return LayerStatistics(layer, 1, None, (source,), Statistics(Space.of(block), members))


def spread(channels: int, layer: str = "block/project") -> LayerStatistics:
    """Nine rows of values on both sides of zero."""
    return measured(np.random.default_rng(channels).normal(size=(9, channels)), layer)


def with_gaps() -> LayerStatistics:
    """Eight channels; 2, 3 and 7 have no finite value, 0 has some."""
    values = np.random.default_rng(1).normal(size=(5, 8))
    values[:, 2:4], values[:, 7], values[0, 0] = np.nan, np.inf, np.nan
    return measured(values)


HARD = {
    "one channel": spread(1),
    "equal values": measured(np.full((3, 24), 3.5)),
    "zeros": measured(np.zeros((3, 3))),
    "nearly equal": measured(1e9 + 1e-6 * np.random.default_rng(0).normal(size=(3, 9))),
    "negative": measured(np.random.default_rng(0).normal(-50, 1, size=(3, 9))),
    "denormal": measured(np.random.default_rng(0).normal(size=(3, 9)) * 1e-310),
    "float32's largest": measured([[-3.4e38, 0], [3.4e38, 1]]),
    "gaps": with_gaps(),
    "no finite value": measured(np.full((3, 4), np.nan)),
    "no row": measured(np.zeros((0, 4))),
    "many channels": spread(3001),
    "a name with formulas": spread(4, "a $x_ and {b} <c> & \\d$"),
    "a name in another script": spread(4, "層/畳み込み"),
    "a long name": spread(4, LONG),
}


def svg(path: Path) -> ElementTree.Element:
    return ElementTree.parse(path).getroot()


def texts(path: Path) -> list[str]:
    return ["".join(element.itertext()) for element in svg(path).iter(f"{SVG}text")]


def outline(path: Path, name: str) -> npt.NDArray[np.float64]:
    """(x, y) of the corners of the drawing called `name`, y upwards."""
    (group,) = (element for element in svg(path).iter(f"{SVG}g") if element.get("id") == name)
    (drawn,) = group.iter(f"{SVG}path")
    corners = re.findall(r"[ML] (\S+) (\S+)", drawn.attrib["d"])
    return np.array(corners, np.float64) * [1, -1]


def grid(text: str, width: int = 80) -> list[str]:
    """The canvas of a terminal plot: what is right of the y axis, blanks at the end included."""
    return [line.ljust(width)[axis.end() :] for line in text.split("\n") if (axis := re.search("[│┤]", line))]


# For a terminal


@pytest.mark.parametrize("statistics", HARD.values(), ids=HARD)
@pytest.mark.parametrize(("width", "height"), [(40, 12), (80, 20), (173, 50)])
def test_a_terminal_plot_fits_and_is_plain_text_without_colour(
    statistics: LayerStatistics, width: int, height: int, capfd: pytest.CaptureFixture[str]
) -> None:
    text = plot_channels_text(statistics, width, height, color=False)
    assert "\x1b" not in text
    assert all(line.isprintable() for line in text.split("\n"))
    assert max(map(cell_len, text.split("\n"))) <= width
    assert len(text.split("\n")) <= height
    assert capfd.readouterr() == ("", "")


def test_a_terminal_plot_is_as_large_as_asked_whatever_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    monkeypatch.setenv("LINES", "10")
    lines = plot_channels_text(spread(200), 120, 30, color=False).split("\n")
    assert len(lines) == 30
    assert max(map(len, lines)) == 120


def test_a_terminal_plot_says_what_it_shows() -> None:
    text = plot_channels_text(spread(60), color=False)
    title, subtitle, key, *_, last = text.split("\n")
    assert (title, subtitle) == ("block/project", "9 rows, 60 channels")
    assert key == "█ mean  ░ minimum to maximum"
    assert last.split() == ["value", "channel"]


def test_a_terminal_plot_has_colours_and_the_same_text_with_colour() -> None:
    coloured = plot_channels_text(spread(60))
    assert "\x1b[" in coloured
    plain = re.sub(r"\x1b\[[\d;]*m", "", coloured).split("\n")
    assert [line.rstrip() for line in plain] == plot_channels_text(spread(60), color=False).split("\n")


def test_a_terminal_plot_draws_mean_minimum_and_maximum_where_they_are() -> None:
    canvas = grid(plot_channels_text(measured([[0.0, 4.0], [0.0, 8.0], [9.0, 6.0]]), color=False))
    left, right = ([line[column] for line in canvas] for column in (5, -5))
    assert left[0] == left[-1] == "░"
    assert left.index("█") == round((1 - 3 / 9) * (len(canvas) - 1))
    assert right.index("█") == pytest.approx((1 - 6 / 9) * (len(canvas) - 1), abs=0.5)
    shaded = [row for row, character in enumerate(right) if character != " "]
    assert shaded == list(range(shaded[0], shaded[-1] + 1))
    assert shaded[0] == pytest.approx((1 - 8 / 9) * (len(canvas) - 1), abs=0.5)
    assert shaded[-1] == pytest.approx((1 - 4 / 9) * (len(canvas) - 1), abs=0.5)


def test_channels_that_share_a_column_keep_their_extremes_and_the_range_of_their_means() -> None:
    values = np.zeros((2, 5000))
    values[0, 2500], values[:, 4999] = -10, 10
    text = plot_channels_text(measured(values), color=False)
    canvas = grid(text)
    assert f"2 rows, 5,000 channels, {5000 // len(canvas[0])} to {5000 // len(canvas[0]) + 1} per column" in text
    assert "█ range of means" in text
    assert canvas[0].count("█") == 1, "the mean of the last channel is not lost among its neighbours"
    assert canvas[-1].count("░") == 1, "nor is the minimum of one in the middle"


def test_channels_without_finite_values_are_left_out_and_counted() -> None:
    text = plot_channels_text(with_gaps(), color=False)
    assert "5 rows, 8 channels, 3 without finite values left out" in text
    columns = ["".join(column).strip() for column in zip(*grid(text), strict=True)]
    middles = [columns[int((channel + 0.5) * len(columns) / 8)] for channel in range(8)]
    assert [middle == "" for middle in middles] == [channel in (2, 3, 7) for channel in range(8)]


def test_terminal_plots_do_not_depend_on_what_was_drawn_before() -> None:
    import plotext

    first = plot_channels_text(spread(30), color=False)
    plot_channels_text(spread(2000, "other"), 120, 40)
    plotext.figure.title("left over").draw(plotext.figure.signal([1e6, -1e6]))
    plotext.figure.ruler("y").lim(-1e9, 1e9)
    assert plot_channels_text(spread(30), color=False) == first
    plotext.figure.clear()


def test_a_name_too_long_for_the_terminal_keeps_its_end() -> None:
    title, *_ = plot_channels_text(spread(4, LONG), color=False).split("\n")
    assert len(title) == 80
    assert title == "…" + LONG[-79:]


@pytest.mark.parametrize(("width", "height"), [(39, 20), (80, 11)])
def test_a_terminal_too_small_is_refused(width: int, height: int) -> None:
    with pytest.raises(UsageError, match=f"{width} × {height} characters is too small; expected at least 40 × 12"):
        plot_channels_text(spread(4), width, height)


# As a file


@pytest.mark.parametrize("suffix", [".png", ".svg"])
@pytest.mark.parametrize("statistics", HARD.values(), ids=HARD)
def test_a_picture_has_the_same_bytes_every_time(statistics: LayerStatistics, suffix: str, tmp_path: Path) -> None:
    first, second = tmp_path / f"first{suffix}", tmp_path / f"second{suffix}"
    plot_channels(statistics, first)
    plot_channels(statistics, second)
    assert first.read_bytes() == second.read_bytes()


def test_a_png_is_a_png_of_1500_by_750_without_a_date_or_a_program(tmp_path: Path) -> None:
    plot_channels(spread(60), tmp_path / "picture.PNG")
    content = (tmp_path / "picture.PNG").read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", content[16:24]) == (1500, 750)
    assert b"tEXt" not in content


def test_different_statistics_give_different_pictures(tmp_path: Path) -> None:
    plot_channels(measured([[1, 2], [3, 4]]), tmp_path / "a.png")
    plot_channels(measured([[1, 2], [3, 5]]), tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()


def test_a_picture_says_what_it_shows(tmp_path: Path) -> None:
    plot_channels(spread(60), tmp_path / "picture.svg")
    assert {
        "block/project",
        "9 rows, 60 channels",
        "mean",
        "minimum to maximum",
        "channel",
        "value",
    } < set(texts(tmp_path / "picture.svg"))
    assert "<dc:date>" not in (tmp_path / "picture.svg").read_text()


def test_a_picture_draws_every_mean_minimum_and_maximum_to_scale(tmp_path: Path) -> None:
    statistics = spread(50)
    plot_channels(statistics, tmp_path / "picture.svg")
    mean, band = outline(tmp_path / "picture.svg", "mean"), outline(tmp_path / "picture.svg", "band")
    bottom, top = band[:, 1].min(), band[:, 1].max()
    low, high = statistics.minimum.min(), statistics.maximum.max()
    values, corners = (low + (drawn[:, 1] - bottom) * (high - low) / (top - bottom) for drawn in (mean, band))
    np.testing.assert_allclose(values[-2 * 50 :: 2], statistics.mean, atol=1e-4)
    for value in (*statistics.minimum, *statistics.maximum):
        assert np.abs(corners - value).min() < 1e-4


def test_a_picture_of_thousands_of_channels_keeps_the_extremes(tmp_path: Path) -> None:
    values = np.zeros((2, 5000))
    values[:, 4321] = 7
    plot_channels(measured(values), tmp_path / "picture.svg")
    assert {"2 rows, 5,000 channels, 5 per column", "range of means"} < set(texts(tmp_path / "picture.svg"))
    band, means = (outline(tmp_path / "picture.svg", name) for name in ("band", "means"))
    assert len(band) < 5000
    assert band[:, 1].max() == means[:, 1].max() > np.median(means[:, 1])


def test_a_picture_counts_the_channels_that_it_leaves_out(tmp_path: Path) -> None:
    plot_channels(with_gaps(), tmp_path / "picture.svg")
    assert "5 rows, 8 channels, 3 without finite values left out" in texts(tmp_path / "picture.svg")
    mean = outline(tmp_path / "picture.svg", "mean")
    left, right = mean[:, 0].min(), mean[:, 0].max()
    edges = {round(float(x), 3) for x in (mean[:, 0] - left) * 7 / (right - left)}
    assert edges == {0, 1, 2, 4, 5, 6, 7}, "channels 0, 1, 4, 5, 6 are drawn, from edge to edge"


def test_a_picture_of_no_finite_value_says_so(tmp_path: Path) -> None:
    plot_channels(HARD["no finite value"], tmp_path / "picture.svg")
    assert "no channel has a finite value" in texts(tmp_path / "picture.svg")
    assert HARD["no finite value"].layer in texts(tmp_path / "picture.svg")
    assert "no channel has a finite value" in plot_channels_text(HARD["no finite value"])


@pytest.mark.parametrize("name", ["a name with formulas", "a name in another script"])
def test_names_are_text_not_formulas(name: str, tmp_path: Path) -> None:
    plot_channels(HARD[name], tmp_path / "picture.svg")
    assert HARD[name].layer in texts(tmp_path / "picture.svg")


def test_a_long_name_is_whole_and_breaks_at_a_slash(tmp_path: Path) -> None:
    plot_channels(spread(4, LONG), tmp_path / "picture.svg")
    lines = [text for text in texts(tmp_path / "picture.svg") if text and text in LONG and len(text) > 12]
    assert "".join(lines) == LONG
    assert [line[-1] for line in lines[:-1]] == ["/"]


@pytest.mark.parametrize(
    ("value", "ticks"), [(3.5, {"3.2", "3.4", "3.6", "3.8"}), (0.0, {"-1", "-0.5", "0", "0.5", "1"})]
)
def test_equal_values_are_a_line_in_the_middle(value: float, ticks: set[str], tmp_path: Path) -> None:
    statistics = measured(np.full((3, 30), value))
    text = plot_channels_text(statistics, color=False)
    canvas = grid(text)
    (row,) = (row for row, line in enumerate(canvas) if "█" in line)
    assert row == pytest.approx((len(canvas) - 1) / 2, abs=0.5)
    assert ticks == {line.split("┤")[0].strip() for line in text.split("\n") if "┤" in line}
    plot_channels(statistics, tmp_path / "p.svg")
    assert ticks < set(texts(tmp_path / "p.svg"))
    assert {len(set(outline(tmp_path / "p.svg", name)[:, 1])) for name in ("mean", "band")} == {1}


def test_values_too_far_apart_are_refused(tmp_path: Path) -> None:
    statistics = measured([[-1.7e308], [1.7e308]])
    for draw in (lambda: plot_channels(statistics, tmp_path / "p.svg"), lambda: plot_channels_text(statistics)):
        with pytest.raises(UsageError, match=r"block/project: its values reach from -1.7e\+308 to 1.7e\+308"):
            draw()
    assert not list(tmp_path.iterdir())


def test_drawing_leaves_matplotlib_as_it_was(tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    plot_channels(spread(4), tmp_path / "picture.png")
    assert dict(matplotlib.rcParams) == before


def test_drawing_does_without_pyplot(tmp_path: Path) -> None:
    program = f"""
import sys
from pathlib import Path
from streamstats.report.pictures import plot_accuracies
plot_accuracies([("float", 1.0)], Path({str(tmp_path / "p.png")!r}), "Accuracy")
sys.exit("matplotlib.pyplot" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_the_users_matplotlib_settings_change_nothing(tmp_path: Path) -> None:
    import matplotlib

    plot_channels(spread(4), tmp_path / "plain.svg")
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "black", "svg.fonttype": "path"}):
        plot_channels(spread(4), tmp_path / "styled.svg")
    assert (tmp_path / "plain.svg").read_bytes() == (tmp_path / "styled.svg").read_bytes()


DRAWINGS: dict[str, Callable[[Path], None]] = {
    "channels": lambda path: plot_channels(spread(4), path),
    "accuracies": lambda path: plot_accuracies(ACCURACIES, path, "Accuracy"),
}


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)
@pytest.mark.parametrize(("name", "suffix"), [("p.pdf", ".pdf"), ("p", ""), ("p.svg.gz", ".gz")])
def test_another_suffix_is_refused(draw: Callable[[Path], None], name: str, suffix: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"the suffix {re.escape(repr(suffix))}; expected '.png' or '.svg'"):
        draw(tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)
def test_a_path_that_cannot_be_written_is_an_output_error(draw: Callable[[Path], None], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(OutputError, match="cannot write"):
        draw(tmp_path / "file" / "p.png")
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)
def test_without_matplotlib_the_error_names_the_extra(
    draw: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.style", None)
    with pytest.raises(MissingDependencyError, match=re.escape("pip install '.[plot]'")):
        draw(tmp_path / "p.png")


def test_without_plotext_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotext", None)
    with pytest.raises(MissingDependencyError, match=re.escape("pip install '.[plot]'")):
        plot_channels_text(spread(4))


# Accuracies


def test_accuracies_are_bars_to_scale_with_their_values(tmp_path: Path) -> None:
    plot_accuracies(ACCURACIES, tmp_path / "p.svg", "Digits at 3 bits")
    found = texts(tmp_path / "p.svg")
    assert {"Digits at 3 bits", "float", "quantised", "corrected", "97.2%", "41.4%", "100.0%"} < set(found)
    heights = [np.ptp(outline(tmp_path / "p.svg", f"bar{place}")[:, 1]) for place in range(3)]
    np.testing.assert_allclose(np.divide(heights, heights[2]), [0.9722, 0.4139, 1], atol=1e-4)


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_accuracies_have_the_same_bytes_every_time(suffix: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        plot_accuracies(ACCURACIES, tmp_path / f"{name}{suffix}", "Accuracy")
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_accuracies_for_a_terminal_are_bars_to_scale_with_their_values() -> None:
    assert plot_accuracies_text([("float", 1.0), ("quantised", 0.25), ("none", 0), ("low", 1 / 320)]) == "\n".join(
        [
            f"float      {'█' * 40}  100.0%",
            f"quantised  {'█' * 10}{' ' * 30}   25.0%",
            f"none       {' ' * 40}    0.0%",
            f"low        ▏{' ' * 39}    0.3%",
        ]
    )


@pytest.mark.parametrize("accuracy", [-0.1, 1.1, 97.0, float("nan")])
def test_an_accuracy_out_of_range_is_refused(accuracy: float, tmp_path: Path) -> None:
    rows = [("float", 0.9), ("corrected", accuracy)]
    for draw in (lambda: plot_accuracies(rows, tmp_path / "p.svg", "t"), lambda: plot_accuracies_text(rows)):
        with pytest.raises(UsageError, match=f"the accuracy of corrected is {accuracy}; expected a number from 0 to 1"):
            draw()


def test_no_accuracies_are_refused(tmp_path: Path) -> None:
    for draw in (lambda: plot_accuracies([], tmp_path / "p.svg", "t"), lambda: plot_accuracies_text([])):
        with pytest.raises(UsageError, match="no accuracies to plot; expected at least one"):
            draw()
