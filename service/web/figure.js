// Class probabilities under many masks against the angle that the image is turned by, after figure 4 of Gal &
// Ghahramani (2016, arXiv:1506.02142), which shows a digit.

import { by, element, shape } from "./dom.js";
import { changed, paint, SIDE } from "./pixels.js";
import { capital, percent } from "./words.js";

export const FIGURE_MASKS = 100;
const STEP = 10; // degrees
export const ANGLES = Array.from({ length: 360 / STEP + 1 }, (_, step) => step * STEP);
const SHOWN_CLASSES = 5;
const LEAST_SHOWN = 0.1; // mean probability, at its highest
const [WIDE, HIGH] = [720, 270];
const EDGE = { left: 46, right: 12, top: 16, bottom: 34 };
const PICTURE_STEP = 30; // degrees
const PICTURE_SCALE = 2;

const xOf = (angle) => EDGE.left + ((WIDE - EDGE.left - EDGE.right) * angle) / 360;
const yOf = (prob) => HIGH - EDGE.bottom - (HIGH - EDGE.top - EDGE.bottom) * prob;

export class Figure {
  #marker = shape("path", { class: "marker" });

  /** @param {(angle: number) => void} choose: an angle that is clicked. */
  constructor(choose) {
    this.choose = choose;
  }

  /** The image at each angle, in one list: 360 degrees are 0. */
  static images(pixels, changes) {
    return ANGLES.slice(0, -1).map((rotation) => changed(pixels, { ...changes, rotation }));
  }

  /** Draw the answers to these images. */
  show(images, results, classes) {
    const masks = [...results, results[0]].map((answer) => answer.sample_probabilities);
    const means = masks.map((probs) => classes.map((_, place) => mean(probs.map((one) => one[place]))));
    const shown = seen(means, classes);
    const drawing = shape(
      "svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", "aria-label": alternative(means, shown, classes) },
      ...axes(),
      ...shown.map((place, rank) => shape("path", { class: `dots c${rank}`, d: dots(masks, place) })),
      ...shown.map((place, rank) => shape("path", { class: `line c${rank}`, d: line(means, place) })),
      this.#marker,
      ...labels(means, shown, classes),
    );
    drawing.addEventListener("click", (event) => {
      const { left, width } = drawing.getBoundingClientRect();
      const along = (((event.clientX - left) / width) * WIDE - EDGE.left) / (WIDE - EDGE.left - EDGE.right);
      this.choose(Math.round(360 * Math.min(Math.max(along, 0), 1)));
    });
    by("rotation-figure").replaceChildren(drawing, pictures(images));
    by("turned-table").replaceChildren(...table(means, shown, classes));
    const right = means.filter((one) => top(one) === top(means[0])).length - 1;
    by("turned-says").textContent = `Upright it says ${classes[top(means[0])]}, as at ${right} of ` +
      `${ANGLES.length - 1} angles.`;
  }

  /** Mark where the image is turned to now. */
  mark(angle) {
    this.#marker.setAttribute("d", `M${xOf(angle)} ${EDGE.top}V${HIGH - EDGE.bottom}`);
  }
}

function mean(values) {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

function top(probs) {
  return probs.indexOf(Math.max(...probs));
}

/** The classes that are ever probable, the most probable first. */
function seen(means, classes) {
  const highest = classes.map((_, place) => Math.max(...means.map((probs) => probs[place])));
  return [...classes.keys()]
    .filter((place) => highest[place] >= LEAST_SHOWN)
    .sort((one, other) => highest[other] - highest[one])
    .slice(0, SHOWN_CLASSES);
}

function axes() {
  const angles = ANGLES.filter((angle) => angle % 90 === 0);
  return [
    ...[0, 0.5, 1].flatMap((prob) => [
      shape("path", { class: "grid", d: `M${EDGE.left} ${yOf(prob)}H${WIDE - EDGE.right}` }),
      shape("text", { x: EDGE.left - 8, y: yOf(prob) + 4, class: "end" }, `${100 * prob} %`),
    ]),
    ...angles.map((angle) => shape("text", { x: xOf(angle), y: HIGH - 12, class: "middle" }, `${angle}°`)),
  ];
}

/** One dot for each mask at each angle, a little apart. */
function dots(masks, place) {
  return masks.flatMap((probs, turn) => probs.map((one, mask) => {
    const aside = 3 * (mask / probs.length - 0.5);
    return `M${(xOf(ANGLES[turn]) + aside).toFixed(1)} ${yOf(one[place]).toFixed(1)}h0`;
  })).join("");
}

function line(means, place) {
  return `M${means.map((probs, turn) => `${xOf(ANGLES[turn]).toFixed(1)} ${yOf(probs[place]).toFixed(1)}`).join("L")}`;
}

/** Names where their lines are highest, one beside the other where two would meet. */
function labels(means, shown, classes) {
  const taken = [];
  return shown.map((place, rank) => {
    const heights = means.map((probs) => probs[place]);
    const turns = [...heights.keys()].slice(3, -3).sort((one, other) => heights[other] - heights[one]);
    const places = turns.map((turn) => [xOf(ANGLES[turn]), yOf(heights[turn])]);
    const isFree = ([x, y]) => taken.every((one) => Math.abs(x - one[0]) > 90 || Math.abs(y - one[1]) > 20);
    const [x, y] = places.find(isFree) ?? places[0];
    taken.push([x, y]);
    return shape("text", { x, y: Math.max(y - 8, 13), class: `middle name c${rank}` }, capital(classes[place]));
  });
}

/** What the network saw, under its angles. */
function pictures(images) {
  const shown = ANGLES.filter((angle) => angle % PICTURE_STEP === 0);
  const canvas = element("canvas", { width: PICTURE_SCALE * WIDE, height: PICTURE_SCALE * 40, "aria-hidden": "true" });
  const strip = element("canvas", { width: SIDE * shown.length, height: SIDE });
  const [on, under] = [canvas.getContext("2d"), strip.getContext("2d")];
  on.imageSmoothingEnabled = false;
  on.scale(PICTURE_SCALE, PICTURE_SCALE);
  shown.forEach((angle, place) => {
    paint(under, images[(angle / STEP) % images.length], SIDE * place);
    const left = Math.min(Math.max(xOf(angle) - 20, 0), WIDE - 40);
    on.drawImage(strip, SIDE * place, 0, SIDE, SIDE, left, 0, 40, 40);
  });
  return canvas;
}

function table(means, shown, classes) {
  const names = shown.map((place) => element("th", { scope: "col" }, capital(classes[place])));
  const rows = ANGLES.map((angle, turn) => element(
    "tr", {},
    element("th", { scope: "row" }, `${angle}°`),
    ...shown.map((place) => element("td", {}, percent(means[turn][place]))),
  ));
  return [
    element("caption", { class: "unseen" }, `Mean probability over ${FIGURE_MASKS} masks by angle`),
    element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "Angle"), ...names)),
    element("tbody", {}, ...rows),
  ];
}

function alternative(means, shown, classes) {
  const parts = shown.map((place) => {
    const heights = means.map((probs) => probs[place]);
    return `${classes[place]} up to ${percent(Math.max(...heights))} at ${ANGLES[top(heights)]}°`;
  });
  return `Probabilities of classes against the angle: ${parts.join("; ")}. The table below has the means.`;
}
