// What can be set: changes of the image, and how it is voted on.

import { by } from "./dom.js";
import { UNCHANGED } from "./pixels.js";

const NAMES = Object.keys(UNCHANGED);
const DEMANDS = ["coverage", "max_risk", "false_alarm_rate"];
const OF_MASKS = ["samples", "samples-range", "seed", "other-seed"];
const [FEWEST, MOST, STEPS] = [2, 1000, 100]; // masks, and places of their slider

export class Controls {
  /**
   * @param {() => void} turn: called when an image is changed.
   * @param {() => void} vote: called when anything else is set.
   */
  constructor(turn, vote) {
    for (const name of NAMES) {
      by(name).addEventListener("input", () => {
        this.#tell(name);
        turn();
      });
    }
    by("reset").addEventListener("click", () => {
      this.reset();
      turn();
    });
    by("samples-range").addEventListener("input", () => {
      by("samples").value = Math.round(FEWEST * (MOST / FEWEST) ** (by("samples-range").value / STEPS));
      this.#place();
      vote();
    });
    by("samples").addEventListener("input", () => {
      this.#place();
      vote();
    });
    by("other-seed").addEventListener("click", () => {
      by("seed").value = Math.floor(Math.random() * 1e6);
      vote();
    });
    for (const method of document.getElementsByName("method")) {
      method.addEventListener("change", () => {
        for (const id of OF_MASKS) by(id).disabled = this.method === "moments";
        vote();
      });
    }
    for (const id of [...DEMANDS, "invert"]) by(id).addEventListener("change", vote);
    by("seed").addEventListener("input", vote);
    this.reset();
    this.#place();
  }

  get method() {
    return document.querySelector("input[name=method]:checked").value;
  }

  get invert() {
    return by("invert").value;
  }

  get seed() {
    return by("seed").value.trim();
  }

  /** How the image is to be changed. */
  get changes() {
    return Object.fromEntries(NAMES.map((name) => [name, Number(by(name).value)]));
  }

  /** Parameters of every request. */
  get demands() {
    return Object.fromEntries(DEMANDS.map((name) => [name, by(name).value]));
  }

  /** Parameters of the prediction over masks, or over their moments. */
  get voting() {
    if (this.method === "moments") return { method: "moments" };
    return { samples: by("samples").value, seed: this.seed, return_samples: true };
  }

  /** Whether something is being typed that is no number yet. */
  get isUnfinished() {
    return this.method === "masks" && (by("samples").value === "" || this.seed === "");
  }

  reset() {
    for (const name of NAMES) {
      by(name).value = UNCHANGED[name];
      this.#tell(name);
    }
  }

  turn(angle) {
    by("rotation").value = angle;
    this.#tell("rotation");
  }

  #tell(name) {
    const slider = by(name);
    const text = `${Number(slider.value)}${slider.dataset.unit}`;
    slider.previousElementSibling.textContent = text;
    slider.setAttribute("aria-valuetext", text);
  }

  /** Move the slider to where the number of masks is; its places are in even ratios. */
  #place() {
    const samples = Math.min(Math.max(Number(by("samples").value) || FEWEST, FEWEST), MOST);
    by("samples-range").value = STEPS * Math.log(samples / FEWEST) / Math.log(MOST / FEWEST);
    by("samples-range").setAttribute("aria-valuetext", `${samples} masks`);
  }
}
