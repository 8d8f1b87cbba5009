"""The setup form of an optimizer study: sample size, cost, and the equivalent command."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import streamlit as st

from pages.ui.studies import study_form
from pages.ui.studies.optimizers import optimizer_picker
from pages.ui.studies.study_list import Kind
from pages.ui.widgets import url_state
from smallalign_core.runs.store import Store
from smallalign_core.spec import to_yaml
from smallalign_core.studies.optimizers import OptimizerStudySpec, entries, parse_study

KIND = Kind("optimizers", "optimizers.py", ":material/leaderboard:", "optimizers")


@dataclass(frozen=True)
class Preset:
    """A sample size."""

    seeds: int
    trials: int
    budgets: tuple[str, ...]


PRESETS = {
    "Quick": Preset(3, 3, ("1",)),
    "Standard": Preset(5, 4, ("1", "2")),
    "Publish": Preset(10, 6, ("1", "2", "4")),
}
BUDGETS = {"1": "1x epochs", "2": "2x epochs", "4": "4x epochs", "8": "8x epochs"}


def effort() -> dict[str, Any]:
    """Fields for seeds, trials and budgets, kept in the URL."""
    st.subheader("Sample size", anchor=False)
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        for name, preset in PRESETS.items():
            st.button(
                f"{name}: {preset.seeds} seeds",
                key=f"preset-{name}",
                on_click=_apply,
                args=(preset,),
                help=f"{preset.trials} LR trials each; {', '.join(BUDGETS[one] for one in preset.budgets)}.",
            )
    usual = PRESETS["Quick"]
    first, second, third = st.columns(3, vertical_alignment="bottom")
    with first:
        seeds = url_state.pick_number(
            st.number_input,
            "Seeds",
            1,
            100,
            1,
            key="seeds",
            first=usual.seeds,
            help="Paired runs per optimizer: a seed fixes initial weights, data order and augmentation. Use at least "
            "3, and fix the number in advance.",
        )
    with second:
        trials = url_state.pick_number(
            st.number_input,
            "LR trials",
            1,
            32,
            1,
            key="trials",
            first=usual.trials,
            help="Full-length runs to tune the learning rate of each optimizer. Their cost is included in the results.",
        )
    with third:
        margin = url_state.pick_number(
            st.number_input,
            "Equivalence margin",
            0.1,
            50.0,
            0.1,
            key="margin",
            first=1.0,
            help="Smallest relevant difference in accuracy, in percentage points; smaller ones count as equivalent.",
        )
    budgets = url_state.pick_some(
        "Training budgets",
        BUDGETS,
        key="budgets",
        first=usual.budgets,
        help="Multiples of the student's epochs. Ranks can change with the budget; each has its own results.",
    )
    if not budgets:
        st.warning("No training budget selected: using 1x epochs.")
    return {
        "seeds": seeds,
        "trials": trials,
        "budgets": [int(one) for one in budgets or ["1"]],
        "margin": round(margin / 100, 6),
    }


def _apply(preset: Preset) -> None:
    """In a callback, since values must be set before their fields are drawn."""
    for key, value in (("seeds", preset.seeds), ("trials", preset.trials), ("budgets", list(preset.budgets))):
        st.session_state[url_state.own(key)] = value


def written(spec: OptimizerStudySpec, store: Store) -> str:
    """The shortest YAML of a study."""
    usual = {name: field.default for name, field in OptimizerStudySpec.model_fields.items()}
    text = to_yaml(
        store.named(spec.student).model_copy(update={"optimizer": type(spec.student).model_fields["optimizer"].default})
    )
    more: dict[str, Any] = {}
    if spec.reference != usual["reference"]:
        more["reference"] = optimizer_picker.short(spec.reference)
    more["optimizers"] = [optimizer_picker.short(one) for one in spec.optimizers]
    more["hands_off"] = [optimizer_picker.short(one) for one in spec.hands_off]
    more |= {"trials": spec.trials, "seeds": spec.seeds, "budgets": list(spec.budgets), "margin": spec.margin}
    if spec.target is not None:
        more["target"] = spec.target
    return text + study_form.as_yaml(more)


def address(spec: OptimizerStudySpec) -> dict[str, str]:
    """The URL parameters of the form for a study."""
    loss = spec.student.loss.model_dump(mode="json")
    return {
        "data": spec.student.data.source,
        "student": study_form.student_address(spec.student, without=("teacher", "optimizer"), loss=loss),
        "student-teacher": spec.student.teachers[0] if spec.student.teachers else url_state.NONE,
        optimizer_picker.KEY: optimizer_picker.link(spec.optimizers),
        optimizer_picker.FIXED_KEY: optimizer_picker.link(spec.hands_off),
        "seeds": str(spec.seeds),
        "trials": str(spec.trials),
        "margin": f"{100 * spec.margin:g}",
        "budgets": ",".join(map(str, spec.budgets)),
    }


def begin(fields: dict[str, Any], store: Store) -> None:
    """The cost, the button, the command."""
    spec = parse_study(fields)
    study_form.begin(
        KIND,
        spec,
        written(spec, store),
        runs=lambda _: _runs(spec),
        time="From a few training steps with the reference at the current load of this machine. If the best LR is at "
        "the edge of the tested range, an optimizer gets up to three more trials.",
        warning=":orange[**Single seed.**] Run more before drawing conclusions." if spec.seeds == 1 else "",
    )


def _runs(spec: OptimizerStudySpec) -> tuple[int, str]:
    """How many runs a study has, without additional trials, and why."""
    arms = entries(spec)
    tuned = sum(entry.track == "tuned" for entry in arms)
    each = "each training budget" if len(spec.budgets) > 1 else "one training budget"
    return len(spec.budgets) * (tuned * spec.trials + len(arms) * spec.seeds), (
        f"{tuned} tuned optimizers with {spec.trials} LR trials, {len(arms)} optimizers with {spec.seeds} seeds, at "
        f"{each}."
    )
