"""The scaling study: what it wants, how runs are paired, what it says, and that it goes on where it was stopped."""

from __future__ import annotations

import json
import signal
import statistics
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import processes
import pytest
import yaml
from PIL import Image
from sklearn.datasets import load_digits

from smallalign_core import data
from smallalign_core.analysis import data_quality
from smallalign_core.errors import BadData, BadSpec
from smallalign_core.runs.store import Store
from smallalign_core.service import handlers
from smallalign_core.service.requests import EstimateStudy
from smallalign_core.spec import RunSpec, digest, parse_data
from smallalign_core.studies import lifecycle, scaling, statistics as stats
from smallalign_core.studies.resolve import resolve_study
from smallalign_core.studies.run_status import id_of
from smallalign_core.studies.scaling import _build, _fits, _plan
from smallalign_core.training.resolve import resolve
from smallalign_core.training.runner import TOGETHER
from tests.conftest import SCALING, command, scaled


def study_spec(**more: Any) -> scaling.ScalingStudySpec:
    return scaling.parse_study({**SCALING, **more})


def resolved(store: Store, **more: Any) -> scaling.ScalingStudySpec:
    found: scaling.ScalingStudySpec = resolve_study(store, "scaling", study_spec(**more), "cpu")
    return found


# --- what is asked ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"recipes": ["baseline", "distil"]}, "recipe `distil` needs a `teacher`"),
        ({"recipes": ["baseline", "optimizer"]}, "recipe `optimizer` needs `optimizer`"),
        ({"recipes": ["baseline", "unlabeled"], "unlabeled": "rest"}, "needs `unlabeled` and a `teacher`"),
        ({"recipes": ["baseline", "unlabeled"], "teacher": "digits-teacher"}, "needs `unlabeled` and a `teacher`"),
        (
            {"recipes": ["baseline", "unlabeled"], "teacher": "t", "unlabeled": "rest", "loss": {"kind": "dkd"}},
            "needs the label of every image",
        ),
        ({"recipes": ["baseline", "all"]}, "combines several processes"),
        ({"replicates": 2}, "replicates"),
        ({"widths": [4, 8]}, r"`widths` needs at least 3 items \(given: \[4, 8\]\)"),
        ({"widths": list(range(2, 12))}, "`widths` takes at most 8 items"),
        ({"widths": [1, 4, 8]}, "widths"),
        ({"widths": [4, 16, 32]}, "the target's width is not"),
        ({"images": [40, 80]}, "at least 3 numbers of images"),
        ({"fractions": [0.1, 0.5, 1.0]}, "give either"),
        ({"network": {"kind": "timm", "name": "resnet18"}}, "fixed size"),
        ({"widhts": [1]}, "did you mean `widths`"),
        ({"preset": "huge"}, "nknown preset"),
        ({"budget": 10}, "pilot of 54 runs"),
        ({"ladder": [1, 2]}, "set `teacher`"),
        ({"target": {"width": 8, "images": 100}}, "the target's images are not"),
        ({"teacher": "digits-teacher", "loss": {"kind": "cross_entropy"}}, "does not use a teacher"),
        ({"teacher": "digits-teacher", "loss": {"kind": "fitnets"}}, "compares layers"),
        ({"augment": None, "recipes": None}, "has nothing to compare"),
        ({"recipes": 5}, "list of names"),
        ({"data": {"source": "digits", "unlabeled": "more"}}, "has no unlabeled images"),
        ({"recipes": [1]}, "list of names"),
        ({"preset": ["quick"]}, "nknown preset"),
        ({"target": {"width": "abc"}, "widths": None}, "target"),
        ({"target": [1], "widths": None}, "target"),
    ],
)
def test_what_cannot_be_done_is_refused_in_words(more: dict[str, Any], words: str) -> None:
    with pytest.raises(BadSpec, match=f"(?i){words}"):
        study_spec(**more)


