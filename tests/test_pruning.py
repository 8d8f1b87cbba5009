"""Structured pruning: which channels go, what is left of a network, and the run that learns again."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Train, tiny

from smallalign_core import export, networks
from smallalign_core.cli import main
from smallalign_core.errors import BadInput, BadModel, BadSpec, MissingExtra
from smallalign_core.networks import Classifier, pruning
from smallalign_core.runs.store import Run, Store
from smallalign_core.service import worker
from smallalign_core.spec import Pruned, digest, parse, read, to_yaml
from smallalign_core.training.pruned import spec_of
from smallalign_core.training.resolve import resolve

NETWORKS: list[Any] = [
    {"kind": "mlp", "width": 12},
    {"kind": "cnn", "width": 6},
    {"kind": "separable", "width": 8},
    {"kind": "resnet", "width": 8},
    pytest.param({"kind": "torchvision", "name": "resnet18", "size": 32}, marks=pytest.mark.slow),
    pytest.param({"kind": "timm", "name": "mobilenetv3_small_100", "size": 32}, marks=pytest.mark.slow),
]


def built(network: Any, *, lived: bool = True) -> Classifier:
    spec = parse({"data": "digits", "network": network}).network
    made = networks.build(spec, list("abcdef"), (1, 16, 16), mean=[0.3], std=[0.4], seed=3)
    if lived:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, tensor in made.body.state_dict().items():
                if tensor.is_floating_point():
                    noise = torch.rand(tensor.shape, generator=generator)
                    tensor.copy_(0.5 + noise if "var" in name else tensor + 0.1 * (noise - 0.5))
    return made.eval()


def pruned_to(classifier: Classifier, share: float, of: str = "macs") -> Pruned:
    def size(one: Classifier) -> int:
        return int(getattr(networks.measure(one), of))

    return pruning.plan(classifier, networks.head(classifier), size, share, "l2", classifier.body)


def images(count: int = 8) -> torch.Tensor:
    return torch.randint(0, 256, (count, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("network", NETWORKS, ids=lambda one: one.get("name", one["kind"]))
def test_a_network_is_pruned_to_its_share_and_built_again_from_its_widths(network: Any) -> None:
    whole = built(network)
    pruned = pruned_to(whole, 0.5)
    small = copy.deepcopy(whole)
    pruning.shrink(small, pruned, networks.head(small))
    share = networks.measure(small).macs / networks.measure(whole).macs
    assert 0.3 < share <= 0.5

    again = built({**network, "pruned": pruned.model_dump()}, lived=False)
    shapes = {name: tensor.shape for name, tensor in small.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in again.state_dict().items()}
    again.load_state_dict(small.state_dict())
    with torch.no_grad():
        assert torch.allclose(again.eval()(images()), small.eval()(images()), atol=1e-5)
    assert networks.measure(again) == networks.measure(small)


def test_parameters_can_be_what_counts() -> None:
    whole = built({"kind": "resnet", "width": 8})
    small = copy.deepcopy(whole)
    pruning.shrink(small, pruned_to(whole, 0.3, "params"), networks.head(small))
    assert 0.2 < networks.measure(small).params / networks.measure(whole).params <= 0.3


@pytest.mark.parametrize(("criterion", "power"), [("l2", 2), ("l1", 1)])
def test_the_units_with_the_smallest_norm_of_their_weights_go(criterion: Any, power: int) -> None:
    """By hand for an MLP: a unit's weights are its row of one layer and its column of the next."""
    whole = built({"kind": "mlp", "width": 10, "depth": 1})
    first, second = whole.body[1], whole.body[4]  # type: ignore[index]
    norms = (first.weight.abs() ** power).sum(1) + (second.weight.abs() ** power).sum(0)
    kept = sorted(torch.argsort(norms)[4:].tolist())
    small = copy.deepcopy(whole)
    widths = (("1", 6, 256), ("4", 6, 6))
    pruning.shrink(small, Pruned(widths=widths, criterion=criterion), networks.head(small))
    assert torch.equal(small.body[1].weight, first.weight[kept])  # type: ignore[index]
    assert torch.equal(small.body[1].bias, first.bias[kept])  # type: ignore[index]
    assert torch.equal(small.body[4].weight, second.weight[:, kept])  # type: ignore[index]


