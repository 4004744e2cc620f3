"""What clients and the service send each other: requests, which are checked strictly, and answers."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

from ..config import NO_NUL, ReductionConfig, Settings
from ..jobs.job import DEFAULT_MEMORY
from .settings import Bytes, Limits

V1 = "/api/v1"
"""Before every path that is described by OpenAPI."""
STORE_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
UPLOAD_ID = r"^[0-9a-f]{64}$"
MOST_RULES = 1000
OWN = "store:"
"""As the source of a job, the name of a store that the service owns begins with this."""

Upload = Annotated[str, Field(pattern=UPLOAD_ID, description="The `id` of an upload.")]
Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[ -~]+$")]
Tag = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/=+-]*$")]
MOST_TAGS = 20


class FollowRequest(Settings):
    """When to stop following a store; with neither key, the job runs until it is cancelled."""

    rows: Annotated[int | None, Field(ge=1, le=2**53, description="Stop when every layer has this many rows.")] = None
    idle: Annotated[float | None, Field(gt=0, le=1e9, description="Stop after this many seconds without new rows.")] = (
        None
    )


class About(Settings):
    """What people call a job. It changes nothing of what the job does, and can be changed later."""

    name: Annotated[
        str,
        Field(max_length=100, pattern=r"^[^\x00-\x1f\x7f]*$", description="A name, in one line; need not be unique."),
    ] = ""
    tags: Annotated[
        list[Tag], Field(default_factory=list, max_length=MOST_TAGS, description="Words to find the job by.")
    ]
    note: Annotated[str, Field(max_length=4000, pattern=NO_NUL, description="Free text.")] = ""

    @model_validator(mode="before")
    @classmethod
    def _check_text(cls, request: Any) -> Any:
        try:
            json.dumps(request, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError("the request contains unpaired surrogate characters; expected valid Unicode") from error
        return request

    def stated(self) -> dict[str, Any]:
        """The name, the tags and the note, as far as the request gives them; a tag that is repeated counts once."""
        found = {name: getattr(self, name) for name in About.model_fields if name in self.model_fields_set}
        return found | ({"tags": list(dict.fromkeys(self.tags))} if "tags" in found else {})


class Submission(About):
    """Who submits a job, its priority, and what it is called."""

    submitter: Annotated[Name, Field(description="The queue shares the workers fairly among submitters.")] = "anonymous"
    priority: Annotated[
        int, Field(ge=-100, le=100, description="Orders the jobs of one submitter; higher runs sooner.")
    ] = 0


class RunRequest(Submission, ReductionConfig):
    """Reduce a store, as `streamstats run` does."""

    kind: Literal["run"]
    follow: Annotated[FollowRequest | None, Field(description="Keep counting rows as they are appended.")] = None


class OnnxRequest(Submission):
    """Run a model on samples, record and reduce its activations, and correct the quantised model.

    The quantised model is an upload, or the float model with its weights fake-quantised to `bits`.
    """

    kind: Literal["onnx"]
    model: Annotated[Upload, Field(description="The float model.")]
    samples: Annotated[Upload, Field(description="Calibration samples, .npy or .npz.")]
    quantized: Annotated[Upload | None, Field(description="The same model, quantised; or give `bits`.")] = None
    bits: Annotated[int | None, Field(ge=2, le=16, description="Fake-quantise the weights to this many bits.")] = None
    per_channel: bool = False
    symmetric: bool = False
    weight_range: Literal["minmax", "mse"] = "minmax"
    activation_bits: Annotated[
        int | None,
        Field(ge=2, le=16, description="With `bits`: also round the input of every layer to this many bits."),
    ] = None
    activation_range: Annotated[
        Literal["minmax", "percentile", "mse", "entropy"], Field(description="How the ranges of inputs are found.")
    ] = "minmax"
    storage: Literal["float", "int8"] = "float"
    mask: Annotated[
        str | None,
        Field(min_length=1, description="The input of the model that is 1 at positions that count and 0 at others."),
    ] = None
    iterative: Annotated[Literal["full", "change"] | None, Field(description="Correct layer by layer.")] = None
    held_out: Annotated[Upload | None, Field(description="Samples that measure the effect of the correction.")] = None
    labels: Annotated[Upload | None, Field(description="Labels of the held-out samples, a .npy of integers.")] = None
    do_no_harm: bool = False
    memory: Bytes = DEFAULT_MEMORY


JobRequest = Annotated[RunRequest | OnnxRequest, Field(discriminator="kind")]


class Problem(BaseModel):
    """An error as RFC 9457 has it: `detail` says what was found, what was expected, and what to do.

    `request` is the number of the request in the service's log, which the header `x-request-id` has, too.
    """

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    request: str


class JobSummary(BaseModel):
    """A job as lists show it: its state, its progress, and the number of its current result set, if it has one.

    Times are seconds since 1970; `bytes` counts decoded bytes.
    """

    id: str
    kind: str
    name: str
    tags: list[str]
    note: str
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


class JobView(JobSummary):
    """A job with the whole request that submitted it."""

    request: dict[str, Any]


class JobPage(BaseModel):
    """A page of jobs, newest first; `next` is the `before` of the following page."""

    jobs: list[JobSummary]
    next: int | None


class IngestView(BaseModel):
    """Rows `start` to `stop` of a layer: appended now or, if `repeated`, by an earlier request with the same key."""

    store: str
    layer: str
    start: int
    stop: int
    repeated: bool


class UploadView(BaseModel):
    """An upload; its id is the SHA-256 of its content."""

    id: str
    bytes: int


class StoreView(BaseModel):
    """A store that the service owns: the rows of each layer; `source` is the store's name in a job request."""

    name: str
    source: str
    layers: dict[str, int]
    rows: int


class StatisticView(BaseModel):
    """A statistic that a job counts on request: its name and what it is for."""

    name: str
    description: str


class AliveView(BaseModel):
    """The process responds."""

    status: Literal["ok"] = "ok"
    version: str


class ReadyView(BaseModel):
    """The service accepts work."""

    status: Literal["ready"] = "ready"


class ServiceView(BaseModel):
    """The version of the service, the sources that jobs may read, its limits, and the number of jobs in each state."""

    version: str
    sources: list[str]
    prefixes: list[str]
    memory: int
    limits: Limits
    jobs: dict[str, int]


class LinkView(BaseModel):
    """A path that can be fetched without a token for one minute."""

    path: str
