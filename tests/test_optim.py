"""Every optimizer: against references written here, resumed anywhere, side by side, averaged, and in memory."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

import psutil
import pytest
import torch
import yaml
from conftest import Train, tiny
from hypothesis import HealthCheck, given, settings, strategies as st
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from smallalign_core import networks
from smallalign_core.data import Splits
from smallalign_core.errors import BadSpec
from smallalign_core.metrics import logits_of, score
from smallalign_core.runs.store import Store
from smallalign_core.service import handlers
from smallalign_core.service.requests import Submit
from smallalign_core.spec import Optimizer, choices, digest, is_gradient_free, parse, set_field, to_yaml
from smallalign_core.spec.optimizer import PLAIN, kind_of, nest
from smallalign_core.system import machine
from smallalign_core.training import losses, optim
from smallalign_core.training.distributed import World
from smallalign_core.training.loop import Progress, Stopped, Training, Validated
from smallalign_core.training.losses import NetworkOutput
from smallalign_core.training.optim import _memory
from smallalign_core.training.teacher import Teacher

PLAIN_KINDS = [str(member.model_fields["kind"].default) for member in get_args(PLAIN)]
SHARP = [{"kind": kind, "inner": inner} for kind in ("sam", "asam") for inner in ("adamw", "muon", "soap", "prodigy")]
AHEAD = [{"kind": "lookahead", "inner": inner, "k": 4} for inner in (*PLAIN_KINDS, *SHARP[:2])]
STACKS: list[Any] = [
    *PLAIN_KINDS,
    "schedule_free",
    "polyak",
    *({"kind": kind, "population": 4} for kind in ("snes", "pgpe")),
    *SHARP,
    *AHEAD,
    *({"kind": "ema", "inner": inner} for inner in ("sgd", "polyak", AHEAD[5], SHARP[0])),
    {"kind": "ema", "decay": 0.9, "inner": {"kind": "lookahead", "k": 3, "inner": {"kind": "asam", "inner": "muon"}}},
]


def called(stack: Any) -> str:
    return (
        stack if isinstance(stack, str) else "-".join([stack["kind"], *map(called, filter(None, [stack.get("inner")]))])
    )


@pytest.fixture(scope="module")
def teacher(digits: Splits) -> Teacher:
    training = Training([tiny(network={"kind": "cnn", "width": 16}, epochs=6)], digits)
    list(training)
    return Teacher(training.students[0].best(), digits.classes)


def taught(optimizer: Any, **fields: Any) -> Any:
    """A student with dropout and batch norm, of a teacher."""
    network = {"kind": "cnn", "width": 4, "depth": 2, "dropout": 0.3}
    return tiny(**{"optimizer": optimizer, "teacher": "t", "network": network, "epochs": 2, **fields})


def weights(training: Training, student: int = 0) -> list[Tensor]:
    one = training.students[student]
    return [tensor.clone() for tensor in (*one.classifier.state_dict().values(), *one.best_weights.values())]


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


def resumed(training: Training, fresh: Training) -> Training:
    """`fresh`, from the state of `training` as a file keeps it."""
    buffer = io.BytesIO()
    torch.save(training.state(), buffer)
    fresh.restore(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
    return fresh


def test_every_kind_is_here() -> None:
    assert {part.kind for stack in STACKS for part in nest(tiny_optimizer(stack))} == set(choices(Optimizer))


def tiny_optimizer(stack: Any) -> Any:
    return taught(stack).optimizer


# --- resume and lockstep ----------------------------------------------------------------------------------------------


def resumes(stack: Any, stop: int, few: Splits, teacher: Teacher) -> None:
    spec = taught(stack, batch=32)
    whole, first = (Training([spec], few, teacher) for _ in range(2))
    list(whole)
    for _ in range(stop):
        first.advance()
    second = resumed(first, Training([spec], few, teacher))
    torch.manual_seed(999)
    list(second)
    assert whole.step > stop
    assert equal([*whole.state()["weights"].values()], [*second.state()["weights"].values()])
    assert equal([*whole.scored().state_dict().values()], [*second.scored().state_dict().values()])
    assert whole.students[0].gradients == second.students[0].gradients == whole.step * spec_evaluations(spec)


def spec_evaluations(spec: Any) -> int:
    if is_gradient_free(spec.optimizer):
        return 0
    return 2 if {"sam", "asam"} & {part.kind for part in nest(spec.optimizer)} else 1


@pytest.mark.parametrize("stack", STACKS, ids=called)
def test_resume_is_exact(stack: Any, few: Splits, teacher: Teacher) -> None:
    """In the middle of a Lookahead cycle too: 11 is no multiple of 3, 4 or 5."""
    resumes(stack, 11, few, teacher)


kinds = st.sampled_from(PLAIN_KINDS).map(lambda kind: {"kind": kind})
sharp = st.tuples(st.sampled_from(["sam", "asam"]), kinds).map(lambda pair: {"kind": pair[0], "inner": pair[1]})
ahead = st.tuples(st.integers(2, 7), kinds | sharp).map(
    lambda pair: {"kind": "lookahead", "k": pair[0], "inner": pair[1]}
)
evolved = st.sampled_from(["snes", "pgpe"]).map(lambda kind: {"kind": kind, "population": 4})
free = evolved | st.just({"kind": "polyak"})
averaged = (kinds | sharp | ahead | free).map(lambda inner: {"kind": "ema", "inner": inner})
anything = kinds | sharp | ahead | free | averaged | st.just({"kind": "schedule_free"})


@pytest.mark.slow
@settings(max_examples=14, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(stack=anything, stop=st.integers(1, 19))
def test_any_nesting_resumes_exactly_anywhere(stack: Any, stop: int, few: Splits, teacher: Teacher) -> None:
    resumes(stack, stop, few, teacher)


@pytest.mark.slow
def test_lockstep_of_all_kinds_changes_nobody(few: Splits, teacher: Teacher) -> None:
    stacks = [*PLAIN_KINDS, "schedule_free", "polyak", SHARP[0], SHARP[5], AHEAD[0], *STACKS[-3:]]
    specs = [taught(stack, epochs=1, batch=32) for stack in stacks]
    together = Training(specs, few, teacher)
    list(together)
    for index, spec in enumerate(specs):
        alone = Training([spec], few, teacher)
        list(alone)
        assert equal(weights(together, index), weights(alone)), spec.optimizer


@pytest.mark.slow
def test_each_kind_lowers_the_loss(digits: Splits, teacher: Teacher) -> None:
    """Each with its own defaults, but for Lion's rate, which is for long runs."""
    specs = [
        tiny(teacher="t", optimizer={"kind": "lion", "lr": 1e-3} if kind == "lion" else kind, epochs=16)
        for kind in choices(Optimizer)
        if kind not in ("snes", "pgpe")  # for smaller networks: see test_evolution
    ]
    found: dict[int, list[float]] = {}
    for event in Training(specs, digits, teacher):
        if isinstance(event, Progress):
            found.setdefault(event.student, []).append(event.losses["total"])
    assert len(found) == len(specs)
    for index, curve in found.items():
        assert curve[-1] < 0.75 * curve[0], (specs[index].optimizer, curve)


