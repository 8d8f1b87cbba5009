"""The pre-flight before each distillation: teachers of other images, of another size, at chance; what it chooses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from conftest import SCALING, Show, Train, command, texts, tiny
from PIL import Image

import smallalign_core as sa
from pages.ui.widgets import run_table
from smallalign_core import data, export, networks
from smallalign_core.errors import BadSpec
from smallalign_core.metrics import logits_of, score
from smallalign_core.runs.store import Run, State, Store
from smallalign_core.service import handlers, worker
from smallalign_core.service.requests import Inspect
from smallalign_core.spec import DataSpec, HintonKd, digest, parse, parse_data, to_yaml
from smallalign_core.studies import optimizers, scaling
from smallalign_core.studies.resolve import resolve_study
from smallalign_core.system.files import write_json
from smallalign_core.training import teacher_evidence, teacher_loading
from smallalign_core.training.resolve import resolve

SIDE = 24
ALIEN = r"not usable for these images.*not shown to be better than chance.*[Cc]hoose a teacher"


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of photographs whose classes are called as those of digits, and look nothing like them."""
    folder, draw = tmp_path_factory.mktemp("blobs") / "photos", np.random.default_rng(0)
    for label in range(10):
        (folder / str(label)).mkdir(parents=True)
        row, column = 12 * (label // 5), 4 + 4 * (label % 5)
        for number in range(30):
            image = draw.integers(0, 90, (SIDE, SIDE), np.uint8)
            image[row : row + 12, column - 2 : column + 2] = 230
            Image.fromarray(image).save(folder / str(label) / f"{number}.png")
    return folder


@pytest.fixture
def of_blobs(blobs: Path) -> dict[str, Any]:
    return {"source": str(blobs), "validation": 0.3}


def written(path: Path, **fields: Any) -> Path:
    path.write_text(yaml.safe_dump(fields))
    return path


# --- a teacher of other images, at every entry point ------------------------------------------------------------------


@pytest.fixture
def alien(of_blobs: dict[str, Any]) -> dict[str, Any]:
    """A run whose teacher knows nothing of its images: the names of the classes are all that they share."""
    return {"data": of_blobs, "network": {"kind": "mlp", "width": 8}, "epochs": 1, "teacher": "digits-teacher"}


@pytest.mark.parametrize(
    "words",
    [("train",), ("submit",), ("ablate", "--without", "teacher"), ("ablate", "--without", "shuffled", "--queue")],
)
def test_the_command_line_refuses_a_teacher_of_other_images(
    alien: dict[str, Any], store: Store, tmp_path: Path, words: tuple[str, ...]
) -> None:
    verb, *more = words
    done = command(verb, written(tmp_path / "spec.yaml", **alien), *more, store=store)
    assert done.returncode == 2
    assert "not shown to be better than chance" in done.stderr
    assert "digits-teacher" in done.stderr
    assert "Choose a teacher that was trained on such images" in done.stderr
    assert "Traceback" not in done.stderr
    assert [run for run in store.runs() if run.state is not State.FINISHED] == [], "nothing was made"


def test_studies_refuse_a_teacher_of_other_images(alien: dict[str, Any], store: Store, tmp_path: Path) -> None:
    study = written(tmp_path / "optimizers.yaml", **alien, optimizers=["adamw"], trials=1, seeds=1, budgets=[1])
    done = command("optimizers", study, store=store)
    assert done.returncode == 2
    assert "not shown to be better than chance" in done.stderr
    fields = SCALING | {"data": alien["data"], "teacher": alien["teacher"], "recipes": ["baseline", "distil"]}
    fields |= {"images": [20, 40, 80], "augment": []}
    done = command("scale", written(tmp_path / "scale.yaml", **fields), store=store)
    assert done.returncode == 2
    assert "not shown to be better than chance" in done.stderr


def test_python_refuses_a_teacher_of_other_images(alien: dict[str, Any], store: Store) -> None:
    with pytest.raises(BadSpec, match=ALIEN):
        sa.fit(alien, store=store.root, device="cpu")


def test_a_worker_refuses_a_teacher_of_other_images(alien: dict[str, Any], store: Store) -> None:
    """A run that came into the queue without a look at its teacher, as those of earlier versions did."""
    spec = parse(alien)
    splits = data.load(spec.data, store.data_cache)
    run = store.submit(store.resolve(spec, splits, "fp32"))
    control = store.submit(store.resolve(parse({**alien, "teacher": None}), splits, "fp32"))
    assert worker.serve(store, device="cpu", once=True) == 2
    assert run.state is State.FAILED
    assert "not shown to be better than chance" in run.status["reason"]
    assert "digits-teacher" in run.status["reason"] or run.spec.teachers[0] in run.status["reason"]
    assert control.state is State.FINISHED, "what learns from labels has nothing to do with it"


@pytest.mark.slow
def test_the_page_preselects_no_teacher_of_other_images_and_refuses_one(
    alien: dict[str, Any], store: Store, shown: Show
) -> None:
    source = alien["data"]["source"]
    app = shown("distil", data=source)
    assert app.selectbox(key="distil/teacher").value == "none"
    assert "no model with these class names was evaluated on this dataset" in texts(app)
    teacher = store.run("digits-teacher").id
    app.selectbox(key="distil/teacher").select(teacher).run()
    assert not app.exception
    assert any("not shown to be better than chance" in str(one.value) for one in app.error)
    next(button for button in app.button if button.label == "Start training").click().run()
    assert any("not shown to be better than chance" in str(one.value) for one in app.error)
    assert [run for run in store.runs() if run.state is not State.FINISHED] == []


def test_a_teacher_at_chance_is_refused(train: Train, store: Store) -> None:
    """One that learned nothing yet: its own images do not help it."""
    untrained = train(epochs=1, network={"kind": "mlp", "width": 4}, optimizer={"kind": "sgd", "lr": 1e-6})
    with pytest.raises(BadSpec, match="not shown to be better than chance"):
        resolve(store, tiny(teacher=untrained.id))
    with pytest.raises(BadSpec, match="not shown to be better than chance"):  # nor does good company
        resolve(store, tiny(teacher=["digits-teacher", untrained.id]))


# --- of another size --------------------------------------------------------------------------------------------------

FAMILIES = [{"kind": kind, "width": 4} for kind in ("mlp", "cnn", "separable", "resnet")]


@pytest.fixture
def large(of_blobs: dict[str, Any], store: Store) -> Run:
    """A teacher that learned the photographs at their own size."""
    spec = parse({"data": of_blobs, "network": {"kind": "cnn", "width": 4}, "epochs": 12, "batch": 16})
    run = store.create(resolve(store, spec))
    worker.execute(run, store, device="cpu")
    return run


@pytest.mark.slow
def test_a_teacher_of_larger_images_is_refused_and_the_remedy_works(
    of_blobs: dict[str, Any], large: Run, store: Store, tmp_path: Path
) -> None:
    small = {"data": of_blobs | {"size": 8}, "network": {"kind": "cnn", "width": 4, "depth": 2}, "epochs": 2}
    small |= {"teacher": large.id, "batch": 16}
    with pytest.raises(BadSpec, match=r"24 pixels per side.*run has 8.*data\.size` to 24.*network\.size: 8`"):
        resolve(store, parse(small))
    remedied = parse({**small, "data": of_blobs | {"size": SIDE}, "network": {**small["network"], "size": 8}})
    run = store.create(resolve(store, remedied))
    result = worker.execute(run, store, device="cpu")
    assert result["preflight"]["accuracy"] == pytest.approx(large.result["val"]["accuracy"])  # type: ignore[index]
    assert networks.from_file(run.weights).inner_size == (8, 8)
    export.export(run, tmp_path / "student.onnx")
    image = np.random.default_rng(1).integers(0, 256, (2, 40, 40, 1), np.uint8)  # raw pixels of any size
    answers = export.OnnxClassifier((tmp_path / "student.onnx").read_bytes()).logits(image)
    with torch.no_grad():
        wanted = networks.from_file(run.weights)(torch.from_numpy(image.transpose(0, 3, 1, 2).copy())).numpy()
    np.testing.assert_allclose(answers, wanted, atol=1e-3)


@pytest.mark.slow
def test_a_teacher_of_smaller_images_gets_them_resized(of_blobs: dict[str, Any], store: Store) -> None:
    """From the run's own pixels, to the size that it learned."""
    spec = parse({"data": of_blobs | {"size": 12}, "network": {"kind": "cnn", "width": 4}, "epochs": 12, "batch": 16})
    teacher = store.create(resolve(store, spec))
    worker.execute(teacher, store, device="cpu")
    small = resolve(store, parse({"data": of_blobs, "network": "cnn", "teacher": teacher.id}))
    splits = data.load(small.data, store.data_cache)
    found = teacher_loading.preflight(small, store, splits)
    classifier = networks.from_file(teacher.weights)
    images = torch.from_numpy(splits.val.images[:].copy()).float()
    resized = F.interpolate(images, size=(12, 12), mode="bilinear", align_corners=False, antialias=True)
    with torch.no_grad():
        logits = classifier.body((resized / 255 - classifier.mean) / classifier.std)
    hits = int((logits.argmax(1).numpy() == splits.val.labels).sum())
    assert found is not None
    assert found.learned == 12
    assert found.side == SIDE
    assert found.accuracy == pytest.approx(hits / len(splits.val))


def test_images_that_are_small_in_their_source_are_no_reason_to_refuse(store: Store) -> None:
    """There are no better pixels: digits have 8, and a network may take 32."""
    teacher_evidence.check_side(32, tiny(), (1, 8, 8), "t")
    with pytest.raises(BadSpec):
        teacher_evidence.check_side(32, tiny(data={"source": "digits", "size": 8}), (1, 8, 8), "t")


@pytest.mark.parametrize("network", FAMILIES, ids=lambda one: one["kind"])
def test_every_network_resizes_inside(network: dict[str, Any], tmp_path: Path) -> None:
    spec = parse({"data": "digits", "network": {**network, "size": 8}})
    made = networks.build(spec.network, ("a", "b"), (1, 24, 24), mean=[0.4], std=[0.2], seed=1).eval()
    plain = networks.build(
        parse({"data": "digits", "network": network}).network, ("a", "b"), (1, 8, 8), mean=[0.4], std=[0.2], seed=1
    )
    images = torch.randint(0, 256, (3, 1, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    small = F.interpolate(images.float() / 255, size=(8, 8), mode="bilinear", align_corners=False, antialias=True)
    with torch.no_grad():
        torch.testing.assert_close(made(images), plain.eval().body((small - 0.4) / 0.2))
        (tmp_path / "m.safetensors").write_bytes(networks.to_bytes(made, spec))
        again = networks.from_file(tmp_path / "m.safetensors")
        torch.testing.assert_close(again(images), made(images))
    assert again.learned_side == 8


def test_a_network_that_keeps_the_size_of_its_images_has_the_file_that_it_always_had() -> None:
    spec = parse({"data": "digits", "network": "cnn"})
    made = networks.build(spec.network, ("a", "b"), (1, 8, 8), mean=[0.4], std=[0.2])
    assert b"size" not in networks.to_bytes(made, spec)[:400]
    assert "size" not in to_yaml(spec)


@pytest.mark.slow
def test_a_teacher_is_not_carried_over_to_other_images(large: Run, store: Store, shown: Show) -> None:
    app = shown("distil", data="digits")
    assert app.selectbox(key="distil/teacher").value == store.run("digits-teacher").id
    app.selectbox(key="data").set_value(large.data.source).run()
    assert not app.exception
    assert app.selectbox(key="distil/teacher").value == large.id


# --- what is kept of it -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_pre_flight_is_part_of_the_run(train: Train, store: Store, digits: data.Splits) -> None:
    teacher = train(epochs=6)
    run = train(teacher=teacher.id)
    kept = run.result["preflight"]  # type: ignore[index]
    logits = logits_of(networks.from_file(teacher.weights), digits.val)
    wanted = score(logits, digits.val.labels, digits.classes)
    assert kept["accuracy"] == pytest.approx(wanted.accuracy)
    assert (kept["accuracy_low"], kept["accuracy_high"]) == pytest.approx((wanted.accuracy_low, wanted.accuracy_high))
    assert kept["chance"] == pytest.approx(max(0.1, np.bincount(digits.val.labels).max() / len(digits.val)))
    assert kept["images"] == len(digits.val)
    assert kept["data"] == digits.fingerprint
    assert run.status["preflight"] == kept
    assert train().result["preflight"] is None  # type: ignore[index]


def test_a_teacher_is_asked_once_for_each_dataset(
    train: Train, store: Store, digits: data.Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = train(epochs=6)
    first = resolve(store, tiny(teacher=teacher.id))
    found = teacher_loading.preflight(first, store, digits)
    monkeypatch.setattr("smallalign_core.metrics.logits_of", lambda *_, **__: pytest.fail("it was asked again"))
    assert teacher_loading.preflight(first, store, digits) == found
    fewer = data.load(DataSpec(source="digits", images=300), store.data_cache)
    assert teacher_loading.preflight(first, store, fewer) == replace(found, data=fewer.fingerprint)  # type: ignore[type-var]


@pytest.mark.slow
def test_a_teacher_below_the_students_own_baseline_is_warned_of(train: Train, store: Store) -> None:
    student = {"network": {"kind": "cnn", "width": 8, "depth": 2}, "epochs": 10, "batch": 32}
    weak = train(data={"source": "digits", "images": 40}, network={"kind": "mlp", "width": 8}, epochs=20, batch=16)
    unknown = train(**student, teacher=weak.id, seed=5)
    assert unknown.result["preflight"]["warnings"] == []  # type: ignore[index]
    alone = train(**student)
    run = train(**student, teacher=weak.id)
    (warning,) = run.result["preflight"]["warnings"]  # type: ignore[index]
    own = alone.result["val"]["accuracy"]  # type: ignore[index]
    assert own > run.result["preflight"]["accuracy"]  # type: ignore[index]
    assert f"{own:.1%}" in warning
    assert alone.name in warning
    assert warning in [event["message"] for event in run.events("warning")]


@pytest.mark.slow
def test_the_curve_of_a_run_shows_its_teacher_on_its_own_images_or_nothing(
    train: Train, store: Store, of_blobs: dict[str, Any], large: Run
) -> None:
    run = train(teacher=large.id, data=of_blobs | {"validation": 0.2}, epochs=1)
    here = run.result["preflight"]["accuracy"]  # type: ignore[index]
    assert run_table.teacher_here(run, store) == here
    for file, kept in (("result.json", run.result), ("state.json", run.status)):  # as earlier versions left them
        assert kept is not None
        kept.pop("preflight")
        write_json(run.folder / file, kept)
    assert run_table.teacher_here(Run(run.folder), store) is None


# --- which teacher is offered -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_teachers_are_offered_by_evidence_on_the_images(
    train: Train, store: Store, of_blobs: dict[str, Any], large: Run
) -> None:
    blobs_spec = DataSpec(**of_blobs)
    facts = handlers.inspect(store, Inspect(parse_data(of_blobs["source"])))
    rows = {row.id: row for row in run_table.teachers(store, of_blobs["source"], facts)}
    alien = store.run("digits-teacher").id
    assert rows[large.id].here == large.result["val"]["accuracy"]  # type: ignore[index]
    assert rows[alien].here is None
    assert "not evaluated on these images" in rows[alien].label
    assert "%" not in rows[alien].label, "its score on digits says nothing here"
    assert run_table.default_teacher(rows.values()) == large.id
    train(teacher=large.id, data=of_blobs, epochs=1)
    again = run_table.teachers(store, of_blobs["source"], facts)
    assert run_table.default_teacher(again) == large.id, "students are no teachers to begin with"
    assert run_table.default_teacher([row for row in again if row.teacher]) is None
    with pytest.raises(BadSpec):
        resolve(store, parse({"data": blobs_spec.source, "network": "cnn", "teacher": alien}))
    row = next(row for row in run_table.teachers(store, of_blobs["source"], facts) if row.id == alien)
    assert "not better than chance on these images" in row.label
    assert run_table.default_teacher([row]) is None


# --- the loss that it chooses -----------------------------------------------------------------------------------------


def test_a_spec_without_a_loss_gets_numbers_that_are_part_of_its_id(train: Train, store: Store) -> None:
    teacher = train(epochs=6)
    spec = tiny(teacher=teacher.id)
    assert spec.loss == HintonKd(temperature=None, weight=None)
    assert "loss" not in to_yaml(spec)
    known = resolve(store, spec)
    assert isinstance(known.loss, HintonKd)
    assert (known.loss.temperature, known.loss.weight) == teacher_evidence.trust(
        teacher_loading.preflight(known, store, data.load(known.data, store.data_cache))  # type: ignore[arg-type]
    )
    assert digest(resolve(store, spec)) == digest(known)
    assert parse(known.model_dump()) == known
    named = resolve(store, tiny(teacher=teacher.id, loss=known.loss.model_dump()))
    assert digest(named) == digest(known), "who writes the numbers down gets the same run"
    half = resolve(store, tiny(teacher=teacher.id, loss={"kind": "kd", "temperature": 7, "weight": "auto"}))
    assert (half.loss.temperature, half.loss.weight) == (7, known.loss.weight)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("accuracy", "confident", "fitted", "wanted"),
    [
        (1.0, 1.6, 0.6, (1.5, 0.5)),  # a good one: softened until it shows doubts, and as much as the labels
        (0.8, 0.5, 0.2, (0.5, 0.3)),  # unsure of itself and often wrong: sharp, and less
        (0.8, 0.9, 2.6, (3.0, 0.3)),  # too sure of itself: as soft as its errors ask for
        (0.2, 0.5, 50.0, (4.0, 0.1)),
    ],
)
def test_the_choice_follows_accuracy_and_confidence(
    accuracy: float, confident: float, fitted: float, wanted: tuple[float, float]
) -> None:
    found = teacher_evidence.Evidence(
        "t", "d", "f", "v", 8, 8, 100, accuracy, accuracy, accuracy, 0.1, 1.0, 0.1, fitted, 0.1, (confident, 9.0), None
    )
    assert teacher_evidence.trust(found) == wanted


def test_explicit_losses_keep_their_ids() -> None:
    """Of `kd` alone, and of specs that were stored with numbers."""
    fields = {"data": "digits", "network": "cnn", "teacher": "t"}
    bare = parse({**fields, "loss": "kd"})
    assert bare.loss == HintonKd(temperature=4.0, weight=0.9)
    assert digest(bare) == "ac640f7c04fe7852"
    assert digest(parse({**fields, "loss": {"kind": "kd", "temperature": 4.0, "weight": 0.9}})) == "ac640f7c04fe7852"
    with pytest.raises(BadSpec, match=r"loss\.temperature.*greater than or equal to 0\.5"):
        parse({**fields, "loss": {"kind": "kd", "temperature": 0.1}})
    with pytest.raises(BadSpec, match=r"loss\.weight"):
        parse({**fields, "loss": {"kind": "kd", "weight": "often"}})


def test_studies_write_the_chosen_loss_into_their_runs(train: Train, store: Store) -> None:
    teacher = train(epochs=6)
    fields = SCALING | {"teacher": teacher.id, "recipes": ["baseline", "distil"], "augment": []}
    chosen = resolve(store, tiny(teacher=teacher.id)).loss
    assert resolve_study(store, "scaling", scaling.parse_study(fields)).loss == chosen
    raced = {**tiny(teacher=teacher.id).model_dump(exclude={"optimizer"}), "seeds": 1}
    assert resolve_study(store, "optimizers", optimizers.parse_study(raced)).student.loss == chosen
