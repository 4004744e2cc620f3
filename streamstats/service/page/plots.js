// Plots, drawn by uPlot: points with error bars, ranges, lines, bars. Pointer and keys move through the places on the
// x axis, and what is at the chosen place is said in words.

import { button, h } from "./elements.js";
import { known, number, whole } from "./formats.js";

const HEIGHT = { wide: 300, phone: 240 };
const KEYS = "Arrow keys, Page Up, Page Down, Home and End move; + and − zoom; 0 shows all. Drag with the pointer to zoom.";
const CLEAR = 3; // pixels

// `marks` are drawn in order: {kind, color, low, high, values} with an entry for each of `xs`. `axes` name what x and y
// are, `said(place)` is what is at a place, and `legend` explains the colours. Plots of one `group` move together; what
// else is in the group is called with each place that is chosen.
export function plot({ label, xs, axes, marks, said, legend = [], group = null, logarithmic = false }) {
  const [low, high] = extent(marks, logarithmic);
  const data = [xs, xs.map((_, place) => (place % 2 ? high : low))]; // which gives uPlot the scale of y
  const frame = h("div", {
    class: "frame",
    tabIndex: 0,
    role: "slider",
    "aria-label": `${label}. ${KEYS}`,
    "aria-valuemin": 0,
    "aria-valuemax": xs.length - 1,
    "aria-valuenow": 0,
    "aria-valuetext": said(0),
  });
  const readout = h("p", { class: "readout faint" }, "Point at the plot, or focus it and use the arrow keys, to read values.");
  const view = { place: null };
  const chart = new window.uPlot(options({ axes, marks, xs, range: [low, high], logarithmic, view, width: 300 }), data, frame);
  const element = h(
    "figure",
    { class: "plot", "aria-label": label },
    h("div", { class: "row" }, h("figcaption", { class: "grow strong" }, label), h("span", { class: "zoom" }, zoomButtons(chart, xs))),
    frame,
    readout,
    h("p", { class: "legend small faint" }, legend),
  );

  const choose = (place, told = true) => {
    view.place = Math.max(0, Math.min(xs.length - 1, place));
    reveal(chart, xs, view.place);
    frame.setAttribute("aria-valuenow", view.place);
    frame.setAttribute("aria-valuetext", said(view.place));
    readout.textContent = said(view.place);
    readout.classList.remove("faint");
    chart.redraw(false);
    if (told) group?.forEach((each) => each !== choose && each(view.place, false));
  };
  group?.push(choose);
  chart.over.addEventListener("click", (event) => choose(chart.posToIdx(event.offsetX)));
  chart.over.addEventListener(
    "pointermove",
    (event) => event.pointerType === "mouse" && !event.buttons && choose(chart.posToIdx(event.offsetX)),
  );
  frame.addEventListener("keydown", (event) => moved(event, { chart, xs, view, choose }));
  watchSize(element, frame, chart);
  return element;
}

function options({ axes, marks, xs, range, logarithmic, view, width }) {
  const style = {
    stroke: () => color("--faint"),
    grid: { stroke: () => color("--grid"), width: 1 },
    ticks: { stroke: () => color("--grid"), width: 1 },
    font: "12px system-ui, sans-serif",
    labelFont: "13px system-ui, sans-serif",
  };
  const wholes = xs.every(Number.isInteger);
  const half = xs.length > 1 ? (xs[xs.length - 1] - xs[0]) / (xs.length - 1) / 2 : 0.5;
  return {
    width,
    height: height(),
    legend: { show: false },
    padding: [8, 12, 0, 0],
    scales: {
      x: { time: false, range: (_, least, most) => [least - half, most + half] },
      y: { range: () => range, distr: logarithmic ? 3 : 1 },
    },
    axes: [
      {
        ...style,
        label: axes.x,
        size: 34,
        labelSize: 20,
        space: 60,
        incrs: wholes ? [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 1e4, 2e4, 5e4, 1e5, 1e6, 1e7, 1e8, 1e9] : undefined,
        values: (_, all) => all.map(shortly),
      },
      {
        ...style,
        label: axes.y,
        size: widthOf,
        labelSize: 22,
        values: (_, all) => all.map((each) => (each === null ? "" : shortly(each))),
      },
    ],
    series: [{}, { show: true, paths: () => null, points: { show: false } }],
    cursor: { x: false, y: false, points: { show: false }, drag: { x: true, y: false, setScale: true } },
    hooks: { draw: [(chart) => drawn(chart, xs, marks, view)] },
  };
}

