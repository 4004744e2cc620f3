// Requests to the service. The browser keeps the token for this address; it is sent in a header only.

const V1 = "/api/v1";
const TOKEN = "streamstats-token";
const LONGEST_PAUSE = 10000;

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

const UNREACHABLE = 0;
const PASSING = [UNREACHABLE, 429, 502, 503, 504];
export const passes = (error) => error instanceof Refused && PASSING.includes(error.status);

// `#token=TOKEN`, alone or followed by the view: `#token=TOKEN/jobs/JOB`.
export function takeTokenFromAddress() {
  const found = /^#token=([\w.-]+)(\/.*)?$/.exec(location.hash);
  if (found) {
    keepToken(found[1]);
    history.replaceState(null, "", `#${found[2] ?? "/jobs"}`);
  }
}

export const token = () => localStorage.getItem(TOKEN) ?? "";
export const keepToken = (text) => localStorage.setItem(TOKEN, text);
export const forgetToken = () => localStorage.removeItem(TOKEN);

// Another tab has taken or forgotten a token.
export const onTokenChange = (changed) => window.addEventListener("storage", (event) => event.key === TOKEN && changed());

async function checked(answer) {
  if (answer.ok) return answer;
  let message = answer.statusText;
  try {
    message = (await answer.json()).detail ?? message;
  } catch {
    // not an answer of the service: a proxy's
  }
  throw new Refused(answer.status, message);
}

export async function ask(path, options = {}) {
  const headers = { Authorization: `Bearer ${token()}`, ...options.headers };
  let answer;
  try {
    answer = await fetch(V1 + path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(UNREACHABLE, "the service does not respond; check that it is running and that this machine is online");
  }
  return checked(answer);
}

export const get = async (path, signal) => (await ask(path, { signal })).json();

export async function post(path, body, headers = {}) {
  const json = body === undefined ? {} : { body: JSON.stringify(body), headers: { "Content-Type": "application/json", ...headers } };
  return (await ask(path, { method: "POST", ...json })).json();
}

// Over XMLHttpRequest, because fetch does not tell how much is sent.
export function upload(file, sent) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", `${V1}/uploads`);
    request.setRequestHeader("Authorization", `Bearer ${token()}`);
    request.setRequestHeader("Content-Type", "application/octet-stream"); // whatever the browser takes the file for
    request.upload.onprogress = (event) => sent(event.loaded / event.total);
    request.onerror = () => reject(new Refused(UNREACHABLE, "the connection was lost during the upload; choose the file again"));
    request.onload = () =>
      checked(new Response(request.response, { status: request.status, statusText: request.statusText }))
        .then((answer) => answer.json())
        .then(resolve, reject);
    request.send(file);
  });
}

// The address of a layer below `path`: slashes in its name stay slashes.
export const layerPath = (path, name) => `${path}/${name.split("/").map(encodeURIComponent).join("/")}`;

// A link that the browser can open without the header, for one minute.
export async function link(job, path) {
  return (await post(`/jobs/${job}/links?path=${encodeURIComponent(path)}`)).path;
}

// Server-sent events, over fetch because an EventSource cannot send the header. A lost connection is resumed.
export async function follow(job, signal, heard) {
  let last = "0";
  for (let failures = 0; !signal.aborted;) {
    try {
      const answer = await ask(`/jobs/${job}/events`, { signal, headers: { "Last-Event-ID": last } });
      for await (const { id, event, data } of eventsOf(answer.body)) {
        last = id ?? last;
        failures = 0;
        heard(event, JSON.parse(data));
        if (event === "end") return;
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Refused && !passes(error)) throw error;
      heard("lost", null);
    }
    failures += 1;
    await new Promise((resolve) => setTimeout(resolve, Math.min(LONGEST_PAUSE, 500 * 2 ** failures)));
  }
}

// The events of a stream: {id, event, data} each. Comments, which have no data, are skipped.
async function* eventsOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  for (let text = ""; ;) {
    const { value, done } = await reader.read();
    if (done) return;
    const events = (text + value).split("\n\n");
    text = events.pop();
    for (const event of events) {
      const fields = Object.fromEntries(event.split("\n").map((line) => line.split(/: (.*)/s)));
      if (fields.data) yield fields;
    }
  }
}
