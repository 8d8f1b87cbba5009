"""The exported file gives PyTorch's answers, says so itself, and holds nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from smallalign_core import data, export, networks
from smallalign_core.data import Splits
from smallalign_core.errors import BadInput, BadModel
from smallalign_core.networks import Classifier
from smallalign_core.spec import DataSpec, parse
from smallalign_core.store import Run, Store

Taught = tuple[Store, Run, Run]

NETWORKS: list[Any] = [
    {"kind": "mlp", "width": 12},
    {"kind": "cnn", "width": 6},
    {"kind": "separable", "width": 8},
    {"kind": "resnet", "width": 4},
    pytest.param("torchvision:mobilenet_v3_small", marks=pytest.mark.slow),
    pytest.param("torchvision:resnet18", marks=pytest.mark.slow),
    "torchvision:squeezenet1_1",
]


@pytest.fixture(scope="module")
def files(taught: Taught, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the exported student.onnx and teacher.onnx, for tests that only read: an export takes a second."""
    folder = tmp_path_factory.mktemp("exported")
    for run, name in zip(taught[1:], ("teacher.onnx", "student.onnx"), strict=True):
        export.export(run, folder / name)
    return folder


def lived_in(network: Any, splits: Splits) -> Classifier:
    """A network with weights and batch-norm statistics that are not those it was born with."""
    spec = parse({"data": "digits", "network": network}).network
    classifier = networks.build(spec, splits.classes, splits.shape, mean=[0.3], std=[0.4], seed=1)
    classifier.train()
    with torch.no_grad():
        for start in range(0, 512, 64):
            classifier(torch.from_numpy(splits.train.images[start : start + 64]))
    return classifier.eval()


@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_every_family_exports_and_agrees(network: Any, digits: Splits) -> None:
    classifier = lived_in(network, digits)
    content = export.to_onnx(classifier, temperature=2.0)
    answers = export.OnnxClassifier(content).logits(export.nhwc(digits.test, 64), batch=17)
    with torch.no_grad():
        expected = classifier(torch.from_numpy(digits.test.images[:64])).numpy()
    gap = np.abs(answers - expected).max()
    assert gap < 1e-4 or gap / expected.std() < 1e-5
    assert (answers.argmax(1) == expected.argmax(1)).all()


def test_one_plain_file(taught: Taught, tmp_path: Path) -> None:
    _, _, student = taught
    written = export.export(student, tmp_path / "s.onnx")
    content = (tmp_path / "s.onnx").read_bytes()
    model = onnx.load(tmp_path / "s.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["s.onnx"]
    assert not any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer)
    for trace in (b".py", b"/home", str(Path(__file__).parents[1]).encode(), b"stack_trace", b"pkg.torch"):
        assert trace not in content
    assert written["bytes"] == len(content)
    (image,) = model.graph.input
    assert image.name == "images"
    assert image.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [bool(d.dim_param) for d in image.type.tensor_type.shape.dim] == [True, True, True, False]
    assert [output.name for output in model.graph.output] == ["logits", "probabilities"]


def test_metadata(taught: Taught, files: Path) -> None:
    _, _, student = taught
    facts = export.OnnxClassifier((files / "student.onnx").read_bytes()).metadata
    assert student.result is not None
    assert facts["classes"] == list("0123456789")
    assert facts["weights_sha256"] == student.result["weights_sha256"]
    assert facts["scores"]["test"]["accuracy"] == student.result["test"]["accuracy"]
    assert facts["data"]["fingerprint"] == student.spec.data.fingerprint
    assert parse(__import__("yaml").safe_load(facts["spec"])).network == student.spec.network


def test_probabilities_hold_the_fitted_temperature(taught: Taught, files: Path) -> None:
    store, _, student = taught
    model = export.OnnxClassifier((files / "student.onnx").read_bytes())
    pixels = export.nhwc(data.load(student.spec.data, store.data_cache).test, 20)
    logits, probabilities = model.session.run(["logits", "probabilities"], {"images": pixels})
    assert student.result is not None
    scaled = np.exp(logits / student.result["temperature"])
    np.testing.assert_allclose(probabilities, scaled / scaled.sum(1, keepdims=True), atol=1e-5)


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (17, 40), (5, 9)])
def test_other_sizes_are_resized_inside_as_pillow_would(size: tuple[int, int], taught: Taught, files: Path) -> None:
    _, teacher, _ = taught
    model = export.OnnxClassifier((files / "teacher.onnx").read_bytes())
    draw = np.random.default_rng(0)
    image = np.asarray(Image.fromarray(draw.integers(0, 256, (6, 6), dtype=np.uint8)).resize(size[::-1], 2))
    resized = np.asarray(Image.fromarray(image).resize((8, 8), Image.Resampling.BILINEAR))
    inside, outside = (model.logits(picture[None, :, :, None]) for picture in (image, resized))
    assert np.abs(inside - outside).max() < 0.3  # Pillow rounds to whole numbers in between
    with torch.no_grad():
        expected = networks.from_file(teacher.weights)(torch.from_numpy(image.copy())[None, None]).numpy()
    assert np.abs(inside - expected).max() < 1e-4


