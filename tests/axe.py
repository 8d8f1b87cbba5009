"""What axe-core, the accessibility checker, finds on a page; for every test that opens one in a real browser."""

from __future__ import annotations

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

GRAVE = ("serious", "critical")
SETTLED = """() => [...document.querySelectorAll('[data-testid="stElementContainer"]')].every(
    one => one.dataset.stale !== "true" && getComputedStyle(one).opacity === "1")"""


def grave(page: Page) -> list[str]:
    """The serious and critical findings on what `page` shows now: rule, what is wrong, the element and where it is.

    While a page is drawn anew, Streamlit fades what is old, which is too pale to read for a moment: this is waited for.
    """
    page.wait_for_function(SETTLED)
    found = Axe().run(page).response["violations"]
    return [
        f"{one['id']} ({one['impact']}): {one['help']}\n  {node['html'][:160]}\n  {' '.join(map(str, node['target']))}"
        for one in found
        if one["impact"] in GRAVE
        for node in one["nodes"]
    ]
