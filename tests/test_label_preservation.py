"""Label preservation under augmentation, on digits with the starter teacher."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, command
from scipy.stats import binomtest

from smallalign_core import networks
from smallalign_core.analysis import label_preservation
from smallalign_core.analysis.label_preservation import LabelPreservation
from smallalign_core.augment import Views
from smallalign_core.data import ImageSet, Splits
from smallalign_core.errors import BadInput, BadSpec
from smallalign_core.networks import Classifier
from smallalign_core.runs.store import Store
from smallalign_core.service import augmentation_api
from smallalign_core.service.requests import AugmentImages, CheckLabels
from smallalign_core.spec import parse_data, parse_policy
from smallalign_core.system.typed import flat

DIGITS = parse_data("digits")

QUICK: dict[str, Any] = {"draws": 2, "grid": (0.5, 1.0, 2.0)}
SAFE, UPSIDE_DOWN = {"kind": "shift", "pixels": 1}, {"kind": "flip", "axis": "vertical", "probability": 1}
TURNED = {"kind": "rotate", "degrees": 90}


@pytest.fixture(scope="module")
def teacher() -> Classifier:
    return networks.from_file(ROOT / "models/zoo/digits-teacher/weights.safetensors")


@pytest.fixture(scope="module")
def looked(digits: Splits) -> ImageSet:
    return label_preservation.sample(digits)[0]


@pytest.fixture(scope="module")
def report(teacher: Classifier, looked: ImageSet) -> LabelPreservation:
    return label_preservation.assess(teacher, parse_policy([SAFE, UPSIDE_DOWN, TURNED]), looked, **QUICK)


def test_a_flip_and_a_quarter_turn_are_far_worse_than_a_shift_by_a_pixel(report: LabelPreservation) -> None:
    shift, flip, turn = (part.effect for part in report.parts)
    assert shift.flip_rate < 0.05
    assert flip.flip_rate > 0.3
    assert turn.flip_rate > 0.3
    assert shift.flip_high < min(flip.flip_low, turn.flip_low), "the intervals are apart"
    assert shift.confidence_after > max(flip.confidence_after, turn.confidence_after)
    assert shift.accuracy_after > flip.accuracy_after


def test_the_warnings_name_the_bad_parts_and_not_the_good_one(report: LabelPreservation) -> None:
    told = "\n".join(report.warnings)
    assert "`flip vertical` alone has a label-change rate" in told
    assert "`rotate 90` alone has a label-change rate" in told
    assert "shift" not in told
    assert "becomes" in told


def test_the_identity_changes_nothing(teacher: Classifier, looked: ImageSet) -> None:
    never = parse_policy([{"kind": "flip", "probability": 0}])
    found = label_preservation.assess(teacher, never, looked, **QUICK)
    assert found.whole.flip_rate == found.clean.flip_rate == 0
    assert found.whole.flip_low == 0
    assert found.whole.confidence_before == found.whole.confidence_after
    assert found.whole.stddev == pytest.approx(found.clean.stddev)
    assert found.suggested == 2.0
    assert found.flipped == ()


@pytest.mark.parametrize(("wrong", "warned"), [(0, False), (2, False), (3, True)])
def test_a_teacher_wrong_on_over_a_fifth_of_the_clean_images_is_warned_of(
    wrong: int, warned: bool, teacher: Classifier, looked: ImageSet
) -> None:
    ten = looked.take(np.arange(10))
    ten = replace(ten, labels=np.where(np.arange(10) < wrong, (ten.labels + 1) % 10, ten.labels))
    never = parse_policy([{"kind": "flip", "probability": 0}])
    found = label_preservation.assess(teacher, never, ten, draws=1, grid=(1.0,))
    assert found.whole.accuracy_before == pytest.approx(1 - wrong / 10)
    assert any("teacher accuracy on clean images" in one for one in found.warnings) == warned


def test_flipped_views_can_be_shown_again(report: LabelPreservation, teacher: Classifier, looked: ImageSet) -> None:
    views = Views(looked, parse_policy([SAFE, UPSIDE_DOWN, TURNED]), batch=16, seed=report.seed)
    assert report.flipped_count >= len(report.flipped) > 10
    sure = [view.after_confidence for view in report.flipped]
    assert sure == sorted(sure, reverse=True)
    for flipped in report.flipped[:10]:
        said = label_preservation.predictions(
            teacher, views.augmented(np.array([flipped.row]), np.array([flipped.view])).numpy()[:, None]
        )
        assert said[0][0].name == flipped.after != flipped.before
        assert looked.classes[looked.labels[flipped.row]] == flipped.label


def test_the_suggested_strength_is_the_largest_up_to_which_all_stay_within_the_limit(
    teacher: Classifier, looked: ImageSet
) -> None:
    policy = parse_policy([{"kind": "rotate", "degrees": 45}])
    found = label_preservation.assess(teacher, policy, looked, draws=2, limit=0.05)
    rates = [point.flip_rate for point in found.curve]
    assert [point.strength for point in found.curve] == list(label_preservation.GRID)
    assert rates[-1] > 0.2 > 0.05 > rates[0]
    assert found.suggested is not None
    after = label_preservation.GRID.index(found.suggested) + 1
    assert all(rate <= 0.05 for rate in rates[:after])
    assert rates[after] > 0.05
    assert label_preservation.assess(teacher, policy, looked, draws=1, grid=(2.0,), limit=0).suggested is None


def test_the_interval_counts_images_not_views(looked: ImageSet) -> None:
    """Views of one image are not independent: 4 of each change none of the interval's width."""
    some = looked.take(np.arange(40))
    clean = np.tile([0.9, 0.1], (40, 1))
    one = clean.copy()
    one[:12] = [0.2, 0.8]
    for draws in (1, 4):
        effect = label_preservation._answer(clean, np.broadcast_to(one, (draws, 40, 2)), some, 0).effect
        known = binomtest(12, 40).proportion_ci(method="wilson")
        assert effect.flip_rate == pytest.approx(0.3)
        assert (effect.flip_low, effect.flip_high) == pytest.approx((known.low, known.high), abs=1e-6)


