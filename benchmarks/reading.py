"""How long until the first training step on a folder of photographs, and until it the second time?

    python benchmarks/reading.py [--images 10000] [--width 500 --height 375] [--to FOLDER]

Makes JPEGs (smooth patterns with noise, quality 90; not measured), then, on a part of them and in turns: decoding by
one process, by as many as there are cores, and a plain loop of PIL (decode, `ImageOps.fit` to the same size) in a pool
of as many processes, which neither hashes nor stores, and has no sandbox. The minimum over the rounds counts. Then the
whole folder in a fresh process: seconds and processor seconds (with those of decoders) until its images are there and
until the first optimizer step of a student at 224 pixels in batches of 32, and the most resident memory at both, mapped
pages included; and the same a second time.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

SIDE = 224
STUDENT = {"kind": "timm", "name": "mobilenetv3_small_050", "size": SIDE}


def make(folder: Path, count: int, width: int, height: int) -> None:
    """JPEGs of ten classes; all are different."""
    from PIL import Image

    random = np.random.default_rng(0)
    coarse = [random.integers(0, 256, (12, 16, 3), np.uint8) for _ in range(10)]
    base = [np.asarray(Image.fromarray(one).resize((width, height)), np.int16) for one in coarse]
    for number in range(count):
        file = folder / f"class{number % 10}" / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        noise = random.integers(-30, 30, (-(-height // 4), -(-width // 4), 3)).repeat(4, 0).repeat(4, 1)
        pixels = base[number % 10] + noise[:height, :width]
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, quality=90)


def plain(file: Path) -> int:
    """One photograph by PIL alone."""
    from PIL import Image, ImageOps

    with Image.open(file) as picture:
        return int(np.asarray(ImageOps.fit(picture.convert("RGB"), (SIDE, SIDE), Image.Resampling.BILINEAR)).size)


def seconds(work: Callable[[], object]) -> float:
    """On the clock."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_turns(files: list[Path], rounds: int) -> dict[str, float]:
    """Images a second, each way."""
    from smallalign_core.data import _guarded, _pixels

    cores = _guarded.cores()
    arguments = [[file, True, (SIDE, SIDE), None, False] for file in files]

    def ours(most: int) -> None:
        _guarded.MOST = most
        for made in _guarded.each(_pixels.outcome_of, arguments):
            made.get()

    with multiprocessing.get_context("spawn").Pool(cores) as pool:
        ways: dict[str, Callable[[], object]] = {
            "one process": lambda: ours(1),
            f"{cores} processes": lambda: ours(cores),
            f"plain PIL, pool of {cores}": lambda: pool.map(plain, files, 16),
        }
        best = dict.fromkeys(ways, float("inf"))
        for _ in range(rounds + 1):  # the first starts processes
            for name, work in ways.items():
                best[name] = min(best[name], seconds(work))
    return {name: len(files) / found for name, found in best.items()}


def first_step(folder: Path, store: Path) -> dict[str, float]:
    """To the first optimizer step, in this process."""
    start = time.perf_counter()
    import smallalign_core as sa
    from smallalign_core.data import _guarded
    from smallalign_core.system.machine import peak_memory, set_threads

    set_threads()
    from smallalign_core.spec import parse
    from smallalign_core.training.loop import Training

    def noted(what: str) -> dict[str, float]:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        cost = time.process_time() + children.ru_utime + children.ru_stime
        return {
            f"{what} after s": time.perf_counter() - start,
            f"{what} processor s": cost,
            f"{what} MB": (peak_memory() or 0) / 1e6,
        }

    splits = sa.load(str(folder), store=store)
    for process in _guarded._free:  # its time counts when it has ended
        process.end()
    found = noted("read")
    training = Training([parse({"data": str(folder), "network": STUDENT, "batch": 32, "precision": "fp32"})], splits)
    events = iter(training)
    while not training.step:
        next(events)
    return found | noted("first step")


def main() -> None:
    """Both measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=500)
    parser.add_argument("--height", type=int, default=375)
    parser.add_argument("--part", type=int, default=2000, help="images that take turns")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--to", type=Path)
    parser.add_argument("--step", nargs=2, type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        print(json.dumps(first_step(*given.step)))
        return
    with tempfile.TemporaryDirectory(dir=given.to) as place:
        folder = Path(place) / "photos"
        make(folder, given.images, given.width, given.height)
        found = in_turns(sorted(folder.rglob("*.jpg"))[: given.part], given.rounds)
        slowest = min(found.values())
        for name, speed in found.items():
            print(f"{name}: {speed:.0f} images/s, {speed / slowest:.2f} times")
        for what in ("first start", "second start"):
            command = [sys.executable, __file__, "--step", str(folder), str(Path(place) / "store")]
            answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print(f"{what}: " + ", ".join(f"{name} {value:,.1f}" for name, value in answer.items()), flush=True)


if __name__ == "__main__":
    main()
