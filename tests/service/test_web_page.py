"""The page in a real browser: tokens, lists, themes, names, keys. Jobs, layers and the form have files of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from browsing import PHONE, SECONDS, another_job, done_job, new_context, to, watched
from playwright.sync_api import Browser, BrowserContext, Page, expect
from served import STORE, Served, served, wait_until

from streamstats.service.client import RefusedError

CONTRASTS = Path(__file__).with_name("contrasts.js").read_text()


def test_the_token_leaves_the_address_and_is_known_to_other_tabs_and_deep_links(
    context: BrowserContext, service: Served
) -> None:
    name = done_job(service)
    page = context.new_page()
    page.goto(f"{service.url}/#/jobs/{name}")
    page.get_by_label("Token").fill(service.token)
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_have_text(f"Job {name}")
    other = context.new_page()
    other.goto(f"{service.url}/#/jobs/{name}/layers/fc")
    expect(other.locator("h1")).to_have_text("fc")
    page.goto(f"{service.url}/#token={service.token}/jobs/{name}")
    page.wait_for_url(f"**/#/jobs/{name}")
    page.get_by_role("button", name="Forget the token").click()
    expect(page.get_by_role("heading", name="Token")).to_be_visible()
    expect(other.get_by_role("heading", name="Token")).to_be_visible()


def test_a_wrong_token_is_told(context: BrowserContext, service: Served) -> None:
    page = context.new_page()
    page.goto(f"{service.url}/#/jobs")
    expect(page.get_by_role("alert")).to_have_text("")
    page.get_by_label("Token").fill("wrong-token")
    page.get_by_role("button", name="Enter").click()
    expect(page.get_by_role("alert")).to_contain_text("refuses this token, which ends with “oken”")
    expect(page.get_by_label("Token")).to_have_attribute("aria-invalid", "true")
    expect(page.get_by_label("Token")).to_be_focused()
    page.keyboard.type(service.token)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Jobs")).to_be_visible()


def test_what_a_token_may_not_do_is_not_offered(context: BrowserContext, service: Served) -> None:
    with service.http() as http:
        made = [http.post("/api/v1/tokens", json={"name": name, "role": role}) for name, role in ROLES.items()]
        reader, other = (answer.json()["token"] for answer in made)
    name = done_job(service)
    page = context.new_page()
    page.goto(f"{service.url}/#token={reader}/jobs/{name}")
    expect(page.locator("header")).to_contain_text("web-reader, may read")
    expect(page.get_by_role("button", name="Download all")).to_be_visible()
    for label in ("Submit again", "Delete", "Name, tags, note"):
        expect(page.get_by_text(label, exact=True)).to_have_count(0)
    to(page, "/submit")
    expect(page.locator("main")).to_contain_text("may only read")
    page.goto(f"{service.url}/#token={other}/jobs/{name}")
    expect(page.get_by_role("link", name="Submit again")).to_be_visible()
    expect(page.get_by_role("button", name="Delete")).to_have_count(0)  # another's job
    to(page, "/submit")
    expect(page.get_by_label("Priority")).to_be_visible()
    expect(page.get_by_label("Submitter")).to_have_count(0)


ROLES = {"web-reader": "read", "web-other": "submit"}


def test_jobs_are_there_at_once_and_older_ones_on_demand(page: Page, service: Served) -> None:
    with service.client() as client:
        names = [client.submit({"kind": "run", "source": STORE, "submitter": "list"}).id for _ in range(52)]
        for name in names:
            with suppress(RefusedError):  # it has ended already
                client.cancel(name)
        for name in names:
            client.wait(name)
    to(page, "/jobs?submitter=list")
    rows = page.get_by_role("table", name="Jobs").locator("tbody tr")
    expect(rows).to_have_count(50)
    expect(rows.first).to_contain_text(names[-1])
    page.get_by_role("button", name="Older jobs").click()
    page.get_by_role("button", name="Next rows of Jobs").click()
    expect(page.get_by_role("link", name=names[0])).to_be_visible()


def test_filters_are_in_the_address(page: Page, service: Served) -> None:
    name = another_job(service, submitter="filtered", name="night run", tags=["nightly"], rows="0:4")
    to(page, "/jobs")
    page.get_by_label("Submitter").fill("filtered")
    page.keyboard.press("Tab")
    rows = page.get_by_role("table", name="Jobs").locator("tbody tr")
    expect(rows).to_have_count(1)
    page.get_by_label("State").select_option("done")
    page.get_by_label("Text").fill("NIGHT")
    page.keyboard.press("Enter")
    page.wait_for_url("**/#/jobs?state=done&submitter=filtered&text=NIGHT")
    page.reload()
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text("night run")
    page.get_by_role("link", name="nightly").click()
    expect(page.get_by_label("Tag")).to_have_value("nightly")
    expect(page.get_by_role("link", name="night run")).to_have_attribute("href", f"#/jobs/{name}")
    page.get_by_label("State").select_option("queued")
    expect(page.locator("main")).to_contain_text("No jobs match these filters")


def test_a_list_that_cannot_be_loaded_says_that_it_is_out_of_date(page: Page, service: Served) -> None:
    done_job(service)
    to(page, "/jobs?state=done")
    expect(page.get_by_text("As of")).to_be_visible()
    page.route("**/api/v1/jobs?*", lambda route: route.abort())
    stale = page.get_by_role("status").filter(has_text="Out of date")
    expect(stale).to_contain_text("the service does not respond")
    expect(page.get_by_role("table", name="Jobs")).to_be_visible()
    page.unroute("**/api/v1/jobs?*")
    expect(stale).to_have_count(0)


def test_a_list_stays_current_while_somebody_works_in_it(page: Page, service: Served) -> None:
    with service.client() as client:
        first, second = (client.submit({"kind": "run", "source": STORE, "submitter": "current"}).id for _ in range(2))
        with suppress(RefusedError):  # it has ended already
            client.cancel(second)
        client.wait(second)
    to(page, "/jobs?submitter=current")
    page.get_by_role("link", name=first).focus()
    with service.http() as http:
        assert http.delete(f"/api/v1/jobs/{second}").status_code == 204
    expect(page.get_by_role("link", name=second)).to_have_count(0)
    expect(page.get_by_role("link", name=first)).to_be_focused()


def test_light_and_dark_and_as_the_system_has_it(browser: Browser, service: Served) -> None:
    dark = new_context(browser, color_scheme="dark")
    for page in watched(dark, service):
        background = "getComputedStyle(document.body).backgroundColor"
        assert page.evaluate(background) == "rgb(20, 23, 28)"
        page.get_by_role("button", name="Theme: system").click()
        assert page.evaluate(background) == "rgb(255, 255, 255)"
        page.get_by_role("button", name="Theme: light").click()
        assert page.evaluate(background) == "rgb(20, 23, 28)"
        page.reload()
        expect(page.get_by_role("button", name="Theme: dark")).to_be_visible()
    dark.close()


@pytest.fixture(scope="module")
def views(service: Served) -> dict[str, str]:
    """Every kind of view, with names that are as long as they may be."""
    long = another_job(
        service, submitter="a name that is as long as it may be, which is some 60 letters", name="n" * 100
    )
    (service.roots / "empty").mkdir(exist_ok=True)
    other, failed = done_job(service, statistics=["spread"]), done_job(service, source="empty")
    return {
        "jobs": "/jobs",
        "job": f"/jobs/{long}",
        "other": f"/jobs/{other}",
        "failed": f"/jobs/{failed}",
        "layer": f"/jobs/{other}/layers/block1%2Fconv",
        "comparison": f"/compare/{long}/{other}",
        "channels": f"/compare/{long}/{other}/layers/fc",
        "history": f"/history/{STORE}",
        "submit": "/submit",
        "stores": "/stores",
    }


READY = {
    "job": "table",
    "other": "table",
    "failed": ".steps",
    "layer": "canvas",
    "comparison": "table",
    "channels": "canvas",
}
"""What a view shows once all of it is there."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_is_enough_and_a_phone_shows_all_without_scrolling_sideways(
    browser: Browser, service: Served, views: dict[str, str], scheme: str
) -> None:
    """WCAG AA: 4.5 for text, 3 for large text and for what must be seen to use the page: edges, bars, marks."""
    phone = new_context(browser, PHONE, color_scheme=scheme)
    for page in watched(phone, service):
        for name, view in views.items():
            to(page, view)
            expect(page.locator(READY.get(name, "main > *")).first).to_be_visible()
            page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
            if name == "other":
                page.get_by_role("button", name="Compare with …").click()
                expect(page.get_by_role("combobox", name="Compare with job")).to_be_visible()
            assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], name
            found = page.evaluate(CONTRASTS)
            assert found["checked"]["text"] > 5, name
            assert found["checked"]["edges"] > 2, name
            assert not found["low"], (name, found["low"])
        assert page.evaluate("document.querySelectorAll('#notice [role]').length") == 0
    phone.close()


