"""Users of the dashboard: their role, and their limits.

A `Store` acts with the rights of one user. The library and the command line act without limits
(`runs.queue.UNRESTRICTED`); each page gets a store with the rights of its user. Rights are checked where the work is
done, in the backend's process too: a page that forgets to hide a button gives nothing away.
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
from smallalign_core.runs.queue import QueueTicket, next_ticket, queued
from smallalign_core.system import limits
from smallalign_core.system.files import write

MINUTE = 60.0


class Role(StrEnum):
    """What a user may do."""

    NOBODY = "nobody"  # not logged in where login is required
    VIEWER = "viewer"  # read-only
    RUNNER = "runner"  # may also start, stop, delete and upload, within the limits
    LOCAL = "local"  # as a runner, in a browser on the owner's machine without a login: may also run Python files
    OWNER = "owner"  # the local command line: no limits


@dataclass(frozen=True)
class User:
    """A user, with whose rights a store acts.

    Attributes:
        name: the address of the login, else the identifier of the browser. One line.
    """

    name: str
    role: Role = Role.RUNNER

    def require(self, what: str) -> None:
        """Check that the user may change things.

        Args:
            what: an infinitive without "to", for the message: `start runs`.

        Raises:
            Refused: the role may only look.
        """
        if self.role in (Role.RUNNER, Role.LOCAL, Role.OWNER):
            return
        if self.role is Role.VIEWER:
            raise Refused(
                f"your account is read-only: you cannot {what}",
                given=f"logged in as {self.name}",
                do="contact the administrator of this dashboard to get the runner role",
            )
        raise Refused(f"you must be logged in to {what}", do="log in first")

    def require_code(self) -> bool:
        """Check that the user may run Python files. Whether naming one allows it: a link to a page could name one too,
        so in a browser it must be allowed by a click before.

        Raises:
            Refused: only the owner of the machine may.
        """
        if self.role in (Role.LOCAL, Role.OWNER):
            return self.role is Role.OWNER
        raise Refused(
            "Python files run for the owner of this machine only",
            given=f"acting for {self.name}",
            do="use another network, or run it on the command line of this machine",
        )

    @property
    def limited(self) -> bool:
        return self.role is not Role.OWNER

    @contextlib.contextmanager
    def admit(self, root: Path, *, together: bool = False) -> Iterator[QueueTicket]:
        """Check that the user may queue one more run of the store at `root`, and hold the place while it is done.

        Yields:
            The run's ticket. The start counts when the block ends without an error.

        Raises:
            Refused: the role may not start runs, the queue is full for the user or for all, or too many were started
                in a minute.
        """
        self.require("start runs")
        if not self.limited:
            yield next_ticket(list(queued(root).values()), self.name)
            return
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / "admission.lock", timeout=10.0):  # two tabs and two processes may submit at once
            turns = self.check_room(root, together=together)
            yield next_ticket(turns, self.name)
            starts = _starts(root)
            write(root / "starts.json", json.dumps([*starts, [time.time(), self.name]]))

    def check_room(self, root: Path, count: int = 1, *, together: bool = False) -> list[QueueTicket]:
        """Check that there is room in the queue for `count` more runs of the user; returns the tickets that wait.

        Args:
            together: they belong to one start that was admitted already, so that their number does not count.

        Raises:
            Refused: there is none, or the role may not start runs.
        """
        self.require("start runs")
        turns, most = list(queued(root).values()), limits.current()
        if not self.limited:
            return turns
        mine = sum(turn.user == self.name for turn in turns)
        others = sum(turn.user != OWNER.name for turn in turns)
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
        recent = [when for when, who in _starts(root) if who == self.name]
        if not together and len(recent) + count > max(count, most.starts_a_minute):
            rest = max(1, round(MINUTE - (time.time() - min(recent))))
            given = f"{len(recent)} runs in the last minute"
            raise Refused("rate limit for starting runs exceeded", given=given, do=f"try again in {rest} s")
        return turns


OWNER = User("owner", Role.OWNER)


def _starts(root: Path) -> list[tuple[float, str]]:
    """(time, user name) of the starts of the last minute; a damaged record is an empty one."""
    try:
        told = json.loads((root / "starts.json").read_text())
        now = time.time()
        return [(float(when), str(who)) for when, who in told if 0 <= now - float(when) < MINUTE]
    except (OSError, ValueError, TypeError):
        return []
