// Images as an .npy file (NumPy's format, version 1.0), which the service takes without any change to their pixels.

const MAGIC = [0x93, ...new TextEncoder().encode("NUMPY"), 1, 0];
const ALIGNMENT = 64; // bytes, of the head

/** @returns {Uint8Array} a file of uint8 images (B, H, W), or (B, H, W, 3) in colour. */
export function toNpy(images, { channels, height, width }) {
  const sides = [images.length, height, width, ...(channels > 1 ? [channels] : [])];
  const description = `{'descr': '|u1', 'fortran_order': False, 'shape': (${sides.join(", ")}), }`;
  const size = ALIGNMENT * Math.ceil((MAGIC.length + 2 + description.length + 1) / ALIGNMENT);
  const text = `${description.padEnd(size - MAGIC.length - 3)}\n`;
  const valuesPerImage = channels * height * width;
  const file = new Uint8Array(size + images.length * valuesPerImage);
  file.set([...MAGIC, text.length & 255, text.length >> 8, ...new TextEncoder().encode(text)]);
  images.forEach((pixels, place) => file.set(pixels, size + place * valuesPerImage));
  return file;
}
