// The page: an image and its changes -> requests to the service -> what is shown.

import { requestJson } from "./api.js";
import { DrawingCanvas } from "./canvas.js";
import { ClassTable, showUncertainty } from "./charts.js";
import { Controls } from "./controls.js";
import { byId, element, fillDescriptionList } from "./dom.js";
import { explainNumbers, explainPreprocessing, summary } from "./explanations.js";
import { applyChanges, isUnchanged, UNCHANGED } from "./image-changes.js";
import { clearGallerySelection, fillGalleries, listenForFiles, selectFirstInGallery } from "./image-sources.js";
import { LatestRequest } from "./latest-request.js";
import { clearStatus, hideProblem, requestKey, retryText, showProblem, showStatus } from "./messages.js";
import { describeNetwork, isSame } from "./network.js";
import { toNpy } from "./npy.js";
import { FIGURE_MASKS, RotationFigure } from "./rotation-figure.js";

const FIGURE_DELAY_MILLISECONDS = 250; // without a change, before all angles are requested
const ANNOUNCEMENT_DELAY_MILLISECONDS = 700;
const MAX_PIXELATED_SIDE = 64; // pixels; larger images are shown smoothly

let network = null; // once its card is known
let classTable = null;
// {file, name, isExample, pixels, preprocessing, invert}: `file` is null for a drawing; `pixels` are the network's input,
// null until the service has returned them for a file; `invert` is the parameter that they were made with.
let image = null;
let previousImage = null; // until the service has accepted the new one
let figureInput = null; // what the rotation figure shows: {pixels, settings}

const canvas = new DrawingCanvas(useDrawing);
const controls = new Controls(() => update());
const figure = new RotationFigure((angle) => {
  controls.setRotation(angle);
  update();
});
const cardRequests = new LatestRequest((_, signal) => requestJson("card.json", { signal }), {
  ...errorHandlers("card"),
  onResponse: ({ isCheck }, card) => {
    clearStatus("card");
    const next = describeNetwork(card);
    if (!isCheck || !isSame(network, next)) useNetwork(next);
  },
});
const fileRequests = new LatestRequest(({ load }, signal) => load(signal), {
  ...errorHandlers("file"),
  onRefusal: showMissingFile,
  onResponse: ({ name, isExample }, file) => {
    clearStatus("file");
    useFile(file, name, isExample);
  },
});
const predictionRequests = new LatestRequest(predict, {
  ...errorHandlers("prediction"), onRefusal: showRefusedPrediction, onResponse: showPredictions,
});
const figureRequests = new LatestRequest(predictRotations, {
  ...errorHandlers("figure"), onRefusal: showFigureRefusal, onResponse: showFigure,
});

/** Show this network's examples and settings, and request its predictions. */
function useNetwork(next) {
  hideProblem(); // of a request to the previous network
  const isNewShape = !network || !isSame(network.shape, next.shape);
  network = next;
  classTable = new ClassTable(network.classes);
  controls.setNetwork(network);
  fillGalleries(network, (choice) => fileRequests.submit(choice));
  byId("draw").hidden = !network.isDrawable;
  byId("license").hidden = !network.isOfClothing;
  if (!isNewShape && image) {
    update();
    return;
  }
  const { height, width } = network.shape;
  document.body.classList.toggle("smooth", Math.max(height, width) > MAX_PIXELATED_SIDE);
  predictionRequests.cancel();
  figureRequests.cancel();
  closeCanvas();
  canvas.setShape(network.shape);
  figure.setShape(network.shape);
  image = previousImage = null;
  selectFirstInGallery();
}

// Choose an image.

/** Replace the image and reset its changes. */
function useImage(next) {
  predictionRequests.cancel();
  figureRequests.cancel();
  clearStatus("figure");
  figureInput = null;
  previousImage ??= image?.pixels ? image : null;
  image = next;
  showOriginal(image);
  controls.reset();
  update();
}

function useFile(file, name, isExample = false) {
  closeCanvas();
  byId("prediction").setAttribute("aria-busy", "true");
  useImage({ file, name, isExample, pixels: null, preprocessing: null });
}

function useOwnFile(file) {
  fileRequests.cancel();
  clearGallerySelection();
  useFile(file, file.name || "Your image");
}

