"""The report of a scaling study, read from the store: nothing is trained, nothing is queued, no torch.

The law is refitted when enough has changed, and cached in the study's folder, since pages poll the report.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from smallalign_core.errors import SmallAlignError
from smallalign_core.runs.store import State, Store
from smallalign_core.studies import statistics as stats
from smallalign_core.studies.base import study_id
from smallalign_core.studies.run_status import Tally, id_of, result_of, status_of
from smallalign_core.studies.scaling import _fits
from smallalign_core.studies.scaling._plan import (
    NEEDS,
    Cell,
    cleaned,
    grown,
    ids_of,
    ladder,
    nll_of,
    run_of,
    seen,
    students,
)
from smallalign_core.studies.scaling._report import (
    METRICS,
    CellMean,
    Cost,
    LadderRung,
    LawReading,
    Metric,
    Paired,
    ScalingStudy,
)
from smallalign_core.studies.scaling._spec import AUTOMATIC, ScalingStudySpec, title_of
from smallalign_core.system.files import write

FITS = "fits.json"
ENOUGH = 1.25
"""While a study runs, the law is refitted when the number of finished runs has grown by this factor."""

Seen = dict[Cell, dict[str, Any]]
"""The results of finished cells."""


def report(
    spec: ScalingStudySpec, store: Store, folder: Path, *, active: bool = False, trouble: str | None = None
) -> ScalingStudy:
    """The current report of a resolved study.

    Args:
        folder: of the study.
        active: whether workers take its runs.
        trouble: why it could not continue automatically.
    """
    (every, over), decided = grown(spec, store, folder), cleaned(spec, folder)
    found: Seen = {}
    tally, diverged, unknown = Tally(), set(), 0
    for cell, name in zip(every, ids_of(spec, every, tuple(decided.items())), strict=True):
        if name is None:
            unknown += 1
            continue
        run = status_of(store, name, NEEDS)
        tally.add(run, f"{spec.label(cell.recipe)}, width {cell.width}, {cell.images} images")
        if run.result is not None:
            found[cell] = run.result
        elif run.diverged:
            diverged.add(cell)
    rungs, of_ladder = _ladder(spec, store, found, decided, tally)
    total = (len(every) if over else max(len(every), spec.budget or 0)) + of_ladder
    params = {cell.width: int(result["params"]) for cell, result in found.items()}
    price = _price(spec, found)
    readings = _readings(
        spec,
        folder,
        found,
        params,
        lambda cell: price(cell) if price else 1.0,
        settled=tally.done >= total or not active,
    )
    tested = next((int(result["test_calibrated"]["images"]) for result in found.values()), None)
    return ScalingStudy(
        id=study_id(spec),
        title=title_of(spec),
        spec=spec,
        width=spec.width,
        params=params.get(spec.width),
        images=spec.most,
        recipes=tuple(spec.recipes),
        labels={recipe: spec.label(recipe) for recipe in spec.recipes},
        readings=readings,
        cells=_means(spec, found, diverged, params, readings),
        paired=_paired(found),
        dropped={key.removeprefix("clean "): one.dropped for key, one in decided.items()},
        ladder=rungs,
        cost=_cost(found, [cell for cell in every if cell not in found and cell not in diverged], price),
        total=total,
        done=tally.done,
        running=tally.running,
        missing=max(0, total - tally.done - tally.running - len(tally.failed)),
        failed=(*([trouble] if trouble else []), *tally.failed),
        active=active,
        preparing=spec.decisions == AUTOMATIC and unknown > 0,
        replicates=spec.replicates,
        test_images=tested,
        teacher_images=_teacher_images(spec, store),
    )


def _scores(result: dict[str, Any]) -> dict[str, float]:
    """Calibrated NLL and error; zero errors count as half of one, since the law is fitted to logarithms."""
    test = result["test_calibrated"]
    return {"nll": nll_of(result), "error": max(1 - float(test["accuracy"]), 0.5 / float(test["images"]))}


def _mean(
    values: Sequence[float], least: float = -math.inf, most: float = math.inf
) -> tuple[float | None, float | None, float | None]:
    """(mean, low, high), the interval clipped to the range of the metric."""
    if len(values) < 2:
        return (values[0] if values else None), None, None
    found = stats.paired(values)
    return found.mean, max(least, found.low), min(most, found.high)


MOST: dict[Metric, float] = {"nll": math.inf, "error": 1.0}
"""The largest value of a metric; the smallest is 0."""


def _means(
    spec: ScalingStudySpec, found: Seen, diverged: set[Cell], params: dict[int, int], readings: dict[str, LawReading]
) -> tuple[CellMean, ...]:
    by_place: dict[tuple[str, int, int], list[dict[str, float]]] = {}
    lost: dict[tuple[str, int, int], int] = {}
    for cell, result in found.items():
        by_place.setdefault((cell.recipe, cell.width, cell.images), []).append(_scores(result))
    for cell in diverged:
        place = (cell.recipe, cell.width, cell.images)
        lost[place] = lost.get(place, 0) + 1
    laws = {name: reading.law for name, reading in readings.items() if reading.law is not None}
    means = []
    for recipe in spec.recipes:
        for width in spec.widths:
            for images in spec.images:
                scores, size = by_place.get((recipe, width, images), []), params.get(width)
                expected = {
                    name: value
                    for name, law in laws.items()
                    if size and (value := _fits.expected(law, recipe, size, images)) is not None
                }
                nll, error = (_mean([one[name] for one in scores], 0.0, MOST[name]) for name in METRICS)
                there = lost.get((recipe, width, images), 0)
                means.append(CellMean(recipe, width, size, images, len(scores), there, nll, error, expected))
    return tuple(means)


def _paired(found: Seen) -> tuple[Paired, ...]:
    paired, sizes = [], {cell.width: int(result["params"]) for cell, result in found.items()}
    sides: dict[tuple[str, int, int], list[tuple[int, Any, Any]]] = {}
    for cell, result in found.items():
        if cell.recipe != "baseline":
            other = found.get(Cell("baseline", cell.width, cell.images, cell.replicate))
            if other is not None:
                side = sides.setdefault((cell.recipe, cell.width, cell.images), [])
                side.append((cell.replicate, _scores(other), _scores(result)))
    for (recipe, width, images), pairs in sides.items():
        for metric in METRICS:
            ends = tuple(
                (at, first[metric], second[metric]) for at, first, second in sorted(pairs, key=lambda one: one[0])
            )
            mean, low, high = _mean([second - first for _, first, second in ends], -MOST[metric], MOST[metric])
            paired.append(Paired(recipe, metric, width, sizes[width], images, ends, mean or 0.0, low, high))
    return tuple(paired)


def _cost(found: Seen, missing: Sequence[Cell], price: Callable[[Cell], float] | None) -> Cost:
    together = [int(result.get("together") or 1) for result in found.values()]
    spent = sum(_share(result) for result in found.values())
    expected = sum(map(price, missing)) if price else None
    return Cost(spent, expected, int(statistics.median(together)) if together else 1)


def _share(result: dict[str, Any]) -> float:
    """Wall-clock seconds of a run: its share of its lockstep group."""
    return float(result["seconds"]) / int(result.get("together") or 1)


def _price(spec: ScalingStudySpec, found: Seen) -> Callable[[Cell], float] | None:
    """Estimated seconds of a cell, from finished ones."""
    from smallalign_core.studies import scaling_law

    some = {cell: result for cell, result in found.items() if float(result["seconds"]) > 0 and result.get("macs")}
    if not some:
        return None
    macs = {cell.width: int(result["macs"]) for cell, result in some.items()}
    seconds = [_share(result) for result in some.values()]
    cost = scaling_law.fit_cost([seen(spec, cell) for cell in some], [macs[cell.width] for cell in some], seconds)

    def of(cell: Cell) -> float:
        near = min(macs, key=lambda width: abs(width - cell.width))
        return cost.seconds(seen(spec, cell), macs[near] * (cell.width / near) ** 2)

    return of


def _ladder(
    spec: ScalingStudySpec, store: Store, found: Seen, decided: dict[str, Any], tally: Tally
) -> tuple[tuple[LadderRung, ...], int]:
    """(the rungs, number of their runs)."""
    rungs, total = [], 0
    for epochs, teacher in ladder(spec, store):
        name = id_of(teacher)
        taught = status_of(store, name, NEEDS)
        result = taught.result
        there = []
        total += 1
        if taught.state == State.FAILED:  # also if it diverged: it has no students
            tally.failed.append(f"teacher of {epochs} epochs: {taught.reason}")
            continue
        tally.add(taught, f"teacher of {epochs} epochs")
        for cell in students(spec, name):
            student = run_of(spec, cell, decided)
            if result is not None and student is not None:
                status = status_of(store, id_of(student), NEEDS)
                tally.add(status, f"student of the teacher of {epochs} epochs, replicate {cell.replicate}")
                there += [(cell.replicate, _scores(status.result)["nll"])] if status.result else []
        nll = None if result is None else float(result["test_calibrated"]["nll"])
        rungs.append(LadderRung(epochs, name, nll, tuple(there)))
        total += spec.replicates
    if rungs and spec.teacher:
        try:
            own = store.run(spec.teacher)
            result, epochs = result_of(own, NEEDS), own.spec.epochs
        except SmallAlignError:
            return tuple(rungs), total
        here = [
            (cell.replicate, _scores(one)["nll"])
            for cell, one in found.items()
            if (cell.recipe, cell.width, cell.images) == ("distil", spec.width, spec.most)
        ]
        nll = None if result is None else float(result["test_calibrated"]["nll"])
        rungs.append(LadderRung(epochs, spec.teacher, nll, tuple(sorted(here))))
    return tuple(rungs), total


def _teacher_images(spec: ScalingStudySpec, store: Store) -> int | None:
    """Number of training images of the teacher, if its spec has it."""
    try:
        return store.run(spec.teacher).spec.data.images if spec.teacher else None
    except SmallAlignError:
        return None


# --- fits, kept -------------------------------------------------------------------------------------------------------


def _readings(
    spec: ScalingStudySpec,
    folder: Path,
    found: Seen,
    params: dict[int, int],
    price: Callable[[Cell], float],
    *,
    settled: bool,
) -> dict[str, LawReading]:
    """The law by metric: from the cache while little has changed, else fitted now."""
    rows = sorted((*key, *_scores(result).values(), int(result["params"])) for key, result in _keys(found))
    digest = hashlib.sha256(json.dumps([_fits.FORMAT, study_id(spec), rows]).encode()).hexdigest()[:16]
    kept = _kept(folder)
    if kept and (kept[0] == digest or (not settled and kept[1] <= len(rows) < ENOUGH * kept[1])):
        return kept[2]
    readings: dict[str, LawReading] = {}
    for metric in METRICS:
        runs = [
            (cell.recipe, float(result["params"]), float(cell.images), cell.replicate, _scores(result)[metric])
            for cell, result in found.items()
        ]
        classes = next((len(result["classes"]) for result in found.values()), 2)
        widths = {size: width for width, size in params.items()}

        def cost(recipe: str, size: float, images: float, widths: dict[int, int] = widths) -> float:
            return price(Cell(recipe, widths[int(size)], int(images), 0))

        readings[metric] = _fits.reading(spec, metric, runs, classes, params.get(spec.width), cost)
    if folder.is_dir() and rows:
        text = json.dumps({"digest": digest, "runs": len(rows), "readings": _fits.packed(readings)})
        write(folder / FITS, text)
    return readings


def _keys(found: Seen) -> list[tuple[tuple[str, int, int, int], dict[str, Any]]]:
    return [((cell.recipe, cell.width, cell.images, cell.replicate), result) for cell, result in found.items()]


def _kept(folder: Path) -> tuple[str, int, dict[str, LawReading]] | None:
    try:
        return _read(folder, (folder / FITS).stat().st_mtime_ns)
    except OSError:
        return None


@functools.lru_cache(maxsize=32)
def _read(folder: Path, _: int) -> tuple[str, int, dict[str, LawReading]] | None:
    try:
        written = json.loads((folder / FITS).read_text())
        return str(written["digest"]), int(written["runs"]), _fits.unpacked(written["readings"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):  # damaged: fitted again
        return None
