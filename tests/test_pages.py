"""Every page, opened as a user would, in an empty store and with finished, failed and damaged runs in it."""

from __future__ import annotations

import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from pages.ui.app import context
from pages.ui.distill import teacher_check
from pages.ui.export import panel
from pages.ui.widgets import forms, run_table
from smallalign_core import export
from smallalign_core.errors import Diverged, WorkFailed
from smallalign_core.runs import imported as foreign, policies
from smallalign_core.runs.export_report import ExportReport
from smallalign_core.runs.store import Run, Store
from smallalign_core.service.requests import Submit, Submitted
from smallalign_core.spec import Code, DataSpec, loss_kinds
from smallalign_core.studies.ablation import CONTROLS
from smallalign_core.training.pruned import spec_of
from smallalign_core.training.resolve import resolve
from tests.conftest import ROOT, Train, texts

PAGES = (
    *("home", "data", "augment", "lessons", "distil", "shrink", "optimizers", "scaling", "runs", "compare", "export"),
)


def test_every_page_is_opened_here():
    files = {file.stem for file in (ROOT / "pages").glob("*.py")} - {"frame"}

    assert files == set(PAGES)


def break_spec(store: Store) -> Run:
    folder = store.root / "runs" / "deadbeefdeadbeef"
    folder.mkdir(parents=True)
    (folder / "spec.json").write_text('{"spec": 3')
    return Run(folder)


def fail(store: Store, train: Train) -> Run:
    with pytest.raises(Diverged):
        train(network={"kind": "mlp", "width": 32}, optimizer={"kind": "sgd", "lr": 100, "momentum": 0.99})
    return next(run for run in store.runs() if run.state == "failed")


COSTLY = ("export",)  # at once it exports the zoo


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=pytest.mark.slow) if page in COSTLY else page for page in PAGES]
)
def test_every_page_opens_in_an_empty_store(page: str, shown):
    app = shown(page)

    assert not app.error
    assert app.title[0].value
    assert "Idle" in texts(app)


@pytest.mark.slow
def test_every_page_opens_with_finished_failed_and_damaged_runs(shown, store: Store, train: Train):
    train()
    fail(store, train)
    break_spec(store)

    for page in PAGES:
        app = shown(page)

        assert not app.error, page
        assert len(texts(app)) > 100, page


def test_home_starts_a_real_run_and_goes_to_it(shown, store: Store):
    app = shown("home")

    next(button for button in app.button if button.label == "Run the demo (30 s)").click().run()

    assert not app.exception
    run = store.run(app.query_params["run"])
    assert run.spec.teacher == store.run("digits-teacher").id
    assert run.state == "queued"


def test_a_second_click_on_home_starts_another_seed(shown, store: Store):
    app = shown("home")
    next(button for button in app.button if button.label == "Run the demo (30 s)").click().run()
    first = store.run(app.query_params["run"])
    zoo = store.run("digits-student")
    (first.folder / "weights.safetensors").write_bytes(zoo.weights.read_bytes())
    (first.folder / "result.json").write_text(json.dumps({**(zoo.result or {}), "id": first.id}))

    app = shown("home")
    next(button for button in app.button if button.label == "Run the demo (30 s)").click().run()

    assert store.run(app.query_params["run"]).spec.seed == first.spec.seed + 1


def test_data_shows_counts_and_says_what_was_held_out(shown):
    app = shown("data", data="digits")

    assert [metric.value for metric in app.metric][:2] == ["1,797", "10"]
    assert "never used for selection" in texts(app)


def test_data_says_in_a_sentence_that_a_path_does_not_exist(shown):
    app = shown("data", data="/no/such/folder")

    assert "path does not exist" in app.error[0].value


@pytest.mark.slow
def test_distil_submits_what_the_form_says(shown, store: Store):
    app = shown("distil")
    app.selectbox(key="distil/teacher").set_value("none").run()
    app.number_input(key="spec.epochs").set_value(2)
    app.selectbox(key="spec.optimizer.kind").set_value("lookahead").run()
    app.number_input(key="spec.optimizer.lookahead.k").set_value(7).run()
    app.selectbox(key="spec.optimizer.lookahead.inner.kind").set_value("sam").run()
    app.selectbox(key="spec.optimizer.lookahead.inner.sam.inner.kind").set_value("muon").run()

    next(button for button in app.button if button.label == "Start training").click().run()

    assert not app.exception
    (run,) = store.runs()
    assert (run.spec.epochs, run.spec.optimizer.kind, run.spec.optimizer.k) == (2, "lookahead", 7)
    assert (run.spec.optimizer.inner.kind, run.spec.optimizer.inner.inner.kind) == ("sam", "muon")
    assert run.spec.loss.kind == "cross_entropy"


