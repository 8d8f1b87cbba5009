"""Exported bundles: seals, losses, parity reports with the browser's part, snippets that run, files made elsewhere."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import processes
import pytest
from onnx import helper
from PIL import Image

from pages.ui.browser import InstallError
from pages.ui.browser._demo import demo_files, unpack_demo
from pages.ui.browser._npm import PACKAGES
from smallalign_core import export
from smallalign_core.cli._main import main
from smallalign_core.data import Splits
from smallalign_core.errors import BadInput, BadModel, Refused
from smallalign_core.export import _file, _runtime
from smallalign_core.networks import quantize
from smallalign_core.runs import class_names, model_card
from smallalign_core.runs.store import Run, Store
from smallalign_core.service import handlers
from smallalign_core.service.requests import Export, SubmitParity
from smallalign_core.service.users import Role, User
from smallalign_core.system.files import write_json
from smallalign_core.system.typed import flat

Report = dict[str, Any]
TIMING = {"p50_ms": 0.1, "p95_ms": 0.2, "load_ms": 3.0, "sha256": None}
RUNTIME = {
    "backend": "wasm",
    "threads": 2,
    "version": "1.30.0",
    "user_agent": "A |[browser](javascript:1) <b>`",
    "why": "*so*",
}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Run, dict[str, Report]]:
    """(store, the zoo's student, its bundles): for tests that only read."""
    store = Store(tmp_path_factory.mktemp("shop") / "models")
    run = store.run("digits-student")
    reports = {name: export.bundle(run, store, precision=name) for name in export.PRECISIONS}
    return store, run, reports


def file_of(shop: tuple[Store, Run, dict[str, Report]], precision: str) -> Path:
    store, run, _ = shop
    return export.bundle_folder(run, store) / export.file_name("model.onnx", precision)


@pytest.fixture
def copied(shop: tuple[Store, Run, dict[str, Report]], tmp_path: Path) -> tuple[Store, Run]:
    """A store of one's own with the fp32 and int8 bundles in it."""
    store, run, _ = shop
    mine = Store(tmp_path / "models")
    shutil.copytree(export.bundle_folder(run, store), export.bundle_folder(run, mine))
    return mine, run


# --- the seal ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_seal_holds_for_every_byte(shop: tuple[Store, Run, dict[str, Report]]) -> None:
    content = file_of(shop, "int8").read_bytes()
    assert export.checksum_matches(content)
    for place in [*range(0, len(content), 997), *range(len(content) - 90, len(content))]:
        changed = bytearray(content)
        changed[place] ^= 1
        assert not export.checksum_matches(bytes(changed)), place
    assert not export.checksum_matches(content[:-1])
    assert not export.checksum_matches(content + b"\x00")
    assert not export.checksum_matches(b"")


def with_other_accuracy(model: onnx.ModelProto) -> None:
    entry = model.metadata_props[0]
    facts = json.loads(entry.value)
    facts["scores"]["test"]["accuracy"] = 1.0
    entry.value = json.dumps(facts)


def with_another_weight(model: onnx.ModelProto) -> None:
    first = next(tensor for tensor in model.graph.initializer if np.prod(tensor.dims) > 100)
    values = onnx.numpy_helper.to_array(first).copy()
    values.flat[0] += 1e-6
    first.CopyFrom(onnx.numpy_helper.from_array(values, first.name))


def without_seal(model: onnx.ModelProto) -> None:
    del model.metadata_props[1:]


@pytest.mark.parametrize("change", [with_other_accuracy, with_another_weight, without_seal])
def test_a_changed_file_is_refused(change: Any, shop: tuple[Store, Run, dict[str, Report]], tmp_path: Path) -> None:
    model = onnx.load(file_of(shop, "fp32"))
    change(model)
    (tmp_path / "x.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BadModel, match="changed after export"):
        export.verify(tmp_path / "x.onnx", shop[0])


def resealed(shop: tuple[Store, Run, dict[str, Report]], change: Any) -> bytes:
    """An export that somebody changed and sealed anew: there is no secret in a seal."""
    model = onnx.load(file_of(shop, "fp32"))
    entry, facts = model.metadata_props[0], json.loads(model.metadata_props[0].value)
    change(model, facts)
    entry.value = json.dumps(facts)
    without_seal(model)
    return export.with_checksum(model.SerializeToString())


@pytest.mark.parametrize(
    "lie",
    [
        {"run": 5},
        {"run": "/tmp/elsewhere"},
        {"scores": {"test": []}},
        {"scores": {"test": {"accuracy": "0.9"}}},
        {"loss": {"val": "none"}},
        {"classes": "abc"},
    ],
)
def test_what_a_sealed_file_says_of_itself_is_not_trusted(lie: dict[str, Any]) -> None:
    with pytest.raises(BadModel, match="metadata is damaged"):
        _runtime.read_metadata(json.dumps(lie), "x.onnx")


def test_nesting_takes_down_no_reader_of_metadata_or_proof(tmp_path: Path) -> None:
    deep = "[" * 100_000
    with pytest.raises(BadModel, match="metadata is damaged"):
        _runtime.read_metadata(deep, "x.onnx")
    with pytest.raises(BadInput, match="has no class names"):
        class_names.in_metadata({"classes": deep, "names": '{"\u00b2": "a"}'})
    (tmp_path / "x.onnx").write_bytes(b"x")
    (tmp_path / "parity.json").write_text(deep)
    assert main(["verify", str(tmp_path / "x.onnx"), "--proof", str(tmp_path / "parity.json")]) == 2


def test_answers_of_another_shape_are_refused(shop: tuple[Store, Run, dict[str, Report]], tmp_path: Path) -> None:
    def one_number(model: onnx.ModelProto, _: Report) -> None:
        for node in model.graph.node:
            node.output[:] = ["whole" if name == "logits" else name for name in node.output]
            node.input[:] = ["whole" if name == "logits" else name for name in node.input]
        model.graph.node.append(helper.make_node("ReduceSum", ["whole"], ["logits"], keepdims=0))
        next(one for one in model.graph.output if one.name == "logits").type.tensor_type.ClearField("shape")

    (tmp_path / "x.onnx").write_bytes(resealed(shop, one_number))
    with pytest.raises(BadModel, match="one row per image"):
        export.verify(tmp_path / "x.onnx", shop[0])


# --- what a precision costs -------------------------------------------------------------------------------------------


def test_each_precision_says_what_it_loses(shop: tuple[Store, Run, dict[str, Report]], digits: Splits) -> None:
    _, run, reports = shop
    assert reports["int8"]["bytes"] < reports["fp16"]["bytes"] < 0.6 * reports["fp32"]["bytes"]
    for precision, report in reports.items():
        model = export.OnnxClassifier(file_of(shop, precision).read_bytes())
        for split, part in (("val", digits.val), ("test", digits.test)):
            right = (model.logits(export.nhwc(part)).argmax(1) == part.labels).mean()
            loss = report["loss"][split]
            assert loss["accuracy"] == pytest.approx(right, abs=1e-12)
            assert loss["reference"] == pytest.approx(run.result[split]["accuracy"], abs=1e-12)  # type: ignore[index]
            assert loss["loss"] == pytest.approx(loss["reference"] - loss["accuracy"], abs=1e-12)
            assert loss["low"] <= loss["loss"] <= loss["high"]
            assert model.metadata["scores"][split]["accuracy"] == pytest.approx(right, abs=1e-12)
        assert report["parity"]["ok"]
        assert not report["flagged"]
    assert reports["fp32"]["parity"]["top1_agreement"] == 1.0
    assert reports["int8"]["parity"]["max_abs_diff"] > 1e-3 > reports["fp32"]["parity"]["max_abs_diff"]


def test_loss_counts_who_is_right_alone(digits: Splits) -> None:
    part = digits.test.take(np.arange(100))
    reference = np.eye(10, dtype=np.float32)[part.labels]
    worse = reference.copy()
    worse[:3] = np.roll(worse[:3], 1, axis=1)
    found = export.loss_of(reference, worse, part)
    assert (found.loss, found.agreement, found.flagged) == (pytest.approx(0.03), 0.97, True)
    # Bonett & Price (2012) by hand: (4 - 1) / 102 +- 1.96 sqrt((5/102 - (3/102)^2) / 102)
    half = 1.959964 * ((5 / 102 - (3 / 102) ** 2) / 102) ** 0.5
    assert (found.low, found.high) == pytest.approx((3 / 102 - half, 3 / 102 + half))
    better = export.loss_of(worse, reference, part)
    assert (better.loss, better.flagged) == (pytest.approx(-0.03), False)
    assert not export.loss_of(reference, reference, part).flagged


@pytest.mark.slow
def test_too_great_a_loss_is_flagged_everywhere(
    copied: tuple[Store, Run], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write = quantize.Quantizer.write

    def spoil(self: quantize.Quantizer, *how: Any) -> bytes:
        model = onnx.load_model_from_string(write(self, *how))
        for tensor in model.graph.initializer:
            values = onnx.numpy_helper.to_array(tensor)
            if values.size > 64:
                flat = np.sign(values) * np.abs(values.astype(np.float64)).mean()
                tensor.CopyFrom(onnx.numpy_helper.from_array(flat.astype(values.dtype), tensor.name))
        return bytes(model.SerializeToString())

    store, run = copied
    monkeypatch.setattr(quantize.Quantizer, "write", spoil)
    report = export.bundle(run, store, precision="int8")
    assert report["loss"]["val"]["loss"] > export.LIMIT
    assert report["flagged"]
    assert report["loss"]["val"]["flagged"]
    with zipfile.ZipFile(export.bundle_folder(run, store) / "model-int8.zip") as archive:
        assert "**Flagged" in archive.read("card.md").decode()
        assert json.loads(archive.read("parity.json"))["flagged"] is True
    assert (
        main(
            [
                "export",
                "digits-student",
                "--to",
                str(tmp_path / "x.onnx"),
                "--precision",
                "int8",
                "--store",
                str(store.root),
            ]
        )
        == 0
    )
    assert "FLAGGED" in capsys.readouterr().out
    assert export.verify(tmp_path / "x.onnx", store)["flagged"]


def test_a_network_that_cannot_be_quantised_says_so(
    copied: tuple[Store, Run], monkeypatch: pytest.MonkeyPatch, digits: Splits
) -> None:
    def fail(*_: Any, **__: Any) -> bytes:
        raise KeyError("node_7")

    monkeypatch.setattr(quantize.Quantizer, "__init__", fail)
    with pytest.raises(Exception, match="cannot be quantized to int8"):
        _file.in_precision(b"", "int8", digits.train)


@pytest.mark.slow
def test_smaller_files_are_verified_too(shop: tuple[Store, Run, dict[str, Report]], tmp_path: Path) -> None:
    store, _, reports = shop
    found = export.verify(file_of(shop, "int8"), store)
    assert found["ok"]
    assert found["precision"] == "int8"
    assert found["top1_agreement"] == reports["int8"]["parity"]["top1_agreement"]
    assert found["promised_accuracy"] == pytest.approx(found["accuracy"], abs=1e-12)
    alone = export.verify(file_of(shop, "fp16"), Store(tmp_path / "another"))
    assert alone["ok"]
    assert alone["relative_diff"] < 1e-2


# --- the bundle, and what a browser adds ------------------------------------------------------------------------------


def test_bundles_are_kept_until_they_are_damaged(copied: tuple[Store, Run], digits: Splits) -> None:
    store, run = copied
    folder = export.bundle_folder(run, store)
    report = export.kept_bundle(run, store)
    assert report is not None
    assert (folder / "images.bin").read_bytes() == export.nhwc(digits.test, 1000).tobytes()
    logits = np.frombuffer((folder / "logits.bin").read_bytes(), "<f4").reshape(len(report["labels"]), -1)
    assert (logits.argmax(1) == report["labels"]).mean() == pytest.approx(report["parity"]["accuracy"], abs=1e-6)
    kept = (folder / "parity.json").read_text()
    report["weights_sha256"] = "0" * 64  # retrained since: the same run may have other weights on another machine
    (folder / "parity.json").write_text(json.dumps(report))
    assert export.kept_bundle(run, store) is None
    (folder / "parity.json").write_text(kept)
    assert export.kept_bundle(run, store) is not None
    (folder / "model.onnx").write_bytes(b"other")
    assert export.kept_bundle(run, store) is None
    assert export.kept_bundle(run, store, "int8") is not None


def said(logits: np.ndarray[Any, Any], **changes: Any) -> dict[str, Any]:
    encoded = base64.b64encode(logits.astype("<f4").tobytes()).decode()
    return {"logits": encoded, "sha256": None, "images_sha256": None, "runtime": RUNTIME, "timing": TIMING, **changes}


def kept_logits(store: Store, run: Run, name: str = "logits.bin") -> np.ndarray[Any, Any]:
    return np.fromfile(export.bundle_folder(run, store) / name, "<f4").reshape(-1, 10)


def test_a_browsers_figures_are_computed_here(copied: tuple[Store, Run]) -> None:
    """Whatever a browser says about itself, top-1 and accuracy come from its logits; they go into card and zip."""
    store, run = copied
    logits = kept_logits(store, run)
    report = export.submit_browser_parity(run, store, "fp32", said(logits, accuracy=1.0, top1_agreement=0.5, ok=False))
    found = report["browser"]
    assert (found["top1_agreement"], found["ok"]) == (1.0, True)
    assert found["accuracy"] == report["parity"]["accuracy"]
    assert export.kept_bundle(run, store) == report
    with zipfile.ZipFile(export.bundle_folder(run, store) / "model.zip") as archive:
        card = archive.read("card.md").decode()
        assert archive.read("browser-logits.bin") == logits.tobytes()
    assert "onnxruntime-web 1.30.0, wasm" in card
    assert "submitted on" in card
    assert "`A browser(javascript:1) b`" in card, "what could be markup is taken out"
    assert found["runtime"] == RUNTIME | {"user_agent": "A browser(javascript:1) b", "why": "so"}

    wrong = np.roll(logits, 1, axis=1)
    report = export.submit_browser_parity(run, store, "fp32", said(wrong))
    assert not report["browser"]["ok"]
    assert report["browser"]["top1_agreement"] < 0.5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sha256": "0" * 64}, "another file"),
        ({"images_sha256": "0" * 64}, "another images"),
        ({"logits": base64.b64encode(b"\x00" * 40).decode()}, "are for other images"),
        ({"logits": "%%%"}, "are for other images"),
    ],
)
def test_a_browser_that_answered_something_else_is_refused(
    changes: dict[str, Any], words: str, copied: tuple[Store, Run]
) -> None:
    store, run = copied
    with pytest.raises(BadInput, match=words):
        export.submit_browser_parity(run, store, "fp32", said(kept_logits(store, run)) | changes)
    assert export.kept_bundle(run, store)["browser"] is None  # type: ignore[index]


def test_nan_in_a_browsers_logits_is_no_parity(copied: tuple[Store, Run]) -> None:
    store, run = copied
    logits = kept_logits(store, run, "logits-int8.bin").copy()
    logits[5, 3] = np.nan
    with pytest.raises(BadInput, match="not finite"):
        export.submit_browser_parity(run, store, "int8", said(logits))


@pytest.mark.parametrize(
    "changes",
    [
        {"timing": TIMING | {"p50_ms": float("nan")}},
        {"timing": TIMING | {"batch_ms": float("inf")}},
        {"timing": TIMING | {"load_ms": -1.0}},
        {"timing": TIMING | {"load_ms": "3"}},
        {"timing": {}},
        {"timing": None},
        {"runtime": {"backend": "wasm"}},
        {"runtime": RUNTIME | {"threads": 10**400}},
    ],
)
def test_what_a_browser_says_of_itself_is_checked_before_anything_is_written(
    changes: dict[str, Any], copied: tuple[Store, Run]
) -> None:
    store, run = copied
    before = {file.name: file.read_bytes() for file in export.bundle_folder(run, store).iterdir()}
    with pytest.raises(BadInput, match="lacks runtime or timing"):
        export.submit_browser_parity(run, store, "fp32", said(kept_logits(store, run)) | changes)
    assert {file.name: file.read_bytes() for file in export.bundle_folder(run, store).iterdir()} == before


def test_a_viewers_browser_writes_nothing_into_the_proof(copied: tuple[Store, Run]) -> None:
    """The proof goes into the card and the download of everybody: who may only look cannot change it."""
    store, run = copied
    watched = Store(store.root, User("eve@example.org", Role.VIEWER))
    with pytest.raises(Refused, match="Your account is read-only: you cannot"):
        handlers.claim(watched, SubmitParity(run.id, "fp32", said(kept_logits(store, run))))
    report = export.kept_bundle(run, store)
    assert report is not None
    assert report["browser"] is None


def test_names_of_classes_are_no_markup_in_a_card(store: Store, tmp_path: Path) -> None:
    """Classes are called as folders of an upload are."""
    shipped = store.run("digits-student")
    shutil.copytree(shipped.folder, tmp_path / "run")
    run, names = Run(tmp_path / "run"), ["a|b", "<img src=x onerror=alert(1)>", "[c](javascript:1)", "`d", "e\n# f"]
    names += list("56789")
    write_json(run.folder / "result.json", {**(run.result or {}), "classes": names})
    text = model_card.card(run, store, "x")
    (line,) = [line for line in text.split("\n") if line.startswith("| classes")]
    assert line == (
        "| classes | 10: a\\|b, \\<img src=x onerror=alert(1)\\>, \\[c\\](javascript:1), \\`d, e # f, 5, 6, 7, 8, 9 |"
    )
    assert model_card.card(shipped, store, shipped.name) == (shipped.folder / "card.md").read_text()


# --- downloads --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unpacked(shop: tuple[Store, Run, dict[str, Report]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The zip of the int8 file as a person unpacks it, with a browser's claim in it and npm's packages beside it."""
    store, run, _ = shop
    export.submit_browser_parity(run, store, "int8", said(kept_logits(store, run, "logits-int8.bin")))
    to = tmp_path_factory.mktemp("unpacked") / "student.zip"
    report = export.download(run, store, to, "int8")
    assert report["precision"] == "int8"
    with zipfile.ZipFile(to) as archive:
        archive.extractall(to.parent)
    (to.parent / "node_modules").symlink_to(PACKAGES.folder / "node_modules")
    return to.parent


def test_the_zip_holds_all_that_goes_with_the_file(unpacked: Path, shop: tuple[Store, Run, dict[str, Report]]) -> None:
    _, run, _ = shop
    with zipfile.ZipFile(unpacked / "student.zip") as archive:
        assert set(archive.namelist()) == {
            *("model.onnx", "card.md", "labels.json", "parity.json", "spec.yaml", "browser-logits.bin"),
            *("classify.py", "classify.mjs", "index.html", "package.json"),
        }
    card, proof = (unpacked / "card.md").read_text(), json.loads((unpacked / "parity.json").read_text())
    digest = hashlib.sha256((unpacked / "model.onnx").read_bytes()).hexdigest()
    assert proof["sha256"] == digest
    for fact in (digest, run.result["weights_sha256"], run.spec.data.fingerprint, "int8", "accuracy drop (val.)"):  # type: ignore[index]
        assert fact in card
    assert json.loads((unpacked / "labels.json").read_text()) == list("0123456789")
    locked = json.loads((PACKAGES.folder / "package-lock.json").read_text())["packages"]
    for name, version in json.loads((unpacked / "package.json").read_text())["dependencies"].items():
        assert locked[f"node_modules/{name}"]["version"] == version


@pytest.mark.slow
def test_a_proof_belongs_to_one_file_and_comes_out_again(
    unpacked: Path, shop: tuple[Store, Run, dict[str, Report]], tmp_path: Path
) -> None:
    store, _, _ = shop
    model, proof = unpacked / "model.onnx", unpacked / "parity.json"
    assert export.verify(model, store, proof=proof)["proof"] == {"python": True, "browser": True}
    with pytest.raises(BadModel, match="about another file"):
        export.verify(file_of(shop, "fp32"), store, proof=proof)
    facts = json.loads(proof.read_text())
    facts["browser"]["accuracy"] = 1.0
    shutil.copy(unpacked / "browser-logits.bin", tmp_path)
    (tmp_path / "parity.json").write_text(json.dumps(facts))
    found = export.verify(model, store, proof=tmp_path / "parity.json")
    assert (found["proof"], found["ok"]) == ({"python": True, "browser": False}, False)
    (tmp_path / "parity.json").write_text("{}")
    with pytest.raises(BadInput, match="parity report cannot be read"):
        export.verify(model, store, proof=tmp_path / "parity.json")


def pictures(to: Path, digits: Splits) -> dict[str, tuple[Path, np.ndarray[Any, Any]]]:
    """Pictures as a person has them, and their pixels as the file takes them: a digit, and a colour photograph."""
    digit = Image.fromarray(digits.test.images[7, 0])
    colours = np.random.default_rng(0).integers(0, 256, (20, 31, 3), dtype=np.uint8)
    found = {}
    for name, picture in (("digit", digit), ("photo", Image.fromarray(colours))):
        picture.save(to / f"{name}.png")
        found[name] = (to / f"{name}.png", np.asarray(picture.convert("L"))[None, :, :, None])
    return found


def expected(model: Path, pixels: np.ndarray[Any, Any]) -> list[str]:
    """What a snippet should print: the first three classes, best first, with two decimals of their percentage."""
    (found,) = export.OnnxClassifier(model.read_bytes()).session.run(["probabilities"], {"images": pixels})
    return [f"{place}: {100 * found[0][place]:.2f}%" for place in np.argsort(-found[0])[:3]]


def near(printed: list[str], wanted: list[str]) -> bool:
    """The same classes in the same order, with shares that differ in the last digit at most: processors round."""
    pairs = [(line.split(": ") for line in lines) for lines in (printed, wanted)]
    return len(printed) == len(wanted) and all(
        name == other and abs(float(share[:-1]) - float(right[:-1])) < 0.15
        for (name, share), (other, right) in zip(*pairs, strict=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["python", "node"])
def test_the_snippets_run(tool: str, unpacked: Path, tmp_path: Path, digits: Splits) -> None:
    node = shutil.which("node")
    if tool == "node" and (node is None or not PACKAGES.installed(tests=True)):
        pytest.skip("no Node, or its packages are not here: python -m pages.ui.browser --tests")
    start = [sys.executable, "classify.py"] if tool == "python" else [str(node), "classify.mjs"]
    for picture, pixels in pictures(tmp_path, digits).values():
        done = processes.run([*start, picture], cwd=unpacked)
        assert done.returncode == 0, done.stderr
        assert near(done.stdout.split("\n")[:-1], expected(unpacked / "model.onnx", pixels)), done.stdout


def test_the_demo_brings_its_runtime_and_names_no_host(
    unpacked: Path, tmp_path: Path, shop: tuple[Store, Run, dict[str, Report]]
) -> None:
    report = json.loads((unpacked / "parity.json").read_text())
    if not PACKAGES.installed():
        pytest.skip("the browser parts are not installed")
    made = demo_files(b"model", report, "a name")
    ours = {
        name: text.decode() for name, text in made.items() if not name.startswith("ort/ort") and name != "model.onnx"
    }
    assert made["ort/ort-wasm-simd-threaded.wasm"][:4] == b"\x00asm"
    assert "Microsoft" in ours["ort/LICENSE.txt"]
    assert not [name for name, text in ours.items() if "http://" in text or "https://" in text]
    assert json.loads(ours["demo.json"])["size"] == [8, 8]
    shutil.copy(PACKAGES.folder / "package-lock.json", tmp_path)
    with pytest.raises(InstallError, match=r"pages\.ui\.browser"):
        demo_files(b"model", report, "a name", type(PACKAGES)(tmp_path))


def test_the_backend_answers_for_a_page(copied: tuple[Store, Run]) -> None:
    store, run = copied
    assert flat(handlers.bundle(store, Export(run.id, "int8"))) == export.kept_bundle(run, store, "int8")
    with pytest.raises(BadInput, match="Unknown precision"):
        handlers.bundle(store, Export(run.id, "int4"))
    assert handlers.claim(store, SubmitParity(run.id, "fp32", said(kept_logits(store, run)))).browser.ok


# --- files of others --------------------------------------------------------------------------------------------------


def theirs(to: Path, shop: tuple[Store, Run, dict[str, Report]], *, batch: int | None = None) -> Path:
    """Our student as another exporter would write it: no metadata, other names of its doors, perhaps a fixed batch."""
    model = onnx.load(file_of(shop, "fp32"))
    del model.metadata_props[:]
    model.producer_name = "another"
    for node in model.graph.node:
        for names in (node.input, node.output):
            for at, name in enumerate(names):
                names[at] = {"images": "x", "logits": "y"}.get(name, name)
    model.graph.input[0].name, model.graph.output[0].name = "x", "y"
    kept = next(output for output in model.graph.output if output.name == "probabilities")
    model.graph.output.remove(kept)
    if batch is not None:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = batch
    to.write_bytes(model.SerializeToString())
    return to


@pytest.mark.slow
def test_files_of_others_are_described_scored_and_compared(
    shop: tuple[Store, Run, dict[str, Report]], tmp_path: Path
) -> None:
    store, run, _ = shop
    file = theirs(tmp_path / "theirs.onnx", shop)
    found = export.verify(file, store)
    assert (found["sealed"], found["opset"], found["ir"], found["bytes"]) == (False, 20, 10, file.stat().st_size)
    assert (found["input"]["name"], found["input"]["type"]) == ("x", "tensor(uint8)")
    assert [door["name"] for door in found["outputs"]] == ["y"]
    assert (found["images"], found["accuracy"], found["ok"]) == (0, None, True)

    scored = export.verify(file, store, data_source="digits")
    assert scored["accuracy"] == run.result["test"]["accuracy"]  # type: ignore[index]
    assert scored["classes_named"] is False
    assert scored["top1_agreement"] is None

    for batch in (None, 7):
        compared = export.verify(theirs(tmp_path / "theirs.onnx", shop, batch=batch), store, run="digits-student")
        assert (compared["ok"], compared["top1_agreement"]) == (True, 1.0)
        assert compared["max_abs_diff"] < 1e-4
        assert compared["images"] == 359
    other = export.verify(file, store, run="digits-teacher")
    assert not other["ok"]
    assert other["top1_agreement"] < 1
    swapped = export.verify(file, store, run="digits-student", told={"classes": list("1023456789")})
    assert not swapped["ok"]


@pytest.mark.slow
def test_only_the_jail_opens_a_file_that_is_verified(
    shop: tuple[Store, Run, dict[str, Report]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a file was opened outside the jail")

    for module, name in ((onnxruntime, "InferenceSession"), (onnx, "load"), (onnx, "load_model_from_string")):
        monkeypatch.setattr(module, name, refuse)
    assert export.verify(file_of(shop, "fp32"), shop[0])["ok"]
    assert export.verify(theirs_bytes(tmp_path), shop[0])["images"] == 0


def theirs_bytes(folder: Path) -> Path:
    image = helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, ["n", 1, 8, 8])
    out = helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["n", 64])
    graph = helper.make_graph([helper.make_node("Flatten", ["images"], ["logits"])], "g", [image], [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / "flat.onnx").write_bytes(model.SerializeToString())
    return folder / "flat.onnx"


@pytest.mark.slow
def test_the_command_line_ships_and_refuses(
    shop: tuple[Store, Run, dict[str, Report]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "s.onnx"

    def say(*words: object) -> tuple[int, str, str]:
        code = main([*map(str, words), "--store", str(shop[0].root)])
        told = capsys.readouterr()
        return code, told.out, told.err

    code, out, err = say("export", "digits-student", "--to", to, "--precision", "fp16", "--json")
    assert (code, json.loads(out)["loss"]["val"]["images"]) == (0, 143), err
    code, out, err = say("verify", to)
    assert code == 0, err
    assert "opset 20, IR 10" in out
    assert "checksum ok" in out
    content = bytearray(to.read_bytes())
    content[-200] ^= 1
    to.write_bytes(content)
    code, out, err = say("verify", to, "--json")
    assert (code, out, len(err.strip().splitlines())) == (2, "", 1)
    assert "changed after export" in err
    assert say("export", "digits-student", "--to", to, "--precision", "fp8")[0] == 2


@pytest.mark.slow
def test_a_demo_is_made_of_a_download(unpacked: Path, tmp_path: Path) -> None:
    command_line = processes.python("-m", "pages.ui.browser", "demo", unpacked / "student.zip", tmp_path / "d")
    done = processes.run(command_line)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "d" / "model.onnx").read_bytes() == (unpacked / "model.onnx").read_bytes()
    again = processes.run(command_line)
    assert again.returncode == 1
    assert "not empty" in again.stderr


@pytest.mark.parametrize("proof", ["[]", "{}", '{"shape": 3, "parity": {}}', "[" * 100_000])
def test_what_is_no_download_makes_no_demo(proof: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("model.onnx", b"x")
        archive.writestr("parity.json", proof)
    with pytest.raises(InstallError, match="Not a bundle of an export"):
        unpack_demo(tmp_path / "x.zip", tmp_path / "demo")
    assert not (tmp_path / "demo").exists()


def test_a_demo_goes_into_a_folder(unpacked: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InstallError, match="Choose another one"):
        unpack_demo(unpacked / "student.zip", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