@pytest.mark.parametrize(
    ("rates", "largest"),
    [
        ((0.0, 0.02, 0.05, 0.2), 1.0),  # the limit itself is within it
        ((0.01, 0.2, 0.01, 0.01), 0.25),  # beyond a strength over the limit nothing is suggested
        ((0.2, 0.01, 0.01, 0.01), None),
        ((0.0, 0.0, 0.0, 0.0), 2.0),
    ],
)
def test_no_strength_beyond_one_over_the_limit_is_suggested(rates: tuple[float, ...], largest: float | None) -> None:
    curve = [
        SimpleNamespace(strength=strength, flip_rate=rate)
        for strength, rate in zip((0.25, 0.5, 1.0, 2.0), rates, strict=True)
    ]
    assert label_preservation._suggested(curve, 0.05) == largest


def test_the_stddev_is_the_papers() -> None:
    """Against a hand-made loop, and zero for a teacher that always says the same."""
    draw = np.random.default_rng(0)
    answers = draw.dirichlet(np.ones(5), (3, 100))
    found = label_preservation.teacher_stddev(answers, group=25, seed=7)
    shuffle = np.random.Generator(np.random.Philox(key=[7, 0]))
    means = []
    for one in answers:
        order = shuffle.permutation(100)
        means += [one[order[start : start + 25]].mean(0) for start in range(0, 100, 25)]
    assert found == pytest.approx(np.mean([np.std([mean[c] for mean in means], ddof=1) for c in range(5)]))
    assert label_preservation.teacher_stddev(np.full((2, 64, 4), 0.25)) == 0
    assert (
        label_preservation.teacher_stddev(answers.mean(1, keepdims=True).repeat(100, 1) * 0.5 + answers * 0.5, group=25)
        < found
    )


def test_images_are_validation_first_and_never_test(digits: Splits) -> None:
    found, from_training = label_preservation.sample(digits)
    val, test = set(digits.val.ids.tolist()), set(digits.test.ids.tolist())
    assert len(found) == label_preservation.LEAST
    assert from_training == label_preservation.LEAST - len(digits.val)
    assert set(found.ids[: len(digits.val)].tolist()) == val
    assert not set(found.ids.tolist()) & (test - set(digits.train.ids.tolist()) - val)
    assert len(label_preservation.sample(digits, least=50, most=50)[0]) == 50


