"""Preview of augmentation policies on real images: pixels, predictions, code, and label preservation.

Used by the backend and by `preview` on the command line. Torch is imported on use.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from smallalign_core import data
from smallalign_core.data import ImageSet, Splits
from smallalign_core.errors import BadInput
from smallalign_core.runs import python_files
from smallalign_core.runs.store import Run, Store
from smallalign_core.service import requests
from smallalign_core.service.requests import (
    AugmentedBatch,
    AugmentedImages,
    CheckedLabels,
    Mixture,
    OfPolicy,
    Pixels,
    PolicyCode,
)
from smallalign_core.service.wire import Progress
from smallalign_core.spec import Augment, policy_yaml
from smallalign_core.spec.python import unfilled
from smallalign_core.system import resumable

if TYPE_CHECKING:
    from smallalign_core.analysis.label_preservation import LabelCheck
    from smallalign_core.augment import Views

MOST = 64
"""Max. images per request, and max. draws per image."""

PARTNERS = 15
"""Training images added to the user's own image, as partners for mixing."""

PICTURED = 12
"""Number of label-changed images whose pixels are part of the report."""

LEAST_SHARE = 0.005
"""Min. share of a class to be listed in a mixed label."""

KEPT = 3
"""Evaluators cached by this process; work in progress keeps its own."""

MOST_ANSWERS = 500
"""Policies cached per evaluator."""


def views(store: Store, request: requests.AugmentImages) -> AugmentedImages:
    """Augmented images of a policy."""
    from smallalign_core.analysis import label_preservation

    images, draws = request.images, request.draws
    if not 1 <= images <= MOST or not 1 <= draws <= MOST:
        raise BadInput(
            f"the preview shows 1 to {MOST} images, each 1 to {MOST} times", given=f"{images} images, {draws} draws"
        )
    request = python_files.filled_request(request, store.user)
    splits = data.load(request.data, store.data_cache)
    train, batch = splits.train, request.batch
    rows: tuple[int, ...]
    labels: tuple[str | None, ...]
    if request.own is None:
        rows = tuple(in_turn(train.labels, images).tolist()) if request.rows is None else request.rows
        if not rows or not all(0 <= row < len(train) for row in rows) or len(rows) > MOST:
            raise BadInput(
                f"training image indices are 0 to {len(train) - 1}", given=list(rows), do=f"choose up to {MOST} of them"
            )
        labels = tuple(train.classes[train.labels[row]] for row in rows)
    else:
        train, rows, labels = _among_others(request.own, train), (0,), (None,)
        batch = len(train)
    made = _made(request, splits, train, batch, request.seed, request.first + draws)
    met = [[made.view_of(row, request.first + draw) for row in rows] for draw in range(draws)]
    seen = np.array([[image.numpy() for image, _ in column] for column in met]).swapaxes(0, 1)
    shown = np.concatenate([train.images[np.array(rows)][:, None], seen], axis=1)
    said = None
    if request.teacher is not None:
        from smallalign_core.runs import imported

        teacher = imported.classifier(store.finished(request.teacher), splits.classes)
        said = label_preservation.predictions(teacher, shown)
    return AugmentedImages(
        rows=rows,
        labels=labels,
        mixed=tuple(
            tuple(_mixture(column[place][1].numpy(), train.classes) for column in met) for place in range(len(rows))
        ),
        classes=train.classes,
        images=Pixels.of(shown),
        said=said,
    )


def code(store: Store, request: requests.WritePolicy) -> PolicyCode:
    """Export a policy at a given strength."""
    from smallalign_core import augment as viewing

    request = python_files.filled_request(request, store.user)
    splits = data.load(request.data, store.data_cache)
    viewing.check(request.policy, splits.shape)
    parts = viewing.scaled(tuple(unfilled(part) for part in request.policy), request.strength, splits.shape)
    text = viewing.as_code(parts, size=splits.shape[1:], classes=len(splits.classes))
    return PolicyCode(tuple(parts), policy_yaml(parts), text)


def epoch(store: Store, request: requests.AugmentBatch) -> AugmentedBatch:
    """The first training images of an epoch."""
    if not 1 <= request.images <= MOST:
        raise BadInput(
            f"the preview shows 1 to {MOST} images", given=request.images, do="choose a number in that range"
        )
    request = python_files.filled_request(request, store.user)
    splits = data.load(request.data, store.data_cache)
    train = splits.train
    made = _made(request, splits, train, request.batch, request.seed, request.epoch)
    rows = made.order(request.epoch)[: request.images]
    met = [made.view_of(int(row), request.epoch) for row in rows]
    shown = np.stack([train.images[rows], np.array([image.numpy() for image, _ in met])], axis=1)
    return AugmentedBatch(
        rows=tuple(rows.tolist()),
        labels=tuple(train.classes[train.labels[row]] for row in rows),
        mixed=tuple(_mixture(label.numpy(), train.classes) for _, label in met),
        images=Pixels.of(shown),
    )


