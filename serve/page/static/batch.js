// One batch: how far it is, what is in flight, what can be done to it, and its records.

import { get, post, query } from "./api.js";
import { barKind, share, stateText } from "./batchlist.js";
import { button, confirmed, h, keyed, say, select, show, toast } from "./dom.js";
import * as f from "./format.js";
import { counts, histogram, meter } from "./plots.js";
import { poll } from "./poll.js";
import { recordsPart } from "./records.js";

function facts(batch) {
  const { times, now } = batch;
  const lines = (number, noun) => (number ? `${f.whole(number)} ${noun}` : null);
  return [
    ["Speed", batch.tokens_per_second && `${f.rate(batch.tokens_per_second)} tokens/s`],
    ["Lines", batch.lines_per_second && `${f.rate(batch.lines_per_second)} lines/s`],
    ["Time left", batch.eta_s !== null && !batch.done && f.duration(batch.eta_s)],
    [batch.done ? "Took" : "Running for", times.started && f.duration(batch.elapsed_s)],
    ["Generated", batch.completion_tokens && `${f.short(batch.completion_tokens)} tokens`],
    ["Scored", batch.scored_tokens && `${f.short(batch.scored_tokens)} tokens`],
    ["Prompts", batch.prompt_tokens && `${f.short(batch.prompt_tokens)} tokens` +
      (batch.cached_tokens ? `, ${f.percent(batch.cached_tokens / batch.prompt_tokens)} cached` : "")],
    ["Refused", lines(batch.rejected, "when submitted")],
    ["Not run", lines(batch.unrun, "lines")],
    ["Model", batch.models.join(", ")],
    ["File", batch.source],
    ["Created", f.moment(times.created)],
    ["Starts", times.starts && !times.started && f.moment(times.starts)],
    ["Ended", batch.ended_at && f.moment(batch.ended_at)],
    ["Expires", !batch.done && times.expires && `in ${f.duration(times.expires - now)}`],
    ["Kept until", batch.ended_at && batch.keep_s && f.moment(batch.ended_at + batch.keep_s)],
    ["Memory in Redis", batch.memory_bytes && f.bytes(batch.memory_bytes)],
    ["Schedule", batch.schedule],
    ["Key", batch.owner],
    ["Defaults", given(batch.defaults, ["model"])],
    ["Metadata", given(batch.metadata, [])],
  ].filter(([, value]) => value);
}

function given(values, without) {
  return Object.entries(values ?? {}).filter(([name]) => !without.includes(name))
    .map(([name, value]) => `${name} ${typeof value === "string" ? value : JSON.stringify(value)}`).join(", ").slice(0, 400);
}

function factRow(first) {
  const value = h("dd");
  return { element: h("div", {}, h("dt", {}, first[0]), value), update: ([, text]) => say(value, text) };
}

function flightRow() {
  const [line, stage, tokens, worker] = [h("th", { scope: "row" }), h("td", { "data-label": "Stage" }), h("td", { "data-label": "Tokens", class: "number" }), h("td", { "data-label": "Worker" })];
  const bar = meter("Prompt read");
  const word = h("span");
  stage.append(word, bar.element);
  return {
    element: h("tr", {}, line, stage, tokens, worker),
    update(item) {
      const reading = item.prefilled < item.prompt_tokens;
      say(line, item.id);
      line.title = `line ${item.index + 1}`;
      say(word, reading ? "reading the prompt" : item.completion_tokens ? "generating" : "ready");
      show(bar.element, reading);
      bar.set(item.prefilled / item.prompt_tokens);
      say(tokens, reading ? `${f.whole(item.prefilled)} of ${f.whole(item.prompt_tokens)}` : f.whole(item.completion_tokens));
      say(worker, item.worker);
    },
  };
}

