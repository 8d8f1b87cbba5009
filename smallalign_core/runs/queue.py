"""The queue: the marker of a run that waits, the order in which runs are served, and the rights that a store acts with.

Tickets are those of start-time fair queueing (Goyal, Vin & Cheng, 1996) with runs as packets of equal length: a run's
number is fixed when it is queued, one after the last one of the same user that still waits, and never before the one
that is being served. So a user with one run waits for one run of each other user, not for all that they queued before.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from smallalign_core.system.files import write


class Access(Protocol):
    """The rights of the user that a store acts for: `service.users.User` has roles and limits."""

    @property
    def name(self) -> str:
        """One line; runs of the same name share a place in the order of the queue."""

    def require(self, what: str) -> None:
        """Raise `Refused` unless the user may do `what`, an infinitive without "to": `start runs`."""

    def check_room(self, root: Path, count: int = 1, *, together: bool = False) -> list[QueueTicket]:
        """Raise `Refused` unless the queue of the store at `root` has room for `count` more runs; the tickets in it."""

    def require_code(self) -> bool:
        """Raise `Refused` unless the user may run Python files; whether naming one allows it to run."""

    def admit(self, root: Path, *, together: bool = False) -> AbstractContextManager[QueueTicket]:
        """The ticket of one more run, which counts as started when the block ends without an error."""


@dataclass(frozen=True, order=True)
class QueueTicket:
    """The marker of a queued run: runs are served in this order."""

    number: int
    since: float
    user: str = "owner"

    @classmethod
    def read(cls, marker: Path) -> QueueTicket | None:
        """The turn in a marker; None where none can be read any more."""
        try:
            text = marker.read_text()
        except OSError:
            return None
        with contextlib.suppress(ValueError, TypeError, KeyError):
            found = json.loads(text)
            if isinstance(found, dict):
                return cls(int(found["turn"]), float(found["since"]), str(found["visitor"]))
            return cls(0, float(found))  # a marker of an older version holds the time alone
        return cls(0, time.time())

    def write(self, marker: Path) -> None:
        """Put the marker there, whole."""
        write(marker, json.dumps({"turn": self.number, "since": self.since, "visitor": self.user}))


def queued(root: Path) -> dict[Path, QueueTicket]:
    """The folders of the runs that wait in the store at `root`, and their tickets, in the order of service."""
    found = {marker.parent: QueueTicket.read(marker) for marker in root.glob("runs/[0-9a-f]*/queued")}
    turns = {folder: turn for folder, turn in found.items() if turn is not None}
    return dict(sorted(turns.items(), key=lambda item: item[1]))


def next_ticket(turns: list[QueueTicket], user: str) -> QueueTicket:
    """The ticket of a run that `user` queues now, where `turns` wait already."""
    served = min((turn.number for turn in turns), default=0)
    last = max((turn.number for turn in turns if turn.user == user), default=served - 1)
    return QueueTicket(max(served, last + 1), time.time(), user)


@dataclass(frozen=True)
class Unrestricted:
    """All rights and no limits: what the library and the command line act with."""

    name: str = "owner"

    def require(self, what: str) -> None:
        """Nothing is refused."""

    def check_room(self, root: Path, count: int = 1, *, together: bool = False) -> list[QueueTicket]:  # noqa: ARG002
        """The tickets that wait."""
        return list(queued(root).values())

    def require_code(self) -> bool:
        """The owner of the machine: who names a file here means that it runs."""
        return True

    @contextlib.contextmanager
    def admit(self, root: Path, *, together: bool = False) -> Iterator[QueueTicket]:
        """The next ticket."""
        yield next_ticket(self.check_room(root, together=together), self.name)


UNRESTRICTED = Unrestricted()
