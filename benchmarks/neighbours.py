"""Does one user hold up another? The slowest inputs of one, and how long the questions of another take meanwhile.

    python benchmarks/neighbours.py [--rounds 10]

One user asks for a folder of JPEGs with endless scans, a zip of the same and a folder with a named pipe, again and
again, each from two windows. Another asks for pictures and for what is in a dataset, first alone and then beside that.
The delay is the longest answer beside the other user less the median alone. Exit code 1 above `MOST_SECONDS`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
import zipfile
from io import BytesIO
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")

from PIL import Image

from smallalign_core.errors import SmallAlignError
from smallalign_core.runs.store import Store
from smallalign_core.service.client import BackendClient
from smallalign_core.service.requests import AugmentImages, Inspect
from smallalign_core.service.users import User
from smallalign_core.spec import parse_data, parse_policy

MOST_SECONDS = 2.0
_thread = threading.local()


def endless(scans: int = 3_000, side: int = 4_096) -> bytes:
    """A progressive JPEG of some kB a thousand scans, each of which is decoded anew."""
    made = BytesIO()
    Image.new("L", (side, side), 99).save(made, "JPEG", progressive=True)
    content = made.getvalue()
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * scans + b"\xff\xd9"


def slow_inputs(place: Path) -> list[str]:
    """A folder and a zip of endless images, and a folder with a pipe."""
    content = endless()
    for number in range(10):
        for name in ("images", "pipes"):
            file = place / name / "ab"[number % 2] / f"{number}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content if name == "images" else b"")
    os.mkfifo(place / "pipes" / "a" / "pipe.png")
    with zipfile.ZipFile(place / "images.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted((place / "images").rglob("*.jpg")):
            archive.write(file, file.relative_to(place / "images"))
    return [str(place / name) for name in ("images", "images.zip", "pipes")]


def measure(rounds: int) -> dict[str, float]:
    """Seconds: medians and longest answers, alone and beside."""
    with tempfile.TemporaryDirectory() as place:
        backend = BackendClient(Store(Path(place) / "models"), lambda: User(getattr(_thread, "name", "ada")))
        try:
            inputs, over = slow_inputs(Path(place)), threading.Event()

            def bother(window: int) -> None:
                _thread.name = "eve"
                turn = window
                while not over.is_set():
                    try:
                        backend.call(Inspect(parse_data(inputs[turn % len(inputs)])))
                    except SmallAlignError:
                        turn += 1

            def look(seed: int) -> float:
                began = time.perf_counter()
                backend.call(AugmentImages(parse_policy(["flip"]), parse_data("digits"), seed=seed))
                backend.call(Inspect(parse_data("digits")))
                return time.perf_counter() - began

            for seed in range(3):  # libraries are imported, images decoded
                look(seed)
            time.sleep(20)
            alone = [look(100 + seed) for seed in range(rounds)]
            windows = [threading.Thread(target=bother, args=(window,), daemon=True) for window in range(2)]
            for window in windows:
                window.start()
            beside = []
            for seed in range(rounds):
                beside.append(look(200 + seed))
                time.sleep(1)
            over.set()
        finally:
            backend.close()
    return {
        "alone_median_s": statistics.median(alone),
        "alone_longest_s": max(alone),
        "beside_median_s": statistics.median(beside),
        "beside_longest_s": max(beside),
        "delay_s": max(beside) - statistics.median(alone),
    }


def main() -> int:
    """Measure, print, compare with the promise."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=10)
    found = measure(max(1, options.parse_args().rounds))
    for name, value in found.items():
        print(f"{name:20} {value:.3f}")
    return 1 if found["delay_s"] > MOST_SECONDS else 0


if __name__ == "__main__":
    sys.exit(main())
