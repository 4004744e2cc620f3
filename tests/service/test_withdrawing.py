"""Taking back what was sent: a batch by its key, exactly; a layer as a whole."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served import Served, served, wait_until

import streamstats as ss
from streamstats.service.client import RefusedError

GENERATOR = np.random.default_rng(5)
BATCHES = {key: (GENERATOR.normal(size=(8, 3)) * 10**power).astype(np.float32) for power, key in enumerate("abcd")}


def exact(batches: dict[str, Any]) -> dict[str, list[Any]]:
    """Means, extrema and counts, by fractions."""
    rows = np.concatenate(list(batches.values()))
    means = [float(sum(map(Fraction, column.tolist())) / len(rows)) for column in rows.T]
    return {"mean": means, "minimum": rows.min(0).tolist(), "maximum": rows.max(0).tolist()}


def counted(client: ss.Client, job: str, layer: str = "a/[l]") -> dict[str, list[Any]]:
    found = client.channels(job, layer)["per_channel"]
    return {name: found[name] for name in ("mean", "minimum", "maximum")}


def send(client: ss.Client, store: str, layer: str = "a/[l]") -> None:
    for key, block in BATCHES.items():
        client.ingest(store, layer, block, key=key)


WITHOUT_B = {key: block for key, block in BATCHES.items() if key != "b"}
WITHOUT_BD = {key: block for key, block in WITHOUT_B.items() if key != "d"}


def test_a_withdrawn_batch_is_counted_by_no_job_to_come(client: ss.Client) -> None:
    send(client, "later")
    client.ingest("later", "other", BATCHES["b"], key="b")
    assert client.withdraw("later", "a/[l]", "b").batch.start == 8
    client.withdraw("later", "a/[l]", "b")  # again
    job = client.wait(client.submit({"kind": "run", "source": "store:later"}).id)
    assert job.state == "done", job.message
    assert counted(client, job.id) == exact(WITHOUT_B)
    assert client.channels(job.id, "other")["per_channel"]["maximum"] == BATCHES["b"].max(0).tolist()
    assert client.store("later").withdrawn == {"a/[l]": [[8, 16]]}


def test_of_a_withdrawn_batch_a_job_forgets_the_rows_that_it_counts(client: ss.Client) -> None:
    send(client, "limited")
    jobs = [
        client.wait(client.submit({"kind": "run", "source": "store:limited", "rows": rows}).id).id
        for rows in ("4:12", "16:")
    ]
    client.withdraw("limited", "a/[l]", "b")
    rest = {"4:12": {"a": BATCHES["a"][4:]}, "16:": {key: BATCHES[key] for key in "cd"}}
    for job, expected in zip(jobs, rest.values(), strict=True):
        client.forget(job)
        after = client.wait(job)
        assert (after.state, "nothing was forgotten" in after.message) == ("done", False)
        assert counted(client, job) == exact(expected)


def test_a_job_that_has_ended_forgets_to_the_byte(client: ss.Client, tmp_path: Path) -> None:
    send(client, "ended")
    before = client.wait(client.submit({"kind": "run", "source": "store:ended"}).id)
    assert counted(client, before.id) == exact(BATCHES)
    client.ingest("ended", "a/[l]", BATCHES["a"], key="since")  # which a forgetting job does not count
    assert client.withdraw("ended", "a/[l]", "b").jobs == [before.id]
    client.withdraw("ended", "a/[l]", "d")
    assert counted(client, before.id) == exact(BATCHES)
    assert client.forget(before.id).state in ("queued", "running")
    after = client.wait(before.id)
    assert (after.state, after.results) == ("done", 2), after.message
    assert (after.rows, after.total_rows) == (16, 16)  # of the set that is published
    assert counted(client, before.id) == exact(WITHOUT_BD)
    send(client, "never")
    for key in "bd":
        client.withdraw("never", "a/[l]", key)
    other = client.wait(client.submit({"kind": "run", "source": "store:never"}).id)
    for job, name in ((before, "forgot"), (other, "never")):
        client.fetch(job.id, tmp_path / name)
    forgot, never = ([*(tmp_path / name / "correctors").rglob("*.safetensors")] for name in ("forgot", "never"))
    assert [each.read_bytes() for each in forgot] == [each.read_bytes() for each in never] != []


def test_a_job_that_ended_before_a_batch_was_sent_is_not_said_to_have_counted_it(client: ss.Client) -> None:
    client.ingest("since", "l", BATCHES["a"], key="a")
    early = client.wait(client.submit({"kind": "run", "source": "store:since"}).id)
    client.ingest("since", "l", BATCHES["b"], key="b")
    late = client.wait(client.submit({"kind": "run", "source": "store:since"}).id)
    assert client.withdraw("since", "l", "b").jobs == [late.id]
    assert client.withdraw("since", "l", "a").jobs == [early.id, late.id]


def test_jobs_on_an_earlier_store_of_the_name_are_not_said_to_have_counted_a_batch(client: ss.Client) -> None:
    jobs = []
    for _ in range(2):
        client.ingest("renewed", "l", BATCHES["a"], key="a")
        jobs.append(client.wait(client.submit({"kind": "run", "source": "store:renewed"}).id).id)
        withdrawn = client.withdraw("renewed", "l", "a").jobs
        assert withdrawn == jobs[-1:]
        client.delete_store("renewed")


@pytest.mark.parametrize("again", [False, True], ids=["deleted", "renewed"])
def test_a_job_on_an_earlier_store_of_the_name_forgets_nothing(client: ss.Client, again: bool) -> None:
    send(client, "earlier")
    job = client.wait(client.submit({"kind": "run", "source": "store:earlier"}))
    client.delete_store("earlier")
    if again:
        send(client, "earlier")
        client.withdraw("earlier", "a/[l]", "b")
    with pytest.raises(RefusedError, match="counted a store earlier that was deleted since"):
        client.forget(job)
    assert client.job(job).results == 1
    assert counted(client, job.id) == exact(BATCHES)
    if again:
        client.delete_store("earlier")


@pytest.mark.soak
def test_a_job_that_cannot_forget_is_what_it_was(service: Served, client: ss.Client) -> None:
    (service.roots / "no-layers").mkdir(exist_ok=True)
    failed = client.wait(client.submit({"kind": "run", "source": "no-layers"}).id)
    send(client, "cannot")
    job = client.wait(client.submit({"kind": "run", "source": "store:cannot"}).id)
    client.withdraw("cannot", "a/[l]", "b")
    (service.data / "stores" / "cannot" / "a" / "[l]" / "zarr.json").write_text("damaged")
    client.forget(job.id)
    after = client.wait(job.id)
    assert (after.state, after.results) == ("done", 1)
    assert after.message.startswith("nothing was forgotten: ")
    assert counted(client, job.id) == exact(BATCHES)
    with pytest.raises(RefusedError, match="there is nothing to forget"):
        client.forget(failed.id)


def test_a_job_that_follows_forgets_while_it_runs(client: ss.Client) -> None:
    send(client, "goes-on")
    job = client.submit({"kind": "run", "source": "store:goes-on", "follow": {}})
    wait_until(lambda: client.job(job.id).rows == 32 and client.job(job.id).results is not None)
    client.withdraw("goes-on", "a/[l]", "b")
    wait_until(lambda: client.job(job.id).state == "running" and counted(client, job.id) == exact(WITHOUT_B))
    client.ingest("goes-on", "a/[l]", BATCHES["b"], key="again")
    wait_until(lambda: counted(client, job.id) == exact(BATCHES))
    assert client.job(job.id).attempts == 1
    client.cancel(job.id)
    assert client.wait(job.id).state == "cancelled"


def test_a_withdrawn_key_is_not_sent_again(client: ss.Client) -> None:
    send(client, "keys")
    client.withdraw("keys", "a/[l]", "a")
    with pytest.raises(RefusedError, match="was withdrawn"):
        client.ingest("keys", "a/[l]", BATCHES["a"], key="a")
    with pytest.raises(RefusedError, match="no batch with the key"):
        client.withdraw("keys", "a/[l]", "z")
    with pytest.raises(RefusedError, match="there is no store"):
        client.withdraw("nowhere", "a/[l]", "z")


@pytest.mark.soak
def test_a_withdrawal_outlives_a_kill(tmp_path: Path) -> None:
    with served(tmp_path) as service:
        with service.client() as client:
            send(client, "s")
            client.withdraw("s", "a/[l]", "b")
        service.kill()
        service.start()
        with service.client() as client:
            job = client.wait(client.submit({"kind": "run", "source": "store:s"}).id)
            assert counted(client, job.id) == exact(WITHOUT_B)


def test_a_deleted_layer_leaves_the_others_and_its_name(service: Served, client: ss.Client) -> None:
    for layer in ("a/b/c", "a/d", "e"):
        send(client, "layers", layer)
    done = client.wait(client.submit({"kind": "run", "source": "store:layers"}).id)
    client.delete_layer("layers", "a/b/c")
    assert client.store("layers").layers == {"a/d": 32, "e": 32}
    assert counted(client, done.id, "a/b/c") == exact(BATCHES)  # jobs keep what they counted
    client.ingest("layers", "a/b", np.ones((2, 7), np.int8), key="a")  # the name of a group that is empty now
    client.ingest("layers", "e", BATCHES["a"], key="new")
    assert client.store("layers").layers == {"a/b": 2, "a/d": 32, "e": 40}
    assert list((service.data / "stores").glob(".*")) == []
    for layer in ("a/b/c", "a", "nowhere", "e/c/0"):
        with pytest.raises(RefusedError, match="has no layer"):
            client.delete_layer("layers", layer)


@pytest.mark.soak
def test_a_layer_that_a_job_reads_is_not_deleted(client: ss.Client) -> None:
    send(client, "read")
    job = client.submit({"kind": "run", "source": "store:read", "follow": {}})
    with pytest.raises(RefusedError, match="cancel it first"):
        client.delete_layer("read", "a/[l]")
    client.cancel(job.id)
    client.wait(job.id)
    client.delete_layer("read", "a/[l]")
    assert client.store("read").layers == {}
    send(client, "read")
    assert client.store("read").layers == {"a/[l]": 32}


def test_a_job_forgets_what_was_withdrawn_and_keeps_all_else_that_it_counted(client: ss.Client, tmp_path: Path) -> None:
    send(client, "apart", "a")
    send(client, "apart", "b")
    named = {"layers": [{"match": "a", "statistics": ["squares"]}, {"match": "b"}]}
    jobs = [client.wait(client.submit({"kind": "run", "source": "store:apart", **more})).id for more in ({}, named)]
    for job in jobs:
        client.fetch(job, tmp_path / job)
    client.delete_layer("apart", "b")
    client.ingest("apart", "b", BATCHES["a"], key="a")
    client.ingest("apart", "c", BATCHES["a"], key="a")
    client.withdraw("apart", "a", "b")
    for job in jobs:
        client.forget(job)
        after = client.wait(job)
        assert (after.message, after.results) == ("done; 8 rows forgotten", 2)
        client.fetch(job, tmp_path / f"{job}-after")
        assert counted(client, job, "a") == exact(WITHOUT_B)
        assert counted(client, job, "b") == exact(BATCHES)
        before, now = (files_in(tmp_path / name) for name in (job, f"{job}-after"))
        assert before.keys() == now.keys()
        changed = [name for name in before if before[name] != now[name]]
        assert sorted(changed) == ["correctors/a.safetensors", "manifest.json", "state/a.safetensors"]


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def following(client: ss.Client, store: str, **more: Any) -> str:
    """A job that follows the store and has counted all that was sent to it."""
    send(client, store)
    job = client.submit({"kind": "run", "source": f"store:{store}", "follow": more})
    wait_until(lambda: client.job(job.id).rows == 32 and client.job(job.id).results is not None)
    return job.id


def test_a_job_that_is_cancelled_after_a_withdrawal_forgets_it_first(client: ss.Client) -> None:
    job = following(client, "cancels")
    assert client.withdraw("cancels", "a/[l]", "b").jobs == []
    client.cancel(job)
    after = client.wait(job)
    assert (after.state, after.message) == (
        "cancelled",
        "cancelled; its results so far are retained; 8 rows forgotten",
    )
    assert counted(client, job) == exact(WITHOUT_B)
    assert client.withdraw("cancels", "a/[l]", "d").jobs == [job]


def test_a_job_ends_while_batches_are_withdrawn_all_the_time(client: ss.Client) -> None:
    job = following(client, "steadily", idle=2)

    def has_ended() -> bool:
        client.withdraw("steadily", "a/[l]", "b")  # again, which is as another one for the job
        return client.job(job).state == "done"

    wait_until(has_ended)
    assert client.job(job).message == "done; 8 rows forgotten"
    assert counted(client, job) == exact(WITHOUT_B)


def test_a_job_of_which_all_was_withdrawn_says_so(client: ss.Client) -> None:
    client.ingest("emptied", "l", BATCHES["a"], key="a")
    client.withdraw("emptied", "l", "a")
    job = client.wait(client.submit({"kind": "run", "source": "store:emptied"}))
    assert job.message == "done; 1 layer; no rows of l: all their batches were withdrawn, or none has arrived"


def test_a_job_that_counted_an_earlier_layer_of_the_name_neither_forgets_nor_is_named(client: ss.Client) -> None:
    for layer in ("a/[l]", "other"):
        send(client, "relayered", layer)
    earlier = client.wait(client.submit({"kind": "run", "source": "store:relayered"}))
    client.delete_layer("relayered", "a/[l]")
    send(client, "relayered")
    later = client.wait(client.submit({"kind": "run", "source": "store:relayered"}))
    assert client.withdraw("relayered", "a/[l]", "b").jobs == [later.id]
    assert client.withdraw("relayered", "other", "b").jobs == [earlier.id, later.id]
    for job in (earlier, later):
        client.forget(job)
    assert client.wait(earlier).message == "done; 8 rows forgotten"
    assert client.wait(later).message == "done; 16 rows forgotten"
    assert counted(client, earlier.id) == exact(BATCHES)
    assert counted(client, later.id) == counted(client, earlier.id, "other") == exact(WITHOUT_B)


def test_a_job_that_cannot_forget_says_what_its_client_can_do(service: Served, client: ss.Client) -> None:
    send(client, "altered")
    job = client.wait(client.submit({"kind": "run", "source": "store:altered"}))
    client.withdraw("altered", "a/[l]", "b")
    for chunk in (service.data / "stores/altered/a/[l]/c").rglob("*"):
        if chunk.is_file():
            chunk.write_bytes(chunk.read_bytes()[::-1])
    client.forget(job)
    after = client.wait(job)
    assert (after.state, after.results) == ("done", 1)
    assert after.message.startswith("nothing was forgotten: ")
    assert "; submit the job again" in after.message
    assert "--" not in after.message
