// Ways to the results: downloads, and commands to copy.

import { link } from "./api.js";
import { button, copyable, h, notice } from "./elements.js";

export function downloadButton(label, id, path, kind = null, attributes = {}) {
  return button(
    label,
    async () => {
      const anchor = h("a", { href: await link(id, path), download: "" });
      document.body.append(anchor);
      anchor.click();
      anchor.remove();
    },
    kind,
    attributes,
  );
}

// A word for a shell, in quotes: what a name has in it stays a name.
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

export const curlOf = (path) =>
  `curl -sSfH "Authorization: Bearer $(cat "$STREAMSTATS_TOKEN_FILE")" \\\n  ${quoted(`${location.origin}/api/v1${path}`)}`;

const fetchOf = (id) =>
  `export STREAMSTATS_URL=${location.origin} STREAMSTATS_TOKEN_FILE=token\nstreamstats fetch ${id} -o ${quoted(`results-${id}`)}`;

const pythonOf = (id) => `import streamstats as ss

with ss.Client("${location.origin}", open("token").read().strip()) as client:
    layers = client.layers("${id}")["layers"]
    client.fetch("${id}", "results-${id}")
for name, layer in layers.items():
    print(name, layer["rows"], layer["least_mean"], layer["greatest_mean"])
`;

export function waysOf(id) {
  return h(
    "details",
    {},
    h("summary", {}, "Get the results: command line, curl, Python"),
    h("p", { class: "faint small" }, "Put your token into a file ", h("code", {}, "token"), " that only you can read."),
    copyable("Command line", fetchOf(id)),
    copyable("curl", `${curlOf(`/jobs/${id}/archive`)} \\\n  -o results-${id}.zip`),
    copyable("Python", pythonOf(id)),
  );
}

export function reportOf(id) {
  const place = h("div");
  place.append(
    button("Show the report", async () => {
      try {
        place.replaceChildren(h("iframe", { src: await link(id, "report"), title: `Report of job ${id}` }));
      } catch (error) {
        notice(error.message);
      }
    }),
  );
  return h("section", {}, h("h2", {}, "Report"), place);
}
