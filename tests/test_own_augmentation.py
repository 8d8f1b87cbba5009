"""A user's own transform: what it is given, exact views, who may run it, and what is said where it is wrong."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import USER_AUGMENT, Train
from test_views import pictures
from torchvision.transforms import v2

from smallalign_core.augment import Views, scaled
from smallalign_core.cli._main import main
from smallalign_core.errors import BadInput, BadModel, BadSpec, Refused, SmallAlignError
from smallalign_core.runs.store import Store
from smallalign_core.service import handlers
from smallalign_core.service.requests import AugmentBatch, AugmentImages, CheckLabels, WritePolicy
from smallalign_core.service.users import Role, User
from smallalign_core.spec import DataSpec, digest, parse, parse_policy, policy_yaml
from smallalign_core.system import usercode
from smallalign_core.training import contracts
from smallalign_core.training.resolve import resolve

SMALL: dict[str, Any] = {"data": {"source": "digits", "images": 200}, "network": "mlp", "epochs": 2, "batch": 50}
TORCHVISION = "from torchvision.transforms import v2\ndef make(degrees): return v2.RandomRotation(degrees)\n"


@pytest.fixture(autouse=True)
def list_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test begins with no file allowed and none imported."""
    monkeypatch.setenv(usercode.TRUSTED, str(tmp_path / "trusted"))
    monkeypatch.setattr(usercode, "_ALLOWED", set())
    monkeypatch.setattr(usercode, "_MODULES", {})


def own(file: Path, **fields: Any) -> dict[str, Any]:
    return {"kind": "python", "file": str(file), **fields}


def wrote(tmp_path: Path, text: str) -> Path:
    """A file that may run."""
    file = tmp_path / "own.py"
    file.write_text(text)
    usercode.trust_here(usercode.read(file)[1])
    return file


def test_a_transform_gets_uint8_and_the_random_numbers_of_its_image(tmp_path: Path) -> None:
    """Of torchvision, against torchvision with the seed of each image."""
    images = pictures(12, (3, 16, 16))
    views = Views(images, parse_policy([own(wrote(tmp_path, TORCHVISION), **{"with": "degrees=40"})]), batch=12, seed=5)
    rows, view = np.arange(12), np.full(12, 3)
    found = views.augmented(rows, view)
    draws = views._uniform(3, 0, rows)[:, 1]
    for place in rows:
        torch.manual_seed(int(draws[place] * 2**53))
        expected = v2.RandomRotation(40)(torch.from_numpy(images.images[place]))
        assert torch.equal(found[place], expected)


def test_global_random_numbers_are_as_before(tmp_path: Path) -> None:
    text = "import random, numpy, torch\ndef make():\n"
    text += "    return lambda image: image * (random.random() + numpy.random.rand() + float(torch.rand(()))) / 3\n"
    views = Views(pictures(8, (1, 8, 8)), parse_policy([own(wrote(tmp_path, text))]), batch=8, seed=0)

    def following() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    def seeded() -> None:
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)

    seeded()
    expected = following()
    seeded()
    first = views(0).images
    assert following() == expected
    assert torch.equal(views(0).images, first)  # not of what was drawn in between


def test_strength_goes_to_the_function_or_into_the_probability(tmp_path: Path) -> None:
    images, rows = pictures(400, (1, 4, 4)), np.arange(400)
    text = "def make(strength): return lambda image: image * 0 + 100 * strength\n"
    policy = scaled(parse_policy([own(wrote(tmp_path, text))]), 0.5)
    assert (Views(images, policy, batch=4, seed=0).augmented(rows, rows * 0) == 50).all()
    policy = scaled(parse_policy([own(wrote(tmp_path, "def make(): return lambda image: image * 0 + 7\n"))]), 0.25)
    changed = (Views(images, policy, batch=4, seed=0).augmented(rows, rows * 0) == 7).flatten(1).all(1)
    assert 0.25 - 5 * 0.0217 < changed.float().mean() < 0.25 + 5 * 0.0217  # five standard errors of 400


