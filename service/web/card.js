// The card of the served model as a page.

import { ask } from "./api.js";
import { by, element } from "./dom.js";
import { percent } from "./words.js";

const MODES = { eval: "the whole network", mc: "100 masks", moments: "all masks, by moments" };

function facts(card) {
  const { recipe = {}, data = {}, architecture, weights } = card;
  const inputs = architecture.image.reduce((product, side) => product * side);
  const layers = [inputs, ...architecture.hidden, architecture.classes];
  return {
    Classes: card.classes.join(", "),
    Layers: `${layers.join(" – ")} units, dropout ${architecture.dropout.join(" and ")}`,
    Weights: `sha256 ${weights.sha256}`,
    Recipe: Object.entries(recipe).map(([name, value]) => `${name.replaceAll("_", " ")} ${value}`).join(", "),
    Data: data.name,
    Split: data.split && Object.entries(data.split).map(([name, count]) => `${name} ${count}`).join(", "),
    "Made by": card.command,
    Versions: card.versions && Object.entries(card.versions).map(([name, version]) => `${name} ${version}`).join(", "),
  };
}

function table(id, heads, rows) {
  if (!rows.length) {
    by(id).closest("section").hidden = true; // a card need not have it
    return;
  }
  const cells = ([name, ...values]) => element(
    "tr", {}, element("th", { scope: "row" }, name), ...values.map((value) => element("td", {}, value)),
  );
  by(id).replaceChildren(
    element("thead", {}, element("tr", {}, ...heads.map((head) => element("th", { scope: "col" }, head)))),
    element("tbody", {}, ...rows.map(cells)),
  );
}

function show(card) {
  const known = Object.entries(facts(card)).filter(([, value]) => value);
  by("is").replaceChildren(element("tbody", {}, ...known.map(([name, value]) => element(
    "tr", {}, element("th", { scope: "row" }, name), element("td", { class: "text" }, value),
  ))));
  const test = card.metrics?.test ?? {};
  const modes = Object.entries(MODES).filter(([mode]) => test[mode]);
  const scores = (one) => [percent(one.accuracy), one.nll.toFixed(4), one.ece.toFixed(4)];
  table("right", ["Prediction", "accuracy", "NLL", "ECE"], modes.flatMap(([mode, name]) => [
    [name, ...scores(test[mode])],
    ...(test[mode].calibrated ? [[`${name}, calibrated`, ...scores(test[mode].calibrated)]] : []),
  ]));
  const promised = test.mc?.calibrated ?? {};
  const sets = Object.entries(promised.prediction_sets?.lac ?? {});
  table("promise", ["Asked for", "held", "classes in a set"], sets.map(
    ([asked, { covered, size }]) => [percent(Number(asked)), percent(covered), size.toFixed(2)],
  ));
  table("risk", ["Allowed", "answered", "wrong"], Object.entries(promised.max_risk ?? {}).map(
    ([allowed, { answered, error }]) => [percent(Number(allowed)), percent(answered), percent(error)],
  ));
}

ask("card.json").then(show).catch((problem) => {
  const isAway = problem.kind === "offline";
  by("problem").textContent = isAway ? "The service can’t be reached: reload the page." : problem.detail;
  by("problem").hidden = false;
  by("card").hidden = true;
});
