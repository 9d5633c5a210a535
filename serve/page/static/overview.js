// The pool and all batches.

import { get, post } from "./api.js";
import { batchList } from "./batchlist.js";
import { button, confirmed, h, keyed, say, show, toast } from "./dom.js";
import * as f from "./format.js";
import { area, meter, spark } from "./plots.js";
import { poll } from "./poll.js";

function tile(label) {
  const value = h("b", {}, "–");
  return { element: h("div", { class: "tile" }, value, h("span", {}, label)), value };
}

function workerRow(first, pausing) {
  const cell = (label, cls = "") => h("td", { "data-label": label, class: cls });
  const [name, state, models] = [h("th", { scope: "row" }), cell("State", "state"), cell("Models", "models")];
  const [memory, speed, minute] = [cell("Memory"), cell("tok/s", "number"), cell("Last minute")];
  const [full, lines, uptime] = [cell("Full", "number"), cell("Lines", "number"), cell("Up", "number")];
  const bar = meter("Memory in use");
  const used = h("span", { class: "dim" });
  memory.append(bar.element, used);
  let [known, label] = [first, ""];
  const act = button("", () => pausing(label === "Pause" ? "pause" : "resume", known.pausedAs ?? known.name, known), { class: "small" });
  const doing = pausing && h("td", { class: "act" }, act);
  return {
    element: h("tr", {}, name, state, models, memory, speed, minute, full, lines, uptime, doing),
    update(worker) {
      known = worker;
      label = worker.pausedAs ? "Resume" : "Pause";
      say(act, label);
      act.setAttribute("aria-label", `${label} ${worker.pausedAs ?? worker.name}`);
      show(act, worker.state !== "silent");
      say(name, worker.name);
      name.title = worker.hostname ?? "";
      const silent = worker.state === "silent";
      const chip = silent ? `silent for ${f.duration(worker.silent_s)}` : worker.doing;
      state.replaceChildren(h("span", { class: `chip ${worker.state}`, title: chip }, chip));
      models.replaceChildren(...modelsOf(worker));
      show(bar.element, Boolean(worker.memory_limit_bytes));
      bar.set(worker.memory_bytes / worker.memory_limit_bytes, worker.memory_bytes > worker.memory_limit_bytes * 0.95 ? "bad" : "");
      bar.element.title = worker.memory_limit_bytes ? `of ${f.bytes(worker.memory_limit_bytes)}` : "";
      say(used, silent ? "" : f.bytes(worker.memory_bytes));
      say(speed, silent ? "" : f.rate(worker.tokens_per_second));
      minute.replaceChildren(worker.speeds?.length > 1 ? spark(worker.speeds, "Tokens per second of the last minute") : "");
      say(full, silent ? "" : f.percent(worker.occupancy));
      say(lines, silent ? "" : f.whole(worker.lines_in_flight));
      say(uptime, silent ? "" : f.duration(worker.uptime_s));
    },
  };
}

function modelsOf(worker) {
  const loaded = new Map((worker.loaded ?? []).map((item) => [item.model, item.bytes]));
  const failing = new Map((worker.failing ?? []).map((item) => [item.model, item.reason]));
  const names = [...new Set([...loaded.keys(), ...(worker.models ?? [])])];
  return names.map((name) => {
    const size = loaded.get(name);
    const why = failing.get(name);
    const title = why ? `${name}: cannot be loaded: ${why}` : size ? `${name}, in memory: ${f.bytes(size)}` : `${name}, not in memory`;
    return h("span", { class: `model ${why ? "bad" : size ? "" : "dim"}`, title }, f.model(name));
  });
}

// The name by which a worker is paused: its own, or that of all workers so named.
const pausedAs = (name, names) => [name, name.replace(/\.[^.]*$/, "")].find((known) => names.includes(known));

