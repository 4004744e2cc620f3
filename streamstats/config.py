"""The configuration of a job: YAML in, checked models out. No other code reads configuration.

Unknown keys, wrong types and impossible values are refused; the error names the path of the key, what was found and
what was expected.
"""

from __future__ import annotations

import os
import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainValidator,
    Tag,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from .address import SERVICE_URL
from .calibration.selection import LayerRule
from .errors import UsageError, one_of, suggestion
from .jobs.cores import available_cores
from .jobs.job import DEFAULT_MEMORY, Job
from .jobs.sizes import parse_bytes
from .jobs.workers import Cluster
from .layouts import Geometry, Kernel
from .overrides import paths_and_values, substituted, with_settings
from .quantization import Quantization
from .statistics.kinds import ALWAYS, asked, optional

LONGEST_CONFIG = 2**20
LONGEST_SHOWN = 80
MOST_PROCESSES = 1024
ROWS = r"^[0-9]{1,18}:[0-9]{0,18}$"


@dataclass(frozen=True)
class Pattern:
    """Which text is valid: schemas show the regular expression `regex`, and errors say it in `words`.

    In an annotation, put limits of the length before it; otherwise, their errors do not speak of characters.
    """

    regex: str
    words: str

    def fits(self, text: str) -> bool:
        """Whether `text` is valid."""
        return re.fullmatch(self.regex, text) is not None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> Any:
        return AfterValidator(self._checked).__get_pydantic_core_schema__(source, handler)

    def __get_pydantic_json_schema__(self, schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "pattern": self.regex}

    def _checked(self, text: str) -> str:
        if not self.fits(text):
            raise ValueError(f"expected {self.words}")
        return text


NO_NUL = Pattern(r"^[^\x00]*$", "text without NUL characters")


def parse_rows(text: str) -> tuple[int, int | None]:
    """(start, stop) from text such as "0:1000", or (start, None) from "1000:". Raises `UsageError`.

    >>> parse_rows("64:128"), parse_rows("64:")
    ((64, 128), (64, None))
    """
    found = _parsed_rows(text)
    if found is None:
        raise UsageError(
            f"--rows is {text!r}; expected START:STOP, as in 64:128, or START: for all rows from START on; for several "
            "ranges, repeat --rows"
        )
    if found[1] is not None and found[0] >= found[1]:
        raise UsageError(f"--rows is {text!r}; expected START less than STOP")
    return found


def _parsed_rows(text: object) -> tuple[int, int | None] | None:
    """(start, stop) from text such as "0:1000" or "1000:", which has no stop; None for anything else."""
    if not (isinstance(text, str) and re.fullmatch(ROWS, text)):
        return None
    start, stop = text.split(":")
    return int(start), int(stop) if stop else None


def _checked_rows(rows: object) -> object:
    found = _parsed_rows(rows)
    if rows is not None and found is None:
        raise ValueError('expected START:STOP, as in 0:1000, or in quotes "START:" for all rows from START on')
    if found is not None and found[1] is not None and found[0] >= found[1]:
        raise ValueError("expected START less than STOP")
    return rows


class Settings(BaseModel):
    """Keys that are checked strictly: unknown keys are refused, types are never converted."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


_ONE, _EACH = "one for all channels", "one per channel"
_one_or_each = Discriminator(lambda value: _EACH if isinstance(value, list) else _ONE)
Scale = Annotated[Annotated[float, Tag(_ONE)] | Annotated[list[float], Tag(_EACH)], _one_or_each]
ZeroPoint = Annotated[Annotated[int, Tag(_ONE)] | Annotated[list[int], Tag(_EACH)], _one_or_each]


def _known(name: str) -> str:
    if name not in asked():
        raise ValueError(one_of(name, asked()))
    return name


StatisticName = Annotated[str, AfterValidator(_known), WithJsonSchema({"enum": asked(), "type": "string"})]


class QuantizationConfig(Settings):
    """The affine map of a layer's integer codes: `real = (code − zero_point) · step`."""

    scale: Annotated[Scale, Field(description="A number, or one per channel.")]
    scale_is: Annotated[
        Literal["step", "reciprocal"],
        Field(description="step: real units per code (ONNX, TFLite, torch); reciprocal: codes per real unit."),
    ]
    zero_point: Annotated[ZeroPoint, Field(description="The code of zero: an integer, or one per channel.")] = 0
    offset: Annotated[
        float, Field(description="Added to the real value, in place of a zero point: real = code · step + offset.")
    ] = 0.0

    def quantization(self) -> Quantization:
        """The map. Raises `UsageError` for impossible scales or zero points."""
        return Quantization.from_scale(self.scale, self.scale_is, self.zero_point, self.offset)


