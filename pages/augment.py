"""Augmentation: build a policy; preview it on real images, check label preservation, measure its effect, export it."""

import secrets

import streamlit as st

from pages.ui.ablation import panel
from pages.ui.app import context
from pages.ui.augment import label_preservation, policy, preview
from pages.ui.distill import python_file, teacher_check
from pages.ui.studies import student_form
from pages.ui.widgets import url_state
from smallalign_core.service.requests import AugmentBatch, CheckLabels
from smallalign_core.spec import Policy, parse_policy


def shuffle() -> None:
    """Set another seed; in a callback, since the value must be set before the field is drawn."""
    seed = url_state.own("seed")
    st.session_state[seed] = (st.session_state[seed] + 1 + secrets.randbelow(9_999)) % 10_000


store = context.store()
st.title("Augmentation")
left, right = st.columns([2, 3], gap="large")
with left:
    source, facts = url_state.pick_data(store)
    if facts is None:
        st.info("No dataset selected. Choose one, or enter the path of a folder with one sub-folder per class.")
        st.stop()
    classes, shape = facts.classes, facts.shape
    teacher, _ = teacher_check.pick(
        store,
        source,
        facts,
        none="None (preview only)",
        help="Predicts a class for each augmented image, to measure how often augmentation changes the label.",
    )
    parts = policy.build()
    policy.saved(store, key=policy.KEY, parts=parts)
    used = st.container()

with right:
    strength = url_state.pick_number(
        st.slider,
        "Global strength",
        0.0,
        2.0,
        0.05,
        key="strength",
        first=1.0,
        help="Scales every transform: 0 disables the policy, 1 applies it as written, 2 doubles its magnitudes.",
    )
    with st.container(horizontal=True, vertical_alignment="bottom"):
        numbers = {
            name: url_state.pick_number(
                st.number_input, label, low, high, 1, key=name, first=first, width=118, help=help
            )
            for name, label, low, high, first, help in (
                ("epoch", "Epoch", 1, 100_000, 1, "First epoch of the preview."),
                ("batch", "Batch size", 2, 65_536, 128, "As in the training run: determines MixUp and CutMix pairs."),
                ("seed", "Seed", 0, 2**31 - 1, 0, "Seed of the training run: fixes data order and augmentation."),
            )
        }
        st.button("Shuffle", icon=":material/casino:", on_click=shuffle, help="Draw another random seed.")
    if not parts:
        st.info("The policy is empty: training would use the original images. Add a transform.")
        st.stop()
    busy = st.container(key="busy", height=28, border=False)  # nothing moves when a spinner comes and goes
    carried = None
    with policy.checked():
        checked = python_file.allow(Policy(augment=parse_policy(parts))).augment
        epoch, seed, batch = numbers["epoch"], numbers["seed"], numbers["batch"]
        first = AugmentBatch(checked, facts.spec, strength=strength, seed=seed, batch=batch, epoch=epoch - 1)
        with busy:  # a policy that cannot work on these images is one message, whichever tab is open
            carried = policy.at(first)
    if carried is None:
        st.stop()
    tabs = url_state.tabs(["Preview", "Label preservation", "Ablation", "Export"], key="tab")

with used:
    policy.use(first, carried, teacher)

if tabs["Preview"].open:
    with tabs["Preview"], policy.checked():
        preview.show(first, facts, teacher, store, busy=busy)

if tabs["Label preservation"].open:
    with tabs["Label preservation"], context.show_errors():
        if teacher is None:
            st.info("No teacher selected. Choose one, or train one on this dataset first.")
            st.page_link("distil.py", label="Train a teacher", icon=":material/science:", query_params={"data": source})
        else:
            request = CheckLabels(first.policy, facts.spec, teacher.id, strength=strength, seed=seed)
            label_preservation.panel(request, teacher, looked_at=sum(facts.counts["val"].values()), store=store)

if tabs["Ablation"].open:
    with tabs["Ablation"], context.show_errors():
        pupil = student_form.form(facts, store, key="student")
        panel.panel(
            pupil | {"augment": policy.plain(carried), "batch": batch, "seed": seed}, "augment", store, key="worth"
        )

if tabs["Export"].open:
    with tabs["Export"]:
        policy.export(first, carried, teacher)
