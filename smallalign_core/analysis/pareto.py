"""The Pareto front of runs: size, MACs, latency, accuracy and calibration, and dominated runs.

Latency is measured on this machine: the run's ONNX file in ONNX Runtime, batch of 1, one thread, after a warm-up until
two windows agree. It is cached for each run and machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from smallalign_core.analysis import compare
from smallalign_core.data import Splits
from smallalign_core.errors import BadInput, SmallAlignError
from smallalign_core.metrics import score
from smallalign_core.runs.store import Run, Store
from smallalign_core.spec.precision import PRECISIONS
from smallalign_core.system.files import read_json, write_json
from smallalign_core.system.machine import processor
from smallalign_core.system.resumable import Work, part_of

THREADS = 1
WINDOW = 0.15
"""Seconds of one window of the warm-up, and between progress updates."""
WARM = (0.45, 3.0)
"""Min. and max. seconds of the warm-up."""
AGREE = 0.1
"""It ends when the medians of two windows differ by less than this share."""
MEASURED = 0.9
"""Seconds of measurement."""
FORMAT = 3


@dataclass(frozen=True)
class Latency:
    """Milliseconds for one image in ONNX Runtime.

    Attributes:
        bytes: size of the exported fp32 ONNX file, or of an import.
        sizes: the same by precision; None if a network cannot be exported in it. For an import all are its file's.
        steady: whether the warm-up ended because two windows agreed; if not, the machine was busy.
        samples: number of timed runs.
        runtime: ONNX Runtime's version. `threads`, `processor`: of the measurement.
    """

    bytes: int
    sizes: dict[str, int | None]
    p50_ms: float
    p95_ms: float
    steady: bool
    samples: int
    threads: int
    processor: str
    runtime: str


@dataclass(frozen=True)
class Limits:
    """Limits for runs; None is no limit. 1 kB is 1,000 bytes; accuracy is a share in 0..1.

    Attributes:
        kb: of the file in `precision`; the other two are of fp32.
    """

    kb: float | None = None
    ms: float | None = None
    accuracy: float | None = None
    precision: str = "fp32"

    def check(self) -> None:
        """Check that the limits can be met.

        Raises:
            BadInput: one is out of range.
        """
        if self.precision not in PRECISIONS:
            raise BadInput("unknown precision", given=self.precision, do=f"choose {', '.join(PRECISIONS)}")
        sizes = [value for value in (self.kb, self.ms) if value is not None]
        if any(not 0 < value < float("inf") for value in sizes) or not 0 <= (self.accuracy or 0) <= 1:
            raise BadInput(
                "limits must be above 0 kB, above 0 ms, and an accuracy between 0 and 1",
                given=f"{self.kb} kB, {self.ms} ms, accuracy {self.accuracy}",
                do="give other limits",
            )


NO_LIMITS = Limits()


@dataclass(frozen=True)
class Candidate:
    """One run.

    Attributes:
        macs: multiply-accumulates of one image; None for an import, where they were not counted.
        bytes, sizes, p50_ms, p95_ms, steady: see `Latency`.
        accuracy: with its 95% interval (Wilson, 1927).
        dominated_by: the id of a run that is no larger, no slower and no less accurate, and better in one of them;
            None if there is none.
        fails: the limits that it does not pass: of `kb`, `ms` and `accuracy`.
    """

    id: str
    name: str
    params: int | None
    macs: int | None
    bytes: int
    p50_ms: float
    p95_ms: float
    steady: bool
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    ece: float
    nll: float
    dominated_by: str | None = None
    fails: tuple[str, ...] = ()
    sizes: dict[str, int | None] = field(default_factory=dict)


@dataclass(frozen=True)
class ParetoFront:
    """All runs in comparison."""

    split: str
    images: int
    threads: int
    processor: str
    runtime: str
    limits: Limits
    candidates: list[Candidate]


def words(found: ParetoFront) -> str:
    """The runs that pass all limits, and those that are dominated, as text."""
    limits, names = found.limits, {one.id: one.name for one in found.candidates}
    in_precision = "" if limits.precision == "fp32" else f" in {limits.precision}"
    within = [
        text
        for text in (
            None if limits.kb is None else f"at most {limits.kb:,g} kB{in_precision}",
            None if limits.ms is None else f"at most {limits.ms:g} ms (p50)",
            None if limits.accuracy is None else f"at least {limits.accuracy:.2%} accuracy",
        )
        if text
    ]
    parts = []
    if within:
        passing = [one.name for one in found.candidates if not one.fails]
        says = f"pass{'es' if len(passing) == 1 else ''} all limits"
        parts.append(f"{', '.join(passing) if passing else 'No run'} {says if passing else 'passes all limits'}")
        parts[0] += f" ({', '.join(within)})."
    for one in found.candidates:
        if one.dominated_by is not None:
            better = names[one.dominated_by]
            parts.append(f"{one.name} is dominated: {better} is no larger, no slower and no less accurate.")
    if not any(one.dominated_by for one in found.candidates):
        parts.append("No run is dominated by another.")
    if found.split == "test" and len(found.candidates) > 1:
        parts.append("These are test images: select on validation, report on test.")
    return " ".join(parts)


def size_in(one: Candidate, precision: str) -> int | None:
    """Bytes of a candidate's file in a precision; None if it cannot be exported in it."""
    return one.sizes.get(precision) if one.sizes else one.bytes


