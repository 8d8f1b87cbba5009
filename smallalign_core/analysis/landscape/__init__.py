"""The loss landscape around a run's weights: slices, barriers, curvature, and gradient predictiveness.

Every number is of the run's own loss, with its teacher, on training images without augmentation (never validation or
test), with the batch-norm mode: the same weights can look 25 times sharper with running statistics than with those of a
batch. None of these predicts test accuracy by itself (Dinh et al., 2017). Results are cached.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from smallalign_core import data, networks
from smallalign_core.analysis.landscape import _measures, _sizes, _surface
from smallalign_core.analysis.landscape._sizes import ladder as ladder
from smallalign_core.analysis.landscape._surface import Norms as Norms, Surface as Surface
from smallalign_core.data import Splits
from smallalign_core.errors import BadInput, Refused, SmallAlignError
from smallalign_core.runs import imported
from smallalign_core.runs.store import Run, Store
from smallalign_core.spec import canonical
from smallalign_core.system.files import read_json, write_json
from smallalign_core.system.resumable import Work, advance, finish, part_of
from smallalign_core.training import teacher_loading

Measure = Literal["line", "plane", "path", "between", "curvature", "predictiveness"]
MEASURES: tuple[Measure, ...] = ("line", "plane", "path", "between", "curvature", "predictiveness")
PAIRS = ("path", "between")
"""Measures between the first run and each other one."""
VERSION = 1
"""Version of measures; increased when their meaning changes, which invalidates cached results."""
MOST_RUNS, MOST_IMAGES = 40, 10_000
FORETOLD_ON = 2_048
"""Min. training images for gradient predictiveness: whole batches, each of which is one observation."""
NORMS = {"eval": "running statistics", "train": "each batch's own", "reestimate": "re-estimated"}


@dataclass(frozen=True)
class LandscapeSpec:
    """Settings of the measurement.

    Attributes:
        norms: batch-norm statistics.
        images: approximate number of training images: whole batches of the run's batch size.
        seed: seed of images and directions.
    """

    norms: Norms = "eval"
    images: int = 512
    seed: int = 0
    directions: int = 5
    points: int = 21
    reach: float = 1.0
    grid: int = 11
    eigenvalues: int = 5
    probes: int = 10

    def check(self) -> None:
        """Validate the settings.

        Raises:
            BadInput: a number is out of range.
        """
        limits = {
            "images": (2, MOST_IMAGES),
            "seed": (0, 2**31 - 1),
            "directions": (1, 50),
            "points": (5, 201),
            "reach": (0.01, 10),
            "grid": (5, 51),
            "eigenvalues": (1, 50),
            "probes": (1, 1000),
        }
        if self.norms not in NORMS:
            raise BadInput("unknown batch-norm mode", given=self.norms, do=f"choose {', '.join(NORMS)}")
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise BadInput(
                    f"`{name}` must be between {low:,} and {high:,}", given=getattr(self, name), do="change it"
                )
        if self.points % 2 == 0 or self.grid % 2 == 0:
            raise BadInput("`points` and `grid` must be odd", given=self.points, do="add 1")


@dataclass(frozen=True)
class _Task:
    """One measure of one run (and of another, for the path between them), and its cache file."""

    run: Run
    measure: Measure
    other: Run | None
    key: str


class Landscape:
    """Some measures of some runs.

    Args:
        references: finished runs of this store, by id, prefix, name or path.
        measures: which; `path` and `between` go from the first run to each other one.

    Raises:
        UnknownRun, Refused: a run does not exist, is not finished, or has no well-defined loss.
        BadInput: no measure or run, too many, a value out of range, or paths between different networks.
    """

    def __init__(
        self, store: Store, references: Sequence[str], measures: Sequence[str], look: LandscapeSpec | None = None
    ) -> None:
        look = look or LandscapeSpec()
        look.check()
        unknown = [name for name in measures if name not in MEASURES]
        if unknown or not measures:
            raise BadInput("unknown measure", given=unknown or "none", do=f"choose {', '.join(MEASURES)}")
        if not 1 <= len(references) <= MOST_RUNS:
            raise BadInput(f"a landscape takes 1 to {MOST_RUNS} runs", given=len(references), do="change the selection")
        self.store, self.look = store, look
        self.runs = list({run.id: run for run in map(store.finished, references)}.values())
        for run in self.runs:
            if run.imported is not None:
                raise Refused("an import has no training loss", given=run.name, do="choose a SmallAlign run")
            _surface.refuse(run.spec, run.name)
        if any(name in PAIRS for name in measures):
            self._refuse_ways()
        self.tasks = [
            self._task(run, measure, other)
            for run in self.runs
            for measure in MEASURES
            if measure in measures
            for other in (self._others(run) if measure in PAIRS else [None])
        ]
        self._splits: dict[str, Splits] = {}

    def _others(self, run: Run) -> list[Run]:
        return self.runs[1:] if run is self.runs[0] else []

    def _refuse_ways(self) -> None:
        first, *others = self.runs
        if not others:
            raise BadInput("`path` and `between` need two runs", given=first.name, do="give two runs or more")
        for other in others:
            if canonical(other.spec.network) != canonical(first.spec.network):
                raise BadInput(
                    "there is no linear path between different networks",
                    given=f"{first.name}: {first.title}; {other.name}: {other.title}",
                    do="choose runs of the same network, or leave `path` and `between` out",
                )

    def _task(self, run: Run, measure: Measure, other: Run | None) -> _Task:
        spec = run.spec
        teachers = [imported.digest_of(self.store.finished(name)) for name in spec.teachers]
        own = {name: (one.result or {})["weights_sha256"] for name, one in {"run": run, "other": other or run}.items()}
        facts = [VERSION, measure, own, canonical(spec), teachers, asdict(self.look), torch.__version__]
        return _Task(run, measure, other, hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24])

    def _kept(self, task: _Task) -> dict[str, Any] | None:
        with contextlib.suppress(SmallAlignError):  # damaged: measured again
            found = read_json(self.store.root / "cache" / "landscape" / f"{task.key}.json", missing=None)
            return found if isinstance(found, dict) and found.get("version") == VERSION else None
        return None

    @property
    def missing(self) -> list[_Task]:
        """The measures that are not cached."""
        return [task for task in self.tasks if self._kept(task) is None]

    def cost(self) -> dict[str, Any]:
        """Cost estimate: `seconds` from a probe of each run's own steps, numbers of `losses` and `gradients` (a
        Hessian-vector product counts as three gradients), and how many of `tasks` are `missing`.
        """
        missing, seconds, losses, gradients = self.missing, 0.0, 0, 0
        speeds: dict[str, tuple[float, float]] = {}
        for task in missing:
            if task.run.id not in speeds:
                speeds[task.run.id] = self._speed(task.run)
            per_loss, per_gradient = speeds[task.run.id]
            evaluations, slopes = _counted(task.measure, self.look, len(self._rows(task.run, self._look(task))))
            seconds += evaluations * per_loss + slopes * per_gradient
            losses, gradients = losses + evaluations, gradients + slopes
        return {
            "seconds": seconds,
            "losses": losses,
            "gradients": gradients,
            "tasks": len(self.tasks),
            "missing": len(missing),
        }

    def _speed(self, run: Run) -> tuple[float, float]:
        """Seconds of a batch's loss and of its gradient."""
        surface = finish(self._built(run, replace(self.look, images=run.spec.batch)))
        assert surface is not None
        part = surface.parts[0]
        times = []
        for work in (lambda: surface.loss(part), lambda: surface.gradient(part)):
            work()
            begun = time.perf_counter()
            work()
            times.append(time.perf_counter() - begun)
        return times[0] * (2 if self.look.norms == "reestimate" else 1), times[1]

    def _look(self, task: _Task) -> LandscapeSpec:
        """The number of images; larger for a distribution over batches."""
        more = max(self.look.images, FORETOLD_ON) if task.measure == "predictiveness" else self.look.images
        return replace(self.look, images=more)

    def _rows(self, run: Run, look: LandscapeSpec) -> NDArray[np.int64]:
        return _surface.rows(len(self._data(run).train), look.images, run.spec.batch, look.seed)

    def _data(self, run: Run) -> Splits:
        spec = run.data
        name = spec.model_dump_json()
        if name not in self._splits:
            self._splits[name] = data.load(spec, self.store.data_cache)
        return self._splits[name]

    def _built(self, run: Run, look: LandscapeSpec, like: Run | None = None) -> Work[Surface]:
        """The loss surface around a run's weights; with the loss and images of another run, if given."""
        source, splits = like or run, self._data(like or run)
        spec = source.spec
        teacher = teacher_loading.load_teacher([spec], self.store, splits, "cpu")
        parts = []
        for part in _surface.parts_of(splits.train, self._rows(source, look), teacher):
            parts.append(part)
            yield 0.0
        counts = list(splits.train.counts().values())
        return Surface(spec, networks.from_file(run.weights), parts, look.norms, counts)

    def _measured(self, task: _Task) -> Work[dict[str, Any]]:
        look = self._look(task)
        surface = yield from self._built(task.run, look)
        match task.measure:
            case "line":
                work = _measures.line(
                    surface, directions=look.directions, points=look.points, reach=look.reach, seed=look.seed
                )
            case "plane":
                work = _measures.plane(surface, points=look.grid, reach=look.reach, seed=look.seed)
            case "path":
                assert task.other is not None
                end = yield from self._built(task.other, look, task.run)
                work = _measures.path(surface, end, points=look.points)
            case "between":
                assert task.other is not None
                end = yield from self._built(task.other, look, task.run)
                work = _measures.between(surface, end, points=look.grid, reach=look.reach, seed=look.seed)
            case "curvature":
                work = _measures.curvature(surface, eigenvalues=look.eigenvalues, probes=look.probes, seed=look.seed)
            case "predictiveness":
                work = _measures.predictiveness(surface)
        found = yield from work
        *_, loss = surface.value()
        facts = {"loss": loss, "images": sum(len(part.labels) for part in surface.parts), "norms": look.norms}
        return {"version": VERSION, **facts, "shapes": _surface.shapes(surface.network), "found": found}

    def report(self) -> Work[dict[str, Any]]:
        """Compute missing measures as resumable work, cache them, and return the report.

        Returns:
            `norms`, `images`, `seed`; `runs`, each with `id`, `name`, `title`, `params`, `loss` (of these images) and
            its `measures`; `ways`: paths from the first run to others, with `barrier`; `between`: the planes through
            both; `shared`: whether all runs have the same directions; `sizes`: see `_sizes.Trend`, where there are
            runs of several sizes; `words`.
        """
        missing = self.missing
        for place, task in enumerate(missing):
            found = yield from part_of(self._measured(task), place, len(missing))
            file = self.store.root / "cache" / "landscape" / f"{task.key}.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, found)
        runs: dict[str, dict[str, Any]] = {}
        pairs: dict[str, list[dict[str, Any]]] = {name: [] for name in PAIRS}
        for task in self.tasks:
            kept = self._kept(task) or {}
            row = runs.setdefault(task.run.id, self._row(task.run, kept))
            if task.other is None:
                row["measures"][task.measure] = kept["found"]
            else:
                ends = {"run": task.run.id, "other": task.other.id, "to": self._name(task.other)}
                pairs[task.measure].append(ends | kept["found"])
        rows = [runs[run.id] for run in self.runs if run.id in runs]
        found = {
            "norms": self.look.norms,
            "images": max(row["images"] for row in rows),
            "seed": self.look.seed,
            "runs": rows,
            "ways": pairs["path"],
            "between": pairs["between"],
            "shared": len({row["shapes"] for row in rows}) == 1,
            "sizes": _sizes.trends(rows) if len({row["params"] for row in rows}) > 1 else [],
        }
        return {**found, "words": list(_words(found))}

    def _name(self, run: Run) -> str:
        return self.store.name_of(run.id)

    def _row(self, run: Run, kept: dict[str, Any]) -> dict[str, Any]:
        facts = {"id": run.id, "name": self._name(run), "title": run.title, "params": (run.result or {})["params"]}
        return facts | {name: kept[name] for name in ("loss", "images", "shapes")} | {"measures": {}}


