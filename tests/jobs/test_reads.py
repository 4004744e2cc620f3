"""Where a kernel misses positions, what the layer reads is what is averaged, without being asked for."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stores import samples
from taps import exact_tap_means

import streamstats as ss
from streamstats.calibration.selection import select_layers
from streamstats.config import JobConfig
from streamstats.errors import MismatchError, UsageError
from streamstats.jobs.merge import merge
from streamstats.jobs.run import run
from streamstats.layouts import Geometry, Kernel
from streamstats.outputs.results import open_results

Array = np.ndarray[Any, np.dtype[Any]]
CONV = Kernel((3, 3), Geometry((2, 2), (1, 1, 1, 1)))
MISSING = {
    "strided": Kernel((1, 1), Geometry((2, 2))),
    "padded": Kernel((1, 1), Geometry((1, 2), (1, 0, 0, 1))),
    "spread": Kernel((1, 1), Geometry((2, 3)), transposed=True),
    "rows": Kernel((1, 3), Geometry((2, 1), (0, 1, 0, 1))),
    "dilated": Kernel((2, 1), Geometry((2, 1), dilations=(2, 1))),
}
"""Kernels of which the mean of all positions is not that of what they read."""
VALUES = samples(12, 3, 6, 7)


def recorded(store: Path, values: Array = VALUES, **kernels: Kernel | None) -> Path:
    """A store in which layers with these kernels read one array."""
    with ss.Recorder(store) as recorder:
        recorder.append(next(iter(kernels)), values, channel_axis=1, layers=kernels)
    return store


def counted(store: Path, *, restart: bool = False, **options: Any) -> Path:
    output = store.with_suffix(".out")
    run(JobConfig.model_validate({"source": str(store), "output": str(output), **options}).job(), restart=restart)
    return output


def corrector(output: Path, layer: str) -> ss.BiasCorrector:
    return ss.BiasCorrector.load(output / f"correctors/{layer}.safetensors")


def in_fractions(values: Array) -> Array:
    return np.array([Fraction(value.item()) for value in values.ravel()], object).reshape(values.shape)


@pytest.mark.parametrize("name", MISSING)
@pytest.mark.parametrize("readers", [(), ("conv",), ("conv", "matrix")])
def test_the_means_are_those_of_what_the_layer_reads_also_where_others_read_the_array(
    tmp_path: Path, name: str, readers: tuple[str, ...]
) -> None:
    others = {"conv": CONV, "matrix": Kernel()}
    kernels = {name: MISSING[name], **{each: others[each] for each in readers}}
    output = counted(recorded(tmp_path / "s.zarr", **kernels))
    found = corrector(output, name)
    assert isinstance(found, ss.TapBiasCorrector)
    expected = exact_tap_means(in_fractions(VALUES), MISSING[name])
    assert found.tap_mean.ravel().tolist() == [float(each) for each in expected.ravel()]
    for each in readers:
        plain = corrector(output, each)
        assert isinstance(plain, ss.MeanBiasCorrector)
        assert plain.input_mean.tolist() == found.input_mean.tolist()
        assert [*open_results(output).statistics(each).statistics] == ["mean", "extrema"]


@pytest.mark.parametrize(
    "kernel", [Kernel(), Kernel((1, 1)), CONV, Kernel((2, 2), Geometry((2, 2))), Kernel((2, 2), Geometry((2, 2)), True)]
)
def test_layers_whose_kernels_miss_nothing_are_counted_as_ever(tmp_path: Path, kernel: Kernel) -> None:
    layer = select_layers(recorded(tmp_path / "s.zarr", layer=kernel)).layers[0]
    assert [kind.name for kind in layer.kinds] == ["mean", "extrema"]


def test_with_taps_they_are_not_counted_twice_and_give_the_same_bytes(tmp_path: Path) -> None:
    strided = MISSING["strided"]
    unasked = counted(recorded(tmp_path / "unasked.zarr", down=strided, conv=CONV))
    asked = counted(recorded(tmp_path / "asked.zarr", down=strided, conv=CONV), statistics=["taps"])
    assert [*open_results(unasked).statistics("down").statistics] == ["mean", "extrema", "reads"]
    assert [*open_results(asked).statistics("down").statistics] == ["mean", "extrema", "taps"]
    path = "correctors/down.safetensors"
    assert (unasked / path).read_bytes() == (asked / path).read_bytes()


def test_they_are_counted_by_a_meter_too_and_merge(tmp_path: Path) -> None:
    kernels: dict[str, Kernel | None] = {"conv": CONV, "down": MISSING["strided"]}
    whole = counted(recorded(tmp_path / "whole.zarr", **kernels))
    together = counted(recorded(tmp_path / "together.zarr", VALUES[:5], **kernels))
    apart = ss.Meter(name="apart")
    for name, kernel in kernels.items():
        apart.append(name, VALUES[5:], channel_axis=1, kernel=kernel)
    apart.save(tmp_path / "apart.out")
    merge([together, tmp_path / "apart.out"], tmp_path / "merged")
    for path in ("correctors/down.safetensors", "correctors/conv.safetensors"):
        assert (tmp_path / "merged" / path).read_bytes() == (whole / path).read_bytes()


def test_a_layer_with_a_mask_or_beside_an_unknown_kernel_has_the_mean_of_its_channels(tmp_path: Path) -> None:
    strided = MISSING["strided"]
    with ss.Recorder(tmp_path / "masked.zarr") as recorder:
        recorder.append("down", VALUES, channel_axis=1, kernel=strided, mask=np.ones((12, 6, 7), bool))
    beside = recorded(tmp_path / "beside.zarr", down=strided, reflecting=None)
    for store in (tmp_path / "masked.zarr", beside):
        assert isinstance(corrector(counted(store), "down"), ss.MeanBiasCorrector)


def test_what_was_counted_without_them_is_counted_again(tmp_path: Path) -> None:
    with ss.Recorder(tmp_path / "s.zarr") as recorder:
        recorder.append("down", VALUES, channel_axis=1)  # as an older version, which did not know the kernel
    counted(tmp_path / "s.zarr")
    geometry = [{"match": "down", "geometry": {"kernel": [1, 1], "strides": [2, 2]}}]
    with pytest.raises(
        MismatchError, match=r"layer down: mean, extrema were counted, .* now counts reads, .*--restart"
    ):
        counted(tmp_path / "s.zarr", layers=geometry)
    counted(tmp_path / "s.zarr", layers=geometry, restart=True)
    assert isinstance(corrector(tmp_path / "s.out", "down"), ss.TapBiasCorrector)


def test_they_cannot_be_asked_for() -> None:
    with pytest.raises(
        UsageError, match=r"statistics reads are unknown; expected some of mean, .*taps, gram; did you mean spread"
    ):
        ss.Meter(["reads"])
