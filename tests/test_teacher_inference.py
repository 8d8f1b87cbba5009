"""Teacher inference in ONNX Runtime: as exact as PyTorch, or in int8 with the loss stated."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import Train, tiny

from smallalign_core import networks
from smallalign_core.data import Splits
from smallalign_core.errors import BadModel, BadSpec
from smallalign_core.metrics import logits_of
from smallalign_core.networks import onnx_graph, quantize
from smallalign_core.runs.store import Store
from smallalign_core.service import worker
from smallalign_core.system import files
from smallalign_core.training import teacher_loading
from smallalign_core.training.resolve import resolve

QUICK = {"kind": "mlp", "width": 16, "depth": 1}
"""Made into a graph in half a second."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "network", ["mlp", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("cnn", "separable")), "resnet"]
)
def test_a_graph_answers_as_its_network(network: str, digits: Splits) -> None:
    spec = tiny(network=network).network
    classifier = networks.build(spec, digits.classes, digits.shape, mean=[0.3], std=[0.4], seed=1).eval()
    with torch.no_grad():
        x = classifier.prepare(torch.from_numpy(np.asarray(digits.val.images[:]))).contiguous()
        wanted = classifier.body(x)
    content = onnx_graph.of_body(classifier.body, x)
    assert torch.allclose(onnx_graph.Graph(content)(x), wanted, atol=1e-5)
    assert torch.allclose(onnx_graph.Graph(content)(x[:1]), wanted[:1], atol=1e-5)
    small = quantize.Quantizer(content, [x[:64].numpy(), x[64:128].numpy()]).write()
    off = (onnx_graph.Graph(small)(x) - wanted).abs().max().item()
    assert 0 < off < 0.25 * wanted.std().item() + 0.05, "in integers it is a little off, and only a little"


@pytest.mark.slow
@pytest.mark.parametrize("answers", ["onnx", "int8"])
def test_a_run_says_how_close_its_teachers_answers_are(
    answers: str, store: Store, train: Train, digits: Splits
) -> None:
    teacher = train(epochs=8)
    run = store.create(resolve(store, tiny(teacher=teacher.id, answers=answers, augment=["shift"])))
    result = worker.execute(run, store, device="cpu")
    (close,) = result["answers"]
    assert close == (run.events("started")[0]["answers"])[0]
    assert close["images"] == len(digits.val)
    exact = logits_of(networks.from_file(teacher.weights), digits.val)
    live = teacher_loading.load_teacher([run.spec], store, digits, "cpu")
    assert live is not None
    said = live.on(digits.val)
    assert close["agreement"] == (said.argmax(1) == exact.argmax(1)).mean()
    off = np.abs(said - exact).max()
    assert off < 1e-4 if answers == "onnx" else off > 1e-4
    plain = worker.execute(
        store.create(resolve(store, tiny(teacher=teacher.id, augment=["shift"]))), store, device="cpu"
    )
    assert plain["answers"] is None
    assert plain["id"] != result["id"]
    assert (plain["weights_sha256"] == result["weights_sha256"]) is False


@pytest.mark.slow
def test_answers_are_made_once_and_a_damaged_file_is_made_again(store: Store, train: Train, digits: Splits) -> None:
    teacher = train(epochs=4, network=QUICK)
    spec = resolve(store, tiny(teacher=teacher.id, answers="int8"))
    (file,) = (store.root / "cache" / "answers").glob("*.onnx")
    content, made = file.read_bytes(), file.stat().st_mtime_ns
    teacher_loading.load_teacher([spec], store, digits, "cpu")
    assert file.stat().st_mtime_ns == made
    file.write_bytes(content[:-9] + b"other end")
    teacher_loading.load_teacher([spec], store, digits, "cpu")
    assert file.read_bytes() == content


@pytest.mark.slow
def test_integers_that_disagree_are_refused(store: Store, train: Train) -> None:
    teacher = train(epochs=4, network=QUICK)
    resolve(store, tiny(teacher=teacher.id, answers="int8"))
    (facts,) = (store.root / "cache" / "answers").glob("*.json")
    files.write_json(facts, files.read_json(facts) | {"agreement": 0.9})
    with pytest.raises(
        BadModel, match=r"int8 teacher with the original is 90.0% on 143 validation .* less than 95%.*answers: onnx"
    ):
        resolve(store, tiny(teacher=teacher.id, answers="int8"))


def test_losses_of_layers_need_the_teacher_itself() -> None:
    with pytest.raises(BadSpec, match="reads layers of the teacher"):
        tiny(teacher="t", loss="fitnets", answers="int8")


@pytest.mark.slow
def test_either_file_may_be_deleted_at_any_time(store: Store, train: Train, digits: Splits) -> None:
    teacher = train(epochs=4, network=QUICK)
    spec = resolve(store, tiny(teacher=teacher.id, answers="int8"))
    (file,) = (store.root / "cache" / "answers").glob("*.onnx")
    for gone in (file, file.with_suffix(".json")):
        gone.unlink()
        teacher_loading.load_teacher([spec], store, digits, "cpu")
        assert gone.exists()
    file.with_suffix(".json").unlink()
    assert teacher_loading.inference_gap(spec, store) == [], "what is not known is not claimed"
    file.with_suffix(".json").write_text("{")
    assert teacher_loading.inference_gap(spec, store) == [], "nor is what is damaged"
