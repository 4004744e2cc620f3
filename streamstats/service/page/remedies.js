// Next steps for a job that failed or lacks something. Messages name the keys that help, as in `missing: report`;
// each becomes a button that opens the form with that key changed.

import { submitAddress } from "./describe.js";
import { h, linkButton } from "./elements.js";

const KEY = /`([a-z_]+): ([a-z_0-9]+)`/g;
const AT_FAULT = 2; // the exit status of the command line for a request that cannot be met as it stands
const FILES = {
  model: "float model",
  quantized: "quantised model",
  samples: "calibration samples",
  held_out: "held-out samples",
  labels: "labels",
};

export function nextSteps(job) {
  const steps = [...stepsOf(job)];
  return h(
    "section",
    { class: `panel ${job.state === "failed" ? "bad" : "warn"}`, "aria-label": "Next steps" },
    h("p", { class: job.state === "failed" ? "error" : "warn-text", role: "alert" }, job.message),
    h("h2", {}, "Next steps"),
    h(
      "ul",
      { class: "steps" },
      steps.map(([text, ...actions]) => h("li", {}, h("span", {}, text), ...actions)),
    ),
  );
}

// [what to do, a button] each, those that the message names first.
function* stepsOf(job) {
  const again = (change) => submitAddress(requestOf(job, change), job.id);
  for (const [, key, value] of job.message.matchAll(KEY)) {
    if (key in job.request && String(job.request[key]) !== value)
      yield [`Run it with ${key}: ${value}.`, linkButton(`Submit again with ${key}: ${value}`, again({ [key]: value }))];
  }
  if (/`min_rows`/.test(job.message))
    yield ["Record more samples, or ask for fewer.", linkButton("Submit again with fewer rows", again({ min_rows: 0 }))];
  const file = /inputs\/(model|quantized|samples|held_out|labels)\b/.exec(job.message)?.[1];
  if (file)
    yield [
      `Choose another file: the ${FILES[file]} cannot be used.`,
      linkButton(`Submit again with another ${FILES[file]}`, again({ [file]: null })),
    ];
  if (/not a zarr group|does not exist|below a folder/.test(job.message))
    yield [
      "Name another source: the form lists those that the service can read.",
      linkButton("Choose another source", again({ source: "" })),
    ];
  if (/memory/i.test(job.message))
    yield ["Give the job more memory.", linkButton("Submit again with more memory", again({ memory: 2 * job.request.memory }))];
  if (/process ended|tried \d+ times/.test(job.message))
    yield [`Ask whoever runs the service: its log has the details under job ${job.id}.`];
  if (job.exit_status === AT_FAULT)
    yield ["Correct the request as the message says.", linkButton("Change the configuration", again({}))];
  else if (job.state === "failed") yield ["If the cause is gone, run the same job again.", linkButton("Submit again", again({}))];
  else yield ["The layers that are complete can be used as they are."];
}

// A job's request with its name, tags, note and hooks, which are not part of it, and with what changes.
export function requestOf(job, change = {}) {
  const about = Object.fromEntries(["name", "tags", "note", "notify"].filter((key) => job[key]?.length).map((key) => [key, job[key]]));
  return { ...about, ...job.request, ...change };
}