def test_distil_begins_with_the_best_teacher_there_is(shown, store: Store):
    app = shown("distil")

    assert app.selectbox(key="distil/teacher").value == store.run("digits-teacher").id
    assert any("Parameters" in metric.label for metric in app.metric), "the cost is shown before training"


@pytest.mark.slow
def test_distil_with_a_teacher_offers_every_loss_that_asks_it(shown, monkeypatch: pytest.MonkeyPatch):
    # Whether Python files are offered depends on the address of the server, which a test has not.
    monkeypatch.setattr(forms, "offered", lambda family: [one for one in family if not issubclass(one, Code)])
    app = shown("distil", teacher="digits-teacher")
    menu = app.selectbox(key="spec.loss.kind")
    kinds = [
        str(lesson.model_fields["kind"].default) for lesson in loss_kinds(taught=True) if not issubclass(lesson, Code)
    ]
    assert len(menu.options) == len(kinds) == 10

    for kind in kinds:
        app.selectbox(key="spec.loss.kind").set_value(kind).run()

        assert not app.exception, kind
        assert not app.error, kind
        written = app.code[0].value
        assert f"kind: {kind}" in written or kind == "kd", "the default stands for itself"
        assert ("kind: mixup" in written) == (kind == "function_matching")


@pytest.mark.slow
def test_distil_says_the_snippets_warning_and_which_layers_there_are(shown):
    app = shown("distil", teacher="digits-teacher")
    app.selectbox(key="spec.loss.kind").set_value("scaled_mse").run()
    assert "gradient falls with T²" in texts(app)

    app.selectbox(key="spec.loss.kind").set_value("fitnets").run()
    app.text_input(key="spec.loss.fitnets.student_layer").set_value("99").run()

    assert "no comparable layer at that path" in app.error[0].value
    assert "10 (" in app.error[0].value


@pytest.mark.slow
def test_distil_adds_and_removes_augmentations(shown):
    app = shown("distil")
    app.button(key="spec.augment.add.shift").click().run()
    app.button(key="spec.augment.add.rotate").click().run()
    assert "kind: rotate" in app.code[0].value

    next(button for button in app.button if button.label == "Remove").click().run()

    assert "kind: shift" not in app.code[0].value
    assert "kind: rotate" in app.code[0].value


@pytest.mark.slow
def test_distil_takes_over_the_spec_of_a_run(shown, train: Train):
    run = train(augment=[{"kind": "shift", "pixels": 3}], seed=11)

    app = shown("distil", like=run.id)

    assert "pixels: 3" in app.code[0].value
    assert "seed: 11" in app.code[0].value


@pytest.mark.slow
def test_distil_tells_that_an_equal_run_is_finished(shown, store: Store, train: Train):
    run = train()
    app = shown("distil", like=run.id)

    next(button for button in app.button if button.label == "Start training").click().run()

    assert "already exists" in texts(app)
    assert len(store.runs()) == 1


def test_a_finished_run_shows_scores_with_intervals_and_asks_for_evidence(shown, train: Train):
    run = train()

    app = shown("runs", run=run.id)

    assert app.metric[0].label == "Test accuracy"
    assert "95% CI" in texts(app)
    assert "Single seed" in texts(app)


def test_a_failed_run_says_why(shown, store: Store, train: Train):
    run = fail(store, train)

    app = shown("runs", run=run.id)

    assert "The loss became" in app.error[0].value


def test_a_damaged_run_says_so_and_can_be_deleted(shown, store: Store):
    run = break_spec(store)
    app = shown("runs", run=run.name)
    assert "damaged" in app.error[0].value

    next(button for button in app.button if button.label == "Move to trash").click().run()

    assert not run.folder.exists()


