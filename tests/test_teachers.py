"""Teachers from elsewhere: imports, networks with weights to start from, the jail, and the pre-flight."""

from __future__ import annotations

import hashlib
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import Train, command, tiny
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import load_file, save_file

from smallalign_core import export, metrics, networks
from smallalign_core.analysis import compare, teacher_check
from smallalign_core.data import Splits
from smallalign_core.errors import BadInput, BadModel, BadSpec, Refused
from smallalign_core.runs import imported as foreign
from smallalign_core.runs.store import Run, Store
from smallalign_core.service import handlers
from smallalign_core.service.requests import CheckTeacher
from smallalign_core.spec import DataSpec, canonical, digest, parse, parse_data, to_yaml
from smallalign_core.system import sandbox
from smallalign_core.system.typed import flat
from smallalign_core.training import runner
from smallalign_core.training.resolve import resolve
from smallalign_core.training.teacher import _pack

DIGITS = DataSpec(source="digits")
QUICK = sandbox.Limits(seconds=3, wall=20.0)


# --- files of others --------------------------------------------------------------------------------------------------


def graph(
    *,
    layout: str = "nchw",
    dtype: int = TensorProto.FLOAT,
    batch: int | str = "n",
    channels: int | str = 1,
    classes: int = 10,
    softmax: bool = False,
    normal: tuple[float, float] = (0.0, 1.0),
    names: list[str] | None = None,
    seed: int = 0,
) -> bytes:
    """A linear classifier of 8x8 images as others write them: its own layout, type and batch."""
    draw = np.random.default_rng(seed)
    shape = [batch, channels, 8, 8] if layout == "nchw" else [batch, 8, 8, channels]
    width = 64 * (channels if isinstance(channels, int) else 1)
    weight = draw.normal(size=(width, classes)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["f", "flat"], ["v"]),
        helper.make_node("MatMul", ["v", "w"], ["softmax_in" if softmax else "y"]),
    ]
    if softmax:
        nodes.append(helper.make_node("Softmax", ["softmax_in"], ["y"], axis=1))
    made = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, classes])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.array([-1, width]), "flat")],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    if names:
        helper.set_model_props(model, {"names": json.dumps(dict(enumerate(names)))})
    return bytes(model.SerializeToString())


def weights_of(seed: int = 0, classes: int = 10) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=(64, classes)).astype(np.float32)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Run, Path]:
    """(store, the zoo's teacher, its export)."""
    store = Store(tmp_path_factory.mktemp("exported") / "models")
    run = store.run("digits-teacher")
    file = store.root.parent / "teacher.onnx"
    export.export(run, file)
    return store, run, file


def with_classes(file: Path, names: list[str], to: Path, order: list[int] | None = None) -> Path:
    """The same export with other names of its classes, and its answers in another order."""
    model = onnx.load(file)
    model.metadata_props[0].value = json.dumps({"classes": names})
    if order is not None:
        model.graph.initializer.append(numpy_helper.from_array(np.array(order), "order"))
        model.graph.node.append(helper.make_node("Gather", ["logits", "order"], ["ordered"], axis=1))
        model.graph.output.append(helper.make_tensor_value_info("ordered", TensorProto.FLOAT, ["batch", len(order)]))
    to.write_bytes(model.SerializeToString())
    return to


