// The fields of the form that submits a job; `before` is a request to start from.

import { h } from "./elements.js";

const SHOWN_MEMORY = 2 ** 31;
let fieldNumber = 0;

function field(name, label, control, hint = "") {
  fieldNumber += 1;
  control.id = `field-${fieldNumber}`;
  control.name = name;
  return h("div", { class: "field" }, h("label", { for: control.id }, label), control, hint ? h("span", { class: "faint" }, hint) : null);
}

const text = (value, attributes = {}) => h("input", { value: value ?? "", ...attributes });
const whole = (value, attributes = {}) => text(value, { type: "number", ...attributes });
const select = (values, chosen) => h("select", {}, values.map(([value, label]) => h("option", { value, selected: value === chosen }, label)));
const check = (name, label, checked, value = "on") => h("label", {}, h("input", { type: "checkbox", name, value, checked: Boolean(checked) }), ` ${label}`);
const checks = (label, ...boxes) => h("div", { class: "field", role: "group", "aria-label": label }, h("span", {}, label), ...boxes);
const binary = (size) => (size >= 2 ** 30 ? `${Number((size / 2 ** 30).toFixed(2))}GiB` : `${Math.floor(size / 2 ** 20)}MiB`);

export function jobFields(about, before) {
  const submitter = before.submitter ?? localStorage.getItem("submitter");
  return h("fieldset", {}, h("legend", {}, "Job"), h("div", { class: "fields" },
    field("submitter", "Submitter", text(submitter, { maxlength: "64", placeholder: "anonymous" }), "The queue is shared fairly among submitters."),
    field("priority", "Priority", whole(String(before.priority ?? 0), { min: "-100", max: "100" }), "Orders the jobs of one submitter; higher runs sooner."),
    field("memory", "Memory", text(before.memory && String(before.memory), { placeholder: binary(Math.min(about.memory, SHOWN_MEMORY)) }), `At most ${binary(about.memory)}.`)));
}

export function runFields(about, statistics, before) {
  const list = h("datalist", { id: "sources" }, about.sources.map((each) => h("option", { value: each })));
  return h("fieldset", {}, h("legend", {}, "Store"), list, h("div", { class: "fields" },
    sourceField(about, before),
    ...layerFields(before.layers?.[0] ?? {}),
    field("rows", "Rows", text(before.rows, { pattern: "[0-9]+:[0-9]+", placeholder: "all", title: "START:STOP, as in 0:1000" }), "As in 0:1000."),
    field("min_rows", "Minimum rows", whole(before.min_rows || undefined, { min: "0", placeholder: "none" }), "Layers with fewer make the job incomplete."),
    field("missing", "Missing chunks", select([["error", "refuse"], ["report", "skip and list"], ["fill", "count the fill value"]], before.missing)),
    field("nonfinite", "NaN and infinities", select([["error", "refuse"], ["skip", "skip and count separately"]], before.nonfinite)),
    checks("Follow", check("follow", "count rows as they arrive", before.follow))),
    statisticChecks(statistics, before.statistics ?? []));
}

function sourceField(about, before) {
  const source = text(before.source, { required: true, maxlength: "1024", autocomplete: "off" });
  source.setAttribute("list", "sources"); // a property of this name exists, and is read-only
  const urls = about.prefixes.length ? ` URLs: ${about.prefixes.join(", ")}` : "";
  return field("source", "Source", source, `A zarr group below the service's folders, or store:NAME.${urls}`);
}

function layerFields(layer) {
  const { scale, scale_is, zero_point } = layer.quantization ?? {};
  return [
    field("match", "Layers", text(layer.match, { placeholder: "*" }), "A glob on layer names; default all."),
    field("channel_axis", "Channel axis", whole(layer.channel_axis, { placeholder: "as stored, or the last" })),
    field("scale", "Scale of codes", whole(scale, { step: "any", placeholder: "as stored, or none" }), "For stored integers that represent real values."),
    field("scale_is", "Meaning of the scale", select([["step", "step: real units per code"], ["reciprocal", "reciprocal: codes per real unit"]], scale_is)),
    field("zero_point", "Zero point", whole(zero_point, { placeholder: "0" })),
  ];
}

function statisticChecks(statistics, chosen) {
  if (!statistics.length) return null;
  const box = ({ name, description }) => h("div", { class: "statistic" }, check("statistics", name, chosen.includes(name), name), h("span", { class: "faint" }, description));
  return h("div", { class: "field", role: "group", "aria-label": "Additional statistics" }, h("span", {}, "Additional statistics"), ...statistics.map(box));
}

export function onnxFields() {
  const file = (name, label, hint, required = false) => field(name, label, h("input", { type: "file", required }), hint);
  return h("fieldset", {}, h("legend", {}, "Model"), h("div", { class: "fields" },
    file("model", "Float model", "One .onnx file.", true),
    file("samples", "Calibration samples", ".npy or .npz, samples on axis 0.", true),
    file("quantized", "Quantised model", "The output of a quantiser; or give bits."),
    field("bits", "Bits", whole("", { min: "2", max: "16" }), "Instead of a quantised model: fake-quantise the weights."),
    field("weight_range", "Weight ranges", select([["minmax", "all weights"], ["mse", "least squared error"]]), "With bits."),
    field("activation_bits", "Activation bits", whole("", { min: "2", max: "16" }), "With bits: also round the input of each layer."),
    field("activation_range", "Activation ranges", select([["minmax", "all values"], ["percentile", "percentile"], ["mse", "least squared error"], ["entropy", "entropy"]]), "With activation bits."),
    field("mask", "Mask", text("", { placeholder: "none", autocomplete: "off" }), "The input of the model that is 1 at positions that count and 0 at padding."),
    field("storage", "Recorded as", select([["float", "real values"], ["int8", "int8 codes"]])),
    field("iterative", "Correction", select([["", "in one pass"], ["full", "layer by layer, full"], ["change", "layer by layer, change"]])),
    file("held_out", "Held-out samples", "Measure the effect; not among the calibration samples."),
    file("labels", "Labels of the held-out samples", ".npy of integers, for the accuracy."),
    checks("Options", check("per_channel", "one range per channel"), check("symmetric", "symmetric ranges"), check("do_no_harm", "skip layers that would get worse"))));
}
