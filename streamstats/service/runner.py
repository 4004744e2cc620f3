"""A job in a process of its own: `python -m streamstats.service.runner FOLDER`, started by the service alone.

What happens is told on stdout, one JSON object a line: `{"plan": …}`, `{"progress": …}`, `{"message": …}`,
`{"saving": …}`, `{"results": …}` and, last, `{"end": …}` with the exit status that the command line would have. When
stdin ends, the service is gone: the job stops as at a signal, with everything saved that was counted.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..calibration.layer import find_arrays
from ..config import ClusterConfig, JobConfig
from ..errors import OutputError, StreamstatsError, UsageError, counted, first_line
from ..interrupts import SIGNALS
from ..jobs import job
from ..progress import Quiet, Stage
from ..storage.files import read_json, remove, remove_folder, write_json
from ..storage.locks import locked
from .published import publish, result_files

INCOMPLETE, INTERRUPTED = 3, 130
TELL_SECONDS = 0.25
"""Between two lines of progress."""
LOCK_SECONDS = 60.0
"""For how long a job waits for the process that had it before."""
REQUEST, OUTPUT, INPUTS, LOCK = "request.json", "out", "inputs", "job.lock"
STORE, RECORDED, CORRECTED, REPORT = "calibration.zarr", "recorded.json", "corrected.onnx", "report"


def main() -> int:
    """Do the job of the folder that the first argument names, and tell of it."""
    os.chdir(sys.argv[1])  # so that what it says and writes names no folder of the service
    request = read_json(Path(REQUEST))
    for number in SIGNALS:
        signal.signal(number, _interrupt)
    threading.Thread(target=_watch_service, daemon=True).start()
    told = _Told()
    try:
        with _alone():
            status, text = KINDS[request["kind"]](request, told)
    except StreamstatsError as error:
        status, text = error.exit_status, " ".join(str(error).split())
    except Exception as error:  # what a model or a library raises; trying again would change nothing
        traceback.print_exc()
        status, text = StreamstatsError.exit_status, f"{type(error).__name__}: {first_line(error)}"
    except KeyboardInterrupt:
        status, text = INTERRUPTED, "stopped; what was counted is saved"
    told.line({"end": {"status": status, "text": text}})
    return status


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Wait for the process that had the job before: a service that was killed leaves it a moment to save."""
    who = {"host": socket.gethostname(), "process": os.getpid(), "since": ""}
    until = time.monotonic() + LOCK_SECONDS
    with contextlib.ExitStack() as held:
        while True:
            try:
                held.enter_context(locked(Path(LOCK), who, keep=lambda: False))
                break
            except OutputError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.5)
        yield


def _run(request: dict[str, Any], told: _Told) -> tuple[int, str]:
    """(the exit status, what there is to say)."""
    fields = {name: value for name, value in request.items() if name in JobConfig.model_fields}
    config = JobConfig.model_validate({**fields, "output": OUTPUT}, strict=False)
    follow = request["follow"]
    if follow is not None:
        _wait_for_layers(config.source, told)
    outcome = _reduced(config, told, job.Follow(**follow) if follow is not None else None)
    if not outcome.unreadable:
        return 0, f"done; {counted(len(outcome.statistics), 'layer')}"
    lost = sum(each.rows[1] - each.rows[0] for each in outcome.unreadable)
    return INCOMPLETE, f"{counted(lost, 'row')} could not be read; the first: {outcome.unreadable[0].reason}"


def _wait_for_layers(source: str, told: _Told) -> None:
    """Until there is something to follow in a store that the service owns."""
    while True:
        try:
            find_arrays(source)
        except UsageError:
            told.waiting("waits for the first activations")
            time.sleep(job.POLL_SECONDS)
        else:
            return


def _reduced(config: JobConfig, told: _Told, follow: job.Follow | None = None) -> job.Outcome:
    def publish_results(outcome: job.Outcome) -> None:
        told.results(publish(Path(), result_files(Path(config.output))), outcome)

    return job.run(config, follow=follow, on_plan=told.plan, on_progress=told.progress, on_written=publish_results)


