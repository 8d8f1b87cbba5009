"""Views are pure functions: replayable, independent of batch and history, and geometrically right."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torchvision.transforms.v2 import functional as reference

from smallalign_core import data
from smallalign_core.augment import Views
from smallalign_core.data import ImageSet, Splits
from smallalign_core.spec import Augment, DataSpec, Flip, MixUp, Rotate, Shift

POLICY: tuple[Augment, ...] = (Flip(), Shift(pixels=2), Rotate(degrees=20))


def pictures(count: int = 40, shape: tuple[int, int, int] = (3, 12, 9)) -> ImageSet:
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (count, *shape), dtype=np.uint8)
    return ImageSet(images, np.arange(count) % 4, np.arange(count).astype(np.uint64), tuple("abcd"))


@given(step=st.integers(0, 500), history=st.lists(st.integers(0, 500), max_size=4))
@settings(max_examples=30)
def test_a_view_does_not_depend_on_what_was_asked_before(step: int, history: list[int]) -> None:
    fresh, used = (Views(pictures(), POLICY, batch=7, seed=3) for _ in range(2))
    for earlier in history:
        used(earlier)
    one, other = fresh(step), used(step)
    assert torch.equal(one.images, other.images)
    assert torch.equal(one.rows, other.rows)


@pytest.mark.parametrize("batch", [3, 7, 20])
@pytest.mark.parametrize("share", [slice(None), slice(1, 3)], ids=["all", "share"])
@pytest.mark.parametrize("last", [(), (MixUp(probability=1),)], ids=["plain", "mixup"])
def test_steps_that_are_made_at_once_are_those_that_are_made_alone(
    batch: int, share: slice, last: tuple[Augment, ...]
) -> None:
    """Through several epochs, with a jump, and with steps in between that somebody else asks for."""
    policy = (*POLICY, *last)
    running = Views(pictures(), policy, batch=batch, seed=3, share=share)
    for step in (*range(30), *range(11, 20)):
        alone, together = Views(pictures(), policy, batch=batch, seed=3, share=share)(step), running(step)
        for name in ("rows", "images", "labels"):
            assert torch.equal(getattr(alone, name), getattr(together, name)), (step, name)
        if step % 5 == 0:
            running(97)


def test_a_view_does_not_depend_on_the_batch_size() -> None:
    small, large = Views(pictures(), POLICY, batch=5, seed=3), Views(pictures(), POLICY, batch=20, seed=3)
    assert torch.equal(torch.cat([small(step).images for step in range(4)]), large(0).images)


def test_every_image_once_an_epoch_and_no_ragged_batch() -> None:
    views = Views(pictures(40), (), batch=7, seed=0)
    rows = torch.cat([views(step).rows for step in range(40)])
    assert all(len(views(step).rows) == 7 for step in range(40))
    for epoch in range(7):
        assert sorted(rows[40 * epoch : 40 * (epoch + 1)].tolist()) == list(range(40))
    assert rows[:40].tolist() != rows[40:80].tolist()


def test_labels_follow_their_images() -> None:
    images = pictures()
    batch = Views(images, (), batch=16, seed=1)(9)
    assert batch.labels.tolist() == images.labels[batch.rows.numpy()].tolist()
    assert np.array_equal(batch.images.numpy(), images.images[batch.rows.numpy()])


def test_fixed_views_repeat_after_k_epochs_and_fresh_ones_do_not() -> None:
    images = pictures(16)
    every = np.arange(16)

    def look(fixed: int, epoch: int) -> torch.Tensor:
        views = Views(images, POLICY, batch=16, seed=5, fixed=fixed)
        return views.augmented(every, np.full(16, epoch % fixed if fixed else epoch))

    assert torch.equal(look(3, 0), look(3, 3))
    assert not torch.equal(look(3, 0), look(3, 1))
    assert not torch.equal(look(0, 0), look(0, 3))


def test_seeds_differ() -> None:
    one, other = (Views(pictures(), POLICY, batch=8, seed=seed)(0) for seed in (0, 1))
    assert not torch.equal(one.images, other.images)


@pytest.mark.parametrize("axis", ["horizontal", "vertical"])
def test_flip_is_exact(axis: str) -> None:
    images = pictures()
    views = Views(images, (Flip(axis=axis, probability=1),), batch=8, seed=0)  # type: ignore[arg-type]
    rows = np.arange(8)
    expected = images.images[:8, :, :, ::-1] if axis == "horizontal" else images.images[:8, :, ::-1]
    assert np.array_equal(views.augmented(rows, np.zeros(8, int)).numpy(), expected)


def test_shifts_are_whole_pixels_and_cover_all_of_them() -> None:
    images = pictures(400, (1, 9, 9))
    found = Views(images, (Shift(pixels=2),), batch=400, seed=0).augmented(np.arange(400), np.zeros(400, int)).numpy()
    moves = set()
    for before, after in zip(images.images[:, 0], found[:, 0], strict=True):
        padded = np.pad(before, 2)
        match = [
            (dy, dx) for dy in range(5) for dx in range(5) if np.array_equal(padded[dy : dy + 9, dx : dx + 9], after)
        ]
        assert match, "a shifted image is not a whole-pixel shift of the original"
        moves.add(match[0])
    assert len(moves) == 25


def test_rotation_agrees_with_torchvision() -> None:
    images = pictures(1, (1, 33, 33))
    views = Views(images, (Rotate(degrees=30),), batch=1, seed=4)
    found = views.augmented(np.array([0]), np.array([0]))[0].float()
    draw = views._uniform(0, 0, np.arange(1))[0, 1]
    angle = -(2 * draw - 1) * 30  # torchvision counts counter-clockwise as seen, we turn with y down
    smooth = torch.from_numpy(images.images[0]).float()
    expected = reference.rotate(smooth, float(angle), interpolation=reference.InterpolationMode.BILINEAR)
    inner = slice(8, 25)
    assert (found[:, inner, inner] - expected[:, inner, inner]).abs().max() <= 2


def test_probability_is_kept() -> None:
    images = pictures(2000, (1, 4, 4))
    found = Views(images, (Flip(probability=0.3),), batch=4, seed=0).augmented(np.arange(2000), np.zeros(2000, int))
    share = (found.numpy() != images.images).any((1, 2, 3)).mean()
    assert 0.26 < share < 0.34


def test_a_policy_is_one_resampling() -> None:
    """Turning eight times blurs no more than turning once, since all parts are one warp."""
    images = pictures(64, (1, 16, 16))

    def detail(turns: int) -> float:
        policy: tuple[Augment, ...] = (Rotate(degrees=8),) * turns
        found = Views(images, policy, batch=64, seed=0).augmented(np.arange(64), np.zeros(64, int)).numpy()
        return float(np.abs(np.diff(found[:, 0, 5:11, 5:11].astype(float), axis=2)).mean())

    assert detail(8) > 0.7 * detail(1)  # warped eight times it keeps less than a third


def test_old_policies_give_the_pixels_they_always_gave() -> None:
    """Runs in users' stores were trained on these; copies of whole pixels are the same on every machine."""
    views = Views(pictures(), (Flip(),), batch=16, seed=3)
    seen = [array.tobytes() for step in range(12) for array in (views(step).images.numpy(), views(step).rows.numpy())]
    assert hashlib.sha256(b"".join(seen)).hexdigest()[:16] == "2bb478ef663cf99f"


def test_memory_mapped_images_give_the_same_views(digits: Splits, decoded: Path) -> None:
    mapped = data.load(DataSpec(source="digits"), decoded, ram_budget=100)
    one, other = (Views(splits.train, POLICY, batch=32, seed=0)(3) for splits in (digits, mapped))
    assert torch.equal(one.images, other.images)
