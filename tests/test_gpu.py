"""The same training on every kind of device: `-m gpu` selects what needs an accelerator, and is skipped without one.

`python -m benchmarks.gpu` runs this file on a machine with a GPU; on a CPU it is a part of the ordinary tests.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import processes
import pytest
import torch
import torch.distributed as dist
from conftest import tiny
from test_device import LAYERS, colours, flat, taught

from smallalign_core import augment, networks
from smallalign_core.data import Splits, statistics
from smallalign_core.errors import BadSpec, MissingExtra, WorkFailed
from smallalign_core.runs.store import State, Store
from smallalign_core.spec import Augment, Loss, Optimizer, RunSpec, choices
from smallalign_core.system import extras
from smallalign_core.training import loop, runner
from smallalign_core.training.distributed import World
from smallalign_core.training.loop import Training
from smallalign_core.training.losses import layers as loss_layers
from smallalign_core.training.resolve import resolve
from smallalign_core.training.teacher import CacheIndex, Teacher, TeacherCache, plan

ACCELERATORS = ("cuda", "mps", "xpu")


@pytest.fixture(params=["cpu", *(pytest.param(name, marks=pytest.mark.gpu) for name in ACCELERATORS)])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    try:
        chosen = loop.pick_device(request.param)
    except BadSpec:
        pytest.skip(f"no {request.param} device on this machine")
    yield chosen
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def pictures() -> Splits:
    return colours(classes=8)


def begun(spec: RunSpec, splits: Splits, device: torch.device, **more: Any) -> Training:
    teacher = taught(splits, device, loss_layers(spec.loss)[1]) if spec.teacher else None
    if spec.of_features:
        mean, std = statistics(splits.train)
        teacher = Teacher(networks.build(tiny().network, (), splits.shape, mean=mean, std=std), (), device)
    return Training([spec], splits, teacher, device=device, **more)


def losses(training: Training, steps: int = 6) -> list[float]:
    for _ in range(steps):
        training.advance()
    return [float(one) for one in training.students[0].recent]


# --- runs -------------------------------------------------------------------------------------------------------------


def test_a_run_trains_exports_and_proves(device: torch.device, store: Store, tmp_path: Path) -> None:
    run = store.create(resolve(store, tiny(teacher="digits-teacher", augment=["shift"]), str(device)))
    result = runner.execute(run, store, device=str(device))
    assert result["state"] == State.FINISHED
    assert result["device"].startswith(device.type)
    assert result["test"]["accuracy"] > 0.15, "of ten classes"
    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if not extras.installed(name)]
    if missing:
        pytest.skip(f"trained; {', '.join(missing)}: not installed, so nothing was exported")
    from smallalign_core import export

    export.export(run, tmp_path / "student.onnx", store)
    proved = export.verify(tmp_path / "student.onnx", store, run=run.id)
    assert proved["ok"]
    assert proved["sealed"]
    assert proved["top1_agreement"] >= 0.99, "of the logits of PyTorch on the CPU"


KILLED = """
import os, signal, sys
from pathlib import Path
from smallalign_core.runs.store import Store
from smallalign_core.training import loop, runner
store, device = Store(Path(sys.argv[1])), sys.argv[3]
runner.CHECKPOINT_SECONDS = loop.REPORT_SECONDS = 0.0

def observe(event):
    if event.get("step", 0) >= 15 and event["kind"] == "progress":
        os.kill(os.getpid(), signal.SIGKILL)

