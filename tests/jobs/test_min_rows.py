"""`min_rows`: layers that counted fewer rows are named wherever results are shown, until a later run counts enough."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
import zarr
from stores import build_store, samples

from streamstats.calibration.recorder import Recorder
from streamstats.cli import main
from streamstats.config import JobConfig
from streamstats.jobs.forget import forget
from streamstats.jobs.merge import merge
from streamstats.jobs.run import Follow, run
from streamstats.jobs.status import status
from streamstats.outputs.manifest import read_manifest
from streamstats.outputs.results import open_results
from streamstats.outputs.shortfalls import Shortfall

LAYERS = {"a": samples(20, 3), "b": samples(4, 3)}


def config(folder: Path, output: str = "out", **options: Any) -> JobConfig:
    return JobConfig(source=str(folder / "s.zarr"), output=str(folder / output), **options)


def written(folder: Path, **options: Any) -> str:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump({"source": str(folder / "s.zarr"), "output": str(folder / "out"), **options}))
    return str(path)


def entry(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "manifest.json").read_text())["layers"])


def test_a_layer_with_fewer_rows_is_named_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_store(tmp_path / "s.zarr", LAYERS)
    job = written(tmp_path, min_rows=10)
    assert main(["run", job, "--json"]) == 3
    shown = capsys.readouterr()
    assert "layer b: 4 rows counted; `min_rows` is 10" in shown.err
    assert "1 layer below `min_rows`: record more samples and run again, or lower `min_rows`" in shown.err
    short = {"rows": 4, "values": 4, "channel": 0, "reason": "4 rows counted; `min_rows` is 10"}
    assert json.loads(shown.out)["shortfalls"] == {"b": short}
    found = entry(tmp_path / "out")
    assert (found["b"]["min_rows"], found["b"]["shortfall"]) == (10, short)
    assert (found["a"]["min_rows"], found["a"]["shortfall"]) == (10, None)
    assert main(["status", str(tmp_path / "out")]) == 3
    shown = capsys.readouterr()
    assert re.search(r"^a +20 +20 +none +none$", shown.out, re.MULTILINE)
    assert re.search(r"^b +4 +4 +none +none +4 rows counted; `min_rows` is 10$", shown.out, re.MULTILINE)
    assert "1 layer below `min_rows`: record more samples" in shown.err
    assert "repair" not in shown.err
    assert main(["status", str(tmp_path / "out"), "--json"]) == 3
    document = json.loads(capsys.readouterr().out)
    assert document["complete"] is False
    assert document["layers"]["b"]["shortfall"] == short
    assert document["layers"]["a"]["min_rows"] == 10


def test_enough_rows_end_with_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_store(tmp_path / "s.zarr", LAYERS)
    assert main(["run", written(tmp_path, min_rows=4), "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["shortfalls"] == {}
    assert "min_rows" not in shown.err
    assert main(["status", str(tmp_path / "out")]) == 0


def test_a_resumed_run_that_reaches_the_number_ends_with_0(tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    job = written(tmp_path, min_rows=10)
    for number, expected in ((0, 3), (1, 0)):
        with Recorder(store) as recorder:
            recorder.append("b", samples(6, 3, seed=number))
        assert main(["run", job]) == expected
        assert main(["status", str(tmp_path / "out")]) == expected
    undisturbed = run(config(tmp_path, "other", min_rows=10).job())
    assert undisturbed.complete
    state = "state/b.safetensors"
    assert (tmp_path / "out" / state).read_bytes() == (tmp_path / "other" / state).read_bytes()


def test_a_lower_number_ends_with_0_and_reads_nothing(tmp_path: Path) -> None:
    build_store(tmp_path / "s.zarr", LAYERS)
    assert main(["run", written(tmp_path, min_rows=10)]) == 3
    assert main(["run", written(tmp_path, min_rows=2)]) == 0
    assert main(["status", str(tmp_path / "out")]) == 0


def test_the_number_of_a_layer_is_that_of_its_entry(tmp_path: Path) -> None:
    build_store(tmp_path / "s.zarr", LAYERS)
    layers = [{"match": "b", "min_rows": 0}, {"match": "*"}]
    assert run(config(tmp_path, min_rows=10, layers=layers).job()).complete
    found = run(config(tmp_path, min_rows=2, layers=[{"match": "a", "min_rows": 21}, {"match": "*"}]).job())
    assert {name: each.min_rows for name, each in found.shortfalls.items()} == {"a": 21}


def test_a_channel_without_enough_finite_values_is_too_little(tmp_path: Path) -> None:
    values = samples(8, 3)
    values[2:, 1] = np.nan
    build_store(tmp_path / "s.zarr", {"a": values})
    found = run(config(tmp_path, min_rows=3, nonfinite="skip").job())
    assert found.shortfalls == {"a": Shortfall(3, 8, 2, 1)}
    assert found.shortfalls["a"].reason == "channel 1 has 2 finite values; `min_rows` is 3"
    assert run(config(tmp_path, min_rows=2, nonfinite="skip").job()).complete


@pytest.mark.parametrize("shape", [(0, 3), (4, 0, 3), (0, 0, 3)])
def test_an_expert_without_tokens_has_too_little(tmp_path: Path, shape: tuple[int, ...]) -> None:
    group = zarr.open_group(tmp_path / "s.zarr", mode="w")
    group.create_array("expert", shape=shape, dtype="float32", chunks=tuple(max(1, extent) for extent in shape))
    found = run(config(tmp_path, min_rows=1).job())
    assert found.shortfalls["expert"].values == 0
    assert not status(tmp_path / "out").complete
    assert run(config(tmp_path).job()).complete


def test_rows_that_cannot_be_read_are_told_beside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = build_store(tmp_path / "s.zarr", LAYERS)
    (store / "b/c/0/0").unlink()
    assert main(["run", written(tmp_path, min_rows=4, missing="report")]) == 3
    shown = capsys.readouterr().err
    assert "2 rows could not be read" in shown
    assert "layer b: 2 rows counted; `min_rows` is 4" in shown
    assert main(["status", str(tmp_path / "out")]) == 3
    shown = capsys.readouterr()
    assert "repair any unreadable chunks" in shown.err
    assert re.search(r"^b +2 +4 +none +0:2 +.*missing", shown.out, re.MULTILINE)
    assert re.search(r"^b +2 +4 +none +2 rows counted;", shown.out, re.MULTILINE)


def test_following_goes_on_until_it_ends_and_only_then_says_what_is_too_little(tmp_path: Path) -> None:
    build_store(tmp_path / "s.zarr", LAYERS)
    outcomes: list[bool] = []
    job = config(tmp_path, min_rows=10).job()
    found = run(job, follow=Follow(idle=0.1), on_written=lambda each: outcomes.append(each.complete))
    assert [*found.shortfalls] == ["b"]
    assert len(outcomes) == 1
    assert main(["run", written(tmp_path, min_rows=10), "--follow", "--idle", "0.1"]) == 3
    assert main(["run", written(tmp_path, min_rows=4), "--follow", "--idle", "0.1"]) == 0


def test_forgetting_rows_may_leave_too_little(tmp_path: Path) -> None:
    build_store(tmp_path / "s.zarr", {"a": samples(20, 3)})
    job = config(tmp_path, min_rows=18).job()
    assert run(job).complete
    forget(job, (0, 4))
    assert entry(tmp_path / "out")["a"]["shortfall"]["rows"] == 16
    assert not status(tmp_path / "out").complete


def test_parts_that_have_too_little_may_have_enough_together(tmp_path: Path) -> None:
    build_store(tmp_path / "s.zarr", {"a": samples(20, 3)})
    for name, rows, min_rows in (("one", "0:10", 15), ("two", "10:20", 12)):
        assert not run(config(tmp_path, name, rows=rows, min_rows=min_rows).job()).complete
    merge([tmp_path / "one", tmp_path / "two"], tmp_path / "both")
    found = status(tmp_path / "both")
    assert found.complete
    assert found.layers[0].min_rows == 15


def test_the_manifest_is_read_back_as_written_and_older_ones_ask_for_nothing(tmp_path: Path) -> None:
    build_store(tmp_path / "s.zarr", LAYERS)
    run(config(tmp_path, min_rows=10).job())
    found = open_results(tmp_path / "out").manifest
    assert found.layers["b"].shortfall == Shortfall(10, 4, 4, 0)
    assert found.min_rows() == {"a": 10, "b": 10}
    path = tmp_path / "out/manifest.json"
    document = json.loads(path.read_text())
    for each in document["layers"].values():
        del each["min_rows"], each["shortfall"]
    path.write_text(json.dumps(document))
    older = read_manifest(tmp_path / "out")
    assert older is not None
    assert (older.min_rows(), older.layers["b"].shortfall) == ({"a": 0, "b": 0}, None)
    assert status(tmp_path / "out").complete


def test_what_was_counted_is_the_same_whatever_is_asked_for(tmp_path: Path) -> None:
    build_store(tmp_path / "s.zarr", LAYERS)
    for name, min_rows in (("one", 0), ("two", 10)):
        run(config(tmp_path, name, min_rows=min_rows).job())
    for layer in LAYERS:
        for file in (f"state/{layer}.safetensors", f"correctors/{layer}.safetensors"):
            assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
