"""Every part of a policy: torchvision's mathematics, nothing leaks between images, and refusals in words."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from conftest import USER_AUGMENT
from hypothesis import given, settings, strategies as st
from test_views import pictures as noise_pictures
from torchvision.transforms.v2 import functional as reference

from smallalign_core.augment import Views, _paint, _parts, as_code, scaled, sheet
from smallalign_core.augment._canvas import Canvas
from smallalign_core.data import ImageSet
from smallalign_core.errors import BadSpec
from smallalign_core.spec import MixUp, parse, parse_policy, policy_yaml
from smallalign_core.spec.augment import Affine, Augment, Blur, Colour, Perspective, ResizedCrop
from smallalign_core.spec.parts import choices, members
from smallalign_core.training import losses

KINDS = choices(Augment)
MIXING = ("mixup", "cutmix")
ALONE = [kind for kind in KINDS if kind not in MIXING]
OWN = {"python": {"file": str(USER_AUGMENT)}}
FULL: dict[str, dict[str, Any]] = {"colour": {"saturation": 0.4, "hue": 0.1}, "crop": {"fill": "mirror"}, **OWN}
EVERYTHING = parse_policy([{"kind": kind, **FULL.get(kind, {})} for kind in ALONE[:16]])
SIZE = (18, 17)


def pictures(count: int = 40, shape: tuple[int, int, int] = (3, 17, 16)) -> ImageSet:
    return noise_pictures(count, shape)


def policy_of(kind: str, **fields: Any) -> tuple[Augment, ...]:
    return parse_policy([{"kind": kind, **FULL.get(kind, {}), **fields}])


def smooth(count: int = 6, size: tuple[int, int] = (24, 30), channels: int = 3) -> ImageSet:
    """Colourful images without sharp edges: where two resamplings agree, they agree here."""
    draw = np.random.default_rng(1)
    coarse = torch.from_numpy(draw.uniform(0, 255, (count, channels, 5, 6)))
    fine = torch.nn.functional.interpolate(coarse, size, mode="bicubic", align_corners=True)
    return ImageSet(
        fine.clamp(0, 255).round().to(torch.uint8).numpy(),
        np.arange(count) % 3,
        np.arange(count).astype(np.uint64),
        ("a", "b", "c"),
    )


def flat_images(count: int, value: int) -> ImageSet:
    pixels = np.full((count, 1, 20, 20), value, np.uint8)
    return ImageSet(pixels, np.zeros(count, int), np.arange(count).astype(np.uint64), ("a", "b"))


def look(images: ImageSet, policy: tuple[Augment, ...], *, seed: int = 3, view: int = 0) -> np.ndarray[Any, Any]:
    every = np.arange(len(images))
    return Views(images, policy, batch=len(images), seed=seed).augmented(every, np.full(len(images), view)).numpy()


def drawn(images: ImageSet, policy: tuple[Augment, ...], *, seed: int = 3) -> np.ndarray[Any, Any]:
    """The uniform draws of the first part, without the one that decides whether."""
    return Views(images, policy, batch=2, seed=seed)._uniform(0, 0, np.arange(len(images)))[:, 1:]


# --- what holds for every part ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALONE)
def test_a_part_changes_images_and_keeps_their_type_and_size(kind: str) -> None:
    images = pictures(30)
    found = look(images, policy_of(kind, probability=1))
    assert found.dtype == np.uint8
    assert found.shape == images.images.shape
    assert (found != images.images).any((1, 2, 3)).mean() > (0.5 if kind not in ("trivial_augment",) else 0.3)


@pytest.mark.parametrize("kind", ALONE)
def test_no_part_leaks_across_images_or_depends_on_the_batch(kind: str) -> None:
    images = pictures(24)
    policy = policy_of(kind, probability=0.7)
    views = Views(images, policy, batch=24, seed=3)
    order = np.random.default_rng(0).permutation(24)
    whole = views.augmented(order, np.full(24, 2))
    alone = torch.cat(
        [Views(images, policy, batch=1, seed=3).augmented(order[i : i + 1], np.full(1, 2)) for i in range(24)]
    )
    assert torch.equal(whole, alone)


@given(split=st.integers(1, 39), view=st.integers(0, 9), seed=st.integers(0, 2**31 - 1))
@settings(max_examples=15)
def test_the_whole_family_gives_the_same_pixels_on_any_split_of_a_batch(split: int, view: int, seed: int) -> None:
    views = Views(pictures(40), EVERYTHING, batch=40, seed=seed)
    every, number = np.arange(40), np.full(40, view)
    cut = [views.augmented(every[part], number[part]) for part in (slice(0, split), slice(split, 40))]
    assert torch.equal(views.augmented(every, number), torch.cat(cut))


@pytest.mark.parametrize("kind", ALONE)
def test_seeds_and_views_differ_and_repeat(kind: str) -> None:
    images, policy = pictures(30), policy_of(kind, probability=0.5)
    first = look(images, policy)
    assert np.array_equal(first, look(images, policy))
    assert not np.array_equal(first, look(images, policy, seed=4))
    assert not np.array_equal(first, look(images, policy, view=1))


@pytest.mark.parametrize("kind", ALONE)
def test_probability_zero_is_the_identity(kind: str) -> None:
    images = pictures(20)
    assert np.array_equal(look(images, policy_of(kind, probability=0)), images.images)


@pytest.mark.parametrize("kind", ALONE)
def test_the_given_images_are_not_written_to(kind: str) -> None:
    images = pictures(20)
    before = images.images.copy()
    look(images, (*policy_of(kind, probability=0.5), *policy_of("erase", probability=0.5)))
    assert np.array_equal(images.images, before)


@pytest.mark.parametrize("kind", ALONE)
def test_grey_images_work_where_colour_is_not_needed(kind: str) -> None:
    images = pictures(20, (1, 17, 17))
    found = look(images, parse_policy([{"kind": kind, **OWN.get(kind, {})}]))
    assert found.shape == images.images.shape


# --- torchvision's mathematics ----------------------------------------------------------------------------------------


def inner(images: Any, margin: int = 0) -> torch.Tensor:
    pixels = torch.as_tensor(np.asarray(images)).float()
    return pixels[..., margin : pixels.shape[-2] - margin, margin : pixels.shape[-1] - margin]


def test_affine_agrees_with_torchvision() -> None:
    """Within one level: both interpolate bilinearly, torchvision in another order of operations."""
    images, part = smooth(), Affine(translate=0.2, scale=0.4, shear=25)
    height, width = images.shape[1:]
    found = look(images, (part,))
    for index, draw in enumerate(2 * drawn(images, (part,)) - 1):
        expected = reference.affine(
            torch.from_numpy(images.images[index]).float(),
            angle=0,
            translate=[draw[0] * 0.2 * width, draw[1] * 0.2 * height],
            scale=1 + draw[2] * 0.4,
            shear=[draw[3] * 25, draw[4] * 25],
            interpolation=reference.InterpolationMode.BILINEAR,
        )
        assert (inner(found[index]) - expected).abs().max() <= 1.01


def test_perspective_agrees_with_torchvision() -> None:
    """Within one level, corners given as places on the plane (torchvision's functional takes them so)."""
    images, part = smooth(), Perspective(distortion=0.5, probability=1)
    height, width = images.shape[1:]
    corners = np.array([(0, 0), (width, 0), (width, height), (0, height)], float)
    middle = np.array([width / 2, height / 2])
    found = look(images, (part,))
    for index, draw in enumerate(drawn(images, (part,))):
        moved = middle + (corners - middle) * (1 - 0.5 * draw.reshape(4, 2))
        expected = reference.perspective(
            torch.from_numpy(images.images[index]).float(), corners.tolist(), moved.tolist()
        )
        assert (inner(found[index]) - expected).abs().max() <= 1.01


def test_resized_crop_agrees_with_torchvision_and_keeps_the_rim() -> None:
    """Torchvision cuts whole pixels, so windows that are whole pixels are asked for: half the image, at its corners."""
    images = smooth(4, (24, 32))
    for top, left in ((0, 0), (12, 16), (6, 8), (0, 16)):
        canvas = Canvas(torch.from_numpy(images.images))
        draws = np.tile([[0.0, 0.5, left / 16, top / 12]], (4, 1))
        canvas.move(np.arange(4), _parts._window(ResizedCrop(smallest=0.25), draws, 24, 32), rim=True)
        expected = reference.resized_crop(torch.from_numpy(images.images), top, left, 12, 16, [24, 32], antialias=False)
        # At the window's inner rim torchvision repeats its own pixels and we see the image's next ones.
        assert (inner(canvas.to_uint8(), 1) - inner(expected, 1)).abs().max() <= 1
        if (top, left) == (0, 0):
            assert (canvas.to_uint8()[..., 0, 0].float() - expected[..., 0, 0].float()).abs().max() <= 1


@pytest.mark.parametrize("fill", ["black", "edge", "mirror"])
def test_crop_is_torchvisions_pad_and_cut(fill: str) -> None:
    images = pictures(12)
    policy = policy_of("crop", fill=fill, padding=3)
    found = look(images, policy)
    modes = {"black": "constant", "edge": "edge", "mirror": "reflect"}
    moves = np.floor(drawn(images, policy) * 7).astype(int) - 3
    for index, (right, down) in enumerate(moves):
        padded = reference.pad(torch.from_numpy(images.images[index]), [3, 3, 3, 3], padding_mode=modes[fill])
        expected = reference.crop(padded, 3 - down, 3 - right, *images.shape[1:])
        assert torch.equal(torch.from_numpy(found[index]), expected)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (_paint.brightness, reference.adjust_brightness),
        (_paint.contrast, reference.adjust_contrast),
        (_paint.saturation, reference.adjust_saturation),
        (_paint.sharpness, reference.adjust_sharpness),
        (_paint.solarize, reference.solarize),
        (_paint.hue, reference.adjust_hue),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_paint_agrees_with_torchvision(ours: Any, theirs: Any, channels: int) -> None:
    """Within one level, which is what torchvision loses by cutting off after each operation."""
    images = torch.from_numpy(
        np.concatenate([pictures(5, (channels, 12, 9)).images, np.full((1, channels, 12, 9), 77, np.uint8)])
    )
    factors = torch.tensor([0.0, 0.5, 1.0, 1.3, 2.0, 0.7])
    if ours is _paint.hue:
        factors = torch.tensor([-0.5, -0.1, 0.0, 0.02, 0.3, 0.5])
    if ours is _paint.solarize:
        factors = torch.tensor([0.0, 64.0, 128.0, 200.0, 255.0, 77.0])
    found = ours(images.float(), factors)
    for index, factor in enumerate(factors.tolist()):
        expected = theirs(images[index], factor).float()
        assert (found[index] - expected).abs().max() <= 1.01, factor


def test_posterize_equalize_and_autocontrast_agree_with_torchvision() -> None:
    images = torch.from_numpy(pictures(9).images)
    bits = torch.arange(9).clamp(1, 8).float()
    assert torch.equal(
        _paint.posterize(images.float(), bits).to(torch.uint8),
        torch.stack([reference.posterize(image, int(kept)) for image, kept in zip(images, bits, strict=True)]),
    )
    assert torch.equal(_paint.equalize(images.float()).to(torch.uint8), reference.equalize(images))
    assert (_paint.autocontrast(images.float()) - reference.autocontrast(images).float()).abs().max() <= 1.01


def test_blur_agrees_with_torchvision() -> None:
    images = torch.from_numpy(pictures(4, (3, 15, 17)).images)
    sigma = torch.tensor([0.1, 0.5, 1.0, 1.9])
    found = _paint.blur(images.float(), sigma, 6)
    for index, width in enumerate(sigma.tolist()):
        expected = reference.gaussian_blur(images[index].float(), [13, 13], [width, width])
        assert (found[index] - expected).abs().max() <= 0.01


def test_erase_is_torchvisions() -> None:
    images = torch.from_numpy(pictures(3).images)
    places = [torch.tensor(numbers) for numbers in ([0, 2, 5], [1, 0, 3], [4, 12, 7], [8, 9, 2])]
    found = _paint.erase(images.float(), *places).to(torch.uint8)
    for index in range(3):
        top, left, height, width = (int(place[index]) for place in places)
        assert torch.equal(found[index], reference.erase(images[index], top, left, height, width, torch.zeros(1)))


def test_noise_has_the_strength_that_was_asked_for() -> None:
    grey = ImageSet(
        np.full((50, 1, 20, 20), 128, np.uint8), np.zeros(50, int), np.arange(50).astype(np.uint64), ("a", "b")
    )
    found = look(grey, policy_of("noise", amount=0.1, probability=1)).astype(float) - 128
    assert found.std() == pytest.approx(25.5, rel=0.03)
    assert abs(found.mean()) < 0.5
    neighbours = np.corrcoef(found[0].ravel(), found[1].ravel())[0, 1]
    assert abs(neighbours) < 0.15


def test_moves_in_a_row_are_one_resampling_and_paint_comes_in_order() -> None:
    """There and back by rotations that are exact inverses would blur if each resampled."""
    images = smooth(3, (21, 21))
    canvas = Canvas(torch.from_numpy(images.images))
    angle = math.radians(33)
    turn = np.tile(
        np.array([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]]), (3, 1, 1)
    )
    canvas.move(np.arange(3), turn)
    canvas.move(np.arange(3), np.linalg.inv(turn))
    assert np.array_equal(canvas.to_uint8().numpy(), images.images)
    # Solarizing at 0 inverts; a shift after it lets black in, a shift before it white.
    black = ImageSet(np.zeros((4, 1, 6, 6), np.uint8), np.zeros(4, int), np.arange(4).astype(np.uint64), ("a", "b"))
    invert, move = (
        policy_of("solarize", threshold=0, probability=1),
        policy_of("affine", translate=0.9, scale=0, shear=0),
    )
    assert (look(black, (*move, *invert)) == 255).all()
    assert (look(black, (*invert, *move)) < 255).any()


