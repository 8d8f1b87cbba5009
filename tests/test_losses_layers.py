"""Losses that compare layers, and all losses in training: hooks leave no trace, resume and lockstep are exact."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import Train, tiny
from PIL import Image
from torch import nn

from smallalign_core import data, export, networks
from smallalign_core.data import Splits
from smallalign_core.errors import BadSpec
from smallalign_core.runs import imported as foreign
from smallalign_core.runs.store import Store
from smallalign_core.service import worker
from smallalign_core.spec import AttentionTransfer, Code, DataSpec, Embedding, FitNets, RunSpec, loss_kinds
from smallalign_core.training import losses
from smallalign_core.training.loop import Training
from smallalign_core.training.losses import NetworkOutput, _features
from smallalign_core.training.resolve import resolve
from smallalign_core.training.teacher import Teacher

MAPS = {"student_layer": "2, 5", "teacher_layer": "2, 6"}
TAUGHT: list[dict[str, Any]] = [
    {"kind": "kd"},
    {"kind": "logit_mse"},
    {"kind": "scaled_mse"},
    {"kind": "dkd", "warmup_epochs": 2},
    {"kind": "dist"},
    {"kind": "standardized_kd"},
    {"kind": "function_matching"},
    {"kind": "fitnets", "student_layer": "2", "teacher_layer": "6"},
    {"kind": "attention", "kd_weight": 0.5, **MAPS},
]
NO_LABELS: list[dict[str, Any]] = [
    {"kind": "kd", "weight": 1},
    {"kind": "logit_mse", "weight": 1},
    {"kind": "scaled_mse", "weight": 1},
    {"kind": "dist", "labels_weight": 0},
    {"kind": "standardized_kd", "labels_weight": 0},
    {"kind": "function_matching"},
    {"kind": "fitnets", "student_layer": "2", "teacher_layer": "6", "labels_weight": 0, "kd_weight": 1},
    {"kind": "attention", **MAPS, "labels_weight": 0, "kd_weight": 1},
]


ELSEWHERE = (Code, Embedding)
KINDS = [part.model_fields["kind"].default for part in loss_kinds(taught=True) if not issubclass(part, ELSEWHERE)]
"""Those that give logits; a user's own is in tests/test_python_files.py, features are in tests/test_embedding.py."""


def kind(loss: dict[str, Any]) -> str:
    return str(loss["kind"])


def taught(loss: dict[str, Any], **fields: Any) -> RunSpec:
    return tiny(teacher="t", loss=loss, **{"epochs": 2, **fields})


def weights(training: Training, student: int = 0) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in training.students[student].classifier.state_dict().values()]


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.fixture(scope="module")
def teacher(digits: Splits) -> Teacher:
    training = Training([tiny(network={"kind": "cnn", "width": 12}, epochs=4)], digits)
    list(training)
    return Teacher(training.students[0].best(), digits.classes, layers=["2", "6"])


def classifier(digits: Splits, **network: Any) -> networks.Classifier:
    return networks.build(tiny(network=network).network, digits.classes, digits.shape, mean=[0.5], std=[0.5])


