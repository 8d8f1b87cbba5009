"""The exported file gives PyTorch's answers, says so itself, and holds nothing else."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from conftest import USER_FILE
from PIL import Image

from smallalign_core import data, export, networks
from smallalign_core.data import Splits
from smallalign_core.errors import BadInput, BadModel
from smallalign_core.export import _file, _simplify
from smallalign_core.networks import Classifier, onnx_graph, quantize
from smallalign_core.runs.store import Run, Store
from smallalign_core.spec import DataSpec, parse

Taught = tuple[Store, Run, Run]

OWN: list[Any] = [
    {"kind": "mlp", "width": 12},
    {"kind": "cnn", "width": 6},
    {"kind": "separable", "width": 8},
    {"kind": "resnet", "width": 4},
    {"kind": "python", "file": str(USER_FILE)},
]
BORROWED: list[Any] = [
    "torchvision:mobilenet_v3_small",
    "torchvision:resnet18",
    "torchvision:squeezenet1_1",
    {"kind": "timm", "name": "test_vit", "size": 32},
    {"kind": "timm", "name": "vit_tiny_patch16_224", "size": 32},
]
NETWORKS = [*OWN, *(pytest.param(network, marks=pytest.mark.slow) for network in BORROWED)]


@pytest.fixture(scope="module")
def sold(taught: Taught, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The student's file, alone in its folder."""
    file = tmp_path_factory.mktemp("sold") / "s.onnx"
    assert export.export(taught[2], file, taught[0])["bytes"] == file.stat().st_size
    return file


def lived_in(network: Any, splits: Splits) -> Classifier:
    """A network with weights and batch-norm statistics that are not those it was born with."""
    spec = parse({"data": "digits", "network": network}).network
    classifier = networks.build(spec, splits.classes, splits.shape, mean=[0.3], std=[0.4], seed=1)
    classifier.train()
    with torch.no_grad():
        for start in range(0, 512, 64):
            classifier(torch.from_numpy(splits.train.images[start : start + 64]))
    return classifier.eval()


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_every_family_exports_in_every_precision_and_agrees(network: Any, digits: Splits) -> None:
    classifier = lived_in(network, digits)
    graph = _file.graph_of(classifier, 2.0)
    pixels = export.nhwc(digits.test, 64)
    with torch.no_grad():
        expected = classifier(torch.from_numpy(digits.test.images[:64])).numpy()
    files = {
        precision: _file.finished(_file.in_precision(graph, precision, digits.train), {})
        for precision in export.PRECISIONS
    }
    answers = {name: export.OnnxClassifier(file).logits(pixels, batch=17) for name, file in files.items()}
    gap = np.abs(answers["fp32"] - expected).max()
    assert gap < 1e-4 or gap / expected.std() < 1e-5
    assert (answers["fp32"].argmax(1) == expected.argmax(1)).all()

    assert 1e-7 < np.abs(answers["fp16"] - expected).max() / expected.std() < 2e-2
    assert (answers["fp16"].argmax(1) == expected.argmax(1)).mean() >= 0.98
    stored = onnx.load_model_from_string(files["fp16"]).graph.initializer
    many = [tensor for tensor in stored if np.prod(tensor.dims) >= 64 and tensor.data_type != onnx.TensorProto.INT64]
    assert {tensor.data_type for tensor in many} == {onnx.TensorProto.FLOAT16}
    assert len(files["fp32"]) < 1e6 or len(files["fp16"]) < 0.56 * len(files["fp32"])

    assert np.abs(answers["int8"] - expected).max() / expected.std() > 1e-3, "it is another graph"
    assert (answers["int8"].argmax(1) == expected.argmax(1)).mean() >= 0.85  # of random weights, which are near ties
    check_integers(onnx.load_model_from_string(files["int8"]))


def check_integers(model: onnx.ModelProto) -> None:
    """Weights of products are int8 with a scale for each channel; pixels come in and logits leave as they are."""
    made = {output: node for node in model.graph.node for output in node.output}
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    scaled = [
        made[node.input[1]] for node in products if node.input[1] in made and made[node.input[1]].input[0] in held
    ]
    assert scaled
    assert all(node.op_type == "DequantizeLinear" for node in scaled)
    assert all(held[node.input[0]].dtype == np.int8 for node in scaled)
    assert all(held[node.input[1]].size == max(held[node.input[1]].shape, default=1) for node in scaled)
    assert any(held[node.input[1]].size > 1 for node in scaled), "by channel"
    assert not any(held[node.input[1]].dtype == np.float32 for node in products if node.input[1] in held)
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    resize = next(node for node in model.graph.node if node.op_type == "Resize")
    assert made[resize.input[0]].op_type != "DequantizeLinear", "pixels are not rounded again"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "shape"),
    [
        pytest.param(OWN[0], (3, 4, 4), id="mlp"),
        pytest.param(OWN[1], (3, 5, 7), id="cnn"),
        pytest.param(OWN[2], (1, 12, 3), id="separable", marks=pytest.mark.slow),
        pytest.param(OWN[3], (3, 3, 3), id="resnet", marks=pytest.mark.slow),
    ],
)
def test_small_images_and_colours_export(network: Any, shape: tuple[int, int, int]) -> None:
    spec = parse({"data": "digits", "network": network}).network
    mean, std = [0.4, 0.5, 0.6][: shape[0]], [0.2, 0.3, 0.4][: shape[0]]
    classifier = networks.build(spec, "abc", shape, mean=mean, std=std, seed=1).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (9, *shape), dtype=np.uint8)
    answers = export.OnnxClassifier(export.to_onnx(classifier)).logits(pixels.transpose(0, 2, 3, 1).copy())
    with torch.no_grad():
        assert np.abs(answers - classifier(torch.from_numpy(pixels)).numpy()).max() < 1e-4


