// What the page asks the service. The token stays in this tab, and goes out in a header only.

const V1 = "/api/v1";
const KEPT = "streamstats-token";

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
  sessionStorage.setItem(KEPT, token);
}

function authorization() {
  return { Authorization: `Bearer ${sessionStorage.getItem(KEPT) ?? ""}` };
}

async function checked(answer) {
  if (answer.ok) return answer;
  let message = answer.statusText;
  try {
    message = (await answer.json()).error.message;
  } catch {
    // not one of our answers: a proxy's
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
    throw new Refused(0, "the service does not answer");
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

// A link that the browser can follow without the header, for a minute.
export async function link(job, path) {
  return (await post(`/jobs/${job}/links?path=${encodeURIComponent(path)}`)).path;
}

// Server-sent events, over fetch because an EventSource cannot send the header; joins again where it broke off.
export async function follow(job, signal, heard) {
  let last = "0";
  for (let failures = 0; !signal.aborted; ) {
    try {
      const answer = await ask(`/jobs/${job}/events`, { signal, headers: { "Last-Event-ID": last } });
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      for (let text = ""; ; ) {
        const { value, done } = await reader.read();
        if (done) break;
        text += value;
        const events = text.split("\n\n");
        text = events.pop();
        for (const event of events) {
          const fields = Object.fromEntries(event.split("\n").map((line) => line.split(/: (.*)/s)));
          if (!fields.data) continue;
          last = fields.id ?? last;
          failures = 0;
          heard(fields.event, JSON.parse(fields.data));
          if (fields.event === "end") return;
        }
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Refused && error.status !== 0 && error.status !== 503) throw error;
      heard("lost", null);
    }
    failures += 1;
    await new Promise((resolve) => setTimeout(resolve, Math.min(10000, 500 * 2 ** failures)));
  }
}
