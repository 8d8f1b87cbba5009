"""The table of runs in a real browser: a tick opens the run of its row, whatever was filtered before."""

from __future__ import annotations

import json
from typing import Any

import pytest

from smallalign_core.runs.store import Store
from smallalign_core.training.resolve import resolve
from tests.conftest import tiny

pytestmark = [pytest.mark.browser, pytest.mark.slow]

PATIENCE = 240_000
"""Milliseconds that a page may take on a busy machine."""
HEAD, ROW = 36, 35
"""Pixels of the table's head and of a row."""


@pytest.fixture(scope="module")
def six(place: Store) -> Store:
    """A store with six finished runs, three of either network."""
    zoo = place.run("digits-student")
    for kind in ("cnn", "mlp"):
        for width in (4, 6, 8):
            run = place.create(resolve(place, tiny(network={"kind": kind, "width": width}, epochs=1)))
            (run.folder / "weights.safetensors").write_bytes(zoo.weights.read_bytes())
            (run.folder / "result.json").write_text(json.dumps({**(zoo.result or {}), "id": run.id}))
    return place


def row_of(page: Any, row: int) -> str:
    """The name of a run in the table, as its accessible grid has it."""
    return str(page.locator(f"[data-testid=glide-cell-2-{row}]").text_content())


def tick(page: Any, row: int) -> None:
    box = page.get_by_test_id("stDataFrame").bounding_box()
    page.mouse.click(box["x"] + 18, box["y"] + HEAD + ROW * row + ROW / 2)


def listed(page: Any, count: int) -> None:
    """Wait until the browser draws a table of so many rows, which its caption counts, too."""
    page.get_by_text(f"{count} of 8 runs").wait_for()
    page.locator(f"[data-testid=glide-cell-2-{count - 1}]").wait_for(state="attached")
    page.locator(f"[data-testid=glide-cell-2-{count}]").wait_for(state="detached")


def opened(page: Any) -> str:
    """The title of the run that the page shows."""
    page.get_by_role("button", name="All runs", exact=True).wait_for()
    return str(page.get_by_text("· run").first.text_content())


def test_a_tick_opens_the_run_of_that_row_whatever_was_filtered_before(browser: Any, site: str, six: Store) -> None:
    from playwright.sync_api import expect

    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(PATIENCE)
    page.goto(f"{site}/runs")
    listed(page, 8)
    page.get_by_label("Filter").fill("mlp")
    page.get_by_label("Filter").press("Enter")
    listed(page, 3)

    for row in (1, 2, 0):  # each time by way of "All runs"
        wanted = row_of(page, row)
        tick(page, row)
        assert wanted in opened(page)
        page.get_by_role("button", name="All runs", exact=True).click()
        listed(page, 3)
        # What the table is filtered by is to be seen.
        expect(page.get_by_label("Filter")).to_have_value("mlp", timeout=PATIENCE)

    page.get_by_label("Filter").fill("")
    page.get_by_label("Filter").press("Enter")
    listed(page, 8)
    wanted = row_of(page, 4)
    tick(page, 4)
    assert wanted in opened(page)


def test_a_run_that_comes_while_the_table_is_on_screen_moves_no_tick(browser: Any, site: str, six: Store) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(PATIENCE)
    page.goto(f"{site}/runs?filter=mlp")
    listed(page, 3)
    wanted = row_of(page, 1)
    newest = six.create(resolve(six, tiny(network={"kind": "mlp", "width": 10}, epochs=1)))

    tick(page, 1)
    told = opened(page)
    six.delete(newest.id)
    assert wanted in told
