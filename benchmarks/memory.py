"""Memory: does the peak of a run stay where the plan puts it, however much there is to read?

The command `streamstats run` over a small and a large store of the same layer, over samples larger than the budget,
and over a chunk larger than the budget. The values repeat every few kilobytes, so little disk is needed.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from commands import COMMAND, Finished, run_process, write_config
from measuring import in_own_process, machine
from stores import LayerSource, Source, working_folder
from tables import Table, show, show_json
from zarr.codecs import ZstdCodec

MIB = 2**20
CHUNK = (64, 64, 64, 64)
"""16 MiB of int8, 64 samples."""
ONE_SAMPLE = (1, *CHUNK[1:])
LARGE_SAMPLE = (4096, 4096, 64)
"""1 GiB of int8."""
PART_OF_LARGE_SAMPLE = (1, 512, 512, 64)
TIGHT_BUDGET = 600 * MIB
PATTERN_BYTES = 4096
NOTES = (
    "Peak memory is what the operating system counted for the process of `streamstats run`, imports included.",
    "plan: the peak that the plan promised; budget: the configured `memory`.",
)


@dataclass(frozen=True)
class Case:
    """A store to reduce: int8 rows, chunks, shards (empty: none), and the budget in bytes (None: the default)."""

    name: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    shards: tuple[int, ...] = ()
    memory: int | None = None
    written: bool = True

    @property
    def decoded_bytes(self) -> int:
        """What there is to read."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Outcome:
    """How the run over a case went: the promised peak and the budget (None where it was refused), and the process."""

    case: Case
    promised: int | None
    finished: Finished

    def row(self) -> list[str]:
        """The line of the table."""
        promised = "-" if self.promised is None else f"{self.promised / 1e6:.0f}"
        budget = "default" if self.case.memory is None else f"{self.case.memory / 1e6:.0f}"
        peak = f"{self.finished.peak_bytes / 1e6:.0f}" if self.finished.status == 0 else f"exit {self.finished.status}"
        return [
            self.case.name,
            f"{self.case.decoded_bytes / 1e9:.2f}",
            peak,
            promised,
            budget,
            f"{self.finished.seconds:.1f}",
        ]

    def figures(self) -> dict[str, Any]:
        """The same for JSON."""
        return {
            "case": self.case.name,
            "decoded_bytes": self.case.decoded_bytes,
            "promised_bytes": self.promised,
            "budget_bytes": self.case.memory,
            **vars(self.finished),
        }


def main() -> None:
    """Generate, run and compare."""
    options = _parser().parse_args()
    small, large = (0.1, 1.0) if options.quick else options.sizes
    about = machine()
    with working_folder(options.folder) as folder:
        outcomes = [_run(case, folder, options.threads) for case in _cases(small, large)]
    if options.json:
        show_json({"machine": about, "cases": [outcome.figures() for outcome in outcomes]})
        return
    refusals = [outcome.finished.messages.strip() for outcome in outcomes if outcome.finished.status]
    show([_table(outcomes)], about, [*NOTES, *_growth(outcomes), *refusals], markdown=options.markdown)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="does it work? 0.1 and 1 GB")
    parser.add_argument("--sizes", type=float, nargs=2, default=(2, 20), metavar="GB", help="decoded (default 2 20)")
    parser.add_argument("--threads", type=int, help="default: the cores")
    parser.add_argument("--folder", help="where to generate data (default: the folder for temporary files)")
    parser.add_argument("--markdown", action="store_true", help="tables as Markdown")
    parser.add_argument("--json", action="store_true", help="all figures as JSON")
    return parser


def _cases(small: float, large: float) -> list[Case]:
    layouts: list[tuple[str, dict[str, Any]]] = [
        ("16 MiB chunks", {"chunks": CHUNK}),
        ("1-sample chunks, 16 MiB shards", {"chunks": ONE_SAMPLE, "shards": CHUNK}),
    ]
    return [
        *(Case(name, _shape(size), **layout) for name, layout in layouts for size in (small, large)),
        Case("samples of 1 GiB, 16 MiB chunks", (2, *LARGE_SAMPLE), PART_OF_LARGE_SAMPLE, memory=TIGHT_BUDGET),
        Case("a chunk of 1 GiB", (2, *LARGE_SAMPLE), (1, *LARGE_SAMPLE), memory=TIGHT_BUDGET, written=False),
    ]


def _shape(gigabytes: float) -> tuple[int, ...]:
    """Whole chunks, at least this much."""
    return (CHUNK[0] * math.ceil(gigabytes * 1e9 / math.prod(CHUNK)), *CHUNK[1:])


def _run(case: Case, folder: Path, threads: int | None) -> Outcome:
    print(f"measuring {case.name}, {case.decoded_bytes / 1e9:.1f} GB …", file=sys.stderr)
    with working_folder(str(folder)) as inside:
        source = Source(str(inside / "store.zarr"), (LayerSource("layer", len(case.shape) - 1),))
        in_own_process(_write, source.path, case)
        settings: dict[str, Any] = {} if case.memory is None else {"memory": case.memory}
        if threads:
            settings["cluster"] = {"workers": "local", "threads": threads}
        config = write_config(inside, source, **settings)
        finished = run_process([*COMMAND, "run", str(config)])
        promised = None if finished.status else in_own_process(_promised_peak, str(config))
    return Outcome(case, promised, finished)


def _write(path: str, case: Case) -> None:
    """Write the store chunk row by chunk row (not at all where only its plan matters)."""
    array = zarr.create_group(path).create_array(
        "layer",
        shape=case.shape,
        dtype="int8",
        chunks=case.chunks,
        shards=case.shards or None,
        compressors=ZstdCodec(),
        config={"write_empty_chunks": True},
    )
    if not case.written:
        return
    height = (case.shards or case.chunks)[0]
    pattern = np.random.default_rng(4).integers(-128, 127, PATTERN_BYTES, np.int8)
    block = np.resize(pattern, (height, *case.shape[1:]))
    for start in range(0, case.shape[0], height):
        array[start : start + height] = block


def _promised_peak(config_path: str) -> int:
    """What the plan of a configuration promises, in a process of its own: this one must stay small."""
    from counting import Counting

    from streamstats.calibration.selection import select_layers
    from streamstats.config import load_config
    from streamstats.jobs.opening import open_workers

    job = load_config(config_path).job()
    with open_workers(job.cluster, []) as workers:
        return Counting(select_layers(job.source, job.rules).layers, workers, job.memory).plan().peak_bytes


def _table(outcomes: Sequence[Outcome]) -> Table:
    return Table(
        "Peak memory of `streamstats run`, MB",
        ["store (int8, zstd)", "decoded GB", "peak", "plan", "budget", "seconds"],
        [outcome.row() for outcome in outcomes],
    )


def _growth(outcomes: Sequence[Outcome]) -> list[str]:
    """For each layout that was run at two sizes: the second peak over the first."""
    return [
        f"{small.case.name}: the peak over {large.case.decoded_bytes / 1e9:.1f} GB is "
        f"{large.finished.peak_bytes / small.finished.peak_bytes:.3f} times that over "
        f"{small.case.decoded_bytes / 1e9:.1f} GB."
        for small, large in pairwise(outcomes)
        if small.case.name == large.case.name
    ]


if __name__ == "__main__":
    main()
