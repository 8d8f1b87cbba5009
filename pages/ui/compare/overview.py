"""Who is right, how often they agree, and which classes the student lost."""

from __future__ import annotations

from typing import Any

import streamlit as st

from pages.ui.compare import Sides, charts
from pages.ui.widgets import formatting
from smallalign_core.analysis import compare

CELLS = {
    "Both right": "both_right",
    "Only teacher right": "teacher_only",
    "Only student right": "student_only",
    "Both wrong": "both_wrong",
}


def figures(found: dict[str, Any], sides: Sides) -> None:
    """The few figures above all tabs."""
    teacher, student = sides.runs[:2]
    st.caption(f"On {compare.images(found)}. {compare.enlarged(found)}")
    with st.grid(min_column_width=160):
        _metric(
            "They agree on",
            formatting.percent(found["agreement"], 2),
            "Share of images with the same top-1. It says nothing about who is right. 95 % interval "
            f"{formatting.interval(found['agreement_low'], found['agreement_high'])}.",
        )
        for name in ("teacher", "student"):
            scores = found[name]
            _metric(
                f"{name.capitalize()} accuracy",
                formatting.percent(scores["accuracy"], 2),
                f"95 % interval {formatting.interval(scores['accuracy_low'], scores['accuracy_high'])}.",
                f"{100 * found['accuracy_change']:+.1f} points" if name == "student" else None,
            )
        _metric("Mean KL", f"{found['kl']:.4f}", "KL(teacher || student) in nats: how far the answers are apart.")
        if teacher.params and student.params:
            _metric(
                "Student's size",
                formatting.percent(student.params / teacher.params),
                f"{student.params:,} of {teacher.params:,} parameters.",
            )


def _metric(name: str, value: str, help: str, delta: str | None = None) -> None:
    st.metric(name, value, delta, delta_arrow="off", delta_color="off", border=True, height="stretch", help=help)


def panel(reports: list[dict[str, Any]], sides: Sides) -> None:
    """Right and wrong in four numbers, the sentence about them, the other runs, and the change of each class."""
    found = reports[0]
    with st.grid(columns=4, min_column_width=155):
        for name, field in CELLS.items():
            st.metric(name, f"{found[field]:,}", border=True, height="stretch")
    low, high = 100 * found["accuracy_change_low"], 100 * found["accuracy_change_high"]
    st.markdown(
        f"{compare.mcnemar(found)} The student's accuracy is {100 * found['accuracy_change']:+.2f} points beside the "
        f"teacher's (95 % interval {low:+.2f} to {high:+.2f}), on {compare.images(found)}. They agree on "
        f"{formatting.percent(found['agreement'])} "
        f"({formatting.interval(found['agreement_low'], found['agreement_high'])}), and make the same mistake on "
        f"{found['inherited']:,}. One training run each: what another seed would give is not in these intervals."
    )
    if len(reports) > 1:
        st.subheader("All runs beside the teacher", anchor=False)
        _others(reports, sides)
    st.subheader("Which classes did the student lose?", anchor=False)
    shown = compare.most_changed(found)
    charts.recall_change(shown, key="recall-change")
    st.caption(
        "Recall of the student minus that of the teacher, with 95 % intervals of paired shares (Bonett & Price, 2012). "
        "Coloured where the interval leaves out zero; with many classes, one in twenty does so by chance."
        + (f" The {len(shown)} classes that changed most are shown." if len(shown) < len(found["classes"]) else "")
    )


def _others(reports: list[dict[str, Any]], sides: Sides) -> None:
    rows = [
        {
            "Run": run.label,
            "Accuracy": found["student"]["accuracy"],
            "Change": f"{100 * found['accuracy_change']:+.2f} "
            f"({100 * found['accuracy_change_low']:+.2f} to {100 * found['accuracy_change_high']:+.2f})",
            "Agreement": found["agreement"],
            "KL": found["kl"],
            "McNemar p": found["mcnemar_p"],
            "Inherited": found["inherited"],
            "Regressions": found["teacher_only"],
            "Fixes": found["student_only"],
        }
        for run, found in zip(sides.runs[1:], reports, strict=True)
    ]
    share = st.column_config.NumberColumn(format="percent")
    st.dataframe(
        {name: [row[name] for row in rows] for name in rows[0]},
        column_config={
            "Run": st.column_config.TextColumn(width="medium"),
            "Accuracy": share,
            "Agreement": share,
            "KL": st.column_config.NumberColumn(format="%.4f"),
            "McNemar p": st.column_config.NumberColumn(format="%.3g"),
            "Change": st.column_config.TextColumn(help="Points of accuracy, and the 95 % interval."),
        },
        hide_index=True,
        lazy=False,
        alt="Each run compared with the teacher: accuracy, agreement, KL, McNemar's p, and kinds of mistakes.",
    )
    if len(reports) > 2:
        st.caption(f"{len(reports)} tests at once: of {len(reports)} equal runs one may fall below p = 0.05 by chance.")