# --- policies of several operations -----------------------------------------------------------------------------------


def test_rand_augment_draws_every_operation() -> None:
    """Each operation of the list changes some image: with one operation an image, only identity changes none."""
    images = smooth(600, (12, 12))
    found = look(images, policy_of("rand_augment", operations=1, magnitude=30))
    same = (found == images.images).all((1, 2, 3)).mean()
    assert 0.03 < same < 0.2


def test_augmix_weights_sum_to_one() -> None:
    """Without magnitude no operation changes a flat image of 128, so neither does any mixture of them."""
    assert (look(flat_images(50, 128), policy_of("augmix", severity=1e-6)) == 128).all()


def test_augmix_stays_near_the_image() -> None:
    images = smooth(40)
    mixed = np.abs(look(images, policy_of("augmix", severity=1)).astype(float) - images.images).mean()
    strong = np.abs(look(images, policy_of("augmix", severity=10)).astype(float) - images.images).mean()
    assert 0 < mixed < strong


# --- mixing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MIXING)
def test_mixed_labels_sum_to_one_and_say_what_is_in_the_image(kind: str) -> None:
    images = pictures(60)
    flat = ImageSet(  # every image is as bright as its class: the image's mean must be the label's mean
        (np.arange(60) % 4 * 60)[:, None, None, None].repeat(100, 2).reshape(60, 1, 10, 10).astype(np.uint8),
        np.arange(60) % 4,
        images.ids,
        images.classes,
    )
    batch = Views(flat, policy_of(kind, alpha=1, probability=1), batch=50, seed=0)(1)
    assert batch.labels.shape == (50, 4)
    torch.testing.assert_close(batch.labels.sum(1), torch.ones(50))
    said = batch.labels @ torch.tensor([0.0, 60.0, 120.0, 180.0])
    assert (batch.images.float().mean((1, 2, 3)) - said).abs().max() <= 0.51
    assert ((batch.labels > 0).sum(1) == 2).float().mean() > 0.4


