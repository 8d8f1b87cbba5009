"""What others write around a model, and what their ONNX files take and answer: checkpoints, class names, numbers."""

from __future__ import annotations

import argparse
import collections
import json
import pathlib
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import command
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.torch import load, save_file
from sklearn.linear_model import LogisticRegression

from smallalign_core.analysis import teacher_check
from smallalign_core.data import Splits
from smallalign_core.errors import BadInput, BadModel
from smallalign_core.metrics import log_softmax
from smallalign_core.networks import _library
from smallalign_core.runs import class_names, imported, model_card, onnx_outputs
from smallalign_core.runs.store import Store
from smallalign_core.spec import DataSpec, Import, Timm
from smallalign_core.system import sandbox

DIGITS = DataSpec(source="digits")
NAMES = tuple("0123456789")

# --- checkpoints ------------------------------------------------------------------------------------------------------

NETWORK = {"conv.weight": torch.randn(4, 3, 3, 3), "conv.bias": torch.randn(4), "fc.weight": torch.randn(2, 4)}
EMA = {name: tensor + 1 for name, tensor in NETWORK.items()}


def under(prefix: str, tensors: dict[str, torch.Tensor] = NETWORK) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


class Attributes(dict):  # type: ignore[type-arg]
    """Stands for Lightning's, which is not installed: its name is all that is written."""


Attributes.__module__, Attributes.__qualname__, Attributes.__name__ = (
    "pytorch_lightning.utilities.parsing",
    "AttributeDict",
    "AttributeDict",
)


