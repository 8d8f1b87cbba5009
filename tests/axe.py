"""What axe-core, the accessibility checker, finds on a page; for every test that opens one in a real browser."""

from __future__ import annotations

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

GRAVE = ("serious", "critical")


def grave(page: Page) -> list[str]:
    """The serious and critical findings on what `page` shows now: rule, what is wrong, the element and where it is."""
    found = Axe().run(page).response["violations"]
    return [
        f"{one['id']} ({one['impact']}): {one['help']}\n  {node['html'][:160]}\n  {' '.join(map(str, node['target']))}"
        for one in found
        if one["impact"] in GRAVE
        for node in one["nodes"]
    ]
