// Small images with names; a click opens one as large as the window, with what is known about it.

const ZOOMS = [1, 1.5, 2, 3, 4, 6, 8]; // Times the size that fits the window.
const SHARP = 96; // Images of fewer pixels a side are enlarged without blur.

const galleries = new WeakMap();

class Gallery {
  constructor(root) {
    this.root = root;
    this.dialog = this.find('dialog');
    this.canvas = this.find('canvas');
    this.at = 0;
    this.zoom = 0;
    this.find('.back').onclick = () => this.open(this.at - 1);
    this.find('.next').onclick = () => this.open(this.at + 1);
    this.find('.in').onclick = () => this.scale(this.zoom + 1);
    this.find('.out').onclick = () => this.scale(this.zoom - 1);
    this.find('.close').onclick = () => this.dialog.close();
    this.dialog.onclose = () => this.find('.gallery').children[this.at]?.focus();
    this.dialog.onkeydown = (event) => {
      const what = { ArrowLeft: '.back', ArrowRight: '.next', '+': '.in', '-': '.out' }[event.key];
      event.stopPropagation(); // The page's own shortcuts are for the page.
      if (!what || (this.zoom && event.target === this.find('.frame'))) return; // There, arrows scroll.
      event.preventDefault();
      this.find(what).click();
    };
    window.addEventListener('resize', () => this.dialog.open && this.scale(this.zoom));
  }

  find(selector) {
    return this.root.querySelector(selector);
  }

  update(data) {
    if (JSON.stringify(data) === JSON.stringify(this.data)) return;
    this.data = data;
    this.dialog.close();
    this.sheet = new Image();
    this.sheet.src = data.sprite;
    const { across, shown: [height, width], items } = data;
    const lines = Math.ceil(items.length / across);
    // One rule for all tiles: the sprite is an address of up to megabytes.
    this.find('.sheet').textContent = `.tile {
      width: ${width}px; height: ${height}px;
      background-image: url("${data.sprite}"); background-size: ${across * width}px ${lines * height}px;
    }`;
    const buttons = items.map(({ name, file }, at) => {
      const part = (tag, kind, text = '') => Object.assign(document.createElement(tag), { className: kind, textContent: text });
      const button = part('button', 'item');
      const tile = part('span', this.sharp ? 'tile pixels' : 'tile');
      button.type = 'button';
      button.title = file || name;
      button.style.width = `${width}px`;
      button.setAttribute('aria-label', file ? `${name}, ${file}` : `${name}, ${at + 1}`);
      tile.style.backgroundPosition = `-${(at % across) * width}px -${Math.floor(at / across) * height}px`;
      button.append(tile, part('span', 'name', name));
      if (file) button.append(part('span', 'file', file.split('/').pop()));
      button.onclick = () => this.open(at);
      return button;
    });
    this.find('.gallery').replaceChildren(...buttons);
  }

  get sharp() {
    return Math.max(...this.data.size) < SHARP;
  }

  async open(at) {
    const { items, size: [height, width], across } = this.data;
    if (at < 0 || at >= items.length) return;
    this.at = at;
    await this.sheet.decode();
    Object.assign(this.canvas, { width, height });
    this.canvas.getContext('2d').drawImage(
      this.sheet, (at % across) * width, Math.floor(at / across) * height, width, height, 0, 0, width, height,
    );
    this.canvas.classList.toggle('pixels', this.sharp);
    this.canvas.setAttribute('aria-label', items[at].name);
    this.find('.at').textContent = `${at + 1} of ${items.length}`;
    this.find('.back').disabled = at === 0;
    this.find('.next').disabled = at === items.length - 1;
    const facts = Object.entries(items[at].facts).map(([name, value]) => {
      const row = document.createElement('div');
      row.append(
        Object.assign(document.createElement('dt'), { textContent: name }),
        Object.assign(document.createElement('dd'), { textContent: value }),
      );
      return row;
    });
    this.find('.facts').replaceChildren(...facts);
    if (!this.dialog.open) this.dialog.showModal();
    this.scale(0);
  }

  scale(zoom) {
    this.zoom = Math.min(ZOOMS.length - 1, Math.max(0, zoom));
    const { width, height } = this.canvas;
    const frame = this.find('.frame');
    const fits = Math.min((frame.clientWidth - 4) / width, (frame.clientHeight - 4) / height);
    const times = fits * ZOOMS[this.zoom];
    Object.assign(this.canvas.style, { width: `${width * times}px`, height: `${height * times}px` });
    this.find('.out').disabled = this.zoom === 0;
    this.find('.in').disabled = this.zoom === ZOOMS.length - 1;
  }
}

export default function ({ data, parentElement }) {
  if (!galleries.has(parentElement)) galleries.set(parentElement, new Gallery(parentElement));
  galleries.get(parentElement).update(data);
}
