// The list of jobs, newest first, always current. Its filters are in the address, so that a list can be shared.

import { get } from "./api.js";
import { badge, bar, ENDED, jobLink, nameOf, rowsOf, share, sourceOf, tagLinks } from "./describe.js";
import { button, h, linkButton, title } from "./elements.js";
import { time } from "./formats.js";
import { Age, keepCurrent } from "./lists.js";
import { sortable } from "./tables.js";

const PAGE = 50;
const MOST = 1000;
const FILTERS = ["state", "submitter", "tag", "source", "text"];

export async function showJobs({ main, signal, fail }, query) {
  const list = new JobList(signal, new URLSearchParams(query));
  main.replaceChildren(
    h("div", { class: "row" }, title("Jobs"), h("span", { class: "grow" }), linkButton("Submit a job", "#/submit", "primary")),
    list.form,
    list.age.element,
    list.place,
    list.older,
  );
  await list.load();
  keepCurrent(() => list.load(), list.age, signal).catch(fail);
}

class JobList {
  constructor(signal, query) {
    this.signal = signal;
    this.wanted = Object.fromEntries(FILTERS.map((name) => [name, query.get(name) ?? ""]));
    this.age = new Age();
    this.form = this.filters();
    this.older = button("Older jobs", () => this.more(), null, { hidden: true });
    this.place = h("div");
    this.table = sortable(COLUMNS, [], { label: "Jobs", identity: (job) => job.id });
    this.limit = PAGE;
    this.next = null;
  }

  filters() {
    const state = h(
      "select",
      { id: "state", name: "state" },
      ["", "queued", "running", "cancelling", ...ENDED].map((each) =>
        h("option", { value: each, selected: each === this.wanted.state }, each || "all"),
      ),
    );
    const field = (name, label, control) => h("div", { class: "field" }, h("label", { for: name }, label), control);
    const text = (name) => h("input", { id: name, name, type: "search", maxlength: "200", value: this.wanted[name] });
    const changed = (event) => this.filter(event.currentTarget);
    const open = Object.values(this.wanted).some(Boolean) || !matchMedia("(max-width: 640px)").matches;
    const fields = h(
      "form",
      { class: "filters", role: "search", "aria-label": "Filters", onchange: changed, onsubmit: (event) => event.preventDefault() },
      field("text", "Text", text("text")),
      field("state", "State", state),
      field("submitter", "Submitter", text("submitter")),
      field("tag", "Tag", text("tag")),
      field("source", "Source", text("source")),
    );
    return h("details", { open, class: "filtering" }, h("summary", {}, "Filters"), fields);
  }

  async filter(form) {
    const entries = FILTERS.map((name) => [name, form.elements.namedItem(name).value.trim()]);
    this.wanted = Object.fromEntries(entries);
    const given = new URLSearchParams(entries.filter(([, value]) => value));
    history.replaceState(null, "", `#/jobs${given.size ? `?${given}` : ""}`);
    this.limit = PAGE;
    await this.load().catch((error) => this.age.failed(error));
  }

  async more() {
    this.limit = Math.min(MOST, this.limit + PAGE);
    await this.load();
  }

  async load() {
    const asked = JSON.stringify(this.wanted);
    const query = new URLSearchParams({
      limit: this.limit,
      ...Object.fromEntries(Object.entries(this.wanted).filter(([, value]) => value)),
    });
    const page = await get(`/jobs?${query}`, this.signal);
    if (asked !== JSON.stringify(this.wanted)) return; // the filters have changed since
    this.next = page.next;
    this.age.loaded();
    this.draw(page.jobs);
  }

  draw(jobs) {
    this.older.hidden = !this.next || this.limit >= MOST;
    this.table.update(jobs);
    if (!jobs.length) this.place.replaceChildren(this.empty());
    else if (!this.place.contains(this.table.element)) this.place.replaceChildren(this.table.element);
  }

  empty() {
    if (Object.values(this.wanted).some(Boolean))
      return h("p", { class: "empty" }, "No jobs match these filters. ", h("a", { href: "#/jobs" }, "Show all jobs"));
    return h(
      "p",
      { class: "empty" },
      "No jobs yet. ",
      h("a", { href: "#/submit" }, "Submit one"),
      " here, or with ",
      h("code", {}, "streamstats submit job.yaml"),
      ".",
    );
  }
}

const COLUMNS = [
  { title: "Job", name: true, key: nameOf, cell: (job) => [jobLink(job, job.name || job.id), tagLinks(job)] },
  { title: "State", key: (job) => job.state, cell: (job) => badge(job.state) },
  { title: "Source", name: true, key: sourceOf, cell: (job) => sourceOf(job) },
  { title: "Submitter", name: true, key: (job) => job.submitter, cell: (job) => job.submitter },
  { title: "Progress", key: share, cell: (job) => (ENDED.includes(job.state) || job.follows ? "" : bar(job, "thin")), wide: true },
  { title: "Rows of all layers", number: true, key: (job) => job.rows, cell: rowsOf, wide: true },
  { title: "Submitted", time: true, key: (job) => job.submitted, cell: (job) => time(job.submitted) },
];
