"""The table of runs in a real browser: a name opens its run, whatever was filtered before; ticks, tags, trash."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from smallalign_core.runs.store import Store
from smallalign_core.training.resolve import resolve
from tests.conftest import tiny

pytestmark = [pytest.mark.browser, pytest.mark.slow]

PATIENCE = 240_000
"""Milliseconds that a page may take on a busy machine."""
HEAD, ROW, NAME = 36, 35, 180
"""Pixels of the table's head and of a row, and from its left edge to the beginning of a run's name."""


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


def click(page: Any, row: int, x: int) -> None:
    box = page.get_by_test_id("stDataFrame").bounding_box()
    page.mouse.click(box["x"] + x, box["y"] + HEAD + ROW * row + ROW / 2)


def tick(page: Any, row: int) -> None:
    click(page, row, 18)


def open_(page: Any, row: int) -> None:
    click(page, row, NAME)


def listed(page: Any, count: int) -> None:
    """Wait until the browser draws a table of so many rows, which its caption counts, too."""
    page.get_by_text(f"{count} of 8 runs").wait_for()
    page.locator(f"[data-testid=glide-cell-2-{count - 1}]").wait_for(state="attached")
    page.locator(f"[data-testid=glide-cell-2-{count}]").wait_for(state="detached")


def opened(page: Any) -> str:
    """The title of the run that the page shows."""
    page.get_by_role("button", name="All runs", exact=True).wait_for()
    return str(page.get_by_text("· run").first.text_content())


def test_a_name_opens_the_run_of_that_row_whatever_was_filtered_before(browser: Any, site: str, six: Store) -> None:
    from playwright.sync_api import expect

    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(PATIENCE)
    page.goto(f"{site}/runs")
    listed(page, 8)
    page.get_by_label("Filter and sort", exact=True).fill("mlp")
    page.get_by_label("Filter and sort", exact=True).press("Enter")
    listed(page, 3)

    for row in (1, 2, 0):  # each time by way of "All runs"
        wanted = row_of(page, row)
        open_(page, row)
        assert wanted in opened(page)
        page.get_by_role("button", name="All runs", exact=True).click()
        listed(page, 3)
        # What the table is filtered by is to be seen.
        expect(page.get_by_label("Filter and sort", exact=True)).to_have_value("mlp", timeout=PATIENCE)

    page.get_by_label("Filter and sort", exact=True).fill("")
    page.get_by_label("Filter and sort", exact=True).press("Enter")
    listed(page, 8)
    wanted = row_of(page, 4)
    open_(page, 4)
    assert wanted in opened(page)


def test_a_run_that_comes_while_the_table_is_on_screen_opens_no_other_run(browser: Any, site: str, six: Store) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(PATIENCE)
    page.goto(f"{site}/runs?filter=mlp")
    listed(page, 3)
    wanted = row_of(page, 1)
    newest = six.create(resolve(six, tiny(network={"kind": "mlp", "width": 10}, epochs=1)))

    open_(page, 1)
    told = opened(page)
    six.delete(newest.id)
    six.empty_trash()
    assert wanted in told


def test_ticked_runs_are_tagged_moved_to_the_trash_and_taken_back(browser: Any, site: str, six: Store) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 1400})
    page.set_default_timeout(PATIENCE)
    page.goto(f"{site}/runs?filter=mlp")
    listed(page, 3)
    for row in (0, 2):
        tick(page, row)
    page.get_by_text("2 runs selected").wait_for()
    page.get_by_text("Spec differences").wait_for()

    page.get_by_role("button", name="Tag", exact=True).click()
    box = page.get_by_role("combobox", name="Add tags")
    box.fill("good")
    box.press("Enter")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Apply").click()
    wait(lambda: sum(run.notes.tags == ("good",) for run in six.runs()) == 2, page)

    page.get_by_label("Filter and sort", exact=True).fill("tag:good")
    page.get_by_label("Filter and sort", exact=True).press("Enter")
    listed(page, 2)
    page.get_by_text("2 runs selected").wait_for()  # they stay ticked under another filter
    page.get_by_role("button", name="Delete", exact=True).click()
    page.get_by_role("button", name="Move to trash").click()
    page.get_by_text("2 runs moved to the trash").wait_for()
    assert len(six.trash()) == 2
    page.get_by_role("button", name="Undo").click()
    listed(page, 2)
    assert six.trash() == []


@pytest.mark.parametrize("width", [400, 1280])
def test_the_list_with_a_selection_is_accessible(browser: Any, site: str, six: Store, width: int) -> None:
    import axe

    page = browser.new_context(color_scheme="dark", viewport={"width": width, "height": 1400}).new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(f"{site}/runs?filter=mlp")
    listed(page, 3)
    for row in (0, 1):
        tick(page, row)
    page.get_by_text("Spec differences").wait_for()
    assert axe.grave(page) == []


def wait(true: Callable[[], bool], page: Any) -> None:
    """Wait until something is true, with the browser going on."""
    for _ in range(PATIENCE // 100):
        if true():
            return
        page.wait_for_timeout(100)
    raise AssertionError("it never became true")


def test_one_smoothing_and_one_log_scale_for_all_charts_of_a_run(browser: Any, site: str, six: Store) -> None:
    run = next(run for run in six.runs() if run.spec.network.kind == "mlp")  # type: ignore[union-attr]
    steps = [
        {"kind": "progress", "step": at, "steps": 8, "epoch": at / 2, "loss": 9.0 - at, "terms": {"labels": 9.0 - at}}
        for at in range(1, 9)
    ]
    epochs = [{"kind": "epoch", "step": 2 * at, "epoch": at, "nll": 5.0 - at, "accuracy": at / 5} for at in range(1, 5)]
    (run.folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in (*steps, *epochs)))
    page = browser.new_page()
    page.goto(f"{site}/runs?run={run.name}", timeout=PATIENCE)
    page.locator(".plot[data-points]").nth(2).wait_for()
    latest = page.locator(".legend .value")
    assert latest.all_inner_texts() == ["1", "1", "0.8"]
    assert page.locator(".smoothing").count() == page.locator(".log").count() == 1
    page.locator(".smoothing").fill("0.5")
    # By hand: the latest value weighs 1/2, the one before 1/4, ..., and all weights are divided by their sum.
    weights = [2.0**-back for back in range(1, 9)]
    loss = sum(weight * (1 + back) for back, weight in enumerate(weights)) / sum(weights)
    nll, accuracy = (
        sum(weight * (start + back * step) for back, weight in enumerate(weights[:4])) / sum(weights[:4])
        for start, step in ((1, 1), (0.8, -0.2))
    )
    smoothed = [float(text) for text in latest.all_inner_texts()]
    assert smoothed == pytest.approx([loss, nll, accuracy], rel=1e-3)
    linear = [plot.get_attribute("data-y") for plot in page.locator(".plot").all()]
    page.locator(".log").check()
    ranges = [plot.get_attribute("data-y") for plot in page.locator(".plot").all()]
    assert all(before != after for before, after in zip(linear, ranges, strict=True)), (linear, ranges)
    page.reload()
    page.locator(".plot[data-points]").nth(2).wait_for()
    assert page.locator(".smoothing").input_value() == "0.5"
    assert page.locator(".log").is_checked()
    assert [float(text) for text in latest.all_inner_texts()] == pytest.approx(smoothed)
    page.close()
