// Elements without a library: text stays text, and never becomes markup.

export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && typeof value !== "string") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// The heading of a view, which names the tab, too.
export function title(text) {
  document.title = `${text} · streamstats`;
  return h("h1", {}, text);
}

export function notice(text) {
  const shown = h("div", {}, text);
  document.getElementById("notice").append(shown);
  setTimeout(() => shown.remove(), 8000);
}

export function confirmed(text) {
  const dialog = document.getElementById("confirm");
  document.getElementById("confirm-text").textContent = text;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

export const whole = (value) => value.toLocaleString("en");
export const number = (value) => (value === null || value === undefined ? "–" : String(Number(value.toPrecision(4))));

export function bytes(value) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${value.toFixed(unit && value < 100 ? 1 : 0)} ${units[unit]}`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 90) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

export const time = (seconds) => (seconds ? new Date(seconds * 1000).toLocaleString() : "–");

// A table that sorts by any column. A column is {title, key(row), cell(row)}, with `number` or `name` for its style.
export function sortable(columns, rows, { label, sorted = 0, cards = true }) {
  let order = { column: sorted, up: true };
  const body = h("tbody");
  const heads = columns.map((column, index) =>
    h("th", { scope: "col", class: column.number ? "number" : null },
      h("button", { type: "button", onclick: () => sort(index) }, column.title)));
  const table = h("table", { class: cards ? "cards" : null, "aria-label": label }, h("thead", {}, h("tr", {}, heads)), body);

  function sort(index) {
    order = { column: index, up: order.column === index ? !order.up : true };
    show();
  }

  function show() {
    const { key } = columns[order.column];
    const sign = order.up ? 1 : -1;
    const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true }));
    const missing = (value) => value === null || value === undefined;
    const inOrder = [...rows].sort((a, b) => {
      const [left, right] = [key(a), key(b)];
      if (missing(left) || missing(right)) return missing(left) - missing(right);
      return sign * compare(left, right);
    });
    heads.forEach((head, index) => head.setAttribute("aria-sort", index !== order.column ? "none" : order.up ? "ascending" : "descending"));
    body.replaceChildren(...inOrder.map((row) => h("tr", {}, columns.map((column) =>
      h("td", { class: column.number ? "number" : column.name ? "name" : null, "data-label": column.title }, column.cell(row))))));
  }

  show();
  return { table, update(changed) { rows = changed; show(); } };
}