@pytest.mark.parametrize("kind", MIXING)
def test_mixing_is_keyed_by_step_and_replayed(kind: str) -> None:
    policy = (*policy_of("shift"), *policy_of(kind, probability=1))
    fresh, used = (Views(pictures(), policy, batch=16, seed=3) for _ in range(2))
    for step in (5, 1, 9):
        used(step)
    assert torch.equal(fresh(4).images, used(4).images)
    assert torch.equal(fresh(4).labels, used(4).labels)
    plain = Views(pictures(), policy[:1], batch=16, seed=3)(4)
    assert plain.labels.dtype == torch.int64
    assert not torch.equal(plain.images, fresh(4).images)


def test_mixing_with_probability_zero_keeps_the_images() -> None:
    plain = Views(pictures(), (), batch=16, seed=3)(2)
    mixed = Views(pictures(), policy_of("mixup", probability=0), batch=16, seed=3)(2)
    assert torch.equal(plain.images, mixed.images)
    assert torch.equal(mixed.labels.argmax(1), plain.labels)


@pytest.mark.parametrize("kind", [None, *MIXING])
def test_the_preview_shows_what_training_sees(kind: str | None) -> None:
    policy = (*policy_of("rotate"), *(policy_of(kind) if kind else ()))
    views = Views(pictures(20), policy, batch=8, seed=1)
    for step in (0, 2, 6):
        batch = views(step)
        for place, row in enumerate(batch.rows.tolist()):
            epoch = (step * 8 + place) // 20
            assert torch.equal(views.image_of(row, epoch), batch.images[place])


