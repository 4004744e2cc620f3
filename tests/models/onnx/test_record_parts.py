"""Processes that record shares of the samples into parts of one store leave what one process would."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from graphs import Network

from streamstats.calibration.recorder import Recorder
from streamstats.cli import main
from streamstats.jobs.run import reduce


def test_shares_of_the_samples_in_parts_are_all_of_them(
    network: Network, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "x.npy", network.x)
    assert main(["record", str(network.path), "--samples", str(tmp_path / "x.npy"), "-o", str(tmp_path / "whole")]) == 0
    for rank, share in enumerate(np.array_split(network.x, 2)):
        np.save(tmp_path / "share.npy", share)
        arguments = ["record", str(network.path), "--samples", str(tmp_path / "share.npy"), "-o", str(tmp_path / "s")]
        with Recorder(tmp_path / "s", part="other"):
            assert main([*arguments, "--part", f"rank{rank}"]) == 0
    expected, found = reduce(tmp_path / "whole"), reduce(tmp_path / "s")
    assert expected.keys() == found.keys()
    assert all(found[layer].statistics == each.statistics for layer, each in expected.items())
    assert main([*arguments, "--part", "rank1"]) == 2
    assert "append to this one with --append" in capsys.readouterr().err
    with Recorder(tmp_path / "s", part="rank1"):
        assert main([*arguments, "--part", "rank1", "--append"]) == 1
    assert "rank1 is in use by process" in capsys.readouterr().err
    assert main([*arguments, "--part", "rank2", "--storage", "int8"]) == 2
    assert "record parts with float storage" in capsys.readouterr().err
