"""What `record`, `measure` and `demo` do: call the library, print what comes back.

Heavy imports wait until a command needs them.
"""

from __future__ import annotations

import shutil
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError, listed
from ..models.account import NOT_CHOSEN, by_reason
from .layer_table import print_layers
from .progress import Shown
from .tables import print_json, print_table, say

if TYPE_CHECKING:
    from ..models.onnx.record import RecordedLayer


def record(options: Namespace) -> None:
    """`streamstats record MODEL.onnx --samples FILE -o STORE`."""
    from ..models.onnx.record import record

    with Shown(quiet=options.quiet) as shown:
        recorded = record(
            options.model,
            options.samples,
            options.output,
            batch_size=options.batch_size,
            storage=options.storage,
            layers=options.layers,
            tensors=options.tensors,
            mask=options.mask,
            batch_axes=batch_axes(options.batch_axis),
            positions_as_rows=options.positions_as_rows,
            append=options.append,
            part=options.part,
            progress=shown,
        )
    if options.json:
        print_json({"layers": {layer.layer: layer.document() for layer in recorded}})
    else:
        _print_recorded([one for one in recorded if one.recorded])
    _say_account("recorded", recorded)
    say(
        f"wrote {options.output}; to reduce it, call `streamstats run` with `source: {options.output}` in its YAML file"
    )


def _print_recorded(recorded: Sequence[RecordedLayer]) -> None:
    """Print a row per layer, with the array in the store where one is shared."""
    shared = any(one.array not in ("", one.layer) for one in recorded)
    masked = any(one.mask for one in recorded)
    others = any(one.rows_are != "samples" for one in recorded)
    columns = ["layer", "operator", *(["array"] if shared else []), *(["mask"] if masked else [])]
    columns += ["rows are"] if others else []
    rows = [
        [
            *[one.layer, one.op, *([one.array] if shared else []), *([one.mask] if masked else [])],
            *([one.rows_are] if others else []),
            *[str(one.samples), _shape(one.shape), one.dtype],
        ]
        for one in recorded
    ]
    print_table([*columns, "rows" if others else "samples", "shape", "dtype"], rows, left=len(columns))


def _say_account(done: str, every: Sequence[RecordedLayer]) -> None:
    """Say how many inputs are `done`, and why those of other operators with weights are not, by reason."""
    skipped = [one for one in every if one.skipped]
    say(f"{done} {sum(one.recorded for one in every):,}, skipped {len(skipped):,}")
    for reason, names in by_reason((one.layer, one.reason) for one in skipped).items():
        say(f"skipped: {listed(names)}: {reason}")
    others = [one for one in every if not one.recorded and not one.skipped and one.reason != NOT_CHOSEN]
    for reason, names in by_reason((one.layer, one.reason) for one in others).items():
        say(f"nothing to record: {listed(names)}: {reason}")


def measure(options: Namespace) -> None:
    """`streamstats measure MODEL.onnx --samples FILE -o OUT`."""
    from ..models.onnx.record import measure

    with Shown(quiet=options.quiet) as shown:
        measured, found = measure(
            options.model,
            options.samples,
            options.output,
            statistics=options.statistics,
            batch_size=options.batch_size,
            layers=options.layers,
            tensors=options.tensors,
            mask=options.mask,
            batch_axes=batch_axes(options.batch_axis),
            positions_as_rows=options.positions_as_rows,
            nonfinite=options.nonfinite,
            progress=shown,
        )
    print_layers(found, options.json)
    _say_account("measured", measured)
    say(f"wrote {options.output}; view it with: streamstats inspect {options.output}")


def batch_axes(given: Sequence[str] | None) -> dict[str, int | None]:
    """Input → axis, from `INPUT=AXIS`. Raises `UsageError`."""
    found: dict[str, int | None] = {}
    for each in given or ():
        name, _, axis = each.rpartition("=")
        if not name or not (axis.isdecimal() or axis == "none"):
            raise UsageError(f"--batch-axis is {each!r}; expected INPUT=AXIS, as in h0=1, or INPUT=none")
        found[name] = None if axis == "none" else int(axis)
    return found


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def demo(options: Namespace) -> None:
    """`streamstats demo [DIR]`."""
    from ..demo import show

    outcome = show.run(Path(options.folder), say)
    if options.json:
        print_json(outcome.document())
    else:
        print(outcome.text(_own_name()), end="")


def _own_name() -> str:
    """How to call this program from another folder: by its name if that is on the path, otherwise by its own path."""
    if Path(sys.argv[0]).name == "__main__.py":
        return f"{sys.executable} -m streamstats"
    return "streamstats" if shutil.which("streamstats") else str(Path(sys.argv[0]).resolve())
