"""What leaves this machine names no folder of it, and is verified elsewhere all the same."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from smallalign_core import data, export
from smallalign_core.cli._main import main
from smallalign_core.data import Decision, Decisions
from smallalign_core.errors import BadData
from smallalign_core.export import _push
from smallalign_core.runs.store import Run, Store
from smallalign_core.spec import parse_data
from smallalign_core.system import usercode

USER = Path(__file__).parent / "fixtures" / "user"


@pytest.fixture(autouse=True)
def list_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(usercode.TRUSTED, str(tmp_path / "trusted"))
    monkeypatch.setattr(usercode, "_ALLOWED", set())
    monkeypatch.setattr(usercode, "_MODULES", {})


def pictures(folder: Path, names: list[str]) -> None:
    draw = np.random.default_rng(0)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / name)


def trained(store: Store, folder: Path, **fields: Any) -> Run:
    file = folder / "spec.yaml"
    file.write_text(json.dumps({"network": "mlp", "epochs": 1, "batch": 8, **fields}))
    assert main(["train", str(file), "--store", str(store.root)]) == 0
    (run,) = store.runs()
    return run


def leaving(run: Run, store: Store) -> dict[str, bytes]:
    """Every file of a download and of a push."""
    report = export.bundle(run, store)
    with zipfile.ZipFile(export.bundle_folder(run, store) / "model.zip") as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    return {**files, **{f"push/{name}": content for name, content in _push.files_of(run, store, report, "a/b").items()}}


def test_tables_and_decisions_are_named_without_their_folders(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "home" / "photos"
    names = [f"{label}/{number // 2}_{number % 2}.png" for label in "ab" for number in range(40)]
    pictures(place, names)
    table = "filename,group\n" + "".join(f"{name},{name[0]}{name.split('/')[1].split('_')[0]}\n" for name in names)
    (place / "people.csv").write_text(table)
    shutil.copy(USER / "net.py", tmp_path / "home" / "net.py")
    source = {"source": str(place), "groups": str(place / "people.csv")}
    dropped = int(data.load(parse_data(source), store.data_cache).train.ids[0])
    Decisions(str(place), {dropped: Decision("drop")}).write(tmp_path / "home" / "clean.json")
    spec = source | {"decisions": str(tmp_path / "home" / "clean.json")}
    run = trained(store, tmp_path / "home", data=spec, network={"kind": "python", "file": "net.py", "call": "make"})
    files = leaving(run, store)
    assert [name for name, content in files.items() if str(tmp_path).encode() in content] == []
    assert b"people.csv" in files["model.onnx"]

    (tmp_path / "elsewhere").mkdir()
    shutil.copytree(place, tmp_path / "elsewhere" / "renamed")
    shutil.rmtree(place)
    (tmp_path / "elsewhere" / "m.onnx").write_bytes(files["model.onnx"])
    monkeypatch.chdir(tmp_path / "elsewhere")
    other = Store(tmp_path / "elsewhere" / "models")
    with pytest.raises(BadData, match=r"there is no such file \(given: [0-9a-f]{16}\.json"):
        export.verify(Path("m.onnx"), other, data_source="renamed")
    shutil.copy(str(run.data.decisions), ".")  # out of the other machine's store
    found = export.verify(Path("m.onnx"), other, data_source="renamed")
    assert found["ok"]
    assert found["same_images"]
    Path("renamed/people.csv").unlink()
    with pytest.raises(BadData, match=r"table of groups does not exist.*people\.csv"):
        export.verify(Path("m.onnx"), other, data_source="renamed")


def test_a_reader_is_found_beside_the_data_and_only_by_its_name(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "home" / "place"
    pictures(place / "pictures", [f"{label}_{number:02}.png" for label in "ab" for number in range(30)])
    (place / "test.txt").write_text("a_28.png b_28.png a_29.png b_29.png")
    shutil.copy(USER / "reader.py", place / "reader.py")
    run = trained(store, place, data={"source": str(place), "reader": "reader.py"})
    files = leaving(run, store)
    assert [name for name, content in files.items() if str(tmp_path).encode() in content] == []

    (tmp_path / "elsewhere").mkdir()
    place.rename(tmp_path / "elsewhere" / "renamed")
    (tmp_path / "elsewhere" / "m.onnx").write_bytes(files["model.onnx"])
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = export.verify(Path("m.onnx"), Store(tmp_path / "elsewhere" / "models"), data_source="renamed")
    assert found["ok"]
    assert found["same_images"]


def test_of_a_spec_names_stay_and_patterns_too() -> None:
    given = {"source": "/x/photos", "unlabeled": "/x/more.zip", "decisions": "/x/d.json", "groups": "/x/g.csv"}
    found = parse_data(given | {"reader": "/x/r.py"}).without_folders()
    assert found.model_dump(exclude_defaults=True, include=set(given)) == {
        "source": "photos",
        "unlabeled": "more.zip",
        "decisions": "d.json",
        "groups": "g.csv",
    }
    assert found.reader is not None
    assert found.reader.file == "r.py"
    assert parse_data({"source": "digits", "groups": "a/{group}_*"}).without_folders().groups == "a/{group}_*"