@pytest.mark.slow
def test_no_damaged_file_breaks_the_table(shown, store: Store, train: Train):
    whole = train()
    contents = ("", "{}", "[]", '{"spec": {}}', '{"spec": {"data": 1}}', "\x00")
    cases = [(name, content) for name in ("spec.json", "state.json", "result.json") for content in contents]
    for number, (name, content) in enumerate(cases):
        folder = store.root / "runs" / f"{number:016x}"
        shutil.copytree(whole.folder, folder)
        (folder / name).write_text(content)
        if name == "state.json":
            (folder / "result.json").unlink()

    app = shown("runs")

    assert not app.error
    assert any(row.finished and row.id == whole.id for row in run_table.rows(store))
    for number, (name, content) in enumerate(cases):
        assert not shown("runs", run=f"{number:016x}").exception, (name, content)


def test_a_link_to_no_run_says_so(shown):
    app = shown("runs", run="nothere")

    assert "Run not found" in app.error[0].value


def test_a_paused_run_can_be_resumed(shown, store: Store, train: Train):
    app = shown("distil")
    next(button for button in app.button if button.label == "Start training").click().run()
    (run,) = store.runs()
    run.request("pause")

    app = shown("runs", run=run.id)
    next(button for button in app.button if button.label == "Resume").click().run()

    assert run.state == "queued"


def test_the_table_is_filtered_by_words(shown, train: Train):
    train()
    app = shown("runs")

    app.text_input(key="runs/filter").set_value("teacher resnet").run()

    assert next(iter(app.dataframe[0].value["Run"])).startswith("digits-teacher")
    assert len(app.dataframe[0].value) == 1


def test_compare_counts_who_is_right(shown, store: Store):
    app = shown("compare", teacher="digits-teacher", student="digits-student")

    found = {metric.label: metric.value for metric in app.metric}
    four = ("Both correct", "Teacher-only correct", "Student-only correct", "Both wrong")
    assert sum(int(found[name]) for name in four) == 359
    assert "McNemar" in texts(app)


@pytest.mark.slow
def test_opening_pages_is_no_look_at_test(shown, store: Store, train: Train, tmp_path: Path) -> None:
    """Not even where a page computes what it shows: exports in three precisions, comparisons, corrupted images."""
    run = train()
    fingerprint = str(run.spec.data.fingerprint)
    assert store.test_looks(fingerprint) == 1, "the end of the training"
    tabs = ("Overview", "Robustness", "Size and speed")
    for _ in range(2):
        for page in PAGES:
            shown(page)
        shown("export", run=run.id)
        for tab in tabs:
            shown("compare", teacher="digits-student", student=run.id, split="test", tab=tab)
        assert store.test_looks(fingerprint) == 1
        assert "Test set evaluated 1 time;" in texts(shown("data", data="digits"))
    export.export(run, tmp_path / "int8.onnx", store, precision="int8")
    assert store.test_looks(fingerprint) == 2, "an export by a script is one"


