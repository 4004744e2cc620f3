"""Names, tags and notes of jobs, and the filters that find them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from served import STORE, Served

import streamstats as ss
from streamstats.service.client import RefusedError
from streamstats.service.database import Database
from streamstats.service.filters import Wanted
from streamstats.service.job_table import JobTable, Submitted

REQUEST = {"kind": "run", "source": STORE}
NAME, NOTE = 'Größe "50 %_" <b>', "two\nlines"


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> JobTable:
    """The jobs 0, 1 and 2, of two submitters and two sources; the first two are done."""
    table = JobTable(Database(tmp_path_factory.mktemp("finding") / "db"))
    for number, (submitter, source, about) in enumerate(
        [
            ("ann", STORE, {"name": NAME, "tags": ["ci", "main"], "note": NOTE}),
            ("ben", STORE, {"tags": ["ci", "branch:x"]}),
            ("ann", "other.zarr", {}),
        ]
    ):
        request = {**REQUEST, "submitter": submitter, "source": source, "priority": 0}
        table.add(str(number), Submitted(request, None, about))
        if number < 2:
            table.update(str(number), state="done", ended=1.0)
    return table


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({}, [2, 1, 0]),
        ({"submitter": "ann"}, [2, 0]),
        ({"submitter": "an"}, []),
        ({"sources": ["other.zarr"]}, [2]),
        ({"sources": ["other.zarr", STORE]}, [2, 1, 0]),
        ({"tags": ["ci"]}, [1, 0]),
        ({"tags": ["ci", "main"]}, [0]),
        ({"tags": ["c"]}, []),
        ({"states": ["done"]}, [1, 0]),
        ({"states": ["queued", "done"], "submitter": "ben"}, [1]),
        ({"states": ["failed"]}, []),
        ({"text": "50 %_"}, [0]),
        ({"text": "%"}, [0]),
        ({"text": "BRANCH:"}, [1]),
        ({"text": "Two\nL"}, [0]),
        ({"text": "OTHER."}, [2]),
        ({"text": "ben"}, [1]),
        ({"text": "' OR 1=1 --"}, []),
        ({"text": "ci", "submitter": "ann", "tags": ["main"], "sources": [STORE], "states": ["done"]}, [0]),
    ],
)
def test_filters_find_the_jobs_for_which_all_of_them_hold(
    table: JobTable, wanted: dict[str, Any], expected: list[int]
) -> None:
    found, following = table.newest(Wanted(**wanted))
    assert [job.id for job in found] == [str(number) for number in expected]
    assert following is None


def test_pages_of_a_filtered_list_miss_nothing(table: JobTable) -> None:
    ann = Wanted(submitter="ann")
    (first,), following = table.newest(ann, limit=1)
    assert following is not None
    (second,), last = table.newest(ann, limit=1, before=following)
    assert (first.id, second.id, last) == ("2", "0", None)


def test_a_job_has_the_name_tags_and_note_of_its_request_and_is_found_by_them(client: ss.Client) -> None:
    job = client.submit({**REQUEST, "name": NAME, "tags": ["found", "found", "x"], "note": NOTE})
    assert (job.name, job.tags, job.note) == (NAME, ["found", "x"], NOTE)
    wanted: dict[str, Any] = {"tag": ["x", "found"], "submitter": "admin", "source": STORE, "text": "50 %"}
    states = ["queued", "running", "done"]
    assert [each.id for each in client.jobs(state=states, **wanted).jobs] == [job.id]
    assert client.jobs(state=states, **{**wanted, "text": "51 %"}).jobs == []
    assert client.jobs(state="cancelled", **wanted).jobs == []


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
    ],
)
def test_what_cannot_be_a_name_tag_or_note_is_refused(client: ss.Client, about: dict[str, object]) -> None:
    with pytest.raises(RefusedError, match=f"status 422.*{next(iter(about))}"):
        client.submit({**REQUEST, **about})


def test_jobs_of_an_older_database_have_no_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from streamstats.service import database

    with monkeypatch.context() as older:
        older.setattr(database, "MIGRATIONS", database.MIGRATIONS[:1])
        with database.Database(tmp_path / "db").writing() as connection:
            connection.execute(
                "INSERT INTO jobs (id, submitter, request, kind, submitted, follows) "
                "VALUES ('a', 'ann', '{\"source\": \"x\"}', 'run', 0, 0)"
            )
    job = JobTable(database.Database(tmp_path / "db")).get("a")
    assert (job.name, job.tags, job.note, job.submitter) == ("", [], "", "ann")
