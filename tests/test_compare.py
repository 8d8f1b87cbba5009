"""Comparison against hand counts and independent tests: figures, intervals, kinds, calibration, and what is kept."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import command
from scipy.stats import binom, entropy
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, confusion_matrix, recall_score

from smallalign_core import data, metrics
from smallalign_core.analysis import compare
from smallalign_core.data import ImageSet, Splits
from smallalign_core.errors import BadInput
from smallalign_core.runs.store import Run, Store
from smallalign_core.service import doctor


@pytest.fixture(scope="module")
def said(digits: Splits) -> tuple[np.ndarray, np.ndarray]:
    """Logits of two made-up classifiers on the digits' test images; neither is perfect, and they differ."""
    draw, images = np.random.default_rng(0), digits.test
    teacher, student = (draw.normal(size=(len(images), 10)).astype(np.float32) for _ in range(2))
    rows = np.arange(len(images))
    teacher[rows[:300], images.labels[:300]] += 8
    student[rows[:260], images.labels[:260]] += 8
    student[rows[310:330]] = teacher[rows[310:330]]  # the same mistakes
    return teacher, student


def test_counts_and_tests_by_hand(said: tuple[np.ndarray, np.ndarray], digits: Splits) -> None:
    (teacher, student), images = said, digits.test
    found = compare.of_logits(teacher, student, images)

    right_t, right_s = (logits.argmax(1) == images.labels for logits in said)
    same = teacher.argmax(1) == student.argmax(1)
    assert found.both_right == (right_t & right_s).sum()
    assert found.teacher_only == (right_t & ~right_s).sum() == found.counts["regressions"]
    assert found.student_only == (~right_t & right_s).sum() == found.counts["fixes"]
    assert found.inherited == (~right_t & same).sum() == found.counts["inherited"] > 0
    assert found.both_right + found.teacher_only + found.student_only + found.both_wrong == len(images)
    assert found.agreement == same.mean()
    less, both = min(found.teacher_only, found.student_only), found.teacher_only + found.student_only
    assert found.mcnemar_p == pytest.approx(min(1, 2 * binom.cdf(less, both, 0.5)))
    p, q = (np.exp(x - x.max(1, keepdims=True)) for x in (student.astype(float), teacher.astype(float)))
    assert found.kl == pytest.approx(entropy(q, p, axis=1).mean())
    assert found.student_confusion == confusion_matrix(images.labels, student.argmax(1)).tolist()
    assert found.accuracy_change == pytest.approx(right_s.mean() - right_t.mean())


def test_cases_are_of_their_kind_and_sorted_by_kl(said: tuple[np.ndarray, np.ndarray], digits: Splits) -> None:
    images = digits.test
    found = compare.of_logits(*said, images)

    for kind, cases in found.cases.items():
        assert cases, kind
        assert len(cases) == min(100, found.counts[kind])
        assert [one.kl for one in cases] == sorted((one.kl for one in cases), reverse=True)
        for one in cases:
            assert one.label == images.classes[images.labels[one.row]]
            teacher, student = (logits[one.row] for logits in said)
            assert [name for name, _ in one.teacher] == [images.classes[k] for k in np.argsort(-teacher)[:3]]
            assert one.student[0][1] == pytest.approx(np.exp(student.max()) / np.exp(student).sum(), rel=1e-4)
            right = (one.teacher[0][0] == one.label, one.student[0][0] == one.label)
            assert right == {"regressions": (True, False), "fixes": (False, True)}.get(kind, (False, False))
            assert (one.teacher[0][0] == one.student[0][0]) == (kind == "inherited")


def test_the_images_of_a_cell_of_a_class_and_of_a_kind(said: tuple[np.ndarray, np.ndarray], digits: Splits) -> None:
    images = digits.test
    pair, found = compare.Pair(*said, images.labels, images.classes), compare.of_logits(*said, images)

    for who, table in (("teacher", found.teacher_confusion), ("student", found.student_confusion)):
        for true in range(10):
            for predicted in range(10):
                assert len(pair.rows(cell=(who, true, predicted))) == table[true][predicted]
    assert len(pair.rows()) == len(images)
    assert {images.labels[row] for row in pair.rows(kinds=compare.DIFFER, label=3)} == {3}
    differ = pair.rows(kinds=compare.DIFFER)
    assert len(differ) == round((1 - found.agreement) * len(images))
    assert (np.diff(pair.kl[differ]) <= 0).all()


