"""The Scaling page in a real browser: a study by a click, verdict, sanity checks, and nothing that axe minds."""

from __future__ import annotations

from typing import Any

import pytest
from axe import grave

from smallalign_core.runs.store import Store
from smallalign_core.studies import lifecycle

pytestmark = [pytest.mark.browser, pytest.mark.slow]

STUDENT = '{"network":{"kind":"mlp","width":8,"depth":1},"epochs":2,"batch":64,"data":{"images":160}}'
PATIENCE = 240_000
"""Milliseconds that a study may take on a busy machine."""


def test_a_study_by_a_click(browser: Any, site: str, place: Store) -> None:
    page = browser.new_page(viewport={"width": 1200, "height": 1400})
    page.set_default_timeout(PATIENCE)
    page.goto(f"{site}/scaling?data=digits&student={STUDENT}&recipes=augment&draws=3&steps=0")
    page.get_by_text("Estimated time").wait_for()

    page.get_by_role("button", name="Start study").click()
    page.get_by_role("button", name="All studies").wait_for()
    page.reload()  # it goes on without the page, and is found again
    page.get_by_role("button", name="Delete").wait_for()  # offered once nothing of it is in training
    page.locator(".st-key-plot-scaling-tests .main-svg").first.wait_for()

    (study,) = lifecycle.listing(place, "scaling")
    report = study.report(place)
    assert (report.complete, report.total) == (True, 54)
    passed = sum(test.passed for test in report.readings["nll"].tests)
    assert page.get_by_text(f"{passed} of {len(report.readings['nll'].tests)} sanity checks passed").is_visible()
    page.get_by_role("tab", name="All metrics").click()
    page.wait_for_url("**part=All+metrics*")  # the page is drawn anew: the next tab may move under a click before that
    page.get_by_role("tab", name="Curves").click()
    page.locator(".st-key-plot-scaling-curves .main-svg").first.wait_for()
    assert not grave(page)

    dark = browser.new_page(viewport={"width": 400, "height": 900}, color_scheme="dark")
    dark.goto(page.url, timeout=PATIENCE)
    dark.locator(".st-key-plot-scaling-tests .main-svg").first.wait_for(timeout=PATIENCE)
    dark.wait_for_timeout(1000)
    assert dark.evaluate("document.documentElement.scrollWidth") <= 400
    assert not grave(dark)
