"""Data quality: the check, its findings, and review of single images by mouse and keyboard."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
import streamlit as st

from pages.ui.app import context, keys
from pages.ui.charts import plotting, theme
from pages.ui.data import quality_cards
from pages.ui.data.quality_cards import DUPLICATES, FOUND, HARD, LABELS, LEAKS, Card
from pages.ui.widgets import image_grid, polling, run_table, url_state
from smallalign_core.analysis import data_quality
from smallalign_core.analysis.data_quality import QualityReport
from smallalign_core.data import Decision, Decisions, Splits
from smallalign_core.errors import Refused, SmallAlignError
from smallalign_core.runs.store import Store
from smallalign_core.service.requests import CheckQuality, DatasetFacts
from smallalign_core.spec import parse_data

STAGES = (
    *("Reading pixels", "Detecting duplicates", "Extracting features", "Detecting label errors"),
    "Detecting hard examples",
)
PER_PAGE = 12
PAIRS = "Confused classes"
NOTHING = {
    LABELS: "No suspected label errors.",
    LEAKS: "No test image is in the training or validation split.",
    DUPLICATES: "No duplicates.",
    "Outliers": "No outliers.",
    "Exposure and size": "No dark, bright, blank or unusually sized images.",
    HARD: "No hard examples available. They require runs of a scaling study on this dataset.",
    PAIRS: "No confused class pairs.",
}
BULK = {
    LABELS: "Drop {} likely errors",
    LEAKS: "Drop {} exact duplicates",
    DUPLICATES: "Resolve {} exact duplicates",
}


@st.cache_resource(max_entries=8, ttl=300, show_spinner=False)
def _finished(checked: str, root: str, fingerprint: str, start: bool) -> QualityReport:  # noqa: ARG001  # the cache's key
    about = json.loads(checked)
    return polling.step(CheckQuality(parse_data(about.pop("source")), **about, start=start))


def panel(store: Store, facts: DatasetFacts) -> None:
    """The whole section; calls the backend in short steps, so that a click on the page interrupts it."""
    fitting = run_table.of_classes(store, facts.classes)
    model = url_state.pick_row(
        "Features for label-error detection",
        fitting,
        key="judge",
        none="Pixels",
        help="Pixels, or the penultimate-layer features of a model that was not trained on these images. A model that "
        "has fitted wrong labels hides them.",
    )
    checked = json.dumps({"source": facts.reading, "teacher": model.id if model else None}, sort_keys=True)
    place, wanted = st.empty(), st.session_state.get(keys.QUALITY_WANTED) == checked
    try:
        report = polling.wait(
            lambda: _finished(checked, str(store.root.resolve()), facts.fingerprint, wanted),
            lambda done: STAGES[min(len(STAGES) - 1, int(done * len(STAGES)))],
            place=place,
            started=lambda _: wanted,
        )
    except polling.Unfinished:
        with place.container():
            _offer(checked)
        return
    place.empty()
    _summary(report)
    splits = image_grid.splits(facts.spec, store)
    _review(report, splits, store)


def _offer(checked: str) -> None:
    st.caption(
        "Checks every image for duplicates, train/test leakage, label errors and outliers. The dataset is not changed. "
        + "The time depends on number and size of the images: the remaining time is shown while it runs, and what "
        "is done is kept if you leave the page."
    )
    st.button(
        "Run data quality check",
        type="primary",
        icon=":material/search:",
        on_click=st.session_state.__setitem__,
        args=(keys.QUALITY_WANTED, checked),
    )


def _hard(found: int) -> str | int:
    return f"{found:,} or more" if found == data_quality.MOST_HARD else found or "–"


def _summary(report: QualityReport) -> None:
    kinds = Counter(one.kind for one in report.pixels)
    sure = sum(one.sure for one in report.label_issues)
    with st.grid(min_column_width=185):
        for name, count, help in (
            (
                "Suspected label errors",
                len(report.label_issues),
                f"{sure:,} likely: the images with the lowest predicted probability of their label, as "
                "many as are estimated "
                "to be mislabeled. The others are possible errors.",
            ),
            (
                "Train/test leakage",
                len({one.test.row for one in report.leaks}),
                "Test images that are also in the training or validation split.",
            ),
            ("Duplicates", len(report.duplicates), f"Groups of duplicate images. {report.near}."),
            ("Outliers", len(report.outliers), "Images far from all others in feature space."),
            (
                "Exposure and size outliers",
                len(report.pixels),
                ", ".join(f"{many} {kind.replace('_', ' ')}" for kind, many in kinds.items())
                or "Dark, bright, blank, or unusually sized images.",
            ),
            (
                "Hard examples",
                _hard(len(report.hard)),
                "Images that the smallest students of a scaling study misclassify.",
            ),
        ):
            st.metric(name, f"{count:,}" if isinstance(count, int) else count, border=True, help=help)
    if report.warnings:
        st.warning("\n".join(f"- {one[:1].upper()}{one[1:]}." for one in report.warnings))
    st.caption(f"Label errors are detected with out-of-sample predictions: {report.method}.")


@st.fragment
def _review(report: QualityReport, splits: Splits, store: Store) -> None:
    with context.show_errors():
        made = data_quality.decisions(store, report.fingerprint, report.source)
        if failed := st.session_state.pop(keys.QUALITY_FAILED, None):
            st.error(failed, icon=":material/error:")
        found = str(
            st.segmented_control(
                "Findings", [*FOUND, PAIRS], default=LABELS, required=True, key="found", bind="query-params"
            )
        )
        if found == PAIRS:
            _pairs(report)
            _use(made, report, store)
        elif cards := FOUND[found](report):
            _decide(cards, found, report, splits, made, store)
        else:
            (st.info if found == HARD else st.success)(NOTHING[found])
            _use(made, report, store)


def _pairs(report: QualityReport) -> None:
    if not report.pairs:
        st.success(NOTHING[PAIRS])
        return
    shown = report.pairs[:12][::-1]
    figure = go.Figure()
    names = [" · ".join(pair.classes) for pair in shown]
    figure.add_bar(x=[pair.images for pair in shown], y=names, orientation="h", marker_color=theme.palette()[0])
    figure.update_layout(xaxis_title="estimated mislabeled images", yaxis={"type": "category"})
    plotting.plot(
        figure,
        alt="Confused class pairs, with the estimated number of mislabeled images.",
        key="class-pairs",
        height=80 + 26 * len(shown),
        table={
            "class": [pair.classes[0] for pair in report.pairs],
            "other": [pair.classes[1] for pair in report.pairs],
            "images": [pair.images for pair in report.pairs],
            "share": [pair.share for pair in report.pairs],
        },
    )
    st.caption("Estimated from labels and out-of-sample predictions. Cleaning does not separate overlapping classes.")


def _decide(
    cards: Sequence[Card], found: str, report: QualityReport, splits: Splits, made: Decisions, store: Store
) -> None:
    at = _at(found, len(cards))
    card = cards[at]
    with st.container(border=True, key="reviewing"):
        picture, words = st.columns([2, 3], gap="medium")
        with picture:
            st.html(
                quality_cards.pictured(
                    card, splits, quality_cards.LARGE if len(card.places) == 1 else quality_cards.PAIRED
                )
            )
        with words:
            st.text(f"{card.text} {card.score[:1].upper()}{card.score[1:]}.")
            state = card.decided(made.by_image)
            st.caption(
                f"{at + 1:,} of {len(cards):,}{', worst first' if len(card.places) == 1 else ''}. "
                + (f"Reviewed: {_plain(state)}." if state else "Unreviewed.")
            )
            with st.container(horizontal=True):
                _step("Back", at - 1, len(cards), "Left")
                _step("Next", at + 1, len(cards), "Right")
            _choices(card, cards, at, report, splits, store)
    _use(made, report, store, found, cards)
    _gallery(cards, at, splits, made)


def _at(found: str, count: int) -> int:
    """The current card, kept in the URL from 1; another kind starts at its first."""
    linked = url_state.changed("at")
    if linked is not None and linked.isdecimal() and len(linked) < 9:
        st.session_state[keys.QUALITY_AT] = int(linked) - 1
    elif st.session_state.get(keys.QUALITY_FOUND, found) != found:
        st.session_state[keys.QUALITY_AT] = 0
    st.session_state[keys.QUALITY_FOUND] = found
    at = max(0, min(count - 1, st.session_state.get(keys.QUALITY_AT, 0)))
    st.session_state[keys.QUALITY_AT] = at
    url_state.keep("at", str(at + 1))
    return at


def _go(at: int) -> None:
    st.session_state[keys.QUALITY_AT] = at


def _step(name: str, to: int, count: int, shortcut: str) -> None:
    st.button(name, on_click=_go, args=(to,), disabled=not 0 <= to < count, shortcut=shortcut, key=f"quality-{name}")


def _choices(card: Card, cards: Sequence[Card], at: int, report: QualityReport, splits: Splits, store: Store) -> None:
    if not card.images:
        st.info(
            "Test image: read-only. The test set stays fixed, so that scores before and after cleaning are comparable."
        )
        return
    if not _may(store):
        return
    given = {splits.classes[getattr(splits, place.split).labels[place.row]] for place in card.places}
    classes = [name for name in report.classes if {name} != given]
    if card.suggested in classes:
        classes = [card.suggested, *(name for name in classes if name != card.suggested)]

    def button(name: str, what: str, key: str, label: str | None = None, **look: Any) -> None:
        st.button(
            name,
            key=f"quality-{what}",
            shortcut=key,
            on_click=_settle,
            args=(store, report, card.changes(what, label), cards, at),
            **look,
        )

    with st.container(horizontal=True):
        button("Keep all" if card.several else "Keep", "keep", "K", icon=":material/check:")
        if card.several:
            button("Keep one", "once", "O", icon=":material/filter_1:")
        button("Drop all" if card.several else "Drop", "drop", "D", icon=":material/delete:")
    with st.container(horizontal=True, vertical_alignment="bottom"):
        label = st.selectbox(
            "New label",
            classes,
            index=0 if card.suggested else None,
            key=f"quality-class-{'-'.join(map(str, card.images[:2]))}",
            placeholder="Select",
            width=180,
        )
        button("Relabel", "relabel", "L", label, icon=":material/label:", disabled=label is None)
    if any(place.split == "test" for place in card.places):
        st.caption("The test image is not changed: the test set stays fixed.")


def _may(store: Store) -> bool:
    try:
        store.user.require(data_quality.RIGHT)
    except Refused as error:
        st.info(str(error))
        return False
    return True


def _settle(
    store: Store,
    report: QualityReport,
    changes: Sequence[tuple[int, Decision | None]],
    cards: Sequence[Card] = (),
    at: int = 0,
) -> None:
    """Record a decision, and continue with the next unreviewed card; a refusal becomes a message."""
    try:
        made = data_quality.decide(store, report.fingerprint, report.source, changes).by_image
    except SmallAlignError as error:
        st.session_state[keys.QUALITY_FAILED] = str(error)
        return
    around = [*range(at + 1, len(cards)), *range(at)]
    open_ones = (one for one in around if cards[one].images and cards[one].decided(made) is None)
    st.session_state[keys.QUALITY_AT] = next(open_ones, at)


def _undo(store: Store, report: QualityReport) -> None:
    """Undo the last step, and show its card."""
    try:
        _, changed = data_quality.undo(store, report.fingerprint)
    except SmallAlignError as error:
        st.session_state[keys.QUALITY_FAILED] = str(error)
        return
    images, found = {image for image, _ in changed}, st.session_state.get("found")
    cards = FOUND[found](report) if found in FOUND else []
    about = [at for at, card in enumerate(cards) if images & set(card.images)]
    if len(about) == 1:
        st.session_state[keys.QUALITY_AT] = about[0]


def _bulk(found: str, cards: Sequence[Card], report: QualityReport, made: Decisions, store: Store) -> None:
    """A button for all findings that automatic cleaning would resolve at once, except those reviewed already."""
    here = {image for card in cards if card.sure for image in card.images} - made.by_image.keys()
    sure = [(image, one) for image, one in report.decisions().by_image.items() if image in here]
    if found not in BULK or not sure:
        return
    try:
        store.user.require(data_quality.RIGHT)
    except Refused:
        return
    name = BULK[found].format(f"{len(sure):,}")
    with st.popover(name, icon=":material/done_all:"):
        listed = [one for one in report.warnings if one.startswith("automatic")]
        st.warning(
            "\n\n".join(f"{one[:1].upper()}{one[1:]}." for one in listed)
            or "Detection can be wrong: review some of them first. Earlier decisions are kept."
        )
        if found == "Duplicates":
            st.caption("One image of each group is kept; copies with other labels, or that are in test, are dropped.")
        st.button("Apply", type="primary", key="quality-bulk", on_click=_settle, args=(store, report, sure, cards, -1))


def _gallery(cards: Sequence[Card], at: int, splits: Splits, made: Decisions) -> None:
    begin = at // PER_PAGE * PER_PAGE
    with st.grid(min_column_width=135 if len(cards[at].places) == 1 else 200):
        for place, card in enumerate(cards[begin : begin + PER_PAGE], begin):
            with st.container(border=True, height="stretch", gap="xsmall", key=f"quality-card-{place % PER_PAGE}"):
                st.html(quality_cards.pictured(card, splits, quality_cards.SMALL))
                st.text(f"→ {card.suggested}, {card.score}" if card.suggested else card.score)
                st.button(
                    f"{place + 1}: {_plain(card.decided(made.by_image) or ('unreviewed' if card.images else 'test'))}",
                    key=f"quality-open-{place % PER_PAGE}",
                    type="primary" if place == at else "secondary",
                    on_click=_go,
                    args=(place,),
                )
    pages, page = -(-len(cards) // PER_PAGE), at // PER_PAGE + 1
    if pages > 1:
        key = f"quality-page-{page}"  # another page is another widget: it follows the current card
        st.pagination(pages, default=page, key=key, on_change=lambda: _go((st.session_state[key] - 1) * PER_PAGE))


def _plain(text: str) -> str:
    """A class's name where Markdown is read."""
    return re.sub(r"([^\w\s])", r"\\\1", text)