function downloadMenu(id, known) {
  const format = select(known.formats.map((name) => [name, {
    native: "promptmill records", openai: "OpenAI batch output", chat: "chat training data", completions: "completion training data",
    parquet: "table: Parquet", csv: "table: CSV", flat: "table: JSON lines",
  }[name] ?? name]));
  for (const option of format.options) {
    const why = known.missing[option.value];
    option.disabled = why !== undefined;
    if (why) option.textContent += ` (${why})`;
  }
  const which = select([["all", "all lines"], ["succeeded", "lines that succeeded"], ["failed", "lines that failed"]]);
  const order = select([["input", "in the order of the input"], ["finished", "in the order of finishing"]]);
  const cut = h("input", { type: "checkbox" });
  const cutField = h("label", { class: "check" }, cut, "with texts that a limit cut");
  const keys = h("input", { type: "checkbox" });
  const keysField = h("label", { class: "check" }, keys, "with a column for each key of JSON texts");
  const go = h("a", { class: "button primary", download: "" }, "Download");
  const aim = () => {
    const [training, table] = [known.training.includes(format.value), known.tables.includes(format.value)];
    show(cutField, training);
    show(keysField, table);
    go.href = `api/batches/${id}/download${query({
      format: format.value, which: which.value, order: order.value, keep_cut: training && cut.checked ? "1" : "",
      json_columns: table && keys.checked ? "1" : "",
    })}`;
  };
  [format, which, order, cut, keys].forEach((control) => control.addEventListener("change", aim));
  go.addEventListener("click", async (event) => {
    // A format may not be able to hold these lines: better said here than by a broken download.
    event.preventDefault();
    try {
      await get(go.getAttribute("href").replace("api/", "").concat("&try=1"));
      const link = h("a", { href: go.href, download: "" });
      document.body.append(link);
      link.click();
      link.remove();
      menu.open = false;
    } catch (error) {
      toast(error.message, "bad");
    }
  });
  const label = (text, control) => h("label", { class: "field" }, h("span", { class: "label" }, text), control);
  const menu = h("details", { class: "menu" }, h("summary", { class: "button" }, "Download"),
    h("div", { class: "sheet" }, label("Format", format), label("Which lines", which), label("Order", order), cutField, keysField, go));
  const outside = (event) => {
    if (!menu.contains(event.target)) menu.open = false;
  };
  menu.addEventListener("toggle", () => document[menu.open ? "addEventListener" : "removeEventListener"]("pointerdown", outside));
  menu.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && menu.open) {
      menu.open = false;
      menu.querySelector("summary").focus();
    }
  });
  aim();
  return menu;
}

