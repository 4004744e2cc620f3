"""Ranks: where torch runs as several processes, each records into a part of its own."""

from __future__ import annotations

import sys
from pathlib import Path

from .library import library


def is_one_of_several() -> bool:
    """Whether this process is one of several of `torch.distributed`."""
    distributed = library().distributed
    return bool(distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1)


def part_of_rank(store: str | Path) -> str:
    """The part of this process among those of `torch.distributed`, with a line that says so; "" if it is alone.

    The rows of parts follow each other in the order of their names, so the ranks have as many digits each.
    """
    if not is_one_of_several():
        return ""
    distributed = library().distributed
    rank, world = distributed.get_rank(), distributed.get_world_size()
    part = f"rank{rank:0{len(str(world - 1))}d}"
    print(f"streamstats: rank {rank} of {world} records into part {part} of {store}", file=sys.stderr)
    return part
