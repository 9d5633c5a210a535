// The records of a batch: a few at a time, searched, and filtered by how they ended.

import { get } from "./api.js";
import { button, h, say, select, show, toast } from "./dom.js";
import * as f from "./format.js";

const MOST_SHOWN = 1000;
const WAIT_MS = 250;

function ended(record) {
  if (record.error) return h("span", { class: "chip failed", title: record.error.message }, record.error.code);
  return record.stops.map((stop) => h("span", { class: `chip ${["max_tokens", "context"].includes(stop) ? "waiting" : "completed"}` }, stop));
}

function recordRow(id, record) {
  const text = record.error ? record.error.message : record.text || (record.thought ? "(it thought, and gave no answer)" : "(no text)");
  const open = button(record.id, () => showRecord(id, record), { class: "link" });
  const more = record.choices > 1 ? h("small", { class: "dim" }, ` ${record.choices} choices`) : null;
  return h("tr", {},
    h("th", { scope: "row", title: `line ${record.line}` }, open),
    h("td", { class: "ended" }, ended(record), more),
    h("td", { class: `text wide ${record.error ? "bad" : ""}` }, h("div", {}, text + (record.cut ? " …" : ""))),
    h("td", { "data-label": "Tokens", class: "number" }, record.error ? "" : f.whole(record.completion_tokens)),
    h("td", { "data-label": "tok/s", class: "number" }, record.error ? "" : f.rate(record.tokens_per_second)));
}

function block(title, text, cls = "") {
  return [h("h3", {}, title), h("pre", { class: cls, tabindex: 0 }, text)];
}

const content = (message) => (typeof message.content === "string" ? message.content : JSON.stringify(message.content ?? message, null, 2));

async function showRecord(id, listed) {
  let found;
  try {
    found = await get(`batches/${id}/records/${listed.place}`);
  } catch (error) {
    toast(error.message, "bad");
    return;
  }
  const { record, prompt } = found;
  const parts = [];
  if (typeof prompt === "string") parts.push(block("Prompt", prompt));
  else if (prompt) parts.push(prompt.map((message) => block(message.role, content(message))));
  else parts.push(h("p", { class: "dim" }, "The prompt is no longer kept."));
  if (record.error) parts.push(block("Error", record.error.message, "bad"));
  const choices = record.choices ?? (record.error ? [] : [record]);
  choices.forEach((choice, at) => {
    const which = choices.length > 1 ? ` ${at + 1}` : "";
    if (choice.reasoning) parts.push(block(`Thought${which}`, choice.reasoning, "dim"));
    parts.push(block(`Answer${which}: ${choice.stop_reason}`, choice.text));
    if (choice.tool_calls) parts.push(block(`Tool calls${which}`, JSON.stringify(choice.tool_calls, null, 2)));
  });
  const whole = JSON.stringify(record, null, 2);
  const dialog = h("dialog", { class: "record", "aria-label": `Record ${listed.id}` },
    h("div", { class: "head" }, h("h2", {}, listed.id),
      h("div", { class: "row" },
        button("Copy JSON", () => navigator.clipboard.writeText(whole).then(() => toast("Copied."), () => toast("The browser does not let this page copy.", "bad"))),
        button("Close", () => dialog.close()))),
    parts.flat(2),
    found.without_logprobs ? h("p", { class: "dim" }, "Its log-probabilities are left out here: they are long.") : null,
    h("details", {}, h("summary", {}, "The whole record"), h("pre", { tabindex: 0 }, whole)));
  dialog.addEventListener("close", () => dialog.remove());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  document.body.append(dialog);
  dialog.showModal();
}

