"""Two tables of distillation, made again with the library's own loop and printed beside the figures they repeat.

    python benchmarks/paper.py [digits]        # 100 digits, an ensemble teacher, 6 seeds: about two minutes on one core
    python benchmarks/paper.py mnist FOLDER    # Hinton, Vinyals & Dean (2015), section 3, on a folder of IDX files

`digits` needs no download. Half of scikit-learn's 1,797 digits teach an ensemble of three MLPs, 100 of them teach the
student, the other half is the test. What it shows: soft targets help where images are few; answers that were cached for
clean images, used with augmentation, hurt; the same view for teacher and student, and patience, help most.

`mnist` is the paper's protocol where the paper gives one. It gives no optimizer, length or weight of the labels: those
are ours, and every deviation is printed. Weights are those after the last step, so nothing is chosen, but for the bias
of a missing class: the paper chose it on test images, this command chooses it on validation images.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from smallalign_core import data
from smallalign_core.augment import Batch, Views
from smallalign_core.data import ImageSet, Splits
from smallalign_core.errors import SmallAlignError
from smallalign_core.metrics import logits_of, score
from smallalign_core.networks import Classifier
from smallalign_core.runs.store import Store
from smallalign_core.spec import DataSpec, RunSpec, parse
from smallalign_core.training.loop import Training
from smallalign_core.training.losses import NetworkOutput
from smallalign_core.training.teacher import Teacher, TeacherSource

CACHE = Store().data_cache
PLAIN_ADAM = {"kind": "adamw", "weight_decay": 0.0}
COSINE = {"kind": "cosine", "warmup": 0.0}


class Stale:
    """The common mistake, as a teacher: its answers to the clean images, whatever view the student sees."""

    def __init__(self, teacher: Teacher, images: ImageSet) -> None:
        self._teacher, self._cached = teacher, torch.from_numpy(teacher.on(images))

    def batch_with_targets(self, views: Views, step: int) -> tuple[Batch, NetworkOutput]:
        """The batch of `step`, and the answers to what its images were before augmentation."""
        batch = views(step)
        return batch, NetworkOutput(self._cached[batch.rows])

    def on(self, images: ImageSet) -> NDArray[np.float32]:
        """Logits [N, C] of images as they are."""
        return self._teacher.on(images)


def trained(
    specs: Sequence[RunSpec],
    splits: Splits,
    teacher: TeacherSource | None = None,
    *,
    input_dropout: float = 0.0,
    standardised: bool = True,
) -> list[Classifier]:
    """The classifiers of a lockstep after its last step. Nothing is validated, since nothing is chosen.

    Args:
        input_dropout: share of the pixels dropped in training, which no network's spec offers.
        standardised: whether the classifier standardises pixels, as all of ours do; else it sees them as 0..1.
    """
    training = Training(specs, splits, teacher)
    for student in training.students:
        if not standardised:
            student.classifier.mean.zero_()
            student.classifier.std.fill_(1)
        if input_dropout:
            student.classifier.body.insert(0, nn.Dropout(input_dropout))
    while training.step < training.steps:
        training.advance()
    return [student.classifier.eval() for student in training.students]


def say(text: str) -> None:
    """Progress, aside from the answer."""
    print(text, file=sys.stderr, flush=True)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under a head, in columns, as Markdown."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, ["-" * width for width in widths], *rows):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")


# --- the offline digits protocol --------------------------------------------------------------------------------------

# What the policy of the research script does: ±0.25 rad, ±10 % in size, ±half a pixel.
JITTER = [
    {"kind": "rotate", "degrees": float(np.rad2deg(0.25))},
    {"kind": "affine", "translate": 0.5 / 8, "scale": 0.1, "shear": 0.0},
]
MIXED = [*JITTER, {"kind": "mixup", "alpha": 1.0}]
POLICIES: dict[str, list[dict[str, Any]]] = {"none": [], "jitter": JITTER, "mixed": MIXED}


@dataclass(frozen=True)
class Row:
    """One line of the digits table.

    Attributes:
        loss: None learns from labels only.
        policy: a key of POLICIES.
        patience: times the usual number of epochs.
        stale: the teacher's answers are those to clean images.
        research: errors (mean, standard deviation over 6 seeds) of the independent script that this table repeats.
    """

    name: str
    loss: dict[str, Any] | None
    research: tuple[float, float]
    policy: str = "none"
    patience: int = 1
    stale: bool = False


def _kd(temperature: float = 4, weight: float = 0.9) -> dict[str, Any]:
    return {"kind": "kd", "temperature": temperature, "weight": weight}


ROWS = (
    Row("CE", None, (118.5, 9.7)),
    Row("CE, augmented", None, (105, 16), "jitter"),
    Row("CE, augmented, 4x epochs", None, (82, 16), "jitter", 4),
    Row("KD T=1", _kd(1), (85, 7)),
    Row("KD T=4", _kd(4), (74, 11)),
    Row("KD T=20", _kd(20), (81, 15)),
    Row("KD T=4, weight 0.5", _kd(4, 0.5), (71, 9)),
    Row("KD, augmented, stale cache", _kd(), (121, 23), "jitter", stale=True),
    Row("KD, augmented, stale cache, 4x epochs", _kd(), (62, 10), "jitter", 4, stale=True),
    Row("KD, augmented, same view", _kd(), (94, 14), "jitter"),
    Row("KD, augmented, same view, 4x epochs", _kd(), (47.5, 4.5), "jitter", 4),
    Row("Function matching", _kd(weight=1), (114, 16), "mixed"),
    Row("Function matching, 4x epochs", _kd(weight=1), (56, 3), "mixed", 4),
)
RESEARCH_TEACHER = (31.5, 2.1)
BEST = "KD, augmented, same view, 4x epochs"
CLAIMS = (
    ("KD T=4 < CE", "KD T=4", "CE"),
    ("same view < stale cache", "KD, augmented, same view", "KD, augmented, stale cache"),
    ("same view < stale cache, 4x epochs", BEST, "KD, augmented, stale cache, 4x epochs"),
)
DIGITS_DEVIATIONS = (
    "views are rounded to 255 levels (there: not at all)",
    "cosine by step (there: by epoch); one endless stream of batches (there: a ragged last one, teacher only)",
    "the ensemble answers with the mean of its probabilities (there: of its logits), rounded to half precision",
    "MixUp draws a share for each image (there: for each batch)",
    "standard deviations are of a sample, n - 1 (there: n)",
)


def _halves() -> tuple[ImageSet, ImageSet]:
    """(898 images to learn from, 899 to test on): stratified, the same images as in the research script."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    ids = np.arange(len(pixels), dtype=np.uint64)
    whole = ImageSet(pixels, bunch.target.astype(np.int64), ids, tuple("0123456789"))
    learn, test = train_test_split(np.arange(len(whole)), test_size=0.5, stratify=whole.labels, random_state=0)
    return whole.take(learn), whole.take(test)


