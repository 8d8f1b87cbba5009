"""Which images a file accepts: a split-conformal threshold of its confidence, and an energy score, as outputs of it.

An image is accepted where the probability of its predicted class is at least a threshold. For n validation images that
are predicted alike, the threshold is the k-th smallest of their probabilities, k = floor((n + 1) (1 - coverage)): a new
image, exchangeable with them, is accepted with a probability of at least `coverage` (split conformal prediction: Vovk
et al., 2005; Papadopoulos et al., 2002). Each predicted class has a threshold of its own where it has enough validation
images for k to be 1 or more (Mondrian conformal prediction: Vovk et al., 2003); the other classes share one.

The promise is approximate: it holds exactly for images that nothing else was chosen on, and the validation images also
selected the epoch, the calibration and, in a search, the model. The evidence is the coverage measured on test images.

The energy of an image is -logsumexp of its logits (Liu et al., 2020): higher where an image is unlike the training
images, mostly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from smallalign_core.data import ImageSet, Splits
from smallalign_core.errors import BadInput, BadModel
from smallalign_core.export._parity import Gate
from smallalign_core.export._runtime import OnnxClassifier
from smallalign_core.metrics import wilson
from smallalign_core.runs.export_report import Acceptance, Elsewhere, Selected

OUTPUTS = ("accepted", "energy")


def thresholds(probabilities: NDArray[np.floating], coverage: float) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The least probability that is accepted of each class, float32 [C], and whether it is of that class alone.

    Args:
        probabilities: of validation images [N, C].

    Raises:
        BadInput: so few images have no threshold at this coverage.
    """
    top, confidence = probabilities.argmax(1), probabilities.max(1)
    classes = probabilities.shape[1]
    rank = {each: _rank(int((top == each).sum()), coverage) for each in range(classes)}
    own = np.array([rank[each] >= 1 for each in range(classes)])
    found = np.zeros(classes, np.float32)
    for each in np.flatnonzero(own):
        found[each] = np.sort(confidence[top == each])[rank[int(each)] - 1]
    rest = np.sort(confidence[~own[top]])
    if not own.all():
        shared = _rank(len(rest), coverage)
        if shared < 1 and not own.any():
            raise BadInput(
                f"too few validation images for a coverage of {coverage:g}: {len(rest):,}",
                given=f"--coverage {coverage:g}",
                do=f"use a run with at least {images_needed(coverage):,} validation images, or a lower coverage",
            )
        found[~own] = rest[shared - 1] if shared >= 1 else 0.0  # too few to reject any
    return found, own


def _rank(images: int, coverage: float) -> int:
    return math.floor((images + 1) * (1 - coverage) + 1e-9)


def images_needed(coverage: float) -> int:
    """Validation images from which some can be rejected at a coverage."""
    return math.ceil(1 / (1 - coverage) - 1 - 1e-9)


def with_acceptance(graph: bytes, least: NDArray[np.float32]) -> bytes:
    """A graph with the outputs `accepted`, bool [N], and `energy`, float32 [N].

    Args:
        least: the least probability that is accepted of each class, float32 [C].
    """
    model = onnx.load_model_from_string(graph)
    axis = numpy_helper.from_array(np.array([1], np.int64), "accept_axis")
    model.graph.initializer.extend([axis, numpy_helper.from_array(least.astype(np.float32), "accept_least")])
    model.graph.node.extend(
        [
            helper.make_node("ReduceMax", ["probabilities", "accept_axis"], ["accept_top"], "accept_top", keepdims=0),
            helper.make_node("ArgMax", ["probabilities"], ["accept_class"], "accept_class", axis=1, keepdims=0),
            helper.make_node("Gather", ["accept_least", "accept_class"], ["accept_limit"], "accept_limit"),
            helper.make_node("GreaterOrEqual", ["accept_top", "accept_limit"], ["accepted"], "accepted"),
            helper.make_node("ReduceLogSumExp", ["logits", "accept_axis"], ["accept_sum"], "accept_sum", keepdims=0),
            helper.make_node("Neg", ["accept_sum"], ["energy"], "energy"),
        ]
    )
    batch = next(one for one in model.graph.output if one.name == "logits").type.tensor_type.shape.dim[0].dim_param
    for name, kind in (("accepted", TensorProto.BOOL), ("energy", TensorProto.FLOAT)):
        model.graph.output.append(helper.make_tensor_value_info(name, kind, [batch or "batch"]))
    return bytes(model.SerializeToString())


def selected(accepted: NDArray[np.bool_], right: NDArray[np.bool_]) -> Selected:
    """Coverage and risk: the share of images that are accepted, and the share of errors among these.

    Args:
        accepted, right: for each image, bool [N].
    """
    taken, wrong = int(accepted.sum()), int((accepted & ~right).sum())
    coverage, risk = wilson(taken, len(accepted)), wilson(wrong, taken)
    whole = float((~right).mean())
    return Selected(len(accepted), taken, taken / max(1, len(accepted)), *coverage, wrong / max(1, taken), *risk, whole)


def auroc(inside: NDArray[np.floating], outside: NDArray[np.floating]) -> float:
    """The probability that a score is higher for an image from outside than for one from inside; equal ones count half
    (Mann & Whitney, 1947)."""
    order = np.sort(inside)
    below = np.searchsorted(order, outside, side="left") + np.searchsorted(order, outside, side="right")
    return float(below.sum() / (2 * len(inside) * len(outside)))


