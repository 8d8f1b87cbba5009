"""What the sections of `benchmarks/gpu.py` share: rows, the time that is left, rates in turns, memory and busy time."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

WAITING, SKIPPED, FAILED, NO_TIME = "waiting", "skipped", "failed", "no time"
"""What stands in place of a figure that is not there; `WAITING` only until its section ends."""
BUSY_GOAL = 0.9
"""The share of the time in which a GPU should compute."""
NO_KERNELS = "torch's profiler shows kernels of CUDA only"
REHEARSED = 1.0
"""Seconds at most that a rehearsal measures one row at a time."""
ROUNDS = 3
"""How often ways that are compared take turns."""


@dataclass(frozen=True)
class Row:
    """One figure, or why there is none."""

    section: str
    name: str
    value: float | str | None = None
    unit: str = ""
    note: str = ""


class Missing(Exception):
    """A package, or something of the machine, is not there."""


class NoTime(Exception):
    """The time of the section is over."""


@dataclass
class Section:
    """A section while it is measured, in a process of its own.

    Attributes:
        until: by `time.time()`, when its process is stopped.
    """

    name: str
    device: Any
    until: float
    report: Callable[[str], object] = lambda line: print(line, flush=True)

    @property
    def tiny(self) -> bool:
        """Whether this is a rehearsal, with small sizes."""
        return self.device.type == "cpu"

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def put(self, name: str, value: float | str | None = None, unit: str = "", note: str = "") -> None:
        """Report a row to the process that collects them; a later row of the same name replaces it."""
        self.report(json.dumps(asdict(Row(self.name, name, value, unit, note))))

    def expect(self, *names: str) -> None:
        """Announce rows, so that one that is never reached is in the table too."""
        for name in names:
            if "GPU busy" in name and not self.cuda:
                self.put(name, SKIPPED, note=NO_KERNELS)
            else:
                self.put(name, WAITING)

    def left(self, parts: int = 1) -> float:
        """Seconds for each of so many equal parts of what is still to come."""
        return max(0.0, self.until - time.time()) / max(1, parts)

    def span(self, seconds: float) -> float:
        """How long to measure one row where there is so much time."""
        return min(seconds, REHEARSED) if self.tiny else seconds

    def need_time(self) -> None:
        """Begin nothing that could not end.

        Raises:
            NoTime: the time of the section is over.
        """
        if self.left() <= 0:
            raise NoTime

    @contextlib.contextmanager
    def trying(self, name: str) -> Iterator[None]:
        """Measure one row: what goes wrong is written into it, and the next one is tried."""
        try:
            yield
        except Missing as error:
            self.put(name, SKIPPED, note=str(error))
        except NoTime:
            self.put(name, NO_TIME)
        except Exception as error:  # noqa: BLE001  # as it says
            self.put(name, FAILED, note=f"{type(error).__name__}: {error}"[:300])

    # --- measuring ----------------------------------------------------------------------------------------------------

    def wait(self) -> None:
        """Until the device has done its work."""
        import torch

        if self.device.type != "cpu":
            getattr(torch, self.device.type).synchronize()

    def lap(self, work: Callable[[], object], seconds: float) -> float:
        """Seconds of one call: the least over several of a few calls each, after two."""
        self.need_time()
        for _ in range(2):
            work()
        self.wait()
        best, begun, calls = float("inf"), time.perf_counter(), 1 if self.tiny else 10
        seconds = self.span(seconds)
        while best == float("inf") or time.perf_counter() - begun < seconds:
            start = time.perf_counter()
            for _ in range(calls):
                work()
            self.wait()
            best = min(best, (time.perf_counter() - start) / calls)
        return best

    def compute(self, *, deterministic: bool) -> None:
        """Let the device compute as our runs do, or as torch does by default."""
        import torch

        from smallalign_core.system.device import begin

        begin(self.device)
        if self.cuda:
            torch.cuda.init()
        if self.device.type in ("cuda", "xpu"):
            torch.use_deterministic_algorithms(deterministic, warn_only=True)
            torch.backends.cudnn.deterministic = deterministic

    def in_turns(self, lanes: dict[str, Lane], until: float) -> None:
        """Measure the images per second of several ways in turns, until a `time.time()`; failed ones are put."""
        for name, lane in list(lanes.items()):
            with self.trying(name):
                lane.start(self)
            if lane.steps is None:
                del lanes[name]
        for turn in range(ROUNDS):
            for number, (name, lane) in enumerate(list(lanes.items())):
                if turn and time.time() > min(until, self.until):
                    return
                ahead = (ROUNDS - turn) * len(lanes) - number
                before = len(lane.rates)
                with self.trying(name):
                    lane.turn(self, max(0.0, until - time.time()) / ahead)
                if len(lane.rates) == before:
                    del lanes[name]

    def busy(self, begin: Callable[[], Iterator[int]], number: int = 20) -> float:
        """The share of the time in which the GPU computes in steps: the union of its kernels over their span.

        Raises:
            Missing: it is not CUDA, or the profiler sees no kernels.
        """
        if not self.cuda:
            raise Missing(NO_KERNELS)
        from torch.profiler import ProfilerActivity, profile

        self.need_time()
        self.compute(deterministic=True)
        steps = begin()
        for count in (5, number):  # the first time, the profiler itself is loaded
            with profile(activities=[ProfilerActivity.CUDA]) as seen:
                for _ in range(count):
                    next(steps)
                self.wait()
        spans = sorted(
            (one.time_range.start, one.time_range.end)
            for one in seen.events()
            if str(one.device_type).endswith("CUDA") and not getattr(one, "is_user_annotation", False)
        )
        if not spans:
            raise Missing("torch's profiler recorded no kernel: CUPTI may not be permitted here")
        found, end = 0.0, float("-inf")
        for start, stop in spans:
            found += max(0.0, stop - max(start, end))
            end = max(end, stop)
        return found / (end - spans[0][0])


@dataclass
class Lane:
    """One of several ways that are measured in turns.

    Attributes:
        begin: gives a generator of steps, each the number of its images.
        deterministic: whether the device computes as in our runs.
        ahead: batches that loaders may have ready when its turn comes; they are not counted.
        memory: GB that it takes on a GPU at most.
    """

    begin: Callable[[], Iterator[int]]
    deterministic: bool = True
    ahead: int = 0
    steps: Iterator[int] | None = None
    rates: list[float] = field(default_factory=list)
    images: int = 0
    seconds: float = 0.0
    memory: float | None = None

    @property
    def rate(self) -> float:
        """Images per second over all turns."""
        return self.images / self.seconds

    def start(self, here: Section) -> None:
        """Build it and take a few steps."""
        import torch

        here.need_time()
        here.compute(deterministic=self.deterministic)
        before = 0
        if here.cuda:
            torch.cuda.reset_peak_memory_stats(here.device)
            before = torch.cuda.memory_allocated(here.device)
        steps = self.begin()
        for _ in range(1 if here.tiny else 5):
            next(steps)
        here.wait()
        if here.cuda:
            self.memory = (torch.cuda.max_memory_allocated(here.device) - before) / 1e9
        self.steps = steps

    def turn(self, here: Section, seconds: float) -> None:
        """Count its images for so long, at least one step."""
        assert self.steps is not None
        here.need_time()
        here.compute(deterministic=self.deterministic)
        for _ in range(self.ahead + 1):
            next(self.steps)
        here.wait()
        begun, images, seconds = time.perf_counter(), 0, here.span(seconds)
        while not images or time.perf_counter() - begun < seconds:
            images += next(self.steps)
        here.wait()
        taken = time.perf_counter() - begun
        self.images, self.seconds = self.images + images, self.seconds + taken
        self.rates.append(images / taken)

    def close(self) -> None:
        """Free what its generator holds."""
        close = getattr(self.steps, "close", None)
        if close is not None:
            close()
        self.steps = None

    @property
    def notes(self) -> list[str]:
        """How far its turns differ, and its memory."""
        lone = len(self.rates) == 1
        found = ["1 turn" if lone else f"{len(self.rates)} turns of {min(self.rates):,.0f} to {max(self.rates):,.0f}"]
        return found + ([f"{self.memory:.2f} GB"] if self.memory is not None else [])


# --- the work ---------------------------------------------------------------------------------------------------------


def goal(here: Section, met: bool, text: str) -> str:
    """Whether a goal was met; a rehearsal has none."""
    return f"goal: {text}" if here.tiny else f"goal: {text}: {'met' if met else 'missed'}"


def pictures(count: int, side: int, classes: int = 10) -> Any:
    """Random colour images of one size, as splits."""
    import numpy as np

    from smallalign_core.data import ImageSet, Splits

    rng = np.random.default_rng(0)

    def some(number: int) -> ImageSet:
        pixels = rng.integers(0, 256, (number, 3, side, side), np.uint8)
        labels, ids = rng.integers(0, classes, number), np.arange(number).astype(np.uint64)
        return ImageSet(pixels, labels, ids, tuple(f"class {one}" for one in range(classes)))

    return Splits(some(count), some(64), some(64))


def spec_of(student: Any, batch: int, **fields: Any) -> Any:
    """The work as a spec: that of `ways.py`, at another batch."""
    from ways import Pair, our_spec

    return our_spec(Pair(None, student), data="-", batch=batch, **fields)


def forever(training: Any) -> Iterator[int]:
    """Its steps."""
    while True:
        training.advance()
        yield training.views.batch


def kinds(here: Section) -> Sequence[str]:
    """The kinds of matrix products."""
    return ("fp32", "bf16", "tf32") if here.cuda else ("fp32", "bf16")


def product(here: Section, name: str, seconds: float) -> float:
    """TFLOP/s of a matrix product."""
    import torch

    side, kind = (256 if here.tiny else 8192), torch.bfloat16 if name == "bf16" else torch.float32
    torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
    try:
        a, b = (torch.randn(side, side, device=here.device, dtype=kind) for _ in range(2))
        return 2 * side**3 / here.lap(lambda: a @ b, seconds) / 1e12
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
