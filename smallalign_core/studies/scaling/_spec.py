"""What a scaling study is asked to do: a student at several sizes, from several numbers of images, by recipes."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from smallalign_core.errors import BadSpec
from smallalign_core.spec import (
    LOOP,
    Augment,
    HintonKd,
    LibraryNetwork,
    Loss,
    OfLayers,
    Optimizer,
    RunSpec,
    canonical,
    fields_in,
    parse,
    told,
)
from smallalign_core.spec.parts import FILLED_IN, Part

PROCESSES = ("augment", "optimizer", "distil", "clean")
"""What a recipe may add to the baseline; `all` adds every one that the study names, `all-augment` all but that one."""
RECIPES = ("baseline", *PROCESSES, "noise", "all", *(f"all-{one}" for one in PROCESSES))
LABELS = {"augment": "augmentation", "optimizer": "optimizer", "distil": "distillation", "clean": "cleaning"}
AUTOMATIC = "automatic"
RUNGS, REPLICATES = 3, 3
"""Least sizes, numbers of images and replicates that a law can be fitted to."""
PILOT = 3
"""Sizes and numbers of images of an adaptive study's pilot: lowest, middle, highest."""

PRESETS: dict[str, dict[str, Any]] = {
    "quick": {"widths": (0.5, 1, 2), "fractions": (1 / 4, 1 / 2, 1.0), "replicates": 4, "recipes": 2},
    "standard": {"widths": (0.25, 0.5, 1, 2), "fractions": (1 / 8, 1 / 4, 1 / 2, 1.0), "replicates": 4, "recipes": 4},
    "paper": {
        "widths": (0.25, 0.5, 1, 2, 4),
        "fractions": (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0),
        "replicates": 5,
        "recipes": 6,
    },
}
"""Widths are multiples of the target's; recipes: how many, the baseline among them."""
OWN = (
    "preset",
    "widths",
    "images",
    "fractions",
    "recipes",
    "augment",
    "optimizer",
    "teacher",
    "loss",
    "decisions",
    "noise",
    "replicates",
    "target",
    "steps",
    "budget",
    "ladder",
    "fingerprints",
)
"""Fields of a study. Of those that a run has too, the study's say what a recipe adds, and the baseline has none."""

_SEVERAL = BeforeValidator(lambda given: given if isinstance(given, list | tuple) else [given])


class Target(Part):
    """The student that will be shipped, and the images that it will learn from: figures are given for this cell."""

    width: Annotated[int, Field(ge=2, le=2048, description="Its `network.width`, one of the study's.")]
    images: Annotated[int | None, Field(ge=2, description="One of the study's; empty: the most.")] = None


