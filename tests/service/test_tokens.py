"""Tokens with names and roles: who may do what, whose things are, and the log of what was done."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from served import STORE, Served, npy, served, wait_until

import streamstats as ss
from streamstats.service.audit import Refusals
from streamstats.service.client import RefusedError
from streamstats.service.clock import Clock
from streamstats.service.database import Database
from streamstats.service.errors import ForbiddenError
from streamstats.service.messages import RunRequest
from streamstats.service.service import submitter
from streamstats.service.tokens import Caller, Role, TokenFile, Tokens

REQUEST = {"kind": "run", "source": STORE}
ROLES = ("read", "submit", "admin")
BLOCK = np.ones((4, 2), np.float32)


@pytest.fixture(scope="session")  # a worker may come back to this file
def people(service: Served) -> Iterator[dict[str, ss.Client]]:
    """Clients: the first token, and ann and ben, who submit, rita, who reads, and olga, an admin."""
    roles = {"ann": "submit", "ben": "submit", "rita": "read", "olga": "admin"}
    with service.client() as admin:
        secrets = {name: admin.new_token(name, role) for name, role in roles.items()}  # type: ignore[arg-type]
        clients = {name: ss.Client(service.url, secret) for name, secret in secrets.items()}
        yield {"admin": admin, **clients}
    for client in clients.values():
        client.close()


def refused(status: int) -> pytest.RaisesExc[RefusedError]:
    return pytest.raises(RefusedError, match=f"status {status}", check=lambda error: error.status == status)


# Who may do what


def test_every_path_asks_for_a_role_and_a_lower_one_is_refused(service: Served, people: dict[str, ss.Client]) -> None:
    """What the description has is asked for with each role; what it does not have cannot be reached."""
    document = httpx.get(f"{service.url}/api/v1/openapi.json").json()
    operations = [(method.upper(), path) for path, methods in document["paths"].items() for method in methods]
    assert len(operations) > 30
    expected = {operation: needed(*operation) for operation in operations}
    assert set(expected.values()) == {*ROLES, None}
    for role, name in (("read", "rita"), ("submit", "ann")):
        for (method, path), least in expected.items():
            if least is not None and ROLES.index(least) > ROLES.index(role):
                url = path.replace("{job}", "0" * 16).replace("{upload}", "0" * 64).replace("{layer}", "l")
                answer = people[name]._http.request(method, url.replace("{", "").replace("}", ""))
                assert answer.status_code == 403, (role, method, path, answer.text)
                assert f"needs the role {least}" in answer.json()["detail"]


def needed(method: str, path: str) -> str | None:
    """The role that a person would expect."""
    if path in ("/healthz", "/readyz"):
        return None
    if path.startswith(("/api/v1/tokens", "/api/v1/audit", "/api/v1/prune")):
        return "admin"
    return "read" if method == "GET" or path.endswith(("/links", "/corrections")) else "submit"


@pytest.mark.parametrize(
    ("named", "name", "role", "expected"),
    [
        (None, "ann", "submit", "ann"),
        ("ann", "ann", "submit", "ann"),
        ("ben", "ann", "submit", None),
        (None, "olga", "admin", "olga"),
        ("ben", "olga", "admin", "ben"),
    ],
)
def test_the_submitter_is_who_the_token_says(named: str | None, name: str, role: Role, expected: str | None) -> None:
    request = RunRequest(kind="run", source=STORE, submitter=named, tags=[], notify=[])
    if expected is None:
        with pytest.raises(ForbiddenError, match="leave `submitter` out"):
            submitter(request, Caller(name, role))
    else:
        assert submitter(request, Caller(name, role)) == expected


def test_a_job_is_cancelled_changed_and_deleted_by_its_owner_or_an_admin(people: dict[str, ss.Client]) -> None:
    ann, ben = people["ann"], people["ben"]
    job = ann.submit(REQUEST)
    assert job.submitter == "ann"
    with refused(403):
        ben.submit({**REQUEST, "submitter": "ann"})
    for act in (ben.cancel, ben.delete, ben.forget, lambda job: ben.describe(job, name="x")):
        with refused(403):
            act(job.id)
    assert ann.describe(job.id, name="mine").name == "mine"
    assert people["olga"].describe(job.id, note="hers").note == "hers"
    ann.wait(job.id)
    assert people["rita"].layers(job.id)["layers"]
    ann.delete(job.id)


def test_a_store_is_of_whoever_sent_to_it_first_and_all_may_append(people: dict[str, ss.Client]) -> None:
    ann, ben = people["ann"], people["ben"]
    ann.ingest("anns", "l", BLOCK, key="a")
    ben.ingest("anns", "l", BLOCK, key="b")
    found = ben.store("anns")
    assert (found.owner, found.rows) == ("ann", 8)
    assert [(each.key, each.sender) for each in ben.batches("anns", "l")] == [("a", "ann"), ("b", "ben")]
    for act in (lambda: ben.delete_store("anns"), lambda: ben.delete_layer("anns", "l")):
        with refused(403):
            act()
    with refused(403):
        ben.withdraw("anns", "l", "a")
    assert ben.withdraw("anns", "l", "b").batch.withdrawn  # his own
    assert ann.withdraw("anns", "l", "a").batch.withdrawn
    ann.delete_store("anns")
    ben.ingest("anns", "l", BLOCK)
    assert ben.store("anns").owner == "ben"
    people["admin"].delete_store("anns")


def test_an_upload_is_there_until_everybody_who_sent_it_has_deleted_it(
    people: dict[str, ss.Client], tmp_path: Path
) -> None:
    (tmp_path / "x").write_bytes(b"what ann and ben have")
    ann, ben = people["ann"], people["ben"]
    name = ann.upload(tmp_path / "x").id
    with refused(403):
        ben._asked("DELETE", f"/uploads/{name}")
    assert ben.upload(tmp_path / "x").owners == ["ann", "ben"]
    ann._asked("DELETE", f"/uploads/{name}")
    assert {each["id"]: each["owners"] for each in ben._asked("GET", "/uploads").json()}[name] == ["ben"]
    people["olga"]._asked("DELETE", f"/uploads/{name}")
    assert name not in [each["id"] for each in ben._asked("GET", "/uploads").json()]


def test_everybody_is_told_who_they_are(people: dict[str, ss.Client]) -> None:
    assert people["rita"]._json("GET", "")["you"] == {"name": "rita", "role": "read"}
    assert people["admin"]._json("GET", "")["you"] == {"name": "admin", "role": "admin"}


# Making, rotating and revoking, without a restart


def test_a_token_is_made_rotated_and_revoked_without_a_restart(service: Served, people: dict[str, ss.Client]) -> None:
    admin = people["admin"]
    first = admin.new_token("eve", "submit")
    with refused(409):
        admin.new_token("eve", "read")
    with ss.Client(service.url, first) as eve:
        eve.ingest("eves", "l", BLOCK)
    second = admin.rotate_token("eve", overlap=3600)
    for secret in (first, second):  # both are valid for a while
        with ss.Client(service.url, secret) as eve:
            assert eve.store("eves").owner == "eve"
    assert sorted(each.until is None for each in admin.tokens() if each.name == "eve") == [False, True]
    third = admin.rotate_token("eve")
    with ss.Client(service.url, second) as eve, refused(401):
        eve.jobs()
    admin.revoke_token("eve")
    for secret in (first, third):
        with ss.Client(service.url, secret) as eve, refused(401):
            eve.jobs()
    for act in (admin.revoke_token, admin.rotate_token):
        with refused(404):
            act("eve")  # type: ignore[operator]


def test_who_follows_a_job_is_told_no_more_once_their_token_is_revoked(people: dict[str, ss.Client]) -> None:
    admin = people["admin"]
    admin.ingest("followed", "l", BLOCK)
    job = admin.submit({"kind": "run", "source": "store:followed", "follow": {}})
    said: list[str] = []
    with ss.Client(admin.url, admin.new_token("guest", "read"), say=said.append) as guest:
        events = guest.events(job.id)
        assert next(events)[0] == "job"
        admin.revoke_token("guest")
        admin.describe(job.id, note="not for guests")
        notes: list[str] = []
        with refused(401):
            notes.extend(view["note"] for kind, view in events if kind == "job")
        assert "not for guests" not in notes
    assert said == []  # such as that it is tried again
    admin.cancel(job.id)
    admin.wait(job.id)


def test_a_request_that_began_before_its_token_was_revoked_is_completed(people: dict[str, ss.Client]) -> None:
    admin, content = people["admin"], npy(BLOCK)
    headers = {"Idempotency-Key": "late", "Content-Type": "application/octet-stream"}

    def slowly() -> Iterator[bytes]:
        yield content[:10]
        wait_until(lambda: "streamstats_ingests 1.0" in admin._http.get("/metrics").text)  # the request was let in
        admin.revoke_token("leaving")
        yield content[10:]

    with ss.Client(admin.url, admin.new_token("leaving", "submit")) as leaving:
        answer = leaving._http.post("/api/v1/stores/left/layers/l", content=slowly(), headers=headers)
        assert answer.status_code == 201, answer.text
        with refused(401):
            leaving.jobs()
    assert admin.store("left").owner == "leaving"


def test_the_first_token_is_rotated_in_its_file(tmp_path: Path) -> None:
    with served(tmp_path) as service:  # of its own, because the other tests have the token
        before = service.token
        with service.client() as client:
            given = client.rotate_token("admin", overlap=3600)
            assert client.jobs().jobs == []  # with the old secret
            with refused(409):
                client.revoke_token("admin")
        assert given == service.token != before
        assert (service.data / "token").stat().st_mode & 0o077 == 0
        with service.client() as client:
            assert client.new_token("ann")
            client.rotate_token("admin")
        with ss.Client(service.url, before) as client, refused(401):
            client.jobs()
        with service.client() as client:
            assert [each.name for each in client.tokens()] == ["admin", "ann"]


def test_an_old_secret_ends_in_time_whatever_the_wall_clock_says(tmp_path: Path) -> None:
    now, past = 1e9, 0.0
    clock = Clock(lambda: now, lambda: past)
    database, file = Database(tmp_path / "db"), TokenFile(tmp_path / "token")
    tokens = Tokens(database, file, clock)
    old = tokens.new("ann", "read", "admin")
    tokens.rotate("ann", "admin", overlap=60)

    def is_valid(tokens: Tokens) -> bool:
        return tokens.caller(f"Bearer {old}") is not None

    now, past = 1e9 - 86400, 59.0
    tokens.new("ben", "read", "admin")  # which reads the table again
    assert is_valid(tokens)
    assert is_valid(Tokens(database, file, clock))
    past = 60.0
    assert not is_valid(tokens)
    tokens.new("cat", "read", "admin")  # which removes it
    assert not is_valid(Tokens(database, file, clock))


def test_the_database_has_hashes_alone(service: Served, people: dict[str, ss.Client]) -> None:
    secret = people["admin"].new_token("hashed")
    database = service.data / "service.sqlite"
    content = b"".join(each.read_bytes() for each in service.data.glob("service.sqlite*"))
    assert secret.encode() not in content
    with sqlite3.connect(database) as connection:
        (found,) = connection.execute("SELECT digest FROM tokens WHERE name = 'hashed'").fetchone()
    connection.close()
    assert found == hashlib.sha256(secret.encode()).digest()
    assert not [line for line in service.said if secret in line]


@pytest.mark.parametrize("name", ["", "with space", "-x", "x" * 65, "é"])
def test_what_cannot_be_a_name_is_refused(people: dict[str, ss.Client], name: str) -> None:
    with refused(422):
        people["admin"].new_token(name)
    with refused(409):
        people["admin"].new_token("admin")


# The audit log


def test_what_was_done_and_refused_is_in_the_audit_log(people: dict[str, ss.Client]) -> None:
    ann, ben, olga = people["ann"], people["ben"], people["olga"]
    job = ann.submit(REQUEST)
    ann.ingest("audited", "l", BLOCK, key="k")
    ann.withdraw("audited", "l", "k")
    with refused(403):
        ben.delete(job.id)
    with refused(403):
        ben.audit()
    ann.describe(job.id, note="n")
    found = olga.audit(limit=5)
    done = [(each.who, each.method, each.path.removeprefix("/api/v1"), each.status) for each in found.entries]
    assert done == [
        ("ann", "PATCH", f"/jobs/{job.id}", 200),
        ("ben", "GET", "/audit?limit=100", 403),
        ("ben", "DELETE", f"/jobs/{job.id}", 403),
        ("ann", "DELETE", "/stores/audited/batches?layer=l&key=k", 200),
        ("ann", "POST", "/jobs", 201),
    ]
    assert found.entries[-1].made == f"/api/v1/jobs/{job.id}"
    assert all(each.address == "127.0.0.1" and each.request for each in found.entries)
    rest = olga.audit(before=found.next, limit=1000)
    assert max(each.number for each in rest.entries) < min(each.number for each in found.entries)
    assert {each.who for each in olga.audit(who="ben").entries} == {"ben"}


def test_a_reader_cannot_fill_the_audit_log(people: dict[str, ss.Client]) -> None:
    admin = people["admin"]
    with ss.Client(admin.url, admin.new_token("rolf", "read")) as rolf:
        for _ in range(61):
            with refused(403):
                rolf._asked("DELETE", f"/jobs/{'0' * 16}?{'x' * 5000}")
    assert [len(each.path) for each in admin.audit(who="rolf", limit=100).entries] == [1000] * 60


def test_of_many_refusals_of_one_token_some_are_only_counted() -> None:
    now = 0.0
    refusals = Refusals(lambda: now)
    assert [refusals.noted("rita") for _ in range(100)] == [0] * 60 + [None] * 40
    assert refusals.noted("ben") == 0
    now = 59.0
    assert refusals.noted("rita") is None
    now = 60.0
    assert [refusals.noted("rita") for _ in range(2)] == [41, 0]