def _use(made: Decisions, report: QualityReport, store: Store, found: str = "", cards: Sequence[Card] = ()) -> None:
    """The number of decisions, undo, download, and the way to a training run with them."""
    counts = made.count()
    words = {"keep": "keep", "drop": "drop", "once": "keep one", "relabel": "relabel"}
    listed = ", ".join(f"{count:,} {words[what]}" for what, count in counts.items())
    st.markdown(
        f"**{len(made.by_image):,} image{'' if len(made.by_image) == 1 else 's'} reviewed**"
        + (f": {listed}" if listed else "")
    )
    if not made.by_image:
        st.caption(
            "Use the buttons or their keyboard shortcuts. Decisions are saved to a file; images are not changed."
        )
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button(
            "Undo",
            icon=":material/undo:",
            shortcut="U",
            key="quality-undo",
            on_click=_undo,
            args=(store, report),
            disabled=not data_quality.undoable(store, report.fingerprint),
            help="Reverts your last step; decisions of other users are kept.",
        )
        _bulk(found, cards, report, made, store)
        if not made.by_image:
            return
        st.download_button(
            "Download",
            lambda: data_quality.file_of(store, report.fingerprint).read_bytes(),
            file_name=f"decisions-{report.fingerprint}.json",
            mime="application/json",
            icon=":material/download:",
            on_click="ignore",
        )
        st.page_link(
            "distil.py",
            label="Distill with these decisions",
            icon=":material/science:",
            query_params={"data": report.source, "decisions": report.fingerprint},
        )
    st.caption("To use them in a spec (each run keeps its own copy):")
    file = data_quality.file_of(store, report.fingerprint)
    st.code(
        f"data: {{source: {json.dumps(report.source)}, decisions: {json.dumps(str(file))}}}",
        language="yaml",
        wrap_lines=True,
    )


def receive(store: Store, key: str) -> None:
    """Put the decisions of a link, given by fingerprint, into the form of that key, once."""
    if (linked := st.query_params.get("decisions")) is None:
        return
    del st.query_params["decisions"]
    with context.show_errors():
        st.session_state[f"{key}.data.decisions"] = str(data_quality.file_of(store, linked))
