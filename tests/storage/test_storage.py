"""Result files: safe names, whole or not at all, the same bytes for the same content, damage noticed."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

import streamstats
from streamstats.errors import DataError, OutputError, UsageError
from streamstats.storage.files import (
    file_digest,
    read_bytes,
    read_json,
    remove,
    remove_folder,
    write_array,
    write_bytes,
    write_json,
)
from streamstats.storage.names import check_layer_name, layer_path
from streamstats.storage.tensors import content_digest, read_tensors, tensors_bytes

# Layer names

tokens = [*"aB.%\\:~ é", "..", "2E", "%2E", "%2F", ".safetensors", "%2Esafetensors", "卷"]
refused_tokens = ["/", "\n", "\0", "\u202e", "\ud800"]
any_names = st.lists(st.sampled_from(tokens + refused_tokens), max_size=8).map("".join) | st.text(max_size=12)

parts = st.lists(st.sampled_from(tokens), min_size=1, max_size=4).map("".join) | st.text(
    st.characters(exclude_categories=["C", "Z"], exclude_characters="/"), min_size=1, max_size=6
)
usable_names = st.lists(parts.filter(lambda part: part not in (".", "..")), min_size=1, max_size=3).map("/".join)


@given(usable_names)
@example("a")
@example("block04/project")
@example("features.0.conv")
@example("a b/ç:*?\\卷")
@example(".hidden/...")
def test_a_usable_layer_name_is_returned_as_it_is(name):
    assert check_layer_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/",
        "/a",
        "a/",
        "a//b",
        ".",
        "..",
        "a/..",
        "../a",
        "a/./b",
        "a/../b",
        "a\nb",
        "a\0",
        "\t",
        "a\u202eb",
        "\ud800",
    ],
)
def test_a_name_that_could_lead_elsewhere_or_does_not_print_is_refused(name):
    for use in (check_layer_name, lambda layer: layer_path(Path("out"), layer)):
        with pytest.raises(UsageError, match="rename the layer") as caught:
            use(name)
        assert repr(name) in str(caught.value)


@given(any_names)
def test_a_layer_never_leaves_the_folder_whatever_its_name(name):
    folder = Path("/results/correctors")
    try:
        path = layer_path(folder, name)
    except UsageError:
        return
    below = os.path.relpath(os.path.normpath(path), folder)
    assert folder / below == path  # nothing for the system to resolve: no '.', no '..'
    assert ".." not in Path(below).parts
    assert path != folder


@given(usable_names)
def test_a_layer_path_is_portable_and_gives_the_name_back(name):
    below = layer_path(Path("out"), name).relative_to("out").as_posix()
    assert set(below) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/%._-~")
    assert below.endswith(".safetensors")
    assert unquote(below.removesuffix(".safetensors")) == name


@given(usable_names, usable_names)
@example("a", "a.safetensors/b")
@example("a", "a/b")
@example("a/b", "a%2Fb")
@example("a.safetensors/b", "a%2Esafetensors/b")
def test_distinct_layers_have_distinct_paths_and_room_for_both(one, other):
    assume(one != other)
    path, other_path = layer_path(Path("out"), one), layer_path(Path("out"), other)
    assert path != other_path
    assert path not in other_path.parents
    assert other_path not in path.parents


def test_a_layer_path_is_as_the_design_says():
    assert layer_path(Path("out"), "block04/project") == Path("out/block04/project.safetensors")
    assert layer_path(Path("out"), "a b/ç:0", ".json") == Path("out/a%20b/%C3%A7%3A0.json")


# Writing, whole or not at all


def files_below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def fail_with(error):
    def fail(*_):
        raise error

    return fail


def test_writing_makes_the_folders_and_replaces_what_was_there(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    write_bytes(path, b"one")
    write_bytes(path, b"")
    write_bytes(path, b"three")
    assert read_bytes(path) == b"three"
    assert files_below(tmp_path) == ["a/b/file"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step, error):
    path = tmp_path / "file"
    write_bytes(path, b"old")
    monkeypatch.setattr(os, step, fail_with(error))
    expected = OutputError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        write_bytes(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert files_below(tmp_path) == ["file"]
    if expected is OutputError:
        assert str(path) in str(caught.value)
        assert "No space left on device" in str(caught.value)
        assert caught.value.__cause__ is error


def test_a_write_that_the_system_cuts_short_leaves_the_old_file_and_nothing_else(tmp_path):
    program = """
