"""The commands of those who run a service, and of those who look for jobs: token, audit, prune, withdraw, jobs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
from served import STORE, Served, npy

import streamstats as ss
from streamstats.cli import main


class Run:
    """The command line in this process, which is faster, with the service in its environment."""

    def __init__(self, captured: pytest.CaptureFixture[str]) -> None:
        self._captured = captured

    def __call__(self, *arguments: str, status: int = 0) -> CompletedProcess[str]:
        self._captured.readouterr()
        found = main(arguments)
        said = self._captured.readouterr()
        assert found == status, said.err
        return CompletedProcess(arguments, found, said.out, said.err)


@pytest.fixture
def run(service: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STREAMSTATS_URL", service.url)
    monkeypatch.setenv("STREAMSTATS_TOKEN_FILE", str(service.data / "token"))
    (tmp_path / "job.yaml").write_text(f"source: {STORE}\n")
    return Run(capsys)


def test_names_and_tags_find_a_job(run: Run) -> None:
    about = ("--name", "nightly", "--tag", "a=1", "--tag", "b", "--note", "why")
    name = run("submit", "job.yaml", *about).stdout.strip()
    wanted = ("--tag", "a=1", "--tag", "b", "--text", "NIGHT", "--source", STORE, "--submitter", "admin")
    found = run("jobs", *wanted, "--json")
    assert [(job["id"], job["note"]) for job in json.loads(found.stdout)["jobs"]] == [(name, "why")]
    assert "nightly" in run("jobs", "--state", "queued", "--state", "running", "--state", "done").stdout


def test_messages_of_jobs_begin_below_their_heading(run: Run, client: ss.Client) -> None:
    client.wait(client.submit({"kind": "run", "source": STORE}).id)
    heading, *lines = run("jobs", "--state", "done").stdout.splitlines()
    start = heading.index("message")
    assert all(line[start - 1] == " " != line[start] for line in lines)


def test_the_files_of_an_onnx_job_are_uploaded(run: Run, client: ss.Client, tmp_path: Path) -> None:
    files = {"model": "model.onnx", "samples": "samples.npy", "held_out": "held-out.npy"}
    for name in files.values():
        (tmp_path / name).write_text(f"the content of {name}")
    (tmp_path / "onnx.yaml").write_text(json.dumps({"kind": "onnx", "bits": 4, **files}))
    job = client.job(run("submit", "onnx.yaml", "--name", "corrected").stdout.strip())
    assert (job.kind, job.name, job.request["bits"]) == ("onnx", "corrected", 4)
    for key, name in files.items():
        assert job.request[key] == hashlib.sha256(f"the content of {name}".encode()).hexdigest()
    assert "cannot read nowhere.npy" in run("submit", "onnx.yaml", "--set", "samples=nowhere.npy", status=2).stderr
    assert "--follow is for" in run("submit", "onnx.yaml", "--follow", status=2).stderr


def test_watch_shows_all_rows_before_the_message_that_ends_the_job(
    run: Run, client: ss.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = client.wait(client.submit({"kind": "run", "source": STORE}).id)
    events = list(client.events(job.id))
    assert [kind for kind, _ in events] == ["job", "message", "end"]
    half = {**events[0][1], "state": "running", "rows": 32, "bytes": 1}
    monkeypatch.setattr(ss.Client, "events", lambda *_: iter([("job", half), *events]))
    told = run("watch", job.id)
    assert "32/64" not in told.stderr
    assert (
        told.stderr.index("64/64 rows of all layers")
        < told.stderr.index("done; 2 layers")
        < told.stderr.index("fetch its results")
    )


def test_withdraw_takes_back_what_was_sent(run: Run, client: ss.Client, tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.npy").write_bytes(npy(np.full((4, 2), number, np.float32)))
    run("send", "taken", "l", "0.npy", "1.npy", "2.npy")
    job = client.wait(client.submit({"kind": "run", "source": "store:taken"}).id)
    told = run("withdraw", "taken", "l", "1.npy")
    assert "4:8" in told.stdout
    assert f"job {job.id} may have counted them" in told.stderr
    assert f"job {job.id} subtracts them" in run("withdraw", "taken", "l", "1.npy", "--forget").stderr
    client.wait(job.id)
    assert client.channels(job.id, "l")["per_channel"]["mean"] == [1.0, 1.0]
    assert client.layers(job.id)["layers"]["l"]["covered"] == [[0, 4], [8, 12]]


def test_activations_sent_on_a_wrong_axis_go_to_another_store(run: Run, client: ss.Client, tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(npy(np.ones((4, 2, 5, 5), np.float32)))
    run("send", "axis", "l", "x.npy")
    right = ("l", "x.npy", "--channel-axis", "1")
    assert "or with another channel axis" in run("send", "axis", *right, status=2).stderr
    assert "append to another store" in run("send", "axis", *right, "--key", "new", status=2).stderr
    run("send", "axis-1", *right)
    assert client.store("axis-1").layers == {"l": 4}


def test_stores_are_listed_shown_and_deleted(run: Run, client: ss.Client, tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(npy(np.ones((4, 2), np.float32)))
    for layer in ("a", "b/c"):
        run("send", "cli-listed", layer, "x.npy")
    run("withdraw", "cli-listed", "a", "x.npy")
    assert "cli-listed" in client.stores()
    (line,) = (each for each in run("stores").stdout.splitlines() if each.startswith("cli-listed "))
    assert [line.split()[column] for column in (1, 4, 5)] == ["admin", "2", "8"]
    assert [each.split() for each in run("stores", "cli-listed").stdout.splitlines()] == [
        ["layer", "rows", "withdrawn"],
        ["a", "4", "4"],
        ["b/c", "4", "0"],
    ]
    shown = json.loads(run("stores", "cli-listed", "--json").stdout)
    assert shown in json.loads(run("stores", "--json").stdout)["stores"]
    assert "deleted layer a of store cli-listed" in run("delete", "--store", "cli-listed", "--layer", "a").stderr
    assert client.store("cli-listed").layers == {"b/c": 4}
    assert "deleted store cli-listed" in run("delete", "--store", "cli-listed").stderr
    assert "cli-listed" not in client.stores()


def test_jobs_are_deleted_up_to_one_that_cannot_be(run: Run, client: ss.Client) -> None:
    one, two = (client.wait(client.submit({"source": STORE})).id for _ in range(2))
    assert json.loads(run("delete", one, "--json").stdout)["jobs"] == [one]
    done = run("delete", two, one, status=2)
    assert f"deleted job {two}" in done.stderr
    assert f"there is no job {one}" in done.stderr


def test_tokens_are_made_used_rotated_and_revoked(run: Run, tmp_path: Path) -> None:
    run("token", "new", "cli-ann", "-o", "ann.token")
    assert (tmp_path / "ann.token").stat().st_mode & 0o077 == 0
    mine = ("--token-file", "ann.token")
    name = run("submit", "job.yaml", *mine).stdout.strip()
    assert json.loads(run("jobs", name, "--json", *mine).stdout)["submitter"] == "cli-ann"
    assert "needs the role admin" in run("token", "list", *mine, status=2).stderr
    run("token", "new", "cli-ben", "-o", "ann.token", status=2)
    listed = run("token", "list").stdout
    assert "cli-ann" in listed
    assert "cli-ben" not in listed  # its secret could not have been kept
    old = (tmp_path / "ann.token").read_text()
    run("token", "rotate", "cli-ann", "-o", "ann.token")
    assert (tmp_path / "ann.token").read_text() != old
    assert (tmp_path / "ann.token").stat().st_mode & 0o077 == 0
    run("jobs", *mine)
    refused = run("token", "rotate", "cli-ann", "-o", "job.yaml", status=2)
    assert "job.yaml exists, and does not hold a token" in refused.stderr
    run("jobs", *mine)  # the secret was not changed
    secret = run("token", "rotate", "cli-ann").stdout.strip()
    assert "token is missing or wrong" in run("jobs", *mine, status=2).stderr
    (tmp_path / "new.token").write_text(secret)
    run("jobs", "--token-file", "new.token")
    run("token", "revoke", "cli-ann")
    run("jobs", "--token-file", "new.token", status=2)
    assert "/api/v1/tokens/cli-ann/rotate" in run("audit", "--who", "admin", "--limit", "4").stdout


def test_a_dry_run_removes_nothing(run: Run, client: ss.Client) -> None:
    job = client.wait(client.submit({"kind": "run", "source": STORE}).id)
    told = json.loads(run("prune", "--dry-run", "--keep", '{"jobs": {"number": 0}}', "--json").stdout)
    assert job.id in [each["name"] for each in told["removed"]]
    assert client.job(job.id).state == "done"
    assert "removed 0" in run("prune").stderr  # the service keeps everything


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("token", "new"), "give the name"),
        (("token", "list", "ann"), "leave out the name"),
        (
            ("token", "rotate", "admin", "--role", "read"),
            "token rotate takes no --role, which is for new; leave it out",
        ),
        (("token", "new", "x", "--overlap", "5"), "token new takes no --overlap, which is for rotate"),
        (("token", "revoke", "x", "-o", "foo"), "token revoke takes no --output, which is for new and rotate"),
        (("token", "list", "--role", "read"), "token list takes no --role"),
        (("token", "revoke", "nobody"), "there is no token nobody"),
        (("jobs", "--token-file", "/dev/null"), "the token file /dev/null is empty"),
        (("prune", "--keep", "x"), "--keep is not JSON"),
        (("prune", "--keep", '{"jobs": {"age": "soon"}}'), "expected a time with its unit, such as 90d"),
        (("delete",), "name what to delete: either jobs, or a store with --store"),
        (("delete", "0123456789abcdef", "--store", "s"), "name what to delete: either jobs, or a store"),
        (("delete", "0123456789abcdef", "--layer", "l"), "name the store with --store"),
        (("delete", "--store", "nowhere"), "there is no store nowhere"),
        (("stores", "nowhere"), "there is no store nowhere"),
        (("withdraw", "s", "l"), "by its files or by --key"),
        (("withdraw", "s", "l", "nowhere.npy"), "cannot read"),
        (("withdraw", "s", "l", "--key", "k"), "there is no store s"),
        (("submit", "job.yaml", "--notify", "chat"), "no hook of the service; it has none"),
        (("prune", "--keep", '{"job": {}}'), "unknown key `job`; expected one of jobs, sets, stores"),
        (("prune", "--keep", '{"jobs": {"ago": "1d"}}'), "unknown key `jobs.ago`; expected one of age, number, bytes"),
        (("prune", "--keep", '{"jobs": 3}'), "`jobs` is 3; expected keys: age, number, bytes"),
        (("token", "new", "a b"), "`name` is 'a b'; expected 1 to 64 ASCII letters, digits or . _ @ -, the first"),
        (("cancel", "xyz"), "`job` is 'xyz'; expected the id of a job, 16 lower-case hexadecimal digits"),
        (("jobs", "--state", "lost"), "`state[0]` is 'lost'; expected one of queued, running,"),
        (("submit", "job.yaml", "--key", "a b"), "expected 1 to 128 ASCII characters without spaces"),
        (("submit", "job.yaml", "--name", "a\nb"), "expected one line"),
        (("submit", "job.yaml", "--name", "a" * 101), "it should have at most 100 characters"),
        (("submit", "job.yaml", "--tag", "a b"), "expected ASCII letters, digits or . _ : / = + -, the first"),
    ],
)
def test_a_mistake_is_one_line(run: Run, arguments: tuple[str, ...], said: str) -> None:
    done = run(*arguments, status=2)
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
