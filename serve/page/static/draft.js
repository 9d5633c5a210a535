// A new batch, or a new schedule of batches: its lines, what is said of it, a check, and the order.

import { follow, get, post, upload } from "./api.js";
import { button, field, h, say, select, show } from "./dom.js";
import * as f from "./format.js";
import { meter } from "./plots.js";
import { timing } from "./timing.js";

const EXAMPLE = '{"id": "a", "messages": [{"role": "user", "content": "What is the capital of France?"}]}\n{"id": "b", "prompt": "Once upon a time"}';

export const scheduleView = (root, more) => draftView(root, more, timing(more.asked));

// An object that was typed in as JSON; `what` names its field.
function objectIn(control, what) {
  if (!control.value.trim()) return {};
  let value;
  try {
    value = JSON.parse(control.value);
  } catch (error) {
    throw new Error(`${what}: this is no JSON: ${error.message}`);
  }
  if (value === null || typeof value !== "object" || Array.isArray(value)) throw new Error(`${what}: a JSON object is wanted, such as {"top_p": 0.9}`);
  return value;
}

export function draftView(root, { asked }, plan = null) {
  const input = h("input", { type: "file", accept: ".jsonl,.json,.ndjson,.txt,.gz,.zst", class: "hide", id: "file", tabindex: -1 });
  const chosen = h("p", { class: "dim" }, "JSON lines, also .gz or .zst");
  const drop = h("div", { class: "drop" },
    h("p", {}, h("label", { for: "file", class: "button", tabindex: 0, role: "button" }, "Choose a file"), " or drop it here"), chosen, input);
  const pasted = h("textarea", { rows: 7, spellcheck: "false", placeholder: EXAMPLE });
  const model = h("select");
  const name = h("input", { type: "text", maxlength: 128, placeholder: "as the file" });
  const priority = select([["normal", "Normal"], ["high", "High"], ["low", "Low"]]);
  const until = select([plan ? ["", "never"] : ["7d", "7 days"], ["1h", "1 hour"], ["24h", "24 hours"], ...(plan ? [["7d", "7 days"]] : []), ["31d", "31 days"]]);
  const keep = select([["", "14 days"], ["1d", "1 day"], ["90d", "90 days"], ["365d", "a year"], ["forever", "until it is removed"]]);
  const webhook = h("input", { type: "url", placeholder: "none" });
  const metadata = h("textarea", { rows: 2, spellcheck: "false", placeholder: '{"project": "a"}' });
  const others = h("textarea", { rows: 2, spellcheck: "false", placeholder: '{"top_p": 0.9, "seed": 7}' });
  const path = h("input", { type: "text", placeholder: "/data/questions.jsonl", spellcheck: "false", autocomplete: "off" });
  const tokens = h("input", { type: "number", min: 1, step: 1, placeholder: "512" });
  const temperature = h("input", { type: "number", min: 0, step: "any", placeholder: "0" });
  const system = h("textarea", { rows: 2, placeholder: "none" });
  const override = h("input", { type: "checkbox" });
  const skip = h("input", { type: "checkbox" });
  const bar = meter("Progress");
  const doing = h("p", { class: "dim", role: "status" });
  const working = h("div", { hidden: true }, bar.element, doing);
  const problem = h("p", { class: "problem", role: "alert" });
  const found = h("section", { class: "panel", hidden: true, tabindex: -1, "aria-label": "What the check found" });
  const check = h("button", { type: "submit", class: "primary" }, "Check");
  const noun = plan ? "schedule" : "batch";
  const submit = button("Submit", () => order(), { class: "primary", hidden: true });
  const form = h("form", {}, plan?.element,
    h("section", { class: "panel" }, h("h2", {}, "Lines"), drop,
      field("Or paste lines, each a JSON object", pasted),
      plan && field("Or the path of a file on the scheduler's host, read at each run", path, ["in a folder that ", h("code", {}, "promptmill scheduler --read-from"), " names"])),
    h("section", { class: "panel" }, h("h2", {}, plan ? "Its batches" : "Batch"),
      h("div", { class: "fields" },
        field("Model of lines that name none", model), field(plan ? "Name of the batches" : "Name", name), field("Priority", priority), field("Give up after", until)),
      h("details", {}, h("summary", {}, "For lines that do not say it themselves"),
        h("div", { class: "fields" }, field("Most new tokens", tokens), field("Temperature", temperature)),
        field("System message", system),
        field("Other values, a JSON object", others, "by the names that lines have for them"),
        h("label", { class: "check" }, override, "Use this model for lines that name another, too")),
      h("details", {}, h("summary", {}, plan ? "More about its batches" : "More about the batch"),
        h("div", { class: "fields" }, field("Keep results after its end for", keep), field("Webhook for its end", webhook)),
        field("Metadata, a JSON object", metadata))),
    // What changes its height stands below what is pressed: a press must not miss because something above it went.
    h("div", { class: "row" }, check, working),
    problem);
  if (plan) name.placeholder = "as the schedule";
  root.append(h("h1", {}, `New ${noun}`), form, found,
    h("div", { class: "row" }, submit, h("label", { class: "check", hidden: true }, skip, "Leave bad lines out: they fail, the others run")));
  const skipField = root.lastElementChild.lastElementChild;

  let [file, sent, stopper] = [null, null, new AbortController()];

  get("models").then(({ models }) => {
    model.replaceChildren(...models.map((served) => h("option", { value: served }, served)), h("option", { value: "" }, models.length ? "none: each line names its own" : "no worker serves any"));
  }).catch((error) => asked(error));

  function choose(picked) {
    file = picked;
    sent = null;
    say(chosen, picked ? `${picked.name}, ${f.bytes(picked.size)}` : "JSON lines, also .gz or .zst");
    drop.classList.toggle("full", picked !== null);
    if (picked) pasted.value = path.value = "";
    stale();
  }
  function stale() {
    show(found, false);
    show(submit, false);
    show(skipField, false);
    drawn = null;
    say(problem, "");
    show(check, true);
  }
  input.addEventListener("change", () => choose(input.files[0] ?? null));
  drop.addEventListener("keydown", (event) => {
    if (["Enter", " "].includes(event.key) && event.target !== input) {
      event.preventDefault();
      input.click();
    }
  });
  drop.addEventListener("dragover", (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    if (event.dataTransfer.files.length) choose(event.dataTransfer.files[0]);
  });
  pasted.addEventListener("input", () => {
    if (file) {
      input.value = "";
      choose(null);
    }
    sent = null;
    path.value = "";
    stale();
  });
  path.addEventListener("input", () => {
    input.value = "";
    pasted.value = "";
    if (file) {
      const typed = path.value;
      choose(null);
      path.value = typed;
    }
    sent = null;
    stale();
    aimPath();
  });
  // A file that is read at each run cannot be checked now.
  function aimPath() {
    const typed = path.value.trim() !== "";
    show(check, !typed);
    show(submit, typed);
    submit.disabled = false;
    if (typed) say(submit, "Add the schedule");
  }
  [model, tokens, temperature, system, override, others].forEach((control) => control.addEventListener("change", () => {
    stale();
    if (path.value.trim()) aimPath();
  }));

  function said() {
    const defaults = objectIn(others, "Other values");
    if (tokens.value) defaults.max_tokens = Number(tokens.value);
    if (temperature.value) defaults.temperature = Number(temperature.value);
    if (system.value.trim()) defaults.system_prompt = system.value;
    return {
      model: model.value, override_model: override.checked, defaults, name: name.value.trim(), priority: priority.value,
      window: until.value, on_bad_line: skip.checked ? "skip" : "reject",
      keep: keep.value, webhook: webhook.value.trim(), metadata: objectIn(metadata, "Metadata"),
    };
  }

  async function send() {
    if (sent) return sent;
    if (!file && !pasted.value.trim()) throw new Error("Choose a file, or paste some lines.");
    say(doing, "Uploading");
    const data = file ?? new Blob([pasted.value], { type: "application/x-ndjson" });
    sent = (await upload(data, file?.name ?? "pasted.jsonl", (part) => {
      bar.set(part);
      say(doing, part < 1 ? `Uploading: ${f.percent(part)}` : "Checking");
    })).id;
    return sent;
  }

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (path.value.trim()) return order();
    stale();
    stopper.abort();
    stopper = new AbortController();
    check.disabled = true;
    show(working, true);
    bar.set(0);
    try {
      let result = null;
      const asking = said();
      const id = await send();
      say(doing, "Checking");
      await follow(`files/${id}/check`, asking, (part) => {
        if (part.lines) say(doing, `Checking: ${f.plural(part.lines, "line")}`);
        if (part.checked) {
          say(doing, "Rendering prompts");
          draw(part.checked);
        }
        result = part.result ? part.result : part.refused ? { refused: part.refused } : result;
      }, stopper.signal);
      if (result?.refused || !result) throw new Error(result?.refused ?? "The check ended early; try again.");
      draw(result);
    } catch (error) {
      if (error.status === 401) asked(error);
      else if (error.name !== "AbortError") say(problem, error.message);
    }
    check.disabled = false;
    show(working, false);
  });

  let drawn = null;
  function draw(result) {
    const bad = result.bad_lines + (result.rendered?.bad_lines ?? 0);
    const problems = [...result.problems, ...(result.rendered?.problems ?? [])].sort((a, b) => a.line - b.line);
    const models = Object.entries(result.models);
    const rendered = result.rendered;
    found.replaceChildren(
      h("h2", {}, result.lines === 0 ? "There are no lines in it" : bad ? `${f.plural(bad, "bad line")} of ${f.whole(result.lines)}` : `All ${f.plural(result.lines, "line")} are good`),
      models.length ? h("p", { class: "dim" }, models.map(([served, count]) => `${f.plural(count, "line")} for ${served}`).join(", ")) : "",
      problems.length ? h("div", { class: "scroll" }, h("ol", { class: "problems" }, problems.map((item) =>
        h("li", {}, h("b", {}, `line ${item.line}`), item.field ? h("code", {}, item.field) : "", ` ${item.message}`)))) : "",
      bad > problems.length ? h("p", { class: "dim" }, `The first ${f.whole(problems.length)} problems are shown.`) : "",
      rendered ? h("h3", {}, "As the model will see them") : result.why_not_rendered ? h("p", { class: "dim" }, `Prompts are not shown as the model sees them: ${result.why_not_rendered}.`) : "",
      rendered ? h("p", { class: "dim" }, `${f.whole(rendered.prompt_tokens)} tokens in ${f.plural(rendered.lines, "prompt")}, the longest ${f.whole(rendered.longest)}; the model takes ${f.whole(rendered.context_length)}.`) : "",
      ...(rendered?.prompts ?? []).map((prompt) => h("figure", { class: "prompt" }, h("figcaption", {}, `line ${prompt.line}`), h("pre", { tabindex: 0 }, prompt.text))));
    const good = result.lines - result.bad_lines;
    show(found, true);
    show(submit, good > 0);
    show(skipField, result.bad_lines > 0 && good > 0);
    // What was found in the lines shows first, their prompts later: what was chosen meanwhile stays.
    const later = drawn === sent;
    drawn = sent;
    if (!later) skip.checked = false;
    aim(result.bad_lines, good);
    skip.onchange = () => aim(result.bad_lines, good);
    if (later) return;
    found.focus({ preventScroll: true });
    found.scrollIntoView({ block: "nearest" });
  }

  function aim(bad, good) {
    submit.disabled = bad > 0 && !skip.checked;
    say(submit, plan ? `Add the schedule of ${f.plural(good, "line")}` : `Submit ${f.plural(good, "line")}`);
  }

  async function order() {
    if (!form.reportValidity()) return;
    submit.disabled = true;
    say(problem, "");
    try {
      if (plan) {
        const when = { ...plan.said(), path: path.value.trim(), expires: until.value !== "" };
        await post("schedules", { ...said(), schedule: when, file_id: sent });
        location.hash = "#/schedules";
        return;
      }
      const made = await post(`files/${sent}/submit`, said());
      location.hash = `#/batch/${made.id}`;
    } catch (error) {
      say(problem, error.message);
      problem.scrollIntoView({ block: "nearest" });
      submit.disabled = false;
      if (error.status === 401) asked(error);
    }
  }

  return {
    stop() {
      stopper.abort();
      plan?.stop();
    },
  };
}
