"""The steps of a job that has several, and how far the stage of a step has come."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from ..progress import Meter, Stage


@dataclass
class Step:
    """The step with this `number`, from 0, of the `steps` of a job, and how far its stage has come."""

    number: int
    steps: tuple[str, ...]
    meter: Meter = field(default_factory=lambda: Meter(Stage("", 0)))

    def begin(self, stage: Stage) -> None:
        """Begin a stage of the step."""
        self.meter = Meter(stage)

    def document(self) -> dict[str, Any]:
        """As `StageView`. The time left is that of the stage, by its rate so far: None until a second has passed."""
        meter = self.meter
        took = time.monotonic() - meter.started
        known = meter.done > 0 and took >= 1
        return {
            "step": self.number,
            "steps": self.steps,
            "what": "" if meter.stage.workers else meter.stage.what,  # of a reduction, it is the whole plan
            "unit": "bytes" if meter.stage.size else "samples",
            "done": meter.done,
            "total": meter.total,
            "seconds_left": took * (meter.total - meter.done) / meter.done if known else None,
        }
