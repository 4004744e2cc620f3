// The fields of the form that submits a job. Each is bound to a key of the request by its path: it shows what is there,
// and changes nothing else. What the form does not show stays as it is.

import { tagsOf } from "./about.js";
import { h } from "./elements.js";

const SHOWN_MEMORY = 2 ** 31;
const binary = (size) => (size % 2 ** 30 ? `${Math.floor(size / 2 ** 20)}MiB` : `${size / 2 ** 30}GiB`);

// How the text of a control becomes a value, and back. An empty control has no value.
const AS_TEXT = { read: (text) => text, show: String };
const AS_NUMBER = { read: Number, show: String };
const AS_NUMBERS = {
  // a number, or one per channel
  read: (text) => (text.includes(",") ? text.split(",").map(Number) : Number(text)),
  show: (value) => [].concat(value).join(", "),
};
const AS_SIZE = { read: (text) => text, show: (value) => (value % 2 ** 20 === 0 ? binary(value) : String(value)) };
const AS_WORDS = { read: tagsOf, show: (value) => value.join(" ") };

const field = (as, attributes) => (path, label, hint = "", more = {}) => ({
  path,
  label,
  hint,
  as,
  control: () => h("input", { ...attributes, ...more }),
});
const text = field(AS_TEXT, { autocomplete: "off" });
const words = field(AS_WORDS, { autocomplete: "off" });
const numbers = field(AS_NUMBERS, { autocomplete: "off" });
const whole = field(AS_NUMBER, { type: "number" });
const select = (path, label, options, hint) => ({
  ...text(path, label, hint),
  control: () =>
    h(
      "select",
      {},
      options.map(([value, shown]) => h("option", { value }, shown)),
    ),
});
const check = (path, label, value = true) => ({ path, label, check: value });
const file = (path, label, hint) => ({ path, label, hint, file: true });

export const jobFields = (about) => [
  text("name", "Name", "One line, shown in lists.", { maxlength: "100" }),
  words("tags", "Tags", "Words to find the job by, separated by spaces."),
  ...(about.you.role === "admin"
    ? [text("submitter", "Submitter", "The queue is shared fairly among submitters.", { maxlength: "64", placeholder: about.you.name })]
    : []),
  whole("priority", "Priority", "Orders the jobs of one submitter; higher runs sooner.", { min: "-100", max: "100", placeholder: "0" }),
  field(AS_SIZE)("memory", "Memory", `As in 512MiB; at most ${binary(about.memory)}.`, {
    placeholder: binary(Math.min(about.memory, SHOWN_MEMORY)),
  }),
  ...(about.hooks?.length ? [words("notify", "Notify", `Hooks to tell of the end: ${about.hooks.join(", ")}.`)] : []),
  { ...text("note", "Note", "Free text."), control: () => h("textarea", { rows: "2", maxlength: "4000" }) },
];

export const runFields = (about) => [
  text(
    "source",
    "Source",
    `A zarr group below the service's folders, or store:NAME.${about.prefixes.length ? ` URLs: ${about.prefixes.join(", ")}` : ""}`,
    { list: "sources", maxlength: "1024" },
  ),
  text("rows", "Rows", "As in 0:1000.", { placeholder: "all" }),
  whole("min_rows", "Minimum rows", "Layers with fewer make the job incomplete.", { min: "0", placeholder: "none" }),
  select("missing", "Missing chunks", [
    ["", "refuse"],
    ["report", "skip and list"],
    ["fill", "count the fill value"],
  ]),
  select("nonfinite", "NaN and infinities", [
    ["", "refuse"],
    ["skip", "skip and count separately"],
  ]),
  select(
    "attributes",
    "CF attributes",
    [
      ["", "apply"],
      ["ignore", "ignore"],
    ],
    "Scale, offset and missing values that other tools wrote.",
  ),
  check("follow", "Follow: count rows as they arrive", {}),
  whole("follow.rows", "Follow until rows", "Of every layer.", { min: "1", placeholder: "until cancelled" }),
  whole("follow.idle", "Follow until idle", "Seconds without new rows.", { min: "0", step: "any", placeholder: "until cancelled" }),
];

export const layerFields = [
  text("layers.0.match", "Layers", "A glob on layer names; default all.", { placeholder: "*" }),
  whole("layers.0.channel_axis", "Channel axis", "", { placeholder: "as stored, or the last" }),
  numbers(
    "layers.0.quantization.scale",
    "Scale of codes",
    "For stored integers that represent real values: a number, or one per channel.",
    { placeholder: "as stored, or none" },
  ),
  select("layers.0.quantization.scale_is", "Meaning of the scale", [
    ["", "–"],
    ["step", "step: real units per code"],
    ["reciprocal", "reciprocal: codes per real unit"],
  ]),
  numbers("layers.0.quantization.zero_point", "Zero point", "", { placeholder: "0" }),
];

export const modelFields = [
  file("model", "Float model", "One .onnx file."),
  file("samples", "Calibration samples", ".npy or .npz, samples on axis 0."),
  file("quantized", "Quantised model", "The output of a quantiser; or give bits."),
  file("held_out", "Held-out samples", "Measure the effect; not among the calibration samples."),
  file("labels", "Labels of the held-out samples", ".npy of integers, for the accuracy."),
  whole("bits", "Bits", "Instead of a quantised model: fake-quantise the weights.", { min: "2", max: "16" }),
  select(
    "weight_range",
    "Weight ranges",
    [
      ["", "all weights"],
      ["mse", "least squared error"],
    ],
    "With bits.",
  ),
  whole("activation_bits", "Activation bits", "With bits: also round the input of each layer.", { min: "2", max: "16" }),
  select(
    "activation_range",
    "Activation ranges",
    [
      ["", "all values"],
      ["percentile", "percentile"],
      ["mse", "least squared error"],
      ["entropy", "entropy"],
    ],
    "With activation bits.",
  ),
  text("mask", "Mask", "The input of the model that is 1 at positions that count and 0 at padding.", { placeholder: "none" }),
  select("storage", "Recorded as", [
    ["", "real values"],
    ["int8", "int8 codes"],
  ]),
  select("iterative", "Correction", [
    ["", "in one pass"],
    ["full", "layer by layer, full"],
    ["change", "layer by layer, change"],
  ]),
  check("per_channel", "One range per channel"),
  check("symmetric", "Symmetric ranges"),
  check("do_no_harm", "Skip layers that would get worse"),
];

const parts = (path) => path.split(".").map((part) => (/^\d+$/.test(part) ? Number(part) : part));
export const valueAt = (request, path) => parts(path).reduce((value, part) => value?.[part], request) ?? undefined;

// `request` with `value` at `path`; undefined removes it, and what is empty without it.
export function withValue(request, path, value) {
  const changed = structuredClone(request);
  put(changed, parts(path), value);
  for (const rule of changed.layers ?? []) rule.match ??= "*"; // which every rule has
  if (changed.layers?.every((rule) => rule.match === "*" && Object.keys(rule).length === 1) && path.startsWith("layers."))
    delete changed.layers;
  return changed;
}

function put(place, [part, ...rest], value) {
  if (rest.length) {
    if (place[part] === undefined || place[part] === null) {
      if (value === undefined) return;
      place[part] = typeof rest[0] === "number" ? [] : {};
    }
    put(place[part], rest, value);
    if (part !== "follow" && Object.keys(place[part]).length === 0) delete place[part]; // following has no keys of its own
  } else if (value === undefined) delete place[part];
  else place[part] = value;
}