# Height and width, kernel, stride, padding at start and end, groups, pooling by two behind it; and what becomes of it.
GEOMETRIES: list[tuple[tuple[int, int], int, int, int, int, int, bool, str]] = [
    ((2, 2), 3, 1, 1, 1, 1, False, "unrolled"),
    ((2, 2), 3, 2, 1, 1, 1, False, "unrolled"),
    ((2, 2), 3, 1, 2, 0, 1, False, "unrolled"),
    ((1, 1), 3, 1, 1, 1, 1, False, "unrolled"),
    ((1, 1), 1, 1, 0, 0, 1, False, "unrolled"),
    ((3, 4), 5, 1, 2, 2, 1, False, "unrolled"),
    ((4, 3), 5, 2, 2, 2, 1, False, "unrolled"),
    ((1, 4), 3, 1, 1, 1, 1, False, "unrolled"),
    ((2, 2), 3, 1, 1, 1, 2, False, "as it was"),
    ((3, 3), 3, 1, 1, 1, 1, False, "as it was"),
    ((2, 2), 1, 1, 0, 0, 1, False, "as it was"),
    ((7, 7), 3, 1, 1, 1, 1, True, "trimmed"),
    ((7, 8), 3, 1, 1, 1, 1, True, "trimmed"),
    ((14, 14), 5, 2, 2, 2, 1, True, "trimmed"),
    ((7, 7), 3, 1, 1, 1, 4, True, "trimmed"),
    ((8, 8), 3, 1, 1, 1, 1, True, "as it was"),
    ((9, 9), 3, 1, 0, 0, 1, True, "as it was"),
]


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "bare"])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_less_work_gives_the_same_answers(geometry: Any, bias: bool) -> None:
    size, kernel, stride, before, after, groups, pooled, becomes = geometry
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn((8, 4 // groups, kernel, kernel), generator=generator)
    shift = torch.randn(8, generator=generator) if bias else None
    images = torch.randn((3, 4, *size), generator=generator)
    padded = F.pad(images, (before, after, before, after))
    expected = F.relu(F.conv2d(padded, weight, shift, stride, groups=groups))
    expected = F.max_pool2d(expected, 2) if pooled else expected

    held = {"weight": weight} | ({} if shift is None else {"bias": shift})
    moves = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [before] * 2 + [after] * 2}
    nodes = [
        onnx.helper.make_node("Conv", ["images", *held], ["sums"], "conv", group=groups, **moves),
        onnx.helper.make_node("Relu", ["sums"], ["found"] if not pooled else ["kept"], "relu"),
    ]
    if pooled:
        nodes.append(onnx.helper.make_node("MaxPool", ["kept"], ["found"], "pool", kernel_shape=[2, 2], strides=[2, 2]))
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "graph",
        [value("images", onnx.TensorProto.FLOAT, ["batch", 4, *size])],
        [value("found", onnx.TensorProto.FLOAT, ["batch", 8, *expected.shape[2:]])],
        [onnx.numpy_helper.from_array(tensor.numpy(), name) for name, tensor in held.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    content = _simplify.simplify(model.SerializeToString())
    onnx.checker.check_model(content, full_check=True)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": images.numpy()})
    assert found.shape == expected.shape
    assert np.abs(found - expected.numpy()).max() < 1e-6 * expected.abs().max().item()

    inferred = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(content)).graph
    sums = [[one.dim_value for one in v.type.tensor_type.shape.dim] for v in inferred.value_info if v.name == "sums"]
    if becomes == "trimmed":
        assert sums[0][2:] == [2 * length for length in expected.shape[2:]], "only what is pooled"
    made = inferred.node
    pads = next((list(one.ints) for node in made for one in node.attribute if one.name == "pads"), None)
    unrolled = not any(node.op_type == "Conv" for node in made)
    trimmed = not unrolled and pads != [before] * 2 + [after] * 2
    assert (unrolled, trimmed) == (becomes == "unrolled", becomes == "trimmed")


def test_a_pooling_larger_than_its_map_adds_nothing() -> None:
    value = onnx.helper.make_tensor_value_info
    weight = onnx.numpy_helper.from_array(np.ones((1, 1, 1, 7), np.float32), "weight")
    nodes = [
        onnx.helper.make_node("Conv", ["x", "weight"], ["c"], "conv", kernel_shape=[1, 7], pads=[0, 3, 0, 2]),
        onnx.helper.make_node("MaxPool", ["c"], ["y"], "pool", kernel_shape=[1, 3], strides=[1, 3]),
    ]
    sizes = [value(name, onnx.TensorProto.FLOAT, ["n", 1, 20, width]) for name, width in (("x", 3), ("y", 1))]
    graph = onnx.helper.make_graph(nodes, "graph", sizes[:1], sizes[1:], [weight])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    made = onnx.load_model_from_string(_simplify.simplify(model.SerializeToString())).graph
    assert [list(one.ints) for one in made.node[0].attribute if one.name == "pads"] == [[0, 3, 0, 2]]


@pytest.mark.slow
def test_an_export_has_no_needless_work() -> None:
    spec = parse({"data": "digits", "network": {"kind": "cnn", "width": 6}}).network
    classifier = networks.build(spec, "abc", (1, 10, 10), mean=[0.4], std=[0.2], seed=1).eval()
    nodes = onnx.load_model_from_string(export.to_onnx(classifier)).graph.node
    pads = [list(one.ints) for node in nodes if node.op_type == "Conv" for one in node.attribute if one.name == "pads"]
    assert pads == [[1, 1, 1, 1], [1, 1, 0, 0]], (
        "10 -> 5, of which 4 are pooled -> 2 pixels, whose convolution is a matrix"
    )
    assert [node.op_type for node in nodes].count("Gemm") == 2


@pytest.mark.slow
def test_int8_is_calibrated_on_training_images_of_every_class(digits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    order = np.argsort(digits.train.labels, kind="stable")  # as a folder lists them: one class after the other
    seen: list[np.ndarray[Any, Any]] = []
    made = quantize.Quantizer.__init__

    def record(self: Any, content: bytes, batches: list[np.ndarray[Any, Any]], *, input: str) -> None:
        seen.extend(batches)
        assert input == "images"
        made(self, content, batches, input=input)

    monkeypatch.setattr(quantize.Quantizer, "__init__", record)
    graph = _file.graph_of(lived_in({"kind": "mlp", "width": 4}, digits), 1.0)
    _file.in_precision(graph, "int8", digits.train.take(order))
    pixels = np.concatenate(seen)[:, :, :, 0]
    known = {
        image.tobytes(): label for image, label in zip(digits.train.images[:, 0], digits.train.labels, strict=True)
    }
    labels = [known[image.tobytes()] for image in pixels]
    assert len(labels) == 512
    assert set(labels) == set(range(10))


@pytest.mark.slow
def test_halves_keep_what_does_not_fit(digits: Splits) -> None:
    classifier = lived_in({"kind": "mlp", "width": 12}, digits)
    with torch.no_grad():
        classifier.body[1].weight[0, 0] = 1e6  # type: ignore[index,union-attr]
    halved = onnx.load_model_from_string(export.to_onnx(classifier, precision="fp16"))
    kinds = {tensor.data_type for tensor in halved.graph.initializer if np.prod(tensor.dims) >= 64}
    assert kinds == {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16}


@pytest.mark.slow
def test_one_plain_file(sold: Path) -> None:
    content = sold.read_bytes()
    model = onnx.load(sold)
    assert [path.name for path in sold.parent.iterdir()] == ["s.onnx"]
    assert not any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer)
    for trace in (b".py", b"/home", str(Path(__file__).parents[1]).encode(), b"stack_trace", b"pkg.torch"):
        assert trace not in content
    (image,) = model.graph.input
    assert image.name == "images"
    assert image.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [bool(d.dim_param) for d in image.type.tensor_type.shape.dim] == [True, True, True, False]
    assert [output.name for output in model.graph.output] == ["logits", "probabilities"]


def test_metadata(taught: Taught, sold: Path) -> None:
    _, _, student = taught
    facts = export.OnnxClassifier(sold.read_bytes()).metadata
    assert (facts["precision"], facts["opset"]) == ("fp32", 20)
    assert student.result is not None
    assert facts["classes"] == list("0123456789")
    assert facts["weights_sha256"] == student.result["weights_sha256"]
    assert facts["scores"]["test"]["accuracy"] == student.result["test"]["accuracy"]
    assert facts["data"]["fingerprint"] == student.spec.data.fingerprint
    assert parse(__import__("yaml").safe_load(facts["spec"])).network == student.spec.network


def test_probabilities_hold_the_fitted_temperature(taught: Taught, sold: Path) -> None:
    store, _, student = taught
    model = export.OnnxClassifier(sold.read_bytes())
    pixels = export.nhwc(data.load(student.spec.data, store.data_cache).test, 20)
    logits, probabilities = model.session.run(["logits", "probabilities"], {"images": pixels})
    assert student.result is not None
    scaled = np.exp(logits / student.result["temperature"])
    np.testing.assert_allclose(probabilities, scaled / scaled.sum(1, keepdims=True), atol=1e-5)


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (17, 40), (5, 9)])
def test_other_sizes_are_resized_inside_as_pillow_would(size: tuple[int, int], taught: Taught, sold: Path) -> None:
    _, _, student = taught
    model = export.OnnxClassifier(sold.read_bytes())
    draw = np.random.default_rng(0)
    image = np.asarray(Image.fromarray(draw.integers(0, 256, (6, 6), dtype=np.uint8)).resize(size[::-1], 2))
    resized = np.asarray(Image.fromarray(image).resize((8, 8), Image.Resampling.BILINEAR))
    inside, outside = (model.logits(picture[None, :, :, None]) for picture in (image, resized))
    assert np.abs(inside - outside).max() < 0.3  # Pillow rounds to whole numbers in between
    with torch.no_grad():
        expected = networks.from_file(student.weights)(torch.from_numpy(image.copy())[None, None]).numpy()
    assert np.abs(inside - expected).max() < 1e-4


