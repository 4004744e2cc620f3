// The form that submits a job. What can be chosen comes from the service: sources, limits, statistics.

import { Refused, get, post } from "./api.js";
import { h, title } from "./elements.js";
import { jobFields, onnxFields, runFields } from "./fields.js";
import { requestOf } from "./request.js";

export async function showSubmit({ main, signal }, text) {
  const [about, statistics] = await Promise.all([get("", signal), get("/statistics", signal)]);
  const before = text ? JSON.parse(text) : {};
  const kinds = { run: runFields(about, statistics, before), onnx: onnxFields() };
  main.replaceChildren(title("Submit a job"), new SubmitForm(kinds, jobFields(about, before)).form);
}

class SubmitForm {
  constructor(kinds, shared) {
    const place = h("div", {}, kinds.run);
    const choice = (kind, label) => h("label", {}, h("input", { type: "radio", name: "kind", value: kind, checked: kind === "run", onchange: () => place.replaceChildren(kinds[kind]) }), ` ${label}`);
    this.wrong = h("p", { class: "error", role: "alert", id: "wrong" });
    this.button = h("button", { class: "primary" }, "Submit");
    this.form = h("form", { novalidate: true, onsubmit: (event) => this.send(event) },
      h("div", { class: "row", role: "radiogroup", "aria-label": "Kind of job" }, choice("run", "Reduce a store"), choice("onnx", "Correct an ONNX model")),
      place, shared, this.wrong, this.button);
    this.key = crypto.randomUUID ? crypto.randomUUID() : String(Math.random());
  }

  async send(event) {
    event.preventDefault();
    this.wrong.textContent = "";
    for (const each of this.form.querySelectorAll("[aria-invalid]")) each.removeAttribute("aria-invalid");
    const invalid = [...this.form.elements].find((each) => !each.validity?.valid);
    if (invalid) return this.mark(invalid.name, `${invalid.labels?.[0]?.textContent ?? invalid.name}: ${invalid.validationMessage}`);
    this.button.disabled = true;
    try {
      await this.post();
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      this.mark(fieldNamed(error.message), error.message);
    } finally {
      this.button.disabled = false;
    }
  }

  // A repeated click sends the same request with the same key, which makes one job.
  async post() {
    const request = await requestOf(new FormData(this.form));
    if (request.submitter) localStorage.setItem("submitter", request.submitter);
    const job = await post("/jobs", request, { "Idempotency-Key": `${this.key}-${await digest(JSON.stringify(request))}` });
    location.hash = `#/jobs/${job.id}`;
  }

  mark(name, message) {
    this.wrong.textContent = message;
    const found = name ? this.form.elements.namedItem(name) : null;
    if (!(found instanceof HTMLElement)) return;
    found.setAttribute("aria-invalid", "true");
    found.setAttribute("aria-describedby", "wrong");
    found.focus();
  }
}

// The field that a message of the service is about.
function fieldNamed(message) {
  const key = /`([a-z_]+)/.exec(message)?.[1];
  return key ?? (/source/.test(message) ? "source" : null);
}

async function digest(text) {
  if (!crypto.subtle) return String(text.length); // browsers offer it over https and on this machine only
  const found = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(text));
  return [...new Uint8Array(found)].slice(0, 8).map((each) => each.toString(16).padStart(2, "0")).join("");
}
