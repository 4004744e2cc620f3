"""compressed-tensors: its own loader takes our steps into a model, which then quantises its inputs as we do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quantizing import output_of
from safetensors.numpy import load_file

import streamstats as ss
from streamstats.errors import UsageError

CODES = {"symmetric": {"symmetric": True}, "signed": {"signed": True}, "4 bits": {"bits": 4, "symmetric": True}}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    random = np.random.default_rng(0)
    layers = {"block/fc1": random.normal(size=(50, 6)) + 1, "block/fc2": random.gamma(2, size=(50, 5))}
    return output_of(tmp_path_factory.mktemp("run"), {name: each.astype("f4") for name, each in layers.items()})


@pytest.mark.parametrize("codes", CODES)
def test_each_module_has_its_step(tmp_path: Path, out: Path, codes: str) -> None:
    path = tmp_path / "model.safetensors"
    written = ss.export(out, "compressed-tensors", path, ranges=ss.RangeChoice("mse", **CODES[codes]))
    assert written.layers == {"block.fc1": "block/fc1", "block.fc2": "block/fc2"}
    tensors = load_file(path)
    points = [] if "symmetric" in CODES[codes] else [f"block.{each}.input_zero_point" for each in ("fc1", "fc2")]
    assert set(tensors) == {"block.fc1.input_scale", "block.fc2.input_scale", *points}
    for layer, found in ss.find_ranges(out, "mse", **({"bits": 8} | CODES[codes])).items():
        name = layer.replace("/", ".")
        assert tensors[f"{name}.input_scale"].tolist() == [np.float32(found.quantization.step)]
        if points:
            assert tensors[f"{name}.input_zero_point"].tolist() == [found.quantization.zero_point]
            assert tensors[f"{name}.input_zero_point"].dtype == np.int8


OTHER_CODES = {
    "affine unsigned codes of 8 bits": ss.RangeChoice("mse"),
    "symmetric signed codes of 16 bits": ss.RangeChoice("mse", 16, symmetric=True),
}


@pytest.mark.parametrize(("found", "choice"), OTHER_CODES.items())
def test_codes_that_it_has_not_are_refused(tmp_path: Path, out: Path, found: str, choice: ss.RangeChoice) -> None:
    with pytest.raises(UsageError, match=f"ranges are for {found}; expected signed codes of at most 8 bits"):
        ss.export(out, "compressed-tensors", tmp_path / "m.safetensors", ranges=choice)


@pytest.mark.parametrize("codes", CODES)
@pytest.mark.filterwarnings("ignore")  # of the libraries that it imports
def test_its_loader_gives_a_model_that_quantises_as_we_do(tmp_path: Path, out: Path, codes: str) -> None:
    torch = pytest.importorskip("torch", reason="`make models` tests with it")
    library: Any = pytest.importorskip("compressed_tensors.quantization", reason="`make models` tests with it")

    class Block(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.block = torch.nn.ModuleDict({"fc1": torch.nn.Linear(6, 6), "fc2": torch.nn.Linear(5, 5)})

    bits, symmetric = CODES[codes].get("bits", 8), "symmetric" in CODES[codes]
    inputs = library.QuantizationArgs(num_bits=bits, symmetric=symmetric, strategy="tensor")
    scheme = library.QuantizationScheme(targets=["Linear"], input_activations=inputs)
    model = Block()
    library.apply_quantization_config(
        model, library.QuantizationConfig(config_groups={"all": scheme}, quantization_status="frozen")
    )
    ss.export(out, "compressed-tensors", tmp_path / "model.safetensors", ranges=ss.RangeChoice("mse", **CODES[codes]))
    library.load_pretrained_quantization_parameters(model, str(tmp_path))
    found = ss.find_ranges(out, "mse", **({"bits": 8} | CODES[codes]))
    values = np.random.default_rng(1).normal(size=500).astype("f4") * 2
    for name, module in model.block.items():
        theirs = library.lifecycle.forward.fake_quantize(
            torch.from_numpy(values), module.input_scale, getattr(module, "input_zero_point", None), inputs
        ).numpy()
        ours = found[f"block/{name}"]
        lowest, highest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        quantization = ours.quantization
        rounded = np.rint(values / np.float32(quantization.step)) + quantization.zero_point
        expected = quantization.dequantize(np.clip(rounded, lowest, highest).astype(np.int64))
        assert theirs == pytest.approx(expected, rel=1e-5, abs=1e-6)
