// Tables that sort by any column and show one page of rows. A column is {title, key(row), cell(row)}, with `number`,
// `name` or `time` for its style, and `wide` if phones leave it out.

import { button, h } from "./elements.js";
import { byName, counted, known, number, whole } from "./formats.js";

const PHONE = matchMedia("(max-width: 640px)");
const ROWS = { wide: 50, phone: 12 };

export function sortable(columns, rows, { label, sorted = null, cards = true, identity = null }) {
  const order = { column: sorted, up: true };
  let first = 0;
  const body = h("tbody");
  const heads = columns.map((column, index) =>
    h("th", { scope: "col", class: styleOf(column) }, h("button", { type: "button", onclick: () => sort(index) }, column.title)),
  );
  const table = h("table", { class: cards ? "cards" : null, "aria-label": label }, h("thead", {}, h("tr", {}, heads)), body);
  const place = h("span", { class: "faint small", role: "status" });
  const turns = [button("Previous", () => turn(-1), "quiet"), button("Next", () => turn(1), "quiet")];
  turns.forEach((each) => each.setAttribute("aria-label", `${each.textContent} rows of ${label}`));
  const pages = h("div", { class: "row pages", hidden: true }, turns, place);
  const shown = h(
    "div",
    {},
    h(
      "div",
      {
        class: cards ? "scroll" : "scroll wide",
        tabIndex: cards ? null : 0,
        role: cards ? null : "region",
        "aria-label": cards ? null : label,
      },
      table,
    ),
    pages,
  );

  function sort(index) {
    order.up = order.column === index ? !order.up : true;
    order.column = index;
    first = 0;
    show();
  }

  function turn(step) {
    first += step * pageSize();
    show();
    turns.find((each) => !each.disabled)?.focus();
  }

  const pageSize = () => (PHONE.matches && cards ? ROWS.phone : ROWS.wide);

  function show() {
    const size = pageSize();
    first = Math.max(0, Math.min(first, Math.floor((rows.length - 1) / size) * size));
    const inOrder = order.column === null ? rows : [...rows].sort(comparing(columns[order.column].key, order.up ? 1 : -1));
    heads.forEach((head, index) => head.setAttribute("aria-sort", index !== order.column ? "none" : order.up ? "ascending" : "descending"));
    const focused = identity && body.contains(document.activeElement) ? document.activeElement.closest("tr").dataset.row : null;
    body.replaceChildren(...inOrder.slice(first, first + size).map(drawn));
    if (focused) body.querySelector(`tr[data-row="${CSS.escape(focused)}"] a`)?.focus({ preventScroll: true });
    pages.hidden = rows.length <= size;
    turns[0].disabled = first === 0;
    turns[1].disabled = first + size >= rows.length;
    const said = `${whole(first + 1)} to ${whole(Math.min(first + size, rows.length))} of ${whole(rows.length)}`;
    if (place.textContent !== said) place.textContent = said;
  }

  function drawn(row) {
    const cells = columns.map((column) => h("td", { class: styleOf(column), "data-label": column.title }, h("div", {}, column.cell(row))));
    return h("tr", identity ? { "data-row": identity(row) } : {}, cells);
  }

  PHONE.addEventListener("change", () => table.isConnected && show());
  show();
  let last = JSON.stringify(rows);

  // Rows that have not changed are left alone: what is selected or read aloud stays as it is.
  function update(changed, { redraw = false } = {}) {
    const now = JSON.stringify(changed);
    if (now === last && !redraw) return;
    [rows, last] = [changed, now];
    show();
  }

  return { element: shown, table, update };
}

// A table of a layer's channels by figure, [title, value(channel)] each, made when it is opened: there may be thousands.
export function channelTable(label, channels, figures) {
  const columns = figures.map(([title, value]) => {
    const shown = channels.every((channel) => Number.isInteger(value(channel))) ? whole : number;
    return { title, number: true, key: value, cell: (channel) => shown(value(channel)) };
  });
  const channel = { title: "Channel", number: true, key: (each) => each, cell: String };
  const place = h("div");
  const fill = () =>
    details.open && !place.firstChild && place.append(sortable([channel, ...columns], channels, { label, cards: false }).element);
  const details = h("details", { ontoggle: fill }, h("summary", {}, `All ${counted(channels.length, "channel")} as a table`), place);
  return details;
}

const styleOf = (column) =>
  [column.number && "number", column.name && "name", column.time && "time", column.wide && "wide-only"].filter(Boolean).join(" ") || null;

function comparing(key, sign) {
  const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : byName(String(a), String(b)));
  const missing = (value) => !known(value);
  return (one, other) => {
    const [left, right] = [key(one), key(other)];
    if (missing(left) || missing(right)) return missing(left) - missing(right);
    return sign * compare(left, right);
  };
}