def test_labels_of_changed_images_are_left_out(tmp_path: Path) -> None:
    file = wrote(tmp_path, "def make(): return lambda image: 255 - image\n")
    policy = parse_policy([own(file, probability=0.5, label_preserving=False)])
    views = Views(pictures(40, (1, 8, 8)), policy, batch=16, seed=2)
    original = Views(pictures(40, (1, 8, 8)), (), batch=16, seed=2)
    hit = 0
    for step in range(4):
        batch, plain = views(step), original(step)
        changed = (batch.images != plain.images).flatten(1).any(1)
        assert torch.equal(batch.labels, torch.where(changed, -1, plain.labels))
        hit += int(changed.sum())
    assert 0 < hit < 64
    mixed = Views(pictures(40, (1, 8, 8)), (*policy, *parse_policy(["mixup"])), batch=16, seed=2)(0)
    assert (mixed.labels.sum(1) < 1 - 1e-6).any()
    base = {**SMALL, "augment": [own(file, label_preserving=False)]}
    with pytest.raises(BadSpec, match="teacher's targets"):
        parse(base)
    with pytest.raises(BadSpec, match="dkd"):
        parse({**base, "teacher": "digits-teacher", "loss": "dkd"})
    parse({**base, "teacher": "digits-teacher"})


def resolved_id(store: Store, file: Path, **fields: Any) -> str:
    return digest(resolve(store, parse({**SMALL, "augment": [own(file, **fields)]})))


def test_an_edited_file_is_another_run_and_a_moved_one_is_not(store: Store, tmp_path: Path) -> None:
    file = Path(shutil.copy(USER_AUGMENT, tmp_path / "aug.py"))
    first = resolved_id(store, file)
    assert resolved_id(store, Path(shutil.copy(file, tmp_path / "other.py"))) == first
    assert resolved_id(store, file, **{"with": {"amount": 0.1}}) != first
    file.write_text(file.read_text() + "\n# a word\n")
    assert resolved_id(store, file) != first


@pytest.mark.slow
def test_a_run_trains_with_it_and_keeps_a_copy(store: Store, tmp_path: Path) -> None:
    shutil.copy(USER_AUGMENT, tmp_path / "aug.py")
    spec = {**SMALL, "teacher": "digits-teacher", "augment": [{"kind": "python", "file": "aug.py"}, "shift"]}
    spec["augment"][0]["label_preserving"] = False
    (tmp_path / "s.yaml").write_text(json.dumps(spec))
    assert main(["train", str(tmp_path / "s.yaml"), "--store", str(store.root)]) == 0
    (run,) = store.runs()
    (tmp_path / "aug.py").unlink()
    part = run.spec.augment[0]
    assert Path(part.file).parent == run.folder / "code"  # type: ignore[union-attr,arg-type]
    views = Views(pictures(8, (1, 8, 8)), run.spec.augment, batch=8, seed=0)
    assert views(0).images.shape == (8, 1, 8, 8)


def test_a_policy_file_names_it_and_is_written_without_what_was_filled_in(store: Store, tmp_path: Path) -> None:
    shutil.copy(USER_AUGMENT, tmp_path / "aug.py")
    (tmp_path / "policy.yaml").write_text("- {kind: python, file: aug.py, with: {amount: 0.2}}\n")
    sheet = tmp_path / "sheet"
    arguments = ["--data", "digits", "--to", str(sheet), "--store", str(store.root)]
    assert main(["preview", str(tmp_path / "policy.yaml"), *arguments]) == 0
    assert "sha256" not in (sheet / "policy.yaml").read_text()
    (part,) = parse_policy(__import__("yaml").safe_load((sheet / "policy.yaml").read_text()))
    assert Path(part.file).samefile(tmp_path / "aug.py")  # type: ignore[union-attr]
    assert policy_yaml([part]) == (sheet / "policy.yaml").read_text()


@pytest.mark.parametrize("kind", [AugmentImages, AugmentBatch, CheckLabels, WritePolicy])
@pytest.mark.parametrize("role", [Role.NOBODY, Role.VIEWER, Role.RUNNER, Role.LOCAL])
def test_a_visitor_never_runs_a_file(kind: Any, role: Role, store: Store, tmp_path: Path) -> None:
    mark = tmp_path / "it-ran"
    file = tmp_path / "own.py"
    file.write_text(f"open({str(mark)!r}, 'w').close()\n" + USER_AUGMENT.read_text())
    if role is not Role.LOCAL:
        usercode.trust(usercode.read(file)[1], file.name)  # not even one that the owner uses
    policy, data = parse_policy([own(file)]), DataSpec(source="digits")
    asked = kind(policy, data, "digits-teacher") if kind is CheckLabels else kind(policy, data)
    words = "not allowed to run" if role is Role.LOCAL else "owner of this machine only"
    with pytest.raises(Refused, match=words):
        handlers.HANDLERS[kind](Store(store.root, User("eve@example.org", role)), asked)
    assert not mark.exists()


