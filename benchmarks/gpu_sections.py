"""The sections of `benchmarks/gpu.py`: each is a function that measures, and reports each figure when it has it."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from gpu_race import photos, small
from gpu_section import (
    BUSY_GOAL,
    FAILED,
    NO_TIME,
    SKIPPED,
    Lane,
    Missing,
    Section,
    forever,
    goal,
    kinds,
    pictures,
    product,
    spec_of,
)

PACKAGES = ("torchvision", "timm", "pytorch_optimizer", "evotorch", "onnx", "onnxruntime", "onnxscript", "kornia")
PACKAGES += ("torchdistill", "pillow_heif", "pytest", "hypothesis", "triton")


# --- what it is -------------------------------------------------------------------------------------------------------


def machine(here: Section) -> None:
    """What it is, and what is installed."""
    import torch

    from smallalign_core.system import machine as this

    here.put("device", this.device_name(here.device))
    here.put("processor", f"{this.processor()}, {os.cpu_count()} cores")
    here.put("python", platform.python_version())
    here.put("torch", torch.__version__)
    if here.cuda:
        here.put("memory", torch.cuda.get_device_properties(here.device).total_memory / 1e9, "GB")
    commit = ""
    with contextlib.suppress(OSError):
        line = ["git", "rev-parse", "--short", "HEAD"]
        commit = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    here.put("commit", commit or "unknown")
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    missing += [] if any(map(shutil.which, ("cc", "gcc", "clang"))) else ["a C compiler"]
    here.put("not installed", ", ".join(missing) or "nothing")


# --- tests ------------------------------------------------------------------------------------------------------------


class Reporter:
    """A plugin of pytest: the tests of one device, those that take longest last, each a row; none after the time."""

    def __init__(self, here: Section) -> None:
        self._here, self.failed = here, False

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Choose and sort."""
        kind, cuda = self._here.device.type, self._here.cuda
        found = []
        for item in items:
            params = item.callspec.params if hasattr(item, "callspec") else {}
            if params.get("device", "cuda") == kind or (cuda and "device" not in params):
                found.append(item)
        slow = [one for one in found if one.get_closest_marker("slow")]
        items[:] = [one for one in found if one not in slow] + ([] if self._here.tiny else slow)
        self._here.expect(*(one.name for one in items))
        for one in slow if self._here.tiny else []:
            self._here.put(
                one.name, SKIPPED, note="slow: not in a rehearsal; `pytest -m slow tests/test_gpu.py` runs it"
            )

    def pytest_runtest_protocol(self, item: Any) -> bool | None:
        """Run it, unless there is no time."""
        if self._here.left() > 0:
            return None
        self._here.put(item.name, NO_TIME)
        return True

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Report how it ended."""
        name = report.nodeid.rpartition("::")[2]
        if report.failed:
            self.failed = True
            crash = getattr(report.longrepr, "reprcrash", None)
            self._here.put(name, FAILED, note=str(crash.message if crash else report.longrepr)[:300])
        elif report.skipped:
            self._here.put(name, SKIPPED, note=str(report.longrepr[2]).removeprefix("Skipped: ")[:200])
        elif report.when == "call":
            self._here.put(name, "passed", note=f"{report.duration:.1f} s")


def tests(here: Section) -> None:
    """tests/test_gpu.py on the device."""
    lacking = [name for name in ("pytest", "hypothesis") if importlib.util.find_spec(name) is None]
    if lacking:
        here.put("all tests", SKIPPED, note=f"{' and '.join(lacking)}: not installed")
        return
    import pytest

    rows = os.fdopen(os.dup(1), "w", buffering=1)  # standard output is pytest's from here, and goes to the log
    os.dup2(2, 1)
    here.report = lambda line: print(line, file=rows, flush=True)
    given = ["-o", "addopts=", "-W", "default", "-p", "no:cacheprovider", "-q", str(ROOT / "tests" / "test_gpu.py")]
    reporter = Reporter(here)
    code = pytest.main(given, plugins=[reporter])
    if code != pytest.ExitCode.OK and not (code == pytest.ExitCode.TESTS_FAILED and reporter.failed):
        here.put("pytest", FAILED, note=f"it ended with {code!r}")


# --- the card ---------------------------------------------------------------------------------------------------------


def peak(here: Section) -> None:
    """Matrix products and copies: what the card can do."""
    import torch

    products = list(kinds(here))
    copies = ("memory, read and written", "copies from page-locked memory")
    here.expect(*products, *copies)
    for number, name in enumerate(products):
        with here.trying(name):
            here.put(name, product(here, name, here.left(2 * (5 - number))), "TFLOP/s")
    size = 2**24 if here.tiny else 2**28
    one = torch.empty(size, dtype=torch.uint8, device=here.device)
    other, host = torch.empty_like(one), torch.empty(size, dtype=torch.uint8, pin_memory=here.cuda)
    with here.trying(copies[0]):
        here.put(copies[0], 2 * size / here.lap(lambda: other.copy_(one), here.left(4)) / 1e9, "GB/s")
    with here.trying(copies[1]):
        if not here.cuda:
            raise Missing("only for CUDA")
        taken = here.lap(lambda: one.copy_(host, non_blocking=True), here.left(4))
        here.put(copies[1], size / taken / 1e9, "GB/s")


# --- parts ------------------------------------------------------------------------------------------------------------


def augmentation(here: Section) -> None:
    """The same policy on the device: ours, torchvision v2's, kornia's."""
    names = ["ours, each image its own", "torchvision v2, one for the batch", "torchvision v2, each image its own"]
    names += ["kornia, each image its own"]
    here.expect(*names)
    import torch
    from torchvision.transforms import v2

    from smallalign_core.augment import Views

    side, batch = (16, 32) if here.tiny else (224, 128)
    splits = pictures(4 * batch, side)
    policy = spec_of("cnn", batch).augment
    views, step = Views(splits.train, policy, batch=batch, seed=0, device=here.device), iter(range(10**9))
    images = torch.from_numpy(splits.train.images[:batch]).to(here.device)
    chosen = v2.Compose([v2.RandomCrop(side, padding=2), v2.RandomHorizontalFlip(), v2.RandomRotation(10)])

    def kornia() -> Callable[[], object]:
        if importlib.util.find_spec("kornia") is None:
            raise Missing("kornia is not installed")
        from kornia import augmentation as parts

        flow = parts.AugmentationSequential(
            parts.RandomCrop((side, side), padding=2, p=1.0),
            parts.RandomHorizontalFlip(),
            parts.RandomRotation(10.0, p=1.0),
        )
        scaled = images.float() / 255
        return lambda: flow(scaled)

    ways: list[Callable[[], Callable[[], object]]] = [
        lambda: lambda: views(next(step)),
        lambda: lambda: chosen(images),
        lambda: lambda: torch.stack([chosen(one) for one in images]),
        kornia,
    ]
    for number, (name, make) in enumerate(zip(names, ways, strict=True)):
        with here.trying(name):
            here.put(name, batch / here.lap(make(), here.left(2 * (len(ways) - number))), "images/s")


class Timed:
    """Views that count the seconds in which they are made, with the device waiting; or that give one batch for ever."""

    def __init__(self, here: Section, views: Any, same: Any = None) -> None:
        self._here, self._views, self._same, self.seconds = here, views, same, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._views, name)

    def __call__(self, step: int) -> Any:
        if self._same is not None:
            return self._same
        self._here.wait()
        begun = time.perf_counter()
        found = self._views(step)
        self._here.wait()
        self.seconds += time.perf_counter() - begun
        return found


def data_path(here: Section) -> None:
    """Does a step wait for its images? Images on the device, in the host's memory, and one batch that never changes."""
    from smallalign_core.system import device
    from smallalign_core.training.loop import Training

    places = {"images on the device": device.room, "images in the host's memory": lambda _: 0}
    same, making = "the same batch at each step", "share of a step that does not make images, one after the other"
    here.expect(*places, same, *(f"{making}, {one}" for one in places), *(f"GPU busy, {one}" for one in places))
    side, batch, count = (16, 32, 256) if here.tiny else (224, 128, 4_096)
    splits, student = pictures(count, side), {"kind": "cnn", "width": 4 if here.tiny else 32}
    spec = spec_of(student, batch, teacher=None, loss="cross_entropy")

    def training(place: Any) -> Any:
        usual = device.room
        device.room = place
        try:
            return Training([spec], splits, device=here.device)
        finally:
            device.room = usual

    def fixed() -> Iterator[int]:
        made = training(device.room)
        made.views = Timed(here, made.views, made.views(0))
        return forever(made)

    lanes = {name: Lane(lambda place=place: forever(training(place))) for name, place in places.items()}
    lanes[same] = Lane(fixed)
    here.in_turns(lanes, time.time() + here.left() / 2)
    for name, lane in lanes.items():
        here.put(name, lane.rate, "images/s", ", ".join(lane.notes))
    for name, place in places.items():
        row = f"{making}, {name}"
        with here.trying(row):
            here.need_time()
            made = training(place)
            for _ in range(2):
                made.advance()
            made.views = timed = Timed(here, made.views)
            here.wait()
            begun, ends = time.perf_counter(), time.time() + here.span(here.left(6))
            steps = 0
            while not steps or time.time() < ends:
                made.advance()
                steps += 1
            here.wait()
            here.put(row, 1 - timed.seconds / (time.perf_counter() - begun), "", f"{steps} steps")
    for name, place in places.items():
        row = f"GPU busy, {name}"
        with here.trying(row):
            share = here.busy(lambda place=place: forever(training(place)))  # type: ignore[misc]
            here.put(row, share, "", goal(here, share > BUSY_GOAL, f"above {BUSY_GOAL:.0%}"))


