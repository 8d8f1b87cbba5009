"""Can a run be lost? Kills workers with SIGKILL at random moments until all runs are finished, and looks for damage.

    python benchmarks/chaos.py [--kills 50] [--seed 0]        # about two minutes of one idle core

A worker is the command line's `worker --once`, in a process group of its own, with a checkpoint every 0.05 s instead of
every 10 s. Four of five are forked from this process, which has imported torch already, so that a kill costs less than
a second; every fifth is a new interpreter, so that imports are killed too. The moment is drawn: by the worker's
processor time, by how many events were seen, or by the n-th time that it opens, renames or removes a certain file, just
before it does or up to 10 ms after. Between kills, runs are paused, cancelled and resumed by the command line, also
while they train.

Runs cover every optimizer and loss that a spec offers, with and without a teacher, alone and in lockstep, in ten groups
of which each is killed at least once; with fewer kills than that, as many groups are trained. After each
kill: every event that was read before is still there, every file that must be whole is whole, and every run's state is
one that it can be in. In the end weights, scores and epochs are those of a run in another store that nobody disturbed.
The exit code is 1 if anything was lost, torn, different or wrong.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import hashlib
import itertools
import json
import math
import os
import random
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["OMP_NUM_THREADS"] = "1"  # a process with several threads cannot be forked safely

import numpy as np
import psutil
import pytorch_optimizer  # noqa: F401  # so that forked workers need not
import scipy.optimize  # noqa: F401
import torch
import torch._dynamo  # the first optimizer does, for a second
from safetensors import SafetensorError, safe_open

from smallalign_core.analysis import compare  # noqa: F401
from smallalign_core.cli._main import main as command_line
from smallalign_core.errors import BadInput, SmallAlignError
from smallalign_core.runs.store import Run, State, Store
from smallalign_core.spec import Loss, Optimizer, RunSpec, choices, digest, members, parse
from smallalign_core.system.files import read_json, read_lines
from smallalign_core.training import runner
from smallalign_core.training.resolve import resolve
from smallalign_core.training.teacher import _chunk

CHECKPOINT_SECONDS = 0.05
EPOCHS = 24
PATIENCE = 300.0
"""Seconds without an event, or without the end of a command, after which a process hangs."""
TEACHER = "digits-student"
POLICIES: tuple[dict[str, Any], ...] = (
    {"augment": ["shift", "rotate"]},
    {"augment": ["shift", "noise"], "views": 3},
    {"augment": ["shift", "mixup"]},
)
NETWORKS: tuple[dict[str, Any], ...] = (
    {"kind": "cnn", "width": 6, "depth": 2, "dropout": 0.2},
    {"kind": "mlp", "width": 24, "dropout": 0.3},
    {"kind": "separable", "width": 6, "depth": 2},
    {"kind": "resnet", "width": 2},
)
TOUCHED = ("lock", "queued", "state.json", "events", "checkpoint-", "checkpoints.json", "weights", "result", "request")
"""Files at whose n-th use a worker is killed."""
SAME = ("weights_sha256", "val", "test", "test_calibrated", "temperature", "best_epoch", "last", "fidelity")
"""What an undisturbed run's result says too."""


@dataclass
class Tally:
    """What happened, and what went wrong."""

    kills: Counter[str] = field(default_factory=Counter)
    phases: Counter[str] = field(default_factory=Counter)
    requested: Counter[str] = field(default_factory=Counter)
    events: int = 0
    finished: int = 0
    lost: list[str] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def damage(self) -> list[str]:
        """All that went wrong."""
        return [*self.lost, *self.torn, *self.differing, *self.wrong]


# --- what is trained --------------------------------------------------------------------------------------------------


def optimizers() -> list[dict[str, Any]]:
    """Every optimizer that a spec offers; one that wraps another, around one that it offers; and the deepest nest."""
    found: list[dict[str, Any]] = []
    for member, kind in zip(members(Optimizer), choices(Optimizer), strict=True):
        inner = member.model_fields.get("inner")
        inside = [one.model_fields["kind"].default for one in get_args(inner.annotation)] if inner else []
        found.append({"kind": kind, "inner": {"kind": inside[len(found) % len(inside)]}} if inside else {"kind": kind})
    sharp = {"kind": "asam", "inner": {"kind": "muon"}}
    return [*found, {"kind": "ema", "inner": {"kind": "lookahead", "k": 3, "inner": sharp}}]


