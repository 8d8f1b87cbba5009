"""What a GPU needs, proven on a CPU: no step waits for the device, and what fits its memory stays there.

The `meta` device has shapes and no numbers: whatever would fetch a number from it raises. A dispatch mode notices
copies to it for which a GPU would have to finish all its work.
"""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import processes
import pytest
import torch
from conftest import tiny
from torch import nn
from torch.optim.swa_utils import AveragedModel

from smallalign_core import augment, networks
from smallalign_core.augment import Views
from smallalign_core.data import ImageSet, Splits, statistics
from smallalign_core.errors import BadSpec
from smallalign_core.networks import Classifier
from smallalign_core.runs.store import Store
from smallalign_core.service import several
from smallalign_core.spec import Augment, Loss, Optimizer, RunSpec, choices
from smallalign_core.system import _compat, device
from smallalign_core.training import loop, losses, optim, runner
from smallalign_core.training.loop import Training
from smallalign_core.training.resolve import resolve
from smallalign_core.training.teacher import CacheIndex, Teacher, TeacherCache, _chunk, plan

META = torch.device("meta")


class Waits(_compat.OperationMode):  # type: ignore[misc]  # a class of torch or ours
    """Collects operations for which a GPU in place of `meta` would have to finish its work."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given, name = kwargs or {}, str(func)
        host = [one for one in tensors(args) if one.device.type == "cpu" and one.ndim]
        there = any(one.device.type == "meta" for one in tensors(args))
        to_meta = name.startswith("aten._to_copy") and torch.device(given.get("device") or "cpu").type == "meta"
        copied = name.startswith("aten.copy_") and there
        asynchronous = given.get("non_blocking", False) or (copied and len(args) > 2 and args[2])
        if host and (((to_meta or copied) and not asynchronous) or (there and not copied)):
            self.found.append(name)
        return func(*args, **given)


def tensors(values: Any) -> Iterator[torch.Tensor]:
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for one in values:
            yield from tensors(one)


def colours(count: int = 256, side: int = 16, classes: int = 5) -> Splits:
    """Random colour images, large enough for every augmentation."""
    rng = np.random.default_rng(0)

    def some(number: int) -> ImageSet:
        pixels = rng.integers(0, 256, (number, 3, side, side), np.uint8)
        labels, ids = rng.integers(0, classes, number), rng.integers(0, 2**60, number).astype(np.uint64)
        return ImageSet(pixels, labels, ids, tuple("abcdefghij"[:classes]))

    return Splits(some(count), some(64), some(64))


@pytest.fixture(scope="module")
def pictures() -> Splits:
    return colours()


def untrained(splits: Splits, network: Any = "cnn", seed: int = 0) -> Classifier:
    mean, std = statistics(splits.train)
    return networks.build(tiny(network=network).network, splits.classes, splits.shape, mean=mean, std=std, seed=seed)


def taught(
    splits: Splits, on: torch.device | str = "cpu", layers: Sequence[str] = (), top: int | None = None
) -> Teacher:
    return Teacher(untrained(splits), splits.classes, on, layers=layers, top=top)


def flat(training: Training, student: int = 0) -> torch.Tensor:
    """All weights in one vector."""
    return torch.cat([one.detach().reshape(-1).cpu() for one in training.students[student].classifier.parameters()])


def noticed(found: list[str], real: Any, *given: Any, **named: Any) -> Any:
    there = isinstance(given[0], torch.Tensor) and given[0].device.type == "meta"
    if torch.device(named.get("device") or "cpu").type == "meta" and not there:
        found.append(f"torch.{real.__name__}({given[0]!r})"[:80])
    return real(*given, **named)


def steps_on_meta(spec: RunSpec, splits: Splits, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Take a few steps, none of which begins an epoch; what a GPU would have waited for."""
    for name, kind in (("FusedSgd", torch.optim.SGD), ("FusedAdamW", torch.optim.AdamW)):  # no fused kernels on meta

        def unfused(*given: Any, kind: Any = kind, fused: bool, **named: Any) -> Any:
            return kind(*given, **named)

        monkeypatch.setattr(optim, name, unfused)
    teacher = taught(splits, META, losses.layers(spec.loss)[1], spec.top) if spec.teacher else None
    training = Training([spec], splits, teacher, device=META)
    training.step = 1
    training.advance()  # states of optimizers are made in the first step
    made = list[str]()
    for name in ("tensor", "as_tensor"):  # numbers of Python on a GPU: a copy from ordinary memory, which no mode sees
        monkeypatch.setattr(torch, name, partial(noticed, made, getattr(torch, name)))
    with Waits() as waits:
        for _ in range(3):
            training.advance()
    return waits.found + made


