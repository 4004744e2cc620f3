// A layer: means and ranges of its channels, how values are distributed, how it developed, and all figures as tables.

import { ask, follow, get, layerPath } from "./api.js";
import { button, copyable, h, linkButton, notice, save, title } from "./elements.js";
import { counted, known, number, percent, time, titleOf, whole } from "./formats.js";
import { inOrder } from "./layers.js";
import { key, plot } from "./plots.js";
import { channelTable, sortable } from "./tables.js";
import { curlOf } from "./ways.js";

export async function showLayer({ main, signal, fail }, id, name) {
  const path = layerPath(`/jobs/${id}/layers`, name);
  const [job, found, all] = await Promise.all([get(`/jobs/${id}`, signal), get(path, signal), get(`/jobs/${id}/layers`, signal)]);
  const developed = h("section");
  const group = [];
  main.replaceChildren(
    h("p", {}, h("a", { href: `#/jobs/${id}` }, `← Job ${job.name || id}`)),
    title(name),
    summary(found),
    newer(id, found, job, signal, fail),
    neighbours(id, name, all.layers),
    downloads(id, name, path),
    ...channelPlots(name, found, group),
    developed,
    ...tables(name, found),
    channelTable(`Channels of ${name}`, found.per_channel.mean.map((_, channel) => channel), figuresOf(found.per_channel)),
    copyable("With curl", curlOf(path)),
  );
  if (job.follows) await showDevelopment(developed, { id, name, units: unitsOf(found), group, signal });
}

const ERROR_BAR = "± one standard error, where it is larger than the point";
const unitsOf = (found) => found.attributes?.units || (found.quantization ? "real units" : "units as stored");

function summary(found) {
  const rows = counted(found.rows, found.rows_are.replace(/s$/, ""));
  const codes = found.quantization ? ", codes converted to real units" : "";
  return h(
    "p",
    { class: "faint" },
    `${rows}, ${counted(found.channels, "channel")} on axis ${found.channel_axis}, ${found.dtype}${codes}, result set ${found.results}`,
  );
}

// A job that still counts may have a newer set than the one that is shown: the page says so, and leaves the choice.
function newer(id, found, job, signal, fail) {
  const place = h("p", { class: "row", role: "status" });
  if (job.ended) return place;
  const heard = (kind, content) => {
    if (!content?.results || content.results === found.results || place.firstChild) return;
    place.append(
      `Result set ${content.results} is newer than this one. `,
      button("Show the newest", () => window.dispatchEvent(new Event("hashchange"))),
    );
  };
  follow(id, signal, heard).catch(fail);
  return place;
}

function neighbours(id, name, layers) {
  const names = inOrder(layers).map((layer) => layer.name);
  const at = names.indexOf(name);
  const to = (other, label) => (other ? linkButton(label(other), layerAddress(id, other), "quiet") : null);
  return h(
    "nav",
    { class: "neighbours", "aria-label": "Layers before and after" },
    to(names[at - 1], (other) => `← ${other}`),
    h("span", { class: "faint small" }, `layer ${whole(at + 1)} of ${whole(names.length)}`),
    to(names[at + 1], (other) => `${other} →`),
  );
}

const layerAddress = (id, name) => `#/jobs/${id}/layers/${encodeURIComponent(name)}`;

function downloads(id, name, path) {
  const fetched = async (form) => save(`${name.replaceAll("/", ".")}.${form}`, await (await ask(`${path}?format=${form}`)).blob());
  return h(
    "div",
    { class: "row" },
    button("Download CSV", () => fetched("csv")),
    button("Download JSON", () => fetched("json")),
  );
}

// Means have a scale of their own: on that of the ranges, most would be a line at zero.
function channelPlots(name, found, group) {
  const { mean, minimum, maximum, nan, infinite, standard_error: error } = found.per_channel;
  const xs = mean.map((_, channel) => channel);
  const flagged = xs.map((channel) => nan[channel] + infinite[channel] > 0 || mean[channel] === null);
  const flags = flagged.includes(true) ? [{ kind: "flags", color: "--bad", values: flagged }] : [];
  const errors = error && found.rows_are === "samples";
  const ends = (sign) => mean.map((value, channel) => (value === null || error[channel] === null ? null : value + sign * error[channel]));
  const drawn = (label, y, marks, legend) =>
    plot({
      label: `${label} of each channel of ${name}`,
      xs,
      axes: { x: `Channel (axis ${found.channel_axis})`, y: `${y} (${unitsOf(found)})` },
      said: (channel) => sayChannel(found.per_channel, channel),
      group,
      marks: [...marks, ...flags],
      legend: [...legend, flags.length > 0 && key("bad", "▲", "has NaN or infinities, or no finite value")],
    });
  const zero = { kind: "level", color: "--grid", at: 0 };
  const bars = errors ? [{ kind: "errors", color: "--error-bar", low: ends(-1), high: ends(1) }] : [];
  const means = { kind: "points", color: "--accent", values: mean };
  const barKey = errors && key("error-bar", "I", ERROR_BAR);
  return [
    drawn("Mean", "Mean", [zero, ...bars, means], [key("accent", "●", "mean"), barKey]),
    drawn(
      "Range",
      "Values",
      [{ kind: "ranges", color: "--range", low: minimum, high: maximum }],
      [key("range", "▮", "least to greatest value")],
    ),
  ];
}