def rounds(store: Store, cycle: int) -> Iterator[list[RunSpec]]:
    """Groups of specs that are queued together, by turns one and three; each cycle has all kinds, in other pairs."""
    losses, steps = choices(Loss), optimizers()
    pairs = [(losses[i % len(losses)], steps[(i + cycle) % len(steps)]) for i in range(max(len(losses), len(steps)))]
    sizes, number = itertools.cycle((1, 3)), cycle
    again = set(losses)
    while pairs:
        size = next(sizes)
        taken, pairs = pairs[:size], pairs[size:]
        group = [_spec(store, *pair, number, NETWORKS[(number + at) % 4]) for at, pair in enumerate(taken)]
        yield group
        number += 1
        for (loss, _), spec in zip(taken, group, strict=True):
            if spec.loss.kind != loss and loss in again:  # that optimizer cannot do with it, another one may
                pairs.append((loss, {"kind": "sgd"}))
            again.discard(loss)


def _spec(store: Store, loss: str, optimizer: dict[str, Any], number: int, network: dict[str, Any]) -> RunSpec:
    """The first spec with that optimizer that can be, with that loss if it can be: some need a teacher, feature maps or
    unmixed images, or cannot do with every loss.
    """
    error: BadInput | None = None
    policies = (POLICIES[number % len(POLICIES)], POLICIES[0])
    ways = itertools.product((loss, "kd"), policies, (network, NETWORKS[0]), (None, TEACHER))
    for loss, policy, body, teacher in ways:
        try:
            fields = {"network": body, "teacher": teacher, "loss": {"kind": loss}, "optimizer": optimizer}
            return resolve(store, parse({"data": "digits", "epochs": EPOCHS, "seed": number, **policy, **fields}))
        except BadInput as refused:
            error = refused
    raise error or AssertionError


# --- processes that are killed ----------------------------------------------------------------------------------------


def start(
    arguments: Sequence[str], log: Path, *, fresh: bool = False, fatal: tuple[Path, str, int, float] | None = None
) -> int:
    """Give a command to the command line in a process group of its own. Returns its process id.

    Args:
        log: where its output goes.
        fresh: in a new interpreter, not in a fork of this process.
        fatal: (folder, part of a name, n, seconds): it kills itself just before its n-th use of such a file in that
            folder, or so many seconds later, when it may be in the middle of writing.
    """
    if pid := os.fork():
        with contextlib.suppress(OSError):  # the child was first, or has ended
            os.setpgid(pid, pid)
        return pid
    code = 70
    try:
        os.setpgid(0, 0)
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(out, 1)
        os.dup2(out, 2)
        if fresh:
            os.chdir(ROOT)
            hurry = (
                "from smallalign_core.cli import main; from smallalign_core.training import runner; "
                f"runner.CHECKPOINT_SECONDS = {CHECKPOINT_SECONDS}"
            )
            os.execv(sys.executable, [sys.executable, "-c", f"{hurry}; raise SystemExit(main())", *arguments])
        runner.CHECKPOINT_SECONDS = CHECKPOINT_SECONDS
        if fatal:
            sys.addaudithook(_killing_itself(*fatal))
        code = command_line(list(arguments))
        sys.stdout.flush()
    except BaseException:  # noqa: BLE001  # nothing of the child may return into the parent's code
        traceback.print_exc()
    finally:
        os._exit(code)


def _killing_itself(folder: Path, name: str, uses: int, seconds: float) -> Any:
    prefix, left, now = str(folder), [uses], (os.getpid(), signal.SIGKILL)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        path = str(arguments[0]) if event in ("open", "os.rename", "os.remove") else ""
        if path.startswith(prefix) and name in path.rpartition("/")[2]:
            left[0] -= 1
            if not left[0]:
                threading.Timer(seconds, os.kill, now).start() if seconds else os.kill(*now)

    return hook


