// A job: first what it found or how far it has come, then what to do next, its layers, and at the end how it ran.

import { ask, follow, get, post, Refused } from "./api.js";
import { describing } from "./about.js";
import { comparing } from "./choose.js";
import { badge, ENDED, nameOf, sourceOf, submitAddress, tagLinks } from "./describe.js";
import { button, confirmed, copyable, h, linkButton, notice, title } from "./elements.js";
import { clock, duration, time, whole } from "./formats.js";
import { attention, inOrder, layerTable } from "./layers.js";
import { correctionOf, countedOf } from "./outcome.js";
import { progressOf } from "./progress.js";
import { nextSteps, requestOf } from "./remedies.js";
import { reportOf, waysOf } from "./ways.js";
import { written } from "./yaml.js";
import { maySubmit, owns, you } from "./you.js";

const MOST_MESSAGES = 500;
const SAID_BELOW = ["failed", "incomplete", "done"]; // what came of the job has a part of its own

export async function showJob({ main, signal, fail }, id) {
  const [job, who] = await Promise.all([get(`/jobs/${id}`, signal), you()]);
  const view = new JobView(job, who, signal);
  main.replaceChildren(...view.elements());
  view.draw();
  follow(id, signal, (kind, content) => view.hear(kind, content)).catch(fail);
  await view.drawResults();
}

class JobView {
  constructor(job, who, signal) {
    this.job = job;
    this.who = who;
    this.signal = signal;
    this.head = h("div");
    this.said = h("p", { class: "visually-hidden", role: "status" }); // a screen reader hears states, not every row
    this.lost = h("p", { class: "error", role: "status" });
    this.progress = h("div");
    this.outcome = h("div");
    this.actions = h("div", { class: "row actions" });
    this.results = h("section");
    this.log = h("ul", { class: "messages", tabIndex: 0, "aria-label": "Messages" });
    this.messages = h("details", { open: !ENDED.includes(job.state) || job.state === "failed" }, h("summary", {}, "Messages"), this.log);
    this.details = h("section");
    this.shown = null; // the number of the result set that is shown
    this.drawn = ""; // what the parts depend on that change less often than progress
    this.search = { search: "", all: false };
  }

  elements() {
    return [this.head, this.said, this.lost, this.progress, this.outcome, this.actions, this.results, this.messages, this.details];
  }

  hear(kind, content) {
    this.lost.textContent = kind === "lost" ? "The connection is lost: what is shown may be out of date. The page is reconnecting …" : "";
    if (kind === "message") this.addMessage(content);
    if (kind === "end" && content.state === "deleted") this.lost.textContent = "This job has been deleted.";
    if (kind === "job" || (kind === "end" && content.id)) {
      this.job = content;
      this.draw();
      this.drawResults();
    }
  }

  addMessage({ at, text }) {
    this.log.append(h("li", {}, h("time", {}, clock(at)), text));
    while (this.log.childElementCount > MOST_MESSAGES) this.log.firstChild.remove();
    this.log.scrollTop = this.log.scrollHeight;
  }

  draw() {
    const { job } = this;
    const ended = ENDED.includes(job.state);
    this.progress.replaceChildren(...(ended ? [] : [progressOf(job)]));
    const drawn = JSON.stringify([job.state, job.results, job.message, job.attempts, job.name, job.tags, job.note]);
    if (drawn === this.drawn) return;
    this.drawn = drawn;
    this.head.replaceChildren(...headOf(job));
    const said = `Job ${nameOf(job)} is ${job.state}`;
    if (this.said.textContent !== said) this.said.textContent = said;
    if (job.state === "failed") this.outcome.replaceChildren(nextSteps(job));
    this.actions.replaceChildren(...actionsOf(job, this.who));
    this.details.replaceChildren(...detailsOf(job));
  }

