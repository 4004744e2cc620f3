"""Corrections in a process of their own: what it says arrives, whatever becomes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from loops import awaited
from served import small_store

from streamstats.errors import StreamstatsError, UsageError
from streamstats.jobs.job import Job
from streamstats.jobs.run import run
from streamstats.service import correcting
from streamstats.service.correcting import Correcting


@pytest.fixture
def results(tmp_path: Path) -> Path:
    run(Job(str(small_store(tmp_path / "s.zarr")), str(tmp_path / "out")))
    return tmp_path / "out"


def written(folder: Path, outputs: int) -> str:
    generator = np.random.default_rng(2)
    weights = {f"fc.{kind}": generator.normal(size=(outputs, 10)) for kind in ("weight", "fake_quantized")}
    (folder / "body").write_bytes(safetensors.numpy.save(weights))
    return str(folder / "body")


def test_a_correction_that_takes_too_long_ends(tmp_path: Path, results: Path) -> None:
    asked = Correcting(written(tmp_path, 300_000), str(results), ["OI"], 1)
    with pytest.raises(UsageError, match="takes more than 1 s, the limit of this service; send fewer layers"):
        awaited(asked.done())


def test_an_error_is_that_of_doing_it_here(tmp_path: Path, results: Path) -> None:
    asked = Correcting(written(tmp_path, 4), str(results), ["OI"], 60)
    with pytest.raises(UsageError) as here:
        asked.do()
    with pytest.raises(UsageError) as there:
        awaited(asked.done())
    assert str(there.value) == str(here.value)
    assert str(tmp_path) not in str(there.value)


def test_what_is_unforeseen_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(correcting.log, "propagate", True)
    asked = Correcting(written(tmp_path, 4), None, ["OI"], 60)  # type: ignore[arg-type]
    with pytest.raises(StreamstatsError, match="the service's log has the details"):
        awaited(asked.done())
    assert "TypeError" in caplog.records[0].said  # type: ignore[attr-defined]
