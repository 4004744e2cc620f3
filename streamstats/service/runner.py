"""A job in a process of its own: `python -m streamstats.service.runner FOLDER`, which only the service starts.

It reports on stdout, as `lines` says; last, `{"end": …}` with the exit status that the command line would have. The end
of stdin means that the service is gone: the job stops as it does at a signal, and saves what was counted.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..calibration.selection import LayerRule
from ..calibration.sources.choose import source_of
from ..config import ClusterConfig, JobConfig
from ..errors import (
    DONE,
    INCOMPLETE,
    INTERRUPTED,
    EmptyStoreError,
    OutputError,
    StreamstatsError,
    UsageError,
    WayOut,
    counted,
    first_line,
    listed,
)
from ..interrupts import SIGNALS
from ..jobs.job import Job
from ..jobs.run import POLL_SECONDS, Follow
from ..jobs.run import run as run_job
from ..jobs.session import Outcome
from ..models.account import by_reason, told
from ..models.linear import PRECISION_STATISTICS, corrected_none
from ..outputs.results import open_results
from ..outputs.shortfalls import REMEDY
from ..progress import Progress
from ..statistics.histogram import Histogram
from ..statistics.taps import TapSums
from ..storage.files import read_json, remove, remove_folder, write_json
from ..storage.locks import locked
from .clock import Clock
from .development import keep_point
from .lines import Lines
from .memory import check_archive, is_no_memory, limit_memory, no_memory
from .processes import INPUTS
from .published import BRIEFLY, Published, result_files
from .retaining import Keep
from .withdrawing import forget_withdrawn

if TYPE_CHECKING:
    from ..models.onnx.correct import Correction, How

LOCK_SECONDS = 60.0
"""How long a job waits for an earlier process of the same job."""
AGAIN = "submit the job again when that process has ended"
REQUEST, OUTPUT, LOCK = "request.json", "out", "job.lock"
STORE, RECORDED, CORRECTED, REPORT = "calibration.zarr", "recorded.json", "corrected.onnx", "report"


def main() -> int:
    """Do the job in the folder that the first argument names, and report on it."""
    os.chdir(sys.argv[1])  # messages and files then name no folder of the service
    request = read_json(Path(REQUEST))
    for number in SIGNALS:
        signal.signal(number, _interrupt)
    threading.Thread(target=_watch_service, daemon=True).start()
    lines = Lines()
    limit_memory(request["memory"])
    status, text = _done(request, lines)
    lines.write("end", {"status": status, "text": text})
    return status


def _done(request: dict[str, Any], lines: Lines) -> tuple[int, str]:
    """Do the job: (exit status, message)."""
    try:
        with _alone():
            return JOB_KINDS[request["kind"]](request, lines)
    except Exception as error:  # of what a model or a library raises: a retry would change nothing
        return _failed(error, request["memory"])
    except KeyboardInterrupt:
        return INTERRUPTED, "interrupted; what was counted is saved"


def _failed(error: Exception, memory: int) -> tuple[int, str]:
    """The exit status and the message of a job that ends with `error`."""
    if is_no_memory(error):
        return StreamstatsError.exit_status, f"{no_memory(memory)} ({first_line(error)})"
    if isinstance(error, StreamstatsError):
        return error.exit_status, " ".join(in_a_job(error).split())
    traceback.print_exc()
    return StreamstatsError.exit_status, f"{type(error).__name__}: {first_line(error)}"


def in_a_job(error: StreamstatsError) -> str:
    """The message of `error` for a job, whose output nobody chooses or counts again.

    >>> in_a_job(StreamstatsError("chunk c/0 has changed", WayOut.RESTART, WayOut.ELSEWHERE))
    'chunk c/0 has changed; submit the job again'
    """
    has_command = any(isinstance(each, WayOut) for each in error.ways_out)
    return f"{error.found}; submit the job again" if has_command else str(error)


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Wait for an earlier process of the job: one whose service was killed is still saving."""
    who = {"host": socket.gethostname(), "process": os.getpid(), "since": ""}
    until = time.monotonic() + LOCK_SECONDS
    with contextlib.ExitStack() as held:
        while True:
            try:
                held.enter_context(locked(Path(LOCK), who, keep=lambda: False, remedy=AGAIN))
                break
            except OutputError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.5)
        yield


# Reducing a store


