"""Augment: build a policy, see what it does to real images, ask whether they still show their class, take it along."""

import secrets

import streamlit as st

from pages.ui.ablation import panel
from pages.ui.app import context
from pages.ui.augment import augmented_images, label_preservation, policy
from pages.ui.distill import teacher_check
from pages.ui.studies import student_form
from pages.ui.widgets import image_grid, url_state
from smallalign_core.spec import DataSpec, parse_policy


def shuffle() -> None:
    """Another seed; in a callback, since it must be there before the field is drawn."""
    seed = url_state.own("seed")
    st.session_state[seed] = (st.session_state[seed] + 1 + secrets.randbelow(9_999)) % 10_000


store = context.store()
st.title("Augment")
left, right = st.columns([2, 3], gap="large")
with left:
    source, facts = url_state.pick_data(store)
    if facts is None:
        st.info("Name a dataset, or type the path of a folder with one sub-folder per class.")
        st.stop()
    classes, shape = tuple(facts["classes"]), tuple(facts["shape"])
    teacher, _ = teacher_check.pick(
        store,
        source,
        facts,
        none="Nobody: pictures only",
        help="Says what it sees in each picture, and whether that is still the class.",
    )
    parts = policy.build()
    policy.saved(store, key=policy.KEY, parts=parts)

with right:
    strength = url_state.pick_number(
        st.slider,
        "Strength of everything",
        0.0,
        2.0,
        0.05,
        key="strength",
        first=1.0,
        help="0 changes nothing, 1 is the policy as written, 2 is twice as much.",
    )
    with st.container(horizontal=True, vertical_alignment="bottom"):
        numbers = {
            name: url_state.pick_number(
                st.number_input, name.capitalize(), low, high, 1, key=name, first=first, width=118, help=help
            )
            for name, low, high, first, help in (
                ("epoch", 1, 100_000, 1, "The first epoch that is shown."),
                ("batch", 2, 65_536, 128, "Images a step, as in the run: it decides who is mixed with whom."),
                ("seed", 0, 2**31 - 1, 0, "The run's seed: it fixes order and augmentation."),
            )
        }
        st.button("Shuffle", icon=":material/casino:", on_click=shuffle, help="Another seed: other draws.")
    rows, own = None, None
    with st.container(horizontal=True, vertical_alignment="center"):
        mine = st.segmented_control(
            "Images", ["Dataset", "My own"], default="Dataset", required=True, label_visibility="collapsed", key="mine"
        )
        if mine == "Dataset":
            splits = image_grid.splits(DataSpec(source=source, fingerprint=facts["fingerprint"]), store)
            rows = augmented_images.choose(splits.train, facts["fingerprint"])
    with context.show_errors():
        own = augmented_images.drop(shape) if rows is None else None
    if not parts:
        st.info("The policy is empty: the student would see every image as it is. Add a part.")
        st.stop()
    fine = False
    with policy.told():
        checked = [part.model_dump(mode="json") for part in parse_policy(parts)]
        data = {"source": source, "fingerprint": facts["fingerprint"]}
        epoch, seed, batch = numbers["epoch"], numbers["seed"], numbers["batch"]
        question = {"policy": checked, "data_source": data, "seed": seed, "strength": strength}
        grid = {
            "draws": augmented_images.fitting(shape)[1],
            "first": epoch - 1,
            "batch": batch,
            "rows": rows,
            "own": own,
        }
        if rows or own:
            augmented_images.draw(question | grid, teacher, store)
        fine = True
if not fine:
    st.stop()

st.subheader(f"What the student sees in epoch {epoch}", anchor=False)
augmented_images.epoch(question | {"epoch": epoch - 1, "batch": batch}, store)
st.caption(
    f"Each image beside its view. These are exactly the pixels, in this order, that a run with seed {seed} and batch "
    f"{batch} trains on at the beginning of epoch {epoch}; teacher and student get the same."
)
st.subheader("Is it still the class?", anchor=False)
risk = st.container()  # filled last: nothing else on the page waits for it

st.subheader("Take it along", anchor=False)
carried = policy.take_along(question, batch, teacher)

measured = st.container()

with risk, context.show_errors():
    if teacher is None:
        st.info("A teacher has to say. Choose one above, or train one on this data first.")
        st.page_link("distil.py", label="Train one", icon=":material/science:", query_params={"data": source})
    else:
        limit = label_preservation.limit()
        label_preservation.panel(
            question | {"limit": limit}, teacher, looked_at=sum(facts["counts"]["val"].values()), store=store
        )

with measured, context.show_errors():
    st.subheader("What is it worth?", anchor=False)
    pupil = student_form.form(source, classes, store, key="student")
    panel.panel(pupil | {"augment": carried, "batch": batch, "seed": seed}, "augment", store, key="worth")
