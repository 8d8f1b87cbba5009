// Classify a picture: node classify.mjs picture.png (first: npm install). Pillow's weights make a grey picture.
import { readFile } from 'node:fs/promises';
import * as ort from 'onnxruntime-web';
import { PNG } from 'pngjs'; // For JPEG and others decode with `sharp`, which gives raw pixels too.

const here = (name) => new URL(name, import.meta.url);
const labels = JSON.parse(await readFile(here('labels.json'), 'utf8'));
const session = await ort.InferenceSession.create(new Uint8Array(await readFile(here('model.onnx'))));

const { width, height, data } = PNG.sync.read(await readFile(process.argv[2]));
const channels = session.inputMetadata[0].shape[3];
const pixels = new Uint8Array(width * height * channels);
for (let i = 0; i < width * height; i += 1) {
  const [r, g, b] = data.subarray(4 * i, 4 * i + 3);
  if (channels === 1) pixels[i] = (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16;
  else pixels.set([r, g, b], 3 * i);
}
// Raw pixels, any size: resizing and normalising are inside the model. Several pictures of one size may go at once.
const images = new ort.Tensor('uint8', pixels, [1, height, width, channels]);
const { probabilities } = await session.run({ images }, ['probabilities']);

const best = [...probabilities.data.entries()].sort((a, b) => b[1] - a[1]).slice(0, 3);
for (const [place, probability] of best) console.log(`${labels[place]}: ${(100 * probability).toFixed(2)}%`);