def kilobytes(size: int | None) -> str:
    """Bytes in kB of 1,000 bytes; a dash where there is no such file."""
    return "-" if size is None else f"{size / 1000:,.1f}"


def table(found: ParetoFront) -> str:
    """The report as a text table."""
    head = ["run", "params", "MACs", *(f"kB {one}" for one in PRECISIONS), "p50 ms", "p95 ms", "accuracy", "ECE", ""]
    rows = [
        [
            one.name,
            "-" if one.params is None else f"{one.params:,}",
            "-" if one.macs is None else f"{one.macs:,}",
            *(kilobytes(size_in(one, precision)) for precision in PRECISIONS),
            f"{one.p50_ms:.3f}",
            f"{one.p95_ms:.3f}",
            f"{one.accuracy:.2%}",
            f"{one.ece:.2%}",
            ", ".join((["dominated"] if one.dominated_by else []) + [f"fails {name}" for name in one.fails]),
        ]
        for one in found.candidates
    ]
    wide = [max(len(row[at]) for row in [head, *rows]) for at in range(len(head))]
    lines = [
        "  ".join(cell.ljust(wide[0]) if not at else cell.rjust(wide[at]) for at, cell in enumerate(row)).rstrip()
        for row in [head, *rows]
    ]
    threads = "1 thread" if found.threads == 1 else f"{found.threads} threads"
    lines.append(f"ONNX Runtime {found.runtime}, one image, {threads}, {found.processor}; {found.split} images")
    return "\n".join(lines)


def pareto_front(
    runs: Sequence[Run], splits: Splits, split: str, store: Store, limits: Limits = NO_LIMITS
) -> Work[ParetoFront]:
    """All of `runs` on the images of one split; yields progress in 0..1.

    A test-set evaluation is counted once, and only if a run had to be evaluated.

    Raises:
        BadInput: a limit is out of range, or a run has other classes.
        BadModel: a run's weights cannot be read.
    """
    limits.check()
    images, looked, found, seen = getattr(splits, split), False, [], []
    for place, run in enumerate(runs):
        latency = kept(run, store)
        if latency is None:
            latency = yield from part_of(_measured(run, splits, store), place, len(runs))
        looked |= compare.kept_logits(run, splits, split, store) is None
        scores = score(compare.split_logits(run, splits, split, store), images.labels, images.classes)
        result = run.result or {}
        seen.append(latency)
        found.append(
            Candidate(
                id=run.id,
                name=run.name if run.in_zoo else f"{run.title} · {run.id[:6]}",
                params=result.get("params"),
                macs=result.get("macs"),
                bytes=latency.bytes,
                p50_ms=latency.p50_ms,
                p95_ms=latency.p95_ms,
                steady=latency.steady,
                accuracy=scores.accuracy,
                accuracy_low=scores.accuracy_low,
                accuracy_high=scores.accuracy_high,
                ece=scores.ece,
                nll=scores.nll,
                sizes=latency.sizes,
            )
        )
        yield (place + 1) / len(runs)
    if looked and split == "test":
        store.count_test_look(splits.fingerprint, " ".join(run.id for run in runs), "frontier")
    return ParetoFront(
        split, len(images), THREADS, seen[0].processor, seen[0].runtime, limits, evaluated(found, limits)
    )


def evaluated(found: Sequence[Candidate], limits: Limits) -> list[Candidate]:
    """`found` with dominated runs and failed limits."""
    return [replace(one, dominated_by=dominated(one, found), fails=failed(one, limits)) for one in found]


