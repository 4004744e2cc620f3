// The page: a view for each address behind #, each of which ends what it was doing when another is opened.

import { Refused, ask, follow, get, keepToken, link, post, takeTokenFromAddress, upload } from "./api.js";
import { bytes, confirmed, duration, h, notice, number, sortable, svg, time, whole } from "./elements.js";
import { channelPlot } from "./plot.js";

const LIST_SECONDS = 2;
const ENDED = ["done", "incomplete", "failed", "cancelled"];
const main = document.getElementById("main");
let leaving = new AbortController();

const ROUTES = [
  [/^#\/jobs$/, showJobs],
  [/^#\/jobs\/([0-9a-f]+)$/, showJob],
  [/^#\/jobs\/([0-9a-f]+)\/layers\/(.+)$/, showLayer],
  [/^#\/submit(?:\?(.*))?$/, showSubmit],
  [/^#\/stores$/, showStores],
];

async function open() {
  leaving.abort();
  leaving = new AbortController();
  const { signal } = leaving;
  const hash = location.hash || "#/jobs";
  for (const each of document.querySelectorAll("nav a")) {
    if (hash.startsWith(each.getAttribute("href"))) each.setAttribute("aria-current", "page");
    else each.removeAttribute("aria-current");
  }
  const [pattern, show] = ROUTES.find(([each]) => each.test(hash)) ?? [null, showNowhere];
  const parts = pattern ? pattern.exec(hash).slice(1).map((part) => decodeURIComponent(part ?? "")) : [];
  try {
    await show(signal, ...parts);
    if (!signal.aborted && document.activeElement === document.body) main.focus({ preventScroll: true });
  } catch (error) {
    if (!signal.aborted) fail(error);
  }
}

function title(text) {
  document.title = `${text} · streamstats`;
  return h("h1", {}, text);
}

function fail(error) {
  if (error instanceof Refused && error.status === 401) showToken();
  else if (error instanceof Refused) main.replaceChildren(title("That did not work"), h("p", { class: "error", role: "alert" }, error.message), h("a", { class: "button", href: "#/jobs" }, "To the jobs"));
  else throw error;
}

function showNowhere() {
  main.replaceChildren(title("There is no such page"), h("a", { href: "#/jobs" }, "To the jobs"));
}

function showToken() {
  const field = h("input", { id: "token", type: "password", required: true, autocomplete: "off", size: "48" });
  const enter = (event) => {
    event.preventDefault();
    keepToken(field.value.trim());
    open();
  };
  main.replaceChildren(title("Token"), h("form", { onsubmit: enter },
    h("p", {}, "The service wrote a token to the file ", h("code", {}, "token"), " in its data folder at its first start. It stays in this tab."),
    h("div", { class: "row" }, h("label", { for: "token" }, "Token"), field, h("button", { class: "primary" }, "Enter"))));
  field.focus();
}

const badge = (state) => h("span", { class: `state ${state}` }, state);
const share = (job) => (job.total_bytes ? job.bytes / job.total_bytes : job.state === "done" ? 1 : 0);
const rows = (job) => (job.rows < job.total_rows ? `${whole(job.rows)} of ${whole(job.total_rows)}` : whole(job.rows));

// Jobs

async function showJobs(signal) {
  const state = h("select", { id: "state", onchange: () => load() }, ["", "queued", "running", ...ENDED].map((each) => h("option", { value: each }, each || "all")));
  const place = h("div");
  const older = h("button", { type: "button", hidden: true, onclick: () => load(true) }, "Older jobs");
  let found = [];
  let next = null;
  let deeper = false;
  main.replaceChildren(title("Jobs"), h("div", { class: "row" }, h("label", { for: "state" }, "State"), state, h("span", { class: "grow" }), h("a", { class: "button", href: "#/submit" }, "Submit a job")), place, older);

  async function load(more = false) {
    const query = new URLSearchParams({ limit: "50" });
    if (state.value) query.set("state", state.value);
    if (more && next) query.set("before", next);
    const page = await get(`/jobs?${query}`, signal);
    deeper ||= more;
    found = more ? [...found, ...page.jobs] : page.jobs;
    next = page.next;
    older.hidden = !next;
    table.update(found);
    if (!found.length) place.replaceChildren(h("p", { class: "empty" }, "No jobs. ", h("a", { href: "#/submit" }, "Submit one"), " or use the command line."));
    else if (!place.contains(table.table)) place.replaceChildren(h("div", { class: "scroll" }, table.table));
  }

  const table = sortable([
    { title: "Job", key: (job) => -job.submitted, cell: (job) => h("a", { href: `#/jobs/${job.id}` }, job.id) },
    { title: "State", key: (job) => job.state, cell: (job) => badge(job.state) },
    { title: "Source", name: true, key: (job) => job.source ?? job.kind, cell: (job) => job.source ?? "an ONNX model" },
    { title: "Submitter", name: true, key: (job) => job.submitter, cell: (job) => job.submitter },
    { title: "Progress", key: share, cell: (job) => h("progress", { class: "thin", max: 1, value: share(job), "aria-label": `${Math.round(100 * share(job))} %` }) },
    { title: "Rows", number: true, key: (job) => job.rows, cell: rows },
    { title: "Submitted", key: (job) => job.submitted, cell: (job) => time(job.submitted) },
  ], [], { label: "Jobs" });
  await load();
  while (!signal.aborted) {
    await pause(LIST_SECONDS, signal);
    if (document.hidden || deeper || place.contains(document.activeElement)) continue;
    try {
      await load();
    } catch (error) {
      if (!(error instanceof Refused) || error.status === 401) throw error;
    }
  }
}

function pause(seconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal.addEventListener("abort", () => { clearTimeout(timer); resolve(); }, { once: true });
  });
}

// A job

async function showJob(signal, id) {
  let job = await get(`/jobs/${id}`, signal);
  const head = h("div");
  const bar = h("progress", { max: 1, "aria-label": "Progress" });
  const figures = h("dl", { class: "figures" });
  const actions = h("div", { class: "row" });
  const messages = h("ul", { class: "messages", tabIndex: 0, "aria-label": "Messages" });
  const lost = h("p", { class: "error", role: "status" });
  const results = h("section");
  let shown = null;
  let drawn = "";
  main.replaceChildren(title(`Job ${id}`), head, h("div", { class: "panel" }, bar, figures), lost, actions, h("h2", {}, "Messages"), messages, results);

  const act = (verb, question, work) => h("button", { type: "button", class: verb === "Delete" ? "danger" : null, onclick: async () => {
    if (question && !(await confirmed(question))) return;
    try {
      await work();
    } catch (error) {
      notice(error.message);
    }
  } }, verb);

  function draw() {
    head.replaceChildren(h("p", { class: "row" }, badge(job.state), h("span", {}, job.source ?? "an ONNX model"), h("span", { class: "faint" }, `by ${job.submitter}, submitted ${time(job.submitted)}`)),
      h("p", { class: job.state === "failed" ? "error" : "faint", role: job.state === "failed" ? "alert" : null }, job.message));
    bar.value = share(job);
    const left = job.state === "running" ? duration(job.seconds_left) : job.ended && job.started ? duration(job.ended - job.started) : "–";
    const said = { Rows: rows(job), Read: `${bytes(job.bytes)} of ${bytes(job.total_bytes)}`, Rate: job.bytes_per_second ? `${bytes(job.bytes_per_second)}/s` : "–", [job.state === "running" ? "Time left" : "Took"]: left };
    figures.replaceChildren(...Object.entries(said).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
    const state = `${job.state} ${job.results}`;
    if (state === drawn) return;
    drawn = state;
    actions.replaceChildren(...[
      !ENDED.includes(job.state) && act("Cancel", `Cancel job ${id}? Results that it has stay.`, () => post(`/jobs/${id}/cancel`)),
      ENDED.includes(job.state) && act("Delete", `Delete job ${id} and its results?`, async () => { await ask(`/jobs/${id}`, { method: "DELETE" }); location.hash = "#/jobs"; }),
      job.kind === "run" && h("a", { class: "button", href: `#/submit?${encodeURIComponent(JSON.stringify(job.request))}` }, "Submit again"),
      job.kind === "onnx" && job.state === "done" && act("Download the model", null, () => download(id, "files/corrected.onnx")),
      job.results && act("Download all", null, () => download(id, "archive")),
    ].filter(Boolean));
  }

  async function drawResults() {
    if (!job.results || shown === job.results) return;
    const search = results.querySelector("input")?.value ?? "";
    const wanted = job.results;
    shown = wanted;
    let found;
    try {
      found = await get(`/jobs/${id}/layers`, signal);
    } catch (error) {
      if (shown === wanted) shown = null; // the next event brings them
      if (!signal.aborted) notice(error.message);
      return;
    }
    if (shown !== wanted) return; // newer ones were faster
    results.replaceChildren(h("h2", {}, "Layers"), layersOf(id, found, search), h("h2", {}, "Report"), reportOf(id));
  }

  draw();
  follow(id, signal, (kind, content) => {
    lost.textContent = kind === "lost" ? "The connection is lost; trying again …" : "";
    if (kind === "message") {
      messages.append(h("li", {}, h("time", {}, new Date(content.at * 1000).toLocaleTimeString()), content.text));
      messages.scrollTop = messages.scrollHeight;
    }
    if (kind === "job" || (kind === "end" && content.id)) {
      job = content;
      draw();
      drawResults();
    }
  }).catch(fail);
  await drawResults();
}

function layersOf(id, { layers, results }, searched) {
  const all = Object.entries(layers).map(([name, layer]) => ({ name, ...layer }));
  const columns = [
    { title: "Layer", name: true, key: (layer) => layer.name, cell: (layer) => h("a", { href: `#/jobs/${id}/layers/${encodeURIComponent(layer.name)}` }, layer.name) },
    { title: "Rows", number: true, key: (layer) => layer.rows, cell: (layer) => whole(layer.rows) },
    { title: "Coverage", key: lostRows, cell: coverage },
    { title: "Channels", number: true, key: (layer) => layer.channels, cell: (layer) => whole(layer.channels) },
    { title: "Values", key: (layer) => layer.dtype, cell: (layer) => layer.dtype + (layer.quantization ? " codes" : "") },
    { title: "Least mean", number: true, key: (layer) => layer.least_mean, cell: (layer) => number(layer.least_mean) },
    { title: "Greatest mean", number: true, key: (layer) => layer.greatest_mean, cell: (layer) => number(layer.greatest_mean) },
    { title: "Minimum", number: true, key: (layer) => layer.minimum, cell: (layer) => number(layer.minimum) },
    { title: "Maximum", number: true, key: (layer) => layer.maximum, cell: (layer) => number(layer.maximum) },
    { title: "NaN, infinite", number: true, key: (layer) => layer.nan + layer.infinite, cell: (layer) => whole(layer.nan + layer.infinite) },
    { title: "Corrector", key: (layer) => layer.corrector, cell: (layer) => correctorOf(id, layer) },
  ];
  const table = sortable(columns, all, { label: "Layers" });
  const left = h("span", { class: "faint", role: "status" });
  const narrow = () => {
    const wanted = all.filter((layer) => layer.name.toLowerCase().includes(search.value.trim().toLowerCase()));
    table.update(wanted);
    left.textContent = `${whole(wanted.length)} of ${whole(all.length)} layers, results ${results}`;
  };
  const search = h("input", { id: "search", type: "search", value: searched, placeholder: "part of a name", oninput: narrow });
  narrow();
  const missing = all.filter((layer) => layer.missing.length);
  return h("div", {}, h("div", { class: "row" }, h("label", { for: "search" }, "Search"), search, left), missing.length ? missingOf(missing) : null, h("div", { class: "scroll" }, table.table));
}

const lostRows = (layer) => layer.missing.reduce((sum, gap) => sum + gap.rows[1] - gap.rows[0], 0);

function coverage(layer) {
  const lost = lostRows(layer);
  const last = Math.max(1, ...[...layer.covered, ...layer.excluded, ...layer.missing.map((gap) => gap.rows)].map((range) => range[1]));
  const part = (kind) => ([start, stop]) => svg("rect", { class: kind, x: (120 * start) / last, y: 0, width: Math.max(1, (120 * (stop - start)) / last), height: 10 });
  const said = lost ? `${whole(lost)} rows are missing` : "all rows are counted";
  const picture = svg("svg", { class: "coverage", viewBox: "0 0 120 10", role: "img", "aria-label": said }, svg("rect", { class: "all", width: 120, height: 10 }),
    ...layer.covered.map(part("counted")), ...layer.excluded.map(part("excluded")), ...layer.missing.map((gap) => part("missing")(gap.rows)));
  return [picture, h("span", { class: lost ? "error small" : "faint small" }, lost ? said : "complete")];
}

function missingOf(layers) {
  return h("details", { class: "panel", open: true }, h("summary", { class: "error" }, `Rows are missing in ${layers.length === 1 ? "1 layer" : `${layers.length} layers`}`),
    h("ul", { class: "messages" }, layers.flatMap((layer) => layer.missing.map((gap) => h("li", {}, `${layer.name}, rows ${gap.rows[0]}:${gap.rows[1]}: ${gap.reason}`)))));
}

function correctorOf(id, layer) {
  if (!layer.corrector) return h("span", { class: "faint" }, layer.reason);
  return h("button", { type: "button", class: "quiet", "aria-label": `Download the corrector of ${layer.name}`, onclick: () => download(id, `files/${layer.corrector}`).catch((error) => notice(error.message)) }, "Download");
}

async function download(id, path) {
  const anchor = h("a", { href: await link(id, path), download: "" });
  document.body.append(anchor);
  anchor.click();
  anchor.remove();
}

function reportOf(id) {
  const place = h("div");
  const show = async () => {
    try {
      place.replaceChildren(h("iframe", { src: await link(id, "report"), title: `Report of job ${id}` }));
    } catch (error) {
      notice(error.message);
    }
  };
  place.append(h("button", { type: "button", onclick: show }, "Show the report"));
  return place;
}

// A layer

async function showLayer(signal, id, name) {
  const found = await get(`/jobs/${id}/layers/${name.split("/").map(encodeURIComponent).join("/")}`, signal);
  const columns = found.per_channel;
  const channels = columns.mean.map((mean, channel) => ({ channel, mean, minimum: columns.minimum[channel], maximum: columns.maximum[channel], count: columns.count[channel], nan: columns.nan[channel], infinite: columns.infinite[channel] }));
  const quantized = found.quantization ? ", of codes taken to real units" : "";
  const table = () => sortable([
    { title: "Channel", number: true, key: (row) => row.channel, cell: (row) => String(row.channel) },
    ...["mean", "minimum", "maximum"].map((each) => ({ title: each, number: true, key: (row) => row[each], cell: (row) => number(row[each]) })),
    ...["count", "nan", "infinite"].map((each) => ({ title: each, number: true, key: (row) => row[each], cell: (row) => whole(row[each]) })),
  ], channels, { label: `Channels of ${name}`, cards: false }).table;
  const place = h("div", { class: "scroll" });
  const details = h("details", { ontoggle: () => details.open && !place.firstChild && place.append(table()) }, h("summary", {}, `All ${whole(channels.length)} channels as a table`), place);
  main.replaceChildren(h("p", {}, h("a", { href: `#/jobs/${id}` }, `← Job ${id}`)), title(name),
    h("p", { class: "faint" }, `${whole(found.rows)} rows, ${found.dtype}, channels on axis ${found.channel_axis}${quantized}, results ${found.results}`),
    channelPlot(name, columns), details);
}

// Stores

async function showStores(signal) {
  const names = await get("/stores", signal);
  const stores = await Promise.all(names.map((name) => get(`/stores/${encodeURIComponent(name)}`, signal)));
  const one = (store) => h("section", { class: "panel" }, h("div", { class: "row" }, h("h2", { class: "grow" }, store.name), h("a", { class: "button", href: `#/submit?${encodeURIComponent(JSON.stringify({ kind: "run", source: store.source, follow: {} }))}` }, "Follow with a job")),
    h("div", { class: "scroll" }, sortable([
      { title: "Layer", name: true, key: (row) => row[0], cell: (row) => row[0] },
      { title: "Rows", number: true, key: (row) => row[1], cell: (row) => whole(row[1]) },
    ], Object.entries(store.layers), { label: `Layers of ${store.name}`, cards: false }).table));
  main.replaceChildren(title("Stores"), h("p", { class: "faint" }, "Stores that the service owns: activations that clients sent, each request counted once."),
    ...(stores.length ? stores.map(one) : [h("p", { class: "empty" }, "No stores. ", h("code", {}, "streamstats send STORE LAYER FILE"), " makes one.")]));
}

// Submitting

async function showSubmit(signal, text) {
  const about = await get("", signal);
  const before = text ? JSON.parse(text) : {};
  const wrong = h("p", { class: "error", role: "alert", id: "wrong" });
  const kinds = { run: runFields(about, before), onnx: onnxFields() };
  const whose = [
    field("submitter", "Submitter", h("input", { value: before.submitter ?? localStorage.getItem("submitter") ?? "", maxlength: "64", placeholder: "anonymous" }), "Jobs are fair between submitters."),
    field("priority", "Priority", h("input", { type: "number", min: "-100", max: "100", value: String(before.priority ?? 0) }), "Among jobs of the same submitter."),
    field("memory", "Memory", h("input", { value: before.memory ? String(before.memory) : "", placeholder: binary(Math.min(about.memory, 2 ** 31)) }), `At most ${binary(about.memory)}.`),
  ];
  const place = h("div", {}, kinds.run);
  const choice = (kind, label) => h("label", {}, h("input", { type: "radio", name: "kind", value: kind, checked: kind === "run", onchange: () => place.replaceChildren(kinds[kind]) }), ` ${label}`);
  const button = h("button", { class: "primary" }, "Submit");
  const form = h("form", { novalidate: true, onsubmit: send },
    h("div", { class: "row", role: "radiogroup", "aria-label": "Kind of job" }, choice("run", "Reduce a store"), choice("onnx", "Correct an ONNX model")),
    place, h("fieldset", {}, h("legend", {}, "Job"), h("div", { class: "fields" }, whose)), wrong, button);
  main.replaceChildren(title("Submit a job"), form);
  const key = crypto.randomUUID ? crypto.randomUUID() : String(Math.random());

  async function send(event) {
    event.preventDefault();
    wrong.textContent = "";
    for (const each of form.querySelectorAll("[aria-invalid]")) each.removeAttribute("aria-invalid");
    const invalid = [...form.elements].find((each) => !each.validity?.valid);
    if (invalid) return mark(invalid.name, `${invalid.labels?.[0]?.textContent ?? invalid.name}: ${invalid.validationMessage}`);
    button.disabled = true;
    try {
      const request = await requestOf(new FormData(form));
      if (request.submitter) localStorage.setItem("submitter", request.submitter);
      const job = await post("/jobs", request, { "Idempotency-Key": `${key}-${await digest(JSON.stringify(request))}` });
      location.hash = `#/jobs/${job.id}`;
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      mark(/`([a-z_]+)/.exec(error.message)?.[1] ?? (/source/.test(error.message) ? "source" : null), error.message);
    } finally {
      button.disabled = false;
    }
  }

  function mark(name, message) {
    wrong.textContent = message;
    const found = name ? form.elements.namedItem(name) : null;
    if (found instanceof HTMLElement) {
      found.setAttribute("aria-invalid", "true");
      found.setAttribute("aria-describedby", "wrong");
      found.focus();
    }
  }
}

const binary = (size) => (size >= 2 ** 30 ? `${Number((size / 2 ** 30).toFixed(2))}GiB` : `${Math.floor(size / 2 ** 20)}MiB`);

async function digest(text) {
  if (!crypto.subtle) return String(text.length); // only pages over https, or of this machine, have it
  const found = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(text));
  return [...new Uint8Array(found)].slice(0, 8).map((each) => each.toString(16).padStart(2, "0")).join("");
}

let fieldNumber = 0;

function field(name, label, control, hint = "") {
  fieldNumber += 1;
  control.id = `field-${fieldNumber}`;
  control.name = name;
  return h("div", { class: "field" }, h("label", { for: control.id }, label), control, hint ? h("span", { class: "faint" }, hint) : null);
}

const select = (values, chosen) => h("select", {}, values.map(([value, label]) => h("option", { value, selected: value === chosen }, label)));
const check = (name, label, checked) => h("label", {}, h("input", { type: "checkbox", name, checked: Boolean(checked) }), ` ${label}`);

function runFields(about, before) {
  const list = h("datalist", { id: "sources" }, about.sources.map((each) => h("option", { value: each })));
  const source = h("input", { required: true, maxlength: "1024", value: before.source ?? "", list: "sources", autocomplete: "off" });
  source.setAttribute("list", "sources");
  const offered = about.prefixes.length ? ` URLs: ${about.prefixes.join(", ")}` : "";
  return h("fieldset", {}, h("legend", {}, "Store"), list, h("div", { class: "fields" },
    field("source", "Source", source, `A zarr group below the service's folders, or store:NAME.${offered}`),
    field("match", "Layers", h("input", { value: before.layers?.[0]?.match ?? "", placeholder: "*" }), "A glob on names; all if left out."),
    field("channel_axis", "Channel axis", h("input", { type: "number", value: before.layers?.[0]?.channel_axis ?? "", placeholder: "as stored, or the last" })),
    field("scale", "Scale of codes", h("input", { type: "number", step: "any", value: before.layers?.[0]?.quantization?.scale ?? "", placeholder: "as stored, or none" }), "For stored integers that stand for reals."),
    field("scale_is", "The scale is", select([["step", "the step: reals a code"], ["reciprocal", "reciprocal: codes a real"]], before.layers?.[0]?.quantization?.scale_is)),
    field("zero_point", "Zero point", h("input", { type: "number", value: before.layers?.[0]?.quantization?.zero_point ?? "", placeholder: "0" })),
    field("rows", "Rows", h("input", { pattern: "[0-9]+:[0-9]+", value: before.rows ?? "", placeholder: "all", title: "START:STOP, as in 0:1000" }), "As in 0:1000."),
    field("missing", "Missing chunks", select([["error", "refuse"], ["report", "leave out and list"], ["fill", "count the fill value"]], before.missing)),
    field("nonfinite", "NaN and infinities", select([["error", "refuse"], ["skip", "leave out and count apart"]], before.nonfinite)),
    h("div", { class: "field" }, h("span", {}, "Also keep"), check("spread", "spread of samples", before.statistics?.includes("spread")), check("positions", "positions", before.statistics?.includes("positions"))),
    h("div", { class: "field" }, h("span", {}, "Follow"), check("follow", "go on with rows that are added", before.follow))));
}

function onnxFields() {
  const file = (name, label, hint, required = false) => field(name, label, h("input", { type: "file", required }), hint);
  return h("fieldset", {}, h("legend", {}, "Model"), h("div", { class: "fields" },
    file("model", "Float model", "One .onnx file.", true),
    file("samples", "Calibration samples", ".npy or .npz, samples on axis 0.", true),
    file("quantized", "Quantised model", "As a quantiser wrote it; or give bits."),
    field("bits", "Bits", h("input", { type: "number", min: "2", max: "16" }), "Instead: fake-quantise the weights."),
    field("storage", "Recorded as", select([["float", "real values"], ["int8", "int8 codes"]])),
    field("iterative", "How", select([["", "in one pass"], ["full", "layer after layer, full"], ["change", "layer after layer, change"]])),
    file("held_out", "Samples held out", "To judge by; not among the others."),
    file("labels", "Their labels", ".npy of integers: accuracy."),
    h("div", { class: "field" }, h("span", {}, "Options"), check("per_channel", "one range a channel"), check("symmetric", "symmetric ranges"), check("do_no_harm", "leave out what makes a layer worse"))));
}

// What is filled in, as the service wants it.
async function requestOf(form) {
  const request = { kind: form.get("kind") };
  const put = (name, change = (value) => value) => {
    const value = form.get(name);
    if (value) request[name] = change(value);
  };
  put("submitter");
  put("priority", Number);
  put("memory");
  if (request.kind === "run") {
    for (const name of ["source", "rows", "missing", "nonfinite"]) put(name);
    const layer = {};
    if (form.get("channel_axis")) layer.channel_axis = Number(form.get("channel_axis"));
    if (form.get("scale") || form.get("zero_point")) layer.quantization = { scale: Number(form.get("scale")), scale_is: form.get("scale_is"), zero_point: Number(form.get("zero_point") || 0) };
    if (form.get("match") || Object.keys(layer).length) request.layers = [{ match: form.get("match") || "*", ...layer }];
    request.statistics = ["spread", "positions"].filter((name) => form.get(name));
    if (form.get("follow")) request.follow = {};
    return request;
  }
  put("bits", Number);
  put("storage");
  put("iterative");
  for (const name of ["per_channel", "symmetric", "do_no_harm"]) if (form.get(name)) request[name] = true;
  for (const name of ["model", "samples", "quantized", "held_out", "labels"]) {
    if (form.get(name)?.size) request[name] = (await upload(form.get(name))).id;
  }
  return request;
}

// Theme

const THEMES = ["system", "light", "dark"];

function applyTheme(theme) {
  document.documentElement.dataset.theme = theme;
  document.getElementById("theme").textContent = `Theme: ${theme}`;
  window.dispatchEvent(new Event("themechange"));
}

document.getElementById("theme").addEventListener("click", () => {
  const theme = THEMES[(THEMES.indexOf(localStorage.getItem("theme") ?? "system") + 1) % THEMES.length];
  localStorage.setItem("theme", theme);
  applyTheme(theme);
});

document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address is that of a view
  main.focus();
});

applyTheme(localStorage.getItem("theme") ?? "system");
takeTokenFromAddress();
window.addEventListener("hashchange", () => { takeTokenFromAddress(); open(); });
open();