def test_cross_entropy_takes_soft_labels() -> None:
    logits = torch.randn(6, 4)
    hard = torch.tensor([0, 1, 2, 3, 0, 1])
    soft = torch.nn.functional.one_hot(hard, 4).float()
    for smoothing in (0.0, 0.1):
        torch.testing.assert_close(
            losses.cross_entropy(logits, hard, smoothing), losses.cross_entropy(logits, soft, smoothing)
        )


# --- strength ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_strength_runs_from_nothing_through_as_written(kind: str) -> None:
    policy = policy_of(kind)
    assert scaled(policy, 0) == ()
    assert scaled(policy, 1) == policy
    for strength in (0.01, 0.3, 1.7, 2.0):
        assert all(type(part) is type(policy[0]) for part in scaled(policy, strength))


@pytest.mark.parametrize("kind", [kind for kind in ALONE if kind != "trivial_augment"])
def test_more_strength_changes_more(kind: str) -> None:
    images = smooth(60)

    def change(strength: float) -> float:
        return float(np.abs(look(images, scaled(policy_of(kind), strength)).astype(float) - images.images).mean())

    assert change(0) == 0
    assert change(0.3) < change(1.0)


def test_a_stronger_policy_still_fits_the_images() -> None:
    policy = parse_policy([{"kind": "crop", "padding": 5}, {"kind": "blur", "sigma": 2}])
    images = pictures(6, (1, 8, 8))
    assert look(images, scaled(policy, 2, images.shape)).shape == images.images.shape
    with pytest.raises(BadSpec):
        look(images, scaled(policy, 2))


