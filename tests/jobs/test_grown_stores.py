"""Stores that have grown between two outputs: merging counts none of their rows twice, and asks where nothing tells one
store that has grown from two of one name.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from stores import Array, build_store, samples

from streamstats.calibration.recorder import Recorder
from streamstats.errors import DataError, MismatchError
from streamstats.jobs.compare import compare
from streamstats.jobs.forget import forget
from streamstats.jobs.job import Job
from streamstats.jobs.merge import merge
from streamstats.jobs.run import run
from streamstats.jobs.status import status
from streamstats.jobs.verify import verify
from streamstats.outputs.manifest import Manifest, read_manifest
from streamstats.outputs.results import read_states, write_results
from streamstats.outputs.stores import from_one, located

VALUES = samples(100, 8)


def recorded(store: Path, values: Array, layer: str = "fc", **options: Any) -> None:
    """As versions before UUIDs did."""
    with Recorder(store, **options) as recorder:
        recorder.append(layer, values)
    attributes = zarr.open_array(str(store), path=layer).attrs
    attributes["streamstats"] = {name: said for name, said in attributes["streamstats"].items() if name != "uuid"}


def written(store: Path, values: Array) -> None:
    """As zarr's `append` does, into one chunk that has room for more."""
    if not store.exists():
        build_store(store, {"fc": values[:0]}, chunks=(500, 8))
    zarr.open_array(str(store), path="fc").append(values)


def grown(folder: Path, write: Callable[[Path, Array], None] = recorded) -> Path:
    """A store of 100 rows in a single chunk, of which `last` counted 95 before the others were appended."""
    store = folder / "a.zarr"
    write(store, VALUES[:95])
    run(Job(str(store), str(folder / "last")))
    write(store, VALUES[95:])
    return store


def state(output: Path) -> bytes:
    return (output / "state/fc.safetensors").read_bytes()


@pytest.mark.parametrize("write", [recorded, written])
@pytest.mark.parametrize(("rows", "twice"), [((90, None), "90:95"), (None, "0:95")], ids=str)
def test_rows_that_a_store_had_before_it_grew_are_not_counted_twice(
    tmp_path: Path, write: Callable[[Path, Array], None], rows: tuple[int, None] | None, twice: str
) -> None:
    store = grown(tmp_path, write)
    run(Job(str(store), str(tmp_path / "tonight"), rows=rows))
    for order in (("last", "tonight"), ("tonight", "last")):
        with pytest.raises(MismatchError, match=rf"rows {twice} are counted in .*{order[0]}, too, and nothing proves"):
            merge([tmp_path / each for each in order], tmp_path / "both")
    assert not (tmp_path / "both").exists()


def test_the_error_names_outputs_rows_and_store_and_what_it_tells_to_do_works(tmp_path: Path) -> None:
    store = grown(tmp_path)
    outputs = [tmp_path / "last", tmp_path / "tonight"]
    job = Job(str(store), str(outputs[1]), rows=(90, None))
    run(job)
    said = r"tonight: layer fc: rows 90:95 are counted in .*last, too, .*`rows: \"95:\"`.*add --different-stores"
    with pytest.raises(MismatchError, match=said):
        merge(outputs, tmp_path / "both")
    assert merge(outputs, tmp_path / "of-two", different_stores=True)["fc"].rows == 105
    run(replace(job, rows=(95, None)), restart=True)
    run(replace(job, rows=None, output=str(tmp_path / "once")))
    for number, order in enumerate((outputs, outputs[::-1])):
        found = merge(order, tmp_path / str(number))["fc"]
        assert (found.covered, len(found.sources)) == (((0, 100),), 1)
        assert state(tmp_path / str(number)) == state(tmp_path / "once")


def test_rows_that_others_append_are_merged_if_no_row_is_in_both(tmp_path: Path) -> None:
    store = grown(tmp_path, written)
    run(Job(str(store), str(tmp_path / "tonight"), rows=(95, None)))
    assert merge([tmp_path / "last", tmp_path / "tonight"], tmp_path / "both")["fc"].rows == 100