def test_unlabeled_images_join_distillation_at_as_many_steps(place: Store) -> None:
    """The same labeled images as for other recipes; beside them those that the subset leaves out."""
    fields = {"teacher": "digits-teacher", "recipes": ["baseline", "distil", "unlabeled"], "augment": []}
    spec = resolved(place, **fields, unlabeled="rest", steps=110, data={"source": "digits", "images": 400})
    for images, replicate in ((40, 0), (160, 2)):
        cell = _plan.Cell("distil", 8, images, replicate)
        plain, more = (_plan.run_of(spec, replace(cell, recipe=recipe), {}) for recipe in ("distil", "unlabeled"))
        assert plain is not None
        assert more is not None
        assert (more.data.fingerprint, more.loss, more.teacher) == (plain.data.fingerprint, plain.loss, plain.teacher)
        splits = data.load(more.data, place.data_cache)  # of the fingerprints that the plan says, or refused
        assert splits.unlabeled is not None
        whole = set(data.load(parse_data("digits"), place.data_cache).train.ids.tolist())
        assert set(splits.unlabeled.ids.tolist()) == whole - set(splits.train.ids.tolist())
        steps = [
            run.epochs * len(splits_of.learned)
            for run, splits_of in ((plain, data.load(plain.data, place.data_cache)), (more, splits))
        ]
        assert steps[1] == pytest.approx(steps[0], rel=0.1)
    assert id_of(more) != id_of(plain)
    with pytest.raises(BadSpec, match=r"(?i)no training images are left to be unlabeled .*smaller `images`"):
        resolved(place, **fields, unlabeled="rest", steps=110, images=None, fractions=[0.2, 0.5, 1.0])
    with pytest.raises(BadSpec, match=r"(?i)16 times as many steps .*set `steps` to at least 102"):
        resolved(place, **fields, unlabeled="rest", data={"source": "digits", "images": 400})
    assert resolved(place, **fields, unlabeled="rest", steps=102, data={"source": "digits", "images": 400}).pools


@pytest.mark.slow
def test_a_folder_of_unlabeled_images_in_a_study(place: Store, tmp_path: Path) -> None:
    digits = load_digits().images
    for number in range(60):
        pixels = np.clip(digits[number] * 14 + number % 7, 0, 255).astype(np.uint8)
        (tmp_path / "more").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "more" / f"{number}.png")
    fields = {"teacher": "digits-teacher", "recipes": ["baseline", "unlabeled"], "augment": []}
    study = scaled(place, **fields, unlabeled=str(tmp_path / "more"), images=[20, 40, 80], steps=12)
    assert not list(lifecycle.run_to_end(study, place, device="cpu"))
    report = study.report(place)
    assert report.complete
    assert report.labels["unlabeled"] == "distillation with unlabeled images"
    assert "distillation with unlabeled images" in report.words()
    runs = [place.run(id) for id in (id_of(run) for run in _plan.wanted(study.spec, place, study.folder))]
    assert {run.result["unlabeled"] for run in runs} == {0, 60}  # type: ignore[index]


def test_too_few_images_for_the_classes_are_refused(place: Store) -> None:
    with pytest.raises(BadSpec, match="one per class"):
        resolved(place, images=[9, 80, 160])
    with pytest.raises(BadData, match="all"):
        resolved(place, images=[40, 80, 5000])


@pytest.mark.parametrize(("preset", "runs", "recipes"), [("quick", 72, 2), ("standard", 256, 4), ("paper", 750, 6)])
def test_presets_are_of_the_size_that_they_say(place: Store, preset: str, runs: int, recipes: int) -> None:
    fields = {name: SCALING[name] for name in ("data", "network", "batch", "epochs", "precision", "augment")}
    more = {"optimizer": "sgd", "teacher": "digits-teacher", "decisions": "automatic", "preset": preset}
    spec = scaling.parse_study(fields | more)
    assert len(spec.recipes) == recipes
    assert len(spec.widths) * len(spec.fractions) * len(spec.recipes) * spec.replicates == runs


