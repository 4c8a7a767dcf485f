// Small parts of documents. Text is always inserted as text, never as HTML.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

/** An HTML element with attributes (functions become event listeners) and children (elements and text). */
export function element(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

/** The same for SVG. */
export function svgElement(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

export function setAttributes(node, attributes) {
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

/** Replace a description list by [name, value, unit, sentence] entries. */
export function fillDescriptionList(list, entries) {
  list.replaceChildren(...entries.map(([name, value, unit, sentence]) => element(
    "div", {},
    element("dt", {}, name),
    element("dd", {}, element("strong", {}, value), unit && ` ${unit}`),
    element("dd", { class: "hint" }, sentence),
  )));
}
