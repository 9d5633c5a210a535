// A new batch: its lines, what is said of it, a check, and the order.

import { follow, get, post, upload } from "./api.js";
import { button, field, h, say, select, show } from "./dom.js";
import * as f from "./format.js";
import { meter } from "./plots.js";

const EXAMPLE = '{"id": "a", "messages": [{"role": "user", "content": "What is the capital of France?"}]}\n{"id": "b", "prompt": "Once upon a time"}';

export function draftView(root, { asked }) {
  const input = h("input", { type: "file", accept: ".jsonl,.json,.ndjson,.txt,.gz,.zst", class: "hide", id: "file", tabindex: -1 });
  const chosen = h("p", { class: "dim" }, "JSON lines, also .gz or .zst");
  const drop = h("div", { class: "drop" },
    h("p", {}, h("label", { for: "file", class: "button", tabindex: 0, role: "button" }, "Choose a file"), " or drop it here"), chosen, input);
  const pasted = h("textarea", { rows: 7, spellcheck: "false", placeholder: EXAMPLE });
  const model = h("select");
  const name = h("input", { type: "text", maxlength: 128, placeholder: "as the file" });
  const priority = select([["normal", "Normal"], ["high", "High"], ["low", "Low"]]);
  const until = select([["7d", "7 days"], ["1h", "1 hour"], ["24h", "24 hours"], ["31d", "31 days"]]);
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
  const submit = button("Submit", () => order(), { class: "primary", hidden: true });
  const form = h("form", {},
    h("section", { class: "panel" }, h("h2", {}, "Lines"), drop,
      field("Or paste lines, each a JSON object", pasted)),
    h("section", { class: "panel" }, h("h2", {}, "Batch"),
      h("div", { class: "fields" },
        field("Model of lines that name none", model), field("Name", name), field("Priority", priority), field("Give up after", until)),
      h("details", {}, h("summary", {}, "For lines that do not say it themselves"),
        h("div", { class: "fields" }, field("Most new tokens", tokens), field("Temperature", temperature)),
        field("System message", system),
        h("label", { class: "check" }, override, "Use this model for lines that name another, too"))),
    // What changes its height stands below what is pressed: a press must not miss because something above it went.
    h("div", { class: "row" }, check, working),
    problem);
  root.append(h("h1", {}, "New batch"), form, found,
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
    if (picked) pasted.value = "";
    stale();
  }
  function stale() {
    show(found, false);
    show(submit, false);
    show(skipField, false);
    say(problem, "");
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
    stale();
  });
  [model, tokens, temperature, system, override].forEach((control) => control.addEventListener("change", stale));

  function said() {
    const defaults = {};
    if (tokens.value) defaults.max_tokens = Number(tokens.value);
    if (temperature.value) defaults.temperature = Number(temperature.value);
    if (system.value.trim()) defaults.system_prompt = system.value;
    return {
      model: model.value, override_model: override.checked, defaults, name: name.value.trim(), priority: priority.value,
      window: until.value, on_bad_line: skip.checked ? "skip" : "reject",
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
    stale();
    stopper.abort();
    stopper = new AbortController();
    check.disabled = true;
    show(working, true);
    bar.set(0);
    try {
      let result = null;
      const id = await send();
      say(doing, "Checking");
      await follow(`files/${id}/check`, said(), (part) => {
        if (part.lines) say(doing, `Checking: ${f.plural(part.lines, "line")}`);
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
    skip.checked = false;
    aim(result.bad_lines, good);
    skip.onchange = () => aim(result.bad_lines, good);
    found.focus({ preventScroll: true });
    found.scrollIntoView({ block: "nearest" });
  }

  function aim(bad, good) {
    submit.disabled = bad > 0 && !skip.checked;
    say(submit, `Submit ${f.plural(good, "line")}`);
  }

  async function order() {
    submit.disabled = true;
    try {
      const made = await post(`files/${sent}/submit`, said());
      location.hash = `#/batch/${made.id}`;
    } catch (error) {
      say(problem, error.message);
      submit.disabled = false;
      if (error.status === 401) asked(error);
    }
  }

  return { stop: () => stopper.abort() };
}
