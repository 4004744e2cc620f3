// The layers of a job's results: those that need attention first, then all of them in the network's order.

import { h, svg } from "./elements.js";
import { byName, counted, number, percent, rowsIn, titleOf, whole } from "./formats.js";
import { downloadButton } from "./ways.js";
import { sortable } from "./tables.js";

const TOO_UNSURE = 0.01; // of a layer's range: a mean whose standard error is larger is hardly known

// Layers as the network has them; those of unknown place follow, by name.
export function inOrder(layers) {
  const place = (layer) => layer.order ?? Infinity;
  return Object.entries(layers)
    .map(([name, layer]) => ({ name, ...layer }))
    .sort((a, b) => (place(a) === place(b) ? byName(a.name, b.name) : place(a) - place(b)));
}

export const missingRows = (layer) => rowsIn(layer.missing.map((gap) => gap.rows));

// Why a layer needs attention: a sentence for each reason, the worst first.
export function concerns(layer) {
  const missing = missingRows(layer);
  const [first] = layer.missing;
  const unsure = layer.rows_are === "samples" && layer.largest_standard_error / (layer.maximum - layer.minimum);
  return [
    missing &&
      `${counted(missing, "row")} missing, the first in rows ${first.rows[0]}:${first.rows[1]}: ${first.reason.replace(`layer ${layer.name}: `, "")}`,
    layer.shortfall && `too few samples: ${layer.shortfall.reason}`,
    layer.rows === 0 && "no rows were counted",
    layer.nan + layer.infinite > 0 &&
      `${[layer.nan && `${whole(layer.nan)} NaN`, layer.infinite && counted(layer.infinite, "infinity", "infinities")].filter(Boolean).join(" and ")} left out`,
    layer.never_active && `${counted(layer.never_active, "channel")} of ${whole(layer.channels)} never active: zero in every sample`,
    unsure > TOO_UNSURE && `too few samples: a mean is known to ± ${percent(unsure)} of the layer's range only`,
  ].filter(Boolean);
}

// What needs attention, as a panel; null if nothing does.
export function attention(id, layers) {
  const found = layers.map((layer) => ({ ...layer, concerns: concerns(layer) })).filter((layer) => layer.concerns.length);
  if (!found.length) return null;
  const columns = [
    { title: "Layer", name: true, key: (layer) => layer.name, cell: (layer) => layerLink(id, layer.name) },
    {
      title: "Why",
      key: (layer) => layer.concerns[0],
      cell: (layer) =>
        h(
          "ul",
          { class: "plain" },
          layer.concerns.map((each) => h("li", {}, each)),
        ),
    },
  ];
  return h(
    "section",
    { class: "panel warn", "aria-labelledby": "attention" },
    h(
      "h2",
      { id: "attention" },
      `${counted(found.length, "layer")} of ${whole(layers.length)} ${found.length === 1 ? "needs" : "need"} attention`,
    ),
    sortable(columns, found, { label: "Layers that need attention" }).element,
  );
}

const layerLink = (id, name) => h("a", { href: `#/jobs/${id}/layers/${encodeURIComponent(name)}` }, name);

// The table of all layers, with a search and, on request, every figure. `before` is the state of the one it replaces.
export function layerTable(id, layers, before = { search: "", all: false }) {
  const state = before;
  const left = h("span", { class: "faint small", role: "status" });
  const place = h("div");
  const search = h("input", {
    id: "search",
    type: "search",
    value: state.search,
    placeholder: "part of a name",
    oninput: () => narrow(search.value),
  });
  const every = h(
    "label",
    { class: "wide-only" },
    h("input", {
      type: "checkbox",
      checked: state.all,
      onchange: (event) => {
        state.all = event.target.checked;
        draw();
      },
    }),
    " All figures",
  );
  let table;

  function draw() {
    table = sortable(state.all ? [...columnsOf(id), ...figureColumns(layers)] : columnsOf(id), layers, { label: "Layers" });
    place.replaceChildren(table.element);
    narrow(state.search);
  }

  function narrow(text) {
    state.search = text;
    const wanted = layers.filter((layer) => layer.name.toLowerCase().includes(text.trim().toLowerCase()));
    table.update(wanted);
    left.textContent = text.trim() ? `${whole(wanted.length)} of ${counted(layers.length, "layer")}` : "";
  }

  draw();
  return h(
    "section",
    {},
    h("h2", {}, "Layers"),
    h("div", { class: "row" }, h("label", { for: "search" }, "Search"), search, left, h("span", { class: "grow" }), every),
    place,
  );
}

