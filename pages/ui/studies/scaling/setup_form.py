"""The setup form of a scaling study: sizes, images, recipes, sample size, cost, and the study as a file."""

from __future__ import annotations

from typing import Any

import streamlit as st

from pages.ui.augment import policy
from pages.ui.distill import teacher_check
from pages.ui.studies import student_form, study_form
from pages.ui.studies.study_list import Kind
from pages.ui.widgets import forms, run_table, url_state
from smallalign_core.analysis import data_quality
from smallalign_core.errors import BadSpec
from smallalign_core.runs.store import Store
from smallalign_core.service.requests import DatasetFacts
from smallalign_core.spec import Lookahead, Optimizer, RunSpec, canonical, loss_kinds, members, parse_policy, shortest
from smallalign_core.spec.parts import REST
from smallalign_core.studies.scaling import (
    MOST_REPLICATES,
    PILOT,
    PRESETS,
    REPLICATES,
    UNLABELED,
    ScalingStudySpec,
    parse_study,
)

KIND = Kind("scaling", "scaling.py", ":material/open_in_full:", "scale")
ADDS = {"augment": "Augmentation", "optimizer": "Optimizer", "distil": "Distillation", "clean": "Cleaning"}
EXTRA = {"all": "All combined", "noise": "10% label noise (control)"}
MORE = {UNLABELED: "Unlabeled images"}
LADDER = (1, 2, 5, 10, 20)
KEY, ADDED = "student", "scaling-adds"


def form(source: str, facts: DatasetFacts, store: Store) -> dict[str, Any]:
    """Draw the form; returns the fields of the study. All but the details of recipes is kept in the URL."""
    counts = facts.counts["train"]
    student = student_form.form(facts, store, key=KEY, only=("epochs", "batch"), distilled=False)
    sizes = _sizes(student)
    there = min(sum(counts.values()), student["data"].get("images") or sum(counts.values()))
    st.subheader("Recipes", anchor=False)
    st.caption("Baseline: this student trained on labels only, with AdamW. Each variant changes one thing.")
    fitting = run_table.teachers(store, source, facts)
    offered = {name: text for name, text in ADDS.items() if fitting or name != "distil"}
    more = EXTRA | (MORE if fitting else {})
    recipes = url_state.pick_some("Variants", offered | more, key="recipes", first=("augment",))
    found: dict[str, Any] = {}
    if "augment" in recipes:
        _start(f"{ADDED}.augment.rows", lambda: policy.take(parse_policy(policy.FIRST), key=ADDED))
        with st.expander("Augmentation policy"):
            found |= forms.part(RunSpec, key=ADDED, only=("augment",))
    if "optimizer" in recipes:
        with st.expander("Optimizer"):
            found["optimizer"] = forms.choice(
                "Optimizer", members(Optimizer), key=f"{ADDED}.optimizer", start=Lookahead().kind
            )
    if UNLABELED in recipes:
        found["unlabeled"] = (
            url_state.pick_text(
                "Unlabeled images",
                key="unlabeled",
                placeholder=REST,
                help="Path of a folder of images, or of a zip of one. Empty: the training images beyond each subset, "
                "without their labels; set Training images of the student to fewer than there are.",
            ).strip()
            or REST
        )
    if "distil" in recipes or UNLABELED in recipes:
        with st.expander("Teacher and distillation loss", expanded=True):
            teacher, _ = teacher_check.pick(store, source, facts, none=None)
            found["teacher"] = teacher.id if teacher else None
            found["loss"] = forms.choice("Loss", loss_kinds(taught=True), key=f"{ADDED}.loss")
            found["ladder"] = st.pills(
                "Additional teachers: checkpoints after epochs",
                LADDER,
                selection_mode="multi",
                key=f"{ADDED}.ladder",
                help="Tests for a capacity gap: whether a weaker teacher suits a small student better. Each one adds "
                "a training run of the teacher and the replicates of the target.",
            )
    if "clean" in recipes:
        found["decisions"] = _cleaning(facts.fingerprint, store)
    if "all" in recipes and len(set(recipes) & set(ADDS)) < 2:
        st.caption("All combined needs at least two variants and is skipped.")
        recipes.remove("all")
    st.subheader("Sample size", anchor=False)
    return student | sizes | found | {"recipes": ["baseline", *recipes]} | _effort(there, 1 + len(recipes))


def _start(key: str, fill: Any) -> None:
    if key not in st.session_state:
        fill()