# --- the functions ----------------------------------------------------------------------------------------------------


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def halved(maps: np.ndarray) -> np.ndarray:
    """Means of 2x2 pixels."""
    batch, channels, side, _ = maps.shape
    return maps.reshape(batch, channels, side // 2, 2, side // 2, 2).mean((3, 5))


@pytest.mark.parametrize("sides", [(4, 4), (8, 4), (4, 8)])
def test_a_hint_is_its_formula(sides: tuple[int, int]) -> None:
    ours, theirs = drawn(6, 3, sides[0], sides[0]), drawn(6, 5, sides[1], sides[1], seed=1)
    made = losses.projector(
        FitNets(student_layer="a", teacher_layer="b"),
        NetworkOutput(ours, {"a": ours}),
        NetworkOutput(theirs, {"b": theirs}),
    )
    assert isinstance(made, nn.Conv2d)
    kernel, bias = made.weight.detach().double().numpy()[:, :, 0, 0], made.bias.detach().double().numpy()  # type: ignore[union-attr]
    small, wanted = (x.numpy() if x.shape[2] == 4 else halved(x.numpy()) for x in (ours, theirs))
    guess = np.einsum("oc,nchw->nohw", kernel, small) + bias[None, :, None, None]
    assert losses.hint(ours, theirs, made).item() == pytest.approx(np.mean((guess - wanted) ** 2), rel=1e-5)


def test_a_hint_of_vectors_has_a_linear_regressor() -> None:
    ours, theirs = drawn(6, 3), drawn(6, 5, 1, 1, seed=1)
    made = losses.projector(
        FitNets(student_layer="a", teacher_layer="b"),
        NetworkOutput(ours, {"a": ours}),
        NetworkOutput(theirs, {"b": theirs}),
    )
    assert isinstance(made, nn.Linear)
    guess = ours.numpy() @ made.weight.detach().double().numpy().T + made.bias.detach().double().numpy()
    expected = np.mean((guess - theirs.numpy()[:, :, 0, 0]) ** 2)
    assert losses.hint(ours, theirs, made).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("sides", [(4, 4), (8, 4), (4, 8)])
def test_attention_is_its_formula(sides: tuple[int, int]) -> None:
    ours, theirs = drawn(6, 3, sides[0], sides[0]), drawn(6, 5, sides[1], sides[1], seed=1)
    found = []
    for maps in (ours, theirs):
        small = maps.numpy() if maps.shape[2] == 4 else halved(maps.numpy())
        energy = (small**2).mean(1).reshape(6, -1)
        found.append(energy / np.linalg.norm(energy, axis=1, keepdims=True))
    expected = np.mean((found[0] - found[1]) ** 2)
    assert losses.attention(ours, theirs).item() == pytest.approx(expected, rel=1e-4)
    assert losses.attention(1e-2 * ours, 1e6 * theirs).item() == pytest.approx(expected, rel=1e-3), (
        "scales do not count"
    )
    assert losses.attention(ours, ours).item() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scale", [0.0, 1e-6, 1.0, 6e4])
def test_layers_never_give_nan(dtype: torch.dtype, scale: float) -> None:
    """Dead maps, huge maps, one image."""
    ours, theirs = (torch.ones(1, 4, 4, 4, dtype=dtype) * scale for _ in range(2))
    theirs[0, 0, 0, 0] = 0
    for wanted in (theirs, torch.zeros_like(theirs)):
        leaf = ours.clone().requires_grad_()
        value = losses.attention(leaf, wanted) + losses.hint(leaf, wanted, nn.Conv2d(4, 4, 1))
        value.backward()
        assert value.dtype == torch.float32
        assert value.isfinite()
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()


# --- which layers -----------------------------------------------------------------------------------------------------


def test_layers_are_chosen_as_documented(digits: Splits) -> None:
    cnn, resnet = classifier(digits, kind="cnn", width=4), classifier(digits, kind="resnet", width=4)
    mlp = classifier(digits, kind="mlp", width=8)
    assert losses.outputs(cnn)["6"] == (8, 4, 4)
    assert losses.outputs(mlp)["6"] == (8,)
    assert "7" not in losses.outputs(mlp), "the logits are no feature"

    def chosen(loss: Any, student: nn.Module, taught_by: nn.Module) -> tuple[Any, Any]:
        return losses.layers(losses.place(loss, student, taught_by))

    assert chosen(FitNets(), cnn, resnet) == (("10",), ("5",)), "the last maps"
    assert chosen(FitNets(), mlp, resnet) == (("6",), ("8",)), "the last vectors, where one has no maps"
    assert chosen(AttentionTransfer(), cnn, resnet) == (("2",), ("3",)), "the last of each size from 7 pixels"
    wide, tiny_maps = (
        networks.build(tiny(network=kind).network, digits.classes, (1, side, side), mean=[0.5], std=[0.5])
        for kind, side in (("resnet", 32), ("cnn", 4))
    )
    assert chosen(AttentionTransfer(), wide, wide) == (("3", "4", "5"), ("3", "4", "5"))
    assert chosen(AttentionTransfer(), cnn, wide) == (("2",), ("5",)), "the deepest with the deepest"
    assert chosen(AttentionTransfer(), tiny_maps, wide) == (("2",), ("5",)), "the largest, if all are small"
    assert chosen(AttentionTransfer(teacher_layer="4, 5"), cnn, resnet) == (("6", "10"), ("4", "5"))
    assert chosen(AttentionTransfer(student_layer="6"), cnn, resnet) == (("6",), ("5",))
    assert chosen(FitNets(student_layer="12"), cnn, resnet) == (("12",), ("8",)), "to a vector, a vector"
    placed = losses.place(FitNets(), cnn, resnet)
    assert losses.place(placed, cnn, resnet) == placed


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "swin_t"])
def test_torchvision_models_have_layers_too(name: str, digits: Splits) -> None:
    borrowed, resnet = classifier(digits, kind="torchvision", name=name), classifier(digits, kind="resnet", width=4)
    expected = {"resnet18": "layer4", "mobilenet_v3_small": "features", "swin_t": "permute"}[name]
    assert losses.place(FitNets(), borrowed, resnet).student_layer == expected
    named = losses.place(AttentionTransfer(teacher_layer="5"), borrowed, resnet)
    assert named.student_layer == expected