@pytest.mark.parametrize("strength", [-0.1, 2.1, float("nan")])
def test_a_strength_out_of_range_is_refused(strength: float) -> None:
    with pytest.raises(BadSpec, match="between 0 and 2"):
        scaled(policy_of("flip"), strength)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "shape", "words"),
    [
        ({"kind": "colour", "hue": 0.1}, (1, 8, 8), r"augment\.0\.hue.*colour images.*1 channel.*Set hue to 0"),
        ({"kind": "colour", "saturation": 0.1}, (1, 8, 8), r"saturation.*colour images"),
        ({"kind": "crop", "padding": 8}, (1, 8, 8), r"crops beyond the image.*8 pixels.*at most 7"),
        ("equalize", (1, 8, 8), r"at least 256 pixels.*8 x 8"),
        ({"kind": "blur", "sigma": 3}, (3, 8, 8), r"blurs over 19 pixels.*side of 8.*at most 2"),
    ],
)
def test_a_part_that_cannot_work_on_the_images_is_refused(part: Any, shape: Any, words: str) -> None:
    with pytest.raises(BadSpec, match=words) as caught:
        Views(pictures(4, shape), parse_policy([part]), batch=2, seed=0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ([], "no transforms"),
        (None, "no transforms"),
        ("flip", "no transforms"),
        ({"data": "digits"}, "no transforms"),
        (["flop"], r"no kind 'flop'.*'flip'"),
        ([{"kind": "shift", "pixls": 1}], "did you mean `pixels`"),
        ([{"kind": "noise", "amount": 7}], r"noise|augment\.0\.amount.*less than or equal to 1.*7"),
        (["mixup", "flip"], "put it last"),
        (["mixup", "cutmix"], "one mixing transform"),
        (["flip"] * 17, "16"),
    ],
)
def test_policies_that_are_none_are_refused_in_one_line(policy: Any, words: str) -> None:
    with pytest.raises(BadSpec, match=words) as caught:
        parse_policy(policy)
    assert "\n" not in str(caught.value)


