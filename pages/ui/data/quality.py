"""Are the images clean enough? One look, what was found, and decisions about single images by click and by keyboard."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
import streamlit as st

from pages.ui.app import context, keys
from pages.ui.charts import basic, plotting
from pages.ui.data import quality_cards
from pages.ui.data.quality_cards import FOUND, Card
from pages.ui.widgets import image_grid, polling, run_table, url_state
from smallalign_core.analysis import data_quality
from smallalign_core.analysis.data_quality import QualityReport
from smallalign_core.data import Decision, Decisions, Splits
from smallalign_core.errors import Refused, SmallAlignError
from smallalign_core.runs.store import Store
from smallalign_core.spec import DataSpec

STAGES = ("Reading pixels", "Looking for copies", "Preparing features", "Judging labels", "Counting votes")
PER_PAGE = 12
PAIRS = "Class pairs"
NOTHING = {
    "Labels": "No label is suspected.",
    "Leaks": "No test image is among those that are learned from or chosen by.",
    "Duplicates": "No two images show the same.",
    "Outliers": "No image stands far from all others.",
    "Pixels": "No image is dark, bright, blank or of an odd size.",
    "Hard": "No hard examples are known: they need runs of a scaling study on these images.",
    PAIRS: "Labels confuse no two classes.",
}
BULK = {"Labels": "Drop the {} sure ones", "Leaks": "Drop the {} exact copies", "Duplicates": "Settle {} exact copies"}


@st.cache_resource(max_entries=8, ttl=300, show_spinner=False)
def _finished(asked: str, root: str, fingerprint: str, start: bool) -> QualityReport:  # noqa: ARG001  # the cache's key
    return QualityReport.from_dict(polling.step("quality", start=start, **json.loads(asked))["report"])


def panel(store: Store, source: str, facts: dict[str, Any]) -> None:
    """The whole of it; asks the desk in short steps, so that a click on the page interrupts it."""
    classes = tuple(facts["classes"])
    fitting = [row for row in run_table.finished(store) if row.classes == classes]
    judge = url_state.pick_row(
        "Labels are judged on",
        fitting,
        key="judge",
        none="Pixels",
        help="Pixels, or the last features of a model that did not learn these images. A model that learned wrong "
        "labels hides them.",
    )
    asked = json.dumps({"source": source, "teacher": judge.id if judge else None}, sort_keys=True)
    place, wanted = st.empty(), st.session_state.get(keys.QUALITY_WANTED) == asked
    try:
        report = polling.wait(
            lambda: _finished(asked, str(store.root.resolve()), facts["fingerprint"], wanted),
            lambda done: STAGES[min(len(STAGES) - 1, int(done * len(STAGES)))],
            place=place,
            started=lambda _: wanted,
        )
    except polling.Unfinished:
        with place.container():
            _offer(asked, facts["images"])
        return
    place.empty()
    _summary(report)
    splits = image_grid.splits(DataSpec(source=source, fingerprint=facts["fingerprint"]), store)
    _review(report, splits, store)


def _offer(asked: str, images: int) -> None:
    st.caption(
        "Looks at every image for duplicates, leaks into test, wrong labels and oddities. Nothing is changed. "
        + (
            "Takes seconds."
            if images < 10_000
            else "Takes minutes with so many images; if you leave, it goes on when you come back."
        )
    )
    st.button(
        "Look closely",
        type="primary",
        icon=":material/search:",
        on_click=st.session_state.__setitem__,
        args=(keys.QUALITY_WANTED, asked),
    )


def _hard(found: int) -> str | int:
    return f"{found:,} or more" if found == data_quality.MOST_HARD else found or "–"


def _summary(report: QualityReport) -> None:
    kinds = Counter(one.kind for one in report.pixels)
    sure = sum(one.sure for one in report.label_issues)
    with st.grid(min_column_width=125):
        for name, count, help in (
            ("Labels", len(report.label_issues), f"Images whose label is probably wrong; {sure:,} of them are sure."),
            ("Leaks", len({one.test.row for one in report.leaks}), "Test images that are learned from or chosen by."),
            ("Duplicates", len(report.duplicates), f"Groups of images that show the same. {report.near}."),
            ("Outliers", len(report.outliers), "Images far from all others."),
            (
                "Odd pixels",
                len(report.pixels),
                ", ".join(f"{many} {kind.replace('_', ' ')}" for kind, many in kinds.items())
                or "Dark, bright, blank, or of an odd size.",
            ),
            ("Hard", _hard(len(report.hard)), "Images that the smallest students of a scaling study do not learn."),
        ):
            st.metric(name, f"{count:,}" if isinstance(count, int) else count, border=True, help=help)
    if report.warnings:
        st.warning("\n".join(f"- {one[:1].upper()}{one[1:]}." for one in report.warnings))
    st.caption(f"Labels were judged out of sample: {report.method}.")


@st.fragment
def _review(report: QualityReport, splits: Splits, store: Store) -> None:
    with context.show_errors():
        made = data_quality.decisions(store, report.fingerprint, report.source)
        if said := st.session_state.pop(keys.QUALITY_SAID, None):
            st.error(said, icon=":material/error:")
        found = str(
            st.segmented_control(
                "Findings", [*FOUND, PAIRS], default="Labels", required=True, key="found", bind="query-params"
            )
        )
        if found == PAIRS:
            _pairs(report)
            _use(made, report, store)
        elif cards := FOUND[found](report):
            _decide(cards, found, report, splits, made, store)
        else:
            (st.info if found == "Hard" else st.success)(NOTHING[found])
            _use(made, report, store)


def _pairs(report: QualityReport) -> None:
    if not report.pairs:
        st.success(NOTHING[PAIRS])
        return
    shown = report.pairs[:12][::-1]
    figure = go.Figure()
    names = [" · ".join(pair.classes) for pair in shown]
    figure.add_bar(x=[pair.images for pair in shown], y=names, orientation="h", marker_color=basic.palette()[0])
    figure.update_layout(xaxis_title="images that are one and labelled as the other", yaxis={"type": "category"})
    plotting.plot(
        figure,
        alt="Pairs of classes that labels confuse, and about how many images.",
        key="class-pairs",
        height=80 + 26 * len(shown),
        table={
            "class": [pair.classes[0] for pair in report.pairs],
            "other": [pair.classes[1] for pair in report.pairs],
            "images": [pair.images for pair in report.pairs],
            "share": [pair.share for pair in report.pairs],
        },
    )
    st.caption("Estimated from labels and judges together. Where two classes overlap, no cleaning separates them.")


def _decide(
    cards: Sequence[Card], found: str, report: QualityReport, splits: Splits, made: Decisions, store: Store
) -> None:
    at = _at(found, len(cards))
    card = cards[at]
    with st.container(border=True, key="judging"):
        picture, words = st.columns([2, 3], gap="medium")
        with picture:
            st.html(
                quality_cards.pictured(
                    card, splits, quality_cards.LARGE if len(card.places) == 1 else quality_cards.PAIRED
                )
            )
        with words:
            st.text(f"{card.told} {card.score[:1].upper()}{card.score[1:]}.")
            state = card.decided(made.by_image)
            st.caption(
                f"{at + 1:,} of {len(cards):,}{', worst first' if len(card.places) == 1 else ''}. "
                + (f"Decided: {_plain(state)}." if state else "Undecided.")
            )
            with st.container(horizontal=True):
                _step("Back", at - 1, len(cards), "Left")
                _step("Next", at + 1, len(cards), "Right")
            _choices(card, cards, at, report, splits, store)
    _use(made, report, store, found, cards)
    _gallery(cards, at, splits, made)


def _at(found: str, count: int) -> int:
    """Which card is looked at, kept in the address from 1; another kind begins at its first."""
    asked = url_state.changed("at")
    if asked is not None and asked.isdecimal() and len(asked) < 9:
        st.session_state[keys.QUALITY_AT] = int(asked) - 1
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
        st.info("A test image: shown, never changed. Scores before and after must be of the same test.")
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
            "Class",
            classes,
            index=0 if card.suggested else None,
            key=f"quality-class-{'-'.join(map(str, card.images[:2]))}",
            placeholder="Choose",
            width=180,
        )
        button("Relabel", "relabel", "L", label, icon=":material/label:", disabled=label is None)
    if any(place.split == "test" for place in card.places):
        st.caption("The test image stays as it is: scores before and after must be of the same test.")


def _may(store: Store) -> bool:
    try:
        store.visitor.require(data_quality.RIGHT)
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
    """Decide, and go on to the next open card; what is refused becomes a sentence."""
    try:
        made = data_quality.decide(store, report.fingerprint, report.source, changes).by_image
    except SmallAlignError as error:
        st.session_state[keys.QUALITY_SAID] = str(error)
        return
    around = [*range(at + 1, len(cards)), *range(at)]
    open_ones = (one for one in around if cards[one].images and cards[one].decided(made) is None)
    st.session_state[keys.QUALITY_AT] = next(open_ones, at)


def _undo(store: Store, report: QualityReport) -> None:
    """Take the last step back, and show the card that it was about."""
    try:
        _, changed = data_quality.undo(store, report.fingerprint)
    except SmallAlignError as error:
        st.session_state[keys.QUALITY_SAID] = str(error)
        return
    images, found = {image for image, _ in changed}, st.session_state.get("found")
    cards = FOUND[found](report) if found in FOUND else []
    about = [at for at, card in enumerate(cards) if images & set(card.images)]
    if len(about) == 1:
        st.session_state[keys.QUALITY_AT] = about[0]


def _bulk(found: str, cards: Sequence[Card], report: QualityReport, made: Decisions, store: Store) -> None:
    """What can be decided without a look, all at once: only what nobody decided yet."""
    here = {image for card in cards if card.sure for image in card.images} - made.by_image.keys()
    sure = [(image, one) for image, one in report.decisions().by_image.items() if image in here]
    if found not in BULK or not sure:
        return
    try:
        store.visitor.require(data_quality.RIGHT)
    except Refused:
        return
    name = BULK[found].format(f"{len(sure):,}")
    with st.popover(name, icon=":material/done_all:"):
        told = [one for one in report.warnings if one.startswith("automatic")]
        st.warning(
            "\n\n".join(f"{one[:1].upper()}{one[1:]}." for one in told)
            or "Judges err, too: look at some of them first. What was decided already stays."
        )
        if found == "Duplicates":
            st.caption("One of each is kept; copies with different labels, or that the test has as well, are dropped.")
        st.button("Do it", type="primary", key="quality-bulk", on_click=_settle, args=(store, report, sure, cards, -1))


def _gallery(cards: Sequence[Card], at: int, splits: Splits, made: Decisions) -> None:
    begin = at // PER_PAGE * PER_PAGE
    with st.grid(min_column_width=135 if len(cards[at].places) == 1 else 200):
        for place, card in enumerate(cards[begin : begin + PER_PAGE], begin):
            with st.container(border=True, height="stretch", gap="xsmall", key=f"quality-card-{place % PER_PAGE}"):
                st.html(quality_cards.pictured(card, splits, quality_cards.SMALL))
                st.text(f"→ {card.suggested}, {card.score}" if card.suggested else card.score)
                st.button(
                    f"{place + 1}: {_plain(card.decided(made.by_image) or ('undecided' if card.images else 'test'))}",
                    key=f"quality-open-{place % PER_PAGE}",
                    type="primary" if place == at else "secondary",
                    on_click=_go,
                    args=(place,),
                )
    pages, page = -(-len(cards) // PER_PAGE), at // PER_PAGE + 1
    if pages > 1:
        key = f"quality-page-{page}"  # another page is another widget: it follows the card that is looked at
        st.pagination(pages, default=page, key=key, on_change=lambda: _go((st.session_state[key] - 1) * PER_PAGE))


def _plain(text: str) -> str:
    """A class's name where Markdown is read."""
    return re.sub(r"([^\w\s])", r"\\\1", text)


