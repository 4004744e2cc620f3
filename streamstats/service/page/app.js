// The page: a view for each address behind #. Opening another view ends what the one before it was doing.

import { Refused, forgetToken, onTokenChange, takeTokenFromAddress, token } from "./api.js";
import { showComparison, showLayerComparison } from "./compare.js";
import { button, h, linkButton, title } from "./elements.js";
import { showHistory } from "./history.js";
import { showJob } from "./job.js";
import { showJobs } from "./jobs.js";
import { showLayer } from "./layer.js";
import { showStores } from "./stores.js";
import { showSubmit } from "./submit.js";
import { startTheme } from "./theme.js";
import { showToken } from "./token.js";
import { you } from "./you.js";

const main = document.getElementById("main");
const forget = document.getElementById("forget");
let leaving = new AbortController();
let opened = false; // whether a view was opened before: the first one leaves the focus where the browser has it

// Each view is called with {main, signal, fail} and the parts of the address.
const ROUTES = [
  [/^#\/jobs(?:\?(.*))?$/, showJobs],
  [/^#\/jobs\/([0-9a-f]+)$/, showJob],
  [/^#\/jobs\/([0-9a-f]+)\/layers\/(.+)$/, showLayer],
  [/^#\/compare\/([0-9a-f]+)\/([0-9a-f]+)$/, showComparison],
  [/^#\/compare\/([0-9a-f]+)\/([0-9a-f]+)\/layers\/(.+)$/, showLayerComparison],
  [/^#\/history\/(.+)$/, showHistory],
  [/^#\/submit(?:\?(.*))?$/, showSubmit],
  [/^#\/stores$/, showStores],
];

async function open() {
  leaving.abort();
  leaving = new AbortController();
  const { signal } = leaving;
  const hash = location.hash || "#/jobs";
  markCurrent(hash);
  document.getElementById("with-token").hidden = !token();
  const { show, parts } = viewOf(hash);
  main.replaceChildren(); // what is shown is never that of another address
  try {
    if (!token()) return showToken(main, open);
    await showWho();
    await show({ main, signal, fail }, ...parts);
    if (opened && !signal.aborted && document.activeElement === document.body) main.focus({ preventScroll: true });
    opened = true;
  } catch (error) {
    if (!signal.aborted) fail(error);
  }
}

async function showWho() {
  const { name, role } = await you();
  document.getElementById("who").textContent = `${name}, may ${role === "submit" ? "submit" : role === "read" ? "read" : "do everything"}`;
}

function viewOf(hash) {
  const [pattern, show] = ROUTES.find(([each]) => each.test(hash)) ?? [null, showNowhere];
  const parts = pattern ? pattern.exec(hash).slice(1) : [];
  return { show, parts: parts.map(decoded) };
}

function decoded(part) {
  try {
    return decodeURIComponent(part ?? "");
  } catch {
    return part; // an address that somebody typed
  }
}

function markCurrent(hash) {
  for (const each of document.querySelectorAll("nav a")) {
    if (hash.startsWith(each.getAttribute("href"))) each.setAttribute("aria-current", "page");
    else each.removeAttribute("aria-current");
  }
}

function fail(error) {
  leaving.abort();
  if (!(error instanceof Refused)) throw error;
  if (error.status === 401) return showToken(main, open, { refused: true });
  const missing = error.status === 404 || error.status === 410;
  main.replaceChildren(
    title(missing ? "Not found" : "The request failed"),
    h("p", { class: "error", role: "alert" }, error.message),
    h("div", { class: "row" }, missing ? null : button("Try again", open, "primary"), linkButton("All jobs", "#/jobs")),
  );
}

function showNowhere() {
  main.replaceChildren(title("Page not found"), linkButton("All jobs", "#/jobs"));
}

document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address after # names a view
  main.focus();
});
forget.addEventListener("click", () => {
  forgetToken();
  open();
});

startTheme(document.getElementById("theme"));
takeTokenFromAddress();
onTokenChange(open);
window.addEventListener("hashchange", () => {
  takeTokenFromAddress();
  open();
});
open();
