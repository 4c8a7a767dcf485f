// The page: an image and its changes -> questions to the service -> what is seen.

import { ask, load, useKey } from "./api.js";
import { Classes, showDoubt } from "./charts.js";
import { Controls } from "./controls.js";
import { by, describe, element } from "./dom.js";
import { drawings } from "./drawings.js";
import { Figure, FIGURE_MASKS } from "./figure.js";
import { Live } from "./live.js";
import { Pad } from "./pad.js";
import { asRows, changed, isUnchanged, SIDE, UNCHANGED } from "./pixels.js";
import { capital, numbers, preprocessing, verdict } from "./words.js";

const CLOTHES = [
  "ankle boot", "pullover", "trouser", "shirt", "coat", "sandal", "sneaker", "dress", "bag", "t-shirt/top",
];
const FIRST = "ankle boot";
const FIGURE_MILLISECONDS = 250; // without a change, before all angles are asked for
const SPEECH_MILLISECONDS = 700;

let classes = null; // the table, once the classes are known
let image = null; // {file, name, pixels, told, invert}: a file or none, what the network sees of it, and how it came
let former = null; // the image before, until the new one is answered
let drawn = ""; // what the figure shows

const pad = new Pad(draw);
const controls = new Controls(() => act(), () => act());
const figure = new Figure((angle) => {
  controls.turn(angle);
  act();
});
const model = new Live((_, signal) => ask("card.json", { signal }), {
  ...told("card"),
  show: (goOn, card) => {
    hush("card");
    classes = new Classes(card.classes);
    goOn();
  },
});
const files = new Live(({ file }, signal) => file(signal), {
  ...told("file"),
  show: ({ name }, file) => {
    hush("file");
    give(file, name);
  },
});
const answers = new Live(predict, { ...told("answer"), show });
const turns = new Live(predictTurned, { ...told("figure"), refuse: refuseTurned, show: showTurned });

// Asking.

/** Take this image instead of the last; changes are undone. */
function take(next) {
  answers.drop();
  turns.drop();
  hush("figure");
  drawn = "";
  former ??= image?.pixels ? image : null;
  image = next;
  showOrigin(image);
  controls.reset();
  act();
}

function give(file, name) {
  leavePad();
  by("answer").setAttribute("aria-busy", "true");
  take({ file, name, pixels: null, told: null });
}

/** Take what is drawn: a stroke goes on with what is being asked. */
function draw(pixels) {
  if (!image || image.file) take({ file: null, name: "your drawing", pixels, told: null });
  else {
    image.pixels = pixels;
    act();
  }
}

/** Do what follows from anything that was given, changed or set. */
function act() {
  by("problem").hidden = true;
  if (!image || !classes || controls.isUnfinished) return;
  const changes = controls.changes;
  if (image.file && image.invert !== controls.invert) image.pixels = null;
  if (image.pixels) {
    const pixels = changed(image.pixels, changes);
    pad.show(pixels, seenInWords(changes));
    figure.mark(changes.rotation);
    answers.ask(question(isUnchanged(changes) && image.file ? image.file : pixels, changes));
    later("figure", FIGURE_MILLISECONDS, askTurned);
  } else {
    answers.ask(question(image.file, UNCHANGED)); // changes follow once its pixels are known
  }
}

function question(sent, changes) {
  const { demands, voting, invert } = controls;
  const body = sent instanceof Blob ? sent : { image: asRows(sent) };
  return { of: image, body, changes, demands, voting, invert: sent instanceof Blob ? invert : "no" };
}

/** Ask for both predictions. */
async function predict({ body, demands, voting, invert }, signal) {
  const both = { ...demands, invert };
  return Promise.all([
    ask("predict", { query: both, body, signal }),
    ask("predict", { query: { ...both, ...voting, return_pixels: true }, body, signal }),
  ]);
}

