"""Distil: choose images, teacher, student and lesson; see the cost and the command; start."""

import streamlit as st

from pages.ui.app import context, keys
from pages.ui.augment import policy
from pages.ui.data import quality
from pages.ui.distill import spec_summary, teacher_check
from pages.ui.widgets import formatting, forms, url_state
from smallalign_core.spec import Cnn, DataSpec, Network, RunSpec, loss_kinds, members, parse, usual_schedule

ESSENTIAL = ("epochs", "batch", "seed")
HERE = ("data", "teacher", "network", "loss", "augment", "start", *ESSENTIAL)
KEY = "spec"

store = context.store()
st.title("Distil")
if like := st.query_params.get("like"):  # a run's spec fills the form once, then the address is clean
    spec = store.run(like).spec
    forms.fill(spec.model_dump(mode="json", exclude={"data": {"fingerprint"}, "teacher": True}), key=KEY)
    st.session_state[f"{KEY}.data.source"] = None
    st.query_params.clear()
    st.session_state.pop(url_state.own("teacher-seen"), None)  # the address names it anew
    st.query_params["teacher"], *st.session_state[keys.MORE_TEACHERS] = spec.teachers or (url_state.NOBODY,)
    st.query_params["start"] = spec.start or url_state.NOBODY
    st.session_state[keys.DATA] = spec.data.source
policy.receive(KEY)
quality.receive(store, KEY)

form, side = st.columns([3, 2], gap="large")
with form:
    st.subheader("Essentials")
    source, facts = url_state.pick_data(store)
    if facts is None:
        st.info("Name a dataset, or type the path of a folder with one sub-folder per class.")
        st.stop()
    classes = tuple(facts["classes"])
    st.caption(f"{facts['images']:,} images, {len(classes)} classes, {facts['shape'][2]} × {facts['shape'][1]} pixels.")
    teacher, fitting = teacher_check.pick(
        store,
        source,
        facts,
        none="None: learn from the labels only",
        help=RunSpec.model_fields["teacher"].description,
    )
    several = (teacher.id, *teacher_check.more(fitting, teacher)) if teacher else ()
    if not fitting:
        st.caption(
            "Nothing trained knows these classes yet. Train a bigger network here first: it can then be the teacher."
        )
    network = forms.choice(
        "Student network" if teacher else "Network", members(Network), key=f"{KEY}.network", start=Cnn().kind
    )
    loss = forms.choice(
        "Loss", loss_kinds(taught=teacher is not None), key=f"{KEY}.loss", help=RunSpec.model_fields["loss"].description
    )
    essentials = forms.part(RunSpec, key=KEY, only=ESSENTIAL)
    carried = len(st.session_state.get(f"{KEY}.augment.rows", ()))
    with st.expander(f"Augmentation: {carried or 'no'} part{'' if carried == 1 else 's'}", expanded=carried > 0):
        augment = forms.part(RunSpec, key=KEY, only=("augment",))
        policy.saved(store, key=KEY)
        st.page_link(
            "augment.py",
            label="See it on images",
            icon=":material/auto_fix_high:",
            query_params={"data": source, "policy": policy.written(augment["augment"])},
        )
    with st.expander("More: optimizer, schedule, precision, few bits, weights to start from"):
        more = forms.part(RunSpec, key=KEY, only=("optimizer",))
        settled = usual_schedule(more["optimizer"])
        if settled:
            st.caption(f"With this optimizer the schedule is {settled.kind}.")
        hidden = (*HERE, "optimizer", *(["schedule"] if settled else []), *([] if teacher else ["shuffled", "answers"]))
        more |= forms.part(RunSpec, key=KEY, without=hidden)
        begun = url_state.pick_row(
            "Start from",
            [row for row in fitting if not row.imported],
            key="start",
            none="None: random weights",
            help=RunSpec.model_fields["start"].description,
        )
    decided = bool(st.session_state.get(f"{KEY}.data.decisions"))
    with st.expander("More: how images are divided, sized and decided about", expanded=decided):
        divided = forms.part(DataSpec, key=f"{KEY}.data", without=("source",))

with side:
    st.subheader("Start")
    spec = parse(
        {
            "data": {"source": source, **divided},
            "teacher": several or None,
            "start": begun.id if begun else None,
            "network": network,
            "loss": loss,
        }
        | essentials
        | augment
        | more
    )
    asked = spec.model_dump_json()
    beside = bool(teacher_check.beside_it(spec)) and st.toggle(
        "With controls",
        key="controls",
        help=f"Trains the same student beside it {teacher_check.names()}, in lockstep: only they can show whether the "
        "teacher mattered. Distillation can hurt.",
        persist_state="session",
    )
    if st.button("Start", type="primary", icon=":material/play_arrow:"):
        with context.show_errors(stop=True):
            answer = teacher_check.start(spec, controls=beside)
            if not answer["known"] or answer["state"] in ("queued", "running"):
                st.switch_page("runs.py", query_params={"run": answer["id"]})
            st.session_state[keys.KNOWN_RUN] = (asked, answer)
    known_for, known = st.session_state.get(keys.KNOWN_RUN, ("", {}))
    if known_for == asked:
        st.info(
            f"This run exists already and is {known['state']}: an equal spec is the same run. Open it, "
            "or change the seed to run it again."
        )
        st.page_link("runs.py", label="Open it", icon=":material/open_in_new:", query_params={"run": known["id"]})
    costs = st.container()
    if teacher:
        teacher_check.preflight(teacher, {"source": source, **divided}, loss_key=f"{KEY}.loss")
    st.markdown("**The same from the command line**")
    spec_summary.command(spec, store)
    with costs:  # asked last: nothing else on the page waits for it
        cost = spec_summary.estimate(asked)
        cells = st.columns(2)
        cells[0].metric("Parameters", f"{cost['params']:,}", border=True)
        cells[1].metric(
            "Training time",
            formatting.duration(cost["seconds"]),
            border=True,
            help=f"{cost['steps']:,} steps on {cost['device']}.",
        )
        cells[0].metric("MACs", formatting.count(cost["macs"]), border=True, help="Multiply-accumulates for one image.")
        cells[1].metric(
            "ONNX file", formatting.exact(cost["onnx_bytes"]), border=True, help=formatting.sizes(cost["sizes"])
        )
        teacher_check.seen(cost, teacher)
        if cost["cache_bytes"]:
            st.caption(
                f"Teacher's answers: {formatting.size(cost['cache_bytes'])} cache, {cost['cache_ready']:.0%} ready.",
                help="Kept as the run asks for them. Other students, losses and optimizers with the same images, "
                "augmentation, batch and seed need no teacher. Delete the cache whenever you like.",
            )
        if cost["state"] and known_for != asked:
            st.caption(f"This run exists already: it is {cost['state']}.")
            st.page_link("runs.py", label="Open it", icon=":material/open_in_new:", query_params={"run": cost["id"]})
