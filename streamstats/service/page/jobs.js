// The list of jobs, newest first, up to date while nobody works in it.

import { Refused, get } from "./api.js";
import { badge, ENDED, rowsOf, share, sourceOf } from "./describe.js";
import { h, sortable, time, title } from "./elements.js";

const LIST_SECONDS = 2;
const PAGE = "50";

export async function showJobs({ main, signal }) {
  const list = new JobList(signal);
  main.replaceChildren(title("Jobs"),
    h("div", { class: "row" }, h("label", { for: "state" }, "State"), list.state, h("span", { class: "grow" }), h("a", { class: "button", href: "#/submit" }, "Submit a job")),
    list.place, list.older);
  await list.load();
  await list.keepCurrent();
}

class JobList {
  constructor(signal) {
    this.signal = signal;
    this.state = h("select", { id: "state", onchange: () => this.load() }, ["", "queued", "running", ...ENDED].map((each) => h("option", { value: each }, each || "all")));
    this.older = h("button", { type: "button", hidden: true, onclick: () => this.load(true) }, "Older jobs");
    this.place = h("div");
    this.table = sortable(COLUMNS, [], { label: "Jobs" });
    this.jobs = [];
    this.next = null;
    this.deeper = false; // whether older jobs are shown, too
  }

  async load(more = false) {
    const query = new URLSearchParams({ limit: PAGE });
    if (this.state.value) query.set("state", this.state.value);
    if (more && this.next) query.set("before", this.next);
    const page = await get(`/jobs?${query}`, this.signal);
    this.deeper ||= more;
    this.jobs = more ? [...this.jobs, ...page.jobs] : page.jobs;
    this.next = page.next;
    this.draw();
  }

  draw() {
    this.older.hidden = !this.next;
    this.table.update(this.jobs);
    if (!this.jobs.length) this.place.replaceChildren(h("p", { class: "empty" }, "No jobs. ", h("a", { href: "#/submit" }, "Submit one"), " here or from the command line."));
    else if (!this.place.contains(this.table.table)) this.place.replaceChildren(h("div", { class: "scroll" }, this.table.table));
  }

  async keepCurrent() {
    while (!this.signal.aborted) {
      await pause(LIST_SECONDS, this.signal);
      if (document.hidden || this.deeper || this.place.contains(document.activeElement)) continue;
      try {
        await this.load();
      } catch (error) {
        if (!(error instanceof Refused) || error.status === 401) throw error;
      }
    }
  }
}

const COLUMNS = [
  { title: "Job", key: (job) => -job.submitted, cell: (job) => h("a", { href: `#/jobs/${job.id}` }, job.id) },
  { title: "State", key: (job) => job.state, cell: (job) => badge(job.state) },
  { title: "Source", name: true, key: sourceOf, cell: sourceOf },
  { title: "Submitter", name: true, key: (job) => job.submitter, cell: (job) => job.submitter },
  { title: "Progress", key: share, cell: (job) => h("progress", { class: "thin", max: 1, value: share(job), "aria-label": `${Math.round(100 * share(job))} %` }) },
  { title: "Rows", number: true, key: (job) => job.rows, cell: rowsOf },
  { title: "Submitted", key: (job) => job.submitted, cell: (job) => time(job.submitted) },
];

function pause(seconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal.addEventListener("abort", () => { clearTimeout(timer); resolve(); }, { once: true });
  });
}