def test_recall_changes_are_those_of_scikit_learn(said: tuple[np.ndarray, np.ndarray], digits: Splits) -> None:
    found = compare.of_logits(*said, digits.test)

    teacher, student = (recall_score(digits.test.labels, logits.argmax(1), average=None) for logits in said)
    for at, one in enumerate(found.recall_change):
        assert (one.teacher, one.student) == (pytest.approx(teacher[at]), pytest.approx(student[at]))
        assert one.change == pytest.approx(student[at] - teacher[at])
        assert one.low < one.change < one.high


def test_a_chart_of_many_classes_shows_those_that_changed_most() -> None:
    changes = [compare.RecallChange(str(n), n % 7, None, None, (n * 37 % 100 - 50) / 100, 0.0, 0.0) for n in range(100)]
    shown = compare.most_changed(changes, 12)

    assert len(shown) == 12
    least = min(abs(one.change) for one in shown)
    assert all(abs(one.change) <= least for one in changes if one not in shown and one.images)
    assert all(one.images for one in shown)
    assert [int(one.name) for one in shown] == sorted(int(one.name) for one in shown)


def test_the_paired_interval_and_test_are_those_of_an_independent_implementation() -> None:
    """Complete response before and after therapy (Cavo et al., 2012), by R's contingencytables."""
    change, low, high = metrics.paired_difference(16, 6, 161)  # of 161: 59, 6, 16, 80
    classes, labels = ("a", "b"), np.zeros(161, np.int64)
    logits = np.tile(np.float32([1, 0]), (161, 1))
    before, after = logits.copy(), logits.copy()
    before[65:] = before[65:, ::-1]  # 59 + 6 right
    after[np.r_[59:65, 81:161]] = after[np.r_[59:65, 81:161], ::-1]  # 59 + 16 right
    images = ImageSet(np.zeros((161, 1, 2, 2), np.uint8), labels, np.zeros(161, np.uint64), classes)
    found = compare.of_logits(after, before, images)

    assert (round(change, 4), round(low, 4), round(high, 4)) == (-0.0621, -0.1195, -0.0032)
    assert (found.both_right, found.student_only, found.teacher_only, found.both_wrong) == (59, 6, 16, 80)
    assert (found.accuracy_change, found.accuracy_change_low, found.accuracy_change_high) == (change, low, high)
    assert round(found.mcnemar_p, 6) == 0.052479


def test_the_paired_interval_holds_what_it_promises() -> None:
    draw = np.random.default_rng(0)
    p, total = (0.75, 0.12, 0.05, 0.08), 60  # both, first only, second only, neither
    tables = draw.multinomial(total, p, size=4000)
    inside = [
        low <= p[2] - p[1] <= high
        for _, low, high in (metrics.paired_difference(b, c, total) for _, b, c, _ in tables.tolist())
    ]

    assert 0.94 < np.mean(inside) < 0.98


def test_brier_and_reliability_agree_with_scikit_learn(said: tuple[np.ndarray, np.ndarray], digits: Splits) -> None:
    logits, labels = said[0], digits.test.labels
    p = np.exp(metrics.log_softmax(logits, 2.5))
    scores = metrics.score(logits, labels, digits.classes, 2.5)
    bins = metrics.reliability(logits, labels, 2.5)

    assert scores.brier == pytest.approx(brier_score_loss(labels, p, scale_by_half=False, labels=range(10)))
    accuracy, confidence = calibration_curve(p.argmax(1) == labels, p.max(1), n_bins=15)
    assert [one.accuracy for one in bins] == pytest.approx(accuracy)
    assert [one.confidence for one in bins] == pytest.approx(confidence)
    gaps = sum(one.images * abs(one.accuracy - one.confidence) for one in bins) / len(labels)
    assert gaps == pytest.approx(scores.ece)


def test_a_model_agrees_with_itself(taught: tuple[Store, Run, Run]) -> None:
    store, teacher, _ = taught
    found = compare.compare(teacher, teacher, store)

    assert (found.agreement, found.mcnemar_p, found.kl, found.accuracy_change) == (1.0, 1.0, 0.0, 0.0)
    assert sum(found.counts.values()) == found.inherited == found.both_wrong


