// The page of the demo: the drawing pad with one model, with all files in this folder.

import draw from './draw.mjs';

const here = (name) => new URL(name, import.meta.url).href;
const { name, classes, size, channels, about } = await (await fetch(here('demo.json'))).json();
document.title = name;
document.querySelector('h1').textContent = name;
document.querySelector('.about').textContent = about;
draw({
  data: { models: { [name]: here('model.onnx') }, classes, size, channels, runtime: here('ort/') },
  parentElement: document.querySelector('main'),
});
