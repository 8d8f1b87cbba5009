"""The Data page's close look: what it tells, decisions by click and by keyboard, and the run that carries them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import axe
import numpy as np
import pytest
from chromium import dashboard, executable, launched
from PIL import Image
from streamlit.testing.v1 import AppTest

from pages.ui.data import quality_cards
from pages.ui.security import auth
from smallalign_core import data
from smallalign_core.analysis import data_quality
from smallalign_core.analysis.data_quality import Duplicates, Place
from smallalign_core.data import Decision, Splits
from smallalign_core.runs.store import Store
from smallalign_core.service.users import Role, User
from smallalign_core.spec import DataSpec
from tests.conftest import ROOT, texts

PATIENCE = 240_000
"""Milliseconds that a step may take on a busy machine."""


def write(root: Path, splits: Splits) -> Path:
    """300 training and 60 test digits as folders: 8 wrong labels, a copy, and a test image that is learned from."""

    def put(split: str, name: str, pixels: Any, label: int) -> None:
        folder = root / split / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[0]).save(folder / f"{name}.png")

    for row in range(300):
        label = int(splits.train.labels[row])
        put("train", f"{row}", splits.train.images[row], (label + 3) % 10 if row < 8 else label)
    for row in range(60):
        put("test", f"{row}", splits.test.images[row], int(splits.test.labels[row]))
    put("train", "copy", splits.train.images[100], int(splits.train.labels[100]))
    put("train", "leak", splits.test.images[7], int(splits.test.labels[7]))
    return root


@pytest.fixture
def dirty(tmp_path: Path, digits: Splits) -> Path:
    return write(tmp_path / "dirty", digits)


def press(app: AppTest, label: str) -> AppTest:
    next(button for button in app.button if button.label == label).click().run()
    assert not app.exception
    return app


def labels(app: AppTest) -> set[str]:
    return {button.label for button in app.button}


@pytest.mark.slow
def test_a_look_is_asked_for_and_what_is_decided_can_be_undone(shown: Any, store: Store, dirty: Path) -> None:
    app = shown("data", data=str(dirty))
    assert "Run data quality check" in labels(app)
    app = press(app, "Run data quality check")
    report = data_quality.run_check(store, DataSpec(source=str(dirty)))
    told = {metric.label: metric.value for metric in app.metric}
    assert told["Suspected label errors"] == str(len(report.label_issues))
    assert (told["Train/test leakage"], told["Duplicates"]) == ("1", str(len(report.duplicates)))
    assert report.method in texts(app)
    worst = report.label_issues[0]
    assert f"Label: {worst.given}; predicted: {worst.suggested}." in texts(app)

    app = press(app, "Relabel")  # the suggested class comes first
    found = data_quality.decisions(store, report.fingerprint).by_image
    assert found == {int(worst.id, 16): Decision("relabel", worst.suggested)}
    assert app.query_params["at"] in ("2", ["2"])
    assert "1 image reviewed" in texts(app)

    app = press(app, "Undo")
    assert data_quality.decisions(store, report.fingerprint).by_image == {}
    assert app.query_params["at"] in ("1", ["1"])

    sure = {int(one.id, 16) for one in report.label_issues if one.sure and one.split != "test"}
    assert sure
    app = press(app, "Apply")
    assert data_quality.decisions(store, report.fingerprint).by_image == dict.fromkeys(sure, Decision("drop"))


@pytest.mark.slow
def test_a_viewer_looks_and_does_not_decide(
    shown: Any, store: Store, dirty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_quality.run_check(store, DataSpec(source=str(dirty)))
    monkeypatch.setattr(auth, "current_user", lambda: User("eve", Role.VIEWER))
    app = shown("data", data=str(dirty))
    assert "decide about images" in texts(app)
    assert not {"Keep", "Drop", "Relabel", "Apply", "Run data quality check"} & labels(app)


@pytest.mark.slow
def test_a_link_that_names_no_decisions_gets_a_sentence(shown: Any) -> None:
    app = shown("distil", data="digits", decisions="../../etc")
    assert "16 hexadecimal" in app.error[0].value


def test_one_of_several_is_kept_and_test_images_are_never_changed() -> None:
    places = (Place("train", 0, f"{1:016x}"), Place("val", 3, f"{2:016x}"), Place("test", 5, f"{3:016x}"))
    card = quality_cards.Card(places, "", "", several=True)
    made = dict(card.changes("once"))
    assert made == {1: Decision("once"), 2: Decision("drop")}
    assert card.decided({1: Decision("once"), 2: Decision("drop")}) == "Keep one"
    assert card.decided({1: Decision("keep"), 2: Decision("drop")}) == "Mixed"
    assert card.decided({1: Decision("keep")}) is None
    assert quality_cards.Card(places[2:], "", "").changes("drop") == []
    assert Duplicates("near", 0.1, True, places).images == places


@pytest.mark.browser
@pytest.mark.slow
def test_decisions_by_click_and_by_keyboard_survive_and_become_part_of_a_run(tmp_path: Path, digits: Splits) -> None:
    if (found := executable()) is None:
        pytest.skip("needs Chromium: install it, or name it in CHROMIUM")
    from playwright.sync_api import sync_playwright

    store, source = Store(tmp_path / "models"), write(tmp_path / "dirty", digits)
    report = data_quality.run_check(store, DataSpec(source=str(source)))
    issues = [int(one.id, 16) for one in report.label_issues if one.split != "test"]
    environment = {"SMALLALIGN_STORE": str(store.root), "OMP_NUM_THREADS": "1"}
    with dashboard(tmp_path / "log.txt", environment=environment) as address, sync_playwright() as playwright:
        page = launched(playwright, found).new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(f"{address}/data?data={source}")
        page.get_by_role("button", name="Drop", exact=False).first.wait_for()
        for count, key in enumerate((None, "k", "l", "d"), 1):
            if key is None:
                page.locator(".st-key-quality-drop button").click()
            else:
                page.keyboard.press(key)
            page.get_by_text(f"{count} image{'s' * (count > 1)} reviewed").wait_for()
        page.keyboard.press("u")
        page.get_by_text("3 images reviewed").wait_for()
        page.keyboard.press("ArrowLeft")
        page.get_by_text("3 of ").wait_for()
        made = data_quality.decisions(store, report.fingerprint)
        assert {made.by_image[one].what for one in issues[:3]} == {"drop", "keep", "relabel"}
        page.reload()
        page.get_by_text("3 images reviewed").wait_for()
        page.get_by_text("3 of ").wait_for()
        assert axe.grave(page) == []

        page.get_by_role("link", name="Distill with these decisions").click()
        page.get_by_text("Training time").wait_for()
        page.get_by_role("button", name="Start training").click()
        page.get_by_role("link", name="Duplicate and edit").wait_for()
    (run,) = [one for one in store.runs() if not one.folder.is_relative_to(ROOT)]
    assert run.spec.data.decisions
    assert json.loads(Path(run.spec.data.decisions).read_text())["decisions"] == made.as_dict()["decisions"]
    learned = data.load(run.spec.data, store.data_cache)
    assert np.isin(np.array(issues[:1], np.uint64), learned.train.ids).sum() == 0
