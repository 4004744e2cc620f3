// Who uses the page: the name and the role of the token, asked once.

import { get, token } from "./api.js";

let known = { token: null, you: null };

export async function you() {
  if (known.token !== token()) {
    const asked = token();
    const found = (await get("")).you;
    known = { token: asked, you: found };
  }
  return known.you;
}

export const maySubmit = (who) => who.role !== "read";
export const owns = (who, job) => who.role === "admin" || (maySubmit(who) && who.name === job.submitter);
