"""How far an image may be rotated before a teacher takes it for another class."""

from __future__ import annotations

import streamlit as st

from pages.ui import lessons
from pages.ui.augment import label_preservation
from pages.ui.widgets import polling, url_state
from smallalign_core.runs.store import Store
from smallalign_core.service.requests import CheckLabels
from smallalign_core.spec.augment import Rotate

TITLE = "Augmentation"
QUESTION = "How far may a digit be rotated before it shows another class?"


def draw(store: Store) -> None:
    """The control, the label-change rate, and the most confident changes."""
    _, sides = lessons.predictions(store)
    degrees = url_state.pick_number(st.slider, "Rotation up to, degrees", 5, 180, 5, key="degrees", first=15)
    request = CheckLabels((Rotate(degrees=degrees),), store.run(sides.ids[1]).data, sides.ids[0])
    report, (style, pictures) = polling.wait(
        lambda: label_preservation.finished(request, str(store.root.resolve())), "Classifying rotated images"
    )
    with st.grid(min_column_width=150):
        st.metric("Label-change rate", f"{report.whole.flip_rate:.1%}", border=True)
        st.metric("Accuracy, rotated", f"{report.whole.accuracy_after:.1%}", border=True)
        st.metric("Accuracy, upright", f"{report.whole.accuracy_before:.1%}", border=True)
    st.caption(
        f"95% CI of the rate: {report.whole.flip_low:.1%} to {report.whole.flip_high:.1%}. {report.images:,} training "
        f"images, {report.draws} random rotations of up to ±{degrees}° each. Accuracy is that of the teacher. A "
        "student is trained on its prediction for the rotated image: what changes class is a wrong label for it."
    )
    if report.flipped:
        st.markdown("**Most confident changes of class**: original, rotated")
        st.html(f"{style}{pictures}")
