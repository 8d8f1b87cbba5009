// Square images from the camera, some each second while a button is held.

const SIDE = 224; // Pixels of an image.
const PAUSE = 150; // Milliseconds between two images.
const MOST = 100; // Images of one recording.

const cameras = new WeakMap();

class Camera {
  constructor(root) {
    this.root = root;
    this.video = this.find('video');
    this.paper = Object.assign(document.createElement('canvas'), { width: SIDE, height: SIDE });
    this.find('.switch').onclick = () => (this.stream ? this.stop() : this.start());
    const name = this.find('.name');
    name.oninput = () => this.enable();
    name.onkeydown = (event) => event.stopPropagation(); // The page's shortcuts are single letters.
    const button = this.find('.record');
    button.onpointerdown = (event) => {
      button.setPointerCapture(event.pointerId);
      this.record();
    };
    button.onpointerup = button.onpointercancel = button.onblur = () => this.send();
    button.onkeydown = (event) => {
      if (event.key !== ' ' && event.key !== 'Enter') return;
      event.preventDefault();
      if (!event.repeat) this.record();
    };
    button.onkeyup = (event) => (event.key === ' ' || event.key === 'Enter') && this.send();
    button.oncontextmenu = (event) => event.preventDefault(); // A long touch.
  }

  find(selector) {
    return this.root.querySelector(selector);
  }

  say(text, bad = false) {
    this.find('.said').textContent = text;
    this.find('.said').classList.toggle('bad', bad);
  }

  async start() {
    try {
      // Without a secure context there is no `mediaDevices` at all.
      if (!navigator.mediaDevices) throw new Error('browsers allow it on https pages and localhost only');
      this.stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: 'environment' } });
    } catch (error) {
      const why = { NotFoundError: 'no camera found', NotAllowedError: 'permission denied' }[error.name] ?? error.message;
      this.say(`Camera not available: ${why}. Upload a folder of images instead.`, true);
      return;
    }
    this.video.srcObject = this.stream;
    await this.video.play();
    this.find('.switch').textContent = 'Stop camera';
    this.enable();
    this.say('');
  }

  enable() {
    this.find('.record').disabled = !this.stream || !this.find('.name').value.trim();
  }

  stop() {
    this.send();
    this.stream?.getTracks().forEach((track) => track.stop());
    this.stream = this.video.srcObject = null;
    this.find('.switch').textContent = 'Start camera';
    this.enable();
  }

  record() {
    if (this.timer || !this.stream) return;
    this.images = [];
    this.find('.name').disabled = true; // A recording is of one class.
    this.find('.record').classList.add('on');
    this.take();
    this.timer = setInterval(() => this.take(), PAUSE);
  }

  take() {
    const { videoWidth: wide, videoHeight: high } = this.video;
    const side = Math.min(wide, high);
    if (!side || this.images.length >= MOST) return;
    const ink = this.paper.getContext('2d');
    ink.imageSmoothingQuality = 'high';
    ink.drawImage(this.video, (wide - side) / 2, (high - side) / 2, side, side, 0, 0, SIDE, SIDE);
    this.images.push(this.paper.toDataURL('image/jpeg', 0.9).split(',')[1]);
    this.say(`${this.images.length} of at most ${MOST}`);
  }

  send() {
    if (!this.timer) return;
    clearInterval(this.timer);
    this.timer = null;
    this.find('.record').classList.remove('on');
    const name = this.find('.name');
    name.disabled = false;
    if (this.images.length) this.transmit('images', { name: name.value, content: this.images });
    this.say('');
  }
}

export default function ({ parentElement, setTriggerValue }) {
  if (!cameras.has(parentElement)) cameras.set(parentElement, new Camera(parentElement));
  cameras.get(parentElement).transmit = setTriggerValue;
  // Streamlit calls this at each change of `data`, too: the camera stops with the component only.
  return () => setTimeout(() => parentElement.isConnected || cameras.get(parentElement)?.stop(), 1000);
}
