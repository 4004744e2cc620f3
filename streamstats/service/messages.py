"""What clients and the service send each other: requests, which are checked strictly, and answers."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

from ..config import NO_NUL, Pattern, ReductionConfig, Settings
from ..jobs.job import DEFAULT_MEMORY
from .settings import FIRST, LETTERS, Bytes, Ended, HookName, Limits
from .tokens import Role

V1 = "/api/v1"
"""Before every path that is described by OpenAPI."""
STORE_NAME = Pattern(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", f"1 to 64 {LETTERS} . _ -, {FIRST}")
TOKEN_NAME = Pattern(r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$", f"1 to 64 {LETTERS} . _ @ -, {FIRST}")
JOB_ID = Pattern(r"^[0-9a-f]{16}$", "the id of a job, 16 lower-case hexadecimal digits")
KEY = Pattern(r"^[!-~]{1,128}$", "1 to 128 ASCII characters without spaces")
"""Of idempotency keys."""
UPLOAD_ID = Pattern(r"^[0-9a-f]{64}$", "the id of an upload, 64 hexadecimal digits")
ONE_LINE = Pattern(r"^[^\x00-\x1f\x7f-\x9f]*$", "one line, without control characters")
PRINTABLE = Pattern(r"^[ -~]*$", "printable ASCII characters")
TAG = Pattern(r"^[A-Za-z0-9][A-Za-z0-9._:/=+-]*$", f"{LETTERS} . _ : / = + -, {FIRST}")
UPLOADS = ("model", "samples", "quantized", "held_out", "labels")
"""The keys of a request that name uploads."""
MOST_RULES = 1000
OWN = "store:"
"""As the source of a job, the name of a store that the service owns begins with this."""

Rows = Annotated[list[int], Field(min_length=2, max_length=2, description="From the first row to before the second.")]
OpenRows = Annotated[
    list[int | None],
    Field(min_length=2, max_length=2, description="From the first row to before the second, or to the end."),
]
Upload = Annotated[str, UPLOAD_ID, Field(description="The `id` of an upload.")]
Name = Annotated[str, Field(min_length=1, max_length=64), PRINTABLE]
Tag = Annotated[str, Field(min_length=1, max_length=64), TAG]
MOST_TAGS = 20


class FollowRequest(Settings):
    """When to stop following a store; with neither key, the job runs until it is cancelled."""

    rows: Annotated[int | None, Field(ge=1, le=2**53, description="Stop when every layer has this many rows.")] = None
    idle: Annotated[float | None, Field(gt=0, le=1e9, description="Stop after this many seconds without new rows.")] = (
        None
    )


class About(Settings):
    """What people call a job. It changes nothing of what the job does, and can be changed later."""

    name: Annotated[str, Field(max_length=100, description="A name, in one line, not unique."), ONE_LINE] = ""
    tags: Annotated[
        list[Tag], Field(default_factory=list, max_length=MOST_TAGS, description="Words to find the job by.")
    ]
    note: Annotated[str, Field(max_length=4000, description="Free text."), NO_NUL] = ""

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

    submitter: Annotated[
        Name | None,
        Field(
            description="Whose job it is: that of the token, by default. Only admins may name others. The queue shares "
            "the workers fairly among submitters."
        ),
    ] = None
    priority: Annotated[
        int, Field(ge=-100, le=100, description="Orders the jobs of one submitter; higher runs sooner.")
    ] = 0
    notify: Annotated[
        list[HookName],
        Field(
            default_factory=list,
            max_length=20,
            description="Hooks of the service to tell of the end, besides those that it tells of every job.",
        ),
    ]


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


class StageView(BaseModel):
    """How far a running job of several `steps` has come: the number of its step, from 0, and the stage of that step.

    `done` and `total` count what `unit` says; `seconds_left` is the time left of the stage, None until it is known.
    """

    step: int
    steps: list[str]
    what: str
    unit: Literal["bytes", "samples"]
    done: int
    total: int
    seconds_left: float | None


class JobSummary(BaseModel):
    """A job as lists show it: its state, its progress, and the number of its current result set, if it has one.

    Times are seconds since 1970; `seconds` is how long it has run, whatever the clock says; `bytes` counts decoded
    bytes; `rows` and `total_rows` are those of all layers together. While it is queued, `place` is its place in the
    queue, 1 for the next; `waits_for` says what it waits for. If it failed, `exit_status` is what the command line
    would have returned, as far as that is known: 2 if its request is at fault.
    """

    id: str
    kind: str
    name: str
    tags: list[str]
    note: str
    notify: list[str]
    source: str | None
    submitter: str
    priority: int
    state: Literal["queued", "running", "cancelling", Ended]
    submitted: float
    started: float | None
    ended: float | None
    seconds: float
    place: int | None = None
    waits_for: str = ""
    attempts: int
    rows: int
    total_rows: int
    bytes: int
    total_bytes: int
    bytes_per_second: float
    seconds_left: float | None
    stage: StageView | None
    message: str
    exit_status: int | None
    results: int | None
    follows: bool


class JobView(JobSummary):
    """A job with the whole request that submitted it."""

    request: dict[str, Any]


class SubmittedView(JobView):
    """A job that was submitted: now or, if `repeated`, by an earlier request with the same key."""

    repeated: bool


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
    owners: list[str]
    uploaded: float


class StoreView(BaseModel):
    """A store that the service owns: the rows of each layer, and `rows` of all of them; `source` is the
    store's name in a job request.

    `withdrawn` are the rows of batches that no job counts any more, as [start, stop], by layer.
    """

    name: str
    source: str
    layers: dict[str, int]
    rows: int
    owner: str
    appended: float
    withdrawn: dict[str, list[Rows]]


class BatchView(BaseModel):
    """What one request appended: rows `start` to `stop` of a layer, by key; `withdrawn` is when it was withdrawn."""

    layer: str
    key: str
    start: int
    stop: int
    sender: str
    withdrawn: float | None


class WithdrawnView(BaseModel):
    """A batch that was withdrawn. `jobs` may have counted it: `POST /jobs/JOB/forget` subtracts it.

    They have ended, or are forgetting what was withdrawn before. All others subtract it by themselves.
    """

    batch: BatchView
    jobs: list[str]


class NewToken(Settings):
    """A token to make."""

    name: Annotated[str, TOKEN_NAME, Field(description="Who will use it; it owns what is made with it.")]
    role: Annotated[
        Role,
        Field(
            description="read: see everything; submit: also make jobs, stores and uploads, and change its own; admin: "
            "also change what others made, and make tokens."
        ),
    ] = "submit"


class TokenView(BaseModel):
    """A token; `until` is when a secret that was replaced ends."""

    name: str
    role: Role
    made: float
    maker: str
    until: float | None


class SecretView(BaseModel):
    """The secret of a token, which cannot be asked for again."""

    name: str
    token: str


class AuditEntry(BaseModel):
    """What was asked of the service, by whom, and the status of the answer; `made` is the path of what it made.

    `left_out` is how many refusals of this token before it have no entry, because there were too many.
    """

    number: int
    at: float
    who: str
    role: Role
    method: str
    path: str
    status: int
    made: str | None = None
    address: str | None = None
    request: str | None = None
    left_out: int | None = None


class AuditPage(BaseModel):
    """A page of the audit log, newest first; `next` is the `before` of the following page."""

    entries: list[AuditEntry]
    next: int | None


class PrunedView(BaseModel):
    """Something that is not kept: `at` is when it was last used, `why` the limit that it exceeds, `age`, `number` or
    `bytes`. Of events, `why` has all limits that are set.
    """

    kind: str
    name: str
    at: float
    bytes: int
    why: str


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


class CallerView(BaseModel):
    """The token that was sent."""

    name: str
    role: Role


class ServiceView(BaseModel):
    """The version of the service, who asks, the sources that jobs may read, its limits, and the jobs in each state."""

    version: str
    you: CallerView
    sources: list[str]
    prefixes: list[str]
    hooks: list[str]
    memory: int
    limits: Limits
    jobs: dict[str, int]


class LinkView(BaseModel):
    """A path that can be fetched without a token for one minute."""

    path: str
