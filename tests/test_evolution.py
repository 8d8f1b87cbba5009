"""Evolution strategies and students of few bits: what they compute, resumed anywhere, counted, exported and refused."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import Train, tiny
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from smallalign_core import data, export, networks
from smallalign_core.data import Splits
from smallalign_core.errors import BadModel, BadSpec, Refused
from smallalign_core.metrics import logits_of, score
from smallalign_core.runs.store import Store
from smallalign_core.service import handlers
from smallalign_core.service.requests import Submit
from smallalign_core.spec import RunSpec, digest, parse, set_field, to_yaml
from smallalign_core.training import optim
from smallalign_core.training.loop import Training

KINDS = ("snes", "pgpe")
MLP = {"kind": "mlp", "width": 8, "depth": 1}


def few(kind: str, **fields: Any) -> dict[str, Any]:
    return {"kind": kind, "population": 8, **fields}


def weights(training: Training, student: int = 0) -> list[Tensor]:
    one = training.students[student]
    return [tensor.clone() for tensor in (*one.classifier.state_dict().values(), *one.best_weights.values())]


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


# --- what a step does -------------------------------------------------------------------------------------------------


def one_step(optimizer: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """(weights before, candidates, their losses, weights after, what is kept) of one step on a quadratic of 2 weights
    matrices.
    """
    torch.manual_seed(3)
    model = nn.Linear(3, 2)
    spec = tiny(optimizer=optimizer).optimizer
    strategy = optim.build(spec, model)
    before, seen = parameters_to_vector(model.parameters()).detach().clone(), []

    def losses(candidates: Tensor) -> Tensor:
        seen.append(candidates.clone())
        return candidates.square().sum(1)

    strategy.param_groups[0]["lr"] = 0.5 * spec.lr
    strategy.step(losses)  # type: ignore[arg-type]
    after = parameters_to_vector(model.parameters()).detach().clone()
    kept = {
        name: torch.cat([strategy.state[weight][name].flatten() for weight in model.parameters()])
        for name in strategy.state[model.weight]
    }
    return before, seen[0], seen[0].square().sum(1), after, kept


def test_snes_agrees_with_the_paper() -> None:
    """Schaul et al. (2011), algorithm 2, in double precision; the weights move by half, as the schedule says."""
    before, candidates, found, after, kept = one_step(few("snes", sigma=0.3))
    n, count = len(before), len(candidates)
    s = ((candidates - before) / 0.3).double()
    order = found.argsort()
    utilities = torch.clamp(np.log(count / 2 + 1) - torch.arange(1, count + 1).double().log(), min=0)
    utilities = utilities / utilities.sum() - 1 / count
    ranked = s[order]
    rate = (3 + np.log(n)) / (5 * np.sqrt(n))
    torch.testing.assert_close(
        after.double(), before.double() + 0.5 * 0.3 * (utilities[:, None] * ranked).sum(0), atol=1e-6, rtol=1e-5
    )
    sigma = 0.3 * torch.exp(rate / 2 * (utilities[:, None] * (ranked**2 - 1)).sum(0))
    torch.testing.assert_close(kept["sigma"].double(), sigma, atol=1e-6, rtol=1e-5)


def test_pgpe_agrees_with_the_papers() -> None:
    """Sehnke et al. (2010) with mirrored pairs and centred ranks; ClipUp (Toklu et al., 2020), algorithm 1."""
    before, candidates, found, after, kept = one_step(few("pgpe", sigma=0.3, lr=0.2))
    plus, minus = candidates[0::2], candidates[1::2]
    torch.testing.assert_close(plus - before, before - minus)
    ranks = (-found).argsort().argsort().double() / (len(found) - 1) - 0.5  # the best has 0.5
    noise = (plus - before).double()
    slope = ((ranks[0::2] - ranks[1::2]) / 2)[:, None].mul(noise).sum(0) / len(noise)
    velocity = 0.1 * slope / slope.norm()  # the first of momentum 0.9; half of lr by the schedule
    torch.testing.assert_close(kept["velocity"].double(), velocity, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(after.double(), before.double() + velocity, atol=1e-6, rtol=1e-4)
    assert not torch.equal(kept["sigma"], torch.full_like(kept["sigma"], 0.3))


def test_many_at_once_answer_as_one_by_one(digits: Splits) -> None:
    """An MLP is asked through vmap and any other network in a loop; of few bits too."""
    for bits in (None, 2):
        classifier = Training([tiny(network=MLP, bits=bits)], digits).students[0].classifier
        body, images = classifier.body, torch.from_numpy(digits.val.images[:32])
        prepared = classifier.prepare(images)
        centre = parameters_to_vector(body.parameters()).detach()
        candidates = centre + 0.05 * torch.randn(6, len(centre), generator=torch.Generator().manual_seed(1))
        networks = tiny(network=MLP).network, tiny(network={"kind": "cnn"}).network
        with torch.no_grad():
            at_once, looped = (
                torch.stack(list(optim.answers(body, one, candidates, prepared, lambda: None))) for one in networks
            )
        assert at_once.shape == (6, 32, 10)
        torch.testing.assert_close(at_once, looped)


# --- contracts of every optimizer -------------------------------------------------------------------------------------

STACKS: list[Any] = [*map(few, KINDS), {"kind": "ema", "decay": 0.9, "inner": few("snes")}]


@pytest.mark.parametrize("bits", [None, 2], ids=["full", "two bits"])
@pytest.mark.parametrize("stack", STACKS, ids=lambda stack: stack["kind"])
@pytest.mark.parametrize("kind", ["cnn", "mlp"])
def test_resume_is_exact(kind: str, stack: Any, bits: int | None, digits: Splits) -> None:
    """With dropout and batch norm in a loop, and many at once."""
    network = {"kind": "cnn", "width": 3, "depth": 2, "dropout": 0.3} if kind == "cnn" else MLP
    spec = tiny(optimizer=stack, network=network, bits=bits, epochs=1)
    whole, first, second = (Training([spec], digits) for _ in range(3))
    list(whole)
    for _ in range(4):
        first.advance()
    buffer = io.BytesIO()
    torch.save(first.state(), buffer)
    second.restore(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
    torch.manual_seed(999)
    list(second)
    assert equal(weights(whole), weights(second))
    assert whole.students[0].evaluations == second.students[0].evaluations == whole.step * 9
    assert whole.students[0].gradients == 0


@pytest.mark.slow
def test_lockstep_changes_nobody(digits: Splits) -> None:
    specs = [
        tiny(optimizer=stack, network={"kind": "cnn", "width": 3, "depth": 2, "dropout": 0.3}, epochs=1, bits=bits)
        for stack, bits in [(STACKS[0], None), ("adamw", 3), (STACKS[1], 2), ("adamw", None)]
    ]
    together = Training(specs, digits)
    list(together)
    for index, spec in enumerate(specs):
        alone = Training([spec], digits)
        list(alone)
        assert equal(weights(together, index), weights(alone)), spec.optimizer


def test_candidates_count_nothing_in_batch_norms(digits: Splits) -> None:
    """Running statistics are those of the weights themselves: those of an ordinary forward pass."""
    spec = tiny(optimizer=few("snes", sigma=2.0))
    training, plain = (Training([one], digits) for one in (spec, tiny(optimizer="adamw")))
    training.advance()
    plain.advance()
    ours, theirs = (dict(one.students[0].classifier.named_buffers()) for one in (training, plain))
    assert int(ours["body.1.num_batches_tracked"]) == 1
    for name, buffer in ours.items():
        assert torch.equal(buffer, theirs[name])


def test_evaluations_are_counted_and_kept(train: Train) -> None:
    run = train(network=MLP, optimizer=few("snes"), epochs=1)
    result = run.result or {}
    assert (result["gradients"], result["evaluations"]) == (0, 9 * result["steps"])
    assert run.events("progress")[-1]["evaluations"] == result["evaluations"]
    assert run.events("epoch")[-1]["shares"] == {}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_very_small_net_is_trained_without_gradients(kind: str, digits: Splits) -> None:
    """2,410 weights, as the issue asks: over 92% of the test images."""
    spec = tiny(network={"kind": "mlp", "width": 32, "depth": 1}, optimizer={"kind": kind, "sigma": 0.1}, epochs=60)
    training = Training([spec], digits)
    list(training)
    best = training.students[0].best()
    assert sum(weight.numel() for weight in best.parameters()) == 2410
    assert score(logits_of(best, digits.test), digits.test.labels, digits.classes).accuracy > 0.92


# --- few bits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_rounding_is_to_levels_of_each_output(bits: int) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 5, 3)
    plain = layer.weight.detach().clone()
    networks.in_bits(layer, bits)
    most, rounded = 2 ** (bits - 1) - 1, layer.weight
    for own, made in zip(plain, rounded.detach(), strict=True):
        step = float(own.abs().max()) / most
        levels = (made / step).round()
        torch.testing.assert_close(made, levels * step)
        assert levels.abs().max() == most
        assert float((own - made).abs().max()) <= step / 2 + 1e-6
    rounded.sum().backward()
    torch.testing.assert_close(layer.parametrizations.weight.original.grad, torch.ones_like(plain))  # type: ignore[union-attr]
    torch.testing.assert_close(networks.baked(nn.Sequential(layer))[0].weight, rounded)
    assert isinstance(layer.weight, Tensor)
    assert layer.parametrizations  # the copy was baked, not the layer


@pytest.mark.slow
def test_a_run_of_few_bits_is_kept_exported_and_gone_on_from(train: Train, store: Store) -> None:
    run = train(bits=2, epochs=4)
    result = run.result or {}
    kept, learning = (networks.from_file(run.weights, learning=one) for one in (False, True))
    splits_val = data.load(run.spec.data, store.data_cache)
    said = score(logits_of(kept, splits_val.test), splits_val.test.labels, splits_val.classes)
    assert said.as_dict() == result["test"]
    assert not any("parametrizations" in name for name in kept.state_dict())
    assert any("parametrizations" in name for name in learning.state_dict())
    model = onnx.load_from_string(export.to_onnx(kept))
    matrices = [numpy_helper.to_array(one) for one in model.graph.initializer]
    matrices = [
        one for one in matrices if (one.ndim == 4 and len(one) > 1) or one.shape == (12, 10) or one.shape == (10, 12)
    ]
    assert len(matrices) == 3
    for matrix in matrices:
        by_output = matrix if matrix.ndim == 4 or matrix.shape[0] == 10 else matrix.T
        assert max(len(np.unique(np.abs(output).round(6))) for output in by_output) <= 2
    polished = train(bits=2, epochs=1, start=run.id, optimizer=few("snes", sigma=1e-4))
    again = networks.from_file(polished.weights, learning=True).state_dict()
    for name, tensor in learning.state_dict().items():  # four epochs' weights before rounding, moved by very little
        if name.endswith("original"):
            torch.testing.assert_close(again[name], tensor, atol=5e-3, rtol=0)
    assert polished.spec.start == run.id
    store.create(parse(polished.spec.model_dump() | {"seed": 9}))
    with pytest.raises(Refused, match="Unfinished runs depend on it"):
        store.delete(run.id)


def test_full_precision_begins_few_bits(train: Train) -> None:
    run = train(epochs=1)
    begun = train(epochs=1, bits=4, start=run.id[:8], optimizer={"kind": "adamw", "lr": 1e-9})
    ours, theirs = networks.from_file(run.weights), networks.from_file(begun.weights, learning=True)
    names = dict(theirs.named_parameters())
    torch.testing.assert_close(names["body.0.parametrizations.weight.original"], ours.body[0].weight)  # type: ignore[index]


# --- refusals, in words, and what does not change ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"optimizer": {"kind": "sam", "inner": "snes"}}, "`snes` is gradient-free: only ema can wrap it"),
        ({"optimizer": {"kind": "lookahead", "inner": "pgpe"}}, "`pgpe` is gradient-free: only ema can wrap it"),
        ({"optimizer": "snes", "precision": "bf16"}, "leave `precision` out"),
        ({"optimizer": {"kind": "ema", "inner": "snes"}, "compile": True}, "leave `compile` out"),
        ({"optimizer": "pgpe", "teacher": "t", "loss": "attention"}, "by their logits, not by layers"),
        ({"optimizer": few("snes", population=5)}, "optimizer.population"),
        ({"bits": 5}, "`bits` must be 2, 3"),
    ],
)
def test_nonsense_is_refused_in_words(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(BadSpec) as refused:
        tiny(**fields)
    assert words in str(refused.value)


def test_several_processes_and_many_weights_are_refused(digits: Splits, store: Store) -> None:
    from smallalign_core.training.distributed import World

    with pytest.raises(BadSpec, match=r"`snes` does not support several processes"):
        Training([tiny(optimizer="snes")], digits, world=World(0, 2))
    million = {"data": "digits", "network": {"kind": "mlp", "width": 970}, "optimizer": "pgpe"}
    with pytest.raises(
        BadSpec, match=r"at most 100,000 weights; its population would take 1\.0 GB.*1,014,6\d\d weights"
    ):
        handlers.submit(store, Submit(parse(million)))
    assert not store.runs()


def test_another_network_is_no_start(train: Train, store: Store) -> None:
    run = train(epochs=1)
    other = {"data": "digits", "network": {"kind": "cnn", "width": 7, "depth": 2}, "start": run.id}
    with pytest.raises(BadModel, match=r"of another network.*Start from a run with the same network"):
        handlers.submit(store, Submit(parse(other)))


def test_names_of_old_runs_stay_and_new_fields_travel() -> None:
    old = parse({"data": "digits", "network": "cnn", "optimizer": "sgd"})
    assert digest(old) == "a6d10b2441eee12c"
    new = parse({**old.model_dump(), "bits": 2, "start": "0123456789abcdef", "optimizer": few("pgpe", lr=0.3)})
    assert digest(new) != digest(old)
    assert (
        RunSpec.model_validate(set_field({"data": "digits", "network": "cnn"}, "start=1234567890")).start
        == "1234567890"
    )
    assert "bits: 2" in to_yaml(new)


def test_memory_is_bounded_by_the_population_not_by_the_images() -> None:
    """What is answered at once is cut into pieces; each candidate is answered once, in order."""
    body = nn.Linear(4, 3)
    spec = tiny(network=MLP).network
    candidates = torch.randn(10, 15)
    networks = []
    try:
        optim._evolution.TOGETHER = 45  # type: ignore[attr-defined]
        with torch.no_grad():
            said = list(optim.answers(body, spec, candidates, torch.eye(4), lambda: networks.append(1)))
    finally:
        optim._evolution.TOGETHER = 4_000_000  # type: ignore[attr-defined]
    for one, logits in zip(candidates, said, strict=True):
        torch.testing.assert_close(logits, one[:12].view(3, 4).T + one[12:])
    assert not networks
    assert len(said) == 10


def test_candidates_are_compared_and_not_their_dropout(digits: Splits) -> None:
    """Equal candidates have equal losses: that of the weights themselves, under the same mask."""
    network = {"kind": "cnn", "width": 3, "depth": 2, "dropout": 0.5}
    training = Training([tiny(optimizer="snes", network=network)], digits)
    student, seen = training.students[0], []
    centre = optim._evolution._flat(list(student.classifier.parameters())).detach()  # type: ignore[attr-defined]
    student.step = lambda closure: seen.append(closure(centre.expand(4, -1)))  # type: ignore[method-assign,func-returns-value]
    training.advance()
    assert torch.equal(seen[0], student.sums["total"].expand(4))