def _counted(measure: Measure, look: LandscapeSpec, parts: int) -> tuple[int, int]:
    """Approximate (losses, gradients) of batches that a measure needs."""
    flat = {"plane": look.grid**2, "between": look.grid**2}
    losses = {"line": look.directions * look.points, "path": look.points, **flat}.get(measure, 0)
    products = 20 + 4 * look.eigenvalues + look.probes if measure == "curvature" else 0
    slopes = 1 + len(_measures.STRIDES) if measure == "predictiveness" else 3 * products
    return losses * parts, slopes * parts


def _number(value: float | None, how: str = ".4g") -> str:
    return "not finite" if value is None else format(value, how)


def _words(found: dict[str, Any]) -> Iterator[str]:
    norms = found["norms"]
    tag = f"[batch norm: {norms}]"
    for run in found["runs"]:
        yield f"{run['name']}: {run['title']}, {run['params']:,} parameters; loss {run['loss']:.4f} {tag}"
        measures = run["measures"]
        if line := measures.get("line"):
            spread = "" if line["rise_se"] is None else f" ± {line['rise_se']:.2g}"
            rise = f"{_number(line['rise'])}{spread}"
            yield f"  rise at {line['rise_at']:g} along filter-normalised directions: {rise} {tag}"
        if bent := measures.get("curvature"):
            error = "" if bent["trace_se"] is None else f" ± {bent['trace_se']:.3g}"
            top = ", ".join(f"{value:.4g}" for value in bent["eigenvalues"])
            yield f"  largest Hessian eigenvalues: {top}; trace {bent['trace']:.4g}{error} {tag}"
        if told := measures.get("predictiveness"):
            for one in told["strides"]:
                cosines = f"{_number(one['cosine'], '.3f')} (5th percentile {_number(one['cosine_low'], '.3f')})"
                yield (
                    f"  after a step of {one['stride']:.0%} of the weights' length, {told['batches']} batches: "
                    f"gradient cosine {cosines}, loss {_number(one['change'], '+.4g')} {tag}"
                )
    for way in found["ways"]:
        yield f"barrier from {way['run']} to {way['to']}: {_number(way['barrier'])} {tag}"
    if len(found["runs"]) > 1 and not found["shared"]:
        yield "the networks differ, and so do their random directions: compare shapes, not points"
    yield from _sizes.words(found["sizes"], found["runs"], norms)


# --- interface of the dashboard --------------------------------------------------------------------------------------


def landscape(
    store: Store,
    runs: Sequence[str],
    measures: Sequence[str],
    *,
    start: bool = True,
    patience: float | None = None,
    **look: Any,
) -> dict[str, Any]:
    """A report on some runs, or what it would cost.

    Args:
        start: whether to compute missing measures; without it, `cost` is returned instead if any are missing.
        patience: seconds until an unfinished result is returned; the next call continues.
        look: the settings.

    Returns:
        `done`: progress in 0..1; at 1 also `report`; or `cost`.
    """
    measured = Landscape(store, runs, measures, LandscapeSpec(**look))
    if not start and measured.missing:
        return {"done": 0.0, "cost": measured.cost()}
    question = json.dumps([str(store.root.resolve()), [task.key for task in measured.tasks]])
    report, done = advance(f"landscape {question}", measured.report, patience)
    return {"done": done} if report is None else {"done": 1.0, "report": report}
