"""What a program does with the package, without a cast: mypy checks it, strictly; nothing runs it."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

import streamstats as ss

Float64Array = npt.NDArray[np.float64]


class Tensor(Protocol):
    """What can be an array, as a tensor of torch can."""

    def __array__(self) -> Float64Array: ...


def statistics() -> Float64Array:
    layer = ss.reduce("calibration.zarr", layers="block*", statistics=["squares", "gram", "histogram"])["block/conv"]
    low, high = layer.quantile(0.999)
    rows = layer.rows + sum(stop - start for start, stop in layer.covered)
    scale: Float64Array = (layer.mean - layer.minimum) / layer.rms * (high - low) / rows
    return scale * float(layer.gram.matrix().sum()) / layer.standard_deviation


def runs() -> dict[str, Float64Array]:
    job = ss.Job("calibration.zarr", "out", layers=("fc", ss.LayerRule("block*", channel_axis=1)))
    outcome = ss.run(job, follow=ss.Follow(idle=60), progress=ss.LogProgress())
    assert outcome.complete
    assert ss.compare("out", "more", layers="fc").equal
    assert ss.status("out").complete
    assert not ss.verify(job)
    print(ss.forget(job, (0, 4))[0].rows)
    found = outcome.statistics | ss.load("out") | ss.merge(["out", "more"], "both")
    return {name: layer.mean for name, layer in found.items()}


def ranges(values: Float64Array) -> float:
    found = ss.find_ranges("out", "mse", bits=4)["fc"]
    codes = found.quantization.quantize(np.clip(values, found.low, found.high), "uint8")
    return float(found.quantization.dequantize(codes).mean())


def corrected(bias: Float64Array, weight: Float64Array) -> Float64Array:
    corrector = ss.MeanBiasCorrector(ss.load("out")["fc"].mean)
    corrector.save("fc.safetensors")
    return bias + corrector.calculate(weight, ss.fake_quantize(weight, bits=4), layout="OI")


def recorded(batches: list[Tensor]) -> Float64Array:
    meter = ss.Meter(["squares"])
    with ss.Recorder("calibration.zarr") as recorder:
        for batch in batches:
            recorder.append("fc", batch)
            meter.append("fc", batch)
    return meter.statistics["fc"].variance - ss.prepare_input_mean(batches) ** 2


def submitted() -> str:
    with ss.Client("http://127.0.0.1:8765", "token") as client:
        job = client.submit({"kind": "run", "source": "calibration.zarr"})
        assert client.fetch(job.id, "out") == client.job(job.id).results
        return client.wait(job.id).state
