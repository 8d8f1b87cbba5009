"""Ablation of one choice of a spec: a button, the runs while they train, the paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from pages.ui.app import context
from pages.ui.charts import forest, theme
from pages.ui.distill import spec_summary
from pages.ui.runs import live
from pages.ui.widgets import formatting
from smallalign_core.errors import BadSpec, Refused
from smallalign_core.runs.store import State, Store
from smallalign_core.service.requests import Ablate
from smallalign_core.spec import RunSpec, parse
from smallalign_core.studies import ablation
from smallalign_core.studies.ablation import CONTROLS, METRICS, AblationReport, Effect, What, capital

USUAL_SEEDS, MOST_SEEDS = 3, 10


def panel(spec: dict[str, Any], what: What, store: Store, *, key: str) -> None:
    """Measure the effect of leaving `what` out of `spec`, and show the results. The seeds are kept in the URL.

    Runs are found by their spec: the same ablation shows its finished runs again, after a reload or next week.

    Args:
        key: for widgets, and the URL parameter of the seeds: `<key>-seeds`.
    """
    with context.show_errors():
        student = parse(spec)
        try:
            ablation.without(student, what)
        except BadSpec as error:
            st.info(formatting.plain(str(error)))
            return
        name = CONTROLS[what].name
        st.caption(
            f"Trains this student with and without {name}, on the same seeds (same initial weights and data order), "
            "with nothing else changed. The runs are regular runs in the queue; finished ones are reused."
        )
        _measured(student, what, store, key)


def _measured(student: RunSpec, what: What, store: Store, key: str) -> None:
    with st.container(horizontal=True, vertical_alignment="bottom"):
        seeds = st.number_input(
            "Seeds",
            1,
            MOST_SEEDS,
            USUAL_SEEDS,
            key=f"{key}-seeds",
            bind="query-params",
            width=130,
            help="Two runs per seed. Choose the number in advance: adding seeds until the result looks good finds "
            "effects in noise.",
        )
        spec = _resolved(student, what, str(store.root))
        found = ablation.report(store, spec, what, seeds)
        active = found.running > 0
        start = st.button(
            "Run missing seeds" if 0 < found.missing < len(found.arms) else "Run ablation",
            type="primary",
            icon=":material/balance:",
            key=f"{key}-start",
            disabled=not found.missing,
        )
        if active and st.button("Stop", icon=":material/stop:", key=f"{key}-stop", help="Finished runs are kept."):
            _stop(found, store)
            st.rerun()
    if start:
        context.call(Ablate(student, what, seeds, start=True), "Preparing runs")
        st.rerun()
    if seeds == 1 and not found.finished:
        st.caption(":orange[**Single seed.**] Run more before drawing conclusions; use at least 3.")
    costs = st.container()
    tick = context.pace(live.TICK_SECONDS) if active else None
    st.fragment(_live, run_every=tick, key=f"{key}-live")(spec, what, seeds, active, store, key)
    with st.expander("Equivalent command line"):
        does = "this command trains missing runs and prints the same results"
        spec_summary.command(student, store, verb=f"ablate spec.yaml --without {what} --seeds {seeds}", does=does)
    if found.missing and not active:
        with costs:  # requested last: nothing else waits for it
            seconds = found.missing * spec_summary.estimate(student).seconds
            runs = "1 run" if found.missing == 1 else f"{found.missing} runs"
            st.caption(f"{runs} to train, total time {'about ' * (seconds >= 1)}{formatting.duration(seconds)}.")


@st.cache_data(max_entries=64, ttl=60, show_spinner=False)
def _resolved(student: RunSpec, what: What, root: str) -> RunSpec:  # noqa: ARG001  # part of the cache's key
    """The spec by which the runs are found: it needs the images' fingerprint, which the backend computes."""
    return context.call(Ablate(student, what, seeds=1), "Loading runs").spec


def _stop(found: AblationReport, store: Store) -> None:
    for arm in reversed(found.arms):  # the one in training last, so that no other takes its place
        if arm.state in (State.QUEUED, State.RUNNING):
            try:
                store.run(arm.id).request("cancel")
            except Refused:  # it ended in this moment
                continue


# --- what updates while the runs train --------------------------------------------------------------------------------


def _live(spec: RunSpec, what: What, seeds: int, was_active: bool, store: Store, key: str) -> None:
    """Progress and results, read from the store. When the last run ends, the whole page is redrawn, once."""
    with context.show_errors():
        found = ablation.report(store, spec, what, seeds)
        if (found.running > 0) != was_active:
            st.rerun()
        if was_active:
            _progress(found, store)
        for reason in found.failed:
            st.error(f"Run failed: {formatting.plain(reason)}", icon=":material/error:")
        if found.failed and found.finished:
            st.caption("Failed seeds are excluded, which biases the results in favor of the failing arm.")
        if found.finished:
            _figures(found, key)
        elif not was_active and not found.failed:
            st.caption("No runs yet." if found.missing == len(found.arms) else "No finished pair of runs yet.")
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
        text = "Starting the worker"
    else:
        ours = {arm.id for arm in found.arms}
        before = next((place for place, run in enumerate(store.queue()) if run.id in ours), 0)
        text = f"Queued behind {before} other run{'s' if before > 1 else ''}" if before else text
    st.progress((done + share) / len(found.arms), text=text)


def _figures(found: AblationReport, key: str) -> None:
    shown = {"helps": st.success, "hurts": st.warning, "not evidence": st.warning}
    icons = {"helps": ":material/trending_up:", "hurts": ":material/trending_down:"}
    verdict = found.effects[0].verdict
    parts = [found.effects[0].figures(), found.effects[0].outlook]
    text = f"**{found.verdict}.** " + " ".join(f"{capital(part)}." for part in parts if part)
    shown.get(verdict, st.info)(text, icon=icons.get(verdict, ":material/balance:"))
    pairs = [(pair.seed, pair.difference) for pair in found.pairs if pair.difference]
    panels = [_effect(effect, effect.mean, pairs) for effect in found.effects if effect.mean is not None]
    forest.forest(panels, alt=f"Paired differences. {found.verdict}.", key=f"{key}-forest")
    st.markdown("\n".join(f"- {effect.words()}" for effect in found.effects[1:]))
    st.caption(f"{found.scope()} Diamond: mean; bar: 95% CI; dots: seeds.")


def _effect(effect: Effect, mean: float, pairs: Sequence[tuple[int, Mapping[str, float]]]) -> forest.Panel:
    """The paired differences of one metric, on a scale of its own."""
    metric = METRICS[effect.metric]
    low, high = (None if end is None else metric.scale * end for end in (effect.low, effect.high))
    points = [metric.scale * difference[effect.metric] for _, difference in pairs]
    interval = (
        ""
        if effect.low is None or effect.high is None
        else f" [{metric.change(effect.low)}, {metric.change(effect.high)}]"
    )
    line = forest.Line(
        f"<b>{capital(metric.label)}</b>  {metric.change(mean)}{metric.unit}{interval}",
        {"helps": theme.good(), "hurts": theme.bad()}.get(effect.verdict, theme.gray()),
        metric.scale * mean,
        low,
        high,
        hover=f"mean {metric.scale * mean:+.4g}",
        points=points,
        names=[f"seed {seed}" for seed, _ in pairs],
    )
    far = 1.12 * max((abs(value) for value in (*points, low, high) if value is not None), default=1.0) or 1.0
    return forest.Panel([line], far, reverse=metric.less_is_better)


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
