"""Loss embedding: against a reference, from the cache as live, stopped and resumed, without labels, and then a head."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import Show, Train, program, texts, tiny
from safetensors.torch import save_file
from test_unlabeled import fresh, pictures

from smallalign_core import data, networks
from smallalign_core.data import ImageSet, Splits
from smallalign_core.errors import BadModel, BadSpec, Refused, SmallAlignError
from smallalign_core.runs import imported, table
from smallalign_core.runs.store import Run, State, Store
from smallalign_core.runs.writer import checkpoints
from smallalign_core.service import comparison_api, worker
from smallalign_core.spec import Cnn, Embedding, Timm, Torchvision, digest, parse, to_yaml
from smallalign_core.studies import ablation
from smallalign_core.studies.optimizers import parse_study
from smallalign_core.training import losses, teacher_loading
from smallalign_core.training.loop import Training, Validated
from smallalign_core.training.losses import NetworkOutput
from smallalign_core.training.resolve import resolve
from smallalign_core.training.teacher import CacheIndex, Teacher

LOSS = {"kind": "embedding"}


def weights_of(run: Run) -> bytes:
    return run.weights.read_bytes()


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Run, Run]:
    """(store, teacher, student without a head), for tests that only read."""
    place = Store(tmp_path_factory.mktemp("embedding") / "models")
    teacher = place.create(resolve(place, tiny(network={"kind": "resnet", "width": 4}, epochs=4)))
    worker.execute(teacher, place, device="cpu")
    student = place.create(resolve(place, tiny(teacher=teacher.id, loss=LOSS, epochs=3, augment=["shift"])))
    worker.execute(student, place, device="cpu")
    return place, teacher, student


# --- the loss ---------------------------------------------------------------------------------------------------------


def by_hand(ours: np.ndarray, theirs: np.ndarray, cosine: float, smooth: float) -> float:
    """The loss of rows in float64: 1 - cos averaged over rows, Huber's function with a knee at 1 over elements."""
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    gap = np.abs(ours - theirs)
    huber = np.where(gap < 1, gap**2 / 2, gap - 0.5)
    return cosine * float((1 - (ours * theirs).sum(1) / lengths).mean()) + smooth * float(huber.mean())


@pytest.mark.parametrize(("cosine", "smooth"), [(0.9, 0.1), (1.0, 0.0), (0.0, 2.0)])
def test_terms_are_those_of_the_formula(cosine: float, smooth: float) -> None:
    draw = np.random.default_rng(3)
    student, teacher = draw.normal(size=(7, 5)), draw.normal(0, 3, size=(7, 9))
    loss = Embedding(cosine_weight=cosine, smooth_l1_weight=smooth)
    mine, wanted = (NetworkOutput(torch.from_numpy(one).float()) for one in (student, teacher))
    projector = losses.projector(loss, mine, wanted)
    assert isinstance(projector, torch.nn.Linear)
    matrix, offset = (one.detach().double().numpy() for one in (projector.weight, projector.bias))
    terms = losses.terms(loss, mine, wanted, torch.full((7,), -1), companion=projector)
    assert set(terms) == {name for name, weight in (("cosine", cosine), ("smooth_l1", smooth)) if weight}
    expected = by_hand(student @ matrix.T + offset, teacher, cosine, smooth)
    assert sum(float(one.detach()) for one in terms.values()) == pytest.approx(expected, rel=1e-5)
    found = losses.embedding_scores(loss, student.astype(np.float32), teacher.astype(np.float32), projector)
    assert found.loss == pytest.approx(expected, rel=1e-5)
    assert found.cosine == pytest.approx(1 - by_hand(student @ matrix.T + offset, teacher, 1, 0), rel=1e-4)


def test_the_loss_is_least_where_features_are_equal_and_finite_where_they_are_zero() -> None:
    features = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert float(losses.cosine_distance(features, features.detach()).detach()) == pytest.approx(0, abs=1e-6)
    assert float(losses.smooth_l1(features, features.detach()).detach()) == 0
    for theirs in (torch.zeros(6, 4), torch.full((6, 4), 60_000.0)):
        ours = torch.zeros(6, 4, requires_grad=True)
        (losses.cosine_distance(ours, theirs) + losses.smooth_l1(ours, theirs)).backward()
        assert ours.grad is not None
        assert ours.grad.isfinite().all()