const widthOf = (_, labels) => 20 + 7.2 * Math.max(3, ...(labels ?? []).map((each) => String(each ?? "").length));
const shortly = (value) => {
  const size = Math.abs(value);
  if (size >= 1e5) return value.toExponential(0).replace("e+", "e");
  return size >= 1e3 ? whole(value).replace("-", "−") : number(value);
};

// Colours are those of the page, so that a theme that changes changes the plot.
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim() && resolved(name);

function resolved(name) {
  const probe = document.getElementById("colour");
  probe.style.color = `var(${name})`;
  return getComputedStyle(probe).color;
}

const height = () => (matchMedia("(max-width: 640px)").matches ? HEIGHT.phone : HEIGHT.wide);

function extent(marks, logarithmic) {
  const all = marks.flatMap(({ low, high, values, kind }) => (kind === "flags" ? [] : [low, high, values].flatMap((each) => each ?? [])));
  let [least, most] = [Infinity, -Infinity];
  for (const value of all) {
    if (value === null || value === undefined || !Number.isFinite(value)) continue;
    least = Math.min(least, value);
    most = Math.max(most, value);
  }
  if (least > most) return [0, 1];
  if (logarithmic) return [0.5, Math.max(1, most) * 2];
  const room = (most - least || Math.abs(most) || 1) * 0.06;
  return [least - room, most + room];
}

const DRAW = {
  points: drawPoints,
  errors: drawErrors,
  ranges: drawRanges,
  line: drawLine,
  bars: drawBars,
  flags: drawFlags,
  level: drawLevel,
};

function drawn(chart, xs, marks, view) {
  const { ctx: ink, bbox } = chart;
  const ratio = window.devicePixelRatio || 1;
  const x = (value) => chart.valToPos(value, "x", true);
  const y = (value) => chart.valToPos(value, "y", true);
  const step = xs.length > 1 ? Math.abs(x(xs[1]) - x(xs[0])) : bbox.width / 4;
  ink.save();
  ink.beginPath();
  ink.rect(bbox.left, bbox.top, bbox.width, bbox.height);
  ink.clip();
  if (view.place !== null) line(ink, x(xs[view.place]), bbox.top, x(xs[view.place]), bbox.top + bbox.height, color("--ink"), ratio);
  for (const mark of marks) DRAW[mark.kind]({ ink, x, y, xs, step, ratio, bbox, ...mark, color: color(mark.color) });
  ink.restore();
}

function line(ink, x1, y1, x2, y2, stroke, width) {
  ink.strokeStyle = stroke;
  ink.lineWidth = width;
  ink.beginPath();
  ink.moveTo(x1, y1);
  ink.lineTo(x2, y2);
  ink.stroke();
}

function drawPoints({ ink, x, y, xs, step, ratio, values, color: fill }) {
  ink.fillStyle = fill;
  xs.forEach((each, place) => {
    if (!known(values[place])) return;
    ink.beginPath();
    ink.arc(x(each), y(values[place]), Math.max(1.5, Math.min(4, step / ratio / 3)) * ratio, 0, 7);
    ink.fill();
  });
}

function drawErrors({ ink, x, y, xs, step, ratio, low, high, color: stroke }) {
  const cap = Math.min(4 * ratio, step / 3);
  xs.forEach((each, place) => {
    if (!known(low[place]) || !known(high[place])) return;
    const [at, bottom, top] = [x(each), y(low[place]), y(high[place])];
    line(ink, at, bottom, at, top, stroke, ratio * 1.5);
    if (bottom - top < CLEAR * ratio || step < 5 * ratio) return;
    for (const end of [bottom, top]) line(ink, at - cap, end, at + cap, end, stroke, ratio * 1.5);
  });
}

function drawRanges({ ink, x, y, xs, step, ratio, low, high, color: stroke }) {
  xs.forEach((each, place) => {
    if (!known(low[place]) || !known(high[place])) return;
    const flat = Math.max(0, CLEAR * ratio - Math.abs(y(low[place]) - y(high[place]))) / 2; // a range of one value is seen, too
    line(ink, x(each), y(low[place]) + flat, x(each), y(high[place]) - flat, stroke, Math.max(ratio, Math.min(10 * ratio, step * 0.6)));
  });
}