// A number of rows and, if any are, how many of its layer do not count.
export const rowsLess = (rows, ranges, what) => [
  whole(rows),
  rowsIn(ranges) ? h("span", { class: "faint small" }, `${whole(rowsIn(ranges))} ${what}`) : null,
];

const columnsOf = (id) => [
  { title: "Layer", name: true, key: (layer) => layer.name, cell: (layer) => layerLink(id, layer.name) },
  { title: "Rows", number: true, key: (layer) => layer.rows, cell: (layer) => rowsLess(layer.rows, layer.excluded, "taken back") },
  { title: "Coverage", key: missingRows, cell: coverage, wide: true },
  { title: "Channels", number: true, key: (layer) => layer.channels, cell: (layer) => whole(layer.channels) },
  { title: "Stored as", key: (layer) => layer.dtype, cell: (layer) => layer.dtype + (layer.quantization ? " codes" : ""), wide: true },
  { title: "Means", number: true, key: (layer) => layer.greatest_mean, cell: (layer) => between(layer.least_mean, layer.greatest_mean) },
  { title: "Values", number: true, key: (layer) => layer.maximum, cell: (layer) => between(layer.minimum, layer.maximum) },
  { title: "Corrector", key: (layer) => layer.corrector, cell: (layer) => correctorOf(id, layer), wide: true },
];

const between = (low, high) => `${number(low)} to ${number(high)}`;

// What the service says of every layer, and what has columns of its own; whatever else it says are figures.
const KNOWN = new Set([
  "name",
  "rows",
  "covered",
  "excluded",
  "filled",
  "accepted",
  "stores",
  "sources",
  "channels",
  "channel_axis",
  "dtype",
  "quantization",
  "kernel",
  "mask",
  "masked",
  "statistics",
  "array",
  "tensor",
  "rows_are",
  "order",
  "attributes",
  "missing",
  "min_rows",
  "shortfall",
  "corrector",
  "reason",
  "least_mean",
  "greatest_mean",
  "minimum",
  "maximum",
]);

const figuresOf = (layers) => [...new Set(layers.flatMap((layer) => Object.keys(layer)))].filter((name) => !KNOWN.has(name));

const figureColumns = (layers) =>
  figuresOf(layers).map((figure) => ({
    title: titleOf(figure),
    number: true,
    key: (layer) => layer[figure],
    cell: (layer) => figureCell(layer[figure]),
    wide: true,
  }));

const figureCell = (value) =>
  value === undefined
    ? ""
    : Number.isInteger(value)
      ? whole(value)
      : typeof value === "number" || value === null
        ? number(value)
        : String(value);

function coverage(layer) {
  const missing = missingRows(layer);
  const taken = rowsIn(layer.excluded);
  const label = missing
    ? `${counted(missing, "row")} missing`
    : taken
      ? `all rows are counted except ${whole(taken)} that were taken back`
      : "all rows are counted";
  return [coveragePicture(layer, label), h("span", { class: missing ? "error small" : "faint small" }, missing ? label : "complete")];
}

function coveragePicture(layer, label) {
  const gaps = layer.missing.map((gap) => gap.rows);
  const last = Math.max(1, ...[...layer.covered, ...layer.excluded, ...gaps].map((range) => range[1]));
  const part =
    (kind) =>
    ([start, stop]) =>
      svg("rect", { class: kind, x: (120 * start) / last, y: 0, width: Math.max(1, (120 * (stop - start)) / last), height: 10 });
  return svg(
    "svg",
    { class: "coverage", viewBox: "0 0 120 10", role: "img", "aria-label": label },
    svg("rect", { class: "all", width: 120, height: 10 }),
    ...layer.covered.map(part("counted")),
    ...layer.excluded.map(part("excluded")),
    ...gaps.map(part("missing")),
  );
}

function correctorOf(id, layer) {
  if (!layer.corrector) return h("span", { class: "faint" }, layer.reason);
  return downloadButton("Download", id, `files/${layer.corrector}`, "quiet", { "aria-label": `Download the corrector of ${layer.name}` });
}
