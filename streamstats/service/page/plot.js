// The channels of a layer: the mean as a point, minimum to maximum as a bar. Pointer, wheel and keys move through it.

import { h, number, whole } from "./elements.js";

const MARGIN = { left: 64, right: 12, top: 12, bottom: 44 };
const KEYS = "← → move by one channel, Page Up and Page Down by a tenth, Home and End to the ends; + and − zoom, 0 shows all";

export function channelPlot(layer, columns) {
  const count = columns.mean.length;
  const canvas = h("canvas", { tabIndex: 0, role: "application", "aria-label": `Channels of ${layer}: mean, minimum and maximum. ${KEYS}` });
  const readout = h("p", { class: "readout", role: "status", "aria-live": "polite" });
  const view = { first: 0, last: count, chosen: null };

  const position = (channel) => MARGIN.left + ((channel + 0.5 - view.first) / (view.last - view.first)) * (canvas.clientWidth - MARGIN.left - MARGIN.right);

  function range() {
    let [low, high] = [Infinity, -Infinity];
    for (let channel = Math.floor(view.first); channel < Math.ceil(view.last); channel += 1) {
      for (const value of [columns.minimum[channel], columns.maximum[channel], columns.mean[channel]]) {
        if (value === null || value === undefined) continue;
        low = Math.min(low, value);
        high = Math.max(high, value);
      }
    }
    if (low > high) return [0, 1];
    const room = (high - low || Math.abs(high) || 1) * 0.05;
    return [low - room, high + room];
  }

  function draw() {
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (!width) return;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    const ink = canvas.getContext("2d");
    const style = getComputedStyle(document.body);
    const probe = (name) => {
      canvas.style.color = `var(${name})`;
      const color = getComputedStyle(canvas).color;
      canvas.style.color = "";
      return color;
    };
    const colors = { ink: probe("--ink"), faint: probe("--faint"), line: probe("--line"), bar: probe("--range"), point: probe("--accent") };
    ink.scale(ratio, ratio);
    ink.font = `12px ${style.fontFamily}`;
    const [low, high] = range();
    const y = (value) => MARGIN.top + ((high - value) / (high - low)) * (height - MARGIN.top - MARGIN.bottom);

    ink.strokeStyle = colors.line;
    ink.fillStyle = colors.faint;
    ink.textBaseline = "middle";
    for (const tick of ticks(low, high, 6)) {
      line(ink, MARGIN.left, y(tick), width - MARGIN.right, y(tick));
      ink.textAlign = "right";
      ink.fillText(number(tick), MARGIN.left - 8, y(tick));
    }
    ink.textAlign = "center";
    for (const tick of ticks(view.first, view.last, Math.max(2, Math.floor(width / 90)))) {
      if (Number.isInteger(tick) && tick < count) ink.fillText(String(tick), position(tick), height - MARGIN.bottom + 14);
    }
    ink.fillText("channel", (MARGIN.left + width) / 2, height - 8);

    const step = (width - MARGIN.left - MARGIN.right) / (view.last - view.first);
    for (let channel = Math.floor(view.first); channel < Math.ceil(view.last); channel += 1) {
      const x = position(channel);
      if (columns.mean[channel] === null || x < MARGIN.left || x > width - MARGIN.right) continue;
      ink.strokeStyle = colors.bar;
      ink.lineWidth = Math.max(1, Math.min(10, step * 0.6));
      line(ink, x, y(columns.minimum[channel]), x, y(columns.maximum[channel]));
      ink.fillStyle = colors.point;
      ink.beginPath();
      ink.arc(x, y(columns.mean[channel]), Math.max(1.5, Math.min(4, step * 0.35)), 0, 7);
      ink.fill();
    }
    ink.lineWidth = 1;
    if (view.chosen !== null) {
      ink.strokeStyle = colors.ink;
      line(ink, position(view.chosen), MARGIN.top, position(view.chosen), height - MARGIN.bottom);
    }
  }

  function choose(channel) {
    view.chosen = Math.max(0, Math.min(count - 1, channel));
    if (view.chosen < view.first || view.chosen >= view.last) {
      const span = view.last - view.first;
      view.first = Math.max(0, Math.min(count - span, view.chosen - span / 2));
      view.last = view.first + span;
    }
    const said = ["mean", "minimum", "maximum"].map((name) => `${name} ${number(columns[name][view.chosen])}`);
    const beside = ["nan", "infinite"].filter((name) => columns[name][view.chosen]).map((name) => `${name} ${whole(columns[name][view.chosen])}`);
    readout.textContent = [`channel ${view.chosen}`, ...said, `count ${whole(columns.count[view.chosen])}`, ...beside].join(", ");
    draw();
  }

  function zoom(factor, around) {
    const span = Math.max(Math.min(count, 4), Math.min(count, (view.last - view.first) * factor));
    const share = (around - view.first) / (view.last - view.first);
    view.first = Math.max(0, Math.min(count - span, around - share * span));
    view.last = view.first + span;
    draw();
  }

  const under = (event) => Math.floor(view.first + ((event.offsetX - MARGIN.left) / (canvas.clientWidth - MARGIN.left - MARGIN.right)) * (view.last - view.first));
  canvas.addEventListener("pointermove", (event) => choose(under(event)));
  canvas.addEventListener("pointerdown", (event) => choose(under(event)));
  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && document.activeElement !== canvas) return; // until the plot has the focus, the wheel scrolls the page
    event.preventDefault();
    zoom(event.deltaY > 0 ? 1.25 : 0.8, under(event));
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const here = view.chosen ?? Math.floor(view.first);
    const tenth = Math.max(1, Math.round((view.last - view.first) / 10));
    const moves = { ArrowLeft: here - 1, ArrowRight: view.chosen === null ? here : here + 1, PageUp: here - tenth, PageDown: here + tenth, Home: 0, End: count - 1 };
    if (event.key in moves) choose(moves[event.key]);
    else if (event.key === "+" || event.key === "=") zoom(0.5, here);
    else if (event.key === "-") zoom(2, here);
    else if (event.key === "0") zoom(count, here);
    else return;
    event.preventDefault();
  });
  new ResizeObserver(draw).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  window.addEventListener("themechange", draw);
  readout.textContent = `${whole(count)} channels. ${KEYS}.`;
  return h("div", { class: "plot" }, canvas, readout);
}

function line(ink, x1, y1, x2, y2) {
  ink.beginPath();
  ink.moveTo(x1, y1);
  ink.lineTo(x2, y2);
  ink.stroke();
}

function ticks(low, high, most) {
  const raw = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= raw);
  const found = [];
  const first = Math.ceil(low / step);
  for (let index = 0; index <= 2 * most && (first + index) * step <= high; index += 1) found.push(Number(((first + index) * step).toPrecision(12)));
  return found;
}