@pytest.mark.parametrize(
    ("loss", "network", "words"),
    [
        (FitNets(student_layer="nothere"), "cnn", ["nothere", "student_layer empty", "10 (16×2×2)", "12 (16)"]),
        (FitNets(teacher_layer="body.5"), "cnn", ["teacher", "body.5", "5 (16×2×2)"]),
        (FitNets(student_layer="6", teacher_layer="8"), "cnn", ["6 (8×4×4)", "vectors"]),
        (FitNets(student_layer="2, 6"), "cnn", ["one pair", "2, 6"]),
        (AttentionTransfer(), "mlp", ["maps", "student has none", "loss kd"]),
        (AttentionTransfer(student_layer="12"), "cnn", ["12 (16)", "maps"]),
        (AttentionTransfer(student_layer="2, 6", teacher_layer="3"), "cnn", ["pairs", "student: 2, 6; teacher: 3"]),
    ],
)
def test_layers_that_cannot_be_compared_are_refused_in_words(
    loss: Any, network: str, words: list[str], digits: Splits
) -> None:
    student, taught_by = classifier(digits, kind=network, width=4), classifier(digits, kind="resnet", width=4)
    with pytest.raises(BadSpec) as caught:
        losses.place(loss, student, taught_by)
    for word in words:
        assert word in str(caught.value)


def test_the_backend_writes_the_layers_down(store: Store) -> None:
    resolved = resolve(store, tiny(teacher="digits-teacher", loss="attention"))
    assert resolved.loss.student_layer == "2"  # type: ignore[union-attr]
    assert resolved.loss.teacher_layer == "3"  # type: ignore[union-attr]
    assert resolve(store, resolved) == resolved
    with pytest.raises(BadSpec, match="no comparable layer at that path"):
        resolve(store, tiny(teacher="digits-teacher", loss={"kind": "fitnets", "student_layer": 40}))
    with pytest.raises(BadSpec, match="single target class"):
        resolve(store, tiny(teacher="digits-teacher", loss="dkd", augment=["mixup"]))


def test_layers_that_nobody_chose_are_refused(digits: Splits, teacher: Teacher) -> None:
    with pytest.raises(BadSpec, match="not chosen yet"):
        Training([taught({"kind": "fitnets"})], digits, teacher)


# --- in training ------------------------------------------------------------------------------------------------------


def test_every_loss_is_trained_here() -> None:
    assert {kind(loss) for loss in TAUGHT} == set(KINDS)


