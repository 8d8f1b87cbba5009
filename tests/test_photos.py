"""Photographs and pretrained networks: heads that start at zero, kept features, and batches that fit a budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import timm
import torch
import torchvision
from conftest import Train, tiny
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from smallalign_core import data, export, networks
from smallalign_core.analysis import label_preservation, robustness, teacher_check
from smallalign_core.analysis.data_quality import _features
from smallalign_core.analysis.saliency import occlusion
from smallalign_core.data import Splits
from smallalign_core.errors import BadSpec
from smallalign_core.export import _parity, _runtime
from smallalign_core.metrics import logits_of
from smallalign_core.networks import onnx_graph
from smallalign_core.runs import imported
from smallalign_core.runs.store import Store
from smallalign_core.spec import digest, parse
from smallalign_core.system import batching, machine
from smallalign_core.training import frozen_features, optim
from smallalign_core.training.loop import Training
from smallalign_core.training.resolve import resolve
from smallalign_core.training.teacher import Teacher

NAMES = list("0123456789")
FAMILIES = [
    ("timm", "tf_efficientnet_lite0"),
    ("timm", "mobilenetv3_small_050"),
    ("torchvision", "efficientnet_b0"),
    ("torchvision", "mobilenet_v3_small"),
]


def weights_of(folder: Path, kind: str, name: str, classes: int = 1000) -> Path:
    """Some weights of a network for other classes: random ones."""
    file = folder / f"{name}-{classes}.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        if kind == "timm":
            made: nn.Module = timm.create_model(name, num_classes=classes)
        else:
            made = torchvision.models.get_model(name, weights=None, num_classes=classes)
    save_file(made.state_dict(), file)
    return file


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return weights_of(tmp_path_factory.mktemp("weights"), "timm", "test_efficientnet")


def fast(weights: Path, **fields: Any) -> dict[str, Any]:
    return {"kind": "timm", "name": "test_efficientnet", "size": 32, "weights": str(weights), **fields}


def build(network: dict[str, Any], classes: int = 10, seed: int = 0) -> networks.Classifier:
    spec = parse({"data": "-", "network": network}).network
    return networks.build(spec, NAMES[:classes], (3, 32, 32), mean=[0.5] * 3, std=[0.2] * 3, seed=seed)


def pixels(count: int = 8) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 3, 32, 32), np.uint8))


# --- new heads --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "name"), FAMILIES)
def test_a_new_head_on_trained_weights_begins_at_chance(tmp_path: Path, kind: str, name: str) -> None:
    file = weights_of(tmp_path, kind, name)
    made = build({"kind": kind, "name": name, "size": 32, "weights": str(file)}).train()
    loss = F.cross_entropy(made(pixels()), torch.arange(8))
    assert float(loss.detach()) == pytest.approx(math.log(10), abs=1e-5)
    loss.backward()
    assert networks.head(made).weight.grad.abs().max() > 0  # type: ignore[union-attr, operator]


@pytest.mark.parametrize(("kind", "name"), FAMILIES)
def test_without_trained_weights_a_head_is_drawn_as_its_library_draws_it(kind: str, name: str) -> None:
    made = build({"kind": kind, "name": name, "size": 32}, seed=3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        if kind == "timm":
            wanted: Any = timm.create_model(name, num_classes=10)
        else:
            wanted = torchvision.models.get_model(name, weights=None, num_classes=10)
    for (place, ours), theirs in zip(made.body.state_dict().items(), wanted.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), place


def test_imagenet_weights_of_torchvision_get_a_head_at_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torchvision.models, "get_model", lambda name, **_: getattr(torchvision.models, name)(weights=None)
    )
    made = build({"kind": "torchvision", "name": "mobilenet_v3_small", "size": 32, "pretrained": True})
    assert not networks.head(made).weight.any()  # type: ignore[operator, union-attr]


def test_a_head_before_a_relu_is_small_and_learns(tmp_path: Path) -> None:
    """At zero, SqueezeNet's would have no gradient, ever."""
    file = weights_of(tmp_path, "torchvision", "squeezenet1_1")
    made = build({"kind": "torchvision", "name": "squeezenet1_1", "size": 64, "weights": str(file)}).train()
    F.cross_entropy(made(pixels()), torch.arange(8)).backward()
    head: Any = networks.head(made)
    assert 0.005 < float(head.weight.detach().std()) < 0.015
    assert head.weight.grad.abs().max() > 0


