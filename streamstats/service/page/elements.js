// Elements without a library: text stays text, and never becomes markup.

export function h(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && typeof value !== "string" && typeof value !== "number") element[name] = value;
    else if (name === "tabIndex") element.tabIndex = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

// The heading of a view, which names the tab, too.
export function title(text, ...beside) {
  document.title = `${text} · streamstats`;
  return h("h1", {}, text, ...beside);
}

// Short news that pass: the place is a live region, so that a screen reader says them.
export function notice(text) {
  const shown = h("div", {}, text);
  document.getElementById("notice").append(shown);
  setTimeout(() => shown.remove(), 8000);
}

export function confirmed(text, yes) {
  const dialog = document.getElementById("confirm");
  document.getElementById("confirm-text").textContent = text;
  dialog.querySelector("[value=yes]").textContent = yes;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

export function button(label, work, kind = null, attributes = {}) {
  const onclick = async (event) => {
    const pressed = event.currentTarget;
    pressed.disabled = true; // a second click would do it twice
    try {
      await work(pressed);
    } catch (error) {
      notice(error.message);
    } finally {
      pressed.disabled = false;
    }
  };
  return h("button", { type: "button", class: kind, onclick, ...attributes }, label);
}

export const linkButton = (label, href, kind = "") => h("a", { class: `button ${kind}`, href }, label);

// Text to copy. Browsers offer the clipboard over https and on this machine only; elsewhere the text is selected.
export function copyable(label, text) {
  const shown = h("pre", { tabIndex: 0, "aria-label": label }, text);
  const copy = button(
    "Copy",
    async (pressed) => {
      if (navigator.clipboard) {
        await navigator.clipboard.writeText(text);
        pressed.textContent = "Copied";
        setTimeout(() => {
          pressed.textContent = "Copy";
        }, 2000);
        return;
      }
      getSelection().selectAllChildren(shown);
      notice("The text is selected; copy it with Ctrl+C or ⌘C");
    },
    "quiet",
    { "aria-label": `Copy: ${label}` },
  );
  return h("div", { class: "copyable" }, h("div", { class: "row" }, h("span", { class: "grow small strong" }, label), copy), shown);
}

// A file made in the page, saved under `name`.
export function save(name, blob) {
  const anchor = h("a", { href: URL.createObjectURL(blob), download: name });
  document.body.append(anchor);
  anchor.click();
  anchor.remove();
  setTimeout(() => URL.revokeObjectURL(anchor.href), 60000);
}

export function pause(seconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal.addEventListener(
      "abort",
      () => {
        clearTimeout(timer);
        resolve();
      },
      { once: true },
    );
  });
}
