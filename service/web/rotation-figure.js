// Class probabilities under many masks against the rotation angle of the image, after figure 4 of Gal & Ghahramani
// (2016, arXiv:1506.02142).

import { byId, element, svgElement } from "./dom.js";
import { applyChanges, paint } from "./image-changes.js";
import { percent } from "./explanations.js";

export const FIGURE_MASKS = 100;
const STEPS = [10, 15, 30, 90]; // degrees: the smallest whose images fit into a request
const MAX_BYTES = 6.5e6; // of a request
const MAX_SHOWN_CLASSES = 5;
const MIN_SHOWN_PROBABILITY = 0.1; // a class is shown if its mean reaches this at some angle
const LABEL_MARGIN = 30; // degrees without a name at both ends
const MAX_LABEL = 24; // characters
const [WIDTH, HEIGHT] = [720, 270];
const MARGIN = { left: 46, right: 12, top: 16, bottom: 34 };
const PICTURE_STEP = 30; // degrees
const [PICTURE_SIDE, PICTURE_SCALE] = [40, 2];
const MAX_BUSY_MILLISECONDS = 10; // before the page may handle other events

const xOf = (angle) => MARGIN.left + ((WIDTH - MARGIN.left - MARGIN.right) * angle) / 360;
const yOf = (prob) => HEIGHT - MARGIN.bottom - (HEIGHT - MARGIN.top - MARGIN.bottom) * prob;

export class RotationFigure {
  #marker = svgElement("path", { class: "marker" });
  #shape = null; // of images, {channels, height, width}
  #step = 0; // degrees

  /** @param {(angle: number) => void} onAngle: called with the angle that the user clicks. */
  constructor(onAngle) {
    this.onAngle = onAngle;
  }

  /** Prepare for images of this shape. */
  setShape(shape) {
    const bytes = shape.channels * shape.height * shape.width;
    this.#shape = shape;
    this.#step = STEPS.find((step) => (bytes * 360) / step <= MAX_BYTES) ?? STEPS.at(-1);
  }

