"""The page in a real browser: submit, watch, look, download, cancel, with a pointer and with keys alone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from networks import chain, model_of, values
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from served import STORE, Served, served, small_store, wait_until

import streamstats as ss
import streamstats.service
from streamstats.correction import MeanBiasCorrector
from streamstats.service.client import RefusedError

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
OPTIONS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
SECONDS = 30_000
expect.set_options(timeout=SECONDS)  # a machine that is busy is no fault
WIDE, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    with sync_playwright() as playwright:
        if not (found or os.environ.get("CI") or Path(playwright.chromium.executable_path).exists()):
            pytest.skip("no browser is installed; `make browser` installs one")
        started = playwright.chromium.launch(executable_path=found, args=list(OPTIONS))
        yield started
        started.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("pages"), limits={"running_jobs": 2}) as service:
        yield service


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport=WIDE, accept_downloads=True, locale="en-GB", timezone_id="UTC")  # type: ignore[arg-type]
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext, pages: Served) -> Iterator[Page]:
    yield from watched(context, pages)


def watched(context: BrowserContext, pages: Served) -> Iterator[Page]:
    """A page with the token; no errors of its own, and nothing asked of anybody else, when it is closed."""
    page = context.new_page()
    page.set_default_timeout(SECONDS)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if "Content Security Policy" in said.text else None)
    page.on("request", lambda asked: None if asked.url.startswith((pages.url, "blob:")) else wrong.append(asked.url))
    page.goto(f"{pages.url}/#token={pages.token}")
    expect(page.locator("h1")).to_have_text("Jobs")
    yield page
    assert not wrong


def submitted(page: Page, **fields: str) -> str:
    """Fill in the form and submit it; the job's id."""
    page.get_by_role("link", name="Submit", exact=True).click()
    return submitted_form(page, **fields)


def submitted_form(page: Page, **fields: str) -> str:
    for name, value in fields.items():
        page.locator(f"[name={name}]").fill(value)
    page.get_by_role("button", name="Submit", exact=True).click()
    page.wait_for_url("**/#/jobs/*")
    return page.url.rpartition("/")[2]


def done_job(service: Served, **request: Any) -> str:
    with service.client() as client:
        return client.wait(client.submit({"kind": "run", "source": STORE, **request}).id).id


def test_the_token_leaves_the_address_and_a_wrong_one_is_asked_for_again(
    context: BrowserContext, pages: Served
) -> None:
    page = context.new_page()
    page.goto(pages.url)
    expect(page.get_by_role("heading", name="Token")).to_be_visible()
    page.get_by_label("Token").fill("wrong")
    page.get_by_role("button", name="Enter").click()
    expect(page.get_by_role("heading", name="Token")).to_be_visible()
    page.get_by_label("Token").fill(pages.token)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Jobs")).to_be_visible()
    page.goto(f"{pages.url}/#token={pages.token}")
    page.wait_for_url("**/#/jobs")
    assert pages.token not in page.url


def test_submit_a_job_watch_it_finish_open_a_layer_and_download(page: Page, pages: Served, tmp_path: Path) -> None:
    name = submitted(page, source=STORE, submitter="ann", rows="0:20")
    expect(page.locator(".state")).to_have_text("done")
    expect(page.locator("dl")).to_contain_text("Rows")
    expect(page.get_by_role("table", name="Layers")).to_contain_text("fc")
    expect(page.get_by_role("list").filter(has_text="done")).to_be_visible()
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Download the corrector of fc").click()
    waiting.value.save_as(tmp_path / "fc.safetensors")
    corrector = ss.BiasCorrector.load(tmp_path / "fc.safetensors")
    assert isinstance(corrector, MeanBiasCorrector)
    with pages.client() as client:
        assert corrector.input_mean.tolist() == client.channels(name, "fc")["per_channel"]["mean"]
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Download all").click()
    assert waiting.value.suggested_filename == f"{name}.zip"
    page.get_by_role("link", name="block1/conv").click()
    expect(page.locator("h1")).to_have_text("block1/conv")
    expect(page.locator("main")).to_contain_text("20 rows")
    page.go_back()
    expect(page.locator("h1")).to_have_text(f"Job {name}")


