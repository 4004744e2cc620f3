"""What a job's process reports: lines of JSON, as the service reads them."""

from __future__ import annotations

import pytest

from streamstats.progress import Progress, Stage
from streamstats.service import lines as reporting
from streamstats.service.lines import Lines
from streamstats.service.processes import parsed


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Lines:
    monkeypatch.setattr(reporting, "REPORT_SECONDS", 0.0)
    return Lines()


def reported(capfd: pytest.CaptureFixture[str]) -> list[tuple[str, object]]:
    found = [parsed(line) for line in capfd.readouterr().out.splitlines()]
    assert None not in found
    return found  # type: ignore[return-value]


def test_a_reduction_reports_its_plan_its_rows_and_its_repeats(
    lines: Progress, capfd: pytest.CaptureFixture[str]
) -> None:
    lines.begin(Stage("counts", rows=100, size=4000, before=20, layers=2, workers="4 threads"))
    lines.advance(10, 400)
    lines.workers(4, 1)
    lines.saved(0.5)
    plan, progress, again, saving = reported(capfd)
    assert plan == ("plan", {"rows": 120, "before": 20, "bytes": 4000, "layers": 2, "workers": "4 threads"})
    for (kind, content), repeats in ((progress, 0), (again, 1)):
        assert kind == "progress"
        assert isinstance(content, dict)
        assert content.pop("speed") > 0
        assert content == {"rows": 30, "bytes": 400, "repeats": repeats}
    assert saving == ("saving", 0.5)


def test_rows_that_are_counted_and_missing_ones_are_all_rows(lines: Lines, capfd: pytest.CaptureFixture[str]) -> None:
    lines.settled(16, missing=4)
    assert reported(capfd) == [("plan", {"rows": 20, "before": 16, "bytes": 0})]


def test_other_stages_are_messages_and_count_no_rows(lines: Progress, capfd: pytest.CaptureFixture[str]) -> None:
    lines.begin(Stage("judges the model", rows=24))
    lines.begin(Stage("judges the model", rows=24))
    lines.advance(8)
    lines.say("one more thing")
    assert reported(capfd) == [("message", "judges the model (24 samples)"), ("message", "one more thing")]


@pytest.mark.parametrize("line", ["", "loading…", '{"plan": ', "3", "[]", "{}", '{"a": 1, "b": 2}'])
def test_what_a_library_prints_is_no_report(line: str) -> None:
    assert parsed(line) is None