@pytest.mark.slow
def test_verify(taught: Taught, sold: Path) -> None:
    store, teacher, _ = taught
    found = export.verify(sold, store)
    assert found["ok"]
    assert found["sealed"]
    assert found["images"] == 359
    assert found["top1_agreement"] == 1.0
    assert found["max_abs_diff"] < 1e-4
    assert found["accuracy"] == found["promised_accuracy"]
    wrong = export.verify(sold, store, run=teacher.id)
    assert not wrong["ok"]
    assert wrong["top1_agreement"] < 1


@pytest.mark.slow
def test_verify_without_the_run_keeps_the_promise(sold: Path, tmp_path: Path) -> None:
    found = export.verify(sold, Store(tmp_path / "another"))
    assert found["ok"]
    assert "accuracy in the file" in found["compared_with"]
    assert found["top1_agreement"] is None
    by_data = export.verify(sold, Store(tmp_path / "another"), data_source="digits")
    assert by_data["ok"]
    assert by_data["same_images"]


def unsealed(content: bytes) -> bytes:
    """A file as its exporter left it, before metadata and seal."""
    model = onnx.load_model_from_string(content)
    del model.metadata_props[:]
    return bytes(model.SerializeToString())


@pytest.mark.slow
def test_hostile_metadata_is_named(taught: Taught, sold: Path, tmp_path: Path) -> None:
    graph = unsealed(sold.read_bytes())
    for facts in ([1], {"data_spec": {"validation": 7}}, {"scores": 3}, {"data": []}, {"loss": 1}):
        (tmp_path / "x.onnx").write_bytes(_file.finished(graph, facts))  # type: ignore[arg-type]
        with pytest.raises(BadModel, match="metadata"):
            export.verify(tmp_path / "x.onnx", taught[0])


