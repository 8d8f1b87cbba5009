"""Output type and input scaling of an imported ONNX classifier.

Neither is in the file. Both are inferred on training and validation images, and reported; test is not used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smallalign_core.errors import BadInput, BadModel
from smallalign_core.metrics import fit_temperature, log_softmax, wilson
from smallalign_core.spec import Import

LOOKED_AT = 256
"""Labelled images on which scales of pixels are compared."""

STEP = 1 / 255  # of answers in 8 bits, divided by 255 or 256
SURE = 0.01  # of an exact test, below which another scale is taken
ERRORS = 3.0  # standard errors of the mean difference of NLL, beyond which it is
SCALES: dict[str, dict[str, Any]] = {
    "ImageNet's mean and deviation": {},
    "0 to 1": {"mean": (0.0,) * 3, "std": (1.0,) * 3},
    "-1 to 1": {"mean": (0.5,) * 3, "std": (0.5,) * 3},
    "0 to 255": {"white": 255.0, "mean": (0.0,) * 3, "std": (1.0,) * 3},
}
CAFFE = {"white": 255.0, "mean": (103.939, 116.779, 123.68), "std": (1.0,) * 3, "order": "bgr"}


@dataclass(frozen=True)
class Assumed:
    """The assumptions about a file, as text, and the figures behind them.

    Attributes:
        words: sentences without a full stop.
        scales: accuracy with each way of scaling pixels that was tried, on `images` training and validation images.
    """

    words: list[str] = field(default_factory=list)
    scales: dict[str, float] = field(default_factory=dict)
    images: int = 0

    def as_dict(self) -> dict[str, Any]:
        return {"words": self.words, "scales": self.scales, "images": self.images}


def logits(found: NDArray[Any], how: Import) -> NDArray[np.float32]:
    """Logits float32 [N, classes] of a file's answers [N, classes], or [N, 1] for two classes."""
    p = found.astype(np.float64)
    if how.stored != "float":
        p = (p + (128 if how.stored == "int8" else 0)) * STEP
    if how.answers == "one_logit":
        p = np.concatenate([np.zeros_like(p), p], axis=1)
    elif how.answers == "one_probability":
        p = np.log(np.concatenate([1 - p, p], axis=1).clip(how.floor))
    elif how.answers == "sigmoid":
        p = np.log(p.clip(how.floor)) - np.log((1 - p).clip(how.floor))
    elif how.answers == "probabilities":
        return np.log(found.astype(np.float32).clip(how.floor)) if how.stored == "float" else _log(p, how)
    return p.astype(np.float32)


def _log(p: NDArray[np.float64], how: Import) -> NDArray[np.float32]:
    return np.log(p.clip(how.floor)).astype(np.float32)


def answers_of(found: NDArray[Any], how: Import, *, told: str | None = None) -> tuple[Import, list[str]]:
    """`how` with what the answers float32 [N, outputs] of some images are, and the sentence about it.

    Distributions of n classes sum to 1; in 8 bits they miss it by up to half a step each. What lies between 0 and 1 and
    sums to other numbers is one sigmoid per class: its log-odds are logits.

    Args:
        told: the kind given by the user.

    Raises:
        BadInput: there are not as many answers as classes; they are numbers of classes.
        BadModel: they are not finite.
    """
    classes, outputs = len(how.classes), found.shape[1]
    if outputs != classes and not (outputs == 1 and classes == 2):
        raise _miscounted(classes, outputs)
    if not np.isfinite(found).all():
        raise BadModel("the model's outputs are not finite", given=how.file, do="export it again")
    p = found.astype(np.float64)
    if how.stored != "float":
        p = (p + (128 if how.stored == "int8" else 0)) * STEP
    stepped = how.stored != "float" or any(_on_grid(p, steps) for steps in (255, 256))
    floor = {"floor": STEP / 2} if stepped else {}
    kind = told or _kind(p, outputs, stepped)
    if outputs == 1:
        kind = {"logits": "one_logit", "sigmoid": "one_probability", "probabilities": "one_probability"}.get(kind, kind)
    elif kind.startswith("one_"):
        raise _miscounted(classes, outputs)
    if kind in ("logits", "one_logit"):
        floor = {}
    words = WORDS[kind] + (" in steps of 1/255" if floor else "")
    said = f"outputs: {words}, {'as given' if told else 'inferred from their values'} (--answers overrides)"
    return how.model_copy(update={"answers": kind, **floor}), [] if kind == "logits" and not told else [said]


WORDS = {
    "logits": "logits",
    "probabilities": "probabilities that sum to 1, converted by log",
    "sigmoid": "one sigmoid per class (between 0 and 1, not summing to 1), converted to log-odds",
    "one_logit": "one number for two classes, taken as the log-odds of the second",
    "one_probability": "one sigmoid for two classes, taken as the probability of the second",
}


