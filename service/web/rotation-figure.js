// Class probabilities under many masks against the rotation angle of the image, after figure 4 of Gal & Ghahramani
// (2016, arXiv:1506.02142).

import { byId, element, svgElement } from "./dom.js";
import { applyChanges, paint, SIDE } from "./image-changes.js";
import { capitalize, percent } from "./explanations.js";

export const FIGURE_MASKS = 100;
const STEP = 10; // degrees
export const ANGLES = Array.from({ length: 360 / STEP + 1 }, (_, step) => step * STEP);
const MAX_SHOWN_CLASSES = 5;
const MIN_SHOWN_PROBABILITY = 0.1; // a class is shown if its mean reaches this at some angle
const [WIDTH, HEIGHT] = [720, 270];
const MARGIN = { left: 46, right: 12, top: 16, bottom: 34 };
const PICTURE_STEP = 30; // degrees
const PICTURE_SCALE = 2;

const xOf = (angle) => MARGIN.left + ((WIDTH - MARGIN.left - MARGIN.right) * angle) / 360;
const yOf = (prob) => HEIGHT - MARGIN.bottom - (HEIGHT - MARGIN.top - MARGIN.bottom) * prob;

export class RotationFigure {
  #marker = svgElement("path", { class: "marker" });

  /** @param {(angle: number) => void} onAngle: called with the angle that the user clicks. */
  constructor(onAngle) {
    this.onAngle = onAngle;
  }

  /** The image at each angle; 360 degrees is left out, as it equals 0. */
  static images(pixels, changes) {
    return ANGLES.slice(0, -1).map((rotation) => applyChanges(pixels, { ...changes, rotation }));
  }

  /** Draw the predictions (`results`) for the rotated images. */
  show(images, results, classes) {
    const masks = [...results, results[0]].map((prediction) => prediction.sample_probabilities);
    const means = masks.map((probs) => classes.map((_, classIndex) => mean(probs.map((one) => one[classIndex]))));
    const shown = probableClasses(means, classes);
    const drawing = svgElement(
      "svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": textAlternative(means, shown, classes) },
      ...axes(),
      ...shown.map((classIndex, rank) => svgElement("path", { class: `dots c${rank}`, d: dots(masks, classIndex) })),
      ...shown.map((classIndex, rank) => svgElement("path", { class: `line c${rank}`, d: line(means, classIndex) })),
      this.#marker,
      ...labels(means, shown, classes),
    );
    drawing.addEventListener("click", (event) => {
      const { left, width } = drawing.getBoundingClientRect();
      const along = (((event.clientX - left) / width) * WIDTH - MARGIN.left) / (WIDTH - MARGIN.left - MARGIN.right);
      this.onAngle(Math.round(360 * Math.min(Math.max(along, 0), 1)));
    });
    byId("rotation-figure").replaceChildren(drawing, pictures(images));
    byId("rotation-table").replaceChildren(...table(means, shown, classes));
    const sameCount = means.filter((probs) => topClass(probs) === topClass(means[0])).length - 1;
    byId("rotation-summary").textContent = `Upright, the prediction is ${classes[topClass(means[0])]}; ` +
      `it is the same at ${sameCount} of ${ANGLES.length - 1} angles.`;
  }

  /** Mark the current rotation of the image. */
  markAngle(angle) {
    this.#marker.setAttribute("d", `M${xOf(angle)} ${MARGIN.top}V${HEIGHT - MARGIN.bottom}`);
  }
}