@pytest.mark.slow
def test_verify_notices_other_weights_under_a_new_seal(taught: Taught, sold: Path, tmp_path: Path) -> None:
    """A seal has no secret: whoever forges a file can seal it. The answers still give it away."""
    store, teacher, _ = taught
    facts = export.OnnxClassifier(sold.read_bytes()).metadata
    forged = export.to_onnx(networks.from_file(teacher.weights), metadata=facts)
    assert export.checksum_matches(forged)
    (tmp_path / "forged.onnx").write_bytes(forged)
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


@pytest.mark.slow
def test_colour_images_export(tmp_path: Path) -> None:
    from test_data import folder_of

    splits = data.load(DataSpec(source=str(folder_of(tmp_path / "set", "abc", 30, size=(16, 12)))), tmp_path / "cache")
    network = parse({"data": "digits", "network": "cnn"}).network
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


def test_an_export_silences_the_quantizer_and_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    """Two at once left the root logger's level at ERROR: warnings of all later runs were missing in their logs."""
    caplog.set_level(logging.WARNING)
    caplog.set_level(logging.WARNING, logger="smallalign")
    with onnx_graph.quiet():
        logging.getLogger().warning("of the quantizer")
        logging.getLogger("smallalign").warning("of a run beside it")
        outer = onnx_graph.quiet()
        outer.__enter__()
    outer.__exit__(None, None, None)  # they end in another order than they began

    logging.getLogger().warning("afterwards")

    assert [record.message for record in caplog.records] == ["of a run beside it", "afterwards"]
