"""Long work of the backend, waited for in short steps."""

from __future__ import annotations

import ast
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from pages.ui.widgets import polling
from tests.conftest import ROOT


def page() -> None:
    """A page whose work is done at the third step; `priced` is not started by itself."""
    import streamlit as st

    from pages.ui.widgets import polling

    said: list[float] = []

    def saying(done: float) -> str:
        said.append(done)
        return "Counting"

    answer = polling.wait(lambda: polling.step("count", images=3), saying)
    st.session_state["found"] = answer["report"], said
    with st.container():
        try:
            polling.wait(lambda: polling.step("priced"), "Pricing", started=lambda answer: "cost" not in answer)
        except polling.Unfinished as priced:
            st.session_state["cost"] = priced.answer["cost"], priced.done


class Backend:
    """It answers how far it is, and at the third step what it found."""

    def __init__(self) -> None:
        self.answers = iter([{"done": 0.0}, {"done": 0.5, "report": None}, {"done": 1.0, "report": {"found": 3}}])

    def call(self, verb: str, *, patience: float, **values: Any) -> dict[str, Any]:
        assert 0 < patience < 1
        assert values == ({} if verb == "priced" else {"images": 3})
        return {"cost": 7} if verb == "priced" else next(self.answers)


def test_it_is_waited_for_in_steps_and_what_is_not_started_is_the_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Backend()
    monkeypatch.setattr(polling.context, "client", lambda: backend)
    app = AppTest.from_function(page).run()
    assert not app.exception
    assert app.session_state["found"] == ({"found": 3}, [0.0, 0.5])
    assert app.session_state["cost"] == (7, 0.0)


def test_there_is_one_such_loop() -> None:
    """A page that asks with `patience` waits by `polling.wait`."""
    asking = [
        str(file.relative_to(ROOT))
        for file in (ROOT / "pages").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and any(word.arg == "patience" for word in node.keywords)
    ]
    assert asking == ["pages/ui/widgets/polling.py"]
