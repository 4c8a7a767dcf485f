// Where images come from: the galleries, a chosen, dropped or pasted file. (Drawing is in canvas.js.)

import { loadFile } from "./api.js";
import { byId, element } from "./dom.js";
import { exampleDrawings } from "./example-drawings.js";

/**
 * Fill both galleries. `choose({ name, load, isExample })` is called with a function that loads the chosen image's
 * file; an example has been prepared for the network.
 */
export function fillGalleries({ examples, data, isOfClothing }, choose) {
  byId("examples-legend").textContent = data ? `${data} test images` : "Test images";
  byId("examples").parentElement.hidden = examples.length === 0;
  byId("examples").replaceChildren(...examples.map(({ file, name, sha256 }) => {
    const url = new URL(`${file}?sha256=${sha256}`, import.meta.url); // browsers keep showing an image of the same URL
    const picture = element("img", { src: url, alt: "", width: 48, height: 48 });
    return choice(name, picture, () => choose({ name, load: (signal) => loadFile(url, signal), isExample: true }));
  }));
  byId("drawings-legend").textContent = isOfClothing ? "Out-of-distribution images" : "Drawings and noise";
  byId("drawings").replaceChildren(...exampleDrawings().map(([name, canvas]) => {
    canvas.setAttribute("aria-hidden", "true");
    const load = () => new Promise((resolve) => canvas.toBlob(resolve));
    return choice(name, canvas, () => choose({ name, load, isExample: false }));
  }));
}

function choice(name, picture, change) {
  const radio = element("input", { type: "radio", name: "image", value: name, change });
  return element("label", { title: name }, radio, picture, element("span", { class: "visually-hidden" }, name));
}

export function selectFirstInGallery() {
  document.querySelector("input[name=image]").click();
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