@pytest.mark.parametrize("network", NETWORKS[:4], ids=lambda one: one["kind"])
def test_channels_without_effect_go_without_an_effect(network: Any) -> None:
    """What pruning takes away, set to zero in the whole network instead: the same logits."""
    whole = built(network)
    masked, small = copy.deepcopy(whole), copy.deepcopy(whole)
    pruning.shrink(small, pruned_to(whole, 0.6), networks.head(small))
    left = {name: layer for name, layer in small.body.named_modules() if isinstance(layer, pruning.KINDS)}
    for name, layer in masked.body.named_modules():
        if name in left:  # all weights are different numbers
            layer.weight.data[~torch.isin(layer.weight.data, left[name].weight.data)] = 0
            if layer.bias is not None:
                layer.bias.data[~torch.isin(layer.bias.data, left[name].bias.data)] = 0
    with torch.no_grad():
        assert torch.allclose(masked(images()), small(images()), atol=1e-5)
        assert not torch.allclose(whole(images()), small(images()), atol=1e-3)


@pytest.mark.parametrize(
    ("network", "words"),
    [
        ({"kind": "timm", "name": "test_vit", "size": 32}, "Attention"),
        ({"kind": "torchvision", "name": "shufflenet_v2_x0_5", "size": 32}, "cannot be pruned"),
        ({"kind": "torchvision", "name": "resnext50_32x4d", "size": 32}, "grouped convolutions"),
    ],
)
@pytest.mark.slow
def test_what_cannot_be_pruned_is_refused_in_words(network: Any, words: str) -> None:
    with pytest.raises(BadInput, match="cannot be pruned") as caught:
        pruned_to(built(network, lived=False), 0.5)
    assert words in str(caught.value)


def test_a_share_below_what_is_possible_is_refused_with_the_least() -> None:
    with pytest.raises(BadInput, match="cannot be pruned that far") as caught:
        pruned_to(built({"kind": "cnn", "width": 2}), 0.01)
    assert "Give at least" in str(caught.value)


@pytest.mark.parametrize(
    ("widths", "words"),
    [
        ([["9", 4, 6]], "no such layer"),
        ([["2", 4, 1]], "no such layer"),
        ([["0", 7, 1]], "fewer channels than that"),
        ([["0", 4, 1]], "do not fit one another"),
    ],
)
def test_widths_that_do_not_fit_are_named(widths: Any, words: str) -> None:
    with pytest.raises(BadSpec, match=words):
        built({"kind": "cnn", "width": 6, "depth": 1, "pruned": {"widths": widths}})


def test_a_pruned_network_has_one_canonical_form() -> None:
    def spec(widths: Any) -> Any:
        return parse({"data": "digits", "network": {"kind": "mlp", "width": 8, "pruned": {"widths": widths}}})

    one, other = spec([["1", 4, 64], ["4", 4, 4]]), spec([["4", 4, 4], ["1", 4, 64]])
    assert digest(one) == digest(other)
    assert digest(one) != digest(spec([["1", 5, 64], ["4", 4, 5]]))
    assert digest(one) != digest(parse({"data": "digits", "network": {"kind": "mlp", "width": 8}}))
    assert "pruned" in one.network.model_dump(exclude_defaults=True)
    for wrong in ([], [["1", 4, 64], ["1", 4, 64]], [["1", 0, 64]]):
        with pytest.raises(BadSpec):
            spec(wrong)
    network = {"kind": "timm", "name": "resnet18", "pretrained": True, "pruned": {"widths": [["conv1", 4, 3]]}}
    with pytest.raises(BadSpec, match="start"):
        parse({"data": "digits", "network": network})


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(MissingExtra, match=r"smallalign\[pruning\]"):
        pruned_to(built({"kind": "mlp", "width": 8}), 0.5)


def executed(store: Store, spec: Any) -> Run:
    run = store.create(resolve(store, spec))
    assert worker.execute(run, store, device="cpu")["state"] == "finished"
    return store.run(run.id)


