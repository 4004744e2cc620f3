// How the views describe a job.

import { h } from "./elements.js";
import { whole } from "./formats.js";

export const ENDED = ["done", "incomplete", "failed", "cancelled"];
export const WITH_RESULTS = ["done", "incomplete", "cancelled"];
export const badge = (state) => h("span", { class: `state ${state}` }, state);
export const sourceOf = (job) => job.source ?? "an ONNX model";
export const nameOf = (job) => job.name || sourceOf(job);
export const rowsOf = (job) => (job.rows < job.total_rows ? `${whole(job.rows)} of ${whole(job.total_rows)}` : whole(job.rows));
export const jobLink = (job, label = job.id) => h("a", { href: `#/jobs/${job.id}` }, label);
export const tagLinks = (job) =>
  (job.tags ?? []).map((tag) => h("a", { class: "tag", href: `#/jobs?tag=${encodeURIComponent(tag)}` }, tag));
export const submitAddress = (request, from = null) =>
  `#/submit?${from ? `from=${from}&` : ""}${encodeURIComponent(JSON.stringify(request))}`;

// How far a job has come, from 0 to 1: of several steps, each counts alike.
export function share(job) {
  if (job.state === "done") return 1;
  if (job.stage) return (job.stage.step + (job.stage.total ? job.stage.done / job.stage.total : 0)) / job.stage.steps.length;
  return job.total_bytes ? job.bytes / job.total_bytes : 0;
}

// A progress bar with its share as text, which needs no live region.
export function bar(job, kind = "") {
  const done = Math.round(100 * share(job));
  return h("progress", { class: kind, max: 100, value: done, "aria-label": `${done} % done` }, `${done} %`);
}
