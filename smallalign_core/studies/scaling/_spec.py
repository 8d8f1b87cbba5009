"""The spec of a scaling study: a student at several sizes and numbers of images, by recipe."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from smallalign_core.errors import BadSpec
from smallalign_core.spec import (
    Augment,
    DataSpec,
    Dkd,
    Embedding,
    GivenNetwork,
    HintonKd,
    Loss,
    OfLayers,
    Optimizer,
    RunSpec,
    parse,
)
from smallalign_core.spec.parts import Part
from smallalign_core.spec.python import FILLED_IN
from smallalign_core.studies import base

PROCESSES = ("augment", "optimizer", "distil", "clean")
"""Processes that a recipe adds to the baseline; `all` adds every one of the study, `all-augment` all but that one."""
UNLABELED = "unlabeled"
"""The recipe that adds unlabeled images to distillation, at as many training steps."""
RECIPES = ("baseline", *PROCESSES, UNLABELED, "noise", "all", *(f"all-{one}" for one in PROCESSES))
LABELS = {"augment": "augmentation", "optimizer": "optimizer", "distil": "distillation", "clean": "cleaning"}
AUTOMATIC = "automatic"
RUNGS, REPLICATES = 3, 3
"""Min. sizes, numbers of images and replicates for fitting a law."""
PILOT = 3
"""Sizes and numbers of images of an adaptive study's pilot: lowest, middle, highest."""


@dataclass(frozen=True)
class Preset:
    """The extent of a study.

    Attributes:
        widths: multiples of the target's.
        fractions: of all training images.
        recipes: how many, the baseline among them.
    """

    widths: tuple[float, ...]
    fractions: tuple[float, ...]
    replicates: int
    recipes: int


PRESETS = {
    "quick": Preset((0.5, 1, 2), (1 / 4, 1 / 2, 1.0), 4, 2),
    "standard": Preset((0.25, 0.5, 1, 2), (1 / 8, 1 / 4, 1 / 2, 1.0), 4, 4),
    "paper": Preset((0.25, 0.5, 1, 2, 4), (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0), 5, 6),
}


class Target(Part):
    """The student to deploy and its number of training images: results are reported for this cell."""

    width: Annotated[int, Field(ge=2, le=2048, description="`network.width` of the target, one of `widths`.")]
    images: Annotated[
        int | None, Field(ge=2, description="Training images of the target, one of `images`; empty: the most.")
    ] = None