WRONG: dict[str, tuple[str, list[str]]] = {
    "no transform": ("def make(): return 3\n", ["type int, which cannot be called", "torchvision.transforms.v2"]),
    "not a tensor": ("def make(): return lambda image: image.numpy()\n", ["type ndarray", "uint8, or float from 0"]),
    "another shape": ("def make(): return lambda image: image[:, 1:]\n", ["[1, 8, 8] it has shape [1, 7, 8]"]),
    "another dtype": ("def make(): return lambda image: image.long()\n", ["dtype torch.int64"]),
    "0 to 1": ("def make(): return lambda image: image / 255\n", ["from 0 to 1", "float from 0 to 255"]),
    "not finite": ("def make(): return lambda image: image / 0\n", ["not finite"]),
    "an exception": ("def make():\n  def f(image):\n    raise KeyError('x')\n  return f\n", ["own.py, line 3, in f"]),
    "an exception of torch": ("def make(): return lambda image: image @ image[0, 0, :3]\n", ["own.py, line 1"]),
    "of a library": ("import torch\ndef make(): return torch.nn.Conv2d(5, 5, 1)\n", ["does not run on a uint8 image"]),
    "an argument": ("def make(degrees): return abs\n", ["'degrees'", "`with`"]),
    "syntax": ("def make(:\n", ["syntax error", "own.py, line 1"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_where_a_run_is_submitted(case: str, store: Store, tmp_path: Path) -> None:
    text, words = WRONG[case]
    with pytest.raises((BadInput, BadModel)) as caught:
        resolve(store, parse({**SMALL, "augment": [own(wrote(tmp_path, text))]}))
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def findings(file: Path, **fields: Any) -> dict[str, tuple[bool | None, str]]:
    (part,) = parse_policy([own(file, sha256=usercode.read(file)[1], **fields)])
    return {name: done() for name, done in contracts.of_augmentation(part, shape=(3, 16, 16))}  # type: ignore[arg-type]


def test_good_transforms_pass_every_check(tmp_path: Path) -> None:
    file = wrote(tmp_path, USER_AUGMENT.read_text())
    assert all(passed for passed, _ in findings(file).values())
    found = findings(wrote(tmp_path, TORCHVISION), **{"with": "degrees=40"})
    assert {name for name, (passed, _) in found.items() if passed is not True} == {"strength"}


OF = """import numpy as np
import torch
def make(strength=1.0):
    {begin}
    def f(image):
        {line}
        return image.float() * factor
    return f
"""
FOUND = {
    "equal random numbers": ("g = np.random.default_rng()", "factor = g.random()", "seeded for each image"),
    "no memory": ("seen = []", "seen.append(1); factor = 1 / len(seen)", "keep nothing from call to call"),
    "again": ("factor = float(torch.rand(()))", "pass", "a resumed run would see other images"),
    "strength": ("pass", "factor = float(torch.rand(()))", "at strength 0 a pixel changes by"),
    "random": ("pass", "factor = 1 - 0.1 * strength", "it is not random"),
}


@pytest.mark.parametrize("check", FOUND)
def test_a_check_finds_what_it_is_for(check: str, tmp_path: Path) -> None:
    begin, line, words = FOUND[check]
    text = OF.format(begin=begin, line=line)
    passed, said = findings(wrote(tmp_path, text))[check]
    assert passed is (None if check == "random" else False)
    assert words in said


@pytest.mark.slow
def test_the_command_finds_out_what_a_file_holds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(USER_AUGMENT), "--channels", "1", "--size", "8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["part"] == "augmentation: make() of aug.py"


def test_an_entry_point_is_a_transform(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SmallAlignError, match=r"smallalign\.augmentations"):
        train(epochs=1, augment=[{"kind": "python", "entry": "nowhere"}])
