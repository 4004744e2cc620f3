"""What the service says about results. The documents are those of `outputs`; these classes describe them to clients.

What a statistic adds to a document has no place here: a new statistic is described by itself.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from .messages import OpenRows, Rows

Cell = str | float | bool | list[Any] | None


class Open(BaseModel):
    """A document with further fields: figures of the statistics that were counted."""

    model_config = ConfigDict(extra="allow")


class FileView(BaseModel):
    """A file of a result set, and the SHA-256 of its content."""

    file: str
    sha256: str


class NoFileView(BaseModel):
    """Why a layer has no corrector."""

    file: None
    reason: str


class GapView(Open):
    """Rows that could not be read, with the reason; of a layer of several arrays, also where the array is."""

    rows: Rows
    reason: str


class ShortfallView(BaseModel):
    """What a layer counted if that is less than `min_rows`; the channel is the one that saw the fewest values."""

    rows: int
    values: int
    channel: int | None
    reason: str


class CountedView(Open):
    """What was counted for a layer."""

    rows: int
    covered: list[Rows] = []
    excluded: list[Rows] = []
    filled: list[Rows] = []
    accepted: list[Rows] = []
    stores: int | None = None
    channels: int
    channel_axis: int
    dtype: str
    quantization: dict[str, Any] | None
    kernel: dict[str, Any] | list[dict[str, Any]] | None = None
    mask: bool | None = None
    masked: dict[str, int] | None = None
    statistics: list[str]
    array: str | None = None
    tensor: str | None = None
    rows_are: str | None = None
    models: list[str] = []
    order: int | None = None
    attributes: dict[str, Any] | None = None


class GapsView(CountedView):
    """What was counted for a layer, and which rows are missing."""

    missing: list[GapView]
    min_rows: int = 0
    shortfall: ShortfallView | None = None


class LayerView(GapsView):
    """A layer of a result set; `corrector` is the file with its input mean, or None for the `reason`."""

    corrector: str | None
    reason: str


class LayersView(BaseModel):
    """The layers of a result set, by name; `results` is the number of the set."""

    results: int
    layers: dict[str, LayerView]


class TableView(BaseModel):
    """A table with names of columns."""

    columns: list[str]
    rows: list[list[Cell]]


class ChannelsView(CountedView):
    """The statistics of a layer; each list of `per_channel` has a value per channel."""

    results: int
    layer: str
    tables: dict[str, TableView]
    per_channel: dict[str, list[Cell]]


class EntryView(GapsView):
    """The manifest's entry for a layer."""

    state: FileView
    corrector: FileView | NoFileView


class ManifestView(Open):
    """The manifest of a result set."""

    format: str
    layers: dict[str, EntryView]
    rows: OpenRows | None
    source: str | list[str]
    unreadable: dict[str, str] = {}
    coordinates: dict[str, str] = {}
    versions: dict[str, str]


class FilesView(BaseModel):
    """The SHA-256 of each file of a result set, by name; `results` is the number of the set."""

    results: int
    files: dict[str, str]


class CorrectionView(Open):
    """What a correction came to: the outcome for a layer, and the reason if nothing was done."""

    layer: str
    corrected: bool
    outcome: Literal["corrected", "unchanged", "never quantised", "nothing to correct", "left out", "refused"]


class CorrectionsView(BaseModel):
    """The outcome for each layer, by name."""

    layers: dict[str, CorrectionView]