class ScalingStudySpec(base.StudySpec):
    """The spec of a scaling study. Fields that a run has too define what a recipe adds to the baseline."""

    KIND: ClassVar[str] = "scaling"
    SHORTHANDS: ClassVar[tuple[str, ...]] = ("preset",)

    student: Annotated[RunSpec, Field(description="Baseline student, before any recipe; `seed` is the first.")]
    widths: Annotated[
        tuple[Annotated[int, Field(ge=2, le=2048)], ...],
        Field(min_length=RUNGS, max_length=8, description="Student sizes, as `network.width`."),
    ]
    images: Annotated[
        tuple[Annotated[int, Field(ge=2)], ...],
        base.SEVERAL,
        Field(max_length=8, description="Numbers of training images."),
    ] = ()
    fractions: Annotated[
        tuple[Annotated[float, Field(gt=0, le=1)], ...],
        base.SEVERAL,
        Field(max_length=8, description="Numbers of training images, as fractions of all."),
    ] = ()
    recipes: Annotated[
        tuple[Literal[RECIPES], ...],  # type: ignore[valid-type]
        base.SEVERAL,
        Field(
            min_length=2, max_length=len(RECIPES), description="Variants to compare; the baseline is always included."
        ),
    ]
    augment: Annotated[
        tuple[Augment, ...], Field(max_length=16, description="Augmentation policy of recipe `augment`.")
    ] = ()
    optimizer: Annotated[Optimizer | None, Field(description="Optimizer of recipe `optimizer`.")] = None
    teacher: Annotated[
        str | None, Field(max_length=1000, description="Teacher of recipe `distil`: a finished run.")
    ] = None
    loss: Annotated[Loss, Field(description="Distillation objective of recipe `distil`.")] = HintonKd()
    unlabeled: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=1000,
            description="Images of recipe `unlabeled`: a folder, a zip of one, or `rest`: the training images not in "
            "each subset.",
        ),
    ] = None
    decisions: Annotated[
        str | None,
        Field(max_length=1000, description="Cleaning of recipe `clean`: a decisions file, or `automatic`."),
    ] = None
    noise: Annotated[
        float, Field(gt=0, le=0.9, description="Fraction of wrong labels in recipe `noise` (control).")
    ] = 0.1
    replicates: Annotated[
        int,
        Field(
            ge=REPLICATES, le=32, description="Replicates: random subsets, each with its own initial weights and order."
        ),
    ] = 4
    target: Annotated[Target | None, Field(description="Target student to deploy; empty: the student itself.")] = None
    steps: Annotated[
        int, Field(ge=0, le=1_000_000, description="Min. training steps per run; small subsets get more epochs.")
    ] = 0
    budget: Annotated[
        int | None,
        Field(
            ge=1,
            le=100_000,
            description="Adaptive allocation: total number of runs, placed where they narrow the intervals most.",
        ),
    ] = None
    ladder: Annotated[
        tuple[Annotated[int, Field(ge=1, le=100_000)], ...],
        base.SEVERAL,
        Field(max_length=8, description="Also distill from the teacher after these numbers of epochs (capacity gap)."),
    ] = ()
    fingerprints: Annotated[
        tuple[tuple[str, str], ...],
        Field(description="Digests of the images of each draw; filled in.", json_schema_extra=FILLED_IN),
    ] = ()
    pools: Annotated[
        tuple[tuple[str, str, int], ...],
        Field(
            description="Digest and number of unlabeled images by draw; filled in.",
            json_schema_extra=FILLED_IN,
        ),
    ] = ()

    @model_validator(mode="after")
    def _baseline_is_plain(self) -> Self:
        if isinstance(self.student.network, GivenNetwork):
            raise ValueError("this network has a fixed size: choose mlp, cnn, separable or resnet")
        if self.student.teacher or self.student.start:
            raise ValueError(
                "the baseline has no teacher and no initial weights: set `teacher` for recipe `distil` only"
            )
        if self.student.seed + self.replicates >= 2**31 or self.student.data.draw:
            raise ValueError("`seed` must leave room for replicates, and `data.draw` is set by them: leave it out")
        return self

    @model_validator(mode="after")
    def _rungs_are_enough(self) -> Self:
        for name in ("widths", "images", "fractions", "ladder"):
            given = getattr(self, name)
            if list(given) != sorted(set(given)):
                raise ValueError(f"`{name}` must be in ascending order (given: {list(given)})")
        if bool(self.images) == bool(self.fractions):
            raise ValueError("give either `images` or `fractions`")
        if (some := len(self.images or self.fractions)) < RUNGS:
            raise ValueError(f"a law needs at least {RUNGS} numbers of images (given: {some})")
        if self.width not in self.widths:
            raise ValueError(f"the target's width is not in `widths` (given: {self.width}, of {list(self.widths)})")
        if self.images and self.most not in self.images:
            raise ValueError(f"the target's images are not in `images` (given: {self.most}, of {list(self.images)})")
        return self

    @model_validator(mode="after")
    def _recipes_can_be_followed(self) -> Self:
        if self.recipes[0] != "baseline" or len(set(self.recipes)) < len(self.recipes):
            raise ValueError("`recipes` must begin with `baseline` and not repeat")
        for recipe in self.recipes:
            self._has_all_for(recipe)
        if isinstance(self.loss, OfLayers):
            raise ValueError(
                f"loss '{self.loss.kind}' compares layers, which differ between sizes: use a logit loss, such as `kd`"
            )
        if isinstance(self.loss, Embedding):
            raise ValueError("loss 'embedding' trains no head, so there is no accuracy to scale: use a logit loss")
        if not self.loss.uses_teacher:
            raise ValueError(f"loss '{self.loss.kind}' does not use a teacher: use `kd` or another distillation loss")
        if self.ladder and not self.teacher:
            raise ValueError("a `ladder` needs a teacher: set `teacher`")
        if self.budget is not None and self.budget < (least := len(self.recipes) * PILOT**2 * REPLICATES):
            raise ValueError(f"`budget` must cover a pilot of {least} runs (given: {self.budget})")
        return self

    def _has_all_for(self, recipe: str) -> None:
        if recipe.startswith("all"):
            if len(named := self.processes) < 2:
                raise ValueError(
                    f"`{recipe}` combines several processes, and the study defines {list(named) or 'none'}"
                )
            if recipe != "all" and recipe.removeprefix("all-") not in named:
                raise ValueError(f"`{recipe}` removes a process that the study does not define")
        elif recipe == UNLABELED:
            if self.unlabeled is None or self.teacher is None:
                raise ValueError(
                    f"recipe `{recipe}` needs `unlabeled` and a `teacher`: set both, or leave the recipe out"
                )
            if isinstance(self.loss, Dkd):
                raise ValueError(f"loss 'dkd' needs the label of every image: leave recipe `{recipe}` out, or use `kd`")
        elif recipe in PROCESSES and recipe not in self.processes:
            need = {"augment": "`augment`", "optimizer": "`optimizer`", "distil": "a `teacher`", "clean": "`decisions`"}
            raise ValueError(f"recipe `{recipe}` needs {need[recipe]}: set it, or leave the recipe out")

    @property
    def processes(self) -> tuple[str, ...]:
        """The processes defined by the study, of `PROCESSES`."""
        there = (self.augment, self.optimizer, self.teacher, self.decisions)
        return tuple(name for name, given in zip(PROCESSES, there, strict=True) if given)

    def adds(self, recipe: str) -> tuple[str, ...]:
        """The processes that a recipe adds to the baseline, of `PROCESSES`."""
        if recipe.startswith("all"):
            return tuple(one for one in self.processes if recipe != f"all-{one}")
        return ("distil",) if recipe == UNLABELED else (recipe,) if recipe in PROCESSES else ()

    @property
    def width(self) -> int:
        """The target's."""
        return self.target.width if self.target else int(self.student.network.width)  # type: ignore[union-attr]

    @property
    def most(self) -> int:
        """The target's images; the spec is resolved."""
        return (self.target and self.target.images) or self.images[-1]

    def label(self, recipe: str) -> str:
        """The display name of a recipe."""
        if recipe == "noise":
            return f"{self.noise:.0%} wrong labels"
        if recipe == UNLABELED:
            return "distillation with unlabeled images"
        if recipe.startswith("all-"):
            return f"all but {LABELS[recipe.removeprefix('all-')]}"
        return {"all": "all together", **LABELS}.get(recipe, recipe)


