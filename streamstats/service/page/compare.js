// Two jobs side by side: layer by layer in the network's order, and a layer channel by channel. Differences are those of
// the second job from the first, in standard errors where these are known.

import { get, layerPath } from "./api.js";
import { nameOf, submitAddress } from "./describe.js";
import { button, h, linkButton, save, title } from "./elements.js";
import { counted, number, percent, time, whole } from "./formats.js";
import { compareAddress } from "./choose.js";
import { key, plot } from "./plots.js";
import { requestOf } from "./remedies.js";
import { channelTable, sortable } from "./tables.js";

const CLEAR = 4; // standard errors; a difference beyond that is hardly chance, even for the worst of a thousand channels

export async function showComparison({ main, signal }, first, second) {
  const [found, jobs] = await Promise.all([get(`/jobs/${first}/comparison?with=${second}`, signal), both(first, second, signal)]);
  main.replaceChildren(
    title("Two jobs compared"),
    sides(jobs),
    verdictOf(found),
    linkButton("Swap the two", compareAddress(second, first), "quiet"),
    h("h2", {}, "Layers"),
    layerTable(first, second, found.layers),
  );
}

const both = (first, second, signal) => Promise.all([first, second].map((id) => get(`/jobs/${id}`, signal)));

function sides(jobs) {
  const side = (label, job) =>
    h(
      "div",
      {},
      h("dt", {}, label),
      h("dd", { class: "name" }, h("a", { href: `#/jobs/${job.id}` }, nameOf(job))),
      h("dd", { class: "faint small" }, `job ${job.id}, by ${job.submitter}, ${time(job.submitted)}`),
    );
  return h("dl", { class: "figures" }, side("First", jobs[0]), side("Second", jobs[1]));
}

// One sentence about the two.
function verdictOf(found) {
  const differing = found.layers.filter((each) => !each.equal);
  const said = found.equal
    ? "All layers are equal, to the bit."
    : found.layers.every((each) => each.only_in)
      ? "The two have no layer in common."
      : `${counted(differing.length, "layer")} of ${whole(found.layers.length)} ${differing.length === 1 ? "differs" : "differ"}. Means: ${shiftOf(found)}.`;
  const beside = [
    "Standard errors treat the samples of the two as independent.",
    found.same_rows ? "Both counted the same rows." : "They did not count the same rows.",
    found.same_stores ? "" : "They did not read the same stores, as far as files and locations tell.",
  ];
  return h(
    "section",
    { class: `panel ${found.equal ? "good" : beyond(found) ? "warn" : ""}`, "aria-label": "Result" },
    h("p", { class: "strong" }, said),
    h("p", { class: "faint" }, beside.join(" ")),
  );
}

const worstOf = (layer) => layer.apart?.worst_mean ?? null;
const size = (distance) => (distance.value === null ? Infinity : distance.value);
const unitOf = (layer) => (layer.apart.in_standard_errors ? "standard errors" : "% of the range");
const amount = (layer) => (worstOf(layer).value === null ? "infinite" : `${number(worstOf(layer).value)} ${unitOf(layer)}`);
const beyond = (found) =>
  found.layers.some((each) => each.only_in || each.apart?.one_sided.length || (worstOf(each) && size(worstOf(each)) > CLEAR));

// How far the means are apart at most, in words.
export function shiftOf(found) {
  if (found.equal) return "equal";
  const alone = found.layers.filter((each) => each.only_in).length;
  const known = found.layers.filter((each) => worstOf(each)).sort((a, b) => size(worstOf(b)) - size(worstOf(a)));
  const [worst] = known;
  const most = !worst
    ? ""
    : size(worstOf(worst)) === 0
      ? "equal"
      : `at most ${amount(worst)} apart (${worst.layer}, channel ${worstOf(worst).channel})`;
  return [most, alone && `${counted(alone, "layer")} in one job only`].filter(Boolean).join("; ") || "not comparable";
}

function layerTable(first, second, layers) {
  const columns = [
    {
      title: "Layer",
      name: true,
      key: (each) => each.layer,
      cell: (each) =>
        each.only_in
          ? each.layer
          : h("a", { href: `${compareAddress(first, second)}/layers/${encodeURIComponent(each.layer)}` }, each.layer),
    },
    {
      title: "Means at most apart",
      number: true,
      key: (each) => (worstOf(each) ? size(worstOf(each)) : null),
      cell: (each) => differenceOf(each),
    },
    {
      title: "In channel",
      number: true,
      key: (each) => worstOf(each)?.channel,
      cell: (each) => (worstOf(each) && !each.equal ? String(worstOf(each).channel) : ""),
      wide: true,
    },
    {
      title: "Ranges beyond",
      number: true,
      key: (each) => excess(each),
      cell: (each) => (each.apart?.beyond_first ? percent(excess(each)) : ""),
      wide: true,
    },
    {
      title: "Distributions apart",
      number: true,
      key: (each) => each.apart?.total_variation,
      cell: (each) => (each.apart ? percent(each.apart.total_variation) : ""),
      wide: true,
    },
    {
      title: "Rows",
      number: true,
      key: (each) => each.rows[1],
      cell: (each) => (each.rows[0] === each.rows[1] ? whole(each.rows[0]) : `${whole(each.rows[0])} → ${whole(each.rows[1])}`),
    },
  ];
  return sortable(columns, layers, { label: "Layers compared" }).element;
}

