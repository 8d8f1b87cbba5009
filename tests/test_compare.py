"""Comparison against hand counts and an independent test."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom, entropy
from sklearn.metrics import confusion_matrix

from smallalign_core import compare
from smallalign_core.data import Splits
from smallalign_core.store import Run, Store


def test_counts_and_tests_by_hand(digits: Splits) -> None:
    draw = np.random.default_rng(0)
    images = digits.test
    teacher, student = (draw.normal(size=(len(images), 10)).astype(np.float32) for _ in range(2))
    rows = np.arange(len(images))
    teacher[rows[:300], images.labels[:300]] += 8
    student[rows[:260], images.labels[:260]] += 8
    found = compare.of_logits(teacher, student, images)

    right_t, right_s = (logits.argmax(1) == images.labels for logits in (teacher, student))
    assert found.both_right == (right_t & right_s).sum()
    assert found.teacher_only == (right_t & ~right_s).sum()
    assert found.student_only == (~right_t & right_s).sum()
    assert found.both_right + found.teacher_only + found.student_only + found.both_wrong == len(images)
    assert found.agreement == (teacher.argmax(1) == student.argmax(1)).mean()
    less, both = min(found.teacher_only, found.student_only), found.teacher_only + found.student_only
    assert found.mcnemar_p == pytest.approx(min(1, 2 * binom.cdf(less, both, 0.5)))
    p, q = (np.exp(x - x.max(1, keepdims=True)) for x in (student.astype(float), teacher.astype(float)))
    assert found.kl == pytest.approx(entropy(q, p, axis=1).mean())
    assert found.student_confusion == confusion_matrix(images.labels, student.argmax(1)).tolist()
    assert [d.kl for d in found.disagreements] == sorted((d.kl for d in found.disagreements), reverse=True)
    for shown in found.disagreements[:20]:
        assert shown.teacher[0][0] == images.classes[teacher[shown.row].argmax()]
        assert shown.teacher[0][0] != shown.student[0][0]


def test_a_model_agrees_with_itself(taught: tuple[Store, Run, Run]) -> None:
    store, teacher, _ = taught
    found = compare.compare(teacher, teacher, store)
    assert (found.agreement, found.mcnemar_p, found.kl, found.disagreement_count) == (1.0, 1.0, 0.0, 0)


def test_looks_at_test_are_counted_but_not_at_validation(taught: tuple[Store, Run, Run]) -> None:
    store, teacher, student = taught
    fingerprint = student.spec.data.fingerprint or ""
    before = store.test_looks(fingerprint)
    compare.compare(teacher, student, store, split="val")
    assert store.test_looks(fingerprint) == before
    compare.compare(teacher, student, store)
    assert store.test_looks(fingerprint) == before + 1