def answers_of(run: Run, classes: tuple[str, ...], images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return foreign.classifier(run, classes)(images)


# --- imports ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_import_of_our_own_export_answers_as_the_run_does(exported: tuple[Store, Run, Path], digits: Splits) -> None:
    store, run, file = exported
    imported = foreign.import_onnx(file, DIGITS, store)
    images = torch.from_numpy(digits.test.images.copy())
    answers = answers_of(imported, digits.classes, images)
    torch.testing.assert_close(answers, networks.from_file(run.weights)(images).detach(), atol=1e-4, rtol=0)
    assert imported.result is not None
    assert imported.result["test"]["accuracy"] == run.result["test"]["accuracy"]  # type: ignore[index]
    assert foreign.import_onnx(file, DIGITS, store).id == imported.id  # an equal import is the same
    assert [row.id for row in store.runs()].count(imported.id) == 1


@pytest.mark.slow
def test_an_import_is_found_listed_compared_and_deleted_but_not_trained_or_exported(
    exported: tuple[Store, Run, Path], tmp_path: Path
) -> None:
    _, run, file = exported
    store = Store(tmp_path / "models")
    imported = foreign.import_onnx(file, DIGITS, store)
    assert store.finished(imported.id[:6]).folder == imported.folder
    found = compare.compare(imported, store.run("digits-student"), store, split="val")
    assert found.teacher.accuracy == run.result["val"]["accuracy"]  # type: ignore[index]
    for question in (lambda: imported.spec, lambda: export.export(imported, tmp_path / "again.onnx")):
        with pytest.raises(Refused, match="imported, not trained here"):
            question()
    student = store.create(resolve(store, tiny(teacher=imported.id)))
    with pytest.raises(Refused, match="nfinished runs depend on it"):
        store.delete(imported.id)
    store.delete(student.id)
    store.delete(imported.id)
    assert store.runs() == []


@pytest.mark.slow
def test_an_import_teaches_as_the_run_that_it_was(exported: tuple[Store, Run, Path], tmp_path: Path) -> None:
    """The same lesson from PyTorch and from ONNX Runtime: weights differ by rounding only."""
    _, run, file = exported
    store = Store(tmp_path / "models")
    made = []
    for teacher in (foreign.import_onnx(file, DIGITS, store).id, run.id):
        student = store.create(resolve(store, tiny(teacher=teacher, network={"kind": "mlp", "width": 8})))
        runner.execute(student, store, device="cpu")
        made.append(load_file(student.weights))
    for name, tensor in made[0].items():
        torch.testing.assert_close(tensor, made[1][name], atol=1e-3, rtol=1e-3)


@pytest.mark.slow
def test_classes_in_another_order_and_more_of_them_are_matched_by_name(
    exported: tuple[Store, Run, Path], digits: Splits, tmp_path: Path
) -> None:
    store, run, file = exported
    order = [9, 3, 3, 1, 0, 2, 4, 8, 7, 6, 5]
    names = ["9", "3", "spare", "1", "0", "2", "4", "8", "7", "6", "5"]
    moved = with_classes(file, names, tmp_path / "moved.onnx", order)
    imported = foreign.import_onnx(moved, DIGITS, store, output="ordered")
    images = torch.from_numpy(digits.val.images.copy())
    answers = answers_of(imported, digits.classes, images)
    torch.testing.assert_close(answers, networks.from_file(run.weights)(images).detach(), atol=1e-4, rtol=0)
    found = teacher_check.preflight(imported, store)
    assert found.unused == 1
    assert ("spare", "spare") not in found.mapping
    assert sorted(found.mapping) == sorted((name, name) for name in digits.classes)


@pytest.mark.slow
def test_names_that_do_not_match_are_refused_with_the_list(exported: tuple[Store, Run, Path], tmp_path: Path) -> None:
    store, _, file = exported
    names = [*"012345678", "nine"]
    with pytest.raises(BadInput, match=r"lacks 1 of 10 classes \(given: missing: 9; its 10 classes: 0, 1"):
        foreign.import_onnx(with_classes(file, names, tmp_path / "odd.onnx"), DIGITS, store)
    with pytest.raises(BadInput, match="9 names, 10 outputs"):
        foreign.import_onnx(file, DIGITS, store, classes=list("012345678"))
    with pytest.raises(BadInput, match="duplicate class names"):
        foreign.import_onnx(file, DIGITS, store, classes=list("0123456799"))
    (tmp_path / "nameless.onnx").write_bytes(graph())
    with pytest.raises(BadInput, match=r"has no class names.*--classes"):
        foreign.import_onnx(tmp_path / "nameless.onnx", DIGITS, store)


def test_a_native_run_too_is_asked_about_classes_by_name(taught: tuple[Store, Run, Run], digits: Splits) -> None:
    _, teacher, _ = taught
    images = torch.from_numpy(digits.val.images[:50].copy())
    whole = answers_of(teacher, digits.classes, images)
    some = answers_of(teacher, ("7", "2"), images)
    torch.testing.assert_close(some, whole[:, [7, 2]])
    with pytest.raises(BadInput, match="lacks 2 of 2 classes"):
        foreign.classifier(teacher, ("cat", "dog"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "layout", "batch"),
    [
        (TensorProto.FLOAT, "nchw", "n"),
        (TensorProto.FLOAT, "nhwc", "n"),
        (TensorProto.FLOAT, "nchw", 1),
        (TensorProto.UINT8, "nhwc", 4),
        (TensorProto.FLOAT16, "nchw", "n"),
    ],
)
def test_layout_type_and_batch_are_read_from_the_file(
    store: Store, digits: Splits, tmp_path: Path, dtype: int, layout: str, batch: int | str
) -> None:
    file = tmp_path / "theirs.onnx"
    file.write_bytes(graph(dtype=dtype, layout=layout, batch=batch, names=list("0123456789")))
    options: dict[str, Any] = {} if dtype == TensorProto.UINT8 else {"white": 255.0, "mean": [10.0], "std": [4.0]}
    how = foreign.import_onnx(file, DIGITS, store, **options)
    answers = answers_of(how, digits.classes, torch.from_numpy(digits.test.images[:10].copy())).numpy()
    pixels = digits.test.images[:10].reshape(10, 64).astype(np.float32)
    seen = pixels if dtype == TensorProto.UINT8 else (pixels - 10) / 4
    np.testing.assert_allclose(
        answers, seen @ weights_of(), rtol=2e-2 if dtype == TensorProto.FLOAT16 else 1e-4, atol=1e-1
    )
    assert how.imported is not None
    assert (how.imported.layout, how.imported.batch) == (layout, batch if isinstance(batch, int) else None)


def test_gray_images_reach_a_colour_network_and_probabilities_become_logits(
    store: Store, digits: Splits, tmp_path: Path
) -> None:
    file = tmp_path / "colour.onnx"
    file.write_bytes(graph(channels=3, softmax=True))
    run = foreign.import_onnx(file, DIGITS, store, classes=digits.classes)
    assert run.imported is not None
    assert (run.imported.channels, run.imported.answers) == (3, "probabilities")
    images = digits.test.images[:10]
    answers = answers_of(run, digits.classes, torch.from_numpy(images.copy()))
    mean, std = np.array([0.485, 0.456, 0.406])[:, None], np.array([0.229, 0.224, 0.225])[:, None]
    seen = ((images.reshape(10, 1, 64) / 255 - mean) / std).reshape(10, 192)
    logits = seen @ np.random.default_rng(0).normal(size=(192, 10))
    wanted = np.exp(logits - logits.max(1, keepdims=True))
    wanted /= wanted.sum(1, keepdims=True)
    np.testing.assert_allclose(torch.softmax(answers, 1).numpy(), wanted, atol=1e-5)


@pytest.mark.slow
def test_what_the_file_leaves_open_is_asked_for(store: Store, tmp_path: Path) -> None:
    names = list("0123456789")
    (tmp_path / "open.onnx").write_bytes(graph(channels="c", names=names))
    with pytest.raises(BadInput, match=r"channel axis is ambiguous.*--layout"):
        foreign.import_onnx(tmp_path / "open.onnx", DIGITS, store)
    (tmp_path / "bytes.onnx").write_bytes(graph(dtype=TensorProto.UINT8, names=names))
    with pytest.raises(BadInput, match="scales them itself"):
        foreign.import_onnx(tmp_path / "bytes.onnx", DIGITS, store, mean=[0.5])
    with pytest.raises(BadInput, match="do not fit"):
        foreign.import_onnx(tmp_path / "bytes.onnx", DIGITS, store, size=(16, 16))
    (tmp_path / "float.onnx").write_bytes(graph(names=names))
    with pytest.raises(BadInput, match="ean and std must be one positive number per channel"):
        foreign.import_onnx(tmp_path / "float.onnx", DIGITS, store, std=[0.0])


@pytest.mark.slow
def test_an_imported_file_that_was_damaged_is_noticed(exported: tuple[Store, Run, Path], tmp_path: Path) -> None:
    store = Store(tmp_path / "models")
    run = foreign.import_onnx(exported[2], DIGITS, store)
    content = bytearray(run.weights.read_bytes())
    content[len(content) // 2] ^= 1
    run.weights.write_bytes(content)
    with pytest.raises(BadModel, match="imported file is damaged"):
        foreign.classifier(run)


@pytest.mark.parametrize("shape", [(128, 64), (1, 64), (5, 3, 64)])
@pytest.mark.parametrize("bias", [True, False])
def test_packed_weights_answer_the_same_to_the_last_bit(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    layer, given = torch.nn.Linear(64, 200, bias=bias).bfloat16(), torch.randn(shape)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        plain = layer(given)
        _pack(layer)
        packed = layer(given)
    assert torch.equal(plain, packed)
    assert ("forward" in vars(layer)) == torch.ops.mkldnn._is_mkldnn_bf16_supported()


# --- the jail ---------------------------------------------------------------------------------------------------------


class Payload:
    """A pickle that touches a file when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@pytest.mark.slow
def test_a_pickle_does_not_run(tmp_path: Path) -> None:
    marker, file = tmp_path / "ran", tmp_path / "model.onnx"
    for write in (lambda: file.write_bytes(pickle.dumps(Payload(marker))), lambda: torch.save(Payload(marker), file)):
        write()
        with pytest.raises(BadModel, match="is a pickle"):
            sandbox.inspect(file)
        with pytest.raises(BadModel, match=r"would run code|damaged"):
            sandbox.convert(file)
        assert not marker.exists()
    pickle.loads(pickle.dumps(Payload(marker)))  # noqa: S301  # the payload does work where nobody is careful
    assert marker.exists()


@pytest.mark.slow
def test_a_checkpoint_becomes_safetensors(tmp_path: Path) -> None:
    tensors = {"module.a": torch.arange(6.0).view(2, 3).t(), "module.b": torch.ones(2, dtype=torch.int64)}
    torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "c.pth")
    done = command("convert", tmp_path / "c.pth", "--to", tmp_path / "c.safetensors", "--json")
    assert json.loads(done.stdout)["params"] == 8, done.stderr
    kept = load_file(tmp_path / "c.safetensors")
    assert set(kept) == {"a", "b"}
    torch.testing.assert_close(kept["a"], tensors["module.a"])
    torch.save({"w": torch.zeros(1).expand(1_000_000_000)}, tmp_path / "bomb.pth")
    with pytest.raises(BadModel, match="more values than it contains"):
        sandbox.convert(tmp_path / "bomb.pth")


def test_programs_are_refused_in_words(tmp_path: Path) -> None:
    for name, inner, words in (
        ("script.onnx", "m/constants.pkl", "TorchScript"),
        ("program.pt", "m/models/model.json", "exported program"),
        ("plain.zip", "a/b.txt", "zip without a model"),
    ):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr(inner, b"")
        with pytest.raises(BadModel, match=words):
            sandbox.inspect(tmp_path / name)


def bomb(nodes: list[Any], tensors: list[Any] = ()) -> bytes:  # type: ignore[assignment]
    """A model of these nodes from x [n, 1, 8, 8] to y."""
    made = helper.make_graph(
        nodes,
        "bomb",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        list(tensors),
    )
    return bytes(
        helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()
    )


def endless() -> bytes:
    """Multiplies matrices that it made itself, for hours."""
    side = 4096
    tensors = [numpy_helper.from_array(np.array([side, side]), "shape"), numpy_helper.from_array(np.array(0), "zero")]
    nodes = [
        helper.make_node("Cast", ["x"], ["c"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["c"], ["one"], keepdims=0),
        helper.make_node("ConstantOfShape", ["shape"], ["z"]),
        helper.make_node("Add", ["z", "one"], ["m0"]),
        *(helper.make_node("MatMul", [f"m{i}", "m0"], [f"m{i + 1}"]) for i in range(3000)),
        helper.make_node("Identity", ["m3000"], ["y"]),
    ]
    return bomb(nodes, tensors)


def external() -> bytes:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[64, 10], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../../etc/passwd")
    return bomb([helper.make_node("MatMul", ["x", "w"], ["y"])], [tensor])


def giant() -> bytes:
    shape = numpy_helper.from_array(np.array([100_000, 100_000]), "shape")
    return bomb([helper.make_node("ConstantOfShape", ["shape"], ["y"])], [shape])


def hungry() -> bytes:
    """Asks for memory step by step, so that no single constant gives it away."""
    shape = numpy_helper.from_array(np.array([16384, 16384]), "shape")
    made = [helper.make_node("ConstantOfShape", ["shape"], [f"z{i}"]) for i in range(12)]
    return bomb([*made, helper.make_node("Concat", [f"z{i}" for i in range(12)], ["y"], axis=0)], [shape])


def looping() -> bytes:
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, [])],
    )
    many, true = (numpy_helper.from_array(np.array(value), name) for value, name in ((2**62, "many"), (True, "true")))
    return bomb(
        [helper.make_node("Loop", ["many", "true"], [], body=body), helper.make_node("Identity", ["x"], ["y"])],
        [many, true],
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (endless, "3 seconds of CPU time"),
        (external, "weights in another file"),
        (giant, "giant constant"),
        (hungry, "more memory"),
        (looping, "has a loop"),
        (lambda: b"\x08" + bytes(range(256)) * 40, "neither ONNX nor safetensors"),
        (lambda: (10**6).to_bytes(8, "little") + b"{" + b"x" * 2 * 10**6, "safetensors file is damaged"),
        (lambda: b"", "1 to 1,073,741,824 bytes"),
    ],
    ids=["endless", "external", "giant", "hungry", "looping", "garbage", "header", "empty"],
)
def test_hostile_files_get_one_sentence(tmp_path: Path, content: Any, words: str) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(content())
    with pytest.raises(BadModel, match=words) as caught:
        sandbox.inspect(file, limits=QUICK)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [file]


def test_a_child_that_only_waits_is_ended(tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    file.write_bytes(graph())
    with pytest.raises(BadModel, match="needs more than 0 seconds"):
        sandbox.inspect(file, limits=sandbox.Limits(wall=0.01))


@pytest.mark.slow
def test_bad_files_are_one_line_and_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "junk.onnx").write_bytes(b"hello" * 100)
    done = command("import", tmp_path / "junk.onnx", "--data", "digits", store=Store(tmp_path / "models"))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert not (tmp_path / "models" / "runs").exists()


# --- the pre-flight ---------------------------------------------------------------------------------------------------


def test_the_report_agrees_with_evaluate_on_the_same_logits(exported: tuple[Store, Run, Path], digits: Splits) -> None:
    store, run, _ = exported
    found = teacher_check.preflight(run, store)
    val = digits.val
    logits = metrics.logits_of(networks.from_file(run.weights), val)
    assert found.scores.accuracy == metrics.score(logits, val.labels, val.classes).accuracy
    for name in ("nll", "ece", "accuracy_low"):
        assert getattr(found.scores, name) == pytest.approx(
            getattr(metrics.score(logits, val.labels, val.classes), name), rel=1e-4
        )
    assert found.temperature == pytest.approx(metrics.fit_temperature(logits, val.labels), rel=1e-3)
    assert found.calibrated_ece == pytest.approx(
        metrics.score(logits, val.labels, val.classes, found.temperature).ece, rel=1e-3
    )
    assert found.refused is None
    assert found.digest == hashlib.sha256(run.weights.read_bytes()).hexdigest()
    assert found.repeat_diff == 0
    assert 0 <= found.batch_diff < 1e-4
    assert found.images_per_second > 0


def test_suggested_temperatures_are_where_they_are_said_to_be() -> None:
    logits = np.random.default_rng(0).normal(scale=6, size=(500, 10)).astype(np.float32)
    low, high = teacher_check.suggested(logits)
    for temperature, wanted in ((low, 0.9), (high, 0.55)):
        confidence = torch.softmax(torch.from_numpy(logits) / temperature, 1).amax(1).mean()
        assert float(confidence) == pytest.approx(wanted, abs=1e-4)
    soft = teacher_check.softness(logits, 4.0)
    known = torch.distributions.Categorical(logits=torch.from_numpy(logits) / 4)
    assert soft.entropy == pytest.approx(float(known.entropy().mean()), rel=1e-5)
    assert teacher_check.suggested(logits / 1000) == pytest.approx((0.5, 0.5))  # never sharp enough: the loss's bound


@pytest.mark.slow
def test_heads_that_know_nothing_are_refused(exported: tuple[Store, Run, Path], tmp_path: Path) -> None:
    """A random head (all of five), and the zoo's teacher with its classes in a wrong order."""
    store, _, file = exported
    for seed in range(5):
        (tmp_path / f"{seed}.onnx").write_bytes(graph(seed=seed, names=list("0123456789")))
        run = foreign.import_onnx(tmp_path / f"{seed}.onnx", DIGITS, store)
        assert "not shown to be better than chance" in str(teacher_check.preflight(run, store).refused)
    shuffled = foreign.import_onnx(file, DIGITS, store, classes=list("1234567890"))
    done = command("preflight", shuffled.id, "--json", store=store)
    assert done.returncode == 1, done.stderr
    assert "chance 10." in json.loads(done.stdout)["refused"]


@pytest.mark.slow
def test_a_model_that_rolls_dice_is_warned_about(store: Store, tmp_path: Path, digits: Splits) -> None:
    model = onnx.load_from_string(graph(names=list("0123456789")))
    model.graph.node[2].output[0] = "clean"
    model.graph.node.append(helper.make_node("RandomNormalLike", ["clean"], ["noise"], scale=0.5))
    model.graph.node.append(helper.make_node("Add", ["clean", "noise"], ["y"]))
    (tmp_path / "dice.onnx").write_bytes(model.SerializeToString())
    found = teacher_check.preflight(foreign.import_onnx(tmp_path / "dice.onnx", DIGITS, store), store)
    assert found.repeat_diff > 0.1
    assert any("outputs differ between repeated runs" in warning for warning in found.warnings)


@pytest.mark.slow
def test_the_command_line_and_the_backend_say_the_same(exported: tuple[Store, Run, Path]) -> None:
    store, _, file = exported
    done = command("import", file, "--data", "digits", "--as", "from-elsewhere", "--json", store=store)
    assert json.loads(done.stdout)["val"]["accuracy"] > 0.98, done.stderr
    assert store.run("from-elsewhere").in_zoo
    assert "SHA-256" in (store.run("from-elsewhere").folder / "card.md").read_text()
    done = command("preflight", "from-elsewhere", "--data", "digits", "--json", store=store)
    said, estimated = (
        json.loads(done.stdout),
        handlers.preflight(store, CheckTeacher("from-elsewhere", parse_data("digits"))),
    )
    for name in ("scores", "suggested", "temperature", "refused", "mapping"):
        assert said[name] == flat(estimated)[name], name
    assert "usable as a teacher" in estimated.words()


# --- networks with weights to start from ------------------------------------------------------------------------------


def small(**fields: Any) -> dict[str, Any]:
    return {"kind": "torchvision", "name": "squeezenet1_1", "size": 32, **fields}


@pytest.fixture
def start(tmp_path: Path) -> Path:
    """Weights of squeezenet for three classes: a head that digits cannot use."""
    network = networks._library.build(parse({"data": "-", "network": small()}).network, 3)[0]  # type: ignore[arg-type]
    save_file(network.state_dict(), tmp_path / "start.safetensors")
    return tmp_path / "start.safetensors"


@pytest.mark.slow
def test_a_run_starts_from_a_file_and_its_digest_is_the_files(store: Store, start: Path, tmp_path: Path) -> None:
    resolved = resolve(store, tiny(network=small(weights=str(start))))
    assert resolved.network.weights_sha256 == hashlib.sha256(start.read_bytes()).hexdigest()  # type: ignore[union-attr]
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(start.read_bytes())
    assert digest(resolve(store, tiny(network=small(weights=str(moved))))) == digest(resolved)
    assert digest(resolve(store, tiny(network=small()))) != digest(resolved)
    tensors = load_file(start)
    tensors["features.0.bias"] += 1
    save_file(tensors, start)
    assert digest(resolve(store, tiny(network=small(weights=str(start))))) != digest(resolved)
    with pytest.raises(BadModel, match="file has changed"):
        networks.build(resolved.network, list("ab"), (1, 8, 8), mean=[0.5], std=[0.5])
    assert "weights_sha256" not in to_yaml(resolved)


def test_the_body_is_the_files_and_the_head_is_new(start: Path) -> None:
    spec = parse({"data": "-", "network": small(weights=str(start))}).network
    made = networks.build(spec, list("abcd"), (3, 32, 32), mean=[0.1] * 3, std=[0.9] * 3)
    given = load_file(start)
    for name, tensor in made.body.state_dict().items():
        if name.startswith("classifier"):
            assert tensor.shape[0] == 4
        else:
            torch.testing.assert_close(tensor, given[name])
    assert made.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])  # what the weights were trained with


@pytest.mark.slow
def test_a_linear_probe_moves_nothing_but_the_head(train: Train, start: Path) -> None:
    # batch norm too: its running averages are part of a frozen body
    run = train(
        network={
            "kind": "torchvision",
            "name": "mnasnet0_5",
            "size": 32,
            "weights": str(mnasnet(start.parent)),
            "frozen": True,
        },
        epochs=1,
    )
    before, after = load_file(start.parent / "mnasnet.safetensors"), load_file(run.weights)
    moved = [name for name, tensor in before.items() if not torch.equal(tensor, after[f"body.{name}"])]
    assert sorted(moved) == ["classifier.1.bias", "classifier.1.weight"]
    assert run.result is not None
    assert run.result["params"] == sum(p.numel() for p in networks.from_file(run.weights).parameters())
    assert run.result["params"] > 900_000


def mnasnet(folder: Path) -> Path:
    spec = parse({"data": "-", "network": {"kind": "torchvision", "name": "mnasnet0_5", "size": 32}}).network
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = networks._library.build(spec, 10)[0]  # type: ignore[arg-type]
    save_file(network.state_dict(), folder / "mnasnet.safetensors")
    return folder / "mnasnet.safetensors"


@pytest.mark.slow
def test_a_run_may_start_from_another_runs_weights(train: Train) -> None:
    first = train(network=small(), epochs=1)
    second = train(network=small(weights=str(first.weights), frozen=True), epochs=1, seed=5)
    one, two = load_file(first.weights), load_file(second.weights)
    assert torch.equal(one["body.features.0.weight"], two["body.features.0.weight"])
    assert torch.equal(one["mean"], two["mean"])
    assert networks.from_file(second.weights).classes == tuple("0123456789")


def test_what_cannot_be_started_from_is_refused(store: Store, start: Path, exported: tuple[Store, Run, Path]) -> None:
    with pytest.raises(BadModel, match=r"of another network than mobilenet_v2.*tensors are missing"):
        resolve(store, tiny(network={"kind": "torchvision", "name": "mobilenet_v2", "weights": str(start)}))
    with pytest.raises(BadModel, match="a safetensors file"):
        resolve(store, tiny(network=small(weights=str(exported[2]))))
    with pytest.raises(BadModel, match="cannot be read"):
        resolve(store, tiny(network=small(weights="nowhere.safetensors")))
    with pytest.raises(BadSpec, match="both set the initial weights"):
        tiny(network=small(weights="a", pretrained=True))
    with pytest.raises(BadSpec, match="`frozen` needs initial weights"):
        tiny(network=small(frozen=True))
    with pytest.raises(BadSpec, match=r"imm has no .* model of that name.*resnet"):
        resolve(store, tiny(network="timm:resnet81"))


def test_old_specs_keep_their_ids() -> None:
    """The new fields have defaults, and the texts that digests are made of leave defaults out."""
    spec = parse({"data": "digits", "network": "torchvision:mobilenet_v3_small"})
    assert canonical(spec)["network"] == {"kind": "torchvision", "name": "mobilenet_v3_small"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224"])
def test_timm_networks_are_built_trained_kept_and_exported(train: Train, tmp_path: Path, name: str) -> None:
    run = train(network={"kind": "timm", "name": name, "size": 32}, epochs=1, data={"source": "digits", "images": 60})
    export.export(run, tmp_path / "m.onnx")
    image = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), np.uint8)
    answers = export.OnnxClassifier((tmp_path / "m.onnx").read_bytes()).logits(image)
    with torch.no_grad():
        wanted = networks.from_file(run.weights)(torch.from_numpy(image.transpose(0, 3, 1, 2).copy())).numpy()
    np.testing.assert_allclose(answers, wanted, atol=1e-3)