LAYERS = {"fitnets": {"student_layer": "3", "teacher_layer": "3"}}
LAYERS["attention"] = LAYERS["fitnets"]


@pytest.mark.parametrize("kind", [kind for kind in choices(Loss) if kind not in ("python", "embedding")])
def test_no_loss_waits_for_the_device(kind: str, pictures: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = tiny(loss={"kind": kind, **LAYERS.get(kind, {})}, teacher=None if kind == "cross_entropy" else "t", batch=32)
    assert steps_on_meta(spec, pictures, monkeypatch) == []


@pytest.mark.parametrize("kind", [kind for kind in choices(Augment) if kind != "python"])
def test_no_augmentation_waits_for_the_device(kind: str, pictures: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = tiny(augment=[{"kind": kind}], teacher="t", loss="function_matching", batch=32)
    assert steps_on_meta(spec, pictures, monkeypatch) == []


@pytest.mark.parametrize("fields", [{"shuffled": True}, {"shuffled": True, "augment": ["mixup"]}, {"top": 2}], ids=str)
def test_no_change_of_the_teachers_logits_waits(
    fields: dict[str, Any], pictures: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert steps_on_meta(tiny(**fields, teacher="t", batch=32), pictures, monkeypatch) == []


OF_LIBRARIES = {"prodigy"}
"""Its step, which is pytorch_optimizer's, reads its estimate of the distance from the device."""
WITH_NUMBERS = {"snes", "pgpe"}
"""evotorch makes tensors of numbers on the device at each step: copies from ordinary memory."""


@pytest.mark.parametrize("kind", [kind for kind in choices(Optimizer) if kind not in OF_LIBRARIES])
def test_no_other_optimizer_waits_for_the_device(kind: str, pictures: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = tiny(optimizer=kind, batch=32, teacher="t" if kind == "polyak" else None)
    found = steps_on_meta(spec, pictures, monkeypatch)
    assert [one for one in found if not (kind in WITH_NUMBERS and one.startswith("torch."))] == []
    assert bool(found) == (kind in WITH_NUMBERS), "docs/reference/hardware.md names those that wait"


@pytest.mark.parametrize("kind", sorted(OF_LIBRARIES))
def test_some_optimizers_wait_for_the_device(kind: str, pictures: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        steps_on_meta(tiny(optimizer=kind, batch=32), pictures, monkeypatch)


def test_a_wait_is_noticed() -> None:
    there = torch.empty(4, device="meta")
    with Waits() as waits:
        torch.ones(4).to(META, non_blocking=True)
        assert waits.found == []
        torch.ones(4).to(META)
        there[torch.tensor([0, 1])]  # an index of the host
        there.copy_(torch.ones(4))
    assert len(waits.found) == 3
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        there.sum().item()


def test_classmates_are_those_of_an_independent_permutation(pictures: Splits) -> None:
    """Sorted by class and a draw, each image of a class gets the next one; those alone in theirs, the one before."""
    views, rng = Views(pictures.train, (), batch=32, seed=3), np.random.default_rng(0)
    for step in range(50):
        labels = rng.integers(0, int(rng.integers(1, 60)), int(rng.integers(1, 64)))
        draws = views._generator(step, augment.SHUFFLE).random(len(labels))
        order = sorted(range(len(labels)), key=lambda at: (labels[at], draws[at]))
        expected, lone = np.empty(len(labels), np.int64), []
        for label in np.unique(labels):
            mates = [at for at in order if labels[at] == label]
            lone += mates if len(mates) == 1 else []
            expected[mates] = np.roll(mates, -1)
        expected[lone] = np.roll(lone, 1)
        assert views.same_class_permutation(step, torch.from_numpy(labels)).tolist() == expected.tolist()


# --- what fits stays on the device ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "stays"), [(256 * 768, True), (256 * 768 - 1, False)])
def test_images_stay_on_a_device_that_has_room(
    limit: int, stays: bool, pictures: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In memory or mapped from a file, in one piece or several; the batches are the same."""
    plain = Views(pictures.train, (), batch=32, seed=1)
    monkeypatch.setattr(device, "room", lambda _: limit)
    monkeypatch.setattr(device, "ROWS_BYTES", 100 * 768)
    views = Views(pictures.train, (), batch=32, seed=1)
    assert (views._held is not None) == stays
    assert all(torch.equal(views(step).images, plain(step).images) for step in range(10))


@pytest.mark.parametrize("top", [None, 2])
def test_a_full_cache_moves_to_a_device_that_has_room(
    top: int | None, pictures: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And answers as the live teacher, before and after."""
    spec = tiny(teacher="t", augment=["flip", "shift"], views=2, batch=48, epochs=5, top=top)
    wanted = plan(spec, pictures, ["t"], torch.device("cpu"))
    assert wanted is not None
    monkeypatch.setattr("smallalign_core.training.teacher._device.room", lambda _: 2**30)
    monkeypatch.setattr(_chunk, "AT_ONCE", ())  # as on a GPU: steps are copied together
    live, seen = taught(pictures, top=top), [0, 0]
    views = Views(pictures.train, spec.augment, batch=spec.batch, seed=spec.seed, fixed=2)
    with TeacherCache(wanted, CacheIndex(tmp_path, 2**30), lambda: live) as cache:
        for step in range(26):
            batch, said = cache.batch_with_targets(views, step)
            seen[cache._copy._rows is not None] += 1
            expected = live.output(batch.images).logits
            torch.testing.assert_close(said.logits, expected, atol=2e-3, rtol=2e-3)
            assert torch.equal(batch.images, views(step).images)
    assert min(seen) > 5, "some steps before it was full, and some after"


def test_a_training_from_a_cache_has_the_weights_of_a_live_one(
    pictures: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tiny(teacher="t", augment=["flip", "shift"], views=2, batch=48)
    wanted = plan(spec, pictures, ["t"], torch.device("cpu"))
    assert wanted is not None

    def trained() -> torch.Tensor:
        live = taught(pictures)
        with TeacherCache(wanted, CacheIndex(tmp_path / str(len(found)), 2**30), lambda: live) as cache:
            training = Training([spec], pictures, cache)
            list(training)
        return flat(training)

    found: list[torch.Tensor] = []
    found.append(trained())
    monkeypatch.setattr("smallalign_core.training.teacher._device.room", lambda _: 2**30)
    monkeypatch.setattr(_chunk, "AT_ONCE", ())
    found.append(trained())
    assert torch.equal(*found)


# --- averages, compilation, memory, devices ---------------------------------------------------------------------------


def test_the_average_is_that_of_torch() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4))

    def follow(averaged: Any, current: Any, count: Any) -> None:
        share = min(0.9, (1 + int(count)) / (10 + int(count)))
        _compat.foreach_lerp_(averaged, current, 1 - share)

    theirs = AveragedModel(network, multi_avg_fn=follow)
    ours = optim.average(tiny(optimizer={"kind": "ema", "decay": 0.9}).optimizer, network)
    assert ours is not None
    for _ in range(12):
        with torch.no_grad():
            for weight in network.parameters():
                weight.add_(torch.randn_like(weight))
        network(torch.randn(6, 5))
        theirs.update_parameters(network)
        ours.update_parameters(network)
    expected = theirs.state_dict()
    assert ours.state_dict().keys() == expected.keys()
    assert all(torch.equal(one, expected[name]) for name, one in ours.state_dict().items())


def test_a_failed_group_frees_its_memory_before_each_run_is_tried_alone(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of memory together, enough alone: but only if the tensors of the group are gone."""
    runs = [store.create(resolve(store, tiny(optimizer={"kind": "sgd", "lr": rate}))) for rate in (0.1, 0.2)]
    advance, together, alive = Training.advance, list[weakref.ref[Any]](), list[bool]()

    def fail(training: Training) -> None:
        if len(training.students) > 1:
            together.append(weakref.ref(training.students[0].classifier))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        if not alive:
            gc.collect()
            alive.extend(one() is not None for one in together)
        advance(training)

    monkeypatch.setattr(Training, "advance", fail)
    ended = runner.run_lockstep(runs, store, device="cpu")
    assert [how["state"] for how in ended if isinstance(how, dict)] == ["finished"] * 2
    assert together
    assert not any(alive)


@pytest.mark.parametrize("name", ["cuda:7", "cpu:x", "cuda:"])
def test_a_card_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(BadSpec, match="not available on this machine"):
        loop.pick_device(name)


@pytest.mark.slow
def test_a_worker_process_for_each_device_shares_the_queue(store: Store) -> None:
    runs = [store.submit(resolve(store, tiny(seed=seed, batch=64 + 32 * seed))) for seed in range(3)]
    command = ["-m", "smallalign_core", "worker", "--store", store.root, "--devices", "cpu:0,cpu:1", "--once", "--json"]
    done = processes.run(processes.python(*command), timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"taken": 3}
    assert all(run.finished for run in runs)
    assert {name for name in ("cpu:0", "cpu:1") if f"on {name}" in done.stderr} == {"cpu:0", "cpu:1"}


@pytest.mark.parametrize("names", ["cpu,cpu", "", "cuda:77"])
def test_devices_that_are_not_there_or_twice_are_refused(names: str) -> None:
    with pytest.raises(BadSpec):
        several.devices(names)


def test_all_devices_are_at_least_one() -> None:
    assert several.devices("all")
    assert several.devices("cpu:0, cpu:1") == ["cpu:0", "cpu:1"]


@pytest.mark.slow
def test_a_compiled_student_has_the_losses_of_an_eager_one(pictures: Splits) -> None:
    """Inductor sums in another order: float32 rounds each of n terms by 2^-24, and steps carry it on.

    A bound of 1e-4 is 1,600 roundings, far below what another network or another order of images would change.
    """

    def found_with(**fields: Any) -> list[float]:
        spec = tiny(teacher="t", augment=["flip"], batch=64, optimizer={"kind": "sgd", "lr": 0.01}, **fields)
        training, found = Training([spec], pictures, taught(pictures)), []
        for _ in range(8):
            training.advance()
            found.append(float(training.students[0].recent[-1]))
        return found

    eager, other = found_with(), found_with(seed=1)
    assert found_with(compile=True) == pytest.approx(eager, rel=1e-4)
    assert max(abs(a - b) for a, b in zip(eager, other, strict=True)) > 1e-2


@pytest.mark.parametrize("network", ["mlp", "cnn", "separable", "resnet"])
def test_shapes_are_those_of_the_meta_device(network: str, pictures: Splits) -> None:
    """A forward and backward pass without numbers: outputs, and a gradient of each weight's shape."""
    classifier = untrained(pictures, network).to(META)
    logits = classifier(torch.empty((7, *pictures.shape), dtype=torch.uint8, device=META))
    assert logits.shape == (7, len(pictures.classes))
    logits.sum().backward()
    assert all(weight.grad is not None and weight.grad.shape == weight.shape for weight in classifier.parameters())
