"""Label preservation: the teacher's predictions under a policy, as metrics, sweep, transforms and changed images."""

from __future__ import annotations

import html
from dataclasses import replace

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

LOOKED_AT, DRAWS = (512, 2048), 4


@st.cache_data(max_entries=16, show_spinner=False)
def finished(
    request: CheckLabels,
    root: str,  # noqa: ARG001  # part of the cache's key
) -> tuple[LabelPreservation, tuple[str, str]]:
    """The report, and the changed images as style and HTML."""
    found = polling.step(request)
    captions = [
        f"{html.escape(one.before)} {one.before_confidence:.0%} → "
        f"<b>{html.escape(one.after)} {one.after_confidence:.0%}</b>"
        for one in found.report.flipped[: augmentation_api.PICTURED]
    ]
    return found.report, augmented_images.pairs(found.changed.array(), captions)


def panel(request: CheckLabels, teacher: RunRow, *, looked_at: int, store: Store) -> None:
    """A button, the bar while the backend works, and the report, which stays while settings change.

    Args:
        request: of any limit, which is chosen here.
        looked_at: how many validation images there are.
    """
    root = str(store.root.resolve())
    held: CheckLabels | None = st.session_state.get(keys.RISK_WANTED)
    images = max(LOOKED_AT[0], min(LOOKED_AT[1], looked_at))
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        limit = url_state.pick_number(
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
        st.button(
            "Evaluate",
            type="primary",
            icon=":material/fact_check:",
            disabled=held == request,
            on_click=st.session_state.__setitem__,
            args=(keys.RISK_WANTED, request),
            help=f"Predictions of {teacher.called} for {images:,} images, {DRAWS} augmented versions each, at 8 "
            "strengths and with each transform alone. Runs at low priority.",
        )
    if held is None or (held.teacher, held.data) != (request.teacher, request.data):
        st.caption(
            "Share of augmented images with another predicted class than their original, by strength and by transform."
        )
        return
    wanted = replace(held, limit=float(limit))
    try:
        report, changed = finished(wanted, root)
    except polling.Unfinished:
        polling.watch(lambda: finished(wanted, root), f"Evaluating with {teacher.called}", key="label-check")
        return
    st.caption(
        f"{report.images:,} images, {report.draws} augmented versions each, seed {report.seed}, strength "
        f"{report.strength:g}. The test set is not used."
        + ("" if held == request else " :orange[**Of the settings before the last change**]; evaluate again.")
    )
    _show(report, changed)


def _show(report: LabelPreservation, changed: tuple[str, str]) -> None:
    whole, clean = report.whole, report.clean
    over = whole.flip_low > report.limit
    with st.grid(min_column_width=150):
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
    if report.warnings:
        listed = "\n".join(f"- {one[:1].upper()}{one[1:]}." for one in report.warnings)
        (st.warning if over or "alone" in listed else st.info)(listed)
    else:
        st.success("No warnings: predicted classes are preserved.", icon=":material/check:")

    views = url_state.tabs(["Strength sweep", "Per-transform effect", "Label changes"], key="risk")
    if views["Strength sweep"].open:
        with views["Strength sweep"]:
            _sweep(report)
    if views["Per-transform effect"].open:
        with views["Per-transform effect"]:
            _parts(report)
    if views["Label changes"].open:
        with views["Label changes"]:
            _changes(report, changed)


def _sweep(report: LabelPreservation) -> None:
    strength, suggested = report.strength, report.suggested
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


def _parts(report: LabelPreservation) -> None:
    parts = [(part.name, part.effect) for part in report.parts]
    if parts:
        basic.by_part(parts, limit=report.limit, key="risk-parts")
        _ranking(parts)
    else:
        st.caption("Mixing transforms change the label by design and are not evaluated.")


def _changes(report: LabelPreservation, changed: tuple[str, str]) -> None:
    total = report.images * report.draws
    st.markdown(f"**{report.flipped_count:,} of {total:,} augmented images** have another predicted class.")
    if changed[1]:
        st.html(changed[0])
        st.html(changed[1])
        st.caption("The most confident changes: the teacher's prediction before and after augmentation.")


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
