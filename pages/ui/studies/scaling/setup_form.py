"""A scaling study before it starts: sizes, images, recipes, how much evidence, its cost, the same as a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import streamlit as st
import yaml

from pages.ui.app import context
from pages.ui.augment import policy
from pages.ui.distill import teacher_check
from pages.ui.studies import student_form
from pages.ui.widgets import formatting, forms, run_table, url_state
from smallalign_core.analysis import data_quality
from smallalign_core.errors import BadSpec
from smallalign_core.runs.store import Store
from smallalign_core.spec import Lookahead, Optimizer, RunSpec, canonical, loss_kinds, members, parse_policy
from smallalign_core.studies.scaling import MOST_REPLICATES, PILOT, PRESETS, REPLICATES, ScalingStudySpec, parse_study

ADDS = {"augment": "Augmentation", "optimizer": "Optimizer", "distil": "Distillation", "clean": "Cleaning"}
EXTRA = {"all": "All together", "noise": "10 % wrong labels (a control)"}
LADDER = (1, 2, 5, 10, 20)
KEY, ADDED = "student", "scaling-adds"


def form(source: str, facts: Mapping[str, Any], store: Store) -> dict[str, Any]:
    """Ask for a study; returns the fields of its file. All but what a recipe adds in detail stands in the address."""
    classes, counts = tuple(facts["classes"]), facts["counts"]["train"]
    student = student_form.form(source, classes, store, key=KEY, only=("epochs", "batch"), taught=False)
    sizes = _sizes(student)
    there = min(sum(counts.values()), student["data"].get("images") or sum(counts.values()))
    st.subheader("Recipes", anchor=False)
    st.caption("The baseline is this student from labels alone, with AdamW. Each recipe adds one thing to it.")
    fitting = run_table.teachers(store, source, facts)
    offered = {name: text for name, text in ADDS.items() if fitting or name != "distil"}
    recipes = url_state.pick_some("Beside the baseline", offered | EXTRA, key="recipes", first=("augment",))
    found: dict[str, Any] = {}
    if "augment" in recipes:
        _start(f"{ADDED}.augment.rows", lambda: policy.take(parse_policy(policy.FIRST), key=ADDED))
        with st.expander("What augmentation adds"):
            found |= forms.part(RunSpec, key=ADDED, only=("augment",))
    if "optimizer" in recipes:
        with st.expander("What optimizer means"):
            found["optimizer"] = forms.choice(
                "Optimizer", members(Optimizer), key=f"{ADDED}.optimizer", start=Lookahead().kind
            )
    if "distil" in recipes:
        with st.expander("Who teaches, and what", expanded=True):
            teacher, _ = teacher_check.pick(store, source, facts, none=None)
            found["teacher"] = teacher.id if teacher else None
            found["loss"] = forms.choice("Loss", loss_kinds(taught=True), key=f"{ADDED}.loss")
            found["ladder"] = st.pills(
                "Also by the teacher after so many epochs",
                LADDER,
                selection_mode="multi",
                key=f"{ADDED}.ladder",
                help="Is a weaker teacher the better one for so small a student (the capacity gap)? Each costs a "
                "training of the teacher, and the target's draws.",
            )
    if "clean" in recipes:
        found["decisions"] = _cleaning(facts["fingerprint"], store)
    if "all" in recipes and len(set(recipes) & set(ADDS)) < 2:
        st.caption("All together needs two things to add: it is left out.")
        recipes.remove("all")
    st.subheader("How much evidence", anchor=False)
    return student | sizes | found | {"recipes": ["baseline", *recipes]} | _effort(there, 1 + len(recipes))


def _start(key: str, fill: Any) -> None:
    if key not in st.session_state:
        fill()


def _cleaning(fingerprint: str, store: Store) -> str:
    """What cleaning drops: what is suspected, or what was decided on the Data page."""
    file = data_quality.file_of(store, fingerprint)
    if not file.is_file():
        return "automatic"
    ways = {"automatic": "What is suspected in each draw", "decided": "My decisions on the Data page"}
    return str(file) if url_state.switch("Cleaning drops", ways, key="cleaning") == "decided" else "automatic"


def _sizes(student: dict[str, Any]) -> dict[str, Any]:
    """Widths around the student's own."""
    width = int(student["network"].get("width", 0) or 0)
    if not width:
        st.warning("This network has one size. Choose mlp, cnn, separable or resnet: a study needs several.")
        st.stop()
    return {"target": {"width": width}}


