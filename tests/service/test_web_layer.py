"""A layer in the page, and two jobs side by side: what plots show, say and do, against what the library computes."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from browsing import TEXTS, done_job, rows_with, to, watched
from playwright.sync_api import BrowserContext, Page, expect
from served import Served, wait_until
from stores import build_store

import streamstats as ss


def readout(page: Page, label: str) -> str:
    return page.locator("figure", has=page.get_by_role("slider", name=label)).locator(".readout").inner_text()


def shown(value: float) -> str:
    """As the page shows numbers."""
    return f"{float(f'{value:.4g}'):g}".replace("-", "−")


@pytest.fixture(scope="module")
def flagged(service: Served) -> str:
    """A layer with NaN, and with a mean that is small beside its range."""
    values = np.random.default_rng(5).normal(0, 100, (60, 8)).astype(np.float32)
    values += 0.01 * np.arange(8, dtype=np.float32) - values.mean(axis=0)
    values[7, 2] = np.nan
    build_store(service.roots / "flagged.zarr", {"a": values, "b": values})
    return done_job(service, source="flagged.zarr", nonfinite="skip", statistics=["spread", "histogram"])


def test_the_plots_answer_to_pointer_and_keys(page: Page, service: Served) -> None:
    name = done_job(service)
    to(page, f"/jobs/{name}/layers/fc")
    with service.client() as client:
        found = client.channels(name, "fc")["per_channel"]
    plot = page.get_by_role("slider", name="Mean of each channel of fc")
    plot.focus()
    page.keyboard.press("ArrowRight")
    assert readout(page, "Mean of each").startswith("channel 0, ")
    page.keyboard.press("End")
    said = (
        f"channel 9, mean {shown(found['mean'][9])}, from {shown(found['minimum'][9])} to {shown(found['maximum'][9])}"
    )
    assert readout(page, "Mean of each").startswith(said)
    assert readout(page, "Range of each").startswith(said)  # the plots move together
    expect(plot).to_have_attribute("aria-valuetext", readout(page, "Mean of each"))
    page.keyboard.press("ArrowLeft")
    assert readout(page, "Mean of each").startswith("channel 8, ")
    before = plot.screenshot()
    page.keyboard.press("+")
    assert plot.screenshot() != before
    page.keyboard.press("0")
    assert plot.screenshot() == before
    box = plot.locator(".u-over").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 5, box["y"] + 50)
    assert readout(page, "Mean of each").startswith("channel 0, ")
    page.get_by_text("All 10 channels as a table").click()
    table = page.get_by_role("table", name="Channels of fc")
    expect(table.locator("tbody tr")).to_have_count(10)
    expect(table.locator("tbody tr").nth(3)).to_contain_text(shown(found["mean"][3]))


def test_means_fill_a_scale_of_their_own_with_error_bars_and_ranges_are_apart(page: Page, flagged: str) -> None:
    to(page, f"/jobs/{flagged}/layers/a")
    expect(page.locator("canvas").first).to_be_visible()
    means = rows_with(page, "Mean of each", "--accent")
    assert means  # where they lie; their errors are as large as the plot
    errors = rows_with(page, "Mean of each", "--error-bar")
    assert errors[-1] - errors[0] > 0.5
    ranges = rows_with(page, "Range of each", "--range")
    assert ranges[-1] - ranges[0] > 0.5
    assert not rows_with(page, "Range of each", "--error-bar")
    assert max(rows_with(page, "Mean of each", "--bad")) > max(means)  # NaN are marked at the lower edge
    expect(page.locator("figure").first).to_contain_text("▲ has NaN or infinities")
    page.get_by_role("slider", name="Mean of each").focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert readout(page, "Mean of each").endswith("59 values, 1 NaN")


def test_means_without_errors_fill_the_plot(page: Page, service: Served) -> None:
    name = done_job(service, source="flagged.zarr", nonfinite="skip")
    to(page, f"/jobs/{name}/layers/a")
    expect(page.locator("canvas").first).to_be_visible()
    means = rows_with(page, "Mean of each", "--accent")
    assert means[-1] - means[0] > 0.5
    assert not rows_with(page, "Mean of each", "--error-bar")


def test_axes_are_labelled_in_words_and_units(shared: BrowserContext, service: Served) -> None:
    store = build_store(service.roots / "units.zarr", {"a": np.ones((4, 3), np.float32)})
    path = store / "a" / "zarr.json"
    described = json.loads(path.read_text())
    described["attributes"]["units"] = "millivolt"
    path.write_text(json.dumps(described))
    name = done_job(service, source="units.zarr", statistics=["histogram"])
    for page in watched(shared, service):
        page.add_init_script(TEXTS)
        page.reload()
        to(page, f"/jobs/{name}/layers/a")
        expect(page.locator("canvas")).to_have_count(3)
        texts = set(page.evaluate("window.drawnTexts"))
        assert {"Channel (axis 1)", "Mean (millivolt)", "Values (millivolt)", "Value (millivolt)"} <= texts
        assert "Values per bin (logarithmic)" in texts
        page.close()


def test_tables_of_counts_are_drawn_as_bars_and_other_tables_are_listed(
    page: Page, service: Served, flagged: str
) -> None:
    to(page, f"/jobs/{flagged}/layers/a")
    with service.client() as client:
        tables = client.channels(flagged, "a")["tables"]
    plot = page.get_by_role("slider", name="Histogram of a")
    expect(plot).to_have_attribute("aria-valuemax", str(len(tables["histogram"]["rows"]) - 1))
    plot.focus()
    page.keyboard.press("Home")
    low, high, count = tables["histogram"]["rows"][0]
    assert readout(page, "Histogram of a").startswith(f"{shown(low)} to {shown(high)}: {count:,} value")
    bars = rows_with(page, "Histogram of a", "--accent")
    assert bars[-1] - bars[0] > 0.5
    page.locator("summary", has_text="Quantiles").click()
    rows = page.get_by_role("table", name="quantiles of a").locator("tbody tr")
    expect(rows).to_have_count(len(tables["quantiles"]["rows"]))


def test_a_layer_leads_to_its_neighbours_and_comes_as_csv_and_json(
    page: Page, service: Served, flagged: str, tmp_path: Path
) -> None:
    to(page, f"/jobs/{flagged}/layers/a")
    page.get_by_role("link", name="b →").click()
    expect(page.locator("h1")).to_have_text("b")
    expect(page.get_by_role("navigation", name="Layers before")).to_contain_text("layer 2 of 2")
    page.get_by_role("link", name="← a").click()
    expect(page.locator("h1")).to_have_text("a")
    for form in ("CSV", "JSON"):
        with page.expect_download() as waiting:
            page.get_by_role("button", name=f"Download {form}").click()
        assert waiting.value.suggested_filename == f"a.{form.lower()}"
        waiting.value.save_as(tmp_path / f"a.{form.lower()}")
    with service.client() as client:
        found = client.channels(flagged, "a")
    assert json.loads((tmp_path / "a.json").read_text()) == found
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["channel"]) for row in rows] == list(range(8))
    for name, values in found["per_channel"].items():
        assert [float(row[name]) for row in rows] == values


def test_how_a_followed_layer_developed_is_drawn_over_its_rows(page: Page, service: Served) -> None:
    values = np.random.default_rng(9).normal(size=(96, 4)).astype(np.float32)
    with service.client() as client:
        client.ingest("developing", "a", values[:16])
        request = {"kind": "run", "source": "store:developing", "follow": {"rows": 96}, "statistics": ["spread"]}
        name = client.submit(request).id
        for start, stop in ((16, 48), (48, 96)):
            wait_until(lambda start=start: client.job(name).rows == start and client.job(name).results is not None)
            client.ingest("developing", "a", values[start:stop])
        client.wait(name)
    with service.http() as http:
        found = http.get(f"/api/v1/jobs/{name}/development/a", params={"channel": 2}).json()
    assert [point["rows"] for point in found["points"]] == [16, 48, 96]
    for point in found["points"]:
        part = values[: point["rows"]].astype(np.float64)
        assert point["mean"] == pytest.approx(part[:, 2].mean(), abs=1e-6)
        error = part[:, 2].std(ddof=1) / np.sqrt(len(part))
        assert point["standard_error"] == pytest.approx(error, rel=1e-5)
        apart = np.abs(part.mean(axis=0) - values.astype(np.float64).mean(axis=0)).max() / np.ptp(values)
        assert point["apart"] == pytest.approx(apart, abs=1e-6)
    to(page, f"/jobs/{name}/layers/a")
    page.get_by_role("slider", name="Mean of each channel").focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    plot = page.get_by_role("slider", name="Mean of channel 2 of a over rows")
    plot.focus()
    page.keyboard.press("Home")
    assert readout(page, "Mean of channel 2").startswith("16 rows, ")
    assert f"mean of channel 2 {shown(found['points'][0]['mean'])} ± " in readout(page, "Mean of channel 2")
    assert rows_with(page, "Greatest change", "--accent")


def test_a_newer_result_set_is_offered(page: Page, service: Served) -> None:
    with service.client() as client:
        client.ingest("newer", "a", np.ones((8, 3), np.float32))
        name = client.submit({"kind": "run", "source": "store:newer", "follow": {"rows": 16}}).id
        wait_until(lambda: client.job(name).results == 1)
        to(page, f"/jobs/{name}/layers/a")
        expect(page.locator("main")).to_contain_text("8 samples")
        client.ingest("newer", "a", np.ones((8, 3), np.float32))
        page.get_by_role("button", name="Show the newest").click()
        expect(page.locator("main")).to_contain_text("16 samples, 3 channels on axis 1, float32, result set 2")


@pytest.fixture(scope="module")
def pair(service: Served) -> tuple[str, str]:
    """Two jobs over different rows of a store, one channel of which has drifted."""
    values = np.random.default_rng(11).normal(size=(80, 6)).astype(np.float32)
    values[40:, 4] += 3
    build_store(service.roots / "drift.zarr", {"z": values, "a": values[:, :3], "m": np.ones((80, 2), np.float32)})
    first, second = (
        done_job(service, source="drift.zarr", rows=rows, statistics=["spread"]) for rows in ("0:40", "40:80")
    )
    return first, second


def test_two_jobs_are_compared_by_layer_and_channel_in_standard_errors(
    page: Page, service: Served, pair: tuple[str, str], tmp_path: Path
) -> None:
    with service.client() as client:
        for job in pair:
            client.fetch(job, tmp_path / job)
    expected = {each.layer: each for each in ss.compare(tmp_path / pair[0], tmp_path / pair[1]).layers}
    to(page, f"/jobs/{pair[1]}")
    page.get_by_role("button", name="Compare with …").click()
    page.get_by_role("combobox", name="Compare with job").select_option(pair[0])
    page.get_by_role("button", name="Compare", exact=True).click()
    page.wait_for_url(f"**/#/compare/{pair[0]}/{pair[1]}")  # the older one first
    rows = page.get_by_role("table", name="Layers compared").locator("tbody tr")
    expect(rows).to_have_count(3)
    worst = expected["z"].apart
    assert worst is not None
    assert worst.worst_mean is not None
    assert worst.worst_mean.channel == 4
    expect(rows.filter(has_text="z")).to_contain_text(f"{shown(worst.worst_mean.value)} standard errors")
    expect(rows.filter(has_text="m")).to_contain_text("equal to the bit")
    said = f"2 layers of 3 differ. Means: at most {shown(worst.worst_mean.value)} standard errors apart (z, channel 4)"
    expect(page.get_by_label("Result")).to_contain_text(said)
    page.get_by_role("link", name="z", exact=True).click()
    page.get_by_role("slider", name="second − first, in standard errors").focus()
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    found = readout(page, "in standard errors")
    assert found.startswith("channel 4, mean ")
    assert f", {shown(worst.worst_mean.value)} standard errors, " in found
    assert rows_with(page, "second − first, in standard errors", "--warn")  # four standard errors, which it exceeds
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Download CSV").click()
    waiting.value.save_as(tmp_path / "z.csv")
    with (tmp_path / "z.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert float(table[4]["In standard errors"]) == worst.worst_mean.value


def test_without_standard_errors_the_job_that_lacks_them_is_submitted_again_with_what_they_need(
    page: Page, service: Served
) -> None:
    plain, spread = done_job(service), done_job(service, statistics=["spread"])
    with service.http() as http:
        path, other = f"/api/v1/jobs/{plain}/comparison/fc", {"with": spread}
        assert http.get(path, params=other).json()["standard_errors_need"] == "spread"
    to(page, f"/compare/{plain}/{spread}/layers/fc")
    expect(page.locator("main")).to_contain_text("Standard errors are unknown: one of the jobs did not count spread.")
    page.get_by_role("link", name="Submit the first job again with spread").click()
    expect(page.locator("[name='statistics.spread']")).to_be_checked()
    page.go_back()
    page.get_by_text("All 10 channels as a table").click()
    expect(page.get_by_role("table", name="Channels of fc compared").locator("tbody tr")).to_have_count(10)


def test_a_source_has_one_history_however_jobs_name_it(page: Page, service: Served) -> None:
    path = build_store(service.roots / "named.zarr", {"a": np.ones((4, 2), np.float32)})
    jobs = [done_job(service, source=source) for source in ("named.zarr", str(path))]
    for source in ("named.zarr", str(path)):
        to(page, f"/history/{source}")
        rows = page.get_by_role("table", name=f"Jobs of {source}").locator("tbody tr")
        expect(rows).to_have_count(2)
        for job in jobs:
            expect(rows.get_by_role("link", name=job)).to_be_visible()


def test_the_history_of_a_store_says_how_means_moved_from_job_to_job(page: Page, pair: tuple[str, str]) -> None:
    to(page, f"/jobs/{pair[1]}")
    page.get_by_role("link", name="Jobs of this source").click()
    rows = page.get_by_role("table", name="Jobs of drift.zarr").locator("tbody tr")
    expect(rows).to_have_count(2)
    expect(rows.nth(0)).to_contain_text("standard errors apart (z, channel 4)")
    expect(rows.nth(0).get_by_role("link", name=pair[1])).to_be_visible()
    rows.nth(0).get_by_role("link", name="Compare").click()
    page.wait_for_url(f"**/#/compare/{pair[0]}/{pair[1]}")


def test_jobs_that_cannot_be_compared_say_why(service: Served, pair: tuple[str, str]) -> None:
    other = done_job(service)
    with service.http() as http:
        path = f"/api/v1/jobs/{pair[0]}/comparison"
        found = http.get(path, params={"with": other}).json()
        assert {each["layer"]: each["only_in"] for each in found["layers"]}["fc"] == "second"
        missing = http.get(f"{path}/fc", params={"with": other})
    assert missing.status_code == 404
    assert "have no layer 'fc'" in missing.text