function mean(values) {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

function topClass(probs) {
  return probs.indexOf(Math.max(...probs));
}

/** Indices of the classes that are probable at some angle, the most probable first. */
function probableClasses(means, classes) {
  const highest = classes.map((_, classIndex) => Math.max(...means.map((probs) => probs[classIndex])));
  return [...classes.keys()]
    .filter((classIndex) => highest[classIndex] >= MIN_SHOWN_PROBABILITY)
    .sort((one, other) => highest[other] - highest[one])
    .slice(0, MAX_SHOWN_CLASSES);
}

function axes() {
  const angles = ANGLES.filter((angle) => angle % 90 === 0);
  return [
    ...[0, 0.5, 1].flatMap((prob) => [
      svgElement("path", { class: "grid", d: `M${MARGIN.left} ${yOf(prob)}H${WIDTH - MARGIN.right}` }),
      svgElement("text", { x: MARGIN.left - 8, y: yOf(prob) + 4, class: "end" }, `${100 * prob} %`),
    ]),
    ...angles.map((angle) => svgElement("text", { x: xOf(angle), y: HEIGHT - 12, class: "middle" }, `${angle}°`)),
  ];
}

/** One dot for each mask at each angle, with a small horizontal offset. */
function dots(masks, classIndex) {
  return masks.flatMap((probs, angleIndex) => probs.map((one, mask) => {
    const offset = 3 * (mask / probs.length - 0.5);
    return `M${(xOf(ANGLES[angleIndex]) + offset).toFixed(1)} ${yOf(one[classIndex]).toFixed(1)}h0`;
  })).join("");
}

function line(means, classIndex) {
  const points = means.map((probs, angleIndex) => [xOf(ANGLES[angleIndex]), yOf(probs[classIndex])]);
  return `M${points.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L")}`;
}

/** Class names where their lines are highest and no other name is near. */
function labels(means, shown, classes) {
  const used = [];
  return shown.map((classIndex, rank) => {
    const heights = means.map((probs) => probs[classIndex]);
    const order = [...heights.keys()].slice(3, -3).sort((one, other) => heights[other] - heights[one]);
    const points = order.map((angleIndex) => [xOf(ANGLES[angleIndex]), yOf(heights[angleIndex])]);
    const isFree = ([x, y]) => used.every((one) => Math.abs(x - one[0]) > 90 || Math.abs(y - one[1]) > 20);
    const [x, y] = points.find(isFree) ?? points[0];
    used.push([x, y]);
    const attributes = { x, y: Math.max(y - 8, 13), class: `middle name c${rank}` };
    return svgElement("text", attributes, capitalize(classes[classIndex]));
  });
}

/** The network's input, below its angles. */
function pictures(images) {
  const shown = ANGLES.filter((angle) => angle % PICTURE_STEP === 0);
  const canvas = element("canvas", { width: PICTURE_SCALE * WIDTH, height: PICTURE_SCALE * 40, "aria-hidden": "true" });
  const strip = element("canvas", { width: SIDE * shown.length, height: SIDE });
  const [context, stripContext] = [canvas.getContext("2d"), strip.getContext("2d")];
  context.imageSmoothingEnabled = false;
  context.scale(PICTURE_SCALE, PICTURE_SCALE);
  shown.forEach((angle, column) => {
    paint(stripContext, images[(angle / STEP) % images.length], SIDE * column);
    const left = Math.min(Math.max(xOf(angle) - 20, 0), WIDTH - 40);
    context.drawImage(strip, SIDE * column, 0, SIDE, SIDE, left, 0, 40, 40);
  });
  return canvas;
}

function table(means, shown, classes) {
  const names = shown.map((classIndex) => element("th", { scope: "col" }, capitalize(classes[classIndex])));
  const rows = ANGLES.map((angle, angleIndex) => element(
    "tr", {},
    element("th", { scope: "row" }, `${angle}°`),
    ...shown.map((classIndex) => element("td", {}, percent(means[angleIndex][classIndex]))),
  ));
  return [
    element("caption", { class: "visually-hidden" }, `Mean probability over ${FIGURE_MASKS} masks by angle`),
    element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "Angle"), ...names)),
    element("tbody", {}, ...rows),
  ];
}

function textAlternative(means, shown, classes) {
  const parts = shown.map((classIndex) => {
    const heights = means.map((probs) => probs[classIndex]);
    return `${classes[classIndex]} up to ${percent(Math.max(...heights))} at ${ANGLES[topClass(heights)]}°`;
  });
  return `Class probabilities against the rotation angle: ${parts.join("; ")}. The table below lists the means.`;
}