def _use(made: Decisions, report: QualityReport, store: Store, found: str = "", cards: Sequence[Card] = ()) -> None:
    """How many decisions there are, how to take one back, and how they become part of a run."""
    counts = made.count()
    words = {"keep": "keep", "drop": "drop", "once": "keep one", "relabel": "relabel"}
    told = ", ".join(f"{count:,} {words[what]}" for what, count in counts.items())
    st.markdown(
        f"**{len(made.by_image):,} image{'' if len(made.by_image) == 1 else 's'} decided**"
        + (f": {told}" if told else "")
    )
    if not made.by_image:
        st.caption("Decide with the buttons or the keys on them. Decisions are a file; images are never touched.")
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button(
            "Undo",
            icon=":material/undo:",
            shortcut="U",
            key="quality-undo",
            on_click=_undo,
            args=(store, report),
            disabled=not data_quality.undoable(store, report.fingerprint),
            help="Your last step; what others decided stays.",
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
            label="Distil with these decisions",
            icon=":material/science:",
            query_params={"data": report.source, "decisions": report.fingerprint},
        )
    st.caption("They are part of a run, which keeps its own copy. In a spec:")
    file = data_quality.file_of(store, report.fingerprint)
    st.code(
        f"data: {{source: {json.dumps(report.source)}, decisions: {json.dumps(str(file))}}}",
        language="yaml",
        wrap_lines=True,
    )


def receive(store: Store, key: str) -> None:
    """Put the decisions that a link names by their fingerprint into the form of that key, once."""
    if (asked := st.query_params.get("decisions")) is None:
        return
    del st.query_params["decisions"]
    with context.show_errors():
        st.session_state[f"{key}.data.decisions"] = str(data_quality.file_of(store, asked))