const excess = (each) => Math.max(each.apart?.beyond_first?.value ?? 0, each.apart?.beyond_second?.value ?? 0);

function differenceOf(each) {
  if (each.only_in) return h("span", { class: "warn-text" }, `only in the ${each.only_in} job`);
  if (each.equal) return "equal to the bit";
  if (!each.apart.comparable && !worstOf(each)) return h("span", { class: "warn-text" }, "other channels");
  const clear = size(worstOf(each)) > CLEAR && each.apart.in_standard_errors;
  return clear ? h("strong", {}, amount(each)) : amount(each);
}

export async function showLayerComparison({ main, signal }, first, second, name) {
  const [found, jobs] = await Promise.all([
    get(`${layerPath(`/jobs/${first}/comparison`, name)}?with=${second}`, signal),
    both(first, second, signal),
  ]);
  main.replaceChildren(
    h("p", {}, h("a", { href: compareAddress(first, second) }, "← The two jobs")),
    title(`${name}, compared`),
    sides(jobs),
    h("p", { class: "faint" }, `${counted(found.rows[0], "row")} in the first, ${whole(found.rows[1])} in the second`),
    ...plotsOf(name, found, jobs),
    channelTable(`Channels of ${name} compared`, channelsOf(found), figuresOf(found)),
    button("Download CSV", async () => save(`${name.replaceAll("/", ".")}.compared.csv`, new Blob([csvOf(found)], { type: "text/csv" }))),
  );
}

function plotsOf(name, found, jobs) {
  const group = [];
  const xs = found.difference.map((_, channel) => channel);
  const signed = found.in_standard_errors.map((value, channel) => (value === null ? null : Math.sign(found.difference[channel]) * value));
  const errors = signed.some((value) => value !== null);
  const unknown = found.difference.map((value) => value === null);
  const flags = unknown.includes(true) ? [{ kind: "flags", color: "--bad", values: unknown }] : [];
  const said = (channel) => sayChannel(found, channel);
  const bars = (values) => ({
    kind: "bars",
    color: "--accent",
    low: values.map((each) => (each === null ? null : Math.min(0, each))),
    high: values.map((each) => (each === null ? null : Math.max(0, each))),
  });
  const marked = () => flags.length > 0 && key("bad", "▲", "without finite values in one of the two");
  return [
    errors
      ? plot({
          label: `Means of ${name}: second − first, in standard errors`,
          xs,
          axes: { x: "Channel", y: "Difference (standard errors)" },
          said,
          group,
          marks: [
            { kind: "level", color: "--grid", at: 0 },
            bars(signed),
            { kind: "level", color: "--warn", at: CLEAR },
            { kind: "level", color: "--warn", at: -CLEAR },
            ...flags,
          ],
          legend: [key("accent", "▮", "difference"), key("warn", "―", `± ${CLEAR} standard errors: beyond, hardly chance`), marked()],
        })
      : errorsUnknown(found, jobs),
    plot({
      label: `Means of ${name}: second − first`,
      xs,
      axes: { x: "Channel", y: "Difference (real units)" },
      said,
      group,
      marks: [{ kind: "level", color: "--grid", at: 0 }, bars(found.difference), ...flags],
      legend: [key("accent", "▮", "difference"), marked()],
    }),
  ];
}

// Which job lacks the statistic that standard errors need, and how to count it.
function errorsUnknown({ standard_errors_need: needed, standard_error: known }, jobs) {
  const lacking = [0, 1].filter((side) => !known[side]);
  const steps = lacking
    .filter((side) => jobs[side].kind === "run")
    .map((side) => {
      const statistics = [...new Set([...jobs[side].request.statistics, needed])];
      const address = submitAddress(requestOf(jobs[side], { statistics }), jobs[side].id);
      return linkButton(`Submit the ${["first", "second"][side]} job again with ${needed}`, address);
    });
  const why = ["too few samples were counted", `one of the jobs did not count ${needed}`, `neither job counted ${needed}`][lacking.length];
  return h("div", { class: "panel" }, h("p", {}, `Standard errors are unknown: ${why}.`), h("div", { class: "row" }, steps));
}

function sayChannel(found, channel) {
  if (found.difference[channel] === null) return `channel ${channel}, no finite values in one of the two`;
  const inErrors = found.in_standard_errors[channel];
  const beside = inErrors === null ? "" : `, ${number(inErrors)} standard errors`;
  return `channel ${channel}, mean ${number(found.mean[0][channel])} → ${number(found.mean[1][channel])}, difference ${number(found.difference[channel])}${beside}, ${percent(found.in_ranges[channel], 2)} of the layer's range`;
}

const FIGURES = [
  ["First mean", (found, channel) => found.mean[0][channel]],
  ["Second mean", (found, channel) => found.mean[1][channel]],
  ["Difference", (found, channel) => found.difference[channel]],
  ["In standard errors", (found, channel) => found.in_standard_errors[channel]],
  ["Share of the range", (found, channel) => found.in_ranges[channel]],
];

const channelsOf = (found) => found.difference.map((_, channel) => channel);
const figuresOf = (found) => FIGURES.map(([title, value]) => [title, (channel) => value(found, channel)]);

function csvOf(found) {
  const lines = channelsOf(found).map((channel) => [channel, ...figuresOf(found).map(([, value]) => value(channel) ?? "")].join());
  return [["Channel", ...FIGURES.map(([title]) => title)].join(), ...lines, ""].join("\r\n");
}
