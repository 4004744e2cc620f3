"""The configuration: every key and default, and refusals that say where, what was found and what was expected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from streamstats.calibration.selection import LayerRule
from streamstats.config import (
    DEFAULT_MEMORY,
    LONGEST_CONFIG,
    ClusterConfig,
    JobConfig,
    load_config,
    parse_bytes,
)
from streamstats.errors import UsageError
from streamstats.jobs.cores import available_cores
from streamstats.layouts import Geometry, Kernel
from streamstats.quantization import Quantization

A_LIST = "expected a list: entries in brackets, or a dash before each"
NEEDED = "source: in.zarr\noutput: out\n"
EVERYTHING = """\
source: s3://bucket/calibration.zarr
output: out
layers:
  - match: "block*/project"
    channel_axis: -1
    quantization: {scale: 0.0136, scale_is: step, zero_point: -128}
  - match: "head"
    quantization: {scale: [4, 2.0, 1e-3], scale_is: reciprocal, zero_point: [0, 1, 2]}
  - match: "*"
memory: 500MB
nonfinite: skip
cluster: {workers: local, threads: 3}
"""


def load(tmp_path: Path, text: str | bytes) -> JobConfig:
    path = tmp_path / "job.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_config(path)


def refusal(tmp_path: Path, text: str | bytes) -> str:
    """The message with which `text` is refused: one line, of readable length, in the words of the project."""
    with pytest.raises(UsageError) as caught:
        load(tmp_path, text)
    message = str(caught.value)
    assert message.splitlines() == [message]
    assert message.startswith((f"{tmp_path / 'job.yaml'}", "configuration "))
    assert "pydantic" not in message
    assert "Config" not in message
    assert len(message) < 700 + len(str(tmp_path))
    return message.replace(str(tmp_path / "job.yaml"), "job.yaml")


def quantized(keys: str) -> str:
    return f"{NEEDED}layers:\n- match: a\n- match: b\n  quantization: {{{keys}}}\n"


def test_every_key_is_read(tmp_path: Path) -> None:
    config = load(tmp_path, EVERYTHING)
    assert config.source == "s3://bucket/calibration.zarr"
    assert config.output == "out"
    assert config.memory == 500_000_000
    assert config.nonfinite == "skip"
    assert config.cluster == ClusterConfig(workers="local", threads=3)
    assert config.cluster.threads == 3
    assert config.rules() == [
        LayerRule("block*/project", -1, Quantization(0.0136, -128)),
        LayerRule("head", None, Quantization([0.25, 0.5, 1000.0], [0, 1, 2])),
        LayerRule("*"),
    ]


def test_only_source_and_output_are_needed(tmp_path: Path) -> None:
    config = load(tmp_path, NEEDED)
    assert config == JobConfig(source="in.zarr", output="out")
    assert (config.layers, config.memory, config.nonfinite) == ([], DEFAULT_MEMORY, "error")
    assert config.cluster.threads is None
    assert available_cores() >= 1
    assert DEFAULT_MEMORY == 2 * 1024**3


def test_no_entries_under_layers_mean_every_layer(tmp_path: Path) -> None:
    assert load(tmp_path, NEEDED + "layers: []\n") == load(tmp_path, NEEDED)


def test_both_conventions_of_scale_give_the_same_quantisation(tmp_path: Path) -> None:
    step = load(tmp_path, quantized("scale: 0.25, scale_is: step, zero_point: 3"))
    reciprocal = load(tmp_path, quantized("scale: 4, scale_is: reciprocal, zero_point: 3"))
    assert step.rules() == reciprocal.rules()
    assert step.rules()[1].quantization == Quantization(0.25, 3)


def test_the_least_rows_of_a_layer_are_its_own_or_those_of_the_job(tmp_path: Path) -> None:
    text = "min_rows: 100\nlayers: [{match: a, min_rows: 5}, {match: b, min_rows: 0}, {match: '*'}]\n"
    assert [rule.min_rows for rule in load(tmp_path, NEEDED + text).rules()] == [5, 0, 100]
    assert load(tmp_path, f"{NEEDED}min_rows: 100\n").rules() == [LayerRule("*", min_rows=100)]
    assert load(tmp_path, NEEDED).min_rows == 0


def kernel(keys: str) -> str:
    return f"{NEEDED}layers:\n- match: a\n  geometry: {{{keys}}}\n"


def test_the_geometry_of_an_entry_is_a_kernel(tmp_path: Path) -> None:
    found = load(tmp_path, kernel("kernel: [3, 1], strides: [2, 1], pads: [0, 0, 1, 0]")).rules()[0].kernel
    assert found == Kernel((3, 1), Geometry((2, 1), (0, 0, 1, 0)))
    transposed = kernel("kernel: [2], output_padding: [1], dilations: [3], transposed: true")
    assert load(tmp_path, transposed).rules()[0].kernel == Kernel((2,), Geometry((), (), (3,), (1,)), transposed=True)
    assert load(tmp_path, kernel("kernel: []")).rules()[0].kernel == Kernel()
    for keys, message in {
        "pads: [1, 1]": "the key `layers[0].geometry.kernel` is missing",
        "kernel: 3": "`layers[0].geometry.kernel` is 3; expected a list: entries in brackets, or a dash before each",
        "kernel: [3], stride: [1]": "unknown key `layers[0].geometry.stride`; expected one of kernel, strides",
        "kernel: [3], strides: [0]": "layers[0] (a): a kernel has strides [0]; expected integers from 1",
        "kernel: [3], pads: [1]": "pads [1] does not fit 1 spatial axis; expected 2 numbers, one before each axis",
    }.items():
        assert message in refusal(tmp_path, kernel(keys))


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "+1.e-3", "0.001", "1.0e-03"])
def test_numbers_are_read_as_python_and_json_print_them(tmp_path: Path, text: str) -> None:
    config = load(tmp_path, quantized(f"scale: {text}, scale_is: step"))
    assert config.rules()[1].quantization == Quantization(1e-3)


SIZES: dict[Any, int] = {
    "2GiB": 2**31,
    "2 gib": 2**31,
    " 1.5 KiB ": 1536,
    "3MiB": 3 * 2**20,
    "1TiB": 2**40,
    "500MB": 500_000_000,
    "7kb": 7000,
    "1GB": 10**9,
    "2TB": 2 * 10**12,
    "12B": 12,
    "12": 12,
    12: 12,
    "9007199254740993": 2**53 + 1,
}


@pytest.mark.parametrize(("text", "size"), SIZES.items(), ids=map(repr, SIZES))
def test_sizes_are_exact_in_any_unit(tmp_path: Path, text: Any, size: int) -> None:
    assert parse_bytes(text) == size
    assert load(tmp_path, f"{NEEDED}memory: {text!r}\n").memory == size


@pytest.mark.parametrize("text", ["", "GiB", "-1", "1 2", "2GiBs", "1e", "0x10", "１", True, "9" * 400, "1,5MB"])
def test_what_is_not_a_size_is_refused(text: Any) -> None:
    with pytest.raises(ValueError, match="expected a size such as 2GiB"):
        parse_bytes(text)


JOB_KEYS = "expected one of source, layers, memory"
LAYER_KEYS = "expected one of match, channel_axis, quantization"
SIZE = "expected a size such as 2GiB, 500MB or a number of bytes"

REFUSED = {
    "unknown key": (NEEDED + "memry: 1", "unknown key `memry`; " + JOB_KEYS),
    "unknown key like a type": (NEEDED + "float: 1", "unknown key `float`; " + JOB_KEYS),
    "unknown key of a layer": (NEEDED + "layers: [{match: a}, {match: b, axis: 1}]", f"`layers[1].axis`; {LAYER_KEYS}"),
    "unknown key of a quantisation": (
        quantized("scale: 1, scale_is: step, int: 1"),
        "unknown key `layers[1].quantization.int`; expected one of scale, scale_is, zero_point",
    ),
    "unknown key of the cluster": (
        NEEDED + "cluster: {cores: 1}",
        "`cluster.cores`; expected one of workers, scheduler, threads, task_timeout",
    ),
    "rows without quotes": (
        NEEDED + "rows: 950:",
        "column 10: mapping values are not allowed here; put text in quotes if",
    ),
    "a key that is indented": (NEEDED + " memory: 1GiB", "mapping values are not allowed here; indent the keys of one"),
    "rows that end with a key": (NEEDED + "rows: {950: }", 'expected START:STOP, as in 0:1000, or in quotes "START:"'),
    "a negative number of rows": (NEEDED + "min_rows: -1", "`min_rows` is -1; it should be greater than or equal to 0"),
    "a number of rows in words": (NEEDED + "layers: [{match: a, min_rows: many}]", "`layers[0].min_rows` is 'many'"),
    "a key that is a number": (NEEDED + "1: 2", "unknown key `[1]`; " + JOB_KEYS),
    "a key that is nothing": (NEEDED + "null: 2", "unknown key `None`; " + JOB_KEYS),
    "a key that is a date": (NEEDED + "2001-01-01: 2", "unknown key `datetime.date(2001, 1, 1)`; " + JOB_KEYS),
    "a key of two lines": (NEEDED + '"me\\nmory": 2', "unknown key `me mory`; " + JOB_KEYS),
    "a key of many letters": (NEEDED + "a" * 1000 + ": 2", "…`; " + JOB_KEYS),
    "many unknown keys": (NEEDED + "".join(f"k{index}: 1\n" for index in range(1000)), "; and 995 more"),
    "no source": ("output: out", "the key `source` is missing"),
    "no output": ("source: in", "the key `output` is missing"),
    "nothing": ("{}", "the key `source` is missing; the key `output` is missing"),
    "no match": (NEEDED + "layers: [{channel_axis: 1}]", "the key `layers[0].match` is missing"),
    "no scale": (quantized("scale_is: step"), "the key `layers[1].quantization.scale` is missing"),
    "no convention": (quantized("scale: 1"), "the key `layers[1].quantization.scale_is` is missing"),
    "source: a number": ("source: 1\noutput: out", "`source` is 1; it should be a valid string"),
    "source: a date": (
        "source: 2001-01-01\noutput: out",
        "`source` is datetime.date(2001, 1, 1); it should be a valid",
    ),
    "source: bytes": ("source: !!binary aGk=\noutput: out", "`source` is b'hi'; it should be a valid string"),
    "source: empty": ("source: ''\noutput: out", "`source` is ''; it should have at least 1 character"),
    "output: empty": ("source: in\noutput: ''", "`output` is ''; it should have at least 1 character"),
    "layers: null": (
        NEEDED + "layers:",
        "`layers` is None; expected a list: entries in brackets, or a dash before each",
    ),
    "layers: text": (
        NEEDED + "layers: a",
        "`layers` is 'a'; expected a list: entries in brackets, or a dash before each",
    ),
    "layers: keys": (
        NEEDED + "layers: {match: a}",
        "`layers` is {'match': 'a'}; expected a list: entries in brackets, or a dash before each",
    ),
    "a layer: null": (
        NEEDED + "layers: [null]",
        "`layers[0]` is None; expected keys: match, channel_axis, quantization",
    ),
    "a layer: text": (NEEDED + "layers: [a]", "`layers[0]` is 'a'; expected keys: match, channel_axis, quantization"),
    "match: a number": (NEEDED + "layers: [{match: 1}]", "`layers[0].match` is 1; it should be a valid string"),
    "axis: a fraction": (
        NEEDED + "layers: [{match: a, channel_axis: 1.0}]",
        "`layers[0].channel_axis` is 1.0; it should",
    ),
    "axis: text": (
        NEEDED + "layers: [{match: a, channel_axis: '1'}]",
        "`layers[0].channel_axis` is '1'; it should be a",
    ),
    "axis: true": (NEEDED + "layers: [{match: a, channel_axis: true}]", "`layers[0].channel_axis` is True; it should"),
    "quantization: a number": (
        NEEDED + "layers: [{match: a, quantization: 0.1}]",
        "`layers[0].quantization` is 0.1; expected keys: scale, scale_is, zero_point",
    ),
    "scale: text": (
        quantized("scale: '1', scale_is: step"),
        "`layers[1].quantization.scale` is '1'; it should be a valid n",
    ),
    "scale: true": (quantized("scale: true, scale_is: step"), "`layers[1].quantization.scale` is True; it should be"),
    "scale: huge": (quantized(f"scale: 1{'0' * 400}, scale_is: step"), "…; it should be a valid number"),
    "scale: text in a list": (
        quantized("scale: [1, x], scale_is: step"),
        "`layers[1].quantization.scale[1]` is 'x'; it",
    ),
    "scale: NaN": (
        quantized("scale: .nan, scale_is: step"),
        "layers[1] (b): quantisation step is nan; expected a positive",
    ),
    "scale: 0": (quantized("scale: 0, scale_is: step"), "layers[1] (b): quantisation step is 0.0; expected a positive"),
    "scale: infinite": (
        quantized("scale: .inf, scale_is: reciprocal"),
        "layers[1] (b): quantisation scale is inf; expected",
    ),
    "scale: negative": (
        quantized("scale: -1, scale_is: reciprocal"),
        "layers[1] (b): quantisation scale is -1.0; expected",
    ),
    "scale: negative in a list": (quantized("scale: [1, -1], scale_is: step"), "step of channel 1 is -1.0; expected"),
    "scale: no numbers": (quantized("scale: [], scale_is: step"), "layers[1] (b): quantisation step is []; expected"),
    "scale_is: else": (
        quantized("scale: 1, scale_is: size"),
        "`layers[1].quantization.scale_is` is 'size'; it should be 's",
    ),
    "zero point: a fraction": (
        quantized("scale: 1, scale_is: step, zero_point: 0.5"),
        "`layers[1].quantization.zero_point` is 0.5; it should be a valid integer",
    ),
    "zero point: a fraction in a list": (
        quantized("scale: 1, scale_is: step, zero_point: [0, 1.5]"),
        "`layers[1].quantization.zero_point[1]` is 1.5; it should be a valid integer",
    ),
    "zero point: text": (
        quantized("scale: 1, scale_is: step, zero_point: '1'"),
        "`layers[1].quantization.zero_point` is '1'",
    ),
    "zero point: huge": (
        quantized(f"scale: 1, scale_is: step, zero_point: 1{'0' * 40}"),
        "quantisation zero point is 10000",
    ),
    "unequal lists": (
        quantized("scale: [1, 2], scale_is: step, zero_point: [1, 2, 3]"),
        "2 steps and 3 zero points; expected",
    ),
    "memory: text": (NEEDED + "memory: plenty", "`memory` is 'plenty'; " + SIZE),
    "memory: 0": (NEEDED + "memory: 0", "`memory` is 0; it should be greater than 0"),
    "memory: negative": (NEEDED + "memory: -5", "`memory` is -5; " + SIZE),
    "memory: null": (NEEDED + "memory:", "`memory` is None; " + SIZE),
    "memory: true": (NEEDED + "memory: true", "`memory` is True; " + SIZE),
    "memory: a list": (NEEDED + "memory: [1GiB]", "`memory` is ['1GiB']; " + SIZE),
    "memory: infinite": (NEEDED + "memory: .inf", "`memory` is inf; " + SIZE),
    "memory: huge": (NEEDED + f"memory: {'9' * 400}", "…; expected a size"),
    "memory: too huge to print": (NEEDED + f"memory: 0x{'f' * 5000}", "`memory` is int, too long to show"),
    "nonfinite: else": (NEEDED + "nonfinite: ignore", "`nonfinite` is 'ignore'; it should be 'error' or 'skip'"),
    "nonfinite: null": (NEEDED + "nonfinite:", "`nonfinite` is None; it should be 'error' or 'skip'"),
    "cluster: null": (
        NEEDED + "cluster:",
        "`cluster` is None; expected keys: workers, scheduler, threads, task_timeout",
    ),
    "cluster: text": (
        NEEDED + "cluster: local",
        "`cluster` is 'local'; expected keys: workers, scheduler, threads, task_timeout",
    ),
    "workers: else": (
        NEEDED + "cluster: {workers: many}",
        "`cluster.workers` is 'many'; it should be local, or a number of processes from 1 to 1024",
    ),
    "workers: none": (NEEDED + "cluster: {workers: 0}", "`cluster.workers` is 0; it should be local, or a number of"),
    "scheduler and workers": (
        NEEDED + "cluster: {workers: 2, scheduler: 'tcp://host:8786'}",
        "`scheduler` has workers of its own; leave out `workers` and `threads`",
    ),
    "task_timeout: 0": (
        NEEDED + "cluster: {task_timeout: 0}",
        "`cluster.task_timeout` is 0; it should be greater than 0",
    ),
    "threads: 0": (NEEDED + "cluster: {threads: 0}", "`cluster.threads` is 0; it should be greater than or equal to 1"),
    "threads: a fraction": (
        NEEDED + "cluster: {threads: 1.5}",
        "`cluster.threads` is 1.5; it should be a valid integer",
    ),
    "threads: true": (NEEDED + "cluster: {threads: true}", "`cluster.threads` is True; it should be a valid integer"),
    "all at once": (
        "source: 1\noutput: 2\nmemory: x\n",
        "`source` is 1; it should be a valid string; `memory` is 'x'",
    ),
    "a list": ("- source: a", "found list, expected keys such as `source:` and `output:`"),
    "empty": ("", "found nothing, expected keys such as `source:` and `output:`"),
    "text": ("source", "found str, expected keys such as `source:` and `output:`"),
}


@pytest.mark.parametrize(("text", "expected"), REFUSED.values(), ids=REFUSED)
def test_a_refusal_names_the_key_what_was_found_and_what_was_expected(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in refusal(tmp_path, text)


NOT_YAML: dict[str, tuple[str | bytes, str]] = {
    "open bracket": ("source: [", "expected the node content"),
    "tabs": ("source:\n\t- a", "cannot start any token"),
    "two documents": (NEEDED + "---\na: 1", "expected a single document"),
    "binary": (bytes(range(256)), "unacceptable character"),
    "a zip archive": (b"PK\x03\x04\x14\x00\x00\x00", "unacceptable character"),
    "Latin-1": (b"source: \xe9t\xe9", "unacceptable character"),
    "an alias": (NEEDED + "layers: [&a {match: x}, *a]", "aliases are not supported"),
    "an alias as a key": (NEEDED + "? &a x\n: 1\n? *a\n: 2", "aliases are not supported"),
    "aliases that grow": ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]", "aliases are not supported"),
    "a repeated key": (NEEDED + "source: b", "the key 'source' is repeated"),
    "a repeated key below": (NEEDED + "cluster: {threads: 1, threads: 2}", "the key 'threads' is repeated"),
    "a merged mapping": (NEEDED + "<<: {memory: 1}", "could not determine a constructor"),
    "a list as a key": (NEEDED + "? [a]\n: 1", "a key is a list, expected text"),
    "a mapping as a key": (NEEDED + "? {a: b}\n: 1", "a key is a dict, expected text"),
    "a tag of Python": (NEEDED + "memory: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
    "a tag of its own": (NEEDED + "memory: !size 1", "could not determine a constructor"),
    "an impossible date": (NEEDED + "memory: 2001-99-99", "month must be in 1..12"),
    "a tag that does not fit": (NEEDED + "memory: !!int much", "invalid literal"),
    "a date that is none": (NEEDED + "memory: !!timestamp soon", "job.yaml is not valid YAML"),
    "a truth that is none": (NEEDED + "memory: !!bool perhaps", "job.yaml is not valid YAML"),
    "bytes that are none": (NEEDED + "memory: !!binary a", "failed to decode base64"),
    "an integer of 5000 digits": (NEEDED + f"memory: {'9' * 5000}", "Exceeds the limit"),
    "hours that overflow": (NEEDED + "memory: 1" + ":59" * 400 + ".5", "too large"),
    "deep lists": (NEEDED + "memory: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
    "deep mappings": (NEEDED + "memory: " + "{a: " * 5000 + "1" + "}" * 5000, "nested too deeply"),
    "deep indentation": ("\n".join(" " * depth + "a:" for depth in range(700)), "nested too deeply"),
}


@pytest.mark.parametrize(("text", "expected"), NOT_YAML.values(), ids=NOT_YAML)
def test_what_is_not_plain_yaml_is_refused(tmp_path: Path, text: str | bytes, expected: str) -> None:
    assert expected in refusal(tmp_path, text)


@pytest.mark.parametrize("depth", [50, 150, 250])
def test_a_deep_value_is_refused_in_a_short_line(tmp_path: Path, depth: int) -> None:
    refusal(tmp_path, f"{NEEDED}memory: {'[' * depth}{']' * depth}")


def test_many_keys_are_refused_in_reasonable_time(tmp_path: Path) -> None:
    text = NEEDED + "cluster: {" + ", ".join(f"k{index}: 1" for index in range(20_000)) + ", k7: 2}"
    assert "the key 'k7' is repeated" in refusal(tmp_path, text)


def test_a_file_that_is_too_long_is_refused(tmp_path: Path) -> None:
    long = NEEDED + "#" * (LONGEST_CONFIG - len(NEEDED))
    assert load(tmp_path, long) == load(tmp_path, NEEDED)
    assert f"job.yaml is too long; expected at most {LONGEST_CONFIG} bytes" in refusal(tmp_path, long + "#")


def test_a_file_without_an_end_is_refused() -> None:
    with pytest.raises(UsageError, match="/dev/zero is too long"):
        load_config("/dev/zero")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"configuration .*none\.yaml cannot be read: No such file or directory"):
        load_config(tmp_path / "none.yaml")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        load_config(str(tmp_path))


def test_an_impossible_quantisation_made_in_python_is_refused_with_its_place() -> None:
    config = JobConfig.model_validate(
        {
            "source": "in",
            "output": "out",
            "layers": [{"match": "a", "quantization": {"scale": 0.0, "scale_is": "step"}}],
        }
    )
    with pytest.raises(UsageError, match=r"layers\[0\] \(a\): quantisation step is 0.0"):
        config.rules()
