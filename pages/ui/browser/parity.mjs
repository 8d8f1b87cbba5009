// Runs the models on the images that Python ran them on, times them, and sends logits and timings back.

import { Stopped, withRuntime } from './ort.mjs';

const mounted = new WeakMap();

// Streamlit rejects messages above 25 MB from a browser, without an error message.
const MOST_CHARACTERS = 20e6;

function base64(logits) {
  const bytes = new Uint8Array(logits.buffer, logits.byteOffset, logits.byteLength);
  let text = '';
  for (let i = 0; i < bytes.length; i += 0x8000) text += String.fromCharCode(...bytes.subarray(i, i + 0x8000));
  return btoa(text);
}

async function check({ models, images, count, shape, runtime, backend, threads }, keep, show) {
  const absolute = (url) => new URL(url, location.origin).href;
  show('Loading ONNX Runtime Web', 0);
  return withRuntime({ runtime, backend, threads }, keep, async (ort, about) => {
    const names = Object.keys(models);
    const { images: pixels, sha256 } = await ort.call('images', { url: absolute(images), count, shape });
    const first = pixels.slice(0, shape.reduce((a, b) => a * b, 1));
    const timings = {}, logits = {};
    for (const [i, name] of names.entries()) {
      const at = (share) => (i + share) / names.length;
      show(`${name}: loading`, at(0.05));
      const opened = await ort.call('open', { name, url: absolute(models[name]), backend: about.backend, shape });
      show(`${name}: warming up and timing`, at(0.1));
      const timed = await ort.call('time', { name, image: first, shape });
      const progress = (share) => show(`${name}: running inference on ${count.toLocaleString()} images`, at(0.6 + 0.4 * share));
      progress(0);
      const predicted = await ort.call('classify', { name, images: pixels, count, shape }, progress);
      timings[name] = { ...opened, ...timed, batch_ms: predicted.batch_ms };
      logits[name] = base64(predicted.logits);
    }
    const size = Object.values(logits).reduce((sum, text) => sum + text.length, 0);
    if (size > MOST_CHARACTERS) {
      throw new Error(`The logits are too large to send. Given: ${(size / 1e6).toFixed(0)} MB. Check fewer images.`);
    }
    return { runtime: about, timings, logits, images_sha256: sha256 };
  });
}

export default function (component) {
  const { data, parentElement } = component;
  const find = (selector) => parentElement.querySelector(selector);
  const show = (text, share) => {
    find('.text').textContent = text;
    find('progress').value = share;
    find('progress').hidden = share >= 1;
  };

  let state = mounted.get(parentElement);
  if (!state) mounted.set(parentElement, (state = { request: null, run: null, ort: null, turn: 0 }));
  state.turn += 1;
  const turn = state.turn;
  state.send = component.setTriggerValue;

  const begin = async () => {
    const { request } = data;
    const run = {};
    const current = () => state.run === run;
    state.ort?.end();
    Object.assign(state, { request, run });
    find('.failed').hidden = true;
    find('.running').hidden = false;
    try {
      const keep = (ort) => { state.ort = ort; };
      const answer = await check(data, keep, (text, share) => current() && show(text, share));
      if (!current()) return;
      show(summary(data, answer.runtime), 1);
      state.send('result', { request, ...answer });
    } catch (error) {
      if (error instanceof Stopped || !current()) return;
      find('.running').hidden = true;
      find('.failed').hidden = false;
      find('.reason').textContent = `The browser check failed. ${error.message}`;
      state.send('result', { request, error: error.message });
    } finally {
      if (current()) state.ort.end();
    }
  };

  find('.again').onclick = begin;
  if (data.request !== state.request) {
    if (data.done) {
      Object.assign(state, { request: data.request, run: null });
      show(summary(data), 1);
    } else {
      begin();
    }
  }
  return () => {
    // Streamlit may call the clean-up of an earlier turn late; only the last one means that the component is gone.
    if (turn !== state.turn) return;
    state.run = null;
    state.ort?.end();
    mounted.delete(parentElement);
  };
}

function summary({ count, models }, runtime) {
  const names = Object.keys(models).join(' and ');
  const how = runtime ? ` with ${runtime.backend === 'webgpu' ? 'WebGPU' : 'WebAssembly'}` : '';
  return `Inference on ${count.toLocaleString()} images finished for ${names}${how}.`;
}
