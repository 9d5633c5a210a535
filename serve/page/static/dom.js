// Elements are made by these functions alone: text is always text, and never markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && typeof value === "boolean") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export function h(tag, properties, ...children) {
  return fill(document.createElement(tag), properties, children);
}

export function s(tag, properties, ...children) {
  return fill(document.createElementNS(SVG, tag), properties, children);
}

export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function show(element, yes) {
  element.hidden = !yes;
}

// Children of `parent`, one for each item. One that is there already is kept, so that focus and selection stay.
// `make(item)` gives {element, update(item)}.
export function keyed(parent, items, keyOf, make) {
  const rows = (parent.keyedRows ??= new Map());
  const wanted = new Set(items.map(keyOf));
  for (const [key, row] of rows) {
    if (wanted.has(key)) continue;
    row.element.remove();
    rows.delete(key);
  }
  let before = null;
  for (const item of items) {
    const key = keyOf(item);
    if (!rows.has(key)) rows.set(key, make(item));
    const row = rows.get(key);
    row.update(item);
    const next = before ? before.nextSibling : parent.firstChild;
    if (row.element !== next) parent.insertBefore(row.element, next);
    before = row.element;
  }
}

export function button(text, act, properties = {}) {
  return h("button", { type: "button", onclick: act, ...properties }, text);
}

export function field(label, control, hint) {
  return h("label", { class: "field" }, h("span", { class: "label" }, label), control, hint && h("small", {}, hint));
}

export function select(options, properties = {}) {
  return h("select", properties, options.map(([value, text]) => h("option", { value }, text)));
}

export function toast(text, kind = "") {
  const box = document.getElementById("toasts");
  const made = h("p", { class: `toast ${kind}` }, text);
  box.append(made);
  setTimeout(() => made.remove(), kind === "bad" ? 12000 : 5000);
}

// Asks before something is done that cannot be undone; resolves to whether it is wanted.
export function confirmed(question, doing) {
  return new Promise((resolve) => {
    const dialog = h("dialog", { class: "ask", "aria-label": doing },
      h("p", {}, question),
      h("div", { class: "row end" },
        button("Keep it", () => dialog.close()),
        button(doing, () => dialog.close("yes"), { class: "danger" })));
    dialog.addEventListener("close", () => {
      resolve(dialog.returnValue === "yes");
      dialog.remove();
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}
