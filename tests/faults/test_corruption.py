"""The doctor finds every corruption: 200 of them, planted in every kind of file that holds data."""

from __future__ import annotations

import io
import random
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import Train, command
from PIL import Image
from test_teachers import graph

from smallalign_core import data, export
from smallalign_core.analysis import compare
from smallalign_core.runs import uploads
from smallalign_core.runs.store import Run, Store
from smallalign_core.service import doctor, integrity

PLANTED = 200
KINDS = ("flip", "truncate", "delete", "empty")
MAY_GO = ("cache", "exports", "uploads", "decisions")
"""What people may delete at any moment, as the logits of a run: that a file of these is not there is no corruption."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with everything that is kept."""
    folder = tmp_path_factory.mktemp("whole")
    store = Store(folder / "models")
    (folder / "m.onnx").write_bytes(graph(names=list("0123456789")))
    spec = folder / "spec.yaml"
    spec.write_text(
        "data: digits\nnetwork: {kind: cnn, width: 4, depth: 2}\nteacher: digits-teacher\nepochs: 2\n"
        "augment: [{kind: shift, pixels: 1}]\nviews: 2\n"
    )
    for given in (
        ["train", spec],
        ["train", spec, "--set", "seed=1"],
        ["import", folder / "m.onnx", "--data", "digits"],
        ["submit", spec, "--set", "seed=2"],
    ):
        assert command(*given, store=store).returncode == 0
    first, second = (run for run in store.runs() if run.finished and run.imported is None)
    compare.compare(first, second, store, split="val")
    export.bundle(first, store)
    assert command("runs", "keep", first.id, "--as", "kept-one", store=store).returncode == 0
    data.Decisions("digits", {1: data.Decision("drop")}).write(folder_of(store, "decisions") / "digits.json")
    uploads.keep(store, "some.zip", zipped())
    return store


def folder_of(store: Store, name: str) -> Path:
    (store.root / name).mkdir(exist_ok=True)
    return store.root / name


def zipped() -> bytes:
    """A dataset as users upload it."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for number in range(6):
            image = io.BytesIO()
            Image.fromarray(np.full((4, 4), 40 * number, np.uint8)).save(image, "PNG")
            archive.writestr(f"{'ab'[number % 2]}/{number}.png", image.getvalue())
    return stream.getvalue()


def planted(store: Store, seed: int) -> tuple[str, Path, bytes]:
    """Spoil one file; returns how, which, and what it held."""
    draw = random.Random(seed)
    files = sorted(
        file
        for file in integrity._walk(store.root)
        if file.relative_to(store.root).parts[0] != "policies" and integrity._holds_data(file.name)
    )
    by_kind: dict[str, list[Path]] = {}
    for file in files:  # every kind of file as often, however many there are of it
        by_kind.setdefault(f"{file.relative_to(store.root).parts[0]}/{file.suffix}", []).append(file)
    file, kind = draw.choice(by_kind[draw.choice(sorted(by_kind))]), draw.choice(KINDS)
    held = file.read_bytes()
    content = bytearray(held)
    if kind == "delete" and (file.relative_to(store.root).parts[0] in MAY_GO or file.name == "logits.safetensors"):
        kind = "flip"
    if kind == "flip":
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    elif kind == "truncate":
        del content[draw.randrange(len(content)) :]
    if kind == "delete":
        file.unlink()
    else:
        file.write_bytes(b"" if kind == "empty" else content)
    return kind, file, held


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_doctor_finds_every_one_of_200(whole: Store) -> None:
    def wrong(store: Store) -> list[str]:
        return [f"{one.name}: {one.found}" for one in (*doctor._runs(store), *doctor._files(store)) if not one.ok]

    assert wrong(whole) == [], "a whole store has nothing to mend"
    missed, seen = [], Counter[str]()
    for seed in range(PLANTED):
        kind, file, content = planted(whole, seed)
        seen[kind] += 1
        if not wrong(whole):
            missed.append((seed, kind, file))
        file.write_bytes(content)
    assert not missed
    assert set(seen) == set(KINDS)
    assert wrong(whole) == []


def test_a_lost_spec_or_result_is_found(train: Train, store: Store) -> None:
    run = train()
    assert all(check.ok for check in (*doctor._runs(store), *doctor._files(store)))
    kept = (run.folder / "result.json").read_bytes()
    (run.folder / "result.json").unlink()
    assert any("its result is missing" in check.found for check in doctor._runs(store))
    (run.folder / "result.json").write_bytes(kept)
    (run.folder / "spec.json").unlink()
    assert any("its spec.json is missing" in check.found for check in doctor._files(store))


def test_a_flipped_byte_in_logits_is_found(train: Train, store: Store) -> None:
    run = train()
    file = run.folder / "logits.safetensors"
    content = np.frombuffer(file.read_bytes(), np.uint8).copy()
    content[-1] ^= 1
    file.write_bytes(content.tobytes())
    assert any("logits.safetensors is damaged" in check.found for check in doctor._runs(store))


def test_events_cut_between_two_lines_are_found(train: Train, store: Store) -> None:
    """Every line that is left is whole; only the end tells."""
    run = train()
    events = run.folder / "events.jsonl"
    lines = events.read_bytes().splitlines(keepends=True)
    assert not integrity.of_run(run)
    for kept in (1, len(lines) - 1):
        events.write_bytes(b"".join(lines[:kept]))
        assert "events.jsonl lacks its end" in integrity.of_run(Run(run.folder))