class GeometryConfig(Settings):
    """The kernel of a layer, for `taps` and `gram`: one number per spatial axis, in the order of the array."""

    kernel: Annotated[
        list[int], Field(description="The taps per spatial axis, as in [3, 3]; [] for matrix products such as Linear.")
    ]
    strides: Annotated[list[int], Field(description="Default: 1.")] = []
    pads: Annotated[
        list[int], Field(description="Zeros before each axis, then after each, as in ONNX; default: 0.")
    ] = []
    dilations: Annotated[list[int], Field(description="Default: 1.")] = []
    output_padding: Annotated[list[int], Field(description="Of a transposed convolution; default: 0.")] = []
    transposed: Annotated[bool, Field(description="Whether the convolution is transposed.")] = False
    groups: Annotated[int, Field(description="The groups of a grouped convolution; default: 1.")] = 1

    def parsed(self) -> Kernel:
        """The kernel. Raises `UsageError` for impossible numbers."""
        numbers = (self.strides, self.pads, self.dilations, self.output_padding)
        return Kernel(tuple(self.kernel), Geometry(*map(tuple, numbers)), self.transposed, self.groups)


def _checked_mask(value: object) -> object:
    if value is not None and value is not False and not (isinstance(value, str) and value):
        raise ValueError("it should be the name of an array, false, or null")
    return value


class LayerConfig(Settings):
    """How the job describes layers whose name matches; keys left out come from the store's attributes."""

    match: Annotated[str, Field(description="A glob on the layer's name; `*` also crosses `/`. The first match wins.")]
    channel_axis: Annotated[int | None, Field(description="The axis of the channels; default: the last.")] = None
    quantization: Annotated[QuantizationConfig | None, Field(description="For integer codes.")] = None
    geometry: Annotated[
        GeometryConfig | None, Field(description="The kernel, for stores that streamstats did not record.")
    ] = None
    mask: Annotated[
        str | Literal[False] | None,
        PlainValidator(
            _checked_mask, json_schema_input_type=Annotated[str, Field(min_length=1)] | Literal[False] | None
        ),
        Field(
            description="The name of the array in the store that says which positions count (1) and which do not (0). "
            "It has the shape of the layer without its channel axis. null, the default, leaves it to the store's "
            "attributes; with false, every position counts.",
        ),
    ] = None
    attributes: Annotated[
        Literal["apply", "ignore"] | None,
        Field(description="As `attributes` of the job, which it replaces for these layers."),
    ] = None
    statistics: Annotated[
        list[StatisticName] | None,
        Field(description="As `statistics` of the job, which it replaces for these layers; [] for none."),
    ] = None
    min_rows: Annotated[
        int | None, Field(ge=0, description="As `min_rows` of the job, which it replaces for these layers.")
    ] = None

    def rule(self, statistics: Sequence[str], min_rows: int, attributes: str) -> LayerRule:
        """The rule that chooses and describes these layers.

        They count `statistics`, need `min_rows` and treat `attributes` so, unless the entry has its own.

        Raises `UsageError` for an impossible quantisation or kernel.
        """
        quantization = self.quantization.quantization() if self.quantization else None
        wanted = statistics if self.statistics is None else self.statistics
        needed = min_rows if self.min_rows is None else self.min_rows
        kernel = self.geometry.parsed() if self.geometry else None
        return LayerRule(
            self.match,
            self.channel_axis,
            quantization,
            tuple(wanted),
            kernel,
            needed,
            self.mask,
            self.attributes or attributes,
        )


