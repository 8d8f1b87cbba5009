"""What is particular to the view of a scaling study: its size, extension, progress and results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import streamlit as st

from pages.ui.charts.plotting import columns
from pages.ui.studies import study_form, study_view
from pages.ui.studies.scaling import charts, setup_form
from pages.ui.widgets import url_state
from smallalign_core.runs.store import Run, State, Store
from smallalign_core.studies.ablation import capital
from smallalign_core.studies.lifecycle import Study
from smallalign_core.studies.scaling import (
    ROUND,
    LawReading,
    ScalingStudy,
    ScalingStudySpec,
    most_of,
)
from smallalign_core.studies.scaling_law import VACUOUS

Metric = Literal["nll", "error"]
SCORES: dict[str, str] = {"nll": "NLL", "error": "Error"}
MOST = 32
"""Replicates of a study."""
RUNS = "Total. The default should halve the widest interval, or adds a third if no law is fitted yet."


def _size(study: Study, report: ScalingStudy) -> str:
    sizes = sorted({one.width for one in report.cells})
    images = sorted({one.images for one in report.cells})
    much = f"{report.replicates} replicates" if study.spec.budget is None else f"adaptive: {study.spec.budget} runs"
    return (
        f"{len(sizes)} model sizes, {len(images)} dataset sizes, {len(report.recipes)} recipes, {much} · target: "
        f"width {report.width}, {report.images:,} images · study `{report.id}`"
    )


def _warnings(report: ScalingStudy) -> None:
    """A message for diverged runs."""
    if diverged := sum(one.diverged for one in report.cells):
        st.warning(
            f"{diverged} diverged runs are excluded, which biases results in favor of their recipes.",
            icon=":material/trending_down:",
        )


def _rounds(report: ScalingStudy) -> int:
    """Results are redrawn each time that every recipe has another replicate of the target, not at each run."""
    at_target = [one.runs for one in report.cells if (one.width, one.images) == (report.width, report.images)]
    return min(at_target, default=0)


def _extend(study: Study, report: ScalingStudy) -> dict[str, Any] | None:
    """More replicates of all cells, or more runs of an adaptive study."""
    spec = study.spec
    if spec.budget is None:
        more = st.number_input("Replicates", spec.replicates, MOST, spec.replicates, key="extend-draws")
        return _grown(spec, replicates=more)
    if spec.budget < (most := most_of(spec)):
        first = min(most, spec.budget + _more_runs(report))
        more = st.number_input("Runs", spec.budget, most, first, key="extend-runs", help=RUNS)
        return _grown(spec, budget=more)
    st.caption("Every cell has the maximum number of replicates. Start a study with more sizes or images instead.")
    return None


def _grown(spec: ScalingStudySpec, **more: int) -> dict[str, Any]:
    """The fields that change; the images of further replicates are drawn when it starts."""
    changed = any(getattr(spec, name) != value for name, value in more.items())
    return more | {"fingerprints": (), "pools": ()} if changed else {}


def _more_runs(report: ScalingStudy) -> int:
    """Runs that should halve the widest interval; a third of the present ones where no law is fitted yet."""
    proposal = report.readings["nll"].proposal
    return proposal.runs if proposal else max(1, report.total // ROUND)


def _needed(study: Study, report: ScalingStudy) -> study_view.Needed | None:
    """Replicates, or runs of an adaptive study, while any recipe is undecided."""
    spec, reading = study.spec, report.readings["nll"]
    if reading.gate is not None and reading.gate.passed and all(one.decided for one in reading.worth):
        return None
    if spec.budget is not None:
        runs = min(_more_runs(report), most_of(spec) - spec.budget)
        return study_view.Needed(_grown(spec, budget=spec.budget + runs), f"{runs} runs", runs) if runs > 0 else None
    each = max(1, report.total // report.replicates)
    more = min(max(1, -(-_more_runs(report) // each)), MOST - spec.replicates)
    if more < 1:
        return None
    words = f"{more} replicate{'s' * (more > 1)}"
    return study_view.Needed(_grown(spec, replicates=spec.replicates + more), words, more * each)


def _doing(study: Study, report: ScalingStudy, store: Store) -> str:
    if now := next((spec for spec in study.missing(store) if _state(store.find(spec)) == State.RUNNING), None):
        return f"Training in lockstep: {now.data.images or 0:,} images, seed {now.seed}."
    return "Detecting label errors in each replicate, for automatic cleaning." if report.preparing else ""


def _state(run: Run | None) -> State | None:
    return None if run is None else run.state


def _progress(report: ScalingStudy) -> None:
    st.progress(min(1.0, report.done / report.total) if report.total else 0.0, text=capital(report.states()))


# --- results ----------------------------------------------------------------------------------------------------------


def _results(report: ScalingStudy, study: Study, _: Store) -> None:
    if not any(one.runs for one in report.cells):
        st.info("No finished runs yet. Results appear once the target has runs of two recipes.")
        return
    metric: Metric = "error" if url_state.switch("Metric", SCORES, key="metric") == "error" else "nll"
    reading = report.readings[metric]
    passed = reading.gate is not None and reading.gate.passed
    shown = passed and not all(one.hidden_parameters and one.hidden_images for one in reading.worth)
    if passed:
        headline = f"**{_escaped(_headline(report, reading))}**"
        groups = _groups(reading)
        if groups["better"]:
            st.success(headline, icon=":material/verified:")
        elif groups["worse"]:
            st.warning(headline, icon=":material/trending_down:")
        else:
            st.info(headline, icon=":material/balance:")
        for text in report.ship() if metric == "nll" else ():
            st.info(f"**Smaller model:** {_escaped(text)}.", icon=":material/deployed_code:")
    else:
        st.info(f"**{_escaped(capital(reading.verdict()))}.**", icon=":material/balance:")
    if shown:
        charts.forest(report, reading, key="scaling-forest")
        st.caption(
            "Diamond: estimate; bar: 95% CI; open and dotted: extrapolated; arrow: beyond the axis, including ∞. "
            f"{_hidden(reading)}{report.scope()}"
        )
    else:
        if passed:
            st.caption(f"No multipliers available. {_hidden(reading)}")
        if report.at_target(metric):
            st.markdown("**Paired differences at the target**")
            charts.raw(report, metric, key="scaling-raw")
            st.caption(f"Diamond: mean; bar: 95% CI; dots: replicates. {report.scope()}")
    _checks(reading)
    tabs = {name: draw for name, (needs, draw) in TABS.items() if needs(report, reading)}
    for name, tab in url_state.tabs(list(tabs), key="part").items():
        if tab.open:  # only the open one is drawn
            with tab:
                tabs[name](report, study, metric)


def _headline(report: ScalingStudy, reading: LawReading) -> str:
    """The result at the target, in a sentence: in parameters, or in images where those are not available."""
    groups = _groups(reading)
    listed = "; ".join(f"{what}: {', '.join(labels)}" for what, labels in groups.items() if labels)
    unit = "images" if all(one.hidden_parameters for one in reading.worth) else "parameters"
    return (
        f"At {report.params or 0:,} parameters and {report.images:,} images, in {unit}: {listed}."
        f"{report.disagreement()}"
    )


def _groups(reading: LawReading) -> dict[str, list[str]]:
    """The labels of recipes by result."""
    groups: dict[str, list[str]] = {"better": [], "worse": [], "inconclusive": []}
    other = [bool(one.hidden_parameters) for one in reading.worth]
    for one, by_images in zip(reading.worth, other, strict=True):
        found, hidden = (one.images, one.hidden_images) if by_images else (one.parameters, "")
        sure = not hidden and (found.low > 1 or found.high < 1)
        named = f"{one.label} (in images)" if by_images and not all(other) else one.label
        groups["inconclusive" if not sure else "better" if found.low > 1 else "worse"].append(named)
    return groups


def _hidden(reading: LawReading) -> str:
    """The reasons of hidden results."""
    reasons = dict.fromkeys(why for one in reading.worth for why in (one.hidden_parameters, one.hidden_images) if why)
    return f"Not shown: {'; '.join(reasons)}. " if reasons else ""


def _escaped(text: str) -> str:
    """As Markdown: an interval in brackets before a parenthesis would be a link."""
    return text.replace("[", "\\[").replace("]", "\\]").replace("*", "\\*")


def _checks(reading: LawReading) -> None:
    """Sanity checks are always shown, failed ones too."""
    st.subheader("Sanity checks", anchor=False)
    if not reading.tests:
        st.caption(f"No sanity checks yet: {reading.why_not or '3 replicates of the baseline at every size required'}.")
        return
    passed = sum(test.passed for test in reading.tests)
    vague = sum(test.outcome == "uninformative" for test in reading.tests)
    unsure = f", {vague} uninformative" if vague else ""
    lack = reading.law.get("lack") if reading.law else None
    fit = f", lack of fit {lack:.1f} (should be below 4)" if isinstance(lack, int | float) else ""
    st.caption(
        f"{passed} of {len(reading.tests)} sanity checks passed{unsure}{fit}. "
        "A/A test: baseline against itself, true value ×1. Known-effect test: baseline with more images or parameters, "
        "true value known. Ring: true value; bar: estimate with 95% CI."
        + (f" Gray: interval unbounded or wider than ×/÷{VACUOUS:g}, uninformative." if vague else "")
    )
    charts.sanity_checks(reading, key="scaling-tests")


# --- tabs -------------------------------------------------------------------------------------------------------------


def _maps(report: ScalingStudy, _: Study, metric: Metric) -> None:
    reading = report.readings[metric]
    with st.container(horizontal=True, vertical_alignment="bottom"):
        recipe = url_state.switch("Recipe", {one: report.labels[one] for one in _mapped(reading)}, key="recipe")
        axis = url_state.switch("Equivalent in", {"n": "Parameters", "d": "Images"}, key="axis")
    found = next(one for one in reading.maps if (one.recipe, one.axis) == (recipe, axis))
    if all(why for row in found.hidden for why in row):
        st.caption(f"No results for this map: {found.hidden[0][0]}.")
        return
    charts.plane(report, found, key="scaling-map")
    st.caption(
        "Multiple of the baseline's parameters or images. Framed: target; blank: not available; *: extrapolated."
    )


def _mapped(reading: LawReading) -> list[str]:
    return list(dict.fromkeys(one.recipe for one in reading.maps))


def _curves(report: ScalingStudy, _: Study, metric: Metric) -> None:
    axis: Literal["n", "d"] = (
        "d" if url_state.switch("X axis", {"n": "Parameters", "d": "Images"}, key="over") == "d" else "n"
    )
    charts.curves(report, metric, axis, key="scaling-curves")
    over = "training images" if axis == "d" else "parameters"
    st.caption(f"Over {over}. Points: means with 95% t intervals over replicates; dotted: fitted scaling law, if any.")


def _pairs(report: ScalingStudy, _: Study, metric: Metric) -> None:
    charts.slopes(report, metric, key="scaling-pairs")
    st.caption("One line per replicate (images, initial weights and data order), without and with the recipe.")


def _fit(report: ScalingStudy, _: Study, metric: Metric) -> None:
    reading = report.readings[metric]
    st.markdown(f"{capital(reading.verdict())}.")
    for warning in reading.gate.warnings if reading.gate else ():
        st.caption(f":material/info: {warning}")
    charts.residuals(report, metric, key="scaling-residuals")


def _ladder(report: ScalingStudy, _: Study, __: Metric) -> None:
    charts.ladder(report, key="scaling-ladder")
    st.caption("Target student, distilled from earlier teacher checkpoints. An upward bend indicates a capacity gap.")


def _figures(report: ScalingStudy, _: Study, metric: Metric) -> None:
    rows = [
        {
            "Recipe": report.labels[one.recipe],
            "Parameters": one.params,
            "Images": one.images,
            "Runs": one.runs,
            SCORES[metric]: getattr(one, metric)[0],
            "95% low": getattr(one, metric)[1],
            "95% high": getattr(one, metric)[2],
            "Fitted": one.expected.get(metric),
        }
        for one in report.cells
        if one.runs
    ]
    form = "percent" if metric == "error" else "%.4f"
    scores = {
        name: st.column_config.NumberColumn(format=form) for name in (SCORES[metric], "95% low", "95% high", "Fitted")
    }
    st.dataframe(
        columns(rows),
        hide_index=True,
        lazy=False,
        placeholder="–",
        alt="Scores of all cells with intervals.",
        column_config={"Recipe": st.column_config.TextColumn(pinned=True), **scores},
    )


def _next(report: ScalingStudy, study: Study, metric: Metric) -> None:
    more = report.readings[metric].proposal
    if more is None or not report.proposal():
        st.caption("Not enough data to fit the scaling law, so no proposal.")
        return
    st.markdown(f"{_escaped(report.proposal())}.")
    table: dict[str, Any] = columns(
        [
            {"Recipe": report.labels[recipe], "Parameters": round(n), "Images": round(d), "More runs": count}
            for (recipe, n, d), count in more.more
        ]
    )
    st.dataframe(table, hide_index=True, lazy=False, placeholder="–", alt="Cells that would narrow the interval most.")
    st.caption(
        "Extend adds runs in these cells only."
        if study.spec.budget
        else "Extend adds a replicate of every cell; an adaptive study (`budget` in its file) adds these cells only."
    )


def _how(report: ScalingStudy, study: Study, __: Metric) -> None:
    st.markdown(report.scope())
    st.caption("Study file:")
    study_form.command(setup_form.KIND, setup_form.written(study.spec))


Needs = Callable[[ScalingStudy, LawReading], bool]
TABS: dict[str, tuple[Needs, Callable[[ScalingStudy, Study, Metric], None]]] = {
    "Map": (lambda _, reading: bool(reading.maps), _maps),
    "Curves": (lambda report, _: any(one.params for one in report.cells), _curves),
    "Pairs": (lambda report, reading: bool(report.at_target(reading.metric)), _pairs),
    "Fit": (lambda _, reading: reading.law is not None, _fit),
    "Teacher checkpoints": (lambda report, _: any(rung.students for rung in report.ladder), _ladder),
    "All metrics": (lambda *_: True, _figures),
    "Suggested runs": (lambda _, reading: reading.proposal is not None, _next),
    "Method": (lambda *_: True, _how),
}

VIEW = study_view.View[ScalingStudy](
    kind=setup_form.KIND,
    size=_size,
    address=setup_form.address,
    extend=_extend,
    warnings=_warnings,
    rounds=_rounds,
    progress=_progress,
    doing=_doing,
    results=_results,
    needed=_needed,
)
"""The view of a scaling study."""
