// The history of a source: its jobs, newest first, and how far the means of each are from those of the job before.

import { get, Refused } from "./api.js";
import { badge, jobLink, nameOf, submitAddress } from "./describe.js";
import { h, linkButton, title } from "./elements.js";
import { time, whole } from "./formats.js";
import { compareAddress } from "./choose.js";
import { shiftOf } from "./compare.js";
import { sortable } from "./tables.js";
import { Age, keepCurrent } from "./lists.js";

const MOST = 50;
const COMPARED = 10; // of the newest; the others are compared on request

export async function showHistory({ main, signal, fail }, source) {
  const age = new Age();
  const shifts = new Map(); // "first second" → what the table says of the two
  const columns = [
    { title: "Job", name: true, key: nameOf, cell: (job) => jobLink(job, job.name || job.id) },
    { title: "State", key: (job) => job.state, cell: (job) => badge(job.state) },
    { title: "Submitted", time: true, key: (job) => job.submitted, cell: (job) => time(job.submitted) },
    { title: "Submitter", name: true, key: (job) => job.submitter, cell: (job) => job.submitter, wide: true },
    { title: "Rows of all layers", number: true, key: (job) => job.rows, cell: (job) => whole(job.rows) },
    {
      title: "Means, against the job before",
      key: () => null,
      cell: (job) =>
        job.before
          ? [
              shifts.get(pairOf(job)) ?? "",
              " ",
              h(
                "a",
                { href: compareAddress(job.before.id, job.id), "aria-label": `Compare ${nameOf(job)} with the job before` },
                "Compare",
              ),
            ]
          : "",
    },
  ];
  const table = sortable(columns, [], { label: `Jobs of ${source}`, identity: (job) => job.id });
  const place = h("div");
  main.replaceChildren(
    title(`Jobs of ${source}`),
    h(
      "div",
      { class: "row" },
      linkButton("Submit a job", submitAddress({ kind: "run", source })),
      linkButton("In the list of jobs", `#/jobs?source=${encodeURIComponent(source)}`),
    ),
    age.element,
    place,
  );

  const load = async (redraw = false) => {
    const { jobs } = await get(`/jobs?limit=${MOST}&source=${encodeURIComponent(source)}`, signal);
    const rows = withJobsBefore(jobs);
    age.loaded();
    table.update(rows, { redraw });
    if (!jobs.length) place.replaceChildren(h("p", { class: "empty" }, "No job has read this source."));
    else if (!place.firstChild || place.firstChild !== table.element) place.replaceChildren(table.element);
    return rows;
  };
  const jobs = await load();
  comparedInTurn(jobs, shifts, load, signal)
    .then(() => keepCurrent(() => load(), age, signal))
    .catch((error) => signal.aborted || fail(error));
}

const pairOf = (job) => `${job.before.id} ${job.id}`;

// Each job with the next older one that has results, too.
function withJobsBefore(jobs) {
  return jobs.map((job, place) => ({ ...job, before: job.results ? jobs.slice(place + 1).find((each) => each.results) : null }));
}

async function comparedInTurn(jobs, shifts, load, signal) {
  for (const job of jobs.filter((each) => each.before).slice(0, COMPARED)) {
    try {
      shifts.set(pairOf(job), shiftOf(await get(`/jobs/${job.before.id}/comparison?with=${job.id}`, signal)));
    } catch (error) {
      if (signal.aborted || !(error instanceof Refused)) throw error;
      shifts.set(pairOf(job), "cannot be compared");
    }
    await load(true);
  }
}
