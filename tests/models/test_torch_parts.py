"""torch: processes that run at once record into parts of one store, by their ranks; tensors go into recorders as is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamstats.calibration.recorder import Recorder
from streamstats.jobs.meter import Meter
from streamstats.jobs.run import reduce

torch = pytest.importorskip("torch", reason="`make models` tests with it")

from streamstats.models.torch import recording  # noqa: E402
from streamstats.models.torch.ranks import part_of_rank  # noqa: E402

RANK = """
import sys
import torch
from streamstats.models.torch import recording

store, address, rank = sys.argv[1], sys.argv[2], int(sys.argv[3])
torch.distributed.init_process_group("gloo", init_method=f"file://{address}", world_size=2, rank=rank)
x = torch.arange(80.0).reshape(20, 4)
model = torch.nn.Sequential(torch.nn.Linear(4, 2))
with recording(model, store):
    model(x[rank::2])
torch.distributed.barrier()
"""


def test_ranks_record_into_parts_of_one_store(tmp_path: Path) -> None:
    arguments = [str(tmp_path / "s"), str(tmp_path / "rendezvous")]
    ranks = [
        subprocess.Popen([sys.executable, "-c", RANK, *arguments, str(rank)], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    for rank, each in enumerate(said):
        assert f"rank {rank} of 2 records into part rank{rank} of {tmp_path}/s" in each
    found = reduce(tmp_path / "s")["0"]
    assert [str(each.address) for each in found.sources] == ["part rank0", "part rank1"]
    assert found.mean.tolist() == torch.arange(80.0).reshape(20, 4).mean(dim=0).tolist()


def test_names_of_many_ranks_sort_as_their_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    distributed: Any = torch.distributed
    assert part_of_rank("s") == ""
    for name, value in (("is_initialized", True), ("get_world_size", 12), ("get_rank", 3)):
        monkeypatch.setattr(distributed, name, lambda value=value: value)
    assert part_of_rank("s") == "rank03"


def test_a_part_can_be_named(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 2))
    with recording(model, tmp_path / "s", part="first"):
        model(torch.ones(3, 4))
    assert [str(each.address) for each in reduce(tmp_path / "s")["0"].sources] == ["part first"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "float16", "float32", "int8"])
def test_tensors_are_recorded_as_they_are(tmp_path: Path, dtype: str) -> None:
    tensor = torch.arange(-12, 12).reshape(6, 4).to(getattr(torch, dtype))
    meter = Meter()
    meter.append("fc", tensor.requires_grad_() if tensor.is_floating_point() else tensor)  # type: ignore[arg-type]
    with Recorder(tmp_path / "s") as recorder:
        recorder.append("fc", tensor.t().contiguous().t())
    found = reduce(tmp_path / "s")["fc"]
    assert str(found.space.dtype) == dtype
    assert found.statistics == meter.statistics["fc"].statistics
    assert found.mean.tolist() == np.float64(tensor.detach().double().mean(dim=0)).tolist()
