"""imatrix: the sums in the file, as the gguf package reads them, are the exact ones, rounded once."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.constants import GGUFValueType
from gguf.gguf_writer import WriterState
from hypothesis import assume, example, given
from hypothesis import strategies as st
from quantizing import output_of

import streamstats as ss
from streamstats.errors import DataError, UsageError
from streamstats.exports.imatrix import read_imatrix
from streamstats.exports.rounding import rounded

Array = np.ndarray[Any, Any]


def output(folder: Path, layers: dict[str, Array], **options: Any) -> Path:
    return output_of(folder, layers, statistics=("squares",), **options)


def read(path: Path) -> tuple[dict[str, Array], dict[str, Any]]:
    """(tensors, fields) as the gguf package finds them; the axes of a tensor as they are in GGUF."""
    reader = gguf.GGUFReader(path)
    for each in reader.tensors:
        assert each.tensor_type == gguf.GGMLQuantizationType.F32
    tensors = {each.name: np.array(each.data).T for each in reader.tensors}
    return tensors, {name: field.contents() for name, field in reader.fields.items()}


def nearest(value: Fraction) -> np.float32:
    """The float32 nearest to `value`, by comparing neighbours."""
    near = np.float32(float(value))
    around = [np.nextafter(near, np.float32(-np.inf)), near, np.nextafter(near, np.float32(np.inf))]
    return min(around, key=lambda each: (abs(Fraction(float(each)) - value), int(each.view(np.uint32)) & 1))


def sums(values: Array, power: int, step: float = 1.0, zero_point: int = 0) -> list[np.float32]:
    """Per channel, of the real values, in fractions."""
    real = [
        [(Fraction(each) - zero_point) * Fraction(step) for each in column]
        for column in values.reshape(-1, values.shape[-1]).T.tolist()
    ]
    return [nearest(sum((each**power for each in column), Fraction(0))) for column in real]


def test_sums_are_the_exact_ones_and_llama_cpp_finds_what_it_needs(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    floats = (random.normal(size=(9, 5, 3)) * 10.0 ** random.integers(-9, 9, (9, 5, 3))).astype("f4")
    codes = random.integers(-128, 128, (9, 5, 4)).astype("i1")
    attributes = {"blk/1/ffn_down": {"quantization": {"step": 0.013, "zero_point": -7}}}
    out = output(tmp_path, {"blk/0/attn_q": floats, "blk/1/ffn_down": codes}, attributes=attributes)
    written = ss.export(out, "imatrix", tmp_path / "i.gguf")
    assert written.layers == {"blk.0.attn_q.weight": "blk/0/attn_q", "blk.1.ffn_down.weight": "blk/1/ffn_down"}
    tensors, fields = read(tmp_path / "i.gguf")
    for name, values, real in (
        ("blk.0.attn_q.weight", floats, ()),
        ("blk.1.ffn_down.weight", codes, (0.013, -7)),
    ):
        assert tensors[f"{name}.in_sum2"].shape == (values.shape[-1], 1)
        assert tensors[f"{name}.in_sum2"][:, 0].tolist() == sums(values, 2, *real)
        assert tensors[f"{name}.in_sum"][:, 0].tolist() == sums(values, 1, *real)
        assert tensors[f"{name}.counts"].tolist() == [[45.0]]
    known = {key: value for key, value in fields.items() if not key.startswith("GGUF.")}
    assert known == {
        "general.type": "imatrix",
        "imatrix.datasets": ["s.zarr"],
        "imatrix.chunk_count": 9,
        "imatrix.chunk_size": 5,
    }


def test_merging_adds_exact_sums_to_those_of_the_file(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    first, second = (random.normal(size=(7, 2, 3)).astype("f4") for _ in range(2))
    one = output(tmp_path / "1", {"q": first, "only": first})
    ss.export(one, "imatrix", tmp_path / "1.gguf")
    two = output(tmp_path / "2", {"q": second, "new": second})
    ss.export(two, "imatrix", tmp_path / "2.gguf", merge=tmp_path / "1.gguf")
    old, _ = read(tmp_path / "1.gguf")
    tensors, fields = read(tmp_path / "2.gguf")
    for suffix, power in (("in_sum2", 2), ("in_sum", 1)):
        before = [Fraction(each) for each in old[f"q.weight.{suffix}"][:, 0].tolist()]
        added = [sum(Fraction(each) ** power for each in column) for column in second.reshape(-1, 3).T.tolist()]
        assert tensors[f"q.weight.{suffix}"][:, 0].tolist() == [
            nearest(mine + theirs) for mine, theirs in zip(before, added, strict=True)
        ]
    assert tensors["q.weight.counts"].tolist() == [[28.0]]
    assert {name: tensors[name].tolist() for name in old if "only" in name} == {
        name: old[name].tolist() for name in old if "only" in name
    }
    assert tensors["new.weight.counts"].tolist() == [[14.0]]
    assert (fields["imatrix.chunk_count"], fields["imatrix.chunk_size"]) == (14, 2)
    assert fields["imatrix.datasets"] == ["s.zarr", "s.zarr"]


def file_of(path: Path, tensors: dict[str, Any], **fields: Any) -> Path:
    """A file as llama.cpp could have written it."""
    writer = gguf.GGUFWriter(path, "")
    settings = {"general.type": "imatrix", "imatrix.datasets": ["d"], "imatrix.chunk_count": 3} | fields
    writer.add_uint32("imatrix.chunk_size", 512)
    for key, value in settings.items():
        kind = {str: GGUFValueType.STRING, list: GGUFValueType.ARRAY, int: GGUFValueType.UINT32}
        if value is not None:
            writer.add_key_value(key, value, kind[type(value)])
    for name, tensor in tensors.items():
        writer.add_tensor(name, np.asarray(tensor, "f4"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    assert writer.state is WriterState.WEIGHTS
    writer.close()
    return path


def test_a_file_without_sums_and_with_experts_keeps_them(tmp_path: Path) -> None:
    experts = {"e.in_sum2": np.arange(6).reshape(2, 3), "e.counts": np.array([[4], [5]])}
    old = file_of(tmp_path / "o.gguf", {**experts, "q.weight.in_sum2": np.ones((1, 3)), "q.weight.counts": [[2]]})
    out = output(tmp_path, {"q": np.full((4, 3), 2, "f4")})
    ss.export(out, "imatrix", tmp_path / "new.gguf", merge=old)
    tensors, fields = read(tmp_path / "new.gguf")
    assert set(tensors) == {"e.in_sum2", "e.counts", "q.weight.in_sum2", "q.weight.counts"}
    assert tensors["q.weight.in_sum2"].tolist() == [[17.0]] * 3
    assert tensors["q.weight.counts"].tolist() == [[6.0]]
    assert tensors["e.in_sum2"].T.tolist() == experts["e.in_sum2"].tolist()
    assert (fields["imatrix.chunk_count"], fields["imatrix.chunk_size"]) == (4, 512)


BAD_FILES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "a model": ({}, {"general.type": "model"}, "general.type is 'model'; expected 'imatrix'"),
    "no chunks": ({}, {"imatrix.chunk_count": None}, "it has no imatrix.chunk_count"),
    "a stranger": ({"x": np.ones((1, 3))}, {}, "tensor x is unknown"),
    "half an entry": ({"q.in_sum2": np.ones((1, 3))}, {}, "the sums and counts of q do not fit together"),
    "counts of more": (
        {"q.in_sum2": np.ones((1, 3)), "q.counts": np.ones((2, 1))},
        {},
        "the sums and counts of q do not fit together",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_file_that_is_no_imatrix_is_refused(tmp_path: Path, case: str) -> None:
    tensors, fields, message = BAD_FILES[case]
    path = file_of(tmp_path / "bad.gguf", tensors or {"q.in_sum2": np.ones((1, 3)), "q.counts": [[1]]}, **fields)
    with pytest.raises(DataError, match=re.escape(message)):
        read_imatrix(path)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"\x05\x00\x00\x00legacy imatrix data of an older llama.cpp"])
def test_a_file_of_another_format_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "old.dat").write_bytes(content)
    with pytest.raises(DataError, match=r"old\.dat is not a GGUF file"):
        read_imatrix(tmp_path / "old.dat")
    with pytest.raises(DataError, match="cannot read"):
        read_imatrix(tmp_path / "nowhere.gguf")


def test_layers_that_do_not_fit_are_named(tmp_path: Path) -> None:
    old = file_of(tmp_path / "o.gguf", {"q.weight.in_sum2": np.ones((1, 5)), "q.weight.counts": [[2]]})
    out = output(tmp_path / "1", {"q": np.ones((4, 3), "f4")})
    with pytest.raises(UsageError, match=r"layer q has the sums of 1 matrix of 3 inputs, .* those of 1 matrix of 5"):
        ss.export(out, "imatrix", tmp_path / "new.gguf", merge=old)
    with pytest.raises(UsageError, match="both the input and the output"):
        ss.export(out, "imatrix", old, merge=old)
    with pytest.raises(UsageError, match=r"is too long: llama\.cpp reads names of at most 55 characters"):
        ss.export(out, "imatrix", tmp_path / "new.gguf", names={"q": "x" * 56})
    holes = np.array([[1, np.nan], [1, 1]], "f4")
    uneven = output(tmp_path / "2", {"q": holes}, nonfinite="skip")
    with pytest.raises(UsageError, match="layer q has 1 to 2 finite values in its channels"):
        ss.export(uneven, "imatrix", tmp_path / "new.gguf")
    bare = output_of(tmp_path / "3", {"q": holes[1:]}, statistics=())
    with pytest.raises(UsageError, match=r"`squares` was not counted for q; add `statistics: \[squares\]`"):
        ss.export(bare, "imatrix", tmp_path / "new.gguf")
    huge = output(tmp_path / "4", {"q": np.full((2, 1), 1e30)})
    with pytest.raises(UsageError, match="layer q: a sum is beyond float32"):
        ss.export(huge, "imatrix", tmp_path / "new.gguf")
    assert not (tmp_path / "new.gguf").exists()


def test_counts_that_are_no_float32_are_pointed_out(tmp_path: Path) -> None:
    old = file_of(tmp_path / "o.gguf", {"q.weight.in_sum2": np.ones((1, 1)), "q.weight.counts": [[2**24]]})
    out = output(tmp_path, {"q": np.ones((3, 1), "f4")})
    written = ss.export(out, "imatrix", tmp_path / "new.gguf", merge=old)
    assert written.notes == ("counts above 2^24 are rounded to float32, which an imatrix holds: q.weight",)
    assert read(tmp_path / "new.gguf")[0]["q.weight.counts"].tolist() == [[2.0**24 + 4]]


def test_layers_of_a_model_are_named_with_the_map_of_the_gguf_package(tmp_path: Path) -> None:
    layer = "model/layers/1/self_attn/q_proj"
    out = output(tmp_path, {layer: np.ones((3, 2), "f4")})
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    name = table.get_name(layer.replace("/", ".") + ".weight", try_suffixes=(".weight",))
    ss.export(out, "imatrix", tmp_path / "i.gguf", names={layer: name})
    assert "blk.1.attn_q.weight.in_sum2" in read(tmp_path / "i.gguf")[0]


@given(st.fractions(), st.integers(-160, 100))
@example(Fraction(2**24 + 1) + Fraction(1, 2**60), 0)
@example(Fraction(2**24 + 1) - Fraction(1, 2**60), 0)
@example(Fraction(2**24 + 1), 0)
@example(Fraction(3, 2) + Fraction(1, 2**60), -149)  # between denormals
@example(Fraction(0), 0)
def test_sums_are_rounded_once(value: Fraction, exponent: int) -> None:
    scaled = value * Fraction(2) ** exponent
    assume(abs(scaled) < 2**127)
    assert rounded([scaled], "fc").tolist() == [nearest(scaled)]
