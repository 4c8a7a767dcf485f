// What the page has to know of the served network, from its card.

const MAX_DRAWN_SIDE = 64; // pixels; a larger drawing would take too long by hand

/**
 * @returns {{classes, shape, isLightOnDark, isDrawable, examples, data, isOfClothing, noMoments}}: `shape` is
 *   {channels, height, width}; `data` names the data set, null if the card does not; `noMoments` is the reason why
 *   there is no moment propagation, null if there is.
 */
export function describeNetwork(card) {
  const { channels, height, width, polarity } = card.input_specification;
  const isLightOnDark = polarity === "light-on-dark";
  const data = card.data?.name?.split(" (")[0] ?? null;
  return {
    classes: card.classes,
    shape: { channels, height, width },
    isLightOnDark,
    isDrawable: channels === 1 && isLightOnDark && Math.max(height, width) <= MAX_DRAWN_SIDE,
    examples: card.examples ?? [],
    data,
    isOfClothing: data === "Fashion-MNIST",
    noMoments: card.chain?.unavailable ?? null,
  };
}

/** Whether two networks, as `describeNetwork` returns them, or their shapes are equal in all that the page uses. */
export function isSame(one, other) {
  return JSON.stringify(one) === JSON.stringify(other);
}
