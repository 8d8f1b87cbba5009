"""Files for other runtimes: PyTorch's predictions or no file, a checksum, limits in words, and snippets that run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import processes
import pytest
import torch
from conftest import Show, command, texts
from PIL import Image

from pages.ui.app import context
from smallalign_core import data, export, networks
from smallalign_core.errors import BadInput, BadModel, MissingExtra, WorkFailed
from smallalign_core.export import targets
from smallalign_core.export.targets import _export, _process
from smallalign_core.runs.store import Store
from smallalign_core.service import handlers
from smallalign_core.service.requests import Export, ExportTarget
from smallalign_core.spec.target import TARGETS, Target, target_of
from smallalign_core.system import extras, sandbox

RUN = "digits-student"
ALL = [
    pytest.param("openvino"),
    pytest.param("executorch", marks=pytest.mark.slow),  # its converter alone takes ten seconds to import
]


def here(name: str) -> Target:
    """A target whose runtime is installed; the test is skipped by name where it is not."""
    target = TARGETS[name]
    if not extras.installed(target.package):
        pytest.skip(f"{target.title} is not installed here: {extras.command(target.package)}")
    return target


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("targets") / "models")


def made(name: str, store: Store) -> tuple[Target, Path]:
    """A target and its file of the zoo's student, written once."""
    target = here(name)
    file = store.root.parent / f"student{target.endings[0]}"
    if not file.exists():
        export.export(store.run(RUN), file, store)
    return target, file


# --- without a runtime ------------------------------------------------------------------------------------------------


def test_a_trailer_holds_its_metadata_and_shows_every_change() -> None:
    told = {"run": "a", "words": "-- ends a comment -->", "number": 0.25}
    content = targets.with_trailer(b"<net/>", told)
    assert content.startswith(b"<net/>\n<!-- ")
    assert json.loads(targets.read_trailer(content) or "") == told
    assert content.count(b"-->") == 2, "a comment in XML ends where it should"
    for at in range(len(content)):
        changed = bytearray(content)
        changed[at] ^= 1
        assert targets.read_trailer(bytes(changed)) is None, at
    assert targets.read_trailer(content[:-1]) is None
    assert targets.read_trailer(b"") is None
    assert targets.read_trailer(content + content) is None or json.loads(targets.read_trailer(content + content) or "")