@pytest.fixture
def lightning(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that `torch.save` finds the class where it says that it is."""
    for name in ("pytorch_lightning", "pytorch_lightning.utilities", "pytorch_lightning.utilities.parsing"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["pytorch_lightning.utilities.parsing"].AttributeDict = Attributes  # type: ignore[attr-defined]


WRAPPED: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "compiled": (lambda: under("_orig_mod."), {"prefix": "_orig_mod."}),
    "compiled in DDP": (lambda: under("module._orig_mod."), {"prefix": "module._orig_mod."}),
    "Lightning": (lambda: {"state_dict": under("model.")}, {"prefix": "model.", "taken": "state_dict"}),
    "averaged": (
        lambda: under("module.") | {"n_averaged": torch.tensor(5)},
        {"prefix": "module.", "left": ["n_averaged"]},
    ),
    "timm's train.py": (
        lambda: {"arch": "x", "state_dict": NETWORK, "args": argparse.Namespace(lr=0.1), "metric": 81.2},
        {"taken": "state_dict"},
    ),
    "a NumPy score": (lambda: {"state_dict": NETWORK, "best": np.float64(81.2)}, {"taken": "state_dict"}),
    # other shapes of the same kind
    "a NumPy array": (lambda: {"model": NETWORK, "curve": np.arange(3.0)}, {"taken": "model"}),
    "paths and defaultdicts": (
        lambda: {"net": NETWORK, "out": pathlib.PurePosixPath("/x"), "log": collections.defaultdict(list, a=[1])},
        {"taken": "net"},
    ),
    "FSDP": (lambda: under("_fsdp_wrapped_module.module."), {"prefix": "_fsdp_wrapped_module.module."}),
    "a backbone": (lambda: {"model_state_dict": under("backbone.")}, {"prefix": "backbone."}),
    "DeepSpeed": (
        lambda: {"module": under("module."), "optimizer_state": {"state": {"exp_avg": torch.ones(9)}}},
        {"taken": "module", "sets": ["module"]},
    ),
    "ema-pytorch": (
        lambda: {"ema": under("ema_model.") | {"initted": torch.tensor(True), "step": torch.tensor(3)}},
        {"taken": "ema", "prefix": "ema_model.", "left": ["initted", "step"]},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WRAPPED)
def test_what_training_code_puts_around_a_network_is_taken_off(name: str, tmp_path: Path) -> None:
    held, told = WRAPPED[name]
    torch.save(held(), tmp_path / "c.pth")
    content, facts = sandbox.convert(tmp_path / "c.pth")
    found = load(content)
    assert found.keys() == NETWORK.keys()
    for key, tensor in NETWORK.items():
        torch.testing.assert_close(found[key], tensor)
    assert {key: facts[key] for key in told} == told


@pytest.mark.slow
@pytest.mark.usefixtures("lightning")
def test_arguments_of_a_library_that_is_not_here_are_data(tmp_path: Path) -> None:
    torch.save({"state_dict": under("model."), "hyper_parameters": Attributes(lr=0.1)}, tmp_path / "c.ckpt")
    assert b"pytorch_lightning" in (tmp_path / "c.ckpt").read_bytes()
    assert load(sandbox.convert(tmp_path / "c.ckpt")[0]).keys() == NETWORK.keys()


@pytest.mark.slow
def test_averaged_weights_are_taken_said_and_can_be_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": NETWORK, "state_dict_ema": EMA}, tmp_path / "c.pth")
    done = command("convert", tmp_path / "c.pth", "--to", tmp_path / "ema.safetensors")
    assert "taken: state_dict_ema; not taken: state_dict (--weights chooses)" in done.stdout
    torch.testing.assert_close(load((tmp_path / "ema.safetensors").read_bytes())["fc.weight"], EMA["fc.weight"])
    plain, facts = sandbox.convert(tmp_path / "c.pth", which="state_dict")
    assert facts["taken"] == "state_dict"
    torch.testing.assert_close(load(plain)["fc.weight"], NETWORK["fc.weight"])
    with pytest.raises(BadModel, match=r"no such set of weights .*it has state_dict, state_dict_ema"):
        sandbox.convert(tmp_path / "c.pth", which="swa")


@pytest.mark.slow
def test_two_networks_of_unknown_names_are_not_guessed_between(tmp_path: Path) -> None:
    torch.save({"generator": NETWORK, "discriminator": EMA}, tmp_path / "c.pth")
    with pytest.raises(BadModel, match=r"several sets of weights .*--weights"):
        sandbox.convert(tmp_path / "c.pth")
    assert sandbox.convert(tmp_path / "c.pth", which="generator")[1]["taken"] == "generator"


class Runs:
    """Runs a command when it is read."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, (f"touch {self.canary}",)


@pytest.mark.slow
def test_what_runs_code_is_still_refused_beside_what_does_not(tmp_path: Path) -> None:
    canary = tmp_path / "ran"
    torch.save({"state_dict": NETWORK, "args": argparse.Namespace(hook=Runs(canary))}, tmp_path / "c.pth")
    with pytest.raises(BadModel, match="would run code"):
        sandbox.convert(tmp_path / "c.pth")
    assert not canary.exists()


def test_a_prefix_in_a_safetensors_file_of_others_is_taken_off_when_training_starts(tmp_path: Path) -> None:
    spec = Timm(kind="timm", name="test_resnet", size=32)
    source, *_ = _library.build(spec, 10)
    tensors = {f"wrapped.{name}": tensor.clone() for name, tensor in source.state_dict().items()}
    save_file(tensors, tmp_path / "w.safetensors")
    made, *_ = _library.build(spec.model_copy(update={"weights": str(tmp_path / "w.safetensors")}), 10)
    for name, tensor in source.state_dict().items():
        torch.testing.assert_close(made.state_dict()[name], tensor)


# --- names of classes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("a.txt", "cat\ndog\n\nship\n"),
        ("a.txt", "0 cat\n1 dog\n2 ship\n"),  # Teachable Machine
        ("a.names", "cat\r\ndog\r\nship"),  # Darknet
        ("a.pbtxt", 'item {\n id: 2\n name: "dog"\n}\nitem { name: "cat" id: 1 }\nitem { id: 3 display_name: "ship" }'),
        ("a.yaml", "path: x\nnames:\n  0: cat\n  1: dog\n  2: ship\n"),  # Ultralytics
        ("a.yml", "classes: [cat, dog, ship]"),
        ("a.json", '["cat", "dog", "ship"]'),
        ("a.json", '{"cat": 0, "ship": 2, "dog": 1}'),  # class_to_idx, Keras' class_indices
        ("a.json", '{"id2label": {"0": "cat", "1": "dog", "2": "ship"}}'),  # Hugging Face's config.json
        ("a.json", '{"0": ["n1", "cat"], "1": ["n2", "dog"], "2": ["n3", "ship"]}'),  # imagenet_class_index.json
    ],
)
def test_class_names_are_read_as_people_keep_them(file: str, text: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text(text)
    assert class_names.in_file(tmp_path / file) == ["cat", "dog", "ship"]


@pytest.mark.parametrize("text", ["", "{", "[1, [2", "names: &a [*a]", "\x00", "a: " + "9" * 5000])
@pytest.mark.parametrize("ending", class_names.ENDINGS)
def test_a_file_without_names_is_a_sentence(text: str, ending: str, tmp_path: Path) -> None:
    (tmp_path / f"a{ending}").write_text(text)
    told = None
    try:
        class_names.in_file(tmp_path / f"a{ending}")
    except BadInput as error:
        told = str(error)
    assert told is None or "\n" not in told


def test_names_in_metadata_are_read_as_ultralytics_writes_them() -> None:
    assert class_names.in_metadata({"names": "{0: 'cat', 1: 'dog'}"}) == ["cat", "dog"]
    with pytest.raises(BadInput, match="has no class names"):
        class_names.in_metadata({"names": "__import__('os')"})


# --- what is put in ---------------------------------------------------------------------------------------------------


WAVE = 5.0


@pytest.fixture(scope="module")
def learned(digits: Splits) -> tuple[Any, Any]:
    """(weights [64, 10], bias [10]) of a logistic regression of digits, on waves of pixels from 0 to 1: a straight line
    would hardly mind another scale."""
    flat = np.sin(WAVE * digits.train.images.reshape(len(digits.train), -1) / 255)
    found = LogisticRegression(max_iter=300).fit(flat, digits.train.labels)
    return found.coef_.T.astype(np.float32), found.intercept_.astype(np.float32)


def classifier(
    learned: tuple[Any, Any],
    *,
    undo: tuple[float, float] = (1.0, 0.0),
    tail: tuple[Any, ...] = (),
    output: int = TensorProto.FLOAT,
    shape: list[Any] | None = None,
    columns: slice = slice(None),
    channels: int = 1,
) -> bytes:
    """The regression as others export it: it takes `(pixels - undo[1]) / undo[0]`, and what `tail` makes of logits."""
    weight, bias = learned[0][:, columns], learned[1][columns]
    weight = np.concatenate([weight] * channels) / channels
    held = [
        numpy_helper.from_array(np.float32(undo[0]), "scale"),
        numpy_helper.from_array(np.float32(undo[1]), "shift"),
        numpy_helper.from_array(np.float32(WAVE), "wave"),
        numpy_helper.from_array(weight.astype(np.float32), "w"),
        numpy_helper.from_array(bias, "b"),
        numpy_helper.from_array(np.array([-1, 64 * channels]), "flat"),
        *(one for one in tail if isinstance(one, TensorProto)),
    ]
    nodes = [
        helper.make_node("Mul", ["x", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "shift"], ["pixels"]),
        helper.make_node("Mul", ["pixels", "wave"], ["waves"]),
        helper.make_node("Sin", ["waves"], ["sines"]),
        helper.make_node("Reshape", ["sines", "flat"], ["v"]),
        helper.make_node("MatMul", ["v", "w"], ["product"]),
        helper.make_node("Add", ["product", "b"], ["z"]),
        *(one for one in tail if not isinstance(one, TensorProto)),
    ]
    if not tail:
        nodes.append(helper.make_node("Identity", ["z"], ["y"]))
    made = helper.make_graph(
        nodes,
        "theirs",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", channels, 8, 8])],
        [helper.make_tensor_value_info("y", output, ["n", weight.shape[1]] if shape is None else shape)],
        held,
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())


def logits_of(learned: tuple[Any, Any], images: Any) -> Any:
    return np.sin(WAVE * images.reshape(len(images), -1) / 255) @ learned[0] + learned[1]


SCALES = {
    "0 to 1": (1.0, 0.0),
    "-1 to 1": (0.5, 0.5),
    "0 to 255": (1 / 255, 0.0),
    "ImageNet's mean and deviation": ((0.229 + 0.224 + 0.225) / 3, (0.485 + 0.456 + 0.406) / 3),
}


@pytest.mark.slow
@pytest.mark.parametrize("scale", SCALES)
def test_the_scale_of_pixels_is_found_and_said(
    scale: str, learned: tuple[Any, Any], store: Store, digits: Splits, tmp_path: Path
) -> None:
    (tmp_path / "m.onnx").write_bytes(classifier(learned, undo=SCALES[scale]))
    run = imported.import_onnx(tmp_path / "m.onnx", DIGITS, store, classes=NAMES)
    assert run.result is not None
    assert run.imported is not None
    (words,) = run.result["assumed"]["words"]
    assert words.startswith(f"pixels scaled to {scale}: accuracy")
    assert "--mean" in words
    images = digits.test.images[:50]
    found = imported.classifier(run, NAMES)(torch.from_numpy(images.copy())).numpy()
    np.testing.assert_allclose(found, logits_of(learned, images), atol=2e-3)
    text = model_card.card_of_import(run, run.imported, "x")
    assert f"pixels scaled to {scale}" in text
    assert f"pixels scaled to {scale}" in teacher_check.preflight(run, store).words()


def test_what_a_person_says_of_the_scale_is_not_doubted(learned: tuple[Any, Any], store: Store, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(classifier(learned, undo=SCALES["0 to 1"]))
    run = imported.import_onnx(tmp_path / "m.onnx", DIGITS, store, classes=NAMES, mean=[0.5], std=[0.5])
    assert run.imported is not None
    assert (run.imported.mean, run.imported.std) == ((0.5,), (0.5,))
    assert run.result is not None
    assert run.result["assumed"]["words"] == []


def test_channels_in_the_order_bgr_are_found(store: Store, tmp_path: Path) -> None:
    draw, data = np.random.default_rng(0), tmp_path / "data"
    for name, channel in (("blue", 2), ("red", 0)):
        (data / name).mkdir(parents=True)
        for number in range(60):
            pixels = draw.integers(0, 120, (8, 8, 3), dtype=np.uint8)
            pixels[..., channel] += 60
            Image.fromarray(pixels).save(data / name / f"{number}.png")
    weight = np.zeros((3, 64, 2), np.float32)
    weight[0, :, 0] = weight[2, :, 1] = 0.2  # BGR: the first channel is blue
    learned = weight.reshape(192, 2) * 1.0, np.zeros(2, np.float32)
    (tmp_path / "m.onnx").write_bytes(_colour(learned))
    run = imported.import_onnx(tmp_path / "m.onnx", DataSpec(source=str(data)), store, classes=("blue", "red"))
    assert run.imported is not None
    assert run.imported.order == "bgr"
    assert run.result is not None
    assert run.result["test"]["accuracy"] == 1
    assert "BGR" in run.result["assumed"]["words"][0]


def _colour(learned: tuple[Any, Any]) -> bytes:
    made = helper.make_graph(
        [helper.make_node("Reshape", ["x", "flat"], ["v"]), helper.make_node("MatMul", ["v", "w"], ["y"])],
        "colour",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(learned[0], "w"), numpy_helper.from_array(np.array([-1, 192]), "flat")],
    )
    return bytes(
        helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()
    )


# --- what comes out ---------------------------------------------------------------------------------------------------

SIGMOID = (helper.make_node("Sigmoid", ["z"], ["y"]),)
SOFTMAX8 = (
    numpy_helper.from_array(np.float32(1 / 256), "step"),
    numpy_helper.from_array(np.uint8(0), "zero"),
    helper.make_node("Softmax", ["z"], ["p"], axis=1),
    helper.make_node("QuantizeLinear", ["p", "step", "zero"], ["q"]),
)
ANSWERS: dict[str, tuple[dict[str, Any], str]] = {
    "logits": ({}, "logits"),
    "softmax": ({"tail": (helper.make_node("Softmax", ["z"], ["y"], axis=1),)}, "probabilities"),
    "log softmax": ({"tail": (helper.make_node("LogSoftmax", ["z"], ["y"], axis=1),)}, "logits"),
    "sigmoid": ({"tail": SIGMOID}, "sigmoid"),
    "8-bit softmax": (
        {"tail": (*SOFTMAX8, helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["y"]))},
        "probabilities",
    ),
    "uint8": (
        {"tail": (*SOFTMAX8, helper.make_node("Identity", ["q"], ["y"])), "output": TensorProto.UINT8},
        "probabilities",
    ),
    "[N, K, 1, 1]": (
        {
            "tail": (
                numpy_helper.from_array(np.array([-1, 10, 1, 1]), "four"),
                helper.make_node("Reshape", ["z", "four"], ["y"]),
            ),
            "shape": ["n", 10, 1, 1],
        },
        "logits",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ANSWERS)
def test_what_the_answers_are_is_read_from_their_numbers(
    name: str, learned: tuple[Any, Any], store: Store, digits: Splits, tmp_path: Path
) -> None:
    made, kind = ANSWERS[name]
    (tmp_path / "m.onnx").write_bytes(classifier(learned, **made))
    run = imported.import_onnx(tmp_path / "m.onnx", DIGITS, store, classes=NAMES, mean=[0.0], std=[1.0])
    assert run.imported is not None
    assert run.imported.answers == kind
    assert run.result is not None
    assert bool(run.result["assumed"]["words"]) is (kind != "logits")
    images = digits.test.images
    found = imported.classifier(run, NAMES)(torch.from_numpy(images.copy())).numpy()
    wanted = logits_of(learned, images)
    if "8" in name:  # a step of 1/256 hides what is below it
        p, q = np.exp(log_softmax(wanted)), np.exp(log_softmax(found))
        np.testing.assert_allclose(q, p, atol=0.02)
        right = -log_softmax(wanted)[np.arange(len(images)), digits.test.labels].mean()
        ours = -log_softmax(found)[np.arange(len(images)), digits.test.labels].mean()
        assert abs(ours - right) < 0.05
    else:
        atol = 2e-2 if kind == "sigmoid" else 1e-3
        least = np.log(run.imported.floor) if kind == "probabilities" else -np.inf  # smaller ones are kept as this
        np.testing.assert_allclose(log_softmax(found), log_softmax(wanted).clip(least), atol=atol, rtol=1e-3)


def two(learned: tuple[Any, Any]) -> tuple[Any, Any]:
    """One number for two classes: the log-odds of 1 against 0."""
    return learned[0][:, 1:2] - learned[0][:, :1], learned[1][1:2] - learned[1][:1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tail", "shape", "kind"),
    [
        ((), ["n", 1], "one_logit"),
        (SIGMOID, ["n", 1], "one_probability"),
        (
            (
                numpy_helper.from_array(np.array([1]), "axis"),
                helper.make_node("Squeeze", ["z", "axis"], ["y"]),
            ),
            ["n"],
            "one_logit",
        ),
    ],
)
def test_one_number_for_two_classes_is_their_log_odds(
    tail: tuple[Any, ...], shape: list[Any], kind: str, learned: tuple[Any, Any], digits: Splits, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    for label in range(2):
        (data / "ab"[label]).mkdir(parents=True)
        for number, image in enumerate(digits.train.images[digits.train.labels == label][:40]):
            Image.fromarray(image[0]).save(data / "ab"[label] / f"{number}.png")
    (tmp_path / "m.onnx").write_bytes(classifier(two(learned), tail=tail, shape=shape))
    store = Store(tmp_path / "models")
    run = imported.import_onnx(
        tmp_path / "m.onnx", DataSpec(source=str(data)), store, classes=("a", "b"), mean=[0.0], std=[1.0]
    )
    assert run.imported is not None
    assert run.imported.answers == kind
    images = digits.test.images[:20]
    found = imported.classifier(run)(torch.from_numpy(images.copy())).numpy()
    odds = logits_of(learned, images)
    np.testing.assert_allclose(found[:, 1] - found[:, 0], odds[:, 1] - odds[:, 0], atol=2e-2, rtol=1e-3)
    words = "not exactly one output" if shape == ["n"] else "A single output is for two classes"
    with pytest.raises(BadInput, match=words):
        imported.import_onnx(tmp_path / "m.onnx", DIGITS, store, classes=NAMES, output="y")


@pytest.mark.slow
@pytest.mark.parametrize("named", [None, "y"])
@pytest.mark.parametrize("kind", [TensorProto.INT64, TensorProto.FLOAT])
def test_the_number_of_a_class_teaches_nothing(
    named: str | None, kind: int, learned: tuple[Any, Any], store: Store, tmp_path: Path
) -> None:
    tail = (
        helper.make_node("ArgMax", ["z"], ["k"], axis=1, keepdims=1),
        helper.make_node("Cast", ["k"], ["y"], to=kind),
    )
    (tmp_path / "m.onnx").write_bytes(classifier(learned, tail=tail, output=kind, shape=["n", 1]))
    with pytest.raises(BadInput) as caught:
        imported.import_onnx(tmp_path / "m.onnx", DIGITS, store, classes=NAMES, output=named)
    assert "class index" in str(caught.value) or "10 names, 1 outputs" in str(caught.value)


@pytest.mark.slow
def test_a_reading_can_be_named(learned: tuple[Any, Any], store: Store, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(classifier(learned, tail=SIGMOID))
    options = ["--data", "digits", "--classes", ",".join(NAMES), "--mean", "0", "--std", "1"]
    done = command("import", tmp_path / "m.onnx", *options, "--answers", "logits", "--json", store=store)
    found = json.loads(done.stdout)
    assert found["answers"] == "logits"
    assert found["assumed"]["words"] == ["outputs: logits, as given (--answers overrides)"]
    said = command("import", tmp_path / "m.onnx", *options, store=store).stdout
    assert "one sigmoid per class" in " ".join(said.split())


def test_a_background_class_is_hinted_at() -> None:
    how = Import.model_construct(classes=NAMES, stored="float", file="m.onnx")
    with pytest.raises(BadInput, match="background class"):
        onnx_outputs.answers_of(np.random.default_rng(0).normal(size=(4, 11)), how)


def test_weights_in_another_file_are_refused_with_the_argument_that_avoids_it(tmp_path: Path) -> None:
    tensor = numpy_helper.from_array(np.zeros((64, 2), np.float32), "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "m.onnx.data"
    made = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "x",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [tensor],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BadModel, match="external_data=False"):
        sandbox.inspect(tmp_path / "m.onnx")
