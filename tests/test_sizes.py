"""How large a run's file will be, said before it is trained: to the byte, in every precision."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from smallalign_core import export
from smallalign_core.export._file import padded
from smallalign_core.runs.store import Store
from smallalign_core.service import handlers
from smallalign_core.service.requests import Estimate
from tests.conftest import Train, tiny

NETWORKS: list[dict[str, Any]] = [
    {"network": {"kind": "cnn", "width": 6, "depth": 2}},
    {"network": {"kind": "mlp", "width": 16, "depth": 2}},
    {"network": {"kind": "separable", "width": 8, "depth": 2}, "augment": ["shift"]},
    {"network": {"kind": "resnet", "width": 4, "depth": 2}},
    {"network": {"kind": "mlp", "width": 8, "depth": 1}, "bits": 4},
]


@pytest.mark.slow
@pytest.mark.parametrize("fields", NETWORKS, ids=lambda one: f"{one['network']['kind']}-{one.get('bits', '')}")
def test_the_file_has_the_size_that_was_said(
    fields: dict[str, Any], store: Store, train: Train, tmp_path: Path
) -> None:
    spec = tiny(epochs=1, **fields)
    said = handlers.estimate(store, Estimate(spec))
    run = train(epochs=1, **fields)

    assert said.onnx_bytes == said.sizes["fp32"]
    assert export.sizes_of(run, store) == said.sizes
    for precision, size in said.sizes.items():
        file = tmp_path / f"{precision}.onnx"
        export.export(run, file, store, precision=precision)
        assert file.stat().st_size == size, precision


def test_metadata_is_as_long_whatever_its_numbers_are() -> None:
    lengths = set()
    for accuracy, flagged in ((0.5, True), (0.1234567890123456, False), (-1.2345678901234567e-100, True), (0.0, False)):
        about = {"run": "é", "scores": {"val": {"accuracy": accuracy, "images": 7}}, "loss": [accuracy, flagged]}
        text = padded(about)
        assert json.loads(text) == about
        lengths.add(len(text))
    assert len(lengths) == 1
