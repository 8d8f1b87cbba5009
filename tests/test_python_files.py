"""A user's own Python: a network, a loss, their digests, who may run them, and what is said where they are wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Show, Train, texts, tiny
from safetensors.torch import save_file
from torch import nn

import smallalign_core as sa
from smallalign_core import networks
from smallalign_core.cli._main import main
from smallalign_core.data import Splits
from smallalign_core.errors import BadInput, BadModel, BadSpec, Refused, SmallAlignError
from smallalign_core.runs import imported, model_card
from smallalign_core.runs.store import Run, State, Store
from smallalign_core.service import handlers, integrity, worker
from smallalign_core.service.requests import Ablate, Compare, Estimate, EstimateStudy, StartStudy, Submit
from smallalign_core.service.users import Role, User
from smallalign_core.service.wire import Request
from smallalign_core.spec import digest, parse, read, to_yaml
from smallalign_core.spec.python import Arguments, on_one_line
from smallalign_core.studies import lifecycle, optimizers
from smallalign_core.studies.ray_executor import _payload
from smallalign_core.studies.resolve import resolve_study
from smallalign_core.system import usercode
from smallalign_core.training import contracts, losses
from smallalign_core.training.loop import Training
from smallalign_core.training.losses import NetworkOutput
from smallalign_core.training.resolve import resolve

FILE = Path(__file__).parent / "fixtures" / "user" / "net.py"
SMALL: dict[str, Any] = {"data": {"source": "digits", "images": 200}, "epochs": 2, "batch": 50}


@pytest.fixture(autouse=True)
def list_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test begins with no file allowed and none imported."""
    monkeypatch.setenv(usercode.TRUSTED, str(tmp_path / "trusted"))
    forget(monkeypatch)


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process."""
    monkeypatch.setattr(usercode, "_ALLOWED", set())
    monkeypatch.setattr(usercode, "_MODULES", {})


@pytest.fixture
def net(tmp_path: Path) -> Path:
    """A copy that a test may edit."""
    return Path(shutil.copy(FILE, tmp_path / "net.py"))


def network(file: Path, **fields: Any) -> dict[str, Any]:
    return {"kind": "python", "file": str(file), **fields}


def wrote(tmp_path: Path, text: str, name: str = "own.py") -> Path:
    file = tmp_path / name
    file.write_text(text)
    return file


def resolved_id(store: Store, file: Path, **fields: Any) -> str:
    return digest(resolve(store, parse({**SMALL, "network": network(file, **fields)})))


# --- the spec ---------------------------------------------------------------------------------------------------------


def test_the_id_is_of_the_content_and_the_arguments_not_of_the_path(store: Store, net: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    moved = Path(shutil.copy(net, tmp_path / "elsewhere" / "other.py"))
    first = resolved_id(store, net)
    assert resolved_id(store, moved) == first
    assert resolved_id(store, net, **{"with": {"width": 7}}) != first
    assert resolved_id(store, net, call="Net") != first
    net.write_text(net.read_text() + "\n# a word\n")
    assert resolved_id(store, net) != first


def test_paths_are_relative_to_the_folder_of_the_spec(tmp_path: Path, net: Path) -> None:
    (tmp_path / "specs").mkdir()
    file = tmp_path / "specs" / "s.yaml"
    file.write_text("data: digits\nnetwork: {kind: python, file: ../net.py, weights: w.pt}\n")
    spec = read(file)
    assert Path(spec.network.file).samefile(net)  # type: ignore[union-attr]
    assert spec.network.weights == str(tmp_path / "specs" / "w.pt")  # type: ignore[union-attr]
    absolute = tmp_path / "specs" / "a.yaml"
    absolute.write_text(f"data: digits\nnetwork: {{kind: python, file: {net}}}\n")
    assert read(absolute).network.file == str(net)  # type: ignore[union-attr]


def test_arguments_are_written_as_in_yaml_or_on_one_line() -> None:
    as_text = {"kind": "python", "file": "a.py", "with": "width=24, act=relu, rates=[1, 0.5], text='a=b', on=true"}
    plain = {"width": 24, "act": "relu", "rates": [1, 0.5], "text": "a=b", "on": True}
    spec = parse({"data": "digits", "network": as_text})
    assert spec == parse({"data": "digits", "network": {**as_text, "with": plain}})
    assert parse({"data": "digits", "network": {**as_text, "with": on_one_line(plain)}}) == spec
    assert hash(spec) == hash(parse(spec.model_dump(mode="json")))
    again = parse(__import__("yaml").safe_load(to_yaml(spec)))
    assert again == spec
    assert Arguments({"a": 1}) == {"a": 1}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, ["needs a `file`", "`entry`"]),
        ({"file": "a.py", "entry": "b"}, ["give one of them"]),
        ({"file": "a.py", "with": "24"}, ["`width=24, depth=2`", "24"]),
        ({"file": "a.py", "with": {"1x": 2}}, ["keyword arguments", "1x"]),
        ({"file": "a.py", "call": "a.b"}, ["network.call"]),
        ({"file": "a.py", "normalise": "unit"}, ["did you mean `normalize`"]),
        ({"file": "a.py", "with": {"x": "y" * 20_000}}, ["at most 10,000"]),
    ],
)
def test_a_spec_of_kind_python_is_refused_in_words(given: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(BadSpec) as caught:
        parse({"data": "digits", "network": {"kind": "python", **given}})
    for word in words:
        assert word in str(caught.value)


# --- a run ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, str, Path]:
    """(store, id, the file) of a finished run, whose file was deleted since."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(usercode.TRUSTED, str(folder / "trusted"))
        file = Path(shutil.copy(FILE, folder / "mine.py"))
        (folder / "s.yaml").write_text(json.dumps({**SMALL, "network": {"kind": "python", "file": "mine.py"}}))
        store = Store(folder / "models")
        assert main(["train", str(folder / "s.yaml"), "--store", str(store.root)]) == 0
        (run,) = store.runs()
        file.unlink()
    return store, run.id, file