def test_a_head_that_fits_the_classes_is_no_new_one(tmp_path: Path) -> None:
    file = weights_of(tmp_path, "timm", "test_efficientnet", classes=10)
    made = build(fast(file))
    assert torch.equal(networks.head(made).weight, load_file(file)["classifier.weight"])  # type: ignore[arg-type]


def test_only_specs_that_start_from_weights_have_new_ids(weights: Path) -> None:
    """The ids of the others are those of 6712262."""
    assert digest(parse({"data": "digits", "network": "torchvision:mobilenet_v3_small"})) == "826ed37abdaa0fec"
    plain = {"kind": "timm", "name": "tf_efficientnet_lite0"}
    assert digest(parse({"data": "digits", "network": plain})) == "5db6e5a95103cbf2"
    begun = digest(parse({"data": "digits", "network": plain | {"pretrained": True}}))
    assert begun != "56f8ad571f610b7a", "it trains to other weights than it did"
    usual = parse({"data": "digits", "network": plain | {"pretrained": True, "head_rate": 1}})
    assert digest(usual) == begun, "a default is no part of an id"


# --- the head's learning rate -----------------------------------------------------------------------------------------


def test_the_head_takes_steps_of_its_own_length(weights: Path) -> None:
    """One step of plain SGD by hand: the head moves ten times its gradient, the rest as ever."""
    made = build(fast(weights, head_rate=10.0))
    head: Any = networks.head(made)
    with torch.no_grad():
        head.weight.normal_(std=0.01)  # at zero the body would have no gradient
    spec = parse({"data": "-", "network": "cnn", "optimizer": {"kind": "sgd", "momentum": 0, "weight_decay": 0}})
    before = {name: weight.detach().clone() for name, weight in made.named_parameters()}
    optimizer = optim.build(spec.optimizer, made, head=head, head_rate=10.0)
    optim.set_rate(optimizer, 0.01)
    F.cross_entropy(made.train()(pixels()), torch.arange(8)).backward()
    optimizer.step()
    for name, weight in made.named_parameters():
        assert weight.grad is not None
        rate = 0.1 if "classifier" in name else 0.01
        torch.testing.assert_close(weight.detach(), before[name] - rate * weight.grad, msg=name)


@pytest.mark.parametrize("kind", ["adamw", "muon", "lookahead", "ema", "sam", "schedule_free", "prodigy", "soap"])
def test_every_optimizer_with_a_rate_keeps_the_heads(weights: Path, kind: str) -> None:
    spec = parse({"data": "-", "network": fast(weights, head_rate=5), "optimizer": {"kind": kind}})
    made = build(fast(weights, head_rate=5))
    head = networks.head(made)
    optimizer = optim.build(spec.optimizer, made, 10, head=head, head_rate=spec.head_rate)
    optim.set_rate(optimizer, 0.5)
    rates = {id(weight): group["lr"] for group in optimizer.param_groups for weight in group["params"]}
    own = {id(weight) for weight in head.parameters()}
    assert len(rates) == sum(1 for _ in made.parameters())
    assert all(rate == (2.5 if place in own else 0.5) for place, rate in rates.items())


def test_a_head_rate_that_means_nothing_is_refused(weights: Path) -> None:
    for network, words in (
        ({"kind": "timm", "name": "resnet18", "head_rate": 2}, "every layer is new"),
        (fast(weights, head_rate=2, frozen=True), "[Oo]nly the head is trained"),
    ):
        with pytest.raises(BadSpec, match=words):
            parse({"data": "-", "network": network})
    with pytest.raises(BadSpec, match="one step size for all weights"):
        parse({"data": "-", "network": fast(weights, head_rate=2), "optimizer": "snes"})


