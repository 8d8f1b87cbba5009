"""Comparison of teacher and student: agreement, disagreements, calibration, and individual images.

The logits of a run on a split are cached, so that temperatures and images can be explored without further inference:
the dashboard reads them with NumPy only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from smallalign_core import data
from smallalign_core.analysis.compare._answers import (
    digest_of as digest_of,
    file_of,
    folder as folder,
    kept_logits as kept_logits,
    split_logits as split_logits,
)
from smallalign_core.analysis.compare._pair import (
    DIFFER as DIFFER,
    KINDS as KINDS,
    SIDES as SIDES,
    Calibration as Calibration,
    Case as Case,
    Compared as Compared,
    ComparedImages as ComparedImages,
    Comparison as Comparison,
    Pair as Pair,
    RecallChange as RecallChange,
    Side as Side,
    of_logits as of_logits,
)
from smallalign_core.analysis.compare._words import (
    commonest_mistake as commonest_mistake,
    enlarged as enlarged,
    images as images,
    macro_change as macro_change,
    mcnemar as mcnemar,
    most_changed as most_changed,
    most_confused as most_confused,
    verdict as verdict,
)
from smallalign_core.data import Splits
from smallalign_core.errors import BadInput, SmallAlignError
from smallalign_core.metrics import fit_temperature
from smallalign_core.runs.store import Run, Store
from smallalign_core.system import typed
from smallalign_core.system.files import read_json, write_json

FORMAT = 3
"""Version of cached comparisons; increased when their content changes."""


def compare(teacher: Run, student: Run, store: Store, *, split: str = "test", device: str = "cpu") -> Comparison:
    """Compare two finished runs or imports on the student's data; classes are matched by name.

    Temperatures are fitted on validation and applied to `split`.

    Raises:
        BadInput: one of them has other classes.
        BadModel, BadData: weights or images cannot be read.
    """
    splits = data.load(student.data, store.data_cache)
    found = _pair(teacher, student, splits, store, split, device)
    _count(store, splits, [teacher, student], split)
    return found


def compare_once(teacher: Run, students: Sequence[Run], store: Store, *, split: str = "test") -> list[Comparison]:
    """The teacher against each of `students`, on the first student's data; cached by weights.

    A test-set evaluation is counted once for all students, and only if something had to be computed.
    """
    _told_apart([teacher, *students])
    source, splits, found = students[0].data, None, []
    if source.fingerprint is None:
        splits = data.load(source, store.data_cache)
        source = source.model_copy(update={"fingerprint": splits.fingerprint})
    looked = False
    for student in students:
        file = kept(teacher, student, str(source.fingerprint), store, split)
        there = all(file_of(run, str(source.fingerprint), split, store).is_file() for run in (teacher, student))
        known = _read(file) if there else None
        if known is None:
            splits = splits or data.load(source, store.data_cache)
            known = _pair(teacher, student, splits, store, split)
            write_json(file, typed.flat(known))
            looked = True
        found.append(known)
    if looked and splits is not None:
        _count(store, splits, [teacher, *students], split)
    return found


def _read(file: Path) -> Comparison | None:
    """The cached comparison; None if missing or damaged."""
    with contextlib.suppress(SmallAlignError):
        return typed.decode(Comparison, read_json(file), BadInput, f"{file.name} is damaged", "delete it")
    return None


def pair(teacher: Run, student: Run, splits: Splits, store: Store, split: str) -> Pair:
    """The cached logits of both on the same images; needs NumPy only.

    Raises:
        BadInput: they have not been compared yet.
    """
    images = getattr(splits, split)
    logits = [kept_logits(run, splits, split, store) for run in (teacher, student)]
    if any(one is None for one in logits):
        raise BadInput(
            "these runs have not been compared yet", given=f"{teacher.name}, {student.name}", do="compare them first"
        )
    return Pair(logits[0], logits[1], images.labels, images.classes)  # type: ignore[arg-type]


def temperature(run: Run, splits: Splits, store: Store) -> float:
    """The temperature fitted to a run's logits on the validation images of `splits`."""
    return fit_temperature(split_logits(run, splits, "val", store), splits.val.labels)


def kept(teacher: Run, student: Run, fingerprint: str, store: Store, split: str) -> Path:
    """The cache path of a comparison, by both runs' weights and the images."""
    names = "-".join(f"{run.id}.{digest_of(run)}" for run in (teacher, student))
    return folder(store) / f"{names}-{fingerprint[:12]}-{split}-{FORMAT}.json"


def _told_apart(runs: Sequence[Run]) -> None:
    ids = [run.id for run in runs]
    if len(ids) < 2 or (len(ids) > 2 and len(set(ids)) < len(ids)):
        raise BadInput(
            "a comparison needs different runs", given=", ".join(run.name for run in runs), do="choose other runs"
        )


def _pair(teacher: Run, student: Run, splits: Splits, store: Store, split: str, device: str = "cpu") -> Comparison:
    said = [split_logits(run, splits, split, store, device) for run in (teacher, student)]
    fitted = temperature(teacher, splits, store), temperature(student, splits, store)
    ids = teacher.id, student.id
    return of_logits(said[0], said[1], getattr(splits, split), split=split, ids=ids, temperatures=fitted)


def _count(store: Store, splits: Splits, runs: Sequence[Run], split: str) -> None:
    if split == "test":
        store.count_test_look(splits.fingerprint, " ".join(run.id for run in runs[1:]), "comparison")
