// The page: a view for each address behind #. Opening another view ends what the one before it was doing.

import { Refused, keepToken, takeTokenFromAddress } from "./api.js";
import { h, title } from "./elements.js";
import { showJob } from "./job.js";
import { showJobs } from "./jobs.js";
import { showLayer } from "./layer.js";
import { showStores } from "./stores.js";
import { showSubmit } from "./submit.js";
import { startTheme } from "./theme.js";

const main = document.getElementById("main");
let leaving = new AbortController();

// Each view is called with {main, signal, fail} and the parts of the address.
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
  markCurrent(hash);
  const { show, parts } = viewOf(hash);
  try {
    await show({ main, signal, fail }, ...parts);
    if (!signal.aborted && document.activeElement === document.body) main.focus({ preventScroll: true });
  } catch (error) {
    if (!signal.aborted) fail(error);
  }
}

function viewOf(hash) {
  const [pattern, show] = ROUTES.find(([each]) => each.test(hash)) ?? [null, showNowhere];
  const parts = pattern ? pattern.exec(hash).slice(1) : [];
  return { show, parts: parts.map((part) => decodeURIComponent(part ?? "")) };
}

function markCurrent(hash) {
  for (const each of document.querySelectorAll("nav a")) {
    if (hash.startsWith(each.getAttribute("href"))) each.setAttribute("aria-current", "page");
    else each.removeAttribute("aria-current");
  }
}

function fail(error) {
  if (!(error instanceof Refused)) throw error;
  if (error.status === 401) showToken();
  else main.replaceChildren(title("The request failed"), h("p", { class: "error", role: "alert" }, error.message), h("a", { class: "button", href: "#/jobs" }, "All jobs"));
}

function showNowhere() {
  main.replaceChildren(title("Page not found"), h("a", { href: "#/jobs" }, "All jobs"));
}

function showToken() {
  const field = h("input", { id: "token", type: "password", required: true, autocomplete: "off", size: "48" });
  const enter = (event) => {
    event.preventDefault();
    keepToken(field.value.trim());
    open();
  };
  main.replaceChildren(title("Token"), h("form", { onsubmit: enter },
    h("p", {}, "The service wrote its token to the file ", h("code", {}, "token"), " in its data folder when it first started. The page keeps it until you close this tab."),
    h("div", { class: "row" }, h("label", { for: "token" }, "Token"), field, h("button", { class: "primary" }, "Enter"))));
  field.focus();
}

document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address after # names a view
  main.focus();
});

startTheme(document.getElementById("theme"));
takeTokenFromAddress();
window.addEventListener("hashchange", () => { takeTokenFromAddress(); open(); });
open();