# --- networks without a head ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec", [Cnn(width=4), Torchvision(name="mobilenet_v3_small"), Timm(name="tf_efficientnet_lite0")]
)
def test_a_network_without_a_head_is_the_body_of_the_one_with(spec: Any) -> None:
    how: dict[str, Any] = {"mean": [0.5] * 3, "std": [0.5] * 3, "seed": 4}
    bare = networks.build(spec, (), (3, 32, 32), **how).eval()
    whole = networks.build(spec, ("a", "b"), (3, 32, 32), **how).eval()
    head = networks.head(whole)
    assert {*whole.state_dict()} - {*bare.state_dict()} == {
        f"body.{name}.{part}" for name, one in whole.body.named_modules() if one is head for part in ("weight", "bias")
    }
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        features = bare(images)
        assert torch.equal(features, networks.Embedder(whole)(images))
        assert torch.allclose(head(features), whole(images), atol=1e-5)
    assert features.shape == (2, networks.feature_width(bare, "x"))


def test_a_network_that_does_not_pool_is_refused() -> None:
    made = networks.build(Torchvision(name="squeezenet1_0"), ("a", "b"), (3, 32, 32), mean=[0.5] * 3, std=[0.5] * 3)
    with pytest.raises(BadModel, match="one vector of features"):
        networks.feature_width(made, "squeezenet1_0")


def test_weights_of_a_backbone_file_become_a_teacher(train: Train, store: Store, tmp_path: Path) -> None:
    """As DINOv2 or SigLIP come: a file without a head, or with that of other classes."""
    import timm

    torch.manual_seed(0)
    whole = timm.create_model("mobilenetv3_small_050", num_classes=7).eval()
    images = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    found = []
    for name, headed in (("whole", True), ("bare", False)):
        tensors = {key: one for key, one in whole.state_dict().items() if headed or not key.startswith("classifier")}
        save_file(tensors, file := tmp_path / f"{name}.safetensors")
        network = {"kind": "timm", "name": "mobilenetv3_small_050", "size": 32, "weights": str(file), "num_classes": 0}
        run = train(network=network, epochs=0)
        assert run.headless
        assert run.result is not None
        assert run.result["embedding"] == {"features": 1024}
        assert "test" not in run.result
        teacher = teacher_loading.embedder(store, run.id)
        with torch.no_grad():
            found.append(teacher(images))
            seen = teacher.classifier.prepare(images)
            assert torch.allclose(found[-1], whole.forward_head(whole.forward_features(seen), pre_logits=True))
    assert torch.equal(*found)
    assert store.test_looks(str(run.spec.data.fingerprint)) == 0
    student = train(teacher=run.id, loss=LOSS, epochs=1)
    assert (student.result or {})["embedding"]["features"] < 1024


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch14_dinov2"])
def test_weights_of_a_transformer_fit_another_input_size(name: str, tmp_path: Path) -> None:
    """As timm loads them: DINOv2's weights are of 518 pixels, and few use these."""
    import timm

    side = 4 * (16 if "16" in name else 14)
    torch.manual_seed(0)
    large = timm.create_model(name, num_classes=0, img_size=2 * side).eval()
    small = timm.create_model(name, num_classes=0, img_size=side).eval()
    save_file(large.state_dict(), file := tmp_path / "large.safetensors")
    timm.models.load_checkpoint(small, str(file), filter_fn=timm.models.vision_transformer.checkpoint_filter_fn)
    spec = Timm(name=name, weights=str(file), size=side, num_classes=0)
    made = networks.build(spec, (), (3, side, side), mean=[0.5] * 3, std=[0.5] * 3).eval()
    images = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.allclose(made(images), small(made.prepare(images)), atol=1e-5)


# --- training ---------------------------------------------------------------------------------------------------------


def test_a_student_of_features_gets_a_head_from_labels(taught: tuple[Store, Run, Run]) -> None:
    place, _, student = taught
    result = student.result or {}
    assert result["classes"] == []
    assert not any(name in result for name in ("test", "val", "temperature", "logits_sha256"))
    assert not (student.folder / "logits.safetensors").exists()
    epochs = student.events("epoch")
    assert [event["best"] for event in epochs][-1] == (result["best_epoch"] == 3)
    best = min(epochs, key=lambda event: event["embedding_loss"])
    assert best["epoch"] == result["best_epoch"]
    assert result["embedding"]["loss"] == best["embedding_loss"]
    assert result["embedding"]["cosine"] == best["cosine"] > epochs[0]["cosine"] - 1e-9
    assert 0.99 < sum(epochs[0]["shares"].values()) < 1.01
    names = networks.from_file(student.weights).state_dict()
    assert not any("projector" in name or "companion" in name for name in names)
    tuned = place.create(resolve(place, tiny(start=student.id, epochs=12)))
    worker.execute(tuned, place, device="cpu")
    assert (tuned.result or {})["test"]["accuracy"] > 0.3
    begun = networks.build(tuned.spec.network, tuple("0123456789"), (1, 8, 8), mean=[0.5], std=[0.5], seed=9)
    networks.begin_from(begun, student.weights)
    assert not networks.head(begun).get_parameter("weight").any()
    kept = networks.from_file(student.weights).state_dict()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in begun.state_dict().items() if name in kept)


