"""`streamstats export`: calls the library and prints the result."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DONE, INCOMPLETE, UsageError, counted, listed
from .commands import check_percentile
from .stale import say_if_stale
from .tables import print_json, print_table, say

if TYPE_CHECKING:
    from ..exports.choice import RangeChoice
    from ..exports.exporting import Exported
    from ..exports.naming import Names


def export(options: Namespace) -> int:
    """`streamstats export OUT --format FORMAT -o FILE`."""
    from ..exports.exporting import export
    from ..storage.files import check_apart

    check_apart([each for each in (options.names, options.model) if each is not None], options.file)
    written = export(
        options.output,
        options.format,
        options.file,
        layers=options.layers,
        names=_names(options),
        ranges=_ranges(options),
        encoding_version=options.encoding_version,
        merge=options.merge,
        dtype=options.dtype,
        damp=options.damp,
    )
    say_if_stale(options.output)
    missing = _missing(options, written.layers.keys())
    _print_exported(written, missing, as_json=options.json)
    return INCOMPLETE if missing else DONE


def _print_exported(written: Exported, missing: Sequence[str], *, as_json: bool) -> None:
    if as_json:
        print_json({"file": str(written.path), "layers": written.layers, "notes": written.notes, "missing": missing})
    else:
        print_table(["name in the file", "layer"], [[name, layer] for name, layer in written.layers.items()], left=2)
    for note in written.notes:
        say(note)
    say(f"wrote {written.path}")
    if missing:
        say(
            f"by default, onnxruntime also needs {counted(len(missing), 'tensor')}: {listed(missing)}; record them "
            "(`record --tensors quantizable`), or exclude the nodes that use them from quantisation"
        )


def _ranges(options: Namespace) -> RangeChoice | None:
    """The choice of ranges; None without a method. Raises `UsageError` for options that need one."""
    from ..exports.choice import RangeChoice
    from ..exports.exporting import check_holds_ranges
    from ..ranges.percentile import PERCENTILE

    given = _range_options(options)
    if given:
        check_holds_ranges(options.format, given)
    if options.method is None:
        if given:
            raise UsageError(f"found {given}, but no --method; add --method, or leave out {given}")
        return None
    check_percentile(options, [options.method])
    signed = None if options.codes is None else options.codes == "signed"
    bits = 8 if options.bits is None else options.bits
    percentile = PERCENTILE if options.percentile is None else options.percentile
    return RangeChoice(options.method, bits, options.symmetric, signed, percentile)


def _range_options(options: Namespace) -> str:
    """The options on ranges that are given, as a message names them; empty if there is none."""
    given = {
        "--method": options.method is not None,
        "--bits": options.bits is not None,
        "--symmetric": options.symmetric,
        "--codes": options.codes is not None,
        "--percentile": options.percentile is not None,
    }
    return " and ".join(name for name, is_given in given.items() if is_given)


def _names(options: Namespace) -> Names | None:
    if options.names is not None:
        from ..config import load_names

        return load_names(options.names)
    if options.model is None:
        return None
    from ..models.fingerprints import check_recorded, recorded_in
    from ..models.onnx.fingerprint import fingerprints
    from ..models.onnx.graph import load_model
    from ..models.onnx.tensor_names import renamed_tensors, tensor_names
    from ..outputs.results import open_results

    entries = open_results(options.output).manifest.layers
    model, otherwise = load_model(options.model), "name the tensors with --names instead of --model"
    known = {layer: each.tensor for layer, each in sorted(entries.items()) if fnmatchcase(layer, options.layers)}
    recorded = recorded_in(Path(options.output))
    check_recorded(options.output, recorded, fingerprints(model), options.model, otherwise, layers=known)
    unknown = [layer for layer, tensor in known.items() if not tensor]
    return {**tensor_names(model, options.model, unknown), **renamed_tensors(model, known)}


def _missing(options: Namespace, names: Collection[str]) -> list[str]:
    """The tensors that onnxruntime needs and the file lacks, as far as the model tells."""
    from ..models.onnx.quantizable import quantizable_tensors

    if options.model is None or options.format != "onnxruntime":
        return []
    return [each for each in quantizable_tensors(options.model) if each not in names]
