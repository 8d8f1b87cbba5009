"""Can a dashboard be pulled off its runs? Kills the server, its worker, and both, with SIGKILL, at random moments.

    python benchmarks/plugs.py [--kills 12] [--seed 0]        # about ten seconds of processor a kill

The real thing: `streamlit run app.py` with a store of its own, whose supervisor starts the worker, with the real
checkpoint every 10 s. A killed server is started again by us, a killed worker by the supervisor; nobody tells a run to
go on, until it has died three times and says so. After each kill: every event that was read before is still there,
every file that must be whole is whole, and within 5 s no run claims to train unless its worker lives. In the end the
weights are those of the same runs, undisturbed. The exit code is 1 if anything was lost, torn, different or wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import chaos
import psutil

from smallalign_core.runs.store import Run, State, Store
from smallalign_core.service import worker
from smallalign_core.spec import parse
from smallalign_core.training.resolve import resolve

EPOCHS = 400
SECONDS = 5.0
"""How long a wrong state may last."""


@dataclass
class Scene:
    """A dashboard on a store, and what was seen of it."""

    store: Store
    ordeal: chaos.Ordeal
    log: Path
    server: subprocess.Popen[bytes] | None = None
    kills: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    by_itself: int = 0
    gave_up: int = 0

    def serve(self) -> None:
        """Start the dashboard unless it runs."""
        if self.server is None or self.server.poll() is not None:
            command = [
                sys.executable,
                "-m",
                "streamlit",
                "run",
                str(chaos.ROOT / "app.py"),
                "--server.headless",
                "true",
            ]
            command += ["--server.port", "0", "--server.address", "127.0.0.1", "--server.fileWatcherType", "none"]
            kept = os.environ | {"SMALLALIGN_STORE": str(self.store.root)}
            with self.log.open("ab") as out:
                self.server = subprocess.Popen(command, cwd=chaos.ROOT, env=kept, stdout=out, stderr=out)

    def workers(self) -> list[psutil.Process]:
        """The workers of this store that live."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if "worker" in words and str(self.store.root) in words:
                found.append(process)
        return found

    def kill(self, what: str) -> bool:
        """Kill the server, the worker, or both; whether there was what was to be killed."""
        workers = self.workers() if what != "server" else []
        if what != "server" and not workers:
            return False
        if what != "worker":
            assert self.server is not None
            self.server.kill()
        for process in workers:
            process.send_signal(signal.SIGKILL)
        if what != "worker" and self.server is not None:
            self.server.wait()
        psutil.wait_procs(workers, timeout=20)
        self.kills[what] += 1
        return True

    def look(self, runs: Sequence[Run]) -> None:
        """Nothing is lost or torn, and every state is true within 5 s."""
        tally, begun = self.ordeal.tally, time.monotonic()
        for file, content in self.ordeal.read.items():
            now = set(file.read_bytes().split(b"\n"))
            tally.lost += [f"{file}: {line!r}" for line in content.splitlines() if line not in now]
        while wrong := [run for run in runs if run.state is State.RUNNING and not psutil.pid_exists(run.status["pid"])]:
            if time.monotonic() - begun > SECONDS:
                tally.wrong += [f"{run.name}: still {run.state} after {SECONDS:.0f} s" for run in wrong]
                break
            time.sleep(0.02)
        self.slowest = max(self.slowest, time.monotonic() - begun)
        self.ordeal.look(runs)

    def survive(self, runs: Sequence[Run], kills: int, draw: random.Random) -> int:
        """Let the dashboard train `runs`, and kill it meanwhile. Returns how many kills are left when they finish."""
        for run in runs:
            self.store.enqueue(run)
        left, seen, since = kills, -1, time.monotonic()
        while not all(run.finished for run in runs) and not self.ordeal.tally.damage:
            self.serve()
            if (now := sum(len(run.events()) for run in runs)) != seen:
                seen, since = now, time.monotonic()
            if time.monotonic() - since > chaos.PATIENCE:
                self.ordeal.tally.wrong.append(f"no event in {chaos.PATIENCE:.0f} s")
                break
            end = time.monotonic() + (draw.uniform(0, 15) if left else 1)
            while time.monotonic() < end and not all(run.finished for run in runs):
                self.ordeal.look(runs)
                time.sleep(0.05)
            if left and self.kill(draw.choice(("worker", "server", "both"))):
                left -= 1
                self.look(runs)
            for run in runs:
                if run.state is State.FAILED and "died 3 times" in str(run.status["reason"]):
                    self.gave_up += 1
                    self.store.enqueue(run)
                elif run.state is State.FAILED:
                    self.ordeal.tally.wrong.append(f"{run.name}: failed: {run.status['reason']}")
        self.by_itself += sum(len(run.events("resumed")) for run in runs)
        self.ordeal.tally.torn += chaos.torn(self.store)
        return left

    def close(self) -> None:
        """End the server and its worker, which would go on without it."""
        if self.server is not None and self.server.poll() is None:
            self.server.terminate()
            self.server.wait()
        for process in (left := self.workers()):
            process.kill()
        psutil.wait_procs(left, timeout=20)


def main() -> None:
    """Torment and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0, help="of moments and targets")
    options = parser.parse_args()
    begun, tally, draw = time.monotonic(), chaos.Tally(), random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="plugs-") as place:
        store, other = Store(Path(place).resolve() / "models"), Store(Path(place) / "undisturbed")
        scene = Scene(store, chaos.Ordeal(store, draw, tally, Path(place) / "log.txt"), Path(place) / "server.txt")
        network = {"kind": "cnn", "width": 6, "depth": 2, "dropout": 0.2}
        spec = {"data": "digits", "network": network, "epochs": EPOCHS, "augment": ["shift", "rotate"]}
        runs: list[Run] = []
        left = options.kills
        try:
            while (left or not runs) and not tally.damage:  # the more kills, the more pairs of runs
                pair = [
                    store.create(resolve(store, parse({**spec, "seed": len(runs) // 2, "optimizer": kind})))
                    for kind in ("lookahead", "adamw")
                ]
                runs += pair
                left = scene.survive(pair, left, draw)
                print(f"{len(runs)} runs, {scene.kills.total()} kills", file=sys.stderr)
        finally:
            scene.close()
        for run in runs if not tally.damage else ():
            twin = other.create(run.spec)
            worker.execute(twin, other, device="cpu")
            tally.differing += chaos.differences(run, twin)
        seconds = time.monotonic() - begun
        count = sum(map(len, (run.events() for run in runs)))
        print(f"{scene.kills.total()} kills in {seconds:.0f} s: {dict(scene.kills)}; {count} events at the end")
        print(f"{scene.by_itself} resumes, {scene.gave_up} of them asked for after three deaths")
        print(f"slowest true state: {scene.slowest:.2f} s after the kill\n")
        names = {
            "lost events": tally.lost,
            "torn files": tally.torn,
            "differing digests": tally.differing,
            "wrong states": tally.wrong,
        }
        for name, lines in names.items():
            print(f"{name:18} {len(lines)}")
            for line in lines[:10]:
                print(f"    {line}")
        print(json.dumps({"kills": scene.kills.total(), **{name: len(lines) for name, lines in names.items()}}))
        if tally.damage:
            print(scene.log.read_text(errors="replace")[-3000:], file=sys.stderr)
    sys.exit(bool(tally.damage))


if __name__ == "__main__":
    main()
