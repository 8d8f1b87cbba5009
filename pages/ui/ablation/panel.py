"""What is it worth? One choice of a spec measured: a button, the runs while they train, the paired difference."""

from __future__ import annotations

import json
from typing import Any

import streamlit as st

from pages.ui.app import context
from pages.ui.charts import basic
from pages.ui.distill import spec_summary
from pages.ui.runs import live
from pages.ui.widgets import formatting
from smallalign_core.errors import BadSpec, Refused
from smallalign_core.runs.store import State, Store
from smallalign_core.spec import RunSpec, parse
from smallalign_core.studies import ablation
from smallalign_core.studies.ablation import CONTROLS, METRICS, AblationReport, What, capital

USUAL_SEEDS, MOST_SEEDS = 3, 10


def panel(spec: dict[str, Any], what: What, store: Store, *, key: str) -> None:
    """Measure what leaving `what` out of `spec` costs, and show what is known. The seeds are kept in the address.

    The runs are found again by their spec: whoever asks the same, after F5 or next week, sees what is done already.

    Args:
        key: for widgets, and the name of the seeds in the address: `<key>-seeds`.
    """
    with context.show_errors():
        asked = parse(spec)
        try:
            ablation.without(asked, what)
        except BadSpec as error:
            st.info(formatting.plain(str(error)))
            return
        name = CONTROLS[what].name
        st.caption(
            f"Trains this student with {name} and without, on the same seeds: equal initial weights, equal order of "
            "images, nothing else changed. Ordinary runs of the queue; what is finished is never trained again."
        )
        _measured(asked, what, store, key)


def _measured(asked: RunSpec, what: What, store: Store, key: str) -> None:
    with st.container(horizontal=True, vertical_alignment="bottom"):
        seeds = st.number_input(
            "Seeds",
            1,
            MOST_SEEDS,
            USUAL_SEEDS,
            key=f"{key}-seeds",
            bind="query-params",
            width=130,
            help="Two runs each. Choose the number before you look: who adds seeds until it turns out well finds an "
            "effect in noise, too.",
        )
        spec = parse(_resolved(asked.model_dump_json(), what, str(store.root)))
        found = ablation.report(store, spec, what, seeds)
        active = found.running > 0
        start = st.button(
            "Measure the rest" if 0 < found.missing < len(found.arms) else "Measure",
            type="primary",
            icon=":material/balance:",
            key=f"{key}-start",
            disabled=not found.missing,
        )
        if active and st.button("Stop", icon=":material/stop:", key=f"{key}-stop", help="Finished runs are kept."):
            _stop(found, store)
            st.rerun()
    if start:
        values = {"spec": asked.model_dump(mode="json"), "what": what, "seeds": seeds}
        context.call("worth", "Preparing the runs", start=True, **values)
        st.rerun()
    if seeds == 1 and not found.finished:
        st.caption(":orange[**1 seed: not evidence.**] It shows the direction at best; 3 are the least to learn from.")
    costs = st.container()
    tick = context.pace(live.TICK_SECONDS) if active else None
    st.fragment(_live, run_every=tick, key=f"{key}-live")(spec, what, seeds, active, store, key)
    with st.expander("The same from the command line"):
        does = "this trains what is missing and prints the same figures"
        spec_summary.command(asked, store, verb=f"worth spec.yaml --without {what} --seeds {seeds}", does=does)
    if found.missing and not active:
        with costs:  # asked last: nothing else waits for it
            seconds = found.missing * spec_summary.estimate(asked.model_dump_json())["seconds"]
            runs = "1 run" if found.missing == 1 else f"{found.missing} runs"
            st.caption(f"{runs} to train, together {'about ' * (seconds >= 1)}{formatting.duration(seconds)}.")


@st.cache_data(max_entries=64, ttl=60, show_spinner=False)
def _resolved(asked: str, what: What, root: str) -> dict[str, Any]:  # noqa: ARG001  # another store, another answer
    """The spec by which the runs are found: it needs the images' fingerprint, which only the desk can tell."""
    found: dict[str, Any] = context.call("worth", "Looking for runs", spec=json.loads(asked), what=what, seeds=1)
    return found["spec"]


def _stop(found: AblationReport, store: Store) -> None:
    for arm in reversed(found.arms):  # the one in training last, so that no other takes its place
        if arm.state in (State.QUEUED, State.RUNNING):
            try:
                store.run(arm.id).request("cancel")
            except Refused:  # it ended in this moment
                continue


