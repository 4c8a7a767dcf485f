// What may be done to an image: 784 values row by row, 0..255, light on dark. Angles, deviations and factors mean what
// they mean in the model card's figures.

export const SIDE = 28;
const MIDDLE = (SIDE - 1) / 2;
const PLACES = [...Array(SIDE).keys()];

/** Nothing is done. */
export const UNCHANGED = Object.freeze({ rotation: 0, noise: 0, blur: 0, contrast: 100, occlusion: 0 });

/** @returns {boolean} whether these changes leave an image as it is. */
export function isUnchanged(changes) {
  return changes.rotation % 360 === 0 && Object.keys(UNCHANGED).every(
    (name) => name === "rotation" || changes[name] === UNCHANGED[name],
  );
}

/** Rotate (degrees), blur (pixels), contrast (%), noise (% of white), cover (side of a square), in this order. */
export function changed(pixels, { rotation, noise, blur, contrast, occlusion }) {
  let values = Float32Array.from(pixels);
  if (rotation % 360) values = rotated(values, rotation);
  if (blur) values = blurred(values, blur);
  if (contrast !== 100) values = contrasted(values, contrast / 100);
  if (noise) values = values.map((value, place) => value + 2.55 * noise * NOISE[place]);
  if (occlusion) values = covered(values, occlusion);
  return Uint8ClampedArray.from(values); // rounds, and keeps to 0..255
}

/** Turn counter-clockwise about the middle, between pixels by their distance; what comes in from outside is black. */
export function rotated(values, degrees) {
  const turn = (degrees * Math.PI) / 180;
  const [cos, sin] = [Math.cos(turn), Math.sin(turn)];
  const at = (x, y) => (x < 0 || y < 0 || x >= SIDE || y >= SIDE ? 0 : values[y * SIDE + x]);
  return fill((x, y) => {
    const fromX = MIDDLE + cos * (x - MIDDLE) - sin * (y - MIDDLE);
    const fromY = MIDDLE + sin * (x - MIDDLE) + cos * (y - MIDDLE);
    const [left, top] = [Math.floor(fromX), Math.floor(fromY)];
    const [right, down] = [fromX - left, fromY - top];
    const upper = (1 - right) * at(left, top) + right * at(left + 1, top);
    const lower = (1 - right) * at(left, top + 1) + right * at(left + 1, top + 1);
    return (1 - down) * upper + down * lower;
  });
}

/** Blur by a normal distribution of this deviation, in pixels; the border is a mirror. */
export function blurred(values, deviation) {
  const reach = Math.ceil(3 * deviation);
  const weight = (_, step) => Math.exp(-(((step - reach) / deviation) ** 2) / 2);
  const weights = Array.from({ length: 2 * reach + 1 }, weight);
  const total = weights.reduce((sum, weight) => sum + weight);
  const along = (take) => weights.reduce((sum, weight, step) => sum + weight * take(step - reach), 0) / total;
  const across = fill((x, y) => along((step) => values[y * SIDE + mirrored(x + step)]));
  return fill((x, y) => along((step) => across[mirrored(y + step) * SIDE + x]));
}

/** Bring values nearer to their mean, or farther from it. */
export function contrasted(values, factor) {
  const mean = values.reduce((sum, value) => sum + value) / values.length;
  return values.map((value) => mean + factor * (value - mean));
}

/** Put a black square over the middle. */
export function covered(values, side) {
  const first = Math.floor((SIDE - side) / 2);
  const isIn = (place) => place >= first && place < first + side;
  return fill((x, y) => (isIn(x) && isIn(y) ? 0 : values[y * SIDE + x]));
}

/** Rows, as the API takes them. */
export function asRows(pixels) {
  return PLACES.map((y) => Array.from(pixels.slice(y * SIDE, (y + 1) * SIDE)));
}

/** Paint into a canvas context of 28 x 28, or into one place of a larger one. */
export function paint(context, pixels, left = 0, top = 0) {
  const image = context.createImageData(SIDE, SIDE);
  pixels.forEach((value, place) => image.data.set([value, value, value, 255], 4 * place));
  context.putImageData(image, left, top);
}

function fill(value) {
  const filled = new Float32Array(SIDE * SIDE);
  for (const y of PLACES) for (const x of PLACES) filled[y * SIDE + x] = value(x, y);
  return filled;
}

function mirrored(place) {
  const period = 2 * (SIDE - 1);
  const within = ((place % period) + period) % period;
  return within < SIDE ? within : period - within;
}

/** Normal noise of deviation 1, always the same, so that an image changes as far as its slider moves. */
const NOISE = (() => {
  const uniform = mulberry32(1);
  return Float32Array.from({ length: SIDE * SIDE }, () => {
    const radius = Math.sqrt(-2 * Math.log(1 - uniform()));
    return radius * Math.cos(2 * Math.PI * uniform()); // Box & Muller 1958
  });
})();

/** Uniform numbers in [0, 1) of a 32-bit seed (mulberry32, by Tommy Ettinger, public domain). */
export function mulberry32(seed) {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}
