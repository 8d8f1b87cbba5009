"""Preview of augmentation policies on real images: pixels, predictions, code, and label preservation.

Used by the backend and by `preview` on the command line. Torch is imported on use.
"""

from __future__ import annotations

import base64
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
from smallalign_core.runs.store import Run, Store
from smallalign_core.spec import Augment, parse_data, parse_policy, policy_yaml
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


def views(
    store: Store,
    policy: object,
    data_source: str | dict[str, Any],
    *,
    teacher: str | None = None,
    rows: list[int] | None = None,
    own: dict[str, Any] | None = None,
    images: int = 8,
    draws: int = 6,
    first: int = 0,
    seed: int = 0,
    batch: int = 128,
    strength: float = 1.0,
) -> dict[str, Any]:
    """Augmented images of a policy.

    Args:
        policy: plain values, as in a spec's `augment`.
        teacher: a run that predicts the class of each image.
        rows: indices of training images; default: `images` of them, over all classes in turn.
        own: a user's image instead, as returned by `encoded`.
        draws, first: number of augmentations per image, and the first epoch. With the seed and batch size of a run
            these are exactly the pixels that it trains on.

    Returns:
        `pixels`: base64 of uint8 [rows, 1 + draws, C, H, W], the original first, and its `shape`; `labels` [rows];
        `mixed` [rows][draws], the classes and shares of mixed labels; `said` [rows][1 + draws], the teacher's
        predicted class and confidence.
    """
    from smallalign_core.analysis import label_preservation

    if not 1 <= images <= MOST or not 1 <= draws <= MOST:
        raise BadInput(
            f"the preview shows 1 to {MOST} images, each 1 to {MOST} times", given=f"{images} images, {draws} draws"
        )
    splits = _splits(store, data_source)
    train = splits.train
    labels: list[str | None]
    if own is None:
        rows = in_turn(train.labels, images).tolist() if rows is None else rows
        if not rows or not all(0 <= row < len(train) for row in rows) or len(rows) > MOST:
            raise BadInput(
                f"training image indices are 0 to {len(train) - 1}", given=rows, do=f"choose up to {MOST} of them"
            )
        labels = [train.classes[train.labels[row]] for row in rows]
    else:
        train, rows, labels = _among_others(own, train), [0], [None]
        batch = len(train)
    made = _made(policy, splits, train, batch, seed, strength, first + draws)
    met = [[made.view_of(row, first + draw) for row in rows] for draw in range(draws)]
    seen = np.array([[image.numpy() for image, _ in column] for column in met]).swapaxes(0, 1)
    shown = np.concatenate([train.images[np.array(rows)][:, None], seen], axis=1)
    mixed = [[_mixture(column[place][1].numpy(), train.classes) for column in met] for place in range(len(rows))]
    said = None
    if teacher is not None:
        from smallalign_core.runs import imported

        judge = imported.classifier(store.finished(teacher), splits.classes)
        said = label_preservation.predictions(judge, shown)
    return {
        "rows": rows,
        "labels": labels,
        "mixed": mixed,
        "classes": list(train.classes),
        **_packed(shown),
        "said": said,
    }


def code(store: Store, policy: object, data_source: str | dict[str, Any], *, strength: float = 1.0) -> dict[str, Any]:
    """Export a policy at a given strength: `parts` as plain values, `policy` as YAML, `code` for torchvision."""
    from smallalign_core import augment as viewing

    splits = _splits(store, data_source)
    asked = parse_policy(policy)
    viewing.check(asked, splits.shape)
    parts = viewing.scaled(asked, strength, splits.shape)
    return {
        "parts": [part.model_dump(mode="json") for part in parts],
        "policy": policy_yaml(parts),
        "code": viewing.as_code(parts, size=splits.shape[1:], classes=len(splits.classes)),
    }