def test_progress_is_live(page: Page, pages: Served) -> None:
    with pages.client() as client:
        client.ingest("live", "a", np.ones((8, 3), np.float32))
        name = client.submit({"kind": "run", "source": "store:live", "follow": {}}).id
        page.goto(f"{pages.url}/#/jobs/{name}")
        cell = page.get_by_role("table", name="Layers").locator("td[data-label=Rows]")
        expect(cell).to_have_text("8")
        client.ingest("live", "a", np.ones((8, 3), np.float32))
        expect(cell).to_have_text("16")  # without anything being done in the page
        expect(page.locator(".state")).to_have_text("running")
        page.get_by_role("button", name="Cancel").click()
        page.get_by_role("button", name="No", exact=True).click()
        expect(page.locator(".state")).to_have_text("running")
        page.get_by_role("button", name="Cancel").click()
        page.get_by_role("button", name="Yes").click()
        expect(page.locator(".state")).to_have_text("cancelled")
        page.get_by_role("button", name="Delete").click()
        page.get_by_role("button", name="Yes").click()
        page.wait_for_url("**/#/jobs")
        expect(page.locator("main")).not_to_contain_text(name)


def test_a_mistake_in_the_form_is_shown_at_its_field(page: Page) -> None:
    page.get_by_role("link", name="Submit", exact=True).click()
    page.get_by_role("button", name="Submit", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("Source")
    source = page.locator("[name=source]")
    expect(source).to_have_attribute("aria-invalid", "true")
    expect(source).to_be_focused()
    source.fill("../secret")
    page.get_by_role("button", name="Submit", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("not below a folder")
    source.fill(STORE)
    page.locator("[name=rows]").fill("9:3")
    page.get_by_role("button", name="Submit", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("START less than STOP")
    expect(page.locator("[name=rows]")).to_have_attribute("aria-invalid", "true")
    page.locator("[name=memory]").fill("much")
    page.locator("[name=rows]").fill("")
    page.get_by_role("button", name="Submit", exact=True).click()
    expect(page.locator("[name=memory]")).to_have_attribute("aria-invalid", "true")


def test_a_model_is_uploaded_corrected_and_downloaded(page: Page, tmp_path: Path) -> None:
    nodes, constants = chain()
    x = values(8, 3, 8, 8)
    onnx.save(model_of(nodes, constants, x), tmp_path / "model.onnx")
    np.save(tmp_path / "samples.npy", x)
    page.get_by_role("link", name="Submit", exact=True).click()
    page.get_by_label("Correct an ONNX model").check()
    page.get_by_label("Float model").set_input_files(tmp_path / "model.onnx")
    page.get_by_label("Calibration samples").set_input_files(tmp_path / "samples.npy")
    page.get_by_role("button", name="Submit", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("either a quantised model or `bits`")
    page.get_by_label("Bits", exact=True).fill("5")
    page.get_by_label("Weight ranges").select_option("least squared error")
    page.get_by_label("Activation bits").fill("8")
    page.get_by_label("Activation ranges").select_option("entropy")
    page.get_by_role("button", name="Submit", exact=True).click()
    expect(page.locator(".state")).to_have_text("done")
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Download the model").click()
    waiting.value.save_as(tmp_path / "corrected.onnx")
    corrected = onnx.load(tmp_path / "corrected.onnx")
    onnx.checker.check_model(corrected)
    assert "Round" in {node.op_type for node in corrected.graph.node}  # of activations


def test_the_statistics_to_choose_from_are_those_of_the_service(page: Page, pages: Served) -> None:
    with pages.http() as http:
        offered = http.get("/api/v1/statistics").json()
    page.get_by_role("link", name="Submit", exact=True).click()
    group = page.get_by_role("group", name="Additional statistics")
    for each in offered:
        expect(group).to_contain_text(each["description"])
    group.get_by_label(offered[0]["name"], exact=True).check()
    name = submitted_form(page, source=STORE)
    expect(page.locator(".state")).to_have_text("done")
    with pages.client() as client:
        assert client.job(name).request["statistics"] == [offered[0]["name"]]
    page.get_by_role("link", name="Submit again").click()
    expect(group.get_by_role("checkbox", checked=True)).to_have_count(1)
    expect(group.get_by_label(offered[0]["name"], exact=True)).to_be_checked()
    names = {each["name"] for each in offered}
    scripts = Path(streamstats.service.__file__).parent.joinpath("page").glob("*.js")
    assert not [(script.name, name) for script in scripts for name in names if name in script.read_text()]


def test_a_job_that_fails_shows_why(page: Page, pages: Served) -> None:
    (pages.roots / "empty").mkdir(exist_ok=True)
    submitted(page, source="empty")
    expect(page.locator(".state")).to_have_text("failed")
    expect(page.get_by_role("alert")).to_contain_text("zarr group")


def test_what_is_missing_is_shown(page: Page, pages: Served) -> None:
    store = small_store(pages.roots / "damaged.zarr")
    (store / "fc" / "c" / "3" / "0").unlink()
    name = done_job(pages, source="damaged.zarr", missing="report")
    page.goto(f"{pages.url}/#/jobs/{name}")
    expect(page.locator("details")).to_contain_text("fc, rows 6:8")
    expect(page.get_by_role("img", name="2 rows are missing")).to_be_visible()
    expect(page.get_by_role("img", name="all rows are counted")).to_be_visible()


def test_layers_below_min_rows_are_shown(page: Page) -> None:
    submitted(page, source=STORE, submitter="ann", rows="0:20", min_rows="24")
    expect(page.locator(".state")).to_have_text("incomplete")
    expect(page.locator("details").filter(has_text="below min_rows")).to_contain_text(
        "fc: 20 rows counted; `min_rows` is 24"
    )
    columns = page.get_by_role("table", name="Layers").locator("th")
    expect(columns.filter(has_text="Shortfall")).to_have_count(0)


def test_layers_are_sorted_and_searched(page: Page, pages: Served) -> None:
    page.goto(f"{pages.url}/#/jobs/{done_job(pages)}")
    names = page.get_by_role("table", name="Layers").locator("td.name")
    expect(names).to_have_text(["block1/conv", "fc"])
    page.get_by_role("button", name="Channels").click()
    expect(names).to_have_text(["block1/conv", "fc"])
    page.get_by_role("button", name="Channels").click()
    expect(names).to_have_text(["fc", "block1/conv"])
    expect(page.get_by_role("columnheader", name="Channels")).to_have_attribute("aria-sort", "descending")
    page.get_by_label("Search").fill("CONV")
    expect(names).to_have_text(["block1/conv"])
    expect(page.locator("main")).to_contain_text("1 of 2 layers")


def test_tables_of_counts_are_drawn_as_bars_and_other_tables_are_listed(page: Page, pages: Served) -> None:
    name = done_job(pages, statistics=["histogram"])
    page.goto(f"{pages.url}/#/jobs/{name}/layers/fc")
    with pages.client() as client:
        tables = client.channels(name, "fc")["tables"]
    counts = [count for *_, count in tables["histogram"]["rows"]]
    bars = page.get_by_role("img", name="histogram of fc").locator("span")
    expect(bars).to_have_count(len(counts))
    heights = bars.evaluate_all("all => all.map((bar) => bar.getBoundingClientRect().height)")
    assert heights.index(max(heights)) == counts.index(max(counts))
    assert [height > 0 for height in heights] == [count > 0 for count in counts]
    page.locator("summary", has_text="quantiles").click()
    expect(page.get_by_role("table", name="quantiles of fc").locator("tbody tr")).to_have_count(
        len(tables["quantiles"]["rows"])
    )


def test_the_channels_are_a_plot_that_answers_to_pointer_and_keys(page: Page, pages: Served) -> None:
    name = done_job(pages)
    page.goto(f"{pages.url}/#/jobs/{name}/layers/fc")
    plot = page.locator("canvas")
    readout = page.locator(".readout")
    with pages.client() as client:
        means = client.channels(name, "fc")["per_channel"]["mean"]
    plot.focus()
    page.keyboard.press("ArrowRight")
    expect(readout).to_contain_text("channel 0, ")
    page.keyboard.press("End")
    expect(readout).to_contain_text(f"channel 9, mean {float(f'{means[9]:.4g}'):g}")
    page.keyboard.press("ArrowLeft")
    expect(readout).to_contain_text("channel 8, ")
    before = plot.screenshot()
    page.keyboard.press("+")
    assert plot.screenshot() != before
    page.keyboard.press("0")
    box = plot.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 70, box["y"] + 100)
    expect(readout).to_contain_text("channel 0, ")
    page.get_by_text("All 10 channels as a table").click()
    expect(page.get_by_role("table", name="Channels of fc").locator("tbody tr")).to_have_count(10)


def test_the_report_is_shown(page: Page, pages: Served) -> None:
    page.goto(f"{pages.url}/#/jobs/{done_job(pages)}")
    page.get_by_role("button", name="Show the report").click()
    expect(page.frame_locator("iframe").locator("body")).to_contain_text("block1/conv")


def test_jobs_are_there_at_once_and_older_ones_on_demand(page: Page, pages: Served) -> None:
    with pages.client() as client:
        names = [client.submit({"kind": "run", "source": STORE, "submitter": "list"}).id for _ in range(52)]
        for name in names:
            with suppress(RefusedError):  # it has ended already
                client.cancel(name)
        for name in names:
            client.wait(name)
    page.goto(f"{pages.url}/#/submit")
    page.goto(f"{pages.url}/#/jobs")
    rows = page.get_by_role("table", name="Jobs").locator("tbody tr")
    expect(rows).to_have_count(50)
    expect(rows.first).to_contain_text(names[-1])
    page.get_by_role("button", name="Older jobs").click()
    expect(page.get_by_role("link", name=names[0])).to_be_visible()
    page.get_by_label("State").select_option("queued")
    expect(page.locator("main")).to_contain_text("No jobs")
    expect(page.get_by_role("button", name="Older jobs")).not_to_be_visible()


def test_keys_are_enough(page: Page, pages: Served) -> None:
    name = done_job(pages)
    page.goto(f"{pages.url}/#/jobs")
    page.reload()
    expect(page.get_by_role("link", name=name)).to_be_visible()
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == name:
            break
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_have_text(f"Job {name}")


def test_light_and_dark_and_as_the_system_has_it(browser: Browser, pages: Served) -> None:
    dark = browser.new_context(color_scheme="dark")
    for page in watched(dark, pages):
        background = "getComputedStyle(document.body).backgroundColor"
        assert page.evaluate(background) == "rgb(20, 23, 28)"
        page.get_by_role("button", name="Theme: system").click()
        assert page.evaluate(background) == "rgb(255, 255, 255)"
        page.get_by_role("button", name="Theme: light").click()
        assert page.evaluate(background) == "rgb(20, 23, 28)"
        page.reload()
        expect(page.get_by_role("button", name="Theme: dark")).to_be_visible()
    dark.close()


@pytest.mark.parametrize("path", ["jobs", "submit", "stores", "job", "layer"])
def test_a_phone_shows_all_of_it_without_scrolling_sideways(browser: Browser, pages: Served, path: str) -> None:
    name = done_job(pages, submitter="a name that is as long as it may be, which is some 60 letters")
    address = {"job": f"jobs/{name}", "layer": f"jobs/{name}/layers/block1%2Fconv"}.get(path, path)
    phone = browser.new_context(viewport=PHONE)  # type: ignore[arg-type]
    for page in watched(phone, pages):
        page.goto(f"{pages.url}/#/{address}")
        expect(page.locator("h1")).not_to_have_text("Jobs" if path != "jobs" else "")
        expect(page.locator("main > *").nth(1)).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    phone.close()


def test_names_are_text_and_never_markup(page: Page, pages: Served) -> None:
    evil = "<img src=x onerror=alert(1)>"
    with pages.client() as client:
        client.ingest("markup", evil, np.ones((4, 2), np.float32))
    name = done_job(pages, source="store:markup", submitter="<b>bold</b>")
    page.goto(f"{pages.url}/#/jobs/{name}")
    expect(page.get_by_role("link", name=evil)).to_be_visible()
    expect(page.locator("main")).to_contain_text("<b>bold</b>")
    page.get_by_role("link", name=evil).click()
    expect(page.locator("h1")).to_have_text(evil)
    assert page.locator("main img").count() == 0


def test_a_connection_that_is_lost_is_said_and_comes_back(context: BrowserContext, tmp_path: Path) -> None:
    with served(tmp_path / "s", port=0) as service:
        port = int(service.url.rpartition(":")[2])
        service.config.write_text(service.config.read_text().replace("port: 0", f"port: {port}"))
        with service.client() as client:
            name = client.submit({"kind": "run", "source": STORE, "follow": {}}).id
            wait_until(lambda: client.job(name).results is not None)
        page = context.new_page()
        page.goto(f"{service.url}/#token={service.token}")
        page.goto(f"{service.url}/#/jobs/{name}")
        expect(page.get_by_role("table", name="Layers")).to_be_visible()
        service.kill()
        expect(page.get_by_text("The connection is lost")).to_be_visible(timeout=SECONDS)
        service.start()
        expect(page.get_by_text("The connection is lost")).not_to_be_visible(timeout=SECONDS)
        expect(page.locator("main")).to_contain_text("the service was stopped; the job resumes")
        page.close()
