// Numbers, times and sizes as people read them.

const WHOLE = new Intl.NumberFormat("en");
const SHORT = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });

export const whole = (number) => (number === null || number === undefined ? "–" : WHOLE.format(number));

export const short = (number) => (number < 10000 ? WHOLE.format(Math.round(number)) : SHORT.format(number));

export function rate(perSecond) {
  if (perSecond === null || perSecond === undefined) return "–";
  if (perSecond >= 100) return short(perSecond);
  return perSecond >= 10 ? perSecond.toFixed(0) : perSecond.toFixed(perSecond >= 1 || perSecond === 0 ? 1 : 2);
}

export const percent = (share) => (share === null || share === undefined ? "–" : `${Math.floor(share * 100)}%`);

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds > 0 && seconds < 10) return `${seconds.toFixed(seconds < 1 ? 2 : 1)}s`;
  const all = Math.max(0, Math.round(seconds));
  const [days, hours, minutes] = [Math.floor(all / 86400), Math.floor(all / 3600) % 24, Math.floor(all / 60) % 60];
  if (days) return `${days}d ${hours}h`;
  if (hours) return `${hours}h ${minutes}m`;
  return minutes ? `${minutes}m ${all % 60}s` : `${all}s`;
}

export function bytes(number) {
  if (number === null || number === undefined) return "–";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let [value, unit] = [number, 0];
  while (value >= 999.5 && unit < units.length - 1) [value, unit] = [value / 1000, unit + 1];
  return `${value >= 100 || unit === 0 ? value.toFixed(0) : value.toFixed(1)} ${units[unit]}`;
}

export const ago = (seconds, now) => `${duration(now - seconds)} ago`;

export const moment = (seconds) =>
  seconds === null || seconds === undefined
    ? "–"
    : new Date(seconds * 1000).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });

export const plural = (number, noun) => `${whole(number)} ${noun}${number === 1 ? "" : "s"}`;

// The last part of a model's name: whose it is is in the title.
export const model = (name) => name.split("/").pop();
