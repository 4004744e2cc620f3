"""Progress on stderr: a line at the end of each stage without a terminal, a bar on one."""

from __future__ import annotations

import io
import logging
import re
import sys
from datetime import UTC, datetime

import pytest

from streamstats import progress
from streamstats.cli import announce_compiling
from streamstats.cli.progress import Shown
from streamstats.cli.stamps import Stamped
from streamstats.progress import LogProgress, Meter, Stage


def worked(shown: Shown) -> None:
    with shown:
        shown.begin(Stage("recording 3 layers", 10))
        shown.advance(4)
        shown.say("layer a is left out")
        shown.advance(6)
        shown.begin(Stage("", 1000, 2_000_000))
        shown.workers(4, 2)
        shown.saved(0.1)
        shown.advance(1000, 2_000_000)


def test_a_log_has_a_line_for_each_stage_and_message(capsys: pytest.CaptureFixture[str]) -> None:
    worked(Shown())
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["streamstats: recording 3 layers", "streamstats: layer a is left out"]
    assert lines[2].startswith("streamstats: 10/10 rows, 0.")
    assert lines[3].startswith("streamstats: 1,000/1,000 rows, 2.0 MB of 2.0 MB, ")
    assert ", 4 workers, 2 tasks repeated, " in lines[3]
    assert len(lines) == 4


def test_a_brief_log_has_no_line_at_the_end_of_a_stage(capsys: pytest.CaptureFixture[str]) -> None:
    worked(Shown(brief=True))
    assert capsys.readouterr().err.splitlines() == [
        "streamstats: recording 3 layers",
        "streamstats: layer a is left out",
    ]


def test_a_stage_that_fails_has_no_line_at_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        with Shown() as shown:
            shown.begin(Stage("", 10))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert capsys.readouterr().err == ""


def test_a_stage_gets_one_line_about_its_end_as_soon_as_it_is_done(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    with Shown() as shown:
        shown.begin(Stage("", 10))
        shown.advance(10)
        assert capsys.readouterr().err.startswith("streamstats: 10/10 rows, ")
        for _ in range(3):  # as while later steps of a job run
            shown.advance(0)
    assert capsys.readouterr().err == ""


def test_a_line_says_how_long_the_rest_takes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    shown = Shown(brief=True)
    shown.begin(Stage("", 10))
    shown.advance(5)
    assert re.fullmatch(r"streamstats: 5/10 rows, \d+ s left\n", capsys.readouterr().err)


def test_a_terminal_shows_a_bar_and_messages_above_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    worked(Shown())
    err = capsys.readouterr().err
    assert "streamstats: layer a is left out" in err
    assert "1,000/1,000 rows, 2.0 MB of 2.0 MB" in err
    assert "4 workers, 2 tasks repeated" in err


def test_quiet_leaves_messages_alone(capsys: pytest.CaptureFixture[str]) -> None:
    worked(Shown(quiet=True))
    assert capsys.readouterr().err == "streamstats: layer a is left out\n"


def test_a_program_gets_the_same_lines_as_log_records(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "streamstats"), LogProgress() as logged:
        logged.begin(Stage("recording 3 layers", 10))
        logged.say("layer a is left out")
        logged.advance(10)
    first, second, rows = caplog.records
    assert (first.name, first.levelname, first.message) == ("streamstats", "INFO", "recording 3 layers")
    assert second.message == "layer a is left out"
    assert rows.message.startswith("10/10 rows, 0.")


def test_a_rate_is_said_only_once_there_is_one() -> None:
    meter = Meter(Stage("", 10, 1000))
    assert meter.text() == "0/10 rows, 0 bytes of 1.0 kB"
    meter.add(1, 100)
    assert meter.text().endswith("/s")


def test_the_time_of_a_stage_that_is_done_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("streamstats.progress.time.monotonic", lambda: now[0])
    meter = Meter(Stage("", 10, 1000), started=now[0], last_line=now[0])
    now[0] += 2
    meter.add(10, 1000)
    now[0] += 60  # as when a followed store does not grow
    assert meter.text() + meter.time() == "10/10 rows, 1.0 kB of 1.0 kB, 500 bytes/s, 2.0 s"


def test_stamped_lines_begin_with_the_time() -> None:
    written = io.StringIO()
    stream = Stamped(written)
    print("first\nsecond", file=stream)
    stream.write("th")
    print("ird", file=stream)
    lines = written.getvalue().splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == ["first", "second", "third"]
    for line in lines:
        datetime.strptime(line.split()[0], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)


def test_compiling_is_announced_once(capsys: pytest.CaptureFixture[str]) -> None:
    announce_compiling()
    for _ in range(3):
        logging.getLogger("streamstats.compiled").info("compiling native code")
    assert capsys.readouterr().err == "streamstats: compiling native code\n"