# --- features of a frozen body ----------------------------------------------------------------------------------------


def probe(weights: Path, digits: Splits, *, keep: bool = True, **fields: Any) -> Training:
    written = {"network": fast(weights, frozen=True), "batch": 48, "precision": "fp32", "epochs": 2}
    return Training([tiny(**(written | fields))], digits, keep=keep)


def weight_of(training: Training) -> Tensor:
    head: Any = networks.head(training.students[0].classifier)
    return head.weight.detach()


def finished(training: Training) -> Training:
    for _ in training:
        pass
    return training


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"augment": [{"kind": "shift", "pixels": 2}], "views": 2, "epochs": 3},
        {"optimizer": {"kind": "ema", "inner": {"kind": "sam"}}},
        {"bits": 4},
    ],
    ids=["plain", "views", "nest", "bits"],
)
def test_a_head_learns_the_same_from_kept_features(weights: Path, few: Splits, fields: dict[str, Any]) -> None:
    kept, live = (finished(probe(weights, few, keep=keep, **fields)) for keep in (True, False))
    assert kept.students[0].features is not None
    assert live.students[0].features is None
    torch.testing.assert_close(weight_of(kept), weight_of(live), atol=1e-4, rtol=1e-3)
    assert kept.students[0].best_score == pytest.approx(live.students[0].best_score, abs=2e-3)


def test_the_body_is_asked_once_an_image_and_view(weights: Path, few: Splits) -> None:
    training = probe(weights, few, augment=[{"kind": "shift", "pixels": 2}], views=2, epochs=6)
    seen = 0

    def count(_module: nn.Module, given: Any) -> None:
        nonlocal seen
        seen += len(given[0])

    training.students[0].classifier.register_forward_pre_hook(count)
    finished(training)
    assert seen == pytest.approx(2 * len(few.train) + len(few.val), abs=6), "besides those that measure its memory"