def _checked_workers(value: object) -> object:
    if value != "local" and (type(value) is not int or not 1 <= value <= MOST_PROCESSES):
        raise ValueError(f"it should be local, or a number of processes from 1 to {MOST_PROCESSES}")
    return value


class ClusterConfig(Settings):
    """Which workers do the work."""

    workers: Annotated[
        Literal["local"] | int,
        PlainValidator(_checked_workers, json_schema_input_type=Literal["local"] | int),
        Field(description="local: threads of this process; a number: that many processes on this machine."),
    ] = "local"
    scheduler: Annotated[
        Annotated[str, Field(min_length=1), NO_NUL] | None,
        Field(description="The address of a dask scheduler whose workers do the work."),
    ] = None
    threads: Annotated[
        int | None,
        Field(
            ge=1,
            description="Threads per process; default: one for each core that may be kept busy, by the affinity of the "
            "process and the quota of its container, divided among processes.",
        ),
    ] = None
    task_timeout: Annotated[
        float, Field(gt=0, description="Seconds after which a task is also submitted to another worker.")
    ] = 600
    worker_timeout: Annotated[float, Field(gt=0, description="Seconds to wait for a worker while there is none.")] = 300

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.scheduler is not None and (self.workers != "local" or self.threads is not None):
            raise ValueError("`scheduler` has workers of its own; leave out `workers` and `threads`")
        return self

    def chosen(self) -> Cluster:
        """The workers; `threads` defaults to the number of cores, divided among the processes."""
        workers = None if self.workers == "local" else self.workers
        threads = self.threads or max(1, available_cores() // (workers or 1))
        return Cluster(workers, self.scheduler, threads, self.task_timeout, self.worker_timeout)


class ReductionConfig(Settings):
    """What a job counts in a calibration store."""

    source: Annotated[str, Field(min_length=1, description="The zarr group: a folder, a .zip or a URL."), NO_NUL]
    layers: Annotated[
        list[LayerConfig], Field(description="Which arrays are layers, and how to read them; default: all.")
    ] = []
    memory: Annotated[
        int,
        BeforeValidator(parse_bytes, json_schema_input_type=str | int),
        Field(gt=0, description="The memory limit of each process, as in 2GiB."),
    ] = DEFAULT_MEMORY
    nonfinite: Annotated[
        Literal["error", "skip"], Field(description="NaN and infinities: refuse them, or skip and report them.")
    ] = "error"
    missing: Annotated[
        Literal["error", "report", "fill"],
        Field(
            description="Chunks that are missing or damaged: refuse them; skip their rows and exit with status 3; or "
            "count the fill value in place of missing ones, and refuse damaged ones."
        ),
    ] = "error"
    statistics: Annotated[
        list[StatisticName],
        Field(
            description=f"What to count in addition to {' and '.join(ALWAYS)}. "
            + " ".join(f"{name}: {sentence}" for name, sentence in optional().items())
        ),
    ] = []
    rows: Annotated[
        str | None,
        BeforeValidator(_checked_rows),
        Field(description='Count only these rows, as in 0:1000, or "1000:" for all from 1000 on; default: all.'),
    ] = None
    min_rows: Annotated[
        int,
        Field(
            ge=0,
            description="List layers that counted fewer rows than this, or fewer finite values in a channel, and exit "
            "with status 3.",
        ),
    ] = 0

    attributes: Annotated[
        Literal["apply", "ignore"],
        Field(
            description="Attributes of the CF conventions. apply: scale_factor and add_offset give real values; "
            "_FillValue, missing_value, valid_min, valid_max and valid_range say which values do not count. ignore: "
            "values count as they are stored."
        ),
    ] = "apply"

    @property
    def wanted_rows(self) -> tuple[int, int | None] | None:
        """`rows` as (start, stop); the stop is None if they have none."""
        return _parsed_rows(self.rows)

    def rules(self) -> list[LayerRule]:
        """The rules of `layers`, in order; empty if the store alone describes its layers.

        Raises `UsageError` naming the entry with an impossible quantisation or kernel.
        """
        if not self.layers and (self.statistics or self.min_rows or self.attributes != "apply"):
            statistics = tuple(self.statistics)
            return [LayerRule("*", statistics=statistics, min_rows=self.min_rows, attributes=self.attributes)]
        rules = []
        for index, layer in enumerate(self.layers):
            try:
                rules.append(layer.rule(self.statistics, self.min_rows, self.attributes))
            except UsageError as error:
                raise UsageError(f"layers[{index}] ({layer.match}): {error}") from error
        return rules


def _checked_source(value: object) -> object:
    stores: list[Any] = value if isinstance(value, list) else [value]
    if not all(isinstance(each, str) for each in stores):
        raise ValueError("it should be a valid string" if stores == [value] else "expected a list of folders or URLs")
    if not all(stores) or not stores:
        raise ValueError("it should have at least 1 character" if stores == [value] else "expected one store or more")
    if any("\0" in each for each in stores):
        raise ValueError("expected no NUL characters")
    return value


class JobConfig(ReductionConfig):
    """A job: which statistics of a calibration store to count, where to write them, and which workers do the work."""

    source: Annotated[  # type: ignore[assignment]  # a service takes one store; a job of your own, several
        str | list[str],
        PlainValidator(_checked_source, json_schema_input_type=str | list[str]),
        Field(
            description="The zarr group: a folder, a .zip or a URL; or a list of several, whose rows follow each other."
        ),
    ]
    output: Annotated[str, Field(min_length=1, description="The folder for state, correctors and manifest."), NO_NUL]
    cluster: Annotated[ClusterConfig, Field(description="Which workers do the work.")] = ClusterConfig()

    def job(self) -> Job:
        """The job. Raises `UsageError` naming the entry with an impossible quantisation or kernel."""
        return Job(
            source=self.source if isinstance(self.source, str) else tuple(self.source),
            output=self.output,
            layers=tuple(self.rules()),
            memory=self.memory,
            nonfinite=self.nonfinite,
            missing=self.missing,
            rows=self.wanted_rows,
            cluster=self.cluster.chosen(),
        )


def service_address(url: str | None, token_file: str | None) -> tuple[str, str]:
    """(the URL of a service, its token), from the arguments or the environment.

    Arguments that are None default to STREAMSTATS_URL, and to STREAMSTATS_TOKEN_FILE or STREAMSTATS_TOKEN.
    Raises `UsageError`.
    """
    url = url or os.environ.get("STREAMSTATS_URL") or SERVICE_URL
    path = token_file or os.environ.get("STREAMSTATS_TOKEN_FILE")
    token = _token_in(path) if path else os.environ.get("STREAMSTATS_TOKEN", "").strip()
    if not token:
        raise UsageError("there is no token; set --token-file, STREAMSTATS_TOKEN_FILE or STREAMSTATS_TOKEN")
    return url, token


def _token_in(path: str) -> str:
    try:
        token = Path(path).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise UsageError(f"cannot read the token in {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not text; expected a token, as `token new -o FILE` writes it") from error
    if not token:
        raise UsageError(f"the token file {path} is empty; expected a token, as `token new -o FILE` writes it")
    return token


def load_config(path: str | Path, settings: Sequence[str] = ()) -> JobConfig:
    """Read the YAML file at `path`, with `${NAME}` from the environment and the `settings` of `with_settings`.

    A relative `source` or `output` is relative to the working directory. Raises `UsageError` naming the file, the key,
    what was found and expected.
    """
    document = load_document(path, settings)
    try:
        config = JobConfig.model_validate(document)
        config.rules()
    except ValidationError as error:
        raise UsageError(f"{path}: {explain(error.errors(), JobConfig)}") from error
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    return config


def load_job(path: str | Path, settings: Sequence[str] = ()) -> Job:
    """The job that the YAML file at `path` describes, with `settings` such as `memory=4GiB`.

    Raises `UsageError`, naming the file, the key, what was found and expected.

    >>> characters = Path("run.yaml").write_text("{source: calibration.zarr, output: out}")
    >>> job = ss.load_job("run.yaml", ["memory=4GiB"])
    >>> job.source, job.memory
    ('calibration.zarr', 4294967296)
    """
    return load_config(path, settings).job()


def load_document(path: str | Path, settings: Sequence[str] = ()) -> dict[str, Any]:
    """The keys of the YAML file at `path`, as `load_config` takes them, not checked. Raises `UsageError`."""
    replaced = paths_and_values(settings)
    document = load_yaml(Path(path))
    if not isinstance(document, dict):
        found = "nothing" if document is None else type(document).__name__
        raise UsageError(f"{path}: found {found}, expected keys such as `source:` and `output:`")
    try:
        from_outside: dict[str, Any] = substituted(document, os.environ, _parsed, replaced)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    return with_settings(from_outside, replaced, _parsed)


def _parsed(text: str) -> Any:
    """What YAML reads `text` as; but rows such as 950: are text, not a key. Raises `UsageError`."""
    if re.fullmatch(r"\s*[0-9]*:[0-9]*\s*", text):
        return text.strip()
    try:
        return yaml.load(text, Loader=_PlainLoader)
    except Exception as error:
        raise UsageError(f"{text!r} is not valid YAML: {_one_line(error)}") from error


def load_names(path: str | Path) -> dict[str, str | list[str] | None]:
    """The names of layers in the YAML or JSON file at `path`: layer → name, names, or None. Raises `UsageError`."""
    document = load_yaml(Path(path))
    if not isinstance(document, dict):
        found = "nothing" if document is None else type(document).__name__
        raise UsageError(f"{path}: found {found}, expected a name for each layer, as in `block1/conv: input.3`")
    for layer, name in document.items():
        several = isinstance(name, list) and all(isinstance(each, str) for each in name)
        if not isinstance(layer, str) or not (name is None or isinstance(name, str) or several):
            raise UsageError(
                f"{path}: the name of {layer!r} is {name!r}; expected a name, a list of names, or null to leave the "
                "layer out"
            )
    return document


def load_yaml(path: Path) -> Any:
    """The content of the YAML file at `path`.

    Raises `UsageError` for a file that cannot be read, is too long or too deeply nested, or repeats a key.
    """
    try:
        with path.open("rb") as file:
            text = file.read(LONGEST_CONFIG + 1)
    except OSError as error:
        raise UsageError(f"configuration {path} cannot be read: {error.strerror or error}") from error
    if len(text) > LONGEST_CONFIG:
        raise UsageError(f"configuration {path} is too long; expected at most {LONGEST_CONFIG} bytes")
    try:
        return yaml.load(text, Loader=_PlainLoader)
    except RecursionError as error:
        raise UsageError(f"{path} is nested too deeply; expected a few levels") from error
    except Exception as error:  # YAML's constructors of dates, numbers and tags let any error through
        raise UsageError(f"{path} is not valid YAML: {_yaml_problem(error, text)}") from error


class _PlainLoader(yaml.SafeLoader):
    """Reads YAML; refuses repeated keys and aliases, a few lines of which can expand to gigabytes; 1e-3 is a number."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not supported")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.YAMLError(f"a key is a {type(key).__name__}, expected text:{key_node.start_mark}")
            if key in seen:
                raise yaml.YAMLError(f"the key {key!r} is repeated:{key_node.start_mark}")
            seen.add(key)
        return super().construct_mapping(node, deep)


_PlainLoader.add_implicit_resolver(  # YAML 1.1, which PyYAML implements, reads 1e-3 as text
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


for _digit in "0123456789":  # YAML 1.1 reads 1:30 as ninety
    _PlainLoader.yaml_implicit_resolvers[_digit] = [
        ("tag:yaml.org,2002:str", re.compile(r"[0-9]+:[0-9]+$")),
        *_PlainLoader.yaml_implicit_resolvers.get(_digit, []),
    ]


def explain(problems: Sequence[Any], model: type[BaseModel], most: int = 5) -> str:
    """One line that says what is wrong with each key of `model`; `problems` are pydantic's."""
    more = f"; and {len(problems) - most} more" if len(problems) > most else ""
    return "; ".join(_explain(problem, model) for problem in problems[:most]) + more


def _explain(problem: Any, model: type[BaseModel]) -> str:
    location = [part for part in problem["loc"] if part not in (_ONE, _EACH)]
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
    place = _clipped(" ".join(place.split()))
    kind = problem["type"]
    if kind in ("extra_forbidden", "invalid_key"):
        return f"unknown key `{place}`; {one_of(location[-1], _keys_beside(location, model))}"
    if kind == "missing":
        return f"the key `{place}` is missing"
    if kind == "union_tag_not_found":
        return f"the key `{_tag(problem)}` is missing"
    if kind == "union_tag_invalid":
        expected = one_of(problem["ctx"]["tag"], _choices(problem["ctx"]["expected_tags"]))
        return f"`{_tag(problem)}` is {_shown(problem['ctx']['tag'])}; {expected}"
    if kind == "list_type":
        return f"`{place}` is {_shown(problem['input'])}; expected a list: entries in brackets, or a dash before each"
    if kind in ("model_type", "model_attributes_type"):
        return (
            f"`{place}` is {_shown(problem['input'])}; expected keys: {', '.join(_keys_beside([*location, ''], model))}"
        )
    near = suggestion(str(problem["input"]), _choices(problem["ctx"]["expected"])) if kind == "literal_error" else ""
    message = re.sub("^(Value error, |(Input|String) (?=should))", "", problem["msg"])
    return f"`{place}` is {_shown(problem['input'])}; {'it ' * message.startswith('should')}{message}{near}"


def _tag(problem: Any) -> str:
    """The key that says which of several models is meant."""
    return str(problem["ctx"]["discriminator"]).strip("'")


def _choices(expected: str) -> list[str]:
    """Those of pydantic's text "'error', 'skip' or 'fill'"."""
    return expected.split("'")[1::2]


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python refuses to print integers of thousands of digits
        return f"{type(value).__name__}, too long to show"
    return _clipped(text)


def _clipped(text: str) -> str:
    return text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + "…"


def _yaml_problem(error: Exception, text: bytes) -> str:
    """What is wrong in `text`, where, and what to do if a colon is taken for that of a key."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return _one_line(error)
    mark = error.problem_mark
    problem = " ".join(each for each in (error.context, error.problem) if each)
    said = f"line {mark.line + 1}, column {mark.column + 1}: {problem}"
    if "mapping values" not in said:
        return said
    line = text.decode(errors="replace").splitlines()[mark.line]
    if ":" in line[: mark.column]:
        return f"{said}; put text in quotes if it has a colon at its end or before a space"
    return f"{said}; indent the keys of one mapping alike"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _keys_beside(location: Sequence[int | str], model: type[BaseModel]) -> list[str]:
    """The keys of the model to which `location` leads, starting at `model`."""
    for part in location[:-1]:
        if isinstance(part, str) and part in model.model_fields:
            model = model_in(model.model_fields[part].annotation) or model
    return list(model.model_fields)


def model_in(annotation: Any) -> type[BaseModel] | None:
    """The model inside an annotation such as `list[LayerConfig] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(model_in, get_args(annotation))), None)
