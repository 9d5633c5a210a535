// Batches by cron: when each runs next, and what became of its last runs.

import { get, post } from "./api.js";
import { button, confirmed, h, keyed, say, show, toast } from "./dom.js";
import * as f from "./format.js";
import { poll } from "./poll.js";

const STATES = { submitted: "completed", failed: "failed" };

function runs(schedule) {
  return schedule.runs.map((run) => h("li", {},
    h("span", { class: `chip ${STATES[run.state] ?? "waiting"}` }, run.state), ` ${f.moment(run.due)} `,
    run.batch_id ? h("a", { href: `#/batch/${run.batch_id}` }, run.batch_id) : h("span", { class: "dim" }, run.why ?? "")));
}

function card(first, after) {
  const { name } = first;
  const [next, list] = [h("p"), h("ul", { class: "runs" })];
  const about = h("p", { class: "dim" });
  const run = button("Run now", async () => {
    run.disabled = true;
    try {
      const { done } = await post(`schedules/${encodeURIComponent(name)}/run`);
      location.hash = `#/batch/${done}`;
    } catch (error) {
      toast(error.message, "bad");
    }
    run.disabled = false;
  });
  const pause = button("Pause", async () => {
    const what = paused ? "resume" : "pause";
    try {
      await post(`schedules/${encodeURIComponent(name)}/${what}`);
      toast(paused ? `${name} goes on.` : `${name} is paused: no run begins by itself.`);
    } catch (error) {
      toast(error.message, "bad");
    }
    after();
  });
  const remove = button("Remove", async () => {
    if (!(await confirmed(`Remove the schedule ${name}? Its batches stay.`, "Remove the schedule"))) return;
    await post(`schedules/${encodeURIComponent(name)}/remove`).catch((error) => toast(error.message, "bad"));
    after();
  }, { class: "danger" });
  const chip = h("span", { class: "chip paused", hidden: true }, "paused");
  let [drawn, paused] = ["", false];
  return {
    element: h("section", { class: "panel", "aria-label": `Schedule ${name}` },
      h("div", { class: "head" }, h("div", { class: "row" }, h("h2", {}, name), chip), h("div", { class: "row" }, run, pause, remove)), next, about, list),
    update(schedule) {
      if (schedule.error) {
        say(next, schedule.error);
        show(run, false);
        show(pause, false);
        return;
      }
      const left = schedule.next - schedule.now;
      paused = schedule.paused;
      show(chip, paused);
      say(pause, paused ? "Resume" : "Pause");
      say(next, schedule.running ? "A run is being submitted." : paused ? "No run begins by itself until it is resumed." : `Next run ${f.moment(schedule.next)}, ${left > 0 ? `in ${f.duration(left)}` : "due"}`);
      const lines = schedule.read_at_fire ? "read at each run" : f.plural(schedule.lines, "line");
      const more = [schedule.catch_up && "makes up for missed runs", schedule.allow_overlap && "runs may overlap"].filter(Boolean);
      say(about, [`${schedule.cron} (${schedule.zone})`, `${schedule.source}, ${lines}`, schedule.models.join(", "), ...more].filter(Boolean).join(" · "));
      const now = JSON.stringify(schedule.runs);
      if (now !== drawn) list.replaceChildren(...runs(schedule));
      drawn = now;
    },
  };
}

export function schedulesView(root, { asked }) {
  const asleep = h("p", { class: "notice", hidden: true }, "No scheduler is running: ", h("code", {}, "promptmill scheduler"), " starts one.");
  const none = h("p", { class: "empty", hidden: true }, "No schedules yet: make one here, or with ", h("code", {}, "promptmill schedule add"), ".");
  const cards = h("div");
  root.append(
    h("div", { class: "head" }, h("h1", {}, "Schedules"), h("a", { class: "button primary", href: "#/schedules/new" }, "New schedule")), asleep, none, cards);
  const poller = poll(async (signal) => {
    const found = await get("schedules", {}, signal);
    show(asleep, !found.scheduler && found.counted > 0);
    show(none, found.counted === 0);
    keyed(cards, found.schedules.map((item) => ({ ...item, now: found.now })), (item) => item.name, (item) => card(item, () => poller.now()));
  }, 5000, asked);
  return poller;
}