def epoch(
    store: Store,
    policy: object,
    data_source: str | dict[str, Any],
    *,
    epoch: int = 0,
    images: int = 12,
    seed: int = 0,
    batch: int = 128,
    strength: float = 1.0,
) -> dict[str, Any]:
    """The first training images of an epoch, in the order and with the augmentation of a run of that seed and batch
    size.

    Returns:
        `rows`, `labels`, `mixed` [images] as in `views`; `pixels`: base64 of uint8 [images, 2, C, H, W],
        the original and the augmented image, and its `shape`.
    """
    if not 1 <= images <= MOST:
        raise BadInput(f"the preview shows 1 to {MOST} images", given=images, do="choose a number in that range")
    splits = _splits(store, data_source)
    train = splits.train
    made = _made(policy, splits, train, batch, seed, strength, epoch)
    rows = made.order(epoch)[:images]
    met = [made.view_of(int(row), epoch) for row in rows]
    labels = [train.classes[train.labels[row]] for row in rows]
    mixed = [_mixture(label.numpy(), train.classes) for _, label in met]
    shown = np.stack([train.images[rows], np.array([image.numpy() for image, _ in met])], axis=1)
    return {"rows": rows.tolist(), "labels": labels, "mixed": mixed, **_packed(shown)}


def risk(
    store: Store,
    policy: object,
    data_source: str | dict[str, Any],
    teacher: str,
    *,
    seed: int = 0,
    strength: float = 1.0,
    limit: float = 0.05,
    patience: float | None = None,
) -> dict[str, Any]:
    """Label preservation of a policy, see `smallalign_core.analysis.label_preservation`.

    Args:
        strength: global strength of the figures; the sweep covers all strengths.
        limit: maximum label-change rate.
        patience: seconds until an unfinished result is returned; the next call continues. While many requests are in
            progress it may have to wait, and `done` stays 0.

    Returns:
        `done`: progress in 0..1; at 1 also `report`, and `words`, the same as text; `pixels` and `shape` of the most
        confident label changes: uint8 [n, 2, C, H, W], the original and the augmented image.
    """
    from smallalign_core import augment as viewing

    asked, source, run = parse_policy(policy), parse_data(data_source), store.finished(teacher)

    def begin() -> resumable.Work[dict[str, Any]]:
        splits = data.load(source, store.data_cache)
        viewing.check(asked, splits.shape)
        return _risk(_judge(store, splits, run, seed), asked, strength, limit)

    # Keyed by the request, not by the evaluator: images and teacher are loaded when the work starts.
    facts = [str(store.root.resolve()), policy_yaml(asked), source.model_dump(mode="json"), run.id]
    question = f"risk {json.dumps([*facts, seed, strength, limit])}"
    found, done = resumable.advance(question, begin, patience)
    return {"done": done} if found is None else found


def _risk(
    judge: LabelCheck, policy: tuple[Augment, ...], strength: float, limit: float
) -> resumable.Work[dict[str, Any]]:
    """The resumable work of `risk`."""
    from smallalign_core import augment as viewing

    report = yield from judge.report(policy, strength=strength, limit=limit)
    shape = judge.images.shape
    made = viewing.Views(judge.images, viewing.scaled(policy, strength, shape), batch=2, seed=judge.seed)
    flipped = report.flipped[:PICTURED]
    shown = np.zeros((len(flipped), 2, *shape), np.uint8)
    for place, one in enumerate(flipped):
        shown[place, 0] = judge.images.images[one.row]
        shown[place, 1] = made.augmented(np.array([one.row]), np.array([one.view]))[0].numpy()
    return {"done": 1.0, "report": report.as_dict(), "words": report.words(), **_packed(shown)}


def unpacked(answer: dict[str, Any]) -> NDArray[np.uint8]:
    """The pixels of a reply as an array."""
    return np.frombuffer(base64.b64decode(answer["pixels"]), np.uint8).reshape(answer["shape"])


