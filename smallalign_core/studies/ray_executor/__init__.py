"""Training on several machines: groups of runs are sent to a Ray cluster, and their folders are copied back.

Machines need not share a disk. A group includes the files of its specs (teachers, decisions, initial weights); images
are found by name or path on each machine and checked by fingerprint. The code is sent too, so a machine only needs the
packages of requirements.txt. Ray is imported only if a cluster is used.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import signal
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from smallalign_core.errors import BadInput, Diverged, Refused, SmallAlignError, WorkFailed
from smallalign_core.runs.store import Run, State, Store
from smallalign_core.runs.writer import RunWriter
from smallalign_core.studies.ray_executor import _node, _payload
from smallalign_core.system import extras
from smallalign_core.system.extras import PACKAGE
from smallalign_core.system.files import write

log = logging.getLogger("smallalign")

SECONDS = 0.5
REACH_SECONDS = 5.0
HEALTHY_SECONDS = 60.0
RETRIES = 3
"""Max. restarts of a group if its machine fails."""
GPU_SHARE = 0.25
"""Share of a GPU per group, since small students do not fill one."""
MOST_AWAY = 64
"""Max. groups on the cluster: each run holds an open lock file here, and a process can have 1,024 open files."""
OURS = ("attempt", "pid", "time", "boot", "memory_kills", "served", "ended", "reason", "diverged")
"""Status fields that are about the worker, not about the run."""

Ended = dict[str, Any] | SmallAlignError


@dataclass
class _Away:
    runs: list[Run]
    held: dict[str, RunWriter]


class Cluster:
    """Trains groups of runs on the machines of a Ray cluster; a context manager, which disconnects.

    While a group is on the cluster, this process holds the locks of its runs, so no other process trains them, and the
    dashboard shows them as running. If this process dies, they are interrupted, like those of any worker.

    Args:
        address: `host:port` of the cluster's head, `ray://host:port`, or `auto` for the cluster of this machine.
        store: the store of the runs.
        device: device of each group; `auto` is a GPU if the cluster has any, else the CPU.

    Attributes:
        observe: called with the runs that are sent; returns an observer that is called when they come back.

    Raises:
        BadInput: the address is invalid or not reachable.
        WorkFailed: ray is not installed.
    """

    def __init__(
        self,
        address: str,
        store: Store,
        *,
        device: str = "auto",
    ) -> None:
        self.store = store
        self.observe: Callable[[Sequence[Run]], Callable[[dict[str, Any]], object]] = lambda _: lambda __: None
        self._ray = _connected(address)
        self._away: dict[Any, _Away] = {}
        self._elders: dict[str, Any] = {}
        self._over: list[tuple[list[Run], list[Ended]]] = []
        self._home = hashlib.sha256(f"{socket.gethostname()} {store.root.resolve()}".encode()).hexdigest()[:16]
        if device == "auto":
            device = "cuda" if self._ray.cluster_resources().get("GPU", 0) else "cpu"
        self._device = device
        self._show: Callable[[dict[str, Any]], object] = lambda _: None
        gpus = GPU_SHARE if device.startswith("cuda") else 0
        self._task = self._ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)(_node.train)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for ref, away in self._away.items():
            with contextlib.suppress(Exception):  # it may be gone already
                self._ray.cancel(ref, force=True)
            for recording in away.held.values():
                with contextlib.suppress(Refused):
                    recording.write_status(
                        ended=State.PAUSED, reason="stopped on the cluster; it will restart from the beginning"
                    )
                recording.release()
        self._away = {}
        self._ray.shutdown()

    @property
    def free(self) -> bool:
        """Whether to send more groups: one waits for each that is in training."""
        there = self._ray.cluster_resources()
        slots = there.get("GPU", 0) / GPU_SHARE if self._device.startswith("cuda") else there.get("CPU", 0)
        return len(self._away) < min(MOST_AWAY, 2 * max(1, int(slots)))

    def begin(self, runs: Sequence[Run]) -> None:
        """Send a group; each of its runs is reported once, in `ended`."""
        held: dict[str, RunWriter] = {}
        for run in runs:
            try:
                recording = RunWriter(run).__enter__()
            except Refused as error:  # another process here trains it
                self._over.append(([run], [error]))
                continue
            held[run.id] = recording
        sent = [run for run in runs if run.id in held]
        if not sent:
            return
        try:
            specs = [run.spec for run in sent]
            needed = [self._elder(name) for name in _payload.needs(specs)]
            ref = self._task.remote(_payload.payload(specs, self._home, self._device), needed)
        except SmallAlignError as error:  # e.g. a teacher is gone: these fail, the others continue
            replies = [_payload.refusal("", error) for _ in sent]
            self._over.append((sent, [accepted(held[run.id], reply) for run, reply in zip(sent, replies, strict=True)]))
            return
        except BaseException:
            for recording in held.values():
                recording.release()
            raise
        self._away[ref] = _Away(sent, held)
        self._show = self.observe(sent)
        self._tell("")

    def _tell(self, host: str) -> None:
        runs = sum(len(away.runs) for away in self._away.values())
        self._show({"kind": "away", "groups": len(self._away), "runs": runs, "host": host})

    def _elder(self, name: str) -> Any:
        if name not in self._elders:  # sent once for all runs that need it
            self._elders[name] = self._ray.put(_payload.dependency(self.store.finished(name, headless=True)))
        return self._elders[name]

    def ended(self) -> list[tuple[list[Run], list[Ended]]]:
        """Groups that came back since the last call; waits a moment if there are none.

        Raises:
            Refused: a machine is not usable. In the cluster it would fail one group after the other, faster than the
                others train them.
        """
        over, self._over = [*self._over, *self._stopped()], []
        if not self._away:
            return over
        done, _ = self._ray.wait(list(self._away), num_returns=1, timeout=0 if over else SECONDS)
        for ref in done:
            away = self._away.pop(ref)
            try:
                replies = self._ray.get(ref)
            except Exception as error:  # noqa: BLE001  # ray's own, or a bug over there
                lost = WorkFailed(
                    "the cluster did not train the run",
                    given=str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__,
                    do="see the cluster's logs, then run the study again",
                )
                replies = [_payload.refusal("", lost) for _ in away.runs]
            if replies[0].unfit and (why := _payload.error_of(replies[0])):
                self._away[ref] = away  # to be paused with the others
                given = f"{replies[0].host}: {why.wrong}" + (f" ({why.given})" if why.given else "")
                raise Refused("a machine of the cluster is not usable", given=given, do=why.do)
            ended = [accepted(away.held[run.id], reply) for run, reply in zip(away.runs, replies, strict=True)]
            for run, how in zip(away.runs, ended, strict=True):
                if not isinstance(how, SmallAlignError):
                    self.store.count_test_look(str(run.spec.data.fingerprint), run.id, "training finished")
            over.append((away.runs, ended))
            self._show = self.observe(away.runs)
            self._tell(replies[0].host)
        return over

    def _stopped(self) -> Iterator[tuple[list[Run], list[Ended]]]:
        """Stop groups with stop requests for all runs; a group with requests for only some of them continues."""
        for ref, away in list(self._away.items()):
            requested = [run.pending_request for run in away.runs]
            if all(requested):
                with contextlib.suppress(Exception):  # it may have ended already
                    self._ray.cancel(ref, force=True)
                del self._away[ref]
                states = [State.CANCELLED if one == "cancel" else State.PAUSED for one in requested]
                for run, state in zip(away.runs, states, strict=True):
                    away.held[run.id].write_status(
                        ended=state, reason="removed from the cluster; it will restart from the beginning"
                    )
                    away.held[run.id].release()
                rows = zip(away.runs, states, requested, strict=True)
                yield away.runs, [{"id": run.id, "state": str(state), "asked": one} for run, state, one in rows]


def accepted(recording: RunWriter, reply: _payload.RunOutcome) -> Ended:
    """Copy the result into the run's folder, and release its lock, which ensures that this happens once."""
    run = recording.run
    try:
        return _taken_in(recording, reply)
    except SmallAlignError as error:
        with contextlib.suppress(Refused):  # the disk may be full
            recording.write_status(ended=State.FAILED, reason=str(error), diverged=isinstance(error, Diverged))
        log.warning("%s: %s", run.name, error)
        return error
    finally:
        recording.release()


