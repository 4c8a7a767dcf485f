// The canvas of 28 x 28 pixels: shows the network's input; the user can draw on it with pointer or keyboard.

import { byId } from "./dom.js";
import { paint, SIDE } from "./image-changes.js";

const PEN_RADIUS = 1.7; // pixels

export class DrawingCanvas {
  #canvas = byId("network-input");
  #context = this.#canvas.getContext("2d");
  #pixels = new Uint8ClampedArray(SIDE * SIDE);
  #lastPoint = null; // of the pointer, while it is down
  #cursor = [SIDE >> 1, SIDE >> 1];

  /** @param {(pixels) => void} onDraw: called whenever the drawing changes. */
  constructor(onDraw) {
    this.onDraw = onDraw;
    this.isOpen = false;
    this.#canvas.addEventListener("pointerdown", (event) => this.#pointerDown(event));
    this.#canvas.addEventListener("pointermove", (event) => this.#pointerMove(event));
    for (const name of ["pointerup", "pointercancel"]) {
      this.#canvas.addEventListener(name, () => { this.#lastPoint = null; });
    }
    this.#canvas.addEventListener("keydown", (event) => this.#keyDown(event));
    for (const name of ["focus", "blur"]) this.#canvas.addEventListener(name, () => this.#showCursor());
    byId("clear").addEventListener("click", () => this.clear());
  }

  /** Show an image with its text alternative. */
  show(pixels, description) {
    paint(this.#context, pixels);
    this.#canvas.setAttribute("aria-label", description);
  }

  /** Start an empty drawing. */
  open() {
    this.isOpen = true;
    this.#canvas.classList.add("open");
    this.#canvas.tabIndex = 0;
    this.#canvas.setAttribute("role", "application");
    this.#canvas.setAttribute("aria-describedby", "draw-hint");
    byId("tools").hidden = false;
    this.clear();
    this.#canvas.focus();
  }

  close() {
    this.isOpen = false;
    this.#canvas.classList.remove("open");
    this.#canvas.removeAttribute("tabindex");
    this.#canvas.removeAttribute("aria-describedby");
    this.#canvas.setAttribute("role", "img");
    byId("tools").hidden = true;
    this.#showCursor();
  }

  clear() {
    this.#pixels.fill(0);
    this.#notify();
  }

  #pointerDown(event) {
    if (!this.isOpen) return;
    event.preventDefault();
    this.#canvas.setPointerCapture(event.pointerId);
    this.#canvas.focus({ preventScroll: true });
    this.#stroke(this.#position(event));
  }

  #pointerMove(event) {
    if (this.isOpen && this.#lastPoint) this.#stroke(this.#position(event));
  }

  #position({ clientX, clientY }) {
    const { left, top, width, height } = this.#canvas.getBoundingClientRect();
    return [((clientX - left) / width) * SIDE - 0.5, ((clientY - top) / height) * SIDE - 0.5];
  }

  #stroke([x, y]) {
    const [fromX, fromY] = this.#lastPoint ?? [x, y];
    const steps = Math.ceil(2 * Math.hypot(x - fromX, y - fromY)) || 1;
    for (let step = 1; step <= steps; step += 1) {
      this.#drawPoint(fromX + ((x - fromX) * step) / steps, fromY + ((y - fromY) * step) / steps);
    }
    this.#lastPoint = [x, y];
    this.#notify();
  }

  #drawPoint(x, y) {
    const isPen = document.querySelector("input[name=tool]:checked").value === "pen";
    for (let row = 0; row < SIDE; row += 1) {
      for (let column = 0; column < SIDE; column += 1) {
        const ink = 255 * Math.min(Math.max(PEN_RADIUS - Math.hypot(column - x, row - y), 0), 1);
        const index = row * SIDE + column;
        const before = this.#pixels[index];
        this.#pixels[index] = isPen ? Math.max(before, ink) : Math.min(before, 255 - ink);
      }
    }
  }

  #keyDown(event) {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!this.isOpen || !(step || event.key === " ")) return;
    event.preventDefault();
    if (step) {
      this.#cursor = this.#cursor.map((position, axis) => Math.min(Math.max(position + step[axis], 0), SIDE - 1));
      this.#showCursor();
    } else {
      this.#drawPoint(...this.#cursor);
      this.#notify();
    }
  }

  /** Show where the space key would draw. */
  #showCursor() {
    const cursor = byId("cursor");
    cursor.hidden = !(this.isOpen && this.#canvas.matches(":focus-visible"));
    cursor.style.left = `${(100 * this.#cursor[0]) / SIDE}%`;
    cursor.style.top = `${(100 * this.#cursor[1]) / SIDE}%`;
  }

  #notify() {
    this.onDraw(this.#pixels.slice());
  }
}
