// The page: an image and its changes -> requests to the service -> what is shown.

import { requestJson } from "./api.js";
import { DrawingCanvas } from "./canvas.js";
import { ClassTable, showUncertainty } from "./charts.js";
import { Controls } from "./controls.js";
import { byId, element, fillDescriptionList } from "./dom.js";
import { capitalize, explainNumbers, explainPreprocessing, summary } from "./explanations.js";
import { applyChanges, isUnchanged, SIDE, toRows, UNCHANGED } from "./image-changes.js";
import { clearGallerySelection, fillGalleries, listenForFiles, selectInGallery } from "./image-sources.js";
import { LatestRequest } from "./latest-request.js";
import { clearStatus, hideProblem, requestKey, retryText, showProblem, showStatus } from "./messages.js";
import { FIGURE_MASKS, RotationFigure } from "./rotation-figure.js";

const FIRST_IMAGE = "ankle boot";
const FIGURE_DELAY_MILLISECONDS = 250; // without a change, before all angles are requested
const ANNOUNCEMENT_DELAY_MILLISECONDS = 700;

let classTable = null; // once the classes are known
// {file, name, pixels, preprocessing, invert}: `file` is null for a drawing; `pixels` are the network's input, null
// until the service has returned them for a file; `invert` is the setting that they were made with.
let image = null;
let previousImage = null; // until the service has accepted the new one
let figureInput = ""; // what the rotation figure shows

const canvas = new DrawingCanvas(useDrawing);
const controls = new Controls(() => update());
const figure = new RotationFigure((angle) => {
  controls.setRotation(angle);
  update();
});
const cardRequests = new LatestRequest((_, signal) => requestJson("card.json", { signal }), {
  ...errorHandlers("card"),
  onResponse: (whenLoaded, card) => {
    clearStatus("card");
    if (card.input?.channels) { // an adopted network
      const { channels, height, width } = card.input;
      showProblem(`This page shows grey images of 28 x 28 pixels, but the network takes ${channels} x ${height} x ` +
        `${width}: send its images to /predict, which /docs describes.`);
      return;
    }
    classTable = new ClassTable(card.classes);
    whenLoaded();
  },
});
const fileRequests = new LatestRequest(({ load }, signal) => load(signal), {
  ...errorHandlers("file"),
  onResponse: ({ name }, file) => {
    clearStatus("file");
    useFile(file, name);
  },
});
const predictionRequests = new LatestRequest(predict, {
  ...errorHandlers("prediction"), onResponse: showPredictions,
});
const figureRequests = new LatestRequest(predictRotations, {
  ...errorHandlers("figure"), onRefusal: showFigureRefusal, onResponse: showFigure,
});

// Choose an image.

/** Replace the image and reset its changes. */
function useImage(next) {
  predictionRequests.cancel();
  figureRequests.cancel();
  clearStatus("figure");
  figureInput = "";
  previousImage ??= image?.pixels ? image : null;
  image = next;
  showOriginal(image);
  controls.reset();
  update();
}

function useFile(file, name) {
  closeCanvas();
  byId("prediction").setAttribute("aria-busy", "true");
  useImage({ file, name, pixels: null, preprocessing: null });
}

function useOwnFile(file) {
  fileRequests.cancel();
  clearGallerySelection();
  useFile(file, file.name || "your image");
}

/** Show the current drawing; further strokes don't cancel the running request. */
function useDrawing(pixels) {
  if (!image || image.file) useImage({ file: null, name: "your drawing", pixels, preprocessing: null });
  else {
    image.pixels = pixels;
    update();
  }
}

function closeCanvas() {
  canvas.close();
  byId("draw").setAttribute("aria-pressed", "false");
}

function toggleCanvas() {
  if (canvas.isOpen) {
    closeCanvas();
    return;
  }
  fileRequests.cancel();
  clearGallerySelection();
  controls.reset();
  byId("draw").setAttribute("aria-pressed", "true");
  canvas.open();
}

// Send requests.

/** Show the image as it is now, and request what follows from it and the settings. */
function update() {
  hideProblem();
  if (!image || !classTable || controls.hasEmptyField) return;
  const changes = controls.changes;
  if (image.file && image.invert !== controls.invert) image.pixels = null;
  if (image.pixels) {
    const pixels = applyChanges(image.pixels, changes);
    canvas.show(pixels, describeInput(changes));
    figure.markAngle(changes.rotation);
    predictionRequests.submit(predictionRequest(isUnchanged(changes) && image.file ? image.file : pixels, changes));
    debounce("figure", FIGURE_DELAY_MILLISECONDS, requestFigure);
  } else {
    predictionRequests.submit(predictionRequest(image.file, UNCHANGED)); // changes need its pixels first
  }
}

function predictionRequest(content, changes) {
  const { decisionParameters, samplingParameters, invert } = controls;
  const isFile = content instanceof Blob;
  const body = isFile ? content : { image: toRows(content) };
  return { image, body, changes, decisionParameters, samplingParameters, invert: isFile ? invert : "no" };
}

/** Request the predictions without and with dropout. */
async function predict({ body, decisionParameters, samplingParameters, invert }, signal) {
  const common = { ...decisionParameters, invert };
  return Promise.all([
    requestJson("predict", { query: common, body, signal }),
    requestJson("predict", { query: { ...common, ...samplingParameters, return_pixels: true }, body, signal }),
  ]);
}