# --- what is wanted ---------------------------------------------------------------------------------------------------


def test_recipes_are_paired_and_replicates_are_not(place: Store) -> None:
    spec = resolved(place)
    for cell in _plan.grid(spec):
        base = _plan.run_of(spec, _plan.Cell("baseline", cell.width, cell.images, cell.replicate), {})
        run = _plan.run_of(spec, cell, {})
        assert run is not None
        assert base is not None
        assert (run.data, run.seed, run.epochs, run.network) == (base.data, base.seed, base.epochs, base.network)
        assert run.data.draw == run.seed == cell.replicate
    assert len({fingerprint for _, fingerprint in spec.fingerprints}) == 9


def test_runs_are_those_that_a_user_would_get(place: Store) -> None:
    spec = resolved(place)
    run = _plan.run_of(spec, _plan.Cell("augment", 4, 80, 2), {})
    own = {
        "data": {"source": "digits", "images": 80, "draw": 2},
        "network": {"kind": "mlp", "width": 4, "depth": 1},
        "batch": 64,
        "epochs": 2,
        "seed": 2,
        "precision": "fp32",
        "augment": SCALING["augment"],
    }
    assert run is not None
    assert digest(resolve(place, RunSpec.model_validate(own), "cpu")) == digest(run)


def test_all_sizes_and_equal_views_keep_step(place: Store) -> None:
    """Baseline, optimizer and distillation of all sizes, as far as a group may grow."""
    optimizer = {"kind": "sgd", "lr": 0.1}
    spec = resolved(
        place, teacher="digits-teacher", optimizer=optimizer, recipes=["baseline", "optimizer", "distil"], augment=[]
    )
    runs = _plan.wanted(spec, place, place.root / "nowhere")
    groups = []
    while runs:
        groups.append(lifecycle.lockstep_groups(runs))
        runs = [run for run in runs if run not in groups[-1]]
    assert len(groups) == 9 * -(-9 // TOGETHER)
    assert max(len(group) for group in groups) >= 4


@pytest.mark.slow
def test_more_of_anything_shares_all_runs(place: Store, finished: lifecycle.Study) -> None:
    larger = resolved(
        place, replicates=4, widths=[4, 8, 16, 32], images=[40, 80, 160, 320], recipes=["baseline", "augment", "noise"]
    )
    more = lifecycle.create(place, "scaling", larger.model_copy(update={"target": scaling.Target(width=8, images=160)}))
    assert set(map(digest, finished.wanted(place))) < set(map(digest, more.wanted(place)))
    assert len(more.missing(place)) == 4 * 4 * 3 * 4 - 54
    lifecycle.delete(place, more)


def test_noise_mislabels_and_steps_are_a_floor(place: Store) -> None:
    spec = resolved(place, recipes=["baseline", "noise"], noise=0.3, steps=10)
    runs = _plan.wanted(spec, place, place.root / "nowhere")
    assert {run.data.noise for run in runs} == {0.0, 0.3}
    assert {run.data.images: run.epochs for run in runs} == {40: 16, 80: 8, 160: 4}
    dirty = next(run for run in runs if run.data.noise and run.data.images == 160)
    clean = data.load(dirty.data.model_copy(update={"noise": 0.0, "fingerprint": None}), place.data_cache)
    wrong = data.load(dirty.data, place.data_cache).train.labels != clean.train.labels
    assert 0.2 < wrong.mean() < 0.4


@pytest.mark.slow
def test_automatic_cleaning_is_judged_within_each_draw(place: Store) -> None:
    """On 30% wrong labels, so that there is something to find; before it is judged its runs are not known."""
    fields = {"recipes": ["baseline", "clean"], "data": {"source": "digits", "noise": 0.3}, "images": [100, 150, 200]}
    study = lifecycle.create(place, "scaling", resolved(place, **fields))
    assert len(study.wanted(place)) == 27
    assert study.report(place).preparing
    while scaling.prepare(study.spec, place, study.folder, "cpu", threading.Event()):
        pass
    runs = study.wanted(place)
    assert len(runs) == 54
    made = [run for run in runs if run.data.decisions]
    assert len({run.data.fingerprint for run in made}) == 9
    for run in made[::3]:
        before = data.load(run.data.model_copy(update={"decisions": None, "fingerprint": None}), place.data_cache)
        after = data.load(run.data, place.data_cache)
        assert set(after.train.ids) < set(before.train.ids)
        assert after.val.fingerprint == before.val.fingerprint
        assert after.test.fingerprint == before.test.fingerprint
    assert digest(made[0]) == digest(study.wanted(place)[runs.index(made[0])])
    lifecycle.delete(place, study)


def test_judging_gives_the_worker_back_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A draw at a time, a long one in slices; a pause is obeyed at once, and nothing is judged twice."""
    store, begun = Store(tmp_path / "models"), []

    def slowly(images: data.ImageSet) -> Any:
        begun.append(len(images))
        yield 0.5
        return data.Decisions("", {int(images.ids[0]): data.Decision("drop")})

    monkeypatch.setattr(data_quality, "automatic", slowly)
    study = lifecycle.create(store, "scaling", resolved(store, recipes=["baseline", "clean"]))
    lifecycle.start(store, study)
    stop = threading.Event()
    assert lifecycle.queue_next(store, "cpu", stop)
    assert (len(study.wanted(store)), store.queue()) == (30, [])  # 27 of the baseline and 3 sizes of one draw
    lifecycle.pause(store, study)
    assert not lifecycle.queue_next(store, "cpu", stop)
    lifecycle.start(store, study)
    monkeypatch.setattr(_plan, "SLICE", -1.0)
    assert lifecycle.queue_next(store, "cpu", stop)
    assert len(study.wanted(store)) == 30, "half of the second draw is judged"
    for _ in range(14):
        assert lifecycle.queue_next(store, "cpu", stop)
        assert store.queue() == []
    assert lifecycle.queue_next(store, "cpu", stop)
    assert store.queue()
    assert begun == [160, 80, 40] * 3


# --- what is found ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_figures_are_those_of_the_runs(place: Store, finished: lifecycle.Study) -> None:
    found = finished.report(place)
    assert found.complete
    assert (found.done, found.total, found.params) == (54, 54, 8 * 65 + 10 * 9)
    cell = next(one for one in found.cells if (one.recipe, one.width, one.images) == ("augment", 8, 160))
    runs = [run for run in map(place.find, finished.wanted(place)) if run is not None]
    scores = {
        run.spec.seed: run.result["test_calibrated"]["nll"]  # type: ignore[index]
        for run in runs
        if run.spec.augment and run.spec.data.images == 160 and run.spec.network.width == 8  # type: ignore[union-attr]
    }
    assert len(scores) == 3
    assert cell.nll[0] == pytest.approx(statistics.fmean(scores.values()))
    half = 4.302652730 * statistics.stdev(scores.values()) / 3**0.5  # t of 2 degrees of freedom
    assert cell.nll[1:] == pytest.approx((cell.nll[0] - half, cell.nll[0] + half))  # type: ignore[operator]
    paired = next(one for one in found.at_target() if one.recipe == "augment")
    assert [round(second, 9) for _, _, second in paired.pairs] == [round(scores[s], 9) for s in range(3)]
    own = stats.paired([second - first for _, first, second in paired.pairs])
    assert (paired.mean, paired.low, paired.high) == (own.mean, own.low, own.high)


@pytest.mark.slow
def test_a_report_has_tests_and_a_verdict_and_is_kept(place: Store, finished: lifecycle.Study) -> None:
    found = finished.report(place)
    reading = found.readings["nll"]
    assert reading.gate is not None
    assert [test.kind for test in reading.tests] == ["dose"] * 4  # 3 replicates allow no placebo
    assert reading.runs == 54
    assert "images" in found.headline()
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["readings"]["nll"]["tests"]
    written = json.loads((finished.folder / _build.FITS).read_text())["readings"]
    assert _fits.packed(_fits.unpacked(written)) == written
    before = (finished.folder / _build.FITS).stat().st_mtime_ns
    assert finished.report(place).words() == found.words()
    assert (finished.folder / _build.FITS).stat().st_mtime_ns == before
    (finished.folder / _build.FITS).write_text("{")
    assert finished.report(place).words() == found.words()


def known(
    recipes: tuple[str, ...], *, factor: float = 2.0, seed: int = 0
) -> list[tuple[str, float, float, int, float]]:
    """Rows of a saturating law in which every recipe but the first is worth `factor` times the images."""
    rng, rows = np.random.default_rng(seed), []
    for replicate in range(4):
        for recipe in recipes:
            for n in (500.0, 1000.0, 2000.0, 4000.0):
                for d in (100.0, 200.0, 400.0, 800.0):
                    worth = d * (1.0 if recipe == "baseline" else factor)
                    u = (n / 1000) ** -0.6 * 0.2 + (worth / 200) ** -0.7 * 0.3
                    y = 0.05 + (np.log(10) - 0.05) * u / (1 + u)
                    rows.append((recipe, n, d, replicate, float(y * np.exp(0.01 * rng.standard_normal()))))
    return rows


def test_a_known_worth_is_found(place: Store) -> None:
    spec = resolved(place)
    spec = spec.model_copy(update={"images": (100, 200, 400, 800)})
    found = _fits.reading(spec, "nll", known(("baseline", "augment")), 10, 1000, lambda *_: 1.0)
    assert found.gate is not None
    assert found.gate.passed, found.gate.reasons
    (worth,) = found.worth
    assert worth.images.low <= 2 <= worth.images.high
    assert worth.images.factor < 1.3
    assert not worth.hidden_images
    assert worth.smaller.high < 1
    assert "match the baseline of 1,000 parameters on 800 images" in worth.ship()
    cell = next(one for one in found.maps if one.axis == "d")
    assert len(cell.found) == len(cell.found[0]) == 4
    line = next(one for one in found.lines if (one.recipe, one.axis, one.other) == ("augment", "n", 800.0))
    assert found.law is not None
    assert _fits.expected(found.law, "augment", line.x[-1], 800.0) == pytest.approx(line.y[-1])


def test_a_worth_of_nothing_ships_nothing(place: Store) -> None:
    spec = resolved(place).model_copy(update={"images": (100, 200, 400, 800)})
    found = _fits.reading(spec, "nll", known(("baseline", "augment"), factor=1.0), 10, 1000, lambda *_: 1.0)
    (worth,) = found.worth
    assert worth.images.low <= 1 <= worth.images.high
    assert worth.parameters.low <= 1 <= worth.parameters.high


@pytest.mark.parametrize("error", [ValueError("math domain error"), np.linalg.LinAlgError("Singular matrix")])
def test_a_law_that_cannot_be_computed_is_no_traceback(
    place: Store, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    spec = resolved(place).model_copy(update={"images": (100, 200, 400, 800)})

    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(_fits.scaling_law, "allocate", fails)
    found = _fits.reading(spec, "nll", known(("baseline", "augment")), 10, 1000, lambda *_: 1.0)
    assert found.law is None
    assert found.why_not == f"the law could not be computed from these runs ({error})"


def test_an_unfinished_study_says_what_it_lacks(place: Store) -> None:
    spec = resolved(place, epochs=3)
    found = scaling.report(spec, place, place.root / "studies" / "nowhere")
    assert (found.done, found.missing, found.total) == (0, 54, 54)
    assert not found.complete
    assert found.cost.expected is None
    assert "No run at the target" in found.headline()
    assert "no scaling law yet" in found.readings["nll"].verdict()
    json.dumps(found.as_dict(), allow_nan=False)


# --- adaptive, ladder -------------------------------------------------------------------------------------------------


def test_a_budget_is_spent_where_it_narrows_most(place: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """With runs of a known law in place of training: the pilot first, then rounds up to the budget, always the same."""
    spec = resolved(place, budget=80, epochs=3)
    pilot = _plan.pilot(spec)
    assert len(pilot) == 54
    assert _plan.cells(spec, place, place.root / "nowhere") == pilot  # nothing of it is finished
    sizes = {4: 500, 8: 1000, 16: 2000}

    def row(_: Store, __: Any, cell: _plan.Cell) -> _plan.Row:
        worth = cell.images * (1 if cell.recipe == "baseline" else 2)
        u = (sizes[cell.width] / 1000) ** -0.6 * 0.2 + (worth / 100) ** -0.7 * 0.3
        noise = 0.02 * np.random.default_rng([cell.width, cell.images, cell.replicate]).standard_normal()
        return cell.recipe, cell.width, sizes[cell.width], cell.images, cell.replicate, float(u * np.exp(noise))

    monkeypatch.setattr(_plan, "_row", row)
    found = _plan.cells(spec, place, place.root / "nowhere")
    assert len(found) == len(set(found)) == 80
    assert found[:54] == pilot
    assert found == _plan.cells(spec, place, place.root / "nowhere")
    more = [cell for cell in found[54:] if (cell.recipe, cell.width, cell.images) == ("augment", 8, 160)]
    assert len(more) > 26 / 18  # the recipe at the target gets more than its share
    for budget in (81, 130):
        larger = _plan.cells(spec.model_copy(update={"budget": budget}), place, place.root / "nowhere")
        assert (len(larger), larger[:80]) == (budget, found), "a larger budget shares all runs"


def test_a_ladder_wants_teachers_then_their_students(place: Store) -> None:
    spec = resolved(place, teacher="digits-teacher", recipes=["baseline", "distil"], ladder=[1, 2])
    runs = _plan.wanted(spec, place, place.root / "nowhere")
    assert [run.epochs for run in runs[54:]] == [1, 2]
    own = place.run("digits-teacher").spec
    assert runs[54] == own.model_copy(update={"epochs": 1})
    found = scaling.report(spec, place, place.root / "nowhere")
    assert [rung.epochs for rung in found.ladder] == [1, 2, 60]
    assert found.ladder[-1].teacher_nll is not None
    assert found.total == 54 + 2 + 6


# --- doors ------------------------------------------------------------------------------------------------------------


def test_the_command_line_and_the_backend_say_the_same(place: Store, finished: lifecycle.Study, tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(SCALING))
    told = command("scale", file, "--json", store=place)
    assert told.returncode == 0, told.stderr
    cost = handlers.estimate_study(place, EstimateStudy(study_spec()))
    assert (cost.id, cost.runs, cost.done, cost.missing) == (finished.id, 54, 54, 0)
    report = finished.report(place)
    assert json.loads(told.stdout)["words"] == report.words()
    assert json.loads(told.stdout)["headline"] == report.as_dict()["headline"]
    bad = command("scale", file, "--set", "replicates=1", store=place)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert "replicates" in bad.stderr


def test_the_cost_is_known_before_the_first_run(place: Store, finished: lifecycle.Study) -> None:
    some, longer, done = (
        handlers.estimate_study(place, EstimateStudy(study_spec(epochs=n))).seconds for n in (40, 400, 2)
    )
    assert done == 0 < some < longer
    assert finished.report(place).cost.spent > 0


def test_reading_a_study_imports_no_torch() -> None:
    code = "import sys; from smallalign_core.studies import lifecycle, scaling; sys.exit('torch' in sys.modules)"
    assert processes.run(processes.python("-c", code)).returncode == 0


@pytest.mark.slow
def test_a_killed_study_goes_on_and_ends_the_same(place: Store, finished: lifecycle.Study, tmp_path: Path) -> None:
    file, other = tmp_path / "study.yaml", Store(tmp_path / "models")
    file.write_text(yaml.safe_dump(SCALING))
    line = processes.python("-m", "smallalign_core", "scale", file, "--json", "--store", other.root)
    with processes.started(line) as first:
        until = time.monotonic() + 240
        while sum(1 for _ in (other.root / "runs").glob("*/result.json")) < 10 and time.monotonic() < until:
            time.sleep(0.05)
        first.send_signal(signal.SIGKILL)
        first.wait()
    done = sum(1 for _ in (other.root / "runs").glob("*/result.json"))
    assert 10 <= done < 54
    told = processes.run(line)
    assert told.returncode == 0, told.stderr
    for spec in finished.wanted(place):
        ours, theirs = place.find(spec), other.find(spec)
        assert ours is not None
        assert theirs is not None
        assert (ours.result or {})["weights_sha256"] == (theirs.result or {})["weights_sha256"]
    assert json.loads(told.stdout)["headline"] == finished.report(place).headline()
    assert json.loads(told.stdout)["done"] == 54


# --- what a review found ----------------------------------------------------------------------------------------------


def test_a_ladder_never_holds_the_teacher_itself(place: Store) -> None:
    spec = resolved(place, teacher="digits-teacher", recipes=["baseline", "distil"])
    own = place.run(spec.teacher or "").spec.epochs
    rungs = _plan.ladder(spec.model_copy(update={"ladder": (1, own)}), place)
    assert [epochs for epochs, _ in rungs] == [1]


def test_a_loss_of_nothing_is_no_end_of_the_report() -> None:
    assert _plan.nll_of({"test_calibrated": {"nll": -0.0, "images": 50}}) == 0.01
    assert _plan.nll_of({"test_calibrated": {"nll": 0.3, "images": 50}}) == 0.3


@pytest.mark.slow
def test_a_law_is_not_quoted_from_runs_that_were_deleted(tmp_path: Path) -> None:
    store = Store(tmp_path / "models")
    study = lifecycle.create(store, "scaling", resolved(store))
    assert not lifecycle.run_to_end(study, store, device="cpu")
    assert study.report(store).readings["nll"].runs == 54
    for run in store.runs()[:36]:
        store.delete(run.id)
    assert study.report(store).readings["nll"].runs <= 18


def test_a_study_that_was_paused_while_it_was_prepared_queues_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "models")
    study = lifecycle.create(store, "scaling", resolved(store))
    lifecycle.start(store, study)
    monkeypatch.setattr(scaling, "prepare", lambda *_: lifecycle.pause(store, study))
    assert not lifecycle.queue_next(store, "cpu", threading.Event())
    assert store.queue() == []


def test_a_damaged_run_is_reported_as_failed_and_not_as_missing(tmp_path: Path) -> None:
    store = Store(tmp_path / "models")
    study = lifecycle.create(store, "scaling", resolved(store))
    before = study.report(store)
    run = store.create(study.wanted(store)[0])
    run.weights.write_bytes(b"")
    (run.folder / "result.json").write_text("{}")  # finished, without the numbers
    after = study.report(store)
    assert not before.failed
    assert after.failed == ("baseline, width 4, 160 images: a file of it is damaged",)
    assert after.missing == before.missing - 1


@pytest.mark.parametrize(
    "text", ['{"kind": "scaling"}', '{"kind": "scaling", "spec": null}', '{"kind": ["x"], "spec": {}}', "[]"]
)
def test_a_damaged_study_hides_no_other(tmp_path: Path, text: str) -> None:
    store = Store(tmp_path / "models")
    folder = store.root / "studies" / "0123456789abcdef"
    folder.mkdir(parents=True)
    (folder / "study.json").write_text(text)
    (study,) = lifecycle.listing(store)
    assert lifecycle.summary(study, store).kind is None
