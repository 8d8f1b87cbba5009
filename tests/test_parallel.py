"""Several processes train as one: real processes, started by torchrun, that talk over gloo."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Train, program, tiny
from processes import python, run

from smallalign_core.augment import Views
from smallalign_core.errors import BadSpec
from smallalign_core.runs.store import Run, Store, _take
from smallalign_core.spec import to_yaml
from smallalign_core.training.distributed import World


def torchrun(*arguments: object, processes: int = 2) -> subprocess.CompletedProcess[str]:
    """The command line in several processes, as a user would start it."""
    launcher = python("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}")
    return run([*launcher, "-m", "smallalign_core", *arguments])


def curve(run: Run) -> list[tuple[float, float]]:
    return [(event["nll"], event["ece"]) for event in run.events("epoch")]


@pytest.fixture
def spec(tmp_path: Path, train: Train) -> dict[str, Any]:
    """No batch norm: it sees each share on its own, unless on GPUs."""
    return {
        "network": {"kind": "mlp", "width": 24},
        "teacher": train().id,
        "augment": ["shift", "mixup"],
        "batch": 64,
        "epochs": 4,
    }


@pytest.mark.slow
def test_two_processes_have_the_loss_curve_of_one(store: Store, spec: dict[str, Any], tmp_path: Path) -> None:
    alone = json.loads(told(program("train", written(spec, tmp_path), "--json", store=store)))
    one = store.run(alone["id"])
    store_of_two = Store(tmp_path / "two")
    _take.run(store.run(spec["teacher"]), store_of_two)
    found = torchrun("train", written(spec, tmp_path), "--json", "--store", store_of_two.root)
    both = json.loads(told(found))
    assert both["id"] == alone["id"]
    assert (alone["processes"], both["processes"]) == (1, 2)
    assert len(curve(one)) == 4
    for first, second in zip(curve(one), curve(store_of_two.run(both["id"])), strict=True):
        assert second == pytest.approx(first, rel=2e-3, abs=2e-3)


@pytest.mark.slow
def test_a_batch_that_cannot_be_shared_is_one_sentence(store: Store, tmp_path: Path) -> None:
    found = torchrun("train", written({"batch": 63}, tmp_path), "--store", store.root)
    assert found.returncode != 0
    assert "cannot be divided evenly" in found.stderr
    assert "given: batch 63, 2 processes" in found.stderr


def test_shares_make_up_the_batch(digits: Any) -> None:
    for policy in ((), tiny(augment=["shift", "noise"]).augment, tiny(augment=["shift", "mixup"]).augment):
        whole = Views(digits.train, policy, batch=60, seed=5)(3)
        parts = [
            Views(digits.train, policy, batch=60, seed=5, share=World(rank, 3).local_slice(60))(3) for rank in range(3)
        ]
        assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
        assert torch.equal(torch.cat([part.labels for part in parts]), whole.labels)
        assert torch.equal(torch.cat([part.rows for part in parts]), whole.rows)
    with pytest.raises(BadSpec, match="multiple of 3"):
        World(0, 3).local_slice(64)


def written(fields: dict[str, Any], folder: Path) -> Path:
    file = folder / "spec.yaml"
    file.write_text(to_yaml(tiny(**fields)))
    return file


def told(finished: subprocess.CompletedProcess[str]) -> str:
    assert finished.returncode == 0, finished.stderr[-2000:]
    return finished.stdout
