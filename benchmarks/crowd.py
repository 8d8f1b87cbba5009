"""A crowd: fifty users look and click at the same time, on this machine's loopback interface only.

    python benchmarks/crowd.py [--users 50] [--clicks 10] [--seconds 60]

Starts a dashboard of its own on an empty store, and speaks Streamlit's protocol to it as a browser does (no pixels are
drawn, so this measures the server). Visitors open Distill and click Start training, each with other seeds, spread over
`--seconds`; then all look at the status strip at the page's own interval; then all click the same run at the same time,
twice. Nothing trains (this process holds the worker's lock), so what is queued can be counted. Ends with exit code 1 if
a promise is broken: exactly as many runs as the limits allow, no error, clicks and looks below 1.5 s (p95), and below
0.5 core and 600 MB while everybody only looks.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.asyncio.client import ClientConnection, connect

ROOT = Path(__file__).resolve().parents[1]
LIMITS = {"SMALLALIGN_WAITING_EACH": "2", "SMALLALIGN_WAITING_TOTAL": "20", "SMALLALIGN_STARTS_A_MINUTE": "10"}
MOST_SECONDS, MOST_CORES, MOST_MB = 1.5, 0.5, 600


class Visit:
    """One user's connection: what the page showed, and how long it took."""

    def __init__(self, line: ClientConnection) -> None:
        self.line = line
        self.page = self.seed = self.start = ""
        self.ticks: dict[str, float] = {}
        self.said: list[str] = []
        self._turn = asyncio.Lock()

    async def ask(self, *, page: str = "", fragment: str = "", seed: int | None = None) -> float:
        """Run the page, or a fragment of it; with a `seed`, that is typed in and Start is clicked. Seconds it took."""
        message = BackMsg()
        state = message.rerun_script
        state.page_name, state.fragment_id, state.is_auto_rerun = page, fragment, bool(fragment)
        state.page_script_hash = "" if page else self.page
        if seed is not None:
            one = state.widget_states.widgets.add()
            one.id, one.int_value = self.seed, seed
            click = state.widget_states.widgets.add()
            click.id, click.trigger_value = self.start, True
        async with self._turn:
            self.said, began = [], time.perf_counter()
            await self.line.send(message.SerializeToString())
            while not self._heard(await asyncio.wait_for(self.line.recv(), 120)):
                pass
            return time.perf_counter() - began

    def _heard(self, content: bytes | str) -> bool:
        """Take in one message; whether it says that the page is whole."""
        message = ForwardMsg()
        message.ParseFromString(content if isinstance(content, bytes) else content.encode())
        kind = message.WhichOneof("type")
        if kind == "navigation":
            self.page = self.page or message.navigation.page_script_hash
        elif kind == "auto_rerun":
            self.ticks[message.auto_rerun.fragment_id] = message.auto_rerun.interval
        elif kind == "delta":
            element = message.delta.new_element
            what = element.WhichOneof("type")
            if what == "button" and element.button.label == "Start training":
                self.start = element.button.id
            elif what == "number_input" and element.number_input.label.startswith("Seed"):
                self.seed = element.number_input.id
            elif what == "alert":
                self.said.append(element.alert.body)
            elif what == "exception":
                self.said.append("exception: " + element.exception.message)
        return kind == "script_finished" and message.script_finished in (
            ForwardMsg.FINISHED_SUCCESSFULLY,
            ForwardMsg.FINISHED_FRAGMENT_RUN_SUCCESSFULLY,
            ForwardMsg.FINISHED_WITH_COMPILE_ERROR,
        )


@asynccontextmanager
async def visiting(port: int) -> AsyncIterator[Visit]:
    """One user with a browser of their own."""
    here = f"127.0.0.1:{port}"
    async with connect(
        f"ws://{here}/_stcore/stream",
        origin=f"http://{here}",  # type: ignore[arg-type]
        subprotocols=["streamlit"],  # type: ignore[list-item]
        additional_headers={"Cookie": f"smallalign_visitor={secrets.token_urlsafe(16)}"},
        max_size=None,
        compression=None,
    ) as line:
        yield Visit(line)


async def look(visit: Visit, until: float, took: list[float]) -> None:
    """Let the strip tick as often as it asks, until then."""
    while time.monotonic() < until and visit.ticks:
        fragment, interval = next(iter(visit.ticks.items()))
        await asyncio.sleep(interval)
        took.append(await visit.ask(fragment=fragment))


