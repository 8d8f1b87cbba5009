"""Long work in short steps: nothing is done twice, shares grow, what failed is not kept."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from smallalign_core.system import resumable
from smallalign_core.system.resumable import Work


def counting(done: list[int]) -> Work[str]:
    for number in range(1, 5):
        done.append(number)
        yield number / 4
    return "answer"


def test_impatient_askers_get_the_answer_in_steps_and_nothing_is_done_twice() -> None:
    done: list[int] = []
    answers = [resumable.advance("question", lambda: counting(done), 0.0) for _ in range(5)]

    assert [share for _, share in answers] == [0.25, 0.5, 0.75, resumable.NEARLY, 1.0]
    assert [answer for answer, _ in answers] == [None] * 4 + ["answer"]
    assert done == [1, 2, 3, 4]
    assert resumable.advance("question", lambda: counting(done), None) == ("answer", 1.0)
    assert done == [1, 2, 3, 4] * 2, "an answered question is begun anew"


@pytest.fixture(autouse=True)
def empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test finds what another one left unfinished."""
    monkeypatch.setattr(resumable, "_table", resumable._Table())


@pytest.mark.parametrize("users", [2, resumable.KEPT, resumable.KEPT + 1, 5 * resumable.KEPT])
def test_everybody_finishes_however_many_ask_in_turn(users: int) -> None:
    done: dict[int, list[int]] = {number: [] for number in range(users)}
    order: list[int] = []
    shares: dict[int, list[float]] = {number: [] for number in done}
    for _ in range(5 * users):
        for number in [one for one in done if one not in order]:
            answer, share = resumable.advance(f"number {number}", lambda own=done[number]: counting(own), 0.0)
            shares[number].append(share)
            if answer is not None:
                order.append(number)
        assert len(resumable._table.begun) <= resumable.KEPT

    assert sorted(order) == list(done)
    assert order == sorted(order), "first come, first served"
    assert all(steps_done == [1, 2, 3, 4] for steps_done in done.values()), "nothing was begun twice"
    assert all(told == sorted(told) for told in shares.values()), "no progress was lost"
    assert not resumable._table.last, "nothing is kept of what was answered"


def test_what_is_not_asked_any_more_gives_way() -> None:
    for number in range(resumable.KEPT):
        resumable.advance(f"left {number}", lambda: counting([]), 0.0)
    resumable.advance("left in the line", lambda: counting([]), 0.0)
    polls = 0
    while resumable.advance("new", lambda: counting([]), 0.0)[1] == 0:
        polls += 1
    assert polls == resumable.ABANDONED + 1
    assert resumable.advance("left 1", lambda: counting([]), 0.0)[1] == 0.5, "only the one asked longest ago gave way"
    assert resumable.advance("new", lambda: counting([]), 0.0)[1] == 0.5


def test_a_visitor_who_asks_something_else_waits_less() -> None:
    def drag(user: str, place: int) -> float:
        with resumable.on_behalf_of(user):
            return resumable.advance(f"{user} {place}", lambda: counting([]), 0.0)[1]

    for place in range(resumable.KEPT - 1):
        drag("ada", place)
    drag("bob", 0)
    polls = 0
    while drag("ada", 100) == 0:
        polls += 1
    assert polls == resumable.REPLACED + 1
    assert drag("bob", 0) == 0.5, "another user's work stays"


def test_who_waits_to_the_end_waits_for_nobody() -> None:
    for number in range(resumable.KEPT):
        resumable.advance(f"number {number}", lambda: counting([]), 0.0)
    assert resumable.advance("at once", lambda: counting([]), None) == ("answer", 1.0)
    assert resumable.advance("number 0", lambda: counting([]), 0.0)[1] == 0.5


def test_work_that_fails_is_not_put_aside() -> None:
    def failing() -> Work[str]:
        yield 0.5
        raise ValueError

    assert resumable.advance("bad", failing, 0.0) == (None, 0.5)
    with pytest.raises(ValueError):
        resumable.advance("bad", failing, 0.0)
    assert resumable.advance("bad", failing, 0.0) == (None, 0.5)
    with pytest.raises(ValueError):
        resumable.advance("bad", failing, None)


def test_parts_add_up() -> None:
    def both() -> Work[list[str]]:
        first = yield from resumable.part_of(counting([]), 0, 2)
        second = yield from resumable.part_of(counting([]), 1, 2)
        return [first, second]

    heard: list[float] = []

    assert resumable.finish(both(), heard.append) == ["answer", "answer"]
    assert heard == [0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0]


def test_finish_waits_to_the_end() -> None:
    def none() -> Iterator[float]:
        yield from ()

    assert resumable.finish(none()) is None  # type: ignore[arg-type]
