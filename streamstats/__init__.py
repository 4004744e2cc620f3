"""streamstats: exact calibration statistics, out of core, and the bias corrections that follow from them.

`streamstats.models.onnx` and `streamstats.models.torch` record, measure and correct models.
Names are imported when first used, so that correctors load with numpy and safetensors alone.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import suggestion

if TYPE_CHECKING:
    from .calibration.recorder import Recorder
    from .calibration.selection import LayerRule
    from .config import load_job
    from .correction import BiasCorrector, MeanBiasCorrector, NullBiasCorrector, TapBiasCorrector
    from .errors import ServiceError, StreamstatsError
    from .exports.choice import RangeChoice
    from .exports.exporting import export
    from .jobs.compare import compare
    from .jobs.forget import forget
    from .jobs.job import Job
    from .jobs.merge import merge
    from .jobs.meter import Meter
    from .jobs.run import Follow, reduce, run
    from .jobs.status import status
    from .jobs.verify import verify
    from .layouts import Geometry, Kernel
    from .outputs.layer_statistics import LayerStatistics
    from .outputs.results import load
    from .progress import LogProgress
    from .quantization import Quantization, fake_quantize
    from .ranges.codes import Codes
    from .ranges.finding import LayerRange, find_ranges
    from .service.client import Client
    from .service.transfer import RefusedError
    from .spectra.group import GroupSpectrum
    from .spectra.spectrum import LayerSpectrum
    from .statistics.mean import prepare_input_mean

__version__ = "0.1.0"

_HOMES = {
    "BiasCorrector": "correction",
    "Client": "service.client",
    "Codes": "ranges.codes",
    "Follow": "jobs.run",
    "Geometry": "layouts",
    "GroupSpectrum": "spectra.group",
    "Job": "jobs.job",
    "Kernel": "layouts",
    "LayerRange": "ranges.finding",
    "LayerRule": "calibration.selection",
    "LayerSpectrum": "spectra.spectrum",
    "LayerStatistics": "outputs.layer_statistics",
    "LogProgress": "progress",
    "MeanBiasCorrector": "correction",
    "Meter": "jobs.meter",
    "NullBiasCorrector": "correction",
    "Quantization": "quantization",
    "RangeChoice": "exports.choice",
    "Recorder": "calibration.recorder",
    "RefusedError": "service.transfer",
    "ServiceError": "errors",
    "StreamstatsError": "errors",
    "TapBiasCorrector": "correction",
    "compare": "jobs.compare",
    "export": "exports.exporting",
    "fake_quantize": "quantization",
    "find_ranges": "ranges.finding",
    "forget": "jobs.forget",
    "load": "outputs.results",
    "load_job": "config",
    "merge": "jobs.merge",
    "prepare_input_mean": "statistics.mean",
    "reduce": "jobs.run",
    "run": "jobs.run",
    "status": "jobs.status",
    "verify": "jobs.verify",
}

__all__ = [
    "BiasCorrector",
    "Client",
    "Codes",
    "Follow",
    "Geometry",
    "GroupSpectrum",
    "Job",
    "Kernel",
    "LayerRange",
    "LayerRule",
    "LayerSpectrum",
    "LayerStatistics",
    "LogProgress",
    "MeanBiasCorrector",
    "Meter",
    "NullBiasCorrector",
    "Quantization",
    "RangeChoice",
    "Recorder",
    "RefusedError",
    "ServiceError",
    "StreamstatsError",
    "TapBiasCorrector",
    "__version__",
    "compare",
    "export",
    "fake_quantize",
    "find_ranges",
    "forget",
    "load",
    "load_job",
    "merge",
    "prepare_input_mean",
    "reduce",
    "run",
    "status",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{suggestion(name, _HOMES)}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