# --- references -------------------------------------------------------------------------------------------------------

Loss = Callable[[], Tensor]


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """All in one vector."""
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def reference(training: Training, steps: int = 50) -> Iterator[tuple[list[Tensor], Loss, float]]:
    """Step by step: the weights of a copy that nothing of the library moves, the loss of each step, and its rate."""
    student = training.students[0]
    model, spec = copy.deepcopy(student.classifier).train(), student.spec
    parameters = list(model.parameters())
    for step in range(steps):
        batch = training.views(step)

        def loss(step: int = step, batch: Any = batch) -> Tensor:
            torch.manual_seed(spec.seed * 1_000_003 + step)
            return nn.functional.cross_entropy(model(batch.images), batch.labels)

        rate = optim.peak_rate(spec.optimizer) * optim.factor(spec.schedule, step, training.steps)
        yield parameters, loss, rate


def descend(
    parameters: list[Tensor], gradients: Any, momenta: list[Tensor], rate: float, momentum: float = 0.9
) -> None:
    """SGD with Nesterov momentum, as torch documents it."""
    with torch.no_grad():
        for weight, gradient, kept in zip(parameters, gradients, momenta, strict=True):
            kept.mul_(momentum).add_(gradient)
            weight -= rate * (gradient + momentum * kept)