def test_names_are_text_and_never_markup(page: Page, service: Served) -> None:
    evil = "<img src=x onerror=alert(1)>"
    with service.client() as client:
        client.ingest("markup", evil, np.ones((4, 2), np.float32))
    name = another_job(service, source="store:markup", submitter="<b>bold</b>", name=evil, note=evil)
    to(page, f"/jobs/{name}")
    expect(page.get_by_role("link", name=evil)).to_be_visible()
    expect(page.locator("main")).to_contain_text("<b>bold</b>")
    page.get_by_role("link", name=evil).click()
    expect(page.locator("h1")).to_have_text(evil)
    for view in ("/jobs", "/history/store:markup", "/stores"):
        to(page, view)
        expect(page.locator("main")).to_contain_text(evil)
    assert page.locator("main img").count() == 0


def test_an_address_that_means_nothing_leads_back(page: Page) -> None:
    for view, said in (("/nowhere", "Page not found"), ("/jobs/0123456789abcdef", "Not found"), ("/jobs/%", "Page")):
        to(page, view)
        expect(page.locator("h1")).to_contain_text(said)
        expect(page.get_by_role("link", name="All jobs")).to_be_visible()


def tabbed_to(page: Page, name: str) -> None:
    """Press Tab until what is called `name` has the focus."""
    for _ in range(80):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent.trim() || document.activeElement.name") == name:
            return
    raise AssertionError(f"{name} is not reached with the Tab key")


