// Requests to the service. The token stays in this tab and is sent in a header only.

const V1 = "/api/v1";
const TOKEN = "streamstats-token";
const LONGEST_PAUSE = 10000;

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export function takeTokenFromAddress() {
  const found = /^#token=([\w-]+)/.exec(location.hash);
  if (found) {
    keepToken(found[1]);
    history.replaceState(null, "", "#/jobs");
  }
}

export function keepToken(token) {
  sessionStorage.setItem(TOKEN, token);
}

function authorization() {
  return { Authorization: `Bearer ${sessionStorage.getItem(TOKEN) ?? ""}` };
}

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
  const headers = { ...authorization(), ...options.headers };
  let answer;
  try {
    answer = await fetch(V1 + path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "the service does not respond; check that it is running");
  }
  return checked(answer);
}

export async function get(path, signal) {
  return (await ask(path, { signal })).json();
}

export async function post(path, body, headers = {}) {
  const json = body === undefined ? {} : { body: JSON.stringify(body), headers: { "Content-Type": "application/json", ...headers } };
  return (await ask(path, { method: "POST", ...json })).json();
}

export async function upload(file) {
  return (await ask("/uploads", { method: "POST", body: file })).json();
}

// A link that the browser can open without the header, for one minute.
export async function link(job, path) {
  return (await post(`/jobs/${job}/links?path=${encodeURIComponent(path)}`)).path;
}

// Server-sent events, over fetch because an EventSource cannot send the header. A lost connection is resumed.
export async function follow(job, signal, heard) {
  let last = "0";
  for (let failures = 0; !signal.aborted; ) {
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
      if (error instanceof Refused && error.status !== 0 && error.status !== 503) throw error;
      heard("lost", null);
    }
    failures += 1;
    await new Promise((resolve) => setTimeout(resolve, Math.min(LONGEST_PAUSE, 500 * 2 ** failures)));
  }
}

// The events of a stream: {id, event, data} each. Comments, which have no data, are skipped.
async function* eventsOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  for (let text = ""; ; ) {
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