def ended(pid: int, *, wait: bool = False) -> int | None:
    """The exit code of a child, negative for the signal that ended it; None while it lives."""
    found, status = os.waitpid(pid, 0 if wait else os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def end_children() -> None:
    """Kill the groups of processes that were started and live: they would go on without this one."""
    for child in psutil.Process().children():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)


def busy(pid: int) -> float:
    """Processor seconds that a child has used: what a clock would say on an idle machine."""
    with contextlib.suppress(psutil.Error):
        used = psutil.Process(pid).cpu_times()
        return float(used.user + used.system)
    return 0.0


# --- what must be true ------------------------------------------------------------------------------------------------


def torn(store: Store) -> list[str]:
    """Files of a store that must be whole and are not, with the reason."""
    found = []
    for file in sorted(path for path in store.root.rglob("*") if path.is_file()):
        if file.name.startswith(".") or any(part.endswith(".part") for part in file.parts):
            continue  # still being written, by its name
        try:
            _read_whole(file)
        except (OSError, ValueError, LookupError, TypeError, SafetensorError, SmallAlignError, _chunk.Damaged) as error:
            found.append(f"{file.relative_to(store.root)}: {type(error).__name__} {error}")
    return found


def _read_whole(file: Path) -> None:
    """Read a file as what its name promises; raises if it is not."""
    match file.suffix or file.name:
        case ".json":
            _agrees(file, read_json(file))
        case ".jsonl":
            if read_lines(file)[1] or not file.read_bytes().endswith(b"\n"):
                raise ValueError("a line is not whole")
        case ".safetensors":
            with safe_open(file, framework="np") as opened:
                for name in opened.keys():  # noqa: SIM118
                    opened.get_tensor(name)
        case ".npy":
            np.load(file)
        case ".answers" | ".images" | ".logits":
            _chunk.opened(file, f"{file.parent.name}/{file.name}")
        case "queued":
            if set(json.loads(file.read_text())) != {"turn", "since", "visitor"}:
                raise ValueError("it is no turn")
        case "request":
            ("pause", "cancel").index(file.read_text())


def _agrees(file: Path, value: Any) -> None:
    """Whether the JSON in `file` is true of the files beside it."""
    if file.name == "spec.json" and digest(parse(value["spec"])) != file.parent.name:
        raise ValueError("it is another run's")
    if file.name == "checkpoints.json" and not (file.parent / "result.json").exists():
        for entry in value["checkpoints"]:
            _same_digest(file.parent / entry["file"], entry["sha256"])
    if file.name == "result.json":
        _same_digest(file.parent / "weights.safetensors", value["weights_sha256"])


def _same_digest(file: Path, sha256: str) -> None:
    if hashlib.sha256(file.read_bytes()).hexdigest() != sha256:
        raise ValueError(f"{file.name} has another digest")


def wrong_state(run: Run, code: int, request: str | None, trained: bool) -> str | None:
    """What is wrong with the state of a run whose worker ended with `code`, if anything is.

    `request` is what was asked of the run; `trained`, whether an event of this worker was seen.
    """
    allowed = {State.FINISHED}
    if request:
        allowed.add(State.PAUSED if request == "pause" else State.CANCELLED)
    if code == -signal.SIGKILL:
        allowed.add(State.INTERRUPTED)
        if not trained:
            allowed.add(State.QUEUED)
    elif code:
        return f"{run.name}: the worker ended with {code}"
    if run.state not in allowed:
        return f"{run.name}: {run.state} ({run.status.get('reason')}), allowed: {', '.join(sorted(allowed))}"
    return None


def differences(run: Run, undisturbed: Run) -> list[str]:
    """What the results of two runs of one spec do not agree on."""
    ours, theirs = run.result or {}, undisturbed.result or {}
    found = [f"{run.title}: {name}" for name in SAME if ours.get(name) != theirs.get(name)]
    epochs = [[event["epoch"] for event in one.events("epoch")] for one in (run, undisturbed)]
    if epochs[0] != epochs[1]:
        found.append(f"{run.title}: epochs as read back: {epochs[0]}")
    return found


# --- the ordeal -------------------------------------------------------------------------------------------------------


