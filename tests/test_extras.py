"""What the package declares: its ranges hold the pins, its extras the packages; what is missing is one sentence."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, command, tiny
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from torch import nn

import smallalign_core
from smallalign_core.errors import MissingExtra
from smallalign_core.runs.store import Store
from smallalign_core.service import handlers
from smallalign_core.service.requests import Submit
from smallalign_core.system import extras
from smallalign_core.training import optim

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
UNPINNED = {"openvino", "executorch", "tensorboard", "mlflow", "wandb", "mcp"}
"""Extras that `requirements.txt` does not pin, so that the ordinary install does not grow."""
CALLED = {"mlflow": "mlflow-skinny"}
"""Packages whose name is not that of their import."""
EXTRAS: dict[str, list[Requirement]] = {
    name: [Requirement(line) for line in lines] for name, lines in PROJECT["optional-dependencies"].items()
}


def pins(file: str) -> dict[str, str]:
    lines = [line for line in (ROOT / file).read_text().splitlines() if "==" in line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def ranges() -> list[Requirement]:
    own = [Requirement(line) for line in PROJECT["dependencies"]]
    pinned = [listed for name, listed in EXTRAS.items() if name not in UNPINNED]
    return [*own, *(one for listed in pinned for one in listed if one.name != "smallalign")]


@pytest.mark.parametrize("range_", ranges(), ids=str)
def test_every_pin_lies_in_its_range(range_: Requirement) -> None:
    version = pins("requirements.txt")[canonicalize_name(range_.name)]
    assert range_.specifier.contains(version)
    assert any(one.operator == ">=" for one in range_.specifier), "a range says from where on it was tried"


def test_requirements_pin_what_the_package_needs_and_nothing_else() -> None:
    assert set(pins("requirements.txt")) == {canonicalize_name(one.name) for one in ranges()}


def test_the_extra_all_has_all_others() -> None:
    assert set().union(*(one.extras for one in EXTRAS["all"])) == set(EXTRAS) - {"all"}


@pytest.mark.parametrize(("package", "extra"), extras.EXTRA_OF.items())
def test_the_extra_that_is_named_brings_the_package(package: str, extra: str) -> None:
    assert canonicalize_name(CALLED.get(package, package)) in {canonicalize_name(one.name) for one in EXTRAS[extra]}
    assert extras.command(package) == f'pip install "smallalign[{extra}]"'


def test_a_package_of_an_extra_is_imported_in_one_way_only() -> None:
    """Else one of them is refused with a traceback, or in other words."""
    own = set(extras.EXTRA_OF) - {"streamlit"}
    pattern = re.compile(rf"^\s*(?:import|from)\s+({'|'.join(own)})\b", re.MULTILINE)
    files = [file for file in extras.PACKAGE.rglob("*.py") if file.parent.name != "snippets"]  # which go with downloads
    found = {str(file.relative_to(ROOT)) for file in files if pattern.search(file.read_text())}
    assert found == {"smallalign_core/studies/ray_executor/_node.py"}, (
        "that one runs on a machine that was found to have ray"
    )


def test_the_version_stands_in_one_place() -> None:
    assert PROJECT["dynamic"] == ["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", smallalign_core.__version__)


def test_importing_the_library_imports_no_torch() -> None:
    code = "import sys, smallalign_core; print({'torch', 'numpy', 'streamlit'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "set()", done.stderr


# --- without a package ------------------------------------------------------------------------------------------------


def without(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """As if it were not installed."""
    for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)


OPTIMIZERS = {
    "muon": ("timm", "timm"),
    "nadamw": ("timm", "timm"),
    "lion": ("pytorch_optimizer", "optimizers"),
    "soap": ("pytorch_optimizer", "optimizers"),
    "lookahead": ("pytorch_optimizer", "optimizers"),
    "sam": ("pytorch_optimizer", "optimizers"),
    "snes": ("evotorch", "evolution"),
    "pgpe": ("evotorch", "evolution"),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_an_optimizer_without_its_package_is_refused_before_it_is_queued(
    kind: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, extra = OPTIMIZERS[kind]
    without(monkeypatch, package)
    words = (
        rf'^The optimizer {kind} needs the package {package}, which is not installed\. Run `pip install "smallalign\['
    )
    with pytest.raises(MissingExtra, match=words + rf'{extra}\]"`\.$'):
        handlers.submit(store, Submit(tiny(optimizer=kind)))
    assert not store.runs()
    with pytest.raises(MissingExtra, match=words):
        optim.build(tiny(optimizer=kind).optimizer, nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("package", "given"),
    [
        ("timm", ["train", "{spec}"]),
        ("cleanlab", ["inspect", "digits"]),
        ("ray", ["optimizers", "{study}", "--ray", "127.0.0.1:1"]),
        ("streamlit", ["dashboard"]),
    ],
)
def test_what_an_extra_would_add_is_one_sentence_and_exit_code_2(
    package: str, given: list[str], store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, package)
    (tmp_path / "spec.yaml").write_text("data: digits\nnetwork: {kind: timm, name: resnet18}\n")
    (tmp_path / "study.yaml").write_text("data: digits\nnetwork: cnn\nseeds: 2\nbudgets: [1]\n")
    files = {"spec": tmp_path / "spec.yaml", "study": tmp_path / "study.yaml"}
    done = command(*(word.format(**files) for word in given), store=store)
    assert done.returncode == 2, done.stderr
    *progress, said = done.stderr.splitlines()
    assert not any("." in line for line in progress), "a sentence, and no traceback above it"
    assert said.endswith(f"which is not installed. Run `{extras.command(package)}`.")
    assert not store.runs()


def test_a_package_that_lacks_one_of_its_own_says_which(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "evotorch.py").write_text("import absent_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "evotorch", raising=False)
    with pytest.raises(MissingExtra, match="needs the package absent_dependency, which is not installed"):
        extras.load("evotorch", "the optimizer snes")


def test_a_package_that_is_too_old_is_not_said_to_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "timm.optim.muon")
    words = (
        r'needs a newer version of the package timm \(given: .*\)\. Run `pip install --upgrade "smallalign\[timm\]"`'
    )
    with pytest.raises(MissingExtra, match=words):
        optim.build(tiny(optimizer="muon").optimizer, nn.Linear(2, 2))


def test_doctor_counts_no_extra_as_a_fault(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from smallalign_core.service import doctor

    monkeypatch.setattr(extras, "version", lambda _: None)
    found = {check.name: check for check in doctor.examine(store)}
    assert all(found[name].ok for name in extras.EXTRA_OF)
    assert found["ray"].found == 'not installed; pip install "smallalign[ray]" adds it'