def _ensemble(learn: ImageSet, test: ImageSet, seed: int, epochs: int, standardised: bool) -> Teacher:
    """Three MLPs 64-256-256-10 with dropout 0.2 on the input and 0.5 on hidden units, on all 898 images."""
    members = []
    for number in range(3):
        spec = parse(
            {
                "data": "-",
                "network": {"kind": "mlp", "width": 256, "depth": 2, "dropout": 0.5},
                "optimizer": {**PLAIN_ADAM, "lr": 2e-3},
                "schedule": COSINE,
                "epochs": max(1, round(0.4 * epochs)),
                "batch": 64,
                "seed": 1000 * seed + number,
            }
        )
        members += trained([spec], Splits(learn, learn, test), input_dropout=0.2, standardised=standardised)
    return Teacher(members, learn.classes)


def _students(
    rows: Sequence[Row], few: Splits, teacher: Teacher, seed: int, epochs: int, standardised: bool
) -> list[Classifier]:
    """Students 64-64-64-10 of rows that share their views and their teacher, in lockstep."""
    specs = [
        parse(
            {
                "data": "-",
                "network": {"kind": "mlp", "width": 64, "depth": 2},
                "teacher": row.loss and "ensemble",
                "loss": row.loss,
                "augment": POLICIES[row.policy],
                "optimizer": {**PLAIN_ADAM, "lr": 3e-3},
                "schedule": COSINE,
                "epochs": row.patience * epochs,
                "batch": 50,
                "seed": 100 + seed,  # the script's: the same initial weights
            }
        )
        for row in rows
    ]
    chosen = Stale(teacher, few.train) if rows[0].stale else teacher
    return trained(specs, few, chosen, standardised=standardised)


def _together() -> list[list[Row]]:
    """The rows of each lockstep."""
    groups: dict[tuple[str, int, bool], list[Row]] = {}
    for row in ROWS:
        groups.setdefault((row.policy, row.patience, row.stale), []).append(row)
    return list(groups.values())