def allow(run: Run) -> None:
    assert main(["runs", "trust", str(run.folder)]) == 0


@pytest.mark.slow
def test_a_finished_run_lives_without_its_file(made: tuple[Store, str, Path], tmp_path: Path) -> None:
    store, name, file = made
    run, at = store.run(name), ["--store", str(store.root)]
    assert not file.exists()
    allow(run)
    assert main(["export", name, "--to", str(tmp_path / "a.onnx"), *at]) == 0
    assert main(["verify", str(tmp_path / "a.onnx"), "--run", name, *at]) == 0
    assert main(["evaluate", name, *at]) == 0
    assert "mine.py" in run.title
    assert str(file.parent) not in json.dumps(sorted(tmp_path.glob("*.onnx"))[0].read_bytes().decode("latin1"))
    assert integrity.of_run(run) == ""


def test_runs_show_and_doctor_name_the_file(made: tuple[Store, str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    store, name, _ = made
    assert main(["runs", "show", name, "--store", str(store.root), "--json"]) == 0
    (shown,) = json.loads(capsys.readouterr().out)["python_files"]
    assert shown["part"] == "make() of mine.py"
    assert not shown["allowed"]
    copy = Path(shown["copy"])
    whole = copy.read_bytes()
    copy.write_bytes(whole + b"# damaged\n")
    assert "mine.py is damaged or missing" in integrity.of_run(store.run(name))
    copy.write_bytes(whole)
    assert integrity.of_run(store.run(name)) == ""


def test_a_published_model_has_the_file(made: tuple[Store, str, Path], tmp_path: Path) -> None:
    store, name, _ = made
    shutil.copytree(store.root, tmp_path / "models")
    place = Store(tmp_path / "models")
    allow(place.run(name))
    kept = model_card.publish(place.run(name), place, "my-own")
    shutil.rmtree(place.run(name[:8]).folder) if not place.run(name[:8]).in_zoo else None
    again = Store(tmp_path / "models").run("my-own")
    assert again.spec.network.sha256 == usercode.read(FILE)[1]  # type: ignore[union-attr]
    assert imported.classifier(again).classes == tuple("0123456789")
    assert "net.py" not in (kept.folder / "spec.yaml").read_text()
    card = (kept.folder / "card.md").read_text()
    assert f"mine.py (SHA-256 `{usercode.read(FILE)[1]}`)" in card
    assert card.count("mine.py") == 2


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_weights_when_its_file_is_gone(net: Path, tmp_path: Path) -> None:
    net.write_text(
        "import os, time\n"
        + net.read_text().replace(
            "        x = F.relu(self.second(x))\n",
            "        x = F.relu(self.second(x))\n        time.sleep(float(os.environ.get('SLOW', 0)))\n",
        )
    )
    spec = tmp_path / "s.yaml"
    spec.write_text(json.dumps({**SMALL, "epochs": 60, "network": {"kind": "python", "file": "net.py"}}))
    whole, killed = Store(tmp_path / "whole"), Store(tmp_path / "killed")
    assert main(["train", str(spec), "--store", str(whole.root), "--device", "cpu"]) == 0
    code = (
        "import sys; from smallalign_core.training import runner; runner.CHECKPOINT_SECONDS = 0\n"
        "from smallalign_core.cli._main import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "train", str(spec), "--store", str(killed.root), "--device", "cpu"]
    with subprocess.Popen(command, env=os.environ | {"SLOW": "0.02"}, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not list(killed.root.glob("runs/*/checkpoints.json")):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    (run,) = killed.runs()
    assert run.state is State.INTERRUPTED
    net.unlink()
    assert main(["runs", "resume", run.id, "--store", str(killed.root)]) == 0
    assert main(["worker", "--once", "--store", str(killed.root), "--device", "cpu"]) == 0
    (other,) = whole.runs()
    assert run.id == other.id
    assert run.events("resumed")[0]["step"] > 0
    assert (run.result or {})["weights_sha256"] == (other.result or {})["weights_sha256"]


def test_networks_of_a_lockstep_do_not_change_each_other(net: Path, few: Splits) -> None:
    usercode.trust(usercode.read(net)[1], "net.py")
    specs = [tiny(epochs=1, network=network(net, **{"with": {"width": width}})) for width in (4, 6)]
    specs.append(tiny(epochs=1))
    together = Training(specs, few)
    list(together)
    for index, spec in enumerate(specs):
        alone = Training([spec], few)
        list(alone)
        ours, theirs = together.students[index].classifier.state_dict(), alone.students[0].classifier.state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("normalize", ["dataset", "imagenet", "unit"])
def test_normalization_is_what_it_says(normalize: str, net: Path) -> None:
    """Against arithmetic by hand, and the parameters that the function was called with."""
    usercode.trust(usercode.read(net)[1], "net.py")
    spec = parse({"data": "digits", "network": network(net, normalize=normalize, size=12)}).network
    made = networks.build(spec, "abc", (1, 8, 10), mean=[0.3], std=[0.2]).eval()
    pixels = torch.randint(0, 256, (2, 1, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    grey = pixels.numpy().astype(np.float64) / 255
    expected = {
        "dataset": (grey - 0.3) / 0.2,
        "unit": grey,
        "imagenet": (np.repeat(grey, 3, 1) - np.reshape([0.485, 0.456, 0.406], (1, 3, 1, 1)))
        / np.reshape([0.229, 0.224, 0.225], (1, 3, 1, 1)),
    }[normalize]
    np.testing.assert_allclose(made.prepare(pixels).numpy(), expected, atol=1e-5)
    assert made.body.first.in_channels == expected.shape[1]  # type: ignore[union-attr]
    assert made.body.size == 12
    with torch.no_grad():
        torch.testing.assert_close(made(pixels), made.body(torch.from_numpy(expected).float()), atol=1e-5, rtol=1e-4)


def test_a_network_whose_view_needs_plain_memory_order_gets_it(net: Path, tmp_path: Path) -> None:
    viewed = net.read_text().replace("x.view(x.shape[0], x.shape[1], -1).mean(2)", "x.view(x.shape[0], -1)")
    viewed = viewed.replace("nn.Linear(width, classes)", "nn.Linear(width * size * size, classes)")
    found = []
    for file in (wrote(tmp_path, viewed), net):
        usercode.trust(usercode.read(file)[1], file.name)
        spec = parse({"data": "digits", "network": network(file)}).network
        found.append(networks.build(spec, "abc", (1, 8, 8), mean=[0.5], std=[0.5]).channels_last)
    assert found == [False, True]


# --- teachers ---------------------------------------------------------------------------------------------------------


def checkpoint(file: Path, seed: int, *, ema: bool = True, classes: int = 10) -> nn.Module:
    """A checkpoint as training code writes one: the average is that of a network, wrapped and compiled."""
    namespace: dict[str, Any] = {}
    exec(FILE.read_text(), namespace)  # noqa: S102  # the fixture
    torch.manual_seed(seed)
    averaged, other = namespace["make"](classes, 1, 8), namespace["make"](classes, 1, 8)
    held: dict[str, Any] = {"epoch": 3, "state_dict": other.state_dict()}
    if ema:
        held["model_ema"] = {f"module._orig_mod.{name}": one for name, one in averaged.state_dict().items()}
    torch.save(held, file)
    return averaged if ema else other


@pytest.mark.slow
def test_weights_of_a_checkpoint_are_evaluated_as_they_are(
    store: Store, net: Path, tmp_path: Path, digits: Splits, caplog: pytest.LogCaptureFixture
) -> None:
    truth = checkpoint(tmp_path / "best.pth", 1)
    spec = parse({"data": "digits", "network": network(net, weights=str(tmp_path / "best.pth"), normalize="unit")})
    run = store.create(resolve(store, spec.model_copy(update={"epochs": 0})))
    result = worker.execute(run, store, device="cpu")
    with torch.no_grad():
        said = truth.eval()(torch.from_numpy(digits.test.images.copy()).float() / 255).argmax(1).numpy()
    assert result["test"]["accuracy"] == pytest.approx((said == digits.test.labels).mean())
    assert result["steps"] == 0
    assert result["best_epoch"] == 0
    assert "taken: model_ema" in caplog.text
    assert "not taken: state_dict" in caplog.text
    assert "module._orig_mod." in caplog.text
    assert all(
        torch.equal(one, dict(networks.from_file(run.weights).body.state_dict())[name])  # type: ignore[union-attr]
        for name, one in truth.state_dict().items()
    )
    other = tmp_path / "other.pth"
    checkpoint(other, 2)
    assert (
        digest(
            resolve(
                store,
                parse(
                    {
                        **spec.model_dump(mode="json"),
                        "epochs": 0,
                        "network": network(net, weights=str(other), normalize="unit"),
                    }
                ),
            )
        )
        != run.id
    )


@pytest.mark.slow
def test_a_checkpoint_is_a_teacher_from_cache_or_live_and_in_onnx(store: Store, net: Path, tmp_path: Path) -> None:
    first = store.create(resolve(store, tiny(epochs=8, network=network(net), optimizer={"kind": "adamw", "lr": 0.02})))
    worker.execute(first, store, device="cpu")
    torch.save({"model": dict(networks.from_file(first.weights).body.state_dict())}, tmp_path / "t.pt")  # type: ignore[union-attr]
    spec = {"data": "digits", "network": network(net, weights=str(tmp_path / "t.pt")), "epochs": 0}
    teacher = store.create(resolve(store, parse(spec)))
    given = worker.execute(teacher, store, device="cpu")
    assert given["test"]["accuracy"] == (first.result or {})["test"]["accuracy"] > 0.3
    run = store.create(resolve(store, tiny(teacher=teacher.id, loss="kd", network=network(net, call="Net"))))
    forget_file = net.read_text()
    net.unlink()
    result = worker.execute(run, store, device="cpu")
    assert result["teacher"] == "cache"
    net.write_text(forget_file)
    onnx = resolve(store, tiny(teacher=teacher.id, loss="kd", answers="onnx"))
    assert worker.execute(store.create(onnx), store, device="cpu")["answers"][0]["agreement"] > 0.99


def trained(store: Store, net: Path, tmp_path: Path, **fields: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """(result, weights of the body) of a run from a checkpoint of a user's network for seven other classes."""
    checkpoint(tmp_path / "w.pt", 1, ema=False, classes=7)
    own = network(net, weights=str(tmp_path / "w.pt"), **fields)
    run = store.create(resolve(store, tiny(epochs=6, network=own, optimizer={"kind": "sgd", "lr": 0.05})))
    result = worker.execute(run, store, device="cpu")
    assert result["state"] == "finished", result
    return result, dict(networks.from_file(run.weights).body.state_dict())  # type: ignore[union-attr]


def test_weights_of_a_librarys_network_lie_beside_the_spec_or_in_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"x")
    file = tmp_path / "spec.yaml"
    for name, expected in (("w.safetensors", str(tmp_path / "w.safetensors")), ("other.safetensors",) * 2):
        file.write_text(f"data: digits\nnetwork: {{kind: timm, name: resnet10t, weights: {name}}}\n")
        assert read(file).network.weights == expected  # type: ignore[union-attr]


@pytest.mark.slow
def test_a_probe_trains_the_head_of_a_users_network_alone(store: Store, net: Path, tmp_path: Path) -> None:
    result, weights = trained(store, net, tmp_path, frozen=True)
    before = torch.load(tmp_path / "w.pt", weights_only=True)["state_dict"]
    changed = {name for name, one in weights.items() if one.shape != before[name].shape or not one.equal(before[name])}
    assert changed == {"head.weight", "head.bias"}, "batch-norm statistics stay too"
    assert result["features"] == "kept"

    after = net.read_text().replace(".mean(2))", ".mean(2)) * 2")  # a layer behind the head: not from cached features
    assert after != net.read_text()
    net.write_text(after)
    usercode.trust_here(usercode.read(net)[1])
    result, weights = trained(store, net, tmp_path, frozen=True)
    assert "the head is more than one linear layer" in result["features"]
    assert weights["first.weight"].equal(before["first.weight"])


@pytest.mark.slow
def test_the_head_of_a_users_network_has_its_own_rate(store: Store, net: Path, tmp_path: Path) -> None:
    heads = [trained(store, net, tmp_path, head_rate=rate)[1]["head.weight"].norm() for rate in (1, 20)]
    assert heads[1] > 2 * heads[0], "it starts at zero"


def test_a_probe_needs_weights_and_a_head(net: Path, tmp_path: Path) -> None:
    with pytest.raises(BadSpec, match="`frozen` needs initial weights: give `weights`"):
        parse({"data": "digits", "network": network(net, frozen=True)})
    with pytest.raises(BadSpec, match="every layer is new"):
        parse({"data": "digits", "network": network(net, head_rate=10)})
    net.write_text(
        "from torch import nn\n\ndef make(classes):\n"
        "    return nn.Sequential(nn.Conv2d(1, 3, 1), nn.Flatten(), nn.AdaptiveAvgPool1d(classes))\n"
    )
    usercode.trust_here(usercode.read(net)[1])
    save_file({"x": torch.zeros(1)}, tmp_path / "w.safetensors")
    fine = network(net, weights=str(tmp_path / "w.safetensors"), frozen=True, size=None)
    spec = parse({"data": "digits", "network": fine})
    with pytest.raises(BadSpec, match=r"(?i)no last linear layer .*leave `frozen` and `head_rate` out"):
        networks.build(spec.network, "0123456789", (1, 8, 8), mean=[0.5], std=[0.5])


@pytest.mark.slow
def test_a_head_for_other_classes_is_new_and_other_weights_are_refused(store: Store, net: Path, tmp_path: Path) -> None:
    truth = checkpoint(tmp_path / "w.pt", 1, ema=False, classes=7)
    spec = parse({"data": "digits", "network": network(net, weights=str(tmp_path / "w.pt"))})
    classifier = networks.build(resolve(store, spec).network, "0123456789", (1, 8, 8), mean=[0.5], std=[0.5])
    assert torch.equal(classifier.body.first.weight, truth.first.weight)  # type: ignore[union-attr,arg-type]
    assert not classifier.body.head.weight.any()  # type: ignore[union-attr]
    with pytest.raises(BadModel, match=r"of another network than make\(width=8\) of net.py"):
        resolve(
            store,
            parse({"data": "digits", "network": network(net, weights=str(tmp_path / "w.pt"), **{"with": "width=8"})}),
        )
    for fields, words in (
        ({}, "give `weights` or `start`"),
        ({"teacher": "digits-teacher", "loss": "kd"}, "there are none"),
    ):
        with pytest.raises(BadSpec, match=words):
            parse({"data": "digits", "network": network(net), "epochs": 0, **fields})


# --- who may ----------------------------------------------------------------------------------------------------------


def marking(tmp_path: Path) -> tuple[Path, Path]:
    """A file that leaves a mark where it is imported, and the mark."""
    mark = tmp_path / "it-ran"
    return wrote(tmp_path, f"open({str(mark)!r}, 'w').close()\n" + FILE.read_text()), mark


@pytest.mark.parametrize("role", [Role.NOBODY, Role.VIEWER, Role.RUNNER])
@pytest.mark.parametrize("kind", [Submit, Estimate, StartStudy, EstimateStudy, Ablate])
def test_a_visitor_never_runs_a_file(role: Role, kind: type[Request[Any]], store: Store, tmp_path: Path) -> None:
    file, mark = marking(tmp_path)
    usercode.trust(usercode.read(file)[1], file.name)  # not even one that the owner uses
    spec: dict[str, Any] = {**SMALL, "network": network(file)}
    if kind is Ablate:
        request: Request[Any] = Ablate(parse(spec | {"augment": ["shift"]}), "augment", 2, start=True)
    elif kind in (StartStudy, EstimateStudy):
        request = kind(optimizers.parse_study(spec))
    else:
        request = kind(parse(spec))
    with pytest.raises(Refused) as caught:
        handlers.HANDLERS[kind](Store(store.root, User("eve@example.org", role)), request)
    assert "owner of this machine only" in str(caught.value) or role in (Role.NOBODY, Role.VIEWER)
    assert not mark.exists()
    assert not store.runs()


def test_in_a_browser_a_file_runs_only_after_it_was_allowed(store: Store, tmp_path: Path) -> None:
    file, mark = marking(tmp_path)
    local = Store(store.root, User("browser 1", Role.LOCAL))
    spec = {**SMALL, "network": network(file)}
    for request in (Estimate(parse(spec)), Submit(parse(spec))):
        with pytest.raises(Refused, match="not allowed to run on this machine yet"):
            handlers.HANDLERS[type(request)](local, request)
    assert not mark.exists()
    usercode.trust(usercode.read(file)[1], file.name)
    assert handlers.submit(local, Submit(parse(spec))).state == "queued"
    assert mark.exists()
    run = store.runs()[0]
    run.request("cancel")
    with pytest.raises(Refused, match="owner of this machine only"):
        Store(store.root, User("eve", Role.RUNNER)).enqueue(run)
    assert run.state is State.CANCELLED
    file.write_text(file.read_text() + "\n")
    with pytest.raises(Refused, match="not allowed"):
        handlers.submit(local, Submit(parse(spec)))


def test_a_visitor_does_not_restart_a_study_of_a_file(store: Store, net: Path) -> None:
    spec = resolve_study(store, "optimizers", optimizers.parse_study({**SMALL, "network": network(net)}), "cpu")
    study = lifecycle.create(store, "optimizers", spec)
    with pytest.raises(Refused, match="owner of this machine only"):
        lifecycle.start(Store(store.root, User("eve", Role.RUNNER)), study)
    assert not study.active
    lifecycle.start(Store(store.root, User("browser", Role.LOCAL)), study)
    assert study.active


@pytest.mark.slow
def test_a_visitor_sees_what_the_owner_trained(made: tuple[Store, str, Path]) -> None:
    store, name, _ = made
    allow(store.run(name))
    watching = Store(store.root, User("eve", Role.VIEWER), showing=True)
    assert handlers.HANDLERS[Compare](watching, Compare(("digits-teacher", name)))
    (copy,) = (store.run(name).folder / "code").iterdir()
    before = copy.read_bytes()
    for verb in ("delete", "submit"):
        with pytest.raises(Refused, match="read-only"):
            watching.delete(name) if verb == "delete" else watching.submit(store.run(name).spec)
    assert copy.read_bytes() == before


def test_a_run_folder_from_elsewhere_runs_only_when_the_owner_says_so(
    made: tuple[Store, str, Path], store: Store, tmp_path: Path
) -> None:
    origin, name, _ = made
    foreign = Path(shutil.copytree(origin.run(name).folder, tmp_path / "foreign"))
    run = Run(foreign)
    for use in (
        lambda: imported.classifier(run),
        lambda: resolve(store, tiny(teacher=str(foreign), loss="kd")),
        lambda: resolve(store, run.spec.model_copy(update={"seed": 9})),
        lambda: worker.execute(store.create(run.spec.model_copy(update={"seed": 8})), store),
    ):
        with pytest.raises(Refused, match="not allowed to run on this machine yet") as caught:
            use()
        assert "runs trust" in str(caught.value)
    assert main(["evaluate", str(foreign), "--store", str(store.root)]) == 2
    allow(run)
    assert imported.classifier(run).classes == tuple("0123456789")


def test_an_edited_copy_is_not_the_file_that_was_allowed(made: tuple[Store, str, Path], tmp_path: Path) -> None:
    origin, name, _ = made
    run = Run(Path(shutil.copytree(origin.run(name).folder, tmp_path / "copied")))
    allow(run)
    (copy,) = (run.folder / "code").iterdir()
    copy.write_text(copy.read_text() + "\nraise SystemExit\n")
    with pytest.raises(BadModel, match="gone or was edited"):
        imported.classifier(run)


def test_the_list_that_cannot_be_written_allows_this_process_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(usercode.TRUSTED, str(tmp_path / "file" / "trusted"))
    usercode.trust("0" * 64, "a.py")
    assert usercode.is_trusted("0" * 64)
    assert "other processes will not run a.py" in caplog.text
    forget(monkeypatch)
    assert not usercode.is_trusted("0" * 64)


@pytest.mark.slow
@pytest.mark.parametrize("role", [Role.LOCAL, Role.RUNNER])
def test_the_form_offers_python_to_the_owner_and_asks_before_it_runs(
    role: Role, shown: Show, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pages.ui.security import auth

    file, mark = marking(tmp_path)
    monkeypatch.setattr(auth, "current_user", lambda: User("somebody", role))
    app = shown("distil", data="digits", teacher="none")
    kinds = app.selectbox(key="spec.network.kind")
    if role is Role.RUNNER:
        assert not any("(python)" in option for option in kinds.options)
        return
    kinds.set_value("python").run()
    app.text_input(key="spec.network.python.file").set_value(str(file))
    app.text_input(key="spec.network.python.with").set_value("width=4").run()
    assert "It can do whatever you can" in texts(app)
    assert "class Net" in "".join(one.value for one in app.code)
    assert not mark.exists()
    next(one for one in app.button if one.label == "Allow this file").click().run()
    assert not app.exception
    assert mark.exists()
    assert "Start training" in [one.label for one in app.button]
    next(one for one in app.button if one.label == "Start training").click().run()
    (run,) = store.runs()
    assert run.spec.network.arguments == {"width": 4}  # type: ignore[union-attr]


# --- errors -----------------------------------------------------------------------------------------------------------

WRONG = {
    "syntax": ("def make(classes):\n    return (\n", ["syntax error", "own.py, line 2"]),
    "import": ("import nowhere_at_all\n", ["ModuleNotFoundError", "own.py, line 1", "Install the package"]),
    "at import": ("x = 1\ny = x / 0\n", ["ZeroDivisionError", "own.py, line 2: y = x / 0"]),
    "exit": ("import sys\nsys.exit(3)\n", ["ended the program", "exit code 3"]),
    "no such function": ("def other(): pass\n", ["no function or class called make", "it has: other"]),
    "an argument too few": ("def make(classes, depth): pass\n", ["'depth'", "line 1", "`with`"]),
    "no classes": ("def make(): pass\n", ["unexpected keyword argument 'classes'"]),
    "in the function": ("def make(classes):\n    raise KeyError('x')\n", ["KeyError", "own.py, line 2, in make"]),
    "no module": ("def make(classes): return 3\n", ["type int, not a torch.nn.Module"]),
    "shape": (
        "from torch import nn\ndef make(classes): return nn.Sequential(nn.Flatten(), nn.Linear(64, 7))\n",
        ["has shape [2, 7], not [2, 10]", "make() of own.py"],
    ),
    "layers that do not fit": (
        "from torch import nn\ndef make(classes): return nn.Sequential(nn.Flatten(), nn.Linear(65, 10))\n",
        ["does not run on images of shape [1, 8, 8]", "2x64 and 65x10"],
    ),
    "in forward": (
        "from torch import nn\nclass make(nn.Module):\n    def __init__(self, classes):\n        super().__init__()\n"
        "        self.l = nn.Linear(64, classes)\n    def forward(self, x):\n        return self.l(x)\n",
        ["RuntimeError", "own.py, line 7, in forward: return self.l(x)"],
    ),
    "integers": (
        "from torch import nn\nclass make(nn.Module):\n    def __init__(self, classes):\n        super().__init__()\n"
        "        self.l = nn.Linear(64, classes)\n    def forward(self, x):\n"
        "        return self.l(x.flatten(1)).long()\n",
        ["dtype torch.int64"],
    ),
    "not text": (b"\xff\xfe\x00", ["not UTF-8"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_a_file_is_said_with_its_line(case: str, store: Store, tmp_path: Path) -> None:
    text, words = WRONG[case]
    file = tmp_path / "own.py"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SmallAlignError) as caught:
        resolve(store, parse({**SMALL, "network": network(file)}))
    for word in words:
        assert word in str(caught.value)
    assert caught.value.exit_code == 2
    assert caught.value.do
    assert not store.runs()


def test_a_missing_file_is_said_with_its_path(store: Store, tmp_path: Path) -> None:
    for file, words in ((tmp_path / "no.py", "does not exist"), (tmp_path, "not a regular file")):
        with pytest.raises(BadInput, match=words):
            resolve(store, parse({**SMALL, "network": network(file)}))


def test_an_exception_in_the_middle_of_training_fails_the_run_in_words(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    late = FILE.read_text().replace(
        "    def forward(self, x):\n",
        "    def forward(self, x):\n"
        "        if self.training and len(x) > 2:\n            raise ValueError('only two')\n",
    )
    run = store.create(resolve(store, parse({**SMALL, "network": network(wrote(tmp_path, late))})))
    with pytest.raises(BadInput, match="ValueError: only two"):
        worker.execute(run, store, device="cpu")
    assert run.state is State.FAILED
    assert "own.py, line" in run.status["reason"]
    assert "Traceback" not in caplog.text


@pytest.mark.slow
def test_a_network_that_onnx_cannot_hold_trains_and_its_size_is_not_known(store: Store, tmp_path: Path) -> None:
    text = FILE.read_text().replace(
        "        x = F.relu(self.second(x))\n",
        "        x = F.relu(self.second(x))\n        x = x * float(x.detach().numpy().max() > -1)\n",
    )
    file = wrote(tmp_path, text)
    said = handlers.estimate(store, Estimate(parse({**SMALL, "network": network(file)})))
    assert said.onnx_bytes is None
    assert "cannot be exported to ONNX" in str(said.unexportable)
    assert said.params > 0
    assert said.macs > 0
    run = store.create(resolve(store, parse({**SMALL, "network": network(file)})))
    worker.execute(run, store, device="cpu")
    assert main(["export", run.id, "--to", str(tmp_path / "a.onnx"), "--store", str(store.root)]) == 2


# --- entry points -----------------------------------------------------------------------------------------------------


def installed(folder: Path, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package with an entry point, as an installer leaves it."""
    about = folder / "ours.dist-info"
    about.mkdir(exist_ok=True, parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: ours\nVersion: {version}\n")
    (about / "entry_points.txt").write_text("[smallalign.networks]\nplain = ours_net:make\n")
    shutil.copy(FILE, folder / "ours_net.py")
    monkeypatch.syspath_prepend(str(folder))


def test_an_entry_point_is_a_network_of_its_version(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(tmp_path / "site", "1.2", monkeypatch)
    spec = parse({**SMALL, "network": {"kind": "python", "entry": "plain", "with": {"width": 4}}})
    resolved = resolve(store, spec)
    assert resolved.network.package == "ours 1.2"  # type: ignore[union-attr]
    run = store.create(resolved)
    worker.execute(run, store, device="cpu")
    assert run.title.startswith("plain(width=4) · ")
    assert not (run.folder / "code").exists()
    assert imported.classifier(run).classes == tuple("0123456789")
    installed(tmp_path / "site", "1.3", monkeypatch)
    assert digest(resolve(store, spec)) != run.id
    with pytest.raises(BadInput, match="nother version"):
        imported.classifier(run)
    with pytest.raises(BadInput, match="installed: plain"):
        resolve(store, parse({**SMALL, "network": {"kind": "python", "entry": "plane"}}))


# --- from Python ------------------------------------------------------------------------------------------------------

WIDTH = 5


def block(inside: int, outside: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inside, outside, 3, padding=1), nn.ReLU())


class Quick(nn.Module):
    def __init__(self, classes: int, channels: int, width: int = WIDTH) -> None:
        super().__init__()
        self.body = block(channels, width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.adaptive_avg_pool2d(self.body(x), 1).flatten(1))  # type: ignore[no-any-return]


HELD = torch.zeros(1)


class Unwritable(Quick):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + HELD


def test_a_class_is_fitted_and_recorded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = {**SMALL, "network": {"with": {"width": 4}, "normalize": "unit"}}
    run = sa.fit(spec, network=Quick, store=store.root, device="cpu")
    assert run.spec.network.normalize == "unit"  # type: ignore[union-attr]
    (copy,) = (run.folder / "code").iterdir()
    text = copy.read_text()
    for part in ("given to smallalign_core.fit", "WIDTH = 5", "def block", "import torch.nn as nn"):
        assert part in text
    forget(monkeypatch)
    assert sum(one.numel() for one in imported.classifier(run).parameters()) == 4 * 9 + 4 + 4 * 10 + 10
    assert sa.fit(spec, network=Quick, store=store.root, device="cpu").id == run.id


def test_a_class_without_a_source_is_fitted_and_refused_later_in_words(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = sa.fit(SMALL, network=Unwritable, store=store.root, device="cpu")
    assert run.finished
    assert "cannot be resumed or exported later" in caplog.text
    assert sa.fit(SMALL, network=Unwritable, store=store.root, device="cpu").id != run.id
    forget(monkeypatch)
    with pytest.raises(BadInput, match="HELD, an object of type Tensor"):
        imported.classifier(run)
    with pytest.raises(BadInput, match="ive the class itself"):
        sa.fit(SMALL, network=Quick(10, 1), store=store.root)


# --- losses -----------------------------------------------------------------------------------------------------------


def own_loss(file: Path = FILE, **fields: Any) -> dict[str, Any]:
    return {"kind": "python", "file": str(file), **fields}


@pytest.mark.slow
def test_a_loss_of_ones_own_trains_as_the_same_one_of_the_library(store: Store) -> None:
    """The same formula: the weights are the same, bit for bit."""
    shared = {**SMALL, "network": {"kind": "cnn", "width": 6, "depth": 2}, "teacher": "digits-teacher"}
    weights = []
    for loss in (own_loss(**{"with": {"temperature": 3.0}}), {"kind": "kd", "temperature": 3.0, "weight": 1.0}):
        run = store.create(resolve(store, parse({**shared, "loss": loss})))
        worker.execute(run, store, device="cpu")
        weights.append((run.result or {})["weights_sha256"])
    assert weights[0] == weights[1]
    run = store.runs()[-1]
    assert "python loss(temperature=3.0) of net.py" in run.title
    assert run.events("epoch")[0]["shares"] == {"teacher": 1.0}


def test_labels_epoch_and_named_terms_reach_a_loss(store: Store, tmp_path: Path) -> None:
    text = (
        "import torch.nn.functional as F\n"
        "def loss(student, labels, epoch, weight):\n"
        "    return {'hard': weight * F.cross_entropy(student, labels), 'late': epoch * student.square().mean()}\n"
    )
    file = wrote(tmp_path, text)
    usercode.trust(usercode.read(file)[1], file.name)
    spec = parse({**SMALL, "network": "cnn", "loss": own_loss(file, labels_weight=0.5, **{"with": {"weight": 2}})})
    logits, labels = torch.randn(8, 10, generator=torch.Generator().manual_seed(0)), torch.arange(8)
    parts = losses.terms(spec.loss, NetworkOutput(logits.half()), None, labels, epoch=3.0)
    plain = -logits.half().double().log_softmax(1)[range(8), labels].mean().item()
    assert parts["hard"].item() == pytest.approx(2 * plain, rel=1e-4)
    assert parts["labels"].item() == pytest.approx(0.5 * plain, rel=1e-4)
    assert parts["late"].item() == pytest.approx(3 * logits.half().double().square().mean().item(), rel=1e-4)
    run = store.create(resolve(store, spec))
    worker.execute(run, store, device="cpu")
    assert set(run.events("progress")[-1]["terms"]) == {"hard", "labels", "late"}


@pytest.mark.parametrize(
    ("text", "taught", "words"),
    [
        ("def loss(logits): pass\n", True, "no parameter `student`"),
        ("def loss(student, teacher): pass\n", False, "needs teacher logits, and there is no teacher"),
        ("def loss(student): return student.sum()\n", True, "does not use teacher logits"),
        ("def loss(student, margin): pass\n", False, "'margin'"),
        ("def loss(student): return student\n", False, r"shape \[8, 10\]"),
        ("def loss(student): return 1.0\n", False, "float"),
        ("def loss(student): return {}\n", False, "no term"),
        ("def loss(student): return student.detach().sum()\n", False, "o gradient"),
        ("def loss(student):\n    return student[99].sum()\n", False, "own.py, line 2, in loss"),
    ],
)
def test_a_loss_that_cannot_be_used_is_refused_in_words(
    text: str, taught: bool, words: str, store: Store, tmp_path: Path
) -> None:
    fields: dict[str, Any] = {"teacher": "digits-teacher"} if taught else {}
    spec = parse({**SMALL, "network": "cnn", "loss": own_loss(wrote(tmp_path, text)), **fields})
    with pytest.raises(SmallAlignError, match=words):
        resolve(store, spec)


# --- other machines ---------------------------------------------------------------------------------------------------


def test_the_files_of_a_run_and_of_its_teacher_go_to_other_machines(
    made: tuple[Store, str, Path], store: Store, tmp_path: Path, net: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin, name, _ = made
    allow(origin.run(name))
    spec = resolve(origin, parse({**SMALL, "network": network(net), "loss": own_loss(), "teacher": "digits-teacher"}))
    sent, elder = _payload.payload([spec], "home", "cpu"), _payload.dependency(origin.run(name))
    net.unlink()
    forget(monkeypatch)
    monkeypatch.setenv(usercode.TRUSTED, str(tmp_path / "of-another-machine"))
    there = Store(tmp_path / "there")
    _payload.install(elder, there)
    assert imported.classifier(there.run(name)).classes == tuple("0123456789")
    (here,) = _payload.unpacked(sent, there)
    assert digest(here) == digest(spec)
    run = there.create(here)
    worker.execute(run, there, device="cpu")
    assert run.finished
    assert not (tmp_path / "of-another-machine").exists()


# --- check ------------------------------------------------------------------------------------------------------------


def of(file: Path, **fields: Any) -> Any:
    usercode.trust_here(usercode.read(file)[1])
    return parse({"data": "digits", "network": network(file, **fields)}).network


def findings(file: Path, **fields: Any) -> dict[str, tuple[bool | None, str]]:
    return {name: done() for name, done in contracts.of_network(of(file, **fields), classes=10, shape=(1, 8, 8))}


@pytest.mark.slow
def test_a_good_network_passes_every_check() -> None:
    found = findings(FILE)
    assert len(found) == 9
    assert all(passed for passed, _ in found.values()), found


FORWARD = "        x = F.relu(self.second(x))\n"
BROKEN = {
    "deterministic in evaluation": (FORWARD, FORWARD + "        x = F.dropout(x, 0.5)\n", "dropout"),
    "batch independence": (FORWARD, FORWARD + "        x = x - x.mean(0, keepdim=True)\n", "alone and in a batch"),
    "gradient flow": (FORWARD, FORWARD.replace("x)", "x.detach())"), "first.weight and 3 more"),
    "state_dict round trip": (
        "        self.size = size\n",
        "        self.size = size\n        self.scale = torch.rand(1)\n",
        "parameters or buffers",
    ),
    "reproducible initialization": (
        "        self.size = size\n",
        "        self.size = size\n        import random\n        nn.init.constant_(self.head.bias, random.random())\n",
        "head.bias",
    ),
    "number of classes": ("nn.Linear(width, classes)", "nn.Linear(width, 10)", "not [2, 13]"),
    "ONNX export": (FORWARD, FORWARD + "        x = x * float(x.detach().numpy().max() > -1)\n", "cannot be exported"),
}


@pytest.mark.parametrize("check", [pytest.param(one, marks=[pytest.mark.slow] * ("ONNX" in one)) for one in BROKEN])
def test_a_check_finds_what_it_is_for(check: str, tmp_path: Path) -> None:
    old, new, words = BROKEN[check]
    text = "import torch\n" + FILE.read_text().replace(old, new)
    if check == "state_dict round trip":
        text = text.replace(".mean(2))", ".mean(2)) * self.scale")
    todo = contracts.of_network(of(wrote(tmp_path, text)), classes=10, shape=(1, 8, 8))
    for name, done in todo:
        if name in ("shapes", check):
            passed, said = done()
            if name == check:
                assert passed is False
                assert words in said
                return
            assert passed, said
    raise AssertionError(check)


LOSSES = {
    "gradient size over temperature": ("return soft * temperature**2", "return soft", "square of the temperature"),
    "mean over the batch": ('"batchmean"', '"sum"', "average over the batch"),
    "finite for confident logits": (
        "soft * temperature**2",
        "soft * temperature**2 + 0 * student.exp().sum()",
        "is nan",
    ),
    "zero at the teacher": ("return soft * temperature**2", "return soft * temperature**2 + 1", "not 0"),
}


@pytest.mark.parametrize("check", [None, *LOSSES])
def test_a_loss_is_checked(check: str | None, tmp_path: Path) -> None:
    old, new, words = LOSSES[check] if check else ("", "", "")
    file = wrote(tmp_path, FILE.read_text().replace(old, new) if check else FILE.read_text())
    usercode.trust_here(usercode.read(file)[1])
    spec = parse({"data": "digits", "network": "cnn", "teacher": "t", "loss": own_loss(file)}).loss
    found = {name: done() for name, done in contracts.of_loss(spec, classes=10, zero=True)}  # type: ignore[arg-type]
    for name, (passed, said) in found.items():
        assert passed is (name != check), (name, said)
        assert name != check or words in said


@pytest.mark.slow
def test_the_command_checks_in_a_process_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(FILE), "--with", "width=4", "--channels", "1", "--size", "8", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["ok"]
    assert said["part"] == "network: make(width=4) of net.py"
    assert "net.py" not in "".join(sys.modules)
    noisy = "print('hello')\n" + FILE.read_text().replace("soft * temperature**2", "soft")
    assert main(["check", str(wrote(tmp_path, noisy)), "--call", "loss", "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert [one["check"] for one in said["checks"] if one["passed"] is False] == ["gradient size over temperature"]
    assert main(["check", str(wrote(tmp_path, "while True: pass\n")), "--seconds", "6"]) == 1
    assert "no result within 6 s" in " ".join(capsys.readouterr().out.split())
    assert main(["check", str(wrote(tmp_path, "import os\nos._exit(7)\n")), "--json"]) == 1
    assert "exit code 7" in json.loads(capsys.readouterr().out)["checks"][0]["words"]
    assert main(["check", str(tmp_path / "no.py")]) == 2
    assert not (tmp_path / "trusted").exists()


def test_a_run_needs_no_python_file(train: Train) -> None:
    """What other runs write did not change."""
    run = train(epochs=1)
    assert not (run.folder / "code").exists()
    assert "file" not in to_yaml(run.spec)


@pytest.mark.slow
def test_the_page_of_a_run_shows_its_file_and_that_nothing_was_trained(
    shown: Show, store: Store, net: Path, tmp_path: Path
) -> None:
    checkpoint(tmp_path / "w.pt", 1)
    spec = {"data": "digits", "network": network(net, weights=str(tmp_path / "w.pt")), "epochs": 0}
    run = store.create(resolve(store, parse(spec)))
    worker.execute(run, store, device="cpu")
    app = shown("runs", run=run.id, tab="Python files")
    assert not app.error
    assert "make() of net.py" in texts(app)
    assert "class Net" in "".join(one.value for one in app.code)
    assert "file: " in "".join(one.value for one in shown("runs", run=run.id).code)


@pytest.mark.parametrize(
    ("address", "hosts", "role"),
    [
        ("127.0.0.1", [], Role.LOCAL),
        ("localhost", [], Role.LOCAL),
        ("0.0.0.0", [], Role.RUNNER),
        (None, [], Role.RUNNER),
        ("127.0.0.1", ["smallalign.example.org"], Role.RUNNER),
    ],
)
def test_a_browser_is_the_owners_only_where_nobody_else_can_reach_the_server(
    address: str | None, hosts: list[str], role: Role, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pages.ui.security import auth

    options = {"server.address": address, "server.allowedHosts": hosts}
    monkeypatch.setattr(auth.st, "get_option", options.__getitem__)
    assert auth.of_browser(None, "session").role is role
