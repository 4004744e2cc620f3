// Requests as YAML, which people write, and JSON, which is part of it.

const { dump, load } = window.jsyaml;

export const written = (request) => dump(request, { lineWidth: 100, noRefs: true });

// The request in `text`. Throws an Error that says where the text is no YAML, or that it is no mapping.
export function read(text) {
  let request;
  try {
    request = load(text);
  } catch (error) {
    const where = error.mark ? `line ${error.mark.line + 1}: ` : "";
    throw new Error(`${where}${error.reason ?? error.message}`);
  }
  if (request === null || typeof request !== "object" || Array.isArray(request))
    throw new Error("expected keys and values, as in `source: mobilenet.zarr`");
  return request;
}