def _taken_in(recording: RunWriter, reply: _payload.RunOutcome) -> Ended:
    run, result = recording.run, reply.result
    facts = {name: value for name, value in reply.said.items() if name not in OURS and name != "schema"}
    recording.write_status(**{**facts, "host": reply.host})
    for name in ("events.jsonl", "log.txt"):  # it restarted there: earlier attempts here are discarded
        if name in reply.files:
            write(run.folder / name, reply.files[name])
    if error := _payload.error_of(reply):
        raise error
    weights, logits = (reply.files.get(name, b"") for name in ("weights.safetensors", "logits.safetensors"))
    if result is None or hashlib.sha256(weights).hexdigest() != result.get("weights_sha256"):
        raise WorkFailed("the result from the cluster is damaged", given=reply.host, do="run the study again")
    if (known := run.result) is not None:  # finished without the lock: an import, a copied folder
        if known.get("weights_sha256") != result["weights_sha256"]:
            raise WorkFailed(
                "two machines trained different weights from one spec",
                given=f"{reply.host}, {result.get('processor')}; here {known.get('processor')}",
                do="use equal processors and thread counts for bit-identical weights",
            )
        return known
    recording.finish(weights, logits, result)
    return run.result or result


def _connected(address: str) -> Any:
    """ray, connected to a cluster, with its output suppressed."""
    extras.require("ray", "a study on a cluster")
    _reach(address)
    ray = extras.load("ray", "a study on a cluster")
    ours = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    package = str(PACKAGE)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.shutdown()  # a local cluster that an earlier call started implicitly
            ray.init(
                address,
                logging_level=logging.ERROR,
                log_to_driver=False,
                runtime_env={"py_modules": [package], "env_vars": {"OMP_NUM_THREADS": "1"}},
            )
    except Exception as error:  # noqa: BLE001  # whatever ray says, in its many words
        words = str(error).strip().splitlines() or [type(error).__name__]
        raise BadInput(
            f"the Ray cluster cannot be used: {words[0][:200]}",
            given=address,
            do="start one with `ray start --head`, and give host:port of its head, or `auto` on one of its machines",
        ) from None
    with contextlib.suppress(ValueError):  # main thread only: replace ray's signal handler, which aborts
        for number, handler in ours.items():
            signal.signal(number, handler)
    return ray


