"""The wheel, installed outside of the checkout: the digits story by the command `smallalign`, and the dashboard."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import sysconfig
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import chromium
import pytest
from conftest import ROOT
from filelock import FileLock, Timeout

from pages.ui.browser import _npm

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel, and an empty folder to work in."""

    wheel: Path
    environment: Path
    folder: Path

    @property
    def packages(self) -> Path:
        return next(self.environment.glob("lib/python*/site-packages"))

    @property
    def variables(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "SMALLALIGN_STORE")}
        return kept | {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(self.folder.parent / "cache")}

    def run(self, *words: str, code: int = 0) -> Any:
        """The JSON answer of `smallalign WORDS`."""
        done = subprocess.run(
            [self.environment / "bin" / "smallalign", *words, "--json"],
            capture_output=True,
            text=True,
            cwd=self.folder,
            env=self.variables,
            timeout=500,
        )
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout) if done.stdout else done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    pip("wheel", ROOT, "--no-deps", "--no-build-isolation", "--wheel-dir", folder)
    return next(folder.glob("smallalign-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Its dependencies are those of the environment that runs the tests: a minute of downloads shows nothing here."""
    root = tmp_path_factory.mktemp("elsewhere")
    made = Installed(wheel, root / "environment", root / "work")
    made.folder.mkdir()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", made.environment], check=True)
    (made.packages / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip("--python", made.environment / "bin" / "python", "install", "--no-deps", "--no-index", "--no-compile", wheel)
    return made


def pip(*words: object) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if "__pycache__" not in path.parts}


def test_the_wheel_has_the_library_the_dashboard_and_the_starter_models_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        names = set(opened.namelist())
        metadata = opened.read(next(name for name in names if name.endswith("METADATA"))).decode()
    assert {name.split("/")[0].partition("-")[0] for name in names} == {
        "smallalign_core", "smallalign_dashboard", "smallalign",
    }  # fmt: skip
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT)
    if listed.returncode == 0:
        places = {"smallalign_core": "smallalign_core", "pages": "smallalign_dashboard/pages"}
        places |= {"models/zoo": "smallalign_core/_models/zoo", "app.py": "smallalign_dashboard/app.py"}
        places |= {".streamlit": "smallalign_dashboard/.streamlit"}
        wanted = {
            f"{to}{name.removeprefix(place)}"
            for name in listed.stdout.splitlines()
            for place, to in places.items()
            if (name == place or name.startswith(f"{place}/")) and (ROOT / name).exists()
        }
        untracked = {name for name in names - wanted if ".dist-info/" not in name and not _new(name)}
        assert (wanted - names, untracked) == (set(), set())
    assert "License-Expression: MIT" in metadata
    assert any(name.endswith("licenses/LICENSE") for name in names)


def _new(name: str) -> bool:
    """Whether a file of the wheel is one that somebody has written and not yet added to git."""
    return (ROOT / name.replace("smallalign_dashboard/", "")).is_file() and name.endswith(".py")


def test_the_digits_story_in_an_empty_folder(installed: Installed) -> None:
    before = files(installed.packages)
    (installed.folder / "spec.yaml").write_text("data: digits\nnetwork: cnn\nteacher: digits-teacher\nepochs: 3\n")
    trained = installed.run("train", "spec.yaml")
    assert trained["state"] == "finished"
    assert trained["test"]["images"] == 359
    run = installed.folder / "models" / "runs" / trained["id"]
    assert (run / "result.json").is_file(), "the store is `models` in the folder where the command was given"
    compared = installed.run("compare", "digits-teacher", trained["id"])
    assert compared["teacher"]["accuracy"] == pytest.approx(353 / 359, abs=0.01)
    written = installed.run("export", trained["id"], "--to", "student.onnx")
    assert (installed.folder / "student.onnx").stat().st_size == written["bytes"]
    verified = installed.run("verify", "student.onnx")
    assert verified["ok"]
    assert (verified["images"], verified["top1_agreement"]) == (359, 1.0)
    assert installed.run("doctor")["ok"]
    assert files(installed.packages) == before, "nothing is ever written where the package lies"


def test_the_dashboard_answers_from_any_folder(installed: Installed) -> None:
    """Also from one with an app.py, pages and a package of the user's own."""
    for name in ("app.py", "pages/__init__.py", "pages/frame.py", "smallalign_core/__init__.py"):
        (installed.folder / name).parent.mkdir(exist_ok=True)
        (installed.folder / name).write_text("raise SystemExit('this is not the one')\n")
    before = files(installed.packages)
    link_browser_parts(installed)
    with served(installed) as (site, told):
        assert told["folder"] == str(installed.packages.resolve() / "smallalign_dashboard")
        assert told["store"] == str(installed.folder.resolve() / "models")
        with urllib.request.urlopen(f"{site}/", timeout=30) as page:
            assert page.status == 200
            assert "default-src 'self'" in page.headers["Content-Security-Policy"], "app.py put its wall around it"
        with urllib.request.urlopen(f"{site}/assets/parity.mjs", timeout=30) as module:
            assert module.status == 200
        if _npm.PACKAGES.installed():
            version = _npm.PACKAGES.versions["uplot"]
            with urllib.request.urlopen(f"{site}/assets/uplot/{version}/dist/uPlot.esm.js", timeout=30) as package:
                assert package.status == 200
    assert files(installed.packages) == before
    assert (installed.folder / "models" / "worker.log").exists(), "its worker serves that store"


def link_browser_parts(installed: Installed) -> None:
    """Put what npm installed for the tests where an installed dashboard looks for it: no network is needed then."""
    manifest = installed.packages / "smallalign_dashboard" / "pages" / "ui" / "browser" / "package-lock.json"
    assert manifest.read_bytes() == (_npm.HERE / "package-lock.json").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", installed.variables["XDG_CACHE_HOME"])
        cache = _npm.located(_npm.HERE, checkout=False).folder
    cache.mkdir(parents=True)
    (cache / "node_modules").symlink_to(_npm.PACKAGES.folder / "node_modules")


@contextlib.contextmanager
def served(installed: Installed) -> Iterator[tuple[str, dict[str, str]]]:
    """(the address of `smallalign dashboard`, what it said of itself)."""
    port, log = chromium.free_port(), installed.folder.parent / "server.log"
    out = installed.folder.parent / "told.json"
    with log.open("wb") as errors, out.open("wb") as output:
        process = subprocess.Popen(
            [installed.environment / "bin" / "smallalign", "dashboard", "--port", str(port), "--json"],
            cwd=installed.folder,
            env=installed.variables,
            stdout=output,
            stderr=errors,
        )
    try:
        chromium._wait(f"http://127.0.0.1:{port}/_stcore/health", process, log, 120)
        yield f"http://127.0.0.1:{port}", json.loads(out.read_text())
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        lock = FileLock(installed.folder / "models" / "worker-auto.lock")
        with contextlib.suppress(OSError, Timeout), lock.acquire(timeout=60):  # its worker ends by itself
            pass
