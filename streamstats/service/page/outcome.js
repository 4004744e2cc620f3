// What a job found, before anything else: for a correction, what it does to the model; for a run, what it counted.

import { ask } from "./api.js";
import { submitAddress } from "./describe.js";
import { h, linkButton } from "./elements.js";
import { counted, known, percent, whole } from "./formats.js";
import { concerns, missingRows } from "./layers.js";
import { requestOf } from "./remedies.js";
import { sortable } from "./tables.js";
import { downloadButton } from "./ways.js";

// A run: one sentence for all layers.
export function countedOf(job, layers, results) {
  const rows = layers.map((layer) => layer.rows);
  const [least, most] = [Math.min(...rows), Math.max(...rows)];
  const range = least === most ? counted(most, "row") : `${whole(least)} to ${counted(most, "row")}`;
  const troubled = layers.filter((layer) => concerns(layer).length).length;
  const missing = layers.reduce((sum, layer) => sum + missingRows(layer), 0);
  const verdict = missing
    ? `${counted(missing, "row")} missing`
    : troubled
      ? `${counted(troubled, "layer")} ${troubled === 1 ? "needs" : "need"} attention`
      : "nothing needs attention";
  return h(
    "section",
    { class: `panel ${troubled ? "warn" : "good"}`, "aria-label": "Result" },
    h(
      "dl",
      { class: "figures" },
      figure("Layers", whole(layers.length)),
      figure("Rows of each", layers.length ? range : "0"),
      figure("Verdict", verdict),
    ),
    h(
      "div",
      { class: "row" },
      downloadButton("Download all", job.id, "archive", job.kind === "run" ? "primary" : ""),
      h("span", { class: "faint small" }, `result set ${results}: correctors, states and manifest of every layer`),
    ),
  );
}

const figure = (name, value, beside = null) =>
  h("div", {}, h("dt", {}, name), h("dd", {}, value), beside && h("dd", { class: "small faint" }, beside));

// A correction: its report tells.
export async function correctionOf(job, signal) {
  const report = await (await ask(`/jobs/${job.id}/files/report.json`, { signal })).json();
  const { judgement: judged } = report;
  const worse = judged?.worse.corrected ?? [];
  const kind = worse.length ? "bad" : judged ? "good" : "";
  return h(
    "section",
    { class: `panel ${kind}`, "aria-label": "Result" },
    judged ? effectOf(judged) : unmeasured(job),
    worse.length
      ? h("p", { class: "error", role: "alert" }, `The corrected model is worse than the quantised one: ${worse.join(", ")}.`)
      : null,
    judged?.caveat ? h("p", { class: "small" }, caveatOf(report)) : null,
    ...layersOf(report),
    h(
      "div",
      { class: "row" },
      downloadButton("Download the model", job.id, "files/corrected.onnx", "primary"),
      downloadButton("Download all", job.id, "archive"),
    ),
  );
}

const BEFORE = "quantised";
const AFTER = "corrected";

function effectOf(judged) {
  const { accuracy, outputs, network } = judged;
  const gain = network[AFTER];
  const points =
    AFTER in accuracy && BEFORE in accuracy
      ? figure(
          "Accuracy",
          `${percent(accuracy[BEFORE])} → ${percent(accuracy[AFTER])}`,
          ["float" in accuracy ? `float: ${percent(accuracy.float)}` : null, pointsGained(judged)].filter(Boolean).join("; "),
        )
      : null;
  return [
    h(
      "dl",
      { class: "figures large" },
      points,
      figure(
        "SQNR of the outputs",
        `${decibels(outputs[BEFORE].sqnr_db)} → ${decibels(outputs[AFTER].sqnr_db)}`,
        gain?.gain_db === undefined ? null : `gain ${decibels(gain.gain_db)} ± ${decibels(gain.standard_error_db)}`,
      ),
      figure("Measured on", counted(judged.samples, "held-out sample")),
    ),
    models(judged),
  ];
}

/** The gain of the corrected model in accuracy, and whether it may be chance; reports of older versions do not say. */
function pointsGained({ accuracy_gain: gains }) {
  const gain = gains?.[AFTER];
  if (!gain) return null;
  const [points, error] = [gain.difference, gain.standard_error].map((share) => (100 * share).toFixed(1).replace("-", "−"));
  return `gain ${points} ± ${error} points, which ${gain.clear ? "is beyond chance" : "may be chance"}`;
}

/** What to know of all figures, and what to do about it, as the report says it. */
function caveatOf({ judgement: { caveat }, advice }) {
  const said = [caveat, advice?.caveat].filter(Boolean).join(": ");
  return `${said[0].toUpperCase()}${said.slice(1)}.`;
}

const decibels = (value) => (!known(value) ? "–" : `${value.toFixed(1).replace("-", "−")} dB`);

function models({ accuracy, outputs, network }) {
  const names = ["float", ...Object.keys(outputs)].filter((name) => name in accuracy || name in outputs);
  if (names.length < 4) return null; // all of it is said above
  const rows = ["float", BEFORE, "by moments", "one pass", AFTER].filter((name) => names.includes(name));
  const columns = [
    { title: "Model", name: true, key: (name) => name, cell: (name) => name },
    { title: "Accuracy", number: true, key: (name) => accuracy[name], cell: (name) => percent(accuracy[name]) },
    { title: "SQNR", number: true, key: (name) => outputs[name]?.sqnr_db, cell: (name) => decibels(outputs[name]?.sqnr_db) },
    { title: "Gain", number: true, key: (name) => network[name]?.gain_db, cell: (name) => decibels(network[name]?.gain_db) },
  ];
  return h(
    "details",
    {},
    h("summary", {}, "All models that were judged"),
    sortable(columns, rows, { label: "Models", cards: false }).element,
  );
}

function unmeasured(job) {
  return h(
    "div",
    { class: "row" },
    h("p", { class: "grow" }, "The effect was not measured: the job has no held-out samples."),
    linkButton("Submit again with held-out samples", submitAddress(requestOf(job), job.id)),
  );
}

function layersOf({ correction, judgement }) {
  const all = Object.values(correction).filter((each) => each.outcome !== "nothing to correct");
  const corrected = all.filter((each) => each.corrected).length;
  const skipped = all.filter((each) => !each.corrected);
  const harmful = judgement?.harmful ?? [];
  return [
    h(
      "p",
      {},
      `${whole(corrected)} of ${counted(all.length, "layer")} corrected.`,
      harmful.length ? ` Closer to the float model without their correction: ${harmful.join(", ")}.` : "",
    ),
    skipped.length
      ? h(
          "details",
          {},
          h("summary", {}, `${counted(skipped.length, "layer")} not corrected`),
          h(
            "ul",
            { class: "plain" },
            skipped.map((each) => h("li", {}, h("strong", {}, each.layer), `: ${each.reason || each.outcome}`)),
          ),
        )
      : null,
  ];
}
