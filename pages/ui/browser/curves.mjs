// A line chart that takes longer data on every rerun and keeps zoom, hover and hidden lines.

import { buttons, element, sheet } from './picture.mjs';
import { changes, setting } from './smoothing.mjs';

const charts = new WeakMap();

// Steps between the ticks of an axis that counts: there is no epoch 0.25.
const WHOLE = Array.from({ length: 10 }, (_, power) => [1, 2, 5].map((step) => step * 10 ** power)).flat();

/** Exponential moving average without the bias towards zero at the start, as TensorBoard and W&B draw it. */
function smooth(values, weight) {
  let average = 0, total = 0;
  return values.map((value) => {
    if (value === null || value === undefined) return value;
    average = weight * average + (1 - weight) * value;
    total = weight * total + (1 - weight);
    return average / total;
  });
}

function format(value) {
  if (value === null || value === undefined) return '–';
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2);
  return value.toLocaleString(undefined, { maximumSignificantDigits: size >= 1000 ? 6 : 4 });
}

const translucent = (colour) => `color-mix(in srgb, ${colour} 30%, transparent)`;

class Chart {
  constructor(root, UPlot) {
    this.root = root;
    this.UPlot = UPlot;
    this.turn = 0;
    this.hidden = new Set();
    this.zoom = null; // [from, to] on the x axis while zoomed in.
    this.ended = new AbortController();
    const { signal } = this.ended;
    changes.addEventListener('smoothing', () => this.plot && this.refresh(), { signal });
    changes.addEventListener('log', () => this.plot && this.build(), { signal });
    this.find('.reset').onclick = () => this.unzoom();
    buttons(root, () => ({ name: this.data.name, csv: () => this.table(), picture: () => this.picture() }));
    this.observer = new ResizeObserver(() => this.plot?.setSize(this.extent()));
    this.observer.observe(this.find('.plot'));
  }

  find(selector) {
    return this.root.querySelector(selector);
  }

  extent() {
    const { clientWidth, clientHeight } = this.find('.plot');
    return { width: Math.max(200, clientWidth), height: clientHeight };
  }

  update(data) {
    this.data = data;
    this.find('.plot').setAttribute('aria-label', data.alt);
    this.find('.note').textContent = data.note;
    this.find('.note').hidden = !data.note;
    const theme = this.theme();
    const { x_label, y_label } = data;
    const looks = JSON.stringify([data.series.map(({ name, dashed, colour }) => [name, dashed, colour]), x_label, y_label, theme]);
    const some = data.series.some(({ x }) => x.length);
    this.find('.empty').hidden = some;
    this.find('.plot').hidden = !some;
    if (!some) return;
    if (looks !== this.looks) {
      this.looks = looks;
      this.colours = theme;
      this.build();
    } else {
      this.refresh();
    }
  }

  theme() {
    const style = getComputedStyle(this.find('.box'));
    const read = (name) => style.getPropertyValue(`--st-${name}`).trim();
    return {
      lines: read('chart-categorical-colors').split(/,(?![^(]*\))/).map((colour) => colour.trim()),
      text: read('text-color'),
      grid: read('border-color-light') || read('border-color'),
      font: `12px ${read('font') || 'sans-serif'}`,
    };
  }

  colour(line) {
    return this.colours.lines[line.colour % this.colours.lines.length];
  }

  /** One shared x for all lines, and for each line its raw and its smoothed values. */
  columns() {
    const { series } = this.data;
    const weight = setting.smoothing;
    const positive = (values) => (setting.log ? values.map((value) => (value > 0 ? value : null)) : values);
    const tables = series.map(({ x, y }) => [x, positive(y), weight ? positive(smooth(y, weight)) : positive(y)]);
    return this.UPlot.join(tables);
  }

