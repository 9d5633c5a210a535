// When a new schedule runs: the part of its form that a batch has not.

import { get } from "./api.js";
import { field, h, say } from "./dom.js";
import * as f from "./format.js";

const WAIT_MS = 300;
const ZONES = Intl.supportedValuesOf?.("timeZone") ?? [];

export function timing(asked) {
  const name = h("input", { type: "text", maxlength: 48, required: true, pattern: "[A-Za-z0-9][A-Za-z0-9_\\-]*", placeholder: "nightly", title: "Letters, digits, _ and -", autocomplete: "off", spellcheck: "false" });
  const cron = h("input", { type: "text", required: true, maxlength: 200, value: "0 2 * * *", autocomplete: "off", spellcheck: "false" });
  const zone = h("input", { type: "text", required: true, list: "zones", value: Intl.DateTimeFormat().resolvedOptions().timeZone ?? "UTC", autocomplete: "off", spellcheck: "false" });
  const [catchUp, overlap, replace] = [1, 2, 3].map(() => h("input", { type: "checkbox" }));
  const times = h("p", { class: "dim times", role: "status" });
  const check = (control, text) => h("label", { class: "check" }, control, text);
  let [timer, stopper] = [null, new AbortController()];

  async function look() {
    stopper.abort();
    stopper = new AbortController();
    try {
      const found = await get("schedules/next", { cron: cron.value, zone: zone.value }, stopper.signal);
      say(times, `Runs ${found.next.map(f.moment).join(", then ")}`);
      times.classList.remove("bad");
    } catch (error) {
      if (error.name === "AbortError" || ([401, 403].includes(error.status) && asked(error) === false)) return;
      say(times, error.message);
      times.classList.add("bad");
    }
  }
  const soon = () => {
    clearTimeout(timer);
    timer = setTimeout(look, WAIT_MS);
  };
  [cron, zone].forEach((control) => control.addEventListener("input", soon));
  look();

  return {
    element: h("section", { class: "panel" }, h("h2", {}, "Schedule"),
      h("div", { class: "fields" }, field("Name of the schedule", name), field("When, as cron", cron, "minute hour day month weekday, or @daily"), field("Time zone", zone)),
      h("datalist", { id: "zones" }, ZONES.map((value) => h("option", { value }))),
      times,
      check(catchUp, "Make up for missed runs with one when no scheduler was there"),
      check(overlap, "Run also while an earlier batch is not done"),
      check(replace, "Take the place of a schedule of this name")),
    said: () => ({
      name: name.value.trim(), cron: cron.value, zone: zone.value, catch_up: catchUp.checked, allow_overlap: overlap.checked, replace: replace.checked,
    }),
    stop() {
      clearTimeout(timer);
      stopper.abort();
    },
  };
}