def _run(request: dict[str, Any], lines: Lines) -> tuple[int, str]:
    """Reduce a store, as the command `run` does: (exit status, message)."""
    fields = {name: value for name, value in request.items() if name in JobConfig.model_fields}
    config = JobConfig.model_validate({**fields, "output": OUTPUT}, strict=False)
    follow, keep = request["follow"], Keep(**request["sets"])
    if follow is not None:
        wait_for_layers(str(request["source"]), follow["idle"], lines)
    job, ends = replace(config.job(), follow_links=False), bool(request.get("only_forget"))
    forgotten = forget_withdrawn(job, request.get("withdrawn", {}), lines, again=not ends)
    if ends:
        lines.write("results", Published(Path(), keep=keep).publish(result_files(Path(OUTPUT))))
        lines.settled(*_rows_left(Path(OUTPUT)))
        return DONE, f"done; {counted(forgotten, 'row')} forgotten"
    outcome = _reduced(config.job(), lines, Follow(**follow) if follow is not None else None, keep)
    if outcome.complete:
        return DONE, f"done; {counted(len(outcome.statistics), 'layer')}{_without_rows(outcome)}"
    return INCOMPLETE, "; ".join(_incomplete(outcome))


def _rows_left(output: Path) -> tuple[int, int]:
    """(rows that are counted, rows that are missing) of all layers."""
    layers = open_results(output).manifest.layers.values()
    missing = (rows for each in layers for rows, _ in each.missing)
    return sum(each.rows for each in layers), sum(stop - start for start, stop in missing)


def _without_rows(outcome: Outcome) -> str:
    """Which layers have no rows, if some have none: all their batches may have been withdrawn."""
    empty = [name for name, found in outcome.statistics.items() if not found.rows]
    return f"; no rows of {listed(empty)}: all their batches were withdrawn, or none has arrived" if empty else ""


def _incomplete(outcome: Outcome) -> Iterator[str]:
    """What the outcome lacks: rows that could not be read, and layers below `min_rows`."""
    if outcome.unreadable:
        lost = sum(each.rows[1] - each.rows[0] for each in outcome.unreadable)
        yield f"{counted(lost, 'row')} could not be read; the first: {outcome.unreadable[0].reason}"
    if outcome.unreadable_arrays:
        array, reason = next(iter(outcome.unreadable_arrays.items()))
        yield f"{counted(len(outcome.unreadable_arrays), 'array')} could not be read; the first: {array}: {reason}"
    if outcome.shortfalls:
        layer, short = next(iter(outcome.shortfalls.items()))
        below = counted(len(outcome.shortfalls), "layer")
        yield f"{below} below `min_rows`; the first: {layer}: {short.reason}; {REMEDY}"


def wait_for_layers(source: str, idle: float | None, progress: Progress, clock: Clock | None = None) -> None:
    """Wait until the store at `source` has a layer to follow, at most `idle` seconds.

    Raises `UsageError` with the reason if it has none by then, and at once if there is no store.
    """
    monotonic = (clock or Clock()).monotonic
    since, waits = monotonic(), False
    while (reason := _lacks_layers(source)) is not None:
        if idle is not None and monotonic() - since >= idle:
            raise UsageError(f"no activations arrived in {idle:,.0f} s: {reason}") from reason
        if not waits:
            progress.say("waiting for the first activations")
        waits = True
        time.sleep(POLL_SECONDS)


def _lacks_layers(source: str) -> EmptyStoreError | None:
    """What a store without a layer says, None if it has one. Raises `UsageError` if there is no store."""
    try:
        source_of(source, follow_links=False).find()
    except EmptyStoreError as error:
        return error
    return None


def _reduced(job: Job, lines: Lines, follow: Follow | None = None, keep: Keep = BRIEFLY) -> Outcome:
    """Reduce a store, publish the results each time that they are written, and report progress.

    Links are not followed: whoever can write the store could have the service read any of its files.
    """
    published = Published(Path(), keep=keep)

    def publish_results(outcome: Outcome) -> None:
        lines.counted(sum(each.rows for each in outcome.statistics.values()))  # without rows that could not be read
        number = published.publish(result_files(Path(job.output)))
        if follow is not None:
            keep_point(Path(), number, outcome.statistics)
        lines.write("results", number)

    return run_job(replace(job, follow_links=False), follow=follow, progress=lines, on_written=publish_results)


# Correcting a model