def risk(store: Store, request: requests.CheckLabels) -> Progress[CheckedLabels]:
    """Label preservation of a policy, see `smallalign_core.analysis.label_preservation`.

    It runs at low priority. While many requests are in progress it may have to wait, and `done` stays 0.
    """
    from smallalign_core import augment as viewing

    request = python_files.filled_request(request, store.user)
    run, seed, strength, limit = store.finished(request.teacher), request.seed, request.strength, request.limit

    def begin() -> resumable.Work[CheckedLabels]:
        splits = data.load(request.data, store.data_cache)
        viewing.check(request.policy, splits.shape)
        return _risk(_judge(store, splits, run, seed), request.policy, strength, limit)

    # Keyed by the request, not by the evaluator: images and teacher are loaded when the work starts.
    facts = [str(store.root.resolve()), policy_yaml(request.policy), request.data.model_dump(mode="json"), run.id]
    question = f"risk {json.dumps([*facts, seed, strength, limit])}"
    found, done = resumable.advance(question, begin, request.patience, background=True)
    return Progress(done, found)


def _risk(
    check: LabelCheck, policy: tuple[Augment, ...], strength: float, limit: float
) -> resumable.Work[CheckedLabels]:
    """The resumable work of `risk`."""
    from smallalign_core import augment as viewing

    report = yield from check.report(policy, strength=strength, limit=limit)
    shape = check.images.shape
    made = viewing.Views(check.images, viewing.scaled(policy, strength, shape), batch=2, seed=check.seed)
    flipped = report.flipped[:PICTURED]
    shown = np.zeros((len(flipped), 2, *shape), np.uint8)
    for place, one in enumerate(flipped):
        shown[place, 0] = check.images.images[one.row]
        shown[place, 1] = made.augmented(np.array([one.row]), np.array([one.view]))[0].numpy()
    return CheckedLabels(report, Pixels.of(shown))


def sheet(found: AugmentedImages) -> bytes:
    """Augmented images as one PNG."""
    from smallalign_core import augment as viewing

    return viewing.sheet(found.images.array())


def in_turn(labels: NDArray[np.int64], wanted: int, skip: int = 0) -> NDArray[np.int64]:
    """Indices of the first image of each class, then of the second, and so on."""
    order = np.argsort(labels, kind="stable")
    first = np.searchsorted(labels[order], labels[order])
    turn = np.empty(len(labels), np.int64)
    turn[order] = np.arange(len(labels)) - first
    return np.lexsort((labels, turn))[skip : skip + wanted]


def _made(request: OfPolicy, splits: Splits, images: ImageSet, batch: int, seed: int, last: int) -> Views:
    """The views of a policy at a given strength.

    Raises:
        BadSpec: the policy is not applicable to these images.
        BadInput: batch, seed or epoch is out of range.
    """
    from smallalign_core import augment as viewing

    if not 2 <= batch <= 65_536 or not 0 <= seed < 2**31 or not 0 <= last <= 1_000_000:
        raise BadInput(
            "batch, seed or epoch is out of range",
            given=f"batch {batch}, seed {seed}, epoch {last}",
            do="choose smaller numbers",
        )
    viewing.check(request.policy, splits.shape)
    return viewing.Views(images, viewing.scaled(request.policy, request.strength, splits.shape), batch=batch, seed=seed)


def decoded(own: Pixels, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """A user's image as uint8 of `shape` [C, H, W].

    Raises:
        BadInput: it has another size.
    """
    try:
        if own.shape == shape:
            return own.array()
    except ValueError:
        pass
    raise BadInput("the image does not have the input size of the dataset", given=list(own.shape), do="upload it again")


def _among_others(own: Pixels, train: ImageSet) -> ImageSet:
    """The user's image at index 0, and some training images. Its label is unknown and set to 0."""
    image = decoded(own, train.shape)
    others = train.take(in_turn(train.labels, PARTNERS))
    return replace(
        others,
        images=np.concatenate([image[None], others.images[:]]),
        labels=np.concatenate([[0], others.labels]),
        ids=np.concatenate([np.zeros(1, np.uint64), others.ids]),
        sizes=None,
    )


def _mixture(label: NDArray[Any], classes: Sequence[str]) -> Mixture:
    if label.ndim == 0:
        return None
    best = [int(place) for place in np.argsort(-label, kind="stable")[:2] if label[place] >= LEAST_SHARE]
    return tuple((classes[place], float(label[place]) if len(best) > 1 else 1.0) for place in best)


_checks: OrderedDict[tuple[str, str, str, int], LabelCheck] = OrderedDict()


def _judge(store: Store, splits: Splits, run: Run, seed: int) -> LabelCheck:
    """A cached evaluator; the most recent ones are kept, and those that unfinished work still needs."""
    from smallalign_core.analysis import label_preservation
    from smallalign_core.runs import imported

    key = (str(store.root.resolve()), run.id, splits.fingerprint, seed)
    check = _checks.pop(key, None)
    if check is None or check.answered > MOST_ANSWERS:
        classifier = imported.classifier(run, splits.classes)
        looked, seen = label_preservation.sample(splits)
        check = label_preservation.LabelCheck(classifier, looked, seed=seed, from_training=seen)
    _checks[key] = check
    while len(_checks) > KEPT:
        _checks.popitem(last=False)
    return check
