"""What `streamstats warm` compiles is what runs need; without it, the first run says what it waits for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from stores import build_store

from streamstats.errors import OutputError, UsageError
from streamstats.jobs.warming import warm


def streamstats(cache: Path, *arguments: str | Path) -> str:
    """What a process with this cache, and no other, prints on stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "streamstats", *map(str, arguments)],
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_an_unknown_dtype_and_a_cache_that_cannot_be_written_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("float33", "f4,,x", "f4,i1", "complex64", ""):
        said: list[str] = []
        with pytest.raises(UsageError, match=f"^no layer has the dtype '{name}'; expected one of bool, int8, "):
            warm(["int8", name], said.append)
        assert said == []
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(OutputError, match=r"cache of compiled loops cannot be written: .*set XDG_CACHE_HOME"):
        warm(["float32"])


@pytest.mark.soak
def test_after_it_a_run_compiles_nothing_and_without_it_a_run_says_so_in_one_line(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 255, (40, 6, 6, 12)).astype(np.uint8)
    build_store(tmp_path / "s.zarr", {"layer": values})
    config = tmp_path / "run.yaml"
    wanted = "magnitude, squares, histogram, spread, gram"  # all but taps, which need a kernel
    config.write_text(f"source: {tmp_path}/s.zarr\noutput: {tmp_path}/out\nstatistics: [{wanted}]\n")
    cold = streamstats(tmp_path / "cold", "run", config)
    assert [line for line in cold.splitlines() if "compiling" in line] == [
        "streamstats: compiling native code: a few seconds, once on this machine; or before, by streamstats warm"
    ]
    told = streamstats(tmp_path / "warm", "warm", "uint8")
    assert all(f"uint8, {name}: " in told for name in ("mean and extrema", "taps"))
    assert "compiling" not in streamstats(tmp_path / "warm", "run", config, "--restart")
    assert "compiled in" not in streamstats(tmp_path / "warm", "warm", "uint8")
