"""Knowing when not to answer: split-conformal thresholds, the outputs of the file, coverage and risk."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import command
from scipy import stats
from sklearn.metrics import roc_auc_score

from smallalign_core import export as exporting
from smallalign_core.errors import BadInput, BadModel
from smallalign_core.export import _acceptance
from smallalign_core.export._file import finished
from smallalign_core.export._parity import GATES
from smallalign_core.export._runtime import METADATA
from smallalign_core.runs.export_report import Acceptance, Elsewhere, Selected
from smallalign_core.runs.store import Store
from smallalign_core.spec import parse_data
from smallalign_core.spec.precision import FileOptions, parse_variant, variant_of


def drawn(rng: np.random.Generator, images: int, classes: int = 4) -> Any:
    return rng.dirichlet(np.full(classes, 0.4), images)


def test_the_threshold_is_the_conformal_quantile_of_the_uncertainty() -> None:
    probabilities = drawn(np.random.default_rng(0), 400)

    least, own = _acceptance.thresholds(probabilities, 0.9)

    assert own.all()
    for each in range(4):
        scores = 1 - probabilities.max(1)[probabilities.argmax(1) == each]
        level = np.ceil((len(scores) + 1) * 0.9) / len(scores)  # as split conformal prediction is usually written
        assert least[each] == pytest.approx(1 - np.quantile(scores, level, method="inverted_cdf"), rel=1e-6)


@pytest.mark.filterwarnings("ignore:WARNING. your conformalization dataset:UserWarning")
def test_what_is_accepted_is_what_mapie_predicts_alone() -> None:
    """MAPIE's sets (LAC), conformalized on the predicted classes: the most probable class is in the set of an image if
    and only if the image is accepted. A group of its own for each predicted class, as ours."""
    from mapie.classification import SplitConformalClassifier
    from sklearn.base import BaseEstimator, ClassifierMixin

    class Fixed(ClassifierMixin, BaseEstimator):
        """Its inputs are the probabilities."""

        def fit(self, *_: Any) -> Any:
            return self

        def __sklearn_is_fitted__(self) -> bool:
            return True

        def predict_proba(self, inputs: Any) -> Any:
            return np.asarray(inputs)

        def predict(self, inputs: Any) -> Any:
            return np.asarray(inputs).argmax(1)

    rng = np.random.default_rng(5)
    known, new = drawn(rng, 300), drawn(rng, 500)
    least, own = _acceptance.thresholds(known, 0.85)
    assert own.all()
    for each in range(4):
        mine, theirs = known[known.argmax(1) == each], new[new.argmax(1) == each]
        fixed = Fixed()
        fixed.classes_ = np.arange(4)
        mapie = SplitConformalClassifier(fixed, confidence_level=0.85, conformity_score="lac", prefit=True)
        mapie.conformalize(mine, mine.argmax(1))
        _, sets = mapie.predict_set(theirs)
        assert (theirs.max(1) >= least[each]).tolist() == sets[:, each, 0].tolist()


def test_new_images_are_accepted_at_least_as_often_as_was_set_in_each_class() -> None:
    rng = np.random.default_rng(1)
    taken, seen = np.zeros(4), np.zeros(4)
    for _ in range(300):
        least, _own = _acceptance.thresholds(drawn(rng, 120), 0.8)
        new = drawn(rng, 200)
        top = new.argmax(1)
        accepted = new.max(1) >= least[top]
        taken += np.bincount(top[accepted], minlength=4)
        seen += np.bincount(top, minlength=4)
    for hits, total in zip(taken, seen, strict=True):
        share = hits / total
        assert share > 0.8 - 0.01
        assert share < 0.88, "and not much more often"


def test_classes_with_too_few_images_share_a_threshold() -> None:
    rng = np.random.default_rng(2)
    probabilities = drawn(rng, 400)
    top = probabilities.argmax(1)
    few = np.concatenate([np.flatnonzero(top < 2), np.flatnonzero(top == 2)[:6], np.flatnonzero(top == 3)[:5]])

    least, own = _acceptance.thresholds(probabilities[few], 0.9)

    assert own.tolist() == [True, True, False, False]
    rest = np.sort(probabilities[few][top[few] >= 2].max(1))
    assert least[2] == least[3] == pytest.approx(rest[0])


def test_too_few_images_are_refused_with_the_number_that_is_needed() -> None:
    rng = np.random.default_rng(3)
    with pytest.raises(BadInput, match=r"Too few validation images for a coverage of 0\.99: 40") as refused:
        _acceptance.thresholds(drawn(rng, 40), 0.99)
    assert "at least 99 validation" in str(refused.value)
    one = np.zeros((99, 2))
    one[:, 0] = np.linspace(0.6, 1.0, 99)
    one[:, 1] = 1 - one[:, 0]
    assert _acceptance.thresholds(one, 0.99)[0][0] == pytest.approx(0.6)


def test_the_separation_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(4)
    inside, outside = rng.normal(0, 1, 300).round(1), rng.normal(0.8, 1, 200).round(1)
    labels = np.concatenate([np.zeros(300), np.ones(200)])
    assert _acceptance.auroc(inside, outside) == pytest.approx(roc_auc_score(labels, np.concatenate([inside, outside])))


def test_coverage_and_risk_have_wilson_intervals() -> None:
    accepted = np.arange(100) < 80
    right = np.arange(100) >= 8
    found = _acceptance.selected(accepted, right)
    assert (found.coverage, found.risk, found.error) == (0.8, 0.1, 0.08)
    interval = stats.binomtest(8, 80).proportion_ci(method="wilson")
    assert (found.risk_low, found.risk_high) == pytest.approx((interval.low, interval.high), abs=1e-6)


@pytest.mark.parametrize(
    ("precision", "how", "name"),
    [
        ("fp32", FileOptions(coverage=0.9), "fp32-accept0.9"),
        ("int8", FileOptions("mse", 0.5, 0.95), "int8-drop0.5-mse-accept0.95"),
        ("fp16", FileOptions(coverage=0.999), "fp16-accept0.999"),
    ],
)
def test_a_kind_of_file_that_accepts_has_one_name(precision: str, how: FileOptions, name: str) -> None:
    assert variant_of(precision, how) == name
    assert parse_variant(name) == (precision, how)


@pytest.mark.parametrize("coverage", [0.0, 0.4, 1.0, 2.0, -1.0, float("nan")])
def test_a_coverage_out_of_range_is_refused(coverage: float) -> None:
    with pytest.raises(BadInput, match="coverage is out of range"):
        variant_of("fp32", FileOptions(coverage=coverage))


def test_the_report_is_read_back_as_it_was_written() -> None:
    found = Acceptance(
        0.9,
        143,
        (0.5, 0.25),
        2,
        Selected(100, 90, 0.9, 0.8, 0.95, 0.1, 0.05, 0.2, 0.15),
        Elsewhere("other", 50, 0.5, 0.4, 0.6, 0.9),
    )
    assert Acceptance.of(json.loads(json.dumps(found.as_dict()))) == found
    assert "Errors among the accepted: 10.00% (5.00% to 20.00%); among all: 15.00%." in found.words()
    assert "AUROC of the energy 0.900" in found.words()


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_file_says_which_images_it_accepts(store: Store, tmp_path: Path, precision: str) -> None:
    to = tmp_path / "m.zip"
    done = command(
        "export", "digits-student", "--to", to, "--precision", precision, "--coverage", 0.9, "--json", store=store
    )
    assert done.returncode == 0, done.stderr
    written = json.loads(done.stdout)
    with zipfile.ZipFile(to) as archive:
        archive.extractall(tmp_path)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28, 1), dtype=np.uint8)
    logits, probabilities, accepted, energy = session.run(
        ["logits", "probabilities", "accepted", "energy"], {"images": images}
    )
    least = np.array(written["acceptance"]["thresholds"], np.float32)
    assert accepted.tolist() == (probabilities.max(1) >= least[probabilities.argmax(1)]).tolist()
    assert energy == pytest.approx(-np.log(np.exp(logits.astype(np.float64)).sum(1)), rel=1e-4)
    found = Acceptance.of(written["acceptance"])
    assert found.test.images == 359
    assert found.words() in (tmp_path / "card.md").read_text()
    assert json.loads((tmp_path / "parity.json").read_text())["acceptance"] == written["acceptance"]
    verified = command("verify", tmp_path / "model.onnx", "--proof", tmp_path / "parity.json", store=store)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert "outputs accepted and energy reproduced: coverage" in verified.stdout
    assert "the validation images also selected the epoch" in (tmp_path / "card.md").read_text()


def resealed(file: Path, to: Path, change: Callable[[dict[str, Any], onnx.ModelProto], None]) -> Path:
    """A copy of an export with other metadata or another graph, and a checksum that matches."""
    model = onnx.load_model(file)
    metadata = json.loads(next(one.value for one in model.metadata_props if one.key == METADATA))
    change(metadata, model)
    to.write_bytes(finished(model.SerializeToString(), metadata))
    return to


@pytest.fixture(scope="module")
def accepting(tmp_path_factory: pytest.TempPathFactory, place: Store) -> tuple[Path, dict[str, Any]]:
    """An fp32 file with both outputs, and what `export` reports of it."""
    to = tmp_path_factory.mktemp("accepting") / "m.onnx"
    return to, exporting.export(place.finished("digits-student"), to, place, options=FileOptions(coverage=0.9))


def test_verify_repeats_coverage_and_risk(accepting: tuple[Path, dict[str, Any]], store: Store) -> None:
    file, written = accepting

    found = exporting.verify(file, store)

    assert found["ok"]
    assert found["acceptance"]["consistent"]
    assert found["acceptance"]["test"] == found["acceptance"]["stored"] == written["acceptance"]["test"]
    assert found["loss"] is None


def test_verify_fails_where_the_stored_coverage_does_not_come_out(
    accepting: tuple[Path, dict[str, Any]], store: Store, tmp_path: Path
) -> None:
    def better(metadata: dict[str, Any], _: onnx.ModelProto) -> None:
        metadata["acceptance"]["test"]["risk"] = 0.0

    def more(metadata: dict[str, Any], _: onnx.ModelProto) -> None:
        metadata["acceptance"]["test"]["accepted"] += 5

    for change in (better, more):
        found = exporting.verify(resealed(accepting[0], tmp_path / "changed.onnx", change), store)
        assert not found["ok"]
        assert found["acceptance"]["consistent"]
    done = command("verify", tmp_path / "changed.onnx", store=store)
    assert done.returncode == 1
    assert "outputs accepted and energy NOT reproduced" in done.stdout


def test_verify_fails_where_the_outputs_do_not_follow_from_the_thresholds(
    accepting: tuple[Path, dict[str, Any]], store: Store, tmp_path: Path
) -> None:
    def accepts_all(_: dict[str, Any], model: onnx.ModelProto) -> None:
        (least,) = (one for one in model.graph.initializer if one.name == "accept_least")
        least.CopyFrom(onnx.numpy_helper.from_array(np.zeros(10, np.float32), "accept_least"))

    def other_energy(_: dict[str, Any], model: onnx.ModelProto) -> None:
        next(one for one in model.graph.node if one.name == "energy").op_type = "Abs"

    for change in (accepts_all, other_energy):
        found = exporting.verify(resealed(accepting[0], tmp_path / "changed.onnx", change), store)
        assert not found["ok"]
        assert not found["acceptance"]["consistent"]


def test_damaged_facts_about_acceptance_are_one_sentence(
    accepting: tuple[Path, dict[str, Any]], store: Store, tmp_path: Path
) -> None:
    def no_list(metadata: dict[str, Any], _: onnx.ModelProto) -> None:
        metadata["acceptance"]["thresholds"] = "none"

    def short(metadata: dict[str, Any], _: onnx.ModelProto) -> None:
        metadata["acceptance"]["thresholds"] = [0.5]

    def without(_: dict[str, Any], model: onnx.ModelProto) -> None:
        del model.graph.output[2:]

    for change, wrong in ((no_list, "damaged"), (short, "one threshold for each class"), (without, "outputs that its")):
        with pytest.raises(BadModel, match=wrong):
            exporting.verify(resealed(accepting[0], tmp_path / "changed.onnx", change), store)


def test_an_fp32_export_reports_the_loss_that_its_file_has(accepting: tuple[Path, dict[str, Any]]) -> None:
    file, written = accepting
    (kept,) = (one.value for one in onnx.load_model(file).metadata_props if one.key == METADATA)
    assert written["loss"] is None
    assert "loss" not in json.loads(kept)


def test_the_counts_may_differ_by_images_at_their_threshold_and_by_what_the_precision_allows() -> None:
    rng = np.random.default_rng(6)
    logits = rng.normal(0, 2, (200, 3)).astype(np.float32)
    shares = np.exp(logits - logits.max(1, keepdims=True))
    probabilities = (shares / shares.sum(1, keepdims=True)).astype(np.float32)
    least, _ = _acceptance.thresholds(probabilities, 0.9)
    accepted = probabilities.max(1) >= least[probabilities.argmax(1)]
    energy = -np.log(np.exp(logits.astype(np.float64)).sum(1))
    outputs = {"logits": logits, "probabilities": probabilities, "accepted": accepted * 1.0, "energy": energy}
    labels = np.where(np.arange(200) % 5 == 0, 0, logits.argmax(1))
    true = _acceptance.selected(accepted, logits.argmax(1) == labels)

    def checked(precision: Any, moved: int) -> Any:
        stored = replace(true, accepted=true.accepted + moved)
        written = Acceptance(0.9, 200, tuple(map(float, least)), 3, stored)
        return _acceptance.repeated(outputs, labels, written, GATES[precision], 1.0, same_images=True)

    at_threshold = checked("fp32", 0).allowed
    assert at_threshold == 3, "each class has an image whose probability is its threshold"
    assert [checked("fp32", moved).ok for moved in (0, 3, 4)] == [True, True, False]
    assert checked("int8", 0).allowed == 10 + 3, "5% of 200, and these"
    assert [checked("int8", moved).ok for moved in (-13, 14)] == [True, False]


@pytest.mark.parametrize("data", ["digits", "digits with another division"])
def test_the_dataset_of_the_run_is_no_other_one(store: Store, tmp_path: Path, data: str) -> None:
    other = {"source": "digits"} if data == "digits" else {"source": "digits", "test": 0.3}
    run = store.finished("digits-student")
    with pytest.raises(BadInput, match="run's own") as refused:
        exporting.export(
            run, tmp_path / "m.onnx", store, options=FileOptions(coverage=0.9), elsewhere=parse_data(other)
        )
    assert "Choose a dataset of other classes" in str(refused.value)
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        (["--coverage", 1.5], "coverage is out of range"),
        (["--against", "fashion-mnist"], "--against measures what is accepted"),
    ],
)
def test_bad_options_are_one_sentence(store: Store, tmp_path: Path, options: list[object], wrong: str) -> None:
    done = command("export", "digits-student", "--to", tmp_path / "m.onnx", *options, store=store)
    assert done.returncode == 2
    assert wrong in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "m.onnx").exists()