# --- what moves while the runs train ----------------------------------------------------------------------------------


def _live(spec: RunSpec, what: What, seeds: int, was_active: bool, store: Store, key: str) -> None:
    """Progress and figures, read from the store. When the last run ends, the whole page is drawn anew, once."""
    with context.show_errors():
        found = ablation.report(store, spec, what, seeds)
        if (found.running > 0) != was_active:
            st.rerun()
        if was_active:
            _progress(found, store)
        for reason in found.failed:
            st.error(f"Failed: {formatting.plain(reason)}", icon=":material/error:")
        if found.failed and found.finished:
            st.caption("Failed seeds are missing from the figures, which flatters the arm that failed.")
        if found.finished:
            _figures(found, key)
        elif not was_active and not found.failed:
            st.caption("Nothing is measured yet." if found.missing == len(found.arms) else "No pair is finished yet.")
        if found.missing < len(found.arms):
            _runs(found)


def _progress(found: AblationReport, store: Store) -> None:
    done = sum(arm.state == State.FINISHED for arm in found.arms)
    at = next(
        ((pair, name, arm) for pair in found.pairs for name, arm in pair.arms if arm.state == State.RUNNING), None
    )
    share, text = 0.0, "Waiting for the worker"
    if at is not None:
        pair, name, arm = at
        text = f"Run {done + 1} of {len(found.arms)}: seed {pair.seed} {name} {CONTROLS[found.what].name}"
        events = store.by_id(arm.id).events("progress")
        if events:
            share = min(1.0, events[-1]["step"] / events[-1]["steps"])
            text += f" · {formatting.duration(events[-1]['eta'])} left"
    elif not context.worker_alive():
        text = "The worker is starting"
    else:
        ours = {arm.id for arm in found.arms}
        before = next((place for place, run in enumerate(store.queue()) if run.id in ours), 0)
        text = f"Waiting for {before} other run{'s' if before > 1 else ''} in the queue" if before else text
    st.progress((done + share) / len(found.arms), text=text)


def _figures(found: AblationReport, key: str) -> None:
    shown = {"helps": st.success, "hurts": st.warning, "not evidence": st.warning}
    icons = {"helps": ":material/trending_up:", "hurts": ":material/trending_down:"}
    verdict = found.effects[0].verdict
    said = [found.effects[0].figures(), found.effects[0].outlook]
    text = f"**{found.verdict}.** " + " ".join(f"{capital(part)}." for part in said if part)
    shown.get(verdict, st.info)(text, icon=icons.get(verdict, ":material/balance:"))
    pairs = [(pair.seed, pair.difference) for pair in found.pairs if pair.difference]
    lines = [
        basic.Differences(
            label=f"{capital(metric.label)}<br>{metric.unit.strip() or 'nats'}",
            points=[metric.scale * difference[effect.metric] for _, difference in pairs],
            names=[f"seed {seed}" for seed, _ in pairs],
            mean=metric.scale * effect.mean,
            low=effect.low and metric.scale * effect.low,
            high=effect.high and metric.scale * effect.high,
            less_is_better=metric.less_is_better,
            good={"helps": True, "hurts": False}.get(effect.verdict),
        )
        for effect in found.effects
        if effect.mean is not None
        for metric in [METRICS[effect.metric]]
    ]
    basic.forest(lines, alt=f"Paired differences. {found.verdict}.", key=f"{key}-forest")
    st.markdown("\n".join(f"- {effect.words()}" for effect in found.effects[1:]))
    st.caption(f"{found.scope()} Diamond: mean; bar: 95 % interval; dots: one a seed.")


def _runs(found: AblationReport) -> None:
    metric = METRICS["accuracy"]
    with st.expander(f"The {len(found.arms)} runs: validation accuracy by seed"):
        for pair in found.pairs:
            change = pair.difference and f": {metric.change(pair.difference['accuracy'])}{metric.unit}"
            with st.container(horizontal=True, vertical_alignment="center", gap="small"):
                st.markdown(f"**Seed {pair.seed}**{change or ''}", width=230)  # so wide that a phone wraps after it
                for name, arm in pair.arms:
                    label = f"{name}: {metric.value(arm.scores['accuracy']) if arm.scores else arm.state}"
                    if arm.state == ablation.NOT_STARTED:
                        st.caption(label, width="content")
                        continue
                    icon = formatting.STATES[arm.state][1]
                    st.page_link("runs.py", label=label, icon=icon, query_params={"run": arm.id}, width="content")
