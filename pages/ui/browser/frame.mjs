// What Streamlit leaves out on every page: a history without the page's own writes, a landmark, announcements.

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

export default function ({ data, parentElement }) {
  const menu = document.querySelector('[data-testid="stSidebarUserContent"]');
  menu?.setAttribute('role', 'navigation');
  menu?.setAttribute('aria-label', 'Pages');
  const spoken = parentElement.querySelector('.spoken');
  if (spoken.textContent !== data.spoken) spoken.textContent = data.spoken;
}
