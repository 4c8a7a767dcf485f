// Small parts of documents. Text is always text: nothing that is told becomes HTML.

const SVG = "http://www.w3.org/2000/svg";

export const by = (id) => document.getElementById(id);

/** An element with attributes (or properties, for functions) and children: elements and text. */
export function element(name, attributes = {}, ...children) {
  return finished(document.createElement(name), attributes, children);
}

/** The same for SVG. */
export function shape(name, attributes = {}, ...children) {
  return finished(document.createElementNS(SVG, name), attributes, children);
}

/** Change attributes of an element. */
export function change(made, attributes) {
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
}

function finished(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/** Fill a description list. */
export function describe(list, entries) {
  list.replaceChildren(...entries.map(([name, value, unit, sentence]) => element(
    "div", {},
    element("dt", {}, name),
    element("dd", {}, element("strong", {}, value), unit && ` ${unit}`),
    element("dd", { class: "hint" }, sentence),
  )));
}