def precision(here: Section) -> None:
    """What `precision: auto` chooses, both precisions, and what deterministic algorithms cost."""
    from smallalign_core.runs.store import Store
    from smallalign_core.training import precision_tuning
    from smallalign_core.training.loop import Training

    lanes = {
        name: ("bf16" if "bf16" in name else "fp32", "not" not in name)
        for name in ("fp32", "bf16", "bf16, not deterministic")
    }
    here.expect("auto chooses", *lanes)
    side, batch = (16, 32) if here.tiny else (64, 256)
    splits, student = pictures(8 * batch, side), {"kind": "resnet", "width": 4 if here.tiny else 32}
    fields: dict[str, Any] = {"teacher": None, "loss": "cross_entropy"}
    with here.trying("auto chooses"), tempfile.TemporaryDirectory() as folder:
        here.need_time()
        auto = spec_of(student, batch, **fields | {"precision": "auto"})
        here.put("auto chooses", precision_tuning.precision(auto, Store(Path(folder)), splits, here.device))
    if not here.cuda:
        here.put("bf16, not deterministic", SKIPPED, note="only CUDA has a choice")
        del lanes["bf16, not deterministic"]

    def begin(kind: str) -> Iterator[int]:
        return forever(Training([spec_of(student, batch, **fields | {"precision": kind})], splits, device=here.device))

    made = {name: Lane(lambda kind=kind: begin(kind), deterministic=fixed) for name, (kind, fixed) in lanes.items()}
    here.in_turns(made, time.time() + 0.9 * here.left())
    for name, lane in made.items():
        here.put(name, lane.rate, "images/s", ", ".join(lane.notes))


SECTIONS: dict[str, Callable[[Section], None]] = {
    "machine": machine,
    "tests": tests,
    "peak": peak,
    "small": small,
    "photos": photos,
    "augment": augmentation,
    "data": data_path,
    "precision": precision,
}
