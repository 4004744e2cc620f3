// The request that a filled-in form stands for.

import { upload } from "./api.js";

const FILES = ["model", "samples", "quantized", "held_out", "labels"];

export async function requestOf(form) {
  const job = { kind: form.get("kind"), ...given(form, ["submitter", "memory"]), ...given(form, ["priority"], Number) };
  return { ...job, ...(job.kind === "run" ? runRequest(form) : await onnxRequest(form)) };
}

// The fields of `names` that are filled in.
function given(form, names, convert = (value) => value) {
  return Object.fromEntries(names.filter((name) => form.get(name)).map((name) => [name, convert(form.get(name))]));
}

function runRequest(form) {
  const request = { ...given(form, ["source", "rows", "missing", "nonfinite"]), ...given(form, ["min_rows"], Number), statistics: form.getAll("statistics") };
  const layer = layerRule(form);
  if (Object.keys(layer).length) request.layers = [{ match: "*", ...layer }];
  if (form.get("follow")) request.follow = {};
  return request;
}

function layerRule(form) {
  const layer = { ...given(form, ["match"]), ...given(form, ["channel_axis"], Number) };
  if (form.get("scale") || form.get("zero_point")) {
    layer.quantization = { scale: Number(form.get("scale")), scale_is: form.get("scale_is"), zero_point: Number(form.get("zero_point") || 0) };
  }
  return layer;
}

async function onnxRequest(form) {
  const request = { ...given(form, ["storage", "weight_range", "activation_range", "mask", "iterative"]), ...given(form, ["bits", "activation_bits"], Number), ...given(form, ["per_channel", "symmetric", "do_no_harm"], Boolean) };
  for (const name of FILES) {
    if (form.get(name)?.size) request[name] = (await upload(form.get(name))).id;
  }
  return request;
}
