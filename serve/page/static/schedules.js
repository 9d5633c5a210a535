// Batches by cron: when each runs next, and what became of its last runs.

import { get, post } from "./api.js";
import { button, confirmed, h, keyed, say, show, toast } from "./dom.js";
import * as f from "./format.js";
import { poll } from "./poll.js";

function runs(schedule) {
  return schedule.runs.map((run) => h("li", {},
    h("span", { class: `chip ${run.batch_id ? "completed" : "waiting"}` }, run.state), ` ${f.moment(run.due)} `,
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
  const remove = button("Remove", async () => {
    if (!(await confirmed(`Remove the schedule ${name}? Its batches stay.`, "Remove the schedule"))) return;
    await post(`schedules/${encodeURIComponent(name)}/remove`).catch((error) => toast(error.message, "bad"));
    after();
  }, { class: "danger" });
  let drawn = "";
  return {
    element: h("section", { class: "panel", "aria-label": `Schedule ${name}` },
      h("div", { class: "head" }, h("h2", {}, name), h("div", { class: "row" }, run, remove)), next, about, list),
    update(schedule) {
      if (schedule.error) {
        say(next, schedule.error);
        show(run, false);
        return;
      }
      const left = schedule.next - schedule.now;
      say(next, schedule.running ? "A run is being submitted." : `Next run ${f.moment(schedule.next)}, ${left > 0 ? `in ${f.duration(left)}` : "due"}`);
      const lines = schedule.read_at_fire ? "read at each run" : f.plural(schedule.lines, "line");
      say(about, `${schedule.cron} (${schedule.zone}) · ${schedule.source}, ${lines} · ${schedule.models.join(", ")}`);
      const now = JSON.stringify(schedule.runs);
      if (now !== drawn) list.replaceChildren(...runs(schedule));
      drawn = now;
    },
  };
}

export function schedulesView(root, { asked }) {
  const asleep = h("p", { class: "notice", hidden: true }, "No scheduler is running: ", h("code", {}, "promptmill scheduler"), " starts one.");
  const none = h("p", { class: "empty", hidden: true }, "No schedules. ", h("code", {}, "promptmill schedule add NAME --cron '0 2 * * *' FILE --model MODEL"), " makes one.");
  const cards = h("div");
  root.append(h("h1", {}, "Schedules"), asleep, none, cards);
  const poller = poll(async (signal) => {
    const found = await get("schedules", {}, signal);
    show(asleep, !found.scheduler && found.counted > 0);
    show(none, found.counted === 0);
    keyed(cards, found.schedules.map((item) => ({ ...item, now: found.now })), (item) => item.name, (item) => card(item, () => poller.now()));
  }, 5000, asked);
  return poller;
}