def digits(seeds: int, epochs: int, *, standardised: bool) -> None:
    """Train and print the digits table."""
    learn, test = _halves()
    names = ["Teacher", *(row.name for row in ROWS)]
    errors = {name: np.zeros(seeds) for name in names}
    agreement, calibration = ({name: np.zeros(seeds) for name in names} for _ in range(2))
    start = time.monotonic()
    for seed in range(seeds):
        teacher = _ensemble(learn, test, seed, epochs, standardised)
        chosen = torch.randperm(len(learn), generator=torch.Generator().manual_seed(seed))[:100].numpy()
        expected = teacher.on(test)

        def note(name: str, said: NDArray[np.float32], seed: int = seed, expected: Any = expected) -> None:
            errors[name][seed] = (said.argmax(1) != test.labels).sum()
            agreement[name][seed] = (said.argmax(1) == expected.argmax(1)).mean()
            calibration[name][seed] = score(said, test.labels, test.classes).ece

        note("Teacher", expected)
        few = Splits(learn.take(chosen), learn, test)
        for rows in _together():
            students = _students(rows, few, teacher, seed, epochs, standardised)
            for row, student in zip(rows, students, strict=True):
                note(row.name, logits_of(student, test))
        say(f"seed {seed}: {time.monotonic() - start:.0f} s")

    research = {"Teacher": RESEARCH_TEACHER, **{row.name: row.research for row in ROWS}}
    print(
        f"Digits: 100 images teach the student, {len(learn)} the teacher; errors of {len(test)} test images, "
        f"mean ± standard deviation over {seeds} seeds, last weights, {epochs} epochs, "
        f"pixels {'standardised' if standardised else '0..1'}.\n"
    )
    table(
        ["run", "errors", "agreement %", "ECE %", "research/kd.md 3.2"],
        [
            [
                name,
                _spread(errors[name]),
                "" if name == "Teacher" else f"{100 * agreement[name].mean():.1f}",
                f"{100 * calibration[name].mean():.1f}",
                f"{research[name][0]:g} ± {research[name][1]:g}",
            ]
            for name in names
        ],
    )
    next_best = min((row.name for row in ROWS if row.name != BEST), key=lambda name: float(errors[name].mean()))
    claims = (*CLAIMS, (f"4x same view is best (next: {next_best})", BEST, next_best))
    print("\nPaired differences in errors, with 95 % t intervals:\n")
    intervals = {claim: _interval(errors[better] - errors[worse]) for claim, better, worse in claims}
    table(
        ["claim", "difference", "95 % interval", ""],
        [
            [claim, f"{mean:+.1f}", f"{low:+.1f} to {high:+.1f}", "holds" if high < 0 else "within noise"]
            for claim, (mean, low, high) in intervals.items()
        ],
    )
    pixels = ("pixels are standardised inside the classifier (there: 0..1)",) if standardised else ()
    _print_deviations((*pixels, *DIGITS_DEVIATIONS), time.monotonic() - start)
    found = {name: {"errors": errors[name].tolist(), "agreement": agreement[name].tolist()} for name in names}
    print(json.dumps({"rows": found, "claims": intervals}))


def _spread(values: NDArray[np.float64]) -> str:
    return f"{values.mean():.1f} ± {values.std(ddof=1):.1f}"


def _interval(differences: NDArray[np.float64]) -> tuple[float, float, float]:
    """(mean, low, high): the paired difference and its 95 % t interval."""
    from scipy.stats import t

    half = t.ppf(0.975, len(differences) - 1) * differences.std(ddof=1) / np.sqrt(len(differences))
    mean = float(differences.mean())
    return mean, mean - float(half), mean + float(half)


def _print_deviations(deviations: Sequence[str], seconds: float) -> None:
    print(f"\nDeviations from the protocol: {'; '.join(deviations)}.\nIt took {seconds:.0f} s.")


# --- Hinton, Vinyals & Dean (2015), section 3 -------------------------------------------------------------------------

MISSING, KEPT = (3,), (7, 8)
"""Classes left out of the transfer set, and the only classes in it, by position."""

MNIST_DEVIATIONS = (
    "Adam 1e-3, cosine, batch 128 and the number of epochs are ours: the paper gives none",
    "dropout is 0.2 on the input and 0.5 on hidden units as in its reference [5]; no weight constraints",
    "the labels' share of the loss is 0.1: the paper gives none",
    "one in twelve training images is held out for validation (5,000 of 60,000), and only to choose the bias",
    "that bias was chosen on test images in the paper, on validation images here",
)


