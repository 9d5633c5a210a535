// Which part of the page is shown: what stands behind # in the address.

import { get, logOut, Refused } from "./api.js";
import { batchView } from "./batch.js";
import { button, h, show, toast } from "./dom.js";
import { draftView, scheduleView } from "./draft.js";
import { loginView } from "./login.js";
import { overview } from "./overview.js";
import { schedulesView } from "./schedules.js";

const VIEWS = [
  [/^#?\/?$/, overview, "Overview"],
  [/^#\/batch\/(b_[0-9A-Z]+)$/, batchView, "Batch"],
  [/^#\/new$/, draftView, "New batch"],
  [/^#\/schedules$/, schedulesView, "Schedules"],
  [/^#\/schedules\/new$/, scheduleView, "New schedule"],
];

const main = document.getElementById("main");
let session = null;
let shown = null;

function close() {
  shown?.stop?.();
  shown = null;
  document.querySelectorAll("dialog").forEach((dialog) => dialog.close());
  main.replaceChildren();
}

function asked(error) {
  if (error.status === 401) {
    logIn(session ? "Your key is no longer accepted: it was revoked, or has expired." : "");
    return false;
  }
  toast(error.message, "bad");
  return error.status !== 403;
}

function logIn(why = "") {
  close();
  session = null;
  frame();
  shown = loginView(main, (found) => {
    session = found;
    route();
  }, why);
}

function frame() {
  document.body.classList.toggle("out", session === null);
  document.querySelectorAll("nav a").forEach((link) => {
    const [href, here] = [link.getAttribute("href"), location.hash || "#/"];
    if (href === here || (href !== "#/" && here.startsWith(`${href}/`))) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
    if (link.dataset.admin !== undefined) show(link, session?.admin);
  });
  const who = document.getElementById("who");
  who.replaceChildren();
  if (session?.keys) {
    who.append(h("span", {}, session.name), button("Log out", async () => {
      await logOut().catch(() => {});
      logIn();
    }, { class: "plain" }));
  }
}

async function route() {
  if (location.hash === "#main") return;
  if (session === null) {
    try {
      session = await get("session");
    } catch (error) {
      if (error instanceof Refused && error.status === 401) return logIn();
      main.replaceChildren(h("p", { class: "empty" }, error.message), button("Try again", route));
      return;
    }
  }
  const again = shown !== null;
  close();
  frame();
  for (const [pattern, view, title] of VIEWS) {
    const found = location.hash.match(pattern);
    if (!found) continue;
    document.title = `${title} · promptmill`;
    shown = view(main, { id: found[1], session, asked });
    if (again) main.focus({ preventScroll: true });
    scrollTo(0, 0);
    return;
  }
  main.replaceChildren(h("p", { class: "empty" }, "There is nothing at this address. ", h("a", { href: "#/" }, "Overview")));
}

addEventListener("hashchange", route);
route();