def test_a_store_that_has_grown_is_refused_beside_what_was_merged_from_it(tmp_path: Path) -> None:
    store = grown(tmp_path)
    recorded(tmp_path / "b.zarr", samples(40, 8, seed=1))
    run(Job(str(tmp_path / "b.zarr"), str(tmp_path / "b")))
    merge([tmp_path / "last", tmp_path / "b"], tmp_path / "before")
    for output, rows in (("tonight", (90, None)), ("later", (95, None))):
        run(Job(str(store), str(tmp_path / output), rows=rows))
    with pytest.raises(MismatchError, match=r"rows 90:95 are counted in .*before, too, and nothing proves"):
        merge([tmp_path / "before", tmp_path / "tonight"], tmp_path / "all")
    assert merge([tmp_path / "before", tmp_path / "later"], tmp_path / "all")["fc"].rows == 140


def test_a_chunk_that_was_filled_after_an_output_counted_it_proves_nothing_of_what_was_merged(tmp_path: Path) -> None:
    store, rows = tmp_path / "a.zarr", samples(13, 8)
    chunk = 10 * rows[0].nbytes
    outputs = {"before": (6, 8), "after": (12, 13), "again": (6, 10)}
    for start, stop, names in ((0, 8, ["before"]), (8, 13, ["after", "again"])):
        recorded(store, rows[start:stop], chunk_bytes=chunk)
        for name in names:
            run(Job(str(store), str(tmp_path / name), rows=outputs[name]))
    assert merge([tmp_path / "before", tmp_path / "after"], tmp_path / "both")["fc"].covered == ((6, 8), (12, 13))
    for order in (("both", "again"), ("again", "both")):
        with pytest.raises(MismatchError, match=r"rows 6:8 are counted in .*, too, and nothing proves"):
            merge([tmp_path / each for each in order], tmp_path / "all")


@pytest.mark.parametrize("killed", ["last", "tonight"])
def test_a_first_run_that_was_killed_does_not_say_where_its_store_lies(tmp_path: Path, killed: str) -> None:
    run(Job(str(grown(tmp_path)), str(tmp_path / "tonight")))
    (tmp_path / killed / "manifest.json").unlink()
    with pytest.raises(MismatchError, match=r"rows 0:95 are counted in .*last, too, and nothing proves"):
        merge([tmp_path / "last", tmp_path / "tonight"], tmp_path / "both")


def test_what_first_runs_that_were_killed_have_counted_is_merged_and_may_still_be_of_any_store(tmp_path: Path) -> None:
    run(Job(str(grown(tmp_path)), str(tmp_path / "tonight")))
    recorded(tmp_path / "b.zarr", samples(40, 8, seed=1))
    run(Job(str(tmp_path / "b.zarr"), str(tmp_path / "b")))
    for killed in ("last", "b"):
        (tmp_path / killed / "manifest.json").unlink()
    merge([tmp_path / "last", tmp_path / "b"], tmp_path / "both", different_stores=True)
    assert status(tmp_path / "both").layers[0].counted == 135
    with pytest.raises(MismatchError, match=r"rows 0:40 are counted in .*both, too, and nothing proves"):
        merge([tmp_path / "both", tmp_path / "tonight"], tmp_path / "all")


def of_two_sites(folder: Path, *layers: str) -> list[Path]:
    """The outputs of two stores of one name: `conv` fills chunks of 4 rows, `fc` has room for more in its only one."""
    store = folder / "calibration.zarr"
    sizes = {"conv": (12, 3), "fc": (10, 1)}
    for site in ("site1", "site2"):
        for layer in layers:
            values = samples(*sizes[layer], seed=len(site + layer) + int(site[-1]))
            recorded(store, values, layer, chunk_bytes=4 * 3 * 4)
        run(Job(str(store), str(folder / site)))
        shutil.rmtree(store)
    return [folder / "site1", folder / "site2"]


def test_a_full_chunk_that_differs_proves_two_stores_of_one_name_for_all_of_their_layers(tmp_path: Path) -> None:
    outputs = of_two_sites(tmp_path, "conv", "fc")
    merged = merge(outputs, tmp_path / "all")
    assert {name: found.rows for name, found in merged.items()} == {"conv": 24, "fc": 20}
    assert not compare(*outputs).same_stores