class ScalingStudySpec(Part):
    """All that decides a scaling study. In a file, the fields of the student stand beside the others."""

    student: Annotated[
        RunSpec, Field(description="The baseline: what is trained where a recipe adds nothing; `seed` is the first.")
    ]
    widths: Annotated[
        tuple[Annotated[int, Field(ge=2, le=2048)], ...],
        Field(min_length=RUNGS, max_length=8, description="Sizes of the student, as `network.width`."),
    ]
    images: Annotated[
        tuple[Annotated[int, Field(ge=2)], ...],
        _SEVERAL,
        Field(max_length=8, description="Numbers of training images."),
    ] = ()
    fractions: Annotated[
        tuple[Annotated[float, Field(gt=0, le=1)], ...],
        _SEVERAL,
        Field(max_length=8, description="The same as shares of all training images."),
    ] = ()
    recipes: Annotated[
        tuple[Literal[RECIPES], ...],  # type: ignore[valid-type]
        _SEVERAL,
        Field(min_length=2, max_length=len(RECIPES), description="What is compared; the baseline is always in."),
    ]
    augment: Annotated[tuple[Augment, ...], Field(max_length=16, description="What `augment` adds.")] = ()
    optimizer: Annotated[Optimizer | None, Field(description="Who takes the steps in `optimizer`.")] = None
    teacher: Annotated[str | None, Field(max_length=1000, description="A finished run that `distil` learns from.")] = (
        None
    )
    loss: Annotated[Loss, Field(description="What `distil` is asked to match.")] = HintonKd()
    decisions: Annotated[
        str | None,
        Field(max_length=1000, description="What `clean` drops: a file of decisions, or `automatic`."),
    ] = None
    noise: Annotated[
        float, Field(gt=0, le=0.9, description="Share of wrong labels in `noise`, a control: what does dirt cost?")
    ] = 0.1
    replicates: Annotated[
        int, Field(ge=REPLICATES, le=32, description="Draws of images, each with first weights and order of its own.")
    ] = 4
    target: Annotated[Target | None, Field(description="The student that will be shipped; empty: the spec's own.")] = (
        None
    )
    steps: Annotated[
        int, Field(ge=0, le=1_000_000, description="Least steps of a run: fewer images are then seen in more epochs.")
    ] = 0
    budget: Annotated[
        int | None,
        Field(ge=1, le=100_000, description="Adaptive: so many runs, most where they narrow the intervals most."),
    ] = None
    ladder: Annotated[
        tuple[Annotated[int, Field(ge=1, le=100_000)], ...],
        _SEVERAL,
        Field(max_length=8, description="Also learn from the teacher as it is after so many epochs (capacity gap)."),
    ] = ()
    fingerprints: Annotated[
        tuple[tuple[str, str], ...],
        Field(description="Digests of the images of each draw; filled in.", json_schema_extra=FILLED_IN),
    ] = ()

    @model_validator(mode="after")
    def _baseline_is_plain(self) -> Self:
        if isinstance(self.student.network, LibraryNetwork):
            raise ValueError("this network has one size: choose mlp, cnn, separable or resnet")
        if self.student.teacher or self.student.start:
            raise ValueError("the baseline learns from labels, from the start: name `teacher` for `distil` only")
        if self.student.seed + self.replicates >= 2**31 or self.student.data.draw:
            raise ValueError("`seed` must leave room for replicates, and `data.draw` is theirs: leave it out")
        return self

    @model_validator(mode="after")
    def _rungs_are_enough(self) -> Self:
        for name in ("widths", "images", "fractions", "ladder"):
            given = getattr(self, name)
            if list(given) != sorted(set(given)):
                raise ValueError(f"`{name}` grow from one to the next (given: {list(given)})")
        if bool(self.images) == bool(self.fractions):
            raise ValueError("give `images` or `fractions`, one of the two")
        if (some := len(self.images or self.fractions)) < RUNGS:
            raise ValueError(f"a law needs at least {RUNGS} numbers of images (given: {some})")
        if self.width not in self.widths:
            raise ValueError(f"the target's width is none of `widths` (given: {self.width}, of {list(self.widths)})")
        if self.images and self.most not in self.images:
            raise ValueError(f"the target's images are none of `images` (given: {self.most}, of {list(self.images)})")
        return self

    @model_validator(mode="after")
    def _recipes_can_be_followed(self) -> Self:
        if self.recipes[0] != "baseline" or len(set(self.recipes)) < len(self.recipes):
            raise ValueError("`recipes` begin with `baseline`, and each is named once")
        for recipe in self.recipes:
            self._has_all_for(recipe)
        if isinstance(self.loss, OfLayers):
            raise ValueError(
                f"loss '{self.loss.kind}' compares layers, which differ by size: use one of logits, as `kd`"
            )
        if not self.loss.uses_teacher:
            raise ValueError(f"loss '{self.loss.kind}' never asks the teacher: use `kd` or another that does")
        if self.ladder and not self.teacher:
            raise ValueError("a `ladder` is of a teacher: name one")
        if self.budget is not None and self.budget < (least := len(self.recipes) * PILOT**2 * REPLICATES):
            raise ValueError(f"`budget` must pay for a pilot of {least} runs (given: {self.budget})")
        return self

    def _has_all_for(self, recipe: str) -> None:
        if recipe.startswith("all"):
            if len(named := self.processes) < 2:
                raise ValueError(f"`{recipe}` adds several things, and the study names {list(named) or 'none'}")
            if recipe != "all" and recipe.removeprefix("all-") not in named:
                raise ValueError(f"`{recipe}` leaves out what the study does not name")
        elif recipe in PROCESSES and recipe not in self.processes:
            need = {"augment": "`augment`", "optimizer": "`optimizer`", "distil": "a `teacher`", "clean": "`decisions`"}
            raise ValueError(f"recipe `{recipe}` needs {need[recipe]}: name it, or leave the recipe out")

    @property
    def processes(self) -> tuple[str, ...]:
        """What the study names of `PROCESSES`."""
        there = (self.augment, self.optimizer, self.teacher, self.decisions)
        return tuple(name for name, given in zip(PROCESSES, there, strict=True) if given)

    def adds(self, recipe: str) -> tuple[str, ...]:
        """What a recipe adds to the baseline, of `PROCESSES`."""
        if recipe.startswith("all"):
            return tuple(one for one in self.processes if recipe != f"all-{one}")
        return (recipe,) if recipe in PROCESSES else ()

    @property
    def width(self) -> int:
        """The target's."""
        return self.target.width if self.target else int(self.student.network.width)  # type: ignore[union-attr]

    @property
    def most(self) -> int:
        """The target's images; the spec is resolved."""
        return (self.target and self.target.images) or self.images[-1]

    def label(self, recipe: str) -> str:
        """A recipe for people."""
        if recipe == "noise":
            return f"{self.noise:.0%} wrong labels"
        if recipe.startswith("all-"):
            return f"all but {LABELS[recipe.removeprefix('all-')]}"
        return {"all": "all together", **LABELS}.get(recipe, recipe)


