// The three buttons below a Plotly chart: its image as currently displayed, and the numbers behind it.

import { buttons, ofPlotly } from './picture.mjs';

const latest = new WeakMap();

/** The chart that these buttons stand below: both are in one container. */
function plot(root) {
  const host = root.host ?? root.getRootNode().host ?? root;
  const found = host.closest('[class*="st-key-plot-"]')?.querySelector('.js-plotly-plot');
  if (!found?.querySelector('.main-svg')) throw new Error('the plot is not drawn yet');
  return found;
}

export default function ({ data, parentElement }) {
  const first = !latest.has(parentElement);
  latest.set(parentElement, data);
  if (!first) return;
  const read = (name) => getComputedStyle(parentElement.querySelector('.save')).getPropertyValue(`--st-${name}`).trim();
  buttons(parentElement, () => {
    const { name, alt, csv } = latest.get(parentElement);
    const looks = { background: read('background-color'), font: read('font') || 'sans-serif', title: alt };
    return { name, csv: () => csv, picture: () => ofPlotly(plot(parentElement), looks) };
  });
}
