"""The command line, as a person or a batch system meets it: a process with arguments, two streams and a status."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from console import streamstats

from streamstats.cli import INTERRUPTION
from streamstats.cli.parser import make_parser
from streamstats.demo import digits
from streamstats.demo.digits import calibration_digits

MODEL = Path(digits.__file__).with_name("digits.onnx")
"""The network of the demo."""
ENVIRONMENT = {**os.environ, "COLUMNS": "120"}


def one_line(text: str) -> str:
    assert "Traceback" not in text
    lines = text.splitlines()
    assert len(lines) == 1, text
    return lines[0]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    group = zarr.open_group(tmp_path / "calibration.zarr", mode="w")
    random = np.random.default_rng(0)
    for name in ("block1/conv", "block2/conv"):
        array = group.create_array(name, shape=(10, 4, 4, 8), chunks=(2, 4, 4, 8), dtype="float32")
        array[...] = random.normal(size=array.shape)
    return tmp_path / "calibration.zarr"


@pytest.fixture
def job(tmp_path: Path, store: Path) -> Path:
    return write_config(tmp_path, f"source: {store}\noutput: {tmp_path / 'out'}\n")


def write_config(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text)
    return path


# What comes out


def test_run_prints_the_layers_to_stdout_and_the_plan_and_progress_to_stderr(tmp_path: Path, job: Path) -> None:
    done = streamstats("run", job)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["layer", "block1/conv", "block2/conv"]
    plan, *progress, wrote = done.stderr.splitlines()
    assert re.search(r"plan: 20 rows of 2 layers, 10\.2 kB decoded, in \d+ tasks? on \d+ threads?", plan)
    assert re.search(r"at most \d+ MiB of 2048 MiB of memory", plan)
    assert "20/20 rows of all layers" in progress[-1]
    assert str(tmp_path / "out") in wrote
    assert "\x1b" not in done.stdout + done.stderr


def test_json_is_all_that_stdout_holds(job: Path) -> None:
    done = streamstats("run", job, "--json")
    assert done.returncode == 0, done.stderr
    layers = json.loads(done.stdout)["layers"]
    assert layers["block1/conv"]["rows"] == 10
    assert layers["block1/conv"]["covered"] == [[0, 10]]


def test_inspect_shows_layers_and_channels_and_pictures(tmp_path: Path, store: Path, job: Path) -> None:
    streamstats("run", job)
    out = tmp_path / "out"
    assert "0:10" in streamstats("inspect", out).stdout
    channels = streamstats("inspect", out, "block1/conv").stdout.splitlines()
    assert len(channels) == 1 + 8
    document = json.loads(streamstats("inspect", out, "block1/conv", "--json").stdout)
    values = zarr.open_array(store, path="block1/conv", mode="r")[...]
    assert np.allclose(document["per_channel"]["mean"], np.asarray(values).mean(axis=(0, 1, 2)), atol=1e-6)
    assert document["per_channel"]["count"] == [160] * 8
    assert "channel" in streamstats("inspect", out, "block1/conv", "--plot").stdout
    for picture, start in (("p.png", b"\x89PNG"), ("p.svg", b"<?xml")):
        assert streamstats("inspect", out, "block1/conv", "--plot", tmp_path / picture).returncode == 0
        assert (tmp_path / picture).read_bytes().startswith(start)


def test_plot_and_json_exclude_each_other(tmp_path: Path, job: Path) -> None:
    streamstats("run", job)
    done = streamstats("inspect", tmp_path / "out", "block1/conv", "--plot", "--json")
    assert done.returncode == 2
    assert "--plot and --json" in one_line(done.stderr)


@pytest.mark.soak  # tests/demo runs the same demo as a function
def test_the_demo_is_a_command_with_figures_as_json(tmp_path: Path) -> None:
    done = streamstats("demo", tmp_path / "new", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["folder"] == str(tmp_path / "new")
    assert document["bits"]["5"]["quantized"] < 0.5 < 0.95 < document["bits"]["5"]["iterative"]


def test_record_run_and_correct_follow_one_another(tmp_path: Path) -> None:
    np.save(tmp_path / "samples.npy", calibration_digits().images[:50])
    record = ["record", MODEL, "--samples", "samples.npy", "-o", "s.zarr"]
    recorded = streamstats(*record, folder=tmp_path)
    assert recorded.returncode == 0, recorded.stderr
    assert re.search(r"block1/depthwise +Conv +50 +32×14×14 +float32", recorded.stdout)
    assert "50/50 rows" in recorded.stderr
    write_config(tmp_path, "source: s.zarr\noutput: out\n")
    assert streamstats("run", "run.yaml", folder=tmp_path).returncode == 0
    correct = ["correct", MODEL, "--bits", "5", "--correctors", "out", "-o", "fixed.onnx"]
    corrected = streamstats(*correct, "--json", folder=tmp_path)
    assert corrected.returncode == 0, corrected.stderr
    layers = json.loads(corrected.stdout)["layers"]
    assert {name for name, layer in layers.items() if layer["corrected"]} >= {"stem", "block1/depthwise", "classifier"}
    assert (tmp_path / "fixed.onnx").is_file()


def test_record_gives_what_it_stored_as_json(tmp_path: Path) -> None:
    np.save(tmp_path / "samples.npy", calibration_digits().images[:20])
    options = ["--samples", "samples.npy", "-o", "s.zarr", "--storage", "int8", "--layers", "block1/*", "--json"]
    done = streamstats("record", MODEL, *options, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "recorded 2, skipped 0\n" in done.stderr
    layers = json.loads(done.stdout)["layers"]
    recorded = {name: layer for name, layer in layers.items() if layer["recorded"]}
    assert list(recorded) == ["block1/depthwise", "block1/project"]
    assert all(layer["dtype"] == "int8" and layer["quantization"]["step"] > 0 for layer in recorded.values())
    assert layers["stem"]["reason"] == "not among the `layers` to record"


def test_integers_without_quantisation_and_uneven_rows_are_pointed_out(tmp_path: Path) -> None:
    array(tmp_path, "int8", (4, 3), "codes")
    array(tmp_path, "float32", (5, 3), "values")
    lines = f"source: {tmp_path / 's.zarr'}\noutput: {tmp_path / 'out'}\nmissing: fill\n"
    done = streamstats("run", write_config(tmp_path, lines))
    assert done.returncode == 0
    assert "note: integers without `quantization` are averaged as codes: codes" in done.stderr
    assert "note: the layers have different numbers of rows, 4 to 5" in done.stderr


def test_a_zero_point_that_is_not_a_code_is_pointed_out(tmp_path: Path) -> None:
    for name in ("wide", "within"):
        array(tmp_path, "int8", (4, 3), name)
    quantization = "quantization: {scale: 0.5, scale_is: step, zero_point:"
    layers = f"layers: [{{match: wide, {quantization} 300}}}}, {{match: within, {quantization} -128}}}}]"
    keys = f"source: s.zarr\noutput: out\n{layers}\nmissing: fill\n"
    done = streamstats("run", write_config(tmp_path, keys), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "the zero point 300 of wide is not one of its codes, so none of them stands for 0" in done.stderr
    assert "check `zero_point` of: wide\n" in done.stderr


@pytest.mark.parametrize("output", ["s.zarr", "s.zarr/out", "."])
def test_an_output_in_the_calibration_store_is_refused(tmp_path: Path, output: str) -> None:
    floats(tmp_path)
    folder = tmp_path if output != "." else tmp_path / "s.zarr"
    done = streamstats(
        "run", write_config(tmp_path, f"source: {tmp_path / 's.zarr'}\noutput: {output}\n"), folder=folder
    )
    assert done.returncode == 2
    assert "lies in the calibration store" in one_line(done.stderr)
    assert sorted(path.name for path in (tmp_path / "s.zarr").iterdir()) == ["layer", "zarr.json"]


def test_a_reader_that_stops_early_is_no_error(job: Path, tmp_path: Path) -> None:
    streamstats("run", job)
    shell = f"{sys.executable} -m streamstats inspect {tmp_path / 'out'} block1/conv | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "0"
    assert done.stderr == ""


def test_a_terminal_gets_a_bar_with_rows_and_bytes(job: Path) -> None:
    screen = run_in_terminal(["run", str(job)])
    assert "━" in screen
    assert re.search(r"20/20 rows of all layers, 10\.2 kB of 10\.2 kB", screen)


def test_no_color_is_honoured_on_a_terminal(job: Path) -> None:
    assert re.search(r"\x1b\[[0-9;]*3[0-9]m", run_in_terminal(["run", str(job)]))
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", run_in_terminal(["run", str(job)], NO_COLOR="1"))


def run_in_terminal(arguments: list[str], **environment: str) -> str:
    """What a terminal of 120 columns shows of the command, escape codes included."""
    terminal, end = pty.openpty()
    command = [sys.executable, "-m", "streamstats", *arguments]
    variables = {**ENVIRONMENT, "TERM": "xterm-256color", **environment}
    process = subprocess.Popen(command, stdout=end, stderr=end, stdin=end, env=variables)
    os.close(end)
    shown = b""
    while chunk := read_some(terminal):
        shown += chunk
    assert process.wait(60) == 0, shown.decode()
    os.close(terminal)
    return shown.decode()


def read_some(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # the other end is closed
        return b""


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from streamstats.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'numpy', 'zarr', 'dask', 'numba', 'pydantic', 'rich', 'onnx'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_stream_that_lacks_characters_gets_escapes(job: Path, encoding: str) -> None:
    streamstats("run", job)
    command = [sys.executable, "-m", "streamstats", "inspect", str(job.parent / "out"), "卷"]
    environment = {**ENVIRONMENT, "PYTHONIOENCODING": encoding}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
    assert r"has no layer '\u5377'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("redirected", [">&-", ">&- 2>&-"])
def test_closed_streams_do_not_stop_a_run(tmp_path: Path, job: Path, redirected: str) -> None:
    shell = f"{sys.executable} -m streamstats run {job} {redirected}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/manifest.json").is_file()


def test_a_full_device_as_stdout_is_one_line_and_status_1(job: Path) -> None:
    shell = f"{sys.executable} -m streamstats run {job} > /dev/full"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "No space left" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_with_130_and_leaves_earlier_results(
    tmp_path: Path, job: Path, stop: signal.Signals
) -> None:
    streamstats("run", job)
    before = (tmp_path / "out/manifest.json").read_bytes()
    process = start_held_up(job, "--restart")
    process.send_signal(stop)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted; what was counted is saved; run the command again to resume" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    assert (tmp_path / "out/manifest.json").read_bytes() == before


def start_held_up(job: Path, *options: str) -> subprocess.Popen[str]:
    """A run whose tasks never end, once one of them has begun."""
    code = (
        "import sys, threading\n"
        "from streamstats.jobs import measuring\n"
        "from streamstats.cli import main\n"
        "def held_up(*_, **__):\n"
        "    print('held up', file=sys.stderr, flush=True)\n"
        "    threading.Event().wait(5)\n"
        "measuring.measure_part = held_up\n"
        f"sys.exit(main(['run', {str(job)!r}, *{options!r}]))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "held up" in line:
            return process
    raise AssertionError("the run ended before a task began")


# Bad input: one clear line, status 2, nothing half-written


def array(folder: Path, dtype: Any, shape: tuple[int, ...] = (4, 3), name: str = "layer") -> None:
    zarr.open_group(folder / "s.zarr", mode="a").create_array(name, shape=shape, dtype=dtype, chunks=shape)


def no_store(_folder: Path) -> None: ...


def not_a_group(folder: Path) -> None:
    (folder / "s.zarr").mkdir()


def no_arrays(folder: Path) -> None:
    zarr.open_group(folder / "s.zarr", mode="w")


def floats(folder: Path) -> None:
    array(folder, "float32")


def integers(folder: Path) -> None:
    array(folder, "int8")


def complex_values(folder: Path) -> None:
    array(folder, "complex64")


def strings(folder: Path) -> None:
    array(folder, "U4")


def structured(folder: Path) -> None:
    array(folder, np.dtype([("a", "f4"), ("b", "i4")]))


def one_axis(folder: Path) -> None:
    array(folder, "float32", (4,))


def newline_in_name(folder: Path) -> None:
    array(folder, "float32", name="a\nb")


def layers(*lines: str) -> str:
    return "layers:\n  - match: layer\n" + "".join(f"    {line}\n" for line in lines)


BAD_RUNS = {
    "no such store": (no_store, "", "does not exist"),
    "not a zarr group": (not_a_group, "", "not a zarr group"),
    "no arrays": (no_arrays, "", "without arrays"),
    "unknown key": (floats, "memry: 1GiB\n", "unknown key `memry`; expected one of source, layers"),
    "wrong type": (floats, "memory: [1]\n", "`memory` is [1]"),
    "wrong type below": (floats, layers("channel_axis: last"), "`layers[0].channel_axis` is 'last'"),
    "a glob that matches nothing": (floats, "layers:\n  - match: conv*\n", "'conv*'; the store has layer"),
    "channel axis out of range": (floats, layers("channel_axis: 2"), "layer layer: channel_axis is 2"),
    "samples as channels": (floats, layers("channel_axis: 0"), "layer layer: channel_axis is 0"),
    "complex": (complex_values, "", "layer layer: its values are complex64"),
    "strings": (strings, "", "layer layer: its values are"),
    "structured": (structured, "", "layer layer: its values are"),
    "one axis": (one_axis, "", "layer layer: the array has the shape (4,)"),
    "quantised floats": (floats, layers("quantization: {scale: 0.1, scale_is: step}"), "float32, not integer codes"),
    "scale 0": (integers, layers("quantization: {scale: 0, scale_is: step}"), "layers[0] (layer)"),
    "scale below 0": (integers, layers("quantization: {scale: -1, scale_is: step}"), "layers[0] (layer)"),
    "scale NaN": (integers, layers("quantization: {scale: .nan, scale_is: reciprocal}"), "layers[0] (layer)"),
    "no convention": (integers, layers("quantization: {scale: 1}"), "`layers[0].quantization.scale_is` is missing"),
    "steps for other channels": (integers, layers("quantization: {scale: [1, 2], scale_is: step}"), "2 channels"),
    "too little memory": (floats, "memory: 10MiB\n", "set `memory` to"),
    "a newline in a name": (newline_in_name, "", "'a\\nb'"),
}


@pytest.mark.parametrize("case", BAD_RUNS)
def test_bad_input_gets_one_clear_line_and_nothing_is_written(tmp_path: Path, case: str) -> None:
    make, text, expected = BAD_RUNS[case]
    with pytest.warns() if case in ("strings", "structured") else contextlib.nullcontext():
        make(tmp_path)
    job = write_config(tmp_path, f"source: {tmp_path / 's.zarr'}\noutput: {tmp_path / 'out'}\n{text}")
    done = streamstats("run", job)
    assert done.returncode == 2, done.stderr
    assert expected in one_line(done.stderr)
    assert done.stdout == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "command", ["merge a b -o URL", "inspect URL", "export out --format json -o URL", "compare out URL", "demo URL"]
)
def test_results_are_files_and_a_url_is_refused(tmp_path: Path, command: str) -> None:
    done = streamstats(*command.replace("URL", "s3://bucket/out").split(), folder=tmp_path)
    assert done.returncode == 2
    assert "s3://bucket/out is a URL; results are files" in done.stderr
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["merge a b -o", "merge a b --output=", "inspect", "demo"])
def test_an_empty_path_is_not_this_folder(tmp_path: Path, command: str) -> None:
    words = command.split() if command.endswith("=") else [*command.split(), ""]
    done = streamstats(*words, folder=tmp_path)
    assert done.returncode == 2
    assert "a path is empty; name a file or folder, or . for this one" in done.stderr
    assert not any(tmp_path.iterdir())


def test_a_job_does_not_write_to_a_url(tmp_path: Path, store: Path) -> None:
    job = write_config(tmp_path, f"source: {store}\noutput: s3://bucket/out\n")
    done = streamstats("run", job, folder=tmp_path)
    assert done.returncode == 2
    assert "s3://bucket/out is a URL; results are files" in one_line(done.stderr)
    assert not (tmp_path / "s3:").exists()


@pytest.mark.parametrize("command", ["ranges out --bits 8 --method mse --bits 4", "merge a b -o c -o d"])
def test_an_option_of_one_value_is_not_given_twice(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        make_parser().parse_args(command.split())
    assert "is given more than once" in capsys.readouterr().err


def test_forget_takes_several_ranges(tmp_path: Path, store: Path, job: Path) -> None:
    assert streamstats("run", job).returncode == 0
    done = streamstats("forget", job, "--rows", "0:2", "--rows", "6:7", "--json")
    assert done.returncode == 0, done.stderr
    assert {each["rows"] for each in json.loads(done.stdout)["layers"].values()} == {3}
    kept = np.delete(zarr.open_group(store, mode="r")["block1/conv"][...], [0, 1, 6], axis=0)
    mean = json.loads(streamstats("inspect", tmp_path / "out", "block1/conv", "--json").stdout)["per_channel"]["mean"]
    np.testing.assert_allclose(mean, kept.mean((0, 1, 2), dtype=np.float64))


def test_forget_takes_rows_without_an_end_and_says_which_they_are(job: Path) -> None:
    assert streamstats("run", job).returncode == 0
    done = streamstats("forget", job, "--rows", "5:", "--layers", "block1/conv")
    assert done.returncode == 0, done.stderr
    assert re.search(r"block1/conv +5:[0-9]+ ", done.stdout)
    done = streamstats("forget", job, "--rows", "0:2,6:7")
    assert done.returncode == 2
    assert "--rows is '0:2,6:7'; expected START:STOP, as in 64:128, or START: for all rows" in one_line(done.stderr)
    assert one_line(done.stderr).endswith("for several ranges, repeat --rows")


def test_options_of_several_values_add_up() -> None:
    given = "measure m.onnx --samples s.npy -o out --statistics squares --statistics spread taps"
    assert make_parser().parse_args(given.split()).statistics == ["squares", "spread", "taps"]


def test_an_output_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    floats(tmp_path)
    (tmp_path / "file").write_text("in the way")
    done = streamstats("run", write_config(tmp_path, f"source: {tmp_path / 's.zarr'}\noutput: {tmp_path}/file/out\n"))
    assert done.returncode == 2
    assert f"{tmp_path}/file/out" in one_line(done.stderr)


@pytest.mark.parametrize("text", ["", "- 1", "{", "a: &a 1\nb: *a", "source: a\nsource: b", "\x00"])
def test_a_configuration_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    done = streamstats("run", write_config(tmp_path, text))
    assert done.returncode == 2
    assert "run.yaml" in one_line(done.stderr)


def test_files_that_are_not_models_samples_or_results_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    np.save(tmp_path / "samples.npy", np.zeros((1, 1), np.float32))
    commands = [
        ["record", tmp_path / "model.onnx", "--samples", tmp_path / "samples.npy", "-o", tmp_path / "new.zarr"],
        ["correct", tmp_path / "model.onnx", "--bits", "4", "--correctors", tmp_path, "-o", tmp_path / "fixed.onnx"],
        ["inspect", tmp_path],
        ["inspect", tmp_path / "nowhere"],
        ["run", tmp_path / "nowhere.yaml"],
    ]
    for command in commands:
        done = streamstats(*command)
        assert done.returncode == 2, done.stderr
        assert one_line(done.stderr)
    assert not (tmp_path / "new.zarr").exists()
    assert not (tmp_path / "fixed.onnx").exists()


def test_inspect_of_a_layer_that_is_not_there_names_those_that_are(tmp_path: Path, job: Path) -> None:
    streamstats("run", job)
    done = streamstats("inspect", tmp_path / "out", "block3/conv")
    assert done.returncode == 2
    assert "block1/conv, block2/conv" in one_line(done.stderr)


def test_a_damaged_chunk_is_status_4_and_names_layer_and_rows(tmp_path: Path, store: Path, job: Path) -> None:
    chunk = next(path for path in (store / "block1/conv/c/2").rglob("*") if path.is_file())
    chunk.write_bytes(chunk.read_bytes()[:10])
    done = streamstats("run", job)
    assert done.returncode == 4
    assert re.search(r"layer block1/conv: chunk c/[\d/]+ \(rows \d+:\d+\) cannot be read", done.stderr.splitlines()[-1])
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out/manifest.json").exists()


def test_every_command_says_what_an_interruption_leaves() -> None:
    (commands,) = (each for each in make_parser()._actions if isinstance(each, argparse._SubParsersAction))
    assert set(INTERRUPTION) == set(commands.choices)