def test_a_run_mixes_last_and_not_with_fixed_views() -> None:
    base = {"data": "digits", "network": "cnn"}
    with pytest.raises(BadSpec, match="put it last"):
        parse({**base, "augment": ["cutmix", "flip"]})
    with pytest.raises(BadSpec, match="set `views` to 0"):
        parse({**base, "augment": ["mixup"], "views": 8})
    assert parse({**base, "augment": ["flip", "mixup"]}).augment[-1] == MixUp()


# --- what leaves the library ------------------------------------------------------------------------------------------


def test_policies_round_trip_as_yaml() -> None:
    import yaml

    assert parse_policy(yaml.safe_load(policy_yaml(EVERYTHING))) == EVERYTHING


@pytest.mark.parametrize("kind", KINDS)
def test_the_code_runs_and_does_the_same_kind_of_thing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(USER_AUGMENT.parent))
    policy = policy_of(kind, probability=1) if kind in MIXING else policy_of(kind)
    place: dict[str, Any] = {}
    exec(as_code(policy, size=SIZE, classes=4), place)  # noqa: S102  # the text is ours
    torch.manual_seed(0)
    images = torch.from_numpy(pictures(8, (3, *SIZE)).images)
    found = torch.stack([place["augment"](image) for image in images])
    assert found.dtype == (torch.float32 if kind == "python" else torch.uint8)
    assert found.shape == images.shape
    if kind in MIXING:
        mixed, labels = place["mix"](images, torch.arange(8) % 4)
        assert mixed.shape == images.shape
        assert labels.shape == (8, 4)
    else:
        assert not torch.equal(found, images)


def test_the_code_of_a_whole_policy_runs() -> None:
    place: dict[str, Any] = {}
    exec(as_code(EVERYTHING, size=(24, 18), classes=4), place)  # noqa: S102  # the text is ours
    assert place["augment"](torch.from_numpy(pictures(1, (3, 24, 18)).images[0])).shape == (3, 24, 18)


def test_a_contact_sheet_is_a_picture() -> None:
    import io

    from PIL import Image

    images = pictures(6, (3, 8, 8)).images.reshape(2, 3, 3, 8, 8)
    picture = Image.open(io.BytesIO(sheet(images)))
    assert picture.size == (3 * 64 + 2 * 2, 2 * 64 + 2)
    assert picture.getpixel((0, 0)) == tuple(images[0, 0, :, 0, 0])
    assert picture.getpixel((195, 129)) == tuple(images[1, 2, :, 7, 7])
    assert len(members(Augment)) == len(KINDS) == 20
    assert Colour().hue == 0
    assert _parts.blur_radius(Blur(sigma=1)) == 3
