// A pad for drawings, images and the camera, with live predictions of every model.

import { Ort, Stopped } from './ort.mjs';
import { brightBorder, frame, grey, rgb, show, shrink } from './pixels.mjs';

const SIDE = 280; // Pixels of the pad's longer side: ten per pixel of a digit, so that strokes are smooth.
const PAUSE = 100; // Milliseconds between predictions while drawing.
const TOP = 3;

const pads = new WeakMap();

class Pad {
  constructor(root) {
    this.root = root;
    this.paper = this.find('.paper');
    this.ink = this.paper.getContext('2d', { willReadFrequently: true });
    this.turn = 0;
    this.dirty = false; // Something was drawn since the last prediction.
    this.empty = true;
    this.busy = false;
    this.listen();
  }

  find(selector) {
    return this.root.querySelector(selector);
  }

  /** Take what Python sent; the drawing stays unless the kind of picture changed. */
  update(data) {
    const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);
    const before = this.data;
    this.data = data;
    if (!before || !same(before.size, data.size) || before.channels !== data.channels) this.prepare();
    if (!before || !same(Object.entries(before.models), Object.entries(data.models)) || !same(before.classes, data.classes)) {
      this.stop();
      this.rows = new Map(Object.keys(data.models).map((name) => [name, this.row(name)]));
      this.find('.models').replaceChildren(...[...this.rows.values()].map(({ element }) => element));
      if (!this.empty) this.predict(true);
    }
  }

  get monochrome() {
    return this.data.channels === 1;
  }

  prepare() {
    const [rows, columns] = this.data.size;
    const unit = Math.max(1, SIDE / Math.max(rows, columns));
    this.paper.width = Math.round(columns * unit);
    this.paper.height = Math.round(rows * unit);
    for (const choice of this.root.querySelectorAll('.grey-only')) choice.hidden = !this.monochrome;
    if (this.data.sends) {
      this.find('.leaves').textContent = 'Only the model input is sent to this server; it is not stored.';
      this.find('.saw').textContent = `Model input: ${columns} × ${rows} pixels`;
    }
    this.find('.ink').hidden = this.monochrome;
    this.clear();
  }

  clear() {
    this.ink.fillStyle = this.monochrome ? '#000' : '#fff';
    this.ink.fillRect(0, 0, this.paper.width, this.paper.height);
    this.empty = true;
    this.find('.invert').checked = false;
    this.see();
    this.hand(null);
    for (const row of this.rows?.values() ?? []) row.show([], null);
    this.find('.spoken').textContent = '';
    if (this.started) this.find('.saw').textContent = 'Draw something to see predictions.';
  }

  listen() {
    const at = (event) => {
      const box = this.paper.getBoundingClientRect();
      return [
        ((event.clientX - box.left) * this.paper.width) / box.width,
        ((event.clientY - box.top) * this.paper.height) / box.height,
      ];
    };
    const stroke = (event, from) => {
      const steps = event.getCoalescedEvents?.() ?? [];
      Object.assign(this.ink, { lineWidth: this.paper.width * 0.085, lineCap: 'round', lineJoin: 'round' });
      this.ink.strokeStyle = this.monochrome ? '#fff' : this.find('.ink input').value;
      this.ink.beginPath();
      this.ink.moveTo(...from);
      for (const step of steps.length ? steps : [event]) this.ink.lineTo(...at(step));
      this.ink.stroke();
      this.empty = false;
      return at(event);
    };
    let last = null;
    this.paper.onpointerenter = () => this.data.sends || this.start();
    this.paper.onpointerdown = (event) => {
      if (event.button) return;
      event.preventDefault();
      this.stopCamera(); // The last frame stays, to be drawn on.
      this.paper.setPointerCapture(event.pointerId);
      last = stroke(event, at(event));
      this.predict();
    };
    this.paper.onpointermove = (event) => {
      if (!last) return;
      last = stroke(event, last);
      this.predict();
    };
    this.paper.onpointerup = this.paper.onpointercancel = () => {
      if (last) this.predict(true);
      last = null;
    };
    this.find('.clear').onclick = () => {
      this.stopCamera();
      this.clear();
    };
    this.find('.camera').onclick = () => (this.stream ? this.stopCamera() : this.startCamera());
    this.find('.centre').onchange = this.find('.invert').onchange = () => this.empty || this.predict(true);
    this.find('.file').onchange = (event) => {
      this.picture(event.target.files[0]);
      event.target.value = '';
    };
    const pad = this.find('.pad');
    const over = (event, on) => {
      event.preventDefault();
      pad.classList.toggle('over', on);
    };
    pad.ondragover = (event) => over(event, true);
    pad.ondragleave = (event) => over(event, false);
    pad.ondrop = (event) => {
      over(event, false);
      this.picture(event.dataTransfer.files[0]);
    };
  }

  /** Put the center of an image on the pad, cropped to the pad's shape. */
  async picture(file) {
    if (!file) return;
    let bitmap;
    try {
      bitmap = await createImageBitmap(file);
    } catch {
      this.problem(`Not an image file. Given: ${file.name}. Choose a PNG, JPEG or WebP file.`);
      return;
    }
    this.stopCamera();
    this.clear();
    this.fill(bitmap, bitmap.width, bitmap.height);
    bitmap.close();
    this.guessInk();
    this.predict(true);
  }

  /** Put the center of an image or camera frame on the pad, cropped to the pad's shape. */
  fill(source, wide, high) {
    const { width, height } = this.paper;
    const scale = Math.max(width / wide, height / high);
    const [w, h] = [wide * scale, high * scale];
    this.ink.imageSmoothingQuality = 'high';
    this.ink.drawImage(source, (width - w) / 2, (height - h) / 2, w, h);
    this.empty = false;
  }

  /** Ink on paper is dark on light; models of one channel learned light on dark. The user can undo it. */
  guessInk() {
    const { width, height } = this.paper;
    this.find('.invert').checked = this.monochrome && brightBorder(grey(this.pixels()), width, height);
  }

  /** Show camera frames with predictions until the camera is stopped. */
  async startCamera() {
    let stream;
    try {
      // Without a secure context there is no `mediaDevices` at all.
      if (!navigator.mediaDevices) throw new Error('browsers allow it on https pages and localhost only');
      stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: 'environment' } });
    } catch (error) {
      const why = error.name === 'NotFoundError' ? 'no camera found' : error.name === 'NotAllowedError' ? 'permission denied' : error.message;
      this.problem(`Camera not available: ${why}. Draw, or choose an image.`);
      return;
    }
    if (this.stream || this.gone) return stream.getTracks().forEach((track) => track.stop());
    this.stream = stream;
    this.find('.camera').setAttribute('aria-pressed', 'true');
    this.find('.camera').textContent = 'Stop camera';
    const video = Object.assign(document.createElement('video'), { srcObject: stream, muted: true, playsInline: true });
    await video.play().catch(() => null); // Stopped before it began.
    let first = true;
    while (this.stream === stream) {
      if (video.videoWidth) {
        this.fill(video, video.videoWidth, video.videoHeight);
        if (first) this.guessInk();
        first = false;
        this.predict();
      }
      await new Promise((resolve) => setTimeout(resolve, PAUSE));
    }
  }

  stopCamera() {
    if (!this.stream) return;
    this.stream.getTracks().forEach((track) => track.stop());
    this.stream = null;
    this.find('.camera').setAttribute('aria-pressed', 'false');
    this.find('.camera').textContent = 'Camera';
  }

  pixels() {
    return this.ink.getImageData(0, 0, this.paper.width, this.paper.height).data;
  }

  /** Make the model input and show it; returns its pixels, rows by columns by channels. */
  see() {
    const { width, height } = this.paper;
    const { size, channels } = this.data;
    const values = this.monochrome ? grey(this.pixels()) : rgb(this.pixels());
    if (this.find('.invert').checked) for (let i = 0; i < values.length; i += 1) values[i] = 255 - values[i];
    const centred = this.monochrome && this.find('.centre').checked;
    const small = shrink(values, width, height, channels, frame(values, width, height, size, centred), size);
    show(this.find('.small'), small, channels, size);
    return small;
  }

  /** Load the runtime and the models once, when the pointer first enters the pad. */
  start() {
    this.started ??= this.load().catch((error) => {
      if (error instanceof Stopped) return null;
      this.started = null;
      this.problem(`Loading the models failed. ${error.message}`);
      return null;
    });
    return this.started;
  }

  async load() {
    const absolute = (url) => new URL(url, location.origin).href;
    this.find('.saw').textContent = 'Loading models';
    const ort = (this.ort = new Ort());
    // One thread and WebAssembly: faster than a GPU for a single small image.
    const about = await ort.call('start', { runtime: absolute(this.data.runtime), wanted: 'wasm', threads: 1 });
    for (const [name, url] of Object.entries(this.data.models)) {
      await ort.call('open', { name, url: absolute(url), backend: about.backend, shape: [...this.data.size, this.data.channels] });
    }
    this.find('.saw').textContent = 'Draw something to see predictions.';
    this.problem('');
    return ort;
  }

  stop() {
    this.ort?.end();
    this.ort = this.started = null;
  }

  /** Predict soon: at most ten times a second while drawing, and always once more after the last change. */
  async predict(final = false) {
    this.dirty = true;
    this.announce ||= final;
    if (this.busy) return;
    this.busy = true;
    try {
      if (this.data.sends) {
        const image = this.see();
        if (final) this.hand(image);
        this.dirty = false;
        return;
      }
      const ort = await this.start();
      while (ort && this.dirty && !this.empty) {
        this.dirty = false;
        const announce = this.announce;
        this.announce = false;
        await this.infer(ort, announce);
        await new Promise((resolve) => setTimeout(resolve, PAUSE));
      }
    } catch (error) {
      if (!(error instanceof Stopped)) this.problem(`Inference failed. ${error.message}`);
    } finally {
      this.busy = false;
    }
  }

  async infer(ort, announce) {
    const { classes, size, channels } = this.data;
    const image = this.see();
    const best = [];
    for (const [name, row] of this.rows) {
      const input = { name, image, shape: [...size, channels] };
      if (!row.warm) await ort.call('predict', input); // The first call also allocates and compiles: it is not timed.
      row.warm = true;
      const { probabilities, accepted, ms } = await ort.call('predict', input);
      if (this.empty) return; // Cleared meanwhile.
      if (probabilities.length !== classes.length) {
        throw new Error(`Class count mismatch. Given: ${name} with ${probabilities.length} classes, expected ${classes.length}. Export the run again.`);
      }
      const top = [...probabilities.keys()].sort((a, b) => probabilities[b] - probabilities[a]).slice(0, TOP);
      row.show(top.map((i) => [classes[i], probabilities[i]]), ms, accepted);
      best.push(`${name}: ${classes[top[0]]}, ${percent(probabilities[top[0]])}${accepted ? '' : ', not accepted'}`);
    }
    this.find('.saw').textContent = `Model input: ${size[1]} × ${size[0]} pixels`;
    this.problem('');
    // Announced once per stroke: ten announcements a second would be useless.
    if (announce) this.find('.spoken').textContent = best.join('. ');
  }

  row(name) {
    const make = (tag, className, ...children) => {
      const element = document.createElement(tag);
      element.className = className;
      element.append(...children);
      return element;
    };
    const ms = make('span', 'ms');
    const lines = Array.from({ length: Math.min(TOP, this.data.classes.length) }, () => {
      const parts = { label: make('span', 'class'), fill: make('div', 'fill'), share: make('span', 'share') };
      return { ...parts, element: make('li', '', parts.label, make('div', 'track', parts.fill), parts.share) };
    });
    const rejected = make('span', 'rejection', 'not accepted: too uncertain');
    const head = make('div', 'head', make('span', 'name', name), rejected, ms);
    const bars = make('ol', 'bars', ...lines.map(({ element }) => element));
    const row = {
      element: make('section', 'model', head, bars),
      show(top, milliseconds, accepted = true) {
        rejected.hidden = accepted;
        bars.classList.toggle('rejected', !accepted);
        ms.textContent = milliseconds === null ? '' : `${milliseconds.toFixed(milliseconds < 10 ? 1 : 0)} ms`;
        lines.forEach(({ label, fill, share }, i) => {
          const [text, probability] = top[i] ?? ['–', 0];
          label.textContent = label.title = text;
          fill.style.width = `${100 * probability}%`;
          share.textContent = top[i] ? percent(probability) : '';
        });
      },
    };
    row.show([], null);
    return row;
  }

  /** Send the model input to Python, if requested; null when the pad is cleared. */
  hand(image) {
    if (!this.data.sends || (!image && !this.handed)) return;
    this.handed = Boolean(image);
    this.send('picture', image && btoa(Array.from(image, (value) => String.fromCharCode(value)).join('')));
  }

  problem(text) {
    this.find('.problem').textContent = text;
    this.find('.problem').hidden = !text;
  }
}

function percent(share) {
  if (share > 0.9995) return '> 99.9%';
  if (share < 0.0005) return '< 0.1%';
  return `${(100 * share).toFixed(1)}%`;
}

export default function ({ data, parentElement, setStateValue }) {
  let pad = pads.get(parentElement);
  if (!pad) pads.set(parentElement, (pad = new Pad(parentElement)));
  pad.send = setStateValue;
  pad.update(data);
  pad.find('.box').classList.add('ready');
  pad.turn += 1;
  const turn = pad.turn;
  return () => {
    // Streamlit may call the clean-up of an earlier turn late; only the last one means that the component is gone.
    if (turn !== pad.turn) return;
    pad.gone = true;
    pad.stopCamera();
    pad.stop();
    pads.delete(parentElement);
  };
}
