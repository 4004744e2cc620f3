"""Writing model files: one, or two if one cannot hold everything. Equal models give equal bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import UsageError, first_line, require
from ...storage.files import write_bytes
from .graph import copied

if TYPE_CHECKING:
    import onnx

SINGLE_FILE_BYTES = 2**31 - 2**24
EXTERNAL_TENSOR_BYTES = 1024


def check_targets(sources: list[str | Path], targets: list[str | Path | None]) -> None:
    """Raise `UsageError` unless all are different files and each target is new or a model that may be replaced."""
    read = {Path(source).resolve() for source in sources}
    if len(read) < len(sources):
        raise UsageError(f"{sources[0]} is given as the float and as the quantised model; expected two models")
    named = [Path(target) for target in targets if target is not None]
    for path in named:
        if path.resolve() in read:
            raise UsageError(f"{path} is an input and would be overwritten; name another output")
    if len({path.resolve() for path in named}) < len(named):
        raise UsageError(f"{named[0]} is named for both outputs; expected different files")
    for path in named:
        if path.exists() and path.suffix != ".onnx":
            raise UsageError(f"{path} exists and its name does not end in .onnx; name another file for the model")


def check_alone(path: str | Path) -> None:
    """Raise `UsageError` for a model with tensors in other files: it could name any file of this machine."""
    onnx = require("onnx", "onnx")
    try:
        model = onnx.load(str(path), format="protobuf", load_external_data=False)
    except Exception as error:
        raise UsageError(f"{path} is not an ONNX model: {first_line(error)}") from error
    graphs = [model.graph, *(graph for each in model.training_info for graph in (each.initialization, each.algorithm))]
    tensors = [
        *chain.from_iterable(map(_tensors, graphs)),
        *(each for f in model.functions for each in (*_of_nodes(f.node), *_of_attributes(f.attribute_proto))),
    ]
    outside = [each.name for each in tensors if each.data_location == onnx.TensorProto.EXTERNAL or each.external_data]
    if outside:
        raise UsageError(f"{path}: tensor {outside[0]} is in another file; save the model as one file")


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """The tensors of `graph` and of the graphs inside it."""
    yield from graph.initializer
    yield from _of_sparse(graph.sparse_initializer)
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        yield from _of_attributes(node.attribute)


def _of_attributes(attributes: Iterable[onnx.AttributeProto]) -> Iterator[onnx.TensorProto]:
    for attribute in attributes:
        yield from (attribute.t, *attribute.tensors)
        yield from _of_sparse([attribute.sparse_tensor, *attribute.sparse_tensors])
        for inner in (attribute.g, *attribute.graphs):
            yield from _tensors(inner)


def _of_sparse(tensors: Iterable[onnx.SparseTensorProto]) -> Iterator[onnx.TensorProto]:
    return (part for sparse in tensors for part in (sparse.values, sparse.indices))


def write_models(models: list[tuple[onnx.ModelProto, str | Path | None]]) -> None:
    """Write each model whose path is not None, after converting all of them to bytes; the models stay unchanged."""
    files = [file for model, path in models if path is not None for file in _to_files(model, Path(path))]
    for path, content in files:
        write_bytes(path, content)


def fits_one_file(model: onnx.ModelProto) -> bool:
    """Whether `model` fits into one file, which can hold 2 GB."""
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer) <= SINGLE_FILE_BYTES


def _to_files(model: onnx.ModelProto, path: Path) -> Iterator[tuple[Path, bytes]]:
    """The content of each file to write: the model, preceded by its tensors if one file cannot hold both."""
    if not fits_one_file(model):
        model = copied(model)
        beside = path.with_name(f"{path.name}.data")
        yield beside, _externalize(model, beside.name)
    yield path, model.SerializeToString(deterministic=True)


def _externalize(model: onnx.ModelProto, location: str) -> bytes:
    """Move the large initializers out of `model`; the content of the file `location` that holds them."""
    onnx = require("onnx", "onnx")
    content = bytearray()
    for tensor in model.graph.initializer:
        raw = tensor.raw_data
        if len(raw) > EXTERNAL_TENSOR_BYTES:
            onnx.external_data_helper.set_external_data(tensor, location, offset=len(content), length=len(raw))
            tensor.ClearField("raw_data")
            content += raw
    return bytes(content)
