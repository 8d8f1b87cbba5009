"""All that only a GPU can tell, in ten minutes: correctness first, then speed. One table and one JSON.

    python -m benchmarks.gpu [--device auto] [--seconds 600] [--only SECTION ...] [--to gpu.json]
    python -m benchmarks.gpu --device cpu                   # a rehearsal: tiny sizes, its figures mean nothing

Every section is a process of its own, with a share of the time that is left, its start included; it announces its rows,
reports each when it has it, and is stopped when its time is over. So the table has the same rows on every machine:
measured, passed, failed, skipped with the reason, or without time. `benchmarks/gpu.md` says what each section means and
how to run this without a package index.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

BEGUN = time.monotonic()
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from gpu_section import FAILED, NO_TIME, SKIPPED, WAITING, NoTime, Row, Section
from gpu_sections import SECTIONS

SHARES = {"machine": 4, "tests": 30, "peak": 5, "small": 19, "photos": 23, "augment": 7, "data": 6, "precision": 6}
"""Sections in their order, and their shares of the time."""
SECONDS = 600.0
LATE = 75
"""The exit code of a section that ended early because its time was over."""
SLACK = 0.02
"""The share of the time that is left for the start and the end of this process."""
GRACE = 3.0
"""Seconds that a section has to clean up when its time is over, out of its share."""


def run_section(name: str, device: str, seconds: float) -> list[Row]:
    """The rows of a section in a process of its own, also of one that failed or ran out of time."""
    until = time.time() + max(0.0, seconds - GRACE)
    command = [sys.executable, "-m", "benchmarks.gpu", "--section", name, "--device", device, "--until", str(until)]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=log, start_new_session=True)
        late = False
        try:
            process.wait(max(0.1, until + GRACE / 2 - time.time()))  # it ends by itself as soon as it looks at the time
        except subprocess.TimeoutExpired:
            late = True
            process.send_signal(signal.SIGINT)  # temporary folders are removed
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE / 2)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # loaders and tests that it started go with it
        process.wait()
        out.seek(0)
        log.seek(0)
        rows = latest(out)
        last = re.sub(r"\s+", " ", next((line for line in reversed(log.readlines()) if line.strip()), "").strip())
    late = late or process.returncode == LATE
    return closed(name, rows, seconds, late=late, wrong=None if late or not process.returncode else last[:300])


def latest(lines: Iterable[str]) -> list[Row]:
    """The rows in what a section wrote, each as it was reported last, in the order in which they were announced."""
    rows: dict[str, Row] = {}
    for line in lines:
        with contextlib.suppress(ValueError, TypeError):
            row = Row(**json.loads(line))
            rows[row.name] = row
    return list(rows.values())


def closed(name: str, rows: Sequence[Row], seconds: float, *, late: bool, wrong: str | None) -> list[Row]:
    """The rows of a section that has ended; `wrong`: the last line of one that failed."""
    why = f"the {seconds:.0f} s of the section were over"
    instead = (NO_TIME, why) if late else (FAILED, "not reached")
    found = [replace(row, value=instead[0], note=instead[1]) if row.value == WAITING else row for row in rows]
    found = [replace(row, note=why) if row.value == NO_TIME else row for row in found]
    if wrong is not None:
        return [*found, Row(name, "the section", FAILED, "", wrong)]
    if late and not found:
        return [Row(name, "the section", NO_TIME, "", f"{why} before it had begun")]
    return found


def table(rows: Sequence[Row]) -> str:
    """All rows as a Markdown table."""
    lines = ["| section | what | value | |", "|---|---|---:|---|"]
    for row in rows:
        value = f"{row.value:,.3g}" if isinstance(row.value, float) and abs(row.value) < 1000 else row.value
        value = f"{value:,.0f}" if isinstance(value, float) else "" if value is None else value
        note = re.sub(r"\s+", " ", row.note.replace("|", "/"))
        lines.append(f"| {row.section} | {row.name} | {value} {row.unit} | {note} |")
    return "\n".join(lines)


def summary(rows: Sequence[Row]) -> str:
    """How many rows have a figure, and how many have none and why."""
    kinds = Counter(row.value if row.value in (FAILED, NO_TIME, SKIPPED) else "measured or passed" for row in rows)
    return ", ".join(f"{kinds[kind]} {kind}" for kind in ("measured or passed", SKIPPED, NO_TIME, FAILED))


def main() -> int:
    """Run all sections and print; 1 if a test or a section failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="auto, cuda, cuda:1, mps, xpu; cpu is a rehearsal")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="in all, and never more; a rehearsal takes less")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--to", type=Path, help="a JSON file; it is rewritten after each section")
    parser.add_argument("--section", choices=list(SECTIONS), help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    from smallalign_core.errors import BadSpec
    from smallalign_core.system.machine import set_threads
    from smallalign_core.training.loop import pick_device

    try:
        device = pick_device(options.device)
    except BadSpec as error:
        parser.error(str(error))
    if options.section:
        if device.type == "cpu":
            set_threads()
        try:
            SECTIONS[options.section](Section(options.section, device, options.until))
        except NoTime:
            return LATE
        return 0
    rows: list[Row] = []
    whole, end = sum(SHARES[name] for name in options.only), BEGUN + (1 - SLACK) * options.seconds - 1
    for name in SHARES:
        if name not in options.only:
            continue
        share = SHARES[name] / whole  # of what is left: what a section did not need goes to the later ones
        print(f"{name} …", file=sys.stderr, flush=True)
        rows += run_section(name, options.device, (end - time.monotonic()) * share)
        whole -= SHARES[name]
        if options.to:
            options.to.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    print(table(rows))
    print(f"\n{summary(rows)}; {time.monotonic() - BEGUN:.0f} s.")
    return int(any(row.value == FAILED for row in rows))


if __name__ == "__main__":
    sys.exit(main())
