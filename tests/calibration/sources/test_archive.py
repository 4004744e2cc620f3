"""Archives: members are read at their place, compressed or not, and what is wrong with one is said."""

from __future__ import annotations

import os
import shutil
import zipfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stores import build_store, described, samples
from zarr.codecs import BytesCodec, ShardingCodec, ZstdCodec

from streamstats import reduce
from streamstats.calibration.identity import file_range, identities
from streamstats.calibration.reading.file_reader import FileReader
from streamstats.calibration.reading.reader import open_reader
from streamstats.calibration.sources.choose import source_of
from streamstats.errors import DataError

SHAPE = (8, 6, 4)
SHARDED: dict[str, Any] = {
    "chunks": (4, 6, 4),
    "serializer": ShardingCodec(chunk_shape=(1, 6, 4), codecs=[BytesCodec(), ZstdCodec()]),
    "compressors": None,
}
METHODS = {
    "stored": zipfile.ZIP_STORED,
    "deflated": zipfile.ZIP_DEFLATED,
    "bzip2": zipfile.ZIP_BZIP2,
    "lzma": zipfile.ZIP_LZMA,
}


def archive(path: Path, method: int = zipfile.ZIP_STORED, **options: Any) -> Path:
    """A zip archive of a store with one layer."""
    folder = build_store(path / "folder", {"block/layer": samples(*SHAPE)}, **options)
    with zipfile.ZipFile(path / "s.zip", "w", method) as into:
        for file in sorted(each for each in folder.rglob("*") if each.is_file()):
            into.write(file, file.relative_to(folder))
    return path / "s.zip"


def means() -> list[float]:
    columns = samples(*SHAPE).reshape(-1, SHAPE[-1]).T.tolist()
    return [float(sum(map(Fraction, column)) / len(column)) for column in columns]


@pytest.mark.parametrize("options", [{}, {"zarr_format": 2}, SHARDED], ids=["plain", "version 2", "sharded"])
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_whatever_compresses_the_members_the_sums_are_exact(tmp_path: Path, method: int, options: Any) -> None:
    store = archive(tmp_path, method, **options)
    assert reduce(store)["block/layer"].mean.tolist() == means()
    with open_reader(described(store, "block/layer")) as reader:
        assert isinstance(reader, FileReader) == (method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))


@pytest.mark.parametrize("name", ["stored", "deflated"])
def test_a_flipped_bit_in_a_member_is_damage(tmp_path: Path, name: str) -> None:
    store = archive(tmp_path, METHODS[name], compressors=None)
    with zipfile.ZipFile(store) as members:
        chunk = members.getinfo("block/layer/c/1/0/0")
    content = bytearray(store.read_bytes())
    content[chunk.header_offset + 30 + len(chunk.filename) + chunk.compress_size // 2] ^= 16
    store.write_bytes(content)
    with pytest.raises(DataError, match=r"chunk c/1/0/0 \(rows 2:4\) cannot be read: "):
        reduce(store)


def test_the_same_members_in_another_archive_are_the_same_and_others_are_not(tmp_path: Path) -> None:
    layer = described(archive(tmp_path), "block/layer")
    files = file_range(layer, 0, layer.rows)
    before = identities(layer, files)
    shutil.copy(tmp_path / "s.zip", tmp_path / "copy.zip")
    os.replace(tmp_path / "copy.zip", tmp_path / "s.zip")
    np.testing.assert_array_equal(identities(layer, files), before)
    chunk = tmp_path / "folder/block/layer/c/2/0/0"
    chunk.write_bytes((tmp_path / "folder/block/layer/c/1/0/0").read_bytes())
    with zipfile.ZipFile(tmp_path / "s.zip", "a") as into, pytest.warns(UserWarning, match="Duplicate name"):
        into.write(chunk, "block/layer/c/2/0/0")
    changed = (identities(layer, files) != before).any(axis=1)
    assert changed.tolist() == [False, False, True, False]


def test_an_encrypted_member_is_refused(tmp_path: Path) -> None:
    store = archive(tmp_path)
    content = bytearray(store.read_bytes())
    in_directory = content.rindex(b"block/layer/c/0/0/0") - 46
    content[in_directory + 8] |= 1
    store.write_bytes(content)
    with pytest.raises(DataError, match="it is encrypted"):
        reduce(store)


def test_a_member_that_decompresses_to_more_than_its_array_holds_is_refused(tmp_path: Path) -> None:
    store = archive(tmp_path)
    with (
        zipfile.ZipFile(store, "a", zipfile.ZIP_DEFLATED) as into,
        pytest.warns(UserWarning, match="Duplicate name"),
    ):
        into.writestr("block/layer/c/3/0/0", bytes(10_000_000))
    with pytest.raises(DataError, match=r"rows 6:8\) cannot be read: it has 10,000,000 bytes, expected at most"):
        reduce(store)


DAMAGES: dict[str, tuple[bytes, int, int]] = {
    "magic": (b"PK\1\2", 0, 0),
    "version": (b"PK\1\2", 6, 0xFF),
    "name": (b"PK\1\2", 46, 0xFF),
    "offset": (b"PK\1\2", 45, 0xFF),
}
"""What is damaged → the mark of the record in the archive, the byte in it, and what it becomes."""


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_directory_is_an_error_of_the_data(tmp_path: Path, damage: str) -> None:
    store = archive(tmp_path)
    content, (mark, place, byte) = bytearray(store.read_bytes()), DAMAGES[damage]
    content[content.rindex(mark) + place] = byte
    content[content.rindex(b"PK\1\2") + 9] |= 8 if damage == "name" else 0  # names in UTF-8
    store.write_bytes(content)
    with pytest.raises(DataError, match="cannot be read"):
        source_of(store).find()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_members_with_absolute_names_are_named(tmp_path: Path) -> None:
    store = archive(tmp_path)
    metadata = zipfile.ZipFile(store).read("block/layer/zarr.json")
    with zipfile.ZipFile(store, "a") as into:
        for name in ("/x/zarr.json", "/zarr.json", "//zarr.json", "/x/c/0/0/0"):
            member = zipfile.ZipInfo("member")
            member.filename = name
            into.writestr(member, metadata)
    found = source_of(store).find()
    assert list(found.arrays) == ["block/layer"]
    assert sorted(found.unreadable) == ["/", "/x"]
    assert found.unreadable["/x"].startswith("its name begins with /, so it lies in no group")