export function batchView(root, { id, session, asked }) {
  const [title, under, chip] = [h("h1", {}, "Batch"), h("p", { class: "dim id" }, id), h("span", { class: "chip" })];
  const why = h("p", { class: "notice", hidden: true });
  const bar = meter("Progress of the batch");
  bar.element.classList.add("tall");
  const progress = h("p", { class: "progress" });
  const description = h("dl", { class: "facts" });
  const problems = h("ol", { class: "problems" });
  const failedPart = h("section", { class: "panel", hidden: true }, h("h2", {}, "Why it failed"), problems);
  const flights = h("tbody");
  const flightPart = h("details", { class: "panel flush", open: true, hidden: true },
    h("summary", {}, h("h2", {}, "In flight"), h("span", { class: "dim" })),
    h("div", { class: "scroll" }, h("table", { class: "cards" }, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Line"), h("th", { scope: "col" }, "Stage"),
      h("th", { scope: "col", class: "number" }, "Tokens"), h("th", { scope: "col" }, "Worker"))), flights)));
  const plots = h("div", { class: "plots" });
  const plotPart = h("section", { class: "panel", hidden: true, "aria-label": "Lengths and speeds" }, h("h2", {}, "Lengths and speeds"), plots);

  async function act(what, body, done) {
    try {
      await post(`batches/${id}/${what}`, body);
      if (done) toast(done);
      poller.now();
    } catch (error) {
      toast(error.message, "bad");
      poller.now();
    }
  }
  const pause = button("Pause", () => act(latest.paused ? "resume" : "pause"));
  const cancel = button("Cancel", async () => {
    if (await confirmed("Cancel this batch? What is finished is kept; the other lines end as cancelled.", "Cancel the batch")) act("cancel", undefined, "The batch is cancelled.");
  }, { class: "danger" });
  const retry = button("Retry failed lines", () => act("retry", undefined, "The failed lines run again."));
  const remove = button("Remove", async () => {
    if (!(await confirmed("Remove this batch with its prompts and results? They cannot be had again.", "Remove the batch"))) return;
    try {
      await post(`batches/${id}/remove`);
      location.hash = "#/";
    } catch (error) {
      toast(error.message, "bad");
    }
  }, { class: "danger" });
  const priority = select([["high", "High"], ["normal", "Normal"], ["low", "Low"]], { "aria-label": "Priority" });
  priority.addEventListener("change", () => act("priority", { priority: priority.value }, `Priority: ${priority.value}.`));
  const priorityField = h("label", { class: "inline" }, "Priority ", priority);
  const actions = h("div", { class: "row actions", hidden: true }, priorityField, pause, retry, cancel, remove);
  get("models").then((known) => actions.prepend(downloadMenu(id, known))).catch(() => {});

  root.append(
    h("p", { class: "crumb" }, h("a", { href: "#/" }, "← All batches")),
    h("div", { class: "head" }, h("div", {}, h("div", { class: "row" }, title, chip), under), actions),
    why,
    h("section", { class: "panel", "aria-label": "Progress" }, bar.element, progress, description),
    failedPart, flightPart, plotPart);
  const records = recordsPart(root, id);

  let latest = { paused: false };
  function draw(batch) {
    latest = batch;
    show(actions, true);
    document.title = `${f.percent(share(batch))} ${batch.name ?? batch.id} · promptmill`;
    say(title, batch.name || batch.source || "Batch");
    say(chip, stateText(batch));
    chip.className = `chip ${batch.state}`;
    say(why, batch.waiting ?? batch.rest_waits ?? "");
    show(why, why.textContent !== "");
    bar.set(share(batch), barKind(batch));
    const failed = batch.failed ? `, ${f.whole(batch.failed)} failed` : "";
    say(progress, `${f.percent(share(batch))} · ${f.whole(batch.ran)} of ${f.plural(batch.total, "line")}${failed}`);
    keyed(description, facts(batch), ([name]) => name, factRow);
    say(pause, batch.paused ? "Resume" : "Pause");
    const checking = batch.status === "validating";
    show(pause, !batch.done && !checking);
    show(cancel, !batch.done);
    show(retry, batch.done && batch.failed + batch.unrun > batch.rejected);
    show(remove, batch.done);
    show(priorityField, !batch.done && !checking);
    if (document.activeElement !== priority) priority.value = batch.priority;
    keyed(flights, batch.in_flight, (item) => item.index, flightRow);
    show(flightPart, batch.in_flight.length > 0);
    say(flightPart.querySelector("summary span"), f.plural(batch.in_flight.length, "line"));
    show(failedPart, batch.errors.length > 0);
    keyed(problems, batch.errors.map((error, at) => ({ ...error, at })), (error) => error.at, (error) => ({
      element: h("li", {}, h("b", {}, error.line ? `line ${error.line}` : "the file"), ` ${error.message} `, h("code", {}, error.code)),
      update() {},
    }));
  }

  function drawPlots(spread) {
    const made = [];
    const add = (name, key, format, unit) => spread[key] && made.push(histogram(name, spread[key], format, unit));
    add("Length", "completion_tokens", f.short, " tokens");
    add("Speed of a line", "tokens_per_second", f.rate, " tok/s");
    add("Prompt", "prompt_tokens", f.short, " tokens");
    add("First token", "time_to_first_token_s", (value) => value.toFixed(value < 10 ? 2 : 0), " s");
    const [stops, errors] = [Object.entries(spread.stops), Object.entries(spread.errors)];
    if (stops.length) made.push(counts("Ended by", stops, "done", (name) => records.filter({ stop: name })));
    if (errors.length) made.push(counts("Failed by", errors, "bad", (name) => records.filter({ error: name })));
    plots.replaceChildren(...made);
    show(plotPart, made.length > 0);
    say(plotPart.querySelector("h2"), spread.records < spread.of
      ? `Lengths and speeds of ${f.whole(spread.records)} of ${f.whole(spread.of)} records` : "Lengths and speeds");
    records.know(spread);
  }

  let [drawnAt, drawnOf] = [0, -1];
  async function look(signal) {
    const batch = await get(`batches/${id}`, {}, signal);
    draw(batch);
    records.grown(batch);
    const finished = batch.completed + batch.failed;
    if (finished !== drawnOf && (batch.done || Date.now() - drawnAt > 5000)) {
      if (batch.status !== "validating") drawPlots(await get(`batches/${id}/spread`, {}, signal));
      [drawnAt, drawnOf] = [Date.now(), finished];
    }
  }
  const poller = poll(look, 1500, (error) => {
    if (error.status !== 404) return asked(error);
    poller.stop();
    root.replaceChildren(h("p", { class: "empty" }, "There is no such batch, or it was removed. ", h("a", { href: "#/" }, "All batches")));
    return false;
  });
  return {
    stop() {
      poller.stop();
      records.stop();
    },
  };
}
