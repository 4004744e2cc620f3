"""`streamstats doctor`, on the machine of the test; no rate is asserted."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

import pytest

import streamstats
from streamstats.cli import main
from streamstats.doctor import examination


def test_the_report_has_versions_extras_places_and_rates(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json", "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["streamstats"] == streamstats.__version__
    assert found["versions"]["zarr"] == metadata.version("zarr")
    assert found["extras"]["onnx"]["install"] == "pip install 'streamstats-calibration[onnx]'"
    assert set(found["extras"]).isdisjoint({"test", "benchmark"})
    assert set(found["places"]) == {"output", "temporary", "cache"}
    assert set(found["rates"]) == {"zstd", "uncompressed", "in memory"}
    assert all(each["one_thread"] > 0 for each in found["rates"].values())
    assert not any(each["broken"] for each in found["problems"])


def test_a_loop_that_does_not_compile_is_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_threads: int) -> None:
        raise RuntimeError("the compiled sums needs malloc")

    monkeypatch.setattr(examination, "trial", broken)
    assert main(["doctor", "--quiet"]) == 1
    assert "cannot be counted: RuntimeError: the compiled sums needs malloc" in capsys.readouterr().out


def test_a_missing_extra_is_named_with_what_installs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(examination, "trial", lambda _threads: {})
    monkeypatch.setattr(examination, "_installed", lambda name: name != "gguf")
    assert main(["doctor", "--quiet"]) == 0
    shown = capsys.readouterr().out
    assert "lacks gguf: pip install 'streamstats-calibration[gguf]'" in shown
    assert shown.count("lacks") == 1


def test_a_machine_on_which_nothing_can_be_written_is_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.chdir("/proc")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.gettempdir", _no_folder)
    assert main(["doctor", "--quiet"]) == 1
    shown = capsys.readouterr().out
    assert "broken: the output folder /proc cannot be written" in shown
    assert f"broken: the temporary folder {tmp_path}/file cannot be written" in shown
    assert "slow: compiled loops cannot be cached" in shown


def _no_folder() -> str:
    raise FileNotFoundError("no usable temporary directory found")
