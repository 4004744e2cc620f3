"""The layers that read one array: stored by name, each with its kernel, and refused if they are not layers."""

from __future__ import annotations

import json

import pytest

from streamstats.calibration.readers import Readers, readers_of
from streamstats.errors import UsageError
from streamstats.layouts import Kernel, Kernels

ONE, OTHER = Kernel((3, 3)), Kernel((1, 1))


def test_metadata_and_back_are_the_same_readers_in_the_order_of_their_names() -> None:
    readers = Readers.of({"b/conv": ONE, "a": None})
    assert readers.names == ("a", "b/conv")
    assert Readers.from_metadata(json.loads(json.dumps(readers.to_metadata()))) == readers
    assert Readers.from_metadata({}) == Readers() == readers_of("tensor", None, {})
    assert readers_of("conv", ONE, None) == Readers.of({"conv": ONE})


@pytest.mark.parametrize("stored", [None, ["a"], {"a": None}, {"a": {"kernel": 3}}, {"../a": {"kernel": None}}])
def test_what_is_no_list_of_readers_is_refused(stored: object) -> None:
    with pytest.raises(UsageError, match="expected"):
        Readers.from_metadata(stored)


def test_a_kernel_beside_layers_with_their_own_is_refused() -> None:
    with pytest.raises(UsageError, match="array x: both `kernel` and `layers` are given; give each layer its kernel"):
        readers_of("x", ONE, {"a": ONE})


def test_names_layers_and_kernels_of_other_types_are_refused() -> None:
    for wrong, said in {
        (3, None): "the layer's name is of type int; expected text: give the name first",
        ("x", ("a", "b")): "array x: `layers` is of type tuple; expected a mapping",
    }.items():
        with pytest.raises(UsageError, match=said):
            readers_of(wrong[0], None, wrong[1])  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"layer conv: its kernel is \(3, 3\); expected a `Kernel`, as in"):
        readers_of("conv", (3, 3), None)  # type: ignore[arg-type]


def test_the_union_has_all_layers_and_no_kernel_that_differs() -> None:
    mine, theirs = Readers.of({"a": ONE, "b": OTHER, "c": None}), Readers.of({"b": ONE, "c": ONE, "d": ONE})
    assert mine.union(theirs) == Readers.of({"a": ONE, "b": None, "c": None, "d": ONE})
    assert mine.union(theirs) == theirs.union(mine)
    assert mine.union(mine) == mine
    assert mine.filled_from(theirs).kernel_of("c") == ONE
    assert mine.among(["a", "b"]).kernel == Kernels((OTHER, ONE))
    assert mine.kernel is None
