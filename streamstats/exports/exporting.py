"""Exporting: one function for all formats, which writes one file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError, listed, one_of
from ..outputs.layer_statistics import LayerStatistics
from ..outputs.manifest import MANIFEST
from ..outputs.results import CORRECTORS, STATE, open_results
from ..ranges.codes import Codes
from ..ranges.finding import LayerRange, matching_layers
from ..storage.files import check_apart, write_bytes
from . import aimet, compressed_tensors, hessians, imatrix, onnxruntime, tables, tensorrt
from .choice import RangeChoice
from .naming import Names, Rule, identity, module_name, named, weight_name

ONNXRUNTIME, TENSORRT, AIMET, COMPRESSED_TENSORS = "onnxruntime", "tensorrt", "aimet", "compressed-tensors"
IMATRIX, HESSIANS = "imatrix", "hessians"
OF_RANGES: Mapping[str, Callable[[Mapping[str, LayerRange]], bytes]] = {
    ONNXRUNTIME: onnxruntime.content,
    TENSORRT: tensorrt.content,
    AIMET: aimet.content,
    COMPRESSED_TENSORS: compressed_tensors.content,
}
OF_FIGURES: Mapping[str, Callable[[Mapping[str, LayerStatistics]], bytes]] = {
    "json": tables.as_json,
    "safetensors": tables.as_safetensors,
    "csv": tables.as_csv,
    "parquet": tables.as_parquet,
}
FORMATS = (*OF_RANGES, IMATRIX, HESSIANS, *OF_FIGURES)
REFUSES: Mapping[str, Callable[[Codes], str | None]] = {
    ONNXRUNTIME: onnxruntime.refuses,
    TENSORRT: tensorrt.refuses,
    COMPRESSED_TENSORS: compressed_tensors.refuses,
}
CACHES = (ONNXRUNTIME, TENSORRT)
OF_TENSORS = (ONNXRUNTIME, TENSORRT, AIMET)
"""Formats that name tensors: a layer whose tensor is known has the tensor's name."""
RULES: Mapping[str, Rule] = {COMPRESSED_TENSORS: module_name, IMATRIX: weight_name, HESSIANS: module_name}
"""How layers are called in a format, unless by their own names."""


@dataclass(frozen=True)
class Exported:
    """What was written: the file, the layer of each name in it, and `notes` for the user, such as layers left out."""

    path: Path
    layers: Mapping[str, str]
    notes: tuple[str, ...] = ()


def export(
    output: str | Path,
    file_format: str,
    path: str | Path,
    *,
    layers: str = "*",
    names: Names | None = None,
    ranges: RangeChoice | str | None = None,
    encoding_version: str | None = None,
    merge: str | Path | None = None,
    dtype: str | None = None,
    damp: float | None = None,
) -> Exported:
    """Write the statistics of the layers of `output` that match the glob `layers` to the file at `path`.

    `file_format` is one of `FORMATS`. Those that hold ranges ("onnxruntime", "tensorrt", "aimet", "compressed-tensors")
    need to know which, `ranges`: a choice, or its method; the data is not read. `names` gives the names of layers in
    the file; the format's rule names the others. `encoding_version`, "1.0.0" by default, is for "aimet".
    `merge` is for "imatrix": an earlier file, whose sums are added to those of `output`. `dtype` ("float32" by default,
    or "float64") and `damp` (0 by default), the share of the mean of its diagonal that is added to it, are for
    "hessians". Layers without a finite value, or without what the format holds, are left out, and listed in the notes.

    Raises `UsageError`, with the reason, if the request cannot be met; `MissingDependencyError` without the library
    that a format needs; `DataError` for damaged files; `OutputError` if the file cannot be written.

    >>> exported = ss.export("out", "aimet", "fc.encodings", ranges=ss.RangeChoice("minmax"))
    >>> exported.path.name, exported.layers, exported.notes
    ('fc.encodings', {'fc': 'fc'}, ())
    """
    ranges = RangeChoice(ranges) if isinstance(ranges, str) else ranges
    _check_options(file_format, ranges, encoding_version, merge)
    _check_hessians(file_format, dtype, damp)
    _check_target(Path(output), Path(path), merge)
    chosen = matching_layers(output, layers)
    if file_format in OF_TENSORS:
        names = {**{layer: each.tensor for layer, each in chosen.items() if each.tensor}, **(names or {})}
    found, origins = named(chosen, names, RULES.get(file_format, identity), by_kernel=file_format == HESSIANS)
    notes: list[str] = []
    if file_format in OF_FIGURES:
        content = OF_FIGURES[file_format](found)
    else:
        found = _with_values(found, notes)
        if ranges is not None:
            content = _ranges_content(found, file_format, ranges, encoding_version)
        elif file_format == HESSIANS:
            found = _with_gram(found, notes)
            content = hessians.content(found, dtype or hessians.DTYPES[0], damp or 0.0)
        else:
            content = _imatrix_content(found, _datasets(output), merge, notes)
    write_bytes(Path(path), content)
    return Exported(Path(path), {name: origins[name] for name in found}, tuple(notes))


