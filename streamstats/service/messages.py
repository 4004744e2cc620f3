"""What clients and the service say to each other: requests are checked strictly, answers are the same for all."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

from ..config import ReductionConfig, Settings
from ..jobs.job import DEFAULT_MEMORY
from .settings import Bytes

STORE_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
UPLOAD_ID = r"^[0-9a-f]{64}$"
MOST_RULES = 1000
OWN = "store:"
"""Before the name of a store that the service owns, as the source of a job."""

Upload = Annotated[str, Field(pattern=UPLOAD_ID, description="What an upload answered as its id.")]
Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[ -~]+$")]


class FollowRequest(Settings):
    """Until when a store is followed; without both, until the job is cancelled."""

    rows: Annotated[int | None, Field(ge=1, le=2**53, description="Every layer has so many rows.")] = None
    idle: Annotated[float | None, Field(gt=0, le=1e9, description="Seconds in which nothing was added.")] = None


class Submission(Settings):
    """Whose job it is, and how urgent among theirs."""

    submitter: Annotated[Name, Field(description="Who submits: jobs are fair between submitters.")] = "anonymous"
    priority: Annotated[
        int, Field(ge=-100, le=100, description="Among jobs of the same submitter; more is sooner.")
    ] = 0

    @model_validator(mode="before")
    @classmethod
    def _check_text(cls, request: Any) -> Any:
        try:
            json.dumps(request, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError("the request has halves of characters; expected Unicode") from error
        return request


class RunRequest(Submission, ReductionConfig):
    """Reduce a store: what `streamstats run` does."""

    kind: Literal["run"]
    follow: Annotated[FollowRequest | None, Field(description="Go on with rows that are appended.")] = None


class OnnxRequest(Submission):
    """Record a model over samples, reduce, and correct what a quantiser made of it, or its own weights on few bits."""

    kind: Literal["onnx"]
    model: Annotated[Upload, Field(description="The float model.")]
    samples: Annotated[Upload, Field(description="Calibration samples, .npy or .npz.")]
    quantized: Annotated[Upload | None, Field(description="The same model, quantised; or give bits.")] = None
    bits: Annotated[int | None, Field(ge=2, le=16, description="Fake-quantise the weights.")] = None
    per_channel: bool = False
    symmetric: bool = False
    storage: Literal["float", "int8"] = "float"
    iterative: Annotated[Literal["full", "change"] | None, Field(description="Layer after layer.")] = None
    held_out: Annotated[Upload | None, Field(description="Samples to judge by.")] = None
    labels: Annotated[Upload | None, Field(description="Their labels, .npy of integers.")] = None
    do_no_harm: bool = False
    memory: Bytes = DEFAULT_MEMORY


JobRequest = Annotated[RunRequest | OnnxRequest, Field(discriminator="kind")]


class JobView(BaseModel):
    """A job: its state, how far it is, and the number of its newest results, if there are any.

    Times are seconds since 1970; `bytes` are decoded ones.
    """

    id: str
    kind: str
    source: str | None
    submitter: str
    priority: int
    state: Literal["queued", "running", "cancelling", "done", "incomplete", "failed", "cancelled"]
    submitted: float
    started: float | None
    ended: float | None
    attempts: int
    rows: int
    total_rows: int
    bytes: int
    total_bytes: int
    bytes_per_second: float
    seconds_left: float | None
    message: str
    results: int | None
    follows: bool
    request: dict[str, Any]

    @property
    def ended_well(self) -> bool:
        """Whether everything was counted."""
        return self.state == "done"


class JobPage(BaseModel):
    """Jobs, the newest first; `next` is the `before` of the page after it."""

    jobs: list[JobView]
    next: int | None


class IngestView(BaseModel):
    """Rows `start` to `stop` of a layer were added, now or when the same key was given before."""

    store: str
    layer: str
    start: int
    stop: int
    repeated: bool


class UploadView(BaseModel):
    """An upload: its id is the SHA-256 of its content."""

    id: str
    bytes: int


class StoreView(BaseModel):
    """A store that the service owns: the rows of each layer; `source` is what a job calls it."""

    name: str
    source: str
    layers: dict[str, int]
    rows: int


class LinkView(BaseModel):
    """A path that can be fetched without a token for a minute."""

    path: str
