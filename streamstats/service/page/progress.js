// How far a job has come: its steps, the stage of the current one, and the time left as far as it is known.

import { bar, rowsOf } from "./describe.js";
import { h } from "./elements.js";
import { bytes, counted, duration, whole } from "./formats.js";

const STEPS = { record: "Run the model", count: "Count", correct: "Correct", report: "Report" };

export function progressOf(job) {
  if (job.state === "queued") return h("p", { class: "panel" }, waiting(job));
  return h(
    "div",
    { class: "panel" },
    job.stage ? steps(job.stage) : null,
    job.follows ? null : bar(job),
    h(
      "dl",
      { class: "figures" },
      figuresOf(job).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))),
    ),
  );
}

function waiting(job) {
  const place = job.place ? ` Its place in the queue is ${whole(job.place)}.` : "";
  return `Queued: ${job.waits_for || "the job starts when the jobs before it have ended"}.${place}`;
}

function steps({ step, steps: names }) {
  const mark = (place) => (place < step ? "done" : place === step ? "now" : "later");
  return h(
    "ol",
    { class: "stages", "aria-label": "Steps" },
    names.map((name, place) => h("li", { class: mark(place), "aria-current": place === step ? "step" : null }, STEPS[name] ?? name)),
  );
}

function figuresOf(job) {
  if (job.stage) return stageFigures(job.stage);
  const figures = [["Rows of all layers", rowsOf(job)]];
  if (job.follows) return [...figures, ["Follows the store", "counts rows as they arrive"]];
  return [
    ...figures,
    ["Read", `${bytes(job.bytes)} of ${bytes(job.total_bytes)}`],
    ["Rate", job.bytes_per_second ? `${bytes(job.bytes_per_second)}/s` : "–"],
    ["Time left", duration(job.seconds_left)],
  ];
}

// The time left of a stage is measured; that of the later steps is not known, and the page does not guess it.
function stageFigures({ step, steps: names, what, unit, done, total, seconds_left: left }) {
  const shown = unit === "bytes" ? bytes : whole;
  const later = names.slice(step + 1).map((name) => (STEPS[name] ?? name).toLowerCase());
  return [
    ["Stage", what || STEPS[names[step]]],
    ...(total ? [["Done", `${shown(done)} of ${unit === "bytes" ? bytes(total) : counted(total, "sample")}`]] : []),
    ["Time left of this stage", left === null ? "not known yet" : duration(left)],
    ...(later.length ? [["Then", `${later.join(", ")}: time not known yet`]] : []),
  ];
}
