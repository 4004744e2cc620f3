"""Tables for analysis: all figures of all statistics, by layer and channel, whatever the statistics are.

JSON and safetensors also hold the tables of statistics, such as histograms. CSV and Parquet have one row for each
channel of each layer; the figures of a layer are in columns `layer_…`, repeated in its rows. Unknown figures are null,
or empty; in safetensors, they are NaN.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import require
from ..outputs.documents import channels_document
from ..outputs.layer_statistics import LayerStatistics
from ..storage.files import json_bytes
from ..storage.tensors import tensors_bytes

FORMAT = "streamstats-figures/1"
OF_LAYER = "layer_"
"""The prefix of figures for a whole layer."""
Layers = Mapping[str, LayerStatistics]


def as_json(layers: Layers) -> bytes:
    """`layers`: name → what was counted, figures, tables, and `per_channel`: figure → values."""
    return json_bytes({"format": FORMAT, "layers": {name: channels_document(found) for name, found in layers.items()}})


def as_safetensors(layers: Layers) -> bytes:
    """`LAYER.FIGURE` [channels], `LAYER.layer_FIGURE` [], `LAYER.TABLE.COLUMN` [rows]; what was counted as metadata."""
    tensors: dict[str, npt.NDArray[Any]] = {}
    for name, found in layers.items():
        tensors |= {f"{name}.{key}": array for key, array in _arrays(found)}
    counted = {name: found.document() for name, found in layers.items()}
    return tensors_bytes(tensors, {"format": FORMAT, "layers": json.dumps(counted, sort_keys=True)})


def _arrays(found: LayerStatistics) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    figures = found.figures()
    yield from ((name, np.asarray(values)) for name, values in figures.channels.items())
    yield from ((f"{OF_LAYER}{name}", np.asarray(value)) for name, value in figures.layer.items())
    for name, table in figures.tables.items():
        rows = np.asarray(table.rows, np.float64).reshape(-1, len(table.columns))
        yield from ((f"{name}.{column}", rows[:, place]) for place, column in enumerate(table.columns))


def as_csv(layers: Layers) -> bytes:
    """A line for each channel of each layer; floats as Python prints them, which reads back as the same floats."""
    text = io.StringIO(newline="")
    columns = _columns(layers)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue().encode()


def as_parquet(layers: Layers) -> bytes:
    """The same as a Parquet file. Raises `MissingDependencyError` without pyarrow."""
    pyarrow = require("pyarrow", "parquet")
    content = io.BytesIO()
    require("pyarrow.parquet", "parquet").write_table(pyarrow.table(_columns(layers)), content)
    return content.getvalue()


def _columns(layers: Layers) -> dict[str, list[Any]]:
    """Column → its value in each row; None for unknown figures, and for those that a layer does not have."""
    rows = [row for name, found in layers.items() for row in _rows(name, found)]
    names = dict.fromkeys(column for row in rows for column in row)
    ordered = sorted(names, key=lambda column: column.startswith(OF_LAYER))
    return {column: [row.get(column) for row in rows] for column in ordered}


def _rows(name: str, found: LayerStatistics) -> Iterator[dict[str, Any]]:
    figures = found.figures()
    of_layer = {"rows": found.rows, "dtype": str(found.space.dtype), **figures.layer}
    repeated = {f"{OF_LAYER}{key}": _known(value) for key, value in of_layer.items()}
    columns = {key: values.tolist() for key, values in figures.channels.items()}
    for channel in range(found.channels):
        of_channel = {key: _known(values[channel]) for key, values in columns.items()}
        yield {"layer": name, "channel": channel, **of_channel, **repeated}


def _known(value: Any) -> Any:
    """`value` as Python has it, or None for NaN."""
    plain = value.item() if isinstance(value, np.generic) else value
    return None if plain != plain else plain
