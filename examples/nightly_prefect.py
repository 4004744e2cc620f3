"""A nightly job as a Prefect flow: count what is new, retry what fails, and fail if a layer has drifted.

Needs Prefect (`pip install prefect`). `python nightly_prefect.py` runs the flow for two nights on a store made here.
Without a server of its own, Prefect starts one for the run; on a slow machine, set
PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS=120. In earnest, `nightly.serve(name="calibration", cron="0 2 * * *")`
runs the flow every night at two. Every row counts once, whatever is retried: a task that runs again resumes where the
last one was interrupted.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
from prefect import flow, task

import streamstats as ss


@task(retries=3, retry_delay_seconds=1)
def count(store: Path, output: Path) -> dict[str, int]:
    """Count the rows that `output` lacks; the rows of each layer."""
    return {name: found.rows for name, found in ss.run(ss.Job(str(store), str(output))).statistics.items()}


@task
def check(before: Path, after: Path, threshold: float) -> None:
    """Fail if the mean of a channel has moved by more than `threshold` per cent of its layer's range."""
    drifted = [each.layer for each in ss.compare(before, after).beyond(threshold)]
    if drifted:
        raise RuntimeError(f"drifted: {', '.join(drifted)}; see: streamstats compare {before} {after}")


@flow
def nightly(store: Path, output: Path, threshold: float = 5.0) -> dict[str, int]:
    """Count what was appended since the last good night, and compare with the results of that night."""
    last = output.with_name("last-night")
    rows = count(store, output)
    if last.exists():
        check(last, output, threshold)
        shutil.rmtree(last)
    shutil.copytree(output, last)
    return rows


def record(store: Path, rows: int) -> None:
    """What the day brings: more samples of a layer."""
    generator = np.random.default_rng(rows)
    with ss.Recorder(store) as recorder:
        recorder.append("fc", generator.normal(size=(rows, 64)).astype(np.float32))


def main() -> None:
    """Two nights."""
    folder = Path(tempfile.mkdtemp(prefix="streamstats-"))
    for night, rows in enumerate((200, 100), start=1):
        record(folder / "calibration.zarr", rows)
        counted = nightly(folder / "calibration.zarr", folder / "out")
        print(f"night {night}: {counted['fc']} rows counted in all")


if __name__ == "__main__":
    main()