/** Ask for the image at all angles, unless that is what is shown. */
function askTurned() {
  if (!image.pixels) return;
  const changes = { ...controls.changes, rotation: 0 };
  const voting = { samples: FIGURE_MASKS, seed: controls.seed };
  const wanted = JSON.stringify([Array.from(changed(image.pixels, changes)), voting]);
  if (wanted === drawn) return;
  drawn = wanted;
  turns.ask({ images: Figure.images(image.pixels, changes), voting });
}

async function predictTurned({ images, voting }, signal) {
  const query = { ...voting, invert: "no", return_samples: true };
  return ask("predict_batch", { query, body: { images: images.map(asRows) }, signal });
}

// Showing.

function show({ of, changes, invert, body }, [whole, thinned]) {
  hush("answer");
  if (classes.names[thinned.class_index] !== thinned.label) {
    model.ask(act); // another model is served by now
    return;
  }
  former = null;
  if (body instanceof Blob) {
    const isNew = !of.pixels || of.invert !== invert;
    Object.assign(of, {
      pixels: Uint8ClampedArray.from(thinned.preprocessing.pixels.flat()), told: thinned.preprocessing, invert,
    });
    if (isNew) seen();
  }
  by("answer").removeAttribute("aria-busy");
  by("answer").dataset.rotation = changes.rotation; // which question this answers
  by("preprocessing").textContent = `${capital(of.name)}. ${preprocessing(of.told)}`;
  classes.show(whole, thinned);
  showDoubt(thinned, classes.names.length);
  describe(by("numbers"), numbers(thinned, classes.names.length));
  showVerdict(verdict(thinned), thinned.warnings);
}

/** Show the pixels that have just become known, and go on from them. */
function seen() {
  pad.show(image.pixels, seenInWords(controls.changes));
  figure.mark(controls.changes.rotation);
  showOrigin(image);
  if (isUnchanged(controls.changes)) later("figure", FIGURE_MILLISECONDS, askTurned);
  else act();
}

function showVerdict(words, warnings) {
  for (const name of ["label", "confidence", "decision", "sentence"]) by(name).textContent = words[name];
  by("decision").classList.toggle("abstains", !words.isAnswered);
  by("warnings").replaceChildren(...warnings.map((text) => element("li", {}, text)));
  later("speech", SPEECH_MILLISECONDS, () => {
    by("spoken").textContent = `${words.label} ${words.confidence}. ${words.decision}. ${words.sentence}`;
  });
}

/** Show what was given beside what became of it, where that is not the same. */
async function showOrigin({ file, told }) {
  const canvas = by("origin");
  canvas.hidden = true;
  if (!file || !told?.steps.length) return;
  const picture = await createImageBitmap(file).catch(() => null);
  if (!picture || image.file !== file) return;
  const scale = canvas.width / Math.max(picture.width, picture.height);
  const [width, height] = [scale * picture.width, scale * picture.height];
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.drawImage(picture, (canvas.width - width) / 2, (canvas.height - height) / 2, width, height);
  canvas.hidden = false;
}

function seenInWords({ rotation, noise, blur, contrast, occlusion }) {
  const done = [
    rotation && `turned by ${rotation}°`, noise && "with noise", blur && "blurred",
    contrast !== 100 && "with other contrast", occlusion && "covered in the middle",
  ].filter(Boolean);
  return `${[image.name, ...done].join(", ")}: ${SIDE} by ${SIDE} pixels`;
}

function showTurned({ images }, { results }) {
  hush("figure");
  figure.show(images, results, classes.names);
  figure.mark(controls.changes.rotation);
}

// Where there is no answer.

const waiting = new Map(); // what is said while who has no answer

/** What is done where there is no answer, by who asked. */
function told(who) {
  return {
    key,
    wait: (problem) => say(who, inWords(problem)),
    refuse: (problem, question) => {
      hush(who);
      refuse(problem, question);
    },
  };
}

function inWords({ kind, detail, seconds }) {
  const again = `Trying again in ${Math.ceil(seconds)} s.`;
  return kind === "busy" ? `The service is busy: ${detail}. ${again}` : `The service can’t be reached. ${again}`;
}