def _kind(p: NDArray[np.float64], outputs: int, stepped: bool) -> str:
    within = bool((p >= 0).all() and (p <= 1).all())
    if outputs == 1:
        if bool((p == p.round()).all()) and len(p) > 1:
            raise BadInput(
                "the model outputs a class index, which cannot be distilled",
                given=f"{p.min():.0f} to {p.max():.0f}",
                do="export its scores before the argmax; or set the output type with --answers",
            )
        return "one_probability" if within else "one_logit"
    misses = np.abs(p.sum(1) - 1)
    if (p >= 0).all() and bool((misses < max(1e-3, min(outputs * STEP, 0.25) if stepped else 0)).all()):
        return "probabilities"
    return "sigmoid" if within and bool((p != p[0]).any()) else "logits"


def _on_grid(p: NDArray[np.float64], steps: int) -> bool:
    """Whether all are multiples of 1/steps: answers of a network in 8-bit integers."""
    return bool((p >= 0).all() and (p <= 1).all() and (np.abs(p * steps - np.round(p * steps)) < 1e-3).all())


def _miscounted(classes: int, outputs: int) -> BadInput:
    do = "give the classes in output order: --classes a,b,c"
    if outputs == 1:
        do = "a single output is for two classes: give two names, the second for high values"
    elif outputs == classes + 1:
        do = "an additional one may be a background class: include its name, in output order, in --classes"
    return BadInput(
        "the number of class names differs from the number of outputs",
        given=f"{classes} names, {outputs} outputs",
        do=do,
    )


def scale_of(
    how: Import, ask: Callable[[Import], NDArray[np.float32]], labels: NDArray[np.int64]
) -> tuple[Import, Assumed]:
    """`how` with the scale of pixels that fits, and what was tried.

    ImageNet's is kept unless another is better than chance allows: by an exact test of the images on which just one of
    both is right (McNemar, 1947), or by the likelihood where accuracy is no lower.

    Args:
        ask: logits [N, classes] of some labelled images, read in the given way; the columns are those of the labels.
    """
    tried = {name: how.model_copy(update=_fitted(how, update)) for name, update in SCALES.items()}
    found = {name: _graded(ask(one), labels) for name, one in tried.items()}
    usual = next(iter(SCALES))
    best = _best(found)
    if how.channels == 3:
        for name, update in ((f"{best}, BGR", {**SCALES[best], "order": "bgr"}), ("Caffe's means, BGR", CAFFE)):
            tried[name] = how.model_copy(update=update)
            found[name] = _graded(ask(tried[name]), labels)
        best = _best(found)
    chance = np.bincount(labels).max() / len(labels)
    right, _ = found[best]
    sure = wilson(float(right.sum()), len(right))[0] > chance and _better(found[best], found[usual])
    chosen = best if sure else usual
    scales = {name: float(right.mean()) for name, (right, _) in found.items()}
    listed = ", ".join(f"{name} {share:.1%}" for name, share in scales.items() if name != chosen)
    words = f"pixels scaled to {chosen}: accuracy {scales[chosen]:.1%} on {len(labels)} training and validation images"
    if chosen != best and scales[best] > scales[chosen]:
        words += f"; {best} may be better, but the images are too few to decide"
    words += f" ({listed}; --white, --mean, --std and --order override it)"
    return tried[chosen], Assumed([words], scales, len(labels))


def _fitted(how: Import, update: dict[str, Any]) -> dict[str, Any]:
    """A scale for as many channels as the file takes."""
    return {name: value[: how.channels] if isinstance(value, tuple) else value for name, value in update.items()}


Graded = tuple[NDArray[np.bool_], NDArray[np.float64]]


def _graded(found: NDArray[np.float32], labels: NDArray[np.int64]) -> Graded:
    """(right, NLL) of each image, at the temperature that fits best: a scale also changes how sharp answers are."""
    if not np.isfinite(found).all():
        return np.zeros(len(labels), bool), np.full(len(labels), 1e9)
    log_p = log_softmax(found, fit_temperature(found, labels))
    return found.argmax(1) == labels, -log_p[np.arange(len(labels)), labels]


def _best(found: dict[str, Graded]) -> str:
    return max(found, key=lambda name: (found[name][0].mean(), -found[name][1].mean()))


def _better(first: Graded, second: Graded) -> bool:
    from scipy.stats import binomtest

    ours, theirs = int((first[0] & ~second[0]).sum()), int((second[0] & ~first[0]).sum())
    if ours + theirs and binomtest(ours, ours + theirs).pvalue < SURE and ours > theirs:
        return True
    less = second[1] - first[1]
    error = less.std(ddof=1) / len(less) ** 0.5 if len(less) > 1 else np.inf
    return bool(ours >= theirs and less.mean() > ERRORS * error)
