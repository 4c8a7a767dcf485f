// Changes of an image: its values row by row, the channels of a pixel next to each other, 0..255. A shape is
// {channels, height, width}. Angles, deviations and factors have the same meaning as in the model card's figures.

/** The settings that leave an image as it is. */
export const UNCHANGED = Object.freeze({ rotation: 0, noise: 0, blur: 0, contrast: 100, occlusion: 0 });

/** @returns {boolean} whether these changes leave an image as it is. */
export function isUnchanged(changes) {
  return changes.rotation % 360 === 0 && Object.keys(UNCHANGED).every(
    (name) => name === "rotation" || changes[name] === UNCHANGED[name],
  );
}

/** Rotate (degrees), blur (pixels), contrast (%), noise (% of white), cover (side of a square), in this order. */
export function applyChanges(pixels, shape, { rotation, noise, blur, contrast, occlusion }) {
  let values = Float32Array.from(pixels);
  if (rotation % 360) values = rotate(values, shape, rotation);
  if (blur) values = gaussianBlur(values, shape, blur);
  if (contrast !== 100) values = adjustContrast(values, contrast / 100);
  if (noise) {
    const deviations = normalNoise(values.length);
    values = values.map((value, index) => value + 2.55 * noise * deviations[index]);
  }
  if (occlusion) values = coverCentre(values, shape, occlusion);
  return Uint8ClampedArray.from(values); // rounds and clips to 0..255
}

/** Rotate counter-clockwise about the centre with bilinear interpolation; outside is black. */
export function rotate(values, { channels, height, width }, degrees) {
  const angle = (degrees * Math.PI) / 180;
  const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
  const [centreX, centreY] = [(width - 1) / 2, (height - 1) / 2];
  const at = (x, y, channel) => (
    x < 0 || y < 0 || x >= width || y >= height ? 0 : values[(y * width + x) * channels + channel]
  );
  const rotated = new Float32Array(values.length);
  let index = 0;
  for (let y = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1) {
      const fromX = centreX + cos * (x - centreX) - sin * (y - centreY);
      const fromY = centreY + sin * (x - centreX) + cos * (y - centreY);
      const [left, top] = [Math.floor(fromX), Math.floor(fromY)];
      const [right, down] = [fromX - left, fromY - top];
      for (let channel = 0; channel < channels; channel += 1) {
        const upper = (1 - right) * at(left, top, channel) + right * at(left + 1, top, channel);
        const lower = (1 - right) * at(left, top + 1, channel) + right * at(left + 1, top + 1, channel);
        rotated[index] = (1 - down) * upper + down * lower;
        index += 1;
      }
    }
  }
  return rotated;
}

/** Gaussian blur with this standard deviation in pixels; the image is mirrored at its border. */
export function gaussianBlur(values, { channels, height, width }, deviation) {
  const reach = Math.ceil(3 * deviation);
  const weight = (_, step) => Math.exp(-(((step - reach) / deviation) ** 2) / 2);
  const weights = Float64Array.from({ length: 2 * reach + 1 }, weight);
  const total = weights.reduce((sum, one) => sum + one);
  const kernel = weights.map((one) => one / total);
  return filterLines(filterLines(values, kernel, width, channels), kernel, height, channels * width);
}

/** Filter along one axis: lines of so many values, which are `stride` apart. */
function filterLines(values, kernel, length, stride) {
  const reach = kernel.length >> 1;
  const offsets = Int32Array.from(
    { length: length + 2 * reach }, (_, place) => stride * mirrored(place - reach, length),
  );
  return values.map((_, index) => {
    const place = Math.floor(index / stride) % length;
    const start = index - place * stride;
    let sum = 0;
    for (let step = 0; step < kernel.length; step += 1) sum += kernel[step] * values[start + offsets[place + step]];
    return sum;
  });
}

function mirrored(index, length) {
  if (length === 1) return 0;
  const period = 2 * (length - 1);
  const within = ((index % period) + period) % period;
  return within < length ? within : period - within;
}

/** Scale the distance of each value from the mean. */
export function adjustContrast(values, factor) {
  const mean = values.reduce((sum, value) => sum + value) / values.length;
  return values.map((value) => mean + factor * (value - mean));
}

/** Put a black square over the centre. */
export function coverCentre(values, { channels, height, width }, side) {
  const [left, top] = [Math.floor((width - side) / 2), Math.floor((height - side) / 2)];
  const covered = values.slice();
  for (let y = top; y < top + side; y += 1) {
    covered.fill(0, (y * width + left) * channels, (y * width + left + side) * channels);
  }
  return covered;
}

/** Paint into a canvas context. */
export function paint(context, pixels, { channels, height, width }) {
  const image = context.createImageData(width, height);
  for (let place = 0; place < height * width; place += 1) {
    for (let channel = 0; channel < 3; channel += 1) {
      image.data[4 * place + channel] = pixels[place * channels + (channel % channels)];
    }
    image.data[4 * place + 3] = 255;
  }
  context.putImageData(image, 0, 0);
}

let noise = new Float32Array();

/** Standard normal noise, always the same, so that only the slider decides how much an image changes. */
function normalNoise(count) {
  if (noise.length !== count) {
    const uniform = uniformNumbers(1);
    noise = Float32Array.from({ length: count }, () => {
      const radius = Math.sqrt(-2 * Math.log(1 - uniform()));
      return radius * Math.cos(2 * Math.PI * uniform()); // Box & Muller 1958
    });
  }
  return noise;
}

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
