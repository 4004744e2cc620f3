// The stores that the service owns, with the rows of each layer.

import { get } from "./api.js";
import { submitAddress } from "./describe.js";
import { h, linkButton, title } from "./elements.js";
import { counted, rowsIn, whole } from "./formats.js";
import { rowsLess } from "./layers.js";
import { Age, keepCurrent } from "./lists.js";
import { sortable } from "./tables.js";

export async function showStores({ main, signal, fail }) {
  const age = new Age();
  const place = h("div");
  const panels = new Map();
  main.replaceChildren(
    title("Stores"),
    h("p", { class: "faint" }, "Stores that the service owns. Clients append activations to them, and each request counts once."),
    age.element,
    place,
  );
  const load = async () => {
    const names = await get("/stores", signal);
    const stores = await Promise.all(names.map((name) => get(`/stores/${encodeURIComponent(name)}`, signal)));
    age.loaded();
    draw(place, panels, stores);
  };
  await load();
  keepCurrent(load, age, signal).catch(fail);
}

function draw(place, panels, stores) {
  for (const store of stores) {
    if (!panels.has(store.name)) panels.set(store.name, new StorePanel(store));
    panels.get(store.name).update(store);
  }
  const shown = stores.map((store) => panels.get(store.name).element);
  const same = shown.length && shown.length === place.childElementCount && shown.every((each, index) => each === place.children[index]);
  if (!same)
    place.replaceChildren(
      ...(shown.length
        ? shown
        : [h("p", { class: "empty" }, "No stores yet. Create one with ", h("code", {}, "streamstats send STORE LAYER FILE"), ".")]),
    );
}

class StorePanel {
  constructor(store) {
    const source = encodeURIComponent(store.source);
    this.table = sortable(COLUMNS, [], { label: `Layers of ${store.name}`, cards: false });
    this.rows = h("span", { class: "faint" });
    this.element = h(
      "section",
      { class: "panel" },
      h(
        "div",
        { class: "row" },
        h("h2", { class: "grow" }, store.name),
        this.rows,
        linkButton("Follow with a job", submitAddress({ kind: "run", source: store.source, follow: {} })),
        linkButton("Its jobs", `#/history/${source}`),
      ),
      this.table.element,
    );
  }

  update(store) {
    const layers = Object.entries(store.layers).map(([name, rows]) => ({ name, rows, withdrawn: store.withdrawn[name] ?? [] }));
    this.table.update(layers);
    const withdrawn = rowsIn(layers.flatMap((layer) => layer.withdrawn));
    const said = [
      `${counted(store.rows, "row")} of ${counted(layers.length, "layer")}`,
      withdrawn && `${whole(withdrawn)} of them withdrawn`,
      store.owner && `owner: ${store.owner}`,
    ]
      .filter(Boolean)
      .join(", ");
    if (this.rows.textContent !== said) this.rows.textContent = said;
  }
}

const COLUMNS = [
  { title: "Layer", name: true, key: (layer) => layer.name, cell: (layer) => layer.name },
  {
    title: "Rows",
    number: true,
    key: (layer) => layer.rows,
    cell: (layer) => rowsLess(layer.rows, layer.withdrawn, "withdrawn"),
  },
];