def test_a_resumed_probe_ends_with_the_same_bits(weights: Path, few: Splits) -> None:
    whole = finished(probe(weights, few))
    first = probe(weights, few)
    for _ in range(first.steps // 2 + 1):
        first.advance()
    second = probe(weights, few)
    second.restore(first.state())
    assert torch.equal(weight_of(finished(second)), weight_of(whole))


@pytest.mark.slow
def test_where_features_are_not_kept_it_is_said(weights: Path, few: Splits, tmp_path: Path) -> None:
    def said(**fields: Any) -> str:
        student = probe(weights, few, **fields).students[0]
        assert student.features is None
        return str(student.frozen)

    shift = [{"kind": "shift", "pixels": 1}]
    assert "new views in every epoch; set `views: K`" in said(augment=shift)
    assert "new views" in said(augment=[{"kind": "mixup", "alpha": 1}])
    assert "more than the head is trained" in said(optimizer="snes")
    squeeze = weights_of(tmp_path, "torchvision", "squeezenet1_1")
    network = {"kind": "torchvision", "name": "squeezenet1_1", "weights": str(squeeze), "frozen": True}
    assert "more than one linear layer" in said(network=network)
    free = probe(weights, few, network=fast(weights)).students[0]
    assert free.frozen is None


def test_features_that_would_take_too_much_are_not_kept(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = tiny(network=fast(weights, frozen=True))
    made = build(fast(weights, frozen=True))
    assert frozen_features.is_frozen(spec, made, 1000) == frozen_features.KEPT
    monkeypatch.setattr(frozen_features, "MOST_BYTES", 1000)
    assert "would take more than" in str(frozen_features.is_frozen(spec, made, 1000))


def test_measuring_a_head_leaves_it_as_it_was(weights: Path) -> None:
    made = build(fast(weights, frozen=True)).train()
    state = torch.random.get_rng_state()
    assert frozen_features.width(made) == networks.head(made).in_features
    assert not networks.head(made).weight.any()  # type: ignore[operator, union-attr]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert networks.head(made).training


@pytest.mark.slow
def test_a_probe_is_recorded_with_its_features_and_memory(train: Train, weights: Path) -> None:
    run = train(network=fast(weights, frozen=True), epochs=2, data={"source": "digits", "images": 100})
    result: dict[str, Any] = run.result or {}
    assert result["features"] == "kept"
    assert result["peak_bytes"] > 50e6
    assert result["memory_bytes"] > result["params"] * 4
    live = train(
        network=fast(weights, frozen=True),
        epochs=1,
        data={"source": "digits", "images": 100},
        augment=[{"kind": "flip"}],
    )
    assert "new views" in (live.result or {})["features"]
    activations = 128 * 3 * 32 * 32 * 4
    assert (live.result or {})["memory_bytes"] > result["params"] * 4 + activations, "a body computes with something"


# --- batches that fit -------------------------------------------------------------------------------------------------


class Sized(nn.Module):
    """Notes how many images it gets at once."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        out: Tensor = self.inner(x)
        return out


def test_what_an_image_needs_is_counted_by_hand() -> None:
    """1,000 numbers in, 3,000 and their ReLU, then 10: the second layer's input and output are alive together."""
    model = nn.Sequential(nn.Linear(1000, 3000), nn.ReLU(), nn.Linear(3000, 10)).eval()
    x = torch.zeros(1, 1000)
    with torch.no_grad():
        assert batching.bytes_needed(lambda: model(x)) == 4 * 2 * 3000


def test_few_or_small_images_stay_one_batch() -> None:
    model = Sized(nn.Flatten()).eval()
    batching.in_batches(model, torch.zeros(512, 3, 32, 32))
    assert model.sizes[-1] == 512


def test_many_large_images_are_answered_in_parts_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Sized(nn.Sequential(nn.Flatten(), nn.Linear(300, 1000), nn.ReLU(), nn.Linear(1000, 7))).eval()
    x = torch.randn(100, 3, 10, 10)
    with torch.no_grad():
        whole = model.inner(x)
    monkeypatch.setattr(batching, "BUDGET", 8000 * 20)
    torch.testing.assert_close(batching.in_batches(model, x), whole)
    assert model.sizes == [2, 1, *[16] * 6, 4], "16 is the power of two below 20; the first two measured"
    assert not batching.in_batches(model, x).requires_grad


@pytest.mark.slow
def test_wherever_a_network_answers_it_gets_no_more_than_fits(
    weights: Path, digits: Splits, train: Train, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(network=fast(weights), epochs=1, data={"source": "digits", "images": 60})
    teacher = imported.classifier(run, digits.classes)
    need = batching.bytes_needed(lambda: logits_of(teacher, digits.val.take(np.arange(1))))
    monkeypatch.setattr(batching, "BUDGET", 6 * need)
    sizes: list[int] = []
    teacher.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))

    def most(work: Callable[[], Any]) -> int:
        sizes.clear()
        made = work()
        if isinstance(made, Iterator):
            for _ in made:
                pass
        return max(sizes)

    def opened(*_: Any, **__: Any) -> Any:
        return teacher

    monkeypatch.setattr(imported, "classifier", opened)
    some = digits.val.take(np.arange(40))
    images = torch.from_numpy(np.array(some.images))
    places: dict[str, Callable[[], Any]] = {
        "evaluation": lambda: logits_of(teacher, some),
        "pre-flight": lambda: teacher_check._ask(teacher, np.array(some.images), "cpu"),
        "previews": lambda: label_preservation.predictions(teacher, np.array(some.images[:20])[None]),
        "risk": lambda: label_preservation.LabelCheck(teacher, some)._ask(()),
        "occlusion": lambda: occlusion(teacher, images[:1], 0),
        "lessons": lambda: Teacher(teacher, digits.classes).output(images),
        "robustness": lambda: robustness._ask(run, digits, "val", store),
        "features": lambda: _features.features(run, [some]),
        "votes": lambda: _features._answers(run, [some], np.arange(40)),
    }
    assert all(0 < most(work) <= 8 for work in places.values()), {name: most(work) for name, work in places.items()}


def test_onnx_files_get_a_batch_by_pixels() -> None:
    assert _runtime.at_once({}, 28, 28) == 256
    assert _runtime.at_once({}, 224, 224) == 32
    spec = "data: {source: x}\nnetwork:\n  kind: timm\n  size: 224\n"
    assert _runtime.at_once({"spec": spec}, 28, 28) == 32, "it resizes inside"
    assert _runtime.at_once({}, 8192, 8192) == 1


@pytest.mark.slow
def test_a_graph_answers_in_parts_what_it_answers_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 5)).eval()
    x = torch.randn(21, 3, 8, 8)
    graph = onnx_graph.Graph(onnx_graph.of_body(body, x))
    whole = graph(x)
    monkeypatch.setattr(batching, "PIXELS", 64 * 4)
    torch.testing.assert_close(graph(x), whole)


