"""Long work in short steps: nothing is done twice, shares grow, what failed is not kept."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from smallalign_core import steps
from smallalign_core.steps import Work


def counting(done: list[int]) -> Work[str]:
    for number in range(1, 5):
        done.append(number)
        yield number / 4
    return "answer"


def test_impatient_askers_get_the_answer_in_steps_and_nothing_is_done_twice() -> None:
    done: list[int] = []
    answers = [steps.advance("question", lambda: counting(done), 0.0) for _ in range(5)]

    assert [share for _, share in answers] == [0.25, 0.5, 0.75, steps.NEARLY, 1.0]
    assert [answer for answer, _ in answers] == [None] * 4 + ["answer"]
    assert done == [1, 2, 3, 4]
    assert steps.advance("question", lambda: counting(done), None) == ("answer", 1.0)
    assert done == [1, 2, 3, 4] * 2, "an answered question is begun anew"


def test_different_questions_do_not_mix_and_the_oldest_is_dropped() -> None:
    done: dict[int, list[int]] = {number: [] for number in range(steps.KEPT + 1)}
    for number, list_ in done.items():
        steps.advance(f"number {number}", lambda list_=list_: counting(list_), 0.0)

    assert steps.advance("number 1", lambda: counting([]), 0.0)[1] == 0.5
    assert steps.advance("number 0", lambda: counting([]), 0.0)[1] == 0.25, "it was dropped, so it begins again"
    for number in done:
        steps.advance(f"number {number}", lambda: counting([]), None)


def test_work_that_fails_is_not_put_aside() -> None:
    def failing() -> Work[str]:
        yield 0.5
        raise ValueError

    assert steps.advance("bad", failing, 0.0) == (None, 0.5)
    with pytest.raises(ValueError):
        steps.advance("bad", failing, 0.0)
    assert steps.advance("bad", failing, 0.0) == (None, 0.5)
    with pytest.raises(ValueError):
        steps.advance("bad", failing, None)


def test_parts_add_up() -> None:
    def both() -> Work[list[str]]:
        first = yield from steps.part_of(counting([]), 0, 2)
        second = yield from steps.part_of(counting([]), 1, 2)
        return [first, second]

    heard: list[float] = []

    assert steps.finish(both(), heard.append) == ["answer", "answer"]
    assert heard == [0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0]


def test_finish_waits_to_the_end() -> None:
    def none() -> Iterator[float]:
        yield from ()

    assert steps.finish(none()) is None  # type: ignore[arg-type]
