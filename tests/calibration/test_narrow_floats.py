"""Stores of bfloat16 and float8: we read what tensorstore writes, and it reads what we record, bit for bit.

tensorstore is another implementation of zarr, and the one that writes most stores of these types.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
import zarr
from laws import BFLOAT16, E4M3FN, NARROW, from_bits, held
from stores import build_store, described, read

from streamstats.calibration.reading.file_reader import FileReader
from streamstats.calibration.reading.reader import open_reader
from streamstats.calibration.recorder import Recorder
from streamstats.calibration.selection import LayerRule
from streamstats.calibration.sources.choose import source_of
from streamstats.errors import DataError, MismatchError, NonFiniteError, UsageError
from streamstats.jobs.compare import compare
from streamstats.jobs.job import Job
from streamstats.jobs.meter import Meter
from streamstats.jobs.run import reduce, run
from streamstats.layouts import Kernel
from streamstats.outputs.results import open_results
from streamstats.ranges.finding import find_ranges
from streamstats.report.page import document, page
from streamstats.statistics.kinds import asked

Array = np.ndarray[Any, Any]

ALL_NARROW = pytest.mark.parametrize("dtype", NARROW, ids=str)
SHAPE, CHUNKS = (23, 3, 8), (5, 3, 8)
LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}


def shards(*codecs: Any, index_location: str = "end") -> list[Any]:
    inner = {"chunk_shape": [5, 3, 4], "codecs": [LITTLE, *codecs], "index_location": index_location}
    return [{"name": "sharding_indexed", "configuration": inner}]


CODECS: dict[str, list[Any]] = {
    "raw": [LITTLE],
    "big-endian": [{"name": "bytes", "configuration": {"endian": "big"}}],
    "blosc": [LITTLE, {"name": "blosc", "configuration": {"cname": "lz4", "shuffle": "bitshuffle", "clevel": 5}}],
    "zstd": [LITTLE, {"name": "zstd", "configuration": {"level": 1}}],
    "gzip and a checksum": [LITTLE, {"name": "gzip"}, {"name": "crc32c"}],
    "transposed": [{"name": "transpose", "configuration": {"order": [2, 0, 1]}}, LITTLE],
    "shards": shards({"name": "zstd"}),
    "shards with the index first": shards(index_location="start"),
}
READ_BY_ZARR = {"big-endian", "transposed"}


def bits(values: Array) -> bytes:
    return np.ascontiguousarray(values).tobytes()


def values_of(dtype: np.dtype[Any], shape: tuple[int, ...] = SHAPE, seed: int = 0) -> Array:
    """Finite values, all exponents and denormals among them."""
    size = int(np.prod(shape))
    found = from_bits(np.random.default_rng(seed).integers(0, 1 << 8 * dtype.itemsize, size), dtype)
    with np.errstate(invalid="ignore"):
        found[~np.isfinite(found)] = 1.5
    return found.reshape(shape)


def written(path: Path, dtype: np.dtype[Any], codecs: list[Any], values: Array | None, **metadata: Any) -> Path:
    """A group with one array, "layer", which tensorstore writes."""
    path.mkdir(exist_ok=True)
    (path / "zarr.json").write_text(json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {}}))
    extents = [10, 3, 8] if codecs[0]["name"] == "sharding_indexed" else [*CHUNKS]
    grid = {"name": "regular", "configuration": {"chunk_shape": extents}}
    described = {"shape": list(SHAPE), "data_type": dtype.name, "chunk_grid": grid, "codecs": codecs} | metadata
    store = {"driver": "file", "path": f"{path}/layer/"}
    array = tensorstore.open({"driver": "zarr3", "kvstore": store, "metadata": described, "create": True}).result()
    if values is not None:
        array[...] = values
    return path


def opened(path: Path) -> Array:
    """The array at `path` as tensorstore reads it."""
    store = {"driver": "file", "path": f"{path}/"}
    return np.asarray(tensorstore.open({"driver": "zarr3", "kvstore": store}).result().read().result())


@ALL_NARROW
@pytest.mark.parametrize("codecs", CODECS)
def test_stores_that_tensorstore_wrote_are_read_to_the_bit(codecs: str, dtype: np.dtype[Any], tmp_path: Path) -> None:
    values = values_of(dtype)
    layer = described(written(tmp_path, dtype, CODECS[codecs], values))
    assert layer.dtype == dtype
    with open_reader(layer) as reader:
        one_byte_has_no_order = dtype.itemsize == 1 and codecs == "big-endian"
        assert isinstance(reader, FileReader) == (codecs not in READ_BY_ZARR or one_byte_has_no_order)
    assert bits(read(layer)) == bits(values)
    assert bits(read(layer, slice(3, 17))) == bits(values[3:17])


@ALL_NARROW
@pytest.mark.parametrize("codecs", ["raw", "zstd", "blosc", "shards", "big-endian"])
def test_every_statistic_of_a_store_is_that_of_its_values(codecs: str, dtype: np.dtype[Any], tmp_path: Path) -> None:
    values = values_of(dtype)
    rule = LayerRule("*", statistics=tuple(asked()), kernel=Kernel((1,)))
    found = reduce(written(tmp_path, dtype, CODECS[codecs], values), layers=[rule])["layer"]
    for kind in found.statistics.values():
        assert kind == type(kind).measure(values, kernel=Kernel((1,))), kind.name
    assert found.statistics.space.dtype == dtype


@ALL_NARROW
def test_a_store_in_an_archive_is_read(dtype: np.dtype[Any], tmp_path: Path) -> None:
    values = values_of(dtype)
    folder = written(tmp_path / "store", dtype, CODECS["zstd"], values)
    with zipfile.ZipFile(tmp_path / "store.zip", "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder))
    assert bits(read(described(tmp_path / "store.zip"))) == bits(values)


def test_zarr_version_2_as_tensorstore_writes_it_is_read(tmp_path: Path) -> None:
    values = values_of(BFLOAT16)
    (tmp_path / ".zgroup").write_text('{"zarr_format": 2}')
    metadata = {"shape": list(SHAPE), "chunks": list(CHUNKS), "dtype": "bfloat16", "compressor": None}
    store = {"driver": "file", "path": f"{tmp_path}/layer/"}
    spec = {"driver": "zarr", "kvstore": store, "metadata": metadata, "create": True}
    tensorstore.open(spec).result()[...] = values
    assert bits(read(described(tmp_path))) == bits(values)


FILLS = {
    "a number": (-2.5, -2.5),
    "NaN": ("NaN", np.nan),
    "bits": ({2: "0xc020", 1: "0xc2"}, -2.5),
}


@ALL_NARROW
@pytest.mark.parametrize("fill", FILLS)
def test_chunks_that_are_not_stored_have_the_fill_value(fill: str, dtype: np.dtype[Any], tmp_path: Path) -> None:
    written_as, value = FILLS[fill]
    if isinstance(written_as, dict):
        written_as = f"0x{int(np.array(value, dtype).view(f'u{dtype.itemsize}')):0{2 * dtype.itemsize}x}"
    store = written(tmp_path, dtype, CODECS["zstd"], None, fill_value=written_as)
    with pytest.raises(DataError, match="missing"):
        reduce(store)
    found = reduce(store, missing="fill", nonfinite="skip")["layer"].sums
    expected = np.full(SHAPE, value, dtype)
    assert found == type(found).measure(expected)


def test_a_fill_value_that_is_none_is_refused(tmp_path: Path) -> None:
    store = written(tmp_path, BFLOAT16, CODECS["zstd"], values_of(BFLOAT16))
    metadata = tmp_path / "layer" / "zarr.json"
    metadata.write_text(json.dumps(json.loads(metadata.read_text()) | {"fill_value": "0x7fc"}))
    assert "'0x7fc'" in source_of(store).find().unreadable["layer"]


@ALL_NARROW
def test_what_is_recorded_is_stored_as_it_is_and_tensorstore_reads_it(dtype: np.dtype[Any], tmp_path: Path) -> None:
    values = values_of(dtype, (50, 3, 8))
    with Recorder(tmp_path, chunk_bytes=512) as recorder:
        recorder.append("block/fc", values[:20])
        recorder.append("block/fc", values[20:31].byteswap().view(dtype.newbyteorder()))
    with Recorder(tmp_path, buffered=False) as recorder:
        recorder.append("block/fc", values[31:])
        with pytest.raises(MismatchError, match="dtype"):
            recorder.append("block/fc", values.astype("f4"))
    assert bits(opened(tmp_path / "block" / "fc")) == bits(values)
    assert bits(read(described(tmp_path, "block/fc"))) == bits(values)
    stored = sum(path.stat().st_size for path in (tmp_path / "block" / "fc" / "c").rglob("*") if path.is_file())
    assert stored < 1.5 * values.nbytes


@ALL_NARROW
def test_the_bits_of_nan_are_kept(dtype: np.dtype[Any], tmp_path: Path) -> None:
    width = 8 * dtype.itemsize
    values = from_bits(np.arange(1 << width), dtype).reshape(-1, 16)
    with Recorder(tmp_path) as recorder:
        recorder.append("fc", values)
    assert bits(opened(tmp_path / "fc")) == bits(values)
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        reduce(tmp_path)
    found = reduce(tmp_path, nonfinite="skip")["fc"]
    assert (found.sums.nan.sum(), found.sums.infinite.sum()) == {
        "bfloat16": (254, 2),
        "float8_e4m3fn": (2, 0),
        "float8_e5m2": (6, 2),
    }[dtype.name]


@ALL_NARROW
def test_a_meter_gives_the_bits_of_recording_and_running(dtype: np.dtype[Any], tmp_path: Path) -> None:
    values = values_of(dtype, (40, 6))
    names = sorted(set(asked()) - {"taps"})
    meter = Meter(names)
    with Recorder(tmp_path / "store") as recorder:
        for part in np.array_split(values, 3):
            meter.append("fc", part)
            recorder.append("fc", part)
    stored = reduce(tmp_path / "store", layers=[LayerRule("*", statistics=tuple(names))])["fc"]
    assert meter.statistics["fc"].statistics == stored.statistics
    assert stored.minimum.dtype == np.float64
    assert stored.statistics["extrema"].minimum.dtype == held(dtype)
    with pytest.raises(NonFiniteError, match="the value is nan"):
        meter.append("fc", np.array([[np.nan] * 6], dtype))


@ALL_NARROW
def test_results_are_those_of_the_same_numbers_in_float32(dtype: np.dtype[Any], tmp_path: Path) -> None:
    values = np.random.default_rng(1).normal(size=(200, 6)).astype(dtype)
    for kind in (dtype, np.dtype("f4")):
        with Recorder(tmp_path / f"{kind}.zarr") as recorder:
            recorder.append("fc", values.astype(kind))
        rule = LayerRule("*", statistics=("histogram", "magnitude", "spread", "squares"))
        run(Job(str(tmp_path / f"{kind}.zarr"), str(tmp_path / f"{kind}"), (rule,)))
    narrow, wide = tmp_path / str(dtype), tmp_path / "float32"
    mine, theirs = (open_results(out).statistics("fc") for out in (narrow, wide))
    for figure in ("mean", "minimum", "maximum", "standard_deviation", "rms", "mean_magnitude", "standard_error"):
        assert getattr(mine, figure).tolist() == getattr(theirs, figure).tolist(), figure
    found, expected = (find_ranges(out, "minmax", 8)["fc"].rows()[0] for out in (narrow, wide))
    assert found[:4] == expected[:4]
    assert found[4] > 0
    compared = compare(narrow, wide).layers[0]
    assert compared.described == {"dtype": (str(dtype), "float32")}
    assert compared.shift == 0
    assert compare(narrow, narrow).equal
    assert "fc" in page(document(narrow))


@pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")
def test_they_stand_beside_other_arrays_in_a_group(tmp_path: Path) -> None:
    written(tmp_path, E4M3FN, CODECS["zstd"], values_of(E4M3FN))
    build_store(tmp_path, {"other": np.ones((4, 2), "f4"), "void": np.ones((4, 2), "V2")})
    assert {*reduce(tmp_path, layers=[LayerRule("layer"), LayerRule("other")])} == {"layer", "other"}
    assert {*reduce(tmp_path)} == {"layer", "other"}
    with pytest.raises(UsageError, match=r"layer void: its values are .*V2; expected one of bool, .*bfloat16"):
        reduce(tmp_path, layers=[LayerRule("void")])


def test_zarr_keeps_its_own_types() -> None:
    assert zarr.dtype.parse_dtype("<V2", zarr_format=2).to_native_dtype() == np.dtype("V2")
    assert zarr.dtype.parse_dtype(np.dtype("V2"), zarr_format=3).to_native_dtype() == np.dtype("V2")
    for kind in ("V1", ">f4", ">i2", "<f2", "|b1", "S3", np.dtype(np.dtypes.StringDType())):
        assert zarr.dtype.parse_dtype(np.dtype(kind), zarr_format=3).to_native_dtype() == np.dtype(kind)


@ALL_NARROW
def test_zarr_knows_narrow_types_of_either_byte_order(dtype: np.dtype[Any]) -> None:
    for order in "<>":
        ordered = dtype.newbyteorder(order)
        found = zarr.dtype.parse_dtype(ordered, zarr_format=3).to_native_dtype()
        assert found == (ordered if dtype.itemsize > 1 else dtype)