def _onnx(request: dict[str, Any], told: _Told) -> tuple[int, str]:
    """Record, reduce, correct and report, as the commands of these names do; each goes on from what is there."""
    from ..models.onnx.correct import How, correct, correct_quantized
    from ..models.onnx.files import check_alone
    from ..models.onnx.iterative import Iterative
    from ..models.onnx.judge import HeldOut
    from ..report import page as pages

    inputs = {field: Path(INPUTS, name) for field, name in request["inputs"].items()}
    model, samples, quantized = inputs["model"], inputs["samples"], inputs.get("quantized")
    for each in filter(None, (model, quantized)):
        check_alone(each)
    _record(model, samples, request, told)
    cluster = ClusterConfig.model_validate(request["cluster"], strict=False)
    config = JobConfig(
        source=STORE, output=OUTPUT, statistics=["spread", "positions"], memory=request["memory"], cluster=cluster
    )
    outcome = _reduced(config, told)
    iterative = Iterative(samples, Path("work"), request["iterative"]) if request["iterative"] else None
    held_out = HeldOut(inputs["held_out"], inputs.get("labels")) if "held_out" in inputs else None
    how = How(iterative, held_out, request["do_no_harm"])
    levels = {name: request[name] for name in ("bits", "per_channel", "symmetric")}
    told.waiting("corrects the model")
    if quantized is not None:
        correction = correct_quantized(model, quantized, OUTPUT, CORRECTED, how=how, progress=told)
    else:
        correction = correct(model, OUTPUT, CORRECTED, **levels, how=how, progress=told)
    page = Path(REPORT).with_suffix(".html")
    beside = pages.write(page, pages.document(Path(OUTPUT), correction))
    files = {each.name: each for each in (page, beside, Path(CORRECTED))}
    told.line({"results": publish(Path(), result_files(Path(OUTPUT)) | files)})
    remove(Path(RECORDED))  # first: a store that is half removed was not recorded
    remove_folder(Path(STORE))  # many times what was uploaded
    done = sum(each.corrected for each in correction.layers)
    return 0, f"done; {counted(len(outcome.statistics), 'layer')} counted, {done} of the model corrected"


def _record(model: Path, samples: Path, request: dict[str, Any], told: _Told) -> None:
    """Record into a new store, unless this was done: a store that was begun and not finished is begun again."""
    from ..models.onnx.record import record

    if Path(RECORDED).exists():
        return
    remove_folder(Path(STORE))
    told.waiting("runs the model on the samples")
    recorded = record(model, samples, STORE, storage=request["storage"])
    for each in recorded:
        if each.reason:
            told.line({"message": f"layer {each.layer} is left out: {each.reason}"})
    write_json(Path(RECORDED), {"layers": [each.layer for each in recorded]})


KINDS = {"run": _run, "onnx": _onnx}


class _Told(Quiet):
    """Lines on stdout, not too many."""

    def __init__(self) -> None:
        self._last, self._said = 0.0, ""
        self._rows = self._bytes = self._repeats = 0
        self._since = time.monotonic()

    def waiting(self, message: str) -> None:
        """Say what is going on, once."""
        if message != self._said:
            self._said = message
            self.line({"message": message})

    def begin(self, stage: Stage) -> None:
        """Say that a stage of the correction begins."""
        self.waiting(f"{stage.what} ({counted(stage.rows, 'sample')})")

    def plan(self, prepared: job.Prepared) -> None:
        """What is to be done."""
        before = sum(each.rows for each in prepared.ledger.values())
        self._rows, self._bytes, self._since = before, 0, time.monotonic()
        plan = prepared.plan
        told = {"rows": plan.rows + before, "before": before, "bytes": plan.bytes}
        self.line({"plan": {**told, "layers": len(prepared.ledger), "workers": prepared.workers}})

    def progress(self, progress: job.Progress) -> None:
        """What was done, in all."""
        self._rows += progress.rows
        self._bytes += progress.bytes
        if progress.saving is not None:
            self.line({"saving": progress.saving})
        elif progress.message:
            self.line({"message": progress.message})
        elif time.monotonic() - self._last >= TELL_SECONDS or progress.repeats > self._repeats:
            self._last = time.monotonic()
            again, self._repeats = progress.repeats - self._repeats, progress.repeats
            self._tell_progress(again)

    def _tell_progress(self, again: int = 0) -> None:
        """Rows and bytes, the latter of the newest plan, as is their number a second."""
        speed = self._bytes / max(time.monotonic() - self._since, 1e-9)
        self.line({"progress": {"rows": self._rows, "bytes": self._bytes, "speed": speed, "repeats": again}})

    def results(self, number: int, outcome: job.Outcome) -> None:
        """There are new results, under this number."""
        self._rows = sum(each.rows for each in outcome.statistics.values())  # without what could not be read
        self._tell_progress()
        self.line({"results": number})

    def line(self, document: dict[str, Any]) -> None:
        """Tell it; a service that has gone hears nothing."""
        with contextlib.suppress(BrokenPipeError):
            os.write(sys.stdout.fileno(), f"{json.dumps(document)}\n".encode())


def _watch_service() -> None:
    with contextlib.suppress(OSError):
        while os.read(sys.stdin.fileno(), 1024):  # not `sys.stdin.read`, whose lock Python wants at its end
            pass
    os.kill(os.getpid(), signal.SIGTERM)


def _interrupt(_number: int, _frame: object) -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