def accepted_by(
    graph: bytes,
    coverage: float,
    splits: Splits,
    finish: Callable[[bytes], bytes],
    other: tuple[str, Splits] | None = None,
) -> tuple[bytes, Acceptance]:
    """A graph with both outputs, by thresholds from its own predictions on the validation images, and what it accepts
    of the test images.

    Args:
        finish: makes a file of a graph.
        other: name and images of another dataset, to measure what is accepted of its test images.

    Raises:
        BadInput: too few validation images for this coverage; or as `elsewhere`.
    """
    (probabilities,) = OnnxClassifier(finish(graph)).outputs_of(splits.val, ("probabilities",))
    least, own = thresholds(probabilities, coverage)
    graph = with_acceptance(graph, least)
    model = OnnxClassifier(finish(graph))
    accepted, right, _ = scored(model, splits.test)
    beyond = None if other is None else elsewhere(model, other[0], splits, other[1])
    limits = tuple(map(float, least))
    found = Acceptance(coverage, len(splits.val), limits, int(own.sum()), selected(accepted, right), beyond)
    return graph, found


def elsewhere(model: OnnxClassifier, name: str, own: Splits, other: Splits) -> Elsewhere:
    """How a file separates the test images of another dataset from its own, on which answers can be right.

    Raises:
        BadInput: it is the run's own dataset, however it is divided; or has another number of channels.
    """
    if other.fingerprint == own.fingerprint or _share(other.test, own) > 0.5:
        raise BadInput(
            "the other dataset is the run's own, for which answers can be right",
            given=f"--against {name}, fingerprint {other.fingerprint}",
            do="choose a dataset of other classes",
        )
    if other.shape[0] != own.shape[0]:
        raise BadInput(
            "the images of the other dataset have another number of channels",
            given=f"{other.shape[0]}, and {own.shape[0]} of the run",
            do="choose a dataset with the same number of channels",
        )
    _, _, inside = scored(model, own.test)
    accepted, _, outside = scored(model, other.test)
    taken, images = int(accepted.sum()), len(other.test)
    return Elsewhere(name, images, taken / max(1, images), *wilson(taken, images), auroc(inside, outside))


def _share(images: ImageSet, own: Splits) -> float:
    """The share of images that are also in one of these splits."""
    known = np.concatenate([split.ids for split in (own.train, own.val, own.test)])
    return float(np.isin(images.ids, known).mean())


def scored(model: OnnxClassifier, images: ImageSet) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.float32]]:
    """Of each image of a split whether it is accepted, whether its predicted class is right, and its energy: [N]."""
    logits, accepted, energy = model.outputs_of(images, ("logits", *OUTPUTS))
    return accepted, logits.argmax(1) == images.labels, energy


@dataclass(frozen=True)
class Repeated:
    """What `accepted` and `energy` of a file give on test images, again.

    Attributes:
        test: coverage and risk; stored: those in the file's metadata, None where they are of other images.
        consistent: `accepted` follows from probabilities and thresholds, and `energy` from logits, for every image.
        allowed: by how many images the counts may differ from the stored ones.
        ok: consistent, and the counts as stored.
    """

    test: Selected
    stored: Selected | None
    consistent: bool
    allowed: int
    ok: bool


def repeated(
    outputs: Mapping[str, NDArray[np.float32]],
    labels: NDArray[np.integer],
    written: Acceptance,
    gate: Gate,
    temperature: float,
    *,
    same_images: bool,
) -> Repeated:
    """Compare the outputs of a file with its metadata.

    The counts may differ by the images whose predictions may, by `gate`; and by those so near their threshold that its
    tolerance of the logits decides: a change of them by d changes a probability by at most d / (2 temperature).

    Args:
        outputs: logits and probabilities [N, C], accepted and energy [N], from one session.
        labels: [N].

    Raises:
        BadModel: there is not one threshold for each class.
    """
    logits, probabilities, accepted = outputs["logits"], outputs["probabilities"], outputs["accepted"] > 0.5
    least = np.array(written.thresholds, np.float32)
    if len(least) != logits.shape[1]:
        raise BadModel(
            "the model's metadata is damaged: it does not have one threshold for each class",
            given=f"{len(least)} thresholds, {logits.shape[1]} classes",
            do="export it again",
        )
    limits, top = least[probabilities.argmax(1)], probabilities.max(1)
    energy = -np.logaddexp.reduce(logits.astype(np.float64), axis=1)
    follows = bool((accepted == (top >= limits)).all())
    follows = follows and np.allclose(outputs["energy"], energy, rtol=1e-4, atol=1e-4)
    found = selected(accepted, logits.argmax(1) == labels)
    gap = 0.0 if gate.tolerance is None else gate.tolerance * max(1.0, float(logits.std())) / (2 * temperature)
    allowed = int((np.abs(top - limits) <= gap).sum()) + math.floor((1 - gate.agreement) * len(labels))
    kept = True
    if same_images:
        pairs = [(found.accepted, written.test.accepted), (_wrong(found), _wrong(written.test))]
        kept = found.images == written.test.images and all(abs(one - other) <= allowed for one, other in pairs)
    return Repeated(found, written.test if same_images else None, follows, allowed, follows and kept)


def _wrong(found: Selected) -> int:
    return round(found.risk * found.accepted)
