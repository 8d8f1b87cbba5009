"""Label preservation: the teacher's predictions under a policy, as metrics, sweep, transforms and changed images."""

from __future__ import annotations

import html

import streamlit as st

from pages.ui.app import keys
from pages.ui.augment import augmented_images
from pages.ui.charts import basic
from pages.ui.widgets import formatting, polling, url_state
from pages.ui.widgets.run_table import RunRow
from smallalign_core.analysis.label_report import Effect, LabelPreservation
from smallalign_core.runs.store import Store
from smallalign_core.service import augmentation_api
from smallalign_core.service.requests import CheckLabels
from smallalign_core.system.typed import encode

AUTOMATIC = 1e12
"""Multiply-accumulates that run without a click: about ten seconds on one CPU core."""

LOOKED_AT, DRAWS, STRENGTHS = (512, 2048), 4, 9


@st.cache_data(max_entries=16, show_spinner=False)
def _finished(
    asked: CheckLabels,
    root: str,  # noqa: ARG001  # part of the cache's key
) -> tuple[LabelPreservation, tuple[str, str]]:
    """The report, and the changed images as style and HTML."""
    found = polling.step(asked)
    captions = [
        f"{html.escape(one.before)} {one.before_confidence:.0%} → "
        f"<b>{html.escape(one.after)} {one.after_confidence:.0%}</b>"
        for one in found.report.flipped[: augmentation_api.PICTURED]
    ]
    return found.report, augmented_images.pairs(found.changed.array(), captions)


def limit() -> float:
    """The highest accepted label-change rate, kept in the URL."""
    return float(
        url_state.pick_number(
            st.slider,
            "Max. label-change rate",
            0.0,
            0.5,
            0.01,
            key="limit",
            first=0.05,
            format="percent",
            width=260,
            help="Highest accepted share of augmented images with a changed predicted class. Sets the suggested "
            "strength and the warnings.",
        )
    )


def panel(asked: CheckLabels, teacher: RunRow, *, looked_at: int, store: Store) -> None:
    """The whole panel; calls the backend in short steps, so that a click on the page interrupts it.

    Args:
        looked_at: how many validation images there are.
    """
    root, key = str(store.root.resolve()), encode(asked)
    macs = (store.run(teacher.id).result or {}).get("macs", 0)
    images = max(LOOKED_AT[0], min(LOOKED_AT[1], looked_at))
    much = macs * images * DRAWS * (STRENGTHS + len(asked.policy)) > AUTOMATIC
    place = st.empty()
    if much and st.session_state.get(keys.RISK_WANTED) != key:
        with place.container():
            st.caption(
                f"Slow with this teacher: {images:,} images, {DRAWS} augmented versions each, at every strength."
            )
            st.button(
                "Evaluate with teacher",
                icon=":material/school:",
                on_click=st.session_state.__setitem__,
                args=(keys.RISK_WANTED, key),
            )
        return
    report, flipped = polling.wait(
        lambda: _finished(asked, root), f"Evaluating augmented images with {teacher.label}", place=place
    )
    with place.container():
        _show(report, flipped, asked.strength)


