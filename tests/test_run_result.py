"""result.json as types: starter models, results of the first version, and damaged ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from smallalign_core.errors import BadModel
from smallalign_core.runs.result import result_of
from smallalign_core.runs.store import Run

ZOO = Path(__file__).parents[1] / "models" / "zoo"
FIRST = Path(__file__).parent / "fixtures" / "schema-1"


@pytest.mark.parametrize("folder", [*sorted(ZOO.iterdir()), FIRST], ids=lambda folder: folder.name)
def test_every_version_of_the_file_is_read(folder: Path) -> None:
    written = json.loads((folder / "result.json").read_text())
    found = result_of(Run(folder))
    assert found is not None
    assert found.params == written["params"]
    for name in ("val", "test", "test_calibrated"):
        scores = getattr(found, name)
        same = ("images", "accuracy", "accuracy_low", "accuracy_high", "nll", "ece", "recall")
        assert [getattr(scores, one) for one in same] == [written[name][one] for one in same]
        shares = list(written[name]["recall"].values())
        assert scores.macro_recall == pytest.approx(sum(shares) / len(shares))
    assert found.last_test is not None
    assert found.last_test.accuracy == written["last"]["test"]["accuracy"]


def test_a_run_without_a_result_has_none(tmp_path: Path) -> None:
    assert result_of(Run(tmp_path)) is None


@pytest.mark.parametrize(
    "damage",
    [
        {"params": "many"},
        {"test": {"accuracy": 1}},
        {"test": 3},
        {"last": {}},
        {"test": {"images": 1, "recall": {}}},
        {"per_class": {"0": {"images": "none"}}},
    ],
    ids=str,
)
def test_a_damaged_result_is_named(tmp_path: Path, damage: dict[str, Any]) -> None:
    shutil.copytree(ZOO / "digits-student", tmp_path / "run")
    file = tmp_path / "run" / "result.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | damage))
    with pytest.raises(BadModel, match=r"result\.json is damaged"):
        result_of(Run(tmp_path / "run"))
