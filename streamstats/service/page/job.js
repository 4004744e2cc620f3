// A job: its state and progress as they change, its messages, what can be done with it, and its results.

import { ask, follow, get, post } from "./api.js";
import { badge, ENDED, rowsOf, share, sourceOf } from "./describe.js";
import { bytes, confirmed, duration, h, notice, time, title } from "./elements.js";
import { download, layersOf, reportOf } from "./results.js";

export async function showJob({ main, signal, fail }, id) {
  const view = new JobView(await get(`/jobs/${id}`, signal), signal);
  main.replaceChildren(title(`Job ${id}`), ...view.elements());
  view.draw();
  follow(id, signal, (kind, content) => view.hear(kind, content)).catch(fail);
  await view.drawResults();
}

class JobView {
  constructor(job, signal) {
    this.job = job;
    this.signal = signal;
    this.head = h("div");
    this.bar = h("progress", { max: 1, "aria-label": "Progress" });
    this.figures = h("dl", { class: "figures" });
    this.actions = h("div", { class: "row" });
    this.messages = h("ul", { class: "messages", tabIndex: 0, "aria-label": "Messages" });
    this.lost = h("p", { class: "error", role: "status" });
    this.results = h("section");
    this.shown = null; // the number of the result set that is shown
    this.drawn = ""; // what the buttons depend on
  }

  elements() {
    return [this.head, h("div", { class: "panel" }, this.bar, this.figures), this.lost, this.actions, h("h2", {}, "Messages"), this.messages, this.results];
  }

  hear(kind, content) {
    this.lost.textContent = kind === "lost" ? "The connection is lost; the page is reconnecting …" : "";
    if (kind === "message") this.addMessage(content);
    if (kind === "job" || (kind === "end" && content.id)) {
      this.job = content;
      this.draw();
      this.drawResults();
    }
  }

  addMessage({ at, text }) {
    this.messages.append(h("li", {}, h("time", {}, new Date(at * 1000).toLocaleTimeString()), text));
    this.messages.scrollTop = this.messages.scrollHeight;
  }

  draw() {
    const { job } = this;
    const failed = job.state === "failed";
    this.head.replaceChildren(
      h("p", { class: "row" }, badge(job.state), h("span", {}, sourceOf(job)), h("span", { class: "faint" }, `by ${job.submitter}, submitted ${time(job.submitted)}`)),
      h("p", { class: failed ? "error" : "faint", role: failed ? "alert" : null }, job.message));
    this.bar.value = share(job);
    this.figures.replaceChildren(...Object.entries(figuresOf(job)).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
    const drawn = `${job.state} ${job.results}`;
    if (drawn === this.drawn) return;
    this.drawn = drawn;
    this.actions.replaceChildren(...actionsOf(job));
  }

  async drawResults() {
    const { id, results: wanted } = this.job;
    if (!wanted || this.shown === wanted) return;
    const search = this.results.querySelector("input")?.value ?? "";
    this.shown = wanted;
    let found;
    try {
      found = await get(`/jobs/${id}/layers`, this.signal);
    } catch (error) {
      if (this.shown === wanted) this.shown = null; // the next event retries
      if (!this.signal.aborted) notice(error.message);
      return;
    }
    if (this.shown !== wanted) return; // a newer set arrived first
    this.results.replaceChildren(h("h2", {}, "Layers"), layersOf(id, found, search), h("h2", {}, "Report"), reportOf(id));
  }
}

function figuresOf(job) {
  const running = job.state === "running";
  const took = job.ended && job.started ? duration(job.ended - job.started) : "–";
  return {
    Rows: rowsOf(job),
    Read: `${bytes(job.bytes)} of ${bytes(job.total_bytes)}`,
    Rate: job.bytes_per_second ? `${bytes(job.bytes_per_second)}/s` : "–",
    [running ? "Time left" : "Time taken"]: running ? duration(job.seconds_left) : took,
  };
}

function actionsOf(job) {
  const ended = ENDED.includes(job.state);
  return [
    !ended && button("Cancel", () => cancel(job.id)),
    ended && button("Delete", () => remove(job.id), "danger"),
    job.kind === "run" && h("a", { class: "button", href: `#/submit?${encodeURIComponent(JSON.stringify(job.request))}` }, "Submit again"),
    job.kind === "onnx" && job.state === "done" && button("Download the model", () => download(job.id, "files/corrected.onnx")),
    job.results && button("Download all", () => download(job.id, "archive")),
  ].filter(Boolean);
}

function button(label, work, kind = null) {
  const onclick = () => work().catch((error) => notice(error.message));
  return h("button", { type: "button", class: kind, onclick }, label);
}

async function cancel(id) {
  if (await confirmed(`Cancel job ${id}? Its results so far are retained.`)) await post(`/jobs/${id}/cancel`);
}

async function remove(id) {
  if (!(await confirmed(`Delete job ${id} and its results?`))) return;
  await ask(`/jobs/${id}`, { method: "DELETE" });
  location.hash = "#/jobs";
}
