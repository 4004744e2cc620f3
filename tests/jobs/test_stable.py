"""How many samples are enough: rounds that grow until every correction is known well enough."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import zarr
from networks import model_of, quantized, values
from onnx import helper
from stores import build_store, samples
from told import Told

from streamstats.cli import main
from streamstats.config import JobConfig
from streamstats.correction import MeanBiasCorrector, correction_error
from streamstats.errors import UsageError
from streamstats.jobs.job import Job
from streamstats.jobs.run import run
from streamstats.models.onnx.levels import Levels
from streamstats.models.onnx.precision import KnownTo, bias_steps, precision
from streamstats.models.onnx.record import record
from streamstats.models.onnx.subject import fake_quantized, quantized_by_others
from streamstats.outputs.layer_statistics import LayerStatistics
from streamstats.outputs.results import open_results


def config(folder: Path, output: str = "out", **options: Any) -> Job:
    return JobConfig.model_validate({"source": str(folder / "s.zarr"), "output": str(folder / output), **options}).job()


def files(output: Path) -> dict[str, bytes]:
    return {str(path.relative_to(output)): path.read_bytes() for path in output.rglob("*") if path.is_file()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    build_store(tmp_path / "s.zarr", {"large": samples(301, 8, 5)}, chunks=(10, 8, 5))
    build_store(tmp_path / "s.zarr", {"small": samples(301, 3)}, chunks=(200, 3))
    return tmp_path


def test_rounds_are_whole_chunks_of_the_largest_layer_and_end_when_it_is_enough(folder: Path) -> None:
    asked: list[int] = []

    def until(statistics: Mapping[str, LayerStatistics]) -> bool:
        assert {each.rows for each in statistics.values()} == {statistics["large"].rows}
        asked.append(statistics["large"].rows)
        return asked[-1] >= 100

    outcome = run(config(folder), until=until)
    assert asked == [40, 60, 90, 140]
    assert outcome.statistics["small"].covered == ((0, 140),)
    run(config(folder, "plain", rows="0:140"))
    assert files(folder / "out") == files(folder / "plain")
    assert main(["status", str(folder / "out")]) == 0
    run(config(folder))
    assert open_results(folder / "out").statistics("small").rows == 301


def test_without_enough_all_rows_are_counted(folder: Path) -> None:
    asked: list[int] = []

    def never(statistics: Mapping[str, LayerStatistics]) -> bool:
        asked.append(statistics["small"].rows)
        return False

    run(config(folder), until=never)
    assert asked == [40, 60, 90, 140, 210, 301]


def test_a_run_that_was_stopped_ends_with_the_same_rows(folder: Path) -> None:
    def until(statistics: Mapping[str, LayerStatistics]) -> bool:
        return statistics["large"].rows >= 130

    def stop(_rows: int) -> None:
        if told.rows > 150:
            raise KeyboardInterrupt

    told = Told(on_advance=stop)
    with pytest.raises(KeyboardInterrupt):
        run(config(folder), until=until, progress=told)
    run(config(folder), until=until)
    run(config(folder, "undisturbed"), until=until)
    assert files(folder / "out") == files(folder / "undisturbed")


def test_it_does_not_go_with_rows(folder: Path) -> None:
    with pytest.raises(UsageError, match="`rows`"):
        run(config(folder, rows="0:50"), until=lambda _statistics: True)


def test_a_store_without_rows_has_no_rounds(tmp_path: Path) -> None:
    build_store(tmp_path / "s.zarr", {"empty": samples(2, 3)[:0]}, chunks=(1, 3))
    assert run(config(tmp_path), until=lambda _statistics: False).statistics["empty"].rows == 0


# What is known


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", group=2),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "v", "b"], ["y"], name="gemm", alpha=1.0),
    ]
    constants = {"w": values(6, 2, 3, 3), "v": values(6, 5, seed=1), "b": values(5)}
    x = values(400, 4, 6, 6) + values(400, 4, 1, 1, seed=3)
    quantized(model_of(nodes, constants, x), tmp_path, x, "qdq, per channel")
    np.save(tmp_path / "x.npy", x)
    record(tmp_path / "float.onnx", tmp_path / "x.npy", tmp_path / "s.zarr", batch_size=8)
    run(config(tmp_path, statistics=["spread"]))
    return tmp_path


def test_the_error_of_a_correction_is_what_other_samples_would_give(recorded: Path) -> None:
    subject = quantized_by_others(recorded / "float.onnx", recorded / "quantized.onnx")
    pair = next(pair for pair in subject.pairs if pair.original.name == "conv")
    statistics = open_results(recorded / "out").statistics("conv")
    found = precision(pair, statistics, bias_steps(subject.quantized, subject.pairs).get("conv"))
    assert found is not None
    layer = pair.quantized
    means = np.load(recorded / "x.npy").astype(np.float64).mean(axis=(2, 3))
    terms = [MeanBiasCorrector(mean).calculate(pair.weight, layer.weight, layout="OIHW", groups=2) for mean in means]
    spread = np.std(terms, axis=0, ddof=1) / np.sqrt(len(means))
    np.testing.assert_allclose(found.error, spread, rtol=0.25)  # channels were made independent
    assert found.rows == 400
    assert found.in_steps == pytest.approx((found.error / found.step).max())
    assert found.rows_for(found.in_steps / 2) == pytest.approx(1600)


def test_the_steps_are_those_of_the_accumulator(recorded: Path) -> None:
    subject = quantized_by_others(recorded / "float.onnx", recorded / "quantized.onnx")
    steps = bias_steps(subject.quantized, subject.pairs)
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in subject.quantized.graph.initializer}
    producers = {name: node for node in subject.quantized.graph.node for name in node.output}
    for pair in subject.pairs:
        node = producers[pair.quantized.node.input[0]]
        scale = float(constants[node.input[1]])
        assert pair.weight_step is not None
        np.testing.assert_allclose(steps[pair.original.name], scale * pair.weight_step, rtol=1e-6)


def test_a_bias_of_floats_is_measured_in_the_steps_that_8_bits_would_give(recorded: Path) -> None:
    for symmetric in (False, True):
        levels = Levels(4, per_channel=True, symmetric=symmetric)
        subject = fake_quantized(recorded / "float.onnx", levels)
        for pair in subject.pairs:
            assert pair.weight_step is not None
            outputs = np.moveaxis(pair.quantized.weight, pair.quantized.output_axis, 0)
            for weights, step in zip(outputs, pair.weight_step, strict=True):
                np.testing.assert_allclose(weights / step, np.rint(weights / step), atol=1e-4)
            statistics = open_results(recorded / "out").statistics(pair.original.name)
            found = precision(pair, statistics)
            assert found is not None
            span = max(statistics.maximum.max(), 0) - min(statistics.minimum.min(), 0)
            np.testing.assert_allclose(found.step, pair.weight_step * span / 255)


def test_only_spread_and_steps_make_a_correction_known(recorded: Path) -> None:
    subject = fake_quantized(recorded / "float.onnx", Levels(4))
    run(config(recorded, "plain"))
    results = open_results(recorded / "plain")
    found = [precision(pair, results.statistics(pair.original.name)) for pair in subject.pairs]
    assert all(each is not None and each.error is None and np.isnan(each.in_steps) for each in found)
    with pytest.raises(UsageError, match="the precision of the corrections cannot be estimated"):
        KnownTo(subject.quantized, subject.pairs, 1.0)({name: results.statistics(name) for name in results.layers})


def test_equal_weights_have_no_error() -> None:
    w = values(3, 4)
    np.testing.assert_array_equal(correction_error(np.ones(4), w, w, layout="OI"), np.zeros(3))


def test_the_command_line_stops_when_it_is_known_and_says_after_how_many(
    recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    group = zarr.open_group(recorded / "s.zarr", mode="r")
    build_store(recorded / "chunks.zarr", {name: array[...] for name, array in group.arrays()})
    said = "layers: [{match: '*', channel_axis: 1}]"
    (recorded / "job.yaml").write_text(f"source: {recorded}/chunks.zarr\noutput: {recorded}/stable\n{said}\n")
    models = ["--model", f"{recorded}/float.onnx", "--quantized", f"{recorded}/quantized.onnx"]
    assert main(["run", f"{recorded}/job.yaml", "--until-stable", "1e9", *models, "--json"]) == 0
    said = capsys.readouterr()
    rows = {each["rows"] for each in json.loads(said.out)["layers"].values()}
    assert len(rows) == 1
    assert max(rows) < 100
    assert f"after {rows.pop()} samples, the corrections are known to" in said.err
    assert "requested: 1e+09" in said.err
    assert main(["run", f"{recorded}/job.yaml", "--until-stable", "1e-9", *models]) == 3
    message = capsys.readouterr().err
    assert "after 400 samples" in message
    assert "there are no more samples; 1e-09 would take about" in message
    for wrong in (
        ["--until-stable", "0", *models],
        ["--until-stable"],
        models,
        ["--until-stable", "1", "--follow", *models],
    ):
        assert main(["run", f"{recorded}/job.yaml", *wrong]) == 2


def test_samples_of_another_version_of_the_model_are_refused(
    recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = onnx.load(recorded / "float.onnx")
    for each in model.graph.initializer:
        each.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(each) * np.float32(1.5), each.name))
    onnx.save(model, recorded / "retrained.onnx")
    (recorded / "job.yaml").write_text(f"source: {recorded}/s.zarr\noutput: {recorded}/stable\n")
    command = ["run", f"{recorded}/job.yaml", "--until-stable", "1", "--bits", "4", "--model"]
    assert main([*command, f"{recorded}/retrained.onnx"]) == 2
    said = capsys.readouterr().err
    assert "is not the one that was recorded (the fingerprint is" in said
    assert "run without --until-stable" in said
    assert main([*command, f"{recorded}/float.onnx"]) in (0, 3)
