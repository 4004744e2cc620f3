"""The form that submits a job, and the configuration beside it: two views of one request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import yaml
from browsing import done_job, to
from networks import chain, model_of, values
from playwright.sync_api import Page, expect
from served import STORE, Served

import streamstats.service


def submit(page: Page) -> str:
    """Submit the form; the job's id."""
    page.get_by_role("button", name="Submit", exact=True).click()
    page.wait_for_url("**/#/jobs/*")
    return page.url.rpartition("/")[2]


def configuration(page: Page) -> Any:
    return yaml.safe_load(page.locator("#configuration").input_value())


def typed(page: Page, request: Any) -> None:
    details = page.locator("details", has=page.locator("#configuration"))
    details.evaluate("each => { each.open = true; }")
    page.locator("#configuration").fill(request if isinstance(request, str) else yaml.safe_dump(request))


def test_a_mistake_in_the_form_is_shown_at_its_field(page: Page) -> None:
    to(page, "/submit")
    page.get_by_role("button", name="Submit", exact=True).click()
    wrong = page.locator("#wrong")
    expect(wrong).to_have_text("Source: is missing")
    source = page.locator("[name=source]")
    expect(source).to_have_attribute("aria-invalid", "true")
    expect(source).to_be_focused()
    source.fill("../secret")
    page.get_by_role("button", name="Submit", exact=True).click()
    expect(wrong).to_contain_text("not below a folder")
    source.fill(STORE)
    page.locator("[name=rows]").fill("9:3")
    page.get_by_role("button", name="Submit", exact=True).click()
    expect(wrong).to_contain_text("START less than STOP")
    expect(page.locator("[name=rows]")).to_have_attribute("aria-invalid", "true")
    page.locator("[name=memory]").fill("much")
    page.locator("[name=rows]").fill("")
    page.get_by_role("button", name="Submit", exact=True).click()
    expect(page.locator("[name=memory]")).to_have_attribute("aria-invalid", "true")
    page.locator("[name=memory]").fill("")
    page.locator("[name=priority]").fill("1000")
    page.get_by_role("button", name="Submit", exact=True).click()
    expect(wrong).to_have_text("Priority: found 1000, expected at most 100")
    expect(page.locator("[name=priority]")).to_be_focused()


def test_a_model_is_uploaded_corrected_and_submitted_again_without_loss(
    page: Page, service: Served, tmp_path: Path
) -> None:
    nodes, constants = chain()
    x = values(8, 3, 8, 8, seed=21)
    onnx.save(model_of(nodes, constants, x), tmp_path / "model.onnx")
    np.save(tmp_path / "samples.npy", x)
    to(page, "/submit")
    page.get_by_label("Correct an ONNX model").check()
    page.get_by_role("button", name="Submit", exact=True).click()
    expect(page.locator("#wrong")).to_have_text("Float model: is missing")
    page.get_by_label("Float model").set_input_files(tmp_path / "model.onnx")
    page.get_by_label("Calibration samples").set_input_files(tmp_path / "samples.npy")
    expect(page.get_by_text("samples.npy, ")).to_contain_text("uploaded")
    page.get_by_role("button", name="Submit", exact=True).click()
    expect(page.locator("#wrong")).to_contain_text("either a quantised model or `bits`")
    page.get_by_label("Bits", exact=True).fill("5")
    page.get_by_label("Weight ranges").select_option("least squared error")
    page.get_by_label("Activation bits").fill("8")
    page.get_by_label("Activation ranges").select_option("entropy")
    page.get_by_label("One range per channel").check()
    page.locator("[name=submitter]").fill("modeller")
    first = submit(page)
    with service.client() as client, service.http() as http:
        before = client.wait(first)
        for name in ("model", "samples"):
            assert http.delete(f"/api/v1/uploads/{before.request[name]}").status_code == 204
        assert (before.request["bits"], before.request["per_channel"]) == (5, True)
        expect(page.locator(".state")).to_have_text("done")
        page.get_by_role("link", name="Submit again").first.click()
        expect(page.get_by_text("the file of the earlier job")).to_have_count(2)
        expect(page.get_by_label("Bits", exact=True)).to_have_value("5")
        assert configuration(page)["memory"] == before.request["memory"]  # even where it is the default of the schema
        second = submit(page)
        assert client.job(second).request == before.request
        client.cancel(second)
        assert second != first


WHOLE = {
    "kind": "run",
    "source": STORE,
    "name": "all of it",
    "tags": ["ci", "branch:main"],
    "note": "two\nlines: with – dashes",
    "submitter": "ann",
    "priority": 3,
    "memory": 2**29,
    "rows": "0:20",
    "min_rows": 4,
    "missing": "fill",
    "nonfinite": "skip",
    "attributes": "ignore",
    "statistics": ["spread"],
    "follow": {"rows": 20, "idle": 0.5},
    "layers": [
        {"match": "block1/*", "channel_axis": 3, "statistics": [], "min_rows": 5},
        {"match": "fc", "quantization": {"scale": [0.5] * 10, "scale_is": "step", "zero_point": [3] * 10}},
    ],
}
"""A request with nearly every key, most of them twice."""