@pytest.mark.parametrize("loss", TAUGHT, ids=kind)
def test_resume_is_exact(loss: dict[str, Any], few: Splits, teacher: Teacher) -> None:
    """Regressor and warm-up included; the student's dropout does not depend on the past."""
    spec = taught(loss, network={"kind": "cnn", "width": 4, "depth": 2, "dropout": 0.3}, batch=32)
    whole, first, second = (Training([spec], few, teacher) for _ in range(3))
    list(whole)
    for _ in range(12):
        first.advance()
    buffer = io.BytesIO()
    torch.save(first.state(), buffer)
    second.restore(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
    torch.manual_seed(999)
    list(second)
    assert equal(weights(whole), weights(second))
    ours, theirs = (run.students[0].companion for run in (whole, second))
    assert (ours is None) == (loss["kind"] != "fitnets")
    if ours is not None and theirs is not None:
        assert equal([*ours.parameters()], [*theirs.parameters()])


@pytest.mark.slow
def test_lockstep_changes_nobody(few: Splits, teacher: Teacher) -> None:
    mixed: dict[str, Any] = {"augment": [{"kind": "mixup", "alpha": 1}]}
    for group in (
        [taught(loss, batch=32) for loss in TAUGHT if kind(loss) != "function_matching"],
        [taught(loss, batch=32, **mixed) for loss in TAUGHT if kind(loss) != "dkd"],
    ):
        together = Training(group, few, teacher)
        list(together)
        for index, spec in enumerate(group):
            alone = Training([spec], few, teacher)
            list(alone)
            assert equal(weights(together, index), weights(alone)), spec.loss


@pytest.mark.parametrize("loss", NO_LABELS, ids=kind)
def test_without_labels_shuffled_labels_change_nothing(loss: dict[str, Any], few: Splits, teacher: Teacher) -> None:
    order = np.random.default_rng(0).permutation(len(few.train))
    shuffled = replace(few, train=replace(few.train, labels=few.train.labels[order]))
    runs = [Training([taught(loss, batch=32)], splits, teacher) for splits in (few, shuffled)]
    for run in runs:
        list(run)
    assert equal(weights(runs[0]), weights(runs[1]))


def test_with_labels_shuffled_labels_change_the_weights(digits: Splits, teacher: Teacher) -> None:
    """The test above can fail."""
    order = np.random.default_rng(0).permutation(len(digits.train))
    shuffled = replace(digits, train=replace(digits.train, labels=digits.train.labels[order]))
    runs = [Training([taught({"kind": "kd"})], splits, teacher) for splits in (digits, shuffled)]
    for run in runs:
        run.advance()
    assert not equal(weights(runs[0]), weights(runs[1]))


@pytest.mark.parametrize("loss", [loss for loss in TAUGHT if "student_layer" in loss], ids=kind)
def test_hooks_leave_no_trace(loss: dict[str, Any], digits: Splits, teacher: Teacher) -> None:
    training = Training([taught(loss)], digits, teacher)
    training.advance()
    for network in (training.students[0].classifier, *teacher._classifiers):
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    plain = Training([tiny()], digits).students[0].classifier
    assert training.students[0].classifier.state_dict().keys() == plain.state_dict().keys()


def test_hooks_are_removed_when_the_network_fails(digits: Splits) -> None:
    network = classifier(digits, kind="cnn", width=4)

    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    failing = network.get_submodule("body.4").register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        losses.network_output(network, torch.zeros(2, 1, 8, 8, dtype=torch.uint8), ["2"])
    failing.remove()
    with pytest.raises(BadSpec, match="no such layer"):
        losses.network_output(network, torch.zeros(2, 1, 8, 8, dtype=torch.uint8), ["2", "99"])
    assert not any(module._forward_hooks for module in network.modules())


def test_the_regressor_learns_is_seeded_and_stays_behind(digits: Splits, teacher: Teacher) -> None:
    spec = taught({"kind": "fitnets", "student_layer": "2", "teacher_layer": "6"})
    torch.manual_seed(5)
    one = Training([spec], digits, teacher)
    torch.manual_seed(6)
    other = Training([spec], digits, teacher)
    companion = one.students[0].companion
    assert companion is not None
    assert equal([*companion.parameters()], [*other.students[0].companion.parameters()])  # type: ignore[union-attr]
    before = [parameter.detach().clone() for parameter in companion.parameters()]
    one.advance()
    assert not equal(before, [*companion.parameters()])
    assert one.state()["companion"].keys() == {"weight", "bias"}
    saved = networks.to_bytes(one.students[0].classifier, spec)
    plain = networks.to_bytes(Training([tiny()], digits).students[0].classifier, spec)
    assert len(saved) == len(plain)


@pytest.mark.parametrize("loss", KINDS)
def test_every_loss_goes_from_spec_to_weights_with_its_defaults(loss: str, train: Train) -> None:
    run = train(teacher="digits-teacher", loss=loss, epochs=1)
    assert run.result is not None
    assert np.isfinite(run.result["test"]["nll"])


@pytest.mark.slow
def test_the_export_of_a_hinted_student_has_no_regressor(train: Train) -> None:
    """Weights file and ONNX graph hold the same tensors as those of a student that learned from labels."""
    hinted, plain = (
        networks.from_file(run.weights)
        for run in (train(epochs=1), train(teacher="digits-teacher", loss="fitnets", epochs=1))
    )
    assert hinted.state_dict().keys() == plain.state_dict().keys()
    held = [
        sorted((tensor.name, tuple(tensor.dims)) for tensor in graph.initializer)
        for graph in (onnx.load_from_string(export.to_onnx(network)).graph for network in (hinted, plain))
    ]
    assert held[0] == held[1]
    assert len(held[0]) > 5


# --- teachers that know more, or cannot be looked into ----------------------------------------------------------------


@pytest.mark.slow
def test_layers_of_a_teacher_of_more_classes_are_compared(store: Store, tmp_path: Path) -> None:
    """Its answers are cut to the data's classes; its layers are those of the whole network."""
    digits = data.load(DataSpec(source="digits"), store.data_cache).train
    for name in ("3", "7"):
        (tmp_path / "two" / name).mkdir(parents=True)
        for row in np.flatnonzero(digits.labels == int(name))[:40]:
            Image.fromarray(digits.images[row][0]).save(tmp_path / "two" / name / f"{row}.png")
    for loss in ("fitnets", "attention"):
        spec = tiny(data=str(tmp_path / "two"), teacher="digits-teacher", loss=loss, epochs=1)
        whole = resolve(store, tiny(teacher="digits-teacher", loss=loss, epochs=1))
        run = store.create(resolve(store, spec))
        assert run.spec.loss.teacher_layer == whole.loss.teacher_layer  # type: ignore[union-attr]
        assert worker.execute(run, store, device="cpu")["state"] == "finished"


@pytest.mark.slow
def test_layers_of_an_import_are_refused_in_words(store: Store, tmp_path: Path) -> None:
    export.export(store.run("digits-student"), tmp_path / "theirs.onnx")
    imported = foreign.import_onnx(tmp_path / "theirs.onnx", DataSpec(source="digits"), store)
    for loss in ("fitnets", "attention"):
        with pytest.raises(BadSpec, match=r"and the teacher has none .given: teacher_layer empty.. Use loss kd.$"):
            resolve(store, tiny(teacher=imported.id, loss=loss))


def test_of_maps_the_large_ones_are_compared_or_else_the_largest() -> None:
    """7 is the least side; a side below it makes a map small whatever the other is."""
    shapes = {"a": (2, 7, 7), "b": (2, 9, 6), "c": (2, 8, 14), "d": (2, 1, 1)}
    assert _features._large(shapes, tuple(shapes)) == ("a", "c")
    assert _features._large(shapes, ("d", "b")) == ("b",)


def test_a_long_offer_of_layers_is_cut_visibly() -> None:
    layers = {f"l{place}": (8,) for place in range(61)}
    assert _features._offered(dict(list(layers.items())[:60])).endswith("l59 (8)")
    assert _features._offered(layers).endswith("l59 (8), …")
    assert _features._offered(layers, 3) == ""