def test_a_student_starts_from_a_classifier_too(taught: tuple[Store, Run, Run]) -> None:
    place, teacher, _ = taught
    run = place.create(resolve(place, tiny(network=teacher.spec.network.model_dump(), start=teacher.id, epochs=3)))
    worker.execute(run, place, device="cpu")
    fields = tiny(network=run.spec.network.model_dump(), teacher=teacher.id, loss=LOSS, start=run.id, epochs=1)
    plain = fields.model_copy(update={"start": None})
    found = []
    for spec in (fields, plain):
        again = place.create(resolve(place, spec))
        worker.execute(again, place, device="cpu")
        found.append((again.result or {})["embedding"]["cosine"])
    assert found[0] > found[1]  # it starts with the teacher's own features


def test_cached_features_are_the_live_ones(taught: tuple[Store, Run, Run], few: Splits) -> None:
    """Full, empty and no cache end with the same weights; the cache's rows are as wide as the teacher's features."""
    place, teacher, _ = taught
    spec = tiny(teacher=teacher.id, loss=LOSS, epochs=2, batch=32, augment=["shift"], views=1, precision="fp32")
    embedder = teacher_loading.embedder(place, teacher.id)
    ends = []
    for cached in (True, True, False):
        with teacher_loading.of_runs([spec], place, few, torch.device("cpu"), cached=cached) as source:
            assert source is not None
            before = source.answered
            training = Training([spec], few, source)
            list(training)
            ends.append({**training.students[0].best_weights})
            plan = teacher_loading.cache_plan([spec], place, few, torch.device("cpu"))
            assert plan is not None
            assert plan.classes == networks.feature_width(embedder.classifier, "x") != len(few.classes)
            assert (source.answered > before) == (cached is False or len(ends) == 1)
    assert CacheIndex(place.teacher_cache).has(plan) == plan.steps
    for other in ends[1:]:
        assert all(torch.equal(one, other[name]) for name, one in ends[0].items())


def test_features_and_logits_of_one_teacher_are_two_caches(taught: tuple[Store, Run, Run], few: Splits) -> None:
    place, teacher, _ = taught
    device = torch.device("cpu")
    specs = [tiny(teacher=teacher.id, precision="fp32", loss=loss) for loss in (LOSS, {"kind": "kd"})]
    plans = [teacher_loading.cache_plan([spec], place, few, device) for spec in specs]
    assert len({plan.key for plan in plans if plan}) == 2
    assert not specs[0].can_lockstep_with(specs[1])
    assert specs[0].can_lockstep_with(tiny(teacher=teacher.id, precision="fp32", loss={**LOSS, "cosine_weight": 1}))
    assert specs[0].can_lockstep_with(tiny(precision="fp32"))


