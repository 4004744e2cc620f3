// Choosing the job to compare a job with: those with results, of the same source first.

import { get } from "./api.js";
import { nameOf, WITH_RESULTS } from "./describe.js";
import { button, h } from "./elements.js";
import { time } from "./formats.js";

export const compareAddress = (first, second) => `#/compare/${first}/${second}`;

// Differences are second − first, so the older job is the first.
const olderFirst = (one, other) =>
  one.submitted <= other.submitted ? compareAddress(one.id, other.id) : compareAddress(other.id, one.id);

export function comparing(job) {
  return button("Compare with …", async (pressed) => {
    const jobs = await candidates(job);
    const select = h(
      "select",
      { "aria-label": "Compare with job" },
      h("option", { value: "" }, jobs.length ? "choose a job" : "no other job has results"),
      jobs.map((each) => h("option", { value: each.id }, `${nameOf(each)}, ${time(each.submitted)}, ${each.id.slice(0, 6)}`)),
    );
    const go = h("button", { type: "submit", class: "primary", disabled: !jobs.length }, "Compare");
    const chosen = (event) => {
      event.preventDefault();
      const other = jobs.find((each) => each.id === select.value);
      if (other) location.hash = olderFirst(job, other);
    };
    pressed.replaceWith(h("form", { class: "row", onsubmit: chosen }, select, go));
    select.focus();
  });
}

async function candidates(job) {
  const states = WITH_RESULTS.map((state) => `state=${state}`).join("&");
  const { jobs } = await get(`/jobs?limit=200&${states}`);
  const others = jobs.filter((each) => each.id !== job.id && each.results);
  const same = (each) => each.kind === job.kind && each.source === job.source;
  return [...others.filter(same), ...others.filter((each) => !same(each))];
}
