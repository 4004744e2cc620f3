// The name, the tags and the note of a job, which can be changed at any time.

import { ask } from "./api.js";
import { button, h, notice } from "./elements.js";

export const tagsOf = (text) => [...new Set(text.split(/[\s,]+/).filter(Boolean))];

export function describing(job) {
  return button("Name, tags, note", async () => open(job));
}

function open(job) {
  const name = h("input", { id: "about-name", maxlength: "100", value: job.name ?? "" });
  const tags = h("input", { id: "about-tags", value: (job.tags ?? []).join(" ") });
  const note = h("textarea", { id: "about-note", rows: "4", maxlength: "4000" }, job.note ?? "");
  const wrong = h("p", { class: "error", role: "alert" });
  const save = async (event) => {
    event.preventDefault();
    try {
      await ask(`/jobs/${job.id}`, {
        method: "PATCH",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ name: name.value.trim(), tags: tagsOf(tags.value), note: note.value }),
      });
      dialog.close();
      notice("Saved");
      window.dispatchEvent(new Event("hashchange"));
    } catch (error) {
      wrong.textContent = error.message;
    }
  };
  const field = (label, control, hint) =>
    h("div", { class: "field" }, h("label", { for: control.id }, label), control, h("span", { class: "faint" }, hint));
  const dialog = h(
    "dialog",
    { "aria-label": `Name, tags and note of job ${job.id}`, onclose: () => dialog.remove() },
    h(
      "form",
      { onsubmit: save },
      field("Name", name, "One line; shown in lists."),
      field("Tags", tags, "Words to find the job by, separated by spaces."),
      field("Note", note, "Free text."),
      wrong,
      h(
        "div",
        { class: "row end" },
        h("button", { type: "button", onclick: () => dialog.close() }, "Close"),
        h("button", { class: "primary" }, "Save"),
      ),
    ),
  );
  document.body.append(dialog);
  dialog.showModal();
}
