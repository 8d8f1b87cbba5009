"""The backend processes: which one gets a request, that no user waits for another, and what a kill costs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest

from smallalign_core.errors import WorkFailed
from smallalign_core.runs.store import Store
from smallalign_core.service import augmentation_api, backends
from smallalign_core.service.backends import Backend, Pool
from smallalign_core.service.client import BackendClient
from smallalign_core.service.requests import AugmentImages, Inspect
from smallalign_core.service.users import User
from smallalign_core.service.wire import LongRequest, Progress, Request
from smallalign_core.spec import parse_data, parse_policy

DIGITS = Inspect(parse_data("digits"))
FLIPPED = AugmentImages(parse_policy(["flip"]), DIGITS.data)
PATIENT = 60.0
"""Seconds after which a test that waits for an event fails."""


# --- where a question goes, with threads instead of processes ---------------------------------------------------------


@dataclass(frozen=True)
class Reply(Progress):
    """Which process it is of, and the request's name."""

    by: int = 0
    name: str = ""


@dataclass(frozen=True)
class Now(Request[Reply]):
    name: str


@dataclass(frozen=True)
class Wait(Now):
    """Answered when the test says so."""


@dataclass(frozen=True)
class Same(Now):
    """Answered once."""

    shared: ClassVar[bool] = True


@dataclass(frozen=True)
class Risk(LongRequest[Reply]):
    name: str
    share: float


class Office:
    """Backends that are threads: a `Wait` is answered when the test says so, any other one at once."""

    def __init__(self) -> None:
        self.gates: dict[str, threading.Event] = {}
        self.begun: dict[str, threading.Event] = {}
        self.started = self.killed = 0
        self.heard: list[tuple[int, str]] = []

    def __call__(self) -> Backend:
        ours, theirs = socket.socketpair()
        self.started += 1
        number = self.started
        threading.Thread(target=self._serve, args=(theirs, number), daemon=True).start()
        return Backend(number, ours, lambda: self._kill(theirs))

    def _kill(self, line: socket.socket) -> None:
        self.killed += 1
        with contextlib.suppress(OSError):
            line.shutdown(socket.SHUT_RDWR)

    def _serve(self, line: socket.socket, number: int) -> None:
        with contextlib.suppress(OSError), line, line.makefile("r") as questions, line.makefile("w") as answers:
            for text in questions:
                message = json.loads(text)
                name = message["values"]["name"]
                self.heard.append((number, name))
                self.begun.setdefault(name, threading.Event()).set()
                if message["verb"] == "Wait":
                    assert self.gates.setdefault(name, threading.Event()).wait(PATIENT)
                share = message["values"].get("share", 1.0)
                reply: dict[str, Any] = {"ok": {"done": share, "by": number, "name": name}}
                with contextlib.suppress(OSError, ValueError):
                    answers.write(json.dumps(reply | ({"unfinished": True} if share < 1 else {})) + "\n")
                    answers.flush()

    def open(self, name: str) -> None:
        self.gates.setdefault(name, threading.Event()).set()

    def wait_for(self, name: str) -> None:
        assert self.begun.setdefault(name, threading.Event()).wait(PATIENT)


local = threading.local()


@pytest.fixture
def office() -> Iterator[Office]:
    made = Office()
    yield made
    for gate in made.gates.values():
        gate.set()


@pytest.fixture
def asking(office: Office, store: Store) -> BackendClient:
    """A backend of four processes, two a user, and two for long work; the user is the thread's."""
    made = BackendClient(store, lambda: User(getattr(local, "name", "ada")))
    made.pool = Pool(office, most=4, long=2, each=2)
    return made


