"""The whole ONNX route as a job: the model that comes back is that of the command line, bit for bit."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from networks import chain, model_of, quantized, values
from onnx import helper
from served import Served

import streamstats as ss
from streamstats.config import JobConfig
from streamstats.jobs.run import run
from streamstats.models.onnx.correct import How, correct, correct_quantized
from streamstats.models.onnx.iterative import Iterative
from streamstats.models.onnx.record import record
from streamstats.service.client import RefusedError


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A float model, what a quantiser made of it, samples and others."""
    folder = tmp_path_factory.mktemp("onnx")
    x, held_out = values(24, 3, 8, 8, seed=11), values(8, 3, 8, 8, seed=12)
    found = {name: folder / f"{name}.npy" for name in ("samples", "held_out", "labels")}
    np.save(found["samples"], x)
    np.save(found["held_out"], held_out)
    np.save(found["labels"], np.arange(8) % 5)
    nodes, constants = chain()
    found["quantized"] = quantized(model_of(nodes, constants, x), folder, x, "qdq")
    found["model"] = folder / "float.onnx"
    return found


def uploaded(client: ss.Client, files: dict[str, Path], *names: str) -> dict[str, str]:
    return {name: client.upload(files[name]).id for name in names}


def by_hand(files: dict[str, Path], folder: Path, iterative: str | None = None, **levels: Any) -> bytes:
    """The commands `record`, `run` and `correct`, one after the other."""
    store, out, fixed = folder / "s.zarr", folder / "out", folder / "fixed.onnx"
    record(files["model"], files["samples"], store)
    run(JobConfig(source=str(store), output=str(out), statistics=["spread", "taps", "histogram"]).job())
    how = How(Iterative(files["samples"], folder / "work", iterative)) if iterative else None
    if levels:
        correct(files["model"], out, fixed, **levels, how=how)
    else:
        correct_quantized(files["model"], files["quantized"], out, fixed, how=how)
    return fixed.read_bytes()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"iterative": "full"},
        {"bits": 5, "per_channel": True},
        {"bits": 4, "weight_range": "mse"},
        {"bits": 4, "activation_bits": 6, "activation_range": "entropy", "iterative": "full"},
    ],
)
def test_the_corrected_model_is_that_of_the_command_line(
    client: ss.Client, files: dict[str, Path], tmp_path: Path, options: dict[str, Any]
) -> None:
    inputs = uploaded(client, files, "model", "samples", *([] if "bits" in options else ["quantized"]))
    found = client.wait(client.submit({"kind": "onnx", **inputs, **options}).id)
    assert found.state == "done", found.message
    client.fetch(found.id, tmp_path / "fetched")
    assert (tmp_path / "fetched/corrected.onnx").read_bytes() == by_hand(files, tmp_path, **options)
    assert set(client.layers(found.id)["layers"]) == {"first", "second", "third", "last"}


def test_it_is_judged_and_reported(service: Served, client: ss.Client, files: dict[str, Path]) -> None:
    inputs = uploaded(client, files, "model", "samples", "quantized", "held_out", "labels")
    found = client.wait(client.submit({"kind": "onnx", **inputs}).id)
    assert found.state == "done", found.message
    with service.http() as http:
        page = http.get(f"/api/v1/jobs/{found.id}/report").text
        document = http.get(f"/api/v1/jobs/{found.id}/files/report.json").json()
    assert document["judgement"]["samples"] == 8
    assert "accuracy" in document["judgement"]
    assert "signal-to-quantisation-noise" in page
    assert document["judgement"]["caveat"]
    assert "--" not in " ".join([*document["advice"].values(), document["judgement"]["caveat"]])  # no command line here
    assert str(service.data) not in page
    assert str(service.data) not in str(document)
    assert not (service.data / "jobs" / found.id / "calibration.zarr").exists()  # which takes much room


