// One smoothing and one log scale for all charts of curves in a tab of the browser, kept until it is closed.

const KEY = 'smallalign-curves';

/** What is set now: the weight of the moving average, 0 (none) to 0.99, and whether the vertical axes are logarithmic. */
export const setting = { smoothing: 0, log: false, ...remembered() };

/** Dispatches `smoothing` or `log` when that changed. */
export const changes = new EventTarget();

function remembered() {
  try {
    const { smoothing, log } = JSON.parse(sessionStorage.getItem(KEY)) ?? {};
    return smoothing >= 0 && smoothing <= 0.99 ? { smoothing, log: Boolean(log) } : {};
  } catch { // Storage is forbidden, or holds something else.
    return {};
  }
}

function change(name, value) {
  setting[name] = value;
  try {
    sessionStorage.setItem(KEY, JSON.stringify(setting));
  } catch { /* Then it lasts until the page is loaded again. */ }
  changes.dispatchEvent(new Event(name));
}

export default function ({ parentElement }) {
  const [range, box, output] = ['.smoothing', '.log', 'output'].map((part) => parentElement.querySelector(part));
  const show = () => {
    range.value = setting.smoothing;
    box.checked = setting.log;
    output.textContent = setting.smoothing.toFixed(2);
  };
  range.oninput = () => { change('smoothing', Number(range.value)); show(); };
  box.onchange = () => change('log', box.checked);
  show();
}
