"""What attributes say of values is said by every command that shows what was counted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import zarr

from streamstats.cli import main


def test_run_inspect_status_and_report_say_what_attributes_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    group = zarr.open_group(tmp_path / "s.zarr", mode="w")
    values = np.arange(24, dtype=np.int16).reshape(4, 3, 2)
    packed = {"scale_factor": 0.5, "add_offset": 0.1, "_FillValue": 7, "units": "K", "coordinates": "lat"}
    group.create_array("packed", data=values, attributes=packed)
    group.create_array("kind", data=values, attributes={"flag_values": [0, 1], "flag_meanings": "no yes"})
    group.create_array("lat", data=values[0])
    (tmp_path / "c.yaml").write_text(f"source: {tmp_path}/s.zarr\noutput: {tmp_path}/out\n")
    expected = [
        "note: attributes give real values, stored · 0.5 + 0.1: packed",
        "note: attributes call stored values missing, so these do not count (7): packed",
        "note: categories (`flag_values`): their mean says nothing: kind",
    ]
    aside = "note: not counted, because they are coordinates: lat"
    commands = {
        ("run", f"{tmp_path}/c.yaml"): [*expected, aside],
        ("inspect", f"{tmp_path}/out"): expected,
        ("inspect", f"{tmp_path}/out", "packed"): expected[:2],
        ("status", f"{tmp_path}/out"): [*expected, aside],
    }
    for command, notes in commands.items():
        assert main([*command]) == 0
        said = capsys.readouterr()
        for note in notes:
            assert said.err.count(f"streamstats: {note}\n") == 1, (command, note)
    assert main(["inspect", f"{tmp_path}/out"]) == 0
    head, _, row = capsys.readouterr().out.splitlines()[:3]
    assert "dtype units" in " ".join(head.split())
    assert "int16 codes K" in " ".join(row.split())
    assert main(["report", f"{tmp_path}/out", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)["layers"]
    assert [f"note: {each}: packed" for each in report["packed"]["notes"]] == expected[:2]
    page = (tmp_path / "out/report.html").read_text()
    assert "packed: attributes give real values, stored · 0.5 + 0.1; attributes call" in page