export function recordsPart(root, id) {
  const text = h("input", { type: "search", placeholder: "Search ids and texts", "aria-label": "Search records" });
  const how = h("select", { "aria-label": "How they ended" });
  const order = select([["newest", "Newest first"], ["oldest", "Oldest first"]], { "aria-label": "Order" });
  const rows = h("tbody");
  const table = h("table", { class: "cards records", hidden: true }, h("caption", { class: "hide" }, "Records"),
    h("thead", {}, h("tr", {}, ["Line", "Ended by", "Text", "Tokens", "tok/s"].map((title, at) =>
      h("th", { scope: "col", class: at > 2 ? "number" : "" }, title)))), rows);
  const said = h("p", { class: "empty", role: "status" });
  const fresh = button("", () => restart(), { hidden: true });
  const more = button("Show more", () => load(), { hidden: true });
  root.append(
    h("div", { class: "head" }, h("h2", {}, "Records"), h("div", { class: "row" }, fresh, text, how, order)),
    h("section", { class: "panel flush", "aria-label": "Records" }, table, said, more));

  let known = { stop: [], error: [] };
  function options() {
    const chosen = how.value;
    how.replaceChildren(
      h("option", { value: "" }, "All records"), h("option", { value: "stop *" }, "Succeeded"), h("option", { value: "error *" }, "Failed"),
      ...known.stop.map((name) => h("option", { value: `stop ${name}` }, `Ended by ${name}`)),
      ...known.error.map((name) => h("option", { value: `error ${name}` }, `Failed: ${name}`)));
    how.value = chosen;
    if (how.selectedIndex < 0) how.value = "";
  }
  options();

  let stopper = new AbortController();
  let [next, shown, finished, looked] = [null, 0, 0, 0];
  let timer = null;

  function restart() {
    stopper.abort();
    stopper = new AbortController();
    [next, shown, looked] = [null, 0, 0];
    load(true);
  }

  // Asks until there is something to show: a request looks at some thousands of records at most.
  async function load(first = false) {
    const { signal } = stopper;
    const [kind, name] = how.value.split(/ (.*)/);
    show(more, false);
    let found = 0;
    try {
      do {
        const part = await get(`batches/${id}/records`, { text: text.value.trim(), [kind || "all"]: name, order: order.value, at: next }, signal);
        if (first) rows.replaceChildren();
        first = false;
        rows.append(...part.records.map((record) => recordRow(id, record)));
        [next, found, looked] = [part.next, found + part.records.length, looked + part.looked_at];
        shown += part.records.length;
        if (finished !== part.finished) finished = Math.max(finished, part.finished);
        asOf = part.finished;
        show(table, shown > 0);
        const where = text.value.trim() || how.value ? `Looked at ${f.whole(looked)} of ${f.whole(finished)} records.` : `${f.whole(shown)} of ${f.plural(finished, "record")}.`;
        say(said, next === null ? (shown ? "" : looked ? "No record fits." : "No records yet.") : where);
      } while (found === 0 && next !== null);
      show(more, next !== null && shown < MOST_SHOWN);
      if (next !== null && shown >= MOST_SHOWN) say(said, `These are the first ${f.whole(shown)}: narrow the search, or download the batch.`);
      show(said, said.textContent !== "");
      show(fresh, false);
    } catch (error) {
      if (signal.aborted) return;
      say(said, error.message);
      show(said, true);
      show(more, true);
    }
  }
  let asOf = 0;

  const soon = () => {
    clearTimeout(timer);
    timer = setTimeout(restart, WAIT_MS);
  };
  text.addEventListener("input", soon);
  how.addEventListener("change", restart);
  order.addEventListener("change", restart);

  let begun = false;
  return {
    // The batch has more records than are shown: the list comes by itself while nobody reads in it.
    grown(batch) {
      const now = batch.completed + batch.failed;
      if (!begun) {
        begun = true;
        finished = now;
        if (batch.status !== "validating") restart();
        else begun = false;
        return;
      }
      if (now <= asOf) return;
      finished = now;
      if (shown < 8 && !text.value && !how.value) return restart();
      say(fresh, `Show ${f.plural(now - asOf, "new record")}`);
      show(fresh, true);
    },
    know(spread) {
      const names = { stop: Object.keys(spread.stops), error: Object.keys(spread.errors) };
      if (JSON.stringify(names) === JSON.stringify(known)) return;
      known = names;
      if (document.activeElement !== how) options();
    },
    filter({ stop, error }) {
      options();
      how.value = stop ? `stop ${stop}` : `error ${error}`;
      restart();
      how.focus();
    },
    stop() {
      stopper.abort();
      clearTimeout(timer);
    },
  };
}
