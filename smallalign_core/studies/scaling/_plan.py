"""The runs of a scaling study: a pure function of the finished runs, its spec and its automatic cleaning decisions.

Replicate s samples its images with `data.draw` s, and its initial weights, order and views with `seed` s. Neither
depends on the recipe, so recipes are paired; a larger subset contains the smaller ones of the same replicate.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smallalign_core import data
from smallalign_core.analysis import data_quality
from smallalign_core.errors import BadData, BadSpec, SmallAlignError
from smallalign_core.runs.store import Store
from smallalign_core.spec import DataSpec, RunSpec, parse
from smallalign_core.spec.parts import REST
from smallalign_core.studies import scaling_law
from smallalign_core.studies.run_status import id_of, status_of
from smallalign_core.studies.scaling import _pools
from smallalign_core.studies.scaling._spec import (
    AUTOMATIC,
    PILOT,
    REPLICATES,
    UNLABELED,
    ScalingStudySpec,
    draw_of,
    epochs_of,
)
from smallalign_core.studies.scaling_law import Axis, Observations
from smallalign_core.system import resumable
from smallalign_core.system.files import read_json, write_folder, write_json

CLEANED = "cleaned.json"
NEEDS = (*(("test_calibrated", name) for name in ("accuracy", "nll", "images")), ("params",))
"""What a result must have for a law."""
SLICE = 2.0
"""Time slice of automatic cleaning, in seconds."""

MOST_REPLICATES = 16
"""Of a cell of an adaptive study: their images are known, with digests, before the first run."""


ROUND = 3
"""An adaptive study adds this fraction of its runs before it reallocates."""


def most_of(spec: ScalingStudySpec) -> int:
    """Runs that an adaptive study may have: its cells have no more replicates."""
    return len(spec.recipes) * PILOT**2 * MOST_REPLICATES


@dataclass(frozen=True)
class Cell:
    """One run of a study: recipe, width, images and replicate; `teacher` overrides the study's."""

    recipe: str
    width: int
    images: int
    replicate: int
    teacher: str | None = None


def nll_of(result: dict[str, Any]) -> float:
    """Calibrated NLL on test; at least half a nat over all images, since the law is of logarithms."""
    test = result["test_calibrated"]
    return max(float(test["nll"]), 0.5 / float(test["images"]))


@dataclass(frozen=True)
class Cleaned:
    """Automatic cleaning of one subset.

    Attributes:
        decisions: the decisions file, which is not changed.
        fingerprint: of the images that are left.
        dropped: how many decisions there are.
    """

    decisions: str
    fingerprint: str
    dropped: int


# --- runs of cells ----------------------------------------------------------------------------------------------------


def key_of(cell: Cell, spec: ScalingStudySpec) -> str:
    """The key of a cell's training images in the fingerprints."""
    sort = "noise" if cell.recipe == "noise" else "clean" if "clean" in spec.adds(cell.recipe) else "plain"
    return f"{sort} {cell.images} {cell.replicate}"


def cleaned(spec: ScalingStudySpec, folder: Path) -> dict[str, Cleaned]:
    """Automatic cleaning so far, by `key_of`."""
    if spec.decisions != AUTOMATIC:
        return {}
    try:
        stamp = (folder / CLEANED).stat().st_mtime_ns
        return _cleaned(folder, stamp)
    except OSError:
        return {}


@functools.lru_cache(maxsize=64)
def _cleaned(folder: Path, _: int) -> dict[str, Cleaned]:
    try:
        kept = folder.resolve().parents[1] / "decisions" / "kept"  # wherever the store is by now
        return {
            key: Cleaned(str(kept / Path(one["decisions"]).name), str(one["fingerprint"]), int(one["dropped"]))
            for key, one in read_json(folder / CLEANED).items()
            if key.startswith("clean")
        }
    except (SmallAlignError, TypeError, AttributeError, KeyError, ValueError, RecursionError):  # recomputed
        return {}


def data_of(spec: ScalingStudySpec, cell: Cell, decided: dict[str, Cleaned]) -> DataSpec | None:
    """The data spec of a cell; None before its images were cleaned."""
    key = key_of(cell, spec)
    plain = draw_of(spec, cell.images, cell.replicate, cell.recipe == "noise")
    if key.startswith("clean") and spec.decisions == AUTOMATIC:
        if (made := decided.get(key)) is None:
            return None
        return plain.model_copy(update={"decisions": made.decisions, "fingerprint": made.fingerprint})
    more = {"decisions": spec.decisions} if key.startswith("clean") else {}
    if cell.recipe == UNLABELED:
        more = {"unlabeled": spec.unlabeled, "unlabeled_fingerprint": _pool(spec, cell)[0]}
    return plain.model_copy(update={"fingerprint": dict(spec.fingerprints).get(key), **more})


