"""TensorRT's cache: lines that its readers parse to our steps."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from quantizing import output_of

import streamstats as ss
from streamstats.errors import UsageError

CHOICE = ss.RangeChoice("minmax", symmetric=True)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    random = np.random.default_rng(0)
    layers = {"input_1": random.normal(size=(30, 8)), "conv/Relu 0": random.gamma(2, size=(30, 8)) * 1e-5}
    return output_of(tmp_path_factory.mktemp("run"), {name: each.astype("f4") for name, each in layers.items()})


def parsed(path: Path) -> dict[str, float]:
    """The ranges as TensorRT's documentation has them: 127 times the float whose bits are written, highest first."""
    header, *lines = path.read_text().splitlines()
    assert header.startswith("TRT-")
    pairs = [line.rsplit(": ", 1) for line in lines]
    return {name: 127 * struct.unpack("!f", bytes.fromhex(bits))[0] for name, bits in pairs}


def test_each_tensor_has_its_largest_magnitude(tmp_path: Path, out: Path) -> None:
    ss.export(out, "tensorrt", tmp_path / "calibration.cache", ranges=CHOICE)
    found = ss.find_ranges(out, "minmax", symmetric=True)
    ranges = parsed(tmp_path / "calibration.cache")
    assert list(ranges) == ["conv/Relu 0", "input_1"]
    assert ranges == pytest.approx({name: each.ranges[0].high for name, each in found.items()}, rel=1e-7)


def test_modelopt_reads_our_steps(tmp_path: Path, out: Path) -> None:
    module, reason = "modelopt.onnx.quantization.calib_utils", "it needs nvidia-modelopt[onnx]"
    calibration = pytest.importorskip(module, reason=reason, exc_type=ImportError)
    ss.export(out, "tensorrt", tmp_path / "calibration.cache", ranges=CHOICE)
    read = calibration.import_scales_from_calib_cache(str(tmp_path / "calibration.cache"))
    steps = {
        f"{name}_scale": np.float32(each.quantization.step)
        for name, each in ss.find_ranges(out, "minmax", symmetric=True).items()
    }
    assert read == steps


OTHER_CODES = {
    "affine unsigned codes of 8 bits": ss.RangeChoice("minmax"),
    "symmetric signed codes of 7 bits": ss.RangeChoice("minmax", 7, symmetric=True),
    "symmetric unsigned codes of 8 bits": ss.RangeChoice("minmax", symmetric=True, signed=False),
}


@pytest.mark.parametrize(("found", "choice"), OTHER_CODES.items())
def test_other_codes_are_refused(tmp_path: Path, out: Path, found: str, choice: ss.RangeChoice) -> None:
    message = (
        f"ranges are for {found}; expected symmetric signed codes of 8 bits, .*--bits 8 --symmetric --codes signed"
    )
    with pytest.raises(UsageError, match=message):
        ss.export(out, "tensorrt", tmp_path / "calibration.cache", ranges=choice)


@pytest.mark.parametrize("name", ["input:0", "in\nput"])
def test_names_that_it_cannot_read_are_refused(tmp_path: Path, out: Path, name: str) -> None:
    with pytest.raises(UsageError, match="a colon or a line break ends a name"):
        ss.export(out, "tensorrt", tmp_path / "calibration.cache", names={"input_1": name}, ranges=CHOICE)
    huge = output_of(tmp_path, {"t": np.array([[1e41]])})
    with pytest.raises(UsageError, match="expected a positive float32"):
        ss.export(huge, "tensorrt", tmp_path / "calibration.cache", ranges=CHOICE)
    assert not (tmp_path / "calibration.cache").exists()