import resource, sys
from pathlib import Path
from streamstats.storage.files import write_bytes
from streamstats.errors import OutputError
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_bytes(Path(sys.argv[1]), bytes(100_000))
except OutputError as error:
    print(error)
"""
    write_bytes(tmp_path / "file", b"old")
    printed = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, str(tmp_path / "file")],
        env={**os.environ, "PYTHONPATH": str(Path(streamstats.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "File too large" in printed
    assert (tmp_path / "file").read_bytes() == b"old"
    assert files_below(tmp_path) == ["file"]


@pytest.mark.parametrize("below", ["file/result", "file/more/result"])
def test_a_file_in_place_of_the_folder_is_an_output_error(tmp_path, below):
    (tmp_path / "file").write_bytes(b"old")
    for write in (
        lambda path: write_bytes(path, b"new"),
        lambda path: write_json(path, {}),
        lambda path: write_bytes(path, tensors_bytes({}, {})),
    ):
        with pytest.raises(OutputError, match=r"cannot write .*result: .*; make room or choose another place"):
            write(tmp_path / below)
    assert files_below(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


@pytest.mark.parametrize("target", ["folder", "."])
def test_a_folder_in_place_of_the_file_is_an_output_error(tmp_path, monkeypatch, target):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    with pytest.raises(OutputError, match="cannot write"):
        write_bytes(Path(target), b"new")
    assert files_below(tmp_path) == []


def test_a_name_as_long_as_the_system_allows_can_be_written(tmp_path):
    write_bytes(tmp_path / ("n" * 255), b"content")
    assert read_bytes(tmp_path / ("n" * 255)) == b"content"
    with pytest.raises(OutputError, match="File name too long"):
        write_bytes(tmp_path / ("n" * 256), b"content")


def test_others_may_read_a_result_as_the_umask_allows(tmp_path):
    before = os.umask(0o027)
    try:
        write_bytes(tmp_path / "file", b"content")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_writers_at_the_same_time_leave_one_whole_file_and_readers_see_whole_files(tmp_path):
    path = tmp_path / "file"
    contents = [bytes([letter]) * 100_000 for letter in b"abcdefgh"]
    write_bytes(path, contents[0])

    def write_and_read(content):
        for _ in range(10):
            write_bytes(path, content)
            assert read_bytes(path) in contents

    with ThreadPoolExecutor(len(contents)) as pool:
        list(pool.map(write_and_read, contents))
    assert files_below(tmp_path) == ["file"]


def test_the_file_and_every_folder_made_for_it_are_flushed_to_the_disk(tmp_path, monkeypatch):
    flushed = set()
    fsync = os.fsync

    def recording_fsync(descriptor):
        flushed.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recording_fsync)
    path = tmp_path / "a" / "b" / "file"
    write_bytes(path, b"content")
    places = [tmp_path, tmp_path / "a", tmp_path / "a" / "b", path]
    assert {place.stat().st_ino for place in places} <= flushed


def test_an_array_is_written_whole_and_comes_back(tmp_path):
    array = np.arange(6.0).reshape(2, 3)
    write_array(tmp_path / "folder" / "mean.npy", array)
    np.testing.assert_array_equal(np.load(tmp_path / "folder" / "mean.npy", allow_pickle=False), array)
    assert files_below(tmp_path) == ["folder/mean.npy"]


# Removing and reading


def test_removing_takes_a_file_away_and_does_not_mind_its_absence(tmp_path):
    write_bytes(tmp_path / "file", b"content")
    remove(tmp_path / "file")
    remove(tmp_path / "file")
    assert files_below(tmp_path) == []


def test_what_cannot_be_removed_is_an_output_error(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match=r"cannot remove .*folder"):
        remove(tmp_path / "folder")


def test_removing_a_folder_takes_all_in_it_and_does_not_mind_its_absence(tmp_path):
    write_bytes(tmp_path / "folder" / "below" / "file", b"content")
    remove_folder(tmp_path / "folder")
    remove_folder(tmp_path / "folder")
    assert list(tmp_path.iterdir()) == []
    write_bytes(tmp_path / "file", b"content")
    with pytest.raises(OutputError, match=r"cannot remove .*file"):
        remove_folder(tmp_path / "file")


@pytest.mark.parametrize("read", [read_bytes, read_json, file_digest, lambda path: read_tensors(path, "any")])
def test_what_cannot_be_read_is_a_data_error_that_names_it(tmp_path, read):
    with pytest.raises(DataError, match="absent"):
        read(tmp_path / "absent")
    with pytest.raises(DataError, match="cannot read"):
        read(tmp_path)


def test_a_file_digest_is_the_sha256_of_its_bytes(tmp_path):
    write_bytes(tmp_path / "file", b"abc")
    assert file_digest(tmp_path / "file") == hashlib.sha256(b"abc").hexdigest()


# JSON


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("artifacts")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), json_values, max_size=5))
def test_equal_json_has_equal_bytes_and_comes_back(scratch, document):
    write_json(scratch / "one.json", document)
    write_json(scratch / "two.json", dict(reversed(document.items())))
    assert read_json(scratch / "one.json") == document
    assert read_bytes(scratch / "one.json") == read_bytes(scratch / "two.json")


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b'{"a": 1', b"\xff\xfe{}", b"[1]", b"null", b"3", b'"text"', b"[" * 100_000, b"{}{}"],
)
def test_what_is_not_a_json_object_is_a_data_error(tmp_path, content):
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(DataError, match=r"manifest\.json"):
        read_json(tmp_path / "manifest.json")


# Tensors

FORMAT = {"format": "test/1"}
dtypes = ["float64", "float32", "float16", "int64", "int32", "int8", "uint8", "uint64", "bool", ">f8", ">i4"]


@st.composite
def tensors(draw):
    names = draw(st.lists(st.text(max_size=5).filter(lambda name: name != "__metadata__"), max_size=3, unique=True))
    shapes = array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)
    return {name: draw(arrays(draw(st.sampled_from(dtypes)), shapes)) for name in names}


metadata = st.dictionaries(
    st.text(max_size=5).filter(lambda key: key not in ("format", "sha256")), st.text(max_size=5), max_size=4
).map(lambda drawn: {**drawn, **FORMAT})


@given(tensors(), metadata)
def test_tensors_come_back_with_every_bit_shape_and_kind(scratch, content, metadata):
    path = scratch / "tensors.safetensors"
    write_bytes(path, tensors_bytes(content, metadata))
    found, found_metadata = read_tensors(path, "test/1")
    assert found_metadata == metadata
    assert set(found) == set(content)
    for name, array in content.items():
        native = array.astype(array.dtype.newbyteorder("="))
        assert (found[name].dtype, found[name].shape) == (native.dtype, native.shape)
        assert found[name].tobytes() == native.tobytes()


@given(tensors(), metadata)
def test_equal_tensors_have_equal_bytes_whatever_their_order_in_memory(content, metadata):
    turned = {
        name: np.asarray(array, dtype=array.dtype.newbyteorder(">"), order="F")
        for name, array in reversed(content.items())
    }
    for array in turned.values():
        array.flags.writeable = False
    assert tensors_bytes(turned, dict(reversed(metadata.items()))) == tensors_bytes(content, metadata)


def test_the_header_of_a_tensor_file_is_sorted_json_that_the_library_can_read(tmp_path):
    many = {f"key{number}": "value" for number in range(20, 0, -1)}
    content = tensors_bytes({"b": np.ones(3), "a": np.ones(1, np.int8)}, {**many, **FORMAT})
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert length % 8 == 0  # the tensors stay aligned
    assert list(header) == ["__metadata__", "a", "b"]
    assert list(header["__metadata__"]) == sorted([*many, "format", "sha256"])
    (tmp_path / "file").write_bytes(content)
    assert set(read_tensors(tmp_path / "file", "test/1")[0]) == {"a", "b"}


def test_metadata_under_the_key_of_the_digest_is_refused():
    with pytest.raises(UsageError, match=r"'sha256'.*use another key"):
        tensors_bytes({}, {"sha256": "mine"})


@pytest.mark.parametrize("found", ["test/0", "other/1", "other/2", "", None])
def test_tensors_of_another_format_are_a_data_error_that_names_both(tmp_path, found):
    write_bytes(tmp_path / "file", tensors_bytes({}, {} if found is None else {"format": found}))
    with pytest.raises(DataError, match=f"format.* {found!r}.*'test/1'"):
        read_tensors(tmp_path / "file", "test/1")


def test_tensors_of_a_newer_version_are_refused_with_what_to_do(tmp_path):
    write_bytes(tmp_path / "file", tensors_bytes({}, {"format": "test/10"}))
    said = "format 'test/10', but this version reads 'test/9'; install a newer streamstats"
    with pytest.raises(DataError, match=said):
        read_tensors(tmp_path / "file", "test/9")


def test_any_flipped_bit_of_a_tensor_file_is_a_data_error(tmp_path):
    path = tmp_path / "file"
    content = tensors_bytes({"sums": np.arange(3), "count": np.array(7)}, {**FORMAT, "layer": "a"})
    for position in range(len(content)):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        with pytest.raises(DataError, match="file"):
            read_tensors(path, "test/1")


def test_a_file_whose_digest_is_gone_is_a_data_error(tmp_path):
    content = tensors_bytes({"a": np.ones(1)}, FORMAT).replace(b'"sha256"', b'"sha255"')
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(DataError, match="does not match the SHA-256 in its metadata"):
        read_tensors(tmp_path / "file", "test/1")


def test_the_content_digest_tells_names_dtypes_shapes_values_and_metadata_apart():
    zeros = np.zeros(4, np.int32)
    different = [
        content_digest({}, {}),
        content_digest({"a": zeros}, {}),
        content_digest({"b": zeros}, {}),
        content_digest({"a": zeros.view(np.float32)}, {}),
        content_digest({"a": zeros.reshape(2, 2)}, {}),
        content_digest({"a": zeros.reshape(4, 1)}, {}),
        content_digest({"a": zeros + 1}, {}),
        content_digest({"a": zeros[:2], "b": zeros[2:]}, {}),
        content_digest({"a": np.float64(0)}, {}),
        content_digest({"a": np.zeros(1)}, {}),
        content_digest({"a": -np.zeros(1)}, {}),
        content_digest({"a": zeros}, {"a": ""}),
        content_digest({"a": zeros}, {"": "a"}),
    ]
    assert len(set(different)) == len(different)


def test_the_content_digest_does_not_see_byte_order_or_memory_order():
    array = np.arange(6.0).reshape(2, 3)
    digest = content_digest({"a": array}, {"b": "1", "c": "2"})
    assert content_digest({"a": array.astype(">f8")}, {"c": "2", "b": "1"}) == digest
    assert content_digest({"a": np.asfortranarray(array)}, {"b": "1", "c": "2"}) == digest


def test_the_content_digest_stays_what_it_was_in_files_already_written():
    digest = content_digest({"input_mean": np.array([0.5, -0.25])}, {"layer": "ç", "format": "x/1"})
    document = b'{"format": "x/1", "layer": "\\u00e7"}["input_mean", "<f8", [2]]'
    assert digest == hashlib.sha256(document + np.array([0.5, -0.25], "<f8").tobytes()).hexdigest()