def test_mixing_is_left_out_and_said(teacher: Classifier, looked: ImageSet) -> None:
    found = label_preservation.assess(
        teacher, parse_policy([SAFE, "mixup"]), looked, draws=1, grid=(1.0,), from_training=3
    )
    assert [part.kind for part in found.parts] == ["shift"]
    assert any("`mixup` was excluded" in warning for warning in found.warnings)
    assert any("3 of the 512 images are training images" in warning for warning in found.warnings)


def test_what_cannot_be_judged_is_refused(teacher: Classifier, looked: ImageSet) -> None:
    for policy, options in [((), {}), (parse_policy([SAFE]), {"limit": 2}), (parse_policy([SAFE]), {"draws": 0})]:
        with pytest.raises(BadSpec):
            label_preservation.assess(teacher, policy, looked, **options)


# --- the two doors ----------------------------------------------------------------------------------------------------


def test_the_backend_shows_what_training_sees_and_judges_it(tmp_path: Path, digits: Splits) -> None:
    store = Store()
    policy = parse_policy([SAFE, {"kind": "rotate"}])
    found = augmentation_api.views(
        store, AugmentImages(policy, DIGITS, teacher="digits-teacher", images=4, draws=3, seed=5, batch=64)
    )
    shown = found.images.array()
    assert shown.shape == (4, 4, 1, 8, 8)
    run = Views(digits.train, policy, batch=64, seed=5)
    for place, row in enumerate(found.rows):
        assert np.array_equal(shown[place, 0], digits.train.images[row])
        for draw in range(3):
            assert np.array_equal(shown[place, 1 + draw], run.image_of(row, draw).numpy())
    assert found.labels == ("0", "1", "2", "3")
    assert found.said is not None
    assert found.said[0][0].name == "0"
    with pytest.raises(BadInput, match="0 to 1"):
        augmentation_api.views(store, AugmentImages(policy, DIGITS, rows=(10**6,)))


@pytest.mark.slow
def test_the_command_line_writes_a_sheet_and_says_the_same_as_the_backend(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(
        "- {kind: shift, pixels: 1}\n- {kind: flip, axis: vertical, probability: 1}\n"
    )
    store = Store()
    arguments = ("preview", tmp_path / "policy.yaml", "--data", "digits", "--to", tmp_path / "out")

    done = command(*arguments, "--teacher", "digits-teacher", "--json", store=store)

    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    policy = parse_policy([SAFE, UPSIDE_DOWN])
    found = augmentation_api.views(store, AugmentImages(policy, DIGITS, teacher="digits-teacher"))
    assert said["said"] == [[{"class": one.name, "confidence": one.confidence} for one in row] for row in found.said]
    judged = augmentation_api.risk(store, CheckLabels(policy, DIGITS, "digits-teacher")).report
    assert said["risk"] == flat(judged.report)
    assert said["risk"]["parts"][1]["effect"]["flip_rate"] > 0.3
    assert (tmp_path / "out/sheet.png").read_bytes()[:4] == b"\x89PNG"
    assert "RandomVerticalFlip" in (tmp_path / "out/policy.py").read_text()


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("[]", (), "no transforms"),
        ("- flop", (), "no kind 'flop'"),
        ("- flip", ("--strength", "3"), "between 0 and 2"),
        ("- {kind: colour, hue: 0.1}", (), "needs colour images"),
        ("- flip", ("--limit", "7", "--teacher", "digits-teacher"), "limit"),
        ("- flip", ("--teacher", "nobody"), "nobody"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(text: str, options: tuple[str, ...], words: str, tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(text)

    done = command(
        "preview",
        tmp_path / "policy.yaml",
        "--data",
        "digits",
        "--to",
        tmp_path / "out",
        *options,
        store=Store(),
    )

    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""
    assert not (tmp_path / "out").exists()
