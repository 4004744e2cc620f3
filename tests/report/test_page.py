"""The report: a page that needs nothing but itself, and the same as JSON."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsing import PHONE, started
from networks import model_of, quantized, values
from onnx import helper
from stores import build_store

from streamstats.cli import main
from streamstats.config import JobConfig
from streamstats.errors import MissingDependencyError
from streamstats.jobs.run import run
from streamstats.models.onnx import files as onnx_files
from streamstats.models.onnx.record import record
from streamstats.report import page as pages

ODD = '<b>&"one'
"""The name of a layer that is markup."""


class Page(HTMLParser):
    """Collects the text, the tags and whatever points elsewhere."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.text: list[str] = []
        self.tags: list[str] = []
        self.references: list[str] = []
        self.feed(content)

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.tags.append(tag)
        self.references += [value or "" for name, value in attributes if name in ("src", "href", "xlink:href")]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name=ODD),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Gemm", ["r", "v", "b"], ["y"], name="two"),
    ]
    w = values(4, 6)
    w[:, 2] = -np.abs(w[:, 2]) - 5
    constants = {"w": w, "v": values(6, 3, seed=1), "b": values(3)}
    x = np.abs(values(64, 4))
    model = model_of(nodes, constants, x)
    quantized(model, tmp_path, x, "qdq")
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "held.npy", np.abs(values(30, 4, seed=5)))
    np.save(tmp_path / "labels.npy", np.arange(30) % 3)
    record(tmp_path / "float.onnx", tmp_path / "x.npy", tmp_path / "s.zarr")
    config = {"source": str(tmp_path / "s.zarr"), "output": str(tmp_path / "out"), "statistics": ["spread"]}
    run(JobConfig.model_validate(config).job())
    return tmp_path


def call(folder: Path, *more: str) -> int:
    start = ["correct", f"{folder}/float.onnx", f"{folder}/quantized.onnx", "--correctors", f"{folder}/out"]
    return main([*start, "-o", f"{folder}/fixed.onnx", *more])


def test_the_page_needs_nothing_but_itself_and_shows_names_as_they_are(folder: Path) -> None:
    assert call(folder, "--held-out", f"{folder}/held.npy", "--labels", f"{folder}/labels.npy") == 0
    content = (folder / "fixed.report.html").read_text()
    page = Page(content)
    assert all(each.startswith("#") for each in page.references)
    assert not re.search(r"url\((?!#)", content)
    assert not {"link", "iframe", "img", "object"} & set(page.tags)
    assert ODD in page.text
    assert "b" not in page.tags
    assert page.tags.count("svg") == 2  # the channels of each layer
    written = json.loads((folder / "fixed.report.json").read_text())
    text = " ".join(page.text)
    assert f"{written['judgement']['accuracy']['quantised']:.2%}" in text
    for layer in (ODD, "two"):
        for model in ("quantised", "corrected"):
            assert f"{written['judgement']['layers'][layer][model]['sqnr_db']:.3g}" in text


def judged(folder: Path) -> dict[str, Any]:
    """The report on models that were judged on labelled samples."""
    assert call(folder, "--held-out", f"{folder}/held.npy", "--labels", f"{folder}/labels.npy") == 0
    found: dict[str, Any] = json.loads((folder / "fixed.report.json").read_text())
    return found


def body(report: dict[str, Any]) -> str:
    content = pages.page(report)
    return " ".join(" ".join(Page(content[content.index("<body>") :]).text).split())


def test_the_figure_that_matters_comes_first(folder: Path) -> None:
    report = judged(folder)
    accuracy = {"float": 0.99, "quantised": 0.267, "one pass": 0.9, "corrected": 0.987}
    report["judgement"] |= {"accuracy": accuracy, "accuracy_interval": {name: [0.2, 1.0] for name in accuracy}}
    start = f"Bias correction of {folder}/quantized.onnx 26.7 → 98.7 % accuracy on 30 held-out samples; "
    assert body(report).startswith(start + "the float model has 99.0 %")
    report["judgement"] |= {"accuracy": {}, "accuracy_gain": {}}
    assert re.match(r"Bias correction of \S+ [-\d.]+ → [-\d.]+ dB signal-to-quantisation-noise ratio", body(report))
    report["judgement"] = None
    assert "2 of 2 layers corrected not judged on held-out samples" in body(report)
    assert "2 layers counted, with 64 rows each" in body(report | {"correction": None})


