// Small plots, drawn as SVG. Each has a text that says the same.

import { h, s } from "./dom.js";

// A line over time with its area. `points` are [x, y]; y may be null where nothing is known.
export function area(points, { width = 640, height = 120, from, to, most = 0, format, label }) {
  const known = points.filter(([, y]) => y !== null);
  const top = Math.max(most, ...known.map(([, y]) => y), 1e-9);
  const x = (at) => ((at - from) / (to - from || 1)) * width;
  const y = (value) => height - 2 - (value / top) * (height - 8);
  // Where nothing is known the line has a gap.
  const runs = points.reduce((made, point) => {
    if (point[1] === null) made.push([]);
    else made.at(-1).push(point);
    return made;
  }, [[]]).filter((run) => run.length > 1);
  const box = s("svg", {
    viewBox: `0 0 ${width} ${height}`, class: "plot", preserveAspectRatio: "none", role: "img", "aria-label": label,
  });
  for (const share of [0.5, 1]) {
    box.append(s("line", { class: "grid", x1: 0, x2: width, y1: y(top * share), y2: y(top * share) }));
  }
  for (const run of runs) {
    const line = run.map(([at, value]) => `${x(at).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
    const [first, last] = [x(run[0][0]).toFixed(1), x(run.at(-1)[0]).toFixed(1)];
    box.append(
      s("polygon", { class: "under", points: `${first},${height} ${line} ${last},${height}` }),
      s("polyline", { class: "line", points: line }));
  }
  return h("div", { class: "framed" }, box, h("span", { class: "high" }, known.length ? format(top) : ""));
}

export function spark(values, label) {
  const [width, height] = [90, 22];
  const top = Math.max(...values, 1e-9);
  const points = values.map((value, at) =>
    `${((at / Math.max(values.length - 1, 1)) * width).toFixed(1)},${(height - 1 - (value / top) * (height - 3)).toFixed(1)}`);
  return s("svg", { viewBox: `0 0 ${width} ${height}`, class: "spark", role: "img", "aria-label": label },
    values.length > 1 && s("polyline", { class: "line", points: points.join(" ") }));
}

// Counts of values in bins, with what is in the middle.
export function histogram(title, spread, format, unit) {
  const [width, height] = [240, 76];
  const most = Math.max(...spread.counts);
  const step = width / spread.counts.length;
  const middle = `median ${format(spread.median)}, 95% below ${format(spread.p95)}${unit}`;
  const bars = spread.counts.map((count, at) => {
    const tall = count ? Math.max((count / most) * (height - 4), 2) : 0;
    const low = spread.low + ((spread.high - spread.low) / spread.counts.length) * at;
    return s("rect", {
      class: "bar", x: (at * step + 0.5).toFixed(1), y: (height - tall).toFixed(1),
      width: Math.max(step - 1, 1).toFixed(1), height: tall.toFixed(1),
    }, s("title", {}, `${count} from ${format(low)}${unit}`));
  });
  return h("figure", { class: "small" },
    h("figcaption", {}, h("b", {}, title), h("span", {}, middle)),
    s("svg", {
      viewBox: `0 0 ${width} ${height}`, class: "plot", preserveAspectRatio: "none", role: "img",
      "aria-label": `${title}: ${middle}`,
    }, bars),
    h("div", { class: "axis" }, h("span", {}, format(spread.low)), h("span", {}, format(spread.high) + unit)));
}

// Named counts as bars that may be pressed.
export function counts(title, entries, kind, pick) {
  const most = Math.max(...entries.map(([, count]) => count), 1);
  return h("figure", { class: "small" },
    h("figcaption", {}, h("b", {}, title)),
    h("div", { class: "counts" }, entries.map(([name, count]) => {
      const bar = h("span", { class: `fill ${kind}` });
      bar.style.width = `${Math.max((count / most) * 100, 1)}%`;
      return h("button", { type: "button", class: "count", onclick: () => pick(name), title: `Show records: ${name}` },
        h("span", { class: "name" }, name), h("span", { class: "bar" }, bar), h("span", { class: "number" }, count.toLocaleString("en")));
    })));
}

export function meter(label) {
  const fill = h("span", { class: "fill" });
  const element = h("span", { class: "meter", role: "progressbar", "aria-label": label, "aria-valuemin": 0, "aria-valuemax": 100 }, fill);
  return {
    element,
    set(share, kind = "") {
      const value = Math.min(Math.max(share || 0, 0), 1) * 100;
      fill.style.width = `${value}%`;
      fill.className = `fill ${kind}`;
      element.setAttribute("aria-valuenow", Math.floor(value));
    },
  };
}
