// The form and the configuration beside it are two views of one request. A field changes its key of the request; what
// is typed into the configuration changes the fields; the request is what is submitted.

import { upload } from "./api.js";
import { h } from "./elements.js";
import { bytes } from "./formats.js";
import { valueAt, withValue } from "./fields.js";
import { problems } from "./schema.js";
import { read, written } from "./yaml.js";

const NOT_SENT = ["output", "cluster"]; // of a configuration for `streamstats run`: here, the service decides
let fieldNumber = 0;

export class Form {
  constructor(request, schemas) {
    this.request = request;
    this.schemas = schemas; // by kind
    this.fields = [];
    this.uploads = new Set(); // in progress
    this.broken = ""; // why the text of the configuration is not a request
    this.found = h("ul", { class: "plain error", id: "found", role: "status", "aria-label": "What is wrong with the configuration" });
    this.text = h("textarea", {
      id: "configuration",
      name: "configuration",
      rows: "16",
      spellcheck: "false",
      "aria-describedby": "found",
      oninput: () => this.typed(),
    });
  }

  // The elements of `fields`, bound to the request.
  bound(fields) {
    return fields.map((field) => this.field(field));
  }

  field(field) {
    fieldNumber += 1;
    const id = `field-${fieldNumber}`;
    const bound = field.file ? this.fileField(field, id) : field.check ? this.checkField(field, id) : this.textField(field, id);
    this.fields.push({ ...field, ...bound });
    bound.show();
    return bound.element;
  }

  textField({ path, label, hint, as, control }, id) {
    const input = filled(control(), { id, name: path, "aria-describedby": hint ? `${id}-hint` : null });
    input.addEventListener("input", () => this.change(path, input.value.trim() === "" ? undefined : as.read(input.value.trim())));
    const show = () => {
      const value = valueAt(this.request, path);
      input.value = value === undefined ? "" : as.show(value);
    };
    return { input, show, element: labelled(label, id, input, hint) };
  }

  checkField({ path, label, check }, id) {
    const input = h("input", { type: "checkbox", id, name: path });
    input.addEventListener("change", () => this.change(path, input.checked ? check : undefined));
    const show = () => {
      input.checked = Boolean(valueAt(this.request, path));
    };
    return { input, show, element: h("div", { class: "field check" }, input, h("label", { for: id }, label)) };
  }

  // A member of a list, as a box that is checked.
  memberField(path, value, description) {
    fieldNumber += 1;
    const id = `field-${fieldNumber}`;
    const input = h("input", { type: "checkbox", id, name: `${path}.${value}`, "aria-describedby": `${id}-hint` });
    const members = () => valueAt(this.request, path) ?? [];
    input.addEventListener("change", () => {
      const left = members().filter((each) => each !== value);
      const chosen = input.checked ? [...left, value] : left;
      this.change(path, chosen.length ? chosen : undefined);
    });
    this.fields.push({
      path: `${path}.${value}`,
      input,
      show: () => {
        input.checked = members().includes(value);
      },
    });
    this.fields.at(-1).show();
    return h(
      "div",
      { class: "statistic" },
      input,
      h("label", { for: id }, value),
      h("span", { class: "faint small", id: `${id}-hint` }, description),
    );
  }

  fileField({ path, label, hint }, id) {
    const input = h("input", { type: "file", id, name: path, "aria-describedby": `${id}-hint` });
    const state = h("span", { class: "small", role: "status" });
    const names = new Map(); // upload → what to call it
    const show = () => {
      const value = valueAt(this.request, path);
      state.textContent = value === undefined ? "" : (names.get(value) ?? `the file of the earlier job (${value.slice(0, 8)}…)`);
    };
    input.addEventListener("change", () => input.files[0] && this.send(input.files[0], path, state, names));
    return { input, show, element: labelled(label, id, input, hint, state) };
  }

  // Upload a file as soon as it is chosen.
  async send(chosen, path, state, names) {
    const sending = upload(chosen, (share) => {
      state.textContent = `uploading ${chosen.name}: ${Math.round(100 * share)} %`;
    });
    this.uploads.add(sending);
    try {
      const { id } = await sending;
      names.set(id, `${chosen.name}, ${bytes(chosen.size)}, uploaded`);
      this.change(path, id);
    } catch (error) {
      state.textContent = `${chosen.name} was not uploaded: ${error.message}`;
    } finally {
      this.uploads.delete(sending);
    }
  }

  change(path, value) {
    this.set(withValue(this.request, path, value));
    this.text.value = written(this.request);
  }

  // Another request, such as that of the other kind of job.
  replace(request) {
    this.set(request);
    this.text.value = written(this.request);
  }

  set(request) {
    this.request = request;
    this.broken = "";
    for (const field of this.fields) if (field.input !== document.activeElement) field.show();
    this.check();
  }

  typed() {
    try {
      const { kind } = this.request;
      this.set({ kind, ...read(this.text.value) });
    } catch (error) {
      this.broken = error.message;
      this.check();
    }
    this.onTyped?.();
  }

  // What is wrong, as [{path, text}]; shown beside the configuration.
  check() {
    const { kind } = this.request;
    const known = kind in this.schemas;
    const found = this.broken
      ? [{ path: "configuration", text: this.broken }]
      : known
        ? problems(this.sent(), this.schemas[kind])
        : [{ path: "kind", text: `found ${JSON.stringify(kind)}, expected one of ${Object.keys(this.schemas).join(", ")}` }];
    const said = found.map(({ path, text }) => `${path}: ${text}`);
    const left = NOT_SENT.filter((key) => key in this.request).map((key) => `${key} is left out: the service decides that`);
    if (said.concat(left).join("\n") !== [...this.found.children].map((each) => each.textContent).join("\n"))
      this.found.replaceChildren(...said.concat(left).map((each) => h("li", {}, each)));
    return found;
  }

  sent() {
    return Object.fromEntries(Object.entries(this.request).filter(([key]) => !NOT_SENT.includes(key)));
  }

  // The control for a path, or the nearest one above it; else the configuration.
  controlOf(path) {
    const plain = path.replaceAll(/\[(\d+)\]/g, ".$1");
    const found = this.fields
      .filter((field) => plain === field.path || plain.startsWith(`${field.path}.`))
      .find((field) => field.input.offsetParent !== null);
    return found?.input ?? this.text;
  }

  labelOf(path) {
    return this.fields.find((field) => field.path === path)?.label ?? path;
  }
}

function filled(control, attributes) {
  for (const [name, value] of Object.entries(attributes)) if (value !== null) control.setAttribute(name, value);
  return control;
}

function labelled(label, id, input, hint, ...beside) {
  return h(
    "div",
    { class: "field" },
    h("label", { for: id }, label),
    input,
    ...beside,
    hint ? h("span", { class: "faint", id: `${id}-hint` }, hint) : null,
  );
}