def test_keys_are_enough(page: Page, service: Served) -> None:
    """From the list to a submitted job, its layer, its neighbour, and a comparison."""
    before = done_job(service)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # skips to the content
    tabbed_to(page, "Submit a job")
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_have_text("Submit a job")
    tabbed_to(page, "source")
    page.keyboard.type(STORE)
    tabbed_to(page, "Submit")
    page.keyboard.press("Enter")
    expect(page.locator(".state")).to_have_text("done")
    expect(page.get_by_role("table", name="Layers")).to_be_visible()
    tabbed_to(page, "block1/conv")
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_have_text("block1/conv")
    tabbed_to(page, "fc →")
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_have_text("fc")
    page.go_back()
    page.go_back()
    tabbed_to(page, "Compare with …")
    page.keyboard.press("Enter")
    chooser = page.get_by_role("combobox", name="Compare with job")
    expect(chooser).to_be_focused()
    chooser.select_option(before)
    tabbed_to(page, "Compare")
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_have_text("Two jobs compared")


@pytest.fixture
def own_service(tmp_path: Path) -> Iterator[Served]:
    """A service to kill."""
    with served(tmp_path / "s", port=0) as service:
        port = int(service.url.rpartition(":")[2])
        service.config.write_text(service.config.read_text().replace("port: 0", f"port: {port}"))
        yield service


def test_a_connection_that_is_lost_is_said_and_comes_back(context: BrowserContext, own_service: Served) -> None:
    with own_service.client() as client:
        name = client.submit({"kind": "run", "source": STORE, "follow": {}}).id
        wait_until(lambda: client.job(name).results is not None)
    page = context.new_page()
    page.goto(f"{own_service.url}/#token={own_service.token}/jobs/{name}")
    expect(page.get_by_role("table", name="Layers")).to_be_visible()
    own_service.kill()
    expect(page.get_by_text("The connection is lost")).to_be_visible(timeout=SECONDS)
    own_service.start()
    expect(page.get_by_text("The connection is lost")).not_to_be_visible(timeout=SECONDS)
    expect(page.get_by_role("list", name="Messages")).to_contain_text("the service was stopped; the job resumes")
    page.close()