def test_figures_come_with_what_is_known_of_chance_and_of_kernels(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = judged(folder)
    said = capsys.readouterr().err
    gain = report["judgement"]["accuracy_gain"]["corrected"]
    low, high = report["judgement"]["accuracy_interval"]["corrected"]
    assert f"({low:.2%} to {high:.2%})" in said
    verdict = "is beyond chance" if gain["clear"] else "may be chance"
    assert gain["clear"] == (gain["p_value"] < 0.05)
    assert f"points over the quantised model, which {verdict}: {gain['gained']}" in said
    assert "quantise with reduce_range=True" in said
    text = body(report)
    assert f"(95 % confidence interval {100 * low:.1f} to {100 * high:.1f} %). The difference from" in text
    assert "These figures are those of products computed in floats" in text
    assert "no bias undoes: judge the model as you run it, with --score, and if it is worse" in text
    assert "--" not in report["judgement"]["caveat"]


def test_what_is_worse_than_doing_nothing_is_a_warning_that_says_what_to_do(folder: Path) -> None:
    report = judged(folder)
    report["judgement"]["worse"] = {"one pass": ["-3.00 dB"], "corrected": []}
    assert "Warning: One pass would make the network worse than the quantised one: -3.00 dB; correct it" in body(report)
    report["judgement"]["worse"] = {"one pass": ["-3.00 dB"], "corrected": ["-1.00 dB"], "by moments": ["-2.00 dB"]}
    assert "Warning: The corrected model is worse than the quantised one: -1.00 dB; correct layer by" in body(report)
    assert "rounding by second moments is worse than rounding to nearest: -2.00 dB; use these" in body(report)
    report["judgement"]["worse"] = {"one pass": [], "corrected": []}
    assert "Warning" not in body(report)


def test_the_sentences_fit_what_was_left_out(folder: Path) -> None:
    """None with --do-no-harm, some, or all: then nothing is said of corrections that were not made."""
    report = judged(folder)
    assert "left out" not in body(report)
    report["about"]["do_no_harm"] = True
    assert "No correction was left out: none did harm" in body(report)
    done = report["correction"]
    left = {"corrected": False, "outcome": "left out", "reason": "without it, it is better"}
    done["two"] |= left
    assert "Left out, for the reasons under “Not corrected”: two." in body(report)
    assert "left out: two (Gemm): without it, it is better" in body(report)
    for each in done.values():
        each |= left
    said = body(report)
    assert "None of 2 corrections was made; 2 were left out, because they do harm or may: the model is the" in said
    for sentence in (
        "changes from",
        "accuracy of the corrected model is",
        "No layer's own outputs",
        "precision",
    ):
        assert sentence not in said
    for each in done.values():
        each |= {"outcome": "refused"}
    assert "None of 2 corrections was made: the model is the quantised one" in body(report)


def test_corrections_that_few_samples_decide_raise_the_question_of_the_samples(folder: Path) -> None:
    report = judged(folder)
    precision = report["precision"]
    for each in precision.values():
        each |= {"correction_in_steps": 9.0, "error_in_steps": 1.0, "rows_for_half_a_step": 4}
    assert "check the calibration samples" not in body(report)
    precision["two"]["error_in_steps"] = 5.0
    assert "Few samples decide the corrections of two, which are less than twice their standard errors" in body(report)
    assert "the preprocessing that the model gets in use" in body(report)
    precision["two"]["error_in_steps"] = 1.0
    report["judgement"]["worse"] = {"one pass": [], "corrected": ["-1.00 dB"]}
    assert "if nothing helps, check the calibration samples: preprocessing, kind and number." in body(report)


def test_dots_lie_where_their_values_are_and_the_corrected_model_is_drawn_last(folder: Path) -> None:
    report = judged(folder)
    shifts = {"corrected": 0.001, "quantised": 0.1}  # in another order than they are drawn
    for name, factor in ((ODD, 1), ("two", 10)):
        for model, shift in shifts.items():
            report["judgement"]["layers"][name][model]["rms_shift"] = shift * factor
    dots = re.findall(r'<i class="dot (\w+)" style="left:([\d.]+)%" title="(\w+): ([^"]+)">', pages.page(report))
    first = [("before", "100.0", "quantised", "1"), ("after", "33.333", "corrected", "0.01")]
    assert dots[:4] == [*first, ("before", "66.667", "quantised", "0.1"), ("after", "0.0", "corrected", "0.001")]


def test_every_word_of_the_table_is_explained(folder: Path) -> None:
    report = judged(folder)
    content = pages.page(report)
    for word in ("quantised", "corrected", "shift", "SQNR", "step", "standard error", "never active"):
        assert f"<dt>{word}</dt>" in content
    assert "<dt>by moments</dt>" not in content
    assert content.count("title=") > len(pages.TERMS)


def test_it_fits_a_phone_and_follows_the_dark_scheme(folder: Path) -> None:
    judged(folder)
    colors = []
    for browser in started():
        for scheme in ("light", "dark"):
            tab = browser.new_page(viewport=PHONE, color_scheme=scheme)
            tab.goto(f"file://{folder}/fixed.report.html")
            assert tab.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
            assert tab.evaluate("document.querySelector('.bar').clientWidth") > PHONE["width"] / 2
            colors.append(tab.evaluate("getComputedStyle(document.querySelector('svg text')).fill"))
    assert colors == ["rgb(34, 34, 34)", "rgb(230, 230, 230)"]


def test_it_names_channels_that_are_never_active(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", f"{folder}/out", "--json"]) == 0
    written = json.loads(capsys.readouterr().out)
    assert written == json.loads((folder / "out" / "report.json").read_text())
    assert written["layers"]["two"]["never_active"] == [2]
    assert written["layers"][ODD]["never_active"] == []
    assert written["correction"] is written["judgement"] is None
    text = " ".join(Page((folder / "out" / "report.html").read_text()).text)
    assert "1 channel is never active" in text
    assert "two: 2" in text
    assert "The precision of corrections is estimated from the models; give them (--model, " in text


def test_without_writing_a_model_it_tells_what_the_corrections_would_do(folder: Path) -> None:
    before = sorted(folder.iterdir())
    arguments = ["--model", f"{folder}/float.onnx", "--quantized", f"{folder}/quantized.onnx"]
    assert (
        main(["report", f"{folder}/out", *arguments, "--held-out", f"{folder}/held.npy", "-o", f"{folder}/r.html"]) == 0
    )
    assert sorted(folder.iterdir()) == sorted([*before, folder / "r.html", folder / "r.json"])
    written = json.loads((folder / "r.json").read_text())
    assert written["judgement"]["samples"] == 30
    assert set(written["correction"]) == {ODD, "two"}
    assert main(["report", f"{folder}/out", "--held-out", f"{folder}/held.npy"]) == 2


def test_it_says_whether_more_samples_would_change_anything(folder: Path) -> None:
    assert call(folder) == 0
    written = json.loads((folder / "fixed.report.json").read_text())
    worst = max(each["error_in_steps"] for each in written["precision"].values())
    assert worst > 0.5
    needed = max(each["rows_for_half_a_step"] for each in written["precision"].values())
    assert needed == pytest.approx(64 * (worst / 0.5) ** 2, abs=1)
    assert f"about {needed:,} would bring the error to half a step" in pages.page(written)
    known = {name: each | {"error_in_steps": 0.01} for name, each in written["precision"].items()}
    assert "next to nothing" in pages.page(written | {"precision": known})


def test_layers_that_were_not_corrected_are_listed_with_the_reason(folder: Path) -> None:
    (folder / "out" / "correctors" / "two.safetensors").unlink()
    (folder / "out" / "manifest.json").unlink()
    assert call(folder) == 0
    text = " ".join(Page((folder / "fixed.report.html").read_text()).text)
    assert "two (Gemm): no corrector: the run left none for it" in text


def test_without_the_library_for_pages_the_json_is_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str, extra: str) -> Any:
        raise MissingDependencyError(f"{name} is missing; pip install 'streamstats-calibration[{extra}]'")

    monkeypatch.setattr(pages, "require", missing)
    assert call(folder) == 0
    assert "no page: jinja2 is missing" in capsys.readouterr().err
    assert (folder / "fixed.report.json").is_file()
    assert not (folder / "fixed.report.html").exists()


def test_an_output_without_values_has_a_page(tmp_path: Path) -> None:
    build_store(tmp_path / "s.zarr", {"layer": np.full((4, 3), np.nan, np.float32)})
    config = {"source": str(tmp_path / "s.zarr"), "output": str(tmp_path / "out"), "nonfinite": "skip"}
    run(JobConfig.model_validate(config | {"statistics": ["spread"]}).job())
    assert main(["report", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / "report.json").read_text())["layers"]["layer"]["without_values"] == [0, 1, 2]


def test_a_model_in_two_files_has_a_report(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_files, "SINGLE_FILE_BYTES", 10)
    start = ["correct", f"{folder}/float.onnx", "--bits", "4", "--correctors", f"{folder}/out"]
    assert main([*start, "-o", f"{folder}/two.onnx", "--uncorrected", f"{folder}/plain.onnx"]) == 0
    assert (folder / "two.onnx.data").is_file()
    assert json.loads((folder / "two.report.json").read_text())["precision"]


@pytest.mark.parametrize("name", ["r.json", "r", "manifest.html"])
def test_a_report_that_would_write_over_something_else_is_refused(folder: Path, name: str) -> None:
    before = (folder / "out" / "manifest.json").read_bytes()
    assert main(["report", f"{folder}/out", "-o", f"{folder}/out/{name}"]) == 2
    assert call(folder, "--report", f"{folder}/out/{name}") == 2
    assert (folder / "out" / "manifest.json").read_bytes() == before
    assert not (folder / "fixed.onnx").exists()


def test_it_says_what_it_is_about(folder: Path) -> None:
    assert call(folder, "--do-no-harm", "--held-out", f"{folder}/held.npy") == 0
    about = json.loads((folder / "fixed.report.json").read_text())["about"]
    assert about["quantized"].endswith("quantized.onnx")
    assert about["do_no_harm"] is True
    text = " ".join(Page((folder / "fixed.report.html").read_text()).text)
    assert all(str(about[key]) in text for key in ("model", "quantized", "held_out"))