def _check_options(
    file_format: str, ranges: RangeChoice | None, encoding_version: str | None, merge: str | Path | None
) -> None:
    if file_format not in FORMATS:
        raise UsageError(f"the format is {file_format!r}; {one_of(file_format, FORMATS)}")
    if file_format in OF_RANGES and ranges is None:
        raise UsageError(
            f"{_called(file_format)} holds a range for each layer; choose how to find it: with --method, or in Python "
            "with `ranges`"
        )
    if ranges is not None:
        check_holds_ranges(file_format, "the method")
    if encoding_version is not None and file_format != AIMET:
        raise UsageError(f"the version of encodings goes with {AIMET}, not with {file_format}; leave it out")
    if merge is not None and file_format != IMATRIX:
        raise UsageError(f"merging a file goes with {IMATRIX}, not with {file_format}; leave it out")
    reason = REFUSES[file_format](ranges.codes) if ranges is not None and file_format in REFUSES else None
    if reason is not None:
        raise UsageError(reason)


def _check_hessians(file_format: str, dtype: str | None, damp: float | None) -> None:
    for what, given in (("dtype", dtype), ("damping", damp)):
        if given is not None and file_format != HESSIANS:
            raise UsageError(f"the {what} of Hessians goes with {HESSIANS}, not with {file_format}; leave it out")
    if dtype is not None:
        hessians.check_dtype(dtype)
    if damp is not None:
        hessians.check_damp(damp)


def check_holds_ranges(file_format: str, given: str) -> None:
    """Raise `UsageError` unless files of the format hold ranges, which what was `given` is about."""
    if file_format not in OF_RANGES:
        raise UsageError(f"{_called(file_format)} holds no ranges; leave out {given}, or choose {listed(OF_RANGES)}")


def _called(file_format: str) -> str:
    return f"the {file_format} {'cache' if file_format in CACHES else 'file'}"


def _check_target(output: Path, path: Path, merge: str | Path | None) -> None:
    """Raise `UsageError` if `path` is the file to merge, or one of those that a run wrote."""
    check_apart([] if merge is None else [merge], path)
    resolved, results = path.resolve(), output.resolve()
    folders = {results / STATE, results / CORRECTORS}
    if resolved == results / MANIFEST or folders & {resolved, *resolved.parents}:
        raise UsageError(f"{path} would be among the results of the run in {output}; name another file")


def _with_values(found: Mapping[str, LayerStatistics], notes: list[str]) -> dict[str, LayerStatistics]:
    """Those of the layers that have finite values; adds a note on the others. Raises `UsageError` if there is none."""
    kept = {name: each for name, each in found.items() if each.sums.count.any()}
    if not kept:
        raise UsageError("no layer that is exported has a finite value; check the layers, and what was counted")
    if len(kept) < len(found):
        notes.append(f"left out, because they have no finite value: {listed(sorted(found.keys() - kept.keys()))}")
    return kept


def _with_gram(found: Mapping[str, LayerStatistics], notes: list[str]) -> dict[str, LayerStatistics]:
    """Those of the layers that have `gram`; adds a note on the others. Raises `UsageError` if there is none."""
    kept = hessians.with_gram(found)
    if len(kept) < len(found):
        notes.append(f"left out, because `gram` was not counted for them: {listed(sorted(found.keys() - kept.keys()))}")
    incomplete = hessians.with_zeros(kept)
    if incomplete:
        notes.append(f"values that are not finite were counted as zeros: {listed(incomplete)}")
    return kept


def _ranges_content(
    found: Mapping[str, LayerStatistics], file_format: str, ranges: RangeChoice, encoding_version: str | None
) -> bytes:
    chosen = {name: ranges.of(each) for name, each in found.items()}
    if encoding_version is not None:
        return aimet.content(chosen, encoding_version)
    return OF_RANGES[file_format](chosen)


def _imatrix_content(
    found: Mapping[str, LayerStatistics], datasets: Sequence[str], merge: str | Path | None, notes: list[str]
) -> bytes:
    earlier = None if merge is None else imatrix.read_imatrix(merge)
    content = imatrix.Imatrix.of(found, datasets, earlier).to_bytes()
    inexact = imatrix.inexact(found, earlier)
    if inexact:
        notes.append(f"counts above 2^24 are rounded to float32, which an imatrix holds: {listed(inexact)}")
    return content


def _datasets(output: str | Path) -> list[str]:
    """The names of the calibration stores, without their folders."""
    sources = open_results(output).manifest.sources
    return [source.rstrip("/").rpartition("/")[2] for source in sources]
