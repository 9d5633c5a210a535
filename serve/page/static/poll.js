// Asks again and again while the page is seen, and more slowly while nothing answers.

import { Refused } from "./api.js";
import { say, show } from "./dom.js";

const banner = () => document.getElementById("banner");
const SLOWEST_MS = 15000;

export function poll(look, everyMs, refused) {
  const stopper = new AbortController();
  let timer = null;
  let failures = 0;

  async function once() {
    timer = null;
    if (stopper.signal.aborted || document.hidden) return;
    try {
      await look(stopper.signal);
      if (failures) show(banner(), false);
      failures = 0;
    } catch (error) {
      if (stopper.signal.aborted) return;
      if (error instanceof Refused && error.status && error.status < 500) {
        if (refused(error) === false) return;
      } else {
        failures += 1;
        say(banner(), error instanceof Refused && error.status ? error.message : "The server cannot be reached; trying again.");
        show(banner(), true);
        if (!(error instanceof Refused) && !(error instanceof TypeError)) console.error(error);
      }
    }
    if (!stopper.signal.aborted) timer = setTimeout(once, Math.min(everyMs * 2 ** failures, Math.max(SLOWEST_MS, everyMs)));
  }

  function wake() {
    if (!document.hidden && timer === null) once();
  }

  function now() {
    if (timer !== null) {
      clearTimeout(timer);
      once();
    }
  }

  document.addEventListener("visibilitychange", wake);
  once();
  return {
    now,
    stop() {
      stopper.abort();
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", wake);
      show(banner(), false);
    },
  };
}
