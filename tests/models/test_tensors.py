"""Corrections of plain tensors, for tool chains that streamstats does not know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from stores import build_store, samples

import streamstats as ss
from streamstats.calibration.selection import LayerRule
from streamstats.cli import main
from streamstats.errors import DataError, MismatchError, UsageError
from streamstats.jobs.job import Job
from streamstats.jobs.run import run
from streamstats.models.tensors import correct_tensors
from streamstats.statistics.taps import TapSums

RNG = np.random.default_rng(3)
KERNEL = ss.Kernel((3, 3), ss.Geometry(pads=(1, 1, 1, 1)))
LAYERS = {
    "conv": samples(20, 5, 5, 8),
    "depthwise": samples(20, 5, 5, 6),
    "fc": samples(20, 4),
    "alone": samples(20, 3),
}
WEIGHTS = {
    "conv": RNG.normal(size=(6, 4, 3, 3)),
    "depthwise": RNG.normal(size=(6, 1, 3, 3)),
    "fc": RNG.normal(size=(2, 4)),
}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    store = build_store(tmp_path / "s.zarr", LAYERS)
    padded = LayerRule("conv", statistics=("taps",), kernel=KERNEL)
    run(Job(str(store), str(tmp_path / "out"), (padded, LayerRule("*"))))
    return tmp_path / "out"


def saved(folder: Path, **suffixes: str) -> tuple[Path, Path]:
    save_file({name + suffixes.get("w", ""): weight for name, weight in WEIGHTS.items()}, folder / "w.safetensors")
    rounded = {name + suffixes.get("q", ""): ss.fake_quantize(weight, 4) for name, weight in WEIGHTS.items()}
    save_file(rounded, folder / "q.safetensors")
    return folder / "w.safetensors", folder / "q.safetensors"


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_narrow_weights_are_taken_as_the_numbers_that_they_are(tmp_path: Path, out: Path, dtype: str) -> None:
    narrow = {name: weight.astype(dtype) for name, weight in WEIGHTS.items()}
    fake = {name: (np.rint(weight.astype("f8") * 4) / 4).astype(dtype) for name, weight in narrow.items()}
    terms = []
    for kind in (dtype, "float32"):
        paths = [tmp_path / f"{name}-{kind}.safetensors" for name in ("w", "q", "terms")]
        for tensors, path in zip((narrow, fake), paths, strict=False):
            save_file({name: tensor.astype(kind) for name, tensor in tensors.items()} | {"other": np.ones(3)}, path)
        correct_tensors(*paths[:2], out, paths[2], layouts=["OIHW", "OI"])
        terms.append(load_file(paths[2]))
    assert {name: each.tobytes() for name, each in terms[0].items()} == {
        name: each.tobytes() for name, each in terms[1].items()
    }
    assert {*terms[0]} == {*WEIGHTS}


def expected() -> dict[str, Any]:
    found = {}
    for name, weight in WEIGHTS.items():
        values = LAYERS[name].astype(np.float64)
        mean = values.mean(axis=tuple(range(values.ndim - 1)))
        layout, groups = ("OI", 1) if name == "fc" else ("OIHW", 2 if name == "conv" else 6)
        corrector: ss.BiasCorrector = ss.MeanBiasCorrector(mean)
        if name == "conv":
            corrector = ss.TapBiasCorrector(mean, TapSums.measure(LAYERS[name], -1, KERNEL).mean(), KERNEL)
        found[name] = corrector.calculate(weight, ss.fake_quantize(weight, 4), layout=layout, groups=groups)
    return found


@pytest.mark.parametrize("suffixes", [{}, {"w": ".weight", "q": ".fake_quantized"}, {"w": ".weight", "q": ".weight"}])
def test_the_terms_are_those_of_the_correctors(tmp_path: Path, out: Path, suffixes: dict[str, str]) -> None:
    outcomes = correct_tensors(*saved(tmp_path, **suffixes), out, tmp_path / "c.safetensors", layouts=["OIHW", "OI"])
    found = load_file(tmp_path / "c.safetensors")
    assert {name: term.dtype.name for name, term in found.items()} == dict.fromkeys(WEIGHTS, "float64")
    for name, term in expected().items():
        np.testing.assert_allclose(found[name], term, rtol=1e-12)
    assert {each.layer: each.corrected for each in outcomes} == {"alone": False, **dict.fromkeys(WEIGHTS, True)}
    assert next(each for each in outcomes if each.layer == "alone").reason == "no tensor alone or alone.weight"


def test_the_command_line_lists_every_layer(tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, rounded = map(str, saved(tmp_path))
    command = ["correct", "--weights", weights, "--fake-quantized", rounded, "--correctors", str(out)]
    target = ["-o", str(tmp_path / "c.safetensors")]
    assert main([*command, *target, "--layout", "OIHW", "--layout", "fc=OI", "--json"]) == 0
    layers = json.loads(capsys.readouterr().out)["layers"]
    assert layers["fc"]["outputs"] == 2
    assert main([*command, *target, "--layout", "OIHW", "--layout", "OI"]) == 0
    assert "depthwise" in capsys.readouterr().out
    of_models = (["--bits", "4"], ["--mask", "m"], ["--activation-range", "mse"], ["--weight-range", "mse"])
    wrongs = [
        [],
        ["--layout", "XYZ"],
        ["--layout", "OIHW"],
        *(["--layout", "OIHW", "--layout", "OI", *each] for each in of_models),
    ]
    for wrong in wrongs:
        assert main([*command, *target, *wrong]) == 2
        assert "Traceback" not in capsys.readouterr().err


def test_what_does_not_fit_names_the_layer(tmp_path: Path, out: Path) -> None:
    weights, rounded = saved(tmp_path)
    save_file({"fc": RNG.normal(size=(2, 5))}, tmp_path / "other.safetensors")
    target = tmp_path / "c.safetensors"
    with pytest.raises(
        MismatchError, match=r"layer fc: weights have the shape \(2, 4\), fake-quantised weights \(2, 5\)"
    ):
        correct_tensors(weights, tmp_path / "other.safetensors", out, target, layouts=["OIHW", "OI"])
    with pytest.raises(MismatchError, match=r"layer fc: weights of shape \(2, 5\)"):
        correct_tensors(tmp_path / "other.safetensors", tmp_path / "other.safetensors", out, target, layouts=["OI"])
    save_file({"nobody": RNG.normal(size=(2, 5))}, tmp_path / "nobody.safetensors")
    with pytest.raises(UsageError, match="have no weights of a layer that has a corrector; the layers are alone, conv"):
        correct_tensors(tmp_path / "nobody.safetensors", rounded, out, target, layouts=["OI"])
    with pytest.raises(UsageError, match="is not a file; expected a safetensors file"):
        correct_tensors(tmp_path / "nothing", rounded, out, target, layouts=["OI"])
    (tmp_path / "torn.safetensors").write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(DataError, match="cannot read"):
        correct_tensors(tmp_path / "torn.safetensors", rounded, out, target, layouts=["OI"])
    assert not target.exists()


def test_transposed_convolutions_are_refused_as_their_weight_does_not_tell_groups(tmp_path: Path, out: Path) -> None:
    weights, rounded = saved(tmp_path)
    with pytest.raises(UsageError, match="layer conv: layout IOHW"):
        correct_tensors(weights, rounded, out, tmp_path / "c.safetensors", layouts=["IOHW", "OI"])


def test_a_layout_for_no_layer_and_an_output_that_is_read_are_refused(tmp_path: Path, out: Path) -> None:
    weights, rounded = saved(tmp_path)
    before = weights.read_bytes()
    with pytest.raises(UsageError, match="is both the input and the output"):
        correct_tensors(weights, rounded, out, weights, layouts=["OIHW", "OI"])
    assert weights.read_bytes() == before
    with pytest.raises(UsageError, match="--layout linear=OI matches no layer"):
        correct_tensors(weights, rounded, out, tmp_path / "c.safetensors", layouts=["OIHW", "linear=OI"])


def pair(folder: Path, weight: Any, quantized: Any) -> tuple[Path, Path]:
    save_file({"fc": weight, "conv": WEIGHTS["conv"]}, folder / "w.safetensors")
    save_file({"fc": quantized, "conv": ss.fake_quantize(WEIGHTS["conv"], 4)}, folder / "q.safetensors")
    return folder / "w.safetensors", folder / "q.safetensors"


@pytest.mark.parametrize("axis", [None, 0])
@pytest.mark.parametrize("side", ["output", "input"])
def test_scales_per_channel_are_undone_in_the_terms(tmp_path: Path, out: Path, axis: int | None, side: str) -> None:
    random = np.random.default_rng(5)
    weight = random.normal(size=(48, 4))
    factors = random.uniform(0.5, 1.5, (48, 1) if side == "output" else (1, 4))
    rounded = ss.fake_quantize(weight * factors, 8, axis=axis)
    paths = pair(tmp_path, weight, rounded)
    outcomes = correct_tensors(*paths, out, tmp_path / "c.safetensors", layouts=["OIHW", "OI"])
    outcome = {each.layer: each for each in outcomes}["fc"]
    if side == "output" or axis == 0:  # four elements a channel tell neither a scale of it nor its step
        assert outcome.reason.startswith("its weight differs")
        return
    assert outcome.difference.startswith("rounding, a scale per input channel of ")
    mean = LAYERS["fc"].astype(np.float64).mean(axis=0)
    expected = weight @ mean - rounded @ (mean / factors[0])
    assert np.linalg.norm(outcome.term - expected) < 0.25 * np.linalg.norm(expected)


@pytest.mark.parametrize("change", ["factor", "training"])
def test_a_difference_that_is_not_rounding_is_refused_and_others_are_corrected(
    tmp_path: Path, out: Path, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    weight, more = (np.random.default_rng(seed).normal(size=(48, 4)) for seed in (5, 6))
    changed = weight * 0.1 if change == "factor" else weight + more
    weights, rounded = pair(tmp_path, weight, ss.fake_quantize(changed, 8))
    command = ["correct", "--weights", str(weights), "--fake-quantized", str(rounded), "--correctors", str(out)]
    command += ["-o", str(tmp_path / "c.safetensors"), "--layout", "OIHW", "--layout", "OI"]
    assert main([*command, "--json"]) == 0
    layers = json.loads(capsys.readouterr().out)["layers"]
    assert layers["conv"]["corrected"]
    said = "its weight is 0.1" if change == "factor" else "its weight differs from that of the float model by up to "
    assert layers["fc"]["reason"].startswith(said)
    assert {*load_file(tmp_path / "c.safetensors")} == {"conv"}
    save_file({"fc": weight}, weights)
    assert main(command) == 2
    assert f"no layer can be corrected: fc ({said}" in capsys.readouterr().err
