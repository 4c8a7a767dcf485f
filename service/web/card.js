// The page of the model card.

import { requestJson } from "./api.js";
import { byId, element } from "./dom.js";
import { percent } from "./explanations.js";

const MODES = { eval: "without dropout", mc: "100 masks", moments: "all masks (moment propagation)" };

/** The layers of a network of ours; of another one its input and where it has dropout. */
function layers({ architecture, input, graph, classes }) {
  if (!architecture) {
    const { channels, height, width } = input;
    const places = graph.dropout.map(({ name, p }) => `${name} ${p}`).join(", ");
    return `${channels} x ${height} x ${width} pixels to ${classes.length} classes, dropout ${places}`;
  }
  const inputs = architecture.image.reduce((product, side) => product * side);
  const units = [inputs, ...architecture.hidden, architecture.classes];
  return `${units.join(" – ")} units, dropout ${architecture.dropout.join(" and ")}`;
}

function facts(card) {
  const { recipe = {}, data = {}, weights, graph } = card;
  return {
    Classes: card.classes.join(", "),
    Layers: layers(card),
    Weights: `sha256 ${(weights ?? graph).sha256}`,
    Training: Object.entries(recipe).map(([name, value]) => `${name.replaceAll("_", " ")} ${value}`).join(", "),
    Data: data.name,
    Split: data.split && Object.entries(data.split).map(([name, count]) => `${name} ${count}`).join(", "),
    Command: card.command,
    Versions: card.versions && Object.entries(card.versions).map(([name, version]) => `${name} ${version}`).join(", "),
  };
}

function table(id, headings, rows) {
  if (!rows.length) {
    byId(id).closest("section").hidden = true; // the card has no such figures
    return;
  }
  const cells = ([name, ...values]) => element(
    "tr", {}, element("th", { scope: "row" }, name), ...values.map((value) => element("td", {}, value)),
  );
  byId(id).replaceChildren(
    element("thead", {}, element("tr", {}, ...headings.map((heading) => element("th", { scope: "col" }, heading)))),
    element("tbody", {}, ...rows.map(cells)),
  );
}

function show(card) {
  const entries = Object.entries(facts(card)).filter(([, value]) => value);
  byId("facts").replaceChildren(element("tbody", {}, ...entries.map(([name, value]) => element(
    "tr", {}, element("th", { scope: "row" }, name), element("td", { class: "text" }, value),
  ))));
  const test = card.metrics?.test ?? {};
  const modes = Object.entries(MODES).filter(([mode]) => test[mode]);
  const scores = ({ accuracy, nll, ece }) => [percent(accuracy), nll.toFixed(4), ece.toFixed(4)];
  table("accuracy", ["Prediction", "accuracy", "NLL", "ECE"], modes.flatMap(([mode, name]) => [
    [name, ...scores(test[mode])],
    ...(test[mode].calibrated ? [[`${name}, calibrated`, ...scores(test[mode].calibrated)]] : []),
  ]));
  const calibrated = test.mc?.calibrated ?? {};
  const sets = Object.entries(calibrated.prediction_sets?.lac ?? {});
  table("coverage", ["Requested coverage", "measured coverage", "classes per set"], sets.map(
    ([requested, { covered, size }]) => [percent(Number(requested)), percent(covered), size.toFixed(2)],
  ));
  const risks = Object.entries(calibrated.max_risk ?? {});
  table("abstention", ["Maximum error rate", "answered", "measured error rate"], risks.map(
    ([maximum, { answered, error }]) => [percent(Number(maximum)), percent(answered), percent(error)],
  ));
}

requestJson("card.json").then(show).catch((error) => {
  const isOffline = error.kind === "offline";
  byId("problem").textContent = isOffline ? "The service cannot be reached. Reload the page." : error.detail;
  byId("problem").hidden = false;
  byId("card").hidden = true;
});
