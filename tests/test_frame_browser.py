"""What every page has in a real browser: one history entry a click, titles with progress, landmarks, announcements."""

from __future__ import annotations

from typing import Any

import pytest
from filelock import FileLock

from smallalign_core.runs.store import Store
from smallalign_core.system.files import append
from smallalign_core.training.resolve import resolve
from tests.conftest import tiny

pytestmark = [pytest.mark.browser, pytest.mark.slow]

PATIENCE = 240_000
"""Milliseconds that a page may take on a busy machine."""


def titled(page: Any, title: str) -> None:
    page.wait_for_function("title => document.title === title", arg=title, timeout=PATIENCE)


def test_a_click_on_the_menu_is_one_entry_of_the_history(browser: Any, site: str, place: Store) -> None:
    page = browser.new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(f"{site}/")
    page.get_by_role("navigation", name="Pages").wait_for()
    before = page.evaluate("history.length")
    menu = page.get_by_role("navigation", name="Pages")
    for number, (name, parameter) in enumerate((("Data", "page="), ("Distill", "teacher="), ("Compare", "tab=")), 1):
        menu.get_by_role("link", name=name, exact=True).click()
        titled(page, f"{name} · SmallAlign")
        page.wait_for_url(f"**?*{parameter}*", timeout=PATIENCE)  # the page wrote its settings
        assert page.locator("h1").count() == 1
        assert page.evaluate("history.length") == before + number
    page.go_back()
    titled(page, "Distill · SmallAlign")
    page.go_back()
    titled(page, "Data · SmallAlign")


def test_another_view_of_a_page_is_an_entry_of_its_own(browser: Any, site: str, place: Store) -> None:
    page = browser.new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(f"{site}/runs")
    page.get_by_role("navigation", name="Pages").wait_for()
    page.wait_for_url("**columns=*", timeout=PATIENCE)
    page.evaluate("history.pushState({}, '', '/runs?run=x&tab=Log')")
    before = page.evaluate("history.length")
    page.evaluate("history.pushState({}, '', '/runs?run=x&tab=Metrics')")  # a setting of the same view
    assert page.evaluate("history.length") == before
    page.evaluate("history.pushState({}, '', '/runs?run=y&tab=Metrics')")
    assert page.evaluate("history.length") == before + 1


def test_the_title_and_the_announcement_follow_a_run(browser: Any, site: str, place: Store) -> None:
    run = place.create(resolve(place, tiny(seed=9)))

    def at(step: int) -> None:
        event = {"kind": "progress", "step": step, "steps": 100, "epoch": 0.0, "eta": 1.0, "images_per_second": 1.0}
        append(run.folder / "events.jsonl", {**event, "loss": 1.0, "terms": {"labels": 1.0}})

    at(51)
    with FileLock(run.folder / "lock"):  # what a run in training is to everybody else
        page = browser.new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(f"{site}/data")
        titled(page, "(51%) Data · SmallAlign")
        said = page.locator(".spoken")
        said.filter(has_text=": 50%").wait_for(state="attached")
        assert said.get_attribute("aria-live") == "polite"
        at(73)
        titled(page, "(73%) Data · SmallAlign")  # without a click
        said.filter(has_text=": 70%").wait_for(state="attached")
    titled(page, "Data · SmallAlign")
    said.filter(has_text=": interrupted").wait_for(state="attached")
    place.delete(run.id)
