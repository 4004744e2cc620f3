"""Whether merged results still are those of the outputs that were merged: rows may have been forgotten there, or
counted, since.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path

from ..errors import DataError
from .manifest import Manifest, read_manifest


def fingerprints(outputs: Iterable[Path]) -> dict[str, str]:
    """The absolute path of each output → SHA-256 (hex) of the digests of its states."""
    return {str(output.resolve()): _fingerprint(read_manifest(output)) for output in outputs}


def stale_outputs(merged_from: Mapping[str, str]) -> list[str]:
    """Those of the outputs `merged_from`, as `fingerprints` found them, that have changed; one that is gone tells
    nothing.
    """
    return [output for output, before in merged_from.items() if _now(Path(output)) not in (None, before)]


def _now(output: Path) -> str | None:
    try:
        manifest = read_manifest(output)
    except DataError:
        return "damaged"
    return None if manifest is None else _fingerprint(manifest)


def _fingerprint(manifest: Manifest | None) -> str:
    """Of no manifest, that of no states: a run that was interrupted has written none."""
    arrays = {} if manifest is None else manifest.arrays
    return sha256("".join(sorted(entry.state.sha256 for entry in arrays.values())).encode()).hexdigest()