def test_a_job_that_corrects_nothing_is_incomplete_as_the_command_is(client: ss.Client, tmp_path: Path) -> None:
    nodes, weight = [helper.make_node("MatMul", ["x", "w"], ["y"], name="one")], np.eye(4, dtype=np.float32)
    x = values(64, 4, seed=3) * np.float32(0.1) + np.float32(1)
    onnx.save(model_of(nodes, {"w": weight * np.float32(1.2)}, x), tmp_path / "model.onnx")
    onnx.save(model_of(nodes, {"w": weight}, x), tmp_path / "quantized.onnx")
    np.save(tmp_path / "samples.npy", x)
    np.save(tmp_path / "held_out.npy", -x)  # where the correction is wrong
    files = {each.stem: each for each in tmp_path.iterdir()}
    inputs = uploaded(client, files, *files)
    found = client.wait(client.submit({"kind": "onnx", **inputs, "do_no_harm": True}).id)
    assert found.state == "incomplete"
    assert found.message.startswith("no layer was corrected: one (")


def test_a_mask_must_be_an_input_of_the_model(client: ss.Client, files: dict[str, Path]) -> None:
    inputs = uploaded(client, files, "model", "samples", "quantized")
    found = client.wait(client.submit({"kind": "onnx", **inputs, "mask": "padding"}).id)
    assert found.state == "failed"
    assert "the mask is padding, but the model's inputs are" in found.message


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"quantized": None}, "either a quantised model or `bits`"),
        ({"bits": 4}, "not both"),
        ({"symmetric": True}, "go with `bits`"),
        ({"weight_range": "mse"}, "go with `bits`"),
        ({"activation_bits": 8}, "go with `bits`"),
        ({"quantized": None, "bits": 4, "activation_range": "mse"}, "goes with `activation_bits`"),
        ({"quantized": None, "bits": 4, "activation_bits": 17}, "activation_bits"),
        ({"labels": "samples"}, "go with `held_out`"),
        ({"held_out": "samples"}, "held-out samples are the calibration samples"),
        ({"quantized": "model"}, "upload the quantised one"),
        ({"bits": 1, "quantized": None}, "bits"),
        ({"samples": "nowhere"}, "samples"),
    ],
)
def test_a_request_that_cannot_be_met_says_why(
    client: ss.Client, files: dict[str, Path], change: dict[str, Any], said: str
) -> None:
    inputs = uploaded(client, files, "model", "samples", "quantized")
    changed = {name: inputs.get(value, value) if isinstance(value, str) else value for name, value in change.items()}
    with pytest.raises(RefusedError, match=said):
        client.submit({"kind": "onnx", **inputs, **changed})


def test_samples_that_do_not_fit_fail_with_the_reason(
    client: ss.Client, files: dict[str, Path], tmp_path: Path
) -> None:
    np.save(tmp_path / "wrong.npy", values(4, 5))
    inputs = uploaded(client, {**files, "samples": tmp_path / "wrong.npy"}, "model", "samples", "quantized")
    found = client.wait(client.submit({"kind": "onnx", **inputs}).id)
    assert found.state == "failed"
    assert "shape" in found.message


def test_uploads_are_kept_once_listed_and_deleted(service: Served, client: ss.Client, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"content")
    first, again = client.upload(tmp_path / "x"), client.upload(tmp_path / "x")
    assert first.model_dump(exclude={"uploaded"}) == again.model_dump(exclude={"uploaded"})
    assert again.uploaded >= first.uploaded  # it is kept from the last time on
    with service.http() as http:
        assert again.model_dump() in http.get("/api/v1/uploads").json()
        assert http.delete(f"/api/v1/uploads/{first.id}").status_code == 204
        assert first.id not in [each["id"] for each in http.get("/api/v1/uploads").json()]
        assert http.delete(f"/api/v1/uploads/{first.id}").status_code == 404
        assert http.post("/api/v1/uploads", content=b"").status_code == 422


def test_a_job_keeps_what_it_was_submitted_with(client: ss.Client, service: Served, files: dict[str, Path]) -> None:
    samples = io.BytesIO()
    np.savez(samples, x=values(16, 3, 8, 8, seed=77))
    with service.http() as http:
        ours = http.post("/api/v1/uploads", content=samples.getvalue()).json()["id"]
        inputs = {**uploaded(client, files, "model", "quantized"), "samples": ours}
        name = client.submit({"kind": "onnx", **inputs}).id
        assert http.delete(f"/api/v1/uploads/{ours}").status_code == 204
    found = client.wait(name)
    assert found.state == "done", found.message