function say(who, text) {
  waiting.set(who, text);
  by("status").textContent = text;
  by("status").hidden = false;
}

function hush(who) {
  waiting.delete(who);
  by("status").hidden = waiting.size === 0;
}

function refuse({ title, detail }, { of }) {
  by("answer").removeAttribute("aria-busy");
  if (of && !of.pixels && former) {
    image = former; // go on with what could be read
    former = null;
    showOrigin(image);
    controls.reset();
    act();
  }
  complain(`${of?.name ? `${of.name}: ` : ""}${title}: ${detail}`);
}

function complain(text) {
  by("problem").textContent = text;
  by("problem").hidden = false;
}

function refuseTurned({ title, detail }) {
  hush("figure");
  by("rotation-figure").replaceChildren(element("p", { class: "hint" }, `${title}: ${detail}`));
}

let asking = null;

/** Ask for a key, once for all that wait for it. */
function key({ detail }) {
  by("key-why").textContent = `It says: ${detail}.`;
  say("key", "The service waits for a key.");
  asking ??= new Promise((done) => {
    const dialog = by("key-dialog");
    const field = by("api-key");
    dialog.addEventListener("close", () => {
      asking = null;
      hush("key");
      const given = field.value;
      field.value = "";
      if (given) useKey(given);
      done(Boolean(given));
    }, { once: true });
    dialog.showModal();
  });
  return asking;
}

// Giving.

function leavePad() {
  pad.close();
  by("draw").setAttribute("aria-pressed", "false");
}

function uncheck() {
  for (const choice of document.getElementsByName("image")) choice.checked = false;
}

function giveOwn(file) {
  if (!file) return;
  files.drop();
  uncheck();
  give(file, file.name || "your image");
}

function choice(name, picture, file) {
  const change = () => files.ask({ file, name });
  const radio = element("input", { type: "radio", name: "image", value: name, change });
  return element("label", { title: name }, radio, picture, element("span", { class: "unseen" }, name));
}

function offerImages() {
  by("clothes").replaceChildren(...CLOTHES.map((name) => {
    const path = new URL(`images/${name.replace(/[ /]/, "-")}.png`, import.meta.url);
    const picture = element("img", { src: path, alt: "", width: 48, height: 48 });
    return choice(name, picture, (signal) => load(path, signal));
  }));
  by("drawings").replaceChildren(...drawings().map(([name, canvas]) => {
    canvas.setAttribute("aria-hidden", "true");
    return choice(name, canvas, () => new Promise((done) => canvas.toBlob(done)));
  }));
}

function listen() {
  by("pick").addEventListener("click", () => by("file").click());
  by("file").addEventListener("change", () => {
    giveOwn(by("file").files[0]);
    by("file").value = ""; // so that the same one can be chosen again
  });
  by("draw").addEventListener("click", () => {
    if (pad.isOpen) leavePad();
    else {
      files.drop();
      uncheck();
      controls.reset();
      by("draw").setAttribute("aria-pressed", "true");
      pad.open();
    }
  });
  addEventListener("paste", (event) => giveOwn(event.clipboardData.files[0]));
  addEventListener("dragover", (event) => {
    event.preventDefault();
    by("drop").hidden = false;
  });
  addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) by("drop").hidden = true;
  });
  addEventListener("drop", (event) => {
    event.preventDefault();
    by("drop").hidden = true;
    const [file] = event.dataTransfer.files;
    if (file) giveOwn(file);
    else complain("There was no file in what you dropped: save the image first, or copy and paste it.");
  });
}

const timers = new Map();

/** Do it once nothing of this name was to be done for so long. */
function later(name, milliseconds, action) {
  clearTimeout(timers.get(name));
  timers.set(name, setTimeout(action, milliseconds));
}

offerImages();
listen();
say("card", "Loading …");
model.ask(() => document.querySelector(`input[name=image][value="${FIRST}"]`).click());