def _effort(there: int, recipes: int) -> dict[str, Any]:
    names = {
        name: f"{name.capitalize()}: {len(one['widths'])} × {len(one['fractions'])}" for name, one in PRESETS.items()
    }
    preset = url_state.switch("Sizes × numbers of images", names, key="preset")
    first, second = st.columns(2)
    with first:
        draws = url_state.pick_number(
            st.number_input,
            "Draws",
            3,
            32,
            1,
            key="draws",
            first=4,
            help="Draws of images, each with first weights and order of its own, the same for all recipes. Below 3 "
            "nothing can be said; 4 is the least that is advised.",
        )
    with second:
        steps = url_state.pick_number(
            st.number_input,
            "Least steps",
            0,
            1_000_000,
            50,
            key="steps",
            first=300,
            help="Fewer images are seen in more epochs, until a run has so many steps: else it is short of those, too.",
        )
    least = round(there * PRESETS[preset]["fractions"][0])
    st.caption(f"From {least:,} to {there:,} training images.")
    found: dict[str, Any] = {"preset": preset, "replicates": draws, "steps": steps}
    if st.toggle(
        "Adaptive: runs where they tell most",
        key="scaling-adaptive",
        help="A pilot of the lowest, middle and highest rungs first; then draws where they narrow the intervals most.",
    ):
        least, most = (recipes * PILOT**2 * some for some in (REPLICATES, MOST_REPLICATES))
        found["budget"] = st.number_input("Runs", least, most, 2 * least, key=f"scaling-budget-{least}")
    return found


def written(spec: ScalingStudySpec) -> str:
    """The YAML that gives a study back."""
    plain = {name: value for name, value in canonical(spec).items() if name not in ("student", "fingerprints")}
    student = canonical(
        spec.student.model_copy(update={"data": spec.student.data.model_copy(update={"fingerprint": None})})
    )
    return yaml.safe_dump(student | plain, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)


def command(spec: ScalingStudySpec) -> None:
    """A study as YAML, and the command that does the same without the dashboard."""
    st.code(written(spec), language="yaml", wrap_lines=True)
    st.caption("Save it as study.yaml; this trains what is missing and prints the same figures:")
    st.code("python -m smallalign_core scale study.yaml", language="bash", wrap_lines=True)


def address(spec: ScalingStudySpec) -> dict[str, str]:
    """The form's address for a study: what opens it filled in, as far as the form has fields for it."""
    student = canonical(spec.student)
    student["data"] = {key: value for key, value in canonical(spec.student.data).items() if key == "images"}
    for name in ("optimizer", "seed", "loss"):
        student.pop(name, None)
    preset = next((name for name, one in PRESETS.items() if len(one["widths"]) == len(spec.widths)), "quick")
    recipes = [one for one in spec.recipes if one in ADDS or one in EXTRA]
    taught = {"teacher": spec.teacher} if spec.teacher else {}
    return {
        "data": spec.student.data.source,
        KEY: json.dumps(student, separators=(",", ":")),
        "recipes": ",".join(recipes),
        "preset": preset,
        "draws": str(spec.replicates),
        "steps": str(spec.steps),
        **taught,
    }


def begin(asked: dict[str, Any]) -> None:
    """The cost, the button, the command. A study that is there already is opened instead."""
    width, times = asked["target"]["width"], PRESETS[asked["preset"]]["widths"]
    if len({max(2, round(width * one)) for one in times}) < len(times):
        raise BadSpec(
            f"the student is too narrow for {len(times)} different sizes around it",
            given=f"width {width}",
            do="choose a wider one",
        )
    if len(asked["recipes"]) < 2:
        raise BadSpec("a study compares recipes with the baseline, and none is chosen", do="choose at least one")
    spec = parse_study(asked)
    everything = json.dumps(spec.model_dump(mode="json"), sort_keys=True)
    costs = st.container()
    if st.button("Start the study", type="primary", icon=":material/play_arrow:"):
        answer = context.call("study", "Preparing the study", kind="scaling", spec=json.loads(everything), start=True)
        st.switch_page("scaling.py", query_params={"study": answer["id"]})
    if spec.replicates == 3:
        st.caption(":orange[3 draws are the least that can be analysed]: intervals will be wide. 4 or 5 are better.")
    st.markdown("**The same from the command line**")
    command(spec)
    with costs:  # asked last: nothing else on the page waits for it
        _cost(everything)


def _cost(everything: str) -> None:
    known = _known(everything)
    report = known["report"]
    cells = st.columns(2)
    cells[0].metric(
        "Runs",
        f"{report['total']:,}",
        border=True,
        help="Sizes × numbers of images × recipes × draws. Those that see the same images train side by side.",
    )
    cells[1].metric(
        "Takes about",
        formatting.duration(known["seconds"]),
        border=True,
        help="From a few real steps of each size, on this machine as busy as it is now.",
    )
    if report["done"]:
        words = f"{report['done']:,} of these runs are done already and are not repeated."
        st.caption(words if report["missing"] else f"All {report['done']:,} runs of this study are done.")


@st.cache_data(max_entries=32, ttl=60, show_spinner=False)
def _known(everything: str) -> dict[str, Any]:
    """What the store knows of the study that this JSON describes, and its cost; also says what would refuse it."""
    return context.call(
        "study", "Counting runs and timing a few real steps", kind="scaling", spec=json.loads(everything), probe=True
    )