def _onnx(request: dict[str, Any], lines: Lines) -> tuple[int, str]:
    """Record, reduce, correct and report, as the commands of these names do; each step resumes what was interrupted."""
    inputs = {field: Path(INPUTS, name) for field, name in request["inputs"].items()}
    _check_models(inputs)
    for path in inputs.values():
        check_archive(path, request["memory"])
    lines.step("record", ONNX_STEPS)
    _record(inputs, request, lines)
    lines.step("count", ONNX_STEPS)
    outcome = _reduced(_onnx_job(request), lines)
    lines.step("correct", ONNX_STEPS)
    correction = _corrected(inputs, request, lines)
    lines.step("report", ONNX_STEPS)
    _publish_correction(correction, lines)
    remove(Path(RECORDED))  # first: a store that is half removed was not recorded
    remove_folder(Path(STORE))  # many times the size of the uploads
    if corrected_none(correction.layers):
        return INCOMPLETE, f"no layer was corrected: {told((each.layer, each.reason) for each in correction.layers)}"
    corrected = sum(each.corrected for each in correction.layers)
    return DONE, f"done; {counted(len(outcome.statistics), 'layer')} counted, {corrected:,} of the model corrected"


def _check_models(inputs: dict[str, Path]) -> None:
    """Raise `UsageError` for a model that takes tensors from other files."""
    from ..models.onnx.files import check_alone

    for field in ("model", "quantized"):
        if field in inputs:
            check_alone(inputs[field])


def _record(inputs: dict[str, Path], request: dict[str, Any], lines: Lines) -> None:
    """Record into a new store, unless that is done. A recording that was interrupted starts again."""
    from ..models.onnx.record import record

    if Path(RECORDED).exists():
        return
    remove_folder(Path(STORE))
    lines.say("running the model on the samples")
    how = {"storage": request["storage"], "mask": request.get("mask")}
    recorded = record(inputs["model"], inputs["samples"], STORE, **how, progress=lines)
    for reason, names in by_reason((each.layer, each.reason) for each in recorded).items():
        lines.say(f"skipped: {listed(names)}: {reason}")
    write_json(Path(RECORDED), {"layers": [each.layer for each in recorded]})


def _onnx_job(request: dict[str, Any]) -> Job:
    """The reduction of the recorded store."""
    cluster = ClusterConfig.model_validate(request["cluster"], strict=False)
    ranges = (Histogram.name,) if request.get("activation_bits") else ()
    taps = () if request.get("mask") else (TapSums.name,)  # which layers with a mask cannot have
    rule = LayerRule("*", statistics=(*PRECISION_STATISTICS, *taps, *ranges))
    return Job(STORE, OUTPUT, (rule,), memory=request["memory"], cluster=cluster.chosen())


def _corrected(inputs: dict[str, Path], request: dict[str, Any], lines: Lines) -> Correction:
    """Correct the quantised model, or the float model with its weights fake-quantised here."""
    from ..models.onnx.correct import correct, correct_quantized

    model, quantized = inputs["model"], inputs.get("quantized")
    levels = {name: request[name] for name in LEVELS if name in request}  # an older service did not know all of them
    how = _how(inputs, request)
    lines.say("correcting the model")
    if quantized is not None:
        return correct_quantized(model, quantized, OUTPUT, CORRECTED, how=how, progress=lines)
    return correct(model, OUTPUT, CORRECTED, **levels, how=how, progress=lines)


def _how(inputs: dict[str, Path], request: dict[str, Any]) -> How:
    """How to correct: in one pass or layer by layer, judged by held-out samples or not."""
    from ..models.advice import IN_A_JOB
    from ..models.onnx.correct import How
    from ..models.onnx.iterative import Iterative
    from ..models.onnx.judge import HeldOut

    iterative = held_out = None
    mask = request.get("mask")  # an older service did not know it
    if request["iterative"]:
        iterative = Iterative(inputs["samples"], Path("work"), request["iterative"], mask=mask)
    if "held_out" in inputs:
        held_out = HeldOut(inputs["held_out"], inputs.get("labels"), mask=mask)
    return How(iterative, held_out, request["do_no_harm"], advice=IN_A_JOB)


def _publish_correction(correction: Correction, lines: Lines) -> None:
    """Publish the corrected model and its report with the results."""
    from ..report import page as pages

    page = Path(REPORT).with_suffix(".html")
    beside = pages.write(page, pages.document(Path(OUTPUT), correction))
    files = {each.name: each for each in (page, beside, Path(CORRECTED))}
    lines.write("results", Published(Path()).publish(result_files(Path(OUTPUT)) | files))


LEVELS = ("bits", "per_channel", "symmetric", "weight_range", "activation_bits", "activation_range")
"""The keys of a request that say how the float model is fake-quantised."""
ONNX_STEPS = ("record", "count", "correct", "report")
JOB_KINDS = {"run": _run, "onnx": _onnx}


# The end of the service, and signals


def _watch_service() -> None:
    with contextlib.suppress(OSError):
        while os.read(sys.stdin.fileno(), 1024):  # not `sys.stdin.read`, whose lock Python needs when it exits
            pass
    os.kill(os.getpid(), signal.SIGTERM)


def _interrupt(_number: int, _frame: object) -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
