"""Long work of the backend, waited for in short steps."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from pages.ui.widgets import polling
from smallalign_core.service.wire import LongRequest, Progress
from smallalign_core.system.typed import plain
from tests.conftest import ROOT


@dataclass(frozen=True)
class Count(LongRequest[Progress[int]]):
    images: int


@dataclass(frozen=True)
class Priced(Progress[int]):
    cost: int = 7


@dataclass(frozen=True)
class Price(LongRequest[Priced]):
    """Not started."""


def page() -> None:
    """A page whose work is done at the third step; `priced` is not started by itself."""
    import streamlit as st

    from pages.ui.widgets import polling
    from tests.test_polling import Count, Price

    said: list[float] = []

    def saying(done: float) -> str:
        said.append(done)
        return "Counting"

    report = polling.wait(lambda: polling.step(Count(images=3)), saying)
    st.session_state["found"] = report, said
    with st.container():
        try:
            polling.wait(lambda: polling.step(Price()), "Pricing", started=lambda answer: not hasattr(answer, "cost"))
        except polling.Unfinished as priced:
            st.session_state["cost"] = priced.answer.cost, priced.answer.done


class Backend:
    """It answers how far it is, and at the third step what it found."""

    def __init__(self) -> None:
        self.answers = iter([Progress[int](0.0), Progress(0.5, None), Progress(1.0, 3)])

    def call(self, request: LongRequest[Progress[Any]]) -> Progress[Any]:
        assert request.patience is not None
        assert 0 < request.patience < 1
        if request.verb() == "Price":  # the page has imported the classes of this file once more
            return Priced(0.0)
        assert plain(request) == plain(Count(3, patience=request.patience))
        return next(self.answers)


def test_it_is_waited_for_in_steps_and_what_is_not_started_is_the_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Backend()
    monkeypatch.setattr(polling.context, "client", lambda: backend)
    app = AppTest.from_function(page).run()
    assert not app.exception
    assert app.session_state["found"] == (3, [0.0, 0.5])
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
