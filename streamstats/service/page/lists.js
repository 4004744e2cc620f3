// Lists that stay current: loaded again every few seconds, and honest about their age when that fails.

import { passes } from "./api.js";
import { h, pause } from "./elements.js";
import { clock } from "./formats.js";

const SECONDS = 2;

// A line about the age of what is shown. `stale` is a live region; the time of the last answer is not, for it changes.
export class Age {
  constructor() {
    this.at = null;
    this.fresh = h("span", { class: "faint small" });
    this.stale = h("span", { class: "error", role: "status" });
    this.element = h("p", { class: "age" }, this.fresh, this.stale);
  }

  loaded() {
    this.at = Date.now() / 1000;
    this.fresh.textContent = `As of ${clock(this.at)}`;
    this.fresh.hidden = false;
    if (this.stale.textContent) this.stale.textContent = "";
  }

  failed(error) {
    const age = this.at ? `The list is from ${clock(this.at)}` : "The list has not been loaded yet";
    const said = `Out of date: ${error.message}. ${age}; the page retries.`;
    this.fresh.hidden = true;
    if (this.stale.textContent !== said) this.stale.textContent = said;
  }
}

// Call `load` again and again until the view is left; a hidden tab loads when it is seen again.
export async function keepCurrent(load, age, signal) {
  const seen = () => document.hidden || again();
  let again = () => {};
  document.addEventListener("visibilitychange", seen, { signal });
  while (!signal.aborted) {
    await Promise.race([
      pause(SECONDS, signal),
      new Promise((resolve) => {
        again = resolve;
      }),
    ]);
    if (document.hidden || signal.aborted) continue;
    try {
      await load();
    } catch (error) {
      if (signal.aborted) return;
      if (!passes(error)) throw error;
      age.failed(error);
    }
  }
}
