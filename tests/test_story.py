"""The story from a dataset to a verified file, by the three doors, on real images."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import command, program

import smallalign_core as sa
from smallalign_core.cli._main import main
from smallalign_core.runs.store import Store

Door = Callable[..., subprocess.CompletedProcess[str]]
SPEC = "data: digits\nnetwork: {kind: cnn, width: 6, depth: 2}\nepochs: 4\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("story")
    (folder / "spec.yaml").write_text(SPEC)
    return folder


@pytest.fixture(scope="module")
def shop(place: Path) -> Store:
    return Store(place / "models")


def says(*arguments: object, store: Store, code: int = 0, run: Door = program) -> dict[str, object]:
    done = run(*arguments, "--json", store=store)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_from_a_dataset_to_a_verified_file(place: Path, shop: Store) -> None:
    names = says("datasets", store=shop)["datasets"]
    assert {"digits", "fashion-mnist", "mnist", "cifar10", "cifar100"} <= {entry["name"] for entry in names}  # type: ignore[attr-defined]

    teacher = says("train", place / "spec.yaml", store=shop)
    assert {"id", "state", "test", "val", "params", "weights_sha256", "images_per_second"} <= teacher.keys()

    queued = says("submit", place / "spec.yaml", "--set", f"teacher={teacher['id']}", "--set", "seed=1", store=shop)
    assert queued["state"] == "queued"
    assert says("worker", "--once", store=shop)["taken"] == 1
    student = says("runs", "show", queued["id"], store=shop)
    assert student["state"] == "finished"

    pair = says("compare", teacher["id"], queued["id"], store=shop)
    assert {"agreement", "both_right", "teacher_only", "student_only", "both_wrong", "mcnemar_p", "kl"} <= pair.keys()
    scores = says("evaluate", queued["id"], store=shop)
    assert scores["accuracy"] == student["result"]["test"]["accuracy"]  # type: ignore[index]

    says("export", queued["id"], "--to", place / "student.onnx", store=shop)
    proof = says("verify", place / "student.onnx", store=shop)
    assert {"images", "max_abs_diff", "top1_agreement", "accuracy", "ok"} <= proof.keys()
    assert proof["ok"] is True

    again = says("submit", place / "spec.yaml", store=shop)
    assert again == {"id": teacher["id"], "state": "finished"}
    assert len(says("runs", store=shop)["runs"]) >= 4  # type: ignore[arg-type]  # two here, two in the zoo

    kept = says("runs", "publish", queued["id"], "--as", "my-student", store=shop)
    assert says("compare", "my-student", queued["id"], store=shop)["agreement"] == 1.0
    assert "test accuracy" in (Path(str(kept["folder"])) / "card.md").read_text()


def test_the_python_door(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(SPEC)
    run = sa.fit(tmp_path / "spec.yaml", store=tmp_path / "models", device="cpu")
    assert (
        sa.fit(
            {"data": "digits", "network": {"kind": "cnn", "width": 6, "depth": 2}, "epochs": 4},
            store=tmp_path / "models",
        ).id
        == run.id
    )
    assert len(sa.load("digits", store=tmp_path / "models").classes) == 10


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "nowhere.yaml"], ["no such file"]),
        (["train", "{spec}", "--set", "data=nowhere"], ["nowhere", "digits"]),
        (["train", "{spec}", "--set", "optimzer.lr=1"], ["optimzer", "optimizer"]),
        (["train", "{spec}", "--set", "optimizer.lr=-1"], ["optimizer.lr", "-1"]),
        (["train", "{spec}", "--set", "teacher=nobody"], ["nobody"]),
        (["train", "{spec}", "--device", "tpu"], ["tpu", "cpu"]),
        (["train", "{spec}", "--set", "network=torchvision:resnet19"], ["resnet19", "resnet18"]),
        (["train", "{spec}", "--set", "data=mnist"], ["mnist", "not cached"]),
        (
            ["train", "{spec}", "--set", "network={kind: torchvision, name: resnet18, pretrained: true}"],
            ["resnet18", "not cached"],
        ),
        (["runs", "show", "nobody"], ["nobody"]),
        (["compare", "digits-teacher", "nobody"], ["nobody"]),
        (["compare", "digits-teacher", "digits-student", "--split", "train"], ["train"]),
        (["evaluate", "digits-teacher", "--data", "nowhere"], ["nowhere"]),
        (["export", "digits-teacher", "--to", "/nowhere/x.onnx"], ["/nowhere/x.onnx"]),
        (["verify", "nothing.onnx"], ["nothing.onnx"]),
        (["verify", "{spec}"], ["neither ONNX"]),
        (["fly"], ["fly"]),
        (["train"], ["spec"]),
        (["export", "digits-teacher"], ["--to"]),
    ],
    ids=lambda value: " ".join(value)[:50] if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_code_2(
    arguments: list[str], words: list[str], place: Path, shop: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path.name for path in shop.root.glob("runs/*"))
    given = [word.replace("{spec}", str(place / "spec.yaml")) for word in arguments]
    code = main(given if arguments == ["fly"] else [*given, "--store", str(shop.root)])
    out, err = capsys.readouterr()
    message = "\n".join(line for line in err.splitlines() if not line.startswith(("loading torch", "Downloading:")))
    assert code == 2, err
    assert len(message.splitlines()) == 1, message
    for word in words:
        assert word in message
    assert out == ""
    assert sorted(path.name for path in shop.root.glob("runs/*")) == before


def test_a_teacher_for_other_classes(place: Path, shop: Store) -> None:
    from test_data import folder_of

    cats = folder_of(place / "cats", "ab", 20, size=(8, 8), mode="L")
    done = command("train", place / "spec.yaml", "--set", f"data={cats}", "--set", "teacher=digits-teacher", store=shop)
    assert done.returncode == 2
    assert "classes do not match" in done.stderr


def test_doctor(shop: Store) -> None:
    assert says("doctor", store=shop, run=command)["ok"] is True


def test_doctor_notices_damaged_weights(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(SPEC)
    run = sa.fit(tmp_path / "spec.yaml", store=tmp_path / "models", device="cpu")
    content = bytearray(run.weights.read_bytes())
    content[-1] ^= 1
    run.weights.write_bytes(content)
    found = says("doctor", store=Store(tmp_path / "models"), code=1, run=command)
    assert any("damaged" in check["found"] for check in found["checks"])  # type: ignore[attr-defined]


@pytest.mark.slow
def test_help_names_every_verb() -> None:
    done = program("--help")
    for verb in (
        "datasets",
        "inspect",
        "train",
        "submit",
        "worker",
        "runs",
        "evaluate",
        "compare",
        "export",
        "verify",
        "doctor",
    ):
        assert verb in done.stdout
