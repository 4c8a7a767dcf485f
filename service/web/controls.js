// The settings: changes of the image, sampling of masks, and decisions.

import { byId } from "./dom.js";
import { UNCHANGED } from "./image-changes.js";

const CHANGES = Object.keys(UNCHANGED);
const DECISION_PARAMETERS = ["coverage", "set_method", "max_risk", "false_alarm_rate"];
const MASK_FIELDS = ["samples", "samples-range", "seed", "new-seed"];
const MAX_BLUR = 4; // pixels, or this part of the shorter side
const MAX_BLUR_OF_SIDE = 0.036;
const [MIN_MASKS, MAX_MASKS, SLIDER_STEPS] = [2, 1000, 100];

export class Controls {
  /** @param {() => void} onChange: called whenever a setting changes. */
  constructor(onChange) {
    for (const name of CHANGES) {
      byId(name).addEventListener("input", () => {
        this.#showValue(name);
        onChange();
      });
    }
    byId("reset").addEventListener("click", () => {
      this.reset();
      onChange();
    });
    byId("samples-range").addEventListener("input", () => {
      const position = byId("samples-range").value / SLIDER_STEPS;
      byId("samples").value = Math.round(MIN_MASKS * (MAX_MASKS / MIN_MASKS) ** position);
      this.#moveMaskSlider();
      onChange();
    });
    byId("samples").addEventListener("input", () => {
      this.#moveMaskSlider();
      onChange();
    });
    byId("new-seed").addEventListener("click", () => {
      byId("seed").value = Math.floor(Math.random() * 1e6);
      onChange();
    });
    for (const method of document.getElementsByName("method")) {
      method.addEventListener("change", () => {
        this.#enableMaskFields();
        onChange();
      });
    }
    for (const id of [...DECISION_PARAMETERS, "invert"]) byId(id).addEventListener("change", onChange);
    byId("seed").addEventListener("input", onChange);
    this.reset();
    this.#moveMaskSlider();
  }

  /** Adapt the settings to a network, see `describeNetwork`. */
  setNetwork({ shape, isLightOnDark, noMoments }) {
    const side = Math.min(shape.height, shape.width);
    byId("occlusion").max = side;
    byId("blur").max = Math.max(MAX_BLUR, side * MAX_BLUR_OF_SIDE);
    byId("invert").parentElement.hidden = !isLightOnDark;
    if (!isLightOnDark) byId("invert").value = "auto";
    const [masks, moments] = document.getElementsByName("method");
    moments.disabled = noMoments !== null;
    if (moments.disabled) masks.checked = true;
    byId("no-moments").hidden = noMoments === null;
    byId("no-moments").textContent = `This network has no moment propagation: ${noMoments}.`;
    this.#enableMaskFields();
  }

  get method() {
    return document.querySelector("input[name=method]:checked").value;
  }

  get invert() {
    return byId("invert").value;
  }

  get seed() {
    return byId("seed").value.trim();
  }

  /** The changes of the image, as `applyChanges` takes them. */
  get changes() {
    return Object.fromEntries(CHANGES.map((name) => [name, Number(byId(name).value)]));
  }

  /** Parameters of all predictions. */
  get decisionParameters() {
    return Object.fromEntries(DECISION_PARAMETERS.map((name) => [name, byId(name).value]));
  }

  /** Parameters of the prediction with dropout. */
  get samplingParameters() {
    if (this.method === "moments") return { method: "moments" };
    return { samples: byId("samples").value, seed: this.seed, return_samples: true };
  }

  /** Whether the user has emptied a field to type a new number. */
  get hasEmptyField() {
    return this.method === "masks" && (byId("samples").value === "" || this.seed === "");
  }

  reset() {
    for (const name of CHANGES) {
      byId(name).value = UNCHANGED[name];
      this.#showValue(name);
    }
  }

  setRotation(angle) {
    byId("rotation").value = angle;
    this.#showValue("rotation");
  }

  #enableMaskFields() {
    for (const id of MASK_FIELDS) byId(id).disabled = this.method === "moments";
  }

  #showValue(name) {
    const slider = byId(name);
    const text = `${Number(slider.value)}${slider.dataset.unit}`;
    slider.previousElementSibling.textContent = text;
    slider.setAttribute("aria-valuetext", text);
  }

  /** Move the slider to the number of masks; its scale is logarithmic. */
  #moveMaskSlider() {
    const samples = Math.min(Math.max(Number(byId("samples").value) || MIN_MASKS, MIN_MASKS), MAX_MASKS);
    byId("samples-range").value = SLIDER_STEPS * Math.log(samples / MIN_MASKS) / Math.log(MAX_MASKS / MIN_MASKS);
    byId("samples-range").setAttribute("aria-valuetext", `${samples} masks`);
  }
}