def test_it_stops_and_resumes_to_the_same_bits(taught: tuple[Store, Run, Run], few: Splits) -> None:
    """The projector is in the checkpoint: without, the resumed student would chase another one."""
    place, teacher, _ = taught
    spec = tiny(teacher=teacher.id, loss=LOSS, epochs=4, batch=32, optimizer="adamw")
    source = Teacher(teacher_loading.embedder(place, teacher.id), ())
    straight = Training([spec], few, source)
    events = [event for event in straight if isinstance(event, Validated)]
    first = Training([spec], few, source)
    for _ in range(first.steps // 2):
        first.advance()
    kept = io.BytesIO()
    torch.save(first.state(), kept)
    kept.seek(0)
    second = Training([spec], few, source)
    second.restore(torch.load(kept, weights_only=True))
    later = [event for event in second if isinstance(event, Validated)]
    one, other = straight.students[0], second.students[0]
    assert all(
        torch.equal(a, b)
        for a, b in zip(one.classifier.state_dict().values(), other.classifier.state_dict().values(), strict=True)
    )
    assert one.companion is not None
    assert other.companion is not None
    assert all(torch.equal(a, b) for a, b in zip(one.companion.parameters(), other.companion.parameters(), strict=True))
    assert later[-1].embedding == events[-1].embedding
    assert one.best_embedding == other.best_embedding


def test_a_recorded_run_pauses_and_ends_with_the_same_file(taught: tuple[Store, Run, Run]) -> None:
    place, teacher, student = taught
    spec = student.spec.model_copy(update={"seed": 5})
    ends = []
    for root in ("a", "b"):
        other = Store(place.root.parent / root)
        run = other.create(resolve(other, spec.with_teachers([str(teacher.folder)])))
        if root == "b":

            def stop(event: dict[str, Any], run: Run = run) -> None:
                if event["kind"] == "epoch" and event["epoch"] == 1:
                    run.request("pause")

            worker.execute(run, other, device="cpu", observe=stop)
            assert run.state is State.PAUSED
            assert checkpoints(run)
        worker.execute(run, other, device="cpu")
        ends.append((weights_of(run), (run.result or {})["embedding"]))
    assert ends[0] == ends[1]


# --- images without labels --------------------------------------------------------------------------------------------


def test_images_without_any_label(train: Train, store: Store, tmp_path: Path) -> None:
    teacher = train(network={"kind": "resnet", "width": 4}, epochs=2)
    folder = pictures(tmp_path / "photos", np.concatenate([fresh(60), fresh(1)]))  # the last is a copy of the first
    run = train(data={"unlabeled": str(folder)}, teacher=teacher.id, loss=LOSS, epochs=2, augment=["mixup"])
    splits = data.load(run.spec.data, store.data_cache)
    assert splits.classes == ()
    assert {len(splits.train) + len(splits.val), len(splits.test)} == {61, 0}
    assert not {*splits.train.ids.tolist()} & {*splits.val.ids.tolist()}
    assert (run.result or {})["embedding"]["images"] == len(splits.val) >= 2
    assert run.data == run.spec.data  # the ones that it was trained on
    moved = parse({**run.spec.model_dump(), "data": {**run.spec.data.model_dump(), "source": "/x", "unlabeled": "/x"}})
    assert digest(moved) == run.id
    again = parse(yaml.safe_load(to_yaml(run.spec)))
    assert again.data.source == again.data.unlabeled == str(folder)
    tuned = train(start=run.id, epochs=2)
    assert (tuned.result or {})["test"]["accuracy"] > 0.1
    more = train(data={"source": "digits", "unlabeled": str(folder)}, teacher=run.id, loss=LOSS, epochs=1)
    assert (more.result or {})["unlabeled"] == 61


def test_too_few_images_without_labels(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "few", fresh(3))
    with pytest.raises(SmallAlignError, match=r"(?i)too few different images"):
        data.load(
            parse({**tiny().model_dump(), "data": {"unlabeled": str(folder)}, "teacher": "t", "loss": LOSS}).data,
            tmp_path,
        )


def test_images_without_labels_count_in_no_class() -> None:
    found = ImageSet(np.zeros((3, 1, 4, 4), np.uint8), np.array([-1, 1, -1]), np.arange(3, dtype=np.uint64), ("a", "b"))
    assert found.counts() == {"a": 0, "b": 1}


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"teacher": None}, "needs a teacher"),
        ({"teacher": ["a", "b"]}, "cannot be averaged"),
        ({"shuffled": True}, "has none"),
        ({"answers": "onnx"}, "leave `answers` out"),
        ({"top": 4}, "`top` keeps the largest teacher logits"),
        ({"select": "macro"}, "no accuracy"),
        ({"optimizer": "schedule_free"}, "averages weights"),
        ({"optimizer": {"kind": "ema", "inner": "adamw"}}, "averages weights"),
        ({"teacher": None, "loss": None, "top": 4}, "`top` keeps .* no teacher"),
        ({"loss": {**LOSS, "cosine_weight": 0, "smooth_l1_weight": 0}}, "(?i)both weights are 0"),
        ({"balance": "class_weights"}, "has none here"),
        ({"optimizer": "polyak"}, "use loss kd"),
        ({"network": {"kind": "timm", "name": "resnet18", "pretrained": True, "frozen": True}}, "about the head"),
        ({"data": {"unlabeled": "/photos"}, "loss": {"kind": "kd"}}, "no labeled images"),
        ({"data": {"unlabeled": "/photos", "images": 5}}, "leave `images`"),
        ({"data": {"unlabeled": "/photos"}, "balance": "sampling"}, "needs labels"),
        (
            {"teacher": None, "loss": None, "network": {"kind": "timm", "name": "resnet18", "num_classes": 0}},
            "no head to train",
        ),
    ],
)
def test_what_does_not_fit_is_one_sentence(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(SmallAlignError, match=words):
        parse({"data": "digits", "network": "cnn", "teacher": "t", "loss": LOSS} | fields)


def test_what_needs_a_class_says_what_to_do(taught: tuple[Store, Run, Run], tmp_path: Path) -> None:
    place, teacher, student = taught
    for work in (
        lambda: comparison_api.evaluate(place, student.id, None),
        lambda: place.finished(student.id),
        lambda: resolve(place, tiny(teacher=student.id)),
        lambda: imported.classifier(student, ("a", "b")),
    ):
        with pytest.raises(Refused, match="has no head") as found:
            work()
        assert f"start: {student.id}" in str(found.value)
    for arguments in (
        ("export", student.id, "--to", tmp_path / "a.onnx"),
        ("compare", teacher.id, student.id),
        ("prune", student.id, "--to", "50%"),
        ("preflight", student.id),
    ):
        done = program(*arguments, store=place)
        assert done.returncode == 2, done.stderr
        assert "has no head" in done.stderr
        assert "Traceback" not in done.stderr
    with pytest.raises(BadSpec, match="no head"):
        ablation.without(student.spec, "teacher")
    with pytest.raises(BadSpec, match="no head"):
        parse_study({**student.spec.model_dump(exclude={"optimizer", "schedule"}), "optimizers": ["adamw"]})


def test_an_import_has_no_features(taught: tuple[Store, Run, Run], tmp_path: Path) -> None:
    from smallalign_core import export

    place, teacher, _ = taught
    export.export(teacher, tmp_path / "t.onnx", place)
    made = imported.import_onnx(tmp_path / "t.onnx", teacher.spec.data, place)
    with pytest.raises(Refused, match="no features that can be read"):
        resolve(place, tiny(teacher=made.id, loss=LOSS))


def test_a_teacher_of_larger_images_is_refused(taught: tuple[Store, Run, Run]) -> None:
    place, teacher, _ = taught
    with pytest.raises(BadSpec, match="trained on images of 8 pixels"):
        resolve(place, tiny(data={"source": "digits", "size": 6}, teacher=teacher.id, loss=LOSS))


# --- where people see it ----------------------------------------------------------------------------------------------


def test_the_command_line_trains_lists_and_shows_it(taught: tuple[Store, Run, Run], tmp_path: Path) -> None:
    place, teacher, _ = taught
    (file := tmp_path / "spec.yaml").write_text(
        f"data: digits\nnetwork: {{kind: cnn, width: 3}}\nteacher: {teacher.id}\nloss: embedding\nepochs: 1\n"
    )
    done = program("train", file, store=place)
    assert done.returncode == 0, done.stderr
    assert "train a head with `start: " in done.stdout
    assert "validation: embedding loss" in done.stdout
    assert "epoch 1: validation embedding loss" in done.stderr
    answer = json.loads(program("train", file, "--json", store=place).stdout)
    shown = json.loads(program("runs", "show", answer["id"], "--json", store=place).stdout)
    assert shown["accuracy"] is None
    assert shown["embedding"] == answer["embedding"]
    (row,) = [row for row in table.rows(place) if row.id == answer["id"]]
    assert row.headless
    assert row.cosine == answer["embedding"]["cosine"]
    assert row.state == "finished"


def test_pages_show_features_and_offer_them(taught: tuple[Store, Run, Run], shown: Show, store: Store) -> None:
    _, teacher, student = taught
    for run in (teacher, student):
        copied = store.runs_folder / run.id
        shutil.copytree(run.folder, copied)
    page = shown("runs", run=student.id)
    assert not page.exception
    assert "Cosine similarity" in {one.label for one in page.metric}
    assert "Test accuracy" not in {one.label for one in page.metric}
    assert "has no head" in texts(page)
    assert not shown("runs").exception
    for name in ("compare", "export"):
        page = shown(name)
        assert not page.exception
        assert student.id not in {option for one in page.selectbox for option in one.options}
    page = shown("distil", data="digits", teacher=student.id)
    assert not page.exception
    (loss,) = [one for one in page.selectbox if one.label == "Loss"]
    assert len(loss.options) == 1
    assert "Pretraining" in texts(page)
    page = shown("distil", data="digits", start=student.id)
    assert not page.exception