def agrees(training: Training, parameters: list[Tensor]) -> None:
    for ours, theirs in zip(training.students[0].classifier.parameters(), parameters, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


def smooth(**fields: Any) -> Any:
    return tiny(network={"kind": "mlp", "width": 12, "depth": 1, "dropout": 0.3}, epochs=6, batch=128, **fields)


SGD = {"kind": "sgd", "lr": 0.05, "weight_decay": 0}


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_fused_steps_are_torchs_to_the_last_bit(kind: str) -> None:
    """Rates that change, a weight without a gradient, and a state that was loaded included."""
    plain = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[kind]
    found = []
    for ours in (True, False):
        torch.manual_seed(0)
        layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10), nn.Linear(10, 10)
        network = nn.Sequential(*layers).to(memory_format=torch.channels_last)
        optimizer = optim.build(tiny_optimizer(kind), network)
        assert plain in type(optimizer).__mro__[1:]
        for step in range(12):
            if step == 6:
                kept = copy.deepcopy(optimizer.state_dict())
                optimizer = optim.build(tiny_optimizer(kind), network)
                optimizer.load_state_dict(kept)
            for group in optimizer.param_groups:
                group["lr"] = 0.01 / (1 + step)
            optimizer.zero_grad()
            short = network[:-1] if step == 9 else network
            short(torch.randn(8, 1, 8, 8)).square().mean().backward()
            if ours:
                optimizer.step()
            else:
                plain.step(optimizer)
        found.append(flat(network.parameters()))
    assert torch.equal(*found)
    assert found[0].isfinite().all()


def test_lookahead_agrees_with_the_paper(digits: Splits) -> None:
    """Zhang et al. (2019), algorithm 1."""
    training = Training([smooth(optimizer={"kind": "lookahead", "inner": SGD, "k": 6, "alpha": 0.4})], digits)
    parameters, slow, momenta = [], [], []  # type: ignore[var-annotated]
    for step, (parameters, loss, rate) in enumerate(reference(training)):
        slow = slow or [weight.detach().clone() for weight in parameters]
        momenta = momenta or [torch.zeros_like(weight) for weight in parameters]
        descend(parameters, torch.autograd.grad(loss(), parameters), momenta, rate)
        if (step + 1) % 6 == 0:
            with torch.no_grad():
                for kept, fast in zip(slow, parameters, strict=True):
                    kept += 0.4 * (fast - kept)
                    fast.copy_(kept)
        training.advance()
        agrees(training, parameters)


@pytest.mark.parametrize("kind", ["sam", "asam"])
def test_sam_agrees_with_the_paper(kind: str, digits: Splits) -> None:
    """Foret et al. (2021), equation 2; Kwon et al. (2021), equation 9. Both gradients see the same dropout mask."""
    rho = 0.1 if kind == "sam" else 0.5
    training = Training([smooth(optimizer={"kind": kind, "inner": SGD, "rho": rho})], digits)
    momenta: list[Tensor] = []
    for parameters, loss, rate in reference(training):
        momenta = momenta or [torch.zeros_like(weight) for weight in parameters]
        gradients = torch.autograd.grad(loss(), parameters)
        scales = [weight.detach().abs() if kind == "asam" else torch.ones_like(weight) for weight in parameters]
        length = torch.cat([(t * g).flatten() for t, g in zip(scales, gradients, strict=True)]).norm()
        here = [weight.detach().clone() for weight in parameters]
        with torch.no_grad():
            for weight, gradient, scale in zip(parameters, gradients, scales, strict=True):
                weight += rho * scale**2 * gradient / length
        there = torch.autograd.grad(loss(), parameters)
        with torch.no_grad():
            for weight, kept in zip(parameters, here, strict=True):
                weight.copy_(kept)
        descend(parameters, there, momenta, rate)
        training.advance()
        agrees(training, parameters)


def test_sam_counts_a_step_once_in_batch_norms(digits: Splits) -> None:
    """Running statistics are those of the weights themselves, not of those that SAM looked at."""
    training = Training([tiny(optimizer={"kind": "sam", "rho": 5.0})], digits)
    copied = copy.deepcopy(training.students[0].classifier).train()
    for step in range(3):
        copied.load_state_dict({**training.students[0].classifier.state_dict(), **dict(copied.named_buffers())})
        copied(training.views(step).images)
        training.advance()
    ours, theirs = (dict(model.named_buffers()) for model in (training.students[0].classifier, copied))
    assert int(ours["body.1.num_batches_tracked"]) == 3
    for name, buffer in ours.items():
        torch.testing.assert_close(buffer, theirs[name])