def _pool(spec: ScalingStudySpec, cell: Cell) -> tuple[str | None, int]:
    """(digest, number) of the unlabeled images of a cell; (None, 0) for other recipes."""
    known = {key: (digest, count) for key, digest, count in spec.pools} if cell.recipe == UNLABELED else {}
    return known.get(f"{cell.images} {cell.replicate}", (None, 0))


def epochs_for(spec: ScalingStudySpec, cell: Cell) -> int:
    """Epochs of a cell's run, over its labeled and unlabeled images."""
    return epochs_of(spec, cell.images, _pool(spec, cell)[1])


def run_of(spec: ScalingStudySpec, cell: Cell, decided: dict[str, Cleaned]) -> RunSpec | None:
    """The run of a cell; None while its images are not cleaned yet.

    Raises:
        BadSpec: there is no such width, or a recipe does not fit the student.
    """
    images = data_of(spec, cell, decided)
    return None if images is None else _run(spec, cell, images)


@functools.lru_cache(maxsize=64)
def ids_of(
    spec: ScalingStudySpec, every: tuple[Cell, ...], decided: tuple[tuple[str, Cleaned], ...]
) -> tuple[str | None, ...]:
    """The ids of the runs of cells, None where images are not cleaned yet; cached, since pages poll each second."""
    known = dict(decided)
    return tuple(None if (run := run_of(spec, cell, known)) is None else id_of(run) for cell in every)


@functools.lru_cache(maxsize=16_384)
def _run(spec: ScalingStudySpec, cell: Cell, images: DataSpec) -> RunSpec:
    adds, fields = spec.adds(cell.recipe), spec.student.model_dump()
    fields["data"] = images.model_dump()
    fields["network"]["width"] = cell.width
    fields["epochs"] = epochs_for(spec, cell)
    fields["seed"] = spec.student.seed + cell.replicate
    if "augment" in adds:
        fields["augment"] = [part.model_dump() for part in (*spec.student.augment, *spec.augment)]
    if "optimizer" in adds and spec.optimizer is not None:
        fields["optimizer"] = spec.optimizer.model_dump()
        if spec.student.schedule == type(spec.student).model_fields["schedule"].default:
            fields["schedule"] = None  # the usual one of that optimizer
    if "distil" in adds:
        fields |= {"teacher": cell.teacher or spec.teacher, "loss": spec.loss.model_dump()}
    return parse({name: value for name, value in fields.items() if value is not None})


# --- which cells ------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=64)
def grid(spec: ScalingStudySpec) -> tuple[Cell, ...]:
    """All cells of a resolved study without a budget: one replicate at a time, ordered for lockstep."""
    return tuple(
        Cell(recipe, width, images, replicate)
        for replicate in range(spec.replicates)
        for images in reversed(spec.images)
        for recipe in spec.recipes
        for width in spec.widths
    )


