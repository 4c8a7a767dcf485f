// The canvas of 28 x 28: shows what the network sees, and can be drawn on, by pointer or keys.

import { by } from "./dom.js";
import { paint, SIDE } from "./pixels.js";

const REACH = 1.7; // pixels, of the pen

export class Pad {
  #canvas = by("seen");
  #context = this.#canvas.getContext("2d");
  #pixels = new Uint8ClampedArray(SIDE * SIDE);
  #last = null; // where the pointer was, while it is down
  #cursor = [SIDE >> 1, SIDE >> 1];

  /** @param {(pixels) => void} drawn: called after each stroke's every part. */
  constructor(drawn) {
    this.drawn = drawn;
    this.isOpen = false;
    this.#canvas.addEventListener("pointerdown", (event) => this.#down(event));
    this.#canvas.addEventListener("pointermove", (event) => this.#move(event));
    for (const name of ["pointerup", "pointercancel"]) {
      this.#canvas.addEventListener(name, () => { this.#last = null; });
    }
    this.#canvas.addEventListener("keydown", (event) => this.#key(event));
    for (const name of ["focus", "blur"]) this.#canvas.addEventListener(name, () => this.#point());
    by("clear").addEventListener("click", () => this.clear());
  }

  /** Show what is seen, with what it is in words. */
  show(pixels, words) {
    paint(this.#context, pixels);
    this.#canvas.setAttribute("aria-label", words);
  }

  /** Let it be drawn on, from nothing. */
  open() {
    this.isOpen = true;
    this.#canvas.classList.add("open");
    this.#canvas.tabIndex = 0;
    this.#canvas.setAttribute("role", "application");
    this.#canvas.setAttribute("aria-describedby", "draw-hint");
    by("tools").hidden = false;
    this.clear();
    this.#canvas.focus();
  }

  close() {
    this.isOpen = false;
    this.#canvas.classList.remove("open");
    this.#canvas.removeAttribute("tabindex");
    this.#canvas.removeAttribute("aria-describedby");
    this.#canvas.setAttribute("role", "img");
    by("tools").hidden = true;
    this.#point();
  }

  clear() {
    this.#pixels.fill(0);
    this.#tell();
  }

  #down(event) {
    if (!this.isOpen) return;
    event.preventDefault();
    this.#canvas.setPointerCapture(event.pointerId);
    this.#canvas.focus({ preventScroll: true });
    this.#stroke(this.#place(event));
  }

  #move(event) {
    if (this.isOpen && this.#last) this.#stroke(this.#place(event));
  }

  #place({ clientX, clientY }) {
    const { left, top, width, height } = this.#canvas.getBoundingClientRect();
    return [((clientX - left) / width) * SIDE - 0.5, ((clientY - top) / height) * SIDE - 0.5];
  }

  #stroke([x, y]) {
    const [fromX, fromY] = this.#last ?? [x, y];
    const steps = Math.ceil(2 * Math.hypot(x - fromX, y - fromY)) || 1;
    for (let step = 1; step <= steps; step += 1) {
      this.#dab(fromX + ((x - fromX) * step) / steps, fromY + ((y - fromY) * step) / steps);
    }
    this.#last = [x, y];
    this.#tell();
  }

  #dab(x, y) {
    const isPen = document.querySelector("input[name=tool]:checked").value === "pen";
    for (let row = 0; row < SIDE; row += 1) {
      for (let column = 0; column < SIDE; column += 1) {
        const ink = 255 * Math.min(Math.max(REACH - Math.hypot(column - x, row - y), 0), 1);
        const place = row * SIDE + column;
        const old = this.#pixels[place];
        this.#pixels[place] = isPen ? Math.max(old, ink) : Math.min(old, 255 - ink);
      }
    }
  }

  #key(event) {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!this.isOpen || !(step || event.key === " ")) return;
    event.preventDefault();
    if (step) {
      this.#cursor = this.#cursor.map((at, axis) => Math.min(Math.max(at + step[axis], 0), SIDE - 1));
      this.#point();
    } else {
      this.#dab(...this.#cursor);
      this.#tell();
    }
  }

  /** Show where the keys would draw. */
  #point() {
    const cursor = by("cursor");
    cursor.hidden = !(this.isOpen && this.#canvas.matches(":focus-visible"));
    cursor.style.left = `${(100 * this.#cursor[0]) / SIDE}%`;
    cursor.style.top = `${(100 * this.#cursor[1]) / SIDE}%`;
  }

  #tell() {
    this.drawn(this.#pixels.slice());
  }
}