def _reach(address: str) -> None:
    """Fail fast if the address is not reachable: ray itself would retry for half a minute."""
    if address == "auto":
        _take_token()
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65_535:
        raise BadInput("not an address of a Ray cluster", given=address, do="give host:port, or `auto`")
    try:
        socket.create_connection((host, int(port)), REACH_SECONDS).close()
    except OSError as error:
        raise BadInput(
            f"the cluster's address is not reachable: {(error.strerror or str(error)).lower()}",
            given=address,
            do="start the cluster with `ray start --head`, and give host:port of its head",
        ) from None
    if not address.startswith("ray://"):
        _healthy(address)


def _take_token() -> bool:
    """Use the token of this machine, if there is one, unless configured otherwise; as `ray start` does."""
    there = (
        "RAY_AUTH_TOKEN" in os.environ
        or Path(os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray" / "auth_token")).is_file()
    )
    if not there or "RAY_AUTH_MODE" in os.environ:
        return False
    os.environ["RAY_AUTH_MODE"] = "token"
    return True


def _healthy(address: str) -> None:
    """Test the connection in a separate process: with another server, or without the token, ray would block."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=HEALTHY_SECONDS)
    except subprocess.TimeoutExpired:
        raise BadInput(
            "the server at that address is not a Ray head node", given=address, do="give the port of `ray start --head`"
        ) from None
    if done.returncode == 0:
        return
    if "AuthenticationError" in done.stderr and _take_token():
        _healthy(address)
        return
    if "AuthenticationError" in done.stderr:
        raise BadInput(
            "the cluster rejected the authentication token",
            given=address,
            do="put the head node's token into ~/.ray/auth_token or RAY_AUTH_TOKEN on this machine",
        )
    last = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
    raise BadInput(
        f"the Ray cluster cannot be used: {last[0][:200]}", given=address, do="see the logs of the head node"
    )