async def crowd(port: int, server: psutil.Process, users: int, clicks: int, seconds: float) -> dict[str, Any]:
    """All figures of one crowd."""
    opened: list[float] = []
    looks: list[float] = []
    started: list[float] = []
    answers: Counter[str] = Counter()
    faults: list[str] = []

    def judge(visit: Visit) -> None:
        wrong = [text for text in visit.said if text.startswith("exception") or "did not expect" in text]
        faults.extend(wrong)
        refused = [text for text in visit.said if "waiting" in text or "queue is full" in text or "faster than" in text]
        answers["fault" if wrong else "refused" if refused else "accepted"] += 1

    async def one(number: int, visit: Visit) -> None:
        await asyncio.sleep(seconds * number / users / clicks)
        for click in range(clicks):
            began = time.monotonic()
            started.append(await visit.ask(seed=1000 + number * clicks + click))
            judge(visit)
            await asyncio.sleep(max(0.0, seconds / clicks - (time.monotonic() - began)))

    async with asyncio.TaskGroup() as group:
        visits: list[Visit] = []
        over = asyncio.Event()

        async def stay() -> None:
            async with visiting(port) as visit:
                opened.append(await visit.ask(page="distil"))
                visits.append(visit)
                await over.wait()

        await _first(port)  # the backend imports, the images are decoded
        for _ in range(users):
            group.create_task(stay())
            await asyncio.sleep(0.2)
        while len(visits) < users:
            await asyncio.sleep(0.1)
        began, used = time.monotonic(), _cpu(server)
        await asyncio.gather(*(one(number, visit) for number, visit in enumerate(visits)))
        clicking = (_cpu(server) - used) / (time.monotonic() - began)
        waiting = _queued()
        for visit in visits:  # what waits makes the strip tick
            visit.ticks.clear()
            await visit.ask(page="distil")
        first = answers.copy()
        began, used = time.monotonic(), _cpu(server)
        await asyncio.gather(*(look(visit, began + 20, looks) for visit in visits))
        idle = (_cpu(server) - used) / (time.monotonic() - began)
        memory = server.memory_info().rss / 2**20
        for _ in range(2):
            await asyncio.gather(*(visit.ask(seed=1000) for visit in visits))
        again = _queued()
        over.set()
    return {
        "users": users,
        "clicks": sum(first.values()),
        "accepted": first["accepted"],
        "refused": first["refused"],
        "faults": faults[:3],
        "waiting": len(waiting),
        "most_of_one": max(Counter(waiting.values()).values(), default=0),
        "waiting_after_the_same_click": len(again),
        "open_p95_s": _p95(opened),
        "click_p50_s": statistics.median(started),
        "click_p95_s": _p95(started),
        "looks": len(looks),
        "look_p95_s": _p95(looks),
        "cores_while_clicking": clicking,
        "cores_while_looking": idle,
        "memory_mb": memory,
    }


async def _first(port: int) -> None:
    async with visiting(port) as visit:
        await visit.ask(page="distil")
        assert visit.start, "the page has no button `Start training`"
        assert visit.seed, "the page has no Seed"


def _p95(values: list[float]) -> float:
    return sorted(values)[int(0.95 * (len(values) - 1))] if values else 0.0


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


_store = Path()


def _queued() -> dict[str, str]:
    """Runs that wait, and who queued them."""
    markers = _store.glob("runs/*/queued")
    return {marker.parent.name: json.loads(marker.read_text())["visitor"] for marker in markers}


def measure(users: int, clicks: int, seconds: float) -> dict[str, Any]:
    """Start a server, let the crowd in, stop the server; the figures."""
    global _store
    with tempfile.TemporaryDirectory() as place, socket.socket() as free:
        _store = Path(place) / "models"
        _store.mkdir()
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        command = [sys.executable, "-m", "streamlit", "run", str(ROOT / "app.py"), "--server.port", str(port)]
        with FileLock(_store / "worker-auto.lock"), (Path(place) / "log.txt").open("wb") as log:
            process = subprocess.Popen(
                [*command, "--server.headless", "true"],
                cwd=ROOT,
                stdout=log,
                stderr=log,
                env=os.environ | LIMITS | {"SMALLALIGN_STORE": str(_store)},
            )
            try:
                for _ in range(300):
                    with (
                        suppress(OSError),
                        urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=2),
                    ):
                        break
                    time.sleep(0.2)
                return asyncio.run(crowd(port, psutil.Process(process.pid), users, clicks, seconds))
            finally:
                process.terminate()
                process.wait(20)


def broken(found: dict[str, Any]) -> list[str]:
    """The promises that these figures break."""
    allowed = min(int(LIMITS["SMALLALIGN_WAITING_TOTAL"]), found["users"] * int(LIMITS["SMALLALIGN_WAITING_EACH"]))
    promises = {
        f"exactly {allowed} runs wait": found["waiting"] == allowed == found["accepted"],
        "nobody has more than their share": found["most_of_one"] <= int(LIMITS["SMALLALIGN_WAITING_EACH"]),
        "the same click starts nothing new": found["waiting_after_the_same_click"] == found["waiting"],
        "no errors": not found["faults"] and found["accepted"] + found["refused"] == found["clicks"],
        f"clicks below {MOST_SECONDS} s (p95)": found["click_p95_s"] < MOST_SECONDS,
        f"looks below {MOST_SECONDS} s (p95)": found["look_p95_s"] < MOST_SECONDS,
        f"below {MOST_CORES} core while looking": found["cores_while_looking"] < MOST_CORES,
        f"below {MOST_MB} MB": found["memory_mb"] < MOST_MB,
    }
    return [promise for promise, kept in promises.items() if not kept]


def main() -> int:
    """Measure, print, judge."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--users", type=int, default=50)
    options.add_argument("--clicks", type=int, default=10)
    options.add_argument("--seconds", type=float, default=60.0)
    chosen = options.parse_args()
    found = measure(min(chosen.users, 200), min(chosen.clicks, 50), min(chosen.seconds, 600.0))
    for name, value in found.items():
        print(f"{name:30} {value:.3f}" if isinstance(value, float) else f"{name:30} {value}")
    for promise in broken(found):
        print(f"BROKEN: {promise}")
    return 1 if broken(found) else 0


if __name__ == "__main__":
    sys.exit(main())