@dataclass
class Ordeal:
    """Runs of one store, their tormentor, and what it has read of their events."""

    store: Store
    draw: random.Random
    tally: Tally
    log: Path
    starts: int = 0
    read: dict[Path, bytes] = field(default_factory=dict)
    requests: dict[str, str] = field(default_factory=dict)

    def command(self, *words: str, **how: Any) -> int:
        """Start a command on this store; returns its process id."""
        return start([*words, "--store", str(self.store.root)], self.log, **how)

    def survive(self, runs: Sequence[Run], kills: int) -> None:
        """Train `runs`, killing their worker up to `kills` times; the first damage ends it."""
        left = kills
        for run in runs:
            self.store.enqueue(run)
        while not all(run.finished for run in runs) and not self.tally.damage:
            for run in runs:
                if run.state.resumable:
                    self.resume(run)
            left -= self.attempt(runs, fatal=left > 0)
        self.tally.finished += len(runs)

    def resume(self, run: Run) -> None:
        """Put a stopped run back into the queue by the command line."""
        code = ended(self.command("runs", "resume", run.id), wait=True)
        self.requests.pop(run.id, None)
        self.tally.requested["resume"] += 1
        if code or run.state is not State.QUEUED:
            self.tally.wrong.append(f"{run.name}: resume ended with {code}, the run is {run.state}")

    def attempt(self, runs: Sequence[Run], *, fatal: bool) -> bool:
        """Start a worker, kill it at a drawn moment if `fatal`, and look. Returns whether it was killed."""
        draw, self.starts = self.draw, self.starts + 1
        fresh = fatal and self.starts % 5 == 0
        way = draw.choice(("clock", "event") if fresh else ("clock", "event", "file")) if fatal else ""
        seconds = draw.uniform(0, 3.0 if fresh else 0.7) if way == "clock" else math.inf
        events = draw.randint(1, 25) if way == "event" else math.inf
        delay = draw.choice((0.0, draw.uniform(0, 0.01)))
        use = (self.store.root / "runs", draw.choice(TOUCHED), draw.randint(1, 6), delay) if way == "file" else None
        ask_at = draw.uniform(0, 0.7) if fatal and draw.random() < 0.3 else math.inf

        before, asking = dict(self.read), None
        pid = self.command("worker", "--once", "--device", "cpu", fresh=fresh, fatal=use)
        seen, since = 0, time.monotonic()
        while (code := ended(pid)) is None:
            self.look(runs)
            if (now := self.news(runs, before)) != seen:
                seen, since = now, time.monotonic()
            if time.monotonic() - since > PATIENCE:
                self.tally.wrong.append(f"{', '.join(run.name for run in runs)}: no event in {PATIENCE:.0f} s")
                os.killpg(pid, signal.SIGKILL)
                code = ended(pid, wait=True)
                break
            passed = busy(pid)
            if passed >= seconds or self.news(runs, before) >= events:
                os.killpg(pid, signal.SIGKILL)
                code = ended(pid, wait=True)
                break
            if asking is None and passed >= ask_at:
                requested, verb = draw.choice(runs), draw.choice(("pause", "cancel"))
                asking = (requested, verb, self.command("runs", verb, requested.id))
            time.sleep(0.003)
        assert code is not None
        if asking:
            run, verb, asker = asking
            refused = ended(asker, wait=True)
            if not refused:
                self.requests[run.id] = verb
                self.tally.requested[verb] += 1
            elif refused not in (1, 2):
                self.tally.wrong.append(f"{run.name}: {verb} ended with {refused}")
        self.judge(runs, code, before)
        if code == -signal.SIGKILL:
            self.tally.kills[f"{way}, new interpreter" if fresh else way] += 1
            return True
        return False

    def look(self, runs: Sequence[Run]) -> None:
        """Read the events there are: from now on they are acknowledged."""
        for run in runs:
            file = run.folder / "events.jsonl"
            with contextlib.suppress(FileNotFoundError):
                if file.stat().st_size != len(self.read.get(file, b"")):
                    content = file.read_bytes()
                    self.read[file] = content[: content.rfind(b"\n") + 1]

    def news(self, runs: Sequence[Run], before: dict[Path, bytes]) -> int:
        """How many events were read that were not there before."""
        files = [run.folder / "events.jsonl" for run in runs]
        return sum(self.read.get(file, b"").count(b"\n") - before.get(file, b"").count(b"\n") for file in files)

    def judge(self, runs: Sequence[Run], code: int, before: dict[Path, bytes]) -> None:
        """Look for what a worker that just ended has lost, torn or left in the wrong state."""
        for file, content in self.read.items():
            now = set(file.read_bytes().split(b"\n")) if file.exists() else set()
            self.tally.lost += [f"{file}: {line!r}" for line in content.splitlines() if line not in now]
        self.tally.torn += torn(self.store)
        for run in runs:
            trained = self.news([run], before) > 0
            if wrong := wrong_state(run, code, self.requests.get(run.id), trained):
                self.tally.wrong.append(wrong)
        if code == -signal.SIGKILL:
            last = [run.events()[-1]["kind"] for run in runs if self.news([run], before)]
            phase = "finishing" if "finished" in last else "training" if last else "starting"
            self.tally.phases[phase] += 1
        self.look(runs)