function sayChannel(columns, channel) {
  const error = columns.standard_error?.[channel];
  const beside = ["nan", "infinite"]
    .filter((name) => columns[name][channel])
    .map((name) => `${whole(columns[name][channel])} ${name === "nan" ? "NaN" : "infinite"}`);
  const mean =
    columns.mean[channel] === null
      ? "no finite value"
      : `mean ${number(columns.mean[channel])}${known(error) ? ` ± ${number(error)}` : ""}, from ${number(columns.minimum[channel])} to ${number(columns.maximum[channel])}`;
  return [`channel ${channel}`, mean, counted(columns.count[channel], "value"), ...beside].join(", ");
}

// Tables of counts are drawn; others are listed.
const BARS = ["low", "high", "count"].join();
const tables = (layer, found) =>
  Object.entries(found.tables)
    .filter(([, table]) => table.rows.length)
    .map(([name, table]) => (table.columns.join() === BARS ? counts(layer, name, table.rows, unitsOf(found)) : listed(layer, name, table)));

// The heights are logarithmic: tails are what ranges are chosen by.
function counts(layer, name, rows, units) {
  const [low, high, count] = [0, 1, 2].map((column) => rows.map((row) => row[column]));
  const width = Math.min(
    ...low
      .slice(1)
      .map((each, place) => each - low[place])
      .filter((each) => each > 0),
    Infinity,
  );
  const single = rows.every(([least, most]) => least === most) && Number.isFinite(width); // values that were counted one by one
  const edge = (values, side) => (single ? values.map((each) => each + (side * width) / 2) : values);
  return plot({
    label: `${name[0].toUpperCase()}${name.slice(1)} of ${layer}: how often values occur`,
    xs: low.map((each, place) => (each + high[place]) / 2),
    logarithmic: true,
    axes: { x: `Value (${units})`, y: "Values per bin (logarithmic)" },
    said: (bin) => `${number(low[bin])} to ${number(high[bin])}: ${counted(count[bin], "value")}`,
    marks: [
      {
        kind: "bars",
        color: "--accent",
        low: count.map(() => 0.5),
        high: count.map((each) => each || null),
        from: edge(low, -1),
        to: edge(high, 1),
      },
    ],
  });
}

function listed(layer, name, { columns, rows }) {
  const shown = columns.map((column, place) => ({
    title: column,
    number: true,
    key: (row) => row[place],
    cell: (row) => number(row[place]),
  }));
  return h(
    "details",
    {},
    h("summary", {}, `${name[0].toUpperCase()}${name.slice(1)} as a table`),
    sortable(shown, rows, { label: `${name} of ${layer}`, cards: false }).element,
  );
}

const figuresOf = (lists) => Object.entries(lists).map(([figure, values]) => [titleOf(figure), (channel) => values[channel]]);

// How the layer developed while the job followed its store: the chosen channel, and all channels together.
async function showDevelopment(section, { id, name, units, group, signal }) {
  const place = h("div");
  section.replaceChildren(h("h2", {}, "Over the rows of the store"), place);
  let asked = 0;
  const draw = async (channel) => {
    asked += 1;
    const mine = asked;
    const found = await get(`${layerPath(`/jobs/${id}/development`, name)}?channel=${channel}`, signal);
    if (mine === asked) place.replaceChildren(...developmentOf(name, found, units));
  };
  let waiting = null;
  group.push((channel) => {
    // wait until the pointer rests
    clearTimeout(waiting);
    waiting = setTimeout(() => draw(channel).catch((error) => signal.aborted || notice(error.message)), 150);
  });
  await draw(0);
}

function developmentOf(name, { channel, points }, units) {
  if (points.length < 2)
    return [h("p", { class: "faint" }, "There is one result set so far; how the means develop is drawn from the second on.")];
  const xs = points.map((point) => point.rows);
  const value = (each) =>
    each.mean === null ? "unknown" : `${number(each.mean)}${known(each.standard_error) ? ` ± ${number(each.standard_error)}` : ""}`;
  const said = (place) =>
    `${whole(xs[place])} rows, ${time(points[place].at)}: mean of channel ${channel} ${value(points[place])}; all means within ${percent(points[place].apart, 2)} of the layer's range of the newest`;
  const end = (sign) =>
    points.map((each) => (each.mean === null || !known(each.standard_error) ? null : each.mean + sign * each.standard_error));
  const changes = points.map((each) => (known(each.apart) ? 100 * each.apart : null));
  const group = [];
  return [
    plot({
      label: `Mean of channel ${channel} of ${name} over rows`,
      xs,
      axes: { x: "Rows counted", y: `Mean (${units})` },
      said,
      group,
      marks: [
        { kind: "errors", color: "--error-bar", low: end(-1), high: end(1) },
        { kind: "line", color: "--accent", values: points.map((each) => each.mean) },
        { kind: "points", color: "--accent", values: points.map((each) => each.mean) },
      ],
      legend: [
        key("accent", "●", "mean; choose another channel in the plots above"),
        key("error-bar", "I", ERROR_BAR),
      ],
    }),
    plot({
      label: `Greatest change of a mean of ${name} up to the newest result set`,
      xs,
      axes: { x: "Rows counted", y: "Change (% of range)" },
      said,
      group,
      marks: [
        { kind: "line", color: "--accent", values: changes },
        { kind: "points", color: "--accent", values: changes },
      ],
    }),
  ];
}

export { layerAddress };
