"""Who asks, what they may do, and whose turn it is.

A `Store` acts for one visitor. The library and the command line act for the machine's owner, who may do everything and
is held to no numbers. Pages get a store that acts for whoever looks at them, so rights are checked where the work is
done, also in the desk's process: a page that forgets to hide a button gives nothing away.

Turns are those of start-time fair queueing (Goyal, Vin & Cheng, 1996) with runs as packets of equal length: a run's
turn is fixed when it is queued, one after the visitor's last one that still waits, and never before the turn that is
being served. So who comes with one run waits for one run of each other visitor, not for all that they queued before.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from filelock import FileLock

from smallalign_core.errors import Refused
from smallalign_core.system import limits
from smallalign_core.system.files import write

MINUTE = 60.0


class Role(StrEnum):
    """What somebody may do."""

    NOBODY = "nobody"  # has not logged in where that is asked for
    VIEWER = "viewer"  # looks at everything
    RUNNER = "runner"  # also starts, stops, deletes and uploads, within the limits
    OWNER = "owner"  # the command line on the machine itself: no limits


@dataclass(frozen=True)
class User:
    """Somebody on whose behalf a store acts.

    Attributes:
        name: the address they logged in with, else what tells their browser from others. One line.
    """

    name: str
    role: Role = Role.RUNNER

    def require(self, what: str) -> None:
        """Check that they may change things.

        Args:
            what: what they want to do, as after "may not": `start runs`.

        Raises:
            Refused: they may only look.
        """
        if self.role in (Role.RUNNER, Role.OWNER):
            return
        if self.role is Role.VIEWER:
            raise Refused(
                f"you may look at everything here but not {what}",
                given=f"logged in as {self.name}",
                do="ask whoever runs this dashboard to make you a runner",
            )
        raise Refused(f"only people who have logged in may {what}", do="log in first")

    @property
    def limited(self) -> bool:
        return self.role is not Role.OWNER


OWNER = User("owner", Role.OWNER)


# --- the queue --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, order=True)
class QueueTicket:
    """What a run's marker says while it waits: runs are served in this order."""

    number: int
    since: float
    visitor: str = OWNER.name

    @classmethod
    def read(cls, marker: Path) -> QueueTicket | None:
        """The turn in a marker; None where none can be read any more."""
        try:
            text = marker.read_text()
        except OSError:
            return None
        with contextlib.suppress(ValueError, TypeError, KeyError):
            told = json.loads(text)
            if isinstance(told, dict):
                return cls(int(told["turn"]), float(told["since"]), str(told["visitor"]))
            return cls(0, float(told))  # a marker of an older version holds the time alone
        return cls(0, time.time())

    def write(self, marker: Path) -> None:
        """Put the marker there, whole."""
        write(marker, json.dumps({"turn": self.number, "since": self.since, "visitor": self.visitor}))


def queued(runs: Path) -> dict[Path, QueueTicket]:
    """The folders below `runs` that wait, and their turns, in the order in which they will be served."""
    found = {marker.parent: QueueTicket.read(marker) for marker in runs.glob("[0-9a-f]*/queued")}
    turns = {folder: turn for folder, turn in found.items() if turn is not None}
    return dict(sorted(turns.items(), key=lambda item: item[1]))


def next_ticket(turns: list[QueueTicket], visitor: User) -> QueueTicket:
    """The turn of a run that `visitor` queues now, where `turns` wait already."""
    served = min((turn.number for turn in turns), default=0)
    last = max((turn.number for turn in turns if turn.visitor == visitor.name), default=served - 1)
    return QueueTicket(max(served, last + 1), time.time(), visitor.name)


@contextlib.contextmanager
def admit(root: Path, visitor: User, *, together: bool = False) -> Iterator[QueueTicket]:
    """Check that `visitor` may queue one more run of the store at `root`, and hold the place while it is done.

    Yields:
        The run's turn. The start counts when the block ends without an error.

    Raises:
        Refused: they may not, or the queue is full for them or for all, or they start too many in a minute.
    """
    visitor.require("start runs")
    if not visitor.limited:
        yield next_ticket(list(queued(root / "runs").values()), visitor)
        return
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / "admission.lock", timeout=10.0):  # two tabs and two processes may ask at once
        turns = check_room(root, visitor, together=together)
        yield next_ticket(turns, visitor)
        starts = _starts(root)
        write(root / "starts.json", json.dumps([*starts, [time.time(), visitor.name]]))


def check_room(root: Path, visitor: User, count: int = 1, *, together: bool = False) -> list[QueueTicket]:
    """Check that there is room in the queue for `count` more runs of `visitor`; returns the turns that wait.

    Args:
        together: they are some of those that were let in as one start: how many that were is not held against them.

    Raises:
        Refused: there is none, or they may not start runs at all.
    """
    visitor.require("start runs")
    turns, most = list(queued(root / "runs").values()), limits.current()
    if not visitor.limited:
        return turns
    mine = sum(turn.visitor == visitor.name for turn in turns)
    others = sum(turn.visitor != OWNER.name for turn in turns)
    do = "wait until one of them was trained, or cancel one on Runs"
    if mine + count > most.waiting_each:
        given = f"{mine} wait, {count} more" if count > 1 else f"{mine} wait"
        raise Refused(
            f"one visitor may have {most.waiting_each} run{'s' * (most.waiting_each > 1)} waiting", given=given, do=do
        )
    if others + count > most.waiting_total:
        raise Refused("the queue is full", given=f"{others} of at most {most.waiting_total} runs wait", do=do)
    recent = [when for when, who in _starts(root) if who == visitor.name]
    if not together and len(recent) + count > max(count, most.starts_a_minute):
        rest = max(1, round(MINUTE - (time.time() - min(recent))))
        given = f"{len(recent)} runs in the last minute"
        raise Refused("you are starting runs faster than one visitor may", given=given, do=f"try again in {rest} s")
    return turns


def _starts(root: Path) -> list[tuple[float, str]]:
    """(when, who) of the starts of the last minute; a damaged record is an empty one."""
    try:
        told = json.loads((root / "starts.json").read_text())
        now = time.time()
        return [(float(when), str(who)) for when, who in told if 0 <= now - float(when) < MINUTE]
    except (OSError, ValueError, TypeError):
        return []