def test_the_ending_names_the_target() -> None:
    assert {target_of(Path(name)) and target_of(Path(name)).name for name in ("a.xml", "a.pte", "a.onnx", "a.bin")} == {  # type: ignore[union-attr]
        *("openvino", "executorch"),
        None,
    }
    assert {extras.EXTRA_OF[one.package] for one in TARGETS.values()} == set(TARGETS)
    assert all(one.limits for one in TARGETS.values())


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_missing_or_impossible_is_one_sentence(
    name: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = TARGETS[name]
    to = tmp_path / f"s{target.endings[0]}"
    monkeypatch.setattr(extras, "installed", lambda package: package != target.package)
    done = command("export", RUN, "--to", to, store=store)
    assert done.returncode == 2
    assert done.stderr.strip().endswith(f"which is not installed. Run `{extras.command(target.package)}`.")
    with pytest.raises(MissingExtra):
        export.export(store.run(RUN), to, store)
    monkeypatch.setattr(extras, "installed", lambda _: True)
    done = command("export", RUN, "--to", to, "--precision", "int8", store=store)
    assert done.returncode == 2
    assert f"{target.title} files are written in fp32 only" in done.stderr
    assert not list(tmp_path.glob("s.*"))


def test_a_file_that_belongs_to_something_else_is_not_overwritten(store: Store, tmp_path: Path) -> None:
    (tmp_path / "student.bin").write_text("mine")
    with pytest.raises(BadInput, match=r"would overwrite a file .*student\.bin"):
        targets.export_target(store.run(RUN), tmp_path / "student.xml", store, TARGETS["openvino"])
    with pytest.raises(BadInput, match="folder does not exist"):
        targets.export_target(store.run(RUN), tmp_path / "no" / "student.xml", store, TARGETS["openvino"])
    assert (tmp_path / "student.bin").read_text() == "mine"


@pytest.mark.parametrize("ending", [".xml", ".pte"])
def test_only_files_of_ours_are_verified(ending: str, store: Store, tmp_path: Path) -> None:
    file = tmp_path / f"other{ending}"
    file.write_bytes(b"<net/>")
    (tmp_path / "other.bin").write_bytes(b"")
    done = command("verify", file, store=store)
    assert done.returncode == 2
    assert "not an export of SmallAlign" in done.stderr


def test_an_openvino_file_without_its_weights_is_named(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "alone.xml"
    file.write_bytes(b"<net/>")
    with pytest.raises(BadInput, match=r"other half is missing.*alone\.bin"):
        export.verify(file, store)


def test_a_converter_that_dies_or_never_ends_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_process, "WALL", 0.001)
    with pytest.raises(WorkFailed, match="more than 0 seconds"):
        _process.convert(TARGETS["openvino"], b"")
    monkeypatch.setattr(_process, "WALL", 600.0)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(WorkFailed, match="exit code 1"):
        _process.convert(TARGETS["openvino"], b"")


# --- with it ----------------------------------------------------------------------------------------------------------


def answered(target: Target, file: Path, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Logits by the runtime as its documentation calls it, without anything of ours."""
    code = {
        "openvino": (
            "import sys; sys.modules['openvino_telemetry'] = None; import openvino\n"
            "model = openvino.Core().compile_model(FILE, 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})\n"
            "found = [model(images)['logits']]\n"
        ),
        "executorch": (
            "import torch; from executorch.runtime import Runtime\n"
            "method = Runtime.get().load_program(FILE).load_method('forward')\n"
            "found = [method.execute([torch.from_numpy(one[None].copy())])[0] for one in images]\n"
        ),
    }[target.name]
    start = f"import numpy as np\nFILE = {str(file)!r}\nimages = np.load({str(file) + '.npy'!r})\n"
    np.save(f"{file}.npy", images)
    done = processes.run(
        [sys.executable, "-c", f"{start}{code}np.save({str(file) + '.out.npy'!r}, np.concatenate(found))"]
    )
    assert done.returncode == 0, done.stderr
    return np.load(f"{file}.out.npy")


@pytest.mark.parametrize("name", ALL)
def test_a_file_makes_the_networks_predictions(name: str, shop: Store) -> None:
    target, file = made(name, shop)
    run = shop.run(RUN)
    test = data.load(run.data, shop.data_cache).test
    classifier = networks.from_file(run.weights, run.result["weights_sha256"])  # type: ignore[index]
    with torch.no_grad():
        expected = classifier(torch.from_numpy(test.images)).numpy()
    found = answered(target, file, export.nhwc(test))
    assert (found.argmax(1) == expected.argmax(1)).all()
    assert np.abs(found - expected).max() < 1e-3 * expected.std()
    report = export.kept_target(run, shop, target)
    assert report is not None
    assert report["parity"]["images"] == len(test)
    assert report["parity"]["relative_diff"] == pytest.approx(np.abs(found - expected).max() / expected.std(), abs=1e-5)
    assert report["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize("name", ALL)
def test_the_command_line_writes_verifies_and_refuses_what_was_changed(name: str, shop: Store, tmp_path: Path) -> None:
    target, _ = made(name, shop)
    to = tmp_path / f"s{target.endings[0]}"
    done = command("export", RUN, "--to", to, "--json", store=shop)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    files = [to.with_suffix(ending) for ending in target.endings]
    assert said["bytes"] == sum(file.stat().st_size for file in files)
    assert all(words.split(";")[0] in done.stderr for words in target.limits), "limits come before the conversion"
    assert said["parity"]["ok"]
    done = command("verify", to, store=shop)
    assert done.returncode == 0, done.stderr
    assert "checksum ok" in done.stdout
    assert "top-1 agreement 100" in done.stdout
    for file in files:
        content = file.read_bytes()
        file.write_bytes(content[:200] + bytes([content[200] ^ 1]) + content[201:])
        done = command("verify", to, store=shop)
        assert done.returncode == 2
        assert "changed after export" in done.stderr
        file.write_bytes(content)


@pytest.mark.parametrize("name", ALL)
def test_a_damaged_file_under_a_new_checksum_meets_the_sandbox(name: str, shop: Store, tmp_path: Path) -> None:
    target, file = made(name, shop)
    metadata = json.loads(targets.read_trailer(file.read_bytes()) or "")
    forged = tmp_path / file.name
    beside = {ending: hashlib.sha256(b"").hexdigest() for ending in target.endings[1:]}
    forged.write_bytes(targets.with_trailer(b"garbage", metadata | {"beside": beside}))
    for ending in target.endings[1:]:
        forged.with_suffix(ending).write_bytes(b"")
    with pytest.raises(BadModel):
        export.verify(forged, shop)


@pytest.mark.parametrize("name", ALL)
def test_another_networks_file_is_not_written(
    name: str, shop: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, file = made(name, shop)
    other = Store(tmp_path / "models")
    kept = {ending: file.with_suffix(ending).read_bytes() for ending in target.endings}
    monkeypatch.setattr(_export, "convert", lambda *_: kept)
    monkeypatch.setattr(_export, "program_of", lambda *_: b"")
    monkeypatch.setattr(_export, "graph_of_run", lambda *_: b"")
    teacher, to = other.run("digits-teacher"), tmp_path / f"t{target.endings[0]}"
    with pytest.raises(WorkFailed, match=r"does not make PyTorch's predictions.*top-1 agreement"):
        export.export(teacher, to, other)
    assert not list(tmp_path.glob("t.*"))
    assert export.kept_target(teacher, other, target) is None


def test_the_gap_counts_in_standard_deviations_however_small_they_are(shop: Store) -> None:
    """The gate for browsers takes the gap as it is where logits spread less than 1; a file to be written does not."""
    images = data.load(shop.run(RUN).data, shop.data_cache).test.take(np.arange(2))
    reference = np.zeros((2, 10), np.float32)
    reference[:, 3] = 1e-2  # so that a standard deviation is 3e-3
    found = export.parity(reference, reference * 1.005, images, gate=targets.GATE)
    assert found.ok
    assert not targets.passed(found).ok
    assert targets.passed(dataclasses.replace(found, relative_diff=9e-4)).ok


@pytest.mark.parametrize("name", ALL)
def test_card_and_parity_report_of_the_onnx_file_have_a_row(name: str, shop: Store, tmp_path: Path) -> None:
    target, _ = made(name, shop)
    run = shop.run(RUN)
    export.download(run, shop, tmp_path / "a.zip", "fp32")
    report = targets.bundle_target(run, shop, target)
    with zipfile.ZipFile(export.bundle_folder(run, shop) / "model.zip") as archive:
        card, proof = archive.read("card.md").decode(), json.loads(archive.read("parity.json"))
    mine = next(one for one in proof["targets"] if one["target"] == name)
    assert mine["parity"] == report["parity"]
    assert (
        f"| {target.title} {extras.version(target.package)}, its own file, CPU | {mine['parity']['images']} |" in card
    )
    assert handlers.bundle(shop, Export(run.id)).targets


@pytest.mark.parametrize("name", ALL)
def test_the_download_verifies_and_its_snippet_runs(
    name: str, shop: Store, tmp_path: Path, digits: data.Splits
) -> None:
    target, _ = made(name, shop)
    run = shop.run(RUN)
    report = handlers.target(shop, ExportTarget(run.id, name))
    with zipfile.ZipFile(export.bundle_folder(run, shop) / f"model-{name}.zip") as archive:
        archive.extractall(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {
        *(f"model{ending}" for ending in target.endings),
        *("card.md", "labels.json", "parity.json", "spec.yaml", "classify.py"),
    }
    card = (tmp_path / "card.md").read_text()
    assert all(words in card for words in (*target.limits, report.sha256, report.runtime))
    found = export.verify(tmp_path / f"model{target.endings[0]}", shop, proof=tmp_path / "parity.json")
    assert found["proof"] == {"python": True}
    assert found["ok"]

    image = digits.test.images[7, 0]
    Image.fromarray(image).save(tmp_path / "digit.png")
    done = processes.run([sys.executable, "classify.py", "digit.png"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    onnx = export.OnnxClassifier(export.to_onnx(networks.from_file(run.weights), temperature=run.result["temperature"]))  # type: ignore[index]
    (wanted,) = onnx.session.run(["probabilities"], {"images": image[None, :, :, None]})
    lines = [line.split(": ") for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == [str(place) for place in np.argsort(-wanted[0])[:3]]
    assert all(abs(float(share[:-1]) - 100 * wanted[0][int(place)]) < 0.15 for place, share in lines)


def test_executorch_takes_one_size_and_says_so(shop: Store) -> None:
    images = data.load(shop.run(RUN).data, shop.data_cache).test
    wide = dataclasses.replace(images, images=np.zeros((2, 1, 9, 8), np.uint8), labels=images.labels[:2])
    model = object.__new__(_process.TargetClassifier)
    model.target, model.metadata = TARGETS["executorch"], {"input_shape": [1, 8, 8]}
    with pytest.raises(BadInput, match=r"images of one size.*9 x 8, not 8 x 8"):
        model.logits_of(wide)


def test_a_library_may_write_while_it_loads_and_a_model_file_may_not(tmp_path: Path) -> None:
    engine = tmp_path / "engine.py"
    engine.write_text(
        "import numpy, pathlib\n"
        f"FILE = pathlib.Path({str(tmp_path / 'written')!r})\n"
        "class Session:\n"
        "    def run(self, names, given):\n"
        "        try:\n"
        "            FILE.write_bytes(b'later')\n"
        "        except OSError:\n"
        "            return [numpy.ones(1, numpy.float32)]\n"
        "        return [numpy.zeros(1, numpy.float32)]\n"
        "def opener():\n"
        "    FILE.write_bytes(b'loading')\n"
        "    return lambda content, threads: Session()\n"
    )
    session = sandbox.SandboxedSession(b"x", engine=engine)
    assert (tmp_path / "written").read_bytes() == b"loading"
    assert session.run("a", "b", np.zeros(1, np.float32)).tolist() == [1.0]
    assert (tmp_path / "written").read_bytes() != b"later"


# --- the page ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TARGETS)
def test_the_page_names_the_limits_and_the_command_that_installs_a_runtime(
    name: str, shown: Show, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = TARGETS[name]
    monkeypatch.setattr(extras, "installed", lambda package: package != target.package)
    app = shown("export", run=RUN, runtime=name)
    assert [one.value for one in app.code] == [extras.command(target.package)]
    assert all(words in texts(app) for words in target.limits)
    assert not app.error
    monkeypatch.setattr(extras, "installed", lambda _: True)
    app.run()
    assert f"Convert to {target.title}" in [one.label for one in app.button]


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_the_page_converts_and_shows_the_proof(name: str, shown: Show, store: Store) -> None:
    target = here(name)
    app = shown("export", run=RUN, runtime=name)
    app.button[[one.label for one in app.button].index(f"Convert to {target.title}")].click().run(timeout=600)
    assert not app.exception
    assert not app.error
    assert f"Parity check passed: top-1 agreement of {target.title} and PyTorch is 100.00%" in app.success[0].value
    folder = store.root / "exports" / store.run(RUN).id
    for ending in (*target.endings, ".zip"):
        file = f"model-{name}{ending}"
        assert context.exported(folder.name, file) == folder / file
        assert (folder / file).is_file()
    app = shown("export", run=RUN, runtime=name)
    assert app.success, "what was converted is shown at once"