def _cleaning(fingerprint: str, store: Store) -> str:
    """What cleaning drops: suspected label errors, or the decisions of the Data page."""
    file = data_quality.file_of(store, fingerprint)
    if not file.is_file():
        return "automatic"
    ways = {"automatic": "Automatic, per replicate", "decided": "Decisions from Data"}
    return str(file) if url_state.switch("Cleaning", ways, key="cleaning") == "decided" else "automatic"


def _sizes(student: dict[str, Any]) -> dict[str, Any]:
    """Widths around the student's own."""
    width = int(student["network"].get("width", 0) or 0)
    if not width:
        st.warning(
            "Fixed-size architecture. A scaling study needs several sizes: choose mlp, cnn, separable or resnet."
        )
        st.stop()
    return {"target": {"width": width}}


def _effort(there: int, recipes: int) -> dict[str, Any]:
    names = {name: f"{name.capitalize()}: {len(one.widths)} × {len(one.fractions)}" for name, one in PRESETS.items()}
    preset = url_state.switch("Model sizes × dataset sizes", names, key="preset")
    first, second = st.columns(2)
    with first:
        draws = url_state.pick_number(
            st.number_input,
            "Replicates",
            3,
            32,
            1,
            key="draws",
            first=4,
            help="Random subsets of images, each with its own initial weights and data order, shared by all recipes. "
            "At least 3 are required; use 4 or more.",
        )
    with second:
        steps = url_state.pick_number(
            st.number_input,
            "Min. training steps",
            0,
            1_000_000,
            50,
            key="steps",
            first=300,
            help="Runs on few images train for more epochs to reach this number of steps.",
        )
    least = round(there * PRESETS[preset].fractions[0])
    st.caption(f"From {least:,} to {there:,} training images.")
    found: dict[str, Any] = {"preset": preset, "replicates": draws, "steps": steps}
    if st.toggle(
        "Adaptive allocation",
        key="scaling-adaptive",
        help="A pilot at the smallest, middle and largest sizes first; then replicates that narrow the intervals most.",
    ):
        least, most = (recipes * PILOT**2 * some for some in (REPLICATES, MOST_REPLICATES))
        found["budget"] = st.number_input("Runs", least, most, 2 * least, key=f"scaling-budget-{least}")
    return found


def written(spec: ScalingStudySpec) -> str:
    """The YAML of a study."""
    plain = {name: value for name, value in canonical(spec).items() if name not in ("student", "fingerprints", "pools")}
    images = spec.student.data.model_copy(update={"fingerprint": None})
    return study_form.as_yaml(shortest(spec.student.model_copy(update={"data": images})) | plain)


def address(spec: ScalingStudySpec) -> dict[str, str]:
    """The URL parameters of the form for a study, as far as the form has fields for it."""
    preset = next((name for name, one in PRESETS.items() if len(one.widths) == len(spec.widths)), "quick")
    recipes = [one for one in spec.recipes if one in ADDS | EXTRA | MORE]
    taught = {"teacher": spec.teacher} if spec.teacher else {}
    taught |= {"unlabeled": spec.unlabeled} if spec.unlabeled else {}
    return {
        "data": spec.student.data.source,
        KEY: study_form.student_address(spec.student, without=("optimizer", "loss")),
        "recipes": ",".join(recipes),
        "preset": preset,
        "draws": str(spec.replicates),
        "steps": str(spec.steps),
        **taught,
    }


def begin(fields: dict[str, Any]) -> None:
    """The cost, the button, the command."""
    width, times = fields["target"]["width"], PRESETS[fields["preset"]].widths
    if len({max(2, round(width * one)) for one in times}) < len(times):
        raise BadSpec(
            f"the student is too narrow for {len(times)} distinct sizes",
            given=f"width {width}",
            do="choose a larger width",
        )
    if len(fields["recipes"]) < 2:
        raise BadSpec("no variant selected to compare with the baseline", do="select at least one variant")
    spec = parse_study(fields)
    few = ":orange[3 replicates are the minimum]; intervals will be wide. Use 4 or 5."
    study_form.begin(
        KIND,
        spec,
        written(spec),
        runs=lambda cost: (
            cost.runs,
            "Model sizes × dataset sizes × recipes × replicates. Runs on the same images train in lockstep.",
        ),
        time="From a few training steps of each size at the current load of this machine.",
        warning=few if spec.replicates == REPLICATES else "",
    )