def limited(found: ParetoFront, limits: Limits) -> ParetoFront:
    """The same runs against other limits, with the sizes of another precision; nothing is measured."""
    sized = [replace(one, bytes=size_in(one, limits.precision) or one.bytes) for one in found.candidates]
    return replace(found, limits=limits, candidates=evaluated(sized, limits))


def dominated(one: Candidate, among: Sequence[Candidate]) -> str | None:
    """The id of the most accurate run that is as good as `one` in size, p50 and accuracy, and better in one of them."""
    cost = (one.bytes, one.p50_ms, -one.accuracy)
    better = []
    for other in among:
        theirs = (other.bytes, other.p50_ms, -other.accuracy)
        if theirs != cost and all(a <= b for a, b in zip(theirs, cost, strict=True)):
            better.append(other)
    return max(better, key=lambda other: other.accuracy).id if better else None


def failed(one: Candidate, limits: Limits) -> tuple[str, ...]:
    """The limits that a run fails."""
    kb, ms, accuracy = limits.kb, limits.ms, limits.accuracy
    size = size_in(one, limits.precision)
    over = {
        "kb": kb is not None and (size is None or size > 1000 * kb),
        "ms": ms is not None and one.p50_ms > ms,
        "accuracy": accuracy is not None and one.accuracy < accuracy,
    }
    return tuple(name for name, fails in over.items() if fails)


# --- latency ----------------------------------------------------------------------------------------------------------


def kept(run: Run, store: Store) -> Latency | None:
    """A run's cached latency on this machine; None if not measured."""
    with contextlib.suppress(SmallAlignError, TypeError):
        return Latency(**read_json(_file(run, store)))
    return None


def _file(run: Run, store: Store) -> Path:
    import onnxruntime

    machine = json.dumps([processor(), os.cpu_count(), onnxruntime.__version__, THREADS, FORMAT])
    digest = hashlib.sha256(machine.encode()).hexdigest()[:8]
    return compare.folder(store) / f"{run.id}.{compare.digest_of(run)}-latency-{digest}.json"


def _measured(run: Run, splits: Splits, store: Store) -> Work[Latency]:
    """A run's latency, measured and cached."""
    import onnxruntime

    sizes, answer = _answering(run, splits, store)
    yield 0.01
    steady, windows = False, list[float]()
    least, most = (round(seconds / WINDOW) for seconds in WARM)
    while len(windows) < most and not steady:
        windows.append(float(np.median(_timed(answer, WINDOW))))
        steady = len(windows) >= max(2, least) and abs(windows[-1] - windows[-2]) <= AGREE * windows[-2]
        yield 0.5 * len(windows) / most
    samples: list[float] = []
    for part in range(parts := round(MEASURED / WINDOW)):
        samples += _timed(answer, WINDOW)
        yield 0.5 + 0.5 * (part + 1) / parts
    found = Latency(
        int(sizes["fp32"] or 0),
        sizes,
        float(np.percentile(samples, 50)),
        float(np.percentile(samples, 95)),
        steady,
        len(samples),
        THREADS,
        processor(),
        onnxruntime.__version__,
    )
    compare.folder(store).mkdir(parents=True, exist_ok=True)
    write_json(_file(run, store), asdict(found))
    return found


def _answering(run: Run, splits: Splits, store: Store) -> tuple[dict[str, int | None], Callable[[], object]]:
    """Bytes of a run's ONNX file by precision, and a function that runs it on one image.

    Ours takes raw pixels, so its preprocessing is timed with it; an import's is done before, since its file has none.
    """
    import onnxruntime
    import torch

    from smallalign_core import export, networks
    from smallalign_core.runs import imported

    image = np.ascontiguousarray(splits.val.images[:1])
    sizes: dict[str, int | None]
    if run.imported is not None:
        content = run.weights.read_bytes()
        model = imported.OnnxClassifier(content, run.imported)
        one = model.prepare(torch.from_numpy(image))
        given = {run.imported.input: np.repeat(one, run.imported.batch or 1, axis=0)}
        output, sizes = run.imported.output, dict.fromkeys(PRECISIONS, len(content))
    else:
        content = export.to_onnx(networks.from_file(run.weights))
        given, output = {"images": image.transpose(0, 2, 3, 1).copy()}, "logits"
        sizes = export.sizes_of(run, store)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = THREADS
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return dict(sizes), lambda: session.run([output], given)


def _timed(answer: Callable[[], object], seconds: float) -> list[float]:
    """Milliseconds of each call within `seconds`, at least three."""
    times: list[float] = []
    until = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < until:
        start = time.perf_counter()
        answer()
        times.append(1000 * (time.perf_counter() - start))
    return times
