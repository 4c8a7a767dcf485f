// Both predictions, class by class, and the two kinds of uncertainty.

import { byId, element, fillDescriptionList, setAttributes, svgElement } from "./dom.js";
import { explainUncertainty, percent } from "./explanations.js";

const [WIDTH, HEIGHT] = [1000, 100]; // of a chart's view box, which is stretched over its cell; dots stay round
const MIN_MARKED_MEAN = 0.005; // a smaller mean can't be distinguished from the edge
const [ALL_UP_TO, LISTED_OF_MANY] = [12, 10]; // classes: so many have a row each; of more, the most probable have
const GOLDEN_RATIO = (Math.sqrt(5) - 1) / 2;

/** The table of class probabilities: of all classes in their order, or of the most probable of many. */
export class ClassTable {
  #rows = [];

  /** @param {string[]} names: of the classes, in the network's order. */
  constructor(names) {
    this.names = names;
    this.hasMany = names.length > ALL_UP_TO;
    this.#rows = Array.from({ length: this.hasMany ? LISTED_OF_MANY : names.length }, createRow);
    byId("classes").tBodies[0].replaceChildren(...this.#rows.map((row) => row.line));
    byId("classes").classList.toggle("many", this.hasMany);
    byId("class-title").classList.toggle("visually-hidden", !this.hasMany);
    byId("class-title").textContent = this.hasMany ? `${LISTED_OF_MANY} of ${names.length} classes` : "Class";
  }

  /** Parameters of both requests: without dropout all classes are needed, with dropout those that get a row. */
  get parameters() {
    if (!this.hasMany) return { withoutDropout: {}, withDropout: {} };
    return { withoutDropout: { top_k: this.names.length }, withDropout: { top_k: LISTED_OF_MANY } };
  }

  /** Show the predictions without and with dropout. */
  show(evalPrediction, dropoutPrediction) {
    const masks = dropoutPrediction.sample_probabilities ?? [];
    const { mode, uncertainty, prediction_set: set, classes: listed = this.names } = dropoutPrediction;
    const deviations = mode === "moments" ? uncertainty.variance.map(Math.sqrt) : null;
    byId("classes").dataset.masks = masks.length > 300 ? "many" : masks.length > 40 ? "some" : "few";
    this.#rows.forEach((row, place) => {
      const name = listed[place];
      const evalProb = evalPrediction.probabilities[this.hasMany ? this.names.indexOf(name) : place];
      const dropoutProb = dropoutPrediction.probabilities[place];
      row.name.textContent = name;
      row.name.title = name;
      row.evalNumber.textContent = percent(evalProb);
      row.dropoutNumber.textContent = percent(dropoutProb);
      setAttributes(row.evalBar, { width: WIDTH * evalProb });
      setAttributes(row.dropoutBar, { width: WIDTH * dropoutProb });
      setAttributes(row.dots, { d: masks.map((probs, mask) => dot(probs[place], mask)).join("") });
      const mean = masks.reduce((sum, probs) => sum + probs[place], 0) / masks.length;
      setAttributes(row.mean, { d: mean >= MIN_MARKED_MEAN ? `M${WIDTH * mean} 12V88` : "" });
      setAttributes(row.spread, { d: deviations ? whisker(dropoutProb, deviations[place]) : "" });
      row.line.classList.toggle("member", Boolean(set?.includes(name)));
      row.line.classList.toggle("winner", name === dropoutPrediction.label);
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

function createRow() {
  const name = element("span", { class: "name" });
  const [evalNumber, dropoutNumber] = [element("span", { class: "number" }), element("span", { class: "number" })];
  const [evalBar, dropoutBar] = [createBar(), createBar()];
  const [dots, mean, spread] = ["dots", "mean", "spread"].map((kind) => svgElement("path", { class: kind }));
  const line = element(
    "tr", {},
    element("th", { scope: "row" }, name),
    element("td", {}, chart(evalBar), evalNumber),
    element("td", {}, chart(dropoutBar, dots, spread, mean), dropoutNumber),
  );
  return { name, line, evalNumber, dropoutNumber, evalBar, dropoutBar, dots, mean, spread };
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
