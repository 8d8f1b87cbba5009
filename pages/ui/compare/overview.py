"""Accuracy of both models, agreement, and per-class recall change."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import streamlit as st

from pages.ui.compare import Sides, charts
from pages.ui.widgets import formatting
from smallalign_core.analysis import compare
from smallalign_core.analysis.compare import Compared

CELLS: dict[str, Callable[[Compared], int]] = {
    "Both correct": lambda found: found.both_right,
    "Teacher-only correct": lambda found: found.teacher_only,
    "Student-only correct": lambda found: found.student_only,
    "Both wrong": lambda found: found.both_wrong,
}


def figures(found: Compared, sides: Sides) -> None:
    """The summary metrics above all tabs."""
    teacher, student = sides.runs[:2]
    st.caption(f"On {compare.images(found)}. {compare.enlarged(found)}")
    with st.grid(min_column_width=175):
        _metric(
            "Agreement",
            formatting.percent(found.agreement, 2),
            "Share of images with the same top-1 prediction, correct or not. 95% CI "
            f"{formatting.interval(found.agreement_low, found.agreement_high)}.",
        )
        for name, scores, _ in found.sides:
            _metric(
                f"{name.capitalize()} accuracy",
                formatting.percent(scores.accuracy, 2),
                f"95% CI {formatting.interval(scores.accuracy_low, scores.accuracy_high)}.",
                f"{100 * found.accuracy_change:+.1f} points" if name == "student" else None,
            )
        _metric(
            "Student macro recall",
            formatting.percent(found.student.macro_recall, 2),
            "Mean recall over classes (balanced accuracy). Student minus teacher, with a 95% CI: "
            f"{compare.macro_change(found)}. Least recall: {found.student.worst_class}, "
            f"{formatting.percent(found.student.worst_recall, 2)}.",
            f"{100 * found.macro_recall_change:+.1f} points",
        )
        _metric("Mean KL", f"{found.kl:.4f}", "KL(teacher || student) of the predicted distributions, in nats.")
        if teacher.params and student.params:
            _metric(
                "Relative size",
                formatting.percent(student.params / teacher.params),
                f"{student.params:,} of {teacher.params:,} parameters.",
            )


def _metric(name: str, value: str, help: str, delta: str | None = None) -> None:
    st.metric(name, value, delta, delta_arrow="off", delta_color="off", border=True, height="stretch", help=help)


def panel(reports: Sequence[Compared], sides: Sides) -> None:
    """The four outcome counts, a summary, the additional runs, and the change of each class."""
    found = reports[0]
    with st.grid(columns=4, min_column_width=155):
        for name, count in CELLS.items():
            st.metric(name, f"{count(found):,}", border=True, height="stretch")
    change = 100 * found.accuracy_change
    low, high = 100 * found.accuracy_change_low, 100 * found.accuracy_change_high
    st.markdown(
        f"{compare.mcnemar(found)} The student's accuracy is {abs(change):.2f} points {_relation(change)} the "
        f"teacher's (95% CI of the difference {low:+.2f} to {high:+.2f}), on {compare.images(found)}. Agreement is "
        f"{formatting.percent(found.agreement)} "
        f"({formatting.interval(found.agreement_low, found.agreement_high)}); {found.inherited:,} errors are "
        "inherited. Intervals exclude seed variance (one training run each)."
    )
    if len(reports) > 1:
        st.subheader("All runs vs. teacher", anchor=False)
        _others(reports, sides)
    st.subheader("Per-class recall change", anchor=False)
    shown = compare.most_changed(found.recall_change)
    charts.recall_change(shown, key="recall-change")
    st.caption(
        "Recall of the student minus recall of the teacher, with 95% CIs for paired proportions (Bonett & Price, "
        "2012). Colored where the interval excludes zero; not corrected for multiple classes."
        + (f" The {len(shown)} largest changes are shown." if len(shown) < len(found.classes) else "")
    )


def _relation(change: float) -> str:
    return "above" if change > 0 else "below" if change < 0 else "from"


def _others(reports: Sequence[Compared], sides: Sides) -> None:
    rows = [
        {
            "Run": run.label,
            "Accuracy": found.student.accuracy,
            "Accuracy change": f"{100 * found.accuracy_change:+.2f} "
            f"({100 * found.accuracy_change_low:+.2f} to {100 * found.accuracy_change_high:+.2f})",
            "Macro recall": found.student.macro_recall,
            "Agreement": found.agreement,
            "KL": found.kl,
            "McNemar p": found.mcnemar_p,
            "Inherited": found.inherited,
            "Regressions": found.teacher_only,
            "Student-only correct": found.student_only,
        }
        for run, found in zip(sides.runs[1:], reports, strict=True)
    ]
    share = st.column_config.NumberColumn(format="percent")
    st.dataframe(
        {name: [row[name] for row in rows] for name in rows[0]},
        column_config={
            "Run": st.column_config.TextColumn(width="medium"),
            "Accuracy": share,
            "Macro recall": share,
            "Agreement": share,
            "KL": st.column_config.NumberColumn(format="%.4f"),
            "McNemar p": st.column_config.NumberColumn(format="%.3g"),
            "Accuracy change": st.column_config.TextColumn(help="Percentage points, with 95% CI."),
        },
        hide_index=True,
        lazy=False,
        placeholder="–",
        alt="Each run compared with the teacher: accuracy, agreement, KL, McNemar's p, and kinds of errors.",
    )
    if len(reports) > 2:
        st.caption(f"{len(reports)} tests; p-values are not corrected for multiple comparisons.")
