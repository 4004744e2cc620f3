"""Hessians: the file has 2·XᵀX/n to the last bit, in the order of the weights; GPTQ with it gives the codes that it
gives with a Hessian of its own."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import gptq
import numpy as np
import pytest
import zarr
from quantizing import output_of
from safetensors import safe_open
from stores import build_store

import streamstats as ss
from streamstats.config import JobConfig
from streamstats.errors import UsageError
from streamstats.jobs.run import run
from streamstats.spectra.spectrum import LayerSpectrum

Array = np.ndarray[Any, Any]
MOST = 7
"""The largest code of 4 bits."""


def hessians(path: Path) -> tuple[dict[str, Array], dict[str, str]]:
    with safe_open(path, "np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118 - no dictionary


def exported(output: Path, **options: Any) -> tuple[dict[str, Array], dict[str, str]]:
    ss.export(output, "hessians", output / "hessians.safetensors", **options)
    return hessians(output / "hessians.safetensors")


def exact(rows: Array, step: Fraction = Fraction(1), zero: int = 0) -> Array:
    """2·XᵀX/n: the sums in fractions, rounded to float64 once; then doubled and divided in float64."""
    columns = [[(Fraction(each) - zero) * step for each in column] for column in rows.T.tolist()]
    sums = [[float(sum(map(Fraction.__mul__, x, y), Fraction(0))) for y in columns] for x in columns]
    return 2 * np.array(sums) / len(rows)


def kernel(taps: tuple[int, int], stride: int, pad: int, groups: int) -> dict[str, Any]:
    numbers = {"strides": [stride] * 2, "pads": [pad] * 4, "dilations": [1, 1], "output_padding": [0, 0]}
    return {"taps": [*taps], **numbers, "transposed": False, "groups": groups}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    random = np.random.default_rng(0)
    layers = {
        "block/floats": (random.normal(size=(9, 5, 4)) * 10.0 ** random.integers(-6, 6, (9, 5, 4))).astype("f4"),
        "block/codes": random.integers(-128, 128, (30, 3)).astype("i1"),
    }
    attributes = {"block/codes": {"quantization": {"step": 0.013, "zero_point": -7}}}
    return output_of(tmp_path_factory.mktemp("run"), layers, attributes=attributes, statistics=("gram",))


def samples() -> dict[str, Array]:
    """The samples of `out`."""
    random = np.random.default_rng(0)
    floats = (random.normal(size=(9, 5, 4)) * 10.0 ** random.integers(-6, 6, (9, 5, 4))).astype("f4")
    return {"block.floats": floats.reshape(-1, 4), "block.codes": random.integers(-128, 128, (30, 3)).astype("i1")}


def test_each_entry_is_that_of_the_exact_sums(out: Path) -> None:
    tensors, metadata = exported(out, dtype="float64")
    rows = samples()
    assert set(tensors) == {f"{name}.hessian" for name in rows}
    assert tensors["block.floats.hessian"].tolist() == exact(rows["block.floats"]).tolist()
    codes = exact(rows["block.codes"], Fraction(0.013), -7)
    assert tensors["block.codes.hessian"].tolist() == codes.tolist()
    described = json.loads(metadata["layers"])
    assert described["block.floats"] == {
        "layer": "block/floats",
        "positions": 45,
        "columns": ["input channel in the group"],
        "taps": [],
    }
    assert (metadata["format"], metadata["damp"]) == ("streamstats-hessians/1", "0.0")


def test_damping_adds_a_share_of_the_mean_of_the_diagonal_and_float32_rounds_the_entries(out: Path) -> None:
    plain, _ = exported(out, dtype="float64")
    damped, metadata = exported(out, damp=0.01)
    assert metadata["damp"] == "0.01"
    for name, hessian in plain.items():
        mean = float(sum(map(Fraction, np.diagonal(hessian).tolist())))
        wanted = hessian + np.diag([0.01 * (mean / len(hessian))] * len(hessian))
        assert damped[name].dtype == np.float32
        assert damped[name].tolist() == wanted.astype("f4").tolist()


def layer_of(rows: Array, outputs: int = 12) -> tuple[Array, Array]:
    """(weights [outputs, columns], step [outputs, 1]) of a layer that reads these rows."""
    weights = np.random.default_rng(5).normal(size=(outputs, rows.shape[1]))
    return weights, np.abs(weights).max(axis=1, keepdims=True) / MOST


def compare(rows: Array, ours: Array, own: Array) -> float:
    """The share of equal codes by GPTQ with `ours` and with its `own` Hessian, which must be worth as much."""
    weights, step = layer_of(rows)
    with_ours, with_own = (gptq.gptq(weights, each, step, MOST) for each in (ours, own))
    errors = [gptq.error(weights, codes, step, rows) for codes in (with_ours, with_own)]
    assert errors[0] == pytest.approx(errors[1], rel=0.01)
    return float((with_ours == with_own).mean())


def correlated(shape: tuple[int, ...], seed: int) -> Array:
    """Samples whose channels, on the last axis, are correlated."""
    random = np.random.default_rng(seed)
    mixed = random.normal(size=shape) @ random.normal(size=(shape[-1],) * 2) / np.arange(1, shape[-1] + 1)
    return mixed.astype("f4")


def test_gptq_gives_the_codes_that_it_gives_with_a_hessian_of_its_own(tmp_path: Path) -> None:
    rows = correlated((900, 48), 1)
    tensors, _ = exported(output_of(tmp_path, {"fc": rows}, statistics=("gram",)))
    own = gptq.running_hessian(np.array_split(rows, 9))
    assert compare(rows, tensors["fc.hessian"], own) > 0.99
    weights, step = layer_of(rows)
    codes = gptq.gptq(weights, tensors["fc.hessian"], step, MOST)
    nearest = gptq.nearest(weights, step, MOST)
    assert gptq.error(weights, codes, step, rows) < 0.8 * gptq.error(weights, nearest, step, rows)


@pytest.mark.parametrize(("stride", "pad", "groups"), [(1, 1, 1), (2, 1, 1), (2, 0, 2), (1, 1, 4)])
def test_the_columns_of_kernels_are_those_of_the_weights(tmp_path: Path, stride: int, pad: int, groups: int) -> None:
    values = correlated((40, 7, 6, 4), 2).transpose(0, 3, 1, 2)
    attributes = {"conv": {"channel_axis": 1, "kernel": kernel((3, 2), stride, pad, groups)}}
    out = output_of(tmp_path, {"conv": np.ascontiguousarray(values)}, attributes=attributes, statistics=("gram",))
    tensors, metadata = exported(out)
    found = tensors["conv.hessian"].reshape(groups, *tensors["conv.hessian"].shape[-2:])
    rows = gptq.unfolded(values, (3, 2), stride, pad, groups)
    described = json.loads(metadata["layers"])["conv"]
    assert described["positions"] == rows.shape[1]
    assert (described["columns"][0], described["taps"]) == ("input channel in the group", [3, 2])
    for mine, group in zip(found, rows, strict=True):
        wide = group.astype("f8")
        np.testing.assert_allclose(mine, 2 * wide.T @ wide / len(wide), rtol=1e-5, atol=1e-6)
        assert compare(group, mine, gptq.running_hessian(np.array_split(group, 7))) > 0.98


def test_a_layer_without_products_is_left_out_and_named_unless_it_is_the_only_one(tmp_path: Path) -> None:
    values = correlated((20, 3), 3)
    build_store(tmp_path / "s.zarr", {"a": values, "b": values + 1})
    rules = [{"match": "b"}, {"match": "a", "statistics": ["gram"]}]
    out = tmp_path / "out"
    run(JobConfig.model_validate({"source": str(tmp_path / "s.zarr"), "output": str(out), "layers": rules}).job())
    written = ss.export(out, "hessians", tmp_path / "h.safetensors")
    assert set(hessians(tmp_path / "h.safetensors")[0]) == {"a.hessian"}
    assert (written.layers, written.notes) == (
        {"a": "a"},
        ("left out, because `gram` was not counted for them: b",),
    )
    with pytest.raises(UsageError, match=r"`gram` was not counted for b; add `statistics: \[gram\]`"):
        ss.export(out, "hessians", tmp_path / "h.safetensors", layers="b")


def test_values_that_are_not_finite_are_zeros_and_named(tmp_path: Path) -> None:
    values = correlated((20, 3), 3)
    values[4, 1] = np.inf
    out = output_of(tmp_path, {"a": values, "b": values[:4]}, statistics=("gram",), nonfinite="skip")
    written = ss.export(out, "hessians", tmp_path / "h", dtype="float64")
    assert written.notes == ("values that are not finite were counted as zeros: a",)
    values[4, 1] = 0
    assert hessians(tmp_path / "h")[0]["a.hessian"].tolist() == exact(values).tolist()


def test_missing_values_of_a_layer_with_an_offset_leave_nothing_to_export_or_show(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "s.zarr", mode="w")
    attributes = {"scale_factor": 0.5, "add_offset": 3.0, "missing_value": 7}
    array = group.create_array("a", shape=(8, 2), chunks=(2, 2), dtype="i2", attributes=attributes)
    array[...] = np.arange(16).reshape(8, 2)
    job = {"source": str(tmp_path / "s.zarr"), "output": str(tmp_path / "out"), "statistics": ["gram"]}
    run(JobConfig.model_validate({**job, "nonfinite": "skip"}).job())
    message = r"layer a: NaN, infinities and missing values \(1 value\) were left out, so XᵀX is unknown"
    with pytest.raises(UsageError, match=f"{message}.*; or leave it out with --layers or --names"):
        exported(tmp_path / "out")
    with pytest.raises(UsageError, match=message):
        LayerSpectrum.of(ss.load(tmp_path / "out")["a"])


def test_layers_with_different_kernels_on_one_tensor_are_two_hessians(tmp_path: Path) -> None:
    values = correlated((20, 6, 5, 2), 6).transpose(0, 3, 1, 2)
    kernels = {
        "a": ss.Kernel((3, 2), ss.Geometry((2, 2), (1, 1, 1, 1))),
        "b": ss.Kernel((1, 1)),
        "c": ss.Kernel((1, 1)),
    }
    with ss.Recorder(tmp_path / "s.zarr") as recorder:
        recorder.append("a", np.ascontiguousarray(values), channel_axis=1, layers=kernels)
    job = {"source": str(tmp_path / "s.zarr"), "output": str(tmp_path / "out"), "statistics": ["gram"]}
    run(JobConfig.model_validate(job).job())
    found = exported(tmp_path / "out")[0]
    assert {name: each.shape for name, each in found.items()} == {
        "a.hessian": (12, 12),
        "b.hessian": (2, 2),
        "c.hessian": (2, 2),
    }
    (rows,) = gptq.unfolded(values, (3, 2), 2, 1, 1)
    np.testing.assert_allclose(found["a.hessian"], 2 * rows.T @ rows / len(rows), rtol=1e-4, atol=1e-5)
    assert set(exported(tmp_path / "out", names={"b": "x", "c": "x"})[0]) == {"a.hessian", "x.hessian"}
    with pytest.raises(UsageError, match="layers a and b are both called x, but their statistics differ"):
        exported(tmp_path / "out", names={"a": "x", "b": "x"})


@pytest.mark.parametrize(("size", "what"), [(1e30, "is beyond float32"), (1e-22, "too small for float32")])
def test_entries_that_float32_cannot_hold_need_float64(tmp_path: Path, size: float, what: str) -> None:
    out = output_of(tmp_path, {"a": (correlated((20, 3), 4) * size).astype("f4")}, statistics=("gram",))
    with pytest.raises(UsageError, match=f"layer a: .*{what}.*--dtype float64"):
        ss.export(out, "hessians", tmp_path / "h.safetensors")
    ss.export(out, "hessians", tmp_path / "h.safetensors", dtype="float64")


BAD = {
    "a dtype of another format": ({"file_format": "csv", "dtype": "float32"}, "dtype of Hessians goes with hessians"),
    "damping of another format": ({"file_format": "csv", "damp": 0.0}, "damping of Hessians goes with hessians"),
    "another dtype": ({"dtype": "float16"}, "dtype of the Hessians is 'float16'; expected float32 or float64"),
    "negative damping": ({"damp": -0.1}, "the damping is -0.1; expected a share"),
    "no damping": ({"damp": float("nan")}, "the damping is nan; expected a share"),
}


@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=BAD)
def test_bad_requests_get_the_reason(tmp_path: Path, out: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ss.export(out, **{"file_format": "hessians", "path": tmp_path / "h", **options})
    assert list(tmp_path.iterdir()) == []


LAYERS, ROWS = 4, 2048
"""Layers of the network that llm-compressor rounds, and the tokens that it is calibrated with."""


@pytest.mark.parametrize("actorder", [None, "static"])
@pytest.mark.filterwarnings("ignore")  # of the libraries that it imports
def test_llm_compressor_gives_the_weights_that_it_gives_with_a_hessian_of_its_own(
    tmp_path: Path, actorder: str | None
) -> None:
    torch = pytest.importorskip("torch", reason="`make models` tests with it")
    theirs: Any = pytest.importorskip("llmcompressor.modifiers.gptq.helpers", reason="`make models` tests with it")
    rounding: Any = pytest.importorskip("llmcompressor.modifiers.gptq.gptq_quantize")
    quantization: Any = pytest.importorskip("compressed_tensors.quantization")
    inputs = {f"layers/{layer}/fc": correlated((ROWS // 64, 64, 256), layer) for layer in range(LAYERS)}
    tensors, _ = exported(output_of(tmp_path, inputs, statistics=("gram",)))
    settings = quantization.QuantizationArgs(num_bits=4, symmetric=True, strategy="channel", actorder=actorder)
    equal, total = 0, 0
    for layer, values in inputs.items():
        module = torch.nn.Linear(256, 128, bias=False)
        torch.nn.init.normal_(module.weight, generator=torch.Generator().manual_seed(0))
        own, count = torch.zeros(256, 256), torch.zeros(())
        for batch in torch.from_numpy(values).split(4):
            own, count = theirs.accumulate_hessian(batch, module, own, count)
        ours = torch.from_numpy(tensors[f"{layer.replace('/', '.')}.hessian"])
        weight = module.weight.detach()
        step = weight.abs().amax(dim=1, keepdim=True)[None] / 7.5
        found = [
            rounding.quantize_weight(
                weight[None].clone(), each[None].clone(), step, torch.zeros_like(step), None, settings
            )
            for each in (own / count, ours)
        ]
        assert not any(fallback.any() for _, _, fallback in found)
        codes = [torch.round(weights / step) for weights, _, _ in found]
        equal, total = equal + int((codes[0] == codes[1]).sum()), total + codes[0].numel()
        assert not torch.equal(codes[1], torch.round(weight / step).clamp(-8, 7)[None])  # more than rounding to nearest
    print(f"equal codes: {equal:,} of {total:,}")
    assert equal / total > 0.999
