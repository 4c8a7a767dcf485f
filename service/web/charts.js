// Both predictions, class by class, and the two kinds of doubt.

import { by, change, describe, element, shape } from "./dom.js";
import { capital, entropies, percent } from "./words.js";

const [WIDE, HIGH] = [1000, 100]; // of a drawing, which is stretched over its cell; dots stay round
const LEAST_MEAN = 0.005; // is marked: less can't be told from the edge
const GOLDEN = (Math.sqrt(5) - 1) / 2;

/** The table of classes. */
export class Classes {
  #rows = [];

  /** @param {string[]} names: of the classes, in the order of the probabilities. */
  constructor(names) {
    this.names = names;
    this.#rows = names.map((name) => row(name));
    by("classes").tBodies[0].replaceChildren(...this.#rows.map((one) => one.line));
  }

  /** Draw the whole network's answer and that over masks. */
  show(whole, thinned) {
    const masks = thinned.sample_probabilities ?? [];
    const deviations = thinned.mode === "moments" ? thinned.uncertainty.variance.map(Math.sqrt) : null;
    by("classes").dataset.masks = masks.length > 300 ? "many" : masks.length > 40 ? "some" : "few";
    this.#rows.forEach((one, place) => {
      const [before, after] = [whole.probabilities[place], thinned.probabilities[place]];
      one.whole.textContent = percent(before);
      one.thinned.textContent = percent(after);
      change(one.wholeBar, { width: WIDE * before });
      change(one.thinnedBar, { width: WIDE * after });
      change(one.dots, { d: masks.map((probs, mask) => dot(probs[place], mask)).join("") });
      const mean = masks.reduce((sum, probs) => sum + probs[place], 0) / masks.length;
      change(one.mean, { d: mean >= LEAST_MEAN ? `M${WIDE * mean} 12V88` : "" });
      change(one.spread, { d: deviations ? whisker(after, deviations[place]) : "" });
      one.line.classList.toggle("member", Boolean(thinned.prediction_set?.includes(this.names[place])));
      one.line.classList.toggle("winner", place === thinned.class_index);
    });
    by("eval-says").textContent = `${whole.label}, ${percent(whole.confidence)}`;
    by("mc-says").textContent = `${thinned.label}, ${percent(thinned.confidence)}`;
    by("mc-title").textContent = masks.length ? `${masks.length} thinned copies` : "All its thinned copies";
    by("key").dataset.mode = thinned.mode;
  }
}

/** Split the doubt, in nats, on a track from none to all that is possible. */
export function showDoubt(answer, classes) {
  const most = Math.log(classes);
  const { expected_entropy: expected, mutual_information: mutual } = answer.uncertainty;
  by("expected").style.width = `${(100 * expected) / most}%`;
  by("mutual").style.width = `${Math.min(100 * mutual, 100 * (most - expected)) / most}%`;
  by("most").textContent = `${most.toFixed(2)} nats: no idea`;
  describe(by("entropies"), entropies(answer, classes));
}

function row(name) {
  const [whole, thinned] = [element("span", { class: "number" }), element("span", { class: "number" })];
  const [wholeBar, thinnedBar] = [bar(), bar()];
  const [dots, mean, spread] = ["dots", "mean", "spread"].map((kind) => shape("path", { class: kind }));
  const line = element(
    "tr", {},
    element("th", { scope: "row" }, capital(name)),
    element("td", {}, drawing(wholeBar), whole),
    element("td", {}, drawing(thinnedBar, dots, spread, mean), thinned),
  );
  return { line, whole, thinned, wholeBar, thinnedBar, dots, mean, spread };
}

function drawing(...parts) {
  const frame = { viewBox: `0 0 ${WIDE} ${HIGH}`, preserveAspectRatio: "none", "aria-hidden": "true" };
  return shape("svg", frame, shape("path", { class: "grid", d: "M0 0V100M500 0V100M1000 0V100" }), ...parts);
}

function bar() {
  return shape("rect", { class: "bar", x: 0, y: 20, width: 0, height: 60 });
}

/** A mask has the same height in all rows. */
function dot(prob, mask) {
  return `M${(WIDE * prob).toFixed(1)} ${(14 + 72 * ((mask * GOLDEN) % 1)).toFixed(1)}h0`;
}

function whisker(mean, deviation) {
  const [low, high] = [Math.max(mean - deviation, 0), Math.min(mean + deviation, 1)].map((prob) => WIDE * prob);
  return `M${low} 30V70M${low} 50H${high}M${high} 30V70`;
}
