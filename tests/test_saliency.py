"""Where classifiers look, against closed forms and slow references written apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from smallalign_core import networks
from smallalign_core.analysis import saliency
from smallalign_core.data import Splits
from smallalign_core.errors import BadInput
from smallalign_core.networks import BaseClassifier, Classifier, onnx_graph
from smallalign_core.runs import imported
from smallalign_core.runs.store import Run, Store
from smallalign_core.service import comparison_api
from smallalign_core.service.requests import Explain, Pixels
from smallalign_core.spec import parse


def built(network: dict | str, digits: Splits) -> Classifier:
    spec = parse({"data": "digits", "network": network})
    return networks.build(spec.network, digits.classes, digits.shape, mean=[0.3], std=[0.4]).eval()


@pytest.mark.parametrize("name", ["digits-teacher", "digits-student", "taught"])
def test_grad_cam_is_cam_where_a_mean_and_a_line_follow_the_maps(
    name: str, digits: Splits, taught: tuple[Store, Run, Run]
) -> None:
    """Zhou et al. (2016): before a global mean and a linear layer, the gradient is weight / pixels, a closed form."""
    run = taught[1] if name == "taught" else taught[0].run(name)
    model = networks.from_file(run.weights)
    pixels = torch.from_numpy(digits.test.images[3:4])
    body = list(model.body)
    mean = next(place for place, module in enumerate(body) if isinstance(module, nn.AdaptiveAvgPool2d))
    pooled = isinstance(body[mean - 1], nn.MaxPool2d)
    assert pooled == (name == "taught")
    with torch.no_grad():
        x = model.prepare(pixels)
        for module in body[: mean - pooled]:
            x = module(x)
        target = int(model(pixels).argmax())
    weight = body[-1].weight[target]
    if pooled:  # the maps are before the last pooling: each window passes its gradient to its largest pixel
        top, places = nn.functional.max_pool2d(x, 2, return_indices=True)
        passed = torch.zeros_like(x).flatten(2).scatter_(2, places.flatten(2), 1.0 / top[0, 0].numel()).view_as(x)
        factors = weight * passed.mean((0, 2, 3))
    else:
        factors = weight / x[0, 0].numel()
    by_hand = torch.relu((factors.view(1, -1, 1, 1) * x).sum(1, keepdim=True))
    wide = nn.functional.interpolate(by_hand, size=(8, 8), mode="bilinear", align_corners=False)[0, 0]

    found = saliency.grad_cam(model, pixels, target)

    assert found is not None
    assert found.max() > 0
    np.testing.assert_allclose(found, wide.detach().numpy(), rtol=1e-4, atol=1e-7)


def test_grad_cam_takes_the_maps_after_norm_activation_and_shortcut(digits: Splits) -> None:
    for network in ("cnn", "separable", "resnet"):
        model = built({"kind": network, "width": 4}, digits)
        module, number = saliency._last_maps(model, torch.zeros(1, 1, 8, 8, dtype=torch.uint8)) or (None, 0)

        assert number == 0
        assert isinstance(module, nn.ReLU | networks._own._Residual), network


class Corner(BaseClassifier):
    """Answers by the brightness of one pixel: its map is known."""

    def __init__(self, y: int, x: int) -> None:
        super().__init__()
        self.classes, self.body, self.at = ("no", "yes"), nn.Identity(), (y, x)

    def forward(self, images: Tensor) -> Tensor:
        bright = images[:, 0, self.at[0], self.at[1]].float() / 32 - 4
        return torch.stack([-bright, bright], 1)


def test_occlusion_finds_the_pixel_that_decides() -> None:
    image = np.zeros((1, 28, 28), np.uint8)
    image[0, 20, 5] = 255

    found = saliency.explain(Corner(20, 5), image)

    assert (found.method, found.target) == ("occlusion", 1)
    assert np.unravel_index(found.heat.argmax(), found.heat.shape) in {(y, x) for y in range(14, 27) for x in range(12)}
    assert found.heat[20, 5] > 0.99
    assert found.heat[:8].max() == 0
    assert found.heat[:, 16:].max() == 0


def test_occlusion_is_the_mean_fall_of_the_probability(digits: Splits) -> None:
    model, image = built("mlp", digits), digits.test.images[7]
    target = 2
    total, times = np.zeros((8, 8)), np.zeros((8, 8))
    colour = int(np.round(image.mean()))
    with torch.no_grad():
        for y in range(7):
            for x in range(7):
                covered = image.copy()
                covered[:, y : y + 2, x : x + 2] = colour
                pair = torch.from_numpy(np.stack([image, covered]))
                before, after = torch.softmax(model(pair), 1)[:, target].tolist()
                total[y : y + 2, x : x + 2] += before - after
                times[y : y + 2, x : x + 2] += 1

    found = saliency.occlusion(model, torch.from_numpy(image)[None], target)

    np.testing.assert_allclose(found, np.maximum(total / times, 0), atol=1e-6)


@pytest.mark.parametrize(
    ("network", "method"),
    [("mlp", "occlusion"), ("cnn", "grad-cam"), ({"kind": "cnn", "width": 4, "depth": 8}, "grad-cam")],
)
def test_every_network_gets_the_map_that_suits_it(network: dict | str, method: str, digits: Splits) -> None:
    model, image = built(network, digits), digits.test.images[0]

    found = saliency.explain(model, image)

    assert found.method == method
    assert found.heat.shape == (8, 8)
    assert found.heat.min() >= 0
    assert found.heat.max() == pytest.approx(1) or not found.heat.any()
    assert saliency.explain(model, image, occluding=True).method == "occlusion"
    assert not any(module._forward_hooks for module in model.modules()), "no hook is left behind"


@pytest.mark.slow
def test_borrowed_networks_and_attention(digits: Splits) -> None:
    image = digits.test.images[0]
    mobile = built({"kind": "torchvision", "name": "mobilenet_v3_small", "size": 64}, digits)
    tokens = built({"kind": "timm", "name": "vit_tiny_patch16_224", "size": 224}, digits)

    assert saliency.explain(mobile, image).method == "grad-cam"
    assert saliency.has_attention(tokens.body)
    assert saliency.explain(tokens, image).method == "occlusion"


@pytest.mark.slow
def test_an_import_is_explained_by_occlusion_and_a_run_by_grad_cam(
    store: Store, tmp_path: Path, digits: Splits
) -> None:
    run = store.run("digits-student")
    model = networks.from_file(run.weights)
    file = tmp_path / "theirs.onnx"
    file.write_bytes(onnx_graph.of_body(model.body, model.prepare(torch.from_numpy(digits.val.images[:2]))))
    mean, std = (float(value) for value in (model.mean, model.std))
    brought = imported.import_onnx(
        file, run.data, store, classes=digits.classes, size=(8, 8), white=1, mean=[mean], std=[std]
    )

    own = Pixels.of(digits.test.images[11])
    answers = comparison_api.look(store, Explain((run.id, brought.id), own)).answers

    assert [one.method.split(" ")[0] for one in answers] == ["Grad-CAM", "Occlusion"]
    assert answers[0].top[0][0] == answers[1].top[0][0] == digits.classes[digits.test.labels[11]]
    assert answers[0].top[0][1] == pytest.approx(answers[1].top[0][1], abs=1e-4)
    maps = comparison_api.look(store, Explain((run.id, brought.id), own, target="3", occluding=True)).answers
    assert {one.target for one in maps} == {"3"}
    assert {one.method.split(" ")[0] for one in maps} == {"Occlusion"}


def test_what_cannot_be_looked_at_is_refused_in_words(taught: tuple[Store, Run, Run], digits: Splits) -> None:
    store, teacher, student = taught
    with pytest.raises(BadInput, match="Unknown class"):
        comparison_api.look(store, Explain((teacher.id, student.id), Pixels.of(digits.test.images[0]), target="cat"))
    with pytest.raises(BadInput, match="size"):
        comparison_api.look(store, Explain((teacher.id, student.id), Pixels.of(np.zeros((1, 9, 9), np.uint8))))