def test_verify(taught: Taught, files: Path) -> None:
    store, teacher, _ = taught
    found = export.verify(files / "student.onnx", store)
    assert found["ok"]
    assert found["images"] == 359
    assert found["top1_agreement"] == 1.0
    assert found["max_abs_diff"] < 1e-4
    assert found["accuracy"] == found["promised_accuracy"]
    wrong = export.verify(files / "student.onnx", store, run=teacher.id)
    assert not wrong["ok"]
    assert wrong["top1_agreement"] < 1


def test_verify_without_the_run_keeps_the_promise(files: Path, tmp_path: Path) -> None:
    found = export.verify(files / "student.onnx", Store(tmp_path / "another"))
    assert found["ok"]
    assert "accuracy written" in found["compared_with"]
    assert found["top1_agreement"] is None
    by_data = export.verify(files / "student.onnx", Store(tmp_path / "another"), data_source="digits")
    assert by_data["ok"]
    assert by_data["same_images"]


def with_metadata(file: Path, facts: object) -> bytes:
    """An exported file that says other things of itself."""
    model = onnx.load(file)
    (said,) = model.metadata_props
    said.value = json.dumps(facts)
    return model.SerializeToString()


def test_hostile_metadata_is_named(taught: Taught, files: Path, tmp_path: Path) -> None:
    store, _, _ = taught
    for facts in ([1], {"data_spec": {"validation": 7}}, {"scores": 3}, {"data": []}):
        (tmp_path / "x.onnx").write_bytes(with_metadata(files / "teacher.onnx", facts))
        with pytest.raises(BadModel, match="metadata"):
            export.verify(tmp_path / "x.onnx", store)


def test_verify_notices_other_weights(taught: Taught, files: Path, tmp_path: Path) -> None:
    store, _, _ = taught
    facts = export.OnnxClassifier((files / "student.onnx").read_bytes()).metadata
    (tmp_path / "forged.onnx").write_bytes(with_metadata(files / "teacher.onnx", facts))
    assert not export.verify(tmp_path / "forged.onnx", store)["ok"]
    assert not export.verify(tmp_path / "forged.onnx", Store(tmp_path / "another"))["ok"]


@pytest.mark.parametrize("content", [b"", b"not onnx", b"\x08\x07" * 100])
def test_files_that_are_no_models(content: bytes, tmp_path: Path, store: Store) -> None:
    (tmp_path / "x.onnx").write_bytes(content)
    with pytest.raises(BadModel):
        export.verify(tmp_path / "x.onnx", store)
    with pytest.raises(BadInput, match="cannot be read"):
        export.verify(tmp_path / "nothing.onnx", store)


def test_exports_go_where_they_can(taught: Taught, tmp_path: Path) -> None:
    _, _, student = taught
    for target in (tmp_path / "s.pt", tmp_path / "nowhere" / "s.onnx"):
        with pytest.raises(BadInput, match=r"\.onnx"):
            export.export(student, target)


def test_bundles_are_kept_until_they_are_damaged(taught: Taught) -> None:
    store, _, student = taught
    report = export.bundle(student, store)
    assert export.kept_bundle(student, store) == report
    folder = export.bundle_folder(student, store)
    assert (folder / "images.bin").stat().st_size == int(np.prod(report["shape"]))
    logits = np.frombuffer((folder / "logits.bin").read_bytes(), "<f4").reshape(len(report["labels"]), -1)
    assert (logits.argmax(1) == report["labels"]).mean() == pytest.approx(report["parity"]["accuracy"], abs=1e-6)
    whole = (folder / "parity.json").read_text()
    report["weights_sha256"] = "0" * 64  # retrained since: the same run may have other weights on another machine
    (folder / "parity.json").write_text(json.dumps(report))
    assert export.kept_bundle(student, store) is None
    (folder / "parity.json").write_text(whole)
    assert export.kept_bundle(student, store) == json.loads(whole)
    (folder / "model.onnx").write_bytes(b"other")
    assert export.kept_bundle(student, store) is None


def test_colour_images_export(tmp_path: Path) -> None:
    from test_data import folder_of

    splits = data.load(DataSpec(source=str(folder_of(tmp_path / "set", "abc", 30, size=(16, 12)))), tmp_path / "cache")
    network = parse({"data": "digits", "network": {"kind": "cnn", "width": 4, "depth": 1}}).network
    classifier = networks.build(network, splits.classes, splits.shape, mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.4]).eval()
    answers = export.OnnxClassifier(export.to_onnx(classifier)).logits(export.nhwc(splits.test))
    with torch.no_grad():
        assert np.abs(answers - classifier(torch.from_numpy(splits.test.images)).numpy()).max() < 1e-4


def test_weights_files_are_stable_and_checked(taught: Taught, tmp_path: Path) -> None:
    _, _, student = taught
    classifier = networks.from_file(student.weights)
    assert networks.to_bytes(classifier, student.spec) == student.weights.read_bytes()
    for damage in (b"", b"\x00" * 64, student.weights.read_bytes()[:-10]):
        (tmp_path / "w.safetensors").write_bytes(damage)
        with pytest.raises(BadModel):
            networks.from_file(tmp_path / "w.safetensors")
