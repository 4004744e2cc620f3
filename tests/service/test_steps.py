"""Jobs of several steps: what their process reports, and what the service says of it."""

from __future__ import annotations

import time
from typing import Any

import pytest

from streamstats.progress import Stage
from streamstats.service import steps
from streamstats.service.lines import Lines
from streamstats.service.messages import StageView
from streamstats.service.runner import ONNX_STEPS


class Written(Lines):
    """Lines that are remembered."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[str, Any]] = []

    def write(self, kind: str, content: object) -> None:
        self.lines.append((kind, content))

    @property
    def stages(self) -> list[StageView]:
        return [StageView.model_validate(content, strict=False) for kind, content in self.lines if kind == "stage"]


def test_each_stage_of_each_step_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    later, real = [0.0], time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: real() + later[0])
    lines = Written()
    lines.step("record", ONNX_STEPS)
    lines.begin(Stage("recording 3 layers", 100))
    lines.advance(10)
    later[0] = 1000.0
    lines.advance(15)
    last = lines.stages[-1]
    assert (last.step, last.what, last.unit, last.done, last.total) == (0, "recording 3 layers", "samples", 25, 100)
    assert last.seconds_left == pytest.approx(3000, rel=0.01)
    lines.step("count", ONNX_STEPS)
    lines.begin(Stage("plan: 3 layers", 100, 4000, workers="2 threads"))
    later[0] = 2000.0
    lines.advance(50, 1000)
    last = lines.stages[-1]
    assert (last.step, last.what, last.unit, last.done, last.total) == (1, "", "bytes", 1000, 4000)
    assert [kind for kind, _ in lines.lines if kind in ("plan", "progress")] == ["plan", "progress"]


def test_the_time_left_is_not_guessed() -> None:
    found = steps.Step(2, ONNX_STEPS)
    found.begin(Stage("correcting", 8))
    assert found.document()["seconds_left"] is None
    found.meter.add(1, 0)
    assert found.document()["seconds_left"] is None  # within the first second


def test_a_job_of_one_step_reports_none() -> None:
    lines = Written()
    lines.begin(Stage("plan", 10, 100, workers="1 thread"))
    lines.advance(10, 100)
    assert not lines.stages
