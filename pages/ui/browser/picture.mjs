// Plots as files: one SVG that needs nothing else, a PNG of it, and how a browser saves them.

const NAMESPACE = 'http://www.w3.org/2000/svg';

/** What Plotly draws for the pointer only. */
const POINTER = '.draglayer, .hoverlayer, .zoomlayer, .selectionlayer, .crisp.zoombox';

/** An element of an SVG with its attributes, and a text or elements inside. */
export function element(name, attributes = {}, ...inside) {
  const made = document.createElementNS(NAMESPACE, name);
  for (const [key, value] of Object.entries(attributes)) if (value !== undefined) made.setAttribute(key, value);
  made.append(...inside);
  return made;
}

/**
 * An empty sheet of the page's colour, with a title and the font that its texts are written in.
 *
 * The font's file travels inside: without it a picture is set in another one, and texts run into each other.
 */
export async function sheet(width, height, { background, font, title }) {
  const style = await face(font);
  return element('svg', { xmlns: NAMESPACE, width, height, viewBox: `0 0 ${width} ${height}`, 'font-family': font },
    element('title', {}, title), ...(style ? [element('style', {}, style)] : []),
    element('rect', { width: '100%', height: '100%', fill: background }));
}

/** The layers of a Plotly chart on one sheet. */
export async function ofPlotly(plot, looks) {
  const layers = [...plot.querySelectorAll('.main-svg')];
  const [width, height] = ['width', 'height'].map((side) => Number(layers[0].getAttribute(side)));
  const picture = await sheet(width, height, looks);
  for (const layer of layers) {
    const copy = layer.cloneNode(true);
    copy.querySelectorAll(POINTER).forEach((part) => part.remove());
    picture.append(element('g', {}, ...copy.childNodes));
  }
  return picture;
}

/** The SVG as text. References go to its own parts: Plotly may write the page's address before them. */
export function text(picture) {
  return new XMLSerializer().serializeToString(picture).replace(/url\((&quot;|["']?)[^)#"'&]*#([^)"'&]+)\1\)/g, 'url(#$2)');
}

/** The SVG as a PNG, in twice its size for sharp print and screens. */
export async function png(picture, scale = 2) {
  const [width, height] = ['width', 'height'].map((side) => Math.round(scale * Number(picture.getAttribute(side))));
  const url = URL.createObjectURL(new Blob([text(picture)], { type: 'image/svg+xml' }));
  try {
    const image = new Image(width, height);
    image.src = url;
    await image.decode();
    const canvas = Object.assign(document.createElement('canvas'), { width, height });
    canvas.getContext('2d').drawImage(image, 0, 0, width, height);
    return await new Promise((resolve) => { canvas.toBlob(resolve, 'image/png'); });
  } finally {
    URL.revokeObjectURL(url);
  }
}

/** Let the browser save `blob` under `name`. */
export function save(blob, name) {
  const link = Object.assign(document.createElement('a'), { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/**
 * Give the three buttons below a plot their work.
 *
 * @param root holds `button[data-type]` for png, svg and csv, and a `.failure` for errors.
 * @param what `name` of the files, `picture()` that makes the SVG, `csv()` that makes the table.
 */
export function buttons(root, what) {
  const failure = root.querySelector('.failure');
  const make = {
    png: async () => png(await what().picture()),
    svg: async () => new Blob([text(await what().picture())], { type: 'image/svg+xml' }),
    csv: async () => new Blob([what().csv()], { type: 'text/csv' }),
  };
  root.querySelectorAll('button[data-type]').forEach((button) => {
    const { type } = button.dataset;
    button.onclick = async () => {
      failure.textContent = '';
      try {
        const blob = await make[type]();
        if (!blob) throw new Error('the image is too large for this browser');
        save(blob, `${what().name}.${type}`);
      } catch (error) {
        failure.textContent = `Saving as ${type.toUpperCase()} failed: ${error.message}. Reload the page and try again.`;
      }
    };
  });
}

const faces = new Map();

/** The `@font-face` rules of the first family in `font` that the page has loaded, with their files inside. */
function face(font) {
  const family = font.split(',')[0].trim().replace(/["']/g, '');
  if (!faces.has(family)) faces.set(family, fetched(family).catch(() => ''));
  return faces.get(family);
}

async function fetched(family) {
  const used = [...document.fonts].filter((one) => one.status === 'loaded' && one.family.replace(/["']/g, '') === family);
  const rules = [...document.styleSheets].flatMap((sheet) => {
    try { return [...sheet.cssRules]; } catch { return []; } // a sheet of another origin may not be read
  }).filter((rule) => rule instanceof CSSFontFaceRule && rule.style.getPropertyValue('font-family').replace(/["']/g, '') === family);
  const upright = rules.filter((rule) => rule.style.getPropertyValue('font-style') !== 'italic');
  if (!used.length || !upright.length) return '';
  const inlined = await Promise.all(upright.map(async (rule) => {
    const [, address] = rule.style.getPropertyValue('src').match(/url\(["']?([^"')]+)["']?\)/);
    const blob = await (await fetch(new URL(address, rule.parentStyleSheet.href ?? document.baseURI))).blob();
    const data = await new Promise((resolve) => {
      const reader = new FileReader();
      reader.onload = () => resolve(reader.result);
      reader.readAsDataURL(blob);
    });
    const weight = rule.style.getPropertyValue('font-weight') || 'normal';
    return `@font-face{font-family:"${family}";font-weight:${weight};src:url("${data}")}`;
  }));
  return inlined.join('');
}