def sheet(answer: dict[str, Any]) -> bytes:
    """The images of `views` as one PNG."""
    from smallalign_core import augment as viewing

    return viewing.sheet(unpacked(answer))


def in_turn(labels: NDArray[np.int64], wanted: int, skip: int = 0) -> NDArray[np.int64]:
    """Indices of the first image of each class, then of the second, and so on."""
    order = np.argsort(labels, kind="stable")
    first = np.searchsorted(labels[order], labels[order])
    turn = np.empty(len(labels), np.int64)
    turn[order] = np.arange(len(labels)) - first
    return np.lexsort((labels, turn))[skip : skip + wanted]


def encoded(image: NDArray[np.uint8]) -> dict[str, Any]:
    """An image uint8 [C, H, W] as plain values, for `own`."""
    return {"shape": list(image.shape), "pixels": base64.b64encode(image.tobytes()).decode()}


def _splits(store: Store, source: str | dict[str, Any]) -> Splits:
    return data.load(parse_data(source), store.data_cache)


def _made(policy: object, splits: Splits, images: ImageSet, batch: int, seed: int, strength: float, last: int) -> Views:
    """The views of a policy at a given strength.

    Raises:
        BadSpec: the policy is invalid, or not applicable to these images.
        BadInput: batch, seed or epoch is out of range.
    """
    from smallalign_core import augment as viewing

    if not 2 <= batch <= 65_536 or not 0 <= seed < 2**31 or not 0 <= last <= 1_000_000:
        raise BadInput(
            "batch, seed or epoch is out of range",
            given=f"batch {batch}, seed {seed}, epoch {last}",
            do="choose smaller numbers",
        )
    asked = parse_policy(policy)
    viewing.check(asked, splits.shape)
    return viewing.Views(images, viewing.scaled(asked, strength, splits.shape), batch=batch, seed=seed)


def decoded(own: dict[str, Any], shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Decode an image of `encoded`: uint8 of `shape` [C, H, W].

    Raises:
        BadInput: it has another size.
    """
    image = np.frombuffer(base64.b64decode(own["pixels"]), np.uint8)
    if list(own["shape"]) != list(shape) or len(image) != np.prod(shape):
        raise BadInput(
            "the image does not have the input size of the dataset", given=own["shape"], do="upload it again"
        )
    return image.reshape(shape)


def _among_others(own: dict[str, Any], train: ImageSet) -> ImageSet:
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


def _mixture(label: NDArray[Any], classes: Sequence[str]) -> list[tuple[str, float]] | None:
    """The classes of a mixed label with their shares, the largest first; None if not mixed."""
    if label.ndim == 0:
        return None
    best = [int(place) for place in np.argsort(-label, kind="stable")[:2] if label[place] >= LEAST_SHARE]
    return [(classes[place], float(label[place]) if len(best) > 1 else 1.0) for place in best]


def _packed(shown: NDArray[np.uint8]) -> dict[str, Any]:
    return {"shape": list(shown.shape), "pixels": base64.b64encode(shown.tobytes()).decode()}


_judges: OrderedDict[tuple[str, str, str, int], LabelCheck] = OrderedDict()


def _judge(store: Store, splits: Splits, run: Run, seed: int) -> LabelCheck:
    """A cached evaluator; the most recent ones are kept, and those that unfinished work still needs."""
    from smallalign_core.analysis import label_preservation as judging
    from smallalign_core.runs import imported

    key = (str(store.root.resolve()), run.id, splits.fingerprint, seed)
    judge = _judges.pop(key, None)
    if judge is None or judge.answered > MOST_ANSWERS:
        classifier = imported.classifier(run, splits.classes)
        looked, seen = judging.sample(splits)
        judge = judging.LabelCheck(classifier, looked, seed=seed, from_training=seen)
    _judges[key] = judge
    while len(_judges) > KEPT:
        _judges.popitem(last=False)
    return judge