def test_temperatures_are_fitted_on_validation_and_applied_to_what_is_shown(taught: tuple[Store, Run, Run]) -> None:
    store, teacher, student = taught
    splits = data.load(student.data, store.data_cache)
    found = compare.compare(teacher, student, store)

    for run, calibration in ((teacher, found.teacher_calibration), (student, found.student_calibration)):
        held = compare.split_logits(run, splits, "val", store)
        assert calibration.temperature == metrics.fit_temperature(held, splits.val.labels)
        shown = compare.split_logits(run, splits, "test", store)
        assert calibration.temperature != metrics.fit_temperature(shown, splits.test.labels)
        again = metrics.score(shown, splits.test.labels, splits.classes, calibration.temperature)
        assert calibration.scores == again


def test_looks_at_test_are_counted_once_a_comparison_but_not_at_validation(taught: tuple[Store, Run, Run]) -> None:
    store, teacher, student = taught
    fingerprint = student.spec.data.fingerprint or ""
    zoo = [store.run(name) for name in ("digits-teacher", "digits-student")]
    before = store.test_looks(fingerprint)

    compare.compare(teacher, student, store, split="val")
    compare.compare_once(teacher, [student, *zoo], store, split="val")
    assert store.test_looks(fingerprint) == before

    three = compare.compare_once(teacher, [student, *zoo], store)
    assert store.test_looks(fingerprint) == before + 1
    assert compare.compare_once(teacher, [student, *zoo], store) == three
    assert store.test_looks(fingerprint) == before + 1
    assert [one.student_id for one in three] == [student.id, *(run.id for run in zoo)]


def test_kept_answers_that_are_damaged_are_asked_again(taught: tuple[Store, Run, Run]) -> None:
    store, teacher, student = taught
    splits = data.load(student.data, store.data_cache)
    compare.compare_once(teacher, [student], store, split="val")
    (kept,) = compare.folder(store).glob(f"{student.id}*-val.npy")
    whole = np.load(kept)
    kept.write_bytes(kept.read_bytes()[:300])

    assert np.array_equal(compare.split_logits(student, splits, "val", store), whole)
    for file in compare.folder(store).glob("*-val-*.json"):
        file.write_text("{")
    assert compare.compare_once(teacher, [student], store, split="val")[0].student_id == student.id


def test_what_is_kept_of_runs_that_are_there_is_not_left_over(taught: tuple[Store, Run, Run]) -> None:
    store, teacher, student = taught
    compare.compare_once(teacher, [student], store, split="val")
    kept = set(compare.folder(store).iterdir())
    assert {file.suffix for file in kept} == {".npy", ".json"}

    assert not kept & set(doctor._left(store))
    stranger = compare.folder(store) / f"{'0' * 16}.12345678-aaaaaaaaaaaa-val.npy"
    stranger.write_bytes(b"")
    assert set(doctor._left(store)) & {*kept, stranger} == {stranger}
    stranger.unlink()


def test_what_was_not_compared_says_so(taught: tuple[Store, Run, Run], tmp_path) -> None:
    _, teacher, student = taught
    empty = Store(tmp_path / "models")

    with pytest.raises(BadInput, match="not been compared yet"):
        compare.pair(teacher, student, data.load(student.data, empty.data_cache), empty, "val")
    with pytest.raises(BadInput, match="different runs"):
        compare.compare_once(teacher, [student, student], empty)


@pytest.mark.slow
def test_the_command_line_compares_three_and_keeps_its_keys(taught: tuple[Store, Run, Run]) -> None:
    store, teacher, student = taught
    done = command("compare", teacher.id, student.id, "digits-student", "--split", "val", "--json", store=store)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)

    assert {"agreement", "both_right", "teacher_only", "student_only", "both_wrong", "mcnemar_p", "kl"} <= found.keys()
    assert [one["images"] for one in found["others"]] == [found["images"]]
    text = command("compare", teacher.id, student.id, "--split", "val", store=store).stdout
    assert "exact McNemar test" in text
    assert "fitted on validation" in text