@pytest.mark.slow
def test_a_pruned_run_is_an_ordinary_run(store: Store, train: Train, tmp_path: Path) -> None:
    run = train(network={"kind": "cnn", "width": 8}, epochs=12)
    at_once = executed(store, spec_of(run, store, 0.5, epochs=0))
    again = executed(store, spec_of(run, store, 0.5, epochs=4))
    assert at_once.spec.network == again.spec.network
    assert again.spec.teacher == again.spec.start == run.id
    assert again.spec.loss.kind == "kd"
    before, after = run.result or {}, again.result or {}
    assert after["macs"] <= 0.5 * before["macs"]
    assert after["val"]["accuracy"] > (at_once.result or {})["val"]["accuracy"]
    assert "pruned" in again.title

    file = tmp_path / "spec.yaml"
    file.write_text(to_yaml(again.spec))
    assert digest(resolve(store, read(file))) == again.id, "its YAML says all that it is"

    # The weights before training are those of the strongest channels of the first run.
    small = networks.from_file(run.weights)
    assert again.spec.network.pruned is not None
    pruning.shrink(small, again.spec.network.pruned, networks.head(small))
    held = networks.from_file(at_once.weights)
    assert all(torch.equal(held.state_dict()[name], tensor) for name, tensor in small.state_dict().items())

    size = export.export(again, tmp_path / "x.onnx", store)["bytes"]
    assert size < export.export(run, tmp_path / "y.onnx", store)["bytes"]
    assert export.verify(tmp_path / "x.onnx", store)["ok"]
    for precision in ("fp16", "int8"):
        assert export.export(again, tmp_path / "z.onnx", store, precision=precision)["bytes"] < size  # type: ignore[arg-type]

    third = executed(store, spec_of(again, store, 0.6, teacher="none", epochs=1))
    assert (third.result or {})["macs"] <= 0.6 * after["macs"]
    assert third.spec.teacher is None
    with pytest.raises(BadModel, match="another network"):
        resolve(store, tiny(network={"kind": "cnn", "width": 8}, start=again.id))


@pytest.mark.slow
def test_a_pruned_run_resumes_to_the_same_weights(store: Store, train: Train) -> None:
    import threading

    run = train(network={"kind": "resnet", "width": 4}, epochs=3)
    wanted = spec_of(run, store, 0.6, epochs=3)
    straight = executed(store, wanted)
    other = Store(store.root.parent / "other")
    import shutil

    shutil.copytree(run.folder, other.root / "runs" / run.id)
    stop, steps = threading.Event(), 0

    def observe(*_: Any, **__: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == 2:
            stop.set()

    halted = other.create(resolve(other, wanted))
    assert halted.id == straight.id
    assert worker.execute(halted, other, device="cpu", observe=observe, stop=stop)["state"] != "finished"
    resumed = worker.execute(other.run(halted.id), other, device="cpu")
    assert resumed["state"] == "finished"
    assert resumed["weights_sha256"] == (straight.result or {})["weights_sha256"]


@pytest.mark.slow
def test_the_command_line_prunes_and_refuses(store: Store, train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(network={"kind": "cnn", "width": 8}, epochs=2)

    def say(*words: object) -> tuple[int, str, str]:
        code = main(["prune", run.id, *map(str, words), "--store", str(store.root)])
        told = capsys.readouterr()
        return code, told.out, told.err

    code, out, err = say("--to", "40%", "--of", "params", "--epochs", 1, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["after"]["params"] <= 0.4 * found["before"]["params"]
    made = store.run(found["id"])
    assert made.finished
    assert {name: list(rest) for name, *rest in made.spec.network.pruned.widths} == found["widths"]  # type: ignore[union-attr]
    code, out, err = say("--to", "0.4", "--of", "params", "--epochs", 1)
    assert code == 0, err
    assert "95% intervals" in out
    assert made.id in out, "an equal spec is the same run"
    runs = len(list((store.root / "runs").iterdir()))
    for wrong in ("0%", "100%", "half", "-1", "150%"):
        code, out, err = say(f"--to={wrong}")
        assert (code, out, len(err.strip().splitlines())) == (2, "", 1), wrong
    code, _, err = say("--to", "1%")
    assert (code, "cannot be pruned that far" in err) == (2, True)
    assert len(list((store.root / "runs").iterdir())) == runs
    assert np.isfinite(found["after"]["test_accuracy"])


def test_a_pruned_last_layer_is_refused_before_training() -> None:
    network = parse({"data": "digits", "network": {"kind": "cnn", "width": 8, "pruned": {"widths": [["14", 5, 32]]}}})
    with pytest.raises(BadSpec, match=r"(?i)another number of outputs than classes .*5 for 10"):
        networks.build(network.network, "0123456789", (1, 8, 8), mean=[0.5], std=[0.5])