  build() {
    const { lines: _, text, grid, font } = this.colours;
    const axis = (label, more) => ({
      label, stroke: text, font, labelFont: font, labelSize: 20, grid: { stroke: grid, width: 1 }, ticks: { stroke: grid, width: 1 }, ...more,
    });
    const widest = (chart, values) => Math.max(36, 14 + 7 * Math.max(0, ...(values ?? []).map((value) => String(value).length)));
    const line = (curve, index) => {
      const colour = this.colour(curve);
      const dash = curve.dashed ? [8, 5] : undefined;
      const show = !this.hidden.has(curve.name);
      return [
        { label: `${index} raw`, stroke: translucent(colour), width: 1, points: { show: false }, show },
        { label: `${index}`, stroke: colour, width: 2, dash, points: { fill: colour, size: 5 }, show },
      ];
    };
    this.plot?.destroy();
    this.plot = null;
    const whole = this.data.series.every(({ x }) => x.every(Number.isInteger));
    this.plot = new this.UPlot({
      ...this.extent(),
      padding: [12, 12, 0, 0],
      legend: { show: false },
      scales: { x: { time: false }, y: { distr: setting.log ? 3 : 1 } },
      axes: [
        axis(this.data.x_label, { size: 32, incrs: whole ? WHOLE : undefined }),
        axis(this.data.y_label, { size: widest, values: (chart, ticks) => ticks.map((tick) => (tick === null ? '' : format(tick))) }),
      ],
      series: [{}, ...this.data.series.flatMap(line)],
      cursor: { drag: { x: true, y: false, dist: 6 }, points: { size: 8, show: (chart, i) => (i % 2 ? false : undefined) } },
      hooks: {
        setCursor: [() => this.legendValues()],
        setScale: [(chart, scale) => this.expose(chart, scale)],
        setSelect: [(chart) => chart.select.width > 0 && this.zoomed(chart)],
      },
    }, this.columns(), this.find('.plot'));
    // uPlot's own double click shows everything; here it only has to be remembered.
    this.plot.over.addEventListener('dblclick', () => this.unzoom());
    this.legend();
    this.refresh();
  }

  /** Leave the visible range in the markup, where a test can read it. */
  expose(chart, scale) {
    const { min, max } = chart.scales[scale];
    this.find('.plot').setAttribute(`data-${scale}`, `${min} ${max}`);
  }

  zoomed(chart) {
    const { left, width } = chart.select;
    this.zoom = [chart.posToVal(left, 'x'), chart.posToVal(left + width, 'x')];
    this.find('.reset').style.visibility = 'visible';
  }

  unzoom() {
    this.zoom = null;
    this.find('.reset').style.visibility = 'hidden';
    this.refresh();
  }

  /** Set the data, and keep the zoom. */
  refresh() {
    const smoothing = setting.smoothing > 0;
    this.plot.batch(() => {
      this.plot.setData(this.columns(), !this.zoom);
      if (this.zoom) this.plot.setScale('x', { min: this.zoom[0], max: this.zoom[1] });
      this.data.series.forEach(({ name }, i) => {
        const show = !this.hidden.has(name);
        this.plot.setSeries(2 * i + 1, { show: show && smoothing });
        this.plot.setSeries(2 * i + 2, { show });
      });
    });
    this.find('.plot').setAttribute('data-points', this.plot.data[0].length);
    this.legendValues();
  }

  legend() {
    this.values = [];
    const items = this.data.series.map((curve) => {
      const part = (className, text = '') => Object.assign(document.createElement('span'), { className, textContent: text });
      const button = Object.assign(document.createElement('button'), { type: 'button', title: curve.name });
      const mark = part(curve.dashed ? 'mark dashed' : 'mark');
      mark.style.borderColor = this.colour(curve);
      const value = part('value');
      this.values.push(value);
      button.append(mark, part('name', curve.name), value);
      button.setAttribute('aria-pressed', String(!this.hidden.has(curve.name)));
      button.onclick = () => {
        if (!this.hidden.delete(curve.name)) this.hidden.add(curve.name);
        button.setAttribute('aria-pressed', String(!this.hidden.has(curve.name)));
        this.refresh();
      };
      const item = document.createElement('li');
      item.append(button);
      return item;
    });
    this.find('.legend').replaceChildren(...items);
  }

  /** Beside each name: the value under the pointer, or the latest one. */
  legendValues() {
    if (!this.plot) return;
    const { idx, left } = this.plot.cursor;
    const over = idx !== null && idx !== undefined && left >= 0;
    const [x] = this.plot.data;
    this.find('.where').textContent = over ? `${this.data.x_label} ${format(x[idx])}` : 'Latest values';
    this.data.series.forEach((_, i) => {
      const drawn = this.plot.data[2 * i + 2] ?? [];
      const value = over ? drawn[this.plot.cursor.idxs[2 * i + 2] ?? idx] : drawn.findLast((y) => y !== undefined);
      this.values[i].textContent = format(value);
    });
  }