def draw_of(spec: ScalingStudySpec, images: int, replicate: int, noise: bool = False) -> DataSpec:
    """The images of a cell before any cleaning, without a fingerprint."""
    more: dict[str, Any] = {"images": images, "draw": replicate, "fingerprint": None, "decisions": None}
    return spec.student.data.model_copy(update=more | ({"noise": spec.noise} if noise else {}))


def epochs_of(spec: ScalingStudySpec, images: int, unlabeled: int = 0) -> int:
    """Epochs for a number of images: the student's, or more to reach `min_steps`.

    With unlabeled images an epoch has more steps, so there are fewer: recipes are compared at as many steps.
    """
    epochs = min(100_000, max(spec.student.epochs, math.ceil(spec.steps * spec.student.batch / images)))
    return max(1, round(epochs * images / (images + unlabeled)))


def parse_study(written: Mapping[str, Any]) -> ScalingStudySpec:
    """A validated study from plain values; the student's fields are at the top level, or below `student`.

    Raises:
        BadSpec: naming the field, what was given and what is allowed.
    """
    own, fields = base.split(ScalingStudySpec, written)
    if isinstance(fields.get("data"), Mapping) and fields["data"].get("unlabeled"):
        raise BadSpec(
            "a scaling study has no unlabeled images: its baseline learns from labels alone",
            given=f"data.unlabeled: {fields['data']['unlabeled']}",
            do="leave data.unlabeled out; set `unlabeled` of the study, a teacher and recipe `unlabeled`",
        )
    student = parse(fields)
    if own.get("teacher"):  # as for a run: chosen when the study is prepared
        own.setdefault("loss", HintonKd(temperature=None, weight=None))
    return base.validated(ScalingStudySpec, student, _preset(own, student))


def _preset(own: dict[str, Any], student: RunSpec) -> dict[str, Any]:
    """The fields with defaults from the preset; recipes always begin with the baseline."""
    name = own.pop("preset", "quick")
    if not isinstance(name, str) or name not in PRESETS:
        raise BadSpec("unknown preset", given=name, do=f"choose {', '.join(PRESETS)}")
    preset, target = PRESETS[name], own.get("target")
    width = target.get("width") if isinstance(target, Mapping) else getattr(student.network, "width", 2)
    widths: set[int] = set()
    if isinstance(width, int) and 1 < width < 100_000:  # else the field's own validation reports it
        widths = {max(2, round(width * times)) for times in preset.widths}
    own.setdefault("widths", sorted(widths))
    if not own.get("images"):
        own.setdefault("fractions", preset.fractions)
    own.setdefault("replicates", preset.replicates)
    recipes = own.get("recipes") or ()
    recipes = [recipes] if isinstance(recipes, str) else recipes
    if not isinstance(recipes, list | tuple) or not all(isinstance(one, str) for one in recipes):
        raise BadSpec("`recipes` is not a list of names", given=recipes, do=f"choose from {', '.join(RECIPES)}")
    recipes = list(recipes)
    if "clean" in recipes or "all-clean" in recipes:
        own.setdefault("decisions", AUTOMATIC)
    if not recipes:
        fields = {"augment": "augment", "optimizer": "optimizer", "distil": "teacher", "clean": "decisions"}
        named = [one for one, field in fields.items() if own.get(field)]
        if not named:
            raise BadSpec(
                "the study has nothing to compare with the baseline",
                do="give `augment`, `optimizer`, `teacher` or `decisions`",
            )
        several = ["all"] if len(named) > 1 else []
        room = preset.recipes - 1 - len(several)
        recipes = [*named[:room], *several, *([UNLABELED] if own.get("unlabeled") else [])]
    own["recipes"] = ["baseline", *(one for one in recipes if one != "baseline")]
    return own


def title_of(spec: ScalingStudySpec) -> str:
    """A short title of the study."""
    source = Path(spec.student.data.source).name
    sizes = f"{spec.student.network.kind} of width {spec.widths[0]} to {spec.widths[-1]}"
    return f"{source} · {sizes} · {', '.join(spec.recipes[1:])}"
