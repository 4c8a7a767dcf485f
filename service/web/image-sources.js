// Where images come from: the galleries, a chosen, dropped or pasted file. (Drawing is in canvas.js.)

import { loadFile } from "./api.js";
import { byId, element } from "./dom.js";
import { exampleDrawings } from "./example-drawings.js";

export const CLOTHES = [
  "ankle boot", "pullover", "trouser", "shirt", "coat", "sandal", "sneaker", "dress", "bag", "t-shirt/top",
];

/** Fill both galleries. `choose({ name, load })` is called with a function that loads the chosen image's file. */
export function fillGalleries(choose) {
  byId("clothes").replaceChildren(...CLOTHES.map((name) => {
    const url = new URL(`images/${name.replace(/[ /]/, "-")}.png`, import.meta.url);
    const picture = element("img", { src: url, alt: "", width: 48, height: 48 });
    return choice(name, picture, () => choose({ name, load: (signal) => loadFile(url, signal) }));
  }));
  byId("drawings").replaceChildren(...exampleDrawings().map(([name, canvas]) => {
    canvas.setAttribute("aria-hidden", "true");
    const load = () => new Promise((resolve) => canvas.toBlob(resolve));
    return choice(name, canvas, () => choose({ name, load }));
  }));
}

function choice(name, picture, change) {
  const radio = element("input", { type: "radio", name: "image", value: name, change });
  return element("label", { title: name }, radio, picture, element("span", { class: "visually-hidden" }, name));
}

export function selectInGallery(name) {
  document.querySelector(`input[name=image][value="${name}"]`).click();
}

export function clearGallerySelection() {
  for (const choice of document.getElementsByName("image")) choice.checked = false;
}

/** Call `onFile(file)` for each file that is chosen, dropped or pasted, `onNoFile()` for a drop without a file. */
export function listenForFiles(onFile, onNoFile) {
  byId("choose-file").addEventListener("click", () => byId("file").click());
  byId("file").addEventListener("change", () => {
    const [file] = byId("file").files;
    byId("file").value = ""; // so that the same file can be chosen again
    if (file) onFile(file);
  });
  addEventListener("paste", (event) => {
    const [file] = event.clipboardData.files;
    if (file) onFile(file);
  });
  addEventListener("dragover", (event) => {
    event.preventDefault();
    byId("drop-area").hidden = false;
  });
  addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) byId("drop-area").hidden = true;
  });
  addEventListener("drop", (event) => {
    event.preventDefault();
    byId("drop-area").hidden = true;
    const [file] = event.dataTransfer.files;
    if (file) onFile(file);
    else onNoFile();
  });
}
