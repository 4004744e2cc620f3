"""Ranks: where torch runs as several processes, each records into a part of its own."""

from __future__ import annotations

import sys
from pathlib import Path

from .library import library


def part_of_rank(store: str | Path) -> str:
    """The part of this process among those of `torch.distributed`, with a line that says so; "" if it is alone.

    The rows of parts follow each other in the order of their names, so the ranks have as many digits each.
    """
    distributed = library().distributed
    if not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size() == 1:
        return ""
    rank, world = distributed.get_rank(), distributed.get_world_size()
    part = f"rank{rank:0{len(str(world - 1))}d}"
    print(f"streamstats: rank {rank} of {world} records into part {part} of {store}", file=sys.stderr)
    return part