def test_polyak_agrees_with_the_paper(digits: Splits, teacher: Teacher) -> None:
    """Gower et al. (2025), IAM with Adam's preconditioner; in double precision, on one vector of all weights."""
    spec = smooth(
        teacher="t", loss={"kind": "kd", "temperature": 2, "weight": 0.5}, optimizer={"kind": "polyak", "averaging": 4}
    )
    training = Training([spec], digits, teacher)
    lead = moment = None
    for step, (parameters, _, _) in enumerate(reference(training)):
        batch, said = teacher.batch_with_targets(training.views, step)
        model = copy.deepcopy(training.students[0].classifier).train()
        x = torch.cat([weight.detach().flatten().double() for weight in parameters])
        nn.utils.vector_to_parameters(x.float(), model.parameters())
        torch.manual_seed(step)
        loss = sum(losses.terms(spec.loss, NetworkOutput(model(batch.images)), said, batch.labels).values())
        g = torch.cat([part.flatten().double() for part in torch.autograd.grad(loss, list(model.parameters()))])
        # The teacher's own loss: nothing for its own answers, and half of its cross entropy.
        floor = 0.5 * nn.functional.cross_entropy(said.logits.double(), batch.labels)
        lead = x if lead is None else lead
        moment = torch.zeros_like(g) if moment is None else moment
        moment = 0.999 * moment + 0.001 * g**2
        d = (moment / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8
        eta = max(0.0, float(loss.detach()) - float(floor) + float(g @ (lead - x))) / float(g @ (g / d))
        lead = lead - eta * g / d
        nn.utils.vector_to_parameters(((4 * x + lead) / 5).float(), parameters)
        training.advance()
        if step < 20:  # rounding grows: the reference is double, ours is single
            for ours, theirs in zip(training.students[0].classifier.parameters(), parameters, strict=True):
                torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


# --- averages ---------------------------------------------------------------------------------------------------------


def test_schedule_free_is_scored_at_its_average(digits: Splits) -> None:
    """Defazio et al. (2024), algorithm 1: y is where gradients are taken, z takes the steps, x is their average."""
    spec = smooth(optimizer={"kind": "schedule_free", "lr": 0.01, "beta1": 0.8})
    training = Training([spec], digits)
    x = z = v = None
    total, highest = 0.0, 0.0
    for step, (parameters, loss, rate) in enumerate(reference(training, 30)):
        y = flat(parameters).detach().double()
        x, z, v = (y, y, torch.zeros_like(y)) if x is None or z is None or v is None else (x, z, v)
        g = torch.cat([part.flatten() for part in torch.autograd.grad(loss(), parameters)]).double()
        v = 0.999 * v + 0.001 * g**2
        z = z - rate * g / ((v / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
        highest = max(highest, rate)
        total += highest**2
        share = highest**2 / total
        x = (1 - share) * x + share * z
        nn.utils.vector_to_parameters(((1 - 0.8) * z + 0.8 * x).float(), parameters)
        training.advance()
        scored = flat(training.scored().parameters()).double()
        torch.testing.assert_close(scored, x, atol=2e-5, rtol=1e-4)
    assert not torch.allclose(scored, flat(parameters).double(), atol=1e-3)


def test_ema_is_the_average_and_changes_no_step(digits: Splits) -> None:
    inner = {"kind": "adamw", "lr": 0.01}
    ours, plain = (
        Training([tiny(optimizer=one)], digits) for one in ({"kind": "ema", "decay": 0.8, "inner": inner}, inner)
    )
    average: Any = None
    for step in range(25):
        ours.advance()
        plain.advance()
        now = flat(plain.students[0].classifier.parameters()).detach()
        decay = min(0.8, (1 + step) / (10 + step))
        average = now if average is None else decay * average + (1 - decay) * now
    assert equal(weights(ours), weights(plain))
    torch.testing.assert_close(flat(ours.scored().parameters()), average, atol=1e-6, rtol=1e-5)


AVERAGED = ["schedule_free", {"kind": "ema", "decay": 0.95}]


@pytest.mark.parametrize("stack", AVERAGED, ids=kind_of)
def test_what_is_scored_is_the_average_with_its_own_statistics(stack: Any, digits: Splits) -> None:
    training = Training([tiny(optimizer=stack, augment=["shift"], epochs=4)], digits)
    validated = [event for event in training if isinstance(event, Validated)]
    scored, learning, val = training.scored(), training.students[0].classifier, digits.val
    said = score(logits_of(scored, val), val.labels, val.classes)
    assert validated[-1].scores == said
    assert said != score(logits_of(learning, val), val.labels, val.classes)
    best = training.students[0].best()
    top = max(event.scores.accuracy for event in validated)
    assert score(logits_of(best, val), val.labels, val.classes).accuracy == top
    # The first batch norm sees convolved images: its statistics, by hand, over the same views. 128 x 16 images.
    batches = [training.views(step).images for step in range(16)]
    with torch.no_grad():
        met = [scored.body[0](scored.prepare(images)) for images in batches]  # type: ignore[index,operator]
    mean = torch.stack([one.mean((0, 2, 3)) for one in met]).mean(0)
    torch.testing.assert_close(scored.body[1].running_mean, mean, atol=1e-5, rtol=1e-4)  # type: ignore[index,union-attr]


@pytest.mark.parametrize("stack", AVERAGED, ids=kind_of)
def test_how_often_it_is_scored_changes_nothing(stack: Any, digits: Splits) -> None:
    one, other = (Training([taught(stack, teacher=None, epochs=2)], digits) for _ in range(2))
    for step in range(20):
        one.advance()
        other.advance()
        if step % 3 == 0:
            first, again = (copy.deepcopy(other.scored().state_dict()) for _ in range(2))
            assert equal([*first.values()], [*again.values()])
    assert equal(weights(one), weights(other))


def test_the_norms_of_a_frozen_body_are_left_alone(digits: Splits) -> None:
    training = Training([tiny(optimizer="ema")], digits)
    classifier = training.students[0].classifier
    head = networks.head(classifier)
    classifier._probe = (head,)
    training.students[0].begin()
    training.advance()
    before = {name: kept.clone() for name, kept in classifier.named_buffers()}
    assert all(torch.equal(kept, before[name]) for name, kept in training.scored().named_buffers())


# --- what is decayed, what is kept ------------------------------------------------------------------------------------


@pytest.mark.parametrize("stack", STACKS, ids=called)
def test_decay_spares_biases_and_norms_and_states_are_as_big_as_said(
    stack: Any, digits: Splits, teacher: Teacher
) -> None:
    training = Training([taught(stack, network={"kind": "separable", "width": 24, "depth": 2})], digits, teacher)
    training.advance()
    training.advance()
    student = training.students[0]
    head = networks.head(student.classifier)
    decayed = {id(p) for group in student.optimizer.param_groups if group.get("weight_decay") for p in group["params"]}
    decays = getattr(nest(student.spec.optimizer)[-1], "weight_decay", 0) > 0
    grouped = [id(p) for group in student.optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(map(id, student.classifier.parameters()))
    for parameter in student.classifier.parameters():
        assert (id(parameter) in decayed) == (decays and parameter.ndim > 1)
    average = student.average.state_dict() if student.average else {}
    kept = sum(
        leaf.numel() * leaf.element_size()
        for leaf in tree_leaves((student.optimizer.state_dict(), average))
        if isinstance(leaf, Tensor)
    )
    if is_gradient_free(student.spec.optimizer):  # while it tries candidates
        kept += optim.population_bytes(student.spec.optimizer, sum(p.numel() for p in student.classifier.parameters()))
    if spec_evaluations(student.spec) == 2:  # between its two gradients SAM keeps where it was
        kept += sum(p.numel() * 4 for p in student.classifier.parameters())
    said = optim.state_bytes(student.spec.optimizer, student.classifier, head=head)
    assert said == pytest.approx(kept, rel=0.02)


def test_libraries_are_told_what_their_defaults_are_not(digits: Splits) -> None:
    """AdEMAMix decays by L2 and never grows its slow mean in, unless told; timm hands Muon a momentum of 0.9."""
    training = Training([tiny(optimizer=kind) for kind in ("ademamix", "muon", "lookahead")], digits)
    slow, muon, ahead = (student.optimizer for student in training.students)
    assert [slow.param_groups[0][name] for name in ("weight_decouple", "t_alpha_beta3")] == [True, training.steps]
    assert [muon.param_groups[0][name] for name in ("momentum", "nesterov")] == [0.95, True]
    assert ahead.pullback_momentum == "none"  # type: ignore[attr-defined]


def test_muon_leaves_the_head_to_nadamw(digits: Splits) -> None:
    training = Training([tiny(network={"kind": "mlp", "width": 16}, optimizer="muon")], digits)
    training.advance()
    student = training.students[0]
    states = {name: student.optimizer.state[weight] for name, weight in student.classifier.named_parameters()}
    orthogonal = {name for name, state in states.items() if state["use_muon"]}
    assert orthogonal == {"body.1.weight", "body.4.weight"}
    assert networks.head(student.classifier) is student.classifier.body[7]  # type: ignore[index]


def test_what_would_not_fit_is_refused_before_it_is_made(
    digits: Splits, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.device("meta"):
        wide = nn.Sequential(*(nn.Linear(10_000, 10) for _ in range(40)))
    soap = tiny(optimizer="soap").optimizer
    needed = optim.state_bytes(soap, wide)
    assert needed > 30e9
    monkeypatch.setattr(_memory, "memory", lambda: 16 * 10**9)
    with pytest.raises(BadSpec, match=r"32\.\d GB, more than half of the memory of 16\.0 GB \(given: soap\)"):
        optim.check(needed, torch.device("cpu"), "soap")
    monkeypatch.setattr(_memory, "memory", lambda: 10_000)
    monkeypatch.setattr(optim, "build", lambda *_, **__: pytest.fail("it was made"))
    with pytest.raises(BadSpec, match="more than half of the memory"):
        Training([tiny(optimizer="soap")], digits)
    with pytest.raises(BadSpec, match="more than half of the memory"):
        handlers.submit(store, Submit(tiny(optimizer={"kind": "ema", "inner": "ademamix"})))
    assert not store.runs()


# --- refusals, in words -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"optimizer": {"kind": "sam", "inner": "lookahead"}}, "cannot wrap `lookahead`: wrappers nest"),
        ({"optimizer": {"kind": "asam", "inner": "sam"}}, "`sam` or `asam` cannot wrap `sam`"),
        ({"optimizer": {"kind": "lookahead", "inner": "lookahead"}}, "`lookahead` cannot wrap `lookahead`"),
        ({"optimizer": {"kind": "lookahead", "inner": {"kind": "ema"}}}, "ema, lookahead, sam or asam"),
        (
            {"optimizer": {"kind": "ema", "inner": "schedule_free"}},
            "averages its weights itself and cannot be wrapped",
        ),
        ({"optimizer": {"kind": "sam", "inner": "polyak"}}, "computes its step size at its own weights"),
        ({"optimizer": "schedule_free", "schedule": "cosine"}, "set `schedule` to constant"),
        ({"optimizer": "polyak", "teacher": "t", "schedule": "constant"}, "constant with `warmup` 0"),
        ({"optimizer": "polyak"}, "set `teacher`"),
        ({"optimizer": {"kind": "ema", "inner": "polyak"}, "teacher": "t", "loss": "fitnets"}, "use loss kd"),
        ({"optimizer": {"kind": "sam", "inner": "muom"}}, "`optimizer.inner` has no kind 'muom'"),
        (
            {"optimizer": {"kind": "ema", "inner": {"kind": "sam", "inner": {"kind": "sgd", "lr": 0}}}},
            "optimizer.inner.inner.lr",
        ),
        ({"optimizer": {"kind": "soap", "evry": 3}}, "did you mean `every`"),
    ],
)
def test_nonsense_is_refused_in_words(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(BadSpec) as refused:
        tiny(**fields)
    assert words in str(refused.value)
    assert ";" not in str(refused.value)


@pytest.mark.parametrize(
    "stack", ["sam", "asam", "ema", "schedule_free", "pgpe", {"kind": "lookahead", "inner": "sam"}]
)
def test_several_processes_refuse_what_they_cannot_share(stack: Any, digits: Splits) -> None:
    with pytest.raises(BadSpec, match=r"does not support several processes.*2 processes"):
        Training([tiny(optimizer=stack)], digits, world=World(0, 2))


def test_schedules_are_filled_in_where_only_one_will_do() -> None:
    assert tiny(optimizer="schedule_free").schedule.kind == "constant"
    polyak = tiny(teacher="t", optimizer={"kind": "ema", "inner": "polyak"})
    assert (polyak.schedule.kind, polyak.schedule.warmup) == ("constant", 0)
    assert parse(set_field({"data": "digits", "network": "cnn", "optimizer": "sam"}, "optimizer.inner.lr=0.5"))
    for stack in STACKS:
        spec = taught(stack)
        assert parse(yaml.safe_load(to_yaml(spec))) == spec


def test_names_of_old_runs_stay() -> None:
    """As before there were more than three kinds."""
    old: list[tuple[Any, str]] = [
        ("sgd", "a6d10b2441eee12c"),
        ({"kind": "adamw", "lr": 0.01, "beta1": 0.8}, "150939b07fa95717"),
        ("lookahead", "c48a1ddfb645ced7"),
        ({"kind": "lookahead", "inner": {"kind": "sgd", "lr": 0.05}, "k": 7}, "a6b6f730a6d52b5b"),
    ]
    for optimizer, name in old:
        assert digest(parse({"data": "digits", "network": "cnn", "optimizer": optimizer})) == name


# --- divergence and counting ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sgd", "lion", "muon", "soap", "schedule_free", "prodigy"])
def test_a_wild_rate_is_recorded_as_diverged(kind: str, digits: Splits) -> None:
    wild = {"kind": kind, "lr": 100.0, "weight_decay": 10.0}
    spec = tiny(optimizer={"kind": "sam", "inner": wild} if kind == "muon" else wild, epochs=8)
    (stopped,) = [event for event in Training([spec], digits) if isinstance(event, Stopped)]
    assert f"{kind}, learning rate 100.0" in str(stopped.error)
    path = "optimizer.inner.lr" if kind == "muon" else "optimizer.lr"
    assert f"Lower {path}" in str(stopped.error)


def test_soap_that_cannot_factorise_has_diverged(digits: Splits) -> None:
    training = Training([tiny(optimizer="soap")], digits)
    with torch.no_grad():
        training.students[0].classifier.body[0].weight.fill_(math.nan)  # type: ignore[index,operator,union-attr]
    assert [type(event) for event in training] == [Stopped]


def test_gradients_are_counted_and_reported(train: Train) -> None:
    run = train(optimizer={"kind": "lookahead", "inner": "sam"}, epochs=2)
    result = run.result or {}
    assert result["gradients"] == 2 * result["steps"]
    assert [event["gradients"] for event in run.events("progress")][-1] == result["gradients"]


def test_memory_is_that_of_the_machine_or_of_its_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unlimited, limited = tmp_path / "unlimited", tmp_path / "limited"
    unlimited.write_text("max\n")
    limited.write_text("123456789\n")
    monkeypatch.setattr(machine, "LIMITS", (str(unlimited), str(tmp_path / "none")))
    assert machine.memory() == psutil.virtual_memory().total
    monkeypatch.setattr(machine, "LIMITS", (str(unlimited), str(limited)))
    assert machine.memory() == 123456789


def test_companions_are_perturbed_and_learn_too(digits: Splits, teacher: Teacher) -> None:
    """FitNets' regressor is optimized with the student, by SAM as well, and resumes."""
    fitnets = {"kind": "fitnets", "student_layer": "3", "teacher_layer": "3"}
    spec = taught({"kind": "sam", "inner": "muon"}, loss=fitnets)
    knowing = Teacher(teacher._classifiers[0], digits.classes, layers=["3"])  # type: ignore[arg-type]
    training = Training([spec], digits, knowing)
    assert training.students[0].companion is not None
    before = [weight.detach().clone() for weight in training.students[0].companion.parameters()]
    for _ in range(3):
        training.advance()
    assert not any(map(torch.equal, before, training.students[0].companion.parameters()))
    second = resumed(training, Training([spec], digits, knowing))
    list(training)
    list(second)
    assert equal([*training.state()["weights"].values()], [*second.state()["weights"].values()])