/** Request the image at all angles, unless the figure shows it already. */
function requestFigure() {
  if (!image.pixels) return;
  const changes = { ...controls.changes, rotation: 0 };
  const samplingParameters = { samples: FIGURE_MASKS, seed: controls.seed };
  const input = JSON.stringify([Array.from(applyChanges(image.pixels, changes)), samplingParameters]);
  if (input === figureInput) return;
  figureInput = input;
  figureRequests.submit({ images: RotationFigure.images(image.pixels, changes), samplingParameters });
}

async function predictRotations({ images, samplingParameters }, signal) {
  const query = { ...samplingParameters, invert: "no", return_samples: true };
  return requestJson("predict_batch", { query, body: { images: images.map(toRows) }, signal });
}

// Show responses.

function showPredictions(request, [evalPrediction, dropoutPrediction]) {
  clearStatus("prediction");
  if (classTable.names[dropoutPrediction.class_index] !== dropoutPrediction.label) {
    cardRequests.submit(update); // the service has another model now
    return;
  }
  previousImage = null;
  if (request.body instanceof Blob) storePixels(request, dropoutPrediction.preprocessing);
  byId("prediction").removeAttribute("aria-busy");
  byId("prediction").dataset.rotation = request.changes.rotation; // tells which request this is the response to
  byId("preprocessing").textContent =
    `${capitalize(request.image.name)}. ${explainPreprocessing(request.image.preprocessing)}`;
  classTable.show(evalPrediction, dropoutPrediction);
  showUncertainty(dropoutPrediction, classTable.names.length);
  fillDescriptionList(byId("numbers"), explainNumbers(dropoutPrediction, classTable.names.length));
  showSummary(summary(dropoutPrediction), dropoutPrediction.warnings);
}

/** Keep the network's input that the service has made of a file; show it if it is new. */
function storePixels({ image: sent, invert }, preprocessing) {
  const isNew = !sent.pixels || sent.invert !== invert;
  Object.assign(sent, { pixels: Uint8ClampedArray.from(preprocessing.pixels.flat()), preprocessing, invert });
  if (!isNew) return;
  canvas.show(image.pixels, describeInput(controls.changes));
  figure.markAngle(controls.changes.rotation);
  showOriginal(image);
  if (isUnchanged(controls.changes)) debounce("figure", FIGURE_DELAY_MILLISECONDS, requestFigure);
  else update();
}

function showSummary(texts, warnings) {
  for (const name of ["label", "confidence", "decision", "sentence"]) byId(name).textContent = texts[name];
  byId("decision").classList.toggle("abstains", !texts.isAnswered);
  byId("warnings").replaceChildren(...warnings.map((text) => element("li", {}, text)));
  debounce("announcement", ANNOUNCEMENT_DELAY_MILLISECONDS, () => {
    byId("announcement").textContent = `${texts.label} ${texts.confidence}. ${texts.decision}. ${texts.sentence}`;
  });
}

/** Show the file's own picture next to the network's input, if the service had to change it. */
async function showOriginal({ file, preprocessing }) {
  const original = byId("original");
  original.hidden = true;
  if (!file || !preprocessing?.steps.length) return;
  const picture = await createImageBitmap(file).catch(() => null);
  if (!picture || image.file !== file) return;
  const scale = original.width / Math.max(picture.width, picture.height);
  const [width, height] = [scale * picture.width, scale * picture.height];
  const context = original.getContext("2d");
  context.clearRect(0, 0, original.width, original.height);
  context.drawImage(picture, (original.width - width) / 2, (original.height - height) / 2, width, height);
  original.hidden = false;
}

function describeInput({ rotation, noise, blur, contrast, occlusion }) {
  const changes = [
    rotation && `rotated by ${rotation}°`, noise && "with noise", blur && "blurred",
    contrast !== 100 && "with changed contrast", occlusion && "with a covered centre",
  ].filter(Boolean);
  return `${[image.name, ...changes].join(", ")}: ${SIDE} by ${SIDE} pixels`;
}

function showFigure({ images }, { results }) {
  clearStatus("figure");
  figure.show(images, results, classTable.names);
  figure.markAngle(controls.changes.rotation);
}

// Handle failures.

function errorHandlers(source) {
  return {
    onUnauthorized: requestKey,
    onRetry: (error) => showStatus(source, retryText(error)),
    onRefusal: (error, request) => {
      clearStatus(source);
      showRefusal(error, request);
    },
  };
}

function showRefusal({ title, detail }, { image: refused }) {
  byId("prediction").removeAttribute("aria-busy");
  if (refused && !refused.pixels && previousImage) {
    image = previousImage;
    previousImage = null;
    showOriginal(image);
    controls.reset();
    update();
  }
  showProblem(`${refused?.name ? `${refused.name}: ` : ""}${title}: ${detail}`);
}

function showFigureRefusal({ title, detail }) {
  clearStatus("figure");
  byId("rotation-figure").replaceChildren(element("p", { class: "hint" }, `${title}: ${detail}`));
}

const timers = new Map();

/** Run the action once this name has not been debounced again for so long. */
function debounce(name, milliseconds, action) {
  clearTimeout(timers.get(name));
  timers.set(name, setTimeout(action, milliseconds));
}

fillGalleries((choice) => fileRequests.submit(choice));
listenForFiles(useOwnFile, () => {
  showProblem("The dropped content contains no file: save the image first, or copy and paste it.");
});
byId("draw").addEventListener("click", toggleCanvas);
showStatus("card", "Loading …");
cardRequests.submit(() => selectInGallery(FIRST_IMAGE));
