"""The commands that ask a service: submit, jobs, watch, cancel, fetch, send."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from console import streamstats
from served import STORE, Served, npy

import streamstats as ss
from streamstats.calibration.recorder import stored_layer


@pytest.fixture
def run(service: Served, tmp_path: Path) -> Run:
    return Run(service, tmp_path)


class Run:
    """The command line, with the service in its environment."""

    def __init__(self, service: Served, folder: Path) -> None:
        self.environment = {
            "STREAMSTATS_URL": service.url,
            "STREAMSTATS_TOKEN_FILE": str(service.data / "token"),
        }
        self.folder = folder

    def __call__(self, *arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        done = streamstats(*arguments, folder=self.folder, environment=self.environment)
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr
        return done


def config(folder: Path, text: str = f"source: {STORE}\noutput: out\n") -> str:
    (folder / "job.yaml").write_text(text)
    return "job.yaml"


def test_submit_watch_and_fetch(run: Run, tmp_path: Path) -> None:
    done = run("submit", config(tmp_path), "--watch", "--submitter", "ann")
    assert "job.yaml: ignoring output, which the service chooses" in done.stderr
    name = done.stdout.splitlines()[1].split()[0]
    assert "done" in done.stdout
    run("fetch", name, "-o", "fetched")
    inspected = run("inspect", "fetched", "--json")
    assert set(json.loads(inspected.stdout)["layers"]) == {"block1/conv", "fc"}
    run("fetch", name, "-o", "fetched", status=2)
    listed = json.loads(run("jobs", "--json").stdout)["jobs"]
    assert next(job for job in listed if job["id"] == name)["submitter"] == "ann"
    assert json.loads(run("jobs", name, "--json").stdout)["state"] == "done"
    assert name in run("jobs", "--state", "done").stdout


def test_submit_says_the_job_and_cancel_stops_it(run: Run, tmp_path: Path) -> None:
    name = run("submit", config(tmp_path), "--follow", "--key", f"k{tmp_path.name}").stdout.strip()
    again = run("submit", config(tmp_path), "--follow", "--key", f"k{tmp_path.name}")
    assert again.stdout.strip() == name
    assert f"job {name} was submitted before, with this key" in again.stderr
    assert "cancel" in run("cancel", name).stderr
    watched = run("watch", name, "--json", status=1)
    assert json.loads(watched.stdout)["state"] == "cancelled"


def test_a_job_without_all_its_rows_ends_with_3(run: Run, service: Served, tmp_path: Path) -> None:
    from served import small_store

    store = small_store(service.roots / "incomplete.zarr")
    (store / "fc" / "c" / "0" / "0").unlink()
    done = run("submit", config(tmp_path, "source: incomplete.zarr\nmissing: report\n"), "--watch", status=3)
    assert "incomplete" in done.stdout


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("source: wrong.zarr\nlayers: [{match: fc, statistics: [taps]}]\n", 2),
        ("source: wrong.zarr\n", 4),
    ],
    ids=["a layer without a kernel", "a chunk that is lost"],
)
def test_a_failed_job_ends_with_the_status_that_the_same_run_ends_with(
    run: Run, service: Served, tmp_path: Path, text: str, status: int
) -> None:
    from served import small_store

    store = service.roots / "wrong.zarr"
    if not store.exists():
        (small_store(store) / "fc" / "c" / "0" / "0").unlink()
    text = text.replace("wrong.zarr", str(store))
    ran = run("run", config(tmp_path, f"{text}output: out\n"), status=status)
    watched = run("submit", config(tmp_path, text), "--watch", status=status)
    assert "failed" in watched.stdout
    reason = ran.stderr.strip().splitlines()[-1].removeprefix("streamstats: ")[:20]
    assert reason in watched.stderr


def test_jobs_are_compared_with_each_other_and_with_outputs(run: Run, service: Served, tmp_path: Path) -> None:
    whole, part = (
        run("submit", config(tmp_path, text), "--watch", "--json").stdout
        for text in (f"source: {STORE}\n", f"source: {STORE}\nrows: 0:16\n")
    )
    one, other = json.loads(whole)["id"], json.loads(part)["id"]
    assert "equal to the bit" in run("compare", one, one).stderr
    differing = json.loads(run("compare", one, other, "--json", "--threshold", "0", status=3).stdout)
    assert (differing["first"], differing["second"], differing["equal"]) == (one, other, False)
    run("run", config(tmp_path, f"source: {service.roots / STORE}\noutput: out\n"))
    assert "2 layers: equal to the bit" in run("compare", "out", one).stderr
    assert [each.name for each in tmp_path.iterdir() if each.is_dir()] == ["out"]
    assert "there is no job" in run("compare", "0" * 16, one, status=2).stderr
    run("fetch", one, "-o", other)
    assert "equal to the bit" in run("compare", one, other).stderr  # a folder of that name is an output


def test_send_counts_each_file_once(run: Run, tmp_path: Path, client: ss.Client) -> None:
    for number in range(3):
        (tmp_path / f"{number}.npy").write_bytes(npy(np.full((4, 2), number, np.int8)))
    options = ("--quantization", '{"scale": 0.5, "scale_is": "step"}')
    run("send", "sent", "a/b", "0.npy", "1.npy", *options)
    again = run("send", "sent", "a/b", "0.npy", "2.npy", *options, "--json")
    assert [each["repeated"] for each in json.loads(again.stdout)["sent"]] == [True, False]
    assert client.store("sent").layers == {"a/b": 12}


def test_of_several_files_it_says_which_were_sent_or_withdrawn_before_an_error(run: Run, tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"{number}.npy").write_bytes(npy(np.full((4, 2), number, np.int8)))
    np.savez(tmp_path / "both.npz", a=np.zeros((4, 2)))
    sent = run("send", "sent-in-part", "l", "0.npy", "1.npy", "both.npz", status=2)
    assert "2 of 3 files were sent: 0.npy, 1.npy" in sent.stderr
    assert "it is a zip archive, such as .npz; send each of its arrays as .npy" in sent.stderr
    withdrawn = run("withdraw", "sent-in-part", "l", "1.npy", "both.npz", status=2)
    assert "1 of 2 files was withdrawn: 1.npy" in withdrawn.stderr


@pytest.mark.parametrize(
    ("shape", "options", "said"),
    [
        ((4, 3), (), "the sample shape is (3,); the store holds (2,); append to another store"),
        ((4, 2), ("--quantization", '{"scale": 1, "scale_is": "step"}'), "leave the quantisation out"),
        ((4, 2), ("--geometry", '{"kernel": [3]}'), "correct its `channel_axis` or `geometry`"),
    ],
    ids=["another shape", "codes that are floats", "a kernel that does not fit"],
)
def test_a_file_that_cannot_be_appended_is_refused_in_the_words_of_sending(
    run: Run, tmp_path: Path, shape: tuple[int, ...], options: tuple[str, ...], said: str
) -> None:
    for name, extent in (("first", (4, 2)), ("second", shape)):
        (tmp_path / f"{name}.npy").write_bytes(npy(np.zeros(extent, np.float32)))
    run("send", "unfit", "l", "first.npy")
    done = run(
        "send", "unfit", "l", "second.npy", *options, "--key", f"{shape}{len(options)}".replace(" ", ""), status=2
    )
    assert said in done.stderr
    assert "record" not in done.stderr
    assert str(tmp_path) not in done.stderr


def test_send_describes_the_kernel(run: Run, service: Served, tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(npy(np.ones((4, 2, 5, 5), np.float32)))
    geometry = '{"kernel": [3, 3], "strides": [2, 2]}'
    run("send", "kernels", "a", "x.npy", "--channel-axis", "1", "--geometry", geometry)
    stored = stored_layer(service.data / "stores" / "kernels", "a")
    assert stored is not None
    assert stored.kernel == ss.Kernel((3, 3), ss.Geometry((2, 2)))


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("jobs", "0000000000000000"), 2, "there is no job"),
        (("submit", "nowhere.yaml"), 2, "cannot be read"),
        (("submit", "list.yaml"), 2, "expected keys"),
        (("submit", "wrong.yaml"), 2, "unknown key `sauce`"),
        (("submit", "job.yaml", "--idle", "3"), 2, "--follow"),
        (("submit", "number.yaml"), 2, "number.yaml: `model` is 3; expected the path of a file, as text"),
        (("submit", "kindless.yaml"), 2, "kindless.yaml: it has `model`, a key of jobs of the kind `onnx`; add `kind"),
        (("submit", "own.yaml", "--set", "source='store:'"), 2, "the source is 'store:'; expected `store:NAME`"),
        (("submit", "own.yaml", "--set", "source=store:../x"), 2, "the source is 'store:../x'; expected `store:NAME`"),
        (("submit", "own.yaml"), 2, "there is no store none; send activations to"),
        (("fetch", "0000000000000000", "-o", "x"), 2, "there is no job"),
        (("send", "s", "l", "nowhere.npy"), 2, "cannot read"),
        (("send", "s", "l", "job.yaml"), 2, "neither .npy nor safetensors"),
        (("send", "s", "l", "job.yaml", "--quantization", "x"), 2, "--quantization is not JSON"),
        (("send", "s", "l", "job.yaml", "--geometry", "[3, 3]"), 2, "--geometry is not a JSON object; expected"),
        (("jobs", "--token-file", "nowhere"), 2, "cannot read the token"),
        (("jobs", "--token-file", "job.yaml"), 2, "token"),
        (("jobs", "--url", "nonsense"), 2, "expected an address"),
        (("serve", "nowhere.yaml"), 2, "cannot be read"),
        (("serve", "job.yaml"), 2, "unknown key"),
    ],
)
def test_a_mistake_is_one_clear_line(
    run: Run, tmp_path: Path, arguments: tuple[str, ...], status: int, said: str
) -> None:
    config(tmp_path)
    (tmp_path / "list.yaml").write_text("[]")
    (tmp_path / "wrong.yaml").write_text("sauce: x")
    (tmp_path / "own.yaml").write_text("source: store:none")
    (tmp_path / "number.yaml").write_text("kind: onnx\nmodel: 3\nsamples: x.npy")
    (tmp_path / "kindless.yaml").write_text("model: model.onnx\nsamples: x.npy")
    done = run(*arguments, status=status)
    assert said in done.stderr
    assert len([line for line in done.stderr.splitlines() if line]) == 1


def test_no_service_and_no_token_are_said(run: Run) -> None:
    run.environment["STREAMSTATS_TOKEN_FILE"] = ""  # as if it were unset
    assert "there is no token" in run("jobs", status=2).stderr
    run.environment |= {"STREAMSTATS_TOKEN": "x" * 40, "STREAMSTATS_URL": "http://127.0.0.1:1"}
    assert "does not respond" in run("jobs", status=1).stderr
