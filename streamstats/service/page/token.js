// Asking for the token, and saying so if the service has refused the one that was given.

import { keepToken, token } from "./api.js";
import { h, title } from "./elements.js";

export function showToken(main, entered, { refused = false } = {}) {
  const field = h("input", {
    id: "token",
    type: "password",
    required: true,
    autocomplete: "off",
    size: "48",
    "aria-describedby": "token-wrong",
    "aria-invalid": refused ? "true" : null,
  });
  const wrong = h("p", { id: "token-wrong", class: "error", role: "alert" });
  const enter = (event) => {
    event.preventDefault();
    keepToken(field.value.trim());
    entered();
  };
  main.replaceChildren(
    title("Token"),
    h(
      "form",
      { class: "panel", onsubmit: enter },
      wrong,
      h("div", { class: "row" }, h("label", { for: "token" }, "Token"), field, h("button", { class: "primary" }, "Enter")),
      h(
        "p",
        { class: "faint small" },
        "Ask whoever runs the service for your token. Its first one is in the file ",
        h("code", {}, "token"),
        " in its data folder. This browser keeps the token, for all tabs, until you forget it with the button at the top.",
      ),
    ),
  );
  if (refused)
    wrong.textContent = `The service refuses this token${token() ? `, which ends with “${token().slice(-4)}”` : ""}: it is wrong, or was revoked. Enter another.`;
  field.focus();
}
