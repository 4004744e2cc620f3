"""A model that a service is sent may not name files, wherever in it a tensor can be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from streamstats.errors import UsageError
from streamstats.models.onnx.files import check_alone

PLACES: dict[str, Callable[[onnx.ModelProto], onnx.TensorProto]] = {
    "initializer": lambda model: model.graph.initializer.add(),
    "values of a sparse initializer": lambda model: model.graph.sparse_initializer.add().values,
    "indices of a sparse initializer": lambda model: model.graph.sparse_initializer.add().indices,
    "attribute": lambda model: model.graph.node.add().attribute.add().t,
    "list of tensors": lambda model: model.graph.node.add().attribute.add().tensors.add(),
    "sparse tensor": lambda model: model.graph.node.add().attribute.add().sparse_tensor.values,
    "list of sparse tensors": lambda model: model.graph.node.add().attribute.add().sparse_tensors.add().indices,
    "graph in a node": lambda model: model.graph.node.add().attribute.add().g.initializer.add(),
    "list of graphs": lambda model: model.graph.node.add().attribute.add().graphs.add().node.add().attribute.add().t,
    "function": lambda model: model.functions.add().node.add().attribute.add().t,
    "default of a function's attribute": lambda model: model.functions.add().attribute_proto.add().t,
    "initialization for training": lambda model: model.training_info.add().initialization.initializer.add(),
    "algorithm for training": lambda model: (
        model.training_info.add().algorithm.node.add().attribute.add().g.initializer.add()
    ),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_tensor_in_another_file_is_refused(tmp_path: Path, place: str) -> None:
    model = onnx.ModelProto(ir_version=10)
    tensor = PLACES[place](model)
    tensor.name = "w"
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    check_alone(path)
    tensor.external_data.add(key="location", value="../../token")
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UsageError, match="tensor w is in another file"):
        check_alone(path)
