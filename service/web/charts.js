// Both predictions, class by class, and the two kinds of uncertainty.

import { byId, element, fillDescriptionList, setAttributes, svgElement } from "./dom.js";
import { capitalize, explainUncertainty, percent } from "./explanations.js";

const [WIDTH, HEIGHT] = [1000, 100]; // of a chart's view box, which is stretched over its cell; dots stay round
const MIN_MARKED_MEAN = 0.005; // a smaller mean can't be distinguished from the edge
const GOLDEN_RATIO = (Math.sqrt(5) - 1) / 2;

/** The table of class probabilities. */
export class ClassTable {
  #rows = [];

  /** @param {string[]} names: of the classes, in the order of the probabilities. */
  constructor(names) {
    this.names = names;
    this.#rows = names.map((name) => createRow(name));
    byId("classes").tBodies[0].replaceChildren(...this.#rows.map((row) => row.line));
  }

  /** Show the predictions without and with dropout. */
  show(evalPrediction, dropoutPrediction) {
    const masks = dropoutPrediction.sample_probabilities ?? [];
    const { mode, uncertainty, prediction_set: set } = dropoutPrediction;
    const deviations = mode === "moments" ? uncertainty.variance.map(Math.sqrt) : null;
    byId("classes").dataset.masks = masks.length > 300 ? "many" : masks.length > 40 ? "some" : "few";
    this.#rows.forEach((row, classIndex) => {
      const evalProb = evalPrediction.probabilities[classIndex];
      const dropoutProb = dropoutPrediction.probabilities[classIndex];
      row.evalNumber.textContent = percent(evalProb);
      row.dropoutNumber.textContent = percent(dropoutProb);
      setAttributes(row.evalBar, { width: WIDTH * evalProb });
      setAttributes(row.dropoutBar, { width: WIDTH * dropoutProb });
      setAttributes(row.dots, { d: masks.map((probs, mask) => dot(probs[classIndex], mask)).join("") });
      const mean = masks.reduce((sum, probs) => sum + probs[classIndex], 0) / masks.length;
      setAttributes(row.mean, { d: mean >= MIN_MARKED_MEAN ? `M${WIDTH * mean} 12V88` : "" });
      setAttributes(row.spread, { d: deviations ? whisker(dropoutProb, deviations[classIndex]) : "" });
      row.line.classList.toggle("member", Boolean(set?.includes(this.names[classIndex])));
      row.line.classList.toggle("winner", classIndex === dropoutPrediction.class_index);
    });
    byId("eval-result").textContent = `${evalPrediction.label}, ${percent(evalPrediction.confidence)}`;
    byId("dropout-result").textContent = `${dropoutPrediction.label}, ${percent(dropoutPrediction.confidence)}`;
    byId("dropout-title").textContent = masks.length ? `Mean over ${masks.length} masks` : "Mean over all masks";
    byId("chart-key").dataset.mode = mode;
  }
}

/** Show both parts of the uncertainty, in nats, on a bar from 0 to the maximum. */
export function showUncertainty(prediction, classCount) {
  const maximum = Math.log(classCount);
  const { expected_entropy: aleatoric, mutual_information: epistemic } = prediction.uncertainty;
  byId("aleatoric").style.width = `${(100 * aleatoric) / maximum}%`;
  byId("epistemic").style.width = `${(100 * Math.min(epistemic, maximum - aleatoric)) / maximum}%`;
  byId("maximum").textContent = `${maximum.toFixed(2)} nats: maximum`;
  fillDescriptionList(byId("entropies"), explainUncertainty(prediction, classCount));
}

function createRow(name) {
  const [evalNumber, dropoutNumber] = [element("span", { class: "number" }), element("span", { class: "number" })];
  const [evalBar, dropoutBar] = [createBar(), createBar()];
  const [dots, mean, spread] = ["dots", "mean", "spread"].map((kind) => svgElement("path", { class: kind }));
  const line = element(
    "tr", {},
    element("th", { scope: "row" }, capitalize(name)),
    element("td", {}, chart(evalBar), evalNumber),
    element("td", {}, chart(dropoutBar, dots, spread, mean), dropoutNumber),
  );
  return { line, evalNumber, dropoutNumber, evalBar, dropoutBar, dots, mean, spread };
}

function chart(...parts) {
  const frame = { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" };
  return svgElement("svg", frame, svgElement("path", { class: "grid", d: "M0 0V100M500 0V100M1000 0V100" }), ...parts);
}

function createBar() {
  return svgElement("rect", { class: "bar", x: 0, y: 20, width: 0, height: 60 });
}

/** Each mask has the same height in all rows. */
function dot(prob, mask) {
  return `M${(WIDTH * prob).toFixed(1)} ${(14 + 72 * ((mask * GOLDEN_RATIO) % 1)).toFixed(1)}h0`;
}

function whisker(mean, deviation) {
  const [low, high] = [Math.max(mean - deviation, 0), Math.min(mean + deviation, 1)].map((prob) => WIDTH * prob);
  return `M${low} 30V70M${low} 50H${high}M${high} 30V70`;
}