def mnist(folder: str, *, images: int | None, epochs: int, teacher_width: int, student_width: int, seed: int) -> None:
    """Train and print the paper's table for a folder of IDX files."""
    splits = data.load(DataSpec(source=folder, images=images, validation=1 / 12), CACHE)
    classes, test = splits.classes, splits.test
    start = time.monotonic()
    base: dict[str, Any] = {
        "data": "-",
        "optimizer": {**PLAIN_ADAM, "lr": 1e-3},
        "schedule": COSINE,
        "epochs": epochs,
        "batch": 128,
        "seed": seed,
    }
    big = {"kind": "mlp", "width": teacher_width, "depth": 2, "dropout": 0.5}
    jittered = parse({**base, "network": big, "augment": [{"kind": "shift", "pixels": 2}]})
    (member,) = trained([jittered], splits, input_dropout=0.2)
    teacher = Teacher(member, classes)
    say(f"teacher: {time.monotonic() - start:.0f} s")

    small = {"kind": "mlp", "width": student_width, "depth": 2}
    alone = parse({**base, "network": small})
    taught = parse({**base, "network": small, "teacher": "t", "loss": _kd(20)})
    labels_only, soft = trained([alone, taught], splits, teacher)
    say(f"students: {time.monotonic() - start:.0f} s")
    rows = [
        ["teacher, dropout, jitter of 2 pixels", _wrong(teacher.on(test), test), "67"],
        ["student, labels only", _wrong(logits_of(labels_only, test), test), "146"],
        ["student, T=20, no jitter", _wrong(logits_of(soft, test), test), "74"],
    ]
    published = {MISSING: ("206, of which 133 on it", "109, of which 14 on it"), KEPT: ("47.3 %", "13.2 %")}
    for few, about in ((MISSING, "no {}"), (KEPT, "only {}")):
        named = " and ".join(classes[position] for position in few)
        those = np.isin(splits.train.labels, few)
        transfer = splits.train.take(np.flatnonzero(~those if few == MISSING else those))
        (student,) = trained([taught], Splits(transfer, splits.val, test), teacher)
        said = logits_of(student, test)
        bias = chosen_bias(logits_of(student, splits.val), splits.val.labels, few)
        what = f"student, T=20, transfer set with {about.format(named)}"
        rows.append([what, _wrong(said, test, few), published[few][0]])
        rows.append([f"the same, its bias {bias:+.2f}", _wrong(biased(said, few, bias), test, few), published[few][1]])
        say(f"{what}: {time.monotonic() - start:.0f} s")

    print(
        f"{folder}: {len(splits.train):,} training images, {epochs} epochs, teacher {teacher_width}-{teacher_width}, "
        f"students {student_width}-{student_width}, seed {seed}; errors of {len(test):,} test images.\n"
    )
    table(["run", "errors", "published for MNIST, 1200-1200 and 800-800"], rows)
    _print_deviations(MNIST_DEVIATIONS, time.monotonic() - start)
    print(json.dumps({"rows": rows, "bias": "chosen on validation"}))


def biased(logits: NDArray[np.float32], positions: Sequence[int], bias: float) -> NDArray[np.float32]:
    """Logits [N, C] with a constant added to those of some classes."""
    moved = logits.copy()
    moved[:, list(positions)] += bias
    return moved


def chosen_bias(logits: NDArray[np.float32], labels: NDArray[np.int64], positions: Sequence[int]) -> float:
    """The constant for some classes with the fewest errors on these (validation) images; the smallest such."""
    grid = sorted(np.arange(-20, 20.25, 0.25), key=abs)
    return float(min(grid, key=lambda bias: int((biased(logits, positions, bias).argmax(1) != labels).sum())))


def _wrong(said: NDArray[np.float32], test: ImageSet, positions: Sequence[int] = ()) -> str:
    """Errors; with a class left out also how many of them are on it."""
    missed = said.argmax(1) != test.labels
    if tuple(positions) == MISSING:
        those = np.isin(test.labels, positions)
        return f"{missed.sum():,}, of which {missed[those].sum():,} on its {those.sum():,}"
    return f"{missed.sum():,} ({missed.mean():.1%})"


def main() -> None:
    """Read the arguments and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb")
    small = verbs.add_parser("digits", help="the offline protocol (default)")
    small.add_argument("--seeds", type=int, default=6)
    small.add_argument("--epochs", type=int, default=150)
    small.add_argument("--standardised", action="store_true", help="let classifiers standardise pixels, as ours do")
    whole = verbs.add_parser("mnist", help="Hinton, Vinyals & Dean (2015) on any folder of IDX files")
    whole.add_argument("folder")
    whole.add_argument("--images", type=int, default=None, help="use only so many training images")
    whole.add_argument("--epochs", type=int, default=60)
    whole.add_argument("--teacher-width", type=int, default=1200)
    whole.add_argument("--student-width", type=int, default=800)
    whole.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(sys.argv[1:] or ["digits"])
    torch.set_num_threads(1)
    try:
        if arguments.verb == "digits":
            if arguments.seeds < 2 or arguments.epochs < 1:
                parser.error("a spread needs at least 2 seeds, and training at least 1 epoch")
            digits(arguments.seeds, arguments.epochs, standardised=arguments.standardised)
        else:
            options = {name: value for name, value in vars(arguments).items() if name not in ("verb", "folder")}
            mnist(arguments.folder, **options)
    except SmallAlignError as error:
        say(str(error))
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