def test_peak_memory_is_not_below_what_is_resident() -> None:
    machine.forget_peak()
    here = psutil.Process().memory_info().rss
    held = np.ones(2**24)
    peak = machine.peak_memory()
    assert peak is not None
    assert peak >= 0.99 * max(here, held.nbytes)


# --- parity -----------------------------------------------------------------------------------------------------------


def logits(spread: float) -> np.ndarray:
    made = np.random.default_rng(0).normal(size=(200, 10)).astype(np.float32)
    made[np.arange(200), np.arange(200) % 10] += 5
    return (spread * made).astype(np.float32)


def test_the_gap_of_logits_counts_relative_to_their_spread(digits: Splits) -> None:
    """A timm network whose logits reach 4,800 differs by 0.02 between two runtimes: that is rounding."""
    images = digits.val.take(np.arange(143)[:140])
    large = logits(600)[:140]
    assert 2_000 < np.abs(large).max() < 10_000
    moved = large.copy()
    moved[0, 0] += 0.02
    assert export.parity(large, moved, images).ok
    assert export.parity(large / 600, moved / 600, images).ok
    small = logits(1)[:140]
    off = small.copy()
    off[0, 0] += 0.02
    assert not export.parity(small, off, images).ok, "the same gap of small logits is a fault"
    off[0, 0] = small[0, 0] + 0.0015
    assert not export.parity(small, off, images).ok
    assert export.parity(small, off, images, gate=_parity.IN_A_BROWSER["fp32"]).ok


def test_a_tiny_spread_does_not_make_a_tiny_gap_a_fault() -> None:
    gate = export.GATES["fp32"]
    assert gate.passes(1.0, 5e-5, 1e-3)
    assert not gate.passes(0.999, 0.0, 1.0)
    assert not export.GATES["int8"].passes(1.0, math.nan, 1.0)


@pytest.mark.slow
def test_a_run_on_trained_weights_keeps_its_head_rate(store: Store, weights: Path) -> None:
    spec = resolve(store, tiny(network=fast(weights, head_rate=4)))
    groups = Training([spec], data.load(spec.data, store.data_cache)).students[0].optimizer.param_groups
    assert sorted(group.get("rate", 1.0) for group in groups) == [1.0, 1.0, 4.0, 4.0]


def test_weights_that_onednn_packed_are_passed_over() -> None:
    """A bf16 teacher's dense weights have no storage to look at: counting them ended every such run."""
    packed = torch.ones(64, 32).to_mkldnn()

    assert batching.bytes_needed(lambda: packed.to_dense() * 2) == 2 * 64 * 32 * 4


def test_a_bf16_teacher_answers_within_the_budget() -> None:
    body, classes = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), tuple("0123456789")
    teacher = Teacher(networks.Classifier(body, classes, (1, 8, 8), [0.5], [0.5]), classes, precision="bf16")

    assert teacher.logits(torch.zeros(6, 1, 8, 8, dtype=torch.uint8)).shape == (6, 10)
