// A layer: its channels as a plot, every table of its statistics, and every list per channel as a table.

import { get } from "./api.js";
import { h, number, sortable, title, whole } from "./elements.js";
import { channelPlot } from "./plot.js";

export async function showLayer({ main, signal }, id, name) {
  const found = await get(`/jobs/${id}/layers/${name.split("/").map(encodeURIComponent).join("/")}`, signal);
  const codes = found.quantization ? ", codes converted to real units" : "";
  main.replaceChildren(h("p", {}, h("a", { href: `#/jobs/${id}` }, `← Job ${id}`)), title(name),
    h("p", { class: "faint" }, `${whole(found.rows)} rows, ${found.dtype}, channels on axis ${found.channel_axis}${codes}, result set ${found.results}`),
    channelPlot(name, found.per_channel), ...drawn(name, found.tables), channelTable(name, found.per_channel));
}

// Bars of equal width, their heights the logarithms of the counts: tails are what ranges are chosen by.
function bars(layer, name, { rows }) {
  const most = Math.log1p(Math.max(...rows.map(([, , count]) => count)));
  const all = rows.map(([low, high, count]) => {
    const bar = h("span", { title: `${number(low)} to ${number(high)}: ${whole(count)}` });
    bar.style.height = `${most ? (100 * Math.log1p(count)) / most : 0}%`;
    return bar;
  });
  const ends = `${number(rows[0][0])} to ${number(rows[rows.length - 1][1])}`;
  return h("figure", { class: "bars" }, h("figcaption", {}, `${name}: how often values occur, ${ends} (logarithmic)`),
    h("div", { role: "img", "aria-label": `${name} of ${layer}, ${ends}` }, ...all));
}

function listed(layer, name, { columns, rows }) {
  const shown = columns.map((column, place) => ({ title: column, number: true, key: (row) => row[place], cell: (row) => number(row[place]) }));
  return h("details", {}, h("summary", {}, name), h("div", { class: "scroll" }, sortable(shown, rows, { label: `${name} of ${layer}`, cards: false }).table));
}

const BARS = ["low", "high", "count"].join();
const drawn = (layer, tables) => Object.entries(tables).filter(([, table]) => table.rows.length)
  .map(([name, table]) => (table.columns.join() === BARS ? bars : listed)(layer, name, table));

// The table is made when it is opened: a layer may have thousands of channels.
function channelTable(name, lists) {
  const [first] = Object.values(lists);
  const channels = first.map((_, channel) => channel);
  const columns = [
    { title: "Channel", number: true, key: (channel) => channel, cell: (channel) => String(channel) },
    ...Object.entries(lists).map(([statistic, values]) => column(statistic, values)),
  ];
  const place = h("div", { class: "scroll" });
  const fill = () => details.open && !place.firstChild && place.append(sortable(columns, channels, { label: `Channels of ${name}`, cards: false }).table);
  const details = h("details", { ontoggle: fill }, h("summary", {}, `All ${whole(channels.length)} channels as a table`), place);
  return details;
}

function column(statistic, values) {
  const shown = values.every(Number.isInteger) ? whole : number;
  return { title: statistic.replaceAll("_", " "), number: true, key: (channel) => values[channel], cell: (channel) => shown(values[channel]) };
}