@pytest.mark.slow
def test_export_shows_three_precisions_and_says_which_one_loses_or_fails(
    shown, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = panel.bundle

    def ask(run: str, store: Store, precision: str = "fp32") -> ExportReport:
        if precision == "fp16":
            raise WorkFailed("this network cannot be halved", do="export it as fp32")
        found = kept(run, store, "fp32")
        if precision == "int8":
            worse = replace(found.loss.val, loss=0.034, low=0.01, high=0.05, flagged=True)
            found = replace(found, precision="int8", flagged=True, loss=replace(found.loss, val=worse))
        return found

    monkeypatch.setattr(panel, "bundle", ask)
    app = shown("export", run="digits-student")
    table = app.table[0].value
    assert list(table[""]) == ["**fp32**", "fp16", "int8"]
    assert list(table["Size"])[1] == "failed"
    assert table["Acc. drop (val.)"].iloc[2] == ":material/flag: 3.40 (1.00 to 5.00)"
    assert not app.warning
    assert not app.error

    app.selectbox(key="export/precision").set_value("int8").run()
    assert "exceeds 1 percentage point" in app.warning[0].value
    app.selectbox(key="export/precision").set_value("fp16").run()
    assert "cannot be halved" in app.error[0].value


@pytest.mark.slow
def test_export_shows_what_keeps_an_accuracy_limit_or_why_it_cannot_be_kept(shown) -> None:
    app = shown("export", run="digits-student", precision="int8", calibration="mse", **{"max-drop": "0.5"})
    assert "143 validation images cannot show" in app.error[0].value
    app = shown("export", run="digits-student", precision="int8", calibration="mse", **{"max-drop": "6"})
    assert not app.error
    assert "Limit of 6 points met" in app.success[0].value
    assert "layers are computed in float" in texts(app)
    (layers,) = [one.value for one in app.dataframe if "Computed in" in one.value]
    assert len(layers) >= 4
    assert set(layers["Computed in"]) <= {"float", "integers"}


@pytest.mark.slow
def test_a_form_filled_from_a_pruned_run_keeps_its_widths(shown, store: Store, train: Train) -> None:
    run = train(network={"kind": "cnn", "width": 8}, epochs=1)
    pruned = store.create(resolve(store, spec_of(run, store, 0.5, epochs=1)))
    app = shown("distil", like=pruned.id)
    assert not app.exception
    assert "pruned:" in app.code[0].value
    next(one for one in app.checkbox if one.label.startswith("Pruned widths of")).uncheck().run()
    assert "pruned:" not in app.code[0].value


@pytest.mark.slow
def test_a_run_is_pruned_from_its_page(shown, store: Store, train: Train) -> None:
    run = train(network={"kind": "cnn", "width": 8}, epochs=1)
    app = shown("runs", run=run.id)
    next(one for one in app.button if one.label == "Start pruned run").click().run()
    assert not app.error
    (made,) = [one for one in store.runs() if one.id != run.id]
    assert made.spec.start == made.spec.teacher == run.id
    assert made.spec.network.pruned is not None


@pytest.mark.slow
def test_export_explains_that_an_import_is_an_onnx_file_already(shown, store: Store, tmp_path: Path) -> None:
    export.export(store.run("digits-student"), tmp_path / "s.onnx")
    imported = foreign.import_onnx(tmp_path / "s.onnx", DataSpec(source="digits"), store)

    app = shown("export", run=imported.id)

    assert not app.error
    assert "imported as an ONNX file" in texts(app)
    assert not app.table


@pytest.mark.slow
def test_export_proves_the_file(shown, store: Store):
    app = shown("export", run="digits-student")

    assert "Parity check passed: top-1 agreement of ONNX Runtime and PyTorch is 100.00%" in app.success[0].value
    folder = store.root / "exports" / store.run("digits-student").id
    assert json.loads((folder / "parity.json").read_text())["parity"]["ok"]
    assert context.exported(folder.name, "model.onnx") == folder / "model.onnx"


@pytest.mark.parametrize("name", ["spec.json", "weights.safetensors", "../model.onnx", "model.onnx.part"])
def test_only_the_files_of_an_export_are_served(name: str):
    assert context.exported("0123456789abcdef", name) is None


def test_several_seeds_are_told_apart_and_put_together(store: Store, train: Train):
    runs = [train(seed=seed) for seed in (0, 1)]
    other = train(epochs=2)

    rows = run_table.rows(store)
    first = next(row for row in rows if row.id == runs[0].id)

    assert {row.id for row in run_table.siblings(store, first)} == {run.id for run in runs}
    assert other.id not in {row.id for row in run_table.siblings(store, first)}


# --- Augment ----------------------------------------------------------------------------------------------------------


PICTURES = 'class="sa-views"'


def policy_of(app: AppTest) -> list[dict[str, object]]:
    """The policy that the address holds."""
    return json.loads(address(app, "policy") or "[]")


def address(app: AppTest, name: str) -> str:
    found = app.query_params[name]
    return found[-1] if isinstance(found, list) else found


def html_of(app: AppTest) -> str:
    """All HTML that a page shows: pictures are in it."""
    return "\n".join(element.proto.body for element in app.get("html"))


def evaluated(app):
    """The page with the report of label preservation, whose steps a browser would take by itself."""
    next(button for button in app.button if button.label == "Evaluate").click().run()
    for _ in range(600):
        if app.metric:
            return app
        app.run()
    raise AssertionError("the evaluation did not finish")


@pytest.mark.slow
def test_augment_shows_pictures_and_computes_label_preservation_on_demand(shown):
    app = shown("augment", data="digits")
    assert html_of(app).count("<figcaption>") == 8 * 7 + 12
    assert "Epoch 6" in html_of(app)
    assert "exactly these" in texts(app)

    app = shown("augment", data="digits", tab="Label preservation", risk="Label changes")
    assert not app.metric
    assert PICTURES not in html_of(app), "only the open tab is computed"
    evaluated(app)
    assert [metric.label for metric in app.metric] == [
        "Label-change rate",
        "Confidence",
        "Accuracy",
        "Teacher std. dev.",
    ]
    flipped = int(re.search(r"(\d+) of 2,048 augmented images", texts(app)).group(1))
    assert 0 < flipped < 100
    assert html_of(app).count("<figcaption>") == min(12, flipped)
    assert "512 images, 4 augmented versions" in texts(app)
    assert "before the last change" not in texts(app)
    app.slider(key="augment/strength").set_value(0.5).run()
    assert "before the last change" in texts(app)
    assert len(app.metric) == 4, "the report stays until there is another"

    app = shown("augment", data="digits", tab="Export")
    assert "v2.RandomRotation(10" in app.code[1].value
    assert "preview policy.yaml --data digits --to sheet --teacher digits-teacher" in app.code[2].value


@pytest.mark.slow
def test_augment_measures_the_policy_in_a_tab_of_its_own(shown):
    app = shown("augment", data="digits", tab="Ablation")

    assert "Run ablation" in [button.label for button in app.button]
    assert "augment:\n- kind: shift" in "\n".join(code.value for code in app.code)


@pytest.mark.slow
def test_augment_builds_orders_and_shortens_a_policy(shown):
    app = shown("augment", policy='["flip"]')
    app.button(key="policy.augment.add.noise").click().run()
    app.button(key="policy.augment.add.blur").click().run()
    assert [part["kind"] for part in policy_of(app)] == ["flip", "noise", "blur"]

    app.button(key="policy.augment.noise-new0.down").click().run()
    assert [part["kind"] for part in policy_of(app)] == ["flip", "blur", "noise"]
    app.button(key="policy.augment.blur-new1.up").click().run()
    app.button(key="policy.augment.flip-0.remove").click().run()
    app.number_input(key="policy.augment.noise-new0.noise.amount").set_value(0.25).run()

    assert policy_of(app) == [{"kind": "blur"}, {"kind": "noise", "amount": 0.25}]
    assert not app.error


@pytest.mark.slow
def test_augment_link_brings_everything_back(shown):
    policy = [{"kind": "rotate", "degrees": 33.0}, {"kind": "mixup"}]
    link = {"strength": "0.5", "seed": "7", "epoch": "3", "batch": "64", "limit": "0.2", "rows": "5,9"}

    app = shown("augment", policy=json.dumps(policy), teacher="none", **link)

    assert not app.warning
    assert policy_of(app) == policy
    for name in ("strength", "seed", "epoch", "batch", "rows"):
        assert address(app, name) == link[name], name
    assert html_of(app).count("<figcaption>") == 2 * 7 + 12
    assert "Epoch 3" in html_of(app)
    app = shown("augment", policy=json.dumps(policy), teacher="none", tab="Export", **link)
    assert "degrees: 16.5" in app.code[0].value
    app = shown("augment", policy=json.dumps(policy), teacher="none", tab="Label preservation", **link)
    assert "No teacher selected" in texts(app)


@pytest.mark.slow
def test_a_damaged_link_to_augment_gets_a_sentence_and_a_page(shown):
    links = [
        ({"policy": '[{"kind":"flop"}]'}, "no kind 'flop'"),
        ({"policy": "{not json"}, "not in the expected format"),
        ({"policy": '[{"kind":"shift","pixels":900}]'}, "`augment.0.pixels` must be"),
        ({"strength": "9"}, "between 0 and 2"),
        ({"strength": "nan"}, "between 0 and 2"),
        ({"seed": "x"}, "number between"),
        ({"epoch": "0"}, "between 1 and"),
        ({"rows": "3,99999"}, "indices from 0 to 1294"),
        ({"rows": "a"}, "no such images"),
        ({"teacher": "nobody"}, "no such option"),
        ({"limit": "2", "tab": "Label preservation"}, "between 0 and 0.5"),
    ]
    for link, words in links:
        app = shown("augment", **link)

        assert words in "\n".join(warning.value for warning in app.warning), link
        assert not app.error, link
        assert PICTURES in html_of(app) or "tab" in link, link


@pytest.mark.slow
def test_a_part_that_cannot_work_is_one_sentence(shown):
    cases = [
        ([{"kind": "shift"}, {"kind": "colour", "hue": 0.2}], "`hue` of transform 2 needs"),
        ([{"kind": "crop", "padding": 8}], "Transform 1 crops beyond the image"),
        ([{"kind": "equalize"}], "at least 256 pixels"),
    ]
    for policy, words in cases:
        app = shown("augment", policy=json.dumps(policy))

        assert len(app.error) == 1
        assert words in app.error[0].value
        app.button(key=f"policy.augment.{policy[-1]['kind']}-{len(policy) - 1}.remove").click().run()
        assert not app.error


@pytest.mark.slow
def test_mixing_before_another_part_is_one_sentence(shown):
    app = shown("augment", policy='["mixup"]')

    app.button(key="policy.augment.add.flip").click().run()

    assert [error.value for error in app.error] == ["`mixup` mixes augmented images: put it last."]
    app.button(key="policy.augment.mixup-0.down").click().run()
    assert not app.error


def test_an_empty_policy_is_one_sentence(shown):
    app = shown("augment", policy="")

    assert not app.error
    assert any("The policy is empty" in info.value for info in app.info)
    assert PICTURES not in html_of(app)


@pytest.mark.slow
def test_the_suggested_strength_is_taken_over(shown):
    app = evaluated(shown("augment", policy='[{"kind":"rotate","degrees":45}]', limit="0.05", tab="Label preservation"))

    button = next(button for button in app.button if button.label.startswith("Use strength"))
    button.click().run()

    assert address(app, "strength") == button.label.removeprefix("Use strength ")
    evaluated(app)
    assert not any(button.label.startswith("Use strength") for button in app.button)


@pytest.mark.slow
def test_policies_are_saved_and_loaded_here_and_on_distil(shown, store: Store):
    app = shown("augment", policy='[{"kind":"shift","pixels":3}]')
    app.text_input(key="policy.saved.as").set_value("far-moves").run()
    app.button(key="policy.saved.save").click().run()
    assert "Saved as far-moves" in app.success[0].value
    assert [part.pixels for part in policies.load(store, "far-moves")] == [3]

    app.button(key="policy.augment.add.flip").click().run()
    app.button(key="policy.saved.save").click().run()
    assert "policy with that name exists" in app.error[0].value.lower()
    app.text_input(key="policy.saved.as").set_value("Not a name").run()
    app.button(key="policy.saved.save").click().run()
    assert "3 to 48" in app.error[0].value
    app.button(key="policy.saved.load").click().run()
    assert policy_of(app) == [{"kind": "shift", "pixels": 3}]

    app = shown("distil")
    app.button(key="spec.saved.load").click().run()
    assert "pixels: 3" in app.code[0].value

    app = shown("augment")
    app.button(key="policy.saved.delete").click().run()
    assert policies.names(store) == []


@pytest.mark.slow
def test_distil_takes_over_what_augment_sends(shown):
    app = shown("distil", policy='[{"kind":"rotate","degrees":20}]', seed="5", batch="64")

    for words in ("degrees: 20", "seed: 5", "batch: 64"):
        assert words in app.code[0].value
    assert "policy" not in app.query_params

    assert "Invalid link parameter" in shown("distil", policy='["flop"]').warning[0].value


@pytest.mark.slow
def test_an_image_of_ones_own_is_shown_with_what_the_teacher_says(shown, tmp_path):
    from PIL import Image

    app = shown("augment", policy='["flip"]')
    app.segmented_control(key="mine").set_value("Upload").run()
    assert any("No image yet" in info.value for info in app.info)
    file = io.BytesIO()
    Image.new("RGB", (40, 30), "white").save(file, "PNG")

    app.file_uploader[0].upload("mine.png", file.getvalue(), "image/png").run()

    assert "uploaded image" in html_of(app)
    assert not app.error
    app.file_uploader[0].upload("bad.png", b"no image", "image/png").run()
    assert "not an image that can be read" in app.error[0].value


@pytest.mark.slow
def test_distil_asks_the_teacher_first_and_starts_with_controls(shown, store: Store) -> None:
    app = shown("distil", data="digits")
    assert "Suggested T" not in [metric.label for metric in app.metric]
    assert "Also train baselines" in [toggle.label for toggle in app.toggle]
    next(toggle for toggle in app.toggle if toggle.label == "Also train baselines").set_value(True).run()
    next(button for button in app.button if button.label == "Start training").click().run()
    assert not app.exception
    specs = [run.spec for run in store.runs()]
    assert sorted((bool(spec.teacher), spec.shuffled) for spec in specs) == [
        (False, False),
        (True, False),
        (True, True),
    ]
    assert len({spec.seed for spec in specs}) == 1
    assert all(specs[0].can_lockstep_with(spec) for spec in specs), "they are trained in lockstep"


@pytest.mark.slow
def test_without_a_teacher_there_is_nothing_to_control(shown) -> None:
    app = shown("distil", data="digits", teacher="none")
    assert "Also train baselines" not in [toggle.label for toggle in app.toggle]
    assert "Additional teachers" not in [menu.label for menu in app.multiselect]


@pytest.mark.slow
def test_a_run_is_measured_against_its_controls(shown, store: Store, train: Train) -> None:
    teacher = train()
    run = train(network={"kind": "cnn", "width": 3, "depth": 2}, teacher=teacher.id)
    app = shown("runs", run=run.id, tab="Ablation")
    assert "with and without the teacher" in texts(app)
    next(one for one in app.button_group if one.key == "runs/control").set_value("shuffled").run()
    assert f"with and without {CONTROLS['shuffled'].name}" in texts(app)
    assert "Run missing seeds" in [button.label for button in app.button]


@pytest.mark.slow
def test_a_run_shows_its_classes_and_what_its_balance_is_worth(shown, store: Store, train: Train) -> None:
    run = train(balance="logit_adjustment", select="macro", epochs=1)
    app = shown("runs", run=run.id, tab="Per class")
    result = run.result or {}
    assert f"{result['test']['macro_recall']:.2%}" in [
        metric.value for metric in app.metric if metric.label == "Macro recall"
    ]
    assert "Best epoch by validation macro recall" in texts(app)
    (table,) = [one.value for one in app.dataframe if "Precision" in one.value]
    assert list(table["Class"]) == result["classes"]
    assert list(table["Recall"]) == pytest.approx(list(result["test"]["recall"].values()))
    assert "with and without the class balance" in texts(shown("runs", run=run.id, tab="Ablation"))
    form = shown("distil", like=run.id)
    assert [menu.value for menu in form.selectbox if menu.label == "Class balance"] == ["logit_adjustment"]
    assert "Unlabeled images" in [field.label for field in form.text_input]


@pytest.mark.slow
def test_distil_takes_over_every_teacher_of_a_run(shown, store: Store, train: Train) -> None:
    several = (train().id, train(seed=1).id)
    run = train(network={"kind": "cnn", "width": 3, "depth": 2}, teacher=several)
    app = shown("distil", like=run.id)
    assert not app.exception
    next(button for button in app.button if button.label == "Start training").click().run()
    assert "A run with this spec already exists" in texts(app)


def test_controls_have_the_precision_of_their_run(
    shown, store: Store, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `auto` means is measured with the teacher or without: a control must not choose another than its run."""
    calls = []

    def ask(request: Submit, _: str) -> Submitted:
        calls.append(request.spec)
        return Submitted(run.id, "queued", known=False)

    run = train(teacher="digits-teacher", precision="bf16")
    monkeypatch.setattr(context, "call", ask)
    monkeypatch.setattr(context, "store", lambda: store)
    teacher_check.start(run.spec.model_copy(update={"precision": "auto"}), controls=True)
    assert [spec.precision for spec in calls] == ["auto", "bf16", "bf16"]


def test_the_teacher_that_is_offered_is_chosen_on_validation() -> None:
    """One that is better on test only, that is a student itself, or that was not evaluated on the images, is not."""

    def row(name: str, **facts: float | str) -> run_table.RunRow:
        return run_table.RunRow(name, name, "finished", name, 0.0, **facts)  # type: ignore[arg-type]

    lucky = row("lucky", accuracy=0.99, here=0.95)
    good = row("good", accuracy=0.97, here=0.98)
    large = row("large", accuracy=0.97, here=0.98, params=9)
    student = row("student", accuracy=1.0, here=1.0, teacher="good")
    foreign = row("foreign", accuracy=1.0, validation=1.0)
    assert run_table.default_teacher([lucky, good, student, foreign]) == "good"
    assert run_table.default_teacher([lucky, good, large]) == "large"
    assert run_table.default_teacher([student, foreign]) is None
    assert run_table.default_teacher([]) is None


@pytest.mark.slow
def test_an_optimizer_that_needs_its_own_schedule_leaves_no_menu_for_one(shown) -> None:
    app = shown("distil", data="digits")
    assert app.selectbox(key="spec.schedule.kind").value == "cosine"
    app.selectbox(key="spec.optimizer.kind").select("schedule_free").run()
    assert not app.exception
    assert not app.error
    assert "spec.schedule.kind" not in [menu.key for menu in app.selectbox]
    assert "uses a constant learning-rate schedule" in texts(app)
