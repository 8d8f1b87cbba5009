"""A comparison as text, for all entry points."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from smallalign_core.analysis.compare._pair import Compared, Comparison, RecallChange
from smallalign_core.metrics import ENDS


def mcnemar(found: Comparison) -> str:
    """The result of McNemar's test, as text."""
    p, teacher_only, student_only = found.mcnemar_p, found.teacher_only, found.student_only
    if teacher_only + student_only == 0:
        return "Both are correct on the same images: nothing to test."
    better = "teacher" if teacher_only > student_only else "student"
    chance = f"p = {p:.2g}" if p >= 0.001 else "p < 0.001"
    if p < 0.05:
        return f"The {better} is significantly more accurate ({chance}, exact McNemar test)."
    return f"The difference in accuracy is not statistically significant ({chance}, exact McNemar test)."


def macro_change(found: Comparison) -> str:
    """The change of macro recall in points, with its interval."""
    change, low, high = (100 * getattr(found, f"macro_recall_change{end}") for end in ENDS)
    return f"{change:+.2f} points [{low:+.2f}, {high:+.2f}]"


def images(found: Compared) -> str:
    """The images of a comparison: number, split, dataset and size."""
    split = "test" if found.split == "test" else "validation"
    data = found.data
    return f"{found.images:,} {split} images of {Path(data.source).name}, {data.width} × {data.height} pixels"


def enlarged(found: Compared) -> str:
    """A sentence if the teacher was trained on larger images than those of the comparison; else empty."""
    learned, side = found.data.teacher_side, max(found.data.height, found.data.width)
    if learned is None or learned <= side:
        return ""
    return (
        f"The teacher was trained on images of {learned} pixels per side and gets upsampled images of {side} here: its "
        "accuracy at its own input size may be higher."
    )


def commonest_mistake(found: Comparison) -> int:
    """The largest count off both confusion matrices' diagonals, so that two charts share a scale; 1 at least."""
    tables = (found.teacher_confusion, found.student_confusion)
    return max(
        [1]
        + [
            count
            for table in tables
            for true, row in enumerate(table)
            for said, count in enumerate(row)
            if true != said
        ]
    )


def most_confused(found: Comparison, most: int, names: str = "") -> list[int]:
    """Positions of up to `most` classes for a matrix that can be read, in the order of the classes: those of the pairs
    that both models together confuse most, pair after pair.

    Args:
        names: only pairs with a class whose name contains this text, upper and lower case alike; such classes come
            first even without errors.
    """
    import numpy as np

    wanted = names.strip().casefold()
    named = [place for place, name in enumerate(found.classes) if wanted in name.casefold()]
    errors = np.asarray(found.teacher_confusion) + np.asarray(found.student_confusion)
    np.fill_diagonal(errors, 0)
    pairs = sorted(zip(*np.nonzero(errors), strict=True), key=lambda pair: -errors[pair])
    if wanted:
        pairs = [pair for pair in pairs if {*pair} & {*named}]
    chosen: dict[int, None] = {}
    for pair in pairs:
        if len(chosen.keys() | pair) <= most:
            chosen |= dict.fromkeys(map(int, pair))
    for place in named:
        if len(chosen) < most:
            chosen[place] = None
    return sorted(chosen)


def most_changed(changes: Sequence[RecallChange], most: int = 40) -> list[RecallChange]:
    """The classes with images whose recall changed most, in the order of the classes: as many as a chart can show."""
    there = [one for one in changes if one.images]
    kept = sorted(there, key=lambda one: -abs(one.change))[:most]
    return [one for one in there if one in kept]


def verdict(found: Compared, teacher: str, student: str) -> str:
    """A comparison as text: agreement, correct predictions, accuracy and calibration."""
    lines = [
        f"{student} against {teacher}, {images(found)}: agreement {found.agreement:.2%} "
        f"[{found.agreement_low:.2%}, {found.agreement_high:.2%}], KL {found.kl:.4f}",
        f"both correct {found.both_right:,}, only teacher {found.teacher_only:,}, only student "
        f"{found.student_only:,}, both wrong {found.both_wrong:,} ({found.inherited:,} same prediction)",
        f"accuracy: teacher {found.teacher.accuracy:.2%}, student {found.student.accuracy:.2%}, "
        f"{100 * found.accuracy_change:+.2f} points [{100 * found.accuracy_change_low:+.2f}, "
        f"{100 * found.accuracy_change_high:+.2f}]. {mcnemar(found)}",
        f"macro recall: teacher {found.teacher.macro_recall:.2%}, student {found.student.macro_recall:.2%}, "
        f"{macro_change(found)}; least recall: "
        + ", ".join(f"{name} {one.worst_recall:.2%} ({one.worst_class})" for name, one, _ in found.sides),
    ]
    for who, before, fitted in found.sides:
        after = fitted.scores
        lines.append(
            f"{who}: NLL {before.nll:.4f}, ECE {before.ece:.2%}, Brier {before.brier:.4f}; at T = "
            f"{fitted.temperature:.2f} (fitted on validation) NLL {after.nll:.4f}, ECE {after.ece:.2%}, "
            f"Brier {after.brier:.4f}"
        )
    return "\n".join([*lines, *filter(None, [enlarged(found)])])
