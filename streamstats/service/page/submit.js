// Submitting a job: a form, and the whole configuration beside it. What can be chosen comes from the service.

import { Refused, get, post } from "./api.js";
import { h, title } from "./elements.js";
import { jobFields, layerFields, modelFields, runFields } from "./fields.js";
import { Form } from "./form.js";
import { concise, schemaOf } from "./schema.js";
import { maySubmit } from "./you.js";

const FILES = modelFields.filter((field) => field.file).map((field) => field.path);

export async function showSubmit({ main, signal }, text) {
  const [about, statistics, openapi] = await Promise.all([get("", signal), get("/statistics", signal), get("/openapi.json", signal)]);
  const { from, request } = startOf(text);
  if (!maySubmit(about.you)) {
    main.replaceChildren(
      title("Submit a job"),
      h(
        "p",
        { class: "panel warn" },
        `The token ${about.you.name} may only read. To submit a job, ask whoever runs the service for a token with the role submit.`,
      ),
    );
    return;
  }
  if (about.you.role !== "admin") delete request.submitter; // the job is that of the token
  const schemas = { run: schemaOf(openapi, "run"), onnx: schemaOf(openapi, "onnx") };
  const view = new SubmitView(about, statistics, schemas, request, from);
  main.replaceChildren(title(from ? "Submit again" : "Submit a job"), view.element);
}

// The address may have a request to start from, and the job that it is of.
function startOf(text) {
  const [, from, json] = /^(?:from=([0-9a-f]+)&)?(.*)$/s.exec(text);
  try {
    return { from, request: json ? JSON.parse(json) : {} };
  } catch {
    return { from, request: {} }; // an address that somebody typed
  }
}

class SubmitView {
  constructor(about, statistics, schemas, request, from) {
    const submitter = about.you.role === "admin" ? localStorage.getItem("submitter") : null;
    const kind = request.kind in schemas ? request.kind : "run";
    this.from = from;
    const start = concise({ kind, ...(submitter && !from ? { submitter } : {}), ...request }, schemas[kind]);
    if (request.memory) start.memory = request.memory; // without it, the service gives what it has now
    this.form = new Form(start, schemas);
    this.places = { run: this.runPlace(about, statistics), onnx: this.fieldset("Model", modelFields) };
    this.wrong = h("p", { class: "error", role: "alert", id: "wrong" });
    this.button = h("button", { class: "primary" }, "Submit");
    this.last = { text: "", key: "" }; // what was sent last, and its key
    this.place = h("div");
    this.others = {}; // the requests of other kinds, while this one is edited
    this.element = this.whole(about);
    this.form.onTyped = () => this.showKind();
    this.form.replace(this.form.request);
    this.showKind();
  }

  whole(about) {
    const choice = (kind, label) =>
      h("label", {}, h("input", { type: "radio", name: "kind", value: kind, onchange: () => this.choose(kind) }), ` ${label}`);
    return h(
      "form",
      { novalidate: true, onsubmit: (event) => this.send(event) },
      h(
        "div",
        { class: "row", role: "radiogroup", "aria-label": "Kind of job" },
        choice("run", "Reduce a store"),
        choice("onnx", "Correct an ONNX model"),
      ),
      this.place,
      this.fieldset("Job", jobFields(about)),
      h(
        "details",
        { open: this.from || null },
        h("summary", {}, "The whole configuration"),
        h(
          "p",
          { class: "faint small" },
          "YAML or JSON, with every key that a configuration may have. It and the form above are one: a change of either changes the other.",
        ),
        h("label", { for: "configuration", class: "visually-hidden" }, "The whole configuration"),
        this.form.text,
        this.form.found,
      ),
      this.wrong,
      this.button,
    );
  }

  fieldset(legend, fields, ...beside) {
    return h("fieldset", {}, h("legend", {}, legend), h("div", { class: "fields" }, this.form.bound(fields)), ...beside);
  }

  runPlace(about, statistics) {
    const sources = h(
      "datalist",
      { id: "sources" },
      about.sources.map((each) => h("option", { value: each })),
    );
    const boxes = statistics.map(({ name, description }) => this.form.memberField("statistics", name, description));
    this.several = h("p", { class: "faint" });
    this.rules = h("div", { class: "fields" }, this.form.bound(layerFields));
    return h(
      "div",
      {},
      this.fieldset(
        "Store",
        runFields(about),
        sources,
        boxes.length
          ? h(
              "div",
              { class: "field", role: "group", "aria-label": "Additional statistics" },
              h("span", {}, "Additional statistics"),
              boxes,
            )
          : null,
      ),
      h("fieldset", {}, h("legend", {}, "How to read the layers"), this.several, this.rules),
    );
  }

  choose(kind) {
    const { request } = this.form;
    this.others[request.kind] = request;
    const shared = Object.fromEntries(
      ["name", "tags", "note", "notify", "submitter", "priority", "memory"]
        .filter((key) => key in request)
        .map((key) => [key, request[key]]),
    );
    this.form.replace({ ...this.others[kind], ...shared, kind });
    this.showKind();
  }

  showKind() {
    const { request } = this.form;
    const place = this.places[request.kind];
    if (place && this.place.firstChild !== place) this.place.replaceChildren(place);
    for (const each of this.element.querySelectorAll("[name=kind]")) each.checked = each.value === request.kind;
    const rules = request.layers?.length ?? 0;
    this.rules.hidden = rules > 1;
    this.several.hidden = rules < 2;
    this.several.textContent = `There are ${rules} rules for layers; they are in the configuration below.`;
  }

  async send(event) {
    event.preventDefault();
    this.clear();
    this.button.disabled = true;
    try {
      await Promise.allSettled([...this.form.uploads]);
      const [first] = this.form.check();
      if (first) return this.mark(first.path, `${this.form.labelOf(first.path)}: ${first.text}`);
      await this.post();
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      this.mark(keyIn(error.message), error.message);
    } finally {
      this.button.disabled = false;
    }
  }

  // A repeated click sends the same request with the same key, which makes one job.
  async post() {
    const request = this.form.sent();
    if (request.submitter) localStorage.setItem("submitter", request.submitter);
    if (this.from && FILES.some((name) => request[name])) await this.restoreFiles();
    const job = await post("/jobs", request, { "Idempotency-Key": this.keyOf(JSON.stringify(request)) });
    location.hash = `#/jobs/${job.id}`;
  }

  keyOf(text) {
    if (text !== this.last.text)
      this.last = { text, key: [...crypto.getRandomValues(new Uint8Array(16))].map((each) => each.toString(16).padStart(2, "0")).join("") };
    return this.last.key;
  }

  // The files of the earlier job may no longer be uploads; the job still has them. If it is gone, the uploads may do.
  async restoreFiles() {
    try {
      await post(`/jobs/${this.from}/uploads`);
    } catch (error) {
      if (!(error instanceof Refused) || error.status !== 404) throw error;
    }
  }

  clear() {
    this.wrong.textContent = "";
    for (const each of this.element.querySelectorAll("[aria-invalid]")) each.removeAttribute("aria-invalid");
  }

  mark(path, message) {
    this.wrong.textContent = message;
    const found = this.form.controlOf(path ?? "");
    if (!path) return;
    found.setAttribute("aria-invalid", "true");
    if (found.closest("details")) found.closest("details").open = true;
    found.focus();
  }
}

// The key that a message of the service is about.
function keyIn(message) {
  const key = /`([a-z_]+)/.exec(message)?.[1];
  return key ?? (/source/.test(message) ? "source" : null);
}
