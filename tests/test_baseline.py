"""Runs against a pinned baseline: paired on the same test images, or nothing is said."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from conftest import command, tiny

from smallalign_core import data, networks
from smallalign_core.metrics import logits_of
from smallalign_core.runs import baseline, logits
from smallalign_core.runs.store import Run, Store
from smallalign_core.service import worker
from smallalign_core.training.resolve import resolve

Taught = tuple[Store, Run, Run]


def right(run: Run, store: Store) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which test images the weights classify correctly, computed from the images."""
    test = data.load(run.data, store.data_cache).test
    return logits_of(networks.from_file(run.weights), test).argmax(1) == test.labels


def test_the_difference_is_that_of_the_images(taught: Taught) -> None:
    store, teacher, student = taught
    found = baseline.difference(student, teacher)
    assert found is not None
    each = right(student, store).astype(int) - right(teacher, store).astype(int)
    assert found.images == len(each)
    assert found.accuracy == pytest.approx(each.mean(), abs=2 / len(each))  # kept logits are in half precision
    half = 1.96 * each.std(ddof=1) / len(each) ** 0.5  # of a normal mean; the interval has two images more
    assert (found.low, found.high) == pytest.approx((each.mean() - half, each.mean() + half), abs=4 / len(each))
    back = baseline.difference(teacher, student)
    assert back is not None
    assert (back.accuracy, back.low, back.high) == pytest.approx((-found.accuracy, -found.high, -found.low))
    same = baseline.difference(student, student)
    assert same is not None
    assert same.accuracy == 0
    assert same.low < 0 < same.high


def test_nothing_is_said_of_other_images(store: Store) -> None:
    one, other, third = (
        store.create(resolve(store, tiny(epochs=1, data={"source": "digits", **more})))
        for more in ({}, {"test": 0.25}, {"noise": 0.5})
    )
    for run in (one, other, third):
        worker.execute(run, store, device="cpu")
    assert baseline.difference(other, one) is None
    assert baseline.difference(third, one) is not None, "other training labels, the same test images"
    assert baseline.difference(store.run("digits-student"), one) is None, "no logits are kept with it"
    (other.folder / logits.FILE).unlink()
    assert baseline.difference(other, other) is None


def test_the_command_and_the_page_say_the_same(taught: Taught, monkeypatch: pytest.MonkeyPatch, shown: Any) -> None:
    store, teacher, student = taught
    done = command("runs", "list", "--baseline", teacher.id, "--json", store=store)
    assert done.returncode == 0, done.stderr
    said = {row["id"]: row["against_baseline"] for row in json.loads(done.stdout)["runs"]}
    assert said[teacher.id] is None
    found = baseline.difference(student, teacher)
    assert found is not None
    assert said[student.id]["low"] == found.low
    assert "against_baseline" not in json.loads(command("runs", "list", "--json", store=store).stdout)["runs"][0]
    monkeypatch.setenv("COLUMNS", "250")
    assert str(found) in command("runs", "list", "--baseline", teacher.id, store=store).stdout
    assert command("runs", "list", "--baseline", "none", store=store).returncode == 2

    monkeypatch.setenv("SMALLALIGN_STORE", str(store.root))
    app = shown("runs", baseline=teacher.name)
    table = app.dataframe[0].value
    column = dict(zip(table["Run"], table["Against baseline"], strict=True))
    assert sorted(value for value in column.values() if value) == sorted(["baseline", str(found)])
    assert "Against baseline" not in shown("runs").dataframe[0].value