  async drawResults() {
    const { id, results: wanted } = this.job;
    const state = `${wanted} ${this.job.state}`;
    if (!wanted || this.shown === state) return;
    this.shown = state;
    try {
      const found = await get(`/jobs/${id}/layers?results=${wanted}`, this.signal);
      const outcome = await this.outcomeOf(found);
      if (this.shown === state) this.show(outcome, inOrder(found.layers));
    } catch (error) {
      if (this.signal.aborted) return;
      if (this.shown === state) this.shown = null; // the next event retries
      if (!(error instanceof Refused)) throw error;
      notice(error.message);
    }
  }

  async outcomeOf({ layers, results }) {
    const { job } = this;
    if (job.kind === "onnx" && job.state === "done") return [await correctionOf(job, this.signal)];
    return [...(job.state === "failed" ? [nextSteps(job)] : []), countedOf(job, inOrder(layers), results)];
  }

  show(outcome, layers) {
    const { id } = this.job;
    const focused = document.activeElement?.id === "search" ? document.activeElement.selectionStart : null;
    this.outcome.replaceChildren(...outcome);
    const first = [attention(id, layers), this.job.state === "incomplete" ? nextSteps(this.job) : null].filter(Boolean);
    this.results.replaceChildren(...first, layerTable(id, layers, this.search), reportOf(id), waysOf(id));
    if (focused === null) return;
    const search = document.getElementById("search");
    search.focus();
    search.setSelectionRange(focused, focused);
  }
}

function headOf(job) {
  const source = job.source
    ? h("a", { href: `#/history/${encodeURIComponent(job.source)}`, title: "All jobs of this source" }, job.source)
    : "an ONNX model";
  const named = job.name ? job.name : `Job ${job.id}`;
  return [
    title(named),
    h(
      "p",
      { class: "row" },
      badge(job.state),
      h("span", { class: "name" }, source),
      h("span", { class: "faint" }, `by ${job.submitter}, submitted ${time(job.submitted)}`),
      tagLinks(job),
    ),
    job.note ? h("p", { class: "note" }, job.note) : null,
    SAID_BELOW.includes(job.state) ? null : h("p", { class: "faint" }, job.message),
  ].filter(Boolean);
}

// What can be done, the most useful first; what cannot be undone is last, and apart.
function actionsOf(job, who) {
  const own = owns(who, job);
  const ended = ENDED.includes(job.state);
  return [
    maySubmit(who) && linkButton("Submit again", submitAddress(requestOf(job), job.id)),
    ended && job.results && comparing(job),
    job.source && linkButton("Jobs of this source", `#/history/${encodeURIComponent(job.source)}`),
    own && describing(job),
    h("span", { class: "grow" }),
    own && !ended && button("Cancel", () => cancel(job), "danger", { disabled: job.state === "cancelling" }),
    own && ended && button("Delete", () => remove(job), "danger"),
  ].filter(Boolean);
}

async function cancel(job) {
  if (await confirmed(`Cancel job ${job.name || job.id}? Its results so far are retained.`, "Cancel the job"))
    await post(`/jobs/${job.id}/cancel`);
}

async function remove(job) {
  if (!(await confirmed(`Delete job ${job.name || job.id} and its results? This cannot be undone.`, "Delete"))) return;
  await ask(`/jobs/${job.id}`, { method: "DELETE" });
  location.hash = "#/jobs";
}

function detailsOf(job) {
  const times = [
    ["Id", job.id],
    ["Submitted", time(job.submitted)],
    ["Started", time(job.started)],
    ["Ended", time(job.ended)],
    ["Took", duration(job.seconds)],
    ["Attempts", whole(job.attempts)],
    ["Priority", String(job.priority)],
    ["Source", sourceOf(job)],
  ];
  return [
    h(
      "details",
      {},
      h("summary", {}, "Times, attempts and configuration"),
      h(
        "dl",
        { class: "figures small" },
        times.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))),
      ),
      copyable("Configuration, as it was submitted", written(job.request)),
    ),
  ];
}
