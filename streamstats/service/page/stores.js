// The stores that the service owns, with the rows of each layer.

import { get } from "./api.js";
import { h, sortable, title, whole } from "./elements.js";

export async function showStores({ main, signal }) {
  const names = await get("/stores", signal);
  const stores = await Promise.all(names.map((name) => get(`/stores/${encodeURIComponent(name)}`, signal)));
  const none = h("p", { class: "empty" }, "No stores. Create one with ", h("code", {}, "streamstats send STORE LAYER FILE"), ".");
  main.replaceChildren(title("Stores"), h("p", { class: "faint" }, "Stores that the service owns. Clients append activations to them, and each request counts once."),
    ...(stores.length ? stores.map(panel) : [none]));
}

function panel(store) {
  const job = { kind: "run", source: store.source, follow: {} };
  const follow = h("a", { class: "button", href: `#/submit?${encodeURIComponent(JSON.stringify(job))}` }, "Follow with a job");
  const table = sortable(COLUMNS, Object.entries(store.layers), { label: `Layers of ${store.name}`, cards: false }).table;
  return h("section", { class: "panel" }, h("div", { class: "row" }, h("h2", { class: "grow" }, store.name), follow), h("div", { class: "scroll" }, table));
}

const COLUMNS = [
  { title: "Layer", name: true, key: ([name]) => name, cell: ([name]) => name },
  { title: "Rows", number: true, key: ([, rows]) => rows, cell: ([, rows]) => whole(rows) },
];