function drawLine({ ink, x, y, xs, ratio, values, color: stroke }) {
  const points = xs.map((each, place) => [each, values[place]]).filter(([, value]) => known(value));
  points
    .slice(1)
    .forEach(([each, value], place) => line(ink, x(points[place][0]), y(points[place][1]), x(each), y(value), stroke, 2 * ratio));
}

// Bars from `low` to `high` on the y axis, `from` to `to` on the x axis, or a step wide.
function drawBars({ ink, x, y, xs, step, ratio, low, high, from, to, color: fill }) {
  ink.fillStyle = fill;
  xs.forEach((each, place) => {
    if (!known(low[place]) || !known(high[place])) return;
    const [left, right] = from ? [x(from[place]), x(to[place])] : [x(each) - step * 0.35, x(each) + step * 0.35];
    const width = Math.max(ratio, right - left - (right - left > 4 * ratio ? ratio : 0));
    ink.fillRect(left, y(high[place]), width, y(low[place]) - y(high[place]));
  });
}

// Triangles at the lower edge, at places where `values` is true: what has no place on the y axis.
function drawFlags({ ink, x, xs, ratio, bbox, values, color: fill }) {
  ink.fillStyle = fill;
  const [size, bottom] = [6 * ratio, bbox.top + bbox.height - ratio];
  xs.forEach((each, place) => {
    if (!values[place]) return;
    ink.beginPath();
    ink.moveTo(x(each), bottom - 1.6 * size);
    ink.lineTo(x(each) - size, bottom);
    ink.lineTo(x(each) + size, bottom);
    ink.fill();
  });
}

function drawLevel({ ink, y, ratio, bbox, at, color: stroke }) {
  line(ink, bbox.left, y(at), bbox.left + bbox.width, y(at), stroke, ratio);
}

function moved(event, { chart, xs, view, choose }) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const here = view.place ?? -1;
  const tenth = Math.max(1, Math.round(xs.length / 10));
  const moves = {
    ArrowLeft: here - 1,
    ArrowDown: here - 1,
    ArrowRight: here + 1,
    ArrowUp: here + 1,
    PageUp: here - tenth,
    PageDown: here + tenth,
    Home: 0,
    End: xs.length - 1,
  };
  if (event.key in moves) choose(moves[event.key]);
  else if (event.key === "+" || event.key === "=") zoom(chart, xs, 0.5, Math.max(0, here));
  else if (event.key === "-") zoom(chart, xs, 2, Math.max(0, here));
  else if (event.key === "0") zoom(chart, xs, Infinity, 0);
  else return;
  event.preventDefault();
}

function zoomButtons(chart, xs) {
  const middle = () => chart.posToIdx(chart.over.clientWidth / 2);
  return [
    ["+", "Zoom in", 0.5],
    ["−", "Zoom out", 2],
    ["All", "Show all", Infinity],
  ].map(([label, name, factor]) => button(label, () => zoom(chart, xs, factor, middle()), "quiet", { "aria-label": name }));
}

// Scales are those of the first and the last place that are shown.
const shownPlaces = (chart, xs) =>
  [chart.valToIdx(chart.scales.x.min), chart.valToIdx(chart.scales.x.max)].map((each) => Math.max(0, Math.min(xs.length - 1, each)));

function zoom(chart, xs, factor, around) {
  const [first, last] = shownPlaces(chart, xs);
  const span = Math.max(Math.min(4, xs.length), Math.min(xs.length, Math.round((last - first + 1) * factor)));
  show(chart, xs, around - Math.floor(span / 2), span);
}

function show(chart, xs, first, span) {
  const start = Math.max(0, Math.min(xs.length - span, first));
  chart.setScale("x", { min: xs[start], max: xs[start + span - 1] });
}

function reveal(chart, xs, place) {
  const [first, last] = shownPlaces(chart, xs);
  const [least, most] = [chart.scales.x.min, chart.scales.x.max];
  if (least !== null && (xs[place] < least || xs[place] > most)) show(chart, xs, place - Math.floor((last - first) / 2), last - first + 1);
}

function watchSize(element, frame, chart) {
  new ResizeObserver(() => frame.clientWidth && chart.setSize({ width: frame.clientWidth, height: height() })).observe(frame);
  const redraw = () => element.isConnected && chart.redraw(false);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  window.addEventListener("themechange", redraw);
}

// What a colour in a plot stands for.
export const key = (colour, sign, text) => h("span", {}, h("span", { class: `key ${colour}`, "aria-hidden": "true" }, sign), ` ${text}`);