def test_files_of_one_size_and_time_that_differ_in_content_do_not_make_two_stores_one(tmp_path: Path) -> None:
    """As in stores that were unpacked from archives that give all files one time."""
    for name, seed in (("a", 1), ("b", 2)):
        store = build_store(tmp_path / f"{name}.zarr", {"fc": samples(8, 3, seed=seed)}, compressors=None)
        for path in store.rglob("*"):
            os.utime(path, ns=(0, 0))
        run(Job(str(store), str(tmp_path / name)))
    assert merge([tmp_path / "a", tmp_path / "b"], tmp_path / "all")["fc"].rows == 16


def test_without_a_full_chunk_the_user_says_that_there_are_two_stores(tmp_path: Path) -> None:
    outputs = of_two_sites(tmp_path, "fc")
    with pytest.raises(MismatchError, match=r"rows 0:10 are counted in .*site1, too, and nothing proves"):
        merge(outputs, tmp_path / "all")
    assert merge(outputs, tmp_path / "all", different_stores=True)["fc"].rows == 20


def test_what_an_older_state_does_not_say_is_not_taken_for_a_proof(tmp_path: Path) -> None:
    outputs = of_two_sites(tmp_path, "conv")
    merge(outputs, tmp_path / "all")
    for output in outputs:
        manifest, found = read_manifest(output), read_states(output, ["conv"])["conv"]
        assert manifest is not None
        older = replace(found, sources=(replace(found.source, file_rows=0),))
        write_results(output, manifest.sources, {"conv": older})
    with pytest.raises(MismatchError, match=r"rows 0:12 are counted in .*site1, too, and nothing proves"):
        merge(outputs, tmp_path / "again")


def with_uuid(store: Path, values: Array) -> None:
    with Recorder(store) as recorder:
        recorder.append("fc", values)


def test_a_uuid_tells_two_stores_of_one_name(tmp_path: Path) -> None:
    store = tmp_path / "calibration.zarr"
    for site in (1, 2):
        with_uuid(store, samples(10, 1, seed=site))
        run(Job(str(store), str(tmp_path / str(site))))
        shutil.rmtree(store)
    merged = merge([tmp_path / "1", tmp_path / "2"], tmp_path / "all")["fc"]
    assert (merged.rows, {len(each.uuid) for each in merged.sources}) == (20, {32})


def test_a_uuid_tells_a_store_that_was_moved_after_it_has_grown(tmp_path: Path) -> None:
    grown(tmp_path, with_uuid).rename(tmp_path / "b.zarr")
    for rows in ((90, None), (95, None)):
        run(Job(str(tmp_path / "b.zarr"), str(tmp_path / str(rows[0])), rows=rows))
    for different in (False, True):
        with pytest.raises(MismatchError, match=r"rows 90:95 are counted in both; .*, as with `rows: \"95:\"`"):
            merge([tmp_path / "last", tmp_path / "90"], tmp_path / "both", different_stores=different)
    assert merge([tmp_path / "last", tmp_path / "95"], tmp_path / "both")["fc"].covered == ((0, 100),)


def test_a_copy_that_somebody_wrote_into_may_be_one_store_or_another(tmp_path: Path) -> None:
    with Recorder(tmp_path / "a.zarr", chunk_bytes=4 * 32) as recorder:
        recorder.append("fc", VALUES[:10])
    shutil.copytree(tmp_path / "a.zarr", tmp_path / "b.zarr")
    zarr.open_array(str(tmp_path / "b.zarr"), path="fc")[:] = samples(10, 8, seed=1)
    outputs = [tmp_path / "a", tmp_path / "b"]
    for output in outputs:
        run(Job(f"{output}.zarr", str(output)))
    with pytest.raises(MismatchError, match=r"rows 0:10 are counted in .*nothing proves"):
        merge(outputs, tmp_path / "both")
    assert merge(outputs, tmp_path / "both", different_stores=True)["fc"].rows == 20


