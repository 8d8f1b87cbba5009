"""Which precision `auto` means: measured, remembered, and never a surprise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import Train, tiny

from smallalign_core.data import Splits
from smallalign_core.runs.store import Store
from smallalign_core.system.files import read_json
from smallalign_core.training import precision_tuning
from smallalign_core.training.resolve import resolve

CPU = torch.device("cpu")


def test_small_networks_are_not_measured(store: Store, digits: Splits) -> None:
    assert precision_tuning.precision(tiny(), store, digits, CPU) == "fp32"
    (kept,) = read_json(store.root / "cache" / "precision.json").values()
    assert kept["macs"] < precision_tuning.WORTH_MACS
    assert "bf16" not in kept, "no step was timed"


def test_what_was_asked_for_is_taken(store: Store, digits: Splits) -> None:
    assert precision_tuning.precision(tiny(precision="bf16"), store, digits, CPU) == "bf16"


@pytest.mark.parametrize(("seconds", "chosen"), [(0.5, "bf16"), (0.95, "fp32"), (2.0, "fp32")])
def test_the_clearly_faster_is_taken_once_and_remembered(
    seconds: float, chosen: str, store: Store, digits: Splits, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clearly: noise must not decide. One measurement serves every seed, length and dataset of the same shape."""
    raced: list[list[str]] = []

    def race(trainings: dict[str, Any]) -> dict[str, float]:
        raced.append([training.students[0].spec.precision for training in trainings.values()])
        return {"fp32": 1.0, "bf16": seconds}

    spec = tiny(teacher=train().id)
    monkeypatch.setattr(precision_tuning, "race", race)
    monkeypatch.setattr(precision_tuning, "WORTH_MACS", 1)
    assert precision_tuning.precision(spec, store, digits, CPU) == chosen
    assert raced == [["fp32", "bf16"]]
    again = spec.model_copy(update={"seed": 7, "epochs": 90})
    assert resolve(store, again, "cpu").precision == chosen
    assert len(raced) == 1
    assert precision_tuning.precision(spec.model_copy(update={"batch": 64}), store, digits, CPU) == chosen
    assert len(raced) == 2, "another batch is another question"


def test_a_race_times_real_steps(store: Store, digits: Splits) -> None:
    from smallalign_core.training.loop import Training

    trainings = {name: Training([tiny(precision=name)], digits) for name in ("fp32", "bf16")}
    seconds = precision_tuning.race(trainings)
    assert all(0 < took < 5 for took in seconds.values())
    assert {training.step for training in trainings.values()} == {1 + precision_tuning.STEPS}
