"""The Compare page, opened as a user would: every tab, links, filters, what is missing, and what cannot be read."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image
from streamlit.testing.v1 import AppTest

from pages.ui.app import context, keys
from pages.ui.browser._draw import picture
from pages.ui.charts import basic
from pages.ui.compare import user_image
from smallalign_core import data
from smallalign_core.analysis import compare
from smallalign_core.errors import WorkFailed
from smallalign_core.metrics import score
from smallalign_core.runs.store import Store
from smallalign_core.service import handlers
from smallalign_core.service.wire import Request
from smallalign_core.system import typed
from tests.conftest import Train, texts

PAIR = {"teacher": "digits-teacher", "student": "digits-student"}


class Here:
    """A backend that answers in this process: torch is here already, and starting another one takes seconds."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def call(self, request: Request[Any]) -> Any:
        answer = json.loads(typed.encode(handlers.HANDLERS[type(request)](self.store, request)))
        return typed.decode(request.answer(), answer, WorkFailed, "the answer cannot be read", "try again")

    def close(self) -> None:
        """Nothing was started."""


@pytest.fixture
def here(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    answering = Here(store)
    monkeypatch.setattr(context, "client", lambda: answering)


def tab(shown, name: str, **query: str) -> AppTest:
    app = shown("compare", **PAIR, tab=name, **query)
    assert not app.error, name
    return app


def figures(app: AppTest) -> dict[str, str]:
    return {metric.label: metric.value for metric in app.metric}


def test_only_the_open_tab_is_drawn(here, shown):
    app = tab(shown, "Calibration")

    assert "Agreement" in figures(app)
    assert "Both correct" not in figures(app)
    assert [slider.label for slider in app.select_slider] == ["Teacher temperature", "Student temperature"]


@pytest.mark.slow
def test_a_cell_a_class_and_a_kind_leave_exactly_their_images(here, shown, store: Store):
    teacher, student = store.run("digits-teacher"), store.run("digits-student")
    found = compare.compare_once(teacher, [student], store)[0]
    table = np.array(found.student_confusion)
    np.fill_diagonal(table, 0)
    true, said = (int(place) for place in np.unravel_index(table.argmax(), table.shape))

    app = tab(shown, "Images", cell=f"student-{true}-{said}", kind="All images")
    assert f"{table[true, said]} of 359" in texts(app)
    assert app.query_params["cell"] == f"student-{true}-{said}"

    app.selectbox(key="compare/class").set_value(str((true + 1) % 10)).run()
    assert "No images match all three filters" in texts(app)
    app.selectbox(key="compare/class").set_value("any").run()
    app.selectbox(key="compare/cell").set_value("any").run()
    app.segmented_control(key="compare/kind").set_value("regressions").run()
    assert f"classifies correctly: {found.teacher_only} of 359" in texts(app)
    assert not app.exception


def test_an_emptied_cache_is_filled_again(here, shown, store: Store):
    tab(shown, "Overview")
    for file in compare.folder(store).glob("*.npy"):
        file.unlink()

    assert "13 of 359" in texts(tab(shown, "Images"))


def test_a_click_on_a_matrix_is_a_choice_in_the_menus(here, shown, monkeypatch):
    """AppTest cannot click a chart: its callback is called as Streamlit would call it, and the page drawn again."""
    clicks = {}
    monkeypatch.setattr(basic, "show", lambda *_, key, on_select=None, **__: clicks.__setitem__(key, on_select))
    app = tab(shown, "Images", kind="Student-only correct")
    assert app.segmented_control(key="compare/kind").value == "fixes"
    state: dict[str, object] = {
        keys.PAGE: "compare",
        "confusion-teacher": {"selection": {"points": [{"x": 9, "y": 3}]}},
    }
    monkeypatch.setattr("streamlit.session_state", state)
    clicks["confusion-teacher"]()
    monkeypatch.undo()

    assert {key: value for key, value in state.items() if key.startswith("compare/")} == {
        "compare/cell": "teacher-3-9",
        "compare/class": "any",
        "compare/kind": "any",
        "compare/page": 1,
    }


def test_links_that_name_what_is_not_there_get_a_sentence(here, shown):
    app = tab(shown, "Images", cell="student-99-1", **{"class": "12"}, also="nobody")

    said = " ".join(str(one.value) for one in app.warning)
    assert "cell=student-99-1" in said
    assert "class=12" in said
    assert "nobody" in said


def test_the_temperature_slider_computes_again_without_asking_a_network(here, shown, store: Store, monkeypatch):
    app = tab(shown, "Calibration")
    teacher, student = store.run("digits-teacher"), store.run("digits-student")
    splits = data.load(student.data, store.data_cache)
    logits = compare.kept_logits(teacher, splits, "test", store)
    monkeypatch.setattr(context, "call", None)  # the backend is not needed
    app.select_slider[0].set_value(1.0).run()

    assert not app.exception
    table = app.table[0].value
    row = next(at for at, name in enumerate(table.iloc[:, 0]) if name.startswith("Teacher at"))
    again = score(np.asarray(logits), splits.test.labels, splits.classes, 1.0)
    fitted = score(np.asarray(logits), splits.test.labels, splits.classes, compare.temperature(teacher, splits, store))
    assert table.iloc[row, 1] == f"{again.nll:.4f}" != f"{fitted.nll:.4f}"
    assert table.iloc[row - 1, 1] == f"{fitted.nll:.4f}"


@pytest.mark.slow
def test_robustness_speed_and_report(shown, store: Store):
    app = tab(shown, "Robustness")
    assert "not ImageNet-C" in texts(app)
    assert "digits-student, corrupted" in figures(app)

    app = tab(shown, "Size and speed")
    assert "dominated" in app.info[0].value
    app.number_input(key="limit-kb").set_value(100.0).run()
    assert "digits-student passes all limits (at most 100 kB)" in app.success[0].value
    app.number_input(key="limit-accuracy").set_value(99.9).run()
    assert "No run passes all limits" in app.warning[0].value

    app = tab(shown, "Report")
    app.button(key="report-wanted-button").click().run()
    assert not app.exception
    (page,) = compare.folder(store).glob("*.html")
    assert json.loads(page.with_suffix(".json").read_text())["pairs"]
    assert "--report" in app.code[0].value


@pytest.mark.slow
def test_more_runs_stand_beside_the_teacher(here, shown, store: Store, train: Train):
    run = train()

    app = tab(shown, "Overview", also=run.id)

    assert app.query_params["also"] == run.id
    rows = app.dataframe[0].value
    assert len(rows) == 2
    assert rows["Regressions"][0] == int(figures(app)["Teacher-only correct"])
    assert "2 tests" not in texts(app)
    app.multiselect(key="compare/also").set_value([]).run()
    assert not app.dataframe


def test_ones_own_image_is_answered_and_explained(here, shown, digits):
    app = tab(shown, "Your image")
    content = io.BytesIO()
    Image.fromarray(digits.test.images[5][0]).resize((80, 80), Image.Resampling.NEAREST).save(content, "PNG")

    app.file_uploader[0].upload("mine.png", content.getvalue(), "image/png")
    app = app.run()

    assert not app.exception
    assert not app.error
    said = " ".join(str(block.value) for block in app.get("html"))
    assert said.count("Grad-CAM") == 2
    assert "digits-teacher" in said
    assert f"<b>{digits.classes[digits.test.labels[5]]}</b>" in said


def test_a_file_that_is_no_image_gets_a_sentence(here, shown):
    app = shown("compare", **PAIR, tab="Your image")
    app.file_uploader[0].upload("mine.png", b"not an image", "image/png")
    app = app.run()

    assert "not an image" in app.error[0].value


@pytest.mark.parametrize("sent", [None, 7, "%%%", "AAAA", "A" * 10_000, {"a": 1}])
def test_a_drawing_that_a_browser_made_up_is_refused(sent: object):
    with pytest.raises(ValueError, match="could not be decoded"):
        picture(sent, (8, 8), 1)


def test_a_drawing_arrives_as_it_was_sent():
    import base64

    pixels = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)

    np.testing.assert_array_equal(
        picture(base64.b64encode(pixels.tobytes()).decode(), (4, 5), 3), pixels.transpose(2, 0, 1)
    )


def test_heat_is_drawn_where_it_is():
    image, heat = np.full((1, 8, 8), 100, np.uint8), np.zeros((8, 8), np.uint8)
    heat[2, 6] = 255

    found = user_image.warmed(image, heat).astype(int)

    assert found.shape == (3, 8, 8)
    orange = found[0] - found[2]
    assert np.unravel_index(orange.argmax(), orange.shape) == (2, 6)
    assert (orange > 0).sum() == 1
