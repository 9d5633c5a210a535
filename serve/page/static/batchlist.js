// The list of batches: the newest first, a page at a time, live.

import { get } from "./api.js";
import { button, h, keyed, say, select, show } from "./dom.js";
import * as f from "./format.js";
import { meter } from "./plots.js";
import { poll } from "./poll.js";

export const barKind = (batch) =>
  batch.status === "failed" ? "bad" : ["cancelled", "expired"].includes(batch.status) || batch.waiting ? "warn" : batch.done ? "done" : "";

export const share = (batch) => (batch.total ? batch.ran / batch.total : batch.status === "completed" ? 1 : 0);

export const stateText = (batch) => batch.state.replace("_", " ");

function row(first) {
  const link = h("a", { href: `#/batch/${first.id}` });
  const under = h("small", { class: "dim" });
  const chip = h("span", { class: "chip" });
  const bar = meter("Progress");
  const [counts, failed] = [h("span", {}), h("span", { class: "bad" })];
  const cell = (label, cls, ...children) => h("td", { "data-label": label, class: cls }, children);
  const [speed, left, models, when] = [cell("tok/s", "number"), cell("Left", "number"), cell("Model", "models"), cell("Created", "number")];
  const element = h("tr", {},
    h("th", { scope: "row" }, link, under), cell("State", "", chip),
    cell("Progress", "wide", bar.element, h("small", {}, counts, failed)), speed, left, models, when);
  return {
    element,
    update(batch) {
      say(link, batch.name ?? batch.source ?? batch.id);
      if (!link.textContent) say(link, batch.id);
      say(under, link.textContent === batch.id ? "" : batch.id);
      say(chip, stateText(batch));
      chip.className = `chip ${batch.state}`;
      chip.title = batch.waiting ?? "";
      bar.set(share(batch), barKind(batch));
      say(counts, `${f.whole(batch.ran)} of ${f.whole(batch.total)}`);
      say(failed, batch.failed ? ` · ${f.whole(batch.failed)} failed` : "");
      say(speed, f.rate(batch.tokens_per_second));
      say(left, batch.done ? "" : f.duration(batch.eta_s));
      const names = batch.models.join(", ");
      if (models.title !== names) models.replaceChildren(...batch.models.map((name) => h("span", { class: "model" }, f.model(name))));
      models.title = names;
      say(when, batch.times.created ? f.ago(batch.times.created, batch.now) : "");
      when.title = f.moment(batch.times.created);
    },
  };
}

export function batchList(root, { asked }) {
  const state = select([["all", "All"], ["live", "Not done"], ["ended", "Ended"]], { "aria-label": "Which batches" });
  const text = h("input", { type: "search", placeholder: "Name, id, file or model", "aria-label": "Search batches" });
  const rows = h("tbody");
  const none = h("p", { class: "empty", hidden: true });
  const more = button("Show more", () => {
    pages += 1;
    poller.now();
  }, { hidden: true });
  const table = h("table", { class: "cards" },
    h("caption", { class: "hide" }, "Batches"),
    h("thead", {}, h("tr", {}, ["Batch", "State", "Progress", "tok/s", "Left", "Model", "Created"].map((title, at) =>
      h("th", { scope: "col", class: [3, 4, 6].includes(at) ? "number" : "" }, title)))),
    rows);
  root.append(
    h("div", { class: "head" }, h("h2", {}, "Batches"),
      h("div", { class: "row" }, text, state, h("a", { class: "button primary", href: "#/new" }, "New batch"))),
    h("section", { class: "panel flush", "aria-label": "Batches" }, table, none, more));

  let pages = 1;
  // What was shown beyond the first page changes little: it is asked for less often.
  let [round, kept] = [0, []];
  const again = () => {
    [pages, round, kept] = [1, 0, []];
    poller.now();
  };
  state.addEventListener("change", again);
  text.addEventListener("input", again);

  async function look(signal) {
    const [found, seen] = [[], new Set()];
    let [next, now] = [null, 0];
    for (let page = 0; page < pages; page += 1) {
      const fresh = page === 0 || page >= kept.length || round % 5 === 0 || kept[page].after !== next;
      if (fresh) kept[page] = { after: next, ...(await get("batches", { state: state.value, text: text.value.trim(), after: next }, signal)) };
      now = Math.max(now, kept[page].now);
      kept[page].batches.filter((batch) => !seen.has(batch.id)).forEach((batch) => {
        seen.add(batch.id);
        found.push(batch);
      });
      next = kept[page].next;
      if (next === null) break;
    }
    round += 1;
    keyed(rows, found.map((batch) => ({ ...batch, now })), (batch) => batch.id, row);
    show(more, next !== null);
    show(table, found.length > 0);
    show(none, found.length === 0);
    say(none, text.value || state.value !== "all" ? "No batch fits." : "No batches yet: make one here, or with promptmill submit.");
  }

  const poller = poll(look, 2000, asked);
  return poller;
}