def test_a_store_that_was_recorded_anew_is_not_counted_into_what_was_counted_before(tmp_path: Path) -> None:
    """It is longer, and its only chunk had room for more: without UUIDs, its rows are those that were appended."""
    store, job = tmp_path / "a.zarr", Job(str(tmp_path / "a.zarr"), str(tmp_path / "out"))
    for rows, value in ((100, 1.0), (200, 5.0)):
        shutil.rmtree(store, ignore_errors=True)
        with_uuid(store, np.full((rows, 8), value, np.float32))
        if value == 1:
            run(job)
    with pytest.raises(DataError, match=r"^layer fc: it was recorded anew since it was counted; count every"):
        run(job)
    with pytest.raises(DataError, match="it was recorded anew"):
        forget(job, (0, 1))
    assert [each.problem for each in verify(job)] == ["it was recorded anew since it was counted"]
    kept = run(job, accept_changes=True).statistics["fc"]
    assert (kept.mean.tolist(), str(kept.source.accepted)) == ([3.0] * 8, "0:100")
    assert run(job, restart=True).statistics["fc"].mean.tolist() == [5.0] * 8


@pytest.mark.parametrize("uuid", ["", "0" * 31, "G" * 32, 7, None, ["0" * 32]], ids=str)
def test_what_is_no_uuid_is_refused_or_none(tmp_path: Path, uuid: object) -> None:
    with_uuid(tmp_path / "a.zarr", VALUES)
    attributes = zarr.open_array(str(tmp_path / "a.zarr"), path="fc").attrs
    attributes["streamstats"] = {**attributes["streamstats"], "uuid": uuid}
    job = Job(str(tmp_path / "a.zarr"), str(tmp_path / "out"))
    if not uuid:
        assert run(job).statistics["fc"].source.uuid == ""
    else:
        with pytest.raises(DataError, match=r"layer fc: .*uuid is .*, expected 32 hex digits"):
            run(job)


def test_stores_at_two_places_are_two(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        recorded(tmp_path / f"{name}.zarr", samples(9, 8, seed=seed))
        run(Job(str(tmp_path / f"{name}.zarr"), str(tmp_path / name)))
    assert merge([tmp_path / "a", tmp_path / "b"], tmp_path / "all")["fc"].rows == 18


def test_a_store_is_compared_with_itself_after_it_has_grown(tmp_path: Path) -> None:
    store = grown(tmp_path)
    run(Job(str(store), str(tmp_path / "tonight"), rows=(95, None)))
    found = compare(tmp_path / "last", tmp_path / "tonight")
    assert (found.same_stores, found.same_rows) == (True, False)


@pytest.mark.parametrize(
    ("mine", "theirs", "may"),
    [
        ("a.zarr", "./a.zarr", True),
        ("a.zarr", "{}/a.zarr", True),
        ("../nights/a.zarr", "a.zarr", True),
        ("configs/../a.zarr", "{}/a.zarr", True),
        ("configs/../site1/a.zarr", "{}/a.zarr", False),
        ("site1/a.zarr", "site2/a.zarr", False),
        ("{}/site1/a.zarr", "{}/a.zarr", False),
        ("{}/link/a.zarr", "{}/a.zarr", True),
        ("s3://site1/a.zarr", "s3://site2/a.zarr", False),
        ("s3://site1/a.zarr", "s3://site1/a.zarr", True),
        ("a.zarr", "ba.zarr", False),
        ("..a.zarr", "a.zarr", False),
        (".", "{}/a.zarr", True),
    ],
)
def test_locations_may_be_one_although_they_are_named_differently(
    tmp_path: Path, mine: str, theirs: str, *, may: bool
) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    grown(tmp_path)
    found = read_states(tmp_path / "last", ["fc"])["fc"]
    later = replace(found, sources=(replace(found.source, files=found.source.files + 1),))
    named = [Manifest({}, (name.format(tmp_path),)) for name in (mine, theirs)]
    outputs = [located(each, manifest).source for each, manifest in zip((found, later), named, strict=True)]
    assert from_one(*outputs) is (None if may else False)


def test_a_link_in_this_folder_is_followed_even_if_it_is_named_by_a_relative_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("latest").symlink_to("a.zarr")
    recorded(Path("a.zarr"), VALUES[:95])
    run(Job("latest", "last"))
    recorded(Path("a.zarr"), VALUES[95:])
    for output, name in (("tonight", "a.zarr"), ("later", str(tmp_path / "a.zarr"))):
        run(Job(name, output))
        with pytest.raises(MismatchError, match=r"rows 0:95 are counted in last, too, and nothing proves"):
            merge(["last", output], "both")
