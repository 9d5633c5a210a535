// Logging in with a key.

import { logIn } from "./api.js";
import { field, h, say } from "./dom.js";

export function loginView(root, entered, why = "") {
  document.title = "Log in · promptmill";
  const key = h("input", { type: "password", name: "key", autocomplete: "current-password", required: true, spellcheck: "false" });
  const problem = h("p", { class: "problem", role: "alert" }, why);
  const send = h("button", { type: "submit", class: "primary" }, "Log in");
  const form = h("form", { class: "panel login" },
    h("h1", {}, "Log in"),
    h("p", { class: "dim" }, "This server lets keys in. Whoever runs it makes them with ", h("code", {}, "promptmill key add"), "."),
    // For password managers, which want a name beside what they keep.
    h("input", { type: "text", name: "username", autocomplete: "username", value: "promptmill", hidden: true }),
    field("Key", key), problem, send);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    send.disabled = true;
    try {
      entered(await logIn(key.value.trim()));
    } catch (error) {
      say(problem, error.status === 401 ? "This key is unknown, was revoked or has expired." : error.message);
      send.disabled = false;
      key.select();
    }
  });
  root.append(form);
  key.focus();
  return { stop() {} };
}
