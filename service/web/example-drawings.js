// Out-of-distribution example images: dark drawings on white, like photographs of paper.

import { uniformNumbers } from "./image-changes.js";

const SIDE = 112;

/** Each function draws on a context of 100 x 100 units. */
const DRAWINGS = {
  "a face": (pen) => {
    circle(pen, 50, 50, 40);
    disc(pen, 36, 40, 5);
    disc(pen, 64, 40, 5);
    curve(pen, (path) => path.arc(50, 52, 22, 0.15 * Math.PI, 0.85 * Math.PI));
  },
  "a cup": (pen) => {
    pen.fillRect(20, 30, 46, 48);
    curve(pen, (path) => path.arc(66, 52, 15, -0.5 * Math.PI, 0.5 * Math.PI));
    pen.fillRect(12, 84, 62, 6);
  },
  "a house": (pen) => {
    curve(pen, (path) => [[10, 52], [50, 14], [90, 52]].forEach(([x, y]) => path.lineTo(x, y)));
    pen.strokeRect(22, 46, 56, 42);
    pen.fillRect(43, 62, 15, 26);
  },
  "a seven": (pen) => {
    pen.lineWidth = 11;
    curve(pen, (path) => [[24, 18], [76, 18], [42, 86]].forEach(([x, y]) => path.lineTo(x, y)));
  },
  noise: (pen) => {
    const uniform = uniformNumbers(7);
    for (let y = 0; y < 100; y += 4) {
      for (let x = 0; x < 100; x += 4) {
        const grey = Math.floor(256 * uniform());
        pen.fillStyle = `rgb(${grey} ${grey} ${grey})`;
        pen.fillRect(x, y, 4, 4);
      }
    }
  },
};

/** @returns {[string, HTMLCanvasElement][]} name and picture of each. */
export function exampleDrawings() {
  return Object.entries(DRAWINGS).map(([name, draw]) => {
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = SIDE;
    const pen = canvas.getContext("2d");
    pen.fillStyle = "#fff";
    pen.fillRect(0, 0, SIDE, SIDE);
    pen.scale(SIDE / 100, SIDE / 100);
    pen.fillStyle = pen.strokeStyle = "#111";
    pen.lineWidth = 7;
    pen.lineCap = pen.lineJoin = "round";
    draw(pen);
    return [name, canvas];
  });
}

function curve(pen, trace) {
  pen.beginPath();
  trace(pen);
  pen.stroke();
}

function circle(pen, x, y, radius) {
  curve(pen, (path) => path.arc(x, y, radius, 0, 2 * Math.PI));
}

function disc(pen, x, y, radius) {
  pen.beginPath();
  pen.arc(x, y, radius, 0, 2 * Math.PI);
  pen.fill();
}