  /** The chart as an SVG: what is drawn on the canvas now, and the legend above it. */
  async picture() {
    if (!this.plot) throw new Error('the chart has no points yet');
    const { plot, data, colours } = this;
    const { width, height } = this.extent();
    const style = getComputedStyle(this.find('.box'));
    const read = (name) => style.getPropertyValue(`--st-${name}`).trim();
    const shown = data.series.map((line, i) => [line, i]).filter(([{ name }]) => !this.hidden.has(name));
    const top = 20 * shown.length;
    const looks = { background: read('background-color'), font: read('font') || 'sans-serif', title: data.alt };
    const picture = await sheet(width, top + height, looks);
    const { offsetLeft: left, offsetTop: above, clientWidth: wide, clientHeight: high } = plot.over;
    const text = (x, y, anchor, content, more) => element('text', { x, y, fill: colours.text, 'font-size': 12, 'text-anchor': anchor, ...more }, content);
    const grid = (x1, y1, x2, y2) => element('line', { x1, y1, x2, y2, stroke: colours.grid });
    const clip = element('clipPath', { id: 'inside' }, element('rect', { x: 0, y: 0, width: wide, height: high }));
    const inside = element('g', { transform: `translate(${left},${top + above})` }, element('defs', {}, clip));
    plot.axes.forEach(({ scale, _splits, _values }, which) => _splits?.forEach((value, i) => {
      const at = plot.valToPos(value, scale);
      if (_values[i] === '' || at < -1 || at > (which ? high : wide) + 1) return;
      inside.append(...(which
        ? [grid(0, at, wide, at), text(-8, at + 4, 'end', String(_values[i]))]
        : [grid(at, 0, at, high), text(at, high + 18, 'middle', String(_values[i]))]));
    }));
    inside.append(text(wide / 2, high + 38, 'middle', data.x_label));
    inside.append(text(0, 0, 'middle', data.y_label, { transform: `translate(${12 - left},${high / 2}) rotate(-90)` }));
    const lines = element('g', { 'clip-path': 'url(#inside)', fill: 'none' });
    shown.forEach(([line, i], row) => {
      const stroke = this.colour(line);
      const dash = line.dashed ? '8 5' : undefined;
      const smoothing = setting.smoothing > 0;
      for (const [at, strength] of [...(smoothing ? [[2 * i + 1, 0.3]] : []), [2 * i + 2, 1]]) {
        lines.append(element('path', { d: this.path(at), stroke, 'stroke-opacity': strength, 'stroke-width': 2, 'stroke-dasharray': dash }));
      }
      picture.append(element('line', { x1: left, x2: left + 24, y1: 20 * row + 12, y2: 20 * row + 12, stroke, 'stroke-width': 3, 'stroke-dasharray': dash }),
        text(left + 32, 20 * row + 16, 'start', line.name));
    });
    inside.append(lines);
    picture.append(inside);
    return picture;
  }

  /** The points before smoothing; a note below the chart is shown if they are minima and maxima of more. */
  table() {
    const { series, x_label, y_label } = this.data;
    const cell = (value) => (/[",\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);
    const rows = series.flatMap(({ name, x, y }) => x.map((at, i) => [name, String(at), y[i] === null ? '' : String(y[i])]));
    return [['series', x_label, y_label], ...rows].map((row) => `${row.map(cell).join(',')}\r\n`).join('');
  }

  /** A line of the plot as an SVG path; null is a gap, undefined is another line's x. */
  path(at) {
    const [x] = this.plot.data;
    let pen = 'M';
    return this.plot.data[at].map((y, i) => {
      if (y === undefined) return '';
      if (y === null) { pen = 'M'; return ''; }
      const point = `${pen}${this.plot.valToPos(x[i], 'x').toFixed(2)} ${this.plot.valToPos(y, 'y').toFixed(2)}`;
      pen = 'L';
      return point;
    }).join('');
  }

  end() {
    this.ended.abort();
    this.observer.disconnect();
    this.plot?.destroy();
  }
}

async function style(root, url) {
  if (root.querySelector('link')) return;
  const link = Object.assign(document.createElement('link'), { rel: 'stylesheet', href: url });
  const ready = new Promise((resolve) => { link.onload = link.onerror = resolve; });
  root.querySelector('.box').append(link);
  await ready;
}

export default async function ({ data, parentElement }) {
  const { default: UPlot } = await import(new URL(data.library, location.origin).href);
  await style(parentElement, new URL(data.style, location.origin).href);
  let chart = charts.get(parentElement);
  if (!chart) charts.set(parentElement, (chart = new Chart(parentElement, UPlot)));
  chart.update(data);
  chart.turn += 1;
  const { turn } = chart;
  return () => {
    // Streamlit may call the clean-up of an earlier turn late; only the last one means that the component is gone.
    if (turn !== chart.turn) return;
    chart.end();
    charts.delete(parentElement);
  };
}
