// Changes of an image: 784 values row by row, 0..255, light on dark. Angles, deviations and factors have the same
// meaning as in the model card's figures.

export const SIDE = 28;
const CENTRE = (SIDE - 1) / 2;
const INDICES = [...Array(SIDE).keys()];

/** The settings that leave an image as it is. */
export const UNCHANGED = Object.freeze({ rotation: 0, noise: 0, blur: 0, contrast: 100, occlusion: 0 });

/** @returns {boolean} whether these changes leave an image as it is. */
export function isUnchanged(changes) {
  return changes.rotation % 360 === 0 && Object.keys(UNCHANGED).every(
    (name) => name === "rotation" || changes[name] === UNCHANGED[name],
  );
}

/** Rotate (degrees), blur (pixels), contrast (%), noise (% of white), cover (side of a square), in this order. */
export function applyChanges(pixels, { rotation, noise, blur, contrast, occlusion }) {
  let values = Float32Array.from(pixels);
  if (rotation % 360) values = rotate(values, rotation);
  if (blur) values = gaussianBlur(values, blur);
  if (contrast !== 100) values = adjustContrast(values, contrast / 100);
  if (noise) values = values.map((value, index) => value + 2.55 * noise * NOISE[index]);
  if (occlusion) values = coverCentre(values, occlusion);
  return Uint8ClampedArray.from(values); // rounds and clips to 0..255
}

/** Rotate counter-clockwise about the centre with bilinear interpolation; outside is black. */
export function rotate(values, degrees) {
  const angle = (degrees * Math.PI) / 180;
  const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
  const at = (x, y) => (x < 0 || y < 0 || x >= SIDE || y >= SIDE ? 0 : values[y * SIDE + x]);
  return fromFunction((x, y) => {
    const fromX = CENTRE + cos * (x - CENTRE) - sin * (y - CENTRE);
    const fromY = CENTRE + sin * (x - CENTRE) + cos * (y - CENTRE);
    const [left, top] = [Math.floor(fromX), Math.floor(fromY)];
    const [right, down] = [fromX - left, fromY - top];
    const upper = (1 - right) * at(left, top) + right * at(left + 1, top);
    const lower = (1 - right) * at(left, top + 1) + right * at(left + 1, top + 1);
    return (1 - down) * upper + down * lower;
  });
}

/** Gaussian blur with this standard deviation in pixels; the image is mirrored at its border. */
export function gaussianBlur(values, deviation) {
  const reach = Math.ceil(3 * deviation);
  const weight = (_, step) => Math.exp(-(((step - reach) / deviation) ** 2) / 2);
  const weights = Array.from({ length: 2 * reach + 1 }, weight);
  const total = weights.reduce((sum, weight) => sum + weight);
  const along = (take) => weights.reduce((sum, weight, step) => sum + weight * take(step - reach), 0) / total;
  const across = fromFunction((x, y) => along((step) => values[y * SIDE + mirrored(x + step)]));
  return fromFunction((x, y) => along((step) => across[mirrored(y + step) * SIDE + x]));
}

/** Scale the distance of each value from the mean. */
export function adjustContrast(values, factor) {
  const mean = values.reduce((sum, value) => sum + value) / values.length;
  return values.map((value) => mean + factor * (value - mean));
}

/** Put a black square over the centre. */
export function coverCentre(values, side) {
  const first = Math.floor((SIDE - side) / 2);
  const isIn = (index) => index >= first && index < first + side;
  return fromFunction((x, y) => (isIn(x) && isIn(y) ? 0 : values[y * SIDE + x]));
}

/** Nested rows, as the API takes them. */
export function toRows(pixels) {
  return INDICES.map((y) => Array.from(pixels.slice(y * SIDE, (y + 1) * SIDE)));
}

/** Paint into a canvas context, at this position. */
export function paint(context, pixels, left = 0, top = 0) {
  const image = context.createImageData(SIDE, SIDE);
  pixels.forEach((value, index) => image.data.set([value, value, value, 255], 4 * index));
  context.putImageData(image, left, top);
}

function fromFunction(valueAt) {
  const filled = new Float32Array(SIDE * SIDE);
  for (const y of INDICES) for (const x of INDICES) filled[y * SIDE + x] = valueAt(x, y);
  return filled;
}

function mirrored(index) {
  const period = 2 * (SIDE - 1);
  const within = ((index % period) + period) % period;
  return within < SIDE ? within : period - within;
}

/** Standard normal noise, always the same, so that only the slider decides how much an image changes. */
const NOISE = (() => {
  const uniform = uniformNumbers(1);
  return Float32Array.from({ length: SIDE * SIDE }, () => {
    const radius = Math.sqrt(-2 * Math.log(1 - uniform()));
    return radius * Math.cos(2 * Math.PI * uniform()); // Box & Muller 1958
  });
})();

/** A generator of uniform numbers in [0, 1) from a 32-bit seed (mulberry32, by Tommy Ettinger, public domain). */
export function uniformNumbers(seed) {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}