  /** @returns {number[]} all angles; the last one, 360 degrees, shows the same as the first. */
  get #angles() {
    return Array.from({ length: 360 / this.#step + 1 }, (_, turn) => turn * this.#step);
  }

  /** Make the image at each angle; 360 degrees is left out, as it equals 0. */
  async makeImages(pixels, changes, signal) {
    const images = [];
    let pause = performance.now();
    for (const rotation of this.#angles.slice(0, -1)) {
      images.push(applyChanges(pixels, this.#shape, { ...changes, rotation }));
      if (performance.now() - pause > MAX_BUSY_MILLISECONDS) {
        await new Promise((resolve) => setTimeout(resolve));
        signal.throwIfAborted();
        pause = performance.now();
      }
    }
    return images;
  }

  /** Draw the predictions (`results`) for the rotated images. */
  show(images, results, classes) {
    const angles = this.#angles;
    const all = collectClasses([...results, results[0]], classes);
    const shown = probableClasses(all);
    const drawing = svgElement(
      "svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": textAlternative(shown, angles) },
      ...axes(angles),
      ...shown.map((one, rank) => svgElement("path", { class: `dots c${rank}`, d: dots(one, angles) })),
      ...shown.map((one, rank) => svgElement("path", { class: `line c${rank}`, d: line(one, angles) })),
      this.#marker,
      ...labels(shown, angles),
    );
    drawing.addEventListener("click", (event) => {
      const { left, width } = drawing.getBoundingClientRect();
      const along = (((event.clientX - left) / width) * WIDTH - MARGIN.left) / (WIDTH - MARGIN.left - MARGIN.right);
      this.onAngle(Math.round(360 * Math.min(Math.max(along, 0), 1)));
    });
    byId("rotation-figure").replaceChildren(drawing, pictures(images, this.#shape, angles));
    byId("rotation-table").replaceChildren(...table(shown, angles));
    const top = angles.map((_, turn) => topClass(all, turn));
    const sameCount = top.filter((name) => name === top[0]).length - 1;
    byId("rotation-summary").textContent = `Upright, the prediction is ${top[0]}; ` +
      `it is the same at ${sameCount} of ${angles.length - 1} angles.`;
  }

  /** Mark the current rotation of the image. */
  markAngle(angle) {
    this.#marker.setAttribute("d", `M${xOf(angle)} ${MARGIN.top}V${HEIGHT - MARGIN.bottom}`);
  }
}

function mean(values) {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

/**
 * The probabilities by class, of each class that some result lists.
 * @returns {{name, masks, means}[]}: `masks` has for each result the probability under each mask, `means` the mean;
 *   null where a result does not list the class, as ten others are more probable.
 */
function collectClasses(results, names) {
  const all = new Map();
  results.forEach(({ classes = names, sample_probabilities: masks }, turn) => classes.forEach((name, place) => {
    if (!all.has(name)) all.set(name, { name, masks: results.map(() => null), means: results.map(() => null) });
    const probs = masks.map((one) => one[place]);
    all.get(name).masks[turn] = probs;
    all.get(name).means[turn] = mean(probs);
  }));
  return [...all.values()];
}

function topClass(all, turn) {
  return all.reduce((best, one) => (one.means[turn] > best.means[turn] ? one : best)).name;
}

/** The classes that are probable at some angle, the most probable first; one at least. */
function probableClasses(all) {
  const highest = new Map(all.map((one) => [one, Math.max(...one.means)]));
  return [...all]
    .sort((one, other) => highest.get(other) - highest.get(one))
    .filter((one, rank) => rank === 0 || highest.get(one) >= MIN_SHOWN_PROBABILITY)
    .slice(0, MAX_SHOWN_CLASSES);
}

function axes(angles) {
  return [
    ...[0, 0.5, 1].flatMap((prob) => [
      svgElement("path", { class: "grid", d: `M${MARGIN.left} ${yOf(prob)}H${WIDTH - MARGIN.right}` }),
      svgElement("text", { x: MARGIN.left - 8, y: yOf(prob) + 4, class: "end" }, `${100 * prob} %`),
    ]),
    ...angles.filter((angle) => angle % 90 === 0)
      .map((angle) => svgElement("text", { x: xOf(angle), y: HEIGHT - 12, class: "middle" }, `${angle}°`)),
  ];
}

/** One dot for each mask at each angle, with a small horizontal offset. */
function dots({ masks }, angles) {
  return masks.flatMap((probs, turn) => (probs ?? []).map((one, mask) => {
    const offset = 3 * (mask / probs.length - 0.5);
    return `M${(xOf(angles[turn]) + offset).toFixed(1)} ${yOf(one).toFixed(1)}h0`;
  })).join("");
}

/** A line through the means, with gaps where there is none. */
function line({ means }, angles) {
  return means.map((prob, turn) => {
    if (prob === null) return "";
    const isFirst = turn === 0 || means[turn - 1] === null;
    return `${isFirst ? "M" : "L"}${xOf(angles[turn]).toFixed(1)} ${yOf(prob).toFixed(1)}${isFirst ? "h0" : ""}`;
  }).join("");
}

/** Class names where their lines are highest and no other name is near. */
function labels(shown, angles) {
  const used = [];
  return shown.map(({ name, means }, rank) => {
    const turns = [...means.keys()].filter((turn) => means[turn] !== null);
    const isInside = (turn) => angles[turn] >= LABEL_MARGIN && angles[turn] <= 360 - LABEL_MARGIN;
    const order = (turns.some(isInside) ? turns.filter(isInside) : turns)
      .sort((one, other) => means[other] - means[one]);
    const points = order.map((turn) => [xOf(angles[turn]), yOf(means[turn])]);
    const isFree = ([x, y]) => used.every((one) => Math.abs(x - one[0]) > 90 || Math.abs(y - one[1]) > 20);
    const [x, y] = points.find(isFree) ?? points[0];
    used.push([x, y]);
    const attributes = { x, y: Math.max(y - 8, 13), class: `middle name c${rank}` };
    return svgElement("text", attributes, shortened(name));
  });
}

function shortened(name) {
  return name.length > MAX_LABEL ? `${name.slice(0, MAX_LABEL - 1)}…` : name;
}

/** The network's input, below its angles. */
function pictures(images, shape, angles) {
  const { height, width } = shape;
  const size = { width: PICTURE_SCALE * WIDTH, height: PICTURE_SCALE * PICTURE_SIDE };
  const canvas = element("canvas", { ...size, "aria-hidden": "true" });
  const picture = element("canvas", { width, height });
  const [context, pictureContext] = [canvas.getContext("2d"), picture.getContext("2d")];
  context.imageSmoothingEnabled = Math.max(height, width) > PICTURE_SCALE * PICTURE_SIDE;
  context.scale(PICTURE_SCALE, PICTURE_SCALE);
  const scale = PICTURE_SIDE / Math.max(height, width);
  const [across, down] = [scale * width, scale * height];
  angles.forEach((angle, turn) => {
    if (angle % PICTURE_STEP) return;
    paint(pictureContext, images[turn % images.length], shape);
    const left = Math.min(Math.max(xOf(angle) - across / 2, 0), WIDTH - across);
    context.drawImage(picture, left, (PICTURE_SIDE - down) / 2, across, down);
  });
  return canvas;
}

function table(shown, angles) {
  const names = shown.map(({ name }) => element("th", { scope: "col" }, name));
  const rows = angles.map((angle, turn) => element(
    "tr", {},
    element("th", { scope: "row" }, `${angle}°`),
    ...shown.map(({ means }) => element("td", {}, means[turn] === null ? "–" : percent(means[turn]))),
  ));
  return [
    element("caption", { class: "visually-hidden" }, `Mean probability over ${FIGURE_MASKS} masks by angle`),
    element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "Angle"), ...names)),
    element("tbody", {}, ...rows),
  ];
}

function textAlternative(shown, angles) {
  const parts = shown.map(({ name, means }) => {
    const highest = Math.max(...means);
    return `${name} up to ${percent(highest)} at ${angles[means.indexOf(highest)]}°`;
  });
  return `Class probabilities against the rotation angle: ${parts.join("; ")}. The table below lists the means.`;
}
