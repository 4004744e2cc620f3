"""Jobs over HTTP: what comes back is what the command line leaves, byte for byte."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import threading
import zipfile
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from distributed import LocalCluster
from served import STORE, Served, served, small_store, wait_until

import streamstats as ss
from streamstats.config import JobConfig
from streamstats.jobs.run import run
from streamstats.outputs.results import open_results
from streamstats.service.client import RefusedError
from streamstats.service.database import Database
from streamstats.service.errors import FullError
from streamstats.service.faults import Faults
from streamstats.service.job_table import JobTable
from streamstats.service.jobs import Jobs
from streamstats.service.messages import JobView
from streamstats.service.metrics import Metrics

REQUEST = {"kind": "run", "source": STORE}


@pytest.fixture(scope="module")
def done(service: Served) -> JobView:
    """A job that is done."""
    with service.client() as client:
        return client.wait(client.submit({**REQUEST, "submitter": "done"}).id)


def test_a_job_leaves_the_bytes_that_run_leaves(service: Served, done: JobView, tmp_path: Path) -> None:
    run(JobConfig(source=str(service.roots / STORE), output=str(tmp_path / "mine")).job())
    with service.client() as client:
        assert client.fetch(done.id, tmp_path / "theirs") == 1
    mine = {path.relative_to(tmp_path / "mine"): path.read_bytes() for path in (tmp_path / "mine").rglob("*.*")}
    theirs = {path.relative_to(tmp_path / "theirs"): path.read_bytes() for path in (tmp_path / "theirs").rglob("*.*")}
    assert mine == theirs
    assert open_results(tmp_path / "theirs").layers == ["block1/conv", "fc"]


def test_jobs_run_on_the_scheduler_that_the_service_names(done: JobView, service: Served, tmp_path: Path) -> None:
    options = {"dashboard_address": None, "host": "127.0.0.1", "threads_per_worker": 1}
    with LocalCluster(n_workers=1, processes=True, **options) as cluster:
        scheduler = {"scheduler": cluster.scheduler_address}
        with served(tmp_path / "service", cluster=scheduler) as other, other.client() as client:
            found = client.wait(client.submit(REQUEST).id)
            assert found.state == "done", found.message
            client.fetch(found.id, tmp_path / "there")
            assert "no dask" not in found.message
    with service.client() as client:
        client.fetch(done.id, tmp_path / "here")
    for name in ("block1/conv", "fc"):
        path = f"correctors/{name}.safetensors"
        assert (tmp_path / "there" / path).read_bytes() == (tmp_path / "here" / path).read_bytes()


def test_a_job_tells_what_it_counted(done: JobView) -> None:
    assert (done.state, done.rows, done.total_rows, done.results) == ("done", 64, 64, 1)
    assert done.bytes == done.total_bytes > 0


def test_layers_and_channels_are_those_of_inspect(service: Served, done: JobView, client: ss.Client) -> None:
    expected = ss.reduce(service.roots / STORE)
    layers = client.layers(done.id)["layers"]
    assert list(layers) == list(expected)
    assert layers["fc"]["covered"] == [[0, 32]]
    assert layers["fc"]["missing"] == []
    for name, found in expected.items():
        channels = client.channels(done.id, name)["per_channel"]
        assert channels["mean"] == found.mean.tolist()
        assert channels["maximum"] == found.maximum.tolist()
        assert layers[name]["greatest_mean"] == found.mean.max()


def test_a_mask_that_was_recorded_below_the_roots_leaves_out_positions(service: Served, client: ss.Client) -> None:
    values, counts = np.ones((4, 3, 2), np.float32), np.tile([True, True, False], (4, 1))
    values[:, 2] = 100
    with ss.Recorder(service.roots / "masked.zarr") as recorder:
        recorder.append("l", values, mask=counts)
    job = client.wait(client.submit({"source": "masked.zarr"}))
    assert client.channels(job, "l")["per_channel"]["mean"] == [1.0, 1.0]


def test_a_submission_repeated_with_its_key_is_the_same_job(client: ss.Client) -> None:
    first = client.submit({**REQUEST, "submitter": "twice"}, key="the-key")
    again = client.submit({**REQUEST, "submitter": "twice"}, key="the-key")
    other = client.submit({**REQUEST, "submitter": "somebody else"}, key="the-key")
    assert first.id == again.id != other.id
    assert [first.repeated, again.repeated, other.repeated] == [False, True, False]
    with pytest.raises(RefusedError, match="another request: `priority` was 0 and is 5; use a new key") as caught:
        client.submit({**REQUEST, "submitter": "twice", "priority": 5}, key="the-key")
    assert caught.value.status == 409
    more = {"priority": 5, "rows": "0:4", "min_rows": 3, "nonfinite": "skip", "missing": "report"}
    with pytest.raises(RefusedError, match=r'`missing` was "error" and is "report", .* and 2 more keys;'):
        client.submit({**REQUEST, "submitter": "twice", **more}, key="the-key")


def test_a_submission_repeated_after_its_source_is_gone_is_the_same_job(service: Served, client: ss.Client) -> None:
    store = small_store(service.roots / "gone.zarr")
    first = client.wait(client.submit({"kind": "run", "source": "gone.zarr"}, key="gone").id)
    shutil.rmtree(store)
    assert client.submit({"kind": "run", "source": "gone.zarr"}, key="gone").id == first.id
    with pytest.raises(RefusedError, match="does not exist"):
        client.submit({"kind": "run", "source": "gone.zarr"}, key="another")


def test_what_clients_are_told_names_no_folder_of_the_service(service: Served, client: ss.Client) -> None:
    (service.roots / "none").mkdir(exist_ok=True)
    failed = client.wait(client.submit({"kind": "run", "source": "none"}).id)
    assert "none" in failed.message
    assert str(service.roots) not in failed.message


def test_submissions_at_the_same_moment_with_one_key_are_one_job(service: Served) -> None:
    found: list[str] = []

    def submit() -> None:
        with service.client() as client:
            found.append(client.submit({**REQUEST, "submitter": "at once"}, key="k").id)

    threads = [threading.Thread(target=submit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"source": "nowhere.zarr"}, "does not exist"),
        ({"source": "x" * 300}, "does not exist"),
        ({"source": "store:nowhere"}, "no store nowhere"),
        ({"output": "/tmp/x"}, "unknown key `output`"),
        ({"cluster": {"scheduler": "tcp://evil:1"}}, "unknown key `cluster`"),
        ({"memory": "1TiB"}, "at most"),
        ({"rows": "5:1"}, "rows"),
        ({"layers": [{"match": "*", "quantization": {"scale": 0.0, "scale_is": "step"}}]}, "layers"),
        ({"layers": [{"match": "*"}] * 1001}, "`layers` has 1,001 entries; expected at most 1,000"),
        (
            {"layers": [{"match": "*"}, {"match": "x" * 4097}]},
            "`layers[1].match` has 4,097 characters; expected at most 4,096",
        ),
        ({"submitter": "x" * 65}, "submitter"),
        ({"submitter": "\ud800"}, "characters"),
        ({"layers": [{"match": "\ud800"}]}, "characters"),
        ({"priority": 10**9}, "priority"),
        ({"kind": "rnu"}, "`kind` is 'rnu'; expected one of run, onnx; did you mean run?"),
        ({"run": 3}, "unknown key `run`"),
        ({"follow": {"rows": -1}}, "follow"),
    ],
)
def test_a_request_that_cannot_be_met_says_why(service: Served, change: dict[str, Any], said: str) -> None:
    with service.http() as http:
        headers = {"Content-Type": "application/json"}
        answer = http.post("/api/v1/jobs", content=json.dumps({**REQUEST, **change}), headers=headers)
    assert answer.status_code == 422
    assert said in answer.json()["detail"]


def test_a_job_that_does_not_say_gets_the_memory_of_the_service(tmp_path: Path) -> None:
    with served(tmp_path, memory="400MiB") as service, service.client() as client:
        found = client.wait(client.submit(REQUEST).id)
        assert found.state == "done", found.message
        assert found.request["memory"] == 400 * 2**20
        with pytest.raises(RefusedError, match="at most 419,430,400"):
            client.submit({**REQUEST, "memory": "401MiB"})


def test_a_job_that_fails_says_why(service: Served, client: ss.Client) -> None:
    (service.roots / "empty").mkdir(exist_ok=True)
    job = client.wait(client.submit({"kind": "run", "source": "empty"}).id)
    assert job.state == "failed"
    assert "zarr group" in job.message
    assert job.results is None
    with pytest.raises(RefusedError, match=r"ended as failed and has no results: .*zarr group"):
        client.layers(job.id)


def test_rows_that_cannot_be_read_are_told(service: Served, client: ss.Client) -> None:
    store = small_store(service.roots / "damaged.zarr")
    (store / "fc" / "c" / "0" / "0").unlink()
    job = client.wait(client.submit({"kind": "run", "source": "damaged.zarr", "missing": "report"}).id)
    assert job.state == "incomplete"
    assert (job.rows, job.total_rows) == (62, 64)
    (gap,) = client.layers(job.id)["layers"]["fc"]["missing"]
    assert gap["rows"] == [0, 2]
    assert "is not there" in gap["reason"] or "missing" in gap["reason"]


def test_layers_below_min_rows_make_a_job_incomplete(client: ss.Client) -> None:
    job = client.wait(client.submit({**REQUEST, "min_rows": 100}).id)
    assert job.state == "incomplete"
    assert "below `min_rows`; the first: " in job.message
    assert "`min_rows` is 100; record more samples" in job.message
    layers = client.layers(job.id)["layers"]
    assert layers["fc"]["shortfall"]["reason"] == "32 rows counted; `min_rows` is 100"
    assert client.wait(client.submit({**REQUEST, "min_rows": 32}).id).state == "done"


def test_events_tell_of_a_job_until_it_ends(client: ss.Client) -> None:
    heard = list(client.events(client.submit(REQUEST).id))
    kinds = [kind for kind, _ in heard]
    assert kinds[-1] == "end"
    assert set(kinds) <= {"job", "message", "end"}
    last = [content for kind, content in heard if kind == "job"][-1]
    assert last["state"] == "done"
    assert {"rows", "bytes", "bytes_per_second", "seconds_left", "message"} <= set(last)


def test_events_go_on_after_the_last_one_that_was_heard(service: Served, done: JobView) -> None:
    with service.http(headers={"Last-Event-ID": str(2**60)}) as http:
        text = http.get(f"/api/v1/jobs/{done.id}/events").text
    assert "event: message" not in text
    assert "event: end" in text


def test_a_queued_job_is_cancelled_and_deleted(tmp_path: Path) -> None:
    with served(tmp_path, limits={"running_jobs": 1}) as service, service.client() as client:
        follower = client.submit({**REQUEST, "follow": {}})
        wait_until(lambda: client.job(follower.id).results is not None)
        with pytest.raises(RefusedError, match="cancel it first"):
            client.delete(follower.id)
        cancelled = client.cancel(follower.id)
        assert (cancelled.state, cancelled.seconds > 0) == ("cancelling", True)
        assert client.wait(follower.id).state == "cancelled"
        assert client.layers(follower.id)["layers"]["fc"]["rows"] == 32  # what was counted is kept
        with pytest.raises(RefusedError, match="already cancelled"):
            client.cancel(follower.id)
        client.delete(follower.id)
        with pytest.raises(RefusedError) as caught:
            client.job(follower.id)
        assert caught.value.status == 404
        assert not (service.data / "jobs" / follower.id).exists()


def test_jobs_are_listed_page_by_page_the_newest_first(service: Served, client: ss.Client) -> None:
    made = [client.submit({**REQUEST, "submitter": "pages"}).id for _ in range(5)]
    found: list[str] = []
    before = None
    while True:
        page = client.jobs(limit=2, before=before)
        found += [each.id for each in page.jobs]
        before = page.next
        if before is None:
            break
    assert [each for each in found if each in made] == made[::-1]
    assert len(found) == len(set(found))
    with service.http() as http:
        listed = http.get("/api/v1/jobs").json()["jobs"][0]
        whole = http.get(f"/api/v1/jobs/{listed['id']}").json()
    assert set(whole) - set(listed) == {"request"}  # which may have a megabyte
    for each in made:
        client.wait(each)
    assert {each.state for each in client.jobs(state="done").jobs} == {"done"}


def test_no_more_jobs_wait_than_the_limit_says(tmp_path: Path) -> None:
    limits = {"running_jobs": 1, "waiting_jobs": 1, "following_jobs": 0}
    with served(tmp_path, limits=limits) as service, service.http() as http:
        answers = [http.post("/api/v1/jobs", json=REQUEST) for _ in range(8)]
        assert {answer.status_code for answer in answers} == {201, 503}
        full = next(answer for answer in answers if answer.status_code == 503)
        assert "the queue is full (1 job)" in full.json()["detail"]
        assert full.headers["retry-after"]
        assert http.post("/api/v1/jobs", json={**REQUEST, "follow": {}}).status_code == 409


def test_no_more_jobs_that_come_at_the_same_moment_wait_than_the_limit_says(tmp_path: Path) -> None:
    database = Database(tmp_path / "db")
    jobs = Jobs(
        JobTable(database),
        tmp_path / "jobs",
        lambda _folder, request, _forgets: (dict(request), None),
        Metrics(database),
        Faults(),
        hindrance=lambda: "not yet",
        waiting=3,
    )
    (tmp_path / "jobs").mkdir()
    jobs.start()
    together = threading.Barrier(8)
    said: list[str] = []

    def meet(_folder: Path) -> None:
        together.wait(60)

    def submit() -> None:
        try:
            jobs.submit({**REQUEST, "submitter": "a", "priority": 0}, prepare=meet)
        except FullError as error:
            said.append(str(error))

    threads = [threading.Thread(target=submit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    jobs.stop()
    assert said == ["the queue is full (3 jobs); submit the job again later"] * 5


# Files


def test_a_file_has_a_tag_and_is_not_sent_twice(service: Served, done: JobView) -> None:
    with service.http() as http:
        for path in (
            "files/correctors/fc.safetensors",
            "manifest",
            "layers",
            "layers/fc",
            "files",
            "report",
            "archive",
        ):
            first = http.get(f"/api/v1/jobs/{done.id}/{path}")
            assert first.status_code == 200
            assert first.headers["streamstats-results"] == "1"
            again = http.get(f"/api/v1/jobs/{done.id}/{path}", headers={"If-None-Match": first.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")


def test_the_tag_of_a_file_is_its_digest_in_the_manifest(service: Served, done: JobView) -> None:
    with service.http() as http:
        manifest = http.get(f"/api/v1/jobs/{done.id}/manifest").json()
        entry = manifest["layers"]["fc"]["corrector"]
        answer = http.get(f"/api/v1/jobs/{done.id}/files/{entry['file']}")
    assert answer.headers["etag"] == f'"{entry["sha256"]}"'
    assert hashlib.sha256(answer.content).hexdigest() == entry["sha256"]
    assert "attachment" in answer.headers["content-disposition"]


def test_a_range_of_a_file_is_sent(service: Served, done: JobView) -> None:
    path = f"/api/v1/jobs/{done.id}/files/correctors/fc.safetensors"
    with service.http() as http:
        whole = http.get(path)
        part = http.get(path, headers={"Range": "bytes=10-19"})
        assert (part.status_code, part.content) == (206, whole.content[10:20])
        assert part.headers["content-range"] == f"bytes 10-19/{len(whole.content)}"
        stale = http.get(path, headers={"Range": "bytes=10-19", "If-Range": '"another"'})
        assert (stale.status_code, stale.content) == (200, whole.content)
        beyond = http.get(path, headers={"Range": f"bytes={len(whole.content)}-"})
        assert beyond.status_code == 416


def test_the_archive_has_all_files_of_one_set(service: Served, done: JobView) -> None:
    with service.http() as http:
        content = http.get(f"/api/v1/jobs/{done.id}/archive").content
        digests = http.get(f"/api/v1/jobs/{done.id}/files").json()["files"]
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        found = {name: hashlib.sha256(archive.read(name)).hexdigest() for name in archive.namelist()}
    assert found == digests


def test_the_report_is_a_page_without_scripts(service: Served, done: JobView) -> None:
    with service.http() as http:
        answer = http.get(f"/api/v1/jobs/{done.id}/report")
    assert answer.headers["content-type"].startswith("text/html")
    assert "sandbox" in answer.headers["content-security-policy"]
    assert "block1/conv" in answer.text
    assert "submit a job of the kind `onnx`" in answer.text
    assert "(--model" not in answer.text
    assert str(service.data) not in answer.text


def test_results_that_are_not_there_are_not_found(service: Served, done: JobView) -> None:
    with service.http() as http:
        assert http.get(f"/api/v1/jobs/{done.id}/layers?results=7").status_code == 404  # 410 is for replaced ones
        assert http.get(f"/api/v1/jobs/{done.id}/layers/nowhere").status_code == 404
        assert http.get(f"/api/v1/jobs/{done.id}/files/nowhere").status_code == 404


def test_files_of_any_layer_have_links(client: ss.Client, service: Served) -> None:
    names = ["a b", "é", "<b>", "100%", "q?x=1&y#z", "a/b c"]
    for name in names:
        client.ingest("named", name, np.ones((2, 3), np.float32))
    job = client.wait(client.submit({"kind": "run", "source": "store:named"}).id)
    with service.http() as http:
        files = http.get(f"/api/v1/jobs/{job.id}/files").json()["files"]
        assert len(files) == 2 * len(names) + 1
        for file, digest in files.items():
            link = http.post(f"/api/v1/jobs/{job.id}/links", params={"path": f"files/{file}"}).json()["path"]
            content = httpx.get(service.url + link)
            assert content.status_code == 200
            assert hashlib.sha256(content.content).hexdigest() == digest
    for name in names:
        assert client.channels(job.id, name)["rows"] == 2


# Corrections


def test_corrections_are_those_of_the_command_line(service: Served, done: JobView, client: ss.Client) -> None:
    generator = np.random.default_rng(1)
    weight = generator.normal(size=(4, 10)).astype(np.float32)
    fake = np.round(weight, 1)
    found = client.corrections(done.id, {"fc": weight}, {"fc": fake}, ["OI"])
    mean = ss.reduce(service.roots / STORE)["fc"].mean
    expected = ss.MeanBiasCorrector(mean).calculate(weight, fake, layout="OI")
    np.testing.assert_array_equal(found["fc"], expected)
    with pytest.raises(RefusedError, match="layout"):
        client.corrections(done.id, {"fc": weight}, {"fc": fake}, ["XYZ"])
    with pytest.raises(RefusedError, match="the body"):
        client.corrections(done.id, {"other": weight}, {"other": fake}, ["OI"])


def test_weights_that_are_none_are_refused(service: Served, done: JobView) -> None:
    with service.http() as http:
        answer = http.post(f"/api/v1/jobs/{done.id}/corrections?layout=OI", content=b"nonsense")
    assert answer.status_code == 422
    assert "the body" in answer.json()["detail"]
    assert str(service.data) not in answer.text
