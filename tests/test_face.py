"""The face of the package, as an editor and a type checker see it: names, docstrings, examples, types, hints."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import streamstats as ss
from streamstats.errors import UsageError
from streamstats.outputs.layer_statistics import MEANT
from streamstats.statistics.kinds import ALWAYS, optional

NAMES = [name for name in ss.__all__ if name != "__version__"]
CLASSES = [name for name in NAMES if inspect.isclass(getattr(ss, name))]


@pytest.mark.parametrize("name", NAMES)
def test_every_name_has_a_docstring_with_an_example(name: str) -> None:
    found = getattr(ss, name)
    shown = [found, *filter(is_method, vars(found).values())] if name in CLASSES else [found]
    assert any(">>> " in (each.__doc__ or "") for each in shown)


@pytest.mark.parametrize("name", CLASSES)
def test_everything_that_an_object_shows_is_described(name: str) -> None:
    found = getattr(ss, name)
    fields = {each.name for each in dataclasses.fields(found)} if dataclasses.is_dataclass(found) else set()
    text = " ".join(inspect.getdoc(each) or "" for each in inspect.getmro(found)[:-1])
    assert {each for each in fields if not re.search(rf"\b{each}\b", text)} == set()
    shown = {each for each in dir(found) if not each.startswith("_")} - fields
    members = {each: inspect.getattr_static(found, each) for each in shown}
    methods = {each: member for each, member in members.items() if is_method(member)}
    assert {each for each, member in methods.items() if not inspect.getdoc(member)} == set()


def is_method(member: object) -> bool:
    return callable(member) or isinstance(member, staticmethod | classmethod | property | cached_property)


def test_the_names_that_tab_shows_are_the_public_ones() -> None:
    assert dir(ss) == sorted(ss.__all__)
    assert all(hasattr(ss, name) for name in ss.__all__)


@pytest.mark.parametrize(
    ("guess", "meant"),
    [
        ("fakequantize", "fake_quantize"),
        ("record", "Recorder"),
        ("find_range", "find_ranges"),
        ("job", "Job"),
        ("nothing_like_it", None),
    ],
)
def test_a_name_that_does_not_exist_leads_to_the_nearest_one(guess: str, meant: str | None) -> None:
    with pytest.raises(AttributeError) as raised:
        getattr(ss, guess)
    hint = f"; did you mean {meant}?" if meant else ""
    assert str(raised.value) == f"module 'streamstats' has no attribute {guess!r}{hint}"


def test_layers_are_chosen_by_their_names_alone_wherever_a_function_asks_for_them(tmp_path: Path) -> None:
    store, out = tmp_path / "s.zarr", str(tmp_path / "out")
    with ss.Recorder(store) as recorder:
        for name in ("block/a", "block/b", "head"):
            recorder.append(name, np.ones((3, 2), np.float32))
    blocks = ["block/a", "block/b"]
    assert [*ss.reduce(store, layers="block/*")] == [*ss.reduce(store, layers=blocks)] == blocks
    assert [*ss.run(ss.Job(str(store), out, layers="block/*")).statistics] == blocks
    assert [*ss.find_ranges(out, "minmax", layers="*/a")] == ["block/a"]
    assert [each.layer for each in ss.compare(out, out, layers="*/b").layers] == ["block/b"]
    assert [each.layer for each in ss.forget(ss.Job(str(store), out, layers=tuple(blocks)), (0, 1), layers="*/a")] == [
        "block/a"
    ]


def test_figures_that_were_not_counted_are_refused_with_what_to_do() -> None:
    meter = ss.Meter()
    meter.append("fc", np.ones((3, 2), np.float32))
    found = meter.statistics["fc"]
    assert repr(found) == "<LayerStatistics of fc: 3 rows, 2 channels; mean, extrema>"
    for figure, kind in [
        ("rms", "squares"),
        ("variance", "squares"),
        ("mean_magnitude", "magnitude"),
        ("gram", "gram"),
    ]:
        with pytest.raises(UsageError, match=rf"^`{kind}` was not counted for fc; add `statistics: \[{kind}\]`"):
            getattr(found, figure)
    with pytest.raises(UsageError, match=r"^`histogram` was not counted for fc; add"):
        found.quantile(0.5)


def test_common_names_of_figures_are_among_those_that_lead_to_one() -> None:
    typed = {"std": "standard_deviation", "var": "variance", "min": "minimum", "max": "maximum", "median": "quantile"}
    typed |= {"histogram": "bins", "cov": "covariance", "percentile": "quantile", "eigenvalues": "LayerSpectrum"}
    assert [name for name, meant in typed.items() if meant not in MEANT[name][0]] == []


@pytest.mark.parametrize("guess", MEANT)
def test_a_figure_by_another_name_leads_to_its_own_and_to_what_must_be_counted(guess: str) -> None:
    meant, kind = MEANT[guess]
    without, beside = ss.Meter(), ss.Meter([*optional()])
    for meter in (without, beside):
        meter.append("fc", np.ones((3, 2), np.float32), kernel=ss.Kernel(()))
    hint = f"LayerStatistics has no attribute {guess!r}; did you mean {meant}?"
    missing = f" `{kind.name}` was not counted for fc; add `statistics: [{kind.name}]` to the configuration"
    said = hint if kind.name in ALWAYS else hint + missing
    with pytest.raises(AttributeError, match=f"^{re.escape(said)}"):
        getattr(without.statistics["fc"], guess)
    found = beside.statistics["fc"]
    with pytest.raises(AttributeError, match=f"^{re.escape(hint)}$"):
        getattr(found, guess)
    code = meant.partition(", ")[0]
    names = {"found": found, "statistics": found, "ss": ss, "q": 0.5, "quantization": found.quantization}
    assert eval(f"ss.{code}" if hasattr(ss, code.partition(".")[0]) else f"found.{code}", names) is not None


def test_a_mistyped_figure_leads_to_the_nearest_one() -> None:
    meter = ss.Meter()
    meter.append("fc", np.ones((3, 2), np.float32))
    with pytest.raises(AttributeError, match=r"no attribute 'varianc'; did you mean variance\?$"):
        _ = meter.statistics["fc"].varianc
    assert not hasattr(meter.statistics["fc"], "nothing_like_it")


def test_statistics_given_as_one_text_are_refused_as_such(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^statistics is the text 'squares'; expected a list of names"):
        ss.reduce(tmp_path, statistics="squares")


@pytest.mark.parametrize("function", [ss.run, ss.verify, lambda job: ss.forget(job, (0, 1))])
def test_what_takes_a_job_says_how_to_get_one(function: Callable[[object], object]) -> None:
    with pytest.raises(UsageError, match=r"^the job is 'run.yaml'; expected a Job: .*load_job\(path\)"):
        function("run.yaml")


def test_job_takes_memory_as_reduce_does(tmp_path: Path) -> None:
    with ss.Recorder(tmp_path / "s.zarr") as recorder:
        recorder.append("fc", np.ones((3, 2), np.float32))
    source, out = str(tmp_path / "s.zarr"), str(tmp_path / "out")
    memories: list[Any] = ["2GiB", 2**31, np.int64(2**31)]
    for memory in memories:
        assert ss.run(ss.Job(source, out, memory=memory)).statistics["fc"].rows == 3
        assert ss.reduce(source, memory=memory)["fc"].rows == 3
    for memory in ("much", True):
        with pytest.raises(UsageError, match=f"^memory is {memory!r}; expected a size such as 2GiB"):
            ss.Job(source, out, memory=memory)
        with pytest.raises(UsageError, match=f"^memory is {memory!r}; expected a size such as 2GiB"):
            ss.reduce(source, memory=memory)


def test_one_output_is_not_merged_letter_by_letter(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^the outputs to merge are out; expected a list of folders"):
        ss.merge("out", tmp_path / "both")