def _show(report: LabelPreservation, flipped: tuple[str, str], strength: float) -> None:
    whole, clean, suggested = report.whole, report.clean, report.suggested
    over = whole.flip_low > report.limit
    with st.grid(min_column_width=190):
        st.metric(
            "Label-change rate",
            formatting.percent(whole.flip_rate),
            border=True,
            height="stretch",
            help="Share of augmented images with another predicted class than their original. "
            f"95% CI {formatting.interval(whole.flip_low, whole.flip_high)}.",
        )
        _before_and_after("Confidence", whole.confidence_before, whole.confidence_after)
        _before_and_after("Accuracy", whole.accuracy_before, whole.accuracy_after)
        st.metric(
            "Teacher std. dev.",
            f"{whole.stddev:.4f}",
            border=True,
            height="stretch",
            help="Standard deviation of the teacher's mean prediction over groups of images (Wang et al., NeurIPS "
            "2022): lower predicts a better student. Compare only label-preserving policies: it also falls when "
            f"augmentation destroys the image content. Original images: {clean.stddev:.4f}.",
        )
    st.caption(
        f"{report.images:,} images, {report.draws} augmented versions each, seed {report.seed}, "
        f"strength {strength:g}. 95% CI of the label-change rate: "
        f"{formatting.interval(whole.flip_low, whole.flip_high)}. The test set is not used."
    )
    if report.warnings:
        listed = "\n".join(f"- {one[:1].upper()}{one[1:]}." for one in report.warnings)
        (st.warning if over or "alone" in listed else st.info)(listed)
    else:
        st.success("No warnings: predicted classes are preserved.", icon=":material/check:")

    left, right = st.columns(2, gap="large")
    with left:
        st.markdown("**Strength sweep**")
        basic.over_strength(report.curve, limit=report.limit, now=strength, suggested=suggested, key="risk-curve")
        if suggested is None:
            st.caption("Even the lowest strength of the sweep exceeds the max. label-change rate.")
        elif suggested == strength:
            st.caption(f"Strength {suggested:g} is the highest of the sweep within the max. label-change rate.")
        else:
            st.button(
                f"Use strength {suggested:g}",
                icon=":material/tune:",
                on_click=st.session_state.__setitem__,
                args=(url_state.own("strength"), suggested),
                help="Highest strength of the sweep up to which the label-change rate stays within the limit.",
            )
    with right:
        st.markdown("**Per-transform effect**")
        parts = [(part.name, part.effect) for part in report.parts]
        if parts:
            basic.by_part(parts, limit=report.limit, key="risk-parts")
            _ranking(parts)
        else:
            st.caption("Mixing transforms change the label by design and are not evaluated.")

    st.markdown(f"**Label changes: {report.flipped_count:,} augmented images**")
    if flipped[1]:
        st.html(flipped[0])
        st.html(flipped[1])
        many = min(augmentation_api.PICTURED, report.flipped_count)
        st.caption(f"{many} most confident changes: teacher's prediction before and after augmentation.")
    else:
        st.caption("No predicted class changed.")


def _before_and_after(name: str, before: float, after: float) -> None:
    st.metric(
        name,
        formatting.percent(after),
        f"{round(100 * (after - before), 1) + 0.0:+.1f} points",
        delta_arrow="off",
        delta_color="off",
        border=True,
        height="stretch",
        help=f"Of the teacher on augmented images; {formatting.percent(before)} on the originals.",
    )


def _ranking(parts: list[tuple[str, Effect]]) -> None:
    """The metrics of each transform, with their rank by the teacher's standard deviation."""
    ranked = sorted(range(len(parts)), key=lambda place: parts[place][1].stddev)
    st.dataframe(
        {
            "Transform": [name for name, _ in parts],
            "Label changes": [effect.flip_rate for _, effect in parts],
            "95% CI": [formatting.interval(effect.flip_low, effect.flip_high) for _, effect in parts],
            "Confidence": [effect.confidence_after for _, effect in parts],
            "Std. dev.": [effect.stddev for _, effect in parts],
            "Rank": [ranked.index(place) + 1 for place in range(len(parts))],
        },
        column_config={
            "Label changes": st.column_config.NumberColumn(format="percent"),
            "Confidence": st.column_config.NumberColumn(format="percent"),
            "Std. dev.": st.column_config.NumberColumn(
                format="%.4f", help="Teacher std. dev. with this transform alone."
            ),
            "Rank": st.column_config.NumberColumn(
                help="By teacher std. dev., lowest first. Check label changes first."
            ),
        },
        hide_index=True,
        lazy=False,
        placeholder="–",
        alt="Each transform alone: label-change rate, confidence, teacher standard deviation.",
    )
