// What the numbers of a prediction mean: a unit and a sentence for each.

// What prediction sets cover, by method.
const COVERED = {
  lac: "of all images. Of some classes the share is smaller; the method Mondrian has it for each class.",
  aps: "of all images. They are larger for images that are hard for the network.",
  raps: "of all images. They are larger for hard images, but have few of the improbable classes.",
  mondrian: "of the images of each class. A class of which there were too few images is in every set.",
};
const PERCENT = new Intl.NumberFormat("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });

/** 0.3954 -> "39.5 %"; values that would round to 0 or 100 % get "<" or ">". */
export function percent(share) {
  if (share > 0.9995 && share < 1) return "> 99.9 %";
  if (share > 0 && share < 0.0005) return "< 0.1 %";
  return `${PERCENT.format(100 * share)} %`;
}

/** 0.05 -> "5 %". */
function roundPercent(share) {
  return `${+(100 * share).toPrecision(3)} %`;
}

/** Three decimal places. */
function decimal(value) {
  return value.toFixed(3);
}

/** Place of the predicted class in the lists of a prediction, which may have the most probable classes only. */
function placeOfWinner({ classes, label, class_index: index }) {
  return classes ? classes.indexOf(label) : index;
}

/**
 * Number of masks under which the predicted class is the most probable, as the start of a sentence; null without masks.
 * If the most probable classes only are listed, another class may be more probable under some masks, which then are not
 * counted.
 */
function agreeingMasks(prediction) {
  const { sample_probabilities: masks, samples, classes } = prediction;
  if (!masks) return null;
  const winner = placeOfWinner(prediction);
  const agreeing = masks.filter((probs) => probs.every((prob) => prob <= probs[winner]));
  const unlisted = (probs) => (classes ? 1 - probs.reduce((sum, prob) => sum + prob) : 0);
  const certain = agreeing.filter((probs) => unlisted(probs) <= probs[winner]);
  return `${certain.length < agreeing.length ? "At least " : ""}${certain.length} of ${samples}`;
}

/** @returns {{label, confidence, decision, sentence, isAnswered}} the prediction in a few words. */
export function summary(prediction) {
  const { label, confidence, abstain, abstain_reason: reason } = prediction;
  const agreement = agreementSentence(prediction);
  return {
    label: abstain ? `${label}?` : label,
    confidence: percent(confidence),
    decision: { risk: "Abstains: low confidence", novelty: "Abstains: out-of-distribution image" }[reason] ?? "Answers",
    sentence: `${agreement} ${reason ? abstentionSentence(prediction) : confidenceSentence(prediction)}`,
    isAnswered: !abstain,
  };
}

const UNUSUAL = {
  appearance: "brightness, contrast or texture of the image is too different from ordinary images",
  features: "what the network finds in the image is too different from ordinary images",
  pose: "the pose is unusual: what is shown may be turned, moved, smaller or covered",
};

function agreementSentence(prediction) {
  const { label, samples } = prediction;
  const agreeing = agreeingMasks(prediction);
  if (agreeing === null) return "Mean over all masks, by moment propagation.";
  const masks = agreeing === `${samples} of ${samples}` ? `All ${samples}` : agreeing;
  return `${masks} masks predict ${label}.`;
}

function confidenceSentence({ calibrated, confidence }) {
  return calibrated
    ? `Of all predictions with this confidence, ${percent(confidence)} are correct.`
    : "The confidence is not calibrated.";
}

function abstentionSentence({ abstain_reason: reason, abstain_threshold: threshold, max_risk: maxRisk, novelty }) {
  if (reason === "risk" && threshold === null) {
    return "A person should decide, for every image: there is no guarantee that at most " +
      `${roundPercent(maxRisk)} of the answers would be wrong. ` +
      "The calibration images were too few, or too many of them got a wrong class.";
  }
  if (reason === "risk") {
    return `A person should decide: if the service also answered below ${percent(threshold)} confidence, ` +
      `more than ${roundPercent(maxRisk)} of its answers would be wrong.`;
  }
  return `A person should decide: ${UNUSUAL[novelty.view]} ` +
    `(novelty score ${novelty.score.toFixed(2)}, threshold ${novelty.threshold.toFixed(2)}).`;
}

/** @returns {[name, value, unit, sentence][]} both kinds of uncertainty and their sum. */
export function explainUncertainty({ uncertainty }, classCount) {
  const maximum = Math.log(classCount).toFixed(2);
  return [
    ["Aleatoric", decimal(uncertainty.expected_entropy), "nats",
      "Expected entropy: the mean uncertainty of the single masks. It is high if the image is ambiguous."],
    ["Epistemic", decimal(uncertainty.mutual_information), "nats",
      "Mutual information: how much the masks disagree. It is high if the network has not learnt such images."],
    ["Total", decimal(uncertainty.predictive_entropy), "nats",
      `Predictive entropy: 0 is certain, ${maximum} is the maximum for ${classCount} classes.`],
  ];
}

/**
 * @param prediction: with the parameter `set_method` of its request.
 * @returns {[name, value, unit, sentence][]} all other numbers that the prediction has.
 */
export function explainNumbers(prediction, classCount) {
  return [
    confidence, agreement, standardError, standardDeviation, predictionSet, confidenceThreshold, noveltyScore,
    randomGuess,
  ].map((explain) => explain(prediction, classCount)).filter(Boolean);
}

function confidence(prediction) {
  return ["Confidence", percent(prediction.confidence), "", prediction.calibrated
    ? "Calibrated probability of the predicted class: this share of predictions with this confidence is correct."
    : "Probability of the predicted class as the network gives it. It is not calibrated."];
}

function agreement(prediction) {
  const agreeing = agreeingMasks(prediction);
  return agreeing !== null && ["Agreement", agreeing, "masks",
    "Number of masks under which the predicted class is the most probable class."];
}

function standardError(prediction) {
  const errors = prediction.uncertainty.standard_error;
  return errors && ["Standard error", decimal(100 * errors[placeOfWinner(prediction)]), "percentage points",
    "Sampling error of the confidence, because only some masks were drawn. More masks make it smaller."];
}

function standardDeviation(prediction) {
  const variance = prediction.uncertainty.variance[placeOfWinner(prediction)];
  return ["Standard deviation", decimal(100 * Math.sqrt(variance)), "percentage points",
    "How much the probability of the predicted class varies between masks. More masks do not make it smaller."];
}

function predictionSet({ prediction_set: set, coverage, set_method: method }) {
  return set && ["Prediction set", set.join(", ") || "empty", set.length === 1 ? "1 class" : `${set.length} classes`,
    `Prediction sets contain the true class of ${roundPercent(coverage)} ${COVERED[method]} ` +
    "In an empty set, no class is as probable as this needs, even if one is more probable than all others."];
}

function confidenceThreshold({ abstain_threshold: threshold, max_risk: maxRisk }) {
  return threshold !== null && ["Confidence threshold", percent(threshold), "confidence",
    `Above it, at most ${roundPercent(maxRisk)} of the answers are wrong. Below it, the service abstains.`];
}

function noveltyScore({ novelty }) {
  return novelty && ["Novelty score", novelty.score.toFixed(2),
    novelty.threshold === null ? "no threshold" : `threshold ${novelty.threshold.toFixed(2)}`,
    "Difference from ordinary images, without unit: about 0 is typical. " + (novelty.threshold === null
      ? "The calibration images were too few for so few false alarms: there is no threshold, and no image is flagged."
      : "Above the threshold, the image is out-of-distribution.")];
}

function randomGuess(_, classCount) {
  return ["Random guess", percent(1 / classCount), "",
    `The confidence if the network knew nothing and all ${classCount} classes were equally likely.`];
}

/** How the service prepared an image for the network; null for a drawing, which needs no preparation. */
export function explainPreprocessing(preprocessing, { isLightOnDark }) {
  if (!preprocessing) return "Used as drawn.";
  const { source, width, height, inverted, steps } = preprocessing;
  const original = `${source}, ${width} × ${height} pixels`;
  const done = steps.map((step) => (step === "inverted" ? "inverted (dark became light)" : step)).join(", ");
  return done ? `${original}: ${done}.` : `${original}: used unchanged${isLightOnDark && !inverted ? ", not inverted" : ""}.`;
}
