// The canvas: shows the network's input; the user can draw on it with pointer or keyboard if it is small and grey.

import { byId } from "./dom.js";
import { paint } from "./image-changes.js";

const PEN_RADIUS = 0.061; // of the shorter side
const MAX_HEIGHT = 24; // rem

export class DrawingCanvas {
  #canvas = byId("network-input");
  #context = this.#canvas.getContext("2d");
  #shape = null; // {channels, height, width}
  #pixels = null; // of the drawing
  #lastPoint = null; // of the pointer, while it is down
  #cursor = null; // [column, row]

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

  /** Prepare for images of this shape. */
  setShape(shape) {
    const { height, width } = shape;
    this.#shape = shape;
    this.#pixels = new Uint8ClampedArray(height * width);
    this.#cursor = [width >> 1, height >> 1];
    Object.assign(this.#canvas, { width, height });
    this.#canvas.parentElement.style.maxWidth = `${(MAX_HEIGHT * width) / height}rem`;
    Object.assign(byId("cursor").style, { width: `${100 / width}%`, height: `${100 / height}%` });
  }

  /** Show an image with its text alternative. */
  show(pixels, description) {
    paint(this.#context, pixels, this.#shape);
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
    const { width: columns, height: rows } = this.#shape;
    return [((clientX - left) / width) * columns - 0.5, ((clientY - top) / height) * rows - 0.5];
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
    const { height, width } = this.#shape;
    const radius = Math.max(PEN_RADIUS * Math.min(height, width), 1);
    for (let row = 0; row < height; row += 1) {
      for (let column = 0; column < width; column += 1) {
        const ink = 255 * Math.min(Math.max(radius - Math.hypot(column - x, row - y), 0), 1);
        const index = row * width + column;
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
      const ends = [this.#shape.width - 1, this.#shape.height - 1];
      this.#cursor = this.#cursor.map((position, axis) => Math.min(Math.max(position + step[axis], 0), ends[axis]));
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
    if (cursor.hidden) return;
    cursor.style.left = `${(100 * this.#cursor[0]) / this.#shape.width}%`;
    cursor.style.top = `${(100 * this.#cursor[1]) / this.#shape.height}%`;
  }

  #notify() {
    this.onDraw(this.#pixels.slice());
  }
}
