"""Is it still the class? The teacher's answers to a policy: figures, curve, parts, warnings, and what flipped."""

from __future__ import annotations

import html
import json
from typing import Any

import streamlit as st

from pages.ui.app import keys
from pages.ui.augment import augmented_images
from pages.ui.charts import basic
from pages.ui.widgets import formatting, polling, url_state
from pages.ui.widgets.run_table import RunRow
from smallalign_core.runs.store import Store
from smallalign_core.service import augmentation_api

AUTOMATIC = 1e12
"""Multiply-accumulates that are asked for without a click: some ten seconds of one processor core."""

LOOKED_AT, DRAWS, STRENGTHS = (512, 2048), 4, 9


@st.cache_data(max_entries=16, show_spinner=False)
def _finished(
    asked: str,
    root: str,  # noqa: ARG001  # part of the cache's key
) -> dict[str, Any]:
    answer = polling.step("risk", **json.loads(asked))
    report = answer["report"]
    captions = [
        f"{html.escape(one['before'])} {one['before_confidence']:.0%} → "
        f"<b>{html.escape(one['after'])} {one['after_confidence']:.0%}</b>"
        for one in report["flipped"][: augmentation_api.PICTURED]
    ]
    return {"report": report, "flipped": augmented_images.pairs(augmentation_api.unpacked(answer), captions)}


def limit() -> float:
    """The highest accepted share of images whose class changes, kept in the address."""
    return float(
        url_state.pick_number(
            st.slider,
            "Accept at most",
            0.0,
            0.5,
            0.01,
            key="limit",
            first=0.05,
            format="percent",
            width=260,
            help="Share of images whose class may change. It decides the suggested strength and the warnings.",
        )
    )


def panel(question: dict[str, Any], teacher: RunRow, *, looked_at: int, store: Store) -> None:
    """The whole panel; asks the desk in short steps, so that a click on the page interrupts it.

    Args:
        question: policy, data, seed, strength and limit.
        looked_at: how many validation images there are.
    """
    asked, root = json.dumps(question | {"teacher": teacher.id}, sort_keys=True), str(store.root.resolve())
    macs = (store.run(teacher.id).result or {}).get("macs", 0)
    images = max(LOOKED_AT[0], min(LOOKED_AT[1], looked_at))
    much = macs * images * DRAWS * (STRENGTHS + len(question["policy"])) > AUTOMATIC
    place = st.empty()
    if much and st.session_state.get(keys.RISK_WANTED) != asked:
        with place.container():
            st.caption(f"This teacher needs a while for {images:,} images, {DRAWS} draws of each, at every strength.")
            st.button(
                "Ask the teacher",
                icon=":material/school:",
                on_click=st.session_state.__setitem__,
                args=(keys.RISK_WANTED, asked),
            )
        return
    found = polling.wait(lambda: _finished(asked, root), f"{teacher.label} looks at augmented images", place=place)
    with place.container():
        _show(found["report"], found["flipped"], question["strength"])


def _show(report: dict[str, Any], flipped: tuple[str, str], strength: float) -> None:
    whole, clean, suggested = report["whole"], report["clean"], report["suggested"]
    over = whole["flip_low"] > report["limit"]
    with st.grid(min_column_width=150):
        st.metric(
            "Class changes",
            formatting.percent(whole["flip_rate"]),
            border=True,
            height="stretch",
            help="Look here first: the share of views that the teacher calls differently from their clean image. "
            f"95 % interval {formatting.interval(whole['flip_low'], whole['flip_high'])}.",
        )
        _before_and_after("Confidence", whole["confidence_before"], whole["confidence_after"])
        _before_and_after("Accuracy", whole["accuracy_before"], whole["accuracy_after"])
        st.metric(
            "Teacher stddev",
            f"{whole['stddev']:.4f}",
            border=True,
            height="stretch",
            help="Spread of the teacher's mean answer over groups of images (Wang et al., NeurIPS 2022): lower "
            "promises a better student. Compare only policies that keep the class: it also falls when a policy "
            f"destroys what there was to see. Clean images: {clean['stddev']:.4f}.",
        )
    st.caption(
        f"{report['images']:,} images, {report['draws']} draws of each with seed {report['seed']}, at strength "
        f"{strength:g}. 95 % interval of the share that changes: "
        f"{formatting.interval(whole['flip_low'], whole['flip_high'])}. No test image is looked at."
    )
    if report["warnings"]:
        told = "\n".join(f"- {one[:1].upper()}{one[1:]}." for one in report["warnings"])
        (st.warning if over or "alone" in told else st.info)(told)
    else:
        st.success("Nothing to warn of: the teacher still sees the class.", icon=":material/check:")

    left, right = st.columns(2, gap="large")
    with left:
        st.markdown("**How strong may it be?**")
        basic.over_strength(report["curve"], limit=report["limit"], now=strength, suggested=suggested, key="risk-curve")
        if suggested is None:
            st.caption("Even the weakest strength that was tried changes more than you accept.")
        elif suggested == strength:
            st.caption(f"Strength {suggested:g} is the largest tried that stays within what you accept.")
        else:
            st.button(
                f"Use strength {suggested:g}",
                icon=":material/tune:",
                on_click=st.session_state.__setitem__,
                args=(url_state.own("strength"), suggested),
                help="The largest strength tried up to which the share stays within what you accept.",
            )
    with right:
        st.markdown("**Which part does it?**")
        parts = [(part["name"], part["effect"]) for part in report["parts"]]
        if parts:
            basic.by_part(parts, limit=report["limit"], key="risk-parts")
            _ranking(parts)
        else:
            st.caption("Parts that mix images change the label on purpose and are not judged.")

    st.markdown(f"**Images that changed class: {report['flipped_count']:,}**")
    if flipped[1]:
        st.html(flipped[0])
        st.html(flipped[1])
        many = min(augmentation_api.PICTURED, report["flipped_count"])
        st.caption(f"The {many} whose new answer is the surest: what the teacher says before and after.")
    else:
        st.caption("None of the views that were looked at.")


def _before_and_after(name: str, before: float, after: float) -> None:
    st.metric(
        name,
        formatting.percent(after),
        f"{round(100 * (after - before), 1) + 0.0:+.1f} points",
        delta_arrow="off",
        delta_color="off",
        border=True,
        height="stretch",
        help=f"The teacher's, on augmented images; {formatting.percent(before)} on the clean ones.",
    )


def _ranking(parts: list[tuple[str, dict[str, Any]]]) -> None:
    """The figures of each part; ordered by the teacher's spread when the column is clicked."""
    ranked = sorted(range(len(parts)), key=lambda place: parts[place][1]["stddev"])
    st.dataframe(
        {
            "Part": [name for name, _ in parts],
            "Changes": [effect["flip_rate"] for _, effect in parts],
            "95 % interval": [formatting.interval(effect["flip_low"], effect["flip_high"]) for _, effect in parts],
            "Confidence": [effect["confidence_after"] for _, effect in parts],
            "Stddev": [effect["stddev"] for _, effect in parts],
            "Rank": [ranked.index(place) + 1 for place in range(len(parts))],
        },
        column_config={
            "Changes": st.column_config.NumberColumn(format="percent"),
            "Confidence": st.column_config.NumberColumn(format="percent"),
            "Stddev": st.column_config.NumberColumn(format="%.4f", help="Teacher stddev of this part alone."),
            "Rank": st.column_config.NumberColumn(help="By teacher stddev, lowest first. Look at the changes before."),
        },
        hide_index=True,
        lazy=False,
        alt="Each part alone: share that changes, confidence, teacher stddev.",
    )
