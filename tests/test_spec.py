"""Specs: written once, checked in words, the same in every spelling."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import processes
import pytest
import yaml
from hypothesis import given, strategies as st

from smallalign_core.cli._main import main
from smallalign_core.errors import BadSpec
from smallalign_core.spec import Code, DataSpec, RunSpec, digest, parse, parse_policy, read, set_field, to_yaml
from smallalign_core.spec.parts import FAMILIES, choices, members
from smallalign_core.studies import optimizers

MINIMAL: dict[str, Any] = {"data": "digits", "network": "cnn"}
PINNED = json.loads((Path(__file__).parent / "fixtures" / "digests.json").read_text())


def test_digest_survives_spelling() -> None:
    spelled = {
        "network": {"depth": 3, "kind": "cnn", "width": 16.0},
        "optimizer": {"weight_decay": 1e-2, "lr": 2e-3, "kind": "adamw"},
        "data": {"source": "digits"},
        "schedule": {"kind": "cosine", "warmup": 0.05},
    }
    assert digest(parse(spelled)) == digest(parse(MINIMAL))
    one, one_point = ({**MINIMAL, "loss": {"kind": "kd", "temperature": t}, "teacher": "t"} for t in (4, 4.0))
    assert digest(parse(one)) == digest(parse(one_point))


def test_digest_is_pinned() -> None:
    """Whoever changes this has renamed every run of every user: raise LOOP instead, if training changed its meaning."""
    assert digest(parse(MINIMAL)) == "449c07e4c563f2ae"


def test_digest_survives_an_added_field() -> None:
    class Grown(RunSpec):
        ema: float = 0.0

    assert digest(Grown.model_validate(MINIMAL)) == digest(parse(MINIMAL))
    assert digest(Grown.model_validate({**MINIMAL, "ema": 0.5})) != digest(parse(MINIMAL))


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"epochs": 21}, {"augment": ["flip"]}, {"network": "mlp"}, {"views": 8}, {"precision": "bf16"}],
)
def test_digest_changes_with_what_decides_the_weights(change: dict[str, Any]) -> None:
    assert digest(parse({**MINIMAL, **change})) != digest(parse(MINIMAL))


def test_a_known_fingerprint_stands_for_the_place() -> None:
    here, there = (parse({**MINIMAL, "data": {"source": s, "fingerprint": "0" * 16}}) for s in ("/a", "/b"))
    assert digest(here) == digest(there)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"optimizer": {"kind": "sgd", "lr": float("nan")}}, ["optimizer.lr", "finite", "nan"]),
        ({"optimizer": {"kind": "sgd", "lr": -1}}, ["optimizer.lr", "greater than 0", "-1"]),
        ({"optimzer": "sgd"}, ["optimzer", "did you mean `optimizer`"]),
        ({"network": {"kind": "cnn", "widht": 4}}, ["network.widht", "did you mean `width`"]),
        (
            {"optimizer": {"kind": "lookahead", "inner": {"kind": "adamw", "lr": "fast"}}},
            ["optimizer.inner.lr", "fast"],
        ),
        ({"network": "cnx"}, ["network", "'cnx'", "'mlp', 'cnn'"]),
        ({"augment": [{"kind": "shift", "pixls": 2}]}, ["augment.0.pixls", "did you mean `pixels`"]),
        ({"loss": "kd"}, ["'kd'", "needs a teacher"]),
        ({"teacher": "t", "loss": "cross_entropy"}, ["does not use a teacher"]),
        ({"epochs": -1}, ["epochs", "greater than or equal to 0", "-1"]),
        ({"epochs": 0}, ["`epochs` 0", "give `weights` or `start`"]),
        ({"epochs": 1.5}, ["epochs", "1.5"]),
        ({"data": {"source": "digits", "validation": 0.9}}, ["data.validation", "0.5", "0.9"]),
        ({"start": ""}, ["`start` needs at least 1 character (given: '')"]),
        ({"data": {"source": "x" * 1001}}, ["`data.source` takes at most 1,000 characters (given: "]),
        ({"network": {"kind": "timm", "name": "a b"}}, ["`network.name` must match ^", "(given: 'a b')"]),
        ({"network": {"kind": "timm", "name": "resnet18", "weights": ""}}, ["`network.weights` needs at least 1"]),
    ],
)
def test_errors_name_field_given_and_allowed(change: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(BadSpec) as caught:
        parse({**MINIMAL, **change})
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "String should" not in str(caught.value)


def test_missing_fields_are_named() -> None:
    with pytest.raises(BadSpec, match="`network` is missing"):
        parse({"data": "digits"})


def test_yaml_and_json_both_ways(tmp_path: Path) -> None:
    spec = parse(
        {**MINIMAL, "teacher": "t", "augment": ["flip", {"kind": "shift", "pixels": 3}], "optimizer": "lookahead"}
    )
    (tmp_path / "a.yaml").write_text(to_yaml(spec))
    (tmp_path / "a.json").write_text(json.dumps(spec.model_dump(mode="json")))
    assert read(tmp_path / "a.yaml") == spec == read(tmp_path / "a.json")


def test_overrides(tmp_path: Path) -> None:
    file = tmp_path / "spec.yaml"
    file.write_text("data: digits\nnetwork: cnn\naugment: [flip]\n")
    spec = read(file, ["network.width=8", "data.size=12", "augment.0.probability=0.25", "optimizer.lr=1e-2", "seed=7"])
    assert (spec.network.width, spec.data.size, spec.augment[0].probability) == (8, 12, 0.25)  # type: ignore[union-attr]
    assert (spec.optimizer.lr, spec.seed) == (0.01, 7)  # type: ignore[union-attr]


@pytest.mark.parametrize("override", ["epochs", "=3", "epochs.deep=1", "augment.5.pixels=1"])
def test_bad_overrides_are_refused(override: str) -> None:
    with pytest.raises(BadSpec):
        parse(set_field({**MINIMAL, "epochs": 3, "augment": ["flip"]}, override))


@pytest.mark.parametrize("content", ["", "- a\n- b", "data: [", "just text", "\x00"])
def test_files_that_are_no_specs(content: str, tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(content)
    with pytest.raises(BadSpec):
        read(tmp_path / "spec.yaml")
    with pytest.raises(BadSpec, match=r"no such file"):
        read(tmp_path / "nothing.yaml")


def test_every_knob_has_help_and_every_part_a_first_line() -> None:
    parts = [DataSpec, RunSpec, *(member for family in FAMILIES for member in members(family))]
    assert len(parts) > 15
    for part in parts:
        assert part.__doc__, part
        for name, field in part.model_fields.items():
            assert name == "kind" or field.description, f"{part.__name__}.{name} has no help"


@given(family=st.sampled_from(FAMILIES), index=st.integers(0, 39))
def test_every_part_builds_from_its_kind_and_round_trips(family: Any, index: int) -> None:
    parts = members(family)
    part = parts[index % len(parts)]
    required = {"name": "resnet18"} if "name" in part.model_fields else {}
    if issubclass(part, Code):
        required = {"file": "own.py"}
    built = part.model_validate(required)
    assert built.model_dump()["kind"] in choices(family)
    assert part.model_validate(yaml.safe_load(yaml.safe_dump(built.model_dump(mode="json")))) == built


def test_importing_the_library_imports_no_torch() -> None:
    code = (
        "import sys, smallalign_core, smallalign_core.spec, smallalign_core.runs.store; print('torch' in sys.modules)"
    )
    assert processes.run(processes.python("-c", code)).stdout.strip() == "False"


def test_several_teachers_are_written_and_read_back() -> None:
    several = parse({**MINIMAL, "teacher": ["a", "b"]})
    assert several.teachers == ("a", "b")
    assert parse(yaml.safe_load(to_yaml(several))) == several
    assert digest(several) != digest(parse({**MINIMAL, "teacher": "a"}))


def test_a_policy_with_one_wrong_part_is_one_finding() -> None:
    with pytest.raises(BadSpec) as refused:
        parse_policy([{"kind": "wobble"}])
    assert "no kind 'wobble'" in str(refused.value)
    assert "at least 1 item" not in str(refused.value)


@pytest.mark.parametrize("given", [[], "", 5, [1, 2], {"x": 1}, ["a", ""], ["a"] * 9])
def test_what_is_no_teacher_is_refused_in_one_sentence(given: object) -> None:
    with pytest.raises(BadSpec) as told:
        parse({**MINIMAL, "teacher": given})
    assert str(told.value).startswith("`teacher` is the name of a run, or a list of up to 8 of them (given: ")


def test_a_list_of_one_teacher_is_that_teacher() -> None:
    assert parse({**MINIMAL, "teacher": ["a"]}) == parse({**MINIMAL, "teacher": "a"})


def test_a_field_below_a_short_name_of_a_network_can_be_set() -> None:
    written = set_field({**MINIMAL, "network": "timm:resnet18"}, "network.size=96")
    assert parse(written) == parse({**MINIMAL, "network": {"kind": "timm", "name": "resnet18", "size": 96}})


@pytest.mark.parametrize(
    "words",
    [
        ["preflight", "digits-teacher", "--data", ""],
        ["evaluate", "digits-teacher", "--data", ""],
        ["import", "theirs.onnx", "--data", ""],
        ["preview", "{policy}", "--data", "", "--to", "{policy}-sheet"],
        ["ablate", "spec.yaml"],
        ["convert", "nothing.pth", "--to", "nothing.safetensors", "--json"],
    ],
)
def test_bad_input_is_one_line(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "policy.yaml").write_text("[{kind: shift, pixels: 1}]")
    filled = [word.format(policy=tmp_path / "policy.yaml") for word in words]
    assert main([*filled, "--store", str(tmp_path / "models")]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert len(told.err.splitlines()) == 1
    assert "option: --store" not in told.err


@pytest.mark.parametrize(
    ("given", "teachers"),
    [
        ("12345678", ("12345678",)),
        ("[a, 0042]", ("a", "0042")),
        ("null", ()),
        ("", ()),
        ("models/zoo/x y", ("models/zoo/x y",)),
    ],
)
def test_teachers_are_set_by_name_list_or_null(given: str, teachers: tuple[str, ...]) -> None:
    written = set_field({**MINIMAL, "teacher": "old"}, f"teacher={given}")
    assert parse(written).teachers == teachers


@pytest.mark.parametrize("pinned", PINNED["runs"], ids=lambda one: one["digest"])
def test_digests_of_every_family_are_pinned(pinned: dict[str, Any]) -> None:
    """Stored runs are found by these: facts of a class (class variables) may change, fields and defaults may not."""
    assert digest(parse(pinned["spec"])) == pinned["digest"]


@pytest.mark.parametrize("pinned", PINNED["optimizer_studies"], ids=lambda one: one["digest"])
def test_digests_of_optimizer_studies_are_pinned(pinned: dict[str, Any]) -> None:
    """With what a study fills in by itself: the optimizers to use as they are."""
    assert optimizers.study_id(optimizers.parse_study(pinned["spec"])) == pinned["digest"]