def epochs_of(spec: ScalingStudySpec, images: int) -> int:
    """Epochs over so many images: the student's, or as many as the least steps take."""
    return min(100_000, max(spec.student.epochs, math.ceil(spec.steps * spec.student.batch / images)))


def parse_study(written: Mapping[str, Any]) -> ScalingStudySpec:
    """A checked study from plain values; the student's fields stand beside the others, or below `student`.

    Raises:
        BadSpec: naming the field, what was given and what is allowed.
    """
    own = {name: value for name, value in written.items() if name in OWN and value is not None}
    rest = {name: value for name, value in written.items() if name not in OWN}
    below = rest.pop("student", None)
    if below is not None and rest:
        raise BadSpec(f"unknown field `{next(iter(rest))}`", do="put fields of the student below `student`")
    known = {*OWN, "student", *RunSpec.model_fields}
    if (unknown := next((name for name in rest if name not in known), None)) is not None:
        near = difflib.get_close_matches(str(unknown), known, n=1)
        raise BadSpec(f"unknown field `{unknown}`" + (f", did you mean `{near[0]}`?" if near else ""))
    if below is not None and not isinstance(below, Mapping | RunSpec):
        raise BadSpec("`student` holds the fields of a spec", given=below, do="write them below it, one a line")
    student = parse(below.model_dump() if isinstance(below, RunSpec) else dict(below or rest))
    if own.get("teacher"):  # as a run's: what is not named is chosen when the study is prepared
        own.setdefault("loss", HintonKd(temperature=None, weight=None))
    try:
        return ScalingStudySpec.model_validate({"student": student, **_preset(own, student)})
    except ValidationError as error:
        raise BadSpec(told(ScalingStudySpec, error)) from None


def _preset(own: dict[str, Any], student: RunSpec) -> dict[str, Any]:
    """The fields with those of the preset where nothing was given; recipes always begin with the baseline."""
    name = own.pop("preset", "quick")
    if not isinstance(name, str) or name not in PRESETS:
        raise BadSpec("there is no such preset", given=name, do=f"choose {', '.join(PRESETS)}")
    preset, target = PRESETS[name], own.get("target")
    width = target.get("width") if isinstance(target, Mapping) else getattr(student.network, "width", 2)
    known = isinstance(width, int) and 1 < width < 100_000  # else the field itself says what is wrong
    own.setdefault("widths", sorted({max(2, round(width * times)) for times in preset["widths"]} if known else ()))
    if not own.get("images"):
        own.setdefault("fractions", preset["fractions"])
    own.setdefault("replicates", preset["replicates"])
    recipes = own.get("recipes") or ()
    recipes = [recipes] if isinstance(recipes, str) else recipes
    if not isinstance(recipes, list | tuple) or not all(isinstance(one, str) for one in recipes):
        raise BadSpec("`recipes` is a list of names", given=recipes, do=f"choose of {', '.join(RECIPES)}")
    recipes = list(recipes)
    if "clean" in recipes or "all-clean" in recipes:
        own.setdefault("decisions", AUTOMATIC)
    if not recipes:
        fields = {"augment": "augment", "optimizer": "optimizer", "distil": "teacher", "clean": "decisions"}
        named = [one for one, field in fields.items() if own.get(field)]
        if not named:
            raise BadSpec(
                "the study names nothing to compare with the baseline",
                do="give `augment`, `optimizer`, `teacher` or `decisions`",
            )
        several = ["all"] if len(named) > 1 else []
        room = preset["recipes"] - 1 - len(several)
        recipes = [*named[:room], *several]
    own["recipes"] = ["baseline", *(one for one in recipes if one != "baseline")]
    return own


def read_study(path: Path, overrides: Sequence[str] = ()) -> ScalingStudySpec:
    """The study in a YAML or JSON file, with `--set` overrides applied.

    Raises:
        BadSpec: as `parse_study`; the file is missing or not YAML.
    """
    return parse_study(fields_in(path, "study", overrides))


def study_id(spec: ScalingStudySpec) -> str:
    """The id of a resolved study: 16 hexadecimal characters."""
    text = json.dumps({"loop": LOOP, "scaling": canonical(spec)}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def title_of(spec: ScalingStudySpec) -> str:
    """What is studied, in a few words."""
    source = Path(spec.student.data.source).name
    sizes = f"{spec.student.network.kind} of width {spec.widths[0]} to {spec.widths[-1]}"
    return f"{source} · {sizes} · {', '.join(spec.recipes[1:])}"