/** Show the current drawing; further strokes don't cancel the running request. */
function useDrawing(pixels) {
  if (!image || image.file) useImage({ file: null, name: "Your drawing", pixels, preprocessing: null });
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
  if (image.file && image.invert !== invertOf(image)) image.pixels = null;
  if (image.pixels) {
    const pixels = applyChanges(image.pixels, network.shape, changes);
    canvas.show(pixels, describeInput(changes));
    figure.markAngle(changes.rotation);
    predictionRequests.submit(predictionRequest(isUnchanged(changes) && image.file ? image.file : pixels, changes));
    debounce("figure", FIGURE_DELAY_MILLISECONDS, requestFigure);
  } else {
    predictionRequests.submit(predictionRequest(image.file, UNCHANGED)); // changes need its pixels first
  }
}

/** The parameter `invert` for a file: an example has been inverted if it must be. */
function invertOf({ isExample }) {
  return isExample && controls.invert === "auto" ? "no" : controls.invert;
}

/** The request for a file, or for pixels; the pixels of a file are requested until they are known. */
function predictionRequest(content, changes) {
  const { decisionParameters, samplingParameters } = controls;
  const isFile = content instanceof Blob;
  const common = { ...decisionParameters, invert: isFile ? invertOf(image) : "no" };
  const { withoutDropout, withDropout } = classTable.parameters;
  return {
    image,
    body: isFile ? content : toNpy([content], network.shape),
    changes,
    invert: common.invert,
    queries: [
      { ...common, ...withoutDropout },
      { ...common, ...samplingParameters, ...withDropout, ...(image.pixels ? {} : { return_pixels: true }) },
    ],
  };
}

/** Request the predictions without and with dropout. */
async function predict({ body, queries }, signal) {
  return Promise.all(queries.map((query) => requestJson("predict", { query, body, signal })));
}

/** Request the image at all angles, unless the figure shows it already. */
function requestFigure() {
  if (!image?.pixels) return; // the service has not prepared it yet
  const changes = { ...controls.changes, rotation: 0 };
  const samplingParameters = { samples: FIGURE_MASKS, seed: controls.seed };
  const { pixels } = image;
  const settings = JSON.stringify([changes, samplingParameters]);
  if (pixels === figureInput?.pixels && settings === figureInput.settings) return;
  figureInput = { pixels, settings };
  figureRequests.submit({ pixels, changes, samplingParameters });
}

async function predictRotations({ pixels, changes, samplingParameters }, signal) {
  const images = await figure.makeImages(pixels, changes, signal);
  const query = { ...samplingParameters, invert: "no", return_samples: true };
  const { results } = await requestJson("predict_batch", { query, body: toNpy(images, network.shape), signal });
  return { images, results };
}

// Show responses.

function showPredictions(request, [evalPrediction, dropoutPrediction]) {
  clearStatus("prediction");
  if (classTable.names[dropoutPrediction.class_index] !== dropoutPrediction.label) {
    cardRequests.submit({}); // the service has another model now
    return;
  }
  previousImage = null;
  if (dropoutPrediction.preprocessing.pixels) storePixels(request, dropoutPrediction.preprocessing);
  byId("prediction").removeAttribute("aria-busy");
  byId("prediction").dataset.rotation = request.changes.rotation; // tells which request this is the response to
  byId("preprocessing").textContent =
    `${request.image.name}. ${explainPreprocessing(request.image.preprocessing, network)}`;
  classTable.show(evalPrediction, dropoutPrediction);
  showUncertainty(dropoutPrediction, classTable.names.length);
  const { set_method } = request.queries.at(-1);
  fillDescriptionList(
    byId("numbers"), explainNumbers({ ...dropoutPrediction, set_method }, classTable.names.length),
  );
  showSummary(summary(dropoutPrediction), dropoutPrediction.warnings);
}

/** Keep and show the network's input that the service has made of a file, unless it is known. */
function storePixels({ image: sent, invert }, preprocessing) {
  if (sent.pixels && sent.invert === invert) return;
  Object.assign(sent, { pixels: Uint8ClampedArray.from(preprocessing.pixels.flat(2)), preprocessing, invert });
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
  if (!picture || image?.file !== file) return;
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
  return `${[image.name, ...changes].join(", ")}: ${network.shape.width} by ${network.shape.height} pixels`;
}

function showFigure(_, { images, results }) {
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

function showRefusedPrediction(error, request) {
  clearStatus("prediction");
  showRefusal(error, request);
  cardRequests.submit({ isCheck: true }); // the service may have a network now that refuses such pixels or settings
}

function showMissingFile(error) {
  clearStatus("file");
  showRefusal(error, {});
  cardRequests.submit({}); // the service may have a network with other examples now
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

listenForFiles(useOwnFile, () => {
  showProblem("The dropped content contains no file: save the image first, or copy and paste it.");
});
byId("draw").addEventListener("click", toggleCanvas);
showStatus("card", "Loading …");
cardRequests.submit({});