def ends(values: Sequence[int]) -> list[int]:
    """Lowest, middle and highest."""
    return sorted({values[0], values[len(values) // 2], values[-1]})


def pilot(spec: ScalingStudySpec) -> tuple[Cell, ...]:
    """What an adaptive study begins with."""
    widths, images = ends(spec.widths), ends(spec.images)
    return tuple(
        cell
        for cell in grid(spec.model_copy(update={"replicates": REPLICATES}))
        if cell.width in widths and cell.images in images
    )


def cells(spec: ScalingStudySpec, store: Store, folder: Path) -> tuple[Cell, ...]:
    """All cells needed as far as known now."""
    return grown(spec, store, folder)[0]


def grown(spec: ScalingStudySpec, store: Store, folder: Path) -> tuple[tuple[Cell, ...], bool]:
    """(all cells known to be needed now, whether the list is complete)."""
    if spec.budget is None:
        return grid(spec), True
    found, decided = list(pilot(spec)), cleaned(spec, folder)
    while (left := spec.budget - len(found)) > 0:
        rows = [_row(store, run_of(spec, cell, decided), cell) for cell in found]
        if None in rows:
            return tuple(found), False
        known = tuple(row for row in rows if row)
        more = _next(spec, known, tuple(found))
        if not more:  # every cell has as many replicates as there may be, or no law can say where they help
            break
        found += more[:left]
    return tuple(found), True


Row = tuple[str, int, int, int, int, float]
"""(recipe, width, parameters, images, replicate, NLL) of a finished run."""


def _row(store: Store, run: RunSpec | None, cell: Cell) -> Row | tuple[()] | None:
    """A finished run; empty if it diverged, None if it is not settled."""
    if run is None:
        return None
    found = status_of(store, id_of(run), NEEDS)
    if (result := found.result) is not None:
        return cell.recipe, cell.width, int(result["params"]), cell.images, cell.replicate, nll_of(result)
    return () if found.diverged else None


@functools.lru_cache(maxsize=256)
def _next(spec: ScalingStudySpec, rows: tuple[Row, ...], known: tuple[Cell, ...]) -> tuple[Cell, ...]:
    """A round: the next replicates of the pilot's cells, for parameters and for images, by recipes in turn.

    Neither how many they are nor their order depends on the budget, so that a larger one shares all runs of a smaller.
    """
    params = {row[1]: row[2] for row in rows}
    sizes = {size: width for width, size in params.items()}
    chance = max(row[5] for row in rows) * 4  # only slopes matter here, and no chance level is known without classes
    counts: dict[tuple[str, int, int], int] = {}
    for cell in known:
        place = (cell.recipe, cell.width, cell.images)
        counts[place] = max(counts.get(place, 0), cell.replicate + 1)
    axes: tuple[Axis, ...] = ("n", "d")
    wishes = [(recipe, axis) for recipe in spec.recipes[1:] for axis in axes]
    try:
        draws = scaling_law.resample(
            Observations.from_rows([(r, p, d, s, y) for r, _, p, d, s, y in rows], chance), draws=50
        )
        found = []
        for recipe, axis in wishes:
            part = len(known) // ROUND // len(wishes)
            more = scaling_law.allocate(
                draws, recipe, "baseline", params[spec.width], spec.most, axis, budget=part
            ).more
            found.append([(arm, sizes[int(size)], int(images)) for (arm, size, images), n in more for _ in range(n)])
    except (BadData, KeyError):  # too few were finished for a law: the pilot is all
        return ()
    cells: list[Cell] = []
    for place in itertools.chain.from_iterable(itertools.zip_longest(*found)):
        if place is not None and (at := counts.get(place, 0)) < MOST_REPLICATES:
            counts[place] = at + 1
            recipe, width, images = place
            cells.append(Cell(recipe, width, images, at))
    return tuple(cells)


def ladder(spec: ScalingStudySpec, store: Store) -> tuple[tuple[int, RunSpec], ...]:
    """(epochs, run) of the teachers of a ladder: the teacher's own spec with fewer epochs."""
    if not spec.ladder or not spec.teacher:
        return ()
    try:
        own = store.run(spec.teacher).spec
    except SmallAlignError:
        return ()
    # Its own number of epochs is the teacher itself: no run of the study, which could be deleted with it.
    return tuple((some, own.model_copy(update={"epochs": some})) for some in spec.ladder if some != own.epochs)


def wanted(spec: ScalingStudySpec, store: Store, folder: Path) -> list[RunSpec]:
    """All runs known to be needed now, in training order. `spec` is resolved."""
    decided = cleaned(spec, folder)
    found = [run_of(spec, cell, decided) for cell in cells(spec, store, folder)]
    for _, teacher in ladder(spec, store):
        found.append(teacher)
        if status_of(store, id_of(teacher), NEEDS).result is not None:
            found += [run_of(spec, cell, decided) for cell in students(spec, id_of(teacher))]
    return list(dict.fromkeys(run for run in found if run is not None))


def students(spec: ScalingStudySpec, teacher: str) -> list[Cell]:
    """The target cell, distilled from another teacher."""
    return [Cell("distil", spec.width, spec.most, replicate, teacher) for replicate in range(spec.replicates)]


# --- before the first run ---------------------------------------------------------------------------------------------


def probes(spec: ScalingStudySpec) -> list[RunSpec]:
    """The target's run, then one of each other recipe at the largest size; automatic decisions are left out of it."""
    images = spec.images[-1] if spec.images else None
    found = []
    for recipe in spec.recipes:
        if recipe == UNLABELED:  # as `distil`; its images are read when the study is resolved
            continue
        cell = Cell(recipe, spec.width if recipe == "baseline" else spec.widths[-1], images or 2, 0)
        plain = draw_of(spec, images or 2, 0).model_copy(update={} if images else {"images": spec.student.data.images})
        found.append(_run(spec, cell, plain))
    return found


def resolved(spec: ScalingStudySpec, run: RunSpec, store: Store) -> ScalingStudySpec:
    """The study with the fields filled in for its first probe, numbers of images, its teacher's id and fingerprints.

    Raises:
        BadSpec: a number of images is more than there are, or less than one a class.
        BadData: cleaning decisions leave a class without images.
    """
    base = run.data.model_copy(update={"images": spec.student.data.images, "fingerprint": None})
    whole = data.load(base, store.data_cache)
    images = spec.images or tuple(max(2, round(share * len(whole.train))) for share in spec.fractions)
    least = len(whole.classes)
    for some in images:
        if not least <= some <= len(whole.train):
            raise BadSpec(
                f"numbers of images must be between {least} (one per class) and {len(whole.train)} (all)",
                given=some,
                do="change `images` or `fractions`",
            )
    if len(set(images)) < len(images):
        raise BadSpec("two fractions give the same number of images", given=list(images), do="spread `fractions` more")
    if spec.target is not None and spec.target.images is not None and spec.target.images not in images:
        raise BadSpec(
            "the target's number of images is not in the study",
            given=spec.target.images,
            do=f"choose one of {list(images)}",
        )
    own = {name: getattr(spec.student, name) for name in ("optimizer", "schedule", "epochs", "seed", "augment", "loss")}
    student = run.model_copy(update={**own, "data": base, "network": spec.student.network})
    more: dict[str, Any] = {"student": student, "images": images, "fractions": ()}
    if spec.teacher:
        taught = parse({**run.model_dump(exclude={"loss"}), "teacher": spec.teacher, "loss": spec.loss.model_dump()})
        more["teacher"] = store.resolve(taught, whole, run.precision).teacher
    if spec.decisions not in (None, AUTOMATIC):
        cleaned = run.model_copy(update={"data": base.model_copy(update={"decisions": spec.decisions})})
        more["decisions"] = store.resolve(cleaned, whole, run.precision).data.decisions
    if UNLABELED in spec.recipes and spec.unlabeled != REST:
        more["unlabeled"] = data.absolute(str(spec.unlabeled))
    filled = spec.model_copy(update=more)
    filled = filled.model_copy(
        update={"pools": _pools.of_draws(filled, store.data_cache, whole.fingerprint, MOST_REPLICATES)}
    )
    return filled.model_copy(update={"fingerprints": _fingerprints(filled, store.data_cache, whole.fingerprint)})


@functools.lru_cache(maxsize=16)
def _fingerprints(spec: ScalingStudySpec, cache: Path, _: str) -> tuple[tuple[str, str], ...]:
    """Of all draws, remembered as long as the whole of the images has the same fingerprint."""
    replicates = spec.replicates if spec.budget is None else MOST_REPLICATES
    every = [
        Cell(recipe, spec.width, images, replicate)
        for recipe in spec.recipes
        for images in spec.images
        for replicate in range(replicates)
        if not ("clean" in spec.adds(recipe) and spec.decisions == AUTOMATIC)
    ]
    by_key = {key_of(cell, spec): data_of(spec, cell, {}) for cell in every}
    known = [(key, one.model_copy(update={"fingerprint": None})) for key, one in by_key.items() if one is not None]
    return tuple(zip([key for key, _ in known], data.fingerprints([one for _, one in known], cache), strict=True))


def prepare(spec: ScalingStudySpec, store: Store, folder: Path, *_: object) -> bool:
    """Run automatic cleaning for `SLICE` seconds or until one subset is done, based on that subset alone. Returns
    whether others are left.

    A subset in progress can be continued by the same process only; results are stored in the study's folder.
    """
    if spec.decisions != AUTOMATIC:
        return False
    known = cleaned(spec, folder)
    keys = dict.fromkeys(key_of(cell, spec) for cell in cells(spec, store, folder))
    left = [key for key in keys if key.startswith("clean") and key not in known]
    if not left or not folder.is_dir():  # deleted meanwhile
        return False
    images, replicate = map(int, left[0].split()[1:])
    plain = draw_of(spec, images, replicate)

    def begin() -> resumable.Work[data.Decisions]:
        return data_quality.automatic(data.load(plain, store.data_cache).train)

    if (made := resumable.advance(f"{left[0]} {folder}", begin, SLICE)[0]) is not None:
        _keep(spec, store, folder, left[0], made)
    return made is None or len(left) > 1


def _keep(spec: ScalingStudySpec, store: Store, folder: Path, key: str, made: data.Decisions) -> None:
    """Store the automatic cleaning of a subset."""
    images, replicate = map(int, key.split()[1:])
    plain = draw_of(spec, images, replicate)
    file = folder / "decisions" / f"{images}-{replicate}.json"
    write_folder(file.parent, {})
    data.Decisions(plain.source, made.by_image).write(file)
    decided = plain.model_copy(update={"decisions": str(file.resolve())})
    left = data.load(decided, store.data_cache)
    run = store.resolve(spec.student.model_copy(update={"data": decided}), left, spec.student.precision)
    one = Cleaned(str(run.data.decisions), left.fingerprint, len(made.by_image))
    known = {**cleaned(spec, folder), key: one}  # read again: another worker may have added one meanwhile
    write_json(folder / CLEANED, {key: vars(one) for key, one in known.items()})


def seen(spec: ScalingStudySpec, cell: Cell) -> float:
    """Number of training images of a cell's run, counted with repetition."""
    return float(epochs_for(spec, cell) * (cell.images + _pool(spec, cell)[1]))
