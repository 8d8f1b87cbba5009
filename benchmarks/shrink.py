"""What does the budget search find, beside simpler ways with the same budget?

    python benchmarks/shrink.py fashion-mnist --teacher RUN --limit "97% of teacher" [--minutes 30] [--repeats 3]
    python benchmarks/shrink.py FOLDER --limit 0.95 --minutes 20 --repeats 1 --ways search
    python benchmarks/shrink.py fashion-mnist --teacher RUN --limit "95% of teacher" --minutes 5 \\
        --set data.images=4000 --set 'rungs=[1,3,9]'                                                    # 45 minutes
    python benchmarks/shrink.py digits --teacher digits-teacher --limit 0.8 --trials 2 --repeats 1     # a minute or two

Three ways to the smallest file of enough accuracy, each with the same budget of time (or, with --trials, of trained
networks) and the same images, teacher and space of networks:

    search    `smallalign shrink`
    random    networks drawn at random, trained on labels without augmentation
    ladder    the cnn of the catalogue at its default depth, one width after the other from the largest, distilled

`random` and `ladder` train each network once, for as many epochs as the search gives to one that reaches its last rung.
They stop before a network that would exceed the budget, as predicted from those before it. All three choose on the
validation images by the same rule: exact intervals, corrected for the number of files compared; fp32, fp16 and int8.
Where a way finds no file that meets the limit it has none, and says how near it came. Each repetition has a seed of its
own. Printed are the bytes of each way and repetition, and with two repetitions or more the ratio of bytes to the
search's with its 95% interval (paired t, of logarithms); the last line is the same as JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from smallalign_core import search
from smallalign_core.errors import SmallAlignError
from smallalign_core.runs.store import Store
from smallalign_core.search import _plan, _steps
from smallalign_core.search._decide import Decision
from smallalign_core.search._journal import Look, Record, note, read
from smallalign_core.search._lab import Lab
from smallalign_core.search._space import SIZES, Candidate, chain
from smallalign_core.search._spec import SearchSpec, base_of
from smallalign_core.service import worker
from smallalign_core.spec import set_field
from smallalign_core.studies import lifecycle
from smallalign_core.studies.resolve import resolve_study
from smallalign_core.studies.statistics import paired
from smallalign_core.system.machine import processor

WAYS = ("search", "random", "ladder")


def drawn(spec: SearchSpec, record: Record, seed: int) -> Iterator[Candidate]:
    """Networks at random, labels only."""
    rng, space, known = random.Random(seed), _plan.space_of(spec, record), set[Candidate]()
    while True:
        family = rng.choice(spec.families)
        widths, depths = SIZES[family]
        one = Candidate(family, rng.choice(widths), rng.choice(depths), rng.choice(space.scales))
        if one not in known:
            known.add(one)
            yield one


def ladder(record: Record) -> Iterator[Candidate]:
    """The default CNN from wide to narrow."""
    for width in reversed(SIZES["cnn"][0]):
        yield Candidate("cnn", width, 3, taught=record.taught is not None)


def plain(way: str, spec: SearchSpec, store: Store, folder: Path) -> dict[str, Any]:
    """`random` or `ladder`: each network trained once, every file judged as the search judges its own."""
    lab = Lab(store, base_of(spec), "auto")
    record = read(folder, spec.budget)  # of a search whose teacher is settled, and nothing else
    decision = Decision(spec, store, folder, record, lab)
    looks: list[Look] = []
    began, factor = time.monotonic(), 1.5
    for number, one in enumerate(drawn(spec, record, spec.seed) if way == "random" else ladder(record), 1):
        (run,) = chain(base_of(spec), one, (sum(spec.rungs),), spec.side, record.taught, spec.seed)
        measured = lab.measure(run, spec.precisions, spec.max_bytes)
        steps, spent = decision.steps_of(measured, run.epochs), time.monotonic() - began
        if spec.budget.trials is not None and number > spec.budget.trials:
            break
        if spec.budget.seconds is not None and spent + factor * steps > spec.budget.seconds:
            break
        made, since = store.create(run), time.monotonic()
        worker.execute(made, store)
        factor = (time.monotonic() - since) / steps
        for name in sorted(measured.ms, key=lambda name: measured.bytes[name] or 0):
            counts = decision._counts(lab.right(made, name))  # type: ignore[arg-type]
            looks.append(Look(number, name, made.id, measured.bytes[name] or 0, measured.ms[name], counts))  # type: ignore[arg-type]
            if counts.accuracy >= (_plan.target(spec, record) or 0.0):
                break
    best = _plan.best_look(spec, looks)
    near = best or _plan.nearest_look(spec, looks)
    return _found(way, best is not None, near, len(looks), time.monotonic() - began)


def searched(spec: SearchSpec, store: Store) -> dict[str, Any]:
    """`search`, as the command does it."""
    began = time.monotonic()
    study = lifecycle.create(store, search.KIND, spec)
    lifecycle.run_to_end(study, store)
    report = search.report(study.spec, store, study.folder)
    best = _plan.best_look(spec, read(study.folder, spec.budget).looks)
    near = best or _plan.nearest_look(spec, read(study.folder, spec.budget).looks)
    found = _found("search", bool(report.met), near, report.looks, time.monotonic() - began)
    return found | {"words": report.words(), "test": report.test, "spent": report.spent}


def _found(way: str, met: bool, look: Look | None, looks: int, seconds: float) -> dict[str, Any]:
    return {
        "way": way,
        "met": met,
        "bytes": look and look.bytes,
        "precision": look and look.precision,
        "accuracy": look and look.counts.accuracy,
        "teacher": look and look.counts.teacher_accuracy,
        "validation": look and look.counts.images,
        "looks": looks,
        "seconds": round(seconds, 1),
    }


def settled(spec: SearchSpec, store: Store) -> Path:
    """The folder of a search whose teacher is chosen, for the ways that need no more of it."""
    other = spec.model_copy(update={"seed": spec.seed + 500_000})
    folder = lifecycle.create(store, search.KIND, other).folder
    while read(folder, spec.budget).ready is None:
        if not _steps.take(other, store, folder, "auto"):
            raise SystemExit("name a finished teacher: a new one would be part of the search's budget only")
    note(folder, read(folder, spec.budget), "stop", why="a benchmark")
    return folder


def main() -> None:
    """Run all ways and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--teacher")
    parser.add_argument("--limit", required=True, help='accuracy: 0.95 or "97%% of teacher"')
    parser.add_argument("--max-kb", type=float)
    parser.add_argument("--set", action="append", default=[], help="a field of the search, such as data.images=4000")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--trials", type=int)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--store", type=Path, help="with a teacher; default: a new one")
    given = parser.parse_args()
    worker.set_threads()
    store = Store(given.store or tempfile.mkdtemp(prefix="shrink-"))
    budget = {"trials": given.trials} if given.trials else {"seconds": 60 * given.minutes}
    written: dict[str, Any] = {
        "data": {"source": given.data},
        "teacher": given.teacher,
        "max_kb": given.max_kb,
        "budget": budget,
    }
    for override in given.set:
        written = set_field(written, override)
    rows = []
    for seed in range(given.repeats):
        study = search.parse_study(written | search.parse_accuracy(given.limit) | {"seed": 100_000 * seed})
        spec = resolve_study(store, search.KIND, study)
        for way in given.ways:
            row = searched(spec, store) if way == "search" else plain(way, spec, store, settled(spec, store))
            rows.append(row | {"seed": seed})
            size = "-" if row["bytes"] is None else f"{row['bytes']:,} B {row['precision']}, {row['accuracy']:.2%}"
            state = "meets" if row["met"] else "does not meet"
            print(f"{way:8} seed {seed}: {state} {given.limit}: {size}; {row['looks']} files, {row['seconds']:.0f} s")
    ratios = {}
    for way in given.ways:
        pairs = [
            (own["bytes"], other["bytes"])
            for own in rows
            for other in rows
            if own["way"] == "search" and other["way"] == way != "search"
            if own["seed"] == other["seed"] and own["met"] and other["met"]
        ]
        if len(pairs) > 1:
            mean = paired([math.log(other / own) for own, other in pairs])
            ratios[way] = [math.exp(each) for each in (mean.mean, mean.low, mean.high)]
            print(f"{way}: {ratios[way][0]:.2f} times the bytes ({ratios[way][1]:.2f} to {ratios[way][2]:.2f})")
    print(json.dumps({"rows": rows, "ratios": ratios, "processor": processor(), "limit": given.limit}))


if __name__ == "__main__":
    try:
        main()
    except SmallAlignError as error:
        raise SystemExit(str(error)) from None
