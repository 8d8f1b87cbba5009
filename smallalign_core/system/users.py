"""Users, roles, and fair queueing.

A `Store` acts on behalf of one user. The library and the command line act as the owner of the machine, without limits.
Pages get a store that acts for the current user, so permissions are checked where the work is done, also in backend
processes, and do not depend on hidden buttons.

The queue is start-time fair queueing (Goyal, Vin & Cheng, 1996) with runs as packets of equal length: a run's start tag
is fixed when it is queued: one after the user's last waiting run, and never before the tag being served. A user with
one run waits for one run of each other user, not for all runs queued earlier.
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
    """The permissions of a user."""

    NOBODY = "nobody"  # not logged in where login is required
    VIEWER = "viewer"  # read-only
    RUNNER = "runner"  # may also start, stop, delete and upload, within the limits
    OWNER = "owner"  # the local command line: no limits


@dataclass(frozen=True)
class User:
    """The user on whose behalf a store acts.

    Attributes:
        name: the login address, else an identifier of the browser. One line.
    """

    name: str
    role: Role = Role.RUNNER

    def require(self, what: str) -> None:
        """Check that the user has write permission.

        Args:
            what: the action, as a verb phrase: `start runs`.

        Raises:
            Refused: the user has read-only access.
        """
        if self.role in (Role.RUNNER, Role.OWNER):
            return
        if self.role is Role.VIEWER:
            raise Refused(
                f"your account is read-only: you cannot {what}",
                given=f"logged in as {self.name}",
                do="contact the administrator of this dashboard to get the runner role",
            )
        raise Refused(f"you must be logged in to {what}", do="log in first")

    @property
    def limited(self) -> bool:
        return self.role is not Role.OWNER


OWNER = User("owner", Role.OWNER)


# --- the queue --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, order=True)
class QueueTicket:
    """The content of a waiting run's queue marker; runs are served in this order."""

    number: int
    since: float
    visitor: str = OWNER.name

    @classmethod
    def read(cls, marker: Path) -> QueueTicket | None:
        """The ticket in a marker; None if it cannot be read."""
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
        """Write the marker atomically."""
        write(marker, json.dumps({"turn": self.number, "since": self.since, "visitor": self.visitor}))


def queued(runs: Path) -> dict[Path, QueueTicket]:
    """The waiting folders below `runs`, and their tickets, in the order in which they will be served."""
    found = {marker.parent: QueueTicket.read(marker) for marker in runs.glob("[0-9a-f]*/queued")}
    turns = {folder: turn for folder, turn in found.items() if turn is not None}
    return dict(sorted(turns.items(), key=lambda item: item[1]))


def next_ticket(turns: list[QueueTicket], visitor: User) -> QueueTicket:
    """The ticket of a run that `visitor` queues now, while `turns` are waiting."""
    served = min((turn.number for turn in turns), default=0)
    last = max((turn.number for turn in turns if turn.visitor == visitor.name), default=served - 1)
    return QueueTicket(max(served, last + 1), time.time(), visitor.name)


@contextlib.contextmanager
def admit(root: Path, visitor: User, *, together: bool = False) -> Iterator[QueueTicket]:
    """Check that `visitor` may queue one more run in the store at `root`, and reserve the slot during the block.

    Yields:
        The run's ticket. The start is counted when the block ends without an error.

    Raises:
        Refused: no permission, the queue is full for this user or for all, or too many starts in a minute.
    """
    visitor.require("start runs")
    if not visitor.limited:
        yield next_ticket(list(queued(root / "runs").values()), visitor)
        return
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / "admission.lock", timeout=10.0):  # two tabs or processes may submit at the same time
        turns = check_room(root, visitor, together=together)
        yield next_ticket(turns, visitor)
        starts = _starts(root)
        write(root / "starts.json", json.dumps([*starts, [time.time(), visitor.name]]))


def check_room(root: Path, visitor: User, count: int = 1, *, together: bool = False) -> list[QueueTicket]:
    """Check that there is room in the queue for `count` more runs of `visitor`; returns the waiting tickets.

    Args:
        together: the runs belong to a start that was admitted already, so the per-user number is not checked again.

    Raises:
        Refused: there is no room, or no permission to start runs.
    """
    visitor.require("start runs")
    turns, most = list(queued(root / "runs").values()), limits.current()
    if not visitor.limited:
        return turns
    mine = sum(turn.visitor == visitor.name for turn in turns)
    others = sum(turn.visitor != OWNER.name for turn in turns)
    do = "wait until one has finished, or cancel one on Runs"
    if mine + count > most.waiting_each:
        given = f"{mine} waiting, {count} more" if count > 1 else f"{mine} waiting"
        raise Refused(
            f"each user can have at most {most.waiting_each} waiting run{'s' * (most.waiting_each > 1)}",
            given=given,
            do=do,
        )
    if others + count > most.waiting_total:
        raise Refused("the queue is full", given=f"{others} of at most {most.waiting_total} runs waiting", do=do)
    recent = [when for when, who in _starts(root) if who == visitor.name]
    if not together and len(recent) + count > max(count, most.starts_a_minute):
        rest = max(1, round(MINUTE - (time.time() - min(recent))))
        given = f"{len(recent)} runs in the last minute"
        raise Refused("rate limit for starting runs exceeded", given=given, do=f"try again in {rest} s")
    return turns


def _starts(root: Path) -> list[tuple[float, str]]:
    """(time, user) of the starts of the last minute; a damaged record counts as empty."""
    try:
        told = json.loads((root / "starts.json").read_text())
        now = time.time()
        return [(float(when), str(who)) for when, who in told if 0 <= now - float(when) < MINUTE]
    except (OSError, ValueError, TypeError):
        return []