def undisturbed(store: Store, specs: Sequence[RunSpec], log: Path) -> list[Run]:
    """The same runs in another store, each alone."""
    runs = [store.create(spec) for spec in specs]
    for run in runs:
        store.enqueue(run)
        if code := ended(start(["worker", "--once", "--device", "cpu", "--store", str(store.root)], log), wait=True):
            raise SystemExit(f"an undisturbed worker ended with {code}: see {log}")
    return runs


def report(tally: Tally, seconds: float) -> int:
    """Print what happened; returns the exit code."""
    names = ("lost events", "torn files", "differing digests", "wrong states")
    found = dict(zip(names, (tally.lost, tally.torn, tally.differing, tally.wrong), strict=True))
    kills = tally.kills.total()
    print(f"{kills} kills in {seconds:.0f} s, {tally.finished} runs finished, {tally.events} events read while trained")
    print("moment drawn by: " + ", ".join(f"{way} {count}" for way, count in sorted(tally.kills.items())))
    print("killed while: " + ", ".join(f"{phase} {count}" for phase, count in sorted(tally.phases.items())))
    print("by command line: " + ", ".join(f"{verb} {count}" for verb, count in sorted(tally.requested.items())))
    print(f"losses: {', '.join(choices(Loss))}; optimizers: {', '.join(choices(Optimizer))}\n")
    for name, lines in found.items():
        print(f"{name:18} {len(lines)}")
        for line in lines[:10]:
            print(f"    {line}")
    print(json.dumps({"kills": kills, **{name: len(lines) for name, lines in found.items()}}))
    return int(bool(tally.damage))


def main() -> None:
    """Torment and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="at least so many")
    parser.add_argument("--seed", type=int, default=0, help="of the moments; what happens there depends on timing too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    begun, tally = time.monotonic(), Tally()
    with tempfile.TemporaryDirectory() as place:
        store, other = Store(Path(place) / "models"), Store(Path(place) / "undisturbed")
        atexit.register(end_children)
        ordeal = Ordeal(store, random.Random(options.seed), tally, Path(place) / "log.txt")
        for cycle in itertools.count():
            groups = list(rounds(store, cycle))
            if tally.damage or (cycle and tally.kills.total() >= options.kills):
                break
            for number, specs in enumerate(groups):
                left = options.kills - tally.kills.total()
                if number and left <= 0 and options.kills < len(groups):
                    break
                runs = [store.create(spec) for spec in specs]
                ordeal.survive(runs, math.ceil(max(0, left) / (len(groups) - number)))
                if tally.damage:
                    break
                for run, twin in zip(runs, undisturbed(other, specs, ordeal.log), strict=True):
                    tally.differing += differences(run, twin)
                print(f"cycle {cycle}, {number + 1} of {len(groups)}: {tally.kills.total()} kills", file=sys.stderr)
        tally.events = sum(content.count(b"\n") for content in ordeal.read.values())
        code = report(tally, time.monotonic() - begun)
        if code:
            print(ordeal.log.read_text()[-4000:], file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
