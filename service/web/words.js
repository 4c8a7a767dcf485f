// What the numbers of an answer mean: a sentence and a unit for each.

const PERCENT = new Intl.NumberFormat("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });

/** 0.3954 -> "39.5 %"; what rounds to nothing or to all says so. */
export function percent(part) {
  if (part > 0.9995 && part < 1) return "> 99.9 %";
  if (part > 0 && part < 0.0005) return "< 0.1 %";
  return `${PERCENT.format(100 * part)} %`;
}

/** 0.05 -> "5 %". */
function level(part) {
  return `${+(100 * part).toPrecision(3)} %`;
}

/** Three digits after the point. */
export function digits(value) {
  return value.toFixed(3);
}

export function capital(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

/** How many masks hold the predicted class for the most probable one. */
export function votes({ sample_probabilities: masks, class_index: winner }) {
  return masks ? masks.filter((probs) => probs.every((prob) => prob <= probs[winner])).length : null;
}

/** @returns {{label, confidence, decision, sentence, isAnswered}} the answer in words, for who reads one line only. */
export function verdict(answer) {
  const { label, confidence, abstain, abstain_reason: reason, novelty, samples } = answer;
  const agreeing = votes(answer);
  const sure = answer.calibrated
    ? `Of predictions as confident as this, ${percent(confidence)} are right.`
    : "So few masks are not calibrated: take the confidence with a grain of salt.";
  const said = agreeing === null
    ? "Over all masks, by moments."
    : agreeing === samples ? `All ${samples} masks say ${label}.` : `${agreeing} of ${samples} masks say ${label}.`;
  const why = {
    risk: `${said} It leaves this to a person: below ${percent(answer.abstain_threshold)} confidence, more than ` +
      `${level(answer.max_risk)} of its answers would be wrong.`,
    novelty: `${said} It leaves this to a person all the same: the image is too unlike what it was trained on ` +
      `(${novelty?.score.toFixed(2)}, where ${novelty?.threshold?.toFixed(2)} is the limit).`,
  };
  return {
    label: abstain ? `${capital(label)}?` : capital(label),
    confidence: percent(confidence),
    decision: { risk: "Abstains: not sure enough", novelty: "Abstains: never seen the like" }[reason] ?? "Answers",
    sentence: why[reason] ?? `${said} ${sure}`,
    isAnswered: !abstain,
  };
}

/** @returns {[name, value, unit, sentence][]} the two kinds of doubt and their sum. */
export function entropies({ uncertainty }, classes) {
  const most = Math.log(classes).toFixed(2);
  return [
    ["Ambiguity", digits(uncertainty.expected_entropy), "nats",
      "Expected entropy: the doubt that every mask has by itself, as the image could be several things (aleatoric)."],
    ["Not learnt", digits(uncertainty.mutual_information), "nats",
      "Mutual information: the doubt on which the masks disagree, as training never settled it (epistemic)."],
    ["Total", digits(uncertainty.predictive_entropy), "nats",
      `Predictive entropy: 0 is sure, ${most} is as good as guessing among ${classes} classes.`],
  ];
}

/** @returns {[name, value, unit, sentence][]} everything else that there is of an answer. */
export function numbers(answer, classes) {
  return [confidence, agreement, samplingError, spread, predictionSet, limit, novelty, guess]
    .map((tell) => tell(answer, classes))
    .filter(Boolean);
}

function confidence(answer) {
  return ["Confidence", percent(answer.confidence), "", answer.calibrated
    ? "The probability of the most probable class, calibrated: of such predictions, this part is right."
    : "The probability of the most probable class, as the network gives it: not calibrated for so few masks."];
}

function agreement(answer) {
  const agreeing = votes(answer);
  return agreeing !== null && ["Agreement", `${agreeing} of ${answer.samples}`, "masks",
    "How many thinned copies find the predicted class the most probable one."];
}

function samplingError({ uncertainty, class_index: winner }) {
  const errors = uncertainty.standard_error;
  return errors && ["Sampling error", digits(100 * errors[winner]), "percentage points",
    "How far the confidence may be off as only so many masks were drawn (standard error); more make it smaller."];
}

function spread({ uncertainty, class_index: winner }) {
  return ["Spread", digits(100 * Math.sqrt(uncertainty.variance[winner])), "percentage points",
    "How far the masks are apart about the predicted class (standard deviation); more don’t make it smaller."];
}

function predictionSet({ prediction_set: set, coverage }) {
  return set && ["Prediction set", set.join(", ") || "empty", set.length === 1 ? "1 class" : `${set.length} classes`,
    `Such sets hold the true class of ${level(coverage)} of all images; an empty one says that none is likely.`];
}

function limit({ abstain_threshold: least, max_risk: risk }) {
  return least !== null && ["Limit for answers", percent(least), "confidence",
    `Above it, at most ${level(risk)} of its answers are wrong; below, it leaves the image to a person.`];
}

function novelty({ novelty: found }) {
  return found && ["Novelty", found.score.toFixed(2), found.threshold && `limit ${found.threshold.toFixed(2)}`,
    "How unlike the training’s the image is, without unit: 0 is typical, 1 is far; above the limit it is novel."];
}

function guess(_, classes) {
  return ["Blind guess", percent(1 / classes), "",
    `What the confidence would be if it knew nothing and took all ${classes} classes for equally likely.`];
}

/** What was done to an image before the network saw it; nothing to what was drawn as it sees it. */
export function preprocessing(told) {
  if (!told) return "Taken as it is drawn.";
  const { source, width, height, inverted, steps } = told;
  const from = `${source}, ${width} × ${height} pixels`;
  const done = steps.map((step) => (step === "inverted" ? "inverted (dark became light)" : step)).join(", ");
  return done ? `${from}: ${done}.` : `${from}: taken as it is${inverted ? "" : ", not inverted"}.`;
}
