// The results of a job: its layers with their coverage, downloads, and the report.

import { link } from "./api.js";
import { h, notice, number, sortable, svg, whole } from "./elements.js";

export function layersOf(id, { layers, results }, searched) {
  const all = Object.entries(layers).map(([name, layer]) => ({ name, ...layer }));
  const table = sortable(columnsOf(id, all), all, { label: "Layers" });
  const left = h("span", { class: "faint", role: "status" });
  const narrow = () => {
    const wanted = all.filter((layer) => layer.name.toLowerCase().includes(search.value.trim().toLowerCase()));
    table.update(wanted);
    left.textContent = `${whole(wanted.length)} of ${whole(all.length)} layers, result set ${results}`;
  };
  const search = h("input", { id: "search", type: "search", value: searched, placeholder: "part of a name", oninput: narrow });
  narrow();
  const missing = all.filter((layer) => layer.missing.length);
  const short = all.filter((layer) => layer.shortfall);
  return h("div", {}, h("div", { class: "row" }, h("label", { for: "search" }, "Search"), search, left), missing.length ? missingOf(missing) : null, short.length ? shortOf(short) : null, h("div", { class: "scroll" }, table.table));
}

// What the service says of every layer; whatever else it says are figures of the statistics.
const KNOWN = new Set(["name", "rows", "covered", "excluded", "filled", "accepted", "stores", "channels", "channel_axis", "dtype", "quantization", "statistics", "missing", "min_rows", "shortfall", "corrector", "reason"]);

const columnsOf = (id, layers) => [
  { title: "Layer", name: true, key: (layer) => layer.name, cell: (layer) => h("a", { href: `#/jobs/${id}/layers/${encodeURIComponent(layer.name)}` }, layer.name) },
  { title: "Rows", number: true, key: (layer) => layer.rows, cell: (layer) => whole(layer.rows) },
  { title: "Coverage", key: missingRows, cell: coverage },
  { title: "Channels", number: true, key: (layer) => layer.channels, cell: (layer) => whole(layer.channels) },
  { title: "Values", key: (layer) => layer.dtype, cell: (layer) => layer.dtype + (layer.quantization ? " codes" : "") },
  ...figuresOf(layers).map((figure) => ({ title: titleOf(figure), number: true, key: (layer) => layer[figure], cell: (layer) => figureCell(layer[figure]) })),
  { title: "Corrector", key: (layer) => layer.corrector, cell: (layer) => correctorOf(id, layer) },
];

const figuresOf = (layers) => [...new Set(layers.flatMap((layer) => Object.keys(layer)))].filter((name) => !KNOWN.has(name));

const titleOf = (figure) => figure[0].toUpperCase() + figure.slice(1).replaceAll("_", " ").replace(/(\d) (\d)/, "$1.$2");

const figureCell = (value) => (value === undefined ? "" : Number.isInteger(value) ? whole(value) : typeof value === "number" || value === null ? number(value) : String(value));

const missingRows = (layer) => layer.missing.reduce((sum, gap) => sum + gap.rows[1] - gap.rows[0], 0);

function coverage(layer) {
  const missing = missingRows(layer);
  const label = missing ? `${whole(missing)} rows are missing` : "all rows are counted";
  return [coveragePicture(layer, label), h("span", { class: missing ? "error small" : "faint small" }, missing ? label : "complete")];
}

function coveragePicture(layer, label) {
  const gaps = layer.missing.map((gap) => gap.rows);
  const last = Math.max(1, ...[...layer.covered, ...layer.excluded, ...gaps].map((range) => range[1]));
  const part = (kind) => ([start, stop]) => svg("rect", { class: kind, x: (120 * start) / last, y: 0, width: Math.max(1, (120 * (stop - start)) / last), height: 10 });
  return svg("svg", { class: "coverage", viewBox: "0 0 120 10", role: "img", "aria-label": label }, svg("rect", { class: "all", width: 120, height: 10 }),
    ...layer.covered.map(part("counted")), ...layer.excluded.map(part("excluded")), ...gaps.map(part("missing")));
}

function missingOf(layers) {
  return h("details", { class: "panel", open: true }, h("summary", { class: "error" }, `Rows are missing in ${layers.length === 1 ? "1 layer" : `${layers.length} layers`}`),
    h("ul", { class: "messages" }, layers.flatMap((layer) => layer.missing.map((gap) => h("li", {}, `${layer.name}, rows ${gap.rows[0]}:${gap.rows[1]}: ${gap.reason}`)))));
}

function shortOf(layers) {
  return h("details", { class: "panel", open: true }, h("summary", { class: "error" }, `${layers.length === 1 ? "1 layer" : `${layers.length} layers`} below min_rows`),
    h("ul", { class: "messages" }, layers.map((layer) => h("li", {}, `${layer.name}: ${layer.shortfall.reason}`))));
}

function correctorOf(id, layer) {
  if (!layer.corrector) return h("span", { class: "faint" }, layer.reason);
  return h("button", { type: "button", class: "quiet", "aria-label": `Download the corrector of ${layer.name}`, onclick: () => download(id, `files/${layer.corrector}`).catch((error) => notice(error.message)) }, "Download");
}

export async function download(id, path) {
  const anchor = h("a", { href: await link(id, path), download: "" });
  document.body.append(anchor);
  anchor.click();
  anchor.remove();
}

export function reportOf(id) {
  const place = h("div");
  const show = async () => {
    try {
      place.replaceChildren(h("iframe", { src: await link(id, "report"), title: `Report of job ${id}` }));
    } catch (error) {
      notice(error.message);
    }
  };
  place.append(h("button", { type: "button", onclick: show }, "Show the report"));
  return place;
}
