// How the views describe a job.

import { h, whole } from "./elements.js";

export const ENDED = ["done", "incomplete", "failed", "cancelled"];
export const badge = (state) => h("span", { class: `state ${state}` }, state);
export const share = (job) => (job.total_bytes ? job.bytes / job.total_bytes : job.state === "done" ? 1 : 0);
export const rowsOf = (job) => (job.rows < job.total_rows ? `${whole(job.rows)} of ${whole(job.total_rows)}` : whole(job.rows));
export const sourceOf = (job) => job.source ?? "an ONNX model";
