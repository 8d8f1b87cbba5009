"""Pipes and devices where a file is asked for: their size says nothing, and reading them may never end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from smallalign_core import data, spec
from smallalign_core.errors import BadInput
from smallalign_core.export import verify
from smallalign_core.runs import imported
from smallalign_core.runs.store import Store
from smallalign_core.spec import DataSpec


@pytest.fixture(params=["pipe", "zeros"])
def endless(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "zeros":
        return Path("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


@pytest.mark.timeout(60)
def test_what_is_no_file_is_refused_at_once(endless: Path, store: Store, tmp_path: Path) -> None:
    some = tmp_path / "some.onnx"
    some.write_bytes(b"x")
    for command in (
        lambda: verify(endless, store),
        lambda: verify(some, store, proof=endless),
        lambda: spec.read(endless),
        lambda: spec.read_policy(endless),
        lambda: data.read_decisions(endless),
        lambda: data.load(DataSpec(source=str(endless)), store.data_cache),
        lambda: imported.import_onnx(endless, DataSpec(source="digits"), store),
    ):
        with pytest.raises(BadInput, match=r"cannot be read|Not a decisions file|neither a folder"):
            command()