def test_submit_again_repeats_the_whole_request(page: Page, service: Served) -> None:
    first = done_job(service, **WHOLE)
    to(page, f"/jobs/{first}")
    page.get_by_role("link", name="Submit again").first.click()
    expect(page.get_by_text("There are 2 rules for layers")).to_be_visible()
    expect(page.locator("[name='follow.idle']")).to_have_value("0.5")
    assert {key: value for key, value in configuration(page).items() if key != "layers"} == {
        key: value for key, value in WHOLE.items() if key != "layers"
    }
    second = submit(page)
    with service.client() as client:
        before, after = client.job(first), client.job(second)
    assert after.request == before.request
    assert (after.name, after.tags, after.note) == (WHOLE["name"], WHOLE["tags"], WHOLE["note"])
    assert second != first


def test_a_change_in_the_form_changes_that_key_alone(page: Page, service: Served) -> None:
    to(page, f"/jobs/{done_job(service, **WHOLE)}")
    page.get_by_role("link", name="Submit again").first.click()
    before = configuration(page)
    page.locator("[name=min_rows]").fill("6")
    page.get_by_label("Follow: count").uncheck()
    expected = {**before, "min_rows": 6}
    del expected["follow"]
    assert configuration(page) == expected


def test_the_configuration_is_checked_as_one_types_and_fills_in_the_form(page: Page, service: Served) -> None:
    to(page, "/submit")
    typed(page, {"source": STORE, "output": "out", "cluster": {"workers": 4}, "min_rows": 3, "rows": "0:8"})
    expect(page.locator("[name=source]")).to_have_value(STORE)
    expect(page.locator("[name=min_rows]")).to_have_value("3")
    found = page.get_by_role("status", name="What is wrong with the configuration").get_by_role("listitem")
    left = [f"{key} is left out: the service decides that" for key in ("output", "cluster")]
    expect(found).to_have_text(left)
    for wrong, said in WRONG.items():
        typed(page, f"kind: run\nsource: {STORE}\n{wrong}\n")
        expect(found).to_contain_text([said])
    page.get_by_role("button", name="Submit", exact=True).click()
    expect(page.locator("#configuration")).to_be_focused()
    typed(page, {"source": STORE, "rows": "0:8", "layers": [{"match": "fc"}]})
    expect(found).to_have_count(0)
    expect(page.get_by_label("Layers", exact=True)).to_have_value("fc")
    name = submit(page)
    with service.client() as client:
        assert list(client.layers(client.wait(name).id)["layers"]) == ["fc"]


WRONG = {
    "missing: perhaps": 'missing: found "perhaps", expected one of "error", "report", "fill"',
    "min_rows: -1": "min_rows: found -1, expected at least 0",
    "priority: 2.5": "priority: found 2.5, expected a whole number",
    "rowz: 0:4": "rowz: is no key here; the keys are",
    "layers: [{channel_axis: 1}]": "layers[0].match: is missing",
    "layers: [{match: a, quantization: {scale: x, scale_is: step}}]": "layers[0].quantization.scale: found",
    "tags: [a b]": "tags[0]: found",
    "rows: [": "configuration: line",
    "- a": "configuration:",
}
"""What is wrong in a configuration → how the page says so."""


def test_a_kind_that_does_not_exist_is_told(page: Page) -> None:
    to(page, "/submit")
    typed(page, "kind: walk")
    expect(page.get_by_role("listitem").filter(has_text="kind:")).to_contain_text("expected one of run, onnx")
    typed(page, "kind: onnx\nbits: 99\nmodel: x")
    expect(page.get_by_label("Correct an ONNX model")).to_be_checked()
    for said in ("bits: found 99, expected at most 16", "samples: is missing", "model: found"):
        expect(page.get_by_role("listitem").filter(has_text=said)).to_be_visible()


def test_the_statistics_to_choose_from_are_those_of_the_service(page: Page, service: Served) -> None:
    with service.http() as http:
        offered = http.get("/api/v1/statistics").json()
    to(page, "/submit")
    group = page.get_by_role("group", name="Additional statistics")
    for each in offered:
        expect(group).to_contain_text(each["description"])
    group.get_by_label(offered[0]["name"], exact=True).check()
    assert configuration(page)["statistics"] == [offered[0]["name"]]
    group.get_by_label(offered[0]["name"], exact=True).uncheck()
    assert "statistics" not in configuration(page)
    names = {each["name"] for each in offered}
    scripts = Path(streamstats.service.__file__).parent.joinpath("page").glob("*.js")
    assert not [(script.name, name) for script in scripts for name in names if name in script.read_text()]
