"""Lessons: a change of the control changes the answer in the direction of the theory; a link opens one as it was."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import axe
import numpy as np
import pytest
from chromium import dashboard, executable, launched
from streamlit.testing.v1 import AppTest

from pages.ui import lessons
from pages.ui.lessons import calibration, size, temperature, trained as trained_lessons
from smallalign_core.metrics import fit_temperature, log_softmax
from smallalign_core.runs.store import Store
from smallalign_core.service import worker
from tests.conftest import texts

SHORT = (("temperature", "Entropy"), ("calibration", "NLL"), ("size", "Accuracy"), ("optimizers", "Accuracy"))


def number(app: AppTest, label: str) -> float:
    """The number of the metric whose label begins so."""
    (found,) = [one.value for one in app.metric if one.label.startswith(label)]
    return float(re.sub(r"[^0-9.]", "", found))


def move(app: AppTest, value: float) -> AppTest:
    app.slider[0].set_value(value).run()
    assert not app.exception
    return app


def test_entropy_grows_with_the_temperature(shown: Any) -> None:
    app = shown("lessons", lesson="temperature", T="1")
    assert app.subheader[0].value == temperature.QUESTION
    seen = [number(app, "Entropy")] + [number(move(app, at), "Entropy") for at in (2.0, 8.0, 20.0)]
    assert seen == sorted(seen)
    assert seen[0] < 0.5 < 2.2 < seen[-1] < np.log(10) + 1e-3
    assert app.query_params["T"] in ("20", ["20"])
    assert "95% CI" in texts(app)


def test_the_likelihood_is_best_between_too_sure_and_too_unsure(shown: Any) -> None:
    app = shown("lessons", lesson="calibration", calibration_T="0.2")
    sharp, right = number(app, "NLL"), number(app, "Accuracy")
    flat = number(move(app, 5.0), "NLL")
    best = number(move(app, 1.0), "NLL")
    assert best < sharp
    assert best < flat
    assert number(app, "Accuracy") == right, "the order of the classes stays"


def test_per_image_likelihood_and_entropy_are_those_of_the_definitions() -> None:
    draws = np.random.default_rng(0)
    labels = draws.integers(0, 4, 500)
    logits = draws.normal(0, 1, (500, 4)).astype(np.float32)
    logits[np.arange(500), labels] += 1.5
    best = fit_temperature(logits, labels)
    at = [calibration.nll(logits, labels, best * ratio).mean() for ratio in (0.8, 1.0, 1.25)]
    assert min(at) == at[1]
    assert temperature.entropy(log_softmax(np.zeros((1, 4), np.float32)))[0] == pytest.approx(np.log(4))
    assert temperature.entropy(log_softmax(100 * np.eye(4, dtype=np.float32))) == pytest.approx(np.zeros(4), abs=1e-9)


@pytest.mark.slow
def test_more_rotation_changes_more_classes(shown: Any) -> None:
    app = shown("lessons", lesson="views", degrees="10")
    little = number(app, "Label-change rate")
    much = number(move(app, 180), "Label-change rate")
    assert little < 5
    assert much > 20
    assert number(app, "Accuracy, rotated") < number(app, "Accuracy, upright")


def trained(app: AppTest, store: Store) -> AppTest:
    """The page after its button and a worker."""
    next(button for button in app.button if button.label == "Train 2 networks").click().run()
    assert not app.exception
    assert not app.button
    worker.serve(store, device="cpu", once=True)
    app.run()
    assert not app.exception
    return app


@pytest.mark.slow
def test_a_smaller_student_is_worse(shown: Any, store: Store) -> None:
    large = trained(shown("lessons", lesson="size", width="16"), store)
    small = trained(shown("lessons", lesson="size", width="2"), store)
    for label in ("Accuracy, labels only", "Accuracy, with teacher"):
        assert number(small, label) + 20 < number(large, label)
    found = trained_lessons.runs_of(
        {"2": {"a": size.spec_of(2, teacher=True), "b": size.spec_of(2, teacher=False)}}, store
    )
    assert [store.run(row.id).spec.teacher is None for row in found.values()] == [False, True]
    assert "One seed each: not evidence" in texts(small)
    again = shown("lessons", lesson="size", width="4")
    assert [metric.value for metric in again.metric] == ["–", "–"]
    assert len(again.button) == 1


@pytest.mark.slow
def test_a_rate_may_suit_one_optimizer_alone(shown: Any, store: Store) -> None:
    low = trained(shown("lessons", lesson="optimizers", rate="0.003"), store)
    assert number(low, "Accuracy, SGD") + 20 < number(low, "Accuracy, AdamW")
    high = trained(shown("lessons", lesson="optimizers", rate="0.3"), store)
    assert number(high, "Accuracy, AdamW") < number(high, "Accuracy, SGD")


def test_a_store_without_the_zoo_is_a_sentence(shown: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lessons, "TEACHER", "no such model")
    app = shown("lessons")
    assert "The lessons use the models" in app.info[0].value
    assert not app.metric


@pytest.mark.browser
@pytest.mark.slow
def test_lessons_are_accessible_and_fit_a_phone(tmp_path: Path) -> None:
    if (found := executable()) is None:
        pytest.skip("needs Chromium: install it, or name it in CHROMIUM")
    from playwright.sync_api import sync_playwright

    environment = {"OMP_NUM_THREADS": "1"}
    with dashboard(tmp_path / "log.txt", environment=environment) as address, sync_playwright() as playwright:
        browser = launched(playwright, found)
        for scheme, width in itertools.product(("light", "dark"), (400, 1280)):
            page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
            for lesson, label in (*SHORT, ("views", "Label-change rate")):
                page.goto(f"{address}/lessons?lesson={lesson}")
                page.get_by_test_id("stMetric").filter(has_text=label).first.wait_for()
                assert axe.grave(page) == [], (lesson, scheme, width)
                assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.get_by_test_id("stSidebar").count() == 1
        page.goto(f"{address}/lessons?lesson=temperature&T=4&embed=true")
        page.get_by_test_id("stMetric").first.wait_for()
        assert page.get_by_test_id("stSidebar").count() == 0, "no menu in a lesson that is part of another page"
