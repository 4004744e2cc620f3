"""Writers that are killed at random and start again, each in a part of its own, while a run counts: each row once."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from streamstats.calibration.recorder import stored_layer
from streamstats.errors import DataError, UsageError
from streamstats.jobs.job import Job
from streamstats.jobs.run import Follow, reduce, run
from streamstats.jobs.verify import verify

WRITERS, ROWS, CHANNELS = 4, 3000, 8
WRITER = """
import sys
import numpy as np
from streamstats.calibration.recorder import Recorder

store, number, rows, channels, buffered = sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5] == "buffered"
every = np.arange(rows * channels, dtype=np.int32).reshape(rows, channels) + number * rows * channels
with Recorder(store, part=f"rank{number}", chunk_bytes=700, buffered=buffered) as recorder:
    start = recorder.next_row("fc", every)  # after those that are committed
    print(start, flush=True)
    while start < rows:
        recorder.append("fc", every[start:start + 7])
        start = min(start + 7, rows)
"""


class Writer:
    """A process that records the rows of part `number`, killed now and then until it has recorded all of them."""

    def __init__(self, store: Path, number: int) -> None:
        self.store, self.number, self.kills = store, number, 0
        self.thread = threading.Thread(target=self._work)

    def _work(self) -> None:
        chance = random.Random(self.number)
        while True:
            how = "buffered" if chance.random() < 0.5 else "at once"
            arguments = [str(each) for each in (self.store, self.number, ROWS, CHANNELS, how)]
            process = subprocess.Popen([sys.executable, "-c", WRITER, *arguments], stdout=subprocess.PIPE)
            assert process.stdout is not None
            process.stdout.readline()  # it records
            try:
                process.wait(timeout=chance.uniform(0.05, 1.5))
            except subprocess.TimeoutExpired:
                process.kill()
                self.kills += 1
            process.stdout.close()
            if process.wait() == 0:
                return


@pytest.mark.soak
def test_every_row_counts_once_whatever_is_killed_while_a_run_follows(tmp_path: Path) -> None:
    store, total = tmp_path / "s.zarr", WRITERS * ROWS
    writers = [Writer(store, number) for number in range(WRITERS)]
    for writer in writers:
        writer.thread.start()
    job, counted = Job(str(store), str(tmp_path / "out")), 0
    while counted < total:
        try:
            counted = (
                run(job, follow=Follow(rows=total, idle=random.Random(counted).uniform(1, 3))).statistics["fc"].rows
            )
        except (UsageError, DataError) as error:  # there is no store yet, or no layer
            assert "zarr" in str(error), error  # noqa: PT017
    for writer in writers:
        writer.thread.join()
    assert sum(writer.kills for writer in writers) > WRITERS
    found, values = reduce(store)["fc"], total * CHANNELS
    assert run(job).statistics["fc"].statistics == found.statistics
    assert [str(each.covered) for each in found.sources] == [f"0:{ROWS}"] * WRITERS
    assert (found.minimum.min(), found.maximum.max()) == (0, values - 1)
    exact = [Fraction(sum(range(channel, values, CHANNELS)), total) for channel in range(CHANNELS)]
    assert [Fraction(each) for each in found.mean.tolist()] == exact
    assert verify(job) == []


def test_a_writer_resumes_after_the_rows_that_are_committed(tmp_path: Path) -> None:
    arguments = [str(each) for each in (tmp_path / "s", 0, 30, CHANNELS, "at once")]
    killed = WRITER.replace(
        "    while", "    recorder.append('fc', every[:20]); import os; os.kill(os.getpid(), 9)\n    while"
    )
    for code, status in ((killed, -9), (WRITER, 0)):
        assert subprocess.run([sys.executable, "-c", code, *arguments], check=False).returncode == status
    layer = stored_layer(tmp_path / "s", "fc", "rank0")
    assert layer is not None
    assert layer.rows == 30
    assert reduce(tmp_path / "s")["fc"].mean.tolist() == np.arange(240).reshape(30, 8).mean(axis=0).tolist()
