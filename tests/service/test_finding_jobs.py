"""Names, tags and notes of jobs, and the filters that find them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from served import STORE, Served, served, small_store

import streamstats as ss
from streamstats.service.client import RefusedError
from streamstats.service.messages import JobView

REQUEST = {"kind": "run", "source": STORE}
NAME, NOTE = 'Größe "50 %_" <b>', "two\nlines"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, list[JobView]]]:
    """A service with three jobs that are done, of two submitters and two sources."""
    with served(tmp_path_factory.mktemp("describing")) as service, service.client() as client:
        small_store(service.roots / "other.zarr")
        jobs = [
            client.submit({**REQUEST, "submitter": "ann", "name": NAME, "tags": ["ci", "main"], "note": NOTE}),
            client.submit({**REQUEST, "submitter": "ben", "tags": ["ci", "ci", "branch:x"]}),
            client.submit({**REQUEST, "submitter": "ann", "source": "other.zarr"}),
        ]
        yield service, [client.wait(job.id) for job in jobs]


def test_a_job_has_the_name_tags_and_note_of_its_request(found: tuple[Served, list[JobView]]) -> None:
    first, second, third = found[1]
    assert (first.name, first.tags, first.note) == (NAME, ["ci", "main"], NOTE)
    assert (second.name, second.tags, second.note) == ("", ["ci", "branch:x"], "")
    assert (third.name, third.tags, third.note) == ("", [], "")


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({}, [2, 1, 0]),
        ({"submitter": "ann"}, [2, 0]),
        ({"submitter": "an"}, []),
        ({"source": "other.zarr"}, [2]),
        ({"tag": "ci"}, [1, 0]),
        ({"tag": ["ci", "main"]}, [0]),
        ({"tag": "c"}, []),
        ({"state": "done"}, [2, 1, 0]),
        ({"state": ["failed", "done"], "submitter": "ben"}, [1]),
        ({"state": "failed"}, []),
        ({"text": "50 %_"}, [0]),
        ({"text": "%"}, [0]),
        ({"text": "BRANCH:"}, [1]),
        ({"text": "Two\nL"}, [0]),
        ({"text": "OTHER."}, [2]),
        ({"text": "ben"}, [1]),
        ({"text": "' OR 1=1 --"}, []),
        ({"text": "ci", "submitter": "ann", "tag": "main", "source": STORE, "state": "done"}, [0]),
    ],
)
def test_filters_find_the_jobs_for_which_all_of_them_hold(
    found: tuple[Served, list[JobView]], wanted: dict[str, str | list[str]], expected: list[int]
) -> None:
    service, jobs = found
    with service.client() as client:
        assert [job.id for job in client.jobs(**wanted).jobs] == [jobs[index].id for index in expected]  # type: ignore[arg-type]


def test_pages_of_a_filtered_list_miss_nothing(found: tuple[Served, list[JobView]]) -> None:
    service, jobs = found
    with service.client() as client:
        page = client.jobs(submitter="ann", limit=1)
        assert [job.id for job in page.jobs] == [jobs[2].id]
        rest = client.jobs(submitter="ann", limit=1, before=page.next)
        assert ([job.id for job in rest.jobs], rest.next) == ([jobs[0].id], None)


def test_what_a_job_is_called_can_change_and_what_it_does_cannot(service: Served, client: ss.Client) -> None:
    job = client.submit({**REQUEST, "name": "first", "tags": ["a"]}, key="described")
    assert client.describe(job.id, note="looks good").name == "first"
    changed = client.describe(job.id, name="second", tags=[])
    assert (changed.name, changed.tags, changed.note) == ("second", [], "looks good")
    assert client.submit({**REQUEST, "name": "first", "tags": ["a"]}, key="described").id == job.id
    with service.http() as http:
        assert http.patch(f"/api/v1/jobs/{job.id}", json={"priority": 3}).status_code == 422
        assert http.patch(f"/api/v1/jobs/{job.id}", content=b" " * 2**21).status_code == 413
    with pytest.raises(RefusedError, match="there is no job"):
        client.describe("0" * 16, name="x")


@pytest.mark.parametrize(
    "about",
    [
        {"name": "x" * 101},
        {"name": "two\nlines"},
        {"name": "\x9b31m"},
        {"name": None},
        {"tags": ["with space"]},
        {"tags": [""]},
        {"tags": "ci"},
        {"tags": [f"l{number}" for number in range(21)]},
        {"note": "x" * 4001},
        {"note": "\0"},
        {"note": "\ud800"},
    ],
)
def test_what_cannot_be_a_name_tag_or_note_is_refused(client: ss.Client, about: dict[str, object]) -> None:
    with pytest.raises((RefusedError, UnicodeEncodeError)):
        client.submit({**REQUEST, **about})


def test_jobs_of_an_older_database_have_no_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from streamstats.service import database
    from streamstats.service.job_table import JobTable

    with monkeypatch.context() as older:
        older.setattr(database, "MIGRATIONS", database.MIGRATIONS[:1])
        with database.Database(tmp_path / "db").writing() as connection:
            connection.execute(
                "INSERT INTO jobs (id, submitter, request, kind, submitted, follows) "
                "VALUES ('a', 'ann', '{\"source\": \"x\"}', 'run', 0, 0)"
            )
    job = JobTable(database.Database(tmp_path / "db")).get("a")
    assert (job.name, job.tags, job.note, job.submitter) == ("", [], "", "ann")