export function overview(root, { session, asked }) {
  const tiles = { speed: tile("tokens/s"), scored: tile("scored tokens/s"), lines: tile("lines/s"), flight: tile("lines in flight"), full: tile("full"), workers: tile("workers") };
  const paused = h("p", { class: "notice", hidden: true }, "The pool is paused: lines that were begun are finished, nothing new is taken.");
  const speedPlot = h("div", { class: "plotbox" });
  const fullPlot = h("div", { class: "plotbox" });
  const rows = h("tbody");
  const table = h("table", { class: "cards workers" },
    h("caption", { class: "hide" }, "Workers"),
    h("thead", {}, h("tr", {}, ["Worker", "State", "Models", "Memory", "tok/s", "Last minute", "Full", "Lines", "Up"].map((title, at) =>
      h("th", { scope: "col", class: [4, 6, 7, 8].includes(at) ? "number" : "" }, title)),
      session.admin && h("th", { scope: "col" }, h("span", { class: "hide" }, "Pause")))),
    rows);
  const nobody = h("p", { class: "empty", hidden: true }, "No workers. ", h("code", {}, "promptmill worker --model MODEL"), " starts one.");
  let isPaused = false;
  const pause = button("Pause the pool", async () => {
    if (!isPaused && !(await confirmed("Pause the whole pool? Lines that were begun are finished; nothing new is taken until it is resumed.", "Pause the pool"))) return;
    try {
      await post(`pool/${isPaused ? "resume" : "pause"}`);
      poller.now();
    } catch (error) {
      toast(error.message, "bad");
    }
  });

  const rest = h("p", { class: "empty", hidden: true });
  async function pausing(what, name, worker) {
    const all = name !== worker?.name && worker ? `all workers named ${name}` : name;
    if (what === "pause" && !(await confirmed(`Pause ${all}? Lines that were begun are finished; it takes nothing new until it is resumed.`, "Pause the worker"))) return;
    try {
      await post(`workers/${what}`, { name });
      toast(what === "pause" ? `${all}: paused.` : `${all}: resumed.`);
      poller.now();
    } catch (error) {
      toast(error.message, "bad");
    }
  }
  // Names that are paused while no worker has them: it holds for one that comes.
  function drawRest(pool) {
    const shown = new Set(pool.workers.map((worker) => worker.pausedAs));
    const names = pool.paused_names.filter((name) => !shown.has(name));
    const text = names.join(" ");
    if (rest.dataset.names === text) return;
    rest.dataset.names = text;
    show(rest, names.length > 0);
    rest.replaceChildren("Paused, for when they come: ", ...names.flatMap((name) => [h("span", { class: "chip paused" }, name),
      button("Resume", () => pausing("resume", name), { class: "plain", "aria-label": `Resume ${name}` }), " "]));
  }

  root.append(
    h("div", { class: "head" }, h("h1", {}, "Pool"), session.admin && pause),
    paused,
    h("div", { class: "tiles" }, Object.values(tiles).map((made) => made.element)),
    h("div", { class: "plots two" },
      h("figure", { class: "panel" }, h("figcaption", {}, h("b", {}, "Tokens per second"), h("span", {}, "last 15 minutes")), speedPlot),
      h("figure", { class: "panel" }, h("figcaption", {}, h("b", {}, "How full the workers are"), h("span", {}, "last 15 minutes")), fullPlot)),
    h("section", { class: "panel flush", "aria-label": "Workers" }, h("div", { class: "wide-table" }, table), nobody, rest));

  async function look(signal) {
    const pool = await get("pool", {}, signal);
    isPaused = pool.paused;
    show(paused, isPaused);
    say(pause, isPaused ? "Resume the pool" : "Pause the pool");
    say(tiles.speed.value, f.rate(pool.tokens_per_second));
    show(tiles.scored.element, pool.scored_per_second > 0);
    say(tiles.scored.value, f.rate(pool.scored_per_second));
    say(tiles.lines.value, f.rate(pool.lines_per_second));
    say(tiles.flight.value, f.whole(pool.lines_in_flight));
    say(tiles.full.value, f.percent(pool.occupancy));
    say(tiles.workers.value, f.whole(pool.counted));
    const span = { from: pool.now - pool.minutes * 60, to: pool.now };
    const speeds = pool.history.map(([at, speed]) => [at, speed]);
    const fulls = pool.history.map(([at, , full]) => [at, full]);
    speedPlot.replaceChildren(area(speeds, {
      ...span, format: f.short, label: `Tokens per second over the last ${pool.minutes} minutes, now ${f.rate(pool.tokens_per_second)}`,
    }));
    fullPlot.replaceChildren(area(fulls, {
      ...span, most: 1, format: f.percent, label: `How full workers were over the last ${pool.minutes} minutes, now ${f.percent(pool.occupancy)}`,
    }));
    pool.workers.forEach((worker) => {
      worker.pausedAs = pausedAs(worker.name, pool.paused_names);
    });
    keyed(rows, pool.workers, (worker) => worker.name, (worker) => workerRow(worker, session.admin && pausing));
    drawRest(pool);
    show(nobody, pool.workers.length === 0);
    show(table, pool.workers.length > 0);
  }

  const poller = poll(look, 2000, asked);
  const list = batchList(root, { asked });
  return {
    stop() {
      poller.stop();
      list.stop();
    },
  };
}