def beside(user: str, work: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Work in a thread that is another user's; its answer, or error, comes into the list."""
    found: list[Any] = []

    def run() -> None:
        local.name = user
        try:
            found.append(work())
        except Exception as error:  # noqa: BLE001  # looked at by the test
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, found


def ended(*threads: threading.Thread) -> None:
    for thread in threads:
        thread.join(PATIENT)
        assert not thread.is_alive()


def test_a_visitor_s_slow_questions_hold_up_nobody_else(office: Office, asking: BackendClient) -> None:
    slow = [beside("eve", lambda name=f"slow {number}": asking.call(Wait(name)))[0] for number in range(5)]
    while len(office.heard) < 2:
        time.sleep(0.01)
    for number in range(10):
        assert asking.call(Now(f"quick {number}")).name == f"quick {number}"
    thread, found = beside("bob", lambda: asking.call(Now("bob")))
    ended(thread)
    assert found[0].name == "bob"
    names = [name for _, name in office.heard]
    assert len([name for name in names if name.startswith("slow")]) == 2, "two of one user at a time"
    for number in range(5):
        office.open(f"slow {number}")
    ended(*slow)
    assert office.started <= 4
    assert office.killed == 0


def test_where_all_are_busy_turns_are_in_order_of_arrival(office: Office, asking: BackendClient) -> None:
    full = [beside(f"eve {at}", lambda at=at: asking.call(Wait(f"full {at}")))[0] for at in range(4)]
    for at in range(4):
        office.wait_for(f"full {at}")
    waiting = []
    for at, user in enumerate(("ada", "bob", "ada")):
        waiting.append(beside(user, lambda at=at: asking.call(Now(f"later {at}")))[0])
        while len(asking.pool._line) <= at:
            time.sleep(0.01)
    office.open("full 2")
    ended(*waiting)
    assert [name for _, name in office.heard[4:]] == ["later 0", "later 1", "later 2"]
    for at in range(4):
        office.open(f"full {at}")
    ended(*full)


def test_equal_questions_at_the_same_time_are_answered_once(office: Office, asking: BackendClient) -> None:
    """A class that opens the same new dataset takes one process, not all."""
    calls: list[str] = []

    def inspect() -> Any:
        return asking.call(Same("same"))

    serve = Office._serve

    def slow(self: Office, line: socket.socket, number: int) -> None:
        calls.append("process")
        assert self.gates.setdefault("same", threading.Event()).wait(PATIENT)
        serve(self, line, number)

    Office._serve = slow  # type: ignore[method-assign]
    try:
        first = beside("ada", inspect)
        while not asking._shared:
            time.sleep(0.01)
        others = [beside(f"user {at}", inspect) for at in range(20)]
        office.open("same")
        ended(first[0], *(thread for thread, _ in others))
    finally:
        Office._serve = serve  # type: ignore[method-assign]
    answers = [found[0] for _, found in (first, *others)]
    assert all(answer.name == "same" for answer in answers)
    assert len(office.heard) <= 2  # one that came when the answer had just been given may ask again
    assert not asking._shared


def test_long_work_goes_on_where_it_is_and_waits_for_a_place(office: Office, asking: BackendClient) -> None:
    def step(user: str, share: float, patience: float = 0.05) -> Reply:
        thread, found = beside(user, lambda: asking.call(Risk(user, share, patience=patience)))
        ended(thread)
        return found[0]

    def key(user: str, share: float) -> str:
        return json.dumps(["Risk", {"name": user, "share": share}], sort_keys=True)

    first, second = step("ada", 0.5).by, step("bob", 0.5).by
    assert first != second
    assert step("eve", 0.5) == Reply(0.0), "two places only"
    assert step("ada", 0.5).by == first
    for number in range(6):
        quick = asking.call(Now(f"quick {number}")).by
        assert quick not in (first, second), "other questions never stand in the way of long work, nor it in theirs"
    assert step("ada", 1.0).by == first, "what a user asks next goes where the last is remembered"
    holder = next(one for one in asking.pool.backends() if one.pid == first)
    holder.holds.pop(key("ada", 0.5))  # its question is answered
    assert step("eve", 0.5).by not in (second,), "a place is free"
    assert step("bob", 0.5).by == second


def test_places_of_users_who_left_are_taken_when_they_are_needed(
    office: Office, asking: BackendClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    for user in ("ada", "bob"):
        thread, _ = beside(user, lambda: asking.call(Risk(local.name, 0.5, patience=0.05)))
        ended(thread)
    thread, found = beside("eve", lambda: asking.call(Risk("eve", 0.5, patience=0.0)))
    ended(thread)
    assert found == [Reply(0.0)]
    assert office.killed == 0
    monkeypatch.setattr("smallalign_core.service.backends._pool.LEFT", -1.0)
    thread, found = beside("eve", lambda: asking.call(Risk("eve", 0.5, patience=0.05)))
    ended(thread)
    assert found[0].done == 0.5
    assert office.killed == 1


def test_who_leaves_frees_the_page_and_the_process_goes_on(office: Office, asking: BackendClient) -> None:
    gone = threading.Event()

    class Left(BaseException):
        """As Streamlit ends a script."""

    def pulse() -> None:
        if gone.is_set() and getattr(local, "name", "") == "eve":
            raise Left

    asking._pulse = pulse
    left: list[bool] = []

    def visit() -> None:
        try:
            asking.call(Wait("slow"))
        except Left:
            left.append(True)

    thread, _ = beside("eve", visit)
    office.wait_for("slow")
    gone.set()
    ended(thread)
    assert left == [True]
    assert office.killed == 0
    (one,) = asking.pool.backends()
    assert one.busy
    office.open("slow")
    while one.busy:
        time.sleep(0.01)
    assert asking.call(Now("next")) == Reply(1.0, by=one.pid, name="next"), "no stale answer"


def test_a_late_answer_ends_its_process_only(office: Office, asking: BackendClient) -> None:
    assert asking.call(Now("x")).by == 1
    with pytest.raises(WorkFailed, match=r"no answer in 0"):
        asking.call(Wait("late"), timeout=0.05)
    assert office.killed == 1
    assert asking.call(Now("x")).by == 2
    assert not asking.pool._answering


def test_idle_processes_end_and_the_last_stays(
    office: Office, asking: BackendClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = [beside(f"v{at}", lambda at=at: asking.call(Wait(f"w{at}")))[0] for at in range(3)]
    for at in range(3):
        office.wait_for(f"w{at}")
    monkeypatch.setattr("smallalign_core.service.backends._pool.IDLE", -1.0)
    asking.pool.rest()
    assert len(asking.pool.backends()) == 3, "none that answers"
    for at in range(3):
        office.open(f"w{at}")
    ended(*threads)
    asking.pool.rest()
    assert len(asking.pool.backends()) == 1
    asking.close()
    assert office.killed == 3


# --- real processes ---------------------------------------------------------------------------------------------------


@pytest.fixture
def real(store: Store) -> Iterator[BackendClient]:
    made = BackendClient(store, lambda: User(getattr(local, "name", "ada")))
    yield made
    made.close()


@pytest.mark.slow
def test_a_dataset_that_never_ends_holds_up_nobody_else(real: BackendClient, tmp_path: Path) -> None:
    """The same questions, asked while another user's process is stopped in the middle of its answer."""
    assert real.call(DIGITS).images == 1797
    (one,) = real.pool.backends()
    os.kill(one.pid, signal.SIGSTOP)
    thread, found = beside("eve", lambda: real.call(Inspect(parse_data("nowhere"))))
    while not one.busy:
        time.sleep(0.01)
    quick = real.call(FLIPPED)
    assert quick.images.shape[0] == 8
    assert real.call(DIGITS).images == 1797
    assert thread.is_alive()
    os.kill(one.pid, signal.SIGCONT)
    ended(thread)
    assert "path does not exist" in str(found[0])


@pytest.mark.slow
def test_processes_are_forked_share_memory_and_end_with_the_backend(real: BackendClient) -> None:
    if not backends._start.FORKS:
        pytest.skip("backends are forked on Linux only")
    held = [beside(f"v{at}", lambda at=at: real.call(replace(FLIPPED, seed=at)))
            for at in range(3)]  # fmt: skip
    ended(*(thread for thread, _ in held))
    shown = [found[0].images for _, found in held]
    alone = augmentation_api.views(real.store, replace(FLIPPED, seed=2)).images
    assert shown[2] == alone, "the same pixels as in any other process"
    forking = real._start._forking
    assert forking is not None
    family = psutil.Process(forking.pid).children()
    assert {one.pid for one in family} == {one.pid for one in real.pool.backends()}
    os.kill(forking.pid, signal.SIGKILL)
    forking.wait()
    assert real.call(DIGITS).images == 1797, "those that are there go on"
    real.close()
    assert real.call(DIGITS).images == 1797, "and a closed backend opens again"
    real.close()
    for one in family:
        one.wait(PATIENT)
