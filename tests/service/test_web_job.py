"""A job in the page: what it found comes first; how far it has come, what to do next, and how to get the results."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from browsing import PHONE, another_job, done_job, new_context, to, watched
from networks import chain, model_of, values
from playwright.sync_api import Browser, Page, Route, expect
from served import STORE, Served, small_store
from stores import build_store

import streamstats as ss
from streamstats.correction import MeanBiasCorrector
from streamstats.models.advice import IN_A_JOB
from streamstats.models.judgement import IN_FLOATS


@pytest.fixture(scope="session")
def troubled(service: Served) -> str:
    """A job over a store in which something of everything is wrong; the order is that of the network."""
    generator = np.random.default_rng(3)
    first, second, third = (generator.normal(size=(20, 6)).astype(np.float32) for _ in range(3))
    first[:, 2] = 0
    second[4, 1] = np.nan
    second[4, 3] = np.inf
    layers = {"stem": first, "block10": second, "block2": third, "block1": third * 0 + 1}
    attributes = {name: {"order": order} for order, name in enumerate(layers)}
    store = build_store(service.roots / "troubled.zarr", layers, attributes=attributes)
    (store / "block2" / "c" / "3" / "0").unlink()
    request = {"missing": "report", "nonfinite": "skip", "min_rows": 19, "statistics": ["spread"]}
    return done_job(service, source="troubled.zarr", **request)


def test_submit_a_job_watch_it_finish_open_a_layer_and_download(page: Page, service: Served, tmp_path: Path) -> None:
    to(page, "/submit")
    for name, value in {"source": STORE, "submitter": "ann", "rows": "0:20"}.items():
        page.locator(f"[name={name}]").fill(value)
    page.get_by_role("button", name="Submit", exact=True).click()
    expect(page.locator(".state")).to_have_text("done")
    name = page.url.rpartition("/")[2]
    expect(page.get_by_label("Result")).to_contain_text("20 rows")
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Download the corrector of fc").click()
    waiting.value.save_as(tmp_path / "fc.safetensors")
    corrector = ss.BiasCorrector.load(tmp_path / "fc.safetensors")
    assert isinstance(corrector, MeanBiasCorrector)
    with service.client() as client:
        assert corrector.input_mean.tolist() == client.channels(name, "fc")["per_channel"]["mean"]
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Download all").click()
    assert waiting.value.suggested_filename == f"{name}.zip"
    page.get_by_role("link", name="block1/conv").click()
    expect(page.locator("main")).to_contain_text("20 samples")
    page.go_back()
    expect(page.locator("h1")).to_have_text(f"Job {name}")


def test_progress_is_live(page: Page, service: Served) -> None:
    with service.client() as client:
        client.ingest("live", "a", np.ones((8, 3), np.float32))
        name = client.submit({"kind": "run", "source": "store:live", "follow": {}}).id
        to(page, f"/jobs/{name}")
        cell = page.get_by_role("table", name="Layers").locator("td[data-label=Rows]")
        expect(cell).to_have_text("8")
        client.ingest("live", "a", np.ones((8, 3), np.float32))
        expect(cell).to_have_text("16")  # without anything being done in the page
        expect(page.locator(".state")).to_have_text("running")
        page.get_by_role("button", name="Cancel").click()
        page.get_by_role("button", name="No", exact=True).click()
        expect(page.locator(".state")).to_have_text("running")
        page.get_by_role("button", name="Cancel").click()
        page.get_by_role("button", name="Cancel the job").click()
        expect(page.locator(".state")).to_have_text("cancelled")
        expect(page.get_by_role("status").filter(has_text="is cancelled")).to_have_count(1)
        page.get_by_role("button", name="Delete").click()
        page.locator("#confirm").get_by_role("button", name="Delete").click()
        page.wait_for_url("**/#/jobs")
        expect(page.locator("main")).not_to_contain_text(name)


def test_layers_that_need_attention_come_before_the_rest_in_the_order_of_the_network(page: Page, troubled: str) -> None:
    to(page, f"/jobs/{troubled}")
    worrying = page.get_by_role("table", name="Layers that need attention")
    expect(worrying.locator("td.name")).to_have_text(["stem", "block10", "block2"])
    said = {"stem": "1 channel of 6 never active", "block10": "1 NaN and 1 infinity left out"}
    said["block2"] = "2 rows missing, the first in rows 6:8"
    for name, text in said.items():
        expect(worrying.locator("tr").filter(has_text=name)).to_contain_text(text)
    expect(worrying.locator("tr").filter(has_text="block2")).to_contain_text("too few samples: 18 rows counted")
    expect(worrying.locator("tr").filter(has_text="stem")).to_contain_text("too few samples: a mean is known to ±")
    everything = page.get_by_role("table", name="Layers", exact=True)
    expect(everything.locator("td.name")).to_have_text(["stem", "block10", "block2", "block1"])
    tops = [each.bounding_box() for each in (worrying, everything)]
    assert tops[0] is not None
    assert tops[1] is not None
    assert tops[0]["y"] < tops[1]["y"]
    expect(page.get_by_role("img", name="2 rows missing")).to_be_visible()
    expect(page.get_by_role("img", name="all rows are counted")).to_have_count(3)


def test_layers_are_sorted_and_searched_and_show_every_figure(page: Page, service: Served) -> None:
    to(page, f"/jobs/{done_job(service, statistics=['spread'])}")
    table = page.get_by_role("table", name="Layers", exact=True)
    names = table.locator("td.name")
    expect(names).to_have_text(["block1/conv", "fc"])
    page.get_by_role("button", name="Channels").click()
    expect(names).to_have_text(["block1/conv", "fc"])
    page.get_by_role("button", name="Channels").click()
    expect(names).to_have_text(["fc", "block1/conv"])
    expect(page.get_by_role("columnheader", name="Channels")).to_have_attribute("aria-sort", "descending")
    page.get_by_label("Search").fill("CONV")
    expect(names).to_have_text(["block1/conv"])
    expect(page.locator("main")).to_contain_text("1 of 2 layers")
    page.get_by_label("All figures").check()
    expect(table.locator("th").filter(has_text="Largest standard error")).to_be_visible()
    expect(names).to_have_text(["block1/conv"])


def test_the_commands_to_get_results_work(page: Page, service: Served, tmp_path: Path) -> None:
    name = done_job(service)
    to(page, f"/jobs/{name}")
    page.get_by_text("Get the results").click()
    shown = {each: page.get_by_label(each, exact=True).inner_text() for each in ("Command line", "curl", "Python")}
    (tmp_path / "token").write_text(service.token)
    streamstats = tmp_path / "bin" / "streamstats"
    streamstats.parent.mkdir()
    streamstats.write_text(f'#!/bin/sh\nexec {sys.executable} -m streamstats "$@"\n')
    streamstats.chmod(0o700)
    environment = {**os.environ, "PATH": f"{streamstats.parent}:{os.environ['PATH']}"}
    subprocess.run(["sh", "-ec", shown["Command line"]], cwd=tmp_path, check=True, env=environment)
    assert (tmp_path / f"results-{name}" / "manifest.json").exists()
    shutil.rmtree(tmp_path / f"results-{name}")
    if shutil.which("curl"):
        with_token = {**environment, "STREAMSTATS_TOKEN_FILE": "token"}
        subprocess.run(["sh", "-ec", shown["curl"]], cwd=tmp_path, check=True, env=with_token)
        assert "manifest.json" in zipfile.ZipFile(tmp_path / f"results-{name}.zip").namelist()
    printed = subprocess.run([sys.executable, "-c", shown["Python"]], cwd=tmp_path, check=True, capture_output=True)
    assert b"block1/conv 32 " in printed.stdout
    assert (tmp_path / f"results-{name}" / "manifest.json").exists()


def test_a_command_is_copied(page: Page, service: Served) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=service.url)
    name = done_job(service)
    to(page, f"/jobs/{name}")
    page.get_by_text("Get the results").click()
    page.get_by_role("button", name="Copy: Command line").click()
    expect(page.get_by_role("button", name="Copy: Command line")).to_have_text("Copied")
    assert f"streamstats fetch {name}" in page.evaluate("navigator.clipboard.readText()")


def test_the_configuration_and_the_attempts_are_shown_and_deleting_is_last(page: Page, service: Served) -> None:
    name = done_job(service, rows="0:20", statistics=["spread"])
    to(page, f"/jobs/{name}")
    page.get_by_text("Times, attempts and configuration").click()
    configuration = page.get_by_label("Configuration, as it was submitted", exact=True)
    expect(configuration).to_contain_text("rows: '0:20'")
    expect(page.locator("dl").filter(has_text="Attempts")).to_contain_text("Attempts1")
    buttons = page.locator(".actions").locator("button, a")
    assert buttons.all_inner_texts()[0] == "Submit again"
    assert buttons.all_inner_texts()[-1] == "Delete"


def test_a_name_tags_and_a_note_can_be_given_at_any_time(page: Page, service: Served) -> None:
    name = another_job(service, rows="0:6")
    to(page, f"/jobs/{name}")
    page.get_by_role("button", name="Name, tags, note").click()
    page.get_by_label("Name", exact=True).fill("before the fix")
    page.get_by_label("Tags", exact=True).fill("ci, main ci")
    page.get_by_label("Note", exact=True).fill("two\nlines")
    page.get_by_role("button", name="Save").click()
    expect(page.locator("h1")).to_have_text("before the fix")
    expect(page.locator(".note")).to_have_text("two lines")
    with service.client() as client:
        found = client.job(name)
    assert (found.name, found.tags, found.note) == ("before the fix", ["ci", "main"], "two\nlines")


def test_a_job_that_fails_says_why_and_what_to_do_and_that_works(page: Page, service: Served) -> None:
    values = np.ones((8, 2), np.float32)
    values[3, 1] = np.nan
    build_store(service.roots / "nan.zarr", {"a": values})
    to(page, f"/jobs/{another_job(service, source='nan.zarr')}")
    expect(page.locator(".state")).to_have_text("failed")
    steps = page.get_by_label("Next steps")
    expect(steps.get_by_role("alert")).to_contain_text("NaN or infinite")
    steps.get_by_role("link", name="Submit again with nonfinite: skip").click()
    expect(page.get_by_label("NaN and infinities")).to_have_value("skip")
    page.get_by_role("button", name="Submit", exact=True).click()
    expect(page.locator(".state")).to_have_text("done")
    expect(page.get_by_role("table", name="Layers that need attention")).to_contain_text("1 NaN left out")


def test_a_request_at_fault_is_changed_in_the_form(page: Page, service: Served) -> None:
    name = another_job(service, rows="0:8", layers=[{"match": "conv9"}])
    with service.client() as client:
        assert client.job(name).exit_status == 2
    to(page, f"/jobs/{name}")
    steps = page.get_by_label("Next steps")
    expect(steps.get_by_role("link", name="Submit again")).to_have_count(0)  # that would change nothing
    steps.get_by_role("link", name="Change the configuration").click()
    expect(page.locator("[name=rows]")).to_have_value("0:8")
    page.get_by_label("Layers", exact=True).fill("fc")
    page.get_by_role("button", name="Submit", exact=True).click()
    expect(page.locator(".state")).to_have_text("done")


def test_rows_that_do_not_count_are_said_with_the_layers_and_the_store(page: Page, service: Served) -> None:
    with service.client() as client:
        for key in "ab":
            client.ingest("partly", "a", np.ones((8, 3), np.float32), key=key)
        client.ingest("partly", "b", np.ones((4, 3), np.float32))
        name = client.wait(client.submit({"kind": "run", "source": "store:partly"}).id).id
        client.withdraw("partly", "a", "b")
        client.forget(name)
        client.wait(name)
    to(page, f"/jobs/{name}")
    rows = page.get_by_role("table", name="Layers").locator("td[data-label=Rows]")
    expect(rows).to_have_text(["88 taken back", "4"])
    expect(page.get_by_role("img", name="all rows are counted except 8 that were taken back")).to_be_visible()
    to(page, "/stores")
    store = page.locator("section", has=page.get_by_role("heading", name="partly"))
    expect(store).to_contain_text("20 rows of 2 layers, 8 of them withdrawn")
    expect(store.locator("td.number")).to_have_text(["168 withdrawn", "4"])


def test_what_is_missing_and_no_store_have_next_steps_too(page: Page, service: Served) -> None:
    store = small_store(service.roots / "gaps.zarr")
    (store / "fc" / "c" / "3" / "0").unlink()
    to(page, f"/jobs/{another_job(service, source='gaps.zarr')}")
    page.get_by_role("link", name="Submit again with missing: report").click()
    expect(page.get_by_label("Missing chunks")).to_have_value("report")
    (service.roots / "empty").mkdir(exist_ok=True)
    to(page, f"/jobs/{done_job(service, source='empty')}")
    page.get_by_role("link", name="Choose another source").click()
    expect(page.locator("[name=source]")).to_have_value("")
    expect(page.locator("#sources option").first).to_be_attached()


@pytest.fixture(scope="session")
def corrected(service: Served, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that was corrected and judged."""
    folder = tmp_path_factory.mktemp("model")
    nodes, constants = chain()
    onnx.save(model_of(nodes, constants, values(1, 3, 8, 8)), folder / "model.onnx")
    arrays = {
        "samples": values(24, 3, 8, 8, seed=1),
        "held_out": values(16, 3, 8, 8, seed=2),
        "labels": np.arange(16) % 5,
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    with service.client() as client:
        ids = {path.stem: client.upload(path).id for path in folder.iterdir()}
        return client.wait(client.submit({"kind": "onnx", **ids, "bits": 4, "submitter": "ann"}).id).id


def test_a_correction_leads_with_accuracy_and_sqnr(page: Page, service: Served, corrected: str, tmp_path: Path) -> None:
    with service.http() as http:
        judged = http.get(f"/api/v1/jobs/{corrected}/files/report.json").json()["judgement"]
    to(page, f"/jobs/{corrected}")
    result = page.get_by_label("Result")
    for kind, (before, after) in {
        "Accuracy": [f"{100 * judged['accuracy'][model]:.1f} %" for model in ("quantised", "corrected")],
        "SQNR of the outputs": [
            f"{judged['outputs'][model]['sqnr_db']:.1f} dB" for model in ("quantised", "corrected")
        ],
    }.items():
        expect(result.locator("div").filter(has=page.get_by_text(kind, exact=True)).last).to_contain_text(
            f"{before} → {after}".replace("-", "−")
        )
    verdict = "is beyond chance" if judged["accuracy_gain"]["corrected"]["clear"] else "may be chance"
    expect(result).to_contain_text(f"points, which {verdict}")
    expect(result).to_contain_text("16 held-out samples")
    with page.expect_download() as waiting:
        result.get_by_role("button", name="Download the model").click()
    waiting.value.save_as(tmp_path / "corrected.onnx")
    onnx.checker.check_model(onnx.load(tmp_path / "corrected.onnx"))
    page.get_by_role("button", name="Show the report").click()
    expect(page.frame_locator("iframe").locator("body")).to_contain_text("SQNR")


def test_what_limits_the_figures_of_a_correction_is_said_with_the_remedy(page: Page, corrected: str) -> None:
    def answer(route: Route) -> None:
        report = route.fetch().json()
        report["judgement"]["caveat"] = IN_FLOATS  # as of a model on codes
        route.fulfill(json=report)

    page.route("**/files/report.json", answer)
    to(page, f"/jobs/{corrected}")
    expect(page.get_by_label("Result")).to_contain_text(f"{IN_FLOATS[0].upper()}{IN_FLOATS[1:]}: {IN_A_JOB.caveat}.")


def as_running(page: Page, service: Served, job: str, **changes: Any) -> None:
    """Show `job` as if it were in another state."""
    with service.http() as http:
        view = {**http.get(f"/api/v1/jobs/{job}").json(), "ended": None, "results": None, **changes}

    def answer(route: Route) -> None:
        if route.request.url.endswith("/events"):
            route.fulfill(content_type="text/event-stream", body=f"event: job\ndata: {json.dumps(view)}\n\n")
        else:
            route.fulfill(json=view)

    page.route(f"**/api/v1/jobs/{job}", answer)
    page.route(f"**/api/v1/jobs/{job}/events", answer)
    to(page, f"/jobs/{job}")


def test_a_correction_shows_its_steps_and_only_a_time_that_it_knows(
    page: Page, service: Served, corrected: str
) -> None:
    stage = {"step": 2, "steps": ["record", "count", "correct", "report"], "unit": "samples", "done": 3, "total": 12}
    stage |= {"what": "correcting stage 1 of 4", "seconds_left": 100.0}
    as_running(page, service, corrected, state="running", stage=stage)
    steps = page.get_by_role("list", name="Steps").get_by_role("listitem")
    expect(steps).to_have_text(["Run the model", "Count", "Correct", "Report"])
    expect(steps.nth(2)).to_have_attribute("aria-current", "step")
    figures = page.locator("dl").first
    expect(figures).to_contain_text("3 of 12 samples")
    expect(figures).to_contain_text("Time left of this stage2 min")
    expect(figures).to_contain_text("Thenreport: time not known yet")
    expect(page.get_by_role("progressbar")).to_have_attribute("aria-label", "56 % done")
    page.unroute_all()
    as_running(page, service, corrected, state="running", stage={**stage, "seconds_left": None})
    page.reload()
    expect(figures).to_contain_text("Time left of this stagenot known yet")


@pytest.mark.parametrize("state", ["queued", "cancelling"])
def test_a_job_that_waits_or_ends_says_so(page: Page, service: Served, state: str) -> None:
    as_running(page, service, done_job(service), state=state)
    expect(page.locator(".state")).to_have_text(state)
    expect(page.get_by_role("button", name="Delete")).to_have_count(0)
    if state == "queued":
        expect(page.locator(".panel").first).to_contain_text("Queued")
        expect(page.get_by_role("button", name="Cancel")).to_be_enabled()
    else:
        expect(page.get_by_role("button", name="Cancel")).to_be_disabled()


def test_a_thousand_layers_fill_few_screens_of_a_phone(browser: Browser, service: Served) -> None:
    name = done_job(service)
    with service.http() as http:
        found = http.get(f"/api/v1/jobs/{name}/layers").json()
    layers = {f"block{number}/conv": {**found["layers"]["fc"], "never_active": 1} for number in range(1000)}
    phone = new_context(browser, PHONE)
    for page in watched(phone, service):
        page.route(f"**/api/v1/jobs/{name}/layers*", lambda route: route.fulfill(json={**found, "layers": layers}))
        to(page, f"/jobs/{name}")
        expect(page.get_by_role("table", name="Layers", exact=True)).to_be_visible()
        expect(page.locator("main")).to_contain_text("1,000 layers of 1,000 need attention")
        assert page.evaluate("document.documentElement.scrollHeight") < 6 * PHONE["height"]
        page.get_by_role("button", name="Next rows of Layers", exact=True).click()
        expect(page.get_by_text("13 to 24 of 1,000")).to_be_visible()
        page.get_by_label("Search").fill("block999/")
        expect(page.get_by_role("table", name="Layers", exact=True).locator("tbody tr")).to_have_count(1)
    phone.close()