runner.execute(store.run(sys.argv[2]), store, device=device, observe=observe)
"""


@pytest.mark.slow
def test_a_run_that_was_killed_ends_with_the_same_weights(device: torch.device, store: Store, tmp_path: Path) -> None:
    """By kill -9 in the middle, under deterministic algorithms."""
    other = Store(tmp_path / "other")
    spec = resolve(store, tiny(teacher="digits-teacher", augment=["shift", "rotate"]), str(device))
    whole = runner.execute(other.create(spec), other, device=str(device))
    run = store.create(spec)
    done = processes.run(processes.python("-c", KILLED, str(store.root), run.id, str(device)), timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not run.finished
    resumed = runner.execute(run, store, device=str(device))
    assert resumed["attempts"] == 2
    assert resumed["weights_sha256"] == whole["weights_sha256"]


def test_out_of_memory_is_named_and_loses_nothing(
    device: torch.device, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = store.create(resolve(store, tiny(), str(device)))
    advance = Training.advance

    def demand(training: Training) -> None:
        if training.step == 20:
            torch.empty(2**58, device=training.device)  # the allocator's own error
        advance(training)

    with monkeypatch.context() as patch:
        patch.setattr(runner, "CHECKPOINT_SECONDS", 0.0)
        patch.setattr(loop, "REPORT_SECONDS", 0.0)
        patch.setattr(Training, "advance", demand)
        with pytest.raises(WorkFailed, match=r"(?i)out of memory"):
            runner.execute(run, store, device=str(device))
    assert run.state is State.FAILED
    assert runner.execute(run, store, device=str(device))["attempts"] == 2
    assert run.events("resumed")[0]["step"] >= 15


# --- steps ------------------------------------------------------------------------------------------------------------


def test_six_in_lockstep_have_the_weights_of_each_alone(device: torch.device, pictures: Splits) -> None:
    kinds: list[Any] = [
        "sgd",
        "adamw",
        "rmsprop",
        {"kind": "ema"},
        {"kind": "sgd", "lr": 0.3},
        {"kind": "ema", "decay": 0.9},
    ]
    specs = [tiny(optimizer=kind, teacher="t", augment=["flip"], batch=64) for kind in kinds]
    together = Training(specs, pictures, taught(pictures, device), device=device)
    losses(together)
    for index, spec in enumerate(specs):
        alone = begun(spec, pictures, device)
        losses(alone)
        assert torch.equal(flat(together, index), flat(alone)), spec.optimizer.kind


def test_the_cache_answers_as_the_live_teacher(device: torch.device, pictures: Splits, tmp_path: Path) -> None:
    """The weights are the same: of a live teacher, while the cache is filled, and from the full cache."""
    spec = tiny(teacher="t", augment=["flip", "shift"], views=2, batch=64, epochs=6)
    wanted = plan(spec, pictures, ["t"], device)
    assert wanted is not None
    found = []
    for _ in range(2):
        live = taught(pictures, device)
        with TeacherCache(wanted, CacheIndex(tmp_path, 2**30), lambda live=live: live) as cache:
            training = Training([spec], pictures, cache, device=device)
            losses(training, training.steps)
            found.append(flat(training))
    assert cache.answered == 0, "the second time it was full"
    assert torch.equal(*found)
    alone = begun(spec, pictures, device)
    losses(alone, wanted.steps)
    with TeacherCache(wanted, CacheIndex(tmp_path, 2**30), lambda: live) as cache:
        training = Training([spec], pictures, cache, device=device)
        losses(training, wanted.steps)
    assert torch.equal(flat(training), flat(alone))


@pytest.mark.parametrize("way", ["bf16", pytest.param("compile", marks=pytest.mark.slow)])
def test_faster_ways_have_the_losses_of_the_plain_one(way: str, device: torch.device, pictures: Splits) -> None:
    """bf16 rounds each activation by 2^-9, some of which add up; compilation (graphs on CUDA) only sums in another
    order, where convolutions may use TF32 (2^-11).
    """
    if way == "compile" and not any(map(shutil.which, ("cc", "gcc", "clang"))):
        pytest.skip("no C compiler, which torch.compile needs")
    fields: dict[str, Any] = {
        "teacher": "t",
        "augment": ["flip"],
        "batch": 64,
        "optimizer": {"kind": "sgd", "lr": 0.01},
    }
    plain = losses(begun(tiny(**fields, precision="fp32"), pictures, device))
    more: dict[str, Any] = {"compile": True, "precision": "fp32"} if way == "compile" else {"precision": "bf16"}
    near = {"bf16": 2**-4, "compile": 1e-4 if device.type == "cpu" else 2**-7}[way]
    assert losses(begun(tiny(**fields, **more), pictures, device)) == pytest.approx(plain, rel=near)


def test_ddp_of_one_process_is_the_same_training(device: torch.device, pictures: Splits, tmp_path: Path) -> None:
    spec = tiny(teacher="t", augment=["flip"], batch=64)
    alone = losses(begun(spec, pictures, device))
    backend = "nccl" if device.type == "cuda" else "gloo"
    if device.type not in ("cpu", "cuda"):
        pytest.skip(f"no backend of torch.distributed is used on {device.type}")
    dist.init_process_group(backend, init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        together = losses(begun(spec, pictures, device, world=World(0, 1, dist.new_group(backend="gloo"))))
    finally:
        dist.destroy_process_group()
    assert together == pytest.approx(alone, rel=1e-4)


def check_all(kinds: list[str], train: Callable[[str], list[float]]) -> None:
    failed = {}
    for kind in kinds:
        try:
            found = train(kind)
            if not torch.isfinite(torch.tensor(found)).all():
                failed[kind] = f"losses {found}"
        except Exception as error:  # noqa: BLE001  # all are tried before any is reported
            failed[kind] = f"{type(error).__name__}: {error}"[:200]
    assert not failed


def test_every_loss_works(device: torch.device, pictures: Splits) -> None:
    def train(kind: str) -> list[float]:
        teacher = None if kind == "cross_entropy" else "t"
        spec = tiny(loss={"kind": kind, **LAYERS.get(kind, {})}, teacher=teacher, batch=32)
        return losses(begun(spec, pictures, device), 3)

    check_all([kind for kind in choices(Loss) if kind != "python"], train)


def test_every_augmentation_works_and_is_that_of_the_cpu(device: torch.device, pictures: Splits) -> None:
    """Within one level of 255, where rounding falls to the other side; a few pixels at an edge may differ."""

    def train(kind: str) -> list[float]:
        spec = tiny(augment=[{"kind": kind}], batch=32)
        here, there = (augment.of_run(spec, pictures.train, on)(3).images.cpu().int() for on in (device, "cpu"))
        share = ((here - there).abs() > 1).float().mean()
        assert share < 0.01, f"{share:.1%} of the pixels differ"
        return losses(begun(spec, pictures, device), 3)

    check_all([kind for kind in choices(Augment) if kind != "python"], train)


@pytest.mark.parametrize("kind", choices(Optimizer))
def test_every_optimizer_works_and_resumes(kind: str, device: torch.device, pictures: Splits) -> None:
    spec = tiny(optimizer=kind, batch=64, teacher="t", network={"kind": "mlp", "width": 8, "depth": 1})
    try:
        whole = begun(spec, pictures, device)
    except MissingExtra as error:
        pytest.skip(str(error))
    found = losses(whole, 6)
    assert torch.isfinite(torch.tensor(found)).all()
    first, second = begun(spec, pictures, device), begun(spec, pictures, device)
    losses(first, 3)
    second.restore(first.state())
    losses(second, 3)
    assert torch.equal(flat(whole), flat(second))


@pytest.mark.gpu
@pytest.mark.parametrize("fields", [{}, {"top": 2, "shuffled": True}], ids=str)
def test_no_step_waits_for_the_gpu(fields: dict[str, Any], pictures: Splits, tmp_path: Path) -> None:
    """CUDA reports every wait as an error. On a CPU: `test_device.py`, with the meta device."""
    if not torch.cuda.is_available():
        pytest.skip("no cuda device on this machine")
    device = loop.pick_device("cuda")
    spec = tiny(teacher="t", augment=["flip", "rotate"], views=2, batch=64, epochs=20, **fields)
    wanted = plan(spec, pictures, ["t"], device)
    assert wanted is not None
    live = taught(pictures, device)
    with TeacherCache(wanted, CacheIndex(tmp_path, 2**30), lambda: live) as cache:
        training = Training([spec], pictures, cache, device=device)
        losses(training, wanted.steps + 2)  # full, and on the device
        while training.step * spec.batch % len(pictures.train) < spec.batch:  # not a step that begins an epoch
            training.advance()
        torch.cuda.set_sync_debug_mode("error")
        try:
            training.advance()
            training.advance()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_the_device_of_a_test_is_the_one_that_was_meant(device: torch.device, pictures: Splits) -> None:
    training = begun(tiny(batch=32), pictures, device)
    training.advance()
    where = {weight.device.type for weight in training.students[0].classifier.parameters()}
    assert where == {training.views(0).images.device.type} == {device.type}
    assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") or device.type != "cuda"
