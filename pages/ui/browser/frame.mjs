// What Streamlit leaves out on every page: a history without the page's own writes, a landmark, announcements, notifications.

const VIEWS = ['run', 'study']; // Parameters that lead to another view of a page; all others are its settings.

/** Whether two addresses show the same view: Back must not step through settings that a page wrote by itself. */
export function sameView(before, after) {
  return (
    before.pathname === after.pathname &&
    VIEWS.every((name) => before.searchParams.get(name) === after.searchParams.get(name))
  );
}

const push = window.history.pushState.bind(window.history);
window.history.pushState = (state, unused, url) => {
  const here = new URL(window.location.href);
  if (url != null && sameView(here, new URL(url, here))) window.history.replaceState(state, unused, url);
  else push(state, unused, url);
};

const PHONE = 640; // Pixels: here Streamlit draws the menu over the page.

/** Close the menu after a choice on a phone, where it covers what was chosen. */
function closeAfterChoice(event) {
  if (window.innerWidth > PHONE || !event.target.closest('a')) return;
  document.querySelector('[data-testid="stSidebarCollapseButton"] button')?.click();
}

const NOTIFY = 'smallalign-notify';
let last = 0; // The number of the last message that was shown.

function wanted() {
  try {
    return localStorage.getItem(NOTIFY) === 'yes' && Notification.permission === 'granted';
  } catch { // Storage is forbidden.
    return false;
  }
}

/** The switch: the browser grants or denies notifications once, and only after a click. */
function offer(parentElement) {
  const [box, denied] = ['.notify input', '.denied'].map((part) => parentElement.querySelector(part));
  // On a phone only a service worker may notify, and the strip has no room.
  if (!('Notification' in window) || !window.isSecureContext || window.innerWidth <= PHONE) return;
  parentElement.querySelector('.notify').hidden = false;
  box.checked = wanted();
  box.onchange = async () => {
    const granted = box.checked && (await Notification.requestPermission()) === 'granted';
    denied.hidden = !box.checked || granted;
    try {
      localStorage.setItem(NOTIFY, granted ? 'yes' : 'no');
    } catch { /* Then it stays off. */ }
    box.checked = wanted();
  };
}

function notify(ended) {
  for (const [number, text] of ended.filter(([number]) => number > last)) {
    last = number;
    if (!document.hidden || !wanted()) continue;
    try {
      const shown = new Notification('SmallAlign', { body: text, tag: `smallalign-${number}` });
      shown.onclick = () => { window.focus(); shown.close(); };
    } catch { /* Chrome on Android lets only service workers notify. */ }
  }
}

export default function ({ data, parentElement }) {
  const menu = document.querySelector('[data-testid="stSidebarUserContent"]');
  menu?.setAttribute('role', 'navigation');
  menu?.setAttribute('aria-label', 'Pages');
  menu?.addEventListener('click', closeAfterChoice); // The same listener twice is one.
  const spoken = parentElement.querySelector('.spoken');
  if (spoken.textContent !== data.spoken) spoken.textContent = data.spoken;
  offer(parentElement);
  notify(data.ended);
}
