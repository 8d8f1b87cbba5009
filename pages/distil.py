"""Distill: choose dataset, teacher, student and loss; see the cost and the command; start."""

import streamlit as st

from pages.ui.app import context, keys
from pages.ui.augment import policy
from pages.ui.data import quality
from pages.ui.distill import draft, python_file, spec_summary, teacher_check
from pages.ui.widgets import formatting, forms, run_table, url_state
from smallalign_core.spec import Cnn, DataSpec, Embedding, Network, RunSpec, loss_kinds, members, parse, usual_schedule

ESSENTIAL = ("epochs", "batch", "seed")
HERE = ("data", "teacher", "network", "loss", "augment", "start", *ESSENTIAL)
KEY = "spec"
EMBEDDING = "embedding"

store = context.store()
st.title("Distill")
draft.receive(store, KEY)
policy.receive(KEY)
quality.receive(store, KEY)

form, side = st.columns([3, 2], gap="large")
with form:
    st.subheader("Essentials")
    source, facts = url_state.pick_data(store)
    if facts is None:
        st.info("No dataset selected. Choose one, or enter the path of a folder with one sub-folder per class.")
        st.stop()
    classes = facts.classes
    st.caption(f"{facts.images:,} images, {len(classes)} classes, {facts.shape[2]} × {facts.shape[1]} pixels.")
    teacher, fitting = teacher_check.pick(
        store,
        source,
        facts,
        none="None (labels only)",
        help=RunSpec.model_fields["teacher"].description,
        of_features=True,
    )
    alone = teacher is not None and (teacher.headless or st.session_state.get(f"{KEY}.loss.kind") == EMBEDDING)
    several = (teacher.id, *(() if alone else teacher_check.more(fitting, teacher))) if teacher else ()
    if not fitting:
        teacher_check.offer_pretrained(KEY)
    network = forms.choice(
        "Student architecture" if teacher else "Architecture",
        forms.offered(members(Network)),
        key=f"{KEY}.network",
        start=Cnn().kind,
    )
    loss = forms.choice(
        "Loss",
        forms.offered([Embedding] if teacher and teacher.headless else loss_kinds(taught=teacher is not None)),
        key=f"{KEY}.loss",
        help=RunSpec.model_fields["loss"].description,
    )
    if loss["kind"] == EMBEDDING:
        st.caption(teacher_check.PRETRAINING)
    essentials = forms.part(RunSpec, key=KEY, only=ESSENTIAL)
    divided = forms.part(DataSpec, key=f"{KEY}.data", only=("size", "images"))
    carried = len(st.session_state.get(f"{KEY}.augment.rows", ()))
    with st.expander(f"Augmentation: {carried or 'no'} transform{'' if carried == 1 else 's'}", expanded=carried > 0):
        augment = forms.part(RunSpec, key=KEY, only=("augment",))
        policy.saved(store, key=KEY)
        st.page_link(
            "augment.py",
            label="Preview on images",
            icon=":material/auto_fix_high:",
            query_params={"data": source, "policy": policy.written(augment["augment"])},
        )
    with st.expander("Optimization: optimizer, schedule, class balance, precision, initial weights"):
        more = forms.part(RunSpec, key=KEY, only=("optimizer",))
        settled = usual_schedule(more["optimizer"])
        if settled:
            st.caption(f"This optimizer uses a {settled.kind} learning-rate schedule.")
        hidden = (
            *HERE,
            "optimizer",
            *(["schedule"] if settled else []),
            *([] if teacher else ["shuffled", "answers", "top"]),
        )
        more |= forms.part(RunSpec, key=KEY, without=hidden)
        begun = url_state.pick_row(
            "Initial weights",
            [row for row in (*fitting, *run_table.headless(store)) if not row.imported],
            key="start",
            none="None (random initialization)",
            help=RunSpec.model_fields["start"].description,
        )
    cleaned = bool(st.session_state.get(f"{KEY}.data.decisions"))
    with st.expander("Data: splits, cleaning", expanded=cleaned):
        divided |= forms.part(DataSpec, key=f"{KEY}.data", without=("source", "reader", *divided, *url_state.READING))

with side:
    st.subheader("Start")
    spec = parse(
        {
            "data": {**facts.reading, **divided},
            "teacher": several or None,
            "start": begun.id if begun else None,
            "network": network,
            "loss": loss,
        }
        | essentials
        | augment
        | more
    )
    python_file.allow(spec)
    draft.keep(spec)
    written = spec.model_dump_json()
    beside = bool(teacher_check.beside_it(spec)) and st.toggle(
        "Also train baselines",
        key="controls",
        help="Trains the same student without the teacher and with teacher logits shuffled within each class, in "
        "lockstep with it. Only these baselines show whether distillation helps; it can hurt.",
        persist_state="session",
    )
    if st.button("Start training", type="primary", icon=":material/play_arrow:"):
        with context.show_errors(stop=True):
            answer = teacher_check.start(spec, controls=beside)
            if not answer.known or answer.state in ("queued", "running"):
                st.switch_page("runs.py", query_params={"run": answer.id})
            st.session_state[keys.KNOWN_RUN] = (written, answer)
    known_for, known = st.session_state.get(keys.KNOWN_RUN, ("", None))
    if known and known_for == written:
        st.info(
            f"A run with this spec already exists (state: {known.state}); identical specs reuse the cached run. "
            "Open it, or change the seed to train again."
        )
        st.page_link("runs.py", label="Open run", icon=":material/open_in_new:", query_params={"run": known.id})
    costs = st.container()
    if teacher and loss["kind"] != EMBEDDING:
        teacher_check.preflight(teacher, {**facts.reading, **divided}, loss_key=f"{KEY}.loss")
    st.markdown("**Equivalent command line**")
    spec_summary.command(spec, store)
    with costs:  # requested last: nothing else on the page waits for it
        cost = spec_summary.estimate(spec)
        spec_summary.costs(cost, [spec_summary.estimate(one) for one in teacher_check.beside_it(spec) if beside])
        teacher_check.seen(cost, teacher)
        if cost.cache_bytes:
            st.caption(
                f"Teacher cache: {formatting.size(cost.cache_bytes)}, {cost.cache_ready:.0%} filled.",
                help="Filled during training. Other students, losses and optimizers with the same images, "
                "augmentation, batch size and seed reuse it. Can be deleted at any time.",
            )
        if cost.state and known_for != written:
            st.caption(f"A run with this spec already exists (state: {cost.state}).")
            st.page_link("runs.py", label="Open run", icon=":material/open_in_new:", query_params={"run": cost.id})
